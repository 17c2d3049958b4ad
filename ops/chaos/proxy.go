package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const (
	// proxyConnectionsMax bounds the connections through a proxy at a time; more wait in the listener's queue.
	proxyConnectionsMax = 4096
	// proxyReadSize is how much is passed on at a time.
	proxyReadSize = 32 << 10
	// proxyDialMax bounds the dialling of the server behind.
	proxyDialMax = 2 * time.Second
)

// A proxy stays where it is while the server behind it moves, and loses replies: what was asked for has happened, and whoever asked
// does not hear of it.
type proxy struct {
	listener net.Listener
	// behind says where the server is now, host:port; empty while it is nowhere.
	behind func() string
	// unfenced takes the conditions off appends on their way to the server (see unfence).
	unfenced bool

	mu sync.Mutex // Guards what follows.
	// lose is the share of the pieces of replies instead of which the connection is cut.
	lose   float64
	random *rand.Rand
	lost   int
	// held is closed when what clients send may go on; nil while nothing is held.
	held chan struct{}
}

func newProxy(ctx context.Context, seed uint64, lose float64, behind func() string) (*proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &proxy{listener: listener, behind: behind, lose: lose, random: rand.New(rand.NewPCG(seed, 1<<40))}, nil
}

// URL is where it is.
func (p *proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Run passes on until ctx ends. It leaves nothing running, and the listener closed.
func (p *proxy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unwatch := context.AfterFunc(ctx, func() { _ = p.listener.Close() })
	defer unwatch()
	room := make(chan struct{}, proxyConnectionsMax)
	var passing sync.WaitGroup
	defer passing.Wait()
	for {
		room <- struct{}{}
		client, err := p.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			cancel()
			return fmt.Errorf("the proxy on %s: %w", p.listener.Addr(), err)
		}
		passing.Go(func() {
			defer func() { <-room }()
			p.pass(ctx, client)
		})
	}
}

// pass connects a client with the server until one of them leaves, a reply is lost or ctx ends.
func (p *proxy) pass(ctx context.Context, client net.Conn) {
	defer client.Close()
	dialing, cancel := context.WithTimeout(ctx, proxyDialMax)
	defer cancel()
	server, err := (&net.Dialer{}).DialContext(dialing, "tcp", p.behind())
	if err != nil {
		return // To the client it is as if there were no server.
	}
	defer server.Close()
	hangUp := func() { _ = errors.Join(client.Close(), server.Close()) }
	unwatch := context.AfterFunc(ctx, hangUp)
	defer unwatch()
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		to := io.Writer(&held{ctx: ctx, p: p, to: server})
		if p.unfenced {
			to = &unfence{to: to}
		}
		_, _ = io.Copy(to, client) // How a connection ends does not matter.
		hangUp()
	})
	defer hangUp()
	piece := make([]byte, proxyReadSize)
	for {
		read, err := server.Read(piece)
		if read > 0 {
			kept, lost := p.draw(read)
			if _, err := client.Write(piece[:kept]); err != nil || lost {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hold keeps what clients send from now on, until release. It arrives then, in order.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// release lets go what was held.
func (p *proxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// held writes on what a client sends, as long as the proxy does not hold it.
type held struct {
	ctx context.Context //nolint:containedctx // It is the connection, and lives as long.
	p   *proxy
	to  io.Writer
}

// Write implements io.Writer.
func (h *held) Write(data []byte) (int, error) {
	h.p.mu.Lock()
	until := h.p.held
	h.p.mu.Unlock()
	if until != nil {
		select {
		case <-until:
		case <-h.ctx.Done():
			return 0, h.ctx.Err()
		}
	}
	return h.to.Write(data)
}

// The conditions of an append, and what a server passes over instead of them, as long as they are: the sizes that are told before stay true.
var (
	conditions   = [][]byte{[]byte("Nats-Expected-Last-Sequence:"), []byte("Nats-Expected-Last-Msg-Id:")}
	noConditions = [][]byte{[]byte("Gone-Expected-Last-Sequence:"), []byte("Gone-Expected-Last-Msg-Id:")}
)

// unfence writes on what a node sends to its server, with no condition on what it appends: then nothing keeps a node from writing that has
// lost its lane.
type unfence struct {
	to io.Writer
	// held is the end of what came, which may be the beginning of a condition.
	held []byte
}

// Write implements io.Writer.
func (u *unfence) Write(data []byte) (int, error) {
	text := append(u.held, data...)
	keep := 0
	for i, condition := range conditions {
		text = bytes.ReplaceAll(text, condition, noConditions[i])
		for begun := min(len(condition)-1, len(text)); begun > keep; begun-- {
			if bytes.HasSuffix(text, condition[:begun]) {
				keep = begun
			}
		}
	}
	u.held = bytes.Clone(text[len(text)-keep:])
	if _, err := u.to.Write(text[:len(text)-keep]); err != nil {
		return 0, err
	}
	return len(data), nil
}

// draw says how many bytes of a piece are passed on, and whether the connection is cut after them.
func (p *proxy) draw(read int) (kept int, lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose == 0 || p.random.Float64() >= p.lose {
		return read, false
	}
	p.lost++
	return p.random.IntN(read), true
}

// setLoss replaces the share that is lost.
func (p *proxy) setLoss(share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = share
}

// losses counts the replies that were lost.
func (p *proxy) losses() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}
