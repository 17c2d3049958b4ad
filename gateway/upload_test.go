package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Its transport closed the body of a call over HTTP/2 when the handler had returned: setting a deadline then was a panic, and the end of the gateway.
func TestAnUploadThatIsClosedAfterItsHandlerReturnedIsLeftAlone(t *testing.T) {
	uploads := make(chan *upload, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := &upload{body: r.Body, reading: &reading{controller: http.NewResponseController(w)}, grace: time.Minute}
		if _, err := u.Read(make([]byte, 1)); err != nil {
			t.Errorf("read a byte of the body: %v", err)
		}
		u.reading.end()
		uploads <- u
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, strings.NewReader("a body"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.ProtoMajor != 2 {
		t.Fatalf("close the answer over %s: %v", response.Proto, err)
	}
	if err := (<-uploads).Close(); err != nil {
		t.Error(err)
	}
}
