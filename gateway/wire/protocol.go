// Package wire reads and writes the three RPC protocols as far as somebody between client and server has to: which protocol and
// method a request has, how long its caller waits, how a call ended, and how to end one oneself so that the client understands it.
// It decodes no message and knows no policy.
package wire

import (
	"net/http"
	"strings"
)

// A Protocol is how a request speaks.
type Protocol uint8

// The protocols.
const (
	// Plain is HTTP that is no RPC, such as a webhook: it passes, and errors are HTTP's.
	Plain Protocol = iota
	// ConnectUnary is a POST whose body is the message itself.
	ConnectUnary
	// ConnectGet is a call without side effects whose message is in the URL.
	ConnectGet
	// ConnectStream is a POST of enveloped messages.
	ConnectStream
	// GRPC needs HTTP/2 and trailers.
	GRPC
	// GRPCWeb has its trailers in the body.
	GRPCWeb
)

// protocolNames are those of metrics.
var protocolNames = [...]string{"http", "connect", "connect_get", "connect_stream", "grpc", "grpc_web"}

// String names the protocol as metrics do.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return "unknown"
}

// Enveloped reports whether messages have a prefix of five bytes each.
func (p Protocol) Enveloped() bool { return p == ConnectStream || p == GRPC || p == GRPCWeb }

// Detect says which protocol a request speaks, by the rules that its server goes by too. A POST of a content type that no
// protocol has is Plain: the server is to refuse it.
func Detect(r *http.Request) Protocol {
	switch r.Method {
	case http.MethodGet:
		// Connect asks for connect=v1 in the query; a message parameter alone counts as well for servers that do not insist.
		if query := r.URL.RawQuery; Procedure(r.URL.Path) != "" && (hasParameter(query, "connect") || hasParameter(query, "message")) {
			return ConnectGet
		}
		return Plain
	case http.MethodPost:
	default:
		return Plain
	}
	if Procedure(r.URL.Path) == "" {
		return Plain
	}
	contentType := mediaType(r.Header)
	switch rest, application := strings.CutPrefix(contentType, "application/"); {
	case !application:
		return Plain
	case rest == "grpc" || strings.HasPrefix(rest, "grpc+"):
		return GRPC
	case rest == "grpc-web" || strings.HasPrefix(rest, "grpc-web+"):
		return GRPCWeb
	case strings.HasPrefix(rest, "connect+"):
		return ConnectStream
	case rest == "json" || rest == "proto":
		return ConnectUnary
	}
	return Plain
}

// mediaType returns the content type without its parameters, in lower case.
func mediaType(header http.Header) string {
	values := header["Content-Type"]
	if len(values) == 0 {
		return ""
	}
	kind, _, _ := strings.Cut(values[0], ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// hasParameter reports whether a raw query has a parameter, whatever its value.
func hasParameter(query, name string) bool {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if key, _, _ := strings.Cut(pair, "="); key == name {
			return true
		}
	}
	return false
}

// Procedure returns the path if it names a method, /package.Service/Method, and "" if it does not.
func Procedure(path string) string {
	service, method, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if len(path) == 0 || path[0] != '/' || !ok || method == "" || strings.Contains(method, "/") || !strings.Contains(service, ".") {
		return ""
	}
	return path
}
