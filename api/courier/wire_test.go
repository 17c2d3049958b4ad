package courier

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	nodev1 "github.com/weirhq/weir/proto/node/weir/node/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// commands are all that go from node to node, empty.
var commands = []domain.Command{
	domain.PlaceOrder{},
	domain.CancelOrder{},
	domain.PutProduct{},
	domain.ReceiveStock{},
	domain.PreheatStock{},
	domain.PutCampaign{},
	domain.PutCoupon{},
	domain.EraseUser{},
	domain.StartPayment{},
	domain.CapturePayment{},
	domain.VoidPayment{},
	domain.RecordPaymentResult{},
	domain.RecordStrayPayment{},
	domain.RefundPayment{},
	domain.RecordRefundResult{},
	domain.ShipItems{},
	domain.ConfirmDelivery{},
	domain.RequestReturn{},
	domain.ReceiveReturn{},
	domain.AddNote{},
	domain.AwardPoints{},
	domain.TakeBackPoints{},
	domain.PutWebhookEndpoint{},
	domain.DeleteWebhookEndpoint{},
}

// own are the commands that a lane gives itself.
var own = []domain.Command{domain.ExpireOrder{}, domain.GrantStock{}, domain.AllotStock{}, domain.ReturnStock{}, domain.ReclaimStock{}}

// refusals are all that a lane may answer with, empty.
var refusals = []domain.Refusal{
	&domain.OutOfStockError{}, &domain.StockMovingError{}, &domain.UnknownProductError{}, &domain.OrderNotFoundError{},
	&domain.OrderExpiredError{}, &domain.OrderCancelledError{}, &domain.OrderShippedError{}, &domain.PaymentStateError{},
	&domain.FulfilmentStateError{}, &domain.OrderPartNotFoundError{}, &domain.OrderLimitError{}, &domain.RefundExceedsCapturedError{},
	&domain.UnitsExceededError{}, &domain.AmountMismatchError{}, &domain.MixedCurrenciesError{}, &domain.AmountOverflowError{},
	&domain.InvalidArgumentError{}, &domain.InvalidIDError{}, &domain.InvalidMoneyError{}, &domain.CampaignNotFoundError{},
	&domain.CampaignNotOpenError{}, &domain.CampaignClosedError{}, &domain.CampaignMaxPerOrderError{}, &domain.CampaignLimitError{},
	&domain.CouponInvalidError{}, &domain.CouponNotYetError{}, &domain.CouponExpiredError{}, &domain.CouponMinSubtotalError{},
	&domain.CouponLimitError{}, &domain.EndpointLimitError{},
}

// closedSet returns the names of the types of package domain that have a method, as its source says.
func closedSet(t *testing.T, method string) map[string]bool {
	t.Helper()
	set := map[string]bool{}
	files, err := fs.Glob(os.DirFS("../../domain"), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), "../../domain/"+name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range file.Decls {
			function, ok := declared.(*ast.FuncDecl)
			if !ok || function.Recv == nil || function.Name.Name != method {
				continue
			}
			receiver := function.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			set[receiver.(*ast.Ident).Name] = true
		}
	}
	return set
}

func TestEveryCommandAndRefusalGoesFromNodeToNode(t *testing.T) {
	known := map[string]bool{}
	for _, command := range slices.Concat(commands, own) {
		known[reflect.TypeOf(command).Name()] = true
	}
	if want := closedSet(t, "isCommand"); len(want) < 20 || !maps.Equal(known, want) {
		t.Errorf("commands:\n got %v\nwant %v", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(want)))
	}
	clear(known)
	for _, refusal := range refusals {
		known[reflect.TypeOf(refusal).Elem().Name()] = true
	}
	if want := closedSet(t, "isRefusal"); len(want) < 20 || !maps.Equal(known, want) {
		t.Errorf("refusals:\n got %v\nwant %v", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(want)))
	}
}

// A filler fills every field of a value with something that is not zero, and not the same as in the others.
type filler struct{ next int64 }

func (f *filler) fill(v reflect.Value) {
	f.next++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+f.next, f.next).UTC()))
		return
	case domain.Money:
		v.Set(reflect.ValueOf(domain.Money{Currency: fmt.Sprintf("C%02d", f.next%100), Minor: f.next}))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d ü", f.next))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8:
		v.SetUint(uint64(1 + f.next%2)) // A state that every enumeration has, or a byte.
	case reflect.Int, reflect.Int64:
		v.SetInt(-f.next)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.next))
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	default:
		panic("a filler does not know " + v.Type().String())
	}
}

