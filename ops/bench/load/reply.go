package load

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// replyMax bounds one reply's bytes, head included.
const replyMax = 4 << 20

// readSize is how much the buffer of a connection grows by.
const readSize = 16 << 10

// A reply is one HTTP/1.1 response as it stands in a connection's buffer.
type reply struct {
	status int
	body   []byte
	// closing is set when the server says that it closes the connection.
	closing bool
}

var (
	headEnd          = []byte("\r\n\r\n")
	lineEnd          = []byte("\r\n")
	contentLength    = []byte("content-length")
	transferEncoding = []byte("transfer-encoding")
	connectionHeader = []byte("connection")
	errNotHTTP       = errors.New("the answer is not HTTP/1.1")
)

// parseReply reads the reply at the start of data. It returns how many bytes it took, 0 when more must be read first.
// The body aliases data.
func parseReply(data []byte) (reply, int, error) {
	head := bytes.Index(data, headEnd)
	if head < 0 {
		return reply{}, 0, limit(data)
	}
	if !bytes.HasPrefix(data, []byte("HTTP/1.1 ")) || head < len("HTTP/1.1 200") {
		return reply{}, 0, errNotHTTP
	}
	status, err := strconv.Atoi(string(data[9:12]))
	if err != nil {
		return reply{}, 0, errNotHTTP
	}
	found := reply{status: status}
	length, chunked := 0, false
	for lines := data[:head]; len(lines) > 0; {
		line := lines
		if end := bytes.Index(lines, lineEnd); end >= 0 {
			line, lines = lines[:end], lines[end+len(lineEnd):]
		} else {
			lines = nil
		}
		name, value, isHeader := bytes.Cut(line, []byte(": "))
		switch {
		case !isHeader:
		case len(name) == len(contentLength) && bytes.EqualFold(name, contentLength):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return reply{}, 0, fmt.Errorf("content-length %q", value)
			}
		case len(name) == len(transferEncoding) && bytes.EqualFold(name, transferEncoding):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case len(name) == len(connectionHeader) && bytes.EqualFold(name, connectionHeader):
			found.closing = bytes.EqualFold(value, []byte("close"))
		}
	}
	start := head + len(headEnd)
	if chunked {
		body, taken, err := parseChunks(data[start:])
		if taken == 0 || err != nil {
			return reply{}, 0, errors.Join(err, limit(data))
		}
		found.body = body
		return found, start + taken, nil
	}
	if len(data) < start+length {
		return reply{}, 0, limit(data)
	}
	found.body = data[start : start+length]
	return found, start + length, nil
}

// parseChunks joins the chunks of a body, which has no trailers.
func parseChunks(data []byte) (body []byte, taken int, err error) {
	for {
		end := bytes.Index(data[taken:], lineEnd)
		if end < 0 {
			return nil, 0, nil
		}
		size, err := strconv.ParseUint(string(data[taken:taken+end]), 16, 31)
		if err != nil {
			return nil, 0, fmt.Errorf("chunk size %q", data[taken:taken+end])
		}
		start := taken + end + len(lineEnd)
		taken = start + int(size) + len(lineEnd)
		if len(data) < taken {
			return nil, 0, nil
		}
		if size == 0 {
			return body, taken, nil
		}
		body = append(body, data[start:start+int(size)]...)
	}
}

func limit(data []byte) error {
	if len(data) > replyMax {
		return fmt.Errorf("a reply of more than %d bytes", replyMax)
	}
	return nil
}
