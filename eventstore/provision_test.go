package eventstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/weirhq/weir/eventstore/embedded"
)

var errCrashed = errors.New("crashed")

// crashAfter makes Provision stop at a step for the rest of the test. It may be changed by calling it again; "" lets it run.
func crashAfter(t *testing.T, step string) {
	t.Helper()
	provisionReached = func(reached string) error {
		if reached == step {
			return errCrashed
		}
		return nil
	}
	t.Cleanup(func() { provisionReached = func(string) error { return nil } })
}

func provisionOn(t *testing.T, server *embedded.Server, nc *nats.Conn, lanes uint32, known map[uint32]uint64) (ClusterRecord, error) {
	t.Helper()
	return Provision(t.Context(), nc, ProvisionOptions{
		Topology: Topology{Lanes: lanes}, Known: known, Now: time.Unix(1_700_000_000, 0),
		Reopen: func(context.Context) error { return server.Restart() },
	})
}

// streamDir is where an embedded server on dir keeps a stream.
func streamDir(dir, stream string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams", stream)
}

// crashImage copies what a killed server leaves behind.
func crashImage(t *testing.T, dir string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestProvisionMakesTheStreamsAndTheRecordOnce(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	if _, err := ReadClusterRecord(t.Context(), nc); !errors.Is(err, ErrNotProvisioned) {
		t.Fatalf("before: got %v, want ErrNotProvisioned", err)
	}
	made, err := provisionOn(t, server, nc, 4, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := ClusterRecord{Lanes: 4, Partitions: 1024, Created: time.Unix(1_700_000_000, 0).UTC(), State: StateReady}
	if made != want {
		t.Fatalf("made %+v, want %+v", made, want)
	}
	s, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 4}, JetStreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	appendAll(t, s.Log(3), chainOf(t, 3, Genesis(3, 4), 3, 100))
	again, err := provisionOn(t, server, nc, 4, map[uint32]uint64{3: 3})
	if err != nil || again != want {
		t.Fatalf("the second time: %+v, %v", again, err)
	}
	wantHead(t, s.Log(3), 3)
}

func TestProvisionRecoversFromACrashAtEveryStep(t *testing.T) {
	steps := []string{
		"bucket", "seal KV_WEIR-CLUSTER", "record", StreamName(0), StreamName(1),
		"seal " + StreamName(0), "seal " + StreamName(1), "reopen", "ready",
	}
	for i, step := range steps {
		for _, loseStreams := range []bool{false, true} {
			if loseStreams && i >= 7 {
				continue // What was reopened has its sums.
			}
			name := "After " + step
			if loseStreams {
				name += " without checksums"
			}
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				server := startServer(t, embedded.Options{Dir: dir})
				nc := connectTo(t, server)
				crashAfter(t, step)
				if _, err := provisionOn(t, server, nc, 2, nil); !errors.Is(err, errCrashed) {
					t.Fatalf("got %v, want the crash", err)
				}
				image := crashImage(t, dir)
				nc.Close()
				server.Shutdown()
				if loseStreams {
					// Killed between a stream's meta.inf and its meta.sum: at the next start the server drops it.
					sums, err := filepath.Glob(streamDir(image, "*") + "/meta.sum")
					if err != nil || len(sums) == 0 {
						t.Fatalf("no meta.sum found: %v", err)
					}
					for _, sum := range sums {
						if err := os.Remove(sum); err != nil {
							t.Fatal(err)
						}
					}
				}
				crashAfter(t, "")
				server = startServer(t, embedded.Options{Dir: image})
				nc = connectTo(t, server)
				record, err := provisionOn(t, server, nc, 2, nil)
				if err != nil || record.State != StateReady {
					t.Fatalf("after the crash: %+v, %v", record, err)
				}
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
				s, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 2}, JetStreamOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for lane := range uint32(2) {
					records := chainOf(t, lane, Genesis(lane, 2), 2, 100)
					appendAll(t, s.Log(lane), records)
					wantRead(t, s.Log(lane), records[1])
				}
			})
		}
	}
}