// filled returns a value like this one in which everything is set.
func filled[T any](f *filler, like T) T {
	v := reflect.ValueOf(&like).Elem()
	if v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if v.Kind() == reflect.Pointer {
		made := reflect.New(v.Type().Elem())
		f.fill(made.Elem())
		return made.Interface().(T)
	}
	made := reflect.New(v.Type())
	f.fill(made.Elem())
	return made.Elem().Interface().(T)
}

func filledCommand(f *filler, like domain.Command) domain.Command {
	made := filled(f, like)
	if place, ok := made.(domain.PlaceOrder); ok {
		place.OrderID, place.PayBy = domain.OrderID{}, time.Time{} // The lane's to give.
		return place
	}
	return made
}

func requestOf(f *filler, like domain.Command) lanes.Request {
	return lanes.Request{
		UserID: "alice", RequestID: "r1", Fingerprint: filled(f, lanes.Fingerprint{}), Keyed: true, Former: filled(f, lanes.Fingerprint{}),
		Partition: 1023, Owner: "bob", Command: filledCommand(f, like),
	}
}

// sameAsGenerated checks that bytes are what the generated type writes, and that everything the schema has is set in them: so both
// say the same.
func sameAsGenerated(t *testing.T, name string, written []byte, message proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(written, message); err != nil {
		t.Errorf("%s: the generated type does not read it: %v", name, err)
		return
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil || !slices.Equal(again, written) {
		t.Errorf("%s:\n     written %x\nthe generated type writes %x, %v", name, written, again, err)
	}
	everythingIsSet(t, name, message.ProtoReflect())
}

func everythingIsSet(t *testing.T, name string, m protoreflect.Message) {
	t.Helper()
	if len(m.GetUnknown()) > 0 {
		t.Errorf("%s: the schema does not know %x of %s", name, m.GetUnknown(), m.Descriptor().Name())
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			if field.ContainingOneof() == nil && m.Descriptor().Name() != "Timestamp" && m.Descriptor().Name() != "Answer" {
				t.Errorf("%s: %s.%s is not written", name, m.Descriptor().Name(), field.Name())
			}
			continue
		}
		switch {
		case field.IsList() && field.Message() != nil:
			for i := range m.Get(field).List().Len() {
				everythingIsSet(t, name, m.Get(field).List().Get(i).Message())
			}
		case field.Message() != nil:
			everythingIsSet(t, name, m.Get(field).Message())
		}
	}
}

func TestEveryCommandComesAsItWent(t *testing.T) {
	f := &filler{}
	for _, like := range commands {
		name := reflect.TypeOf(like).Name()
		went := command{needs: protocol, request: requestOf(f, like), refuseNew: true, principal: "clerk"}
		written := encode(nil, &went, walkCommand)
		sameAsGenerated(t, name, written, &nodev1.Command{})
		var came command
		if err := decode(written, &came, walkCommand); err != nil || !reflect.DeepEqual(came, went) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", name, err, came, went)
		}
		// Of an empty one nothing but its kind goes.
		went = command{needs: protocol, request: lanes.Request{Command: like}}
		came = command{}
		if err := decode(encode(nil, &went, walkCommand), &came, walkCommand); err != nil || !reflect.DeepEqual(came, went) {
			t.Errorf("empty %s: %v\n got %+v\nwant %+v", name, err, came, went)
		}
	}
}

func TestTheCommandsOfALaneItselfDoNotGo(t *testing.T) {
	for _, command_ := range own {
		if got := encode(nil, &command{request: lanes.Request{Command: command_}}, walkCommand); len(got) > 0 {
			t.Errorf("%T is written as %x", command_, got)
		}
		if _, err := partitionOf(command_); err == nil {
			t.Errorf("%T would be decided for another node", command_)
		}
	}
}

func filledReply() lanes.Reply {
	reply := filled(&filler{}, lanes.Reply{})
	reply.Stock = domain.Account{} // Of the escrow's commands, which do not go.
	return reply
}

