package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	userv1 "github.com/weirhq/weir/proto/weir/user/v1"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
)

func (n *node) users(subject string, scopes identity.Scopes) userv1connect.UserServiceClient {
	n.t.Helper()
	transport := &http.Transport{}
	n.t.Cleanup(transport.CloseIdleConnections)
	return userv1connect.NewUserServiceClient(&http.Client{Transport: bearer{transport, n.token(subject, scopes)}}, n.url)
}

// personalRequest asks for one unit with everything personal that an order may have.
func personalRequest(id, sku string) *orderv1.PlaceOrderRequest {
	ask := request(id, sku, 1)
	ask.Note = "ring at Lovelace's"
	ask.ShippingAddress = &orderv1.ShippingAddress{
		Recipient: "Ada Lovelace", Lines: []string{"12 St James's Square", "2nd floor"}, PostalCode: "SW1Y 4JH",
		City: "London", Region: "Westminster", CountryCode: "GB",
	}
	ask.Contact = &orderv1.Contact{Email: "ada@example.org", Phone: "+44 20 7930 0000"}
	return ask
}

// personalTexts are what must not be found.
var personalTexts = []string{"Lovelace", "James's Square", "SW1Y", "Westminster", "ada@example.org", "7930"}

func hasPersonal(t *testing.T, what string, order *orderv1.Order, ask *orderv1.PlaceOrderRequest) {
	t.Helper()
	if order.Note != ask.Note || !proto.Equal(order.ShippingAddress, ask.ShippingAddress) || !proto.Equal(order.Contact, ask.Contact) || order.PersonalDataErased {
		t.Errorf("%s: got %v, want what is personal in %v", what, order, ask)
	}
}

func hasNothingPersonal(t *testing.T, what string, order *orderv1.Order) {
	t.Helper()
	text, err := protojson.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	if !order.PersonalDataErased || order.Note != "" || order.ShippingAddress != nil || order.Contact != nil {
		t.Errorf("%s: got %s, want nothing personal and a word that it was erased", what, text)
	}
}

// serveReal starts an API over real lanes with one product on the shelf.
func serveReal(t *testing.T, change func(*api.Options)) (*node, *realNode) {
	var real *realNode
	n := serve(t, func(o *api.Options) {
		real = useRealNode(t, o, 1)
		if change != nil {
			change(o)
		}
	})
	n.stock("a")
	return n, real
}

// logText is every byte of the log.
func (n *realNode) logText(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for _, log := range n.logs {
		for number := uint64(1); number <= log.Position().Number; number++ {
			record, err := log.Read(t.Context(), number)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, record.Data...)
		}
	}
	return all
}

func TestWhatIsPersonalIsShownToItsOwnerAndOperatorsAndSealedInTheLog(t *testing.T) {
	n, real := serveReal(t, nil)
	ada := n.client("ada", 0)
	ask := personalRequest("r1", "a")
	placed := must(ada.PlaceOrder(t.Context(), ask))(t)
	hasPersonal(t, "placed", placed.Order, ask)
	hasPersonal(t, "placed again", must(ada.PlaceOrder(t.Context(), ask))(t).Order, ask)
	get := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}
	for who, c := range map[string]client{"owner": ada, "operator": n.client("boss", identity.ScopeOperator), "backend": n.client("shop", identity.ScopeActAs)} {
		hasPersonal(t, who+" gets", must(c.GetOrder(t.Context(), get))(t).Order, ask)
		list := must(c.ListOrders(t.Context(), &orderv1.ListOrdersRequest{UserId: "ada"}))
		if who == "owner" {
			list = must(c.ListOrders(t.Context(), &orderv1.ListOrdersRequest{}))
		}
		hasPersonal(t, who+" lists", list(t).Orders[0], ask) // The only one.
	}
	_, err := n.client("eve", 0).GetOrder(t.Context(), get)
	wantError(t, "another customer", err, connect.CodeNotFound, api.ReasonOrderNotFound)
	// The short way and the long way of JSON.
	for _, text := range []string{`{"requestId":"r2","items":[{"sku":"a","quantity":1}],"shippingAddress":{"recipient":"Ada Lovelace","lines":["x"],"countryCode":"GB"}}`, `{"requestId":"r2","items":[{"sku":"a","quantity":1}],"shippingAddress":{"recipient":"\u0041da Lovelace","lines":["x"],"countryCode":"GB"}}`} {
		if status, _, body := n.post(t, "/weir.order.v1.OrderService/PlaceOrder", n.token("ada", 0), "application/json", []byte(text)); status != 200 || !bytes.Contains(body, []byte(`"recipient":"Ada Lovelace"`)) {
			t.Errorf("%s: got %d, %s", text, status, body)
		}
	}
	cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c1", OrderId: placed.Order.OrderId}))(t)
	hasPersonal(t, "cancelled", cancelled.Order, ask)
	log := string(real.logText(t))
	for _, text := range personalTexts {
		if strings.Contains(log, text) || strings.Contains(n.logs.String(), text) {
			t.Errorf("%q is in the log, or in the logs", text)
		}
	}
}

