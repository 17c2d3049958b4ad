package domain

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Limits of what is said of payments.
const (
	// MethodBytesMax is the longest name of a way to pay.
	MethodBytesMax = 64
	// ProviderCodeBytesMax and ProviderMessageBytesMax are how much is kept of what a provider says.
	ProviderCodeBytesMax    = 64
	ProviderMessageBytesMax = 200
)

// ProviderNone is the provider of a payment of nothing: nobody is asked, it is captured at once.
const ProviderNone = "none"

// StartPayment begins to pay an order. The event is durable before a provider hears of it.
type StartPayment struct {
	OrderID OrderID
	// Number of the payment, counted from 1; the lane fills in the next.
	Number int
	// Provider is the name of the adapter, Method its way to pay, for example a token of a card.
	Provider, Method string
	// CaptureNow asks for the money with the authorization; otherwise it is held until CapturePayment.
	CaptureNow bool
	// By is the subject who asked.
	By string
}

// CapturePayment asks for the money that is held. What comes of it is recorded by RecordPaymentResult.
type CapturePayment struct {
	OrderID OrderID
	By      string
}

// VoidPayment asks to give up a payment whose money was not taken.
type VoidPayment struct {
	OrderID OrderID
	Reason  string
	By      string
}

// A PaymentResult is what a provider says of a payment.
type PaymentResult uint8

// What a provider may say.
const (
	// ResultAuthorized: the money is held.
	ResultAuthorized PaymentResult = 1 + iota
	// ResultCaptured: the money was taken.
	ResultCaptured
	// ResultDeclined: there will be no money.
	ResultDeclined
	// ResultUnknown: the provider was asked, and nobody knows what it did.
	ResultUnknown
	// ResultVoided: the money was let go.
	ResultVoided
)

// RecordPaymentResult records what a provider says of a payment. The same again changes nothing; a late one is harmless.
type RecordPaymentResult struct {
	OrderID   OrderID
	PaymentID string
	// Provider is who says so; a payment of another one is not found. Empty means the payment's own.
	Provider string
	Result   PaymentResult
	// Amount that is held or was taken. A wrong one is never accepted: it is voided or refunded.
	Amount Money
	// Code and Message say why it was declined; they are cut to ProviderCodeBytesMax and ProviderMessageBytesMax.
	Code, Message string
}

// RecordStrayPayment records money that was taken for a payment which the order does not count as paid. It is refunded.
type RecordStrayPayment struct {
	OrderID   OrderID
	PaymentID string
	Amount    Money
	// Why it is stray, for people to read.
	Why string
}

// RefundPayment gives money back: all that is left, or a part.
type RefundPayment struct {
	OrderID OrderID
	// PaymentID is the payment whose money it is; empty means the one that paid the order.
	PaymentID string
	// Number of the refund among the payment's, counted from 1; the lane fills in the next.
	Number int
	// Amount to give back; zero means all that is left.
	Amount Money
	Reason string
	By     string
}

// RecordRefundResult records what a provider says of a refund.
type RecordRefundResult struct {
	OrderID  OrderID
	RefundID string
	// Provider is who says so; a refund of another one is not found. Empty means the refund's own.
	Provider string
	// Succeeded says that Amount went back; otherwise Code says why not.
	Succeeded bool
	Amount    Money
	Code      string
}

// AwardPoints gives the user points for a payment that was captured.
type AwardPoints struct {
	OrderID   OrderID
	PaymentID string
	// PerMajor is how many points a whole major unit is worth; PointsPerMajorDefault unless configured.
	PerMajor int64
}

// TakeBackPoints takes points back for money that was refunded, so that what is left is what the rest of the money is worth.
type TakeBackPoints struct {
	OrderID  OrderID
	RefundID string
}

// PointsPerMajorDefault is how many points one whole major unit of money is worth.
const PointsPerMajorDefault = 1

// PointsPerMajorMax is the most that it may be worth.
const PointsPerMajorMax = 1000

