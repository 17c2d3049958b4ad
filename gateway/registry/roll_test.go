package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A word is an entry of the bucket.
type word struct {
	jetstream.KeyValueEntry
	key       string
	value     []byte
	revision  uint64
	operation jetstream.KeyValueOp
}

func (w word) Key() string                     { return w.key }
func (w word) Value() []byte                   { return w.value }
func (w word) Revision() uint64                { return w.revision }
func (w word) Operation() jetstream.KeyValueOp { return w.operation }

// A fakeBucket is what a bucket would push to a roll, with a clock that the test moves.
type fakeBucket struct {
	roll     *roll
	now      time.Time
	revision uint64
	entries  map[string]word
	beats    map[string]uint64
	refused  error
}

const (
	testTTL    = 3 * time.Second
	testSettle = 15 * time.Second
)

func newFakeBucket() *fakeBucket {
	b := &fakeBucket{
		roll: newRoll(testSettle), now: time.Unix(1_800_000_000, 0), entries: map[string]word{}, beats: map[string]uint64{},
	}
	b.roll.ttl = testTTL
	return b
}

func memberOf(id string) *clusterv1.Member {
	return &clusterv1.Member{NodeId: id, Addresses: []string{"http://" + id + ".example:8080"}, StartTime: timestamppb.New(time.Unix(1_700_000_000, 0))}
}

func (b *fakeBucket) push(w word) {
	b.revision++
	w.revision = b.revision
	if w.operation == jetstream.KeyValuePut {
		b.entries[w.key] = w
	} else {
		delete(b.entries, w.key)
	}
	b.refused = b.roll.hear(b.now, w)
	b.roll.sweep(b.now)
}

func (b *fakeBucket) beat(ids ...string) {
	for _, id := range ids {
		b.beats[id]++
		member := memberOf(id)
		member.Heartbeat = b.beats[id]
		value, err := proto.Marshal(member)
		if err != nil {
			panic(err)
		}
		b.push(word{key: id, value: value})
	}
}

func (b *fakeBucket) leave(id string) { b.push(word{key: id, operation: jetstream.KeyValueDelete}) }

func (b *fakeBucket) expire(id string) { b.push(word{key: id, operation: jetstream.KeyValuePurge}) }

// list is a round's beginning: all that the bucket has.
func (b *fakeBucket) list() {
	present := map[string]bool{}
	for key, entry := range b.entries {
		present[key] = true
		b.refused = b.roll.hear(b.now, entry)
	}
	b.roll.listed(b.now, b.now, present)
	b.roll.sweep(b.now)
}

