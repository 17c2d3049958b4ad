// Package stripe makes payments with Stripe (https://docs.stripe.com/api). A payment is one PaymentIntent, a refund one
// Refund; their metadata has our ids.
//
// # How a payment is found again
//
// Stripe's own ids are not known when an answer is lost, its lists cannot be asked for ours, and its search lags behind what
// it has just done. What can be relied on is the idempotency key. So the adapter takes a payment in two steps: it creates the
// PaymentIntent under the key "<payment id>", which moves no money, and confirms it under "<payment id>/confirm", which does. To
// check back it sends the creation again: the same key answers with the same PaymentIntent, and if the first one never
// arrived, with a new one that nobody confirmed. Then it reads that PaymentIntent as it is now. Nothing is stored here.
//
// A PaymentIntent takes money once at most, whatever the keys: Stripe confirms and captures one that did not succeed yet, and
// refuses it afterwards. A cancelled one takes none, so that a void also stops a confirmation that is still on its way (I4).
//
// Stripe may forget a key after 24 hours. Then a creation would make a second PaymentIntent. When a payment started longer
// ago than keyAgeMax, the adapter never creates: it searches the metadata, which by then is up to date, and rejects a charge
// that it does not find with payments.CodeTooLate.
//
// Stripe also keeps an error of its own (status 500) under the key: the same call answers with it until the key is
// forgotten. Such a payment stays an unknown outcome for Authorize and Capture; Lookup reads what it left, and Void ends it.
//
// # What it does not do
//
// A payment that wants the customer to act (3-D Secure) is declined with authentication_required: payments are confirmed by
// the server, and nobody is there to act.
package stripe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	stripe "github.com/stripe/stripe-go/v85"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// Name is the provider's name in events.
const Name = "stripe"

// The keys of our ids in the metadata of Stripe's objects.
const (
	metadataPayment = "weir_payment_id"
	metadataOrder   = "weir_order_id"
	metadataMethod  = "weir_method"
	metadataRefund  = "weir_refund_id"
)

// Limits of the adapter (I8).
const (
	// keyAgeMax is how long a payment is found by its idempotency key: an hour less than Stripe keeps one, so that clocks
	// may differ.
	keyAgeMax = 23 * time.Hour
	// replyBytesMax bounds an answer of Stripe's.
	replyBytesMax = 4 << 20
	// connectionsMax bounds the connections to Stripe, idleConnectionsMax those that are kept.
	connectionsMax     = 128
	idleConnectionsMax = 32
	idleTimeMax        = 60 * time.Second
)

// Options make an Adapter.
type Options struct {
	// APIKey is Stripe's secret key, "sk_…" or a restricted one, "rk_…". Required.
	APIKey string
	// URL of the API; empty means Stripe's own.
	URL string
	// CallTimeMax bounds a call of the port, with all requests that it makes; 0 means payments.CallTimeMax.
	CallTimeMax time.Duration
	// Now tells the time; time.Now if nil.
	Now func() time.Time
}

// An Adapter makes payments with Stripe. It implements payments.Provider.
type Adapter struct {
	client      *stripe.Client
	http        *http.Client
	callTimeMax time.Duration
	now         func() time.Time
}

var _ payments.Provider = (*Adapter)(nil)

// New returns an adapter. It does not connect.
func New(options Options) (*Adapter, error) {
	if !strings.HasPrefix(options.APIKey, "sk_") && !strings.HasPrefix(options.APIKey, "rk_") {
		return nil, errors.New(`the API key of Stripe starts with "sk_" or "rk_"`)
	}
	if options.URL == "" {
		options.URL = stripe.APIURL
	}
	base, err := url.Parse(options.URL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of an API", options.URL)
	}
	if options.CallTimeMax < 0 {
		return nil, errors.New("CallTimeMax is negative")
	}
	if options.CallTimeMax == 0 {
		options.CallTimeMax = payments.CallTimeMax
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	client := &http.Client{
		Transport: boundedReplies{&http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxConnsPerHost: connectionsMax,
			MaxIdleConnsPerHost: idleConnectionsMax, IdleConnTimeout: idleTimeMax, TLSHandshakeTimeout: options.CallTimeMax,
		}},
		// An answer from elsewhere is no answer of Stripe's.
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected") },
	}
	return &Adapter{
		client: stripe.NewClient(options.APIKey, stripe.WithBackends(stripe.NewBackendsWithConfig(&stripe.BackendConfig{
			URL: stripe.String(strings.TrimRight(options.URL, "/")), HTTPClient: client, EnableTelemetry: stripe.Bool(false),
			// Whoever calls knows when to repeat, and the library would sleep.
			MaxNetworkRetries: stripe.Int64(0),
			LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull},
		}))),
		http: client, callTimeMax: options.CallTimeMax, now: options.Now,
	}, nil
}

