package projections

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
)

// An event that a view cannot take in is parked, and so are all later events of its key, in the batch that the view's
// position moves on with: the view equals the fold of the log without its parked events, and these are listed (I6). No
// payload is copied, the log has it. Replay takes a key's events in when the cause is gone.
//
//	parked  KeySpaceViews, spaceParked, space, generation and lane (16 bits) of the view, then
//	        parkedKeyMark, key → a parkedRecord in JSON
//	        parkedEventMark, length of the key (16 bits), key, number of the commit (8 bytes), index in it (4 bytes) → nothing
//	heals   KeySpaceViews, spaceHeals, firstGeneration, lane, user id → how often parked events of the user's orders were taken in
//	        (8 bytes); only of users of whom some were
const (
	parkedKeyMark   byte = 0x01
	parkedEventMark byte = 0x02
)

// Limits of what one lane's part of a view may park (I8). Beyond them the lane's views stop: so much is no single event
// that went wrong, and what is parked is kept in memory and not answered for.
const (
	parkedKeysMax   = 1 << 10
	parkedEventsMax = 1 << 16
	// parkedKeyBytesMax is the longest key that is parked; longer ones are cut, and share what they begin with.
	parkedKeyBytesMax = 1 << 10
	// parkedNamesMax bounds the users, orders and keys to read that are told apart for one parked key. Beyond it, all count
	// as concerned.
	parkedNamesMax = 256
	// parkedReasonBytesMax cuts the reason that is kept.
	parkedReasonBytesMax = 1 << 10
)

// EventAt names an event of a lane: that with an index, from 0 on, in a commit.
type EventAt struct {
	Commit uint64 `json:"commit"`
	Event  uint32 `json:"event"`
}

func (e EventAt) String() string { return fmt.Sprintf("event %d of commit %d", e.Event+1, e.Commit) }

// Names are some names, or more than are told apart.
type Names struct {
	// List is sorted.
	List []string `json:"list,omitempty"`
	// More says that there are others.
	More bool `json:"more,omitempty"`
}

func (n *Names) add(name string) (changed bool) {
	i, found := slices.BinarySearch(n.List, name)
	switch {
	case found || n.More && len(n.List) >= parkedNamesMax:
		return false
	case len(n.List) >= parkedNamesMax:
		n.More = true
		return true
	}
	n.List = slices.Insert(slices.Clone(n.List), i, name)
	return true
}

func (n *Names) has(name string) bool {
	_, found := slices.BinarySearch(n.List, name)
	return found || n.More
}

// A ParkedKey is a key of a view whose events are not taken in until it is replayed.
type ParkedKey struct {
	Projection string
	Generation uint32
	Lane       uint32
	// Key is what the events are about: an order, a user, a SKU, …, by view.
	Key string
	// First is the event that could not be taken in, Since its log time, Type its type, and Reason why.
	First  EventAt
	Since  time.Time
	Type   string
	Reason string
	// Events counts the first and those that came after it.
	Events int
	// Users and Orders that the events are about: who may be shown less than the log holds.
	Users, Orders Names
}

// parkedRecord is what the store knows of a parked key beside its events.
type parkedRecord struct {
	First  EventAt   `json:"first"`
	Since  time.Time `json:"since"`
	Type   string    `json:"type"`
	Reason string    `json:"reason"`
	Users  Names     `json:"users"`
	Orders Names     `json:"orders"`
	// Reads are the keys that the view is read by and that the events change, where these are not the parked key.
	Reads Names `json:"reads"`
}

// parkedKeys are those of one lane's part of a generation of a view.
type parkedKeys struct {
	byKey  map[string]*parkedKey
	events int
	// isNew are keys that the batch parks; dirty says that the batch changes what is parked.
	isNew []string
	dirty bool
}

type parkedKey struct {
	parkedRecord
	events []EventAt
}

// parkedPrefix is that of what is parked of a lane's part of a view, by the prefix of its keys.
func parkedPrefix(p prefix) []byte {
	return append([]byte{KeySpaceViews, spaceParked}, p[1:]...)
}

func parkedRecordKey(p prefix, key string) []byte {
	return append(append(parkedPrefix(p), parkedKeyMark), key...)
}

