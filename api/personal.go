package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	personalv1 "github.com/weirhq/weir/proto/stored/weir/personal/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// What an order knows of a person is one blob: a version, 0x01, and a weir.personal.v1.Personal. It is sealed under the
// user's key as a whole, so that one destroyed key erases it and nobody has to know its parts. An order of before there was a
// blob has a sealed note alone, which is its text and nothing else.
const personalVersion = 1

// personal is what an order knows of a person, opened. The zero personal is nothing.
type personal struct {
	note    string
	address *orderv1.ShippingAddress
	contact *orderv1.Contact
	// erased says that there was something once.
	erased bool
}

// personalOf returns what is personal in a request, false when nothing is.
func personalOf(request *orderv1.PlaceOrderRequest) (personal, bool) {
	p := personal{note: request.Note, address: request.ShippingAddress, contact: request.Contact}
	if p.contact.GetEmail() == "" && p.contact.GetPhone() == "" {
		p.contact = nil // Nothing in it, whether it was sent or not.
	}
	return p, p.note != "" || p.address != nil || p.contact != nil
}

// encode returns the blob.
func (p *personal) encode() ([]byte, error) {
	m := &personalv1.Personal{Note: p.note}
	if a := p.address; a != nil {
		m.ShippingAddress = &personalv1.Address{
			Recipient: a.Recipient, Lines: a.Lines, PostalCode: a.PostalCode, City: a.City, Region: a.Region, CountryCode: a.CountryCode,
		}
	}
	if c := p.contact; c != nil {
		m.Contact = &personalv1.Contact{Email: c.Email, Phone: c.Phone}
	}
	return proto.MarshalOptions{}.MarshalAppend([]byte{personalVersion}, m)
}

var errPersonalVersion = errors.New("a newer program wrote it")

// readPersonal reads a blob.
func readPersonal(blob []byte) (*personalv1.Personal, error) {
	if len(blob) == 0 || blob[0] != personalVersion {
		return nil, errPersonalVersion
	}
	m := &personalv1.Personal{}
	return m, proto.Unmarshal(blob[1:], m)
}

func newPersonal(m *personalv1.Personal) personal {
	p := personal{note: m.GetNote()}
	if a := m.GetShippingAddress(); a != nil {
		p.address = &orderv1.ShippingAddress{
			Recipient: a.Recipient, Lines: a.Lines, PostalCode: a.PostalCode, City: a.City, Region: a.Region, CountryCode: a.CountryCode,
		}
	}
	if c := m.GetContact(); c != nil {
		p.contact = &orderv1.Contact{Email: c.Email, Phone: c.Phone}
	}
	return p
}

// openPersonal returns what an order knows of a person. What does not open is not shown: the order is worth more.
func (h *Handler) openPersonal(ctx context.Context, order *domain.Order) (personal, error) {
	sealed := order.SealedPersonal
	if len(sealed) == 0 {
		sealed = order.SealedNote
	}
	if len(sealed) == 0 {
		return personal{}, nil
	}
	text, err := h.sealer.Open(ctx, order.UserID, sealed)
	switch {
	case errors.Is(err, sealing.ErrErased):
		return personal{erased: true}, nil
	case errors.Is(err, sealing.ErrDamaged):
	case err != nil:
		return personal{}, &keysError{err}
	case len(order.SealedPersonal) == 0:
		return personal{note: string(text)}, nil
	default:
		var m *personalv1.Personal
		if m, err = readPersonal(text); err == nil {
			return newPersonal(m), nil
		}
	}
	h.logger.LogAttrs(ctx, slog.LevelError, "personal data does not open", slog.Any("order", order.ID), slog.Any("error", err))
	return personal{}, nil
}

// seal puts what is personal into the command, and returns the MAC of it for the request's fingerprint.
func (h *Handler) seal(ctx context.Context, p *personal, requestID string, command *domain.PlaceOrder) (personalMAC, error) {
	blob, err := p.encode()
	if err != nil {
		return personalMAC{}, fmt.Errorf("write personal data down: %w", err)
	}
	if command.SealedPersonal, err = h.sealer.Seal(ctx, command.UserID, blob); err != nil {
		return personalMAC{}, &keysError{err}
	}
	command.SealKey = domain.KeyID(sealing.KeyOf(command.SealedPersonal))
	// After the blob: when the key is erased between the two, the blob's is the erased one, and the lane says so.
	mac, err := h.sealer.MAC(ctx, command.UserID, canonicalPersonal(requestID, p))
	if err != nil {
		return personalMAC{}, &keysError{err}
	}
	return mac, nil
}