func (StartPayment) isCommand()        {}
func (CapturePayment) isCommand()      {}
func (VoidPayment) isCommand()         {}
func (RecordPaymentResult) isCommand() {}
func (RecordStrayPayment) isCommand()  {}
func (RefundPayment) isCommand()       {}
func (RecordRefundResult) isCommand()  {}
func (AwardPoints) isCommand()         {}
func (TakeBackPoints) isCommand()      {}

// PaymentStarted says that an order is to be paid: the half message. The provider is asked to authorize it under the payment's id.
type PaymentStarted struct {
	OrderID          OrderID
	UserID           string
	PaymentID        string
	Provider, Method string
	Amount           Money
	By               string
	// CaptureNow: the provider is asked to take the money at once.
	CaptureNow bool
}

// PaymentAuthorized says that the money is held.
type PaymentAuthorized struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
	Amount    Money
}

// PaymentCaptureRequested says that the provider is to be asked for the money that is held.
type PaymentCaptureRequested struct {
	OrderID             OrderID
	UserID              string
	PaymentID, Provider string
	Amount              Money
	By                  string
}

// PaymentCaptured says that the order is paid; its reserved units are sold.
type PaymentCaptured struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
	Amount    Money
	Sold      []Release
}

// PaymentDeclined says that there will be no money from this payment.
type PaymentDeclined struct {
	OrderID       OrderID
	UserID        string
	PaymentID     string
	Code, Message string
}

// PaymentBecameUnknown says that the provider was asked and its answer was lost.
type PaymentBecameUnknown struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
}

// PaymentVoidRequested says that the provider is to be asked to let the money go.
type PaymentVoidRequested struct {
	OrderID             OrderID
	UserID              string
	PaymentID, Provider string
	Why                 string
	By                  string
}

// PaymentVoided says that the money was let go.
type PaymentVoided struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
}

// RefundStarted says that the provider is to be asked to give money back, under the refund's id.
type RefundStarted struct {
	OrderID                       OrderID
	UserID                        string
	RefundID, PaymentID, Provider string
	Amount                        Money
	Reason                        string
	// ReturnID is the return that it is for, empty for none.
	ReturnID string
	By       string
}

// PaymentRefunded says that money went back.
type PaymentRefunded struct {
	OrderID  OrderID
	UserID   string
	RefundID string
	Amount   Money
}

// RefundFailed says that money did not go back; somebody has to look at it.
type RefundFailed struct {
	OrderID  OrderID
	UserID   string
	RefundID string
	Code     string
}

// StrayPaymentFound says that money was taken without an order that waits for it, or of the wrong amount. A RefundStarted follows.
type StrayPaymentFound struct {
	OrderID             OrderID
	UserID              string
	PaymentID, Provider string
	Amount              Money
	Why                 string
}

// PointsAwarded says that the user was given points for a payment.
type PointsAwarded struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
	Points    int64
	// PerMajor is the rule that held.
	PerMajor int64
}

// PointsTakenBack says that points were taken back for a refund.
type PointsTakenBack struct {
	OrderID  OrderID
	UserID   string
	RefundID string
	Points   int64
}

func (PaymentStarted) isEvent()          {}
func (PaymentAuthorized) isEvent()       {}
func (PaymentCaptureRequested) isEvent() {}
func (PaymentCaptured) isEvent()         {}
func (PaymentDeclined) isEvent()         {}
func (PaymentBecameUnknown) isEvent()    {}
func (PaymentVoidRequested) isEvent()    {}
func (PaymentVoided) isEvent()           {}
func (RefundStarted) isEvent()           {}
func (PaymentRefunded) isEvent()         {}
func (RefundFailed) isEvent()            {}
func (StrayPaymentFound) isEvent()       {}
func (PointsAwarded) isEvent()           {}
func (PointsTakenBack) isEvent()         {}

