package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	// witnesses make calls at the same time whose beginnings and ends are written down.
	witnesses = 4
	// witnessCallsMax bounds the calls of one witness in a round: what a check costs grows faster than its history.
	witnessCallsMax = 150
	// witnessInterval is between two calls of a witness.
	witnessInterval = 30 * time.Millisecond
	// witnessUnits are received at first, so few that most orders have to wait for others to give theirs back.
	witnessUnits = 6
	// witnessPlenty is how many units there are for orders whose own histories are written down.
	witnessPlenty = 1_000_000
	// verdictAge is how old an OUT_OF_STOCK may be: a lane asks anew after 1 s, and hears the answer within half a second.
	verdictAge = 1500 * time.Millisecond
	// lostMax is how long after a try that got no answer it may still take effect: a node takes no command of another one that is older than a
	// second, holds it up for at most two while its lane moves, and has another one for its queue.
	lostMax = 5 * time.Second
	// historyCheckMax is how long one history may take to be checked, and historiesCheckMax all of a round.
	historyCheckMax   = 30 * time.Second
	historiesCheckMax = 3 * time.Minute
	// freshReadWait is how long a read waits for what was acknowledged before it.
	freshReadWait = 2 * time.Second
)

// A history is what happened to one thing in one round, a SKU's stock or an order: calls with their beginnings and ends. Whatever order the
// calls took effect in, there has to be one in which each took effect between its beginning and its end.
type history struct {
	mu sync.Mutex
	// of each thing, by name.
	of map[string][]porcupine.Operation
	// open orders that all witnesses may cancel and read, and the newest revision of each that anybody knows.
	open   []string
	newest map[string]*typev1.Revision
}

// stockCall moves units of a SKU: taken is positive for an order, negative for what came in or back. stockAnswer says what became of it.
type (
	stockCall   struct{ taken int64 }
	stockAnswer struct{ known, refused bool }
)

// stockModel is how many units a SKU has that nobody ordered. A call whose answer is not known takes effect between its beginning and its
// end, if it can, or does not.
var stockModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{int64(0)} },
	Step: func(state, input, output any) []any {
		free, call, answer := state.(int64), input.(stockCall), output.(stockAnswer) //nolint:errcheck // The model's own types.
		enough := free >= call.taken
		switch {
		case answer.refused && enough, answer.known && !answer.refused && !enough:
			return nil
		case answer.refused, !enough:
			return []any{free}
		case answer.known:
			return []any{free - call.taken}
		}
		return []any{free - call.taken, free}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v %+v", input, output) },
}).ToModel()

// orderCall places, cancels or reads an order. orderState is what it answers, and the state of the order too.
type (
	orderCall  struct{ kind string }
	orderState struct {
		known     bool
		cancelled bool
		commit    uint64
	}
)

