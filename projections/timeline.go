package projections

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// TimelinePageDefault and TimelinePageMax are entries a page of a timeline.
const (
	TimelinePageDefault = 100
	TimelinePageMax     = 500
)

// A TimelineQuery asks for a page of an order's timeline.
type TimelineQuery struct {
	OrderID domain.OrderID
	// UserID is the user whose order it has to be, as with OrderOf; empty means any.
	UserID string
	// PageSize is at most TimelinePageMax; 0 means TimelinePageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// A TimelineEntry is one change of an order and its position.
type TimelineEntry struct {
	domain.TimelineEntry
	Revision Revision
}

// A TimelinePage is a page of an order's timeline, oldest first.
type TimelinePage struct {
	Entries []TimelineEntry
	// Next is the token of the next page, empty at the end.
	Next string
}

// Timeline returns a page of an order's timeline. A missing order is answered as with OrderOf, a token of another query
// is ErrBadPageToken.
func (v *Views) Timeline(ctx context.Context, query TimelineQuery, min Min) (TimelinePage, Freshness, error) {
	text := query.OrderID.String()
	binding := []string{"timeline", text}
	var from uint64
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding...)
		if err != nil {
			return TimelinePage{}, Freshness{}, err
		}
		if len(cursor) != 8 {
			return TimelinePage{}, Freshness{}, ErrBadPageToken
		}
		from = binary.BigEndian.Uint64(cursor)
	}
	size := pageSize(query.PageSize, TimelinePageDefault, TimelinePageMax)
	r := v.runners[v.topology.LaneOf(query.OrderID.Partition())]
	var page TimelinePage
	fresh, err := v.readParked(ctx, r, query.OrderID, query.UserID, min, func() error {
		entries, more, err := readTimeline(v.db, r.lane, r.prefix(&ordersProjection), query, from, size)
		page = TimelinePage{Entries: entries}
		if more {
			page.Next = v.seal.seal(binary.BigEndian.AppendUint64(nil, from+uint64(len(entries))), binding...)
		}
		return err
	})
	return page, fresh, err
}

// readTimeline reads up to size entries of an order's timeline off its record, from the one with index from on, and
// whether more follow. Entries are appended to a record and never change, so an index stays that entry's.
func readTimeline(
	db pebble.Reader, lane uint32, p prefix, query TimelineQuery, from uint64, size int,
) (entries []TimelineEntry, more bool, err error) {
	text := query.OrderID.String()
	record, err := readRecord(db, p, query.OrderID)
	if err != nil {
		return nil, false, err
	}
	owner, _ := RecordUserID(record)
	if query.UserID != "" && owner != query.UserID {
		return nil, false, ErrNotFound
	}
	var index uint64
	for entry, err := range ReadEntries(record) {
		if err != nil {
			return nil, false, fmt.Errorf("order %s: %w", text, err)
		}
		if index++; index <= from {
			continue
		}
		if len(entries) == size {
			return entries, true, nil
		}
		event, err := stored.Decode(entry.Type, entry.Version, text, owner, entry.Payload)
		if err != nil {
			return nil, false, fmt.Errorf("order %s, entry %d of its record: %w", text, index, err)
		}
		line, ok := domain.Timeline(event, entry.At)
		if !ok {
			return nil, false, fmt.Errorf("order %s, entry %d of its record: %s is not of an order", text, index, entry.Type)
		}
		entries = append(entries, TimelineEntry{TimelineEntry: line, Revision: Revision{Lane: lane, Commit: entry.Number}})
	}
	return entries, false, nil
}
