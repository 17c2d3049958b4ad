package main

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/weirhq/weir/api"
)

// A call to a node that was being opened was taken by the kernel and waited until the node served, a second and more, while another node could have
// answered.
func TestACallToANodeThatIsBeingOpenedIsAnsweredAtOnce(t *testing.T) {
	listener, err := listenOn(t.Context(), "127.0.0.1:0", "--listen")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // The server below has closed it.
	client := &http.Client{Timeout: 20 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	get := func() (status int, body, waitsFor string) {
		t.Helper()
		response, err := client.Get("http://" + listener.Addr().String()) //nolint:noctx // The client has a timeout.
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(data), response.Header.Get(api.HeaderWaitsFor)
	}
	var atTheDoor doorman
	atTheDoor.begin([]net.Listener{listener}, func() string { return "its log, to open" })
	if status, body, waitsFor := get(); status != http.StatusServiceUnavailable || waitsFor != "its log, to open" {
		t.Errorf("while it is opened: %d %q, it waits for %q", status, body, waitsFor)
	}
	silent, err := net.Dial("tcp", listener.Addr().String()) //nolint:noctx // Loopback.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() }) // The doorman may have.
	if err := atTheDoor.end(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The node has its listener back.
	node := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the node") }), ReadHeaderTimeout: time.Second}
	ended := make(chan error, 1)
	go func() { ended <- node.Serve(listener) }()
	if status, body, _ := get(); status != http.StatusOK || body != "the node" {
		t.Errorf("when it serves: %d %q", status, body)
	}
	if err := node.Close(); err != nil {
		t.Error(err)
	}
	<-ended
}

func TestADoormanWhoNeverBeganEnds(t *testing.T) {
	var atTheDoor doorman
	if err := atTheDoor.end(t.Context()); err != nil {
		t.Error(err)
	}
}