// parkedEventsPrefix is that of the events of a parked key.
func parkedEventsPrefix(p prefix, key string) []byte {
	return append(binary.BigEndian.AppendUint16(append(parkedPrefix(p), parkedEventMark), uint16(len(key))), key...)
}

func parkedEventKey(p prefix, key string, at EventAt) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(parkedEventsPrefix(p, key), at.Commit), at.Event)
}

// errParkedDamaged says that what is parked cannot be read.
var errParkedDamaged = errors.New("the list of parked keys is damaged")

// loadParked reads what is parked of a lane's part of a view, by the prefix of its keys.
func loadParked(from pebble.Reader, p prefix) (_ *parkedKeys, err error) {
	parked := &parkedKeys{}
	first := parkedPrefix(p)
	entries, err := from.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return nil, fmt.Errorf("read what is parked: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.First(); valid; valid = entries.Next() {
		mark, rest := entries.Key()[len(first)], entries.Key()[len(first)+1:]
		switch mark {
		case parkedKeyMark:
			key := &parkedKey{}
			if err := json.Unmarshal(entries.Value(), &key.parkedRecord); err != nil {
				return nil, errors.Join(errParkedDamaged, err)
			}
			if parked.byKey == nil {
				parked.byKey = make(map[string]*parkedKey)
			}
			parked.byKey[string(rest)] = key
		case parkedEventMark:
			const tail = 8 + 4
			if len(rest) < 2 || len(rest) != 2+int(binary.BigEndian.Uint16(rest))+tail {
				return nil, errParkedDamaged
			}
			key, at := parked.byKey[string(rest[2:len(rest)-tail])], rest[len(rest)-tail:]
			if key == nil {
				return nil, errParkedDamaged
			}
			key.events = append(key.events, EventAt{Commit: binary.BigEndian.Uint64(at), Event: binary.BigEndian.Uint32(at[8:])})
			parked.events++
		default:
			return nil, errParkedDamaged
		}
	}
	return parked, entries.Error()
}

// list returns what is parked by key, as of a view.
func (k *parkedKeys) list(p *Projection, generation byte, lane uint32) []ParkedKey {
	all := make([]ParkedKey, 0, len(k.byKey))
	for _, name := range slices.Sorted(maps.Keys(k.byKey)) {
		key := k.byKey[name]
		all = append(all, ParkedKey{
			Projection: p.Name, Generation: uint32(generation), Lane: lane, Key: name, First: key.First, Since: key.Since, Type: key.Type,
			Reason: key.Reason, Events: len(key.events), Users: key.Users, Orders: key.Orders,
		})
	}
	return all
}

// orders counts the orders that the parked events are about, as far as these are told apart.
func (k *parkedKeys) orders() int {
	told := make(map[string]struct{})
	for _, key := range k.byKey {
		for _, order := range key.Orders.List {
			told[order] = struct{}{}
		}
	}
	return len(told)
}

// clone returns a copy that is not changed when k is.
func (k *parkedKeys) clone() *parkedKeys {
	c := &parkedKeys{byKey: make(map[string]*parkedKey, len(k.byKey)), events: k.events}
	for name, key := range k.byKey {
		copied := *key // Names and events are only ever appended to, past what the copy sees.
		c.byKey[name] = &copied
	}
	return c
}

// A PoisonError says that an event that a view cannot take in could not be parked, as too much is: the lane's views stop.
type PoisonError struct {
	// Event that could not be taken in.
	Event *UnreadableError
	// Keys and Events that the view has parked.
	Keys, Events int
}

func (e *PoisonError) Error() string {
	return fmt.Sprintf("view %s has parked %d keys and %d events, of %d and %d at most: see weir parked list, mend what they say, and start again; %v",
		e.Event.View, e.Keys, e.Events, parkedKeysMax, parkedEventsMax, e.Event)
}

func (e *PoisonError) Unwrap() error { return e.Event }

// storeFault is a failure to read what a view holds. It says nothing about the event, which is therefore not parked.
type storeFault struct{ cause error }

func (f *storeFault) Error() string { return f.cause.Error() }
func (f *storeFault) Unwrap() error { return f.cause }

