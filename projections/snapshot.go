package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A Snapshot reads the views as they were at one moment, as the bytes that they are kept as, for a copy of them
// elsewhere. One goroutine uses it, and closes it.
type Snapshot struct {
	db    *pebble.Snapshot
	lanes uint32
	// generations that answered when it was taken.
	generations *generations
	// positions by lane, once they were read.
	positions map[uint32]eventstore.Position
	// parked by the prefix of a lane's part of a view, once it was read.
	parked map[prefix]*parkedKeys
}

// copied are the projections whose values a Snapshot hands out.
var copied = []*Projection{&ordersProjection, &ordersByUserProjection, &stockProjection, &campaignsProjection, &boardProjection}

// CopiedVersions returns the versions of the views that a Snapshot hands values of: another program may write the same keys with other
// values, so whoever keeps copies keeps those of each apart.
func CopiedVersions() string {
	versions := make([]string, len(copied))
	for i, p := range copied {
		versions[i] = strconv.FormatUint(uint64(p.Version), 10)
	}
	return strings.Join(versions, ".")
}

// holds returns ErrNotFound for what may lack parked events, and for what a program of another version wrote, though it answers until it
// is made again: that is nothing to copy.
func (s *Snapshot) holds(p *Projection, lane uint32, parks func(*parkedKeys) bool) error {
	at := s.prefix(p, lane)
	parked := s.parked[at]
	if parked == nil {
		if !slices.Contains(copied, p) {
			panic(fmt.Sprintf("projections: bug: view %s is copied, and copies do not say of which version", p.Name))
		}
		version, _, err := s.progress(p, lane)
		if err != nil {
			return err
		}
		if version != p.Version {
			return ErrNotFound
		}
		if parked, err = loadParked(s.db, at); err != nil {
			return err
		}
		if s.parked == nil {
			s.parked = make(map[prefix]*parkedKeys)
		}
		s.parked[at] = parked
	}
	if len(parked.byKey) > 0 && parks(parked) {
		return ErrNotFound
	}
	return nil
}

// Snapshot returns what the store's views of so many lanes are now.
func (s *Store) Snapshot(lanes uint32) *Snapshot {
	answering := s.generations.clone() // First: what answers later may not be whole in the snapshot.
	return &Snapshot{db: s.db.NewSnapshot(), lanes: lanes, generations: answering, positions: make(map[uint32]eventstore.Position)}
}

// live returns the generation of a projection that answers reads, as Runner.live does.
func (s *Snapshot) live(p *Projection, lane uint32) byte { return s.generations.of(p.space, lane).live }

// prefix is that of the keys of a lane's part of a projection.
func (s *Snapshot) prefix(p *Projection, lane uint32) prefix {
	return prefixOf(p.space, s.live(p, lane), lane)
}

// Close frees the snapshot.
func (s *Snapshot) Close() error { return s.db.Close() }

// Position returns the commit that the least of the lane's views has reached: whatever the snapshot says of the lane
// holds that commit and all before it.
func (s *Snapshot) Position(lane uint32) (eventstore.Position, error) {
	if at, known := s.positions[lane]; known {
		return at, nil
	}
	var least eventstore.Position
	for i, projection := range Projections {
		_, at, err := s.progress(projection, lane)
		if err != nil {
			return least, err
		}
		if i == 0 || at.Number < least.Number {
			least = at
		}
	}
	s.positions[lane] = least
	return least, nil
}

// progress returns which version wrote the lane's part of a projection, and how far that is.
func (s *Snapshot) progress(p *Projection, lane uint32) (version uint32, at eventstore.Position, err error) {
	value, err := read(s.db, progressKey(p.space, s.live(p, lane), lane))
	if errors.Is(err, pebble.ErrNotFound) {
		return p.Version, eventstore.Genesis(lane, s.lanes), nil
	}
	if err != nil {
		return 0, at, fmt.Errorf("read the progress of view %s: %w", p.Name, err)
	}
	version, progress, err := readProgress(value)
	return version, progress.Position, err
}

