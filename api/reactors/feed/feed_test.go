package feed

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/projections"
	feedv1 "github.com/weirhq/weir/proto/weir/feed/v1"
)

// secret is a text that must not be in any public event: who it was, and what a person wrote.
const secret = "Ada-Lovelace"

var at = time.Date(2026, 11, 2, 9, 30, 0, 0, time.UTC)

// samples is one of every event of the domain, with every field set.
func samples() []domain.Event {
	id := domain.NewOrderID(at, 7, [10]byte{1, 2, 3})
	eur := domain.Money{Currency: "EUR", Minor: 1299}
	released := []domain.Release{{SKU: "tea", Units: 2}, {SKU: domain.CouponPool(secret), Units: 1}}
	return []domain.Event{
		domain.OrderPlaced{OrderID: id, UserID: secret, Lines: []domain.Line{{SKU: "tea", Units: 2, Title: "Tea", PriceMinor: 650}}, Total: eur, PayBy: at.Add(time.Hour), SealedNote: []byte(secret), SealedPersonal: []byte(secret), Pool: "tea@flash", CouponCode: secret, CouponPool: domain.CouponPool(secret)},
		domain.OrderCancelled{OrderID: id, UserID: secret, Reason: secret, By: secret, Released: released, CouponCode: secret},
		domain.OrderExpired{OrderID: id, UserID: secret, Released: released, CouponCode: secret},
		domain.UserErased{UserID: secret, Key: 7, By: secret},
		domain.WebhookEndpointPut{EndpointID: "erp", URL: "https://" + secret, SealedSecret: []byte(secret), By: secret},
		domain.WebhookEndpointDeleted{EndpointID: "erp", By: secret},
		domain.RequestAnswered{About: domain.AboutUser, Key: secret, KeyID: 7},
		domain.ProductPut{SKU: "tea", Title: "Tea", Price: eur},
		domain.StockReceived{SKU: "tea", Units: 5, ReceivedTotal: 9},
		domain.StockReceived{SKU: domain.CouponPool(secret), Units: 5, ReceivedTotal: 9},
		domain.CampaignPut{Pool: "tea@flash", Price: eur, OpensAt: at, ClosesAt: at.Add(time.Hour), Units: 5},
		domain.PoolFilled{Pool: "tea@flash", Units: 5},
		domain.PoolDrained{Pool: "tea@flash", Units: 5},
		domain.CouponPut{Code: secret, Terms: domain.CouponTerms{Kind: domain.CouponFixed, AmountMinor: 500, Currency: "EUR"}},
		domain.StockGranted{SKU: "tea", ToLane: 1, GrantNumber: 1, Units: 1},
		domain.StockAllotted{SKU: "tea", HomeLane: 1, GrantNumber: 1, Units: 1},
		domain.StockReturned{SKU: "tea", HomeLane: 1, ReturnNumber: 1, Units: 1},
		domain.StockReclaimed{SKU: "tea", FromLane: 1, ReturnNumber: 1, Units: 1},
		domain.PaymentStarted{OrderID: id, UserID: secret, PaymentID: "p", Provider: "sandbox", Method: secret, Amount: eur, By: secret},
		domain.PaymentAuthorized{OrderID: id, UserID: secret, PaymentID: "p", Amount: eur},
		domain.PaymentCaptureRequested{OrderID: id, UserID: secret, PaymentID: "p", Provider: "sandbox", Amount: eur, By: secret},
		domain.PaymentCaptured{OrderID: id, UserID: secret, PaymentID: "p", Amount: eur, Sold: released},
		domain.PaymentDeclined{OrderID: id, UserID: secret, PaymentID: "p", Code: "card_declined", Message: secret},
		domain.PaymentBecameUnknown{OrderID: id, UserID: secret, PaymentID: "p"},
		domain.PaymentVoidRequested{OrderID: id, UserID: secret, PaymentID: "p", Provider: "sandbox", Why: secret, By: secret},
		domain.PaymentVoided{OrderID: id, UserID: secret, PaymentID: "p"},
		domain.RefundStarted{OrderID: id, UserID: secret, RefundID: "r", PaymentID: "p", Provider: "sandbox", Amount: eur, Reason: secret, ReturnID: "t", By: secret},
		domain.PaymentRefunded{OrderID: id, UserID: secret, RefundID: "r", Amount: eur},
		domain.RefundFailed{OrderID: id, UserID: secret, RefundID: "r", Code: "closed"},
		domain.StrayPaymentFound{OrderID: id, UserID: secret, PaymentID: "p", Provider: "sandbox", Amount: eur, Why: secret},
		domain.PointsAwarded{OrderID: id, UserID: secret, PaymentID: "p", Points: 12, PerMajor: 1},
		domain.PointsTakenBack{OrderID: id, UserID: secret, RefundID: "r", Points: 3},
		domain.ItemsShipped{OrderID: id, UserID: secret, ShipmentID: "s", Lines: released, Carrier: secret, Tracking: secret, By: secret},
		domain.ShipmentDelivered{OrderID: id, UserID: secret, ShipmentID: "s", By: secret},
		domain.ReturnRequested{OrderID: id, UserID: secret, ReturnID: "t", Lines: released, Reason: secret, By: secret},
		domain.ReturnReceived{OrderID: id, UserID: secret, ReturnID: "t", Restocked: released, By: secret},
		domain.NoteAdded{OrderID: id, UserID: secret, By: secret, Sealed: []byte(secret)},
	}
}

