package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// formatFlag is the value of -o: table or json, nothing else.
type formatFlag string

func (f *formatFlag) String() string { return string(*f) }
func (f *formatFlag) Type() string   { return "table|json" }
func (f *formatFlag) Set(value string) error {
	if value != formatTable && value != formatJSON {
		return fmt.Errorf("want %s or %s", formatTable, formatJSON)
	}
	*f = formatFlag(value)
	return nil
}

// A painter colours text, or does not: off a terminal, with NO_COLOR set or on a dumb terminal.
type painter bool

func (p process) painterFor(w io.Writer) painter {
	env := p.env()
	return painter(isTerminal(w) && env["NO_COLOR"] == "" && env["TERM"] != "dumb")
}

func (p painter) wrap(code, text string) string {
	if !p {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p painter) bad(text string) string  { return p.wrap("31", text) }
func (p painter) good(text string) string { return p.wrap("32", text) }
func (p painter) warn(text string) string { return p.wrap("33", text) }
func (p painter) bold(text string) string { return p.wrap("1", text) }
func (p painter) dim(text string) string  { return p.wrap("2", text) }

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && terminalWidth(file) > 0
}

// writeJSON writes one value as one line of JSON.
func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// messageJSON returns a message as the wire's JSON, zeros included, on one line and stable.
func messageJSON(message proto.Message) (json.RawMessage, error) {
	data, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode %s as JSON: %w", message.ProtoReflect().Descriptor().FullName(), err)
	}
	// protojson varies its blanks on purpose; scripts and tests want them stable.
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("encode %s as JSON: %w", message.ProtoReflect().Descriptor().FullName(), err)
	}
	return compact.Bytes(), nil
}

// writeMessage writes a message as one line of JSON, led by the extra fields, which are pairs of name and text.
func writeMessage(w io.Writer, message proto.Message, extra ...string) error {
	data, err := messageJSON(message)
	if err != nil {
		return err
	}
	var line bytes.Buffer
	line.WriteByte('{')
	for i := 0; i+1 < len(extra); i += 2 {
		name, _ := json.Marshal(extra[i]) // A string always encodes.
		value, _ := json.Marshal(extra[i+1])
		line.Write(name)
		line.WriteByte(':')
		line.Write(value)
		line.WriteByte(',')
	}
	if rest := data[1:]; rest[0] == '}' {
		line.Truncate(max(1, line.Len()-1))
		line.Write(rest)
	} else {
		line.Write(rest)
	}
	line.WriteByte('\n')
	_, err = w.Write(line.Bytes())
	return err
}

// A table lines columns up. Cells are padded by runes; a right-aligned column starts with '>' in its heading.
type table struct {
	headings []string
	right    []bool
	rows     [][]string
	// style may colour a cell; nil colours none. Cells themselves are cleaned of control characters.
	style func(column int, cell string) string
}