// panicked is what taking an event in panicked with. What the view and its batch hold is not known afterwards.
type panicked struct {
	view  *view
	at    EventAt
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// take takes an event in, or parks it. An error ends the view. A *panicked error says that the batch has to be dropped,
// the view opened again, and everything since the last flush taken in once more: the event is then parked.
func (v *view) take(c *change) error {
	if c.cause == nil && len(v.parked.byKey) == 0 && v.poison == nil && v.excluded == nil {
		err := v.apply(c)
		if err == nil {
			return nil
		}
		return v.refused(c, err)
	}
	at := c.eventAt()
	if _, listed := v.excluded[at]; listed {
		if v.excludedSeen == nil {
			v.excludedSeen = make(map[EventAt]struct{})
		}
		v.excludedSeen[at] = struct{}{}
		return nil
	}
	if _, parked := v.parked.byKey[v.keyOf(c)]; parked {
		return v.park(c, nil)
	}
	if c.cause != nil {
		if v.keyOf(c) == "" {
			return nil // The view passes over it, whatever it says.
		}
		return v.park(c, c.cause)
	}
	if cause := v.poison[at]; cause != nil {
		return v.park(c, cause)
	}
	if err := v.apply(c); err != nil {
		return v.refused(c, err)
	}
	return nil
}

// apply calls the applier. It is the only place that may panic over an event.
func (v *view) apply(c *change) error {
	v.taking = c
	err := v.applier.apply(c)
	v.taking = nil
	return err
}

// refused parks an event that could not be taken in. What is wrong with the store is no fault of the event.
func (v *view) refused(c *change, err error) error {
	var fault *storeFault
	if errors.As(err, &fault) {
		return v.unreadable(c, err)
	}
	return v.park(c, err)
}

// recovered turns a panic over an event into a *panicked error. It is deferred around take.
func recovered(views []*view, err *error) {
	value := recover()
	if value == nil {
		return
	}
	for _, v := range views {
		if v.taking != nil {
			*err = &panicked{view: v, at: v.taking.eventAt(), value: value, stack: debug.Stack()}
			return
		}
	}
	panic(value)
}

// keyOf names what an event is about for the view, "" when the view passes over it. What cannot be read is about its aggregate, or
// its user in a view that is kept by user.
func (v *view) keyOf(c *change) string {
	key := ""
	switch {
	case !c.unknown:
		key = v.projection.key(c)
	case v.projection.byUser && c.event.UserID != "":
		key = c.event.UserID
	case c.event.AggregateID != "":
		key = c.event.AggregateID
	default:
		key = c.eventAt().String()
	}
	return key[:min(len(key), parkedKeyBytesMax)]
}

// park lists an event. With a cause, its key is new. REQUIRES: the view does not hold the event.
func (v *view) park(c *change, cause error) error {
	name, at := v.keyOf(c), c.eventAt()
	if name == "" { // The view passes over the event and fails on it all the same.
		name = at.String()
	}
	key := v.parked.byKey[name]
	if len(v.parked.byKey) >= parkedKeysMax && key == nil || v.parked.events >= parkedEventsMax {
		return &PoisonError{Event: v.unreadable(c, cause), Keys: len(v.parked.byKey), Events: v.parked.events}
	}
	changed := false
	if key == nil {
		reason := cause.Error()
		key = &parkedKey{parkedRecord: parkedRecord{
			First: at, Since: c.at.UTC(), Type: c.event.Type, Reason: strings.ToValidUTF8(reason[:min(len(reason), parkedReasonBytesMax)], "?"),
		}}
		if v.parked.byKey == nil {
			v.parked.byKey = make(map[string]*parkedKey)
		}
		v.parked.byKey[name] = key
		v.parked.isNew = append(v.parked.isNew, name)
		changed = true
	}
	if id, err := domain.ParseOrderID(c.event.AggregateID); err == nil {
		changed = key.Orders.add(id.String()) || changed
		if c.event.UserID != "" {
			changed = key.Users.add(c.event.UserID) || changed
		}
	}
	changed = v.addReads(&key.Reads, c) || changed
	key.events = append(key.events, at)
	v.parked.events++
	v.parked.dirty = true
	if changed {
		value, err := json.Marshal(key.parkedRecord)
		if err != nil {
			return err
		}
		if err := v.batch.Set(parkedRecordKey(v.prefix, name), value, nil); err != nil {
			return err
		}
	}
	return v.batch.Set(parkedEventKey(v.prefix, name, at), nil, nil)
}

// addReads adds the keys that an event changes and that the view is read by. All count when they cannot be told.
func (v *view) addReads(reads *Names, c *change) (changed bool) {
	if v.projection.touches == nil || reads.More {
		return false
	}
	names, known := []string(nil), false
	if !c.unknown {
		func() {
			defer func() { known = recover() == nil && known }() // What panicked once may do it again.
			names, known = v.projection.touches(v, c)
		}()
	}
	if !known {
		reads.More = true
		return true
	}
	for _, name := range names {
		changed = reads.add(name) || changed
	}
	return changed
}

// reopen forgets what the view holds in memory, and opens it as the store has it.
func (v *view) reopen(lanes uint32) error {
	_, at, err := storedProgress(v.db, v.projection, v.generation, v.lane, lanes)
	if err != nil {
		return err
	}
	v.progress, v.taking = at, nil
	if v.parked, err = loadParked(v.db, v.prefix); err != nil {
		return fmt.Errorf("open view %s: %w", v.projection.Name, err)
	}
	if v.applier, err = v.projection.open(v); err != nil {
		return fmt.Errorf("open view %s: %w", v.projection.Name, err)
	}
	return nil
}

// noted notes that an event panicked: it is parked when it is taken in again.
func (v *view) noted(p *panicked) {
	if v.poison == nil {
		v.poison = make(map[EventAt]*panicked)
	}
	v.poison[p.at] = p
}

// alarm says which keys were parked by a batch that is written now.
func (v *view) alarm(logger *slog.Logger) (keys int) {
	for _, name := range v.parked.isNew {
		key := v.parked.byKey[name]
		logger.Error("an event could not be taken in: its key is parked until it is replayed",
			"view", v.projection.Name, "lane", v.lane, "generation", v.generation, "key", name, "commit", key.First.Commit, "event", key.First.Event+1,
			"type", key.Type, "reason", key.Reason)
		if stack := v.stackOf(key.First); stack != nil {
			logger.Error("the panic over that event", "view", v.projection.Name, "key", name, "stack", string(stack))
		}
	}
	keys = len(v.parked.isNew)
	v.parked.isNew, v.parked.dirty, v.poison = v.parked.isNew[:0], false, nil
	return keys
}

func (v *view) stackOf(at EventAt) []byte {
	if p := v.poison[at]; p != nil {
		return p.stack
	}
	return nil
}

// rewind drops what was taken in since the last flush, after a panic. The event that panicked is parked when it is taken in
// again.
func (r *Runner) rewind(p *panicked) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch.Reset()
	r.pending, r.torn = 0, false
	r.changed.reset()
	r.observed.reset()
	r.position = *r.applied.Load()
	for _, v := range r.views {
		if err := v.reopen(r.topology.Lanes); err != nil {
			return err
		}
	}
	p.view.noted(p)
	return nil
}

