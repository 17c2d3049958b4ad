package lanes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/ownership"
	"github.com/weirhq/weir/projections"
)

// A sharedLog is nodes that share the lanes of a log on a real server.
type sharedLog struct {
	t        *testing.T
	server   *embedded.Server
	topology eventstore.Topology
	ttl      time.Duration

	mu    sync.Mutex
	nodes []*sharingNode
}

// A sharingNode is one of them. What it cannot decide goes to another by a call, as it would by a message.
type sharingNode struct {
	*Set
	own   *ownership.Node
	log   *sharedLog
	id    string
	nc    *nats.Conn
	store *projections.Store

	stopOwning, stopLanes context.CancelFunc
	owning, deciding      chan error
	left                  sync.Once

	mu   sync.Mutex
	told map[uint32][]bool // by OnOwnership
}

func newSharedLog(t *testing.T, lanes uint32, ttl time.Duration) *sharedLog {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	s := &sharedLog{t: t, server: server, topology: eventstore.Topology{Lanes: lanes}, ttl: ttl}
	if _, err := eventstore.Provision(t.Context(), s.connect(), eventstore.ProvisionOptions{Topology: s.topology, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sharedLog) connect() *nats.Conn {
	s.t.Helper()
	nc, err := s.server.Connect()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

// others returns the nodes but one, in the order in which they joined.
func (s *sharedLog) others(but *sharingNode) []*sharingNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.nodes), func(n *sharingNode) bool { return n == but })
}

// Send implements Transport.
func (s *sharedLog) Send(message Message) {
	for _, n := range s.others(nil) {
		n.Deliver(message)
	}
}

