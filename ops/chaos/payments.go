package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	startPayment   = paymentv1connect.PaymentServiceStartPaymentProcedure
	capturePayment = paymentv1connect.PaymentServiceCapturePaymentProcedure
	voidPayment    = paymentv1connect.PaymentServiceVoidPaymentProcedure
	refundPayment  = paymentv1connect.PaymentServiceRefundPaymentProcedure
	listAttention  = paymentv1connect.PaymentServiceListPaymentsNeedingAttentionProcedure
)

const (
	// recentOrders are those that a client does something with: it picks among its newest ones, so that they get somewhere.
	recentOrders = 12
	// errorBurst is how many calls to the provider fail one after the other in every third round or so.
	errorBurst = 20
	// settleInterval is between two looks at payments that are not over.
	settleInterval = 100 * time.Millisecond
	// ledgerPagesMax bounds the pages of the provider's ledger, of 10,000 entries each.
	ledgerPagesMax = 1000
	// ledgerPageBytesMax bounds one of them.
	ledgerPageBytesMax = 16 << 20
	// attentionPageMax is how many payments that somebody should look at are asked for: none is the answer.
	attentionPageMax = 20
)

// The methods that payments are made with, each with its weight. Those that get no answer at all hold a line to the provider for ten
// seconds: Options.Silences says how many of them a round has.
var methods = []struct {
	name   string
	weight int
}{
	{sandbox.TokenOK, 40},
	{sandbox.TokenErrorAfterCharge, 12},
	{sandbox.TokenDecline, 6},
	{sandbox.TokenInsufficientFunds, 3},
	{sandbox.TokenSlow, 6},
	{sandbox.TokenPending, 6},
	{sandbox.TokenDuplicateWebhook, 10},
	{sandbox.TokenLateWebhook, 7},
	{sandbox.TokenNoWebhook, 6},
	{sandbox.TokenWrongAmount, 4},
}

var silentMethods = []string{sandbox.TokenTimeoutAfterCharge, sandbox.TokenTimeoutBeforeCharge, sandbox.TokenCaptureTimeout, sandbox.TokenRefundTimeout}

// harmless are refusals that a paying client may get: the provider and other requests change its orders meanwhile.
var harmless = map[string]bool{
	"OUT_OF_STOCK": true, "PAYMENT_STATE": true, "FULFILMENT_STATE": true, "ORDER_CANCELLED": true, "ORDER_SHIPPED": true,
	"ORDER_LIMIT": true, "REFUND_EXCEEDS_CAPTURED": true, "UNITS_EXCEEDED": true,
}

// A bank is the payment provider of a run: the sandbox in a process of its own, and faults.
type bank struct {
	sandbox launch.Sandbox
	http    *http.Client
	faults  sandbox.Faults
}

// newBank makes a bank whose webhooks go to a URL. It starts nothing.
func newBank(options Options, dir, binary, webhook string) *bank {
	return &bank{
		sandbox: launch.Sandbox{
			Binary: binary, Journal: filepath.Join(dir, "sandbox.jsonl"), Webhook: webhook, Secret: webhooksig.NewSecret(),
			Flags: []string{"--slow", "300ms", "--pending", "300ms", "--late", "1s"},
		},
		http: &http.Client{Timeout: callTimeout},
		faults: sandbox.Faults{
			ErrorBefore: 0.03, ErrorAfter: 0.06, LostBefore: 0.03, LostAfter: 0.08, LatencyJitterMS: 5,
			WebhookLost: 0.1, WebhookDuplicate: 0.2, Seed: options.Seed,
		},
	}
}

// start starts it, with its faults.
func (b *bank) start(ctx context.Context) error {
	if err := b.sandbox.Start(ctx); err != nil {
		return err
	}
	return b.misbehave(ctx, b.faults)
}

// turn draws what goes wrong from now on: the same rates, and now and then a burst of calls that all fail.
func (b *bank) turn(ctx context.Context, random *rand.Rand) error {
	faults := b.faults
	faults.Seed = random.Uint64()
	if random.IntN(3) == 0 {
		faults.ErrorBurst = errorBurst
	}
	return b.misbehave(ctx, faults)
}

// restart kills it and starts it again.
func (b *bank) restart(ctx context.Context) error {
	return errors.Join(b.sandbox.Crash(), b.start(ctx))
}

// misbehave replaces what goes wrong.
func (b *bank) misbehave(ctx context.Context, faults sandbox.Faults) error {
	body, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	_, err = b.call(ctx, http.MethodPost, "/faults", body)
	return err
}

