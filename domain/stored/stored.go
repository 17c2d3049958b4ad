// Package stored writes domain events down as messages of weir.event.v1, and reads them back.
//
// What is stored is stored for ever: fields are added and versions follow one another, but the bytes of a version never
// change. The messages are written and read by hand because every order passes here; fields are in order of their
// numbers, as the generated types' deterministic form has them, and tests hold one to the other. A payload does not
// repeat what the event's envelope says: type, version, aggregate and user.
package stored

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/weirhq/weir/domain"
	eventv1 "github.com/weirhq/weir/proto/stored/weir/event/v1"
)

// The names of the event types, for envelopes.
const (
	TypeOrderPlaced    = "OrderPlaced"
	TypeOrderCancelled = "OrderCancelled"
	TypeOrderExpired   = "OrderExpired"
	TypeUserErased     = "UserErased"

	TypeRequestAnswered = "RequestAnswered"

	TypeWebhookEndpointPut     = "WebhookEndpointPut"
	TypeWebhookEndpointDeleted = "WebhookEndpointDeleted"

	TypeProductPut     = "ProductPut"
	TypeStockReceived  = "StockReceived"
	TypeStockGranted   = "StockGranted"
	TypeStockAllotted  = "StockAllotted"
	TypeStockReturned  = "StockReturned"
	TypeStockReclaimed = "StockReclaimed"
	TypeCampaignPut    = "CampaignPut"
	TypePoolFilled     = "PoolFilled"
	TypePoolDrained    = "PoolDrained"
	TypeCouponPut      = "CouponPut"
)

// version is the newest version of every event type. Once one of them has a second version, this becomes a table.
const version = 1

// An UnknownEventError says that an event cannot be read by this program. Nothing is wrong with the event.
type UnknownEventError struct {
	Type    string
	Version uint32
	// Newest is the newest version of the type that this program knows, 0 if it does not know the type.
	Newest uint32
}

func (e *UnknownEventError) Error() string {
	if e.Newest == 0 {
		return fmt.Sprintf("unknown event type %.64q: a newer program wrote it", e.Type)
	}
	return fmt.Sprintf("%s has version %d, but versions 1 to %d are known: a newer program wrote it", e.Type, e.Version, e.Newest)
}

// Encode returns what an envelope says of an event, and its payload.
func Encode(e domain.Event) (typeName string, typeVersion uint32, aggregateID string, payload []byte) {
	typeName, aggregateID = nameOf(e)
	if size := sizeOf(e); size > 0 {
		payload = AppendPayload(make([]byte, 0, size), e)
	}
	return typeName, version, aggregateID, payload
}

func nameOf(e domain.Event) (typeName, aggregateID string) {
	switch e := e.(type) {
	case domain.OrderPlaced:
		return TypeOrderPlaced, e.OrderID.String()
	case domain.OrderCancelled:
		return TypeOrderCancelled, e.OrderID.String()
	case domain.OrderExpired:
		return TypeOrderExpired, e.OrderID.String()
	case domain.PaymentStarted:
		return TypePaymentStarted, e.OrderID.String()
	case domain.PaymentAuthorized:
		return TypePaymentAuthorized, e.OrderID.String()
	case domain.PaymentCaptureRequested:
		return TypePaymentCaptureRequested, e.OrderID.String()
	case domain.PaymentCaptured:
		return TypePaymentCaptured, e.OrderID.String()
	case domain.PaymentDeclined:
		return TypePaymentDeclined, e.OrderID.String()
	case domain.PaymentBecameUnknown:
		return TypePaymentBecameUnknown, e.OrderID.String()
	case domain.PaymentVoidRequested:
		return TypePaymentVoidRequested, e.OrderID.String()
	case domain.PaymentVoided:
		return TypePaymentVoided, e.OrderID.String()
	case domain.RefundStarted:
		return TypeRefundStarted, e.OrderID.String()
	case domain.PaymentRefunded:
		return TypePaymentRefunded, e.OrderID.String()
	case domain.RefundFailed:
		return TypeRefundFailed, e.OrderID.String()
	case domain.StrayPaymentFound:
		return TypeStrayPaymentFound, e.OrderID.String()
	case domain.ItemsShipped:
		return TypeItemsShipped, e.OrderID.String()
	case domain.ShipmentDelivered:
		return TypeShipmentDelivered, e.OrderID.String()
	case domain.ReturnRequested:
		return TypeReturnRequested, e.OrderID.String()
	case domain.ReturnReceived:
		return TypeReturnReceived, e.OrderID.String()
	case domain.NoteAdded:
		return TypeNoteAdded, e.OrderID.String()
	case domain.PointsAwarded:
		return TypePointsAwarded, e.OrderID.String()
	case domain.PointsTakenBack:
		return TypePointsTakenBack, e.OrderID.String()
	case domain.UserErased:
		return TypeUserErased, e.UserID
	case domain.RequestAnswered:
		return TypeRequestAnswered, e.Key
	case domain.WebhookEndpointPut:
		return TypeWebhookEndpointPut, e.EndpointID
	case domain.WebhookEndpointDeleted:
		return TypeWebhookEndpointDeleted, e.EndpointID
	case domain.ProductPut:
		return TypeProductPut, e.SKU
	case domain.StockReceived:
		return TypeStockReceived, e.SKU
	case domain.StockGranted:
		return TypeStockGranted, e.SKU
	case domain.StockAllotted:
		return TypeStockAllotted, e.SKU
	case domain.StockReturned:
		return TypeStockReturned, e.SKU
	case domain.StockReclaimed:
		return TypeStockReclaimed, e.SKU
	case domain.CampaignPut:
		return TypeCampaignPut, e.Pool
	case domain.PoolFilled:
		return TypePoolFilled, e.Pool
	case domain.PoolDrained:
		return TypePoolDrained, e.Pool
	case domain.CouponPut:
		return TypeCouponPut, e.Code
	}
	panic(fmt.Sprintf("stored: bug: unknown event %T", e))
}