// OrderRecord returns the record of an order of the lane (see ReadEntries), or ErrNotFound. That is also
// the answer, here and in what follows, for what may lack parked events, and for what another version of the view wrote.
func (s *Snapshot) OrderRecord(lane uint32, id domain.OrderID) ([]byte, error) {
	if err := s.holds(&ordersProjection, lane, func(k *parkedKeys) bool { return k.parks(id.String()) }); err != nil {
		return nil, err
	}
	return readRecord(s.db, s.prefix(&ordersProjection, lane), id)
}

// NewestOrders returns the newest orders of the lane and whose they are, newest first, countMax at most.
func (s *Snapshot) NewestOrders(lane uint32, countMax int) (orders []domain.OrderID, users []string, err error) {
	err = s.each(&ordersProjection, lane, true, countMax, func(suffix, record []byte) error {
		if len(suffix) != len(domain.OrderID{}) {
			return fmt.Errorf("the view of orders has a key of %d bytes", len(suffix))
		}
		user, _ := RecordUserID(record) // Empty for a record that cannot be read.
		orders, users = append(orders, domain.OrderID(suffix)), append(users, user)
		return nil
	})
	return orders, users, err
}

// StockKeys returns the keys of which the lane has an account, countMax at most.
func (s *Snapshot) StockKeys(lane uint32, countMax int) (keys []string, err error) {
	err = s.each(&stockProjection, lane, false, countMax, func(suffix, _ []byte) error {
		keys = append(keys, string(suffix))
		return nil
	})
	return keys, err
}

// Pools returns the pools of the lane's campaigns, countMax at most.
func (s *Snapshot) Pools(lane uint32, countMax int) (pools []string, err error) {
	err = s.each(&campaignsProjection, lane, false, countMax, func(suffix, _ []byte) error {
		pools = append(pools, campaignKey(string(suffix)))
		return nil
	})
	return pools, err
}