// join starts a node.
func (s *sharedLog) join(id string) *sharingNode {
	s.t.Helper()
	n := &sharingNode{log: s, id: id, nc: s.connect(), owning: make(chan error, 1), deciding: make(chan error, 1), told: map[uint32][]bool{}}
	var err error
	if n.store, err = projections.OpenStore("state", projections.StoreOptions{FS: vfs.NewMem()}); err != nil {
		s.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	streams, err := eventstore.OpenJetStream(s.t.Context(), n.nc, s.topology, eventstore.JetStreamOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(streams.Close)
	n.Set, err = Open(Options{
		Topology: s.topology, Store: n.store, Log: streams.Log, Owner: id, Lane: eventstore.LaneOptions{Logger: quiet},
		Shared: true, Remote: courier{s}, Transport: s, OnOwnership: n.onOwnership, StandbyPace: 100 * time.Millisecond,
		StockWait: 10 * time.Second, // Units that are on their way while lanes move are waited for, however busy the machine is.
	})
	if err != nil {
		s.t.Fatal(err)
	}
	n.own, err = ownership.New(n.nc, ownership.Options{NodeID: id, Topology: s.topology, Lanes: n.Set, LeaseTTL: s.ttl, Logger: quiet})
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.nodes = append(s.nodes, n)
	s.mu.Unlock()
	var owning, deciding context.Context
	owning, n.stopOwning = context.WithCancel(context.Background())
	deciding, n.stopLanes = context.WithCancel(context.Background())
	go func() { n.owning <- n.own.Run(owning) }()
	go func() { n.deciding <- n.Run(deciding) }()
	s.t.Cleanup(n.leave)
	return n
}

// leave ends the node: it gives its lanes back. It may be called again.
func (n *sharingNode) leave() {
	n.left.Do(func() {
		n.stopOwning()
		if err := <-n.owning; err != nil {
			n.log.t.Errorf("node %s: %v", n.id, err)
		}
		n.stopLanes()
		if err := <-n.deciding; err != nil && !n.nc.IsClosed() {
			n.log.t.Errorf("lanes of node %s: %v", n.id, err)
		}
		if err := n.store.Close(); err != nil {
			n.log.t.Error(err)
		}
	})
}

func (n *sharingNode) onOwnership(lane uint32, owned bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told[lane] = append(n.told[lane], owned)
}

// A courier is the Remote of the nodes.
type courier struct{ log *sharedLog }

// Submit implements Remote: it asks one node after the other until one has the lane, for a bounded time.
func (c courier) Submit(ctx context.Context, lane uint32, request Request) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		for _, n := range c.log.others(nil) {
			reply, err := n.SubmitLocal(ctx, lane, request)
			if elsewhere := (*NotOwnerError)(nil); !errors.As(err, &elsewhere) {
				return reply, err
			}
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// serves returns the lanes that the node serves.
func (n *sharingNode) serves() (lanes []uint32) {
	for lane := range n.log.topology.Lanes {
		if n.Status(lane).Serving {
			lanes = append(lanes, lane)
		}
	}
	return lanes
}

// level reports whether the nodes serve all lanes, within one of each other.
func (s *sharedLog) level(nodes ...*sharingNode) bool {
	sum, least, most := 0, 1<<30, 0
	for _, n := range nodes {
		count := len(n.serves())
		sum, least, most = sum+count, min(least, count), max(most, count)
	}
	return sum == int(s.topology.Lanes) && most-least <= 1
}

func (s *sharedLog) eventually(what string, holds func() bool) {
	s.t.Helper()
	eventually(s.t, what, holds)
}

// stock puts a product on sale.
func (n *sharingNode) stock(sku string, units int64) {
	n.log.t.Helper()
	for i, command := range []domain.Command{
		domain.PutProduct{SKU: sku, Title: sku, Price: domain.Money{Minor: 100, Currency: "EUR"}},
		domain.ReceiveStock{SKU: sku, Units: units},
	} {
		if _, err := n.Submit(n.log.t.Context(), catalogRequest(sku, fmt.Sprint("stock-", sku, i), command)); err != nil {
			n.log.t.Fatal(err)
		}
	}
	// A node learns of products from their home lanes' logs.
	n.log.eventually("every node knows the product", func() bool {
		return !slices.ContainsFunc(n.log.others(nil), func(n *sharingNode) bool {
			_, known := n.catalog.Product(sku)
			return !known
		})
	})
}

// A crowd places orders at nodes of its choice, and sends some again at another.
type crowd struct {
	log  *sharedLog
	stop chan struct{}
	all  sync.WaitGroup

	mu     sync.Mutex
	acked  map[requestKey]*Reply
	errors []error
	slow   time.Duration // the longest that an order took
}

// gather starts the crowd. nodes returns those that it may go to now.
func (s *sharedLog) gather(seed uint64, clients int, nodes func() []*sharingNode) *crowd {
	c := &crowd{log: s, stop: make(chan struct{}), acked: map[requestKey]*Reply{}}
	for client := range clients {
		c.all.Go(func() {
			chance := rand.New(rand.NewPCG(seed, uint64(client)))
			for i := 0; !isClosed(c.stop); i++ {
				c.buy(chance, nodes(), place(fmt.Sprintf("user-%d-%d", client, i), fmt.Sprint("r", i), "tea", 1))
			}
		})
	}
	return c
}

func (c *crowd) buy(chance *rand.Rand, nodes []*sharingNode, request Request) {
	began := time.Now()
	first, err := nodes[chance.IntN(len(nodes))].Submit(context.Background(), request)
	took := time.Since(began)
	var again *Reply
	if err == nil && chance.IntN(4) == 0 {
		if again, err = nodes[chance.IntN(len(nodes))].Submit(context.Background(), request); err == nil && again.Order.ID != first.Order.ID {
			err = fmt.Errorf("order %s is answered as %s the second time (I4)", first.Order.ID, again.Order.ID)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = max(c.slow, took)
	if err != nil {
		c.errors = append(c.errors, fmt.Errorf("%s: %w", request.UserID, err))
		return
	}
	c.acked[requestKey{request.UserID, request.RequestID}] = first
}

func (c *crowd) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

// disperse ends the crowd, and checks against the log what it was told.
func (c *crowd) disperse() {
	c.log.t.Helper()
	close(c.stop)
	c.all.Wait()
	c.log.check(c.acked)
}

// check reads the logs: contiguous and chained (I2), stock conserved (I3), one effect a request (I4), and what was acknowledged at its
// position (I1).
func (s *sharedLog) check(acked map[requestKey]*Reply) {
	s.t.Helper()
	streams, err := eventstore.OpenJetStream(s.t.Context(), s.connect(), s.topology, eventstore.JetStreamOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer streams.Close()
	effects := map[requestKey]domain.OrderID{}
	accounts := map[uint32]domain.Account{}
	for lane := range s.topology.Lanes {
		at := eventstore.Genesis(lane, s.topology.Lanes)
		for epoch := uint64(0); ; {
			record, err := streams.Log(lane).Read(s.t.Context(), at.Number+1)
			if errors.Is(err, eventstore.ErrNoCommit) {
				break
			}
			if err != nil {
				s.t.Fatal(err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err == nil {
				err = at.Check(commit, lane)
			}
			if err != nil {
				s.t.Fatalf("lane %d, commit %d: %v (I2)", lane, record.Number, err)
			}
			if commit.Epoch < epoch {
				s.t.Fatalf("lane %d, commit %d is of epoch %d, after %d was opened", lane, record.Number, commit.Epoch, epoch)
			}
			epoch, at = commit.Epoch, eventstore.Position{Number: record.Number, Hash: record.Hash}
			for _, e := range commit.Events {
				if e.Type == eventstore.TypeLaneOpened {
					continue
				}
				event, err := stored.Decode(e.Type, e.Version, e.AggregateID, e.UserID, e.Payload)
				if err != nil {
					s.t.Fatal(err)
				}
				for sku := range domain.SKUs(event) {
					accounts[lane] = accounts[lane].Evolve(event, sku)
				}
				placed, isOrder := event.(domain.OrderPlaced)
				if !isOrder {
					continue
				}
				key := requestKey{e.UserID, e.RequestID}
				if _, twice := effects[key]; twice {
					s.t.Fatalf("lane %d, commit %d: request %v has a second effect (I4)", lane, record.Number, key)
				}
				effects[key] = placed.OrderID
			}
		}
	}
	if err := domain.Conserved(accounts); err != nil {
		s.t.Fatal(err)
	}
	for key, reply := range acked {
		if effects[key] != reply.Order.ID {
			s.t.Fatalf("request %v was answered with order %s, the log has %s (I1)", key, reply.Order.ID, effects[key])
		}
	}
}

func TestNodesThatComeAndGoShareTheLanes(t *testing.T) {
	s := newSharedLog(t, 8, time.Second)
	one := s.join("one")
	s.eventually("one serves all", func() bool { return s.level(one) })
	one.stock("tea", 1000)
	two := s.join("two")
	s.eventually("two nodes share", func() bool { return s.level(one, two) })
	three := s.join("three")
	s.eventually("three nodes share", func() bool { return s.level(one, two, three) })
	acked := map[requestKey]*Reply{}
	for i, n := range []*sharingNode{one, two, three} {
		for lane := range s.topology.Lanes {
			user := userIn(s.topology, lane, fmt.Sprint("ann", i))
			reply, err := n.Submit(t.Context(), place(user, "r", "tea", 1))
			if err != nil || reply.Lane != lane {
				t.Fatalf("%s, lane %d: %+v, %v", n.id, lane, reply, err)
			}
			acked[requestKey{user, "r"}] = reply
		}
	}
	two.leave()
	s.eventually("the others share", func() bool { return s.level(one, three) })
	for key, want := range acked {
		if got, err := three.Submit(t.Context(), place(key.userID, key.requestID, "tea", 1)); err != nil || got.Order.ID != want.Order.ID {
			t.Fatalf("%v again: %+v, %v, want order %s", key, got, err, want.Order.ID)
		}
	}
	s.check(acked)
}

// userIn returns a user of a lane.
func userIn(topology eventstore.Topology, lane uint32, name string) string {
	for i := 0; ; i++ {
		if user := fmt.Sprintf("%s-%d", name, i); topology.LaneOf(eventstore.PartitionOf(user)) == lane {
			return user
		}
	}
}

func TestMovingLanesUnderLoadLosesNoOrderAndRefusesNone(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newSharedLog(t, 4, 3*time.Second)
	one := s.join("one")
	s.eventually("one serves all", func() bool { return s.level(one) })
	one.stock("tea", 1_000_000)
	two := s.join("two")
	s.eventually("two nodes share", func() bool { return s.level(one, two) })
	c := s.gather(seed, 16, func() []*sharingNode { return []*sharingNode{one, two} })
	chance := rand.New(rand.NewPCG(seed, 99))
	for move := range 20 {
		lane, to := uint32(chance.IntN(4)), []*sharingNode{one, two}[chance.IntN(2)]
		if err := one.own.Move(t.Context(), lane, to.id); err != nil {
			t.Fatal(err)
		}
		before := c.count()
		s.eventually(fmt.Sprintf("move %d: lane %d is served by %s, and orders go on", move, lane, to.id), func() bool {
			return to.Status(lane).Serving && c.count() > before+50
		})
	}
	c.disperse()
	if len(c.errors) > 0 {
		t.Fatalf("seed %d: %d of %d orders failed, the first: %v", seed, len(c.errors), len(c.acked), c.errors[0])
	}
	t.Logf("%d orders, the slowest took %s", len(c.acked), c.slow)
	for lane, told := range two.told {
		for i := range told {
			if told[i] != (i%2 == 0) {
				t.Errorf("of lane %d the hook was told %v, want it to alternate", lane, told)
			}
		}
	}
}

func TestANodeThatDrainsUnderLoadRefusesNoOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newSharedLog(t, 4, 3*time.Second)
	one := s.join("one")
	s.eventually("one serves all", func() bool { return s.level(one) })
	one.stock("tea", 1_000_000)
	two := s.join("two")
	s.eventually("two nodes share", func() bool { return s.level(one, two) })
	c := s.gather(seed, 16, func() []*sharingNode { return []*sharingNode{one, two} })
	if err := one.own.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := one.serves(); len(left) > 0 {
		t.Errorf("a drained node serves %v", left)
	}
	before := c.count()
	s.eventually("orders go on", func() bool { return c.count() > before+100 })
	c.disperse()
	if len(c.errors) > 0 {
		t.Fatalf("seed %d: %d of %d orders failed, the first: %v", seed, len(c.errors), len(c.acked), c.errors[0])
	}
}

func TestLanesOfANodeThatIsCutOffGoOnElsewhere(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newSharedLog(t, 4, time.Second)
	one := s.join("one")
	s.eventually("one serves all", func() bool { return s.level(one) })
	one.stock("tea", 1_000_000)
	two := s.join("two")
	s.eventually("two nodes share", func() bool { return s.level(one, two) })
	lost := one.serves()
	c := s.gather(seed, 8, func() []*sharingNode { return []*sharingNode{one, two} })
	s.eventually("orders flow", func() bool { return c.count() > 50 })
	one.nc.Close()
	s.eventually("the other serves all", func() bool { return len(two.serves()) == 4 })
	for _, lane := range lost {
		if one.Status(lane).Serving {
			t.Errorf("lane %d is served by the node that is cut off", lane)
		}
		if _, err := two.Submit(t.Context(), place(userIn(s.topology, lane, "late"), "r", "tea", 1)); err != nil {
			t.Errorf("lane %d: %v", lane, err)
		}
	}
	c.disperse() // What failed is unknown; what was acknowledged is there.
}

func TestANodeThatDoesNotStopIsFenced(t *testing.T) {
	s := newSharedLog(t, 1, time.Minute)
	one := s.join("one")
	s.eventually("one serves all", func() bool { return s.level(one) })
	one.stock("tea", 100)
	two := s.join("two")
	s.eventually("two stands by, and knows whose the lane is", func() bool {
		lag, known := lagOf(two, 0)
		two.seats[0].mu.Lock()
		defer two.seats[0].mu.Unlock()
		return known && lag == 0 && two.seats[0].owner == "one"
	})
	two.Start(0, func() bool { return true }) // Whatever the leases say.
	s.eventually("two has fenced one", func() bool { return two.Status(0).Serving })
	acked := map[requestKey]*Reply{}
	for i := range 50 {
		request := place("ann", fmt.Sprint("r", i), "tea", 1)
		for _, n := range []*sharingNode{one, two} {
			reply, err := n.SubmitLocal(t.Context(), 0, request)
			if err == nil {
				acked[requestKey{"ann", request.RequestID}] = reply
			}
		}
	}
	if len(acked) == 0 {
		t.Fatal("nobody has answered anything")
	}
	s.check(acked)
}

func lagOf(n *sharingNode, lane uint32) (uint64, bool) {
	status := n.Status(lane)
	return status.Lag()
}

func TestAnAnswerIsNotGivenOnceTheLeaseIsOver(t *testing.T) {
	s := newSharedLog(t, 1, time.Minute)
	n := s.join("one")
	s.eventually("it serves", func() bool { return s.level(n) })
	n.stock("tea", 10)
	seat := n.seats[0]
	held := true
	looks := 0
	seat.mu.Lock()
	seat.term.held = func() bool {
		looks++
		return held || looks < 2 // It ends while the lane decides.
	}
	held = false
	seat.mu.Unlock()
	var unavailable *eventstore.UnavailableError
	if _, err := n.SubmitLocal(t.Context(), 0, place("ann", "r1", "tea", 1)); !errors.As(err, &unavailable) {
		t.Errorf("an answer after the lease ended: %v, want *UnavailableError (O2)", err)
	}
	if _, err := n.SubmitLocal(t.Context(), 0, place("ann", "r2", "tea", 1)); !errors.As(err, &unavailable) {
		t.Errorf("a request after the lease ended: %v, want *UnavailableError (O2)", err)
	}
}

// followed opens a machine of a lane in a store, and applies the lane's log to it, up to a commit.
func (n *node) followed(t *testing.T, store *projections.Store, lane uint32, last uint64) *Machine {
	t.Helper()
	machine, err := OpenMachine(MachineOptions{Lane: lane, Topology: n.options.Topology, Store: store, Catalog: NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); number <= last; number++ {
		record, err := n.logs[lane].Read(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := machine.Apply(commit, eventstore.Position{Number: record.Number, Hash: record.Hash}); err != nil {
			t.Fatal(err)
		}
	}
	machine.reckoned = 0 // The accounts are written however few commits there were.
	machine.options.ReckonEvery = 1
	if err := machine.Flush(); err != nil {
		t.Fatal(err)
	}
	return machine
}

// ends returns the number of the newest commit of each lane.
func (n *node) ends() (numbers []uint64) {
	for _, log := range n.logs {
		numbers = append(numbers, log.(*eventstore.MemoryLog).Position().Number)
	}
	return numbers
}

func TestWhatHasArrivedIsOnNoListOfANodeThatStandsBy(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 400)
	home := homeLane(n.options.Topology, "tea")
	for lane := range uint32(4) {
		n.must(t, place(n.userIn(lane, "ann"), "r", "tea", 5))
	}
	// One that wants more than is central calls units back.
	n.must(t, place(n.userIn((home+1)%4, "eve"), "r", "tea", 300))
	homeOf := func(sku string) uint32 { return homeLane(n.options.Topology, sku) }
	listed := func(store *projections.Store) (count int) {
		for lane := range uint32(4) {
			machine := &Machine{db: store.DB(), keys: newKeys(lane)}
			for _, table := range []byte{tableGrants, tableReturns} {
				if err := machine.scan(machine.keys.table(table), func(_, _ []byte) error { count++; return nil }); err != nil {
					t.Fatal(err)
				}
			}
		}
		return count
	}
	// Units go on moving, between times at which all have arrived: what is followed ends at such a time.
	var ends []uint64
	eventually(t, "everything has arrived", func() bool {
		ends = n.ends()
		for lane, end := range ends {
			if n.Status(uint32(lane)).Commit != end {
				return false
			}
		}
		return listed(n.store) == 0 && slices.Equal(n.ends(), ends)
	})
	for _, order := range [][]uint32{{home, (home + 1) % 4, (home + 2) % 4, (home + 3) % 4}, {(home + 1) % 4, (home + 2) % 4, (home + 3) % 4, home}} {
		store, err := projections.OpenStore("standby", projections.StoreOptions{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		for _, lane := range order {
			n.followed(t, store, lane, ends[lane])
		}
		grants, returns := 0, 0
		machine := &Machine{db: store.DB()}
		for lane := range uint32(4) {
			machine.keys = newKeys(lane)
			_ = machine.scan(machine.keys.table(tableGrants), func(_, _ []byte) error { grants++; return nil })
			_ = machine.scan(machine.keys.table(tableReturns), func(_, _ []byte) error { returns++; return nil })
		}
		if order[0] == home && grants != 0 {
			t.Errorf("followed in the order in which units were granted: %d grants are listed, want none", grants)
		}
		if order[0] != home && (grants == 0 || returns != 0) {
			t.Errorf("followed in the order in which units came back: %d grants and %d returns are listed, want some and none", grants, returns)
		}
		for lane := range uint32(4) {
			if err := (&outbox{db: store.DB(), keys: newKeys(lane)}).settle(lane, homeOf); err != nil {
				t.Fatal(err)
			}
		}
		if got := listed(store); got != 0 {
			t.Errorf("lanes followed in order %v: %d transfers are listed though all have arrived", order, got)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALaneThatIsFollowedHasAShortIndexOfDeadlines(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 100)
	for i := range 10 {
		order := n.must(t, place(fmt.Sprint("user-", i), "r", "tea", 1)).Order
		if i%2 == 0 {
			n.must(t, cancelOrder(order, "c"))
		}
	}
	store, err := projections.OpenStore("standby", projections.StoreOptions{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	machine := n.followed(t, store, 0, n.ends()[0])
	listed := func() (orders int) {
		if err := machine.scan(machine.keys.table(tableDeadlines), func(_, value []byte) error {
			orders += len(value) / len(domain.OrderID{})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return orders
	}
	open := 0
	for i := range 10 {
		entry, err := machine.ledgerEntry(requestKey{fmt.Sprint("user-", i), "r"})
		if err != nil || entry == nil {
			t.Fatal(entry, err)
		}
		reply, err := machine.recall(entry)
		if err != nil {
			t.Fatal(err)
		}
		if order, _ := machine.Order(reply.Order.ID); !order.ExpiresAt(PaymentGraceDefault).IsZero() {
			open++
		}
	}
	before := listed()
	machine.logTime = n.clock().Add(PayWithinDefault + time.Hour) // As if a commit had come by then.
	machine.nextDue = time.Time{}
	if err := machine.Tend(); err != nil {
		t.Fatal(err)
	}
	if got := listed(); before != 10 || open != 5 || got != open {
		t.Errorf("of %d orders %d are in the index, want the %d that may expire", before, got, open)
	}
	if len(machine.pending) > 0 {
		t.Errorf("it decided %v", machine.pending)
	}
}
