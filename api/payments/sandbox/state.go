package sandbox

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/weirhq/weir/api/payments"
)

// payment is one payment. Its charge is nil when it was voided before it arrived.
type payment struct {
	charge      *EntryCharge
	reference   string
	state       payments.State
	amount      int64 // Reserved or taken, in minor units.
	captured    int64
	refunded    int64
	refunds     []refund
	declineCode string
}

type refund struct {
	id, reference string
	amount        int64
	state         payments.RefundState
	failureCode   string
}

// The kinds of entries that are no states of a payment.
const (
	kindRefunded     = "refunded"
	kindRefundFailed = "refund_failed"
)

// record makes an entry happen: it is numbered, written down, applied and told. REQUIRES: mu is held.
func (s *Server) record(entry Entry) error {
	entry.Number, entry.At = uint64(len(s.entries))+1, s.options.Now().UTC()
	if err := s.journal.append(journalLine{Entry: &entry}); err != nil {
		return err
	}
	if err := s.apply(entry); err != nil {
		panic("sandbox: it decided what cannot be: " + err.Error())
	}
	s.plan(entry)
	return nil
}

// apply takes in an entry, when it happens or when the journal is read. It checks what must hold (I4).
func (s *Server) apply(entry Entry) error {
	p := s.payments[entry.PaymentID]
	if p == nil {
		p = &payment{charge: entry.Charge, reference: fmt.Sprintf("sbx_%d", entry.Number)}
		s.payments[entry.PaymentID] = p
	}
	state, isState := payments.ParseState(entry.Kind)
	switch {
	case isState && p.state.Final():
		return fmt.Errorf("payment %s is %s and cannot be %s", entry.PaymentID, p.state, state)
	case isState:
		p.state = state
		switch state {
		case payments.StateAuthorized, payments.StatePending:
			p.amount = entry.Amount.Minor
		case payments.StateCaptured:
			p.captured = entry.Amount.Minor
			if entry.Charge != nil || p.amount == 0 {
				p.amount = entry.Amount.Minor
			}
			total := s.total(entry.Amount.Currency)
			total.Captured, total.Captures = total.Captured+entry.Amount.Minor, total.Captures+1
		case payments.StateDeclined:
			p.amount, p.declineCode = 0, entry.Code
		case payments.StateVoided:
		case payments.StateNone:
			return errors.New("nothing happened in an entry")
		}
	case entry.Kind == kindRefunded, entry.Kind == kindRefundFailed:
		r := refund{id: entry.RefundID, reference: fmt.Sprintf("sbxr_%d", entry.Number), amount: entry.Amount.Minor, state: payments.RefundSucceeded}
		if entry.Kind == kindRefundFailed {
			r.state, r.failureCode = payments.RefundFailed, entry.Code
		} else {
			p.refunded += r.amount
			total := s.total(entry.Amount.Currency)
			total.Refunded, total.Refunds = total.Refunded+r.amount, total.Refunds+1
		}
		if p.refunded > p.captured {
			return fmt.Errorf("payment %s has refunds of %d and a capture of %d", entry.PaymentID, p.refunded, p.captured)
		}
		p.refunds = append(p.refunds, r)
	default:
		return fmt.Errorf("an entry of the unknown kind %q", entry.Kind)
	}
	s.entries = append(s.entries, entry)
	return nil
}

func (s *Server) total(currency string) *LedgerTotal {
	if s.totals[currency] == nil {
		s.totals[currency] = &LedgerTotal{Currency: currency}
	}
	return s.totals[currency]
}

// answer answers with a payment as it is.
func (s *Server) answer(id string) outcome {
	p := s.payments[id]
	body := wirePayment{PaymentID: id, Reference: p.reference, State: p.state.String(), DeclineCode: p.declineCode}
	if p.declineCode != "" {
		body.DeclineMessage = declineMessage(p.declineCode)
	}
	if p.charge != nil {
		currency := p.charge.Asked.Currency
		body.Amount, body.Captured, body.Refunded = wireMoney{currency, p.amount}, wireMoney{currency, p.captured}, wireMoney{currency, p.refunded}
	}
	for i := range p.refunds {
		body.Refunds = append(body.Refunds, p.wireRefund(i))
	}
	return outcome{status: http.StatusOK, body: body}
}

func (p *payment) wireRefund(place int) wireRefund {
	r := p.refunds[place]
	return wireRefund{
		RefundID: r.id, Reference: r.reference, State: r.state.String(), FailureCode: r.failureCode,
		Amount: wireMoney{p.charge.Asked.Currency, r.amount},
	}
}

func declineMessage(code string) string {
	if code == "insufficient_funds" {
		return "There is not enough money on the account."
	}
	return "The bank said no."
}