func TestEveryReplyComesAsItWent(t *testing.T) {
	went := filledReply()
	written := encode(nil, &answer{reply: &went}, walkAnswer)
	sameAsGenerated(t, "Reply", written, &nodev1.Answer{})
	for _, went := range []lanes.Reply{went, {}, {Lane: 3, Commit: 7, At: time.Unix(0, 0).UTC()}} {
		var came answer
		if err := decode(encode(nil, &answer{reply: &went}, walkAnswer), &came, walkAnswer); err != nil || came.failure != nil || !reflect.DeepEqual(*came.reply, went) {
			t.Errorf("%v\n got %+v\nwant %+v", err, came.reply, went)
		}
	}
}

// failures are all errors that lanes.Commands may return, filled.
func failures() []error {
	f := &filler{}
	all := []error{
		filled(f, &domain.KeyErasedError{}), filled(f, &lanes.KeyReusedError{}), filled(f, &eventstore.QueueFullError{}), filled(f, &lanes.NotOwnerError{}),
		eventstore.ErrLogFull, &eventstore.UnavailableError{Lane: 3, RetryAfter: time.Second},
		&eventstore.UnavailableError{Lane: 3, RetryAfter: time.Second, Cause: cause("fenced")},
	}
	for _, refusal := range refusals {
		all = append(all, filled(f, refusal))
	}
	return all
}

func TestEveryFailureComesAsItWent(t *testing.T) {
	for _, went := range failures() {
		name := reflect.TypeOf(went).String()
		for _, err := range []error{went, fmt.Errorf("wrapped: %w", went)} {
			written := encode(nil, &answer{failure: failureOf(3, err)}, walkAnswer)
			if cause := errors.Unwrap(went); name != "*eventstore.UnavailableError" || cause != nil {
				sameAsGenerated(t, name, written, &nodev1.Answer{})
			}
			var came answer
			if err := decode(written, &came, walkAnswer); err != nil || came.reply != nil {
				t.Errorf("%s: got %+v, %v", name, came, err)
				continue
			}
			if got := came.failure.errorOf(3, &lanes.Request{}); !reflect.DeepEqual(got, went) {
				t.Errorf("%s:\n got %#v\nwant %#v", name, got, went)
			}
		}
	}
}

func TestARefusalOfTheRequestsOwnStaysWithWhoeverSentIt(t *testing.T) {
	mine := errors.New("mine")
	failed := failureOf(3, errRefusedAsAsked)
	if got := failed.errorOf(3, &lanes.Request{Refusal: mine}); got != mine { //nolint:errorlint // It is to be this very one.
		t.Errorf("got %v, want %v", got, mine)
	}
}

func TestEveryMessageOfAnEscrowComesAsItWent(t *testing.T) {
	went := filled(&filler{}, lanes.Message{})
	for went.Kind = lanes.MessageAsk; went.Kind <= lanes.MessageLift; went.Kind++ {
		written := encode(nil, &went, walkMessage)
		sameAsGenerated(t, "EscrowMessage", written, &nodev1.EscrowMessage{})
		var came lanes.Message
		if err := decode(written, &came, walkMessage); err != nil || came != went {
			t.Errorf("%v\n got %+v\nwant %+v", err, came, went)
		}
	}
}

