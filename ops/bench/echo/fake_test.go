package echo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// startFake runs a fake upstream until the test ends, and returns its base URL.
func startFake(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- RunFake(ctx, Options{Listen: addr, PlaceReply: []byte("placed"), GetReply: []byte("got")})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); err == nil {
			_ = conn.Close()
			return "http://" + addr
		}
		if time.Now().After(deadline) {
			t.Fatal("the fake upstream does not serve")
		}
	}
}

func call(t *testing.T, method, url, body string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/proto")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(read)
}

func TestAFakeUpstreamAnswersAsItIsToldAndCountsWhatArrives(t *testing.T) {
	base := startFake(t)
	for i, c := range []struct {
		behaviour, path string
		status          int
		text            string
	}{
		{`{}`, orderv1connect.OrderServicePlaceOrderProcedure, http.StatusOK, "placed"},
		{`{"places":1,"delay":1000000}`, orderv1connect.OrderServiceGetOrderProcedure, http.StatusOK, "got"},
		{`{}`, "/weir.points.v1.PointsService/GetPoints", http.StatusOK, ""},
		{`{"fails":true}`, orderv1connect.OrderServiceGetOrderProcedure, http.StatusServiceUnavailable, "unavailable"},
	} {
		if status, text := call(t, http.MethodPut, base+BehaviourPath, c.behaviour); status != http.StatusOK {
			t.Fatalf("behaviour %s: %d %s", c.behaviour, status, text)
		}
		status, text := call(t, http.MethodPost, base+c.path, "x")
		if status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("with %s, %s answers %d %q, want %d %q", c.behaviour, c.path, status, text, c.status, c.text)
		}
		if _, counted := call(t, http.MethodGet, base+CallsPath, ""); counted != fmt.Sprint(i+1) {
			t.Errorf("after %d calls it counts %s", i+1, counted)
		}
	}
}

func TestAFakeUpstreamRefusesABehaviourThatIsNone(t *testing.T) {
	base := startFake(t)
	for _, behaviour := range []string{`{"place":1}`, `{"places":-1}`, `{"places":10001}`, `{"delay":-1}`, `{"delay":60000000001}`, `no`} {
		if status, _ := call(t, http.MethodPut, base+BehaviourPath, behaviour); status != http.StatusBadRequest {
			t.Errorf("behaviour %s: status %d, want 400", behaviour, status)
		}
	}
}
