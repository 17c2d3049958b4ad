package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// The view payments-attention lists what of the lane's payments somebody may have to look at. What was settled leaves it, so
// it is small however many payments there were.
//
//	order id, 16 bytes; kind, 1 byte; id of the payment or refund → log time since when, 8 bytes; amount of a refund
//
// A refund that is under way has a key as well: whether it makes up for one that failed depends on its amount.

var attentionProjection = Projection{
	Name: "payments-attention", Version: 1, space: spaceAttention, open: openAttention,
	key: func(c *change) string {
		if !needsAttention(c) {
			return ""
		}
		return c.event.AggregateID
	},
	describe: func(suffix []byte) string {
		if len(suffix) <= len(domain.OrderID{})+1 {
			return fmt.Sprintf("key %x", suffix)
		}
		return fmt.Sprintf("payment or refund %s", suffix[len(domain.OrderID{})+1:])
	},
	print:     printAttention,
	partition: orderPartition,
	byOrder:   true,
}

// An AttentionKind says why somebody should look at a payment. The numbers are those of weir.payment.v1.AttentionKind.
type AttentionKind uint8

// Why somebody should look at a payment.
const (
	// AttentionUnknown: its outcome is not known.
	AttentionUnknown AttentionKind = 1
	// AttentionStray: money came that no order waited for, and has not gone back.
	AttentionStray AttentionKind = 2
	// AttentionRefundFailed: a refund failed, and none that is at least as large was started after it.
	AttentionRefundFailed AttentionKind = 3

	// refundUnderWay is no reason to look; it is only in the view.
	refundUnderWay AttentionKind = 0x80
)

// AttentionPageDefault and AttentionPageMax are entries a page.
const (
	AttentionPageDefault = 100
	AttentionPageMax     = 500
)

// openPayments is what a view of payments-attention has in memory: all of its keys, less the prefix. They are few.
type openPayments map[string][]byte

// attentionApplier notes what begins to need attention and removes what does no longer.
type attentionApplier struct {
	*view
	open openPayments
}