// domainEvents reads the domain's source for the types of its closed set of events.
func domainEvents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../../domain/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range file.Decls {
			method, ok := declaration.(*ast.FuncDecl)
			if !ok || method.Recv == nil || method.Name.Name != "isEvent" {
				continue
			}
			names = append(names, method.Recv.List[0].Type.(*ast.Ident).Name)
		}
	}
	if len(names) < 9 {
		t.Fatalf("found the events %v in %d files: the test did not find the source", names, len(files))
	}
	return names
}

// TestEveryEventOfTheDomainHasARow fails for a new event of the domain until the table says whether it is public.
func TestEveryEventOfTheDomainHasARow(t *testing.T) {
	var sampled []string
	for _, fact := range samples() {
		sampled = append(sampled, reflect.TypeOf(fact).Name())
	}
	for _, name := range domainEvents(t) {
		if !slices.Contains(sampled, name) {
			t.Errorf("domain.%s has no sample in this test: say in Public whether it is public, and add one", name)
		}
	}
}

func TestAPublicEventSaysWhatHappenedAndNotWho(t *testing.T) {
	rows := map[protoreflect.FieldNumber]string{}
	for _, fact := range samples() {
		typeName, _, aggregateID, _ := stored.Encode(fact)
		public, ok := Public(reactors.Event{
			ID: "3-41-2", Lane: 3, Commit: 41, Index: 2, At: at, Partition: 7, UserID: secret, AggregateID: aggregateID, Type: typeName, Fact: fact,
		})
		if ok != IsPublic(fact) {
			t.Fatalf("%s: Public and IsPublic differ", typeName)
		}
		if !ok {
			continue
		}
		data, err := JSON(public)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), secret) {
			t.Errorf("%s: personal data in %s", typeName, data)
		}
		read := &feedv1.Event{}
		if err := protojson.Unmarshal(data, read); err != nil {
			t.Fatalf("%s: %v in %s", typeName, err, data)
		}
		field := read.ProtoReflect().WhichOneof(read.ProtoReflect().Descriptor().Oneofs().ByName("fact"))
		if field == nil || string(field.Message().Name()) != typeName || read.GetType() != typeName || rows[field.Number()] != "" {
			t.Errorf("%s: the public event is %s", typeName, data)
			continue
		}
		rows[field.Number()] = typeName
		message := read.ProtoReflect().Get(field).Message()
		for i := range message.Descriptor().Fields().Len() {
			if inner := message.Descriptor().Fields().Get(i); !message.Has(inner) {
				t.Errorf("%s: %s is not filled in", typeName, inner.Name())
			}
		}
		if _, ofOrder := domain.OrderOf(fact); ofOrder != (read.GetOrderId() != "") || read.GetId() != "3-41-2" || read.GetPartition() != 7 || !read.GetTime().AsTime().Equal(at) {
			t.Errorf("%s: the public event is %s", typeName, data)
		}
	}
	if all := (&feedv1.Event{}).ProtoReflect().Descriptor().Oneofs().ByName("fact").Fields().Len(); len(rows) != all {
		t.Errorf("%d of %d public events were made: %v", len(rows), all, rows)
	}
}

// A shop is a log of one lane and what it should publish.
type shop struct {
	t     *testing.T
	lane  uint32
	lanes uint32
	log   *eventstore.MemoryLog
	last  eventstore.Position
	want  []string // ids
}

