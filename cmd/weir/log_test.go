package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	logv1 "github.com/weirhq/weir/proto/stored/weir/log/v1"
)

// A testNode is a running node as the commands that look inside see it: logs in memory behind the inspection endpoint.
type testNode struct {
	dir     string
	logs    []*eventstore.MemoryLog
	last    []eventstore.Position
	epoch   []uint64
	tamper  func(record eventstore.Record) eventstore.Record
	differ  []difference
	redis   *redisComparison
	status  []viewLane
	react   []reactorLane
	paid    *paymentReport
	failing error
	// rebuilding is what it says of its generations.
	rebuilding testRebuilds
	// parked keys, and what came of replaying them.
	parked   []parkedKey
	replayed []replayedKey
	asked    string
}

func newTestNode(t *testing.T, lanes uint32) *testNode {
	t.Helper()
	n := &testNode{dir: t.TempDir()}
	for lane := range lanes {
		n.logs = append(n.logs, eventstore.OpenMemoryLog(lane, lanes))
		n.last = append(n.last, eventstore.Genesis(lane, lanes))
		n.epoch = append(n.epoch, 0)
	}
	i := &inspector{
		token: "inspect-token", topology: eventstore.Topology{Lanes: lanes}, views: n, reactors: n, rebuilds: &n.rebuilding,
		log: func(lane uint32) laneReader { return tamperedLane{n.logs[lane], n} },
	}
	server := httptest.NewServer(i.handler())
	t.Cleanup(server.Close)
	record := nodeRecord{PID: 1, Inspect: server.URL, Token: i.token}
	if err := record.write(dataDir(n.dir)); err != nil {
		t.Fatal(err)
	}
	return n
}

// Reactors makes the node its own reactorSource.
func (n *testNode) Reactors(context.Context) (reactorReport, error) {
	return reactorReport{Reactors: n.react, Payments: n.paid}, n.failing
}

// Status and Verify make the node its own viewSource.
func (n *testNode) Status(context.Context) ([]viewLane, error) { return n.status, n.failing }

func (n *testNode) Verify(_ context.Context, _ int, progress func(done, total int64)) ([]difference, error) {
	progress(1, 2)
	return n.differ, n.failing
}

func (n *testNode) VerifyRedis(context.Context, int) (*redisComparison, error) {
	return n.redis, n.failing
}

func (n *testNode) Parked(context.Context) ([]parkedKey, error) { return n.parked, n.failing }

func (n *testNode) Replay(_ context.Context, view, key string, dryRun bool) ([]replayedKey, error) {
	n.asked = fmt.Sprintf("view %q, key %q, dry run %v", view, key, dryRun)
	return n.replayed, n.failing
}

// append writes one commit of events to a lane, at a second after the one before.
func (n *testNode) append(t *testing.T, lane uint32, events ...eventstore.Event) {
	t.Helper()
	number := n.last[lane].Number + 1
	if n.epoch[lane] == 0 {
		n.epoch[lane] = number
	}
	n.appendCommit(t, &eventstore.Commit{
		Lane: lane, Number: number, Epoch: n.epoch[lane],
		Time: testTime.Add(time.Duration(number) * time.Second), PrevHash: n.last[lane].Hash, Events: events,
	})
}

func (n *testNode) appendCommit(t *testing.T, commit *eventstore.Commit) {
	t.Helper()
	record := eventstore.EncodeCommit(commit)
	if err := n.logs[commit.Lane].Append(record).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.last[commit.Lane] = eventstore.Position{Number: record.Number, Hash: record.Hash}
}

func opened(epoch uint64) eventstore.Event {
	payload, err := proto.Marshal(&logv1.LaneOpened{Epoch: epoch, Owner: "test"})
	if err != nil {
		panic(err)
	}
	return eventstore.Event{Type: eventstore.TypeLaneOpened, Version: 1, Payload: payload}
}

func event(user, request string, e domain.Event) eventstore.Event {
	name, version, aggregate, payload := stored.Encode(e)
	return eventstore.Event{
		Partition: eventstore.PartitionOf(user), UserID: user, RequestID: request, AggregateID: aggregate,
		Type: name, Version: version, Payload: payload,
	}
}

func putEvent(sku string) eventstore.Event {
	return event("shop", "put-"+sku, domain.ProductPut{SKU: sku, Title: "Title of " + sku, Price: domain.Money{Currency: "EUR", Minor: 1299}})
}

// filled is a node with two lanes that hold five commits.
func filled(t *testing.T) *testNode {
	n := newTestNode(t, 2)
	n.append(t, 0, opened(1))
	n.append(t, 0, putEvent("tea"), putEvent("cup"))
	n.append(t, 0, event("shop", "receive", domain.StockReceived{SKU: "tea", Units: 100, ReceivedTotal: 100}))
	n.append(t, 1, opened(1))
	n.append(t, 1, putEvent("pot"))
	return n
}

