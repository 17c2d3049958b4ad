package courier

import (
	"errors"
	"fmt"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"google.golang.org/protobuf/encoding/protowire"
)

// A walk goes over the fields of a message of weir.node.v1 and does one of two things with each: it appends the field to dst, or,
// called once for each field that came, reads the one that it stands at. What is zero is not written; fields are written in order of
// their numbers, as the generated types' deterministic form has them.
//
// Texts are carried as they are: the lane judges them, as it does at home. Nothing that was read shares memory with the message.
type walk struct {
	reading bool
	dst     []byte
	field
	err error
}

// A field that is read: its number and wire type, its value if it is a varint, its content if it is of bytes.
type field struct {
	number  protowire.Number
	kind    protowire.Type
	varint  uint64
	content []byte
}

// errNewer says that a value is none that this program knows.
var errNewer = errors.New("a value is unknown: a newer program wrote it")

// encode writes a message down.
func encode[M any](dst []byte, m *M, over func(*walk, *M)) []byte {
	w := walk{dst: dst}
	over(&w, m)
	return w.dst
}

// decode reads a message into m. Fields that are unknown are passed over.
func decode[M any](content []byte, m *M, over func(*walk, *M)) error {
	w := walk{reading: true}
	read(&w, content, m, over)
	return w.err
}

// read reads a message into m, and stands at the same field after it as before.
func read[M any](w *walk, content []byte, m *M, over func(*walk, *M)) {
	outer := w.field
	for len(content) > 0 {
		length := w.next(content)
		if w.err != nil {
			return
		}
		content = content[length:]
		over(w, m)
		if w.err != nil {
			w.err = fmt.Errorf("field %d: %w", w.number, w.err)
			return
		}
	}
	w.field = outer
}

// next stands at the field that content begins with, and returns its length.
func (w *walk) next(content []byte) int {
	number, kind, tag := protowire.ConsumeTag(content)
	if tag < 0 {
		w.err = protowire.ParseError(tag)
		return 0
	}
	w.number, w.kind = number, kind
	length := 0
	switch kind {
	case protowire.VarintType:
		w.varint, length = protowire.ConsumeVarint(content[tag:])
	case protowire.BytesType:
		w.content, length = protowire.ConsumeBytes(content[tag:])
	default:
		length = protowire.ConsumeFieldValue(number, kind, content[tag:])
	}
	if length < 0 {
		w.err = protowire.ParseError(length)
		return 0
	}
	return tag + length
}

// at reports whether the field that is read is this one.
func (w *walk) at(n protowire.Number, kind protowire.Type) bool {
	return w.number == n && w.kind == kind
}

func (w *walk) text(n protowire.Number, text *string) {
	switch {
	case w.reading:
		if w.at(n, protowire.BytesType) {
			*text = string(w.content)
		}
	case *text != "":
		w.dst = protowire.AppendString(protowire.AppendTag(w.dst, n, protowire.BytesType), *text)
	}
}

func (w *walk) texts(n protowire.Number, texts *[]string) {
	if w.reading {
		if w.at(n, protowire.BytesType) {
			*texts = append(*texts, string(w.content))
		}
		return
	}
	for _, text := range *texts {
		w.dst = protowire.AppendString(protowire.AppendTag(w.dst, n, protowire.BytesType), text)
	}
}

func (w *walk) bytes(n protowire.Number, content *[]byte) {
	switch {
	case w.reading:
		if w.at(n, protowire.BytesType) {
			*content = append([]byte(nil), w.content...)
		}
	case len(*content) > 0:
		w.dst = protowire.AppendBytes(protowire.AppendTag(w.dst, n, protowire.BytesType), *content)
	}
}

func (w *walk) orderID(n protowire.Number, id *domain.OrderID) {
	if !w.reading && id.IsZero() {
		return
	}
	w.array(n, id[:])
}

func (w *walk) fingerprint(n protowire.Number, fingerprint *lanes.Fingerprint) {
	if !w.reading && *fingerprint == (lanes.Fingerprint{}) {
		return
	}
	w.array(n, fingerprint[:])
}

// array is bytes of which there are always as many.
func (w *walk) array(n protowire.Number, content []byte) {
	switch {
	case !w.reading:
		w.dst = protowire.AppendBytes(protowire.AppendTag(w.dst, n, protowire.BytesType), content)
	case w.at(n, protowire.BytesType) && len(w.content) != len(content):
		w.err = fmt.Errorf("it has %d bytes, want %d", len(w.content), len(content))
	case w.at(n, protowire.BytesType):
		copy(content, w.content)
	}
}

func (w *walk) bit(n protowire.Number, set *bool) {
	value := uint64(0)
	if *set {
		value = 1
	}
	number(w, n, &value)
	*set = value != 0
}