// sizeOf returns the length of the payload that AppendPayload writes, in bytes.
func sizeOf(e domain.Event) int {
	switch e := e.(type) {
	case domain.OrderPlaced:
		size := sizeText(e.Total.Currency) + sizeVarint(uint64(e.Total.Minor)) + sizeVarint(nanos(e.PayBy)) +
			sizeText(e.SealedNote) + sizeText(e.Pool) + sizeText(e.CouponCode) + sizeText(e.CouponPool) + sizeFarText(e.SealedPersonal)
		for i := range e.Lines {
			size += sizeInner(sizeLine(&e.Lines[i]))
		}
		return size
	case domain.OrderCancelled:
		return sizeText(e.Reason) + sizeText(e.By) + sizeReleased(e.Released) + sizeReleased(e.Unsold) + sizeText(e.CouponCode)
	case domain.OrderExpired:
		return sizeReleased(e.Released) + sizeText(e.CouponCode)
	case domain.PaymentStarted:
		return sizeBy(e, walkPaymentStarted)
	case domain.PaymentAuthorized:
		return sizeBy(e, walkPaymentAuthorized)
	case domain.PaymentCaptureRequested:
		return sizeBy(e, walkPaymentCaptureRequested)
	case domain.PaymentCaptured:
		return sizeBy(e, walkPaymentCaptured)
	case domain.PaymentDeclined:
		return sizeBy(e, walkPaymentDeclined)
	case domain.PaymentBecameUnknown:
		return sizeBy(e, walkPaymentBecameUnknown)
	case domain.PaymentVoidRequested:
		return sizeBy(e, walkPaymentVoidRequested)
	case domain.PaymentVoided:
		return sizeBy(e, walkPaymentVoided)
	case domain.RefundStarted:
		return sizeBy(e, walkRefundStarted)
	case domain.PaymentRefunded:
		return sizeBy(e, walkPaymentRefunded)
	case domain.RefundFailed:
		return sizeBy(e, walkRefundFailed)
	case domain.StrayPaymentFound:
		return sizeBy(e, walkStrayPaymentFound)
	case domain.ItemsShipped:
		return sizeBy(e, walkItemsShipped)
	case domain.ShipmentDelivered:
		return sizeBy(e, walkShipmentDelivered)
	case domain.ReturnRequested:
		return sizeBy(e, walkReturnRequested)
	case domain.ReturnReceived:
		return sizeBy(e, walkReturnReceived)
	case domain.NoteAdded:
		return sizeBy(e, walkNoteAdded)
	case domain.PointsAwarded:
		return sizeBy(e, walkPointsAwarded)
	case domain.PointsTakenBack:
		return sizeBy(e, walkPointsTakenBack)
	case domain.UserErased:
		return sizeVarint(uint64(e.Key)) + sizeText(e.By)
	case domain.RequestAnswered:
		return sizeText(e.About) + sizeText(e.PartID) + sizeVarint(uint64(e.KeyID))
	case domain.WebhookEndpointPut:
		return sizeEndpoint(&e)
	case domain.WebhookEndpointDeleted:
		return sizeText(e.By)
	case domain.ProductPut:
		return sizeText(e.Title) + sizeText(e.Price.Currency) + sizeVarint(uint64(e.Price.Minor)) + sizeTax(e.Tax)
	case domain.StockReceived:
		return sizeVarint(uint64(e.Units)) + sizeVarint(uint64(e.ReceivedTotal))
	case domain.StockGranted:
		return sizeTransfer(e.ToLane, e.GrantNumber, e.Units)
	case domain.StockAllotted:
		return sizeTransfer(e.HomeLane, e.GrantNumber, e.Units)
	case domain.StockReturned:
		return sizeTransfer(e.HomeLane, e.ReturnNumber, e.Units)
	case domain.StockReclaimed:
		return sizeTransfer(e.FromLane, e.ReturnNumber, e.Units)
	case domain.CampaignPut:
		return sizeText(e.Price.Currency) + sizeVarint(uint64(e.Price.Minor)) + sizeVarint(nanos(e.OpensAt)) + sizeVarint(nanos(e.ClosesAt)) +
			sizeVarint(uint64(e.UserUnitsMax)) + sizeVarint(uint64(e.OrderUnitsMax)) + sizeVarint(uint64(e.Units))
	case domain.PoolFilled:
		return sizeVarint(uint64(e.Units))
	case domain.PoolDrained:
		return sizeVarint(uint64(e.Units))
	case domain.CouponPut:
		t := &e.Terms
		return sizeVarint(uint64(t.Kind)) + sizeVarint(uint64(t.AmountMinor)) + sizeVarint(uint64(t.RateBps)) + sizeText(t.Currency) +
			sizeVarint(uint64(t.MinSubtotalMinor)) + sizeVarint(nanos(t.ValidFrom)) + sizeVarint(nanos(t.ValidUntil)) +
			sizeVarint(uint64(t.UserUsesMax)) + sizeVarint(uint64(t.UsesMax))
	}
	panic(fmt.Sprintf("stored: bug: unknown event %T", e))
}

