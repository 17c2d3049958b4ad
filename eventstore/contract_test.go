package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/ops/freeports"
)

// The contract that every Log satisfies, on each implementation.

// contractRig makes logs of one implementation.
type contractRig struct {
	// fresh returns an empty log, and the lane that its commits are of.
	fresh func(t *testing.T) (Log, uint32)
	// full returns an empty log that has room for at most a few commits of 64 KiB; nil if that cannot be had.
	full func(t *testing.T) (Log, uint32)
	// interrupt makes whatever connection the logs have break and come back; nil if they have none.
	interrupt func(t *testing.T)
	// repeated says whether the same append again is answered with nil (replicated streams) or ErrConflict.
	repeated error
}

func TestMemoryLogKeepsTheContract(t *testing.T) {
	lane := uint32(0)
	testLogContract(t, contractRig{
		fresh: func(*testing.T) (Log, uint32) { lane++; return OpenMemoryLog(lane, 1024), lane },
		full: func(*testing.T) (Log, uint32) {
			log := OpenMemoryLog(1, 1024)
			log.LimitBytes(200_000)
			return log, 1
		},
		repeated: ErrConflict,
	})
}

func TestUnreplicatedJetStreamKeepsTheContract(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	rig := jetStreamRig(connectTo(t, server), 1)
	rig.repeated = ErrConflict
	rig.interrupt = func(t *testing.T) {
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	testLogContract(t, rig)
}

func TestReplicatedJetStreamKeepsTheContract(t *testing.T) {
	servers := startCluster(t)
	nc := connectTo(t, servers[0])
	waitForJetStream(t, nc, 3)
	rig := jetStreamRig(nc, 3)
	rig.interrupt = func(t *testing.T) {
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
	}
	testLogContract(t, rig)
}

// jetStreamRig gives each test a lane of its own on one connection.
func jetStreamRig(nc *nats.Conn, replicas int) contractRig {
	next := uint32(0)
	lane := func(t *testing.T, maxBytes int64) (Log, uint32) {
		t.Helper()
		const lanes = 64
		own := next
		next++
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "a stream is created", func() error {
			_, err := js.CreateStream(t.Context(), laneStream(own, replicas, maxBytes, MaxMessageSize))
			return err
		})
		log := openLanes(t, nc, own, lanes)
		// A server learns a moment after the stream was made that its leader listens: until then nobody takes appends there.
		elsewhere := chainOf(t, own, Genesis(own, 1024), 2, 100)[1]
		eventually(t, "the stream's leader takes appends", func() error {
			if err := log.Append(elsewhere).Wait(t.Context()); !errors.Is(err, ErrConflict) {
				return fmt.Errorf("an append elsewhere than at the head: got %w, want a conflict", err)
			}
			return nil
		})
		return log, own
	}
	return contractRig{
		fresh: func(t *testing.T) (Log, uint32) { return lane(t, -1) },
		full:  func(t *testing.T) (Log, uint32) { return lane(t, 200_000) },
	}
}

