package api

import (
	"errors"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// violationsMax bounds the violations that an error lists; a request of 100 bad lines has hundreds.
const violationsMax = 20

// validator holds requests against the rules in their proto files.
type validator struct{ rules protovalidate.Validator }

func newValidator() *validator {
	rules, err := protovalidate.New(protovalidate.WithMessages(
		&orderv1.PlaceOrderRequest{}, &orderv1.GetOrderRequest{}, &orderv1.ListOrdersRequest{},
		&orderv1.CancelOrderRequest{}, &orderv1.WatchOrderRequest{},
		&catalogv1.PutProductRequest{}, &catalogv1.GetProductRequest{}, &catalogv1.ListProductsRequest{},
		&catalogv1.ReceiveStockRequest{}, &catalogv1.GetStockRequest{},
		&campaignv1.PutCampaignRequest{}, &campaignv1.GetCampaignRequest{}, &campaignv1.ListCampaignsRequest{},
		&campaignv1.PutCouponRequest{}, &campaignv1.GetCouponRequest{}, &campaignv1.ListCouponsRequest{},
	), protovalidate.WithDisableLazy())
	if err != nil {
		panic("api: bug: a rule in a proto file does not compile: " + err.Error())
	}
	return &validator{rules}
}

// check returns an INVALID_ARGUMENT fault that lists what is wrong with the request, or nil.
func (v *validator) check(request proto.Message) error {
	err := v.rules.Validate(request)
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) || len(invalid.Violations) == 0 {
		return err // A rule that fails to run: a bug.
	}
	violations := invalid.Violations[:min(len(invalid.Violations), violationsMax)]
	f := invalidArgument(protovalidate.FieldPathString(violations[0].Proto.GetField()), violations[0].Proto.GetMessage())
	f.fields = make([]*errdetails.BadRequest_FieldViolation, len(violations))
	for i, violation := range violations {
		f.fields[i] = &errdetails.BadRequest_FieldViolation{
			Field:       protovalidate.FieldPathString(violation.Proto.GetField()),
			Description: violation.Proto.GetMessage(),
			Reason:      violation.Proto.GetRuleId(),
		}
	}
	return f
}

// checkPlaceOrder checks the hottest request. Nearly all of them plainly keep the rules, which plainlyValid sees in a
// tenth of the time; the rules themselves explain what is wrong with the others.
func (v *validator) checkPlaceOrder(request *orderv1.PlaceOrderRequest) error {
	if !plainlyValid(request) {
		if err := v.check(request); err != nil {
			return err
		}
	}
	return duplicateSKU(request.Items)
}

// Rules of PlaceOrderRequest, as order.proto has them. A test holds plainlyValid against the real ones.
const (
	itemsMax     = 100
	itemUnitsMax = 1_000_000
	noteBytesMax = 1000
)

// plainlyValid reports whether the request keeps every rule of its proto file.
func plainlyValid(request *orderv1.PlaceOrderRequest) bool {
	if !identity.ValidSubject(request.RequestId) || (request.UserId != "" && !identity.ValidSubject(request.UserId)) ||
		(request.CampaignId != "" && !identity.ValidSubject(request.CampaignId)) || (request.CouponCode != "" && !identity.ValidSubject(request.CouponCode)) ||
		len(request.Items) == 0 || len(request.Items) > itemsMax || len(request.Note) > noteBytesMax {
		return false
	}
	for _, item := range request.Items {
		if quantity := item.GetQuantity(); quantity < 1 || quantity > itemUnitsMax || !identity.ValidSubject(item.GetSku()) {
			return false
		}
	}
	return true
}

// duplicateSKU refuses a SKU that is in two lines: which of the two was meant, nobody can say.
func duplicateSKU(items []*orderv1.ItemRequest) error {
	for i := range items {
		for j := range i { // itemsMax² / 2 comparisons at most; a map costs more for the usual line or two.
			if items[i].Sku == items[j].Sku {
				return invalidArgument(itemField(i, "sku"), "it is in another line too; add the quantities up")
			}
		}
	}
	return nil
}
