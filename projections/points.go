package projections

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// The view points is each user's ledger of points.
//
//	length of the user id, the user id, the complement of the entry's number (8 bytes) →
//	    points and balance (8 bytes each, signed), log time (8 bytes), commit (8 bytes), order id (16 bytes), payment or refund id
//
// Entries of a user count from 1, and the complement makes the newest the first. Its balance is the user's.

var pointsProjection = Projection{
	Name: "points", Version: 1, space: spacePoints, open: openPoints,
	key: func(c *change) string {
		if !isPoints(c) {
			return ""
		}
		return c.event.UserID
	},
	describe: func(suffix []byte) string {
		user, rest, ok := cutUser(suffix)
		if !ok || len(rest) != 8 {
			return fmt.Sprintf("key %x", suffix)
		}
		return fmt.Sprintf("entry %d of user %s", ^binary.BigEndian.Uint64(rest), user)
	},
	print: func(suffix, value []byte) (string, error) {
		e, err := readPointsEntry(suffix, value)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%+d makes %d, for %s of order %s", e.Points, e.Balance, e.Part, e.OrderID), nil
	},
	partition: userPartition,
	byUser:    true,
	byOrder:   true,
}

// Limits of a page of points.
const (
	// PointsPageDefault and PointsPageMax are entries a page.
	PointsPageDefault = 50
	PointsPageMax     = 500
)

// A PointsEntry is points that a user was given, or that were taken back.
type PointsEntry struct {
	// Number counts the user's entries from 1.
	Number uint64
	// Points are below zero when they were taken back. Balance is what the user had after it.
	Points, Balance int64
	// At is the log time, Commit the number of the commit.
	At      time.Time
	Commit  uint64
	OrderID domain.OrderID
	// Part is the payment that they are for, or the refund that they were taken back for.
	Part string
}

const pointsBytesMin = 8 + 8 + 8 + 8 + len(domain.OrderID{})

func (e *PointsEntry) encode() []byte {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, pointsBytesMin+len(e.Part)), uint64(e.Points))
	value = binary.BigEndian.AppendUint64(value, uint64(e.Balance))
	value = binary.BigEndian.AppendUint64(value, uint64(e.At.UnixNano()))
	value = binary.BigEndian.AppendUint64(value, e.Commit)
	return append(append(value, e.OrderID[:]...), e.Part...)
}

// errPointsDamaged says that a key or value is not what pointsApplier wrote.
var errPointsDamaged = errors.New("the view of points is damaged")

// readPointsEntry reads an entry; of its key, whole or less its prefix, only the end counts.
func readPointsEntry(key, value []byte) (PointsEntry, error) {
	if len(key) < 8 || len(value) < pointsBytesMin {
		return PointsEntry{}, errPointsDamaged
	}
	e := PointsEntry{
		Number: ^binary.BigEndian.Uint64(key[len(key)-8:]),
		Points: int64(binary.BigEndian.Uint64(value)), Balance: int64(binary.BigEndian.Uint64(value[8:])),
		At: time.Unix(0, int64(binary.BigEndian.Uint64(value[16:]))).UTC(), Commit: binary.BigEndian.Uint64(value[24:]),
	}
	copy(e.OrderID[:], value[32:])
	e.Part = string(value[pointsBytesMin:])
	return e, nil
}

// pointsApplier writes the next entry of the user's ledger.
type pointsApplier struct {
	*view
	// newest are the newest entries that the batch holds, by user.
	newest map[string]PointsEntry
}

func openPoints(v *view) (applier, error) {
	return &pointsApplier{view: v, newest: make(map[string]PointsEntry)}, nil
}

// finish forgets what the batch held: it is in the db then.
func (a *pointsApplier) finish() error {
	clear(a.newest)
	return nil
}

func isPoints(c *change) bool {
	return c.event.Type == stored.TypePointsAwarded || c.event.Type == stored.TypePointsTakenBack
}