// openLanes opens the log of a lane whose stream exists, whether the other lanes' streams do or not.
func openLanes(t *testing.T, nc *nats.Conn, lane, lanes uint32) Log {
	t.Helper()
	// With the race detector, on a machine that has much else to do, a server takes seconds to answer with 8 MiB.
	options := JetStreamOptions{RequestTimeout: 30 * time.Second, AppendTimeout: 10 * time.Second, FollowHeartbeat: 500 * time.Millisecond}
	s, err := openJetStream(t.Context(), nc, Topology{Lanes: lanes}, options, lane, lane+1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s.Log(lane)
}

func testLogContract(t *testing.T, rig contractRig) {
	tests := []struct {
		name string
		run  func(t *testing.T, rig contractRig)
	}{
		{"AnAppendedCommitIsReadBack", testAppendRead},
		{"AnEmptyLogHasNothing", testEmpty},
		{"AppendsInFlightArriveInOrder", testPipeline},
		{"AnAppendElsewhereThanAtTheHeadIsAConflict", testWrongHead},
		{"TheSameAppendAgainIsResolvedByReading", testRepeated},
		{"AnAppendWhoseAcknowledgementWasNotAwaitedIsResolvedByReading", testUnawaited},
		{"ASecondAppendInFlightIsRefusedWhenAnotherWriterTookTheFirstOnesNumber", testFence},
		{"AFollowerSeesEveryCommitInOrderAndThenWaits", testFollow},
		{"AFollowerFromTheMiddleStartsThere", testFollowMiddle},
		{"WhatComesToAFollowerMeanwhileIsBuffered", testFollowMeanwhile},
		{"AFollowerAheadOfTheHeadWaitsForItsNumber", testFollowAhead},
		{"AFollowerGoesOnAfterTheConnectionBroke", testInterrupt},
		{"AFullLogRefusesAndKeepsWhatItHas", testFull},
		{"ALargeCommitIsKept", testLarge},
		{"ALogsSizeIsTheSumOfWhatItsCommitsTake", testSize},
		{"ACursorCanBeClosedTwiceAndInTheMiddle", testClose},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, rig) })
	}
}

// chainOf makes count commits of about size bytes each, from position at on.
func chainOf(t *testing.T, lane uint32, at Position, count, size int) []Record {
	t.Helper()
	random := rand.NewChaCha8(HashOf(fmt.Append(nil, at.Number, count, size)))
	records := make([]Record, count)
	for i := range records {
		payload := make([]byte, size)
		if _, err := random.Read(payload); err != nil {
			t.Fatal(err)
		}
		records[i] = EncodeCommit(&Commit{
			Lane: lane, Number: at.Number + 1, Epoch: 1, Time: time.Unix(int64(at.Number), 0), PrevHash: at.Hash,
			Events: []Event{{Type: "Tested", Version: 1, Payload: payload}},
		})
		at = Position{Number: records[i].Number, Hash: records[i].Hash}
	}
	return records
}

func position(r Record) Position { return Position{Number: r.Number, Hash: r.Hash} }

// appendAll appends and waits; nothing may go wrong.
func appendAll(t *testing.T, log Log, records []Record) {
	t.Helper()
	for _, record := range records {
		if err := log.Append(record).Wait(t.Context()); err != nil {
			t.Fatalf("append commit %d: %v", record.Number, err)
		}
	}
}

func wantRead(t *testing.T, log Log, want Record) {
	t.Helper()
	got, err := log.Read(t.Context(), want.Number)
	for attempt := 1; attempt < 5 && errors.Is(err, context.DeadlineExceeded); attempt++ {
		got, err = log.Read(t.Context(), want.Number) // A busy machine may take longer than a read waits.
	}
	if err != nil || got.Number != want.Number || got.Hash != want.Hash || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("read commit %d: got number %d, hash %.12s…, %d bytes, error %v; want hash %.12s…, %d bytes",
			want.Number, got.Number, got.Hash, len(got.Data), err, want.Hash, len(want.Data))
	}
}

func wantHead(t *testing.T, log Log, want uint64) {
	t.Helper()
	if head, err := log.Head(t.Context()); err != nil || head != want {
		t.Fatalf("head is %d, %v, want %d", head, err, want)
	}
}

func wantNext(t *testing.T, cursor Cursor, want Record) {
	t.Helper()
	const nextMax = 30 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), nextMax)
	defer cancel()
	got, err := cursor.Next(ctx)
	if err != nil || got.Number != want.Number || got.Hash != want.Hash || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("next commit: got number %d, hash %.12s…, error %v; want number %d, hash %.12s…", got.Number, got.Hash, err, want.Number, want.Hash)
	}
}

func follow(t *testing.T, log Log, number uint64) Cursor {
	t.Helper()
	cursor, err := log.Follow(t.Context(), number)
	if err != nil {
		t.Fatalf("follow from %d: %v", number, err)
	}
	t.Cleanup(cursor.Close)
	return cursor
}

