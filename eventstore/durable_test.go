package eventstore

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/weirhq/weir/eventstore/embedded"
)

func TestAServerThatSyncsBeforeItAcknowledgesIsDurable(t *testing.T) {
	s := startServer(t, embedded.Options{Dir: t.TempDir(), Monitor: "127.0.0.1:0"})
	if err := CheckDurable(t.Context(), connectTo(t, s), s.MonitorURL()); err != nil {
		t.Fatal(err)
	}
}

func wantLossy(t *testing.T, err error, want string) {
	t.Helper()
	lossy := (*LossyServerError)(nil)
	if !errors.As(err, &lossy) || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), "sync_interval: always") || !strings.Contains(err.Error(), "--allow-lossy-log") {
		t.Fatalf("got %v, want a *LossyServerError with %q and what to do", err, want)
	}
}

func TestAServerThatSyncsNowAndThenIsLossy(t *testing.T) {
	s := startServer(t, embedded.Options{Dir: t.TempDir(), Monitor: "127.0.0.1:0", SyncInterval: time.Minute})
	nc := connectTo(t, s)
	wantLossy(t, CheckDurable(t.Context(), nc, s.MonitorURL()), "fsyncs every 1m0s")
	durable := startServer(t, embedded.Options{Dir: t.TempDir(), Monitor: "127.0.0.1:0"})
	wantLossy(t, CheckDurable(t.Context(), connectTo(t, durable), durable.MonitorURL()+", "+s.MonitorURL()), "fsyncs every 1m0s")
	wantLossy(t, CheckDurable(t.Context(), nc, durable.MonitorURL()), "not among those that answered")
}

func TestAServerThatCannotBeAskedCountsAsLossy(t *testing.T) {
	s := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, s)
	wantLossy(t, CheckDurable(t.Context(), nc, ""), "system account")
	wantLossy(t, CheckDurable(t.Context(), nc, "http://127.0.0.1:1"), "cannot be asked")
	wantLossy(t, CheckDurable(t.Context(), nc, "8222"), "not like http://host:8222")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("<html>"))
	}))
	defer web.Close()
	wantLossy(t, CheckDurable(t.Context(), nc, web.URL), "something else than a NATS server")
}

func TestTheSystemAccountTellsWhetherAServerIsDurable(t *testing.T) {
	for _, always := range []bool{true, false} {
		account := server.NewAccount("SYS")
		s, err := server.NewServer(&server.Options{
			DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), SyncAlways: always,
			Accounts: []*server.Account{account}, SystemAccount: "SYS",
			Users: []*server.User{{Username: "system", Password: "system", Account: account}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		defer s.Shutdown()
		if !s.ReadyForConnections(30 * time.Second) {
			t.Fatal("the server is not ready")
		}
		nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo("system", "system"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		err = CheckDurable(t.Context(), nc, "")
		if always && err != nil {
			t.Fatal(err)
		}
		if !always {
			wantLossy(t, err, "fsyncs every 2m0s")
		}
	}
}