// ledger reads every movement of money, and how many webhooks are still to be told.
func (b *bank) ledger(ctx context.Context) (entries []sandbox.Entry, webhooksWaiting int, err error) {
	after := uint64(0)
	for range ledgerPagesMax {
		data, err := b.call(ctx, http.MethodGet, "/ledger?after="+strconv.FormatUint(after, 10), nil)
		if err != nil {
			return nil, 0, err
		}
		var page sandbox.Ledger
		if err := json.Unmarshal(data, &page); err != nil {
			return nil, 0, fmt.Errorf("the sandbox's ledger cannot be read: %w", err)
		}
		entries = append(entries, page.Entries...)
		if after = page.Next; after == 0 {
			return entries, page.WebhooksWaiting, nil
		}
	}
	return nil, 0, fmt.Errorf("the sandbox's ledger has more than %d pages", ledgerPagesMax)
}

// newOrderChange draws what is done to an order.
func (c *client) newOrderChange() *request {
	recent := min(len(c.orders), recentOrders)
	target := c.orders[len(c.orders)-1-c.random.IntN(recent)]
	id := target.latest.GetOrderId()
	switch draw := c.random.IntN(100); {
	case draw < 45:
		mode := orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC
		if c.random.IntN(2) == 0 {
			mode = orderv1.CaptureMode_CAPTURE_MODE_MANUAL
		}
		method := c.drawMethod()
		return c.newRequest(startPayment, target, func(request string) proto.Message {
			return &paymentv1.StartPaymentRequest{RequestId: request, OrderId: id, Provider: sandbox.Name, Method: method, CaptureMode: mode}
		})
	case draw < 62:
		return c.newRequest(capturePayment, target, func(request string) proto.Message {
			return &paymentv1.CapturePaymentRequest{RequestId: request, OrderId: id}
		})
	case draw < 68:
		return c.newRequest(voidPayment, target, func(request string) proto.Message {
			return &paymentv1.VoidPaymentRequest{RequestId: request, OrderId: id}
		})
	case draw < 82:
		var amount *typev1.Money // All that is left.
		if total := target.latest.GetTotal(); c.random.IntN(3) > 0 {
			amount = &typev1.Money{CurrencyCode: total.GetCurrencyCode(), Units: 1 + c.random.Int64N(total.GetUnits())}
		}
		return c.newRequest(refundPayment, target, func(request string) proto.Message {
			return &paymentv1.RefundPaymentRequest{RequestId: request, OrderId: id, Amount: amount}
		})
	case draw < 91:
		item := target.latest.GetItems()[c.random.IntN(len(target.latest.GetItems()))]
		return c.newRequest(shipItems, target, func(request string) proto.Message {
			return &orderv1.ShipItemsRequest{RequestId: request, OrderId: id, Items: []*orderv1.ItemRequest{{Sku: item.GetSku(), Quantity: 1}}}
		})
	}
	return c.newCancellation(target)
}

func (c *client) drawMethod() string {
	if c.silences.Add(-1) >= 0 {
		return silentMethods[c.random.IntN(len(silentMethods))]
	}
	sum := 0
	for _, method := range methods {
		sum += method.weight
	}
	draw := c.random.IntN(sum)
	for _, method := range methods {
		if draw -= method.weight; draw < 0 {
			return method.name
		}
	}
	panic("chaos: bug: a method without a weight was drawn")
}

// A changedOrder is the reply of every command that changes an order.
type changedOrder interface {
	proto.Message
	GetOrder() *orderv1.Order
	GetRevision() *typev1.Revision
}

// replyOf returns an empty reply of a procedure that changes an order, nil for others.
func replyOf(procedure string) changedOrder {
	switch procedure {
	case placeOrder:
		return &orderv1.PlaceOrderResponse{}
	case cancelOrder:
		return &orderv1.CancelOrderResponse{}
	case shipItems:
		return &orderv1.ShipItemsResponse{}
	case startPayment:
		return &paymentv1.StartPaymentResponse{}
	case capturePayment:
		return &paymentv1.CapturePaymentResponse{}
	case voidPayment:
		return &paymentv1.VoidPaymentResponse{}
	case refundPayment:
		return &paymentv1.RefundPaymentResponse{}
	}
	return nil
}