// A Payment is one attempt to pay an order.
type Payment struct {
	ID               string
	Provider, Method string
	// Amount asked for.
	Amount Money
	// CaptureNow: it is taken with the authorization.
	CaptureNow bool
	// StartedAt is the log time at which it was started.
	StartedAt time.Time
	State     PaymentState
	// CaptureRequested and VoidRequested say what the provider was asked for and has not answered.
	CaptureRequested, VoidRequested bool
	// Taken is the money that the provider took, zero before. Stray says that it was not for the order.
	Taken Money
	Stray bool
	// RefundedMinor of it went back.
	RefundedMinor int64
	// DeclineCode and DeclineMessage are the provider's, if it declined.
	DeclineCode, DeclineMessage string
	// Points that the user has for it, and how many a whole major unit was worth. PointsDecided says that they were awarded.
	Points, PointsPerMajor int64
	PointsDecided          bool
}

// Equal reports whether two payments are the same in every field.
func (p Payment) Equal(other Payment) bool {
	same := p.StartedAt.Equal(other.StartedAt)
	p.StartedAt = other.StartedAt
	return same && p == other
}

// settle ends what was asked for.
func (p *Payment) settle(state PaymentState) {
	p.State, p.CaptureRequested, p.VoidRequested = state, false, false
}

func (p *Payment) refunded(minor int64) {
	p.RefundedMinor += minor
	switch {
	case p.State != PayCaptured && p.State != PayPartiallyRefunded: // A stray payment stays voided.
	case p.RefundedMinor >= p.Taken.Minor:
		p.State = PayRefunded
	default:
		p.State = PayPartiallyRefunded
	}
}

// A RefundState says where a refund stands.
type RefundState uint8

// The states of a refund.
const (
	// RefundUnderWay: the provider is asked until it says.
	RefundUnderWay RefundState = iota
	// RefundSucceeded: the money went back.
	RefundSucceeded
	// RefundHasFailed: it did not.
	RefundHasFailed
)

func (s RefundState) String() string { return [...]string{"under_way", "succeeded", "failed"}[s] }

// A Refund of a payment.
type Refund struct {
	ID, PaymentID string
	Amount        Money
	Reason        string
	// ReturnID is the return that it is for, empty for none.
	ReturnID string
	State    RefundState
	// Code is the provider's, if it failed.
	Code string
	// Points that were taken back for it.
	Points int64
}