func (a *pointsApplier) apply(c *change) error {
	if !isPoints(c) {
		return nil
	}
	event, err := stored.Decode(c.event.Type, c.event.Version, c.event.AggregateID, c.event.UserID, c.event.Payload)
	if err != nil {
		return err
	}
	userID := c.event.UserID
	if userID == "" || len(userID) > userIDBytesMax {
		return fmt.Errorf("a user id has %d bytes, want 1 to %d", len(userID), userIDBytesMax)
	}
	newest, inBatch := a.newest[userID]
	if !inBatch {
		if newest, err = readNewestPoints(a.db, a.prefix, userID); err != nil {
			return &storeFault{err}
		}
	}
	next := PointsEntry{Number: newest.Number + 1, Balance: newest.Balance, At: c.at, Commit: c.number, OrderID: c.order}
	if awarded, ok := event.(domain.PointsAwarded); ok {
		next.Points, next.Part = awarded.Points, awarded.PaymentID
	}
	if back, ok := event.(domain.PointsTakenBack); ok {
		next.Points, next.Part = -back.Points, back.RefundID
	}
	next.Balance += next.Points
	a.newest[userID] = next
	return a.batch.Set(pointsKey(a.prefix, userID, next.Number), next.encode(), nil)
}

func pointsKey(p prefix, userID string, number uint64) []byte {
	return binary.BigEndian.AppendUint64(appendUser(p.key(nil), userID), ^number)
}

// readNewestPoints returns a user's newest entry, the zero entry when there is none.
func readNewestPoints(from pebble.Reader, p prefix, userID string) (newest PointsEntry, err error) {
	first := appendUser(p.key(nil), userID)
	entries, err := from.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return PointsEntry{}, fmt.Errorf("read the points of %s: %w", userID, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	if !entries.First() {
		return PointsEntry{}, entries.Error()
	}
	return readPointsEntry(entries.Key(), entries.Value())
}

// A PointsQuery asks for a page of a user's ledger.
type PointsQuery struct {
	UserID string
	// PageSize is at most PointsPageMax; 0 means PointsPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// A PointsPage is a page of a user's ledger, newest first.
type PointsPage struct {
	Entries []PointsEntry
	// Balance is the user's as of the same moment.
	Balance int64
	// Revision is the position of the newest entry; its Commit is 0 when there is none.
	Revision Revision
	// Next is the token of the next page, empty at the end.
	Next string
}

// Points returns a page of a user's ledger, newest first, with the balance. A token of another query is ErrBadPageToken.
func (v *Views) Points(ctx context.Context, query PointsQuery, min Min) (page PointsPage, fresh Freshness, err error) {
	if query.UserID == "" || len(query.UserID) > userIDBytesMax {
		return page, fresh, fmt.Errorf("a user id has %d bytes, want 1 to %d", len(query.UserID), userIDBytesMax)
	}
	size := pageSize(query.PageSize, PointsPageDefault, PointsPageMax)
	binding := []string{"points", query.UserID}
	r := v.runners[v.topology.LaneOf(eventstore.PartitionOf(query.UserID))]
	var from uint64 // Number of the newest entry of the page; 0 is the newest there is.
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding...)
		if err != nil {
			return page, fresh, err
		}
		before, err := strconv.ParseUint(string(cursor), 10, 64)
		if err != nil || before == 0 {
			return page, fresh, ErrBadPageToken
		}
		from = before - 1
	}
	reached, err := v.await(ctx, min, &pointsProjection)
	if err != nil {
		return page, fresh, err
	}
	fresh = r.freshness(&pointsProjection).waited(reached).parked(r.parks(&pointsProjection, query.UserID))
	p := r.prefix(&pointsProjection)
	first := appendUser(p.key(nil), query.UserID)
	last := keyAfter(first)
	if query.PageToken != "" {
		first = pointsKey(p, query.UserID, from)
	}
	// One snapshot, so that the balance is that of the ledger.
	snapshot := v.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	newest, err := readNewestPoints(snapshot, p, query.UserID)
	if err != nil {
		return page, fresh, err
	}
	page.Balance, page.Revision = newest.Balance, Revision{Lane: r.lane, Commit: newest.Commit}
	entries, err := snapshot.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: first, UpperBound: last})
	if err != nil {
		return page, fresh, fmt.Errorf("read the points of %s: %w", query.UserID, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.First(); valid; valid = entries.Next() {
		if len(page.Entries) == size {
			page.Next = v.seal.seal([]byte(strconv.FormatUint(page.Entries[size-1].Number, 10)), binding...)
			break
		}
		entry, err := readPointsEntry(entries.Key(), entries.Value())
		if err != nil {
			return page, fresh, err
		}
		page.Entries = append(page.Entries, entry)
	}
	return page, fresh, entries.Error()
}
