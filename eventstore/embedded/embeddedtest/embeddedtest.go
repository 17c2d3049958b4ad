// Package embeddedtest gives tests a NATS server in their own process, and connections to it. Both end with the test.
package embeddedtest

import (
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/eventstore/embedded"
)

// Start starts a server. Without a Dir it has one of the test's own, and without a Logger it says nothing.
func Start(tb testing.TB, options embedded.Options) *embedded.Server {
	tb.Helper()
	if options.Dir == "" {
		options.Dir = tb.TempDir()
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	server, err := embedded.Start(options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(server.Shutdown)
	return server
}

// Connect connects to a server.
func Connect(tb testing.TB, server *embedded.Server) *nats.Conn {
	tb.Helper()
	connection, err := server.Connect()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(connection.Close)
	return connection
}
