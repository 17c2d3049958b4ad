package gateway

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/weirhq/weir/gateway/policy"
)

// discarded is a response that nobody reads.
type discarded struct{ header http.Header }

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) Write(p []byte) (int, error) { return len(p), nil }
func (d *discarded) WriteHeader(int)             {}

// BenchmarkPolicy measures what the gateway's policy costs one unary call, beside a bare ReverseProxy that calls the same handler in the same
// way: no socket is in it, so that the difference is the gateway's own work and nothing else.
func BenchmarkPolicy(b *testing.B) {
	const body = `{"requestId":"bench-0000-000000000000","items":[{"sku":"sku-000","quantity":"1"}],"note":"ring twice"}`
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
	})
	g, err := New(Options{Local: handler, LocalID: "local", Policy: policy.Policy{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	local := newLocalUpstream("local", handler)
	bare := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "http", Host: "local"})
			pr.SetXForwarded()
		},
		Transport:  local.unary,
		BufferPool: &buffers{},
	}
	request := func() *http.Request {
		r, err := http.NewRequest(http.MethodPost, "http://gateway.example/weir.order.v1.OrderService/PlaceOrder", bytes.NewReader([]byte(body))) //nolint:noctx // A benchmark.
		if err != nil {
			b.Fatal(err)
		}
		r.RemoteAddr = "203.0.113.7:4711"
		r.Header = http.Header{
			"Content-Type": {"application/json"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"bench"}, "Connect-Protocol-Version": {"1"},
			"Authorization": {"Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJ3ZWlyIiwic3ViIjoiYWxpY2UiLCJhdWQiOlsid2VpciJdLCJleHAiOjE3OTg1OTQzNzQsImlhdCI6MTc5NjAwMjM3NH0.I1FrdMsDgFgF801TDBzQhY7dhMdMDZ2nythNw7at1KY"},
		}
		return r
	}
	for _, test := range []struct {
		name    string
		handler http.Handler
		unary   bool
	}{{"direct", handler, false}, {"ReverseProxy", bare, true}, {"gateway", g, false}} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := request()
				if test.unary {
					r = r.WithContext(contextOfUnary(r.Context()))
				}
				test.handler.ServeHTTP(&discarded{header: http.Header{}}, r)
			}
		})
	}
}