func (c StartPayment) decide(s State, at time.Time) ([]Event, error) {
	if !validName(c.Provider) {
		return nil, &InvalidArgumentError{Argument: "provider", Problem: nameProblem}
	}
	if c.Provider == ProviderNone {
		return nil, &InvalidArgumentError{Argument: "provider", Problem: "it is the one that payments of nothing have"}
	}
	if err := checkText("method", c.Method, MethodBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	done, numberErr := numbered("payments", c.Number, len(order.Payments), PaymentsMax)
	if done {
		return nil, nil // Same command again: nothing to say.
	}
	if _, err := order.judge(&lifeStartPayment, order.Payment); err != nil {
		return nil, err
	}
	if numberErr != nil {
		return nil, numberErr
	}
	if !order.PayBy.After(at) {
		return nil, &OrderExpiredError{OrderID: order.ID} // It will be, as soon as the lane comes to it.
	}
	started := PaymentStarted{
		OrderID: order.ID, UserID: order.UserID, PaymentID: PaymentID(order.ID, c.Number),
		Provider: c.Provider, Method: c.Method, Amount: order.Total, By: c.By, CaptureNow: c.CaptureNow,
	}
	if order.Total.Minor == 0 {
		started.Provider = ProviderNone
		return []Event{started, order.captured(started.PaymentID)}, nil
	}
	return []Event{started}, nil
}

func (o *Order) captured(paymentID string) PaymentCaptured {
	return PaymentCaptured{OrderID: o.ID, UserID: o.UserID, PaymentID: paymentID, Amount: o.Total, Sold: o.releases()}
}

func (c CapturePayment) decide(s State) ([]Event, error) {
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, v, err := lifeOf(s, c.OrderID, &lifeCapturePayment)
	if err != nil || v == nothing {
		return nil, err
	}
	p := order.newest()
	switch {
	case p.CaptureRequested:
		return nil, nil // Same command again: nothing to say.
	case p.VoidRequested:
		return nil, &PaymentStateError{OrderID: order.ID, Payment: p.State}
	}
	return []Event{PaymentCaptureRequested{
		OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID, Provider: p.Provider, Amount: p.Amount, By: c.By,
	}}, nil
}

func (c VoidPayment) decide(s State) ([]Event, error) {
	if err := checkText("reason", c.Reason, ReasonBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, v, err := lifeOf(s, c.OrderID, &lifeVoidPayment)
	if err != nil || v == nothing {
		return nil, err
	}
	if p := order.newest(); p.CaptureRequested && !p.VoidRequested && order.Ending == EndingNone {
		return nil, &PaymentStateError{OrderID: order.ID, Payment: p.State} // The money may be on its way.
	}
	return order.letGo(c.Reason, c.By), nil
}

// letGo asks for the void of the newest payment, if there is money to let go.
func (o *Order) letGo(why, by string) []Event {
	p := o.newest()
	switch p.State {
	case PayPending, PayAuthorized, PayUnknown:
		if !p.VoidRequested {
			return []Event{o.voidRequested(p.ID, p.Provider, why, by)}
		}
	case PayNone, PayCaptured, PayPartiallyRefunded, PayRefunded, PayVoided:
	}
	return nil
}

func (o *Order) voidRequested(paymentID, provider, why, by string) PaymentVoidRequested {
	return PaymentVoidRequested{OrderID: o.ID, UserID: o.UserID, PaymentID: paymentID, Provider: provider, Why: why, By: by}
}

func (c RecordPaymentResult) decide(s State) ([]Event, error) {
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := order.paymentIndex(c.PaymentID)
	if i < 0 || (c.Provider != "" && c.Provider != order.Payments[i].Provider) {
		return nil, &OrderPartNotFoundError{Part: "payment", ID: c.PaymentID}
	}
	p := &order.Payments[i]
	row := c.Result.row()
	if row == nil {
		return nil, &InvalidArgumentError{Argument: "result", Problem: fmt.Sprintf("there is no result %d", c.Result)}
	}
	v, err := order.judge(row, p.State)
	if err != nil {
		return nil, err
	}
	switch c.Result {
	case ResultCaptured:
		return c.captured(&order, p, v)
	case ResultAuthorized:
		return c.authorized(&order, p, v), nil
	case ResultUnknown:
		if p.State == PayAuthorized && !p.CaptureRequested && !p.VoidRequested {
			return nil, nil // Nothing was asked since it was known.
		}
	case ResultDeclined, ResultVoided:
	}
	if v == nothing {
		return nil, nil
	}
	switch c.Result {
	case ResultDeclined:
		return []Event{PaymentDeclined{
			OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID,
			Code: cut(c.Code, ProviderCodeBytesMax), Message: cut(c.Message, ProviderMessageBytesMax),
		}}, nil
	case ResultUnknown:
		return []Event{PaymentBecameUnknown{OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID}}, nil
	case ResultVoided:
		return []Event{PaymentVoided{OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID}}, nil
	case ResultAuthorized, ResultCaptured:
	}
	panic(fmt.Sprintf("domain: bug: result %d", c.Result))
}

func (r PaymentResult) row() *lifeRow {
	switch r {
	case ResultAuthorized:
		return &lifeAuthorized
	case ResultCaptured:
		return &lifeCaptured
	case ResultDeclined:
		return &lifeDeclined
	case ResultUnknown:
		return &lifeUnknown
	case ResultVoided:
		return &lifeVoided
	}
	return nil
}

// authorized takes note that money is held, and lets it go if nobody waits for it or its amount is wrong.
func (c *RecordPaymentResult) authorized(order *Order, p *Payment, v verdict) []Event {
	if v == nothing {
		return nil
	}
	why := ""
	switch {
	case v == unwanted:
		why = "the money came after the payment was over"
	case c.Amount != p.Amount:
		why = fmt.Sprintf("wrong amount: %v is held, want %v", printed(c.Amount), p.Amount)
	}
	events := []Event{PaymentAuthorized{OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID, Amount: printed(c.Amount)}}
	if why != "" && !p.VoidRequested {
		events = append(events, order.voidRequested(p.ID, p.Provider, why, ""))
	}
	return events
}

// captured accepts the money, or finds that it is stray. A payment takes money once (I4).
func (c *RecordPaymentResult) captured(order *Order, p *Payment, v verdict) ([]Event, error) {
	why := ""
	switch {
	case v == nothing || p.Stray:
		return nil, p.sameAmount(c.Amount)
	case c.Amount != p.Amount:
		why = fmt.Sprintf("wrong amount: want %v", p.Amount)
	case order.Ending != EndingNone:
		why = "the order was " + order.Ending.String()
	case v == stray:
		why = "the payment was over"
	case p.VoidRequested:
		why = "the payment was to be voided"
	default:
		return []Event{order.captured(p.ID)}, nil
	}
	return order.stray(p, c.Amount, why)
}

// sameAmount refuses an amount that is not the one that the payment took.
func (p *Payment) sameAmount(amount Money) error {
	if amount != p.Taken {
		return &AmountMismatchError{PaymentID: p.ID, Want: p.Taken, Got: printed(amount)}
	}
	return nil
}

// stray raises money that nobody waits for and gives it back.
func (o *Order) stray(p *Payment, amount Money, why string) ([]Event, error) {
	if amount.Minor <= 0 || !validCurrency(amount.Currency) {
		return nil, &InvalidArgumentError{Argument: "amount", Problem: "it is not an amount of money above zero"}
	}
	taken := *p
	taken.Taken = amount
	return []Event{
		StrayPaymentFound{OrderID: o.ID, UserID: o.UserID, PaymentID: p.ID, Provider: p.Provider, Amount: amount, Why: why},
		o.refund(&taken, amount.Minor, "stray payment: "+why, "", ""),
	}, nil
}

func (c RecordStrayPayment) decide(s State) ([]Event, error) {
	if err := checkText("why", c.Why, ReasonBytesMax); err != nil {
		return nil, err
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := order.paymentIndex(c.PaymentID)
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "payment", ID: c.PaymentID}
	}
	p := &order.Payments[i]
	v, err := order.judge(&lifeStrayPayment, p.State)
	if err != nil {
		return nil, err
	}
	if v == nothing || p.Stray {
		return nil, p.sameAmount(c.Amount)
	}
	return order.stray(p, c.Amount, c.Why)
}

func (c RefundPayment) decide(s State) ([]Event, error) {
	if err := checkText("reason", c.Reason, ReasonBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	paid := order.paid()
	if c.PaymentID != "" {
		i := order.paymentIndex(c.PaymentID)
		if i < 0 {
			return nil, &OrderPartNotFoundError{Part: "payment", ID: c.PaymentID}
		}
		paid = order.Payments[i]
	}
	count := order.refundsOf(paid.ID)
	if c.Number >= 1 && c.Number <= count {
		return nil, nil // Same command again: nothing to say.
	}
	if _, err := order.judge(&lifeRefundPayment, paid.State); err != nil {
		return nil, err
	}
	if _, err := numbered("refunds", c.Number, count, RefundsMax); err != nil {
		return nil, err
	}
	left := Money{Currency: paid.Taken.Currency, Minor: order.refundable(&paid)}
	want := c.Amount
	if want == (Money{}) {
		want = left
	}
	switch {
	case left.Minor == 0:
		return nil, &RefundExceedsCapturedError{PaymentID: paid.ID, Want: want, Left: left}
	case want.Currency != left.Currency:
		return nil, &MixedCurrenciesError{First: left.Currency, Other: want.Currency}
	case want.Minor <= 0:
		return nil, &InvalidArgumentError{Argument: "amount", Problem: "it is not above zero"}
	case want.Minor > left.Minor:
		return nil, &RefundExceedsCapturedError{PaymentID: paid.ID, Want: want, Left: left}
	}
	return []Event{order.refund(&paid, want.Minor, c.Reason, "", c.By)}, nil
}

func (c RecordRefundResult) decide(s State) ([]Event, error) {
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := slices.IndexFunc(order.Refunds, func(r Refund) bool { return r.ID == c.RefundID })
	if i < 0 || (c.Provider != "" && c.Provider != order.Payments[order.paymentIndex(order.Refunds[i].PaymentID)].Provider) {
		return nil, &OrderPartNotFoundError{Part: "refund", ID: c.RefundID}
	}
	if _, err := order.judge(&lifeRefundResult, order.Payment); err != nil {
		return nil, err
	}
	refund := &order.Refunds[i]
	if !c.Succeeded {
		switch refund.State {
		case RefundUnderWay:
			return []Event{RefundFailed{OrderID: order.ID, UserID: order.UserID, RefundID: refund.ID, Code: cut(c.Code, ProviderCodeBytesMax)}}, nil
		case RefundHasFailed:
			return nil, nil // Same command again: nothing to say.
		case RefundSucceeded:
			return nil, &PaymentStateError{OrderID: order.ID, Payment: order.Payment}
		}
	}
	if c.Amount != refund.Amount {
		return nil, &AmountMismatchError{PaymentID: refund.ID, Want: refund.Amount, Got: printed(c.Amount)}
	}
	switch refund.State {
	case RefundSucceeded:
		return nil, nil // Same command again: nothing to say.
	case RefundHasFailed: // It went through after all; unless it was made up for by another, that is right.
		paid := &order.Payments[order.paymentIndex(refund.PaymentID)]
		if left := order.refundable(paid); refund.Amount.Minor > left {
			return nil, &RefundExceedsCapturedError{PaymentID: paid.ID, Want: refund.Amount, Left: Money{Currency: paid.Taken.Currency, Minor: left}}
		}
	case RefundUnderWay:
	}
	return []Event{PaymentRefunded{OrderID: order.ID, UserID: order.UserID, RefundID: refund.ID, Amount: refund.Amount}}, nil
}

func (c AwardPoints) decide(s State) ([]Event, error) {
	if c.PerMajor < 0 || c.PerMajor > PointsPerMajorMax {
		return nil, &InvalidArgumentError{Argument: "per_major", Problem: fmt.Sprintf("it is %d, want 0 to %d", c.PerMajor, PointsPerMajorMax)}
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := order.paymentIndex(c.PaymentID)
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "payment", ID: c.PaymentID}
	}
	p := &order.Payments[i]
	if _, err := order.judge(&lifeAwardPoints, p.State); err != nil {
		return nil, err
	}
	points := PointsFor(p.Taken, c.PerMajor)
	if p.PointsDecided || points == 0 {
		return nil, nil // Same command again, or nothing to award.
	}
	return []Event{PointsAwarded{OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID, Points: points, PerMajor: c.PerMajor}}, nil
}

func (c TakeBackPoints) decide(s State) ([]Event, error) {
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := slices.IndexFunc(order.Refunds, func(r Refund) bool { return r.ID == c.RefundID })
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "refund", ID: c.RefundID}
	}
	if _, err := order.judge(&lifeTakeBackPoints, order.Payment); err != nil {
		return nil, err
	}
	refund := &order.Refunds[i]
	p := &order.Payments[order.paymentIndex(refund.PaymentID)]
	worth := PointsFor(Money{Currency: p.Taken.Currency, Minor: p.Taken.Minor - p.RefundedMinor}, p.PointsPerMajor)
	if refund.State != RefundSucceeded || refund.Points > 0 || p.Points <= worth {
		return nil, nil // Nothing went back, same command again, or nothing to take.
	}
	return []Event{PointsTakenBack{OrderID: order.ID, UserID: order.UserID, RefundID: refund.ID, Points: p.Points - worth}}, nil
}

