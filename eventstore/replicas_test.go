package eventstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/ops/freeports"
)

// A trio is three servers of one cluster that are stopped and started again, each on its directory and with its ports.
type trio struct {
	t       *testing.T
	options [3]embedded.Options
	servers [3]*embedded.Server // nil while stopped
}

// boundMax is more time than a test with a cluster takes on a machine that has much else to do.
const boundMax = 3 * time.Minute

// bound ends the process, and shows where it stands, if the test hangs.
func bound(t *testing.T) {
	t.Helper()
	name := t.Name()
	hangs := time.AfterFunc(boundMax, func() { panic(fmt.Sprintf("%s hangs: it did not end within %s", name, boundMax)) })
	t.Cleanup(func() { hangs.Stop() })
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	bound(t)
	c := &trio{t: t}
	routes := freeports.Addresses(t, 3)
	for i := range c.options {
		c.options[i] = embedded.Options{
			Dir: filepath.Join(t.TempDir(), "log"), ServerName: fmt.Sprintf("n%d", i+1),
			Cluster: &embedded.Cluster{Name: "trio", Listen: routes[i], Routes: routes, Secret: embedded.Secret("a secret that tests know, 32 by.")},
		}
		c.start(i)
	}
	t.Cleanup(func() { c.stop(0, 1, 2) })
	return c
}

func (c *trio) start(numbers ...int) {
	c.t.Helper()
	for _, i := range numbers {
		server, err := embedded.Start(c.options[i])
		if err != nil {
			c.t.Fatal(err)
		}
		c.servers[i] = server
	}
}

// stop ends servers at once, as far as a process can do that to a part of itself: all of them before any says so to another.
func (c *trio) stop(numbers ...int) {
	var stopping sync.WaitGroup
	for _, i := range numbers {
		if server := c.servers[i]; server != nil {
			stopping.Go(server.Shutdown)
			c.servers[i] = nil
		}
	}
	stopping.Wait()
}

// wipe empties a stopped server's disk.
func (c *trio) wipe(i int) {
	c.t.Helper()
	if err := os.RemoveAll(c.options[i].Dir); err != nil {
		c.t.Fatal(err)
	}
}

// connect returns a connection to one server that follows it over restarts.
func (c *trio) connect(i int) *nats.Conn {
	c.t.Helper()
	nc, err := c.servers[i].Connect()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// system returns a connection to the system account.
func (c *trio) system(i int) *nats.Conn {
	c.t.Helper()
	nc, err := c.servers[i].ConnectSystem()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// leader returns the number of the server that leads lane 0's stream.
func (c *trio) leader(nc *nats.Conn) int {
	c.t.Helper()
	number := -1
	eventually(c.t, "lane 0 has a leader", func() error {
		info, err := streamPeers(c.t.Context(), nc, StreamName(0))
		if err != nil {
			return err
		}
		number = slices.IndexFunc(c.options[:], func(o embedded.Options) bool { return o.ServerName == info.Cluster.Leader })
		if number < 0 {
			return fmt.Errorf("leader is %q", info.Cluster.Leader)
		}
		return nil
	})
	return number
}

func streamPeers(ctx context.Context, nc *nats.Conn, stream string) (info placedStream, err error) {
	if err = apiRequest(ctx, nc, 2*time.Second, "STREAM.INFO."+stream, nil, &info); err == nil && info.Cluster == nil {
		err = errors.New("the stream is not in a cluster")
	}
	return info, err
}

// provision makes a log of three replicas with one lane.
func (c *trio) provision(nc *nats.Conn, replicas int) {
	c.t.Helper()
	eventually(c.t, "the log is made", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
		defer cancel()
		_, err := Provision(ctx, nc, ProvisionOptions{Topology: Topology{Lanes: 1}, Replicas: replicas, Now: time.Now()})
		return err
	})
}

func (c *trio) openLog(nc *nats.Conn) Log {
	c.t.Helper()
	var s *JetStream
	eventually(c.t, "the log opens", func() (err error) {
		s, err = OpenJetStream(c.t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{AppendTimeout: time.Second, FollowHeartbeat: 200 * time.Millisecond})
		return err
	})
	c.t.Cleanup(s.Close)
	return s.Log(0)
}

// appendSurely appends until each record is known to be stored, as a writer does.
func appendSurely(t *testing.T, log Log, records []Record) {
	t.Helper()
	for _, record := range records {
		eventually(t, fmt.Sprintf("commit %d is acknowledged", record.Number), func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := log.Append(record).Wait(ctx)
			if errors.Is(err, ErrConflict) {
				if stored, readErr := log.Read(ctx, record.Number); readErr == nil && stored.Hash == record.Hash {
					return nil
				}
			}
			return err
		})
	}
}