// atHead records the fenced position: no commit after number.
func atHead(t *testing.T, log Log, number uint64) {
	t.Helper()
	wantHead(t, log, number)
	if _, err := log.Read(t.Context(), number+1); !errors.Is(err, ErrNoCommit) {
		t.Fatalf("read after the head %d: got %v, want ErrNoCommit", number, err)
	}
}

func testAppendRead(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 5, 1000)
	for i, record := range records {
		pending := log.Append(record)
		if err := pending.Wait(t.Context()); err != nil {
			t.Fatalf("append commit %d: %v", record.Number, err)
		}
		select {
		case <-pending.Done():
		default:
			t.Fatal("Done is open after Wait returned")
		}
		if err := pending.Wait(t.Context()); err != nil {
			t.Fatalf("a second Wait returns %v", err)
		}
		wantHead(t, log, uint64(i+1))
	}
	for _, record := range records {
		wantRead(t, log, record)
	}
	atHead(t, log, 5)
}

func testEmpty(t *testing.T, rig contractRig) {
	log, _ := rig.fresh(t)
	for _, number := range []uint64{0, 1, 2, 1 << 40} {
		if _, err := log.Read(t.Context(), number); !errors.Is(err, ErrNoCommit) {
			t.Fatalf("read %d: got %v, want ErrNoCommit", number, err)
		}
	}
	atHead(t, log, 0)
}

func testSize(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	if size, err := log.Size(t.Context()); err != nil || size.Head != 0 || size.Bytes != 0 {
		t.Fatalf("an empty log has size %+v, %v", size, err)
	}
	large := chainOf(t, lane, Genesis(lane, 1024), 3, 20_000)
	records := append(large, chainOf(t, lane, position(large[2]), 5, 10)...)
	records[4].Headers = map[string]string{"Weir-Events": "Tested 1"} // What is kept beside the data counts as well.
	appendAll(t, log, records)
	cursor := follow(t, log, 1)
	var followed, read uint64
	for i, record := range records {
		next, err := cursor.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again, err := log.Read(t.Context(), record.Number)
		if err != nil {
			t.Fatal(err)
		}
		if next.Stored < len(record.Data) {
			t.Errorf("commit %d of %d bytes takes %d", i+1, len(record.Data), next.Stored)
		}
		followed, read = followed+uint64(next.Stored), read+uint64(again.Stored)
	}
	size, err := log.Size(t.Context())
	if want := (LogSize{First: 1, Head: 8, Bytes: followed}); err != nil || size != want || read != followed {
		t.Fatalf("size is %+v, %v; want %+v, by what was followed; what was read takes %d", size, err, want, read)
	}
}

func testPipeline(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 64, 5000)
	pendings := make([]Pending, len(records))
	for i, record := range records {
		pendings[i] = log.Append(record)
	}
	for i, pending := range pendings {
		if err := pending.Wait(t.Context()); err != nil {
			t.Fatalf("append commit %d: %v", records[i].Number, err)
		}
	}
	wantHead(t, log, 64)
	wantRead(t, log, records[63])
}

func testWrongHead(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 4, 100)
	appendAll(t, log, records[:2])
	other := chainOf(t, lane, Genesis(lane, 1024), 2, 101) // Another history.
	for _, record := range []Record{records[3], other[0], other[1]} {
		if err := log.Append(record).Wait(t.Context()); !errors.Is(err, ErrConflict) {
			t.Fatalf("append number %d at head 2: got %v, want ErrConflict", record.Number, err)
		}
	}
	atHead(t, log, 2)
	appendAll(t, log, records[2:])
	for _, record := range records {
		wantRead(t, log, record)
	}
}

func testRepeated(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 3, 100)
	appendAll(t, log, records)
	for _, record := range records {
		if err := log.Append(record).Wait(t.Context()); !errors.Is(err, rig.repeated) {
			t.Fatalf("append commit %d again: got %v, want %v", record.Number, err, rig.repeated)
		}
		wantRead(t, log, record)
	}
	atHead(t, log, 3)
}