// PointsFor is the one rule of how many points an amount of money is worth: perMajor for every whole major unit.
// REQUIRES: 0 ≤ perMajor ≤ PointsPerMajorMax.
func PointsFor(amount Money, perMajor int64) int64 {
	major := amount.Minor
	for range minorDigitsOf(amount.Currency) {
		major /= 10
	}
	high, points := bits.Mul64(magnitude(max(major, 0)), magnitude(perMajor))
	if high != 0 || points > pointsMax {
		return pointsMax
	}
	return int64(points)
}

// pointsMax is more than any amount of money that PriceMinorMax and the limits of units allow is worth.
const pointsMax = 1 << 62

// newest returns the order's newest payment, the zero payment when there is none.
func (o *Order) newest() Payment {
	if len(o.Payments) == 0 {
		return Payment{}
	}
	return o.Payments[len(o.Payments)-1]
}

// paid returns the payment that paid the order, else the newest.
func (o *Order) paid() Payment {
	for _, p := range o.Payments {
		if p.captured() {
			return p
		}
	}
	return o.newest()
}

func (p *Payment) captured() bool {
	return p.State == PayCaptured || p.State == PayPartiallyRefunded || p.State == PayRefunded
}

// sold reports whether the order's units are sold: it was paid. Otherwise an open order's are reserved.
func (o *Order) sold() bool {
	p := o.newest()
	return p.captured()
}

