package embedded

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func start(t *testing.T, options Options) *Server {
	t.Helper()
	s, err := Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func connect(t *testing.T, s *Server) *nats.Conn {
	t.Helper()
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestStreamsSurviveARestartAndAConnectionComesBack(t *testing.T) {
	s := start(t, Options{Dir: t.TempDir()})
	nc := connect(t, s)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if !s.SyncsBeforeAck() {
		t.Fatal("the server does not fsync before it acknowledges")
	}
	back := nc.StatusChanged(nats.CONNECTED)
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-back:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection did not come back after a restart")
	}
	stream, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	message, err := stream.GetMsg(t.Context(), 1)
	if err != nil || string(message.Data) != "kept" {
		t.Fatalf("after a restart message 1 is %v, %v, want \"kept\"", message, err)
	}
}

func TestADirectoryInUseIsRefusedWithTheProcessThatUsesIt(t *testing.T) {
	dir := t.TempDir()
	if os.Getenv("WEIR_TEST_DIR") != "" {
		_, err := Start(Options{Dir: os.Getenv("WEIR_TEST_DIR")})
		if used := (*DirInUseError)(nil); !errors.As(err, &used) || used.PID != os.Getppid() {
			t.Fatalf("got %v, want a *DirInUseError with pid %d", err, os.Getppid())
		}
		return
	}
	s := start(t, Options{Dir: dir})
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), "WEIR_TEST_DIR="+dir)
	if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("in another process: %v\n%s", err, out)
	}
	_, err := Start(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "is in use by another process (pid ") {
		t.Fatalf("in the same process: got %v", err)
	}
	s.Shutdown()
	start(t, Options{Dir: dir})
}

func TestTheLogMayNotTakeMoreThanTheDiskHas(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	byDefault, err := storeLimit(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := storeLimit(dir, 1<<62)
	if err != nil {
		t.Fatal(err)
	}
	little, err := storeLimit(dir, 500)
	if err != nil {
		t.Fatal(err)
	}
	if little != 500 || whole == 1<<62 || byDefault >= whole || byDefault < 1000 {
		t.Fatalf("limits: wanted 500 got %d, wanted everything got %d, default %d", little, whole, byDefault)
	}
}

func TestAListeningServerKeepsItsPortOverARestart(t *testing.T) {
	s := start(t, Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	client, monitor := s.ClientURL(), s.MonitorURL()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if s.ClientURL() != client || s.MonitorURL() != monitor || strings.HasSuffix(client, ":0") || strings.HasSuffix(client, "-1") {
		t.Fatalf("addresses were %s %s, are %s %s", client, monitor, s.ClientURL(), s.MonitorURL())
	}
	nc, err := nats.Connect(client)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestATakenPortIsAnErrorAndFreesTheDirectory(t *testing.T) {
	first := start(t, Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	dir := t.TempDir()
	address := strings.TrimPrefix(first.ClientURL(), "nats://")
	if _, err := Start(Options{Dir: dir, Listen: address}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("got %v, want an error that names the taken address", err)
	}
	start(t, Options{Dir: dir})
}
