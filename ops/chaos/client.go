package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	placeOrder   = orderv1connect.OrderServicePlaceOrderProcedure
	cancelOrder  = orderv1connect.OrderServiceCancelOrderProcedure
	getOrder     = orderv1connect.OrderServiceGetOrderProcedure
	shipItems    = orderv1connect.OrderServiceShipItemsProcedure
	putProduct   = catalogv1connect.CatalogServicePutProductProcedure
	receiveStock = catalogv1connect.CatalogServiceReceiveStockProcedure
	getStock     = catalogv1connect.CatalogServiceGetStockProcedure
)

const (
	// callTimeout is how long one call may take before its outcome counts as unknown.
	callTimeout = 30 * time.Second
	// resolveWait is how long a request may be retried until its outcome is known.
	resolveWait = 30 * time.Second
	// retryInterval is between two tries. Where calls fail one after the other it doubles up to retryIntervalMax: while no node serves, those who
	// ask again and again would take the processors from those who start.
	retryInterval    = 10 * time.Millisecond
	retryIntervalMax = 100 * time.Millisecond
	// sampleSize is how many old orders a client checks after every restart, on top of the new ones.
	sampleSize = 20
	// replyMax bounds a reply's bytes.
	replyMax = 1 << 20
)

// A request is a mutation, and its reply once it was acknowledged.
type request struct {
	Client    int    `json:"client"`
	ID        string `json:"request_id"`
	Procedure string `json:"procedure"`
	Body      []byte `json:"body"`
	Reply     []byte `json:"reply"`

	message proto.Message
	// of is the order that it changes, or placed.
	of *order
}

// An order is what a client knows of one of its orders.
type order struct {
	// latest is the order as the newest acknowledged command answered it.
	latest    *orderv1.Order
	revision  *typev1.Revision
	cancelled bool
	// fresh says that the view that showed latest was not behind the log, settled that it waited for no payment.
	fresh, settled bool
}

// A client orders for one user, one call at a time, and remembers everything that was acknowledged.
// It is used by one goroutine at a time.
type client struct {
	*chaos
	number int
	random *rand.Rand
	next   int
	// unknown is the mutation whose outcome is not known yet; nil for none.
	unknown  *request
	requests []*request
	orders   []*order
	// Up to these everything was checked after a restart.
	requestsChecked, ordersChecked int
}

func newClient(c *chaos, number int) *client {
	return &client{chaos: c, number: number, random: rand.New(rand.NewPCG(c.Seed, uint64(number)+1))}
}

func (c *client) user() string { return fmt.Sprintf("user-%d", c.number) }

// work makes calls until ctx ends.
func (c *client) work(ctx context.Context) {
	for pause := retryInterval; ctx.Err() == nil; {
		var err error
		switch draw := c.random.IntN(100); {
		case len(c.orders) == 0 || !c.kind.pays && draw < 68 || c.kind.pays && draw < 20:
			err = c.mutate(ctx, c.newOrder())
		case draw < 84 && c.kind.pays:
			err = c.mutate(ctx, c.newOrderChange())
		case draw < 84:
			err = c.mutate(ctx, c.newCancellation(c.orders[c.random.IntN(len(c.orders))]))
		case draw < 94:
			err = c.repeat(ctx, c.requests[c.random.IntN(len(c.requests))])
		case draw < 96:
			err = c.reuse(ctx)
		case draw < 98:
			err = c.checkOrder(ctx, c.orders[c.random.IntN(len(c.orders))])
		default:
			err = c.receive(ctx, skuName(c.random.IntN(skuCount)), int64(1+c.random.IntN(100)))
		}
		if err == nil {
			pause = retryInterval
			continue
		}
		// It asks for patience, its reply was lost, or it is gone: then ctx ends soon, and check asks again what is not known.
		wait(ctx, pause)
		pause = longer(pause)
		if c.resolve(ctx) != nil {
			return
		}
	}
}

// longer returns the pause after the next failure in a row.
func longer(pause time.Duration) time.Duration { return min(2*pause, retryIntervalMax) }

func (c *client) newRequest(procedure string, of *order, message func(id string) proto.Message) *request {
	c.next++
	r := &request{Client: c.number, ID: fmt.Sprintf("chaos-%d-%d", c.number, c.next), Procedure: procedure, of: of}
	r.message = message(r.ID)
	return r
}