// regression says what of an order is not as it was acknowledged, "" for nothing: it may have got further, and not back.
func regression(was, is *orderv1.Order) string {
	switch {
	case is.GetOrderId() != was.GetOrderId() || is.GetUserId() != was.GetUserId():
		return "it is another order"
	case !proto.Equal(is.GetTotal(), was.GetTotal()) || !proto.Equal(is.GetPlacedAt(), was.GetPlacedAt()) || len(is.GetItems()) != len(was.GetItems()):
		return "what was ordered has changed"
	case is.GetRevision().GetCommit() < was.GetRevision().GetCommit():
		return "it is older than its acknowledgement"
	case len(is.GetPayments()) < len(was.GetPayments()) || len(is.GetRefunds()) < len(was.GetRefunds()) || len(is.GetShipments()) < len(was.GetShipments()):
		return "a payment, a refund or a shipment is gone"
	}
	for i, before := range was.GetPayments() {
		now := is.GetPayments()[i]
		switch {
		case now.GetPaymentId() != before.GetPaymentId() || !proto.Equal(now.GetAmount(), before.GetAmount()):
			return "payment " + before.GetPaymentId() + " is another one"
		case before.GetCaptured() != nil && !proto.Equal(now.GetCaptured(), before.GetCaptured()):
			return "payment " + before.GetPaymentId() + " took another amount than before"
		case now.GetRefunded().GetUnits() < before.GetRefunded().GetUnits() || now.GetRefunded().GetUnits() > now.GetCaptured().GetUnits():
			return "payment " + before.GetPaymentId() + " gave another amount back than it can have (I4)"
		}
	}
	for i, before := range was.GetRefunds() {
		if now := is.GetRefunds()[i]; now.GetRefundId() != before.GetRefundId() || !proto.Equal(now.GetAmount(), before.GetAmount()) {
			return "refund " + before.GetRefundId() + " is another one"
		}
	}
	return ""
}

// unsettled says what an order still waits for of its provider, "" for nothing.
func unsettled(o *orderv1.Order) string {
	for _, p := range o.GetPayments() {
		asked := p.GetCaptureRequested() || p.GetVoidRequested() || p.GetCaptureMode() != orderv1.CaptureMode_CAPTURE_MODE_MANUAL
		switch state := p.GetState(); {
		case state == orderv1.PaymentState_PAYMENT_STATE_PENDING, state == orderv1.PaymentState_PAYMENT_STATE_UNKNOWN,
			state == orderv1.PaymentState_PAYMENT_STATE_AUTHORIZED && asked:
			return fmt.Sprintf("payment %s is %v", p.GetPaymentId(), state)
		}
	}
	for _, r := range o.GetRefunds() {
		if r.GetState() == orderv1.RefundState_REFUND_STATE_UNDER_WAY {
			return fmt.Sprintf("refund %s is %v", r.GetRefundId(), r.GetState())
		}
	}
	return ""
}

