package registry

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A roll decides who is on the list from what it is told, with the times at which it is told. It is one goroutine's.
type roll struct {
	settle  time.Duration
	ttl     time.Duration // what the bucket says
	members map[string]*standing
	// settled is when the bucket's silence about a node counts again; zero until the first listing after the bucket was out of reach.
	settled time.Time
	// changed and reshaped say what take has not taken yet.
	changed, reshaped bool
}

// A standing is what is known of one node.
type standing struct {
	member   *clusterv1.Member
	revision uint64 // of the entry that it comes from
	heard    time.Time
	// lost is since when the node is suspect; zero while it is not. left says that it went by its own word.
	lost time.Time
	left bool
}

// Limits of what a bucket is believed to hold.
const (
	// nodesMax bounds the nodes; more are not used.
	nodesMax = 1024
	// memberBytesMax bounds one entry: 1,024 lanes need 30 KB.
	memberBytesMax = 256 << 10
	// addressesMax bounds the addresses of a node.
	addressesMax = 16
	// overdueSlack is how much later than its time to live a node is asked after.
	overdueSlack = 250 * time.Millisecond
	// idleMax is how long the roll waits when nothing is due.
	idleMax = time.Minute
)

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func newRoll(settle time.Duration) *roll {
	return &roll{settle: settle, ttl: TTLDefault, members: map[string]*standing{}}
}

// remember takes in a node that is known from the disk.
func (l *roll) remember(member *clusterv1.Member) {
	l.members[member.GetNodeId()] = &standing{member: member, lost: time.Unix(0, 0)}
	l.changed, l.reshaped = true, true
}

// hear takes in one entry of the bucket. An error says why it is not used; what was known of the node stays.
func (l *roll) hear(now time.Time, entry jetstream.KeyValueEntry) error {
	known := l.members[entry.Key()]
	if known != nil && entry.Revision() == known.revision {
		return nil // Read again. It is no sign of life.
	}
	// A bucket that was lost and made again counts from 1: then what the node says tells which word is the newer one.
	again := known != nil && entry.Revision() < known.revision
	if again && entry.Operation() != jetstream.KeyValuePut {
		return nil
	}
	switch entry.Operation() {
	case jetstream.KeyValueDelete:
		l.gone(now, known, true)
		return nil
	case jetstream.KeyValuePurge: // What the bucket's time to live removes looks like this, and a purge by somebody else.
		l.gone(now, known, false)
		return nil
	case jetstream.KeyValuePut:
	}
	if known == nil && len(l.members) >= nodesMax {
		return fmt.Errorf("there are %d nodes already", nodesMax)
	}
	member, err := decodeMember(entry.Key(), entry.Value())
	if err != nil {
		return err
	}
	if again && !newer(member, known.member) {
		return nil
	}
	l.changed = true
	l.reshaped = l.reshaped || known == nil || !known.lost.IsZero() || !sameShape(known.member, member)
	l.members[entry.Key()] = &standing{member: member, revision: entry.Revision(), heard: now}
	return nil
}

// decodeMember reads what a node said of itself.
func decodeMember(key string, value []byte) (*clusterv1.Member, error) {
	if len(value) > memberBytesMax {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(value), memberBytesMax)
	}
	member := &clusterv1.Member{}
	if err := proto.Unmarshal(value, member); err != nil {
		return nil, fmt.Errorf("read the member: %w", err)
	}
	return member, validateMember(key, member)
}

func validateMember(key string, member *clusterv1.Member) error {
	switch {
	case !idPattern.MatchString(member.GetNodeId()):
		return fmt.Errorf("node id %q: want 1 to 64 of A-Z a-z 0-9 _ -", member.GetNodeId())
	case member.GetNodeId() != key:
		return fmt.Errorf("it says that it is %q", member.GetNodeId())
	case len(member.GetAddresses()) == 0:
		return errors.New("it has no address")
	case len(member.GetAddresses()) > addressesMax:
		return fmt.Errorf("%d addresses, want at most %d", len(member.GetAddresses()), addressesMax)
	}
	for _, address := range member.GetAddresses() {
		if err := validateAddress(address); err != nil {
			return fmt.Errorf("address %w", err)
		}
	}
	return nil
}

// newer reports whether a was said after b, by the same node.
func newer(a, b *clusterv1.Member) bool {
	if order := a.GetStartTime().AsTime().Compare(b.GetStartTime().AsTime()); order != 0 {
		return order > 0
	}
	return a.GetHeartbeat() > b.GetHeartbeat()
}

