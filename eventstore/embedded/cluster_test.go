package embedded

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/ops/freeports"
)

var testSecret = Secret("0123456789abcdef0123456789abcdef")

// lines is a log that tests read while servers write.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// routeTLS signs a certificate for 127.0.0.1.
func routeTLS(t *testing.T, authority *Authority) *tls.Config {
	t.Helper()
	certificate, key, err := authority.Sign("127.0.0.1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := RouteTLS(certificate, key, authority.PEM)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	authority, err := NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		case <-tick.C:
		}
	}
}

// member returns the options of a server of a cluster of three.
func member(t *testing.T, number int, routes []string, authority *Authority) Options {
	t.Helper()
	return Options{
		Dir: t.TempDir(), ServerName: fmt.Sprintf("n%d", number+1),
		Cluster: &Cluster{Name: "test", Listen: routes[number], Routes: routes, Secret: testSecret, TLS: routeTLS(t, authority)},
	}
}

func complete(s *Server) func() bool {
	return func() bool {
		state := s.Cluster()
		return len(state.Servers) == 3 && state.Leader != "" && state.Current
	}
}

func TestThreeServersBecomeAClusterInAnyOrderAndAfterTheyAllStopped(t *testing.T) {
	routes, authority := freeports.Addresses(t, 3), newAuthority(t)
	logged := &lines{}
	options := make([]Options, 3)
	for i := range options {
		options[i] = member(t, i, routes, authority)
		options[i].Logger = slog.New(slog.NewJSONHandler(logged, nil))
	}
	servers := make([]*Server, 3)
	for _, order := range [][]int{{2, 0, 1}, {0, 1, 2}} {
		for _, i := range order {
			servers[i] = start(t, options[i])
		}
		for _, s := range servers {
			eventually(t, "every server sees all three and a leader", complete(s))
		}
		js, err := jetstream.New(connect(t, servers[1]))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "a message is stored on three servers", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"weir.log.00"}, Replicas: 3}); err != nil {
				return false
			}
			_, err := js.Publish(ctx, "weir.log.00", []byte("kept"))
			return err == nil
		})
		for _, s := range servers {
			s.Shutdown()
		}
	}
	for _, secret := range []string{string(testSecret), hex.EncodeToString(testSecret), hex.EncodeToString(testSecret.derive("routes"))} {
		if strings.Contains(logged.String(), secret) {
			t.Fatalf("the log holds a secret:\n%s", logged.String())
		}
	}
}

// A server that was cut off was turned away for up to a minute and a half after it was there again: the others took its old routes for good.
func TestARouteThatAnswersNothingIsGivenUp(t *testing.T) {
	t.Parallel() // Most of it is waiting.
	routes, authority := freeports.Addresses(t, 2), newAuthority(t)
	link := newLink(t, routes[1])
	options := []Options{
		member(t, 0, []string{routes[0], link.listener.Addr().String()}, authority),
		member(t, 1, routes[:2], authority),
	}
	options[0].Cluster.Listen, options[1].Cluster.Routes = routes[0], routes[1:]
	var servers []*Server
	for i := range options {
		servers = append(servers, start(t, options[i]))
	}
	sees := func(count int) func() bool {
		return func() bool {
			for _, s := range servers {
				if len(s.Cluster().Servers) != count {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "each server sees the other", sees(2))
	link.cut()
	eventually(t, "neither server sees the other", sees(1))
}

// A link passes on what goes from one server to another, until it is cut: then it takes in everything and says nothing.
type link struct {
	listener net.Listener
	mu       sync.Mutex
	isCut    bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It lasts as long as the test.
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener}
	var carrying sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	carrying.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
			if err != nil {
				_ = in.Close() // The server dials again.
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() }) // To end the copies below.
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				carrying.Go(func() { l.carry(way[0], way[1]) })
			}
		}
	})
	t.Cleanup(func() {
		stop()
		_ = listener.Close() // Nothing is lost with it.
		carrying.Wait()
	})
	return l
}

// carry passes on what comes. While the link is cut, nothing is closed either.
func (l *link) carry(from, to net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		count, err := from.Read(buffer)
		l.mu.Lock()
		isCut := l.isCut
		l.mu.Unlock()
		switch {
		case isCut && err == nil:
			continue
		case isCut:
			return
		case err == nil:
			_, err = to.Write(buffer[:count])
		}
		if err != nil {
			_ = to.Close() // As the other side did.
			return
		}
	}
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
}