// follow feeds the views from the log. After a panic over an event it begins again where the last batch ended: each time one
// more event is parked, and there is a limit to those.
func (r *Runner) follow(ctx context.Context) error {
	for {
		err := r.follower.Run(ctx, r.position.Position, intake{r})
		var p *panicked
		if !errors.As(err, &p) {
			return err
		}
		if err := r.rewind(p); err != nil {
			return err
		}
	}
}

// publishParked lets reads know what a batch parks, before they can see what it leaves out.
func (r *Runner) publishParked(v *view) {
	if v.generation == r.live(v.projection) {
		r.parked[v.projection.space].Store(v.parked.clone())
	}
}

// publishSwapped lets reads know what a generation parks that has just begun to answer. It returns the users who have passed
// orders that were parked before and are not any more. REQUIRES: between two batches.
func (r *Runner) publishSwapped(p *Projection) (healed []string, err error) {
	before := r.parked[p.space].Load()
	for _, v := range r.views {
		if v.projection != p || v.generation != r.live(p) {
			continue
		}
		r.publishParked(v)
		for name, key := range before.byKey {
			if _, still := v.parked.byKey[name]; !still {
				healed = append(healed, r.missedBy(v, key)...)
			}
		}
	}
	slices.Sort(healed)
	healed = slices.Compact(healed)
	if len(healed) == 0 {
		return nil, nil
	}
	batch := r.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	return healed, errors.Join(r.countHeals(batch, healed), batch.Commit(pebble.NoSync))
}