// wantAll reads the whole log again, on a new connection.
func (c *trio) wantAll(nc *nats.Conn, records []Record) {
	c.t.Helper()
	log := c.openLog(nc)
	eventually(c.t, "the log shows its newest commit", func() error {
		_, err := log.Read(c.t.Context(), records[len(records)-1].Number)
		return err
	})
	var cursor Cursor
	eventually(c.t, "the log is followed", func() (err error) {
		cursor, err = log.Follow(c.t.Context(), 1)
		return err
	})
	defer cursor.Close()
	for _, record := range records {
		wantNext(c.t, cursor, record)
	}
}

func TestAReplicatedLogSurvivesTheStopOfAllServersAtOnce(t *testing.T) {
	c := newTrio(t)
	nc := c.connect(0)
	c.provision(nc, 3)
	records := chainOf(t, 0, Genesis(0, 1), 30, 2000)
	appendSurely(t, c.openLog(nc), records[:20])
	nc.Close()
	c.stop(0, 1, 2)
	c.start(2, 1, 0)
	nc = c.connect(1)
	c.provision(nc, 3)
	c.wantAll(nc, records[:20])
	appendSurely(t, c.openLog(nc), records[20:])
	c.wantAll(nc, records)
}

func TestALogGoesOnWhenAnyOneServerStops(t *testing.T) {
	c := newTrio(t)
	c.provision(c.connect(0), 3)
	records := chainOf(t, 0, Genesis(0, 1), 40, 1000)
	appendSurely(t, c.openLog(c.connect(0)), records[:10])
	for round := range 3 {
		number := c.leader(c.connect((round + 1) % 3))
		c.stop(number)
		log := c.openLog(c.connect((number + 1) % 3))
		appendSurely(t, log, records[10+10*round:20+10*round])
		c.start(number)
	}
	for number := range c.servers {
		c.wantAll(c.connect(number), records)
	}
}

// A server that comes back with an empty disk has forgotten what it acknowledged. If its vote counted, it and a server that is behind
// could make that one leader, and the commits that only the third one has were gone. It does not count (nats-server 2.15: a vote of
// an empty log counts only once every server of the group has voted), so the two wait for the third.
func TestAServerThatLostItsDiskElectsNobodyWhoLacksACommit(t *testing.T) {
	c := newTrio(t)
	nc := c.connect(0)
	c.provision(nc, 3)
	records := chainOf(t, 0, Genesis(0, 1), 20, 1000)
	leader := c.leader(nc)
	behind, empty := (leader+1)%3, (leader+2)%3
	nc = c.connect(leader)
	log := c.openLog(nc)
	appendSurely(t, log, records[:10])

	c.stop(behind)
	appendSurely(t, log, records[10:]) // By the leader and the one that will lose its disk.
	nc.Close()
	c.stop(leader, empty)
	c.wipe(empty)
	c.start(behind, empty)
	nc = c.connect(behind)
	// The streams' own elections need two of three, and find none for as long as the third one is away. Longer than an election takes:
	deadline := time.Now().Add(12 * time.Second)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		info, err := streamPeers(ctx, nc, StreamName(0))
		cancel()
		if err == nil && info.Cluster.Leader != "" && info.State.LastSeq < 20 {
			t.Fatalf("server %s leads with %d of 20 acknowledged commits (I1)", info.Cluster.Leader, info.State.LastSeq)
		}
	}
	c.start(leader)
	for number := range c.servers {
		c.wantAll(c.connect(number), records)
	}
	// The one that was empty gets all of it. That the stream's leader calls it current is not enough: it has heard of everything by then,
	// and stored some of it. Then it and the other one go on without the old leader.
	system := c.system(behind)
	eventually(t, "every server has every commit on its disk", func() error {
		servers, err := AskServers(t.Context(), system)
		if err != nil {
			return err
		}
		for _, server := range servers {
			if has := server.Streams[StreamName(0)]; has.LastSeq < 20 || has.Msgs < 20 {
				return fmt.Errorf("%s has %+v", server.Name, has)
			}
		}
		return nil
	})
	c.stop(leader)
	c.wantAll(c.connect(empty), records)
}
