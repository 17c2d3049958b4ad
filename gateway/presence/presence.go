// Package presence counts the gateways that are on one NATS server: each says once a second that it is there. What all of them may do together is
// divided by that number, so that an error is to be on the side of too many: while NATS is away none is forgotten.
package presence

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// Subject is where gateways say that they are there.
	Subject = "weir.gateways"
	// Every is how often each says so, and gone how long it counts after it said so last.
	Every = time.Second
	gone  = 5 * time.Second
	// listenTime is how long one listens before it knows how many there are.
	listenTime = 2 * Every
	// gatewaysMax bounds how many are counted, and idBytesMax the name of one.
	gatewaysMax = 4096
	idBytesMax  = 256
	// leaving begins the message of a gateway that stops.
	leaving = "-"
)

// A Presence is that of one gateway. Its methods may be called by several goroutines.
type Presence struct {
	connection *nats.Conn
	id         string
	logger     *slog.Logger

	mu   sync.Mutex
	seen map[string]time.Time
	// listening is since when it hears the others without a break, zero while it does not; known is whether it ever listened long enough.
	listening time.Time
	known     bool
}

// New makes the presence of a gateway, whose id is its own among all. It starts nothing.
func New(connection *nats.Conn, id string, logger *slog.Logger) *Presence {
	return &Presence{connection: connection, id: id, logger: logger, seen: map[string]time.Time{}}
}

// Gateways returns how many gateways there are, this one with them, and whether that is known: not before it has listened for two seconds.
func (p *Presence) Gateways() (count int, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(1, len(p.seen)), p.known
}

// Run says that this gateway is there and hears the others until ctx ends, which is no error.
func (p *Presence) Run(ctx context.Context) error {
	subscription, err := p.connection.Subscribe(Subject, func(message *nats.Msg) { p.hear(time.Now(), string(message.Data)) })
	if err != nil {
		return fmt.Errorf("listen on %s: %w", Subject, err)
	}
	defer func() { _ = subscription.Unsubscribe() }() // The connection may be closed already.
	defer func() { _ = p.connection.Publish(Subject, []byte(leaving+p.id)) }()
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		// While the server is away, what is published waits in a buffer that is too small to matter.
		if p.connection.IsConnected() {
			if err := p.connection.Publish(Subject, []byte(p.id)); err != nil {
				p.logger.LogAttrs(ctx, slog.LevelDebug, "other gateways were not told of this one", slog.Any("error", err))
			}
		}
		p.look(time.Now(), p.connection.IsConnected())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hear notes what a gateway said.
func (p *Presence) hear(now time.Time, said string) {
	id, leaves := strings.CutPrefix(said, leaving)
	if id == "" || len(id) > idBytesMax {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if leaves {
		delete(p.seen, id)
		return
	}
	if _, known := p.seen[id]; known || len(p.seen) < gatewaysMax {
		p.seen[id] = now
	}
}

// look forgets those that were not heard of for long, as long as they could have been heard.
func (p *Presence) look(now time.Time, connected bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[p.id] = now
	if !connected {
		p.listening = time.Time{}
		return
	}
	if p.listening.IsZero() {
		p.listening = now
	}
	if now.Sub(p.listening) >= listenTime {
		p.known = true
	}
	if now.Sub(p.listening) < gone {
		return
	}
	for id, at := range p.seen {
		if now.Sub(at) > gone {
			delete(p.seen, id)
		}
	}
}