// AppendPayload appends the payload of an event.
func AppendPayload(dst []byte, e domain.Event) []byte {
	switch e := e.(type) {
	case domain.OrderPlaced:
		for i := range e.Lines {
			dst = appendLine(dst, &e.Lines[i])
		}
		dst = appendText(dst, 2, e.Total.Currency)
		dst = appendVarint(dst, 3, uint64(e.Total.Minor))
		dst = appendVarint(dst, 4, nanos(e.PayBy))
		dst = appendText(dst, 5, e.SealedNote)
		dst = appendText(dst, 10, e.Pool)
		dst = appendText(dst, 11, e.CouponCode)
		dst = appendText(dst, 12, e.CouponPool)
		return appendFarText(dst, 20, e.SealedPersonal)
	case domain.OrderCancelled:
		dst = appendText(dst, 1, e.Reason)
		dst = appendText(dst, 2, e.By)
		dst = appendReleased(dst, 3, e.Released)
		dst = appendReleased(dst, 4, e.Unsold)
		return appendText(dst, 10, e.CouponCode)
	case domain.OrderExpired:
		dst = appendReleased(dst, 1, e.Released)
		return appendText(dst, 10, e.CouponCode)
	case domain.PaymentStarted:
		return appendBy(dst, e, walkPaymentStarted)
	case domain.PaymentAuthorized:
		return appendBy(dst, e, walkPaymentAuthorized)
	case domain.PaymentCaptureRequested:
		return appendBy(dst, e, walkPaymentCaptureRequested)
	case domain.PaymentCaptured:
		return appendBy(dst, e, walkPaymentCaptured)
	case domain.PaymentDeclined:
		return appendBy(dst, e, walkPaymentDeclined)
	case domain.PaymentBecameUnknown:
		return appendBy(dst, e, walkPaymentBecameUnknown)
	case domain.PaymentVoidRequested:
		return appendBy(dst, e, walkPaymentVoidRequested)
	case domain.PaymentVoided:
		return appendBy(dst, e, walkPaymentVoided)
	case domain.RefundStarted:
		return appendBy(dst, e, walkRefundStarted)
	case domain.PaymentRefunded:
		return appendBy(dst, e, walkPaymentRefunded)
	case domain.RefundFailed:
		return appendBy(dst, e, walkRefundFailed)
	case domain.StrayPaymentFound:
		return appendBy(dst, e, walkStrayPaymentFound)
	case domain.ItemsShipped:
		return appendBy(dst, e, walkItemsShipped)
	case domain.ShipmentDelivered:
		return appendBy(dst, e, walkShipmentDelivered)
	case domain.ReturnRequested:
		return appendBy(dst, e, walkReturnRequested)
	case domain.ReturnReceived:
		return appendBy(dst, e, walkReturnReceived)
	case domain.NoteAdded:
		return appendBy(dst, e, walkNoteAdded)
	case domain.PointsAwarded:
		return appendBy(dst, e, walkPointsAwarded)
	case domain.PointsTakenBack:
		return appendBy(dst, e, walkPointsTakenBack)
	case domain.UserErased:
		dst = appendVarint(dst, 1, uint64(e.Key))
		return appendText(dst, 2, e.By)
	case domain.RequestAnswered:
		dst = appendText(dst, 1, e.About)
		dst = appendText(dst, 2, e.PartID)
		return appendVarint(dst, 3, uint64(e.KeyID))
	case domain.WebhookEndpointPut:
		return appendEndpoint(dst, &e)
	case domain.WebhookEndpointDeleted:
		return appendText(dst, 1, e.By)
	case domain.ProductPut:
		dst = appendText(dst, 1, e.Title)
		dst = appendText(dst, 2, e.Price.Currency)
		dst = appendVarint(dst, 3, uint64(e.Price.Minor))
		return appendTax(dst, 4, e.Tax)
	case domain.StockReceived:
		dst = appendVarint(dst, 1, uint64(e.Units))
		return appendVarint(dst, 2, uint64(e.ReceivedTotal))
	case domain.StockGranted:
		return appendTransfer(dst, e.ToLane, e.GrantNumber, e.Units)
	case domain.StockAllotted:
		return appendTransfer(dst, e.HomeLane, e.GrantNumber, e.Units)
	case domain.StockReturned:
		return appendTransfer(dst, e.HomeLane, e.ReturnNumber, e.Units)
	case domain.StockReclaimed:
		return appendTransfer(dst, e.FromLane, e.ReturnNumber, e.Units)
	case domain.CampaignPut:
		dst = appendText(dst, 1, e.Price.Currency)
		dst = appendVarint(dst, 2, uint64(e.Price.Minor))
		dst = appendVarint(dst, 3, nanos(e.OpensAt))
		dst = appendVarint(dst, 4, nanos(e.ClosesAt))
		dst = appendVarint(dst, 5, uint64(e.UserUnitsMax))
		dst = appendVarint(dst, 6, uint64(e.OrderUnitsMax))
		return appendVarint(dst, 7, uint64(e.Units))
	case domain.PoolFilled:
		return appendVarint(dst, 1, uint64(e.Units))
	case domain.PoolDrained:
		return appendVarint(dst, 1, uint64(e.Units))
	case domain.CouponPut:
		t := &e.Terms
		dst = appendVarint(dst, 1, uint64(t.Kind))
		dst = appendVarint(dst, 2, uint64(t.AmountMinor))
		dst = appendVarint(dst, 3, uint64(t.RateBps))
		dst = appendText(dst, 4, t.Currency)
		dst = appendVarint(dst, 5, uint64(t.MinSubtotalMinor))
		dst = appendVarint(dst, 6, nanos(t.ValidFrom))
		dst = appendVarint(dst, 7, nanos(t.ValidUntil))
		dst = appendVarint(dst, 8, uint64(t.UserUsesMax))
		return appendVarint(dst, 9, uint64(t.UsesMax))
	}
	panic(fmt.Sprintf("stored: bug: unknown event %T", e))
}

