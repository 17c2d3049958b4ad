package domain

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
