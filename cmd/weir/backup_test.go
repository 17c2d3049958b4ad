package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestANodeIsBackedUpWhileItRunsAndPutBack(t *testing.T) {
	dir, to := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "backup")
	n := startDev(t, dir, "--demo", "--lanes", "2")
	first := place(t, n.customer(), "tea-sencha", "--note", "ring twice")
	one := decode[backupResult](t, live(t, nil, "backup", "--data", dir, "--to", to, "-o", "json").want(t, exitOK).stdout)
	if one.Run != 1 || one.Lanes != 2 || one.Added == 0 || one.Added != one.Commits || one.Users != 1 || !one.State {
		t.Fatalf("the first run: %+v", one)
	}
	second := place(t, n.customer(), "tea-sencha=2")
	two := decode[backupResult](t, live(t, nil, "backup", "--data", dir, "--to", to, "-o", "json").want(t, exitOK).stdout)
	if two.Run != 2 || two.Added == 0 || two.Commits != one.Commits+two.Added || !two.State {
		t.Fatalf("the second run: %+v after %+v", two, one)
	}
	left, err := filepath.Glob(filepath.Join(dir, checkpointPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	n.stop().want(t, exitOK)

	// A stopped node is backed up too, and what was restored from it is the same node.
	three := decode[backupResult](t, live(t, nil, "backup", "--data", dir, "--to", to, "--no-state", "-o", "json").want(t, exitOK).stdout)
	if three.Run != 3 || three.State {
		t.Fatalf("the third run: %+v", three)
	}
	r := watched(t, "backup", "--data", dir, "--to", to, "-o", "json").want(t, exitOK)
	wantShownByBytes(t, r.stderr, "back up", "verify the backup")
	if four := decode[backupResult](t, r.stdout); four.LogBytes == 0 || four.Commits < three.Commits {
		t.Fatalf("the fourth run: %+v after %+v", four, three)
	}
	restored := filepath.Join(t.TempDir(), "restored")
	r = watched(t, "restore", "--from", to, "--data", restored).want(t, exitOK)
	wantShownByBytes(t, r.stderr, "verify the backup", "restore")
	wantText(t, r.stdout, "restored to "+restored, "views: equal to the fold of the log", "result: ok")
	for _, key := range []string{"master.key", "token.key"} {
		data, err := os.ReadFile(filepath.Join(dir, key))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(restored, key), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := n.customer()
	n = startDev(t, restored)
	env[0] = n.customer()[0] // The address is the new node's, the token the old one's.
	wantText(t, live(t, env, "order", "get", first.Order.OrderID).want(t, exitOK).stdout, "ring twice")
	wantText(t, live(t, env, "order", "get", second.Order.OrderID).want(t, exitOK).stdout, "pending-payment")
	place(t, env, "tea-sencha")
	n.stop().want(t, exitOK)
}

// watched runs a command in-process whose clock goes on by so much at each look that all progress is shown.
func watched(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	now := testTime
	p := &process{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, now: func() time.Time {
		now = now.Add(progressLineEvery)
		return now
	}}
	code := p.execute(t.Context(), args)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// wantShownByBytes fails the test when what was shown of a step does not count bytes, or does not end with all of them.
func wantShownByBytes(t *testing.T, shown string, steps ...string) {
	t.Helper()
	for _, step := range steps {
		lines := regexp.MustCompile("(?m)^"+step+`: .*$`).FindAllString(shown, -1)
		for _, line := range lines {
			if !regexp.MustCompile(`: +\d+% [\d.]+ (Ki|Mi)?B of [\d.]+ (Ki|Mi)?B, [\d.]+ (Ki|Mi)?B/s, ETA (unknown|(\d+m)?\d+s)$`).MatchString(line) {
				t.Errorf("%q is shown, want bytes", line)
			}
		}
		if len(lines) < 2 || !regexp.MustCompile(`: 100% (\S+ \S+) of .*, ETA 0s$`).MatchString(lines[len(lines)-1]) {
			t.Errorf("%s: want two lines or more, the last one with all of it, in:\n%s", step, shown)
		}
	}
}

func TestABackupThatCannotBeIsRefused(t *testing.T) {
	dir, to := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "backup")
	n := startDev(t, dir, "--demo")
	n.stop().want(t, exitOK)
	wantText(t, live(t, nil, "backup", "--data", dir).want(t, exitUsage).stderr, "say where the backup goes")
	wantText(t, live(t, nil, "restore", "--from", to, "--check").want(t, exitUsage).stderr, "there is no backup in")
	live(t, nil, "backup", "--data", dir, "--to", to).want(t, exitOK)
	wantText(t, live(t, nil, "restore", "--from", to).want(t, exitUsage).stderr, "say where to restore it")
	wantText(t, live(t, nil, "restore", "--from", to, "--data", dir).want(t, exitData).stderr, "there is a log in", "nothing is ever restored over a log")
	other := filepath.Join(t.TempDir(), "other")
	startDev(t, other, "--demo").stop().want(t, exitOK)
	wantText(t, live(t, nil, "backup", "--data", other, "--to", to).want(t, exitData).stderr, "the backup is of another log")

	segments, err := filepath.Glob(filepath.Join(to, "lane-0000", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("the segments: %v, %v", segments, err)
	}
	if err := os.Truncate(segments[0], 100); err != nil {
		t.Fatal(err)
	}
	wantText(t, live(t, nil, "restore", "--from", to, "--check").want(t, exitDifference).stderr, "the backup is damaged", "00000000000000000001.segment")
	restored := filepath.Join(t.TempDir(), "restored")
	live(t, nil, "restore", "--from", to, "--data", restored).want(t, exitDifference)
	if _, err := os.Lstat(restored); err == nil {
		t.Fatal("something of a damaged backup was restored")
	}
}
