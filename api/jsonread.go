package api

import (
	"bytes"
	"math"
	"unicode/utf8"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// jsonReader reads messages from plain JSON: known fields, each once, texts without escapes, integers without fraction or
// exponent, no null. Whatever else there is, good or bad, is unusual; from then on the reader only stands still.
type jsonReader struct {
	data    []byte
	at      int
	unusual bool
}

// The fields of a message that were read, by number; a field that comes twice is an error that protojson words.
type seenFields uint32

func (r *jsonReader) once(seen *seenFields, number uint) {
	if *seen&(1<<number) != 0 {
		r.unusual = true
	}
	*seen |= 1 << number
}

func (r *jsonReader) placeOrder(m *orderv1.PlaceOrderRequest) {
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "requestId", "request_id":
			r.once(&seen, 1)
			m.RequestId = r.text()
		case "userId", "user_id":
			r.once(&seen, 2)
			m.UserId = r.text()
		case "items":
			r.once(&seen, 3)
			r.items(m)
		case "note":
			r.once(&seen, 4)
			m.Note = r.text()
		case "campaignId", "campaign_id":
			r.once(&seen, 6)
			m.CampaignId = r.text()
		case "couponCode", "coupon_code":
			r.once(&seen, 7)
			m.CouponCode = r.text()
		case "shippingAddress", "shipping_address":
			r.once(&seen, 10)
			m.ShippingAddress = r.address()
		case "contact":
			r.once(&seen, 11)
			m.Contact = r.contact()
		default:
			r.unusual = true
		}
	}
}

func (r *jsonReader) address() *orderv1.ShippingAddress {
	m := &orderv1.ShippingAddress{}
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "recipient":
			r.once(&seen, 1)
			m.Recipient = r.text()
		case "lines":
			r.once(&seen, 2)
			m.Lines = r.texts()
		case "postalCode", "postal_code":
			r.once(&seen, 3)
			m.PostalCode = r.text()
		case "city":
			r.once(&seen, 4)
			m.City = r.text()
		case "region":
			r.once(&seen, 5)
			m.Region = r.text()
		case "countryCode", "country_code":
			r.once(&seen, 6)
			m.CountryCode = r.text()
		default:
			r.unusual = true
		}
	}
	return m
}

func (r *jsonReader) contact() *orderv1.Contact {
	m := &orderv1.Contact{}
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "email":
			r.once(&seen, 1)
			m.Email = r.text()
		case "phone":
			r.once(&seen, 2)
			m.Phone = r.text()
		default:
			r.unusual = true
		}
	}
	return m
}

// texts reads a list of texts.
func (r *jsonReader) texts() (list []string) {
	if !r.take('[') {
		return nil
	}
	if r.peek() == ']' {
		r.at++
		return nil
	}
	for !r.unusual {
		list = append(list, r.text())
		switch r.peek() {
		case ',':
			r.at++
		case ']':
			r.at++
			return list
		default:
			r.unusual = true
		}
	}
	return list
}

func (r *jsonReader) items(m *orderv1.PlaceOrderRequest) {
	if !r.take('[') {
		return
	}
	if r.peek() == ']' {
		r.at++
		return
	}
	for !r.unusual {
		item := &orderv1.ItemRequest{}
		var seen seenFields
		for more := r.openObject(); more; more = r.nextField() {
			switch string(r.key()) {
			case "sku":
				r.once(&seen, 1)
				item.Sku = r.text()
			case "quantity":
				r.once(&seen, 2)
				item.Quantity = r.int64()
			default:
				r.unusual = true
			}
		}
		m.Items = append(m.Items, item)
		switch r.peek() {
		case ',':
			r.at++
		case ']':
			r.at++
			return
		default:
			r.unusual = true
		}
	}
}

func (r *jsonReader) cancelOrder(m *orderv1.CancelOrderRequest) {
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "requestId", "request_id":
			r.once(&seen, 1)
			m.RequestId = r.text()
		case "orderId", "order_id":
			r.once(&seen, 2)
			m.OrderId = r.text()
		case "reason":
			r.once(&seen, 3)
			m.Reason = r.text()
		default:
			r.unusual = true
		}
	}
}

