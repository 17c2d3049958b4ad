package eventstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// openServer runs a server as somebody who knows no better would set one up, with a system account to ask it in.
func openServer(t *testing.T, change func(*server.Options)) (client, system *nats.Conn) {
	t.Helper()
	options := &server.Options{}
	config := `accounts { APP { jetstream: enabled, users: [ {user: app, password: app} ] }, SYS { users: [ {user: sys, password: sys} ] } }
system_account: SYS`
	if err := options.ProcessConfigString(config); err != nil {
		t.Fatal(err)
	}
	options.ServerName, options.NoSigs, options.NoLog, options.JetStream = "s", true, true, true
	options.Host, options.Port, options.StoreDir, options.SyncAlways = "127.0.0.1", server.RANDOM_PORT, t.TempDir(), true
	if change != nil {
		change(options)
	}
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server is not ready")
	}
	connect := func(user string) *nats.Conn {
		nc, err := nats.Connect(s.ClientURL(), nats.UserInfo(user, user))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	return connect("app"), connect("sys")
}

// findingsOf examines a log and returns the findings by number.
func findingsOf(t *testing.T, nc *nats.Conn, options ExamineOptions) map[int]Finding {
	t.Helper()
	findings, err := Examine(t.Context(), nc, options)
	if err != nil {
		t.Fatal(err)
	}
	byNumber := map[int]Finding{}
	for i, finding := range findings {
		if finding.Number != i+1 {
			t.Fatalf("finding %d has number %d", i+1, finding.Number)
		}
		if finding.Found == "" || (finding.State == FindingGood) != (finding.Do == "") {
			t.Errorf("%+v says too little or too much", finding)
		}
		byNumber[finding.Number] = finding
	}
	return byNumber
}