// openAttention reads the view's keys into memory.
func openAttention(v *view) (_ applier, err error) {
	entries, err := v.db.NewIter(&pebble.IterOptions{LowerBound: v.prefix[:], UpperBound: v.prefix.end()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	a := &attentionApplier{view: v, open: openPayments{}}
	for valid := entries.First(); valid; valid = entries.Next() {
		a.open[string(entries.Key()[prefixBytes:])] = bytes.Clone(entries.Value())
	}
	return a, entries.Error()
}

func (a *attentionApplier) finish() error { return nil }

// needsAttention reports whether an event may begin or end what needs attention.
func needsAttention(c *change) bool {
	switch c.event.Type {
	case stored.TypePaymentBecameUnknown, stored.TypePaymentAuthorized, stored.TypePaymentCaptured, stored.TypePaymentDeclined,
		stored.TypePaymentVoided, stored.TypeStrayPaymentFound, stored.TypeRefundStarted, stored.TypePaymentRefunded, stored.TypeRefundFailed:
		return true
	}
	return false
}

func (a *attentionApplier) apply(c *change) error {
	if !needsAttention(c) {
		return nil
	}
	if len(a.open) == 0 && (c.kind == kindPaymentCaptured || c.event.Type == stored.TypePaymentAuthorized) {
		return nil // As nearly every payment goes: nothing to remove.
	}
	event, err := stored.Decode(c.event.Type, c.event.Version, c.event.AggregateID, c.event.UserID, c.event.Payload)
	if err != nil {
		return err
	}
	switch e := any(event).(type) { // None but those above come here, so the set is not the closed one of all events.
	case domain.PaymentBecameUnknown:
		return a.openPayment(c, AttentionUnknown, e.PaymentID, domain.Money{})
	case domain.PaymentAuthorized:
		return a.closePayment(c, AttentionUnknown, e.PaymentID)
	case domain.PaymentCaptured:
		return a.closePayment(c, AttentionUnknown, e.PaymentID)
	case domain.PaymentDeclined:
		return a.closePayment(c, AttentionUnknown, e.PaymentID)
	case domain.PaymentVoided:
		return a.closePayment(c, AttentionUnknown, e.PaymentID)
	case domain.StrayPaymentFound:
		return errors.Join(
			a.closePayment(c, AttentionUnknown, e.PaymentID),
			a.openPayment(c, AttentionStray, e.PaymentID, domain.Money{}))
	case domain.RefundStarted:
		return errors.Join(a.madeUp(c, e), a.openPayment(c, refundUnderWay, e.RefundID, e.Amount))
	case domain.PaymentRefunded:
		return errors.Join(
			a.closePayment(c, refundUnderWay, e.RefundID),
			a.closePayment(c, AttentionRefundFailed, e.RefundID),
			a.closePayment(c, AttentionStray, refundPaymentID(e.RefundID)))
	case domain.RefundFailed:
		amount := attentionAmount(a.open[string(attentionKey(c.order, refundUnderWay, e.RefundID))])
		return errors.Join(
			a.closePayment(c, refundUnderWay, e.RefundID),
			a.openPayment(c, AttentionRefundFailed, e.RefundID, amount))
	}
	return nil
}

// madeUp removes failed refunds of the payment that are no larger than the one that starts.
func (a *attentionApplier) madeUp(c *change, started domain.RefundStarted) error {
	of := string(attentionKey(c.order, AttentionRefundFailed, started.PaymentID+"-r"))
	var done []string
	for key, value := range a.open {
		if strings.HasPrefix(key, of) && attentionAmount(value).Minor <= started.Amount.Minor {
			done = append(done, key)
		}
	}
	slices.Sort(done) // The same log makes the same batches.
	for _, key := range done {
		delete(a.open, key)
		if err := a.batch.Delete(a.prefix.key([]byte(key)), nil); err != nil {
			return err
		}
	}
	return nil
}

// refundPaymentID is the payment whose refund it is: its id without "-r" and the number.
func refundPaymentID(refundID string) string {
	if i := strings.LastIndex(refundID, "-r"); i >= 0 {
		return refundID[:i]
	}
	return refundID
}

func (a *attentionApplier) openPayment(c *change, kind AttentionKind, id string, amount domain.Money) error {
	key := attentionKey(c.order, kind, id)
	value := binary.BigEndian.AppendUint64(nil, uint64(c.at.UnixNano()))
	if amount != (domain.Money{}) {
		value = append(binary.BigEndian.AppendUint64(value, uint64(amount.Minor)), amount.Currency...)
	}
	a.open[string(key)] = value
	return a.batch.Set(a.prefix.key(key), value, nil)
}

func (a *attentionApplier) closePayment(c *change, kind AttentionKind, id string) error {
	key := attentionKey(c.order, kind, id)
	if _, open := a.open[string(key)]; !open {
		return nil
	}
	delete(a.open, string(key))
	return a.batch.Delete(a.prefix.key(key), nil)
}

// printAttention writes a value of the view as people do.
func printAttention(suffix, value []byte) (string, error) {
	if len(suffix) <= len(domain.OrderID{}) || len(value) < 8 {
		return "", errAttentionDamaged
	}
	kind := "?"
	switch AttentionKind(suffix[len(domain.OrderID{})]) {
	case AttentionUnknown:
		kind = "its outcome is not known"
	case AttentionStray:
		kind = "stray money"
	case AttentionRefundFailed:
		kind = "refund failed"
	case refundUnderWay:
		kind = "refund under way"
	}
	text := fmt.Sprintf("%s since %s", kind, logTime(value).Format(time.RFC3339Nano))
	if amount := attentionAmount(value); amount != (domain.Money{}) {
		text += fmt.Sprintf(", %d %s", amount.Minor, amount.Currency)
	}
	return text, nil
}

// errAttentionDamaged says that a key or value is not what attentionApplier wrote.
var errAttentionDamaged = errors.New("the view of payments that need attention is damaged")

func attentionKey(id domain.OrderID, kind AttentionKind, part string) []byte {
	key := append(make([]byte, 0, len(id)+1+len(part)), id[:]...)
	return append(append(key, byte(kind)), part...)
}

// attentionAmount is the amount of a refund that a value holds.
func attentionAmount(value []byte) domain.Money {
	if len(value) < 16 {
		return domain.Money{}
	}
	return domain.Money{Currency: string(value[16:]), Minor: int64(binary.BigEndian.Uint64(value[8:]))}
}

// An Attention is one thing that somebody should look at.
type Attention struct {
	Kind    AttentionKind
	OrderID domain.OrderID
	UserID  string
	Payment domain.Payment
	// Refund that failed; zero for the other kinds.
	Refund domain.Refund
	// Since is the log time at which it came up.
	Since time.Time
}

// An AttentionPage is a page, by order, the oldest first.
type AttentionPage struct {
	Items []Attention
	// Next is the token of the next page, empty at the end.
	Next string
}

// An AttentionQuery asks for a page of what needs attention.
type AttentionQuery struct {
	// PageSize is at most AttentionPageMax; 0 means AttentionPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// NeedingAttention returns a page of what needs attention, of all lanes. Its freshness is that of the lane that is furthest
// behind.
func (v *Views) NeedingAttention(ctx context.Context, query AttentionQuery, min Min) (AttentionPage, Freshness, error) {
	const binding = "payments-attention"
	size := pageSize(query.PageSize, AttentionPageDefault, AttentionPageMax)
	var after []byte
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding)
		if err != nil {
			return AttentionPage{}, Freshness{}, err
		}
		after = append(cursor, 0) // The first key after it.
	}
	reached, err := v.await(ctx, min, &attentionProjection, &ordersProjection)
	if err != nil {
		return AttentionPage{}, Freshness{}, err
	}
	fresh := v.furthestBehind(&attentionProjection, &ordersProjection).waited(reached).parked(v.parksAny(&attentionProjection))
	var found []attentionEntry
	for _, r := range v.runners {
		// One more than the page holds, to see whether more follow.
		if found, err = v.readAttention(ctx, r, after, size+1, found); err != nil {
			return AttentionPage{}, Freshness{}, err
		}
	}
	slices.SortFunc(found, func(a, b attentionEntry) int { return bytes.Compare(a.key, b.key) })
	var page AttentionPage
	if len(found) > size {
		found = found[:size]
		page.Next = v.seal.seal(found[size-1].key, binding)
	}
	for i := range found {
		item, ok, err := v.attention(ctx, &found[i])
		if err != nil {
			return AttentionPage{}, Freshness{}, err
		}
		if ok {
			page.Items = append(page.Items, item)
		}
	}
	return page, fresh, nil
}

// attentionEntry is one entry of a lane's view.
type attentionEntry struct {
	runner *Runner
	// key less its prefix.
	key   []byte
	since time.Time
}

// readAttention appends up to limit entries of a lane from the key after on.
func (v *Views) readAttention(ctx context.Context, r *Runner, after []byte, limit int, dst []attentionEntry) (_ []attentionEntry, err error) {
	p := r.prefix(&attentionProjection)
	entries, err := v.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p.key(after), UpperBound: p.end()})
	if err != nil {
		return dst, fmt.Errorf("read the payments that need attention: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.First(); valid && limit > 0; valid = entries.Next() {
		key, value := entries.Key()[prefixBytes:], entries.Value()
		if len(key) <= len(domain.OrderID{})+1 || len(value) < 8 {
			return dst, errAttentionDamaged
		}
		if AttentionKind(key[len(domain.OrderID{})]) == refundUnderWay {
			continue
		}
		dst = append(dst, attentionEntry{
			runner: r, key: bytes.Clone(key), since: logTime(value),
		})
		limit--
	}
	return dst, entries.Error()
}