// number is an integer, as protobuf writes an int64, uint64 or uint32: of what is too large for the field, the low bits count.
func number[N ~int | ~int64 | ~uint32 | ~uint64](w *walk, n protowire.Number, value *N) {
	switch {
	case w.reading:
		if w.at(n, protowire.VarintType) {
			*value = N(w.varint)
		}
	case *value != 0:
		w.dst = protowire.AppendVarint(protowire.AppendTag(w.dst, n, protowire.VarintType), uint64(*value))
	}
}

// enum is a number of which this program knows those up to last.
func enum[E ~uint8](w *walk, n protowire.Number, value *E, last E) {
	known := uint64(*value)
	number(w, n, &known)
	if known > uint64(last) {
		w.err = errNewer
		return
	}
	*value = E(known)
}

// time is a google.protobuf.Timestamp; the zero time is not written.
func (w *walk) time(n protowire.Number, at *time.Time) {
	switch {
	case w.reading && w.at(n, protowire.BytesType):
		var s stamp
		if read(w, w.content, &s, walkStamp); w.err == nil {
			*at = time.Unix(s.seconds, s.nanos).UTC()
		}
	case !w.reading && !at.IsZero():
		start := w.begin(n)
		walkStamp(w, &stamp{at.Unix(), int64(at.Nanosecond())})
		w.end(start)
	}
}

type stamp struct{ seconds, nanos int64 }

func walkStamp(w *walk, m *stamp) {
	number(w, 1, &m.seconds)
	number(w, 2, &m.nanos)
}

// begin begins a message field, whose fields are appended after it. It returns what end is to be told.
func (w *walk) begin(n protowire.Number) (start int) {
	w.dst = protowire.AppendTag(w.dst, n, protowire.BytesType)
	w.dst = append(w.dst, 0) // Room for the length of most.
	return len(w.dst)
}

// end ends a message field, and returns the size of its content.
func (w *walk) end(start int) (size int) {
	size = len(w.dst) - start
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		w.dst = append(w.dst, make([]byte, more)...)
		copy(w.dst[start+more:], w.dst[start:start+size])
	}
	protowire.AppendVarint(w.dst[:start-1], uint64(size))
	return size
}

// message is a message; one in which nothing is set is not written.
func message[M any](w *walk, n protowire.Number, m *M, over func(*walk, *M)) {
	if w.reading {
		if w.at(n, protowire.BytesType) {
			read(w, w.content, m, over)
		}
		return
	}
	before := len(w.dst)
	start := w.begin(n)
	over(w, m)
	if w.end(start) == 0 {
		w.dst = w.dst[:before]
	}
}

// optional is a message that may be there or not.
func optional[M any](w *walk, n protowire.Number, m **M, over func(*walk, *M)) {
	switch {
	case !w.reading && *m != nil:
		start := w.begin(n)
		over(w, *m)
		w.end(start)
	case w.reading && w.at(n, protowire.BytesType):
		if *m == nil {
			*m = new(M)
		}
		read(w, w.content, *m, over)
	}
}

// repeated is any number of messages.
func repeated[M any](w *walk, n protowire.Number, list *[]M, over func(*walk, *M)) {
	if w.reading {
		if w.at(n, protowire.BytesType) {
			*list = append(*list, *new(M))
			read(w, w.content, &(*list)[len(*list)-1], over)
		}
		return
	}
	for i := range *list {
		start := w.begin(n)
		over(w, &(*list)[i])
		w.end(start)
	}
}

// oneOf is one of the types that an interface stands for.
func oneOf[M, I any](w *walk, n protowire.Number, value *I, over func(*walk, *M)) {
	if w.reading {
		if w.at(n, protowire.BytesType) {
			var m M
			if read(w, w.content, &m, over); w.err == nil {
				*value, _ = any(m).(I) // It is one: the callers name such types only, which a test goes through.
			}
		}
		return
	}
	if _, is := any(*value).(M); is {
		m, _ := any(*value).(M) // Apart from the question, since it is allocated.
		start := w.begin(n)
		over(w, &m)
		w.end(start)
	}
}

// oneError is one of the errors that point to what they say.
func oneError[M any, P interface {
	*M
	error
}](w *walk, n protowire.Number, value *error, over func(*walk, *M),
) {
	if w.reading {
		if w.at(n, protowire.BytesType) {
			m := new(M)
			if read(w, w.content, m, over); w.err == nil {
				*value = P(m)
			}
		}
		return
	}
	if m, ok := any(*value).(P); ok {
		start := w.begin(n)
		over(w, (*M)(m))
		w.end(start)
	}
}
