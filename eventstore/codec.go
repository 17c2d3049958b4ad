package eventstore

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// The wire form of a commit is the message weir.log.v1.Commit, with fields in order of their numbers. It is written and
// read by hand because every order passes here at least twice: one allocation a commit instead of several an event.
// Tests hold it to the generated type's bytes.

// Field numbers of weir.log.v1.Commit and weir.log.v1.Event.
const (
	commitLane     = 1
	commitNumber   = 2
	commitEpoch    = 3
	commitTime     = 4
	commitPrevHash = 5
	commitEvents   = 6

	eventPartition   = 1
	eventUserID      = 2
	eventAggregateID = 3
	eventRequestID   = 4
	eventFingerprint = 5
	eventCausationID = 6
	eventType        = 7
	eventVersion     = 8
	eventPayload     = 9
)

// EncodeCommit writes a commit down.
func EncodeCommit(c *Commit) Record {
	size := 96
	for i := range c.Events {
		size += eventSize(&c.Events[i]) + 8
	}
	b := make([]byte, 0, size)
	b = appendVarint(b, commitLane, uint64(c.Lane))
	b = appendVarint(b, commitNumber, c.Number)
	b = appendVarint(b, commitEpoch, c.Epoch)
	b = appendVarint(b, commitTime, uint64(c.Time.UnixNano()))
	b = protowire.AppendTag(b, commitPrevHash, protowire.BytesType)
	b = protowire.AppendBytes(b, c.PrevHash[:])
	for i := range c.Events {
		b = protowire.AppendTag(b, commitEvents, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(eventSize(&c.Events[i])))
		b = appendEvent(b, &c.Events[i])
	}
	return Record{Number: c.Number, Hash: HashOf(b), Prev: c.PrevHash, Data: b, Headers: headers(c)}
}

// headers tell a person who views the stream what the commit holds.
func headers(c *Commit) map[string]string {
	var types []string
	var counts []int
next:
	for i := range c.Events {
		for j, t := range types {
			if t == c.Events[i].Type {
				counts[j]++
				continue next
			}
		}
		types, counts = append(types, c.Events[i].Type), append(counts, 1)
	}
	var events strings.Builder
	for j, t := range types {
		if j > 0 {
			events.WriteByte(' ')
		}
		events.WriteString(t)
		events.WriteByte('=')
		events.WriteString(strconv.Itoa(counts[j]))
	}
	h := map[string]string{"Weir-Events": events.String()}
	if len(c.Events) > 0 {
		h["Weir-First"] = c.Events[0].AggregateID
		h["Weir-Last"] = c.Events[len(c.Events)-1].AggregateID
	}
	return h
}

func eventSize(e *Event) int {
	return sizeVarint(eventPartition, uint64(e.Partition)) +
		sizeBytes(eventUserID, len(e.UserID)) +
		sizeBytes(eventAggregateID, len(e.AggregateID)) +
		sizeBytes(eventRequestID, len(e.RequestID)) +
		sizeBytes(eventFingerprint, len(e.Fingerprint)) +
		sizeBytes(eventCausationID, len(e.CausationID)) +
		sizeBytes(eventType, len(e.Type)) +
		sizeVarint(eventVersion, uint64(e.Version)) +
		sizeBytes(eventPayload, len(e.Payload))
}

func appendEvent(b []byte, e *Event) []byte {
	b = appendVarint(b, eventPartition, uint64(e.Partition))
	b = appendString(b, eventUserID, e.UserID)
	b = appendString(b, eventAggregateID, e.AggregateID)
	b = appendString(b, eventRequestID, e.RequestID)
	b = appendBytes(b, eventFingerprint, e.Fingerprint)
	b = appendString(b, eventCausationID, e.CausationID)
	b = appendString(b, eventType, e.Type)
	b = appendVarint(b, eventVersion, uint64(e.Version))
	return appendBytes(b, eventPayload, e.Payload)
}

