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

func (r *jsonReader) placeOrder(m *orderv1.PlaceOrderRequest) {
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "requestId", "request_id":
			m.RequestId = r.text()
			return 1
		case "userId", "user_id":
			m.UserId = r.text()
			return 2
		case "items":
			r.items(m)
			return 3
		case "note":
			m.Note = r.text()
			return 4
		case "campaignId", "campaign_id":
			m.CampaignId = r.text()
			return 6
		case "couponCode", "coupon_code":
			m.CouponCode = r.text()
			return 7
		case "shippingAddress", "shipping_address":
			m.ShippingAddress = r.address()
			return 10
		case "contact":
			m.Contact = r.contact()
			return 11
		}
		return 0
	})
}

func (r *jsonReader) address() *orderv1.ShippingAddress {
	m := &orderv1.ShippingAddress{}
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "recipient":
			m.Recipient = r.text()
			return 1
		case "lines":
			m.Lines = r.texts()
			return 2
		case "postalCode", "postal_code":
			m.PostalCode = r.text()
			return 3
		case "city":
			m.City = r.text()
			return 4
		case "region":
			m.Region = r.text()
			return 5
		case "countryCode", "country_code":
			m.CountryCode = r.text()
			return 6
		}
		return 0
	})
	return m
}

func (r *jsonReader) contact() *orderv1.Contact {
	m := &orderv1.Contact{}
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "email":
			m.Email = r.text()
			return 1
		case "phone":
			m.Phone = r.text()
			return 2
		}
		return 0
	})
	return m
}

// texts reads a list of texts.
func (r *jsonReader) texts() (list []string) {
	r.list(func() { list = append(list, r.text()) })
	return list
}

func (r *jsonReader) items(m *orderv1.PlaceOrderRequest) {
	r.list(func() {
		item := &orderv1.ItemRequest{}
		r.object(func(name []byte) (number uint) {
			switch string(name) {
			case "sku":
				item.Sku = r.text()
				return 1
			case "quantity":
				item.Quantity = r.int64()
				return 2
			}
			return 0
		})
		m.Items = append(m.Items, item)
	})
}

func (r *jsonReader) cancelOrder(m *orderv1.CancelOrderRequest) {
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "requestId", "request_id":
			m.RequestId = r.text()
			return 1
		case "orderId", "order_id":
			m.OrderId = r.text()
			return 2
		case "reason":
			m.Reason = r.text()
			return 3
		}
		return 0
	})
}

func (r *jsonReader) getOrder(m *orderv1.GetOrderRequest) {
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "orderId", "order_id":
			m.OrderId = r.text()
			return 1
		case "minRevision", "min_revision":
			m.MinRevision = r.revision()
			return 2
		}
		return 0
	})
}

func (r *jsonReader) revision() *typev1.Revision {
	m := &typev1.Revision{}
	r.object(func(name []byte) (number uint) {
		switch string(name) {
		case "lane":
			lane := r.int64()
			if lane < 0 || lane > math.MaxUint32 {
				r.unusual = true
			}
			m.Lane = uint32(lane)
			return 1
		case "commit":
			commit := r.int64()
			if commit < 0 {
				r.unusual = true
			}
			m.Commit = uint64(commit)
			return 2
		}
		return 0
	})
	return m
}

// object reads an object. field reads the value of a name and returns the field's number, 0 for one that it does not know. A field
// that comes twice is an error that protojson words.
func (r *jsonReader) object(field func(name []byte) (number uint)) {
	var seen uint32 // by number
	for more := r.openObject(); more; more = r.nextField() {
		number := field(r.key())
		if number == 0 || seen&(1<<number) != 0 {
			r.unusual = true
		}
		seen |= 1 << number
	}
}

// list reads a list; element reads one of it.
func (r *jsonReader) list(element func()) {
	if !r.take('[') {
		return
	}
	if r.peek() == ']' {
		r.at++
		return
	}
	for !r.unusual {
		element()
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
