package main

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// A short run of the kinds of a cluster that neither need root nor take long. Its servers and nodes have addresses of their own in
// 127.0.0.0/8, which other systems lack.
func TestARealClusterKeepsItsPromises(t *testing.T) {
	binaryBuilt, serverBuilt = true, true
	weir, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	server, err := natsBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind    string
		servers int
	}{
		{"node", 1},
		{"lost", 3},
		{"peers-node", 3},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel() // Most of it is waiting.
			options := Options{
				Weir: weir, NATS: server, Servers: c.servers, LeaseTTL: time.Second, Kind: c.kind, Rounds: 1, Clients: 6, Buyers: 200, Lanes: 4,
				Seed: rand.Uint64(), LoadMax: 200 * time.Millisecond, CallsMin: 100, PauseFor: 2 * time.Second, SettleMax: time.Minute,
				ServingMax: 5 * time.Minute, ViewWait: 10 * time.Second,
			}
			if err := options.Validate(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			tormented, err := newNode(t.Context(), options, dir)
			if err != nil {
				t.Fatal(err)
			}
			var printed strings.Builder
			if err := run(t.Context(), options, tormented, dir, &printed); err != nil || !strings.Contains(printed.String(), "all linearizable") {
				t.Fatalf("seed %d: %v; it printed:\n%s", options.Seed, err, &printed)
			}
		})
	}
}