// sameShape reports whether two words of one node differ in figures at most.
func sameShape(a, b *clusterv1.Member) bool {
	return a.GetDraining() == b.GetDraining() && a.GetProtocol() == b.GetProtocol() && a.GetVersion() == b.GetVersion() && a.GetName() == b.GetName() &&
		a.GetStartTime().AsTime().Equal(b.GetStartTime().AsTime()) && slices.Equal(a.GetAddresses(), b.GetAddresses()) &&
		slices.EqualFunc(a.GetLanes(), b.GetLanes(), func(a, b *clusterv1.OwnedLane) bool {
			return a.GetLane() == b.GetLane() && a.GetEpoch() == b.GetEpoch()
		})
}

// gone takes in that the bucket has no word of a node any more, because the node took it back (left) or for another reason.
func (l *roll) gone(now time.Time, known *standing, left bool) {
	if known == nil {
		return
	}
	if known.lost.IsZero() {
		known.lost = now
		l.changed, l.reshaped = true, true
	}
	known.left = known.left || left
}

// away takes in that the bucket is out of reach.
func (l *roll) away() { l.settled = time.Time{} }

// listed takes in that the bucket, when it was read from began on, had entries of those present and of nobody else.
func (l *roll) listed(now, began time.Time, present map[string]bool) {
	if l.settled.IsZero() {
		l.settled = now.Add(l.settle)
	}
	for key, known := range l.members {
		switch {
		case !present[key]:
			l.gone(now, known, false)
		case known.lost.IsZero() && l.overdue(began, known):
			l.gone(now, known, false) // Its entry is there still, and as old as it was.
		}
	}
}

// overdue reports whether a node was silent for longer than it may be.
func (l *roll) overdue(now time.Time, known *standing) bool {
	return now.Sub(known.heard) > l.ttl+overdueSlack
}

// sweep takes off the list who is gone for good. Who left is; who fell silent is, once the bucket is settled and unless most are silent,
// for then the bucket is more likely wrong than they are: they get the time to settle from when they fell silent. Nobody
// is, while there is nobody else to send calls to, and a bucket that has nobody has to settle again.
func (l *roll) sweep(now time.Time) {
	if l.settled.IsZero() {
		return
	}
	live := 0
	for _, known := range l.members {
		if known.lost.IsZero() {
			live++
		}
	}
	if live == 0 {
		l.settled = now.Add(l.settle)
		return
	}
	total := len(l.members)
	for key, known := range l.members {
		if known.lost.IsZero() || !known.left && now.Before(l.held(known, live, total)) {
			continue
		}
		delete(l.members, key)
		l.changed, l.reshaped = true, true
	}
}

// held returns until when a node that fell silent stays on the list.
func (l *roll) held(known *standing, live, total int) time.Time {
	until := l.settled
	if alone := known.lost.Add(l.settle); 2*live < total && alone.After(until) {
		until = alone
	}
	return until
}

// next says whether the bucket is to be read because somebody is overdue, and otherwise how long nothing is due.
func (l *roll) next(now time.Time) (overdue bool, wait time.Duration) {
	wait = idleMax
	soonest := func(at time.Time) {
		if until := at.Sub(now); until > 0 {
			wait = min(wait, until)
		}
	}
	for _, known := range l.members {
		switch {
		case !known.lost.IsZero():
			// When it may go, if at all: a look too many costs nothing.
			soonest(l.settled)
			soonest(known.lost.Add(l.settle))
		case l.overdue(now, known):
			return true, 0
		default:
			soonest(known.heard.Add(l.ttl + overdueSlack))
		}
	}
	return false, max(wait, time.Millisecond)
}

// take returns whether the list changed since it was taken last, and whether more than figures did.
func (l *roll) take() (changed, reshaped bool) {
	changed, reshaped = l.changed, l.reshaped
	l.changed, l.reshaped = false, false
	return changed, reshaped
}

// nodes returns the list, by id.
func (l *roll) nodes() []Node {
	nodes := make([]Node, 0, len(l.members))
	for _, key := range slices.Sorted(maps.Keys(l.members)) {
		known := l.members[key]
		nodes = append(nodes, Node{Member: known.member, Suspect: !known.lost.IsZero()})
	}
	return nodes
}