// each calls f with the keys of a lane's part of a view, less their prefix, from the first or from the last one on.
func (s *Snapshot) each(p *Projection, lane uint32, backwards bool, countMax int, f func(suffix, value []byte) error) (err error) {
	at := s.prefix(p, lane)
	entries, err := s.db.NewIter(&pebble.IterOptions{LowerBound: at[:], UpperBound: at.end()})
	if err != nil {
		return fmt.Errorf("read view %s: %w", p.Name, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	first, next := entries.First, entries.Next
	if backwards {
		first, next = entries.Last, entries.Prev
	}
	for valid := first(); valid && countMax > 0; valid = next() {
		if err := f(entries.Key()[prefixBytes:], entries.Value()); err != nil {
			return err
		}
		countMax--
	}
	return entries.Error()
}

// A RecentOrder is an order in the list of its user. Ended is how it ended, StatusPendingPayment if it has not.
type RecentOrder struct {
	ID    domain.OrderID
	Ended domain.OrderStatus
}

const recentOrderBytes = len(domain.OrderID{}) + 1

// RecentOrders returns a user's newest orders, newest first, countMax at most, as ReadRecentOrders reads them.
func (s *Snapshot) RecentOrders(lane uint32, userID string, countMax int) (_ []byte, err error) {
	if err := s.holds(&ordersByUserProjection, lane, func(k *parkedKeys) bool { return k.parksUser(userID) }); err != nil {
		return nil, err
	}
	return s.ListedOrders(lane, userID, countMax)
}

// ListedOrders is RecentOrders for what is to be removed: it returns what is listed also where some may be parked.
func (s *Snapshot) ListedOrders(lane uint32, userID string, countMax int) (_ []byte, err error) {
	index := s.prefix(&ordersByUserProjection, lane)
	first := appendUser(append([]byte(nil), index[:]...), userID)
	entries, err := s.db.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return nil, fmt.Errorf("read the orders of %s: %w", userID, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	var list []byte
	for valid := entries.First(); valid && countMax > 0; valid = entries.Next() {
		id, status, err := readIndexEntry(entries.Key(), entries.Value())
		if err != nil {
			return nil, err
		}
		list = append(append(list, id[:]...), byte(status))
		countMax--
	}
	return list, entries.Error()
}

// ReadRecentOrders reads what Snapshot.RecentOrders returned.
func ReadRecentOrders(list []byte) ([]RecentOrder, error) {
	if len(list)%recentOrderBytes != 0 {
		return nil, fmt.Errorf("a list of orders has %d bytes, want a multiple of %d", len(list), recentOrderBytes)
	}
	orders := make([]RecentOrder, 0, len(list)/recentOrderBytes)
	for ; len(list) > 0; list = list[recentOrderBytes:] {
		orders = append(orders, RecentOrder{
			ID: domain.OrderID(list[:len(domain.OrderID{})]), Ended: domain.OrderStatus(list[recentOrderBytes-1]),
		})
	}
	return orders, nil
}

// StockAccount returns what the lane knows of a stock key's units, as SumAccounts reads it; empty if it knows nothing.
func (s *Snapshot) StockAccount(lane uint32, key string) ([]byte, error) {
	if err := s.holds(&stockProjection, lane, func(k *parkedKeys) bool { return k.parks(key) }); err != nil {
		return nil, err
	}
	value, err := s.prefix(&stockProjection, lane).read(s.db, key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the stock of %s: %w", key, err)
	}
	return value, nil
}

// Tally returns what the lane knows of the orders of a campaign's pool, as SumTallies reads it; empty if it knows nothing.
func (s *Snapshot) Tally(lane uint32, pool string) ([]byte, error) {
	if err := s.holds(&boardProjection, lane, func(k *parkedKeys) bool { return k.parks(pool) }); err != nil {
		return nil, err
	}
	value, err := read(s.db, s.prefix(&boardProjection, lane).key(tallyKey(pool)))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the tally of %s: %w", pool, err)
	}
	return value, nil
}

// SumAccounts adds up the accounts of all lanes, and reports whether there was any.
func SumAccounts(key string, accounts [][]byte) (stock StockView, known bool, err error) {
	var sum account
	for lane, value := range accounts {
		if len(value) == 0 {
			continue
		}
		a, err := readAccount(value)
		if err != nil {
			return StockView{}, false, fmt.Errorf("stock of %s in lane %d: %w", key, lane, err)
		}
		known = true
		for i, field := range sum.fields() {
			*field += *a.fields()[i]
		}
	}
	return sum.view(key), known, nil
}

// ErrTooMany says that a lane has more campaigns than fit on a board.
var ErrTooMany = errors.New("more than a board holds")

// CampaignBoard returns the lane's campaigns by id and SKU, as ReadCampaignBoard reads them. More than countMax are
// ErrTooMany.
func (s *Snapshot) CampaignBoard(lane uint32, countMax int) (_ []byte, err error) {
	if err := s.holds(&campaignsProjection, lane, func(*parkedKeys) bool { return true }); err != nil {
		return nil, err
	}
	p := s.prefix(&campaignsProjection, lane)
	entries, err := s.db.NewIter(&pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
	if err != nil {
		return nil, fmt.Errorf("read the campaigns: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	var board []byte
	for valid := entries.First(); valid; valid = entries.Next() {
		if countMax--; countMax < 0 {
			return nil, ErrTooMany
		}
		for _, part := range [][]byte{entries.Key()[prefixBytes:], entries.Value()} {
			board = append(binary.AppendUvarint(board, uint64(len(part))), part...)
		}
	}
	return board, entries.Error()
}

// ReadCampaignBoard reads what Snapshot.CampaignBoard returned. Of the campaigns' stock it knows the keys only.
func ReadCampaignBoard(lane uint32, board []byte) ([]CampaignView, error) {
	var campaigns []CampaignView
	r := entryReader{rest: board}
	for len(r.rest) > 0 {
		pool, value := campaignKey(string(r.bytes())), r.bytes()
		if r.failed {
			return nil, errors.New("a board of campaigns is cut off")
		}
		event, entry, err := readNewest(pool, value)
		if err != nil {
			return nil, fmt.Errorf("campaign %s: %w", pool, err)
		}
		campaigns = append(campaigns, CampaignView{
			Campaign: domain.Campaign{}.Evolve(event, entry.At), Revision: Revision{Lane: lane, Commit: entry.Number},
			Stock: StockView{SKU: pool},
		})
	}
	return campaigns, nil
}