// tamperedLane shows commits as the node's tamper made them.
type tamperedLane struct {
	*eventstore.MemoryLog
	node *testNode
}

func (l tamperedLane) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.MemoryLog.Follow(ctx, number)
	return tamperedCursor{cursor, l.node}, err
}

type tamperedCursor struct {
	eventstore.Cursor
	node *testNode
}

func (c tamperedCursor) Next(ctx context.Context) (eventstore.Record, error) {
	record, err := c.Cursor.Next(ctx)
	if err == nil && c.node.tamper != nil {
		record = c.node.tamper(record)
	}
	return record, err
}

func TestCatPrintsEveryEventAsALineOfJSON(t *testing.T) {
	n := filled(t)
	r := weir(t, nil, "log", "cat", "--data", n.dir).want(t, exitOK)
	golden(t, "output/log_cat.json", r.stdout)
	for _, line := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
		decode[eventLine](t, line)
	}
}

func TestCatFilters(t *testing.T) {
	n := filled(t)
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--type ProductPut", []string{"0/2/0", "0/2/1", "1/2/0"}},
		{"--type ProductPut --lane 1", []string{"1/2/0"}},
		{"--lane 0 --from 3", []string{"0/3/0"}},
		{"--from 9", nil},
		{"--aggregate tea", []string{"0/2/0", "0/3/0"}},
		{"--user shop --type StockReceived --type LaneOpened", []string{"0/3/0"}},
		{"--user nobody", nil},
	} {
		r := weir(t, nil, append([]string{"log", "cat", "--data", n.dir}, strings.Fields(c.args)...)...).want(t, exitOK)
		var got []string
		for _, line := range strings.Fields(strings.ReplaceAll(r.stdout, " ", "")) {
			e := decode[eventLine](t, line)
			got = append(got, fmt.Sprintf("%d/%d/%d", e.Lane, e.Commit, e.Index))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("log cat %s: got %v, want %v", c.args, got, c.want)
		}
	}
	for args, want := range map[string]string{
		"--type Produktput": `is unknown; did you mean "ProductPut"?`, "--lane 2": "lanes are 0 to 1", "--from 0": "counted from 1",
	} {
		r := weir(t, nil, append([]string{"log", "cat", "--data", n.dir}, strings.Fields(args)...)...).want(t, exitUsage)
		wantText(t, r.stderr, want)
	}
}

func TestCatOfAnUnknownEventShowsItsBytes(t *testing.T) {
	n := newTestNode(t, 1)
	n.append(t, 0, eventstore.Event{Type: "FromTheFuture", Version: 3, Payload: []byte("abc")})
	e := decode[eventLine](t, weir(t, nil, "log", "cat", "--data", n.dir).want(t, exitOK).stdout)
	if string(e.Raw) != "abc" || e.Payload != nil || e.Version != 3 {
		t.Fatalf("got %+v", e)
	}
}

func TestCatFollowsUntilTheInterrupt(t *testing.T) {
	n := filled(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	lines := make(chan string, 16)
	code := make(chan exitCode, 1)
	go func() {
		p := &process{stdout: lineWriter(lines), stderr: &strings.Builder{}, now: time.Now}
		code <- p.execute(ctx, []string{"log", "cat", "--data", n.dir, "--follow", "--from", "2"})
	}()
	line := func() string {
		select {
		case text := <-lines:
			return text
		case early := <-code:
			t.Fatalf("it ended early, with exit code %d", early)
			return ""
		}
	}
	for range 4 {
		line()
	}
	n.append(t, 1, putEvent("jar"))
	if e := decode[eventLine](t, line()); e.Aggregate != "jar" {
		t.Fatalf("got %+v", e)
	}
	cancel(errInterrupted)
	if got := <-code; got != exitOK {
		t.Fatalf("exit code %d, want 0", got)
	}
}

// lineWriter sends every line to a channel.
type lineWriter chan string

func (w lineWriter) Write(data []byte) (int, error) {
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		w <- line
	}
	return len(data), nil
}