func testUnawaited(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	record := chainOf(t, lane, Genesis(lane, 1024), 1, 100)[0]
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Append(record).Wait(ended); err != nil && !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("an append that is not awaited: got %v, want ErrUnknownOutcome or nil", err)
	}
	// The same bytes, until it is known, as the lane writer does.
	eventually(t, "the append is resolved", func() error {
		err := log.Append(record).Wait(t.Context())
		if err == nil || errors.Is(err, ErrConflict) {
			stored, readErr := log.Read(t.Context(), record.Number)
			if readErr == nil && stored.Hash == record.Hash {
				return nil
			}
			return fmt.Errorf("append: %w, read: %w", err, readErr)
		}
		return err
	})
	atHead(t, log, 1)
}

func testFence(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	base := chainOf(t, lane, Genesis(lane, 1024), 3, 100)
	appendAll(t, log, base)
	old := chainOf(t, lane, position(base[2]), 2, 100)
	fence := chainOf(t, lane, position(base[2]), 1, 50)[0]
	appendAll(t, log, []Record{fence})
	first, second := log.Append(old[0]), log.Append(old[1])
	if err := first.Wait(t.Context()); !errors.Is(err, ErrConflict) {
		t.Fatalf("the first of two: got %v, want ErrConflict", err)
	}
	err := second.Wait(t.Context())
	if log.ChecksChain() {
		if !errors.Is(err, ErrConflict) {
			t.Fatalf("the second of two: got %v, want ErrConflict", err)
		}
		atHead(t, log, 4)
	}
	wantRead(t, log, fence)
}

func testFollow(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 40, 20_000)
	appendAll(t, log, records[:30])
	cursor := follow(t, log, 1)
	for _, record := range records[:30] {
		wantNext(t, cursor, record)
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := cursor.Next(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("at the head: got %v, want the context's end", err)
	}
	for _, record := range records[30:] {
		appendAll(t, log, []Record{record})
		wantNext(t, cursor, record)
	}
	// A follower that waits sees what comes.
	more := chainOf(t, lane, position(records[39]), 1, 100)
	got := make(chan Record, 1)
	failed := make(chan error, 1)
	go func() {
		record, err := cursor.Next(t.Context())
		failed <- err
		got <- record
	}()
	appendAll(t, log, more)
	if err, record := <-failed, <-got; err != nil || record.Number != 41 {
		t.Fatalf("a waiting follower got number %d, %v", record.Number, err)
	}
}

func testFollowMiddle(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 10, 100)
	appendAll(t, log, records)
	first, second := follow(t, log, 4), follow(t, log, 10)
	wantNext(t, second, records[9])
	for _, record := range records[3:] {
		wantNext(t, first, record)
	}
	again := follow(t, log, 1)
	wantNext(t, again, records[0])
	eventually(t, "the rest is buffered", func() error {
		if n := again.Buffered(); n < 9 {
			return fmt.Errorf("%d buffered, want 9", n)
		}
		return nil
	})
}

func testFollowMeanwhile(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 11, 100)
	appendAll(t, log, records[:1])
	cursor := follow(t, log, 1)
	wantNext(t, cursor, records[0])
	// Each is at the log's head when it comes, and nobody takes it.
	appendAll(t, log, records[1:])
	eventually(t, "what came is buffered", func() error {
		if n := cursor.Buffered(); n != 10 {
			return fmt.Errorf("%d buffered, want 10", n)
		}
		return nil
	})
	for i, record := range records[1:] {
		wantNext(t, cursor, record)
		if n := cursor.Buffered(); n != 9-i {
			t.Fatalf("%d are buffered after %d of 10, want %d", n, i+1, 9-i)
		}
	}
}

func testFollowAhead(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 5, 100)
	cursor := follow(t, log, 4)
	appendAll(t, log, records)
	wantNext(t, cursor, records[3])
	wantNext(t, cursor, records[4])
}

