package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// The view erasures lists who was erased: number of the commit (8 bytes), index of the event in it (4 bytes) → the log time
// (8 bytes, nanoseconds since the Unix epoch), user id. What copies views elsewhere removes its copies by it, also those
// of erasures that it was not there for.

var erasuresProjection = Projection{
	Name: "erasures", Version: 1, space: spaceErasures, open: stateless(applyErasures),
	key: func(c *change) string {
		if c.kind != kindUserErased {
			return ""
		}
		return c.event.AggregateID
	},
	describe: func(suffix []byte) string {
		if len(suffix) != erasureKeyBytes {
			return fmt.Sprintf("key %x", suffix)
		}
		return "erasure by " + EventAt{Commit: binary.BigEndian.Uint64(suffix), Event: binary.BigEndian.Uint32(suffix[8:])}.String()
	},
	print: func(_, value []byte) (string, error) {
		user, at, err := readErasure(value)
		return fmt.Sprintf("user %s at %s", user, at.Format(time.RFC3339Nano)), err
	},
	partition: textPartition,
}

const (
	erasureKeyBytes  = 8 + 4
	erasureTimeBytes = 8
)

func applyErasures(v *view, c *change) error {
	if c.kind != kindUserErased {
		return nil
	}
	user := c.event.AggregateID
	if user == "" || len(user) > userIDBytesMax {
		return fmt.Errorf("a user id has %d bytes, want 1 to %d", len(user), userIDBytesMax)
	}
	key := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, c.number), uint32(c.index))
	value := binary.BigEndian.AppendUint64(nil, uint64(c.at.UnixNano()))
	return v.batch.Set(v.prefix.key(key), append(value, user...), nil)
}

func readErasure(value []byte) (user string, at time.Time, err error) {
	if len(value) <= erasureTimeBytes {
		return "", time.Time{}, errors.New("the view of erasures is damaged")
	}
	return string(value[erasureTimeBytes:]), logTime(value[:erasureTimeBytes]), nil
}

// Erased returns the users of the lane who were erased at a log time or after it, the newest first.
func (s *Snapshot) Erased(lane uint32, since time.Time) (users []string, err error) {
	p := s.prefix(&erasuresProjection, lane)
	entries, err := s.db.NewIter(&pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
	if err != nil {
		return nil, fmt.Errorf("read who was erased: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.Last(); valid; valid = entries.Prev() {
		user, at, err := readErasure(entries.Value())
		if err != nil {
			return nil, err
		}
		if at.Before(since) { // Log time never goes back within a lane.
			break
		}
		users = append(users, user)
	}
	return users, entries.Error()
}
