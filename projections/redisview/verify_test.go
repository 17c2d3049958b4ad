package redisview

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// plant writes a value at a subject's key as a node would, as of a lane's newest commit.
func (n *node) plant(s subject, value []byte) (key string) {
	n.w.tb.Helper()
	key = n.mirror.key(s, 0)
	at := n.w.last[s.lane]
	entry := appendEntry(nil, key, at.Number, shortHash(at.Hash), stateValue, value)
	if err := n.mirror.client.Set(n.w.tb.Context(), key, entry, time.Hour).Err(); err != nil {
		n.w.tb.Fatal(err)
	}
	return key
}

func TestVerifyFindsWhatAReadWouldBeAnsweredWrongly(t *testing.T) {
	for _, lanes := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%d lanes", lanes), func(t *testing.T) {
			w := newWorld(t, lanes)
			s := startServer(t)
			n := startNode(w, s.addr, nil)
			w.steps(120)
			n.warm()
			verify := func(options VerifyOptions) VerifyReport {
				t.Helper()
				report, err := n.mirror.Verify(t.Context(), options)
				if err != nil {
					t.Fatalf("seed %d: %v", w.seed, err)
				}
				return report
			}
			whole := verify(VerifyOptions{})
			if least := uint64(len(w.orders) + len(w.users) + 2*len(w.skus)*int(lanes)); whole.DifferencesTotal != 0 || whole.Compared < least {
				t.Fatalf("seed %d: got %+v, want no difference in %d entries at least", w.seed, whole, least)
			}

			id, user, pool := w.orders[len(w.orders)-1], w.users[0], domain.CampaignPool(w.skus[0], campaignID)
			other := w.orders[0]
			lane, home := n.mirror.laneOf(id), w.laneOf(w.skus[0])
			snapshot := n.store.Snapshot(lanes)
			defer snapshot.Close()
			record, err := snapshot.OrderRecord(n.mirror.laneOf(other), other)
			if err != nil {
				t.Fatal(err)
			}
			account, err := snapshot.StockAccount(home, w.skus[0])
			if err != nil {
				t.Fatal(err)
			}
			account = bytes.Clone(account)
			account[0] += 2               // One unit more received, as a varint has it.
			planted := map[string]string{ // By key, what is said of it.
				n.plant(orderSubject(lane, id), record[:len(record)-1]):                       "that cannot be read",
				n.plant(subject{kind: kindRecent, lane: w.laneOf(user), text: user}, nil):     "redis has no orders",
				n.plant(subject{kind: kindStock, lane: home, text: w.skus[0]}, account):       "redis has received",
				n.plant(subject{kind: kindBoard, lane: home}, nil):                            "redis has 0 campaigns",
				n.plant(subject{kind: kindTally, lane: w.laneOf(user), text: pool}, []byte{}): "redis has 0 orders of 0 units",
			}
			for key, value := range map[string]string{
				n.mirror.prefix + "order:{nobody}":                           "x",
				n.mirror.prefix + "elsewhere":                                "x",
				n.mirror.prefix + "stock:{" + pool + "#9}":                   "x",
				n.mirror.key(orderSubject(n.mirror.laneOf(other), other), 0): "what somebody else wrote there",
			} {
				s.do("SET", key, value)
				planted[key] = "a node of ours writes"
				if strings.HasPrefix(value, "x") {
					planted[key] = "no node of this version"
				}
			}
			s.do("SET", "weir:2.1.1.1.1:order:{nobody}", "another version's")
			s.do("SET", "other:1.1.1.1.1:order:{nobody}", "another shop's")
			found := verify(VerifyOptions{})
			// A tally or list that is empty in the view as well is no difference.
			tally, err := snapshot.Tally(w.laneOf(user), pool)
			if err != nil {
				t.Fatal(err)
			}
			if len(tally) == 0 {
				delete(planted, n.mirror.key(subject{kind: kindTally, lane: w.laneOf(user), text: pool}, 0))
			}
			if found.DifferencesTotal != uint64(len(planted)) {
				t.Errorf("seed %d: found %d differences, want %d", w.seed, found.DifferencesTotal, len(planted))
			}
			for _, d := range found.Differences {
				if said, wanted := planted[d.Key]; !wanted || !strings.Contains(d.Problem, said) {
					t.Errorf("seed %d: %s: want %q said of it", w.seed, d, said)
				}
				delete(planted, d.Key)
			}
			for key := range planted {
				t.Errorf("seed %d: %s is wrong, and nothing is said of it", w.seed, key)
			}
			// A sample leaves other partitions' orders out, and only those.
			some := verify(VerifyOptions{Sample: func(partition uint32) bool { return partition == eventstore.PartitionOf(user) }})
			if some.Compared == 0 || some.Compared >= found.Compared {
				t.Errorf("seed %d: of one partition %d entries were compared, of all %d", w.seed, some.Compared, found.Compared)
			}
		})
	}
}

// What the guard would not let a read have is no difference, however wrong it is.
func TestVerifySaysNothingOfWhatNoReadIsAnsweredWith(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	id := w.place(w.users[0])
	n.warm()
	before, err := n.mirror.Verify(t.Context(), VerifyOptions{})
	if err != nil || before.Unserved != 0 {
		t.Fatalf("seed %d: got %+v, %v, want all of it served", w.seed, before, err)
	}
	w.note(id)
	n.reach() // And not published.
	after, err := n.mirror.Verify(t.Context(), VerifyOptions{})
	if err != nil || after.DifferencesTotal != 0 || after.Unserved == 0 || after.Compared+after.Unserved != before.Compared {
		t.Errorf("seed %d: got %+v, %v, want the order and no difference among what is not served, of %d", w.seed, after, err, before.Compared)
	}
	late := startNode(w, n.mirror.options.Addresses[0], nil)
	late.reach()
	foreign, err := late.mirror.Verify(t.Context(), VerifyOptions{})
	if err != nil || foreign.DifferencesTotal != 0 {
		t.Errorf("seed %d: a new node: got %+v, %v", w.seed, foreign, err)
	}
}

// Many differences are counted, and the first are told.
func TestVerifyTellsSomeAndCountsAll(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t)
	n := startNode(w, s.addr, nil)
	n.reach()
	const many = 3*verifyBatchMax + 7
	for i := range many {
		s.do("SET", fmt.Sprintf("%snonsense:%d", n.mirror.prefix, i), "x")
	}
	report, err := n.mirror.Verify(t.Context(), VerifyOptions{})
	if err != nil || report.DifferencesTotal < many || len(report.Differences) != DifferencesMax {
		t.Errorf("counted %d and told %d (%v), want %d and %d", report.DifferencesTotal, len(report.Differences), err, many, DifferencesMax)
	}
	s.kill()
	if _, err := n.mirror.Verify(t.Context(), VerifyOptions{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("without a redis: %v, want %v", err, ErrUnreachable)
	}
}
