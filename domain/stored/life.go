package stored

import (
	"github.com/weirhq/weir/domain"
)

// The names of the event types of an order's life, for envelopes.
const (
	TypePaymentStarted          = "PaymentStarted"
	TypePaymentAuthorized       = "PaymentAuthorized"
	TypePaymentCaptureRequested = "PaymentCaptureRequested"
	TypePaymentCaptured         = "PaymentCaptured"
	TypePaymentDeclined         = "PaymentDeclined"
	TypePaymentBecameUnknown    = "PaymentBecameUnknown"
	TypePaymentVoidRequested    = "PaymentVoidRequested"
	TypePaymentVoided           = "PaymentVoided"
	TypeRefundStarted           = "RefundStarted"
	TypePaymentRefunded         = "PaymentRefunded"
	TypeRefundFailed            = "RefundFailed"
	TypeStrayPaymentFound       = "StrayPaymentFound"
	TypeItemsShipped            = "ItemsShipped"
	TypeShipmentDelivered       = "ShipmentDelivered"
	TypeReturnRequested         = "ReturnRequested"
	TypeReturnReceived          = "ReturnReceived"
	TypeNoteAdded               = "NoteAdded"
	TypePointsAwarded           = "PointsAwarded"
	TypePointsTakenBack         = "PointsTakenBack"
)

// The events of an order's life are less frequent than the others and more of them, so one walk over the fields of each says how it
// is measured, written and read.

// A walk goes over the fields of an event and does one of the three with each of them.
type walk struct {
	doing doing
	// size is what was measured.
	size int
	// dst is what was appended to.
	dst []byte
	// field is the one that is read.
	field *fields
}

type doing uint8

const (
	measuring doing = iota
	appending
	reading
)

func (w *walk) text(number uint64, text *string) {
	switch w.doing {
	case measuring:
		w.size += sizeText(*text)
	case appending:
		w.dst = appendText(w.dst, number, *text)
	case reading:
		if w.field.tag == number<<3|kindBytes {
			*text = w.field.text()
		}
	}
}

func (w *walk) bytes(number uint64, content *[]byte) {
	switch w.doing {
	case measuring:
		w.size += sizeText(*content)
	case appending:
		w.dst = appendText(w.dst, number, *content)
	case reading:
		if w.field.tag == number<<3|kindBytes {
			*content = append([]byte(nil), w.field.data[w.field.from:w.field.at]...)
		}
	}
}

func (w *walk) int64(number uint64, value *int64) {
	switch w.doing {
	case measuring:
		w.size += sizeVarint(uint64(*value))
	case appending:
		w.dst = appendVarint(w.dst, number, uint64(*value))
	case reading:
		if w.field.tag == number<<3|kindVarint {
			*value = int64(w.field.v)
		}
	}
}

// bit is a flag; one that is not set is not written.
func (w *walk) bit(number uint64, set *bool) {
	var value int64
	if *set {
		value = 1
	}
	w.int64(number, &value)
	*set = value != 0
}

// money is two fields: the currency, and the minor units after it.
func (w *walk) money(number uint64, amount *domain.Money) {
	w.text(number, &amount.Currency)
	w.int64(number+1, &amount.Minor)
}

func (w *walk) released(number uint64, released *[]domain.Release) {
	switch w.doing {
	case measuring:
		w.size += sizeReleased(*released)
	case appending:
		w.dst = appendReleased(w.dst, number, *released)
	case reading:
		if w.field.tag == number<<3|kindBytes {
			*released = append(*released, domain.Release{})
			w.field.err = readRelease(&(*released)[len(*released)-1], w.field.sub())
		}
	}
}

func walkPaymentStarted(w *walk, e *domain.PaymentStarted) {
	w.text(1, &e.PaymentID)
	w.text(2, &e.Provider)
	w.text(3, &e.Method)
	w.money(4, &e.Amount)
	w.text(6, &e.By)
	w.bit(7, &e.CaptureNow)
}

func walkPaymentAuthorized(w *walk, e *domain.PaymentAuthorized) {
	w.text(1, &e.PaymentID)
	w.money(2, &e.Amount)
}

func walkPaymentCaptureRequested(w *walk, e *domain.PaymentCaptureRequested) {
	w.text(1, &e.PaymentID)
	w.text(2, &e.Provider)
	w.money(3, &e.Amount)
	w.text(5, &e.By)
}

func walkPaymentCaptured(w *walk, e *domain.PaymentCaptured) {
	w.text(1, &e.PaymentID)
	w.money(2, &e.Amount)
	w.released(4, &e.Sold)
}

func walkPaymentDeclined(w *walk, e *domain.PaymentDeclined) {
	w.text(1, &e.PaymentID)
	w.text(2, &e.Code)
	w.text(3, &e.Message)
}

func walkPaymentBecameUnknown(w *walk, e *domain.PaymentBecameUnknown) {
	w.text(1, &e.PaymentID)
}

func walkPaymentVoidRequested(w *walk, e *domain.PaymentVoidRequested) {
	w.text(1, &e.PaymentID)
	w.text(2, &e.Provider)
	w.text(3, &e.Why)
	w.text(4, &e.By)
}

func walkPaymentVoided(w *walk, e *domain.PaymentVoided) {
	w.text(1, &e.PaymentID)
}

func walkRefundStarted(w *walk, e *domain.RefundStarted) {
	w.text(1, &e.RefundID)
	w.text(2, &e.PaymentID)
	w.text(3, &e.Provider)
	w.money(4, &e.Amount)
	w.text(6, &e.Reason)
	w.text(7, &e.ReturnID)
	w.text(8, &e.By)
}

