package load_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
)

func TestAConnReadsEachReplyOfItsRequest(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Equal(body, []byte("2")) {
			w.WriteHeader(http.StatusConflict)
		}
		if bytes.Equal(body, []byte("4")) {
			w.Header().Set("Connection", "close")
		}
		// The third one is chunked and longer than a buffer.
		_, _ = w.Write(bytes.Repeat(body, map[string]int{"3": 100_000}[string(body)]+1))
	}))
	defer server.Close()
	conn, err := load.Dial(t.Context(), server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for number, want := range []struct{ status, length int }{{200, 1}, {200, 1}, {409, 1}, {200, 100_001}, {200, 1}} {
		request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d", number)
		status, body, err := conn.Do([]byte(request), time.Minute)
		if err != nil || status != want.status || len(body) != want.length || body[0] != byte('0'+number) {
			t.Errorf("request %d: status %d, %d bytes, %v, want %d, %d bytes", number, status, len(body), err, want.status, want.length)
		}
	}
	if _, _, err := conn.Do([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), time.Minute); err == nil {
		t.Error("a request after the server closed the connection: no error")
	}
}

func TestAConnToAServerThatHangsUpIsAnError(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer server.Close()
	conn, err := load.Dial(t.Context(), server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status, _, err := conn.Do([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), time.Minute); err == nil {
		t.Errorf("status %d, no error", status)
	}
}