// provisionedImage returns the directory of a server that was provisioned with two lanes and has three commits in lane 1.
func provisionedImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	server := startServer(t, embedded.Options{Dir: dir})
	nc := connectTo(t, server)
	if _, err := provisionOn(t, server, nc, 2, nil); err != nil {
		t.Fatal(err)
	}
	s, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 2}, JetStreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, s.Log(1), chainOf(t, 1, Genesis(1, 2), 3, 100))
	s.Close()
	nc.Close()
	server.Shutdown()
	return dir
}

func TestProvisionRefusesWhereCommitsAreOrMayBeMissing(t *testing.T) {
	tests := []struct {
		name   string
		delete []string
		known  map[uint32]uint64
		want   string
	}{
		{"AStreamIsGone", []string{"ORDERS-01"}, map[uint32]uint64{1: 3}, "no stream ORDERS-01"},
		{"AStreamIsGoneAndNothingIsKnown", []string{"ORDERS-01"}, nil, "no stream ORDERS-01"},
		{"AnEmptyStreamIsGone", []string{"ORDERS-00"}, nil, "no stream ORDERS-00"},
		{"TheRecordIsGone", []string{"KV_WEIR-CLUSTER"}, nil, "it has 3 commits, but the server has no record"},
		{"EverythingIsGone", []string{"KV_WEIR-CLUSTER", "ORDERS-00", "ORDERS-01"}, map[uint32]uint64{1: 3}, "knows commit 3, but the server has no record"},
		{"TheLogIsShorterThanKnown", nil, map[uint32]uint64{1: 4}, "knows commit 4, but the log ends at 3"},
	}
	dir := provisionedImage(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := crashImage(t, dir)
			for _, stream := range test.delete {
				if err := os.RemoveAll(streamDir(image, stream)); err != nil {
					t.Fatal(err)
				}
			}
			server := startServer(t, embedded.Options{Dir: image})
			nc := connectTo(t, server)
			_, err := provisionOn(t, server, nc, 2, test.known)
			if missing := (*MissingLogError)(nil); !errors.As(err, &missing) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want a *MissingLogError with %q", err, test.want)
			}
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			for _, stream := range test.delete {
				if _, err := js.Stream(t.Context(), stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
					t.Fatalf("stream %s was created again: %v", stream, err)
				}
			}
		})
	}
}

func TestProvisionRefusesAnotherNumberOfLanes(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: provisionedImage(t)})
	_, err := provisionOn(t, server, connectTo(t, server), 4, nil)
	if other := (*TopologyError)(nil); !errors.As(err, &other) || !strings.Contains(err.Error(), "2 lanes") || !strings.Contains(err.Error(), "--lanes 2") {
		t.Fatalf("got %v, want a *TopologyError that names both numbers", err)
	}
}

func TestProvisionNamesTheSettingThatLosesCommits(t *testing.T) {
	tests := []struct {
		setting string
		change  func(*jetstream.StreamConfig)
	}{
		{"storage", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }},
		{"discard", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }},
		{"max_age", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }},
		{"max_msgs", func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }},
		{"persist_mode", func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode }},
		{"deny_purge", func(c *jetstream.StreamConfig) { c.DenyPurge = false }},
		{"allow_direct", func(c *jetstream.StreamConfig) { c.AllowDirect = true }},
		{"subjects", func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more") }},
	}
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.setting, func(t *testing.T) {
			config := laneStream(0, 1, -1, MaxMessageSize)
			test.change(&config)
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			_, err := Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 1}})
			if wrong := (*StreamSettingError)(nil); !errors.As(err, &wrong) || wrong.Setting != test.setting {
				t.Fatalf("got %v, want a *StreamSettingError for %s", err, test.setting)
			}
			if err := js.DeleteStream(t.Context(), config.Name); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestTwoNodesMayProvisionAtOnce(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	outcomes := make(chan error)
	for range 4 {
		nc := connectTo(t, server)
		go func() {
			_, err := Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 4}, Now: time.Now()})
			outcomes <- err
		}()
	}
	for range 4 {
		if err := <-outcomes; err != nil {
			t.Error(err)
		}
	}
}

