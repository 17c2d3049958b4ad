package echo

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// RunProxy serves a bare httputil.ReverseProxy in front of an upstream until ctx ends: what passing a call on costs at least, with connections
// that are kept and buffers that are used again, and without any policy.
func RunProxy(ctx context.Context, listen string, upstream *url.URL) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(upstream)
			pr.Out.Host = pr.In.Host
			pr.SetXForwarded()
		},
		Transport: &http.Transport{
			Protocols: &protocols, DisableCompression: true, IdleConnTimeout: 90 * time.Second,
			MaxIdleConns: idleConnectionsMax, MaxIdleConnsPerHost: idleConnectionsMax,
		},
		BufferPool: &buffers{},
		ErrorLog:   slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	return serve(ctx, listener, proxy)
}

const (
	// idleConnectionsMax are kept to the upstream: more than any load has connections.
	idleConnectionsMax = 10_000
	copyBytes          = 32 << 10
)

// buffers are for copying bodies.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if kept, ok := b.pool.Get().(*[copyBytes]byte); ok {
		return kept[:]
	}
	return make([]byte, copyBytes)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buffer []byte) {
	if len(buffer) == copyBytes {
		b.pool.Put((*[copyBytes]byte)(buffer))
	}
}
