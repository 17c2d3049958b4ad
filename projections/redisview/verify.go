package redisview

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

const (
	// DifferencesMax is how many differences a VerifyReport tells apart; it counts all of them.
	DifferencesMax = 20
	// verifyBatchMax bounds the keys that Verify reads at a time.
	verifyBatchMax = 512
)

// VerifyOptions say what Verify compares.
type VerifyOptions struct {
	// Sample, if it is not nil, says which partitions' orders and users are compared; the rest, which is little, is compared
	// whole.
	Sample func(partition uint32) bool
}

// A VerifyReport says whether Redis holds what the views hold, as far as a read would be answered with it (I6).
type VerifyReport struct {
	// Entries of our prefix and versions that were read: Compared with the view, and Unserved, which the guard refuses: they are
	// older than a change, from before this node began, as of a commit that it has not come to, or of what is parked or erased.
	Compared, Unserved uint64
	// DifferencesTotal counts the entries that differ, or that no node of ours wrote; Differences are the first of them,
	// DifferencesMax at most.
	DifferencesTotal uint64
	Differences      []Difference
}

// A Difference is an entry that the view does not agree with.
type Difference struct {
	// Lane of the entry; 0 where its key does not say.
	Lane uint32
	// Key in Redis, and what is wrong with it.
	Key, Problem string
}

func (d Difference) String() string { return fmt.Sprintf("redis key %q: %s", d.Key, d.Problem) }

func (r *VerifyReport) differ(lane uint32, key, format string, arguments ...any) {
	r.DifferencesTotal++
	if len(r.Differences) < DifferencesMax {
		r.Differences = append(r.Differences, Difference{Lane: lane, Key: key, Problem: fmt.Sprintf(format, arguments...)})
	}
}

// Verify reads all that Redis holds under our prefix and versions, and compares each entry that a read would be answered with
// with this node's view of now. Writes may go on meanwhile. A Redis that does not answer is ErrUnreachable, one that does not let us
// a *SettingsError.
func (m *Mirror) Verify(ctx context.Context, options VerifyOptions) (report VerifyReport, err error) {
	cluster, ok := m.client.(*redis.ClusterClient)
	if !ok {
		err = m.verifyServer(ctx, m.client, options, &report)
		return report, err
	}
	var mu sync.Mutex // ForEachMaster calls from several goroutines; one server after the other is enough.
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, server *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		return m.verifyServer(ctx, server, options, &report)
	})
	var settings *SettingsError
	if err != nil && ctx.Err() == nil && !errors.As(err, &settings) && !errors.Is(err, ErrUnreachable) {
		err = settingsError(strings.Join(m.options.Addresses, ","), err)
	}
	return report, err
}

