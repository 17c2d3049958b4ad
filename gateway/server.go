package gateway

import (
	"log/slog"
	"net/http"
	"time"
)

// NewServer returns a server of the gateway for HTTP/1.1 and HTTP/2, in plain text and over TLS, with the limits of its policy. The
// caller gives it a listener.
func NewServer(g *Gateway) *http.Server {
	limits := g.rules.Load().policy.Limits
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           g,
		Protocols:         &protocols,
		ReadHeaderTimeout: limits.HeaderTime,
		// No ReadTimeout: over HTTP/1.1 it would cancel calls that outlast it. Each body has a deadline of its own.
		WriteTimeout:   limits.ReplyTime,
		IdleTimeout:    limits.IdleTime,
		MaxHeaderBytes: limits.HeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          limits.StreamsPerConnection,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     128 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
		ErrorLog: slog.NewLogLogger(g.logger.Handler(), slog.LevelDebug), // The noise of broken clients.
	}
}
