package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A run that did not end said nothing of what it waited for, and some waits had no end.
func TestAPhaseThatTakesTooLongIsCutOffAndNamed(t *testing.T) {
	broken := errors.New("lane 2 has no node")
	for _, c := range []struct {
		name string
		do   func(context.Context) error
		want []string // in its error; none for no error
	}{
		{"one that ends", func(context.Context) error { return nil }, nil},
		{"one that fails", func(context.Context) error { return broken }, []string{"heal: lane 2 has no node"}},
		{"one that waits, and says for what", func(ctx context.Context) error { <-ctx.Done(); return broken }, []string{"heal: it was not over within 1m0s", "lane 2 has no node"}},
		{"one that gives up its wait and says nothing", func(ctx context.Context) error { <-ctx.Done(); return nil }, []string{"heal: it was not over within 1m0s"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			err := within(t.Context(), time.Minute, "heal", c.do)
			if (err == nil) != (c.want == nil) {
				t.Fatalf("%s: got %v, want %q", c.name, err, c.want)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %q in it", c.name, err, want)
				}
			}
		})
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := within(ended, time.Minute, "heal", func(context.Context) error { return nil }); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "not over") {
		t.Errorf("a run that was interrupted: got %v, want that alone", err)
	}
}