func (c *client) newOrder() *request {
	return c.newRequest(placeOrder, nil, func(id string) proto.Message {
		message := &orderv1.PlaceOrderRequest{RequestId: id, UserId: c.user()}
		// One to three neighbouring products; now and then the scarce one is among them.
		first, count := 1+c.random.IntN(skuCount-3), 1+c.random.IntN(3)
		if c.random.IntN(20) == 0 {
			first = 0
		}
		for i := range count {
			message.Items = append(message.Items, &orderv1.ItemRequest{Sku: skuName(first + i), Quantity: int64(1 + c.random.IntN(3))})
		}
		if c.random.IntN(10) == 0 {
			message.Note = "ring twice, please"
		}
		return message
	})
}

func (c *client) newCancellation(target *order) *request {
	return c.newRequest(cancelOrder, target, func(id string) proto.Message {
		return &orderv1.CancelOrderRequest{RequestId: id, OrderId: target.latest.GetOrderId(), Reason: "changed my mind"}
	})
}

// receive adds units of a product.
func (c *client) receive(ctx context.Context, sku string, units int64) error {
	return c.mutate(ctx, c.newRequest(receiveStock, nil, func(id string) proto.Message {
		return &catalogv1.ReceiveStockRequest{RequestId: id, Sku: sku, Quantity: units}
	}))
}

// mutate makes a call whose outcome must become known.
func (c *client) mutate(ctx context.Context, r *request) error {
	var err error
	if r.Body, err = proto.Marshal(r.message); err != nil {
		return err
	}
	c.unknown = r
	return c.attempt(ctx, r)
}

// attempt asks once. It returns an error when the outcome is still not known.
func (c *client) attempt(ctx context.Context, r *request) error {
	reply, refusal, err := c.post(ctx, r.Procedure, r.Body)
	if err != nil {
		return err
	}
	c.unknown = nil
	if refusal != "" {
		if !c.expected(r.Procedure, refusal) {
			c.violated(fmt.Errorf("%s %s was refused: %s", r.Procedure, r.ID, refusal))
		}
		return nil
	}
	r.Reply = reply
	return c.settled(r)
}

// expected reports whether a refusal may be.
func (c *client) expected(procedure, refusal string) bool {
	switch procedure {
	case placeOrder:
		return refusal == "OUT_OF_STOCK"
	case receiveStock:
		return false
	}
	return c.kind.pays && harmless[refusal]
}

// settled takes an acknowledged request into what the client knows.
func (c *client) settled(r *request) error {
	var err error
	switch message := r.message.(type) {
	default:
		reply := replyOf(r.Procedure)
		if err = proto.Unmarshal(r.Reply, reply); err == nil {
			c.took(r, reply)
		}
	case *catalogv1.ReceiveStockRequest:
		var received catalogv1.ReceiveStockResponse
		if err = proto.Unmarshal(r.Reply, &received); err == nil {
			c.mu.Lock()
			c.received[message.GetSku()] += message.GetQuantity()
			c.mu.Unlock()
		}
	}
	if err != nil {
		c.violated(fmt.Errorf("reply to %s cannot be read: %w", r.ID, err))
		return nil
	}
	c.requests = append(c.requests, r)
	return c.acknowledge(r)
}

// took takes an order as a command answered it into what the client knows.
func (c *client) took(r *request, reply changedOrder) {
	c.silence.ended(reply.GetRevision().GetLane())
	if r.Procedure == placeOrder {
		r.of = &order{}
		c.orders = append(c.orders, r.of)
	}
	if reply.GetRevision().GetCommit() < r.of.revision.GetCommit() {
		return // A view has shown a newer one.
	}
	r.of.latest, r.of.revision, r.of.settled = reply.GetOrder(), reply.GetRevision(), false
	r.of.cancelled = r.of.cancelled || r.Procedure == cancelOrder
}

// resolve asks again what is not known until it is.
func (c *client) resolve(ctx context.Context) error {
	pause := retryInterval
	for end := time.Now().Add(resolveWait); c.unknown != nil; pause = longer(pause) {
		err := c.attempt(ctx, c.unknown)
		if err == nil {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("request %s has no outcome after %v: %w", c.unknown.ID, resolveWait, err)
		}
		wait(ctx, pause)
	}
	return nil
}

// repeat asks an acknowledged request again: the answer is the same, byte for byte (I4).
func (c *client) repeat(ctx context.Context, r *request) error {
	reply, refusal, err := c.post(ctx, r.Procedure, r.Body)
	switch {
	case err != nil:
		return err
	case refusal != "":
		c.violated(fmt.Errorf("request %s was acknowledged and is refused now: %s (I1, I4)", r.ID, refusal))
	case !bytes.Equal(reply, r.Reply):
		c.violated(fmt.Errorf("request %s answers %x now, %x before (I4)", r.ID, reply, r.Reply))
	}
	return nil
}