// show renders the list: "a b? c" has b as a suspect.
func (b *fakeBucket) show() string {
	var names []string
	for _, node := range b.roll.nodes() {
		name := node.Member.GetNodeId()
		if node.Suspect {
			name += "?"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func (b *fakeBucket) want(t *testing.T, when, want string) {
	t.Helper()
	if got := b.show(); got != want {
		t.Fatalf("%s: list = %q, want %q", when, got, want)
	}
}

// settled returns a bucket that has the nodes and has been calm for long.
func settled(ids ...string) *fakeBucket {
	b := newFakeBucket()
	b.beat(ids...)
	b.list()
	b.now = b.now.Add(testSettle)
	b.beat(ids...)
	b.list()
	return b
}

func TestANodeThatLeavesIsOffTheListAtOnce(t *testing.T) {
	b := settled("a", "b")
	b.leave("a")
	b.want(t, "after a left", "b")
	b.beat("a")
	b.want(t, "after a came back", "a b")
}

func TestTheLastNodeStaysAsASuspectUntilThereIsAnother(t *testing.T) {
	b := settled("a")
	b.leave("a")
	b.want(t, "after the last one left", "a?")
	b.now = b.now.Add(time.Hour)
	b.list()
	b.want(t, "an hour later", "a?")
	b.beat("b")
	b.want(t, "after another came", "b")
}

func TestASilentNodeIsAskedAfterAndGoesWhenTheBucketSaysSo(t *testing.T) {
	b := settled("a", "b", "c")
	b.now = b.now.Add(2 * time.Second)
	b.beat("a", "b")
	if overdue, wait := b.roll.next(b.now); overdue || wait > testTTL+overdueSlack-2*time.Second {
		t.Fatalf("next = %t, %s: c is not asked after in time", overdue, wait)
	}
	b.now = b.now.Add(2 * time.Second)
	b.beat("a", "b")
	b.want(t, "while only the clock says that c is gone", "a b c")
	if overdue, _ := b.roll.next(b.now); !overdue {
		t.Fatal("c is not asked after")
	}
	b.list() // The entry of c is there still, and no newer than it was.
	b.want(t, "after the bucket had nothing newer", "a b")
}

func TestAnOverdueNodeStaysWhenTheBucketHasNewerWordOfIt(t *testing.T) {
	b := settled("a", "b")
	b.now = b.now.Add(time.Minute) // This process was stopped, or its watch died without a word.
	for _, id := range []string{"a", "b"} {
		value, _ := proto.Marshal(memberOf(id))
		b.revision++
		b.entries[id] = word{key: id, value: value, revision: b.revision}
	}
	b.list()
	b.want(t, "after the missed heartbeats were read", "a b")
}

func TestTheListOutlivesABucketThatWasAwayForLong(t *testing.T) {
	b := settled("a", "b", "c")
	b.roll.away()
	for range int(time.Hour / time.Second) {
		b.now = b.now.Add(time.Second)
		b.roll.sweep(b.now)
		b.want(t, "while the bucket is away", "a b c")
	}
	b.entries = map[string]word{} // All expired while nobody could write.
	b.list()
	b.want(t, "after it came back empty", "a? b? c?")
	b.beat("b")
	b.want(t, "after b found the way back", "a? b c?")
	b.now = b.now.Add(2 * time.Second)
	b.beat("a", "b")
	b.want(t, "after a did", "a b c?")
	for range 8 {
		b.now = b.now.Add(2 * time.Second)
		b.beat("a", "b")
	}
	b.want(t, "after the time to settle", "a b")
}

func TestAnEmptyPushTakesNobodyOffTheList(t *testing.T) {
	for name, push := range map[string]func(*fakeBucket, string){
		"deleted": (*fakeBucket).leave, "purged": (*fakeBucket).expire,
	} {
		t.Run(name, func(t *testing.T) {
			b := settled("a")
			push(b, "a")
			b.want(t, "after the push", "a?")
			b.beat("a")
			b.want(t, "after the next heartbeat", "a")
		})
	}
	t.Run("stream purged", func(t *testing.T) {
		b := settled("a", "b", "c", "d")
		b.entries = map[string]word{}
		b.list()
		b.want(t, "after the list was empty", "a? b? c? d?")
		b.beat("c")
		b.want(t, "after one heartbeat", "a? b? c d?")
		b.beat("a", "b", "d")
		b.want(t, "after all heartbeats", "a b c d")
	})
}

func TestNodesThatFallSilentTogetherAreKeptForAWhile(t *testing.T) {
	b := settled("a", "b", "c")
	b.expire("a")
	b.want(t, "after one of three fell silent", "b c")
	b = settled("a", "b", "c")
	// Both at once: neither word comes alone.
	delete(b.entries, "a")
	delete(b.entries, "b")
	b.list()
	b.want(t, "after two of three fell silent", "a? b? c")
	b.now = b.now.Add(testSettle)
	b.beat("c")
	b.want(t, "after the time to settle", "c")
}

func TestABucketThatWasLostAndMadeAgainIsFollowed(t *testing.T) {
	b := settled("a", "b")
	b.revision, b.entries = 0, map[string]word{}
	b.list()
	b.beat("a", "b")
	b.want(t, "after it counted from 1 again", "a b")
	member := memberOf("a")
	member.Heartbeat = 1 // Older than what is known.
	value, _ := proto.Marshal(member)
	before := b.roll.members["a"].revision
	_ = b.roll.hear(b.now, word{key: "a", value: value, revision: before - 1})
	if got := b.roll.members["a"].member.GetHeartbeat(); got == 1 {
		t.Fatal("an older word replaced a newer one")
	}
}

func TestAnEntryThatCannotBeUsedChangesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*clusterv1.Member){
		"no address":      func(m *clusterv1.Member) { m.Addresses = nil },
		"a bad address":   func(m *clusterv1.Member) { m.Addresses = []string{"file:///etc/passwd"} },
		"with a password": func(m *clusterv1.Member) { m.Addresses = []string{"http://u:p@host:1"} },
		"another's id":    func(m *clusterv1.Member) { m.NodeId = "b" },
		"many addresses":  func(m *clusterv1.Member) { m.Addresses = slices.Repeat(m.Addresses, addressesMax+1) },
	} {
		t.Run(name, func(t *testing.T) {
			b := settled("a", "b")
			member := memberOf("a")
			spoil(member)
			value, _ := proto.Marshal(member)
			b.push(word{key: "a", value: value})
			if b.refused == nil {
				t.Error("the entry was used")
			}
			b.want(t, "after it", "a b")
		})
	}
	b := settled("a")
	b.push(word{key: "a", value: []byte{0xff, 0xff}})
	if b.refused == nil {
		t.Error("garbage was used")
	}
	b.want(t, "after garbage", "a")
}

func TestOnlyMoreThanFiguresIsANewShape(t *testing.T) {
	b := settled("a")
	b.roll.take()
	b.beat("a")
	if changed, reshaped := b.roll.take(); !changed || reshaped {
		t.Errorf("a heartbeat: changed = %t, reshaped = %t", changed, reshaped)
	}
	member := memberOf("a")
	member.Draining, member.Heartbeat = true, 99
	value, _ := proto.Marshal(member)
	b.push(word{key: "a", value: value})
	if changed, reshaped := b.roll.take(); !changed || !reshaped {
		t.Errorf("draining: changed = %t, reshaped = %t", changed, reshaped)
	}
	member.Lanes = []*clusterv1.OwnedLane{{Lane: 3, Epoch: 7, Commit: 1}}
	value, _ = proto.Marshal(member)
	b.push(word{key: "a", value: value})
	if _, reshaped := b.roll.take(); !reshaped {
		t.Error("a lane was taken and the shape is the old one")
	}
	member.Lanes[0].Commit = 2
	value, _ = proto.Marshal(member)
	b.push(word{key: "a", value: value})
	if _, reshaped := b.roll.take(); reshaped {
		t.Error("a commit made a new shape")
	}
}

// The list never becomes empty, and whoever the bucket heard within its time to live is on it.
func TestWhateverTheBucketDoesTheListStaysUsable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newFakeBucket()
		ids := []string{"a", "b", "c", "d"}
		heard := map[string]time.Time{} // and not gone since
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := rapid.SampledFrom(ids).Draw(t, "id")
			before := len(b.roll.members)
			what := rapid.SampledFrom([]string{"beat", "beat", "beat", "leave", "expire", "list", "away", "purge", "pass", "long"}).Draw(t, "what")
			switch what {
			case "beat":
				b.beat(id)
				heard[id] = b.now
			case "leave":
				b.leave(id)
				delete(heard, id)
			case "expire":
				b.expire(id)
				delete(heard, id)
			case "list":
				for key := range b.entries {
					if b.now.Sub(heard[key]) > testTTL {
						delete(b.entries, key)
					}
				}
				b.list()
			case "away":
				b.roll.away()
				b.roll.sweep(b.now)
			case "purge":
				b.entries, heard = map[string]word{}, map[string]time.Time{}
				b.list()
			case "pass":
				b.now = b.now.Add(time.Second)
				b.roll.sweep(b.now)
			case "long":
				b.now = b.now.Add(10 * time.Minute)
				b.roll.sweep(b.now)
			}
			if before > 0 && len(b.roll.members) == 0 {
				t.Fatalf("step %d (%s): the list became empty", step, what)
			}
			for id, at := range heard {
				if known := b.roll.members[id]; b.now.Sub(at) <= testTTL && (known == nil || !known.lost.IsZero()) {
					t.Fatalf("step %d (%s): %s was heard %s ago and the list is %q", step, what, id, b.now.Sub(at), b.show())
				}
			}
			if overdue, wait := b.roll.next(b.now); !overdue && wait <= 0 {
				t.Fatalf("step %d (%s): the loop would spin: wait %s", step, what, wait)
			}
		}
	})
}

func TestTheListIsBounded(t *testing.T) {
	b := newFakeBucket()
	for i := range nodesMax + 1 {
		b.beat(fmt.Sprintf("n%d", i))
	}
	if b.refused == nil || len(b.roll.members) != nodesMax {
		t.Fatalf("%d nodes, last error %v; want %d and a refusal", len(b.roll.members), b.refused, nodesMax)
	}
}
