package plan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
)

// patience bounds the waits of tests; only a failing test waits as long.
const patience = time.Minute

// A world is a NATS server that comes and goes at one address.
type world struct {
	t       *testing.T
	dir     string
	address string
	server  *embedded.Server
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	listener.Close()
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: w.dir, Listen: w.address, Logger: quiet})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = server
}

func (w *world) stop() {
	if w.server != nil {
		w.server.Shutdown()
		w.server = nil
	}
}

var quiet = slog.New(slog.DiscardHandler)

func (w *world) connect() *nats.Conn {
	w.t.Helper()
	connection, err := nats.Connect("nats://"+w.address, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 10*time.Millisecond))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(connection.Close)
	return connection
}

func (w *world) stream() jetstream.JetStream {
	w.t.Helper()
	stream, err := jetstream.New(w.connect())
	if err != nil {
		w.t.Fatal(err)
	}
	return stream
}

// store opens the operator's side with a clock.
func (w *world) store(now func() time.Time) *Store {
	w.t.Helper()
	store, err := OpenStore(w.t.Context(), w.stream(), StoreConfig{Now: now})
	if err != nil {
		w.t.Fatal(err)
	}
	return store
}

// follower runs a gateway's side until its stop is called, or the test ends.
func (w *world) follower(config Config, options Options) (f *Follower, stop func()) {
	w.t.Helper()
	options.Procedures, options.Connection = procedures, w.connect()
	if options.Logger == nil {
		options.Logger = quiet
	}
	f, err := NewFollower(config, options)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := f.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	w.t.Cleanup(stop)
	return f, stop
}

// label waits until a gateway has what is active as this label.
func label(t *testing.T, f *Follower, want string) *Set {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for set := f.Now(); ; {
		if set.Label == want {
			return set
		}
		next, err := f.Next(ctx, set)
		if err != nil {
			t.Fatalf("the gateway has %q, want %q", set.Label, want)
		}
		set = next
	}
}

const (
	saleText = "name: sale\nsold_out: true\nshed_below: read # nothing but points is shed\n"
	downText = "name: down\noff: {weir.payment.v1.PaymentService/*: {}}\n"
)