// JSON returns a payload as JSON, by the names of its fields; what is sealed stays so. It returns an *UnknownEventError if a
// newer program wrote the event.
func JSON(typeName string, typeVersion uint32, payload []byte) ([]byte, error) {
	name := eventv1.File_weir_event_v1_event_proto.Package().Append(protoreflect.Name(typeName))
	kind, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		return nil, &UnknownEventError{Type: typeName, Version: typeVersion}
	}
	message := kind.New().Interface()
	if err := proto.Unmarshal(payload, message); err != nil {
		return nil, fmt.Errorf("decode %s: %w", typeName, err)
	}
	return protojson.Marshal(message)
}

// nanos is the stored form of a log time; the zero time is 0.
func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func sizeLine(l *domain.Line) int {
	return sizeText(l.SKU) + sizeVarint(uint64(l.Units)) + sizeText(l.Title) + sizeVarint(uint64(l.PriceMinor)) +
		sizeVarint(uint64(l.DiscountMinor)) + sizeVarint(uint64(l.TaxMinor)) + sizeTax(l.Tax)
}

func appendLine(dst []byte, l *domain.Line) []byte {
	dst = appendInner(dst, 1, sizeLine(l))
	dst = appendText(dst, 1, l.SKU)
	dst = appendVarint(dst, 2, uint64(l.Units))
	dst = appendText(dst, 3, l.Title)
	dst = appendVarint(dst, 4, uint64(l.PriceMinor))
	dst = appendVarint(dst, 5, uint64(l.DiscountMinor))
	dst = appendVarint(dst, 6, uint64(l.TaxMinor))
	return appendTax(dst, 7, l.Tax)
}