// Between a node's question for the record and its look at the streams another node may make all of them, and write.
func TestANodeThatWasOvertakenAtTheStartLooksAgain(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: provisionedImage(t)})
	nc := connectTo(t, server)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	overtaken := &provision{nc: nc, js: js, options: ProvisionOptions{Topology: Topology{Lanes: 2}, Replicas: 1}, reached: provisionReached}
	if err := overtaken.begin(t.Context()); !errors.Is(err, errProvisionAgain) {
		t.Fatalf("got %v, want %v", err, errProvisionAgain)
	}
}

// A server that comes back to its cluster says that there is no record, until it has heard of it from the others.
func TestARecordThatAClusterDoesNotKnowYetIsAskedForAgain(t *testing.T) {
	server, nc := plainServer(t, "weir")
	asked := 0
	_, err := nc.Subscribe("$JS.API.STREAM.MSG.GET.KV_"+clusterBucket, func(question *nats.Msg) {
		answer := `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`
		if asked++; asked > 2 {
			answer = `{"message":{"seq":3,"data":"eyJsYW5lcyI6NH0="}}`
		}
		_ = question.Respond([]byte(answer))
	})
	if err != nil {
		t.Fatal(err)
	}
	record, err := ReadClusterRecord(t.Context(), nc)
	if err != nil || record.Lanes != 4 {
		t.Fatalf("%s: got %+v, %v after %d questions, want 4 lanes", server.Name(), record, err, asked)
	}
}

// What another node is making has its name already, and is not found.
func TestAStreamThatIsJustBeingMadeIsLookedAtAgain(t *testing.T) {
	_, nc := plainServer(t, "weir")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for subject, answer := range map[string]string{
		"STREAM.LIST":                       `{"total":0,"offset":0,"limit":256,"streams":[]}`,
		"STREAM.CREATE.KV_" + clusterBucket: `{"error":{"code":400,"err_code":10058,"description":"stream name already in use with a different configuration"}}`,
		"STREAM.INFO.KV_" + clusterBucket:   `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`,
		"INFO":                              `{}`,
	} {
		if _, err := nc.Subscribe("$JS.API."+subject, func(question *nats.Msg) { _ = question.Respond([]byte(answer)) }); err != nil {
			t.Fatal(err)
		}
	}
	p := &provision{nc: nc, js: js, options: ProvisionOptions{Topology: Topology{Lanes: 2}, Replicas: 3}, reached: provisionReached}
	for what, err := range map[string]error{"begin": p.begin(t.Context()), "seal": p.seal(t.Context(), "KV_"+clusterBucket)} {
		if !errors.Is(err, errProvisionAgain) || !Forming(err) {
			t.Errorf("%s: got %v, want %v", what, err, errProvisionAgain)
		}
	}
}

// plainServer is a server without JetStream, for tests that answer in its place.
func plainServer(t *testing.T, cluster string) (*natsserver.Server, *nats.Conn) {
	t.Helper()
	options := &natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, NoSigs: true, NoLog: true}
	if cluster != "" {
		options.Cluster = natsserver.ClusterOpts{Name: cluster, Host: "127.0.0.1", Port: natsserver.RANDOM_PORT}
	}
	server, err := natsserver.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Shutdown)
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return server, nc
}

// After all servers were started at once a stream has no leader for a while, and nobody answers for it.
func TestProvisionWaitsForTheLeaderOfAStream(t *testing.T) {
	_, nc := plainServer(t, "")
	asked := 0
	_, err := nc.Subscribe("$JS.API.STREAM.INFO."+StreamName(0), func(question *nats.Msg) {
		if asked++; asked > 2 {
			_ = question.Respond([]byte(`{"config":{"name":"ORDERS-00"},"state":{"last_seq":7}}`))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &provision{nc: nc, requestMax: 50 * time.Millisecond}
	info, err := p.look(t.Context(), 0)
	if err != nil || info.State.LastSeq != 7 {
		t.Fatalf("got %+v, %v after %d questions, want commit 7", info.State, err, asked)
	}
}