// attention reads what an entry is about off its order. The order may have moved on since: false when nothing is left to
// look at.
func (v *Views) attention(ctx context.Context, e *attentionEntry) (Attention, bool, error) {
	item := Attention{OrderID: domain.OrderID(e.key[:len(domain.OrderID{})]), Kind: AttentionKind(e.key[len(domain.OrderID{})]), Since: e.since}
	part := string(e.key[len(domain.OrderID{})+1:])
	parked, _ := e.runner.parksOrder(item.OrderID, "")
	view, _, err := e.runner.orderOf(ctx, item.OrderID, "", 0)
	if parked && errors.Is(err, ErrNotFound) {
		return item, false, nil
	}
	if err != nil {
		return item, false, fmt.Errorf("order %s of the payments that need attention: %w", item.OrderID, err)
	}
	order := &view.Order
	item.UserID = order.UserID
	paymentID := part
	if item.Kind == AttentionRefundFailed {
		paymentID = refundPaymentID(part)
		i := slices.IndexFunc(order.Refunds, func(r domain.Refund) bool { return r.ID == part })
		if i < 0 || order.Refunds[i].State != domain.RefundHasFailed {
			return item, false, nil
		}
		item.Refund = order.Refunds[i]
	}
	i := slices.IndexFunc(order.Payments, func(p domain.Payment) bool { return p.ID == paymentID })
	if i < 0 || (item.Kind == AttentionUnknown && order.Payments[i].State != domain.PayUnknown) {
		return item, false, nil
	}
	item.Payment = order.Payments[i]
	return item, true, nil
}