// A newer neighbour says more than this program knows.
func TestWhatANewerNodeSaysIsPassedOverOrSaidToBeUnknown(t *testing.T) {
	extra := func(written []byte, n protowire.Number, content string) []byte {
		return protowire.AppendString(protowire.AppendTag(written, n, protowire.BytesType), content)
	}
	c := courierFor(t, 4)
	request := lanes.Request{UserID: "alice", RequestID: "r1", Partition: eventstore.PartitionOf("alice"), Command: domain.PlaceOrder{UserID: "alice"}}
	lane := c.options.Topology.LaneOf(request.Partition)
	known := encode(nil, &command{needs: protocol, request: request}, walkCommand)
	var came command
	if err := c.read(extra(known, 999, "new"), lane, &came); err != nil || !reflect.DeepEqual(came.request, request) {
		t.Errorf("an unknown field: got %+v, %v", came.request, err)
	}
	unknownKind := extra(encode(nil, &command{needs: protocol, request: lanes.Request{UserID: "alice", Partition: request.Partition}}, walkCommand), 998, "")
	newerMeaning := encode(nil, &command{needs: protocol + 1, request: request}, walkCommand)
	newerState := encode(nil, &command{needs: protocol, request: lanes.Request{Command: domain.RecordPaymentResult{Result: 99}}}, walkCommand)
	for name, question := range map[string][]byte{"kind": unknownKind, "meaning": newerMeaning, "state": newerState} {
		err := c.read(question, lane, &command{})
		var old *unsupported
		if !errors.As(err, &old) || old.newest != protocol {
			t.Errorf("an unknown %s: got %v, want *unsupported", name, err)
		}
		// And whoever sent it is told to come again once that node is upgraded.
		_, err = c.outcome(lane, &request, encode(nil, &answer{failure: failureOf(lane, err)}, walkAnswer))
		var gone *eventstore.UnavailableError
		var version *VersionError
		if !errors.As(err, &gone) || !errors.As(err, &version) || version.Here {
			t.Errorf("an unknown %s: whoever sent it gets %v", name, err)
		}
	}
	unknownFailure := encode(nil, &answer{failure: &failure{message: "too blue"}}, walkAnswer)
	newerReply := filledReply()
	newerReply.Order.Payments[0].State = 200
	newerOrder := encode(nil, &answer{reply: &newerReply}, walkAnswer)
	for name, data := range map[string][]byte{"failure": unknownFailure, "state": newerOrder} {
		_, err := c.outcome(lane, &request, data)
		var version *VersionError
		if !errors.As(err, &version) || !version.Here || version.Lane != lane {
			t.Errorf("an unknown %s in an answer: got %v, want a *VersionError", name, err)
		}
	}
	if _, err := c.outcome(lane, &request, unknownFailure); !strings.Contains(err.Error(), "too blue") {
		t.Errorf("an unknown failure: %q does not say what the node says", err)
	}
}

func TestNoCommandIsDecidedInALaneThatItIsNotOf(t *testing.T) {
	c := courierFor(t, 4)
	f := &filler{}
	for _, like := range commands {
		request := requestOf(f, like)
		partition, err := partitionOf(request.Command)
		if err != nil {
			t.Errorf("%T: %v", like, err)
			continue
		}
		request.Partition = partition
		lane := c.options.Topology.LaneOf(partition)
		if err := c.read(encode(nil, &command{needs: protocol, request: request}, walkCommand), lane, &command{}); err != nil {
			t.Errorf("%T: %v", like, err)
		}
		if err := c.read(encode(nil, &command{needs: protocol, request: request}, walkCommand), (lane+1)%4, &command{}); err == nil {
			t.Errorf("%T was taken by another lane than its own", like)
		}
		request.Partition = (partition + 1) % eventstore.Partitions
		if err := c.read(encode(nil, &command{needs: protocol, request: request}, walkCommand), lane, &command{}); err == nil {
			t.Errorf("%T was taken for another partition than its own", like)
		}
	}
}

func courierFor(t testing.TB, lanes uint32) *Courier {
	t.Helper()
	c, err := New(Options{Post: eventstore.NewPost(nil, eventstore.PostOptions{}), Topology: eventstore.Topology{Lanes: lanes}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stable checks that what was read is read again from what is written of it.
func stable[M any](t *testing.T, data []byte, over func(*walk, *M)) {
	var once, twice M
	if decode(data, &once, over) != nil {
		return
	}
	written := encode(nil, &once, over)
	if err := decode(written, &twice, over); err != nil {
		t.Fatalf("%x was read and written as %x, which cannot be read: %v", data, written, err)
	}
	if again := encode(nil, &twice, over); !slices.Equal(again, written) {
		t.Fatalf("%x was written as %x and then as %x", data, written, again)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	fill := &filler{}
	for _, like := range commands {
		f.Add(encode(nil, &command{needs: protocol, request: requestOf(fill, like)}, walkCommand))
	}
	f.Fuzz(func(t *testing.T, data []byte) { stable(t, data, walkCommand) })
}

func FuzzDecodeAnswer(f *testing.F) {
	reply := filledReply()
	f.Add(encode(nil, &answer{reply: &reply}, walkAnswer))
	for _, err := range failures() {
		f.Add(encode(nil, &answer{failure: failureOf(3, err)}, walkAnswer))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		stable(t, data, walkAnswer)
		var came answer
		if decode(data, &came, walkAnswer) == nil && came.failure != nil {
			_ = came.failure.errorOf(3, &lanes.Request{}).Error() // It has words for it.
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add(encode(nil, &lanes.Message{Kind: lanes.MessageAsk, SKU: "mug", From: 1, To: 2, Units: 3, Round: -4}, walkMessage))
	f.Fuzz(func(t *testing.T, data []byte) { stable(t, data, walkMessage) })
}