func put(t *testing.T, s *Store, text string) Version {
	t.Helper()
	version, err := s.Put(t.Context(), []byte(text), nil, "ann", "a test")
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// one takes the result of a change.
func one(t *testing.T) func(set *Set, err error) *Set {
	return func(set *Set, err error) *Set {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
}

func TestPlansAreVersionedAndChangesRolledBack(t *testing.T) {
	w := newWorld(t)
	now := noon
	s := w.store(func() time.Time { return now })
	ctx, must := t.Context(), one(t)

	if _, err := s.Rollback(ctx, procedures, "ann", ""); !errors.Is(err, ErrNothingBefore) {
		t.Fatalf("rolled back nothing: %v", err)
	}
	first := put(t, s, saleText)
	if again := put(t, s, saleText); again.Revision != first.Revision {
		t.Fatalf("the same text again is revision %d, want %d", again.Revision, first.Revision)
	}
	second := put(t, s, strings.Replace(saleText, "read", "place", 1))
	down := put(t, s, downText)
	stale := first.Revision
	var conflict *ConflictError
	if _, err := s.Put(ctx, []byte(saleText), &stale, "bob", ""); !errors.As(err, &conflict) || conflict.Have != second.Revision {
		t.Fatalf("put over revision %d that is %d by now: %v", stale, second.Revision, err)
	}
	if _, err := s.Apply(ctx, Application{Name: "nonesuch", By: "ann"}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("applied a plan that is not there: %v", err)
	}
	if _, err := s.Apply(ctx, Application{Name: "sale"}); err == nil || !strings.Contains(err.Error(), "who") {
		t.Fatalf("nobody applied a plan: %v", err)
	}

	// What is active after each step, and then back again.
	set := must(s.Apply(ctx, Application{Name: "sale", Revision: first.Revision, By: "ann"}))
	if set.Label != first.Label() || set.Plans[0].Until != noon.Add(TTLDefault) {
		t.Fatalf("got %q until %s", set.Label, set.Plans[0].Until)
	}
	before := set.Revision
	now = now.Add(time.Minute)
	if set = must(s.Apply(ctx, Application{Name: "down", TTL: 10 * time.Minute, By: "ann"})); set.Label != down.Label()+","+first.Label() {
		t.Fatalf("got %q", set.Label)
	}
	if _, err := s.Apply(ctx, Application{Name: "sale", By: "bob", Expect: &before}); !errors.As(err, &conflict) {
		t.Fatalf("applied to revision %d that was changed: %v", before, err)
	}
	now = now.Add(time.Minute)
	if set = must(s.Apply(ctx, Application{Name: "sale", By: "ann"})); set.Label != second.Label()+","+down.Label() {
		t.Fatalf("got %q", set.Label)
	}
	if set = must(s.Rollback(ctx, procedures, "ann", "")); set.Label != down.Label()+","+first.Label() {
		t.Fatalf("rolled back to %q", set.Label)
	}
	if set = must(s.End(ctx, "sale", procedures, "ann", "")); set.Label != down.Label() {
		t.Fatalf("ended: %q", set.Label)
	}
	if _, err := s.End(ctx, "sale", procedures, "ann", ""); !errors.Is(err, ErrNotFound) {
		t.Fatalf("ended it twice: %v", err)
	}
	// down's time is over when it would come back.
	now = now.Add(10 * time.Minute)
	for _, want := range []string{first.Label(), first.Label(), ""} {
		if set = must(s.Rollback(ctx, procedures, "ann", "")); set.Label != want {
			t.Fatalf("rolled back to %q, want %q", set.Label, want)
		}
	}
	if _, err := s.Rollback(ctx, procedures, "ann", ""); !errors.Is(err, ErrNothingBefore) {
		t.Fatalf("rolled back more than there was: %v", err)
	}

	versions, err := s.Plans(ctx)
	if err != nil || len(versions) != 2 || versions[0].Plan.Name != "down" || versions[1].Revision != second.Revision {
		t.Fatalf("%v: plans are %+v", err, versions)
	}
	if version, err := s.Plan(ctx, "sale", first.Revision); err != nil || version.Text != saleText {
		t.Fatalf("%v: version %d is %q", err, first.Revision, version.Text)
	}
	if _, err := s.Plan(ctx, "sale", down.Revision); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the revision of another plan is one of this: %v", err)
	}
}

func TestEveryChangeIsAudited(t *testing.T) {
	w := newWorld(t)
	now := noon
	s := w.store(func() time.Time { return now })
	sale := put(t, s, saleText)
	one(t)(s.Apply(t.Context(), Application{Name: "sale", By: "ann", Why: "the sale opens"}))
	one(t)(s.Rollback(t.Context(), procedures, "bob", "it opened early"))
	// Another tool leaves a trace too, and is no way around the audit.
	bucket, err := w.stream().KeyValue(t.Context(), Bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := bucket.Delete(t.Context(), activeKey); err != nil {
		t.Fatal(err)
	}
	entries, behind, err := s.History(t.Context(), 100)
	if err != nil || behind {
		t.Fatalf("%v, behind %t", err, behind)
	}
	got := []string{}
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%d %s %s by %q why %q: %s → %s", e.Revision, e.Change.Verb, e.Change.Plan, e.Change.By, e.Change.Why, e.Change.From, e.Change.To))
	}
	want := []string{
		`1 put ` + sale.Label() + ` by "ann" why "a test": [] → []`,
		`2 apply ` + sale.Label() + ` by "ann" why "the sale opens": [] → [sale@1]`,
		`3 rollback  by "bob" why "it opened early": [sale@1] → []`,
		`4 changed  by "" why "by another tool: DEL": [] → []`,
	}
	if !slices.Equal(got, want) {
		t.Fatalf("history:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if ends := entries[1].Ends; !ends["sale@1"].Equal(noon.Add(TTLDefault)) {
		t.Fatalf("the plan ends at %s", ends)
	}
	if entries, _, err = s.History(t.Context(), 2); err != nil || len(entries) != 2 || entries[1].Revision != 4 {
		t.Fatalf("%v: the newest two are %+v", err, entries)
	}
	// After a deletion one can apply again.
	if set := one(t)(s.Apply(t.Context(), Application{Name: "sale", By: "ann"})); set.Label != "sale@1" {
		t.Fatalf("after the record was deleted: %q", set.Label)
	}
	audit, err := w.stream().Stream(t.Context(), AuditStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Purge(t.Context()); err == nil {
		t.Fatal("the audit was purged")
	}
	if err := audit.DeleteMsg(t.Context(), 1); err == nil {
		t.Fatal("a message of the audit was deleted")
	}
}

func TestOfTwoWhoChangeAtOnceOneIsTold(t *testing.T) {
	w := newWorld(t)
	s := w.store(nil)
	put(t, s, saleText)
	put(t, s, downText)
	const each = 20
	var applied, refused int
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, name := range []string{"sale", "down"} {
		group.Go(func() {
			for range each {
				_, err := s.Apply(t.Context(), Application{Name: name, By: name})
				var conflict *ConflictError
				mu.Lock()
				switch {
				case err == nil:
					applied++
				case errors.As(err, &conflict):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	entries, _, err := s.History(t.Context(), HistoryMax)
	if err != nil {
		t.Fatal(err)
	}
	if applied+refused != 2*each || len(entries) != applied+2 {
		t.Fatalf("%d applied, %d were refused, the audit has %d changes and 2 plans", applied, refused, len(entries)-2)
	}
	// Nobody wrote over what another one did.
	for i := 3; i < len(entries); i++ {
		if from, to := entries[i].Change.From, entries[i-1].Change.To; !slices.Equal(from, to) {
			t.Fatalf("change %d is from %q, and the one before it led to %q", i, from, to)
		}
	}
}

func TestAFlipReachesEveryGatewayAndEndsByItself(t *testing.T) {
	w := newWorld(t)
	gateways := []*Follower{}
	for range 3 {
		f, _ := w.follower(Config{}, Options{})
		gateways = append(gateways, f)
	}
	s := w.store(nil)
	sale := put(t, s, saleText)
	for _, f := range gateways {
		label(t, f, "")
	}
	one(t)(s.Apply(t.Context(), Application{Name: "sale", TTL: ttlMin, By: "ann"}))
	for _, f := range gateways {
		if set := label(t, f, sale.Label()); !*set.SoldOut {
			t.Fatal("the plan is active without its switches")
		}
	}
	w.stop() // Ending needs nobody.
	for _, f := range gateways {
		label(t, f, "")
	}
}

func TestTheLastKnownGoodStaysWhileNATSIsAwayAndOverARestart(t *testing.T) {
	w := newWorld(t)
	config := Config{CacheFile: filepath.Join(t.TempDir(), "plans.json")}
	s := w.store(nil)
	sale := put(t, s, saleText)
	down := put(t, s, downText)
	f, stop := w.follower(config, Options{})
	one(t)(s.Apply(t.Context(), Application{Name: "sale", By: "ann"}))
	label(t, f, sale.Label())
	waitForFile(t, config.CacheFile, sale.Label())
	w.stop()
	stop()
	if got := f.Now().Label; got != sale.Label() {
		t.Fatalf("with NATS away the gateway has %q", got)
	}

	f, stop = w.follower(config, Options{})
	if got := f.Now().Label; got != sale.Label() {
		t.Fatalf("after a restart without NATS the gateway has %q", got)
	}
	w.start()
	one(t)(s.Apply(t.Context(), Application{Name: "down", By: "ann"}))
	label(t, f, down.Label()+","+sale.Label())

	// A restart after the end does not bring it back.
	late, err := NewFollower(config, Options{Procedures: procedures, Logger: quiet, Now: func() time.Time { return time.Now().Add(2 * TTLDefault) }})
	if err != nil || late.Now().Label != "" {
		t.Fatalf("%v: after its end the gateway has %q", err, late.Now().Label)
	}
	// A damaged file is none. Nobody else writes it any more.
	stop()
	if err := os.WriteFile(config.CacheFile, []byte(`{"format":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if damaged, err := NewFollower(config, Options{Procedures: procedures, Logger: quiet}); err != nil || damaged.Now().Label != "" {
		t.Fatalf("with a damaged file: %v", err)
	}
}

func waitForFile(t *testing.T, path, want string) {
	t.Helper()
	name, _, _ := strings.Cut(want, "@")
	for deadline := time.Now().Add(patience); ; {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), "name: "+name) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %q (%v), want it to have %s", path, text, err, want)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestWhatIsNotUnderstoodChangesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.store(nil)
	sale := put(t, s, saleText)
	f, _ := w.follower(Config{Resync: time.Second}, Options{})
	one(t)(s.Apply(t.Context(), Application{Name: "sale", By: "ann"}))
	label(t, f, sale.Label())
	bucket, err := w.stream().KeyValue(t.Context(), Bucket)
	if err != nil {
		t.Fatal(err)
	}
	future, err := encode(&activeRecord{Format: recordFormat, Active: []activeInForm{{Revision: 7, Text: "name: x\nwarp: 9", Until: time.Now().Add(time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	typo, err := encode(&activeRecord{Format: recordFormat, Active: []activeInForm{{Revision: 7, Text: "name: x\noff: {a.B/C: {}}", Until: time.Now().Add(time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	bad := [][]byte{[]byte("hello"), []byte(`{"format": "weir plans 2"}`), future, typo}
	for i, value := range bad {
		if _, err := bucket.Put(t.Context(), activeKey, value); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(patience); f.Rejected() != uint64(i)+1; {
			if time.Now().After(deadline) {
				t.Fatalf("%d records were rejected, want %d", f.Rejected(), i+1)
			}
			<-time.After(5 * time.Millisecond)
		}
		if got := f.Now().Label; got != sale.Label() {
			t.Fatalf("after %q the gateway has %q", value, got)
		}
	}
	// Neither does a bucket that was deleted and made anew, until something is applied there, whatever its revision.
	if err := w.stream().DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	s = w.store(nil)
	down := put(t, s, downText)
	if got := f.Now().Label; got != sale.Label() {
		t.Fatalf("after the bucket was made anew the gateway has %q", got)
	}
	one(t)(s.Apply(t.Context(), Application{Name: "down", By: "ann"}))
	label(t, f, down.Label())
}

func TestAPlanEndsWhateverTheClockOfTheGatewayDoes(t *testing.T) {
	for name, c := range map[string]struct {
		gateway, after time.Duration // of the applier's clock
		active         bool
	}{
		"in step, within its time": {0, 59 * time.Minute, true},
		"in step, at its end":      {0, time.Hour, false},
		"behind, within its time":  {-24 * time.Hour, 59 * time.Minute, true},
		"behind, at its end":       {-24 * time.Hour, time.Hour, false},
		"ahead, before its end":    {30 * time.Minute, 29 * time.Minute, true},
		"ahead, by its own clock":  {30 * time.Minute, 31 * time.Minute, false},
	} {
		now := noon.Add(c.gateway)
		f, err := NewFollower(Config{}, Options{Procedures: procedures, Logger: quiet, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		record := &activeRecord{Active: []activeInForm{{Revision: 1, Text: saleText, At: noon, Until: noon.Add(time.Hour)}}}
		if err := f.take(noon, 1, record); err != nil {
			t.Fatal(err)
		}
		now = now.Add(c.after)
		if active, _ := f.known.at(now); (len(active) == 1) != c.active {
			t.Errorf("%s: active is %t, want %t", name, len(active) == 1, c.active)
		}
		// An older record, or the same again, does not start it anew.
		if err := f.take(noon, 1, record); err != nil {
			t.Fatal(err)
		}
		if active, _ := f.known.at(now); (len(active) == 1) != c.active {
			t.Errorf("%s: heard again, active is %t, want %t", name, len(active) == 1, c.active)
		}
	}
}

func TestADryRunAsksEveryGatewayAndChangesNothing(t *testing.T) {
	w := newWorld(t)
	connection := w.connect()
	if _, err := DryRun(t.Context(), connection, []byte(downText), time.Second, nil); !errors.Is(err, ErrNoGateway) {
		t.Fatalf("without a gateway: %v", err)
	}
	if _, err := DryRun(t.Context(), connection, []byte("name: x"), time.Second, nil); err == nil {
		t.Fatal("a plan that switches nothing was tried")
	}
	gateways := []*Follower{}
	for i := range 2 {
		f, _ := w.follower(Config{}, Options{Gateway: fmt.Sprint("g", i)})
		gateways = append(gateways, f)
	}
	// They are connected once they have seen a plan.
	s := w.store(nil)
	sale := put(t, s, saleText)
	one(t)(s.Apply(t.Context(), Application{Name: "sale", By: "ann"}))
	for _, f := range gateways {
		label(t, f, sale.Label())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	defer traffic.Wait()
	defer cancel()
	for i, f := range gateways {
		traffic.Go(func() {
			var told *Trial
			for ctx.Err() == nil {
				if trial := f.Trial(); trial != nil && trial != told {
					for range 10 * (i + 1) {
						trial.See(time.Now(), Call{Procedure: pay, Priority: "pay"})
						trial.See(time.Now(), Call{Procedure: place, Priority: "points"})
						trial.See(time.Now(), Call{Procedure: place, Priority: "place"})
					}
					told = trial
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	busy := 0
	reports, err := DryRun(t.Context(), connection, []byte(downText), 1500*time.Millisecond, func(so []*Report) {
		if busy == 0 && len(so) == 2 { // Meanwhile another one is refused.
			busy++
			other, err := DryRun(t.Context(), connection, []byte(downText), time.Second, nil)
			if err != nil || len(other) != 2 || other[0].Problem == "" {
				t.Errorf("a second dry run: %v %+v", err, other)
			}
		}
	})
	if err != nil || len(reports) != 2 || busy != 1 {
		t.Fatalf("%v: %d reports", err, len(reports))
	}
	sum := &Report{}
	for _, report := range reports {
		if !report.Done || report.Problem != "" {
			t.Fatalf("report %+v", report)
		}
		sum.Add(report)
	}
	total := sum.Total()
	if total.Calls != 90 || total.Refused != 0 || total.Would[ByOff] != 30 || total.Would[ByPriority] != 30 || total.WouldRefuse() != 60 {
		t.Fatalf("total is %+v", total)
	}
	for _, f := range gateways {
		if f.Trial() != nil || f.Now().Label != sale.Label() {
			t.Fatalf("after the dry run there is still one, or %q is active", f.Now().Label)
		}
	}
}