// madeLog provisions one lane and the keys.
func madeLog(t *testing.T, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	if _, err := Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenUserKeys(t.Context(), nc, UserKeysOptions{Topology: Topology{Lanes: 1}}); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestEachPlantedFaultOfAServerIsFound(t *testing.T) {
	for _, test := range []struct {
		check int
		plant func(*server.Options)
		want  string
	}{
		{checkFsync, func(o *server.Options) { o.SyncAlways = false }, "s fsyncs every 2m0s"},
		{checkMonitoring, func(o *server.Options) { o.HTTPHost, o.HTTPPort = "0.0.0.0", server.RANDOM_PORT }, "shows everything about itself on 0.0.0.0"},
		{checkClients, func(o *server.Options) { o.Host, o.NoAuthUser = "0.0.0.0", "app" }, "lets anybody in"},
		{checkStoreDir, func(*server.Options) {}, "stores in " + "/"}, // A test's directory is a temporary one.
		{checkPermissions, func(*server.Options) {}, "may publish to $JS.API.STREAM.DELETE.ORDERS-00"},
		{checkRoom, func(o *server.Options) { o.JetStreamMaxStore = 300_000 }, "of 300000 bytes"},
	} {
		t.Run(checks[test.check-1].Check, func(t *testing.T) {
			t.Parallel()
			nc, system := openServer(t, test.plant)
			madeLog(t, nc)
			appendAll(t, openLanes(t, nc, 0, 1), chainOf(t, 0, Genesis(0, 1), 4, 62_000))
			got := findingsOf(t, nc, ExamineOptions{System: system})[test.check]
			if got.State != FindingBad || !strings.Contains(got.Found, test.want) {
				t.Fatalf("got %+v, want it wrong with %q", got, test.want)
			}
		})
	}
}

func TestEachPlantedFaultOfALogIsFound(t *testing.T) {
	// change makes lane 0's stream anew with another setting.
	change := func(edit func(*jetstream.StreamConfig)) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			config := laneStream(0, 1, -1, MaxMessageSize)
			edit(&config)
			if err := js.DeleteStream(t.Context(), config.Name); err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(stream string) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), stream); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name  string
		check int
		plant func(*testing.T, jetstream.JetStream)
		want  string
	}{
		{"async persist", checkPersistMode, change(func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode }), "persist_mode = "},
		{"discard old", checkSettingsOf, change(func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }), "discard = "},
		{"age limit", checkSettingsOf, change(func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }), "max_age = 1h0m0s"},
		{"atomic batches", checkSettingsOf, change(func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = true }), "allow_atomic = true"},
		{"direct reads", checkDirect, change(func(c *jetstream.StreamConfig) { c.AllowDirect = true }), "allow_direct = true"},
		{"long dedup", checkDedup, change(func(c *jetstream.StreamConfig) { c.Duplicates = time.Hour }), "message ids for 1h0m0s"},
		{"a log half made", checkThere, func(t *testing.T, js jetstream.JetStream) {
			bucket, err := js.KeyValue(t.Context(), clusterBucket)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bucket.Put(t.Context(), topologyKey, []byte(`{"lanes":1,"partitions":1024,"state":"creating"}`)); err != nil {
				t.Fatal(err)
			}
		}, "still being created"},
		{"keys in memory", checkSettingsOf, func(t *testing.T, js jetstream.JetStream) {
			remove(userKeysStream)(t, js)
			if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: userKeysBucket, Storage: jetstream.MemoryStorage}); err != nil {
				t.Fatal(err)
			}
		}, userKeysStream + " is in memory"},
		{"many subjects", checkIndex, func(t *testing.T, js jetstream.JetStream) {
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "SHOP", Subjects: []string{"shop.*"}}); err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				if _, err := js.Publish(t.Context(), fmt.Sprint("shop.", i), nil); err != nil {
					t.Fatal(err)
				}
			}
		}, "SHOP has 4 subjects"},
		{"an upgrade that was left", checkAppendRule, change(func(c *jetstream.StreamConfig) { c.Metadata = map[string]string{replicasKey: "3"} }), "was to have 3 replicas and has 1"},
		{"one replica", checkReplicas, func(*testing.T, jetstream.JetStream) {}, "ORDERS-00 is on 1 of 3 servers"},
		{"missing stream", checkThere, remove(StreamName(0)), "stream ORDERS-00 is missing"},
		{"missing record", checkThere, remove("KV_" + clusterBucket), "no record of a log"},
		{"missing keys", checkThere, remove(userKeysStream), "bucket WEIR-USER-KEYS is missing"},
		{"witness ahead", checkThere, func(*testing.T, jetstream.JetStream) {}, "ends at 0, and this node saw commit 7"},
		{"holes", checkHoles, func(t *testing.T, js jetstream.JetStream) {
			change(func(c *jetstream.StreamConfig) { c.DenyDelete = false })(t, js)
			for range 3 {
				if _, err := js.Publish(t.Context(), SubjectName(0), nil); err != nil {
					t.Fatal(err)
				}
			}
			stream, err := js.Stream(t.Context(), StreamName(0))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.DeleteMsg(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		}, "2 messages with numbers 1 to 3"},
		{"nearly full", checkRoom, func(t *testing.T, js jetstream.JetStream) {
			change(func(c *jetstream.StreamConfig) { c.MaxBytes = 10_000 })(t, js)
			if _, err := js.Publish(t.Context(), SubjectName(0), make([]byte, 9000)); err != nil {
				t.Fatal(err)
			}
		}, "of 10000 bytes"},
		{"foreign messages", checkSubjects, func(t *testing.T, js jetstream.JetStream) {
			change(func(c *jetstream.StreamConfig) { c.Subjects = []string{SubjectName(0), "more"} })(t, js)
			for _, subject := range []string{SubjectName(0), "more"} {
				if _, err := js.Publish(t.Context(), subject, nil); err != nil {
					t.Fatal(err)
				}
			}
		}, "messages of 2 subjects"},
		{"a consumer that acknowledges", checkReaders, func(t *testing.T, js jetstream.JetStream) {
			if _, err := js.CreateConsumer(t.Context(), StreamName(0), jetstream.ConsumerConfig{Durable: "taker", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
				t.Fatal(err)
			}
		}, "consumer taker"},
		{"leases for ever", checkLeaseAge, func(t *testing.T, js jetstream.JetStream) {
			if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "WEIR-LEASES"}); err != nil {
				t.Fatal(err)
			}
		}, "WEIR-LEASES keeps for ever"},
		{"leases of any replica", checkDirect, func(t *testing.T, js jetstream.JetStream) {
			if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "WEIR-LEASES", TTL: time.Second, Storage: jetstream.MemoryStorage}); err != nil {
				t.Fatal(err)
			}
		}, "KV_WEIR-LEASES lets replicas that are behind answer"},
	}
	t.Run("none", func(t *testing.T) {
		nc, system := openServer(t, nil)
		madeLog(t, nc)
		findings := findingsOf(t, nc, ExamineOptions{System: system, SubjectsMax: 3})
		for _, test := range tests {
			if got := findings[test.check]; got.State != FindingGood {
				t.Errorf("before %q: %+v", test.name, got)
			}
		}
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // It waits for servers that may still answer, mostly.
			nc, system := openServer(t, nil)
			js := madeLog(t, nc)
			test.plant(t, js)
			got := findingsOf(t, nc, ExamineOptions{System: system, ReplicasMin: 3, SubjectsMax: 3, Known: map[uint32]uint64{0: 7}})[test.check]
			if got.State != FindingBad || !strings.Contains(got.Found, test.want) {
				t.Fatalf("got %+v, want it wrong with %q", got, test.want)
			}
		})
	}
}