func sizeVarint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func sizeBytes(field protowire.Number, length int) int {
	if length == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(length)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendString(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// DecodeCommit reads a commit. What it holds aliases data, which nobody may change any more: whoever keeps a small part of a commit for
// long clones it. Unknown fields are passed over.
func DecodeCommit(data []byte) (*Commit, error) {
	c := &Commit{}
	if err := c.Decode(data); err != nil {
		return nil, err
	}
	return c, nil
}

// Decode reads a commit into c, as DecodeCommit does, and writes its events over those that c had: for whoever reads many commits one after
// the other and keeps none. After an error c holds nothing of use.
func (c *Commit) Decode(data []byte) error {
	*c = Commit{Events: c.Events[:0]}
	text := unsafe.String(unsafe.SliceData(data), len(data)) // Nobody changes it, as said above.
	events := 0
	for at := 0; at < len(data); {
		f, err := readField(data, at)
		if err == nil {
			err = c.set(f, data)
		}
		if err != nil {
			return fmt.Errorf("decode commit: %w", err)
		}
		if f.number == commitEvents {
			events++
		}
		at = f.to
	}
	if c.Number == 0 {
		return fmt.Errorf("decode commit: it has no number")
	}
	if c.Events == nil || cap(c.Events) < events {
		c.Events = make([]Event, 0, events)
	}
	for at := 0; len(c.Events) < events; {
		f, err := readField(data, at)
		if err == nil && f.number == commitEvents {
			c.Events = append(c.Events, Event{})
			err = decodeEvent(&c.Events[len(c.Events)-1], data[f.from:f.to:f.to], text[f.from:f.to])
		}
		if err != nil {
			return fmt.Errorf("decode commit %d of lane %d: event %d: %w", c.Number, c.Lane, len(c.Events)-1, err)
		}
		at = f.to
	}
	return nil
}

// set takes in a field of the commit's own.
func (c *Commit) set(f field, data []byte) error {
	switch f.number {
	case commitLane:
		return setUint32(&c.Lane, f.v)
	case commitNumber:
		c.Number = f.v
	case commitEpoch:
		c.Epoch = f.v
	case commitTime:
		c.Time = time.Unix(0, int64(f.v)).UTC()
	case commitPrevHash:
		if f.to-f.from != len(c.PrevHash) {
			return fmt.Errorf("prev_hash has %d bytes, want %d", f.to-f.from, len(c.PrevHash))
		}
		copy(c.PrevHash[:], data[f.from:f.to])
	}
	return nil
}

func decodeEvent(e *Event, data []byte, text string) error {
	for at := 0; at < len(data); {
		f, err := readField(data, at)
		if err != nil {
			return err
		}
		switch f.number {
		case eventPartition:
			err = setUint32(&e.Partition, f.v)
		case eventUserID:
			e.UserID = text[f.from:f.to]
		case eventAggregateID:
			e.AggregateID = text[f.from:f.to]
		case eventRequestID:
			e.RequestID = text[f.from:f.to]
		case eventFingerprint:
			e.Fingerprint = data[f.from:f.to:f.to]
		case eventCausationID:
			e.CausationID = text[f.from:f.to]
		case eventType:
			e.Type = text[f.from:f.to]
		case eventVersion:
			err = setUint32(&e.Version, f.v)
		case eventPayload:
			e.Payload = data[f.from:f.to:f.to]
		}
		if err != nil {
			return err
		}
		at = f.to
	}
	return nil
}

func setUint32(to *uint32, v uint64) error {
	if v > math.MaxUint32 {
		return fmt.Errorf("%d does not fit 32 bits", v)
	}
	*to = uint32(v)
	return nil
}

// A field is one of a message: v is the value of a varint field, data[from:to] the content of a length-delimited one. The next field
// begins at to. The number of one of another wire type is 0, which is no field's.
type field struct {
	number   protowire.Number
	v        uint64
	from, to int
}

// readField reads the field that begins at data[at].
func readField(data []byte, at int) (field, error) {
	// Nearly every tag is one byte, and nearly every value or length one or two.
	if at+2 < len(data) && data[at] >= 1<<3 && data[at] < 0x80 && data[at+1]&data[at+2] < 0x80 {
		number, value, from := protowire.Number(data[at]>>3), int(data[at+1]), at+2
		if value >= 0x80 {
			value, from = value&0x7f|int(data[at+2])<<7, at+3
		}
		switch to := from + value; {
		case protowire.Type(data[at]&7) == protowire.VarintType:
			return field{number: number, v: uint64(value), from: from, to: from}, nil
		case protowire.Type(data[at]&7) == protowire.BytesType && to <= len(data):
			return field{number: number, from: from, to: to}, nil
		}
	}
	number, kind, n := protowire.ConsumeTag(data[at:])
	if n < 0 {
		return field{}, protowire.ParseError(n)
	}
	at += n
	f := field{number: number}
	switch kind {
	case protowire.VarintType:
		f.v, n = protowire.ConsumeVarint(data[at:])
		f.from, f.to = at+n, at+n
	case protowire.BytesType:
		var content []byte
		content, n = protowire.ConsumeBytes(data[at:])
		f.from, f.to = at+n-len(content), at+n
	default:
		n = protowire.ConsumeFieldValue(number, kind, data[at:])
		f = field{from: at + n, to: at + n}
	}
	if n < 0 {
		return field{}, protowire.ParseError(n)
	}
	return f, nil
}
