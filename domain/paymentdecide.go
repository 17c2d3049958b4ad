package domain

import (
	"fmt"
	"slices"
	"time"
)

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
	if c.Method == "" && order.Total.Minor > 0 {
		return nil, &InvalidArgumentError{Argument: "method", Problem: "it is empty: say what is paid with, by the provider's token"}
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

func (o *Order) captured(paymentID string) PaymentCaptured {
	return PaymentCaptured{OrderID: o.ID, UserID: o.UserID, PaymentID: paymentID, Amount: o.Total, Sold: o.releases()}
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