// orderModel is an order that is placed, cancelled once, and read.
var orderModel = porcupine.Model{
	Init: func() any { return orderState{} },
	Step: func(state, input, output any) (bool, any) {
		is, call, answer := state.(orderState), input.(orderCall), output.(orderState) //nolint:errcheck // The model's own types.
		switch {
		case call.kind == "place":
			return !is.known, answer
		case !answer.known: // A cancellation without an answer: whoever saw it says at which commit; commit 0 stands for any.
			if is.cancelled {
				return true, is
			}
			return is.known, orderState{known: true, cancelled: true}
		case call.kind == "cancel" && !is.cancelled:
			return is.known && answer.cancelled && answer.commit > is.commit, answer
		case is.cancelled && is.commit == 0:
			return answer.cancelled, answer
		}
		return answer == is, is
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v %+v", input, output) },
}

// note writes a call down. An end of 0 is that of a call without an answer.
func (h *history) note(thing string, client int, input, output any, began, ended int64) {
	if ended == 0 {
		ended = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of[thing] = append(h.of[thing], porcupine.Operation{ClientId: client, Input: input, Output: output, Call: began, Return: ended})
}

// know notes a revision of an order, and opens the order to all if it is new.
func (h *history) know(orderID string, revision *typev1.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, there := h.newest[orderID]
	if !there {
		h.open = append(h.open, orderID)
	}
	if known.GetCommit() < revision.GetCommit() || !there {
		h.newest[orderID] = revision
	}
}

// draw returns one of the last orders, "" when there is none.
func (h *history) draw(random *rand.Rand) (orderID string, newest *typev1.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) == 0 {
		return "", nil
	}
	last := h.open[max(0, len(h.open)-witnesses):]
	orderID = last[random.IntN(len(last))]
	return orderID, h.newest[orderID]
}

// check returns an error for each thing whose history cannot have happened one call after the other.
func (h *history) check() (checked int, wrong []error) {
	until := time.Now().Add(historiesCheckMax)
	for thing, calls := range h.of {
		left := min(historyCheckMax, time.Until(until))
		if left <= 0 {
			return checked, append(wrong, fmt.Errorf("the histories of %d things were not checked within %v", len(h.of), historiesCheckMax))
		}
		checked += len(calls)
		model, check := orderModel, func() porcupine.CheckResult { return porcupine.CheckOperationsTimeout(orderModel, calls, left) }
		if _, stock := calls[0].Input.(stockCall); stock {
			model, check = stockModel, func() porcupine.CheckResult { return checkStock(calls, left) }
		}
		switch check() {
		case porcupine.Ok:
		case porcupine.Unknown:
			wrong = append(wrong, fmt.Errorf("the history of %s, %d calls, was not checked within %v:%s", thing, len(calls), left, textOf(model, calls)))
		case porcupine.Illegal:
			wrong = append(wrong, fmt.Errorf("the history of %s is not linearizable (I3, I4):%s", thing, textOf(model, calls)))
		}
	}
	return checked, wrong
}

// textOf writes down a history, a call a line: who made it, its beginning and end, what it asked for and what it was answered.
func textOf(model porcupine.Model, calls []porcupine.Operation) string {
	var text strings.Builder
	for i := range calls {
		o := &calls[i]
		fmt.Fprintf(&text, "\n  %d: %d to %d: %s", o.ClientId, o.Call, o.Return, model.DescribeOperation(o.Input, o.Output))
	}
	return text.String()
}

// A witness makes calls for a history, one at a time.
type witness struct {
	*chaos
	*history
	number, round, next int
	random              *rand.Rand
	began               time.Time
	// own are its orders of the SKU that it has not cancelled, and their units.
	own []ownOrder
}

type ownOrder struct {
	id    string
	units int64
}

// sku of the round's stock history.
func (w *witness) sku() string { return fmt.Sprintf("history-%03d", w.round) }

// plenty is the SKU of orders whose own histories are written down.
func (w *witness) plenty() string { return w.sku() + "-orders" }

// now is the time since the round began: a clock that does not go back.
func (w *witness) now() int64 { return int64(time.Since(w.began)) + int64(verdictAge) }

// An outcome is what came of a call that was made until it had an answer.
type outcome struct {
	refusal string
	// answered is false when ctx ended before.
	answered bool
	// lost is when the last try ended that got no answer, 0 when each got one. It may have taken effect, or may still: a refusal of a later
	// try says nothing about it.
	lost int64
}

// ask makes a call until it has an answer, as part of one operation.
func (w *witness) ask(ctx context.Context, procedure string, message proto.Message, reply proto.Message) (came outcome) {
	body, err := proto.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("chaos: bug: %v", err))
	}
	for pause := retryInterval; ; pause = longer(pause) {
		answer, refusal, err := w.post(ctx, procedure, body)
		if err == nil && refusal == "" {
			err = proto.Unmarshal(answer, reply)
		}
		if err == nil {
			came.refusal, came.answered = refusal, true
			return came
		}
		if !errors.Is(err, errPatience) {
			came.lost = w.now()
		}
		if wait(ctx, pause); ctx.Err() != nil {
			return came
		}
	}
}