func (o *Order) paymentIndex(id string) int {
	return slices.IndexFunc(o.Payments, func(p Payment) bool { return p.ID == id })
}

// refundsOf counts the refunds of a payment.
func (o *Order) refundsOf(paymentID string) int {
	count := 0
	for i := range o.Refunds {
		if o.Refunds[i].PaymentID == paymentID {
			count++
		}
	}
	return count
}

// refundable is how much of a payment's money may still be given back, in minor units: what was taken less what went back or
// is under way (I4).
func (o *Order) refundable(p *Payment) int64 {
	left := p.Taken.Minor
	for i := range o.Refunds {
		if r := &o.Refunds[i]; r.PaymentID == p.ID && r.State != RefundHasFailed {
			left -= r.Amount.Minor
		}
	}
	return left
}

// refund starts the next refund of a payment.
func (o *Order) refund(p *Payment, minor int64, reason, returnID, by string) RefundStarted {
	return RefundStarted{
		OrderID: o.ID, UserID: o.UserID, RefundID: RefundID(p.ID, o.refundsOf(p.ID)+1), PaymentID: p.ID, Provider: p.Provider,
		Amount: Money{Currency: p.Taken.Currency, Minor: minor}, Reason: cut(reason, ReasonBytesMax), ReturnID: returnID, By: by,
	}
}

// changePayment changes a copy of the order's payments.
func (o *Order) changePayment(id string, change func(*Payment)) {
	if i := o.paymentIndex(id); i >= 0 {
		o.Payments = slices.Clone(o.Payments)
		change(&o.Payments[i])
	}
}

// changeRefund changes a copy of the order's refunds, and returns the payment whose refund it is.
func (o *Order) changeRefund(id string, change func(*Refund)) (paymentID string, found bool) {
	i := slices.IndexFunc(o.Refunds, func(r Refund) bool { return r.ID == id })
	if i < 0 {
		return "", false
	}
	o.Refunds = slices.Clone(o.Refunds)
	change(&o.Refunds[i])
	return o.Refunds[i].PaymentID, true
}

// cut keeps what fits of a stranger's text: a result is recorded whatever a provider says beside it.
func cut(text string, bytesMax int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= bytesMax {
		return text
	}
	end := bytesMax
	for end > 0 && text[end]&0xc0 == 0x80 { // Not inside a character.
		end--
	}
	return text[:end]
}

// printed is a stranger's amount with a currency that is fit to be shown and stored.
func printed(m Money) Money {
	if !validCurrency(m.Currency) {
		m.Currency = "XXX" // ISO 4217's code for no currency.
	}
	return m
}