func walkPaymentRefunded(w *walk, e *domain.PaymentRefunded) {
	w.text(1, &e.RefundID)
	w.money(2, &e.Amount)
}

func walkRefundFailed(w *walk, e *domain.RefundFailed) {
	w.text(1, &e.RefundID)
	w.text(2, &e.Code)
}

func walkStrayPaymentFound(w *walk, e *domain.StrayPaymentFound) {
	w.text(1, &e.PaymentID)
	w.text(2, &e.Provider)
	w.money(3, &e.Amount)
	w.text(5, &e.Why)
}

func walkItemsShipped(w *walk, e *domain.ItemsShipped) {
	w.text(1, &e.ShipmentID)
	w.released(2, &e.Lines)
	w.text(3, &e.Carrier)
	w.text(4, &e.Tracking)
	w.text(5, &e.By)
}

func walkShipmentDelivered(w *walk, e *domain.ShipmentDelivered) {
	w.text(1, &e.ShipmentID)
	w.text(2, &e.By)
}

func walkReturnRequested(w *walk, e *domain.ReturnRequested) {
	w.text(1, &e.ReturnID)
	w.released(2, &e.Lines)
	w.text(3, &e.Reason)
	w.text(4, &e.By)
}

func walkReturnReceived(w *walk, e *domain.ReturnReceived) {
	w.text(1, &e.ReturnID)
	w.released(2, &e.Restocked)
	w.text(3, &e.By)
}

func walkNoteAdded(w *walk, e *domain.NoteAdded) {
	w.text(1, &e.By)
	w.bytes(2, &e.Sealed)
	w.text(3, &e.NoteID)
}

func walkPointsAwarded(w *walk, e *domain.PointsAwarded) {
	w.text(1, &e.PaymentID)
	w.int64(2, &e.Points)
	w.int64(3, &e.PerMajor)
}

func walkPointsTakenBack(w *walk, e *domain.PointsTakenBack) {
	w.text(1, &e.RefundID)
	w.int64(2, &e.Points)
}

// sizeBy measures the payload of an event.
func sizeBy[E any](e E, over func(*walk, *E)) int {
	w := walk{doing: measuring}
	over(&w, &e)
	return w.size
}

// appendBy appends the payload of an event.
func appendBy[E any](dst []byte, e E, over func(*walk, *E)) []byte {
	w := walk{doing: appending, dst: dst}
	over(&w, &e)
	return w.dst
}

// readBy makes the reader of a type of event; of returns its order and user.
func readBy[E domain.Event](of func(*E) (*domain.OrderID, *string), over func(*walk, *E)) reader {
	return func(aggregateID, userID string, payload []byte) (domain.Event, error) {
		id, err := domain.ParseOrderID(aggregateID)
		if err != nil {
			return nil, err
		}
		var e E
		order, user := of(&e)
		*order, *user = id, userID
		f := fieldsOf(payload)
		w := walk{doing: reading, field: &f}
		for f.next() {
			over(&w, &e)
		}
		return e, f.err
	}
}

// lifeReaders are the readers of the events of an order's life.
var lifeReaders = map[string]reader{
	TypePaymentStarted:          readBy(func(e *domain.PaymentStarted) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentStarted),
	TypePaymentAuthorized:       readBy(func(e *domain.PaymentAuthorized) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentAuthorized),
	TypePaymentCaptureRequested: readBy(func(e *domain.PaymentCaptureRequested) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentCaptureRequested),
	TypePaymentCaptured:         readBy(func(e *domain.PaymentCaptured) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentCaptured),
	TypePaymentDeclined:         readBy(func(e *domain.PaymentDeclined) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentDeclined),
	TypePaymentBecameUnknown:    readBy(func(e *domain.PaymentBecameUnknown) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentBecameUnknown),
	TypePaymentVoidRequested:    readBy(func(e *domain.PaymentVoidRequested) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentVoidRequested),
	TypePaymentVoided:           readBy(func(e *domain.PaymentVoided) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentVoided),
	TypeRefundStarted:           readBy(func(e *domain.RefundStarted) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkRefundStarted),
	TypePaymentRefunded:         readBy(func(e *domain.PaymentRefunded) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPaymentRefunded),
	TypeRefundFailed:            readBy(func(e *domain.RefundFailed) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkRefundFailed),
	TypeStrayPaymentFound:       readBy(func(e *domain.StrayPaymentFound) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkStrayPaymentFound),
	TypeItemsShipped:            readBy(func(e *domain.ItemsShipped) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkItemsShipped),
	TypeShipmentDelivered:       readBy(func(e *domain.ShipmentDelivered) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkShipmentDelivered),
	TypeReturnRequested:         readBy(func(e *domain.ReturnRequested) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkReturnRequested),
	TypeReturnReceived:          readBy(func(e *domain.ReturnReceived) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkReturnReceived),
	TypeNoteAdded:               readBy(func(e *domain.NoteAdded) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkNoteAdded),
	TypePointsAwarded:           readBy(func(e *domain.PointsAwarded) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPointsAwarded),
	TypePointsTakenBack:         readBy(func(e *domain.PointsTakenBack) (*domain.OrderID, *string) { return &e.OrderID, &e.UserID }, walkPointsTakenBack),
}

func init() {
	for name, read := range lifeReaders {
		readers[name] = read
	}
}
