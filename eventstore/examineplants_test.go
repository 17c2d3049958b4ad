package eventstore

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
)

// wantWrong fails unless a check found something wrong, said so with all texts, and said what to do.
func wantWrong(t *testing.T, findings map[int]Finding, check int, texts ...string) {
	t.Helper()
	got := findings[check]
	if got.State != FindingBad || got.Do == "" {
		t.Errorf("got %+v, want it wrong, and what to do", got)
	}
	for _, text := range texts {
		if !strings.Contains(got.Found, text) {
			t.Errorf("%q does not say %q", got.Found, text)
		}
	}
}

// A reader that takes nothing is cut off by its server, which remembers that it did.
func TestAReaderThatWasCutOffIsFound(t *testing.T) {
	nc, system := openServer(t, func(o *server.Options) { o.MaxPending = 1 << 20 })
	madeLog(t, nc)
	if got := findingsOf(t, nc, ExamineOptions{System: system})[checkSlow]; got.State != FindingGood {
		t.Fatalf("before: %+v", got)
	}
	address, err := url.Parse(nc.ConnectedUrl())
	if err != nil {
		t.Fatal(err)
	}
	slow, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := fmt.Fprint(slow, `CONNECT {"user":"app","pass":"app","verbose":false}`+"\r\nSUB flood 1\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(slow); ; {
		if !lines.Scan() {
			t.Fatalf("the server did not answer: %v", lines.Err())
		}
		if lines.Text() == "PONG" {
			break
		}
	}
	water := make([]byte, 64<<10)
	eventually(t, "the reader is found", func() error {
		for range 100 {
			if err := nc.Publish("flood", water); err != nil {
				return err
			}
		}
		got := findingsOf(t, nc, ExamineOptions{System: system})[checkSlow]
		if got.State != FindingBad {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	wantWrong(t, findingsOf(t, nc, ExamineOptions{System: system}), checkSlow, "s has cut off 1")
}

// What only a server of another kind would say is said by one that is made up: it answers in the system account as servers do.
func TestAnOldServerWithAWrongClockAndAReplicaThatIsBehindIsFound(t *testing.T) {
	nc, system := openServer(t, func(o *server.Options) { o.SyncAlways = false })
	js := madeLog(t, nc)
	for range followBatchMax + 1 {
		if _, err := js.PublishAsync(SubjectName(0), nil); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-t.Context().Done():
	}
	before := findingsOf(t, nc, ExamineOptions{System: system})
	for _, check := range []int{checkVersion, checkClocks} {
		if before[check].State != FindingGood {
			t.Fatalf("before: %+v", before[check])
		}
	}
	said, err := system.RequestWithContext(t.Context(), "$SYS.REQ.SERVER."+system.ConnectedServerId()+".JSZ", []byte(`{"config":true,"accounts":true,"streams":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := system.Subscribe("$SYS.REQ.SERVER.PING.JSZ", func(question *nats.Msg) {
		var answer map[string]map[string]any
		if err := json.Unmarshal(said.Data, &answer); err != nil {
			t.Error(err)
			return
		}
		answer["server"]["name"], answer["server"]["ver"], answer["server"]["time"] = "old", "2.14.9", time.Now().Add(-10*time.Second)
		answer["data"]["account_details"] = []any{map[string]any{"stream_detail": []any{map[string]any{"name": StreamName(0), "state": map[string]any{"last_seq": 0}}}}}
		text, err := json.Marshal(answer)
		if err := errors.Join(err, question.Respond(text)); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	findings := findingsOf(t, nc, ExamineOptions{System: system, ReplicasMin: 1})
	wantWrong(t, findings, checkVersion, "old runs 2.14.9")
	wantWrong(t, findings, checkClocks, "the clock of old is at least ")
	wantWrong(t, findings, checkReplicas, "ORDERS-00: old has 0 of 4097 messages on its disk")
}

// A flipped bit makes a server drop the rest of a block without a word, and a creation that was cut off makes it drop the stream.
func TestWhatAServerDroppedWhenItStartedIsFound(t *testing.T) {
	dir := t.TempDir()
	topology := Topology{Lanes: 2}
	run := func() (*embedded.Server, *nats.Conn) {
		s := startServer(t, embedded.Options{Dir: dir})
		nc := connectTo(t, s)
		if _, err := Provision(t.Context(), nc, ProvisionOptions{Topology: topology}); err != nil {
			t.Fatal(err)
		}
		return s, nc
	}
	known := map[uint32]uint64{0: 20}
	s, nc := run()
	appendAll(t, openLanes(t, nc, 0, 2), chainOf(t, 0, Genesis(0, 2), 20, 20_000))
	for number, finding := range findingsOf(t, nc, ExamineOptions{Known: known}) {
		if (number == checkThere || number == checkHoles) && finding.State != FindingGood {
			if number == checkThere && strings.Contains(finding.Found, userKeysBucket) {
				continue // This test makes no keys.
			}
			t.Fatalf("before: %+v", finding)
		}
	}
	nc.Close()
	s.Shutdown()

	messages := filepath.Join(streamDir(dir, StreamName(0)), "msgs")
	block, err := os.ReadFile(filepath.Join(messages, "1.blk"))
	if err != nil {
		t.Fatal(err)
	}
	block[len(block)/2] ^= 1
	// The server trusts its index as long as that is newer than the block.
	err = errors.Join(os.WriteFile(filepath.Join(messages, "1.blk"), block, 0o600), os.Remove(filepath.Join(messages, "index.db")),
		os.Remove(filepath.Join(streamDir(dir, StreamName(1)), "meta.sum")))
	if err != nil {
		t.Fatal(err)
	}
	nc = connectTo(t, startServer(t, embedded.Options{Dir: dir}))
	wantWrong(t, findingsOf(t, nc, ExamineOptions{Known: known}), checkThere,
		"ORDERS-00 ends at ", "this node saw commit 20 acknowledged", "stream ORDERS-01 is missing")
}

func TestWhatAProcessKnowsOfItselfIsFound(t *testing.T) {
	s := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, s)
	madeLog(t, nc)
	dir, used, free, err := s.Disk()
	if err != nil {
		t.Fatal(err)
	}
	disk := Disk{Dir: dir, Max: s.MaxBytes(), Used: used, Free: free}
	good := findingsOf(t, nc, ExamineOptions{Own: &OwnServer{StoreDir: "/var/lib/weir", SyncsBeforeAck: true}, Disk: &disk})
	for number, finding := range good {
		if finding.State != FindingGood {
			t.Errorf("check %d before: %+v", number, finding)
		}
	}
	disk.Free = disk.Max - disk.Used - 1
	bad := findingsOf(t, nc, ExamineOptions{Own: &OwnServer{StoreDir: "/var/tmp/weir", Open: true}, Disk: &disk, PasswordShown: true})
	wantWrong(t, bad, checkFsync, "the node's own server does not")
	wantWrong(t, bad, checkStoreDir, "the node's own server stores in /var/tmp/weir")
	wantWrong(t, bad, checkClients, "lets anybody in")
	wantWrong(t, bad, checkRoom, dir+" may grow to")
	wantWrong(t, bad, checkPasswords, "an address has one")
}

func TestTheDocumentSaysWhatIsCheckedAndWhichTestPlantsIt(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "ops", "doctor.md"))
	if err != nil {
		t.Fatal(err)
	}
	checked, rest, found := strings.Cut(string(text), "## What a live system does not show")
	if !found {
		t.Fatal("the document does not say what a live system does not show")
	}
	if rows := strings.Count(checked, "\n| ") - 1; rows != len(checks) {
		t.Errorf("the document has %d checks, there are %d", rows, len(checks))
	}
	for _, check := range checks {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| %d \| %s \| .* \| .*$`, check.Number, regexp.QuoteMeta(check.Check))).FindString(checked)
		if !strings.Contains(row, "`Test") {
			t.Errorf("the document names no test that plants what check %d, %s, finds: %q", check.Number, check.Check, row)
		}
	}
	var code strings.Builder
	for _, pattern := range []string{"*_test.go", "ownership/*_test.go", "../cmd/weir/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(source)
		}
	}
	for _, test := range regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(checked+rest, -1) {
		if !strings.Contains(code.String(), "func "+test[1]+"(") {
			t.Errorf("the document names %s, and there is no such test", test[1])
		}
	}
}

// plant makes a stream of one replica, and returns its name and the number of the server that keeps it.
func (c *trio) plant(nc *nats.Conn) (stream string, server int) {
	c.t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	made, err := js.CreateStream(c.t.Context(), jetstream.StreamConfig{Name: "WEIR-PLANTED", Subjects: []string{"planted"}})
	if err != nil {
		c.t.Fatal(err)
	}
	info := made.CachedInfo()
	server = slices.IndexFunc(c.options[:], func(o embedded.Options) bool { return o.ServerName == info.Cluster.Leader })
	if server < 0 {
		c.t.Fatalf("stream %s is led by %q", info.Config.Name, info.Cluster.Leader)
	}
	return info.Config.Name, server
}
