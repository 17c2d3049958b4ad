package presence

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
)

func TestGatewaysOnOneServerKnowHowManyTheyAre(t *testing.T) {
	server := embeddedtest.Start(t, embedded.Options{Listen: "127.0.0.1:0"})
	var all []*Presence
	var stops []func()
	for i := range 3 {
		connection, err := server.Connect()
		if err != nil {
			t.Fatal(err)
		}
		p := New(connection, fmt.Sprint("gateway-", i), slog.New(slog.DiscardHandler))
		if count, known := p.Gateways(); count != 1 || known {
			t.Errorf("before it listens it says %d, %t", count, known)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		stop := func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			connection.Close()
		}
		all, stops = append(all, p), append(stops, stop)
	}
	await := func(want int, of []*Presence) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(30 * time.Second); ; <-tick.C {
			good := true
			for _, p := range of {
				count, known := p.Gateways()
				good = good && known && count == want
			}
			if good {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("they do not say that they are %d", want)
			}
		}
	}
	await(3, all)
	stops[0]() // It says good-bye.
	await(2, all[1:])
	stops[1]()
	stops[2]()
}

func TestNobodyIsForgottenWhileNobodyCanBeHeard(t *testing.T) {
	now := time.Now()
	p := New(nil, "me", nil)
	at := func(after time.Duration, connected bool, want int, wantKnown bool) {
		t.Helper()
		p.look(now.Add(after), connected)
		if count, known := p.Gateways(); count != want || known != wantKnown {
			t.Errorf("after %s: %d, known: %t; want %d, %t", after, count, known, want, wantKnown)
		}
	}
	at(0, true, 1, false)
	p.hear(now, "other")
	p.hear(now, "another")
	at(listenTime-1, true, 3, false)
	at(listenTime, true, 3, true)
	at(time.Minute, false, 3, true)
	at(time.Hour, true, 3, true) // Nobody was heard, for nobody could be.
	p.hear(now.Add(time.Hour+time.Second), "other")
	at(time.Hour+gone-1, true, 3, true)
	at(time.Hour+gone, true, 2, true)
	p.hear(now, leaving+"other")
	at(time.Hour+gone+1, true, 1, true)
	// A flood of names is bounded, and what is no name is none.
	p.hear(now, "")
	p.hear(now, strings.Repeat("x", idBytesMax+1))
	for i := range 2 * gatewaysMax {
		p.hear(now.Add(time.Hour+gone), fmt.Sprint(i))
	}
	if count, _ := p.Gateways(); count != gatewaysMax {
		t.Errorf("a flood of names makes %d gateways, want %d", count, gatewaysMax)
	}
}
