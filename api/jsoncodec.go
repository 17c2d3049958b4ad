package api

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// jsonCodec is Connect's JSON codec with a limit on nesting, and a shorter way for the messages that every order sends.
// Unknown fields are ignored, so that callers and servers may differ by a version.
//
// protojson says what is right. readJSON and writeJSON know the plain form of a few messages; at anything unusual they
// give up, and protojson reads or writes the message from the start. So they decide nothing: a text that they take means
// what protojson says it does, and what they write is what it writes, without the spaces. Tests hold them against it.
type jsonCodec struct {
	name      string
	unmarshal protojson.UnmarshalOptions
}

func newJSONCodec(name string, nestingMax int) *jsonCodec {
	return &jsonCodec{name: name, unmarshal: protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: nestingMax}}
}

// Name implements connect.Codec.
func (c *jsonCodec) Name() string { return c.name }

// Marshal implements connect.Codec.
func (c *jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend appends the message's JSON to dst.
func (c *jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	if out, ok := writeJSON(dst, message); ok {
		return out, nil
	}
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a protobuf message", message)
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal implements connect.Codec.
func (c *jsonCodec) Unmarshal(data []byte, message any) error {
	if readJSON(data, message) {
		return nil
	}
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is not a protobuf message", message)
	}
	if len(data) == 0 {
		return errors.New("zero-length payload is not a valid JSON object")
	}
	return c.unmarshal.Unmarshal(data, m)
}

// writeJSON appends the message to dst and reports true, or reports false and leaves dst's bytes as they were.
func writeJSON(dst []byte, message any) ([]byte, bool) {
	w := jsonWriter{out: dst}
	switch m := message.(type) {
	case *orderv1.PlaceOrderResponse:
		w.orderAndRevision(m != nil, m.GetOrder(), m.GetRevision())
	case *orderv1.CancelOrderResponse:
		w.orderAndRevision(m != nil, m.GetOrder(), m.GetRevision())
	case *orderv1.GetOrderResponse:
		w.orderAndFreshness(m != nil, m.GetOrder(), m.GetFreshness())
	case *orderv1.WatchOrderResponse:
		w.orderAndFreshness(m != nil, m.GetOrder(), m.GetFreshness())
	case *orderv1.ListOrdersResponse:
		w.listOrders(m)
	default:
		return dst, false
	}
	if w.unusual {
		return dst, false
	}
	return w.out, true
}

// readJSON fills the message from a text and reports true, or reports false and leaves the message in no useful state.
func readJSON(data []byte, message any) bool {
	r := jsonReader{data: data}
	switch m := message.(type) {
	case *orderv1.PlaceOrderRequest:
		m.Reset()
		r.placeOrder(m)
	case *orderv1.CancelOrderRequest:
		m.Reset()
		r.cancelOrder(m)
	case *orderv1.GetOrderRequest:
		m.Reset()
		r.getOrder(m)
	default:
		return false
	}
	r.end()
	return !r.unusual
}
