package failback

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Parked request is one that nobody makes again by himself.
type Parked struct {
	// Key names it for Retry and Drop.
	Key string
	// Reason says why, and Attempts how often it was made.
	Reason   string
	Attempts int
	// At is when it was parked.
	At time.Time
	// Request is what was to be made; zero, with Unreadable saying why, if it cannot be read.
	Request    Request
	Unreadable error

	position uint64
}

// The headers of a parked request.
const (
	reasonHeader   = "Weir-Reason"
	attemptsHeader = "Weir-Attempts"
)

// park writes a record to the stream of those that were given up. The same again takes its own place.
func (q *Queue) park(ctx context.Context, key string, record []byte, reason string, attempts int) error {
	message := nats.NewMsg(parkedSubject + key)
	message.Data = record
	message.Header.Set(reasonHeader, oneLine(reason))
	message.Header.Set(attemptsHeader, strconv.Itoa(attempts))
	if _, err := q.js.PublishMsg(ctx, message); err != nil {
		return fmt.Errorf("park request %s: %w", key, err)
	}
	return nil
}

// oneLine makes a header's value of what somebody else said.
func oneLine(reason string) string {
	line := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, reason)
	return line[:min(len(line), reasonBytesMax)]
}

// Parked lists the requests that were parked, the oldest first, from after a key on (from the beginning, if it is empty); most
// bounds their number.
func (q *Queue) Parked(ctx context.Context, after string, most int) ([]Parked, error) {
	from := uint64(1)
	if after != "" {
		last, err := q.parkedAt(ctx, after)
		if err != nil {
			return nil, err
		}
		from = last.position + 1
	}
	var list []Parked
	for len(list) < most {
		message, err := q.parked.GetMsg(ctx, from, jetstream.WithGetMsgSubject(parkedSubject+"*"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list parked requests: %w", err)
		}
		list = append(list, q.newParked(message))
		from = message.Sequence + 1
	}
	return list, nil
}

// ErrNotParked says that no such request is parked.
var ErrNotParked = errors.New("no such request is parked")

func (q *Queue) parkedAt(ctx context.Context, key string) (Parked, error) {
	if strings.ContainsAny(key, ".*> \t\r\n") || key == "" {
		return Parked{}, fmt.Errorf("request %q: %w", key, ErrNotParked)
	}
	message, err := q.parked.GetLastMsgForSubject(ctx, parkedSubject+key)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Parked{}, fmt.Errorf("request %s: %w; list those that are", key, ErrNotParked)
	}
	if err != nil {
		return Parked{}, fmt.Errorf("look at parked request %s: %w", key, err)
	}
	return q.newParked(message), nil
}

func (q *Queue) newParked(message *jetstream.RawStreamMsg) Parked {
	p := Parked{
		Key: strings.TrimPrefix(message.Subject, parkedSubject), Reason: message.Header.Get(reasonHeader), At: message.Time, position: message.Sequence,
	}
	p.Attempts, _ = strconv.Atoi(message.Header.Get(attemptsHeader)) // What is no number was not written by this program.
	p.Request, p.Unreadable = q.seal.Load().open(p.Key, message.Data)
	return p
}

// Retry has a parked request made again, as if it had just been accepted. Error: ErrNotParked, and those of Accept.
func (q *Queue) Retry(ctx context.Context, key string) error {
	p, err := q.parkedAt(ctx, key)
	if err != nil {
		return err
	}
	if p.Unreadable != nil {
		return fmt.Errorf("request %s is not made again: %w", key, p.Unreadable)
	}
	if err := q.keep(ctx, key, p.Request, q.seal.Load().seal(p.Request)); err != nil {
		return err
	}
	return q.remove(ctx, p)
}

// Drop removes a parked request for ever. Error: ErrNotParked.
func (q *Queue) Drop(ctx context.Context, key string) error {
	p, err := q.parkedAt(ctx, key)
	if err != nil {
		return err
	}
	return q.remove(ctx, p)
}

// remove deletes that very record, and not one that was parked since.
func (q *Queue) remove(ctx context.Context, p Parked) error {
	// Overwritten on the disk, for it holds what a customer wrote.
	err := q.parked.SecureDeleteMsg(ctx, p.position)
	if err == nil {
		return nil
	}
	// What the server says of a record that is gone it says of others too. It goes when the same request is parked again.
	if _, looked := q.parked.GetMsg(ctx, p.position); errors.Is(looked, jetstream.ErrMsgNotFound) {
		return nil
	}
	return fmt.Errorf("remove parked request %s: %w", p.Key, err)
}
