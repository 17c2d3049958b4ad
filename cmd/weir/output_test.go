package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProgressOffATerminalIsPlainLinesWithAnETA(t *testing.T) {
	var out bytes.Buffer
	now := testTime
	p := &process{stderr: &out, now: func() time.Time { return now }}
	g := p.newProgress("verify lane 0", "commits", 10_000)
	for done := int64(0); done <= 10_000; done += 100 {
		g.at(done)
		now = now.Add(100 * time.Millisecond)
	}
	g.end()
	if got := out.String(); got != "verify lane 0:  50% 5,000 of 10,000 commits, 1,000/s, ETA 5s\nverify lane 0: 100% 10,000 of 10,000 commits, 1,000/s, ETA 0s\n" {
		t.Fatalf("got:\n%s", got)
	}
}

func TestTheTimeToComeIsToldByTheNewestRate(t *testing.T) {
	var out bytes.Buffer
	now := testTime
	p := &process{stderr: &out, now: func() time.Time { return now }}
	g := p.newProgress("rebuild orders", "commits", 100_000)
	g.begin(50_000)                                          // It goes on with what was done before.
	for done := int64(50_000); done <= 60_000; done += 100 { // 1,000 a second for 10 seconds, and then 100.
		g.at(done)
		now = now.Add(100 * time.Millisecond)
	}
	if want := "60% 60,000 of 100,000 commits, 1,000/s, ETA 40s\n"; !strings.HasSuffix(out.String(), want) {
		t.Fatalf("got:\n%s\nwant at the end:\n%s", out.String(), want)
	}
	for done := int64(60_000); done <= 63_000; done += 10 {
		g.at(done)
		now = now.Add(100 * time.Millisecond)
	}
	if want := "100/s, ETA 6m"; !strings.Contains(out.String()[strings.LastIndex(out.String(), "rebuild"):], want) {
		t.Fatalf("got:\n%s\nwant at the end: %s", out.String(), want)
	}
}

func TestProgressShowsWhatWhoeverWorksSaysOfIt(t *testing.T) {
	var out bytes.Buffer
	now := testTime
	p := &process{stderr: &out, now: func() time.Time { return now }}
	g := p.newProgress("rebuild orders", unitBytes, 4<<20)
	g.note = "98,765 events"
	g.told = &told{share: 0.625}
	now = now.Add(progressLineEvery)
	g.at(2 << 20)
	g.told.left = 61800 * time.Millisecond
	now = now.Add(progressLineEvery)
	g.at(3 << 20)
	g.total, g.told = 0, nil // As before it is known.
	now = now.Add(progressLineEvery)
	g.at(3 << 20)
	want := "rebuild orders:  62% 2.0 MiB of 4.0 MiB, 409.6 KiB/s, ETA unknown, 98,765 events\n" +
		"rebuild orders:  62% 3.0 MiB of 4.0 MiB, 307.2 KiB/s, ETA 1m2s, 98,765 events\n" +
		"rebuild orders: 3.0 MiB, 204.8 KiB/s, 98,765 events\n"
	if got := out.String(); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestProgressOnATerminalRedrawsOneLine(t *testing.T) {
	var out bytes.Buffer
	now := testTime
	g := &progress{w: &out, terminal: true, now: func() time.Time { return now }, label: "read", unit: "commits", total: 100, drawn: now, marks: []progressMark{{at: now}}}
	now = now.Add(time.Second)
	g.at(25)
	g.end()
	if got, want := out.String(), "\r\x1b[Kread: [######..................]  25% 25 of 100 commits, 25/s, ETA 3s\r\x1b[K"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestColoursNeedATerminalAndRespectNoColor(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if (process{}).painterFor(file) {
		t.Error("a file is painted")
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if (process{}).painterFor(null) {
		t.Error("/dev/null is painted")
	}
	if got := painter(false).bad("x"); got != "x" {
		t.Errorf("got %q", got)
	}
	if got := painter(true).bad("x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("got %q", got)
	}
}

func TestATableLinesUpAndIsCleanOfControlCharacters(t *testing.T) {
	var out strings.Builder
	rows := newTable("A", ">NUMBER", "LAST")
	rows.row("x", "1", "a\x1b[2Jb\n")
	rows.row("größer", "1,000", "")
	if err := rows.print(&out, false); err != nil {
		t.Fatal(err)
	}
	want := "A       NUMBER  LAST\nx            1  a\uFFFD[2Jb\uFFFD\ngrößer   1,000  \n"
	if out.String() != want {
		t.Fatalf("got:\n%q\nwant:\n%q", out.String(), want)
	}
}

func TestSizesAndNumbersReadWell(t *testing.T) {
	for size, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 20: "5.0 MiB", 3 << 40: "3.0 TiB"} {
		if got := bytesText(size); got != want {
			t.Errorf("%d: got %q, want %q", size, got, want)
		}
	}
	for number, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567"} {
		if got := groupDigits(number); got != want {
			t.Errorf("%d: got %q, want %q", number, got, want)
		}
	}
}

func TestAProblemIsToldOnce(t *testing.T) {
	p := &problem{
		what: "put product: sku: is odd", reason: "INVALID_ARGUMENT", next: "correct it",
		facts:      map[string]string{"argument": "sku", "problem": "is odd", "lane": "3"},
		violations: []string{"sku: is odd", "title: is empty"},
	}
	var out bytes.Buffer
	p.print(&out, false)
	if want := "weir: put product: sku: is odd (INVALID_ARGUMENT)\n  lane: 3\n  title: is empty\n  next: correct it\n"; out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}