// reuse sends another body under an acknowledged order's request id: it is refused.
func (c *client) reuse(ctx context.Context) error {
	for _, r := range c.requests {
		placed, isOrder := r.message.(*orderv1.PlaceOrderRequest)
		if !isOrder {
			continue
		}
		other := proto.CloneOf(placed)
		other.Items[0].Quantity += 10
		body, err := proto.Marshal(other)
		if err != nil {
			return err
		}
		_, refusal, err := c.post(ctx, placeOrder, body)
		if err == nil && refusal != "KEY_REUSED" {
			c.violated(fmt.Errorf("request %s with another body: %q instead of KEY_REUSED (I4)", r.ID, refusal))
		}
		return err
	}
	return nil
}

// check compares what the client knows with what the node says now: the new, and a sample of the old, or all of it.
func (c *client) check(ctx context.Context, all bool) error {
	if all {
		c.requestsChecked, c.ordersChecked = 0, 0
	}
	requests, orders := c.requests[c.requestsChecked:], c.orders[c.ordersChecked:]
	for _, r := range requests {
		if err := c.persist(ctx, func() error { return c.repeat(ctx, r) }); err != nil {
			return fmt.Errorf("repeat %s: %w", r.ID, err)
		}
	}
	for range min(sampleSize, c.ordersChecked) {
		orders = append(orders[:len(orders):len(orders)], c.orders[c.random.IntN(c.ordersChecked)])
	}
	for _, o := range orders {
		if err := c.persist(ctx, func() error { return c.checkOrder(ctx, o) }); err != nil {
			return fmt.Errorf("get %s: %w", o.latest.GetOrderId(), err)
		}
	}
	c.requestsChecked, c.ordersChecked = len(c.requests), len(c.orders)
	return nil
}

// persist tries until it works: a node that has just started may ask for patience.
func (c *client) persist(ctx context.Context, try func() error) error {
	for end := time.Now().Add(resolveWait); ; {
		err := try()
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		wait(ctx, retryInterval)
	}
}

// checkOrder reads an order: it is what the newest command answered (I1, I6).
func (c *client) checkOrder(ctx context.Context, o *order) error {
	var got orderv1.GetOrderResponse
	err := c.read(ctx, getOrder, &orderv1.GetOrderRequest{OrderId: o.latest.GetOrderId(), MinRevision: o.revision, WaitBudget: durationpb.New(c.ViewWait)}, &got)
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		c.violated(fmt.Errorf("order %s was acknowledged and is refused now: %s (I1)", o.latest.GetOrderId(), refused.reason))
		return nil
	case err != nil:
		return err
	case c.kind.pays:
		// Its payments go on by themselves.
		if what := regression(o.latest, got.GetOrder()); what != "" {
			c.violated(fmt.Errorf("order %s: %s\n  %v now, before\n  %v (I1, I6)", o.latest.GetOrderId(), what, got.GetOrder(), o.latest))
			return nil
		}
		o.latest, o.revision, o.fresh = got.GetOrder(), got.GetOrder().GetRevision(), got.GetFreshness().GetState() == typev1.Freshness_STATE_FRESH
	case !proto.Equal(got.GetOrder(), o.latest):
		c.violated(fmt.Errorf("order %s is\n  %v now, the command answered\n  %v (I1, I6)", o.latest.GetOrderId(), got.GetOrder(), o.latest))
	}
	return nil
}

// A refusedError is a business answer to a read.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "refused: " + e.reason }

// read makes a query.
func (c *chaos) read(ctx context.Context, procedure string, message, answer proto.Message) error {
	reply, refusal, err := c.call(ctx, procedure, message)
	switch {
	case err != nil:
		return err
	case refusal != "":
		return &refusedError{refusal}
	}
	return proto.Unmarshal(reply, answer)
}

// call makes one call. A refusal is an answer; an error is not: the call may or may not have had an effect.
func (c *chaos) call(ctx context.Context, procedure string, message proto.Message) (reply []byte, refusal string, err error) {
	body, err := proto.Marshal(message)
	if err != nil {
		return nil, "", err
	}
	return c.post(ctx, procedure, body)
}