func newShop(t *testing.T, lane, lanes uint32) *shop {
	return &shop{t: t, lane: lane, lanes: lanes, log: eventstore.OpenMemoryLog(lane, lanes), last: eventstore.Genesis(lane, lanes)}
}

// step commits some events, public ones and others.
func (s *shop) step(random *rand.Rand) {
	s.t.Helper()
	commit := &eventstore.Commit{Lane: s.lane, Number: s.last.Number + 1, Epoch: 1, Time: at, PrevHash: s.last.Hash}
	all := samples()
	for i := range 1 + random.IntN(6) {
		typeName, version, aggregateID, payload := stored.Encode(all[random.IntN(len(all))])
		commit.Events = append(commit.Events, eventstore.Event{
			Partition: s.lane*eventstore.Partitions/s.lanes + random.Uint32N(eventstore.Partitions/s.lanes), UserID: secret,
			AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload,
		})
		fact, err := stored.Decode(typeName, version, aggregateID, secret, payload)
		if err != nil {
			s.t.Fatal(err)
		}
		if IsPublic(fact) {
			s.want = append(s.want, reactors.EventID(s.lane, commit.Number, i))
		}
	}
	record := eventstore.EncodeCommit(commit)
	if err := s.log.Append(record).Wait(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.last = eventstore.Position{Number: record.Number, Hash: record.Hash}
}

// A flaky publisher fails before and after it has published, as a bad connection does.
type flaky struct {
	Publisher
	mu     sync.Mutex
	chance *rand.Rand
}

var errInjected = errors.New("injected fault")

func (f *flaky) roll() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.chance.IntN(6)
}

func (f *flaky) Publish(ctx context.Context, messages []eventstore.FeedMessage) error {
	roll := f.roll()
	if roll == 0 {
		return errInjected
	}
	if err := f.Publisher.Publish(ctx, messages); err != nil {
		return err
	}
	if roll == 1 {
		return errInjected // Stored, and the acknowledgement is lost.
	}
	return nil
}

func (f *flaky) Last(ctx context.Context, lane uint32) (string, bool, error) {
	if f.roll() == 0 {
		return "", false, errInjected
	}
	return f.Publisher.Last(ctx, lane)
}

// TestEveryPublicEventIsPublishedOnceAndInOrder publishes to a real stream over bad connections, crashes, and a lost state
// directory.
func TestEveryPublicEventIsPublishedOnceAndInOrder(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	topology := eventstore.Topology{Lanes: 2}
	shops := []*shop{newShop(t, 0, 2), newShop(t, 1, 2)}
	fs := vfs.NewCrashableMem()
	for life := range 6 {
		for range random.IntN(80) {
			shops[random.IntN(2)].step(random)
		}
		if life == 3 {
			fs = vfs.NewCrashableMem() // The state directory is lost.
		}
		stream, err := eventstore.OpenEventFeed(t.Context(), nc, eventstore.FeedOptions{Topology: topology, BytesMax: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		store, err := projections.OpenStore("state", projections.StoreOptions{FS: fs, BlockCacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		publisher := NewReactor(&flaky{Publisher: stream, chance: rand.New(rand.NewPCG(seed, uint64(life)))})
		runner, err := reactors.New(reactors.Options{
			Store: store, Topology: topology, Log: func(lane uint32) eventstore.Log { return shops[lane].log },
			Reactors: []reactors.Registration{publisher.Registration()}, Logger: slog.New(slog.DiscardHandler),
			Pause: func(ctx context.Context, _ time.Duration, _ <-chan struct{}) error {
				runtime.Gosched()
				return ctx.Err()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := runner.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		// The last life publishes everything, the others are killed somewhere.
		await(t, runner, func(status reactors.Status) bool {
			return status.Position >= shops[status.Lane].last.Number || (life < 5 && random.IntN(50) == 0)
		})
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
		cancel()
		running.Wait()
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		fs = crashed
	}
	got := publishedIDs(t, nc)
	for _, s := range shops {
		if !slices.Equal(got[s.lane], s.want) {
			t.Fatalf("seed %d, lane %d: published\n%v, want\n%v", seed, s.lane, got[s.lane], s.want)
		}
	}
}

// await waits until the condition has held once for every lane.
func await(t *testing.T, runner *reactors.Runner, holds func(reactors.Status) bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		all := true
		for _, status := range runner.Status() {
			all = holds(status) && all
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not get there: %+v", runner.Status())
		}
		runtime.Gosched()
	}
}