// request returns a request id that no other call has.
func (w *witness) request() string {
	w.next++
	return fmt.Sprintf("witness-%d-%d-%d", w.round, w.number, w.next)
}

func (w *witness) user() string { return fmt.Sprintf("witness-%d", w.number) }

// stock puts the products of the round's histories, and their units.
func (w *witness) stock(ctx context.Context) error {
	for _, sku := range []string{w.sku(), w.plenty()} {
		product := &catalogv1.PutProductRequest{Sku: sku, Title: "Of a history", Price: &typev1.Money{CurrencyCode: "EUR", Units: 100}}
		if _, refusal, err := w.call(ctx, putProduct, product); err != nil || refusal != "" {
			return fmt.Errorf("put %s: %w %s", product.Sku, err, refusal)
		}
	}
	w.receive(ctx, w.sku(), witnessUnits)
	w.receive(ctx, w.plenty(), witnessPlenty)
	return nil
}

// work makes calls until ctx ends.
func (w *witness) work(ctx context.Context) {
	for range witnessCallsMax {
		if ctx.Err() != nil {
			return
		}
		switch draw := w.random.IntN(100); {
		case draw < 30:
			w.take(ctx, int64(1+w.random.IntN(2)))
		case draw < 50 && len(w.own) > 0:
			w.giveBack(ctx)
		case draw < 55:
			w.receive(ctx, w.sku(), 1)
		case draw < 63:
			w.place(ctx)
		case draw < 70:
			w.cancel(ctx)
		default:
			w.look(ctx)
		}
		wait(ctx, witnessInterval)
	}
}

func endOf(answered bool, now int64) int64 {
	if !answered {
		return 0
	}
	return now
}

// receive adds units.
func (w *witness) receive(ctx context.Context, sku string, units int64) {
	began := w.now()
	came := w.ask(ctx, receiveStock, &catalogv1.ReceiveStockRequest{RequestId: w.request(), Sku: sku, Quantity: units}, &catalogv1.ReceiveStockResponse{})
	w.note(sku, w.number, stockCall{-units}, stockAnswer{known: came.answered}, began, endOf(came.answered, w.now()))
}

// take orders units.
func (w *witness) take(ctx context.Context, units int64) {
	began := w.now()
	var reply orderv1.PlaceOrderResponse
	came := w.ask(ctx, placeOrder, &orderv1.PlaceOrderRequest{
		RequestId: w.request(), UserId: w.user(), Items: []*orderv1.ItemRequest{{Sku: w.sku(), Quantity: units}},
	}, &reply)
	refusedFrom := began
	switch {
	case came.refusal == "OUT_OF_STOCK":
		refusedFrom -= int64(verdictAge)
		if came.lost > 0 {
			w.note(w.sku(), w.number+witnesses, stockCall{units}, stockAnswer{}, began, came.lost+int64(lostMax))
		}
	case came.refusal != "":
		w.violated(fmt.Errorf("%s was refused an order: %s", w.user(), came.refusal))
	case came.answered:
		w.own = append(w.own, ownOrder{reply.GetOrder().GetOrderId(), units})
	}
	w.note(w.sku(), w.number, stockCall{units}, stockAnswer{known: came.answered, refused: came.refusal != ""}, refusedFrom, endOf(came.answered, w.now()))
}

// giveBack cancels one of the orders that took units, once.
func (w *witness) giveBack(ctx context.Context) {
	given := w.own[0]
	w.own = w.own[1:]
	began := w.now()
	came := w.ask(ctx, cancelOrder, &orderv1.CancelOrderRequest{RequestId: w.request(), OrderId: given.id, Reason: "given back"}, &orderv1.CancelOrderResponse{})
	if came.refusal != "" {
		w.violated(fmt.Errorf("order %s is there and its cancellation was refused: %s (I1)", given.id, came.refusal))
	}
	w.note(w.sku(), w.number, stockCall{-given.units}, stockAnswer{known: came.answered}, began, endOf(came.answered, w.now()))
}