// post makes one call from its bytes to its bytes.
func (c *chaos) post(ctx context.Context, procedure string, body []byte) (reply []byte, refusal string, err error) {
	began, node := time.Now(), c.url()
	message, err := http.NewRequestWithContext(ctx, http.MethodPost, node+procedure, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	trusted, operator := c.node.Tokens()
	token := trusted
	switch procedure {
	case putProduct, receiveStock, getStock, shipItems, capturePayment, voidPayment, refundPayment, listAttention:
		token = operator
	}
	message.Header.Set("Content-Type", "application/proto")
	message.Header.Set("Authorization", "Bearer "+token)
	// Without this, the transport would send a request again by itself when a connection breaks.
	message.GetBody = nil
	status, data, err := c.exchange(message)
	if err == nil && status == http.StatusOK {
		return data, "", nil
	}
	if err == nil {
		err = faultOf(status, data)
	}
	switch {
	case err == nil:
	case asksForPatience(data):
		err = fmt.Errorf("%w: %w", errPatience, err)
	case ctx.Err() == nil:
		kind := kindOfFault(err, data)
		if kind == lateFault {
			kind += " to " + procedure[strings.LastIndexByte(procedure, '/')+1:]
		}
		c.fail(kind, &failure{Began: began, Millis: time.Since(began).Milliseconds(), Node: node, Procedure: procedure, Error: err.Error()})
	}
	return nil, refusalOf(data), err
}

// A failure is a call without an answer that stands, as it is written down: nothing says so well what a node did meanwhile as its log at that time.
type failure struct {
	Began     time.Time `json:"began"`
	Millis    int64     `json:"millis"`
	Node      string    `json:"node"`
	Procedure string    `json:"procedure"`
	Error     string    `json:"error"`
}

// fail counts a call that failed, and writes it down.
func (c *chaos) fail(kind string, f *failure) {
	c.failed.Add(1)
	c.lastFault.Store(f.Error)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.faults == nil {
		c.faults = map[string]int{}
	}
	c.faults[kind]++
	if err := c.failures.Encode(f); err != nil && c.failuresErr == nil {
		c.failuresErr = fmt.Errorf("write down a call that failed: %w", err)
	}
}

// faultsSince returns how often calls failed in which way since it was asked before, the most frequent way first.
func (c *chaos) faultsSince() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	kinds := slices.SortedFunc(maps.Keys(c.faults), func(a, b string) int {
		return cmp.Or(cmp.Compare(c.faults[b], c.faults[a]), cmp.Compare(a, b))
	})
	for i, kind := range kinds {
		kinds[i] = fmt.Sprintf("%s %d", kind, c.faults[kind])
	}
	clear(c.faults)
	return strings.Join(kinds, ", ")
}

// lateFault is what kindOfFault says of a call that had no answer in time.
const lateFault = "no answer in time"

// kindOfFault says in few words how a call failed that was answered with data, if with anything.
func kindOfFault(err error, data []byte) string {
	var answer connectError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case errors.As(err, &timeout) && timeout.Timeout():
		return lateFault
	case json.Unmarshal(data, &answer) == nil && answer.Code != "":
		return answer.Code + " " + answer.reason()
	}
	return "other"
}

// errPatience says that a call had no effect, and may have one later.
var errPatience = errors.New("asked for patience")

// exchange sends a request and reads all of its answer.
func (c *chaos) exchange(message *http.Request) (status int, data []byte, err error) {
	response, err := c.http.Do(message)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	data, err = io.ReadAll(io.LimitReader(response.Body, replyMax))
	return response.StatusCode, data, err
}

// asksForPatience reports whether an answer is that units are on their way (STOCK_MOVING): every node says so in good health too.
func asksForPatience(data []byte) bool {
	var answer connectError
	return json.Unmarshal(data, &answer) == nil && answer.Code == "aborted"
}

// connectError is an error of the Connect protocol.
type connectError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"details"`
}

// isRefusal reports whether the error is an answer that stands, and not a fault or a wish to be asked later.
func (e *connectError) isRefusal() bool {
	switch e.Code {
	case "failed_precondition", "not_found", "invalid_argument", "permission_denied", "unauthenticated", "out_of_range", "already_exists":
		return true
	}
	return false
}

// refusalOf returns the reason of a refusal, "" when the answer is none.
func refusalOf(data []byte) string {
	var answer connectError
	if json.Unmarshal(data, &answer) != nil || !answer.isRefusal() {
		return ""
	}
	return cmp.Or(answer.reason(), answer.Code+": "+answer.Message)
}

// reason returns the reason that the error names, "" when it names none.
func (e *connectError) reason() string {
	for _, detail := range e.Details {
		var info errdetails.ErrorInfo
		value, err := base64.RawStdEncoding.DecodeString(detail.Value)
		if detail.Type == "google.rpc.ErrorInfo" && err == nil && proto.Unmarshal(value, &info) == nil {
			return info.GetReason()
		}
	}
	return ""
}

// faultOf returns an error when the answer is not a refusal.
func faultOf(status int, data []byte) error {
	if refusalOf(data) != "" {
		return nil
	}
	return fmt.Errorf("status %d: %.200s", status, data)
}
