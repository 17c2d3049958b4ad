package api

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// TestNoFieldOfAnOrderIsDroppedByTheShortWay sets each field of an order and its items alone: what is written has it, or
// the message takes the long way.
func TestNoFieldOfAnOrderIsDroppedByTheShortWay(t *testing.T) {
	check := func(name string, fields protoreflect.FieldDescriptors, set func(field protoreflect.FieldDescriptor, value func(protoreflect.Message) protoreflect.Value) *orderv1.Order) {
		empty, _ := writeJSON(nil, &orderv1.PlaceOrderResponse{Order: set(nil, nil)})
		for i := range fields.Len() {
			field := fields.Get(i)
			order := set(field, func(m protoreflect.Message) protoreflect.Value { return someValue(m, field) })
			if out, ok := writeJSON(nil, &orderv1.PlaceOrderResponse{Order: order}); ok && len(out) <= len(empty) {
				t.Errorf("%s.%s is not in %s", name, field.Name(), out)
			}
		}
	}
	check("Order", (&orderv1.Order{}).ProtoReflect().Descriptor().Fields(), func(field protoreflect.FieldDescriptor, value func(protoreflect.Message) protoreflect.Value) *orderv1.Order {
		order := &orderv1.Order{}
		if field != nil {
			order.ProtoReflect().Set(field, value(order.ProtoReflect()))
		}
		return order
	})
	check("OrderItem", (&orderv1.OrderItem{}).ProtoReflect().Descriptor().Fields(), func(field protoreflect.FieldDescriptor, value func(protoreflect.Message) protoreflect.Value) *orderv1.Order {
		item := &orderv1.OrderItem{}
		if field != nil {
			item.ProtoReflect().Set(field, value(item.ProtoReflect()))
		}
		return &orderv1.Order{Items: []*orderv1.OrderItem{item}}
	})
}

// someValue returns a value of a field that is not its zero.
func someValue(m protoreflect.Message, field protoreflect.FieldDescriptor) protoreflect.Value {
	if field.IsList() {
		list := m.NewField(field)
		list.List().AppendMutable()
		return list
	}
	switch field.Kind() {
	case protoreflect.MessageKind:
		return m.NewField(field)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	default:
		return protoreflect.ValueOfInt64(1)
	}
}