func sizeTax(t domain.Tax) int { return sizeVarint(uint64(t.RateBps)) + sizeVarint(bit(t.Included)) }

// appendTax writes a tax as two fields that follow one another.
func appendTax(dst []byte, field uint64, t domain.Tax) []byte {
	dst = appendVarint(dst, field, uint64(t.RateBps))
	return appendVarint(dst, field+1, bit(t.Included))
}

func bit(set bool) uint64 {
	if set {
		return 1
	}
	return 0
}

func sizeRelease(r *domain.Release) int { return sizeText(r.SKU) + sizeVarint(uint64(r.Units)) }

func sizeReleased(released []domain.Release) int {
	size := 0
	for i := range released {
		size += sizeInner(sizeRelease(&released[i]))
	}
	return size
}

func appendReleased(dst []byte, field uint64, released []domain.Release) []byte {
	for i := range released {
		dst = appendInner(dst, field, sizeRelease(&released[i]))
		dst = appendText(dst, 1, released[i].SKU)
		dst = appendVarint(dst, 2, uint64(released[i].Units))
	}
	return dst
}

func sizeTransfer(lane uint32, number uint64, units int64) int {
	return sizeVarint(uint64(lane)) + sizeVarint(number) + sizeVarint(uint64(units))
}

func appendTransfer(dst []byte, lane uint32, number uint64, units int64) []byte {
	dst = appendVarint(dst, 1, uint64(lane))
	dst = appendVarint(dst, 2, number)
	return appendVarint(dst, 3, uint64(units))
}

// Field numbers are below 16, so a tag is one byte: the number and the wire type. The tag of a far field, 16 to 2047, has two.
const (
	kindVarint = uint64(protowire.VarintType)
	kindBytes  = uint64(protowire.BytesType)
)

func sizeVarint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func sizeText[T ~string | []byte](text T) int {
	if len(text) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(text))
}

func sizeFarText(text []byte) int {
	if len(text) == 0 {
		return 0
	}
	return 2 + protowire.SizeBytes(len(text))
}

// sizeInner is the size of a message field; unlike the others it is written even if it is empty.
func sizeInner(size int) int { return 1 + protowire.SizeBytes(size) }

func appendVarint(dst []byte, field, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(append(dst, byte(field<<3|kindVarint)), v)
}

func appendText[T ~string | []byte](dst []byte, field uint64, text T) []byte {
	if len(text) == 0 {
		return dst
	}
	return append(appendInner(dst, field, len(text)), text...)
}

func appendFarText(dst []byte, field uint64, text []byte) []byte {
	if len(text) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendVarint(dst, field<<3|kindBytes), text)
}

func appendInner(dst []byte, field uint64, size int) []byte {
	return protowire.AppendVarint(append(dst, byte(field<<3|kindBytes)), uint64(size))
}