func TestAnErasedPersonIsGoneAndTheOrdersStay(t *testing.T) {
	n, _ := serveReal(t, nil)
	ada, boss := n.client("ada", 0), n.users("boss", identity.ScopeOperator)
	ask := personalRequest("r1", "a")
	placed := must(ada.PlaceOrder(t.Context(), ask))(t)
	erase := &userv1.EraseUserRequest{RequestId: "e1", UserId: "ada", ConfirmUserId: "ada"}
	erased := must(boss.EraseUser(t.Context(), erase))(t)
	if erased.UserId != "ada" || erased.Revision.Commit <= placed.Revision.Commit || erased.ErasedAt == nil {
		t.Fatalf("got %v", erased)
	}
	if again := must(boss.EraseUser(t.Context(), erase))(t); !proto.Equal(again, erased) {
		t.Errorf("the same request again: got %v, first %v", again, erased)
	}
	get := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: erased.Revision}
	got := must(ada.GetOrder(t.Context(), get))(t)
	hasNothingPersonal(t, "got", got.Order)
	if got.Order.Total.Units != placed.Order.Total.Units || len(got.Order.Items) != 1 || got.Order.UserId != "ada" {
		t.Errorf("the order is not what it was: %v", got.Order)
	}
	hasNothingPersonal(t, "listed", must(ada.ListOrders(t.Context(), &orderv1.ListOrdersRequest{}))(t).Orders[0])
	hasNothingPersonal(t, "placed again", must(ada.PlaceOrder(t.Context(), ask))(t).Order)
	other := personalRequest("r1", "a")
	other.Items[0].Quantity = 2
	_, err := ada.PlaceOrder(t.Context(), other)
	wantError(t, "the same id, other units", err, connect.CodeFailedPrecondition, api.ReasonKeyReused)

	// Whoever comes back has a new key, and a late repetition of the erasure leaves it alone.
	back := personalRequest("r2", "a")
	returned := must(ada.PlaceOrder(t.Context(), back))(t)
	hasPersonal(t, "back again", returned.Order, back)
	must(boss.EraseUser(t.Context(), erase))(t)
	later := &orderv1.GetOrderRequest{OrderId: returned.Order.OrderId, MinRevision: returned.Revision}
	hasPersonal(t, "back again, got", must(ada.GetOrder(t.Context(), later))(t).Order, back)
	hasNothingPersonal(t, "of before, got", must(ada.GetOrder(t.Context(), get))(t).Order)
	must(boss.EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e2", UserId: "ada", ConfirmUserId: "ada"}))(t)
	for _, order := range must(ada.ListOrders(t.Context(), &orderv1.ListOrdersRequest{}))(t).Orders {
		hasNothingPersonal(t, "erased again", order)
	}
}