// verifyServer goes through one server's keys.
func (m *Mirror) verifyServer(ctx context.Context, server redis.Cmdable, options VerifyOptions, report *VerifyReport) error {
	for cursor := uint64(0); ; {
		keys, next, err := m.scan(ctx, server, cursor)
		if err != nil {
			return err
		}
		var subjects []subject
		wanted := keys[:0]
		for _, key := range keys {
			s, known := m.subjectOf(key)
			if !known {
				report.differ(0, key, "no node of this version writes such a key")
				continue
			}
			if options.Sample == nil || s.sampled(options.Sample) {
				subjects, wanted = append(subjects, s), append(wanted, key)
			}
		}
		if err := m.verifyKeys(ctx, wanted, subjects, report); err != nil {
			return err
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// scan returns some of a server's keys that are ours.
func (m *Mirror) scan(ctx context.Context, server redis.Cmdable, cursor uint64) (keys []string, next uint64, err error) {
	bounded, cancel := context.WithTimeout(ctx, m.options.WriteTimeout)
	defer cancel()
	// The prefix holds nothing that is special in a pattern.
	keys, next, err = server.Scan(bounded, cursor, m.prefix+"*", verifyBatchMax).Result()
	if err != nil && ctx.Err() == nil {
		err = settingsError(strings.Join(m.options.Addresses, ","), err)
	}
	return keys, next, err
}

// verifyKeys compares some entries with the views.
func (m *Mirror) verifyKeys(ctx context.Context, keys []string, subjects []subject, report *VerifyReport) (err error) {
	if len(keys) == 0 {
		return nil
	}
	stored, err := m.fetch(ctx, keys, m.options.WriteTimeout)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	// The views are read after Redis, and the guard after the views: a change that they show is in the guard by then.
	snapshot := m.options.Store.Snapshot(m.options.Topology.Lanes)
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	for i, s := range subjects {
		if stored[i] == nil {
			continue // It has expired since.
		}
		e, ok := readEntry(keys[i], stored[i])
		if !ok {
			report.differ(s.lane, keys[i], "its %d bytes are not what a node of ours writes there", len(stored[i]))
			continue
		}
		want, err := valueOf(snapshot, s)
		if err != nil && !errors.Is(err, projections.ErrNotFound) && !errors.Is(err, projections.ErrTooMany) {
			return err
		}
		at, positionErr := snapshot.Position(s.lane)
		if positionErr != nil {
			return positionErr
		}
		if _, served := m.guard.admits(s, e.number, e.hash); !served || e.erased || e.number > at.Number {
			report.Unserved++
			continue
		}
		report.Compared++
		switch {
		case err != nil:
			report.differ(s.lane, keys[i], "redis has %s, as of commit %d, the view has nothing to answer", s.describe(e.value), e.number)
		case !bytes.Equal(e.value, want):
			got, wanted := s.describe(e.value), s.describe(want)
			if got == wanted {
				got, wanted = fmt.Sprintf("%.40x…", e.value), fmt.Sprintf("%.40x…", want)
			}
			report.differ(s.lane, keys[i], "redis has %s, as of commit %d, the view has %s", got, e.number, wanted)
		}
	}
	return nil
}

// sampled reports whether a subject is of a partition that is compared.
func (s *subject) sampled(sample func(partition uint32) bool) bool {
	switch s.kind {
	case kindOrder:
		return sample(domain.OrderID([]byte(s.text)).Partition())
	case kindRecent:
		return sample(eventstore.PartitionOf(s.text))
	case kindStock, kindBoard, kindTally, kindErased:
	}
	return true
}

// subjectOf reads a key that appendKey wrote.
func (m *Mirror) subjectOf(key string) (s subject, known bool) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(key, m.prefix), ":{")
	tag, laneText, tagged := cutLast(rest, "}")
	if !tagged {
		return subject{}, false
	}
	var copyNumber int
	if name == "stock" || name == "tally" || name == "board" {
		var copyText string
		if tag, copyText, tagged = cutLast(tag, "#"); !tagged {
			return subject{}, false
		}
		number, err := strconv.Atoi(copyText)
		if err != nil || number < 0 || number >= stockCopiesMax {
			return subject{}, false
		}
		copyNumber = number
	}
	switch name {
	case "order":
		id, err := domain.ParseOrderID(tag)
		if err != nil {
			return subject{}, false
		}
		s = orderSubject(m.laneOf(id), id)
	case "user":
		s = subject{kind: kindRecent, lane: m.options.Topology.LaneOf(eventstore.PartitionOf(tag)), text: tag}
	case "stock", "tally":
		lane, err := strconv.ParseUint(strings.TrimPrefix(laneText, ":"), 10, 32)
		if err != nil {
			return subject{}, false
		}
		s = subject{kind: kindStock, lane: uint32(lane), text: tag}
		if name == "tally" {
			s.kind = kindTally
		}
	case "board":
		lane, err := strconv.ParseUint(tag, 10, 32)
		if err != nil {
			return subject{}, false
		}
		s = subject{kind: kindBoard, lane: uint32(lane)}
	default:
		return subject{}, false
	}
	return s, s.lane < m.options.Topology.Lanes && m.key(s, copyNumber) == key
}

// cutLast cuts a text around the last separator.
func cutLast(text, separator string) (before, after string, found bool) {
	at := strings.LastIndex(text, separator)
	if at < 0 {
		return text, "", false
	}
	return text[:at], text[at+len(separator):], true
}

// describe writes an entry's value as people do.
func (s *subject) describe(value []byte) string {
	unreadable := func(err error) string { return fmt.Sprintf("%d bytes that cannot be read (%v)", len(value), err) }
	switch s.kind {
	case kindOrder:
		order, revision, err := projections.FoldOrder(domain.OrderID([]byte(s.text)), "", value, 0)
		if err != nil {
			return unreadable(err)
		}
		return fmt.Sprintf("the order %s, changed at commit %d", order.Status, revision)
	case kindRecent:
		orders, err := projections.ReadRecentOrders(value)
		if err != nil {
			return unreadable(err)
		}
		if len(orders) == 0 {
			return "no orders"
		}
		return fmt.Sprintf("%d orders, the newest %s", len(orders), orders[0].ID)
	case kindStock:
		if len(value) == 0 {
			return "no account"
		}
		stock, _, err := projections.SumAccounts(s.text, [][]byte{value})
		if err != nil {
			return unreadable(err)
		}
		return fmt.Sprintf("received %d, central %d, available %d, reserved %d, sold %d", stock.Received, stock.Central, stock.Available, stock.Reserved, stock.Sold)
	case kindBoard:
		campaigns, err := projections.ReadCampaignBoard(s.lane, value)
		if err != nil {
			return unreadable(err)
		}
		return fmt.Sprintf("%d campaigns", len(campaigns))
	case kindTally:
		tally, err := projections.SumTallies(s.text, [][]byte{value})
		if err != nil {
			return unreadable(err)
		}
		return fmt.Sprintf("%d orders of %d units, %d given up, %d buyers", tally.Orders, tally.Units, tally.GivenUp, tally.Buyers)
	case kindErased:
	}
	return fmt.Sprintf("%d bytes", len(value))
}