func TestStatsCountsEveryLane(t *testing.T) {
	n := filled(t)
	golden(t, "output/log_stats.table", weir(t, nil, "log", "stats", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/log_stats.json", weir(t, nil, "log", "stats", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
}

func TestVerifyOfAGoodLogFindsNothing(t *testing.T) {
	n := filled(t)
	golden(t, "output/log_verify.table", weir(t, nil, "log", "verify", "--data", n.dir).want(t, exitOK).stdout)
	v := decode[verification](t, weir(t, nil, "log", "verify", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
	if !v.OK || len(v.Lanes) != 2 || v.Lanes[0].Commits != 3 || v.Lanes[0].Events != 4 || v.Lanes[1].Newest != n.last[1].Hash.String() {
		t.Fatalf("got %+v", v)
	}
	v = decode[verification](t, weir(t, nil, "log", "verify", "--data", n.dir, "-o", "json", "--no-views").want(t, exitOK).stdout)
	if v.Views != "not compared" {
		t.Fatalf("got %+v", v)
	}
}

func TestVerifyFindsWhatWasPlanted(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(t *testing.T, n *testNode)
		want  difference
	}{
		{
			"a flipped byte", func(_ *testing.T, n *testNode) {
				n.tamper = func(r eventstore.Record) eventstore.Record {
					if r.Number == 2 {
						r.Data = slices.Clone(r.Data)
						r.Data[len(r.Data)/2] ^= 1
					}
					return r
				}
			},
			difference{Check: "log", Lane: 0, Commit: 2, What: "its bytes have hash"},
		},
		{
			"a commit that was written anew", func(_ *testing.T, n *testNode) {
				n.tamper = func(r eventstore.Record) eventstore.Record {
					if r.Number == 2 {
						commit, err := eventstore.DecodeCommit(r.Data)
						if err != nil {
							panic(err)
						}
						commit.Events = commit.Events[:1]
						return eventstore.EncodeCommit(commit)
					}
					return r
				}
			},
			difference{Check: "log", Lane: 0, Commit: 3, What: "it follows"},
		},
		{
			"a gap", func(_ *testing.T, n *testNode) {
				n.tamper = func(r eventstore.Record) eventstore.Record {
					if r.Number >= 2 {
						r.Number++
					}
					return r
				}
			},
			difference{Check: "log", Lane: 0, Commit: 2, What: "it is stored as number 3 and says 2"},
		},
		{
			"a time that goes back", func(t *testing.T, n *testNode) {
				n.appendCommit(t, &eventstore.Commit{Lane: 1, Number: 3, Epoch: 1, Time: testTime, PrevHash: n.last[1].Hash, Events: []eventstore.Event{putEvent("x")}})
			},
			difference{Check: "log", Lane: 1, Commit: 3, What: "is before that of the commit before it"},
		},
		{
			"an epoch that nobody opened", func(t *testing.T, n *testNode) {
				n.epoch[1] = 7
				n.append(t, 1, putEvent("x"))
			},
			difference{Check: "log", Lane: 1, Commit: 3, What: "its epoch is 7, but the lane was last opened with epoch 1"},
		},
		{
			"an event that cannot be read", func(t *testing.T, n *testNode) {
				bad := putEvent("x")
				bad.Payload = []byte{0xff}
				n.append(t, 1, bad)
			},
			difference{Check: "log", Lane: 1, Commit: 3, What: "cannot be read"},
		},
		{
			"a view that is wrong", func(_ *testing.T, n *testNode) {
				n.differ = []difference{{Check: "views", Lane: 1, What: "order A has another status"}}
			},
			difference{Check: "views", Lane: 1, What: "order A has another status"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := filled(t)
			c.plant(t, n)
			r := weir(t, nil, "log", "verify", "--data", n.dir, "-o", "json").want(t, exitDifference)
			v := decode[verification](t, r.stdout)
			if v.OK || len(v.Differences) == 0 {
				t.Fatalf("got %+v", v)
			}
			got := v.Differences[0]
			if got.Check != c.want.Check || got.Lane != c.want.Lane || got.Commit != c.want.Commit || !strings.Contains(got.What, c.want.What) {
				t.Fatalf("got %+v, want %+v", got, c.want)
			}
			wantText(t, weir(t, nil, "log", "verify", "--data", n.dir).want(t, exitDifference).stdout, "result: DIFFERENT", c.want.What)
		})
	}
}

func TestVerifySaysWhenTheViewsCannotBeCompared(t *testing.T) {
	n := filled(t)
	n.failing = errors.New("the disk is gone")
	wantText(t, weir(t, nil, "log", "verify", "--data", n.dir).want(t, exitFailure).stderr, "the disk is gone")
}

func TestProjectionsStatusPrintsLagAndState(t *testing.T) {
	n := filled(t)
	at := testTime
	n.status = []viewLane{
		{View: "orders", Version: 1, Lane: 0, State: viewFresh, Position: 3, Head: 3, AsOf: &at},
		{View: "orders", Version: 1, Lane: 1, State: viewCatchingUp, Position: 1, Head: 1235, Lag: 1234, AsOf: &at},
	}
	golden(t, "output/projections_status.table", weir(t, nil, "projections", "status", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/projections_status.json", weir(t, nil, "projections", "status", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
}

func TestReactorsStatusPrintsLagAndTheLastError(t *testing.T) {
	n := filled(t)
	at := testTime
	n.react = []reactorLane{
		{Reactor: "event-feed", Lane: 0, State: "fresh", Position: 3, Head: 3, AsOf: &at},
		{
			Reactor: "event-feed", Lane: 1, State: "failing", Position: 1, Head: 1235, Lag: 1234, AsOf: &at,
			Failing: 1, Since: &at, Error: "the stream is full", Event: "1-2-0", Failures: 7,
		},
	}
	n.paid = &paymentReport{
		Providers: []providerLine{
			{Provider: "sandbox", Configured: true, Breaker: "open", Waiting: 1200, Busy: 1, Oldest: &at}, {Provider: "stripe", Breaker: "closed", Waiting: 2, Oldest: &at},
		},
		Stray: 1, RefundsFailed: 2,
	}
	golden(t, "output/reactors_status.table", weir(t, nil, "reactors", "status", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/reactors_status.json", weir(t, nil, "reactors", "status", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
}

func TestTheInspectionEndpointNeedsItsToken(t *testing.T) {
	n := filled(t)
	record, err := readNodeRecord(dataDir(n.dir))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dataDir(n.dir).node())
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Fatalf("node.json has mode %o, want 600", mode)
	}
	for _, token := range []string{"", "wrong"} {
		forged := *record
		forged.Token = token
		if node, _ := dialNode(t.Context(), &forged); node != nil {
			t.Fatalf("the token %q was let in", token)
		}
	}
}

func TestAFrameCarriesACommitOrAnError(t *testing.T) {
	var b strings.Builder
	record := eventstore.Record{Number: 7, Hash: eventstore.HashOf([]byte("x")), Data: []byte("x")}
	if err := errors.Join(writeFrame(&b, record), writeFrame(&b, errorFrame(&eventstore.ChainError{Lane: 1, Number: 8, Reason: "gone"})), writeFrame(&b, errorFrame(errors.New("other")))); err != nil {
		t.Fatal(err)
	}
	r := strings.NewReader(b.String())
	got, err := readFrame(r)
	if err != nil || got.Number != 7 || got.Hash != record.Hash || string(got.Data) != "x" {
		t.Fatalf("got %+v, %v", got, err)
	}
	var chain *eventstore.ChainError
	if _, err := readFrame(r); !errors.As(err, &chain) || chain.Number != 8 || chain.Lane != 1 || chain.Reason != "gone" {
		t.Fatalf("got %v", err)
	}
	if _, err := readFrame(r); err == nil || err.Error() != "other" {
		t.Fatalf("got %v", err)
	}
}

func TestADirectoryWithoutANodeIsSaidSo(t *testing.T) {
	for _, args := range [][]string{{"log", "cat"}, {"log", "verify"}, {"log", "stats"}, {"projections", "status"}, {"reactors", "status"}} {
		r := weir(t, nil, append(args, "--data", t.TempDir())...).want(t, exitUsage)
		wantText(t, r.stderr, "there is no node's data in", "--data or WEIR_DATA")
	}
}

// TestReadingALogIsShownByItsBytes: commits differ in size, so their number says little of how long the rest takes.
func TestReadingALogIsShownByItsBytes(t *testing.T) {
	n := filled(t)
	record, err := readNodeRecord(dataDir(n.dir))
	if err != nil {
		t.Fatal(err)
	}
	node, topology := dialNode(t.Context(), record)
	if node == nil {
		t.Fatal("the node does not answer")
	}
	t.Cleanup(node.client.CloseIdleConnections)
	var out bytes.Buffer
	now := testTime
	p := &process{stderr: &out, now: func() time.Time { return now }}
	var lanes []laneReader
	var want uint64
	for lane := range topology.Lanes {
		size, err := remoteLane{node, lane}.Size(t.Context())
		local, _ := n.logs[lane].Size(t.Context())
		if err != nil || size != local {
			t.Fatalf("lane %d: the node says %+v, %v; want %+v", lane, size, err, local)
		}
		lanes, want = append(lanes, remoteLane{node, lane}), want+size.Bytes
	}
	g := p.newLogProgress(t.Context(), "audit", lanes...)
	if g.total != int64(want) {
		t.Errorf("there are %d bytes to read, want %d", g.total, want)
	}
	now = now.Add(10 * time.Second)
	g.read(eventstore.Record{Number: 1, Stored: int(want / 4)})
	if text := out.String(); !strings.HasPrefix(text, "audit:  25% ") || !strings.Contains(text, "ETA 30s") {
		t.Errorf("got %q, want a quarter and half a minute more", text)
	}

	// A node of before says nothing of it: then the end is not foretold.
	older := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(older.Close)
	node.record.Inspect = older.URL
	if g := p.newLogProgress(t.Context(), "audit", lanes...); g.total != 0 {
		t.Errorf("there are %d bytes to read of a node that does not say", g.total)
	}
}