// Decode reads an event from its envelope and payload. The event keeps nothing of payload. It returns an
// *UnknownEventError if a newer program wrote the event; any other error is damage. Unknown fields are passed over.
func Decode(typeName string, typeVersion uint32, aggregateID, userID string, payload []byte) (domain.Event, error) {
	read, known := readers[typeName]
	if !known {
		return nil, &UnknownEventError{Type: typeName, Version: typeVersion}
	}
	if typeVersion > version {
		return nil, &UnknownEventError{Type: typeName, Version: typeVersion, Newest: version}
	}
	if typeVersion == 0 {
		return nil, fmt.Errorf("decode %s of %.64q: it has no version", typeName, aggregateID)
	}
	e, err := read(aggregateID, userID, payload)
	if err != nil {
		return nil, fmt.Errorf("decode %s of %.64q: %w", typeName, aggregateID, err)
	}
	return e, nil
}

type reader func(aggregateID, userID string, payload []byte) (domain.Event, error)

var readers = map[string]reader{
	TypeOrderPlaced:    readOrderPlaced,
	TypeOrderCancelled: readOrderCancelled,
	TypeOrderExpired:   readOrderExpired,
	TypeUserErased:     readUserErased,

	TypeRequestAnswered: readRequestAnswered,

	TypeWebhookEndpointPut:     readWebhookEndpointPut,
	TypeWebhookEndpointDeleted: readWebhookEndpointDeleted,

	TypeProductPut:    readProductPut,
	TypeStockReceived: readStockReceived,

	TypeCampaignPut: readCampaignPut,
	TypeCouponPut:   readCouponPut,
	TypePoolFilled: func(pool, _ string, payload []byte) (domain.Event, error) {
		units, err := readUnits(payload)
		return domain.PoolFilled{Pool: pool, Units: units}, err
	},
	TypePoolDrained: func(pool, _ string, payload []byte) (domain.Event, error) {
		units, err := readUnits(payload)
		return domain.PoolDrained{Pool: pool, Units: units}, err
	},
	TypeStockGranted: func(sku, _ string, payload []byte) (domain.Event, error) {
		lane, number, units, err := readTransfer(payload)
		return domain.StockGranted{SKU: sku, ToLane: lane, GrantNumber: number, Units: units}, err
	},
	TypeStockAllotted: func(sku, _ string, payload []byte) (domain.Event, error) {
		lane, number, units, err := readTransfer(payload)
		return domain.StockAllotted{SKU: sku, HomeLane: lane, GrantNumber: number, Units: units}, err
	},
	TypeStockReturned: func(sku, _ string, payload []byte) (domain.Event, error) {
		lane, number, units, err := readTransfer(payload)
		return domain.StockReturned{SKU: sku, HomeLane: lane, ReturnNumber: number, Units: units}, err
	},
	TypeStockReclaimed: func(sku, _ string, payload []byte) (domain.Event, error) {
		lane, number, units, err := readTransfer(payload)
		return domain.StockReclaimed{SKU: sku, FromLane: lane, ReturnNumber: number, Units: units}, err
	},
}

// Types returns the names of all stored types, sorted.
func Types() []string { return slices.Sorted(maps.Keys(readers)) }

func readOrderPlaced(aggregateID, userID string, payload []byte) (domain.Event, error) {
	id, err := domain.ParseOrderID(aggregateID)
	if err != nil {
		return nil, err
	}
	e := domain.OrderPlaced{OrderID: id, UserID: userID}
	lines := countFields(payload, 1<<3|kindBytes)
	if lines > 0 {
		e.Lines = make([]domain.Line, 0, lines)
	}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.Lines = append(e.Lines, domain.Line{})
			f.err = readLine(&e.Lines[len(e.Lines)-1], f.sub())
		case 2<<3 | kindBytes:
			e.Total.Currency = f.text()
		case 3<<3 | kindVarint:
			e.Total.Minor = int64(f.v)
		case 4<<3 | kindVarint:
			e.PayBy = timeOf(f.v)
		case 5<<3 | kindBytes:
			e.SealedNote = f.bytes()
		case 10<<3 | kindBytes:
			e.Pool = f.text()
		case 11<<3 | kindBytes:
			e.CouponCode = f.text()
		case 12<<3 | kindBytes:
			e.CouponPool = f.text()
		case 20<<3 | kindBytes:
			e.SealedPersonal = f.bytes()
		}
	}
	return e, f.err
}