func (r *jsonReader) getOrder(m *orderv1.GetOrderRequest) {
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "orderId", "order_id":
			r.once(&seen, 1)
			m.OrderId = r.text()
		case "minRevision", "min_revision":
			r.once(&seen, 2)
			m.MinRevision = r.revision()
		default:
			r.unusual = true
		}
	}
}

func (r *jsonReader) revision() *typev1.Revision {
	m := &typev1.Revision{}
	var seen seenFields
	for more := r.openObject(); more; more = r.nextField() {
		switch string(r.key()) {
		case "lane":
			r.once(&seen, 1)
			lane := r.int64()
			if lane < 0 || lane > math.MaxUint32 {
				r.unusual = true
			}
			m.Lane = uint32(lane)
		case "commit":
			r.once(&seen, 2)
			commit := r.int64()
			if commit < 0 {
				r.unusual = true
			}
			m.Commit = uint64(commit)
		default:
			r.unusual = true
		}
	}
	return m
}

// openObject reads an object's brace, and reports whether a field follows.
func (r *jsonReader) openObject() bool {
	if !r.take('{') {
		return false
	}
	if r.peek() == '}' {
		r.at++
		return false
	}
	return !r.unusual
}

// nextField reads what is after a field, and reports whether another one follows.
func (r *jsonReader) nextField() bool {
	if r.unusual {
		return false
	}
	switch r.peek() {
	case ',':
		r.at++
		return true
	case '}':
		r.at++
		return false
	default:
		r.unusual = true
		return false
	}
}

// key reads a field's name and its colon. It is good until the data changes.
func (r *jsonReader) key() []byte {
	name := r.raw()
	r.take(':')
	return name
}

func (r *jsonReader) text() string { return string(r.raw()) }

// raw reads a text, and returns what is between its quotes.
func (r *jsonReader) raw() []byte {
	if !r.take('"') {
		return nil
	}
	rest := r.data[r.at:]
	length := bytes.IndexByte(rest, '"')
	if length < 0 {
		r.unusual = true
		return nil
	}
	raw := rest[:length]
	ascii := true
	for _, c := range raw {
		if c < ' ' || c == '\\' {
			r.unusual = true
			return nil
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if !ascii && !utf8.Valid(raw) {
		r.unusual = true
		return nil
	}
	r.at += length + 1
	return raw
}

// int64DigitsMax is how many digits an integer may have without a thought of overflow.
const int64DigitsMax = 18

// int64 reads an integer, which may be in quotes.
func (r *jsonReader) int64() int64 {
	quoted := r.peek() == '"'
	if quoted {
		r.at++
	}
	negative := r.at < len(r.data) && r.data[r.at] == '-'
	if negative {
		r.at++
	}
	start := r.at
	var value int64
	for ; r.at < len(r.data) && '0' <= r.data[r.at] && r.data[r.at] <= '9'; r.at++ {
		if r.at-start == int64DigitsMax {
			r.unusual = true
			return 0
		}
		value = value*10 + int64(r.data[r.at]-'0')
	}
	if digits := r.at - start; digits == 0 || (r.data[start] == '0' && (digits > 1 || negative)) {
		r.unusual = true
		return 0
	}
	if quoted {
		if r.at >= len(r.data) || r.data[r.at] != '"' {
			r.unusual = true
			return 0
		}
		r.at++
	}
	if negative {
		return -value
	}
	return value // What follows is looked at by whoever asked: a fraction or an exponent is neither a comma nor an end.
}

// peek passes over white space and returns the next character, 0 at the end.
func (r *jsonReader) peek() byte {
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take reads one character that has to be there.
func (r *jsonReader) take(c byte) bool {
	if r.unusual || r.peek() != c {
		r.unusual = true
		return false
	}
	r.at++
	return true
}

// end makes sure that nothing follows.
func (r *jsonReader) end() {
	if r.peek(); r.at != len(r.data) {
		r.unusual = true
	}
}