// place opens an order that all witnesses cancel and read.
func (w *witness) place(ctx context.Context) {
	began := w.now()
	var reply orderv1.PlaceOrderResponse
	came := w.ask(ctx, placeOrder, &orderv1.PlaceOrderRequest{
		RequestId: w.request(), UserId: w.user(), Items: []*orderv1.ItemRequest{{Sku: w.plenty(), Quantity: 1}},
	}, &reply)
	if !came.answered || came.refusal != "" {
		return // Nobody knows the order.
	}
	id := reply.GetOrder().GetOrderId()
	w.note(id, w.number, orderCall{"place"}, stateOf(reply.GetOrder()), began, w.now())
	w.know(id, reply.GetRevision())
}

// cancel cancels an order that others may cancel too.
func (w *witness) cancel(ctx context.Context) {
	id, _ := w.draw(w.random)
	if id == "" {
		return
	}
	began := w.now()
	var reply orderv1.CancelOrderResponse
	came := w.ask(ctx, cancelOrder, &orderv1.CancelOrderRequest{RequestId: w.request(), OrderId: id, Reason: "in a history"}, &reply)
	switch {
	case came.refusal != "":
		w.violated(fmt.Errorf("order %s is there and its cancellation was refused: %s (I1)", id, came.refusal))
	case !came.answered:
		w.note(id, w.number, orderCall{"cancel"}, orderState{}, began, 0)
	default:
		w.know(id, reply.GetOrder().GetRevision())
		w.note(id, w.number, orderCall{"cancel"}, stateOf(reply.GetOrder()), began, w.now())
	}
}

// look reads an order as new as anybody knows it. An answer that says it is older than that says nothing here.
func (w *witness) look(ctx context.Context) {
	id, newest := w.draw(w.random)
	if id == "" {
		return
	}
	began := w.now()
	var reply orderv1.GetOrderResponse
	err := w.read(ctx, getOrder, &orderv1.GetOrderRequest{OrderId: id, MinRevision: newest, WaitBudget: durationpb.New(freshReadWait)}, &reply)
	if err != nil || reply.GetFreshness().GetState() != typev1.Freshness_STATE_FRESH {
		return // A read has no effect, and this one says nothing.
	}
	w.know(id, reply.GetOrder().GetRevision())
	w.note(id, w.number, orderCall{"read"}, stateOf(reply.GetOrder()), began, w.now())
}

func stateOf(o *orderv1.Order) orderState {
	return orderState{known: true, cancelled: o.GetStatus() == orderv1.OrderStatus_ORDER_STATUS_CANCELLED, commit: o.GetRevision().GetCommit()}
}

// witnessed has witnesses work while f runs, and then checks the histories that they wrote down.
func (c *chaos) witnessed(ctx context.Context, round int, f func() error) error {
	h := &history{of: map[string][]porcupine.Operation{}, newest: map[string]*typev1.Revision{}}
	all := make([]*witness, witnesses)
	for i := range all {
		all[i] = &witness{chaos: c, history: h, number: i, round: round, random: rand.New(rand.NewPCG(c.Seed, uint64(round*witnesses+i)<<20)), began: time.Now()}
		all[i].began = all[0].began
	}
	if err := within(ctx, stockMax, "stock for the histories", all[0].stock); err != nil {
		return err
	}
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	for _, each := range all {
		group.Go(func() { each.work(working) })
	}
	err := f()
	cancel()
	group.Wait()
	if err != nil {
		return err
	}
	checked, wrong := h.check()
	c.witnessCalls += checked
	for _, each := range wrong {
		c.violated(fmt.Errorf("round %d: %w", round, each))
	}
	return nil
}