func timeOf(nanos uint64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(nanos)).UTC()
}

func readLine(l *domain.Line, f fields) error {
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			l.SKU = f.text()
		case 2<<3 | kindVarint:
			l.Units = int64(f.v)
		case 3<<3 | kindBytes:
			l.Title = f.text()
		case 4<<3 | kindVarint:
			l.PriceMinor = int64(f.v)
		case 5<<3 | kindVarint:
			l.DiscountMinor = int64(f.v)
		case 6<<3 | kindVarint:
			l.TaxMinor = int64(f.v)
		case 7<<3 | kindVarint:
			l.Tax.RateBps = int64(f.v)
		case 8<<3 | kindVarint:
			l.Tax.Included = f.v != 0
		}
	}
	return f.err
}

func readOrderCancelled(aggregateID, userID string, payload []byte) (domain.Event, error) {
	id, err := domain.ParseOrderID(aggregateID)
	if err != nil {
		return nil, err
	}
	e := domain.OrderCancelled{OrderID: id, UserID: userID}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.Reason = f.text()
		case 2<<3 | kindBytes:
			e.By = f.text()
		case 3<<3 | kindBytes:
			e.Released = append(e.Released, domain.Release{})
			f.err = readRelease(&e.Released[len(e.Released)-1], f.sub())
		case 4<<3 | kindBytes:
			e.Unsold = append(e.Unsold, domain.Release{})
			f.err = readRelease(&e.Unsold[len(e.Unsold)-1], f.sub())
		case 10<<3 | kindBytes:
			e.CouponCode = f.text()
		}
	}
	return e, f.err
}

func readOrderExpired(aggregateID, userID string, payload []byte) (domain.Event, error) {
	id, err := domain.ParseOrderID(aggregateID)
	if err != nil {
		return nil, err
	}
	e := domain.OrderExpired{OrderID: id, UserID: userID}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.Released = append(e.Released, domain.Release{})
			f.err = readRelease(&e.Released[len(e.Released)-1], f.sub())
		case 10<<3 | kindBytes:
			e.CouponCode = f.text()
		}
	}
	return e, f.err
}

func readRelease(r *domain.Release, f fields) error {
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			r.SKU = f.text()
		case 2<<3 | kindVarint:
			r.Units = int64(f.v)
		}
	}
	return f.err
}

func readUserErased(userID, _ string, payload []byte) (domain.Event, error) {
	e := domain.UserErased{UserID: userID}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindVarint:
			e.Key = domain.KeyID(f.v)
		case 2<<3 | kindBytes:
			e.By = f.text()
		}
	}
	return e, f.err
}

func readRequestAnswered(key, _ string, payload []byte) (domain.Event, error) {
	e := domain.RequestAnswered{Key: key}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.About = domain.Subject(f.text())
		case 2<<3 | kindBytes:
			e.PartID = f.text()
		case 3<<3 | kindVarint:
			e.KeyID = domain.KeyID(f.v)
		}
	}
	return e, f.err
}

func readProductPut(sku, _ string, payload []byte) (domain.Event, error) {
	e := domain.ProductPut{SKU: sku}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.Title = f.text()
		case 2<<3 | kindBytes:
			e.Price.Currency = f.text()
		case 3<<3 | kindVarint:
			e.Price.Minor = int64(f.v)
		case 4<<3 | kindVarint:
			e.Tax.RateBps = int64(f.v)
		case 5<<3 | kindVarint:
			e.Tax.Included = f.v != 0
		}
	}
	return e, f.err
}

func readCampaignPut(pool, _ string, payload []byte) (domain.Event, error) {
	e := domain.CampaignPut{Pool: pool}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.Price.Currency = f.text()
		case 2<<3 | kindVarint:
			e.Price.Minor = int64(f.v)
		case 3<<3 | kindVarint:
			e.OpensAt = timeOf(f.v)
		case 4<<3 | kindVarint:
			e.ClosesAt = timeOf(f.v)
		case 5<<3 | kindVarint:
			e.UserUnitsMax = int64(f.v)
		case 6<<3 | kindVarint:
			e.OrderUnitsMax = int64(f.v)
		case 7<<3 | kindVarint:
			e.Units = int64(f.v)
		}
	}
	return e, f.err
}