// boundedReplies cuts answers that are too large: the library reads them whole.
type boundedReplies struct{ http.RoundTripper }

func (b boundedReplies) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = http.MaxBytesReader(nil, response.Body, replyBytesMax)
	}
	return response, err
}

// Close closes the connections that are idle.
func (a *Adapter) Close() { a.http.CloseIdleConnections() }

// Name implements payments.Provider.
func (a *Adapter) Name() string { return Name }

// A call is one call of the port: what it is about, for errors, and its time.
type call struct {
	*Adapter
	name   string
	charge payments.Charge
	// amount is the charge's in Stripe's units, currency in Stripe's spelling.
	amount   int64
	currency string
}

// begin checks a charge and starts the call's time.
func (a *Adapter) begin(ctx context.Context, name string, charge payments.Charge) (*call, context.Context, context.CancelFunc, error) {
	c := &call{Adapter: a, name: name, charge: charge}
	if err := payments.CheckCharge(Name, name, charge); err != nil {
		return nil, nil, nil, err
	}
	var err error
	if c.amount, c.currency, err = toStripe(charge.Amount); err != nil {
		return nil, nil, nil, c.rejected(payments.CodeInvalid, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, a.callTimeMax)
	return c, ctx, cancel, nil
}

func (c *call) rejected(code, message string) error {
	return &payments.RejectedError{Provider: Name, Call: c.name, PaymentID: c.charge.PaymentID, Code: code, Message: message}
}

func (c *call) unknown(cause error) error {
	return &payments.UnknownOutcomeError{Provider: Name, Call: c.name, PaymentID: c.charge.PaymentID, Cause: cause}
}

// wrongState rejects what a payment is not in the state for.
func (c *call) wrongState(state payments.State) error {
	return c.rejected(payments.CodeWrongState, fmt.Sprintf("the payment is %s", state))
}

// Authorize implements payments.Provider.
func (a *Adapter) Authorize(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	c, ctx, cancel, err := a.begin(ctx, "authorize", charge)
	if err != nil {
		return payments.Status{}, err
	}
	defer cancel()
	intent, err := c.find(ctx)
	switch {
	case err != nil:
		return payments.Status{}, err
	case intent == nil:
		return payments.Status{}, c.rejected(payments.CodeTooLate, fmt.Sprintf("Stripe does not have the payment, and it started more than %s ago", keyAgeMax))
	case stateOf(intent) != payments.StateNone:
		return c.status(ctx, intent)
	}
	params := &stripe.PaymentIntentConfirmParams{PaymentMethod: &charge.Method, ErrorOnRequiresAction: stripe.Bool(true)}
	params.SetIdempotencyKey(charge.PaymentID + "/confirm")
	confirmed, err := c.client.V1PaymentIntents.Confirm(ctx, intent.ID, params)
	var told *stripe.Error
	switch {
	case errors.As(err, &told) && told.Type == stripe.ErrorTypeCard && told.HTTPStatusCode == http.StatusPaymentRequired:
		// What the PaymentIntent says, so that the decline is the one that Lookup finds.
		return c.reread(ctx, intent.ID)
	case wrongIntentState(err):
		return c.reread(ctx, intent.ID) // Another call was faster.
	case err != nil:
		return payments.Status{}, c.explain(err)
	}
	if err := c.check(confirmed); err != nil {
		return payments.Status{}, err
	}
	return c.status(ctx, confirmed)
}

// Capture implements payments.Provider.
func (a *Adapter) Capture(ctx context.Context, charge payments.Charge, amount domain.Money) (payments.Status, error) {
	c, ctx, cancel, err := a.begin(ctx, "capture", charge)
	if err != nil {
		return payments.Status{}, err
	}
	defer cancel()
	if err := payments.CheckAmount(Name, c.name, charge, amount); err != nil {
		return payments.Status{}, err
	}
	units, _, err := toStripe(amount)
	if err != nil {
		return payments.Status{}, c.rejected(payments.CodeInvalid, err.Error())
	}
	intent, err := c.find(ctx)
	if err != nil {
		return payments.Status{}, err
	}
	if stateOf(intent) == payments.StateAuthorized {
		if units > intent.AmountCapturable {
			return payments.Status{}, c.rejected(payments.CodeAmountTooLarge, fmt.Sprintf("the payment is authorized for %d", intent.AmountCapturable))
		}
		params := &stripe.PaymentIntentCaptureParams{AmountToCapture: &units}
		params.SetIdempotencyKey(charge.PaymentID + "/capture")
		_, err := c.client.V1PaymentIntents.Capture(ctx, intent.ID, params)
		if err != nil && !wrongIntentState(err) {
			return payments.Status{}, c.explain(err)
		}
		// As it is now: the answer may be of the first call with this key.
		if intent, err = c.read(ctx, intent.ID); err != nil {
			return payments.Status{}, err
		}
	}
	switch state := stateOf(intent); {
	case state != payments.StateCaptured:
		return payments.Status{}, c.wrongState(state)
	case intent.AmountReceived != units:
		return payments.Status{}, c.rejected(payments.CodeKeyReused, fmt.Sprintf("the payment was captured with %d", intent.AmountReceived))
	}
	return c.status(ctx, intent)
}

// Void implements payments.Provider.
func (a *Adapter) Void(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	c, ctx, cancel, err := a.begin(ctx, "void", charge)
	if err != nil {
		return payments.Status{}, err
	}
	defer cancel()
	intent, err := c.find(ctx)
	if err != nil {
		return payments.Status{}, err
	}
	if intent == nil { // And none will be created any more.
		return payments.Status{PaymentID: charge.PaymentID, State: payments.StateVoided}, nil
	}
	switch stateOf(intent) {
	case payments.StateNone, payments.StateAuthorized:
		params := &stripe.PaymentIntentCancelParams{}
		params.SetIdempotencyKey(charge.PaymentID + "/void")
		if _, err := c.client.V1PaymentIntents.Cancel(ctx, intent.ID, params); err != nil && !wrongIntentState(err) {
			return payments.Status{}, c.explain(err)
		}
		return c.reread(ctx, intent.ID)
	case payments.StatePending, payments.StateCaptured, payments.StateDeclined, payments.StateVoided:
	}
	return c.status(ctx, intent)
}

// Lookup implements payments.Provider.
func (a *Adapter) Lookup(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	c, ctx, cancel, err := a.begin(ctx, "lookup", charge)
	if err != nil {
		return payments.Status{}, err
	}
	defer cancel()
	intent, err := c.find(ctx)
	switch {
	case err != nil:
		return payments.Status{}, err
	case intent == nil:
		return payments.Status{PaymentID: charge.PaymentID, State: payments.StateNone}, nil
	}
	return c.status(ctx, intent)
}

// Refund implements payments.Provider. Whether a refund was made before is read from Stripe, and not left to the key, which
// may be forgotten.
func (a *Adapter) Refund(ctx context.Context, charge payments.Charge, refund payments.Refund) (payments.RefundStatus, error) {
	c, ctx, cancel, err := a.begin(ctx, "refund", charge)
	if err != nil {
		return payments.RefundStatus{}, err
	}
	defer cancel()
	if err := payments.CheckRefund(Name, c.name, charge, refund); err != nil {
		return payments.RefundStatus{}, err
	}
	units, _, err := toStripe(refund.Amount)
	if err != nil {
		return payments.RefundStatus{}, c.rejected(payments.CodeInvalid, err.Error())
	}
	intent, err := c.find(ctx)
	if err != nil {
		return payments.RefundStatus{}, err
	}
	if state := stateOf(intent); state != payments.StateCaptured {
		return payments.RefundStatus{}, c.wrongState(state)
	}
	made, err := c.refunds(ctx, intent.ID)
	if err != nil {
		return payments.RefundStatus{}, err
	}
	left := intent.AmountReceived
	for _, r := range made {
		if r.Metadata[metadataRefund] == refund.RefundID {
			return c.refundStatus(r, refund)
		}
		if refundStateOf(r) != payments.RefundFailed {
			left -= r.Amount
		}
	}
	switch {
	case units > left:
		return payments.RefundStatus{}, c.rejected(payments.CodeAmountTooLarge, fmt.Sprintf("%d is left of what was captured", left))
	case len(made) >= payments.RefundsPerPaymentMax:
		return payments.RefundStatus{}, c.rejected("too_many_refunds", fmt.Sprintf("the payment has %d refunds", len(made)))
	}
	params := &stripe.RefundCreateParams{PaymentIntent: &intent.ID, Amount: &units}
	params.Metadata = map[string]string{metadataPayment: charge.PaymentID, metadataRefund: refund.RefundID}
	params.SetIdempotencyKey(refund.RefundID)
	r, err := c.client.V1Refunds.Create(ctx, params)
	if err != nil {
		return payments.RefundStatus{}, c.explain(err)
	}
	if r.Metadata[metadataRefund] != refund.RefundID {
		return payments.RefundStatus{}, c.unknown(errors.New("the answer is about another refund"))
	}
	return c.refundStatus(r, refund)
}

// find returns the payment's PaymentIntent as it is now, nil when there is none and none is made any more. It moves no
// money: see the package's documentation.
func (c *call) find(ctx context.Context) (*stripe.PaymentIntent, error) {
	if c.now().Sub(c.charge.StartedAt) > keyAgeMax {
		return c.search(ctx)
	}
	capture := stripe.PaymentIntentCaptureMethodManual
	if c.charge.CaptureNow {
		capture = stripe.PaymentIntentCaptureMethodAutomatic
	}
	params := &stripe.PaymentIntentCreateParams{
		Amount: &c.amount, Currency: &c.currency, CaptureMethod: stripe.String(string(capture)),
		AutomaticPaymentMethods: &stripe.PaymentIntentCreateAutomaticPaymentMethodsParams{
			Enabled: stripe.Bool(true), AllowRedirects: stripe.String(string(stripe.PaymentIntentAutomaticPaymentMethodsAllowRedirectsNever)),
		},
		// The method is here so that the same id with another one is refused.
		Metadata: map[string]string{
			metadataPayment: c.charge.PaymentID, metadataOrder: c.charge.OrderID, metadataMethod: c.charge.Method,
		},
	}
	params.SetIdempotencyKey(c.charge.PaymentID)
	created, err := c.client.V1PaymentIntents.Create(ctx, params)
	if err != nil {
		return nil, c.explain(err)
	}
	if err := c.check(created); err != nil {
		return nil, err
	}
	return c.read(ctx, created.ID)
}

// search finds a PaymentIntent that is too old for its key, by its metadata.
func (c *call) search(ctx context.Context) (*stripe.PaymentIntent, error) {
	params := &stripe.PaymentIntentSearchParams{SearchParams: stripe.SearchParams{
		Query: fmt.Sprintf("metadata[%q]:%q", metadataPayment, c.charge.PaymentID), Limit: stripe.Int64(2),
	}}
	var found []*stripe.PaymentIntent
	for intent, err := range c.client.V1PaymentIntents.Search(ctx, params).All(ctx) {
		if err != nil {
			return nil, c.explain(err)
		}
		if found = append(found, intent); len(found) == 2 {
			break // One is what we want, two are too many already.
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		if err := c.check(found[0]); err != nil {
			return nil, err
		}
		return c.read(ctx, found[0].ID)
	}
	return nil, c.rejected("ambiguous", "Stripe has several PaymentIntents of the payment: somebody has to look")
}

// read reads a PaymentIntent as it is now.
func (c *call) read(ctx context.Context, id string) (*stripe.PaymentIntent, error) {
	intent, err := c.client.V1PaymentIntents.Retrieve(ctx, id, nil)
	if err != nil {
		return nil, c.explain(err)
	}
	return intent, c.check(intent)
}

func (c *call) reread(ctx context.Context, id string) (payments.Status, error) {
	intent, err := c.read(ctx, id)
	if err != nil {
		return payments.Status{}, err
	}
	return c.status(ctx, intent)
}

// check makes sure that an answer is about our payment.
func (c *call) check(intent *stripe.PaymentIntent) error {
	if intent.Object != "payment_intent" || intent.ID == "" || intent.Metadata[metadataPayment] != c.charge.PaymentID {
		return c.unknown(errors.New("the answer is not about the payment"))
	}
	return nil
}

// refunds lists all refunds of a PaymentIntent, oldest first.
func (c *call) refunds(ctx context.Context, intent string) ([]*stripe.Refund, error) {
	params := &stripe.RefundListParams{PaymentIntent: &intent}
	params.Limit = stripe.Int64(payments.RefundsPerPaymentMax)
	var all []*stripe.Refund
	for refund, err := range c.client.V1Refunds.List(ctx, params).All(ctx) {
		if err != nil {
			return nil, c.explain(err)
		}
		if all = append(all, refund); len(all) > payments.RefundsPerPaymentMax {
			return nil, c.rejected("too_many_refunds", fmt.Sprintf("the payment has more than %d refunds, somebody has to look", payments.RefundsPerPaymentMax))
		}
	}
	slices.Reverse(all)
	return all, nil
}

// status reads what a PaymentIntent says, and its refunds.
func (c *call) status(ctx context.Context, intent *stripe.PaymentIntent) (payments.Status, error) {
	status, err := statusOf(intent)
	if err != nil {
		return payments.Status{}, c.unknown(err)
	}
	if status.State != payments.StateCaptured {
		return status, nil
	}
	made, err := c.refunds(ctx, intent.ID)
	if err != nil {
		return payments.Status{}, err
	}
	for _, r := range made {
		refund, err := refundOf(r)
		if err != nil {
			return payments.Status{}, c.unknown(err)
		}
		if refund.State == payments.RefundSucceeded {
			if status.Refunded, err = status.Refunded.Add(refund.Amount); err != nil {
				return payments.Status{}, c.unknown(err)
			}
		}
		if refund.RefundID != "" {
			status.Refunds = append(status.Refunds, refund)
		}
	}
	return status, nil
}

func (c *call) refundStatus(r *stripe.Refund, asked payments.Refund) (payments.RefundStatus, error) {
	status, err := refundOf(r)
	switch {
	case err != nil:
		return payments.RefundStatus{}, c.unknown(err)
	case status.Amount != asked.Amount:
		return payments.RefundStatus{}, c.rejected(payments.CodeKeyReused, fmt.Sprintf("the refund was made with %v", status.Amount))
	}
	return status, nil
}

// stateOf reads the state of a PaymentIntent; of none it is StateNone.
func stateOf(intent *stripe.PaymentIntent) payments.State {
	if intent == nil {
		return payments.StateNone
	}
	switch intent.Status {
	case stripe.PaymentIntentStatusSucceeded:
		return payments.StateCaptured
	case stripe.PaymentIntentStatusRequiresCapture:
		return payments.StateAuthorized
	case stripe.PaymentIntentStatusCanceled:
		return payments.StateVoided
	case stripe.PaymentIntentStatusRequiresPaymentMethod, stripe.PaymentIntentStatusRequiresConfirmation:
		if intent.LastPaymentError != nil {
			return payments.StateDeclined
		}
		return payments.StateNone
	case stripe.PaymentIntentStatusProcessing, stripe.PaymentIntentStatusRequiresAction:
		return payments.StatePending
	}
	return payments.StatePending // A status that Stripe will have invented.
}

// statusOf reads a PaymentIntent, but for its refunds.
func statusOf(intent *stripe.PaymentIntent) (payments.Status, error) {
	status := payments.Status{PaymentID: intent.Metadata[metadataPayment], State: stateOf(intent), Reference: intent.ID}
	amount := intent.Amount
	switch status.State {
	case payments.StateNone:
		return status, nil // It was not told to take anything.
	case payments.StateAuthorized:
		amount = intent.AmountCapturable
	case payments.StateDeclined:
		amount = 0
		status.DeclineCode, status.DeclineMessage = declineOf(intent.LastPaymentError)
	case payments.StateVoided:
		amount = 0
	case payments.StatePending, payments.StateCaptured:
	}
	var err error
	if status.Amount, err = fromStripe(amount, intent.Currency); err != nil {
		return payments.Status{}, err
	}
	if status.Captured, err = fromStripe(intent.AmountReceived, intent.Currency); err != nil {
		return payments.Status{}, err
	}
	status.Refunded = domain.Money{Currency: status.Amount.Currency}
	return status, nil
}

// declineOf says why: the bank's reason if there is one, else Stripe's.
func declineOf(why *stripe.Error) (code, message string) {
	switch {
	case why.DeclineCode != "":
		return string(why.DeclineCode), why.Msg
	case why.Code != "":
		return string(why.Code), why.Msg
	}
	return "declined", why.Msg
}

func refundStateOf(r *stripe.Refund) payments.RefundState {
	switch r.Status {
	case stripe.RefundStatusSucceeded:
		return payments.RefundSucceeded
	case stripe.RefundStatusFailed, stripe.RefundStatusCanceled:
		return payments.RefundFailed
	case stripe.RefundStatusPending, stripe.RefundStatusRequiresAction:
		return payments.RefundPending
	}
	return payments.RefundPending // A status that Stripe will have invented.
}

func refundOf(r *stripe.Refund) (payments.RefundStatus, error) {
	amount, err := fromStripe(r.Amount, r.Currency)
	status := payments.RefundStatus{RefundID: r.Metadata[metadataRefund], Reference: r.ID, State: refundStateOf(r), Amount: amount}
	if status.State == payments.RefundFailed {
		status.FailureCode = string(r.FailureReason)
		if status.FailureCode == "" {
			status.FailureCode = "failed"
		}
	}
	return status, err
}

// wrongIntentState reports whether Stripe refuses a call because the PaymentIntent is past it.
func wrongIntentState(err error) bool {
	var told *stripe.Error
	return errors.As(err, &told) && told.HTTPStatusCode == http.StatusBadRequest && told.Code == stripe.ErrorCodePaymentIntentUnexpectedState
}

// explain says which kind of error it is. Only what Stripe clearly refuses is rejected.
func (c *call) explain(err error) error {
	var told *stripe.Error
	if !errors.As(err, &told) {
		return c.unknown(err)
	}
	// Not the error itself: it prints all of Stripe's answer.
	cause := fmt.Errorf("status %d, %s, %s (request %s)", told.HTTPStatusCode, told.Type, told.Code, told.RequestID)
	code := string(told.Code)
	if code == "" {
		code = string(told.Type)
	}
	switch told.HTTPStatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return c.rejected(payments.CodeCredentials, "Stripe does not take the API key, or it may not do this")
	case http.StatusBadRequest, http.StatusPaymentRequired, http.StatusNotFound:
		switch {
		case told.Type == stripe.ErrorTypeIdempotency:
			return c.rejected(payments.CodeKeyReused, "the id was used before with something else")
		case told.Code == stripe.ErrorCodeChargeAlreadyRefunded:
			return c.rejected(payments.CodeAmountTooLarge, told.Msg)
		case told.Type == stripe.ErrorTypeInvalidRequest, told.Type == stripe.ErrorTypeCard:
			return c.rejected(code, told.Msg)
		}
	}
	return c.unknown(cause) // 409 and 429: later. 5xx: nobody knows.
}