func TestAServerWithAnotherSecretOrCertificateGetsNoRoute(t *testing.T) {
	routes, authority := freeports.Addresses(t, 3), newAuthority(t)
	first := member(t, 0, routes, authority)
	logged := &lines{}
	first.Logger = slog.New(slog.NewTextHandler(logged, nil))
	good := start(t, first)
	start(t, member(t, 1, routes, authority))
	eventually(t, "two servers have a route", func() bool { return len(good.Cluster().Servers) == 2 })

	for _, intruder := range []struct {
		name, logs string
		change     func(*Cluster)
	}{
		{"another secret", "authentication error", func(c *Cluster) { c.Secret = Secret("another secret, also 32 bytes ok") }},
		{"no secret", "authentication error", func(c *Cluster) { c.Secret = nil }},
		{"a certificate of another authority", "TLS route handshake error", func(c *Cluster) {
			c.TLS = routeTLS(t, newAuthority(t))
			c.TLS.InsecureSkipVerify = true // It would talk to anybody.
		}},
		{"no TLS", "TLS route handshake error", func(c *Cluster) { c.TLS = nil }},
	} {
		t.Run(intruder.name, func(t *testing.T) {
			options := member(t, 2, routes, authority)
			options.Cluster.Listen = freeports.Addresses(t, 1)[0] // It dials: whom a server dials proves itself by its certificate alone.
			intruder.change(options.Cluster)
			before := len(logged.String())
			bad := start(t, options)
			defer bad.Shutdown()
			inside, outside := hears(t, good), hears(t, bad)
			eventually(t, "the server has refused the intruder", func() bool {
				inside.say(t)
				outside.say(t)
				return strings.Contains(logged.String()[before:], intruder.logs)
			})
			// Who dials has a route on its list until the other one has refused it.
			eventually(t, "neither counts the other", func() bool { return len(good.Cluster().Servers) == 2 && len(bad.Cluster().Servers) == 1 })
			inside.say(t)
			outside.say(t)
			inside.heardItself(t)
			outside.heardItself(t)
		})
	}
}

// A listener hears what is said at any server that its own has a route to.
type listener struct {
	nc   *nats.Conn
	sub  *nats.Subscription
	said int
}

func hears(t *testing.T, s *Server) *listener {
	t.Helper()
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	sub, err := nc.SubscribeSync("weir.cmd.said")
	if err != nil {
		t.Fatal(err)
	}
	return &listener{nc: nc, sub: sub}
}

func (l *listener) say(t *testing.T) {
	t.Helper()
	l.said++
	if err := errors.Join(l.nc.Publish("weir.cmd.said", []byte(l.nc.ConnectedServerName())), l.nc.Flush()); err != nil {
		t.Fatal(err)
	}
}

// heardItself fails the test unless what was heard is what was said at this server, and nothing else.
func (l *listener) heardItself(t *testing.T) {
	t.Helper()
	heard, own := 0, l.nc.ConnectedServerName()
	for {
		pending, _, err := l.sub.Pending()
		if err != nil {
			t.Fatal(err)
		}
		if pending == 0 {
			break
		}
		message, err := l.sub.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if string(message.Data) != own {
			t.Fatalf("%s heard what was said at %s", own, message.Data)
		}
		heard++
	}
	if heard != l.said {
		t.Fatalf("%s heard %d messages of the %d that were said there", own, heard, l.said)
	}
}

func TestOnlyWhoKnowsTheSecretBecomesAClient(t *testing.T) {
	routes, authority := freeports.Addresses(t, 3), newAuthority(t)
	options := member(t, 0, routes, authority)
	options.Listen = "127.0.0.1:0"
	s := start(t, options)
	trust := nats.Secure(&tls.Config{RootCAs: options.Cluster.TLS.RootCAs, MinVersion: tls.VersionTLS13})
	client, err := testSecret.ClientOption()
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := Secret("another secret, also 32 bytes ok").ClientOption()
	if err != nil {
		t.Fatal(err)
	}
	for name, option := range map[string]nats.Option{"nobody": nats.Name("nobody"), "another secret": wrong, "a password": nats.UserInfo("weir", "weir")} {
		if nc, err := nats.Connect(s.ClientURL(), trust, option); !errors.Is(err, nats.ErrAuthorization) {
			if err == nil {
				nc.Close()
			}
			t.Fatalf("%s: got %v, want %v", name, err, nats.ErrAuthorization)
		}
	}
	nc, err := nats.Connect(s.ClientURL(), trust, client)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if nc, err := nats.Connect(s.ClientURL(), client); err == nil {
		nc.Close()
		t.Fatal("a client that does not believe the authority got a connection")
	}
	system, err := s.ConnectSystem()
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	if _, err := system.Request("$SYS.REQ.SERVER.PING.JSZ", nil, 10*time.Second); err != nil {
		t.Fatalf("ask the system account: %v", err)
	}
	if _, err := connect(t, s).Request("$SYS.REQ.SERVER.PING.JSZ", nil, time.Second); err == nil {
		t.Fatal("a client of the log may ask the system account")
	}
}