func readCouponPut(code, _ string, payload []byte) (domain.Event, error) {
	e := domain.CouponPut{Code: code}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindVarint:
			e.Terms.Kind = domain.CouponKind(f.v)
		case 2<<3 | kindVarint:
			e.Terms.AmountMinor = int64(f.v)
		case 3<<3 | kindVarint:
			e.Terms.RateBps = int64(f.v)
		case 4<<3 | kindBytes:
			e.Terms.Currency = f.text()
		case 5<<3 | kindVarint:
			e.Terms.MinSubtotalMinor = int64(f.v)
		case 6<<3 | kindVarint:
			e.Terms.ValidFrom = timeOf(f.v)
		case 7<<3 | kindVarint:
			e.Terms.ValidUntil = timeOf(f.v)
		case 8<<3 | kindVarint:
			e.Terms.UserUsesMax = int64(f.v)
		case 9<<3 | kindVarint:
			e.Terms.UsesMax = int64(f.v)
		}
	}
	return e, f.err
}

func readUnits(payload []byte) (units int64, err error) {
	f := fieldsOf(payload)
	for f.next() {
		if f.tag == 1<<3|kindVarint {
			units = int64(f.v)
		}
	}
	return units, f.err
}

func readStockReceived(sku, _ string, payload []byte) (domain.Event, error) {
	e := domain.StockReceived{SKU: sku}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindVarint:
			e.Units = int64(f.v)
		case 2<<3 | kindVarint:
			e.ReceivedTotal = int64(f.v)
		}
	}
	return e, f.err
}

func readTransfer(payload []byte) (lane uint32, number uint64, units int64, err error) {
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindVarint:
			lane = uint32(f.v) // As protobuf reads a uint32: the low 32 bits.
		case 2<<3 | kindVarint:
			number = f.v
		case 3<<3 | kindVarint:
			units = int64(f.v)
		}
	}
	return lane, number, units, f.err
}

// fields steps through the fields of a message.
type fields struct {
	data []byte
	// copied is data as a string, the whole payload's copy; the event's texts are parts of it.
	copied string
	// at is where the next field begins.
	at int
	// tag is the number and wire type of this field, v its value if it is a varint; data[from:at] is its content if it
	// is of bytes.
	tag  uint64
	v    uint64
	from int
	// err ends the walk. The readers set it too.
	err error
}

func fieldsOf(payload []byte) fields { return fields{data: payload, copied: string(payload)} }

var errFieldNumber = errors.New("field number out of range")

func (f *fields) next() bool {
	if f.err != nil || f.at == len(f.data) {
		return false
	}
	number, kind, size := protowire.ConsumeTag(f.data[f.at:])
	if size < 0 {
		f.err = protowire.ParseError(size)
		return false
	}
	if number > protowire.MaxValidNumber {
		f.err = errFieldNumber
		return false
	}
	f.tag = protowire.EncodeTag(number, kind)
	f.at += size
	switch kind {
	case protowire.VarintType:
		f.v, size = protowire.ConsumeVarint(f.data[f.at:])
	case protowire.BytesType:
		var content []byte
		content, size = protowire.ConsumeBytes(f.data[f.at:])
		f.from = f.at + size - len(content)
	default:
		size = protowire.ConsumeFieldValue(number, kind, f.data[f.at:])
	}
	if size < 0 {
		f.err = protowire.ParseError(size)
		return false
	}
	f.at += size
	return true
}

var errNotUTF8 = errors.New("a text is not UTF-8")

// bytes is a copy of the content of this field, nil when it is empty.
func (f *fields) bytes() []byte { return append([]byte(nil), f.data[f.from:f.at]...) }

// text is the content of this field as text.
func (f *fields) text() string {
	text := f.copied[f.from:f.at]
	if !utf8.ValidString(text) {
		f.err = errNotUTF8
	}
	return text
}

// sub is the content of this field as a message.
func (f *fields) sub() fields {
	return fields{data: f.data[f.from:f.at], copied: f.copied[f.from:f.at]}
}

// countFields counts the fields of a tag, as far as the message can be read.
func countFields(payload []byte, tag uint64) int {
	count := 0
	f := fields{data: payload}
	for f.next() {
		if f.tag == tag {
			count++
		}
	}
	return count
}