func TestWhoMayExportAndEraseAPerson(t *testing.T) {
	n, real := serveReal(t, nil)
	must(n.client("ada", 0).PlaceOrder(t.Context(), personalRequest("r1", "a")))(t)
	must(n.users("ada", 0).ExportUser(t.Context(), &userv1.ExportUserRequest{}))(t)
	before := real.head()
	for name, c := range map[string]userv1connect.UserServiceClient{"another customer": n.users("eve", 0), "a backend": n.users("shop", identity.ScopeActAs)} {
		_, err := c.ExportUser(t.Context(), &userv1.ExportUserRequest{UserId: "ada"})
		wantError(t, name+" exports", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
		_, err = c.EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", UserId: "ada", ConfirmUserId: "ada"})
		wantError(t, name+" erases", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
	}
	for name, ask := range map[string]*userv1.EraseUserRequest{
		"no confirmation":      {RequestId: "e1", UserId: "ada"},
		"another confirmation": {RequestId: "e1", UserId: "ada", ConfirmUserId: "adam"},
		"no request id":        {UserId: "ada", ConfirmUserId: "ada"},
		"no user id":           {RequestId: "e1", UserId: "ada@example.org", ConfirmUserId: "ada"},
	} {
		_, err := n.users("boss", identity.ScopeOperator).EraseUser(t.Context(), ask)
		wantError(t, name, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	}
	if after := real.head(); after != before {
		t.Errorf("refused calls moved the log from %d to %d", before, after)
	}
	must(n.users("ada", 0).EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", ConfirmUserId: "ada"}))(t)
	hasNothingPersonal(t, "erased by herself", must(n.client("ada", 0).ListOrders(t.Context(), &orderv1.ListOrdersRequest{}))(t).Orders[0])
}

func TestAnExportHoldsEveryOrderWithItsEventsAndWhatIsPersonalOpened(t *testing.T) {
	n, _ := serveReal(t, nil)
	ada := n.client("ada", 0)
	var last *orderv1.PlaceOrderResponse
	for i := range 5 {
		last = must(ada.PlaceOrder(t.Context(), personalRequest(fmt.Sprint("r", i), "a")))(t)
	}
	cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c", OrderId: last.Order.OrderId, Reason: "late"}))(t)
	must(n.client("eve", 0).PlaceOrder(t.Context(), request("r", "a", 1)))(t)
	export := func(min *typev1.Revision) (orders []*userv1.ExportedOrder, pages int) {
		t.Helper()
		ask := &userv1.ExportUserRequest{UserId: "ada", PageSize: 2, MinRevision: min}
		for {
			page := must(n.users("boss", identity.ScopeOperator).ExportUser(t.Context(), ask))(t)
			pages++
			orders = append(orders, page.Orders...)
			if ask.PageToken = page.NextPageToken; ask.PageToken == "" {
				return orders, pages
			}
		}
	}
	orders, pages := export(cancelled.Revision)
	if len(orders) != 5 || pages != 3 {
		t.Fatalf("got %d orders on %d pages, want 5 on 3", len(orders), pages)
	}
	first := orders[slices.IndexFunc(orders, func(o *userv1.ExportedOrder) bool { return o.Order.OrderId == last.Order.OrderId })]
	hasPersonal(t, "exported", first.Order, personalRequest("", "a"))
	if len(first.Events) != 2 || first.Events[0].Type != "OrderPlaced" || first.Events[1].Type != "OrderCancelled" ||
		first.Events[0].Revision.Commit != last.Revision.Commit || first.Events[1].Details.AsMap()["reason"] != "late" || first.Events[1].Details.AsMap()["by"] != "ada" {
		t.Errorf("the events are %v", first.Events)
	}
	details := fmt.Sprint(first.Events[0].Details.AsMap())
	for _, text := range append([]string{"shippingAddress"}, personalTexts...) {
		if !strings.Contains(details, text) {
			t.Errorf("%q is missing in %s", text, details)
		}
	}
	if strings.Contains(details, "sealed") {
		t.Errorf("what is sealed is exported as it is: %s", details)
	}
	must(n.users("ada", 0).EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", ConfirmUserId: "ada"}))(t)
	orders, _ = export(nil)
	if len(orders) != 5 {
		t.Fatalf("%d orders after the erasure", len(orders))
	}
	for _, order := range orders {
		hasNothingPersonal(t, "exported after the erasure", order.Order)
		if _, there := order.Events[0].Details.AsMap()["personal"]; there || len(order.Events) == 0 {
			t.Errorf("after the erasure the events are %v", order.Events)
		}
	}
}

func TestTheFingerprintCoversWhatIsPersonalAndTellsNobodyWhatItIs(t *testing.T) {
	n, real := serveReal(t, nil)
	ada := n.client("ada", 0)
	ask := personalRequest("r1", "a")
	must(ada.PlaceOrder(t.Context(), ask))(t)
	for name, change := range map[string]func(*orderv1.PlaceOrderRequest){
		"another note":             func(r *orderv1.PlaceOrderRequest) { r.Note = "x" },
		"no note":                  func(r *orderv1.PlaceOrderRequest) { r.Note = "" },
		"another house":            func(r *orderv1.PlaceOrderRequest) { r.ShippingAddress.Lines[0] = "13 St James's Square" },
		"no address":               func(r *orderv1.PlaceOrderRequest) { r.ShippingAddress = nil },
		"another telephone number": func(r *orderv1.PlaceOrderRequest) { r.Contact.Phone = "+44 20 7930 0001" },
		"no contact":               func(r *orderv1.PlaceOrderRequest) { r.Contact = nil },
		"nothing personal": func(r *orderv1.PlaceOrderRequest) {
			r.Note, r.ShippingAddress, r.Contact = "", nil, nil
		},
	} {
		other := personalRequest("r1", "a")
		change(other)
		_, err := ada.PlaceOrder(t.Context(), other)
		wantError(t, name, err, connect.CodeFailedPrecondition, api.ReasonKeyReused)
	}
	// Whoever has the log tries what the note may be, and finds neither the hash of the right guess nor any part of it.
	phone := request("r2", "a", 1)
	phone.Note = "0309018200"
	must(ada.PlaceOrder(t.Context(), phone))(t)
	guess := []byte("\x17weir.order.v1.PlaceOrder" + "\x03ada" + "\x01\x01a\x02" + "\x0a0309018200")
	guess[0] = byte(len("weir.order.v1.PlaceOrder"))
	sum := sha256.Sum256(guess)
	log := real.logText(t)
	if bytes.Contains(log, sum[:8]) || bytes.Contains(log, sum[8:16]) {
		t.Error("the log holds the hash of the telephone number")
	}
	plain := sha256.Sum256(append(guess[:len(guess)-11:len(guess)-11], 0))
	if !bytes.Contains(log, plain[:8]) {
		t.Error("the first half of the fingerprint is not what the guess takes it to be: the test guesses wrong")
	}
	// Two orders to one address do not look alike.
	seen := map[string]bool{}
	for _, log := range real.logs {
		for number := uint64(1); number <= log.Position().Number; number++ {
			record, err := log.Read(t.Context(), number)
			if err != nil {
				t.Fatal(err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, event := range commit.Events {
				if event.Type == stored.TypeOrderPlaced {
					half := string(event.Fingerprint[8:])
					if seen[half] {
						t.Errorf("two requests have the second half %x", half)
					}
					seen[half] = true
				}
			}
		}
	}
}

// slowEraser erases on another node, between the moment in which this one seals and the one in which it submits.
type slowEraser struct {
	*sealing.Sealer
	between func()
}

func (s *slowEraser) MAC(ctx context.Context, userID string, text []byte) ([32]byte, error) {
	if between := s.between; between != nil {
		s.between = nil
		between()
	}
	return s.Sealer.MAC(ctx, userID, text)
}

func TestAnOrderThatIsSealedWhileItsUserIsErasedIsReadableAfterwards(t *testing.T) {
	slow := &slowEraser{}
	n, _ := serveReal(t, func(o *api.Options) {
		slow.Sealer = o.Sealer.(*sealing.Sealer)
		o.Sealer = slow
	})
	ada := n.client("ada", 0)
	first := personalRequest("r1", "a")
	before := must(ada.PlaceOrder(t.Context(), first))(t)
	slow.between = func() {
		must(n.users("ada", 0).EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", ConfirmUserId: "ada"}))(t)
	}
	second := personalRequest("r2", "a")
	placed := must(ada.PlaceOrder(t.Context(), second))(t)
	hasPersonal(t, "placed while being erased", placed.Order, second)
	get := func(placed *orderv1.PlaceOrderResponse) *orderv1.Order {
		return must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}))(t).Order
	}
	hasPersonal(t, "got", get(placed), second)
	hasNothingPersonal(t, "of before", get(before))
}

// stoppedEraser does not come to destroying a key.
type stoppedEraser struct {
	*sealing.Sealer
	stopped bool
}

func (s *stoppedEraser) Destroy(ctx context.Context, userID string, id sealing.KeyID) error {
	if s.stopped {
		return errors.New("planted: the node is killed")
	}
	return s.Sealer.Destroy(ctx, userID, id)
}

func TestAnErasureThatWasStoppedHalfwayIsFinished(t *testing.T) {
	for name, finish := range map[string]func(*testing.T, *node, *realNode, *stoppedEraser){
		"by the same request": func(t *testing.T, n *node, _ *realNode, _ *stoppedEraser) {
			must(n.users("ada", 0).EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", ConfirmUserId: "ada"}))(t)
		},
		"by the user's next order": func(t *testing.T, n *node, _ *realNode, _ *stoppedEraser) {
			ask := personalRequest("r2", "a")
			hasPersonal(t, "the next order", must(n.client("ada", 0).PlaceOrder(t.Context(), ask))(t).Order, ask)
		},
		"by the next start": func(t *testing.T, n *node, real *realNode, s *stoppedEraser) {
			if err := api.FinishErasures(t.Context(), s, real.set.EachErased); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			stopped := &stoppedEraser{}
			n, real := serveReal(t, func(o *api.Options) {
				stopped.Sealer = o.Sealer.(*sealing.Sealer)
				o.Sealer = stopped
			})
			ada := n.client("ada", 0)
			placed := must(ada.PlaceOrder(t.Context(), personalRequest("r1", "a")))(t)
			stopped.stopped = true
			_, err := n.users("ada", 0).EraseUser(t.Context(), &userv1.EraseUserRequest{RequestId: "e1", ConfirmUserId: "ada"})
			wantError(t, "the call that is stopped", err, connect.CodeUnavailable, api.ReasonKeysUnavailable)
			stopped.stopped = false
			finish(t, n, real, stopped)
			hasNothingPersonal(t, "afterwards", must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}))(t).Order)
		})
	}
}

func TestAnOrderOfBeforeThereWasABlobStillShowsItsNote(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ada := n.client("ada", 0)
	placed := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t)
	sealed, err := n.sealer.Seal(t.Context(), "ada", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := domain.ParseOrderID(placed.Order.OrderId)
	if err != nil {
		t.Fatal(err)
	}
	n.set(func() { n.orders[id][0].order.SealedNote = sealed })
	get := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId}
	if got := must(ada.GetOrder(t.Context(), get))(t); got.Order.Note != "hello" || got.Order.PersonalDataErased {
		t.Errorf("got %v", got.Order)
	}
	if err := n.sealer.Destroy(t.Context(), "ada", sealing.KeyOf(sealed)); err != nil {
		t.Fatal(err)
	}
	hasNothingPersonal(t, "erased", must(ada.GetOrder(t.Context(), get))(t).Order)
}
