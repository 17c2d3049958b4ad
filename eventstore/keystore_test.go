package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
)

func provisioned(t *testing.T, nc *nats.Conn, replicas int) Topology {
	t.Helper()
	topology := Topology{Lanes: 2}
	if _, err := Provision(t.Context(), nc, ProvisionOptions{Topology: topology, Replicas: replicas, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return topology
}

func openKeys(t *testing.T, nc *nats.Conn, topology Topology, replicas int) *UserKeys {
	t.Helper()
	keys, err := OpenUserKeys(t.Context(), nc, UserKeysOptions{Topology: topology, Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestUserKeysAreCreatedOnceAndSurviveARestart(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	topology := provisioned(t, nc, 1)
	keys := openKeys(t, nc, topology, 1)
	if value, found, err := keys.Get(t.Context(), "ada"); err != nil || found {
		t.Fatalf("before it was made: got %q, %t, %v", value, found, err)
	}
	for i, want := range []string{"first", "first"} {
		stored, err := keys.Create(t.Context(), "ada", []byte([]string{"first", "second"}[i]))
		if err != nil || string(stored) != want {
			t.Fatalf("create %d: got %q, %v, want %q", i, stored, err, want)
		}
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	nc = connectTo(t, server)
	for range 2 { // Opening it twice changes nothing.
		value, found, err := openKeys(t, nc, topology, 1).Get(t.Context(), "ada")
		if err != nil || !found || string(value) != "first" {
			t.Fatalf("after a restart: got %q, %t, %v", value, found, err)
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), userKeysStream)
	if err != nil {
		t.Fatal(err)
	}
	if config := stream.CachedInfo().Config; config.AllowDirect || config.DenyDelete || config.MaxMsgsPerSubject != 1 || config.Storage != jetstream.FileStorage || config.Description != "Weir: wrapped data keys of users" {
		t.Errorf("the bucket's settings are %+v", config)
	}
	bucket, err := js.KeyValue(t.Context(), userKeysBucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := bucket.Purge(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	keys = openKeys(t, nc, topology, 1)
	if value, found, err := keys.Get(t.Context(), "ada"); err != nil || found {
		t.Fatalf("after it was erased: got %q, %t, %v", value, found, err)
	}
	if stored, err := keys.Create(t.Context(), "ada", []byte("third")); err != nil || string(stored) != "third" {
		t.Fatalf("made anew: got %q, %v", stored, err)
	}
}

func TestBucketOfUserKeysIsUsedFromItsFirstKeyOn(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	keys := openKeys(t, nc, provisioned(t, nc, 1), 1)
	expect := func(when string, want bool) {
		t.Helper()
		if used, err := keys.Used(t.Context()); err != nil || used != want {
			t.Fatalf("%s: got %t, %v, want %t", when, used, err, want)
		}
	}
	expect("before the first key", false)
	if _, err := keys.Create(t.Context(), "ada", []byte("first")); err != nil {
		t.Fatal(err)
	}
	expect("with a key", true)
	if err := keys.bucket.Purge(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	expect("after it was erased", true)
}

func TestAnErasedKeyIsNotOnTheDiskAnyMore(t *testing.T) {
	for _, where := range []string{"TheNewestOfItsBlock", "AmongOthers", "InABucketOfAnOlderProgram"} {
		t.Run(where, func(t *testing.T) {
			dir := t.TempDir()
			server := startServer(t, embedded.Options{Dir: dir})
			nc := connectTo(t, server)
			topology := provisioned(t, nc, 1)
			old := where == "InABucketOfAnOlderProgram"
			if old {
				js, err := jetstream.New(nc)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: userKeysBucket, History: 1, Description: "Weir: wrapped data keys of users" + beingCreated}); err != nil {
					t.Fatal(err)
				}
			}
			keys := openKeys(t, nc, topology, 1)
			secret := []byte("the wrapped key of ada")
			create := func(user string, value []byte) {
				t.Helper()
				if stored, err := keys.Create(t.Context(), user, value); err != nil || !bytes.Equal(stored, value) {
					t.Fatalf("create: got %q, %v", stored, err)
				}
			}
			create("ada", secret)
			if where != "TheNewestOfItsBlock" {
				for i := range 20 {
					create(fmt.Sprintf("user-%d", i), []byte("another"))
				}
			}
			if filesWith(t, dir, secret) == 0 {
				t.Fatal("the key is not on the disk at all: the test looks in the wrong place")
			}
			if err := keys.Erase(t.Context(), "ada", []byte("another value")); err != nil {
				t.Fatal(err)
			}
			if _, found, err := keys.Get(t.Context(), "ada"); err != nil || !found {
				t.Fatalf("a value that is not there was to be erased, and now: %t, %v", found, err)
			}
			for range 2 { // Again changes nothing.
				if err := keys.Erase(t.Context(), "ada", secret); err != nil {
					t.Fatal(err)
				}
			}
			if value, found, err := keys.Get(t.Context(), "ada"); err != nil || found {
				t.Fatalf("after it was erased: got %q, %t, %v", value, found, err)
			}
			if count := filesWith(t, dir, secret); count > 0 && !old {
				t.Fatalf("%d files hold the erased key", count)
			}
			create("ada", []byte("a new key"))
			if err := keys.Erase(t.Context(), "ada", secret); err != nil { // A call that comes late.
				t.Fatal(err)
			}
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
			keys = openKeys(t, connectTo(t, server), topology, 1)
			if value, found, err := keys.Get(t.Context(), "ada"); err != nil || string(value) != "a new key" {
				t.Fatalf("the new key after a restart: got %q, %t, %v", value, found, err)
			}
			if count := filesWith(t, dir, secret); count > 0 && !old {
				t.Fatalf("after a restart %d files hold the erased key", count)
			}
		})
	}
}

// filesWith counts the files below dir that hold the bytes.
func filesWith(t *testing.T, dir string, secret []byte) (count int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, secret) {
			count++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func TestAnEraseThatWasStoppedHalfwayIsFinished(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	keys := openKeys(t, nc, provisioned(t, nc, 1), 1)
	if _, err := keys.Create(t.Context(), "ada", []byte("first")); err != nil {
		t.Fatal(err)
	}
	entry, err := keys.bucket.Get(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.stream.SecureDeleteMsg(t.Context(), entry.Revision()); err != nil { // And no mark.
		t.Fatal(err)
	}
	if err := keys.Erase(t.Context(), "ada", nil); err != nil {
		t.Fatal(err)
	}
	if used, err := keys.Used(t.Context()); err != nil || !used {
		t.Fatalf("there is no mark: %t, %v", used, err)
	}
}

// A bucket's leader that is stopped does not answer. Who ordered with a note waited for it for 5 s, and was told that keys are unavailable.
func TestAUserKeyIsAskedForAgainWhenNobodyAnswers(t *testing.T) {
	_, nc := plainServer(t, "")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	answering(t, nc, "$JS.API.STREAM.INFO."+userKeysStream, `{"config":{"name":"`+userKeysStream+`","max_msgs_per_subject":1}}`)
	bucket, err := js.KeyValue(t.Context(), userKeysBucket)
	if err != nil {
		t.Fatal(err)
	}
	keys := &UserKeys{js: js, bucket: bucket}
	const stored = `{"message":{"subject":"$KV.` + userKeysBucket + `.ada","seq":7,"data":"YQ==","time":"2026-11-11T00:00:00Z"}}`
	asked := answering(t, nc, "$JS.API.STREAM.MSG.GET."+userKeysStream, "", noLeaderAnswer, "", stored)
	value, found, err := keys.Get(t.Context(), "ada")
	if err != nil || !found || string(value) != "a" {
		t.Fatalf("asked %d times: got %q, %t, %v", asked(), value, found, err)
	}
	// What was stored and not answered is found.
	const there = `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"}}`
	put := answering(t, nc, userKeySubject("ada"), "", there)
	if value, err := keys.Create(t.Context(), "ada", []byte("a")); err != nil || string(value) != "a" {
		t.Fatalf("stored %d times: got %q, %v", put(), value, err)
	}
}

func TestWatchersHearOfEveryKeyThatIsMadeOrErased(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	keys := openKeys(t, nc, provisioned(t, nc, 1), 1)
	create := func(user, value string) {
		t.Helper()
		if _, err := keys.Create(t.Context(), user, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	create("before", "x")
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- keys.Watch(ctx, func(userID string, value []byte) { heard <- fmt.Sprintf("%s=%s", userID, value) })
	}()
	for round := 0; ; round++ { // Until the watch has begun.
		create(fmt.Sprintf("begin-%d", round), "x")
		select {
		case <-heard:
		case <-time.After(10 * time.Millisecond):
			continue
		}
		break
	}
	hear := func(want string) { // What comes next of a user may take the place of what was not heard yet.
		t.Helper()
		for got := ""; got != want; {
			select {
			case got = <-heard:
				if strings.HasPrefix(got, "ada=") && got != want {
					t.Fatalf("heard %s, want %s", got, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("did not hear %s", want)
			}
		}
	}
	create("ada", "first")
	hear("ada=first")
	if err := keys.Erase(t.Context(), "ada", []byte("first")); err != nil {
		t.Fatal(err)
	}
	hear("ada=")
	create("ada", "second")
	hear("ada=second")
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestCallersThatCreateAUserKeyAtOnceGetTheSame(t *testing.T) {
	t.Run("Unreplicated", func(t *testing.T) {
		server := startServer(t, embedded.Options{Dir: t.TempDir()})
		testKeyRace(t, 1, connectTo(t, server))
	})
	t.Run("Replicated", func(t *testing.T) {
		servers := startCluster(t)
		var conns []*nats.Conn
		for _, server := range servers {
			conns = append(conns, connectTo(t, server))
		}
		waitForJetStream(t, conns[0], 3)
		testKeyRace(t, 3, conns...)
	})
}

func testKeyRace(t *testing.T, replicas int, conns ...*nats.Conn) {
	t.Helper()
	topology := provisioned(t, conns[0], replicas)
	const callers = 12
	var stores [callers]*UserKeys
	for i := range stores {
		stores[i] = openKeys(t, conns[i%len(conns)], topology, replicas)
	}
	for round := range 5 {
		user := fmt.Sprintf("user-%d", round)
		var stored [callers][]byte
		var group sync.WaitGroup
		for i := range callers {
			group.Go(func() {
				value, err := stores[i].Create(t.Context(), user, []byte(fmt.Sprintf("key of caller %d", i)))
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
				stored[i] = value
			})
		}
		group.Wait()
		for i := range stored {
			if !bytes.Equal(stored[i], stored[0]) {
				t.Fatalf("%s: caller %d got %q, caller 0 got %q", user, i, stored[i], stored[0])
			}
		}
	}
}

func TestMissingBucketOfUserKeysIsNotMadeAnewOnceThereAreCommits(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	topology := provisioned(t, nc, 1)
	openKeys(t, nc, topology, 1)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteKeyValue(t.Context(), userKeysBucket); err != nil {
		t.Fatal(err)
	}
	openKeys(t, nc, topology, 1) // No commits yet: nothing was sealed.
	if err := js.DeleteKeyValue(t.Context(), userKeysBucket); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), SubjectName(1), []byte("a commit")); err != nil {
		t.Fatal(err)
	}
	_, err = OpenUserKeys(t.Context(), nc, UserKeysOptions{Topology: topology})
	var missing *MissingKeysError
	if !errors.As(err, &missing) || missing.Lane != 1 {
		t.Fatalf("got %v, want a MissingKeysError of lane 1", err)
	}
}
