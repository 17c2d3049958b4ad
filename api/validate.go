package api

import (
	"errors"
	"strings"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/domain"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	pointsv1 "github.com/weirhq/weir/proto/weir/points/v1"
	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	userv1 "github.com/weirhq/weir/proto/weir/user/v1"
	webhookv1 "github.com/weirhq/weir/proto/weir/webhook/v1"
)

// violationsMax bounds the violations that an error lists; a request of 100 bad lines has hundreds.
const violationsMax = 20

// validator holds requests against the rules in their proto files.
type validator struct{ rules protovalidate.Validator }

func newValidator() *validator {
	rules, err := protovalidate.New(protovalidate.WithMessages(
		&orderv1.PlaceOrderRequest{}, &orderv1.GetOrderRequest{}, &orderv1.ListOrdersRequest{},
		&orderv1.CancelOrderRequest{}, &orderv1.WatchOrderRequest{}, &orderv1.WatchUserOrdersRequest{}, &orderv1.ShipItemsRequest{}, &orderv1.ConfirmDeliveryRequest{},
		&orderv1.RequestReturnRequest{}, &orderv1.ReceiveReturnRequest{}, &orderv1.AddNoteRequest{}, &orderv1.SearchOrdersRequest{}, &orderv1.GetTimelineRequest{},
		&paymentv1.StartPaymentRequest{}, &paymentv1.CapturePaymentRequest{}, &paymentv1.VoidPaymentRequest{},
		&paymentv1.RefundPaymentRequest{}, &paymentv1.GetPaymentRequest{}, &paymentv1.ListPaymentsNeedingAttentionRequest{},
		&catalogv1.PutProductRequest{}, &catalogv1.GetProductRequest{}, &catalogv1.ListProductsRequest{},
		&catalogv1.ReceiveStockRequest{}, &catalogv1.PreheatStockRequest{}, &catalogv1.GetStockRequest{}, &catalogv1.WatchStockRequest{},
		&campaignv1.PutCampaignRequest{}, &campaignv1.GetCampaignRequest{}, &campaignv1.ListCampaignsRequest{},
		&campaignv1.PutCouponRequest{}, &campaignv1.GetCouponRequest{}, &campaignv1.ListCouponsRequest{},
		&pointsv1.GetPointsRequest{}, &reportv1.GetSalesRequest{}, &reportv1.GetCampaignBoardRequest{},
		&clusterv1.MoveLaneRequest{}, &clusterv1.DrainNodeRequest{}, &clusterv1.UndrainNodeRequest{},
		&userv1.ExportUserRequest{}, &userv1.EraseUserRequest{},
		&webhookv1.PutEndpointRequest{}, &webhookv1.DeleteEndpointRequest{}, &webhookv1.ResumeEndpointRequest{},
		&webhookv1.ListDeliveriesRequest{}, &webhookv1.ReplayDeliveriesRequest{},
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
	if address := request.ShippingAddress; address != nil && !knownCountry(address.CountryCode) {
		return invalidArgument("shipping_address.country_code", "it is no country's ISO 3166-1 alpha-2 code")
	}
	return duplicateSKU(request.Items)
}

// checkGetOrder checks the hottest query in the same way.
func (v *validator) checkGetOrder(request *orderv1.GetOrderRequest) error {
	if plainlyGetOrder(request) {
		return nil
	}
	return v.check(request)
}

// plainlyGetOrder reports whether the request has nothing but an order's id, of a length and of characters that keep the rules. Others may keep them, too.
func plainlyGetOrder(request *orderv1.GetOrderRequest) bool {
	if len(request.OrderId) != domain.OrderIDLen || request.MinRevision != nil || request.WaitBudget != nil || request.AsOf != nil {
		return false
	}
	for i := range domain.OrderIDLen {
		if request.OrderId[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Rules of PlaceOrderRequest, as order.proto has them. A test holds plainlyValid against the real ones.
const (
	itemsMax     = 100
	itemUnitsMax = 1_000_000
	noteBytesMax = 1000

	recipientBytesMax    = 200
	addressLinesMax      = 5
	addressLineBytesMax  = 200
	postalCodeBytesMax   = 32
	cityBytesMax         = 100
	regionBytesMax       = 100
	emailBytesMax        = 254
	phoneCharactersMax   = 32
	phoneCharactersKnown = "0123456789+. ()/-"
)

// plainlyValid reports whether the request keeps every rule of its proto file.
func plainlyValid(request *orderv1.PlaceOrderRequest) bool {
	if !identity.ValidSubject(request.RequestId) || (request.UserId != "" && !identity.ValidSubject(request.UserId)) ||
		(request.CampaignId != "" && !identity.ValidSubject(request.CampaignId)) || (request.CouponCode != "" && !identity.ValidSubject(request.CouponCode)) ||
		len(request.Items) == 0 || len(request.Items) > itemsMax || len(request.Note) > noteBytesMax ||
		!plainlyAddress(request.ShippingAddress) || !plainlyContact(request.Contact) {
		return false
	}
	for _, item := range request.Items {
		if quantity := item.GetQuantity(); quantity < 1 || quantity > itemUnitsMax || !identity.ValidSubject(item.GetSku()) {
			return false
		}
	}
	return true
}

func plainlyAddress(a *orderv1.ShippingAddress) bool {
	if a == nil {
		return true
	}
	within := func(text string, least, most int) bool { return len(text) >= least && len(text) <= most }
	if !within(a.Recipient, 1, recipientBytesMax) || len(a.Lines) == 0 || len(a.Lines) > addressLinesMax ||
		!within(a.PostalCode, 0, postalCodeBytesMax) || !within(a.City, 0, cityBytesMax) || !within(a.Region, 0, regionBytesMax) {
		return false
	}
	for _, line := range a.Lines {
		if !within(line, 1, addressLineBytesMax) {
			return false
		}
	}
	upper := func(b byte) bool { return 'A' <= b && b <= 'Z' }
	return len(a.CountryCode) == 2 && upper(a.CountryCode[0]) && upper(a.CountryCode[1])
}

func plainlyContact(c *orderv1.Contact) bool {
	if c == nil {
		return true
	}
	for i := range len(c.Phone) {
		if strings.IndexByte(phoneCharactersKnown, c.Phone[i]) < 0 {
			return false
		}
	}
	if len(c.Phone) > phoneCharactersMax || len(c.Email) > emailBytesMax {
		return false
	}
	if c.Email == "" {
		return true
	}
	for i := range len(c.Email) {
		if c.Email[i] <= ' ' {
			return false
		}
	}
	local, host, found := strings.Cut(c.Email, "@")
	return found && local != "" && host != "" && !strings.Contains(host, "@")
}

// countries are the codes of ISO 3166-1 alpha-2, and XK, which Kosovo uses.
const countries = " AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ" +
	" CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR" +
	" GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP" +
	" KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ" +
	" NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW" +
	" SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ" +
	" UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW "

// REQUIRES: code is two upper-case letters.
func knownCountry(code string) bool { return strings.Contains(countries, " "+code+" ") }

// currencies are the codes of ISO 4217 that money is counted in: no metals, no units of accounts between banks.
const currencies = " AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CLF CLP CNY" +
	" COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR" +
	" ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR" +
	" MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC" +
	" SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG "

// checkCurrency refuses a price or an amount in a currency that there is not: a letter mistyped would open a second one. What was
// stored in such a currency before stays as it is. REQUIRES: money is nil, or its code is three upper-case letters.
func checkCurrency(field string, money *typev1.Money) error {
	if money == nil || strings.Contains(currencies, " "+money.CurrencyCode+" ") {
		return nil
	}
	return invalidArgument(field+".currency_code", "it is no currency's ISO 4217 code")
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