func TestAHealthyClusterHasNoFindingsAndWhatIsMissingIsOne(t *testing.T) {
	c := newTrio(t)
	nc := c.connect(0)
	c.provision(nc, 3)
	if _, err := OpenUserKeys(t.Context(), nc, UserKeysOptions{Topology: Topology{Lanes: 1}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is wrong", func() error {
		findings, err := Examine(t.Context(), nc, ExamineOptions{System: c.system(0)})
		if err != nil {
			return err
		}
		for _, finding := range findings {
			if finding.State != FindingGood && finding.Number != checkStoreDir { // A test's directory is a temporary one.
				return &StreamSettingError{Setting: finding.Check, Value: finding.Found}
			}
		}
		return nil
	})
	planted, keeper := c.plant(nc)
	stays, last := (keeper+1)%3, (keeper+2)%3
	nc, system := c.connect(stays), c.system(stays)
	c.stop(keeper)
	gone := c.options[keeper].ServerName + " is not there"
	missing := map[int]Finding{}
	eventually(t, "the missing server is found, and the stream that it alone keeps", func() error {
		missing = findingsOf(t, nc, ExamineOptions{System: system, Known: map[uint32]uint64{0: 0}})
		got := missing[checkReplicas]
		if got.State != FindingBad || !strings.Contains(got.Found, gone) || !strings.Contains(got.Found, planted+" has no leader, or its servers are not there") {
			return &StreamSettingError{Setting: got.Check, Value: got.Found}
		}
		return nil
	})
	if got := missing[checkHoles]; got.State != FindingGood {
		t.Errorf("two of three servers are there, and of the log it is said: %+v", got)
	}
	if got := missing[checkThere]; got.State != FindingGood {
		t.Errorf("a server is missing, and of streams it is said: %+v", got)
	}
	unasked := findingsOf(t, nc, ExamineOptions{})
	for _, number := range []int{checkFsync, checkVersion, checkClocks, checkMonitoring} {
		if unasked[number].State != FindingUnknown {
			t.Errorf("without the system account: %+v", unasked[number])
		}
	}

	c.stop(last)
	alone := map[int]Finding{}
	eventually(t, "a server that is alone says so", func() error { // It waits for the others for a while.
		alone = findingsOf(t, nc, ExamineOptions{System: system})
		if got := alone[checkReplicas]; got.State != FindingBad || !strings.Contains(got.Found, "the servers have no leader") {
			return &StreamSettingError{Setting: got.Check, Value: got.Found}
		}
		return nil
	})
	if got := alone[checkThere]; got.State != FindingUnknown {
		t.Errorf("without a majority nothing is known of streams, and it is said: %+v", got)
	}
	if got := alone[checkFsync]; got.State != FindingGood {
		t.Errorf("the server that is left can be asked, and it is said: %+v", got)
	}
}

func TestVersionsAndSubjectsAreCompared(t *testing.T) {
	for version, older := range map[string]bool{"2.15.2": false, "2.15.1": true, "2.9.30": true, "2.16.0": false, "3.0.0": false, "2.15": true, "": true} {
		if olderThan(version, serverVersionMin) != older {
			t.Errorf("%q older than %s: want %t", version, serverVersionMin, older)
		}
	}
	for pattern, matches := range map[string]bool{"a.b.c": true, "a.*.c": true, "a.>": true, ">": true, "a.b": false, "a.b.c.>": false, "a.b.d": false, "*.*": false} {
		if subjectMatches(pattern, "a.b.c") != matches {
			t.Errorf("%q covers a.b.c: want %t", pattern, matches)
		}
	}
}