func testInterrupt(t *testing.T, rig contractRig) {
	if rig.interrupt == nil {
		return // There is no connection that could break.
	}
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 30, 20_000)
	appendAll(t, log, records[:10])
	cursor := follow(t, log, 1)
	for _, record := range records[:5] {
		wantNext(t, cursor, record)
	}
	rig.interrupt(t)
	for _, record := range records[5:10] {
		wantNext(t, cursor, record)
	}
	for _, record := range records[10:] {
		eventually(t, "an append is acknowledged after the connection broke", func() error {
			err := log.Append(record).Wait(t.Context())
			if errors.Is(err, ErrConflict) {
				if stored, readErr := log.Read(t.Context(), record.Number); readErr == nil && stored.Hash == record.Hash {
					return nil
				}
			}
			return err
		})
	}
	rig.interrupt(t)
	for _, record := range records[10:] {
		wantNext(t, cursor, record)
	}
	eventually(t, "the head is known", func() error {
		if head, err := log.Head(t.Context()); err != nil || head != 30 {
			return fmt.Errorf("head %d, %w", head, err)
		}
		return nil
	})
}

func testFull(t *testing.T, rig contractRig) {
	if rig.full == nil {
		return // It is never full.
	}
	log, lane := rig.full(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 20, 64<<10)
	stored := 0
	for _, record := range records {
		err := log.Append(record).Wait(t.Context())
		if errors.Is(err, ErrLogFull) {
			break
		}
		if err != nil {
			t.Fatalf("append commit %d: %v", record.Number, err)
		}
		stored++
	}
	if stored == 0 || stored == len(records) {
		t.Fatalf("%d of %d commits were stored in a small log", stored, len(records))
	}
	atHead(t, log, uint64(stored))
	wantRead(t, log, records[0])
	// A smaller one that fits is taken: the number was not used up.
	small := chainOf(t, lane, position(records[stored-1]), 1, 10)
	if err := log.Append(small[0]).Wait(t.Context()); err != nil && !errors.Is(err, ErrLogFull) {
		t.Fatalf("a small append to a full log: %v", err)
	}
}

func testLarge(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 3, MaxMessageSize-4096)
	appendAll(t, log, records)
	wantRead(t, log, records[1])
	cursor := follow(t, log, 1)
	for _, record := range records {
		wantNext(t, cursor, record)
	}
}

func testClose(t *testing.T, rig contractRig) {
	log, lane := rig.fresh(t)
	records := chainOf(t, lane, Genesis(lane, 1024), 3, 100)
	appendAll(t, log, records)
	cursor := follow(t, log, 1)
	wantNext(t, cursor, records[0])
	cursor.Close()
	cursor.Close()
	wantNext(t, follow(t, log, 1), records[0])
}

// eventually asks again until there is no error; it fails the test when that takes too long.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s: %v", what, err)
		}
		if err := pause(t.Context(), 5*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

func startServer(t testing.TB, options embedded.Options) *embedded.Server {
	t.Helper()
	if options.Logger == nil {
		options.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	server, err := embedded.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	return server
}

// testWriter shows a server's warnings in the test's own log.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(line []byte) (int, error) {
	if w.t.Context().Err() == nil { // Not after the test's end.
		w.t.Log(strings.TrimSuffix(string(line), "\n"))
	}
	return len(line), nil
}

func connectTo(t testing.TB, server *embedded.Server) *nats.Conn {
	t.Helper()
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// startCluster starts three servers that form a cluster.
func startCluster(t *testing.T) []*embedded.Server {
	t.Helper()
	bound(t)
	routes := freeports.Addresses(t, 3)
	var servers []*embedded.Server
	for i, route := range routes {
		servers = append(servers, startServer(t, embedded.Options{
			Dir: t.TempDir(), ServerName: fmt.Sprintf("node%d", i+1),
			Cluster: &embedded.Cluster{Name: "weir", Listen: route, Routes: slices.Clone(routes)},
		}))
	}
	return servers
}

// waitForJetStream waits until the cluster has a leader and can place that many replicas.
func waitForJetStream(t *testing.T, nc *nats.Conn, replicas int) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is formed", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "READY", Subjects: []string{"ready"}, Replicas: replicas}); err != nil {
			return err
		}
		_, err := js.Publish(ctx, "ready", nil)
		return err
	})
}
