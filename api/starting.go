package api

import (
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
)

// Limits of a server for a node that is being opened.
const (
	// startingRetry is when a caller may come again.
	startingRetry = time.Second
	// startingTimeMax bounds how long a caller's header and the answer take, each, and startingHeaderBytesMax how large the header is.
	startingTimeMax        = 5 * time.Second
	startingHeaderBytesMax = 16 << 10
)

// NewStartingServer returns a server for the addresses of a node that is being opened. It tells every caller at once that the node takes no calls
// yet, and what it waits for: else the kernel would take the connection, and the caller wait until the node serves, while another node could
// have answered. The caller gives it a listener.
func NewStartingServer(waitsFor func() string) *http.Server {
	errors := connect.NewErrorWriter()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: &protocols, ReadHeaderTimeout: startingTimeMax, WriteTimeout: startingTimeMax, MaxHeaderBytes: startingHeaderBytesMax,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			what := waitsFor()
			w.Header().Set(HeaderWaitsFor, what)
			f := &fault{reason: ReasonStarting, message: fmt.Sprintf("this node is starting; it waits for %s", what), retryAfter: startingRetry}
			if errors.IsSupported(r) {
				_ = errors.Write(w, r, f.connectError()) // Whoever left does not hear it.
				return
			}
			http.Error(w, f.message, http.StatusServiceUnavailable)
		}),
	}
	server.SetKeepAlivesEnabled(false) // The next call is for the node itself.
	return server
}
