package wire

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

// RequestMessage returns the message of a unary request whose body is this, and whether it is JSON; false if it cannot be told, or if the
// message is inflated to more than bytesMax.
func RequestMessage(r *http.Request, body []byte, bytesMax int64) (message []byte, isJSON, ok bool) {
	contentType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	contentType = strings.TrimSpace(contentType)
	encoding := r.Header.Get("Content-Encoding")
	switch contentType {
	case "application/json":
		isJSON = true
	case "application/proto":
	case "application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpc-web+proto", "application/grpc+json", "application/grpc-web+json":
		isJSON = strings.HasSuffix(contentType, "+json")
		const prefix = 5
		if len(body) < prefix || uint64(binary.BigEndian.Uint32(body[1:prefix])) != uint64(len(body)-prefix) {
			return nil, false, false
		}
		encoding = ""
		if body[0] != 0 {
			encoding = r.Header.Get("Grpc-Encoding")
		}
		body = body[prefix:]
	default:
		return nil, false, false
	}
	switch encoding {
	case "", "identity":
		return body, isJSON, true
	case "gzip":
		body, ok = Gunzip(body, bytesMax)
		return body, isJSON, ok
	}
	return nil, false, false
}

// Gunzip inflates a message; false if it is none, or has more than bytesMax.
func Gunzip(body []byte, bytesMax int64) ([]byte, bool) {
	reader, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, false
	}
	text, err := io.ReadAll(io.LimitReader(reader, bytesMax+1))
	return text, err == nil && int64(len(text)) <= bytesMax
}
