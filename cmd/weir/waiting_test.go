package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A node that never took calls said nothing about why.
func TestANodeSaysWhatItWaitsForWhileItTakesNoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		var waitsFor atomic.Value
		waitsFor.Store("lane 3: no node has it")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			sayWaiting(ctx, slog.New(slog.NewTextHandler(&logged, nil)), func() string { return waitsFor.Load().(string) })
		}()
		// said returns the lines of a time that passes.
		said := func(passes time.Duration) string {
			logged.Reset()
			time.Sleep(passes)
			synctest.Wait()
			return logged.String()
		}
		if got := said(waitLineEvery - waitLook/2); got != "" {
			t.Errorf("it says at once: %s", got)
		}
		if got := said(waitLineEvery); strings.Count(got, `level=INFO msg="the node takes no calls yet" waits_for="lane 3: no node has it"`) != 1 {
			t.Errorf("after the first wait it says %q", got)
		}
		said(waitWarnAfter)
		if got := said(2 * waitLineEvery); strings.Count(got, "level=WARN") != 2 {
			t.Errorf("after a long wait it says %q", got)
		}
		waitsFor.Store("")
		if got := said(time.Minute); strings.Count(got, "\n") != 1 || !strings.Contains(got, "waits no longer") {
			t.Errorf("when it takes calls it says %q", got)
		}
		waitsFor.Store("its views: they are 5000 commits behind")
		said(waitLook)
		waitsFor.Store("")
		if got := said(time.Minute); got != "" {
			t.Errorf("of a wait that nobody was told of it says %q", got)
		}
		stop()
		<-ended
	})
}