func newTable(headings ...string) *table {
	t := &table{headings: headings, right: make([]bool, len(headings))}
	for i, heading := range headings {
		t.headings[i], t.right[i] = strings.CutPrefix(heading, ">")
	}
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = printable(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer, paint painter) error {
	widths := make([]int, len(t.headings))
	for _, row := range append([][]string{t.headings}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(row []string, style func(int, string) string) string {
		var b strings.Builder
		for i, cell := range row {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			switch {
			case t.right[i]:
				b.WriteString(pad + style(i, cell))
			case i == len(row)-1:
				b.WriteString(style(i, cell))
			default:
				b.WriteString(style(i, cell) + pad)
			}
		}
		return b.String()
	}
	var out strings.Builder
	out.WriteString(line(t.headings, func(_ int, cell string) string { return paint.dim(cell) }) + "\n")
	style := t.style
	if style == nil {
		style = func(_ int, cell string) string { return cell }
	}
	for _, row := range t.rows {
		out.WriteString(line(row, style) + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// fields prints names and values below each other, the values lined up. Empty values are left out.
func fields(w io.Writer, paint painter, pairs ...string) error {
	width := 0
	for i := 0; i+1 < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	var out strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		value := printable(pairs[i+1])
		if value == "" {
			continue
		}
		if pairs[i] == "status" {
			value = paint.status(value)
		}
		fmt.Fprintf(&out, "%s%s  %s\n", paint.dim(pairs[i]), strings.Repeat(" ", width-len(pairs[i])), value)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// printable replaces control characters, so that what others wrote cannot drive the reader's terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, text)
}

// progressEvery is how often progress is drawn on a terminal; off one it is a line each progressLineEvery.
const (
	progressEvery     = 100 * time.Millisecond
	progressLineEvery = 5 * time.Second
	progressBarWidth  = 24
	// progressWindow is how far back the rate goes that the time to come is told by.
	progressWindow = 15 * time.Second
)

// A progress shows how far long work is: one line redrawn on a terminal, plain lines now and then off one.
// It is used from one goroutine.
type progress struct {
	w        io.Writer
	paint    painter
	terminal bool
	now      func() time.Time
	label    string
	unit     string
	// note stands behind the figures; may be empty.
	note  string
	total int64
	// told is what somebody else says of how far it is and how long it takes, who knows more than done, total and the rate say; nil for nobody.
	told  *told
	drawn time.Time
	open  bool
	// marks are what was done when, oldest first: the newest before the window, and those in it.
	marks []progressMark
}

// told is how much is done, from 0 to 1, and how long the rest takes, 0 when that is not known.
type told struct {
	share float64
	left  time.Duration
}

// unitBytes is the unit of what is written as people read sizes. What reads a log counts its bytes: commits differ in size by a factor of
// hundreds, so that their number says little of how long they take.
const unitBytes = "bytes"

type progressMark struct {
	at   time.Time
	done int64
}

// newProgress starts the clock. total 0 means unknown.
func (p *process) newProgress(label, unit string, total int64) *progress {
	now := p.now()
	return &progress{
		w: p.stderr, paint: p.painterFor(p.stderr), terminal: isTerminal(p.stderr), now: p.now,
		label: label, unit: unit, total: total, drawn: now, marks: []progressMark{{at: now}},
	}
}

// begin says how much was done before the clock started.
func (g *progress) begin(done int64) { g.marks[0].done = done }

// at says how much is done.
func (g *progress) at(done int64) {
	now := g.now()
	every := progressLineEvery
	if g.terminal {
		every = progressEvery
	}
	if now.Sub(g.drawn) >= every {
		g.drawn = now
		g.draw(done, now)
	}
}

// end clears the line on a terminal; the command's own output says the result.
func (g *progress) end() {
	if g.open {
		fmt.Fprint(g.w, "\r\x1b[K")
		g.open = false
	}
}

func (g *progress) draw(done int64, now time.Time) {
	text := g.text(done, now)
	if g.note != "" {
		text += ", " + g.note
	}
	if g.terminal {
		fmt.Fprint(g.w, "\r\x1b[K"+text)
		g.open = true
		return
	}
	fmt.Fprintln(g.w, text)
}

func (g *progress) text(done int64, now time.Time) string {
	rate := g.rate(done, now)
	if g.total <= 0 {
		return fmt.Sprintf("%s: %s, %s/s", g.label, g.amount(done, true), g.amount(int64(rate), false))
	}
	share := min(1, float64(done)/float64(g.total))
	var left time.Duration
	known := rate > 0
	if known {
		left = time.Duration(float64(g.total-min(done, g.total)) / rate * float64(time.Second))
	}
	if g.told != nil {
		share, left, known = g.told.share, g.told.left, g.told.left > 0
	}
	bar := ""
	if g.terminal {
		full := int(share * progressBarWidth)
		bar = "[" + strings.Repeat("#", full) + strings.Repeat(".", progressBarWidth-full) + "] "
	}
	eta := "unknown"
	if known {
		eta = left.Round(time.Second).String()
	}
	return fmt.Sprintf("%s: %s%3.0f%% %s of %s, %s/s, ETA %s",
		g.label, bar, share*100, g.amount(done, false), g.amount(g.total, true), g.amount(int64(rate), false), eta)
}

// amount writes how much of the unit something is. withUnit names it as well, which a size always does.
func (g *progress) amount(of int64, withUnit bool) string {
	switch {
	case g.unit == unitBytes:
		return bytesText(of)
	case withUnit:
		return groupDigits(of) + " " + g.unit
	}
	return groupDigits(of)
}

// rate returns how much is done in a second, over the window.
func (g *progress) rate(done int64, now time.Time) float64 {
	for len(g.marks) > 1 && now.Sub(g.marks[1].at) >= progressWindow {
		g.marks = g.marks[1:]
	}
	from := g.marks[0]
	g.marks = append(g.marks, progressMark{at: now, done: done})
	return float64(done-from.done) / max(now.Sub(from.at).Seconds(), 1e-9)
}

// groupDigits writes 1234567 as 1,234,567.
func groupDigits[N int | int64 | uint64 | uint32](number N) string {
	text := fmt.Sprint(number)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// bytesText writes a size as people read it, in powers of 1024.
func bytesText(size int64) string {
	const unit = 1024
	if size < unit {
		return fmt.Sprintf("%d B", size)
	}
	value, suffix := float64(size)/unit, "KMGTPE"
	for value >= unit && len(suffix) > 1 {
		value, suffix = value/unit, suffix[1:]
	}
	return fmt.Sprintf("%.1f %ciB", value, suffix[0])
}