// What is forbidden to whom: nobody deletes a stream or reads what others are told, and a gateway writes nothing that nodes write.
func TestClientsMayWhatTheyNeedAndNoMore(t *testing.T) {
	options := member(t, 0, freeports.Addresses(t, 3), newAuthority(t))
	options.Cluster.TLS = nil
	options.Listen = "127.0.0.1:0"
	s := start(t, options)
	for name, c := range map[string]struct {
		option           func() (nats.Option, error)
		allowed, refused []string
		subscribed       []string // are refused
	}{
		"a node": {
			testSecret.ClientOption,
			[]string{"weir.log.00", "$KV.WEIR-LEASES.00", "weir.cmd.1", "$JS.API.STREAM.CREATE.ORDERS-00"},
			[]string{
				"weir.other", "orders", "$JS.API.STREAM.DELETE.ORDERS-00", "$JS.API.STREAM.PURGE.ORDERS-00", "$JS.API.STREAM.RESTORE.ORDERS-00",
				"$JS.API.STREAM.MSG.DELETE.ORDERS-00", "$JS.API.STREAM.LEADER.STEPDOWN.ORDERS-00", "$JS.API.ACCOUNT.PURGE.WEIR", "$KV.WEIR-PLANS.active",
			},
			[]string{">", "weir.log.*", "$KV.WEIR-USER-KEYS.*"},
		},
		"a gateway": {
			testSecret.GatewayOption,
			[]string{"weir.failback.waiting.1", "$KV.WEIR-PLANS.active", "$JS.API.STREAM.CREATE.WEIR-FAILBACK"},
			[]string{"weir.log.00", "$KV.WEIR-LEASES.00", "$KV.WEIR-USER-KEYS.a", "weir.cmd.1", "$JS.API.STREAM.DELETE.ORDERS-00"},
			[]string{">", "weir.cmd.*"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			option, err := c.option()
			if err != nil {
				t.Fatal(err)
			}
			refusals := make(chan error, 64)
			nc, err := nats.Connect(s.ClientURL(), option, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refusals <- err }))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			refused := func(what string) {
				t.Helper()
				select {
				case err := <-refusals:
					if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), `"`+what+`"`) {
						t.Fatalf("%s: %v, want that it is refused", what, err)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("%s is not refused", what)
				}
			}
			for _, subject := range c.allowed {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
			}
			// The server answers in order: were one of those refused, its refusal would come first.
			for _, subject := range c.refused {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
				refused(subject)
			}
			for _, subject := range c.subscribed {
				if _, err := nc.SubscribeSync(subject); err != nil {
					t.Fatal(err)
				}
				refused(subject)
			}
		})
	}
}

func TestADirectoryStaysThatOfItsServer(t *testing.T) {
	routes, authority := freeports.Addresses(t, 3), newAuthority(t)
	alone := start(t, Options{Dir: t.TempDir()})
	js, err := jetstream.New(connect(t, alone))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	aloneDir := alone.options.StoreDir
	alone.Shutdown()
	joining := member(t, 0, routes, authority)
	clusterDir := joining.Dir
	start(t, joining).Shutdown()

	for _, wrong := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"a server that stood alone joins", func(o *Options) { o.Dir = aloneDir }, "that of a server that stands alone"},
		{"a server that was in a cluster stands alone", func(o *Options) { o.Cluster = nil }, "that of server n1 of cluster test"},
		{"another name", func(o *Options) { o.ServerName = "n9" }, "become that of server n9"},
		{"another cluster", func(o *Options) { o.Cluster.Name = "other" }, "become that of server n1 of cluster other"},
	} {
		options := member(t, 0, routes, authority)
		options.Dir = clusterDir
		wrong.change(&options)
		_, err := Start(options)
		if owner := (*DirOwnerError)(nil); !errors.As(err, &owner) || !strings.Contains(err.Error(), wrong.want) {
			t.Errorf("%s: got %v, want a *DirOwnerError with %q", wrong.name, err, wrong.want)
		}
	}
	joining.Dir = clusterDir
	start(t, joining)
}

func TestASecretIsNeverPrinted(t *testing.T) {
	out := &lines{}
	slog.New(slog.NewJSONHandler(out, nil)).Info("it", "secret", testSecret, "cluster", Cluster{Secret: testSecret})
	slog.New(slog.NewTextHandler(out, nil)).Info("it", "secret", testSecret)
	text, err := json.Marshal(map[string]any{"secret": testSecret})
	if err != nil {
		t.Fatal(err)
	}
	printed := out.String() + string(text) + fmt.Sprintf("%v %+v %#v %s", testSecret, Cluster{Secret: testSecret}, Cluster{Secret: testSecret}, testSecret)
	if strings.Contains(printed, string(testSecret)) || strings.Contains(printed, "0x30") || strings.Contains(printed, "MDEyMzQ1") || strings.Contains(printed, "48 49 50") {
		t.Fatalf("printed: %s", printed)
	}
}

func TestAShortSecretIsRefused(t *testing.T) {
	_, err := Start(Options{Dir: t.TempDir(), Cluster: &Cluster{Name: "test", Listen: "127.0.0.1:0", Secret: Secret("short")}})
	if err == nil || !strings.Contains(err.Error(), "5 bytes, fewer than 16") {
		t.Fatalf("got %v", err)
	}
}
