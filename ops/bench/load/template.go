package load

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// A Source makes requests. Next returns the bytes of one whole HTTP/1.1 request, valid until the next call.
// It is called by one goroutine.
type Source interface{ Next() []byte }

// A Field is a placeholder of a Template: wherever Placeholder stands in the request, Fill overwrites it, with as
// many bytes, the same ones at each place.
type Field struct {
	Placeholder string
	Fill        func(dst []byte)
}

// A Template is a request that is built once; only its fields change from call to call.
type Template struct {
	request []byte
	fields  []templateField
}

type templateField struct {
	offsets []int
	length  int
	fill    func([]byte)
}

// NewTemplate makes a POST to path on a server of this machine. Every field's placeholder must stand in the body.
func NewTemplate(path, contentType, bearer string, body []byte, fields ...Field) (*Template, error) {
	return NewTemplateFor("127.0.0.1", path, contentType, bearer, body, fields...)
}

// NewTemplateFor makes a POST to path on the server of that name, with its port unless that is the usual one.
func NewTemplateFor(host, path, contentType, bearer string, body []byte, fields ...Field) (*Template, error) {
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", path, host, contentType, len(body))
	if contentType == "application/proto" || contentType == "application/json" {
		request.WriteString("Connect-Protocol-Version: 1\r\n")
	}
	if bearer != "" {
		fmt.Fprintf(&request, "Authorization: Bearer %s\r\n", bearer)
	}
	request.WriteString("\r\n")
	head := request.Len()
	request.Write(body)
	template := &Template{request: request.Bytes()}
	for _, field := range fields {
		found := templateField{length: len(field.Placeholder), fill: field.Fill}
		for at := head; ; {
			offset := bytes.Index(template.request[at:], []byte(field.Placeholder))
			if offset < 0 {
				break
			}
			found.offsets = append(found.offsets, at+offset)
			at += offset + found.length
		}
		if len(found.offsets) == 0 {
			return nil, fmt.Errorf("the body has no %q", field.Placeholder)
		}
		template.fields = append(template.fields, found)
	}
	return template, nil
}

// Next fills the fields anew.
func (t *Template) Next() []byte {
	for _, field := range t.fields {
		first := t.request[field.offsets[0]:][:field.length]
		field.fill(first)
		for _, offset := range field.offsets[1:] {
			copy(t.request[offset:], first)
		}
	}
	return t.request
}

// Counter fills a placeholder with prefix and a number that counts up from 0, with leading zeros.
func Counter(prefix string) func([]byte) {
	next := uint64(0)
	return func(dst []byte) {
		putDecimal(dst[copy(dst, prefix):], next)
		next++
	}
}

// Draw fills a placeholder with prefix and a random number below limit, with leading zeros.
func Draw(random *rand.Rand, prefix string, limit uint64) func([]byte) {
	return func(dst []byte) { putDecimal(dst[copy(dst, prefix):], random.Uint64N(limit)) }
}

// Pick fills a placeholder with one of the values, each as long as the placeholder, or shorter and filled up with spaces.
func Pick(random *rand.Rand, values []string) func([]byte) {
	return func(dst []byte) {
		for written := copy(dst, values[random.IntN(len(values))]); written < len(dst); written++ {
			dst[written] = ' '
		}
	}
}

// Names returns count values of the form prefix0, prefix1, and so on, each with suffix.
func Names(prefix, suffix string, count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = prefix + strconv.Itoa(i) + suffix
	}
	return names
}

func putDecimal(dst []byte, number uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = byte('0' + number%10)
		number /= 10
	}
}