// loadParked lets reads know what is parked of the generation that answers.
func (r *Runner) loadParked(p *Projection) error {
	parked, err := loadParked(r.db, r.prefix(p))
	if err != nil {
		return fmt.Errorf("view %s: %w", p.Name, err)
	}
	r.parked[p.space].Store(parked)
	return nil
}

// parks reports whether what a key of the view is read for may lack parked events. A read asks after it has taken the
// view's freshness, and before it reads.
func (r *Runner) parks(p *Projection, key string) bool {
	return r.parked[p.space].Load().parks(key)
}

func (k *parkedKeys) parks(key string) bool {
	if len(k.byKey) == 0 {
		return false
	}
	if _, found := k.byKey[key]; found {
		return true
	}
	for _, parked := range k.byKey {
		if parked.Reads.has(key) {
			return true
		}
	}
	return false
}

func (k *parkedKeys) parksUser(user string) bool {
	for _, parked := range k.byKey {
		if parked.Users.has(user) {
			return true
		}
	}
	return false
}

// parksUser reports whether parked events of the views are about a user.
func (r *Runner) parksUser(user string, of ...*Projection) bool {
	return slices.ContainsFunc(of, func(p *Projection) bool { return r.parked[p.space].Load().parksUser(user) })
}

// parksAny reports whether anything of the views is parked.
func (r *Runner) parksAny(of ...*Projection) bool {
	return slices.ContainsFunc(of, func(p *Projection) bool { return len(r.parked[p.space].Load().byKey) > 0 })
}

// parksOrder reports whether parked events are about an order of the orders' view, and whether a user may be told so: an order
// that is not in the view is known to its own user alone (I7).
func (r *Runner) parksOrder(id domain.OrderID, userID string) (parked, mayTell bool) {
	key := r.parked[spaceOrders].Load().byKey[id.String()]
	if key == nil {
		return false, false
	}
	_, own := slices.BinarySearch(key.Users.List, userID)
	return true, userID == "" || own
}

// ErrParked says that there is no such key in the view because the events that make it are parked.
var ErrParked = errors.New("the key is parked")

// parked returns the freshness of an answer that may lack parked events.
func (f Freshness) parked(parked bool) Freshness {
	if parked {
		f.State = StateParked
	}
	return f
}

// Parked returns the keys that the views of the lane have parked, by view and key, of the generations that answer.
func (r *Runner) Parked() []ParkedKey {
	var all []ParkedKey
	for _, p := range Projections {
		all = append(all, r.parked[p.space].Load().list(p, r.live(p), r.lane)...)
	}
	return all
}

// A ParkingCount counts what a runner has parked since it was opened. Who watches over a node reads it: it stays 0.
type ParkingCount struct {
	// KeysParked counts the keys that became parked, KeysHealed those that were replayed.
	KeysParked, KeysHealed uint64
}

// ParkingCount returns what was parked so far.
func (r *Runner) ParkingCount() ParkingCount {
	return ParkingCount{KeysParked: r.keysParked.Load(), KeysHealed: r.keysHealed.Load()}
}

// healsKey is where it is counted how often parked events of a user's orders were taken in.
func healsKey(lane uint32, userID string) []byte {
	return prefixOf(spaceHeals, firstGeneration, lane).key([]byte(userID))
}

// healsOf returns how often parked events of a user's orders were taken in.
func healsOf(from pebble.Reader, lane uint32, userID string) (uint64, error) {
	value, err := read(from, healsKey(lane, userID))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read when orders of %s were healed: %w", userID, err)
	case len(value) != 8:
		return 0, errParkedDamaged
	}
	return binary.BigEndian.Uint64(value), nil
}

// countHeals notes that orders of users are no longer parked: who followed all orders of one has missed what was parked.
func (r *Runner) countHeals(batch *pebble.Batch, users []string) error {
	for _, user := range users {
		heals, err := healsOf(r.db, r.lane, user)
		if err != nil {
			return err
		}
		if err := batch.Set(healsKey(r.lane, user), binary.BigEndian.AppendUint64(nil, heals+1), nil); err != nil {
			return err
		}
	}
	return nil
}