// settle ends the faults and waits until no payment is unresolved and no webhook under way (I5). A late webhook may ask for more, so
// it looks at every order once again when there are none. It returns the ledger as of then.
func (c *chaos) settle(ctx context.Context) ([]sandbox.Entry, error) {
	if err := c.bank.misbehave(ctx, sandbox.Faults{}); err != nil {
		return nil, err
	}
	quiet := false
	for end := time.Now().Add(c.SettleMax); ; {
		open, err := c.unresolved(ctx)
		if err != nil {
			return nil, err
		}
		ledger, waiting, err := c.bank.ledger(ctx)
		if err != nil {
			return nil, err
		}
		switch {
		case len(open) > 0 || waiting > 0:
			quiet = false
		case quiet:
			return ledger, nil
		default:
			quiet = true
			c.forgetSettled()
			continue
		}
		if time.Now().After(end) {
			c.violated(fmt.Errorf("%d orders wait for their payments and %d webhooks are not told %v after the last fault (I5): %.300q",
				len(open), waiting, c.SettleMax, open))
			return ledger, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait(ctx, settleInterval)
	}
}

func (c *chaos) forgetSettled() {
	for _, one := range c.clients {
		for _, o := range one.orders {
			o.settled = false
		}
	}
}

// unresolved reads the orders that were not settled when they were last read, and says what they wait for.
func (c *chaos) unresolved(ctx context.Context) ([]string, error) {
	found := make([][]string, len(c.clients))
	err := c.each(ctx, func(one *client) error {
		for _, o := range one.orders {
			if o.settled {
				continue
			}
			if err := one.persist(ctx, func() error { return one.checkOrder(ctx, o) }); err != nil {
				return fmt.Errorf("get %s: %w", o.latest.GetOrderId(), err)
			}
			what := unsettled(o.latest)
			switch {
			case what != "":
				found[one.number] = append(found[one.number], what)
			case !o.fresh:
				found[one.number] = append(found[one.number], "the view of "+o.latest.GetOrderId()+" is behind")
			default:
				o.settled = true
			}
		}
		return nil
	})
	var all []string
	for _, each := range found {
		all = append(all, each...)
	}
	return all, err
}

// checkMoney waits until every payment is over and then compares the provider's ledger, the log and the views, to the minor
// unit (I4, I5, I6).
func (c *chaos) checkMoney(ctx context.Context) error {
	if err := c.clients[0].payAndRefund(ctx); err != nil {
		return err
	}
	ledger, err := c.settle(ctx)
	if err != nil {
		return err
	}
	events, err := c.node.Events(ctx)
	if err != nil {
		return err
	}
	acknowledged := map[string]string{}
	var orders []*orderv1.Order
	for _, one := range c.clients {
		for _, r := range one.requests {
			if r.Procedure == placeOrder {
				acknowledged[effectKey(one.user(), r.ID)] = r.of.latest.GetOrderId()
			}
		}
		for _, o := range one.orders {
			orders = append(orders, o.latest)
		}
	}
	provider, log, views := booksOfProvider(ledger), booksOfLog(events), booksOfViews(orders)
	for _, wrong := range compareBooks("the provider", "the log", provider, log) {
		c.violated(wrong)
	}
	log.wrong = nil // Said above.
	for _, wrong := range compareBooks("the log", "a view", log, views) {
		c.violated(fmt.Errorf("%w (I6)", wrong))
	}
	for _, wrong := range checkEffects(events, acknowledged) {
		c.violated(wrong)
	}
	if err := c.checkAttention(ctx); err != nil {
		return err
	}
	captures, refunds, captured, refunded := 0, 0, int64(0), int64(0)
	for _, a := range provider.accounts {
		captures, refunds, captured, refunded = captures+a.captures, refunds+len(a.refunds), captured+a.captured, refunded+a.refunded
	}
	fmt.Fprintf(c.out, "money: %d payments, %d captures of %d minor units, %d refunds of %d; provider, log and views compared\n",
		len(provider.accounts), captures, captured, refunds, refunded)
	if captures == 0 || refunds == 0 {
		return errors.New("no money moved at the provider, and payments were captured and refunded")
	}
	return nil
}

// payAndRefund pays an order and gives a part back while nothing goes wrong: that works at the end of every run, whatever was before.
func (c *client) payAndRefund(ctx context.Context) error {
	if err := c.bank.misbehave(ctx, sandbox.Faults{}); err != nil {
		return err
	}
	ask := func(r *request) error {
		before := len(c.requests)
		err := c.mutate(ctx, r)
		if err != nil {
			err = c.resolve(ctx)
		}
		if err == nil && len(c.requests) == before {
			err = fmt.Errorf("%s was refused", r.ID)
		}
		return err
	}
	place := c.newRequest(placeOrder, nil, func(id string) proto.Message {
		return &orderv1.PlaceOrderRequest{RequestId: id, UserId: c.user(), Items: []*orderv1.ItemRequest{{Sku: skuName(1), Quantity: 1}}}
	})
	if err := ask(place); err != nil {
		return err
	}
	o := place.of
	id := o.latest.GetOrderId()
	if err := ask(c.newRequest(startPayment, o, func(request string) proto.Message {
		return &paymentv1.StartPaymentRequest{RequestId: request, OrderId: id, Provider: sandbox.Name, Method: sandbox.TokenOK}
	})); err != nil {
		return err
	}
	for end := time.Now().Add(c.SettleMax); o.latest.GetPaymentState() != orderv1.PaymentState_PAYMENT_STATE_CAPTURED; wait(ctx, settleInterval) {
		if err := c.persist(ctx, func() error { return c.checkOrder(ctx, o) }); err != nil {
			return fmt.Errorf("get %s: %w", id, err)
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("a payment is not captured %v after the last fault: %v (I5)", c.SettleMax, o.latest)
		}
	}
	return ask(c.newRequest(refundPayment, o, func(request string) proto.Message {
		return &paymentv1.RefundPaymentRequest{RequestId: request, OrderId: id, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 1}}
	}))
}

// checkAttention sees that nobody has to look at a payment: what went wrong has been settled.
func (c *chaos) checkAttention(ctx context.Context) error {
	for end := time.Now().Add(c.ViewWait); ; {
		var got paymentv1.ListPaymentsNeedingAttentionResponse
		if err := c.read(ctx, listAttention, &paymentv1.ListPaymentsNeedingAttentionRequest{PageSize: attentionPageMax}, &got); err != nil {
			return fmt.Errorf("list payments that need attention: %w", err)
		}
		if len(got.GetItems()) == 0 {
			return nil
		}
		if time.Now().After(end) {
			c.violated(fmt.Errorf("a payment still needs attention: %v (I5)", got.GetItems()[0]))
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait(ctx, retryInterval)
	}
}

// call makes one call of the sandbox.
func (b *bank) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.sandbox.URL()+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := b.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the sandbox: %w: %s", err, b.sandbox.Printed())
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, ledgerPageBytesMax))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the sandbox answers %s with status %d: %.200s", path, response.StatusCode, data)
	}
	return data, err
}
