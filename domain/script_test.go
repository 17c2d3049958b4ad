package domain_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

// Scripts in testdata/*.txt say what the domain does. A script begins with "# title" and has one step a line:
//
//	lanes: 4                     the cluster has 4 lanes (1 unless said); lane 0 is every SKU's home
//	clock: +15m                  log time moves on
//	given: COMMAND               the command is decided and yields events, whatever they are; units that are
//	                             received this way are granted to lane 0 at once
//	verdict: SKU FREE            the lane knows that no more than FREE units can come to it
//	when: COMMAND                the command is decided; the then lines that follow say what comes of it, in order
//	then: EVENT | nothing | refused REASON, message | conflict, message
//	order o1: STATUS …           the order now
//	product mug: …               the product now
//	used alice mug@flash: 2      what lane 0 counts that a user holds of a campaign's pool or a coupon
//	stock mug: …                 the sum over all lanes now; "stock mug @2" is lane 2's account
//
// Commands end in "@2" if lane 2 decides them, else lane 0 does:
//
//	put SKU "title" PRICE [tax BPS | tax-included BPS] · receive SKU UNITS · preheat SKU UNITS-PER-LANE
//	grant SKU LANE AFTER LEAST WANT · allot SKU GRANT UNITS · give-back SKU AFTER LEAST · reclaim SKU LANE RETURN UNITS
//	campaign ID SKU PRICE UNITS OPENS CLOSES [user=UNITS] [order=UNITS]
//	coupon CODE AMOUNT | coupon CODE BPS bps, and [min=MINOR] [user=USES] [all=USES] [from=TIME] [until=TIME]
//	place ORDER USER [key:N] SKU×UNITS… [campaign=ID] [coupon=CODE] · erase USER N · cancel ORDER "reason"
//	expire ORDER (with a grace of 15 min)
//	pay ORDER · capture ORDER · void ORDER "reason" · refund ORDER [AMOUNT | all] "reason"
//	result PAYMENT authorized|captured AMOUNT · result PAYMENT declined CODE · result PAYMENT unknown|voided
//	stray PAYMENT AMOUNT "why" · refunded REFUND AMOUNT · failed REFUND CODE
//	ship ORDER [SKU×UNITS…] · deliver SHIPMENT · return ORDER [SKU×UNITS…] · receive-return RETURN [SKU×UNITS…] · note ORDER TEXT
//	award PAYMENT PER-MAJOR · take-back REFUND
//
// Payments, refunds, shipments and returns are named as their ids are, after their order's name: o1-p1, o1-p1-r1, o1-s1, o1-t1.
// A command that makes a new one takes the next number, unless the word before its order says another: "#1".
//
// A TIME is counted from the start of the script, like 5m.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d scripts: %v", len(files), err)
	}
	for _, file := range files {
		if filepath.Base(file) == "transitions.txt" {
			continue // It is no script.
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runFile(t, file) })
	}
}

func runFile(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var title string
	var steps []step
	run := func() {
		if len(steps) == 0 {
			return
		}
		script := steps
		t.Run(title, func(t *testing.T) { runScript(t, script) })
		steps = nil
	}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		at := fmt.Sprintf("%s:%d", file, i+1)
		if rest, ok := strings.CutPrefix(line, "#"); ok {
			run()
			title = strings.TrimSpace(rest)
			continue
		}
		if line == "" {
			continue
		}
		key, text, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("%s: a step is \"key: text\", got %q", at, line)
		}
		steps = append(steps, step{at: at, key: key, text: strings.TrimSpace(text)})
	}
	run()
}

type step struct{ at, key, text string }

type script struct {
	*world
	ids map[string]domain.OrderID
	// outcome is what the last when came to, less the thens that were met.
	outcome []string
}

func runScript(t *testing.T, steps []step) {
	s := &script{world: newWorld(1), ids: map[string]domain.OrderID{}}
	for i, step := range steps {
		if step.key != "then" && len(s.outcome) > 0 {
			t.Fatalf("%s: more came of it: %q", steps[i-1].at, s.outcome)
		}
		if err := s.run(step); err != nil {
			t.Fatalf("%s: %s: %v", step.at, step.key, err)
		}
		if err := s.check(); err != nil {
			t.Fatalf("%s: %s: %v", step.at, step.key, err)
		}
	}
	if len(s.outcome) > 0 {
		t.Fatalf("%s: more came of it: %q", steps[len(steps)-1].at, s.outcome)
	}
}

func (s *script) run(step step) error {
	key, argument, _ := strings.Cut(step.key, " ")
	switch key {
	case "lanes":
		lanes, err := strconv.Atoi(step.text)
		s.world = newWorld(lanes)
		return err
	case "clock":
		d, err := time.ParseDuration(step.text)
		s.now = s.now.Add(d)
		return err
	case "given":
		events, err := s.do(step.text)
		if err == nil && len(events) == 0 {
			return errors.New("nothing came of it")
		}
		if received, ok := first(events).(domain.StockReceived); ok {
			_, err = s.decide(0, domain.GrantStock{
				SKU: received.SKU, After: s.lanes[0].accounts[received.SKU].Taken.Number, Least: received.Units, Want: received.Units,
			})
		}
		return err
	case "verdict":
		words, lane, err := s.words(step.text)
		if err != nil {
			return err
		}
		s.lanes[lane].verdicts[words[0]], err = strconv.ParseInt(words[1], 10, 64)
		return err
	case "when":
		events, err := s.do(step.text)
		s.outcome = s.describe(events, err)
		return nil
	case "then":
		if len(s.outcome) == 0 {
			return fmt.Errorf("nothing more came of it, want %s", step.text)
		}
		got := s.outcome[0]
		s.outcome = s.outcome[1:]
		return match(got, step.text)
	case "order":
		o := s.lanes[0].orders[s.id(argument)]
		got := fmt.Sprintf("%v of %s, %s, total %v%s, updated %s", o.Status, o.UserID, s.lines(o.Lines), o.Total, terms(o.Pool, o.CouponCode, o.CouponPool), s.since(o.UpdatedAt))
		if a := o.Amounts(); a.Discount.Minor != 0 || a.Tax.Minor != 0 {
			got += fmt.Sprintf(", subtotal %v, discount %v, tax %v", a.Subtotal, a.Discount, a.Tax)
		}
		if o.Payment != domain.PayNone || o.Fulfilment != domain.FulfilmentNone {
			got += fmt.Sprintf(", payment %v, fulfilment %v", o.Payment, o.Fulfilment)
		}
		if o.CancelReason != "" {
			got += fmt.Sprintf(", %q", o.CancelReason)
		}
		return match(got, step.text)
	case "product":
		p := s.products[argument]
		return match(fmt.Sprintf("%q %v, updated %s", p.Title, p.Price, s.since(p.UpdatedAt)), step.text)
	case "used":
		user, of, _ := strings.Cut(argument, " ")
		return match(strconv.FormatInt(s.lanes[0].uses[domain.Use{Of: of, UserID: user}], 10), step.text)
	case "stock":
		sku, lane, one := strings.Cut(argument, " @")
		if one {
			number, err := strconv.Atoi(lane)
			if err != nil {
				return err
			}
			a := s.lanes[number].accounts[sku]
			return match(fmt.Sprintf("allotted %d, reserved %d, sold %d, taken %d in %d grants", a.Allotted, a.Reserved, a.Sold, a.Taken.Units, a.Taken.Number), step.text)
		}
		l := domain.Sum(s.accounts(sku))
		return match(fmt.Sprintf("received %d = central %d + in transit %d + allotted %d + reserved %d + sold %d",
			l.Received, l.Central, l.InTransit, l.Allotted, l.Reserved, l.Sold), step.text)
	}
	return errors.New("there is no such step")
}

func first(events []domain.Event) domain.Event {
	if len(events) == 0 {
		return nil
	}
	return events[0]
}

func match(got, want string) error {
	if got != want {
		return fmt.Errorf("\n got %s\nwant %s", got, want)
	}
	return nil
}

// words cuts a text into words and the lane that it ends in.
func (s *script) words(text string) (words []string, lane int, err error) {
	if words, err = split(text); err != nil {
		return nil, 0, err
	}
	if last := words[len(words)-1]; strings.HasPrefix(last, "@") {
		lane, err = strconv.Atoi(last[1:])
		words = words[:len(words)-1]
	}
	return words, lane, err
}

// do decides the command that the text says.
func (s *script) do(text string) ([]domain.Event, error) {
	words, number, err := s.words(text)
	if err != nil {
		return nil, err
	}
	word := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	units := func(text string) int64 {
		v, parseErr := strconv.ParseInt(text, 10, 64)
		err = errors.Join(err, parseErr)
		return v
	}
	when := func(text string) time.Time {
		d, parseErr := time.ParseDuration(text)
		err = errors.Join(err, parseErr)
		return epoch.Add(d)
	}
	var c domain.Command
	switch words[0] {
	case "put":
		price, parseErr := domain.ParseMoney(word(3) + " " + word(4))
		err = errors.Join(err, parseErr)
		put := domain.PutProduct{SKU: word(1), Title: word(2), Price: price}
		if word(5) != "" {
			put.Tax = domain.Tax{RateBps: units(word(6)), Included: word(5) == "tax-included"}
		}
		c = put
	case "campaign":
		price, parseErr := domain.ParseMoney(word(3) + " " + word(4))
		err = errors.Join(err, parseErr)
		put := domain.PutCampaign{
			CampaignID: word(1), SKU: word(2), Price: price, Units: units(word(5)), OpensAt: when(word(6)), ClosesAt: when(word(7)),
		}
		for _, option := range words[8:] {
			switch name, value, _ := strings.Cut(option, "="); name {
			case "user":
				put.UserUnitsMax = units(value)
			case "order":
				put.OrderUnitsMax = units(value)
			default:
				return nil, fmt.Errorf("broken: there is no option %q", option)
			}
		}
		c = put
	case "coupon":
		put := domain.PutCoupon{Code: word(1), Terms: domain.CouponTerms{Kind: domain.CouponFixed}}
		if word(3) == "bps" {
			put.Terms.Kind, put.Terms.RateBps = domain.CouponPercentage, units(word(2))
		} else {
			amount, parseErr := domain.ParseMoney(word(2) + " " + word(3))
			err = errors.Join(err, parseErr)
			put.Terms.AmountMinor, put.Terms.Currency = amount.Minor, amount.Currency
		}
		for _, option := range words[4:] {
			switch name, value, _ := strings.Cut(option, "="); name {
			case "min":
				put.Terms.MinSubtotalMinor, put.Terms.Currency = units(value), "EUR"
			case "user":
				put.Terms.UserUsesMax = units(value)
			case "all":
				put.Terms.UsesMax = units(value)
			case "from":
				put.Terms.ValidFrom = when(value)
			case "until":
				put.Terms.ValidUntil = when(value)
			default:
				return nil, fmt.Errorf("broken: there is no option %q", option)
			}
		}
		c = put
	case "receive":
		c = domain.ReceiveStock{SKU: word(1), Units: units(word(2))}
	case "preheat":
		c = domain.PreheatStock{SKU: word(1), UnitsPerLane: units(word(2))}
	case "grant":
		c = domain.GrantStock{
			SKU: word(1), ToLane: uint32(units(word(2))), After: uint64(units(word(3))), Least: units(word(4)), Want: units(word(5)),
		}
	case "give-back":
		c = domain.ReturnStock{SKU: word(1), After: uint64(units(word(2))), Least: units(word(3))}
	case "reclaim":
		c = domain.ReclaimStock{SKU: word(1), FromLane: uint32(units(word(2))), ReturnNumber: uint64(units(word(3))), Units: units(word(4))}
	case "allot":
		c = domain.AllotStock{SKU: word(1), GrantNumber: uint64(units(word(2))), Units: units(word(3))}
	case "place":
		place := domain.PlaceOrder{OrderID: s.id(word(1)), UserID: word(2), PayBy: s.now.Add(15 * time.Minute)}
		for _, line := range words[3:] {
			if id, ok := strings.CutPrefix(line, "campaign="); ok {
				place.CampaignID = id
				continue
			}
			if code, ok := strings.CutPrefix(line, "coupon="); ok {
				place.CouponCode = code
				continue
			}
			if key, sealed := strings.CutPrefix(line, "key:"); sealed {
				place.SealKey, place.SealedPersonal = domain.KeyID(units(key)), []byte("sealed under "+key)
				continue
			}
			sku, count, _ := strings.Cut(line, "×")
			place.Lines = append(place.Lines, domain.LineRequest{SKU: sku, Units: units(count)})
		}
		c = place
	case "cancel":
		c = domain.CancelOrder{OrderID: s.id(word(1)), Reason: word(2), By: "clerk"}
	case "erase":
		c = domain.EraseUser{UserID: word(1), Key: domain.KeyID(units(word(2))), By: "clerk"}
	case "endpoint":
		c = domain.PutWebhookEndpoint{
			EndpointID: word(1), URL: word(2), SealedSecret: []byte("sealed"), Types: words[3:], Paused: len(words) > 3 && words[3] == "paused", By: "clerk",
		}
	case "delete-endpoint":
		c = domain.DeleteWebhookEndpoint{EndpointID: word(1), By: "clerk"}
	case "expire":
		c = domain.ExpireOrder{OrderID: s.id(word(1)), Grace: 15 * time.Minute}
	default:
		if c, err = s.lifeCommand(words); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("broken: %w", err)
	}
	if id, ok := domain.CommandOrderID(c); ok {
		if order, placed := s.lanes[number].Order(id); placed {
			c = order.Next(c)
		}
	}
	return s.decide(number, c)
}

// lifeCommand reads a command to an order that was placed.
func (s *script) lifeCommand(words []string) (c domain.Command, err error) {
	verb, rest := words[0], words[1:]
	number := 0
	if len(rest) > 0 && rest[0][0] == '#' {
		if number, err = strconv.Atoi(rest[0][1:]); err != nil {
			return nil, fmt.Errorf("broken: %w", err)
		}
		rest = rest[1:]
	}
	word := func(i int) string {
		if i < len(rest) {
			return rest[i]
		}
		return ""
	}
	name, _, _ := strings.Cut(word(0), "-")
	id := s.id(name)
	part := id.String() + strings.TrimPrefix(word(0), name)
	amount := func(i int) domain.Money {
		m, parseErr := domain.ParseMoney(word(i) + " " + word(i+1))
		err = errors.Join(err, parseErr)
		return m
	}
	lines := func(words []string) (lines []domain.LineRequest) {
		for _, line := range words {
			sku, count, _ := strings.Cut(line, "×")
			units, parseErr := strconv.ParseInt(count, 10, 64)
			err = errors.Join(err, parseErr)
			lines = append(lines, domain.LineRequest{SKU: sku, Units: units})
		}
		return lines
	}
	switch verb {
	case "pay":
		c = domain.StartPayment{OrderID: id, Number: number, Provider: "sandbox", Method: "card", By: "alice"}
	case "capture":
		c = domain.CapturePayment{OrderID: id, By: "clerk"}
	case "void":
		c = domain.VoidPayment{OrderID: id, Reason: word(1), By: "clerk"}
	case "result":
		result := domain.RecordPaymentResult{OrderID: id, PaymentID: part}
		switch word(1) {
		case "authorized":
			result.Result, result.Amount = domain.ResultAuthorized, amount(2)
		case "captured":
			result.Result, result.Amount = domain.ResultCaptured, amount(2)
		case "declined":
			result.Result, result.Code = domain.ResultDeclined, word(2)
		case "unknown":
			result.Result = domain.ResultUnknown
		case "voided":
			result.Result = domain.ResultVoided
		}
		c = result
	case "stray":
		c = domain.RecordStrayPayment{OrderID: id, PaymentID: part, Amount: amount(1), Why: word(3)}
	case "refund":
		refund := domain.RefundPayment{OrderID: id, Number: number, By: "clerk"}
		if part != id.String() {
			refund.PaymentID = part
		}
		if word(1) == "all" {
			refund.Reason = word(2)
		} else {
			refund.Amount, refund.Reason = amount(1), word(3)
		}
		c = refund
	case "refunded":
		c = domain.RecordRefundResult{OrderID: id, RefundID: part, Succeeded: true, Amount: amount(1)}
	case "failed":
		c = domain.RecordRefundResult{OrderID: id, RefundID: part, Code: word(1)}
	case "ship":
		c = domain.ShipItems{OrderID: id, Number: number, Lines: lines(rest[1:]), Carrier: "DHL", Tracking: "T1", By: "clerk"}
	case "deliver":
		c = domain.ConfirmDelivery{OrderID: id, ShipmentID: part, By: "clerk"}
	case "return":
		c = domain.RequestReturn{OrderID: id, Number: number, Lines: lines(rest[1:]), Reason: "too small", By: "alice"}
	case "receive-return":
		c = domain.ReceiveReturn{OrderID: id, ReturnID: part, Restock: lines(rest[1:]), By: "clerk"}
	case "note":
		note := domain.AddNote{OrderID: id, Number: number, By: "clerk", Sealed: []byte(word(1))}
		if key, sealed := strings.CutPrefix(word(1), "key:"); sealed {
			keyNumber, parseErr := strconv.ParseUint(key, 10, 64)
			err = errors.Join(err, parseErr)
			note.SealKey = domain.KeyID(keyNumber)
		}
		c = note
	case "award":
		perMajor, parseErr := strconv.ParseInt(word(1), 10, 64)
		err = errors.Join(err, parseErr)
		c = domain.AwardPoints{OrderID: id, PaymentID: part, PerMajor: perMajor}
	case "take-back":
		c = domain.TakeBackPoints{OrderID: id, RefundID: part}
	default:
		return nil, fmt.Errorf("broken: there is no command %q", verb)
	}
	if err != nil {
		return nil, fmt.Errorf("broken: %w", err)
	}
	return c, nil
}

// split cuts a text into words; a word in quotes is a Go string.
func split(text string) ([]string, error) {
	var words []string
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		if text[0] == '"' {
			quoted, err := strconv.QuotedPrefix(text)
			if err != nil {
				return nil, fmt.Errorf("broken: %s: %w", text, err)
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("broken: %s: %w", quoted, err)
			}
			words, text = append(words, word), text[len(quoted):]
			continue
		}
		var word string
		word, text, _ = strings.Cut(text, " ")
		words = append(words, word)
	}
	return words, nil
}

// id returns the id of an order that the script calls by name. "zero" is the zero id.
func (s *script) id(name string) domain.OrderID {
	if name == "zero" {
		return domain.OrderID{}
	}
	if _, known := s.ids[name]; !known {
		s.ids[name] = domain.NewOrderID(epoch, 7, [10]byte{9: byte(len(s.ids) + 1)})
	}
	return s.ids[name]
}

func (s *script) name(id domain.OrderID) string {
	for name, known := range s.ids {
		if known == id {
			return name
		}
	}
	return id.String()
}

func (s *script) since(at time.Time) string { return "+" + at.Sub(epoch).String() }

// describe says what a command came to, in the words of then.
func (s *script) describe(events []domain.Event, err error) []string {
	var refusal domain.Refusal
	var grant *domain.GrantOutOfOrderError
	var giveBack *domain.ReturnOutOfOrderError
	var erased *domain.KeyErasedError
	message := fmt.Sprint(err)
	for name, id := range s.ids {
		message = strings.ReplaceAll(message, id.String(), name)
	}
	switch {
	case errors.As(err, &refusal):
		return []string{fmt.Sprintf("refused %s, %s", refusal.Reason(), message)}
	case errors.As(err, &grant), errors.As(err, &giveBack), errors.As(err, &erased):
		return []string{"conflict, " + message}
	case err != nil:
		return []string{message}
	case len(events) == 0:
		return []string{"nothing"}
	}
	outcome := make([]string, len(events))
	for i, e := range events {
		outcome[i] = s.event(e)
	}
	return outcome
}

func (s *script) event(e domain.Event) string {
	switch e := e.(type) {
	case domain.OrderPlaced:
		return fmt.Sprintf("OrderPlaced %s of %s, %s, total %v%s, pay by %s", s.name(e.OrderID), e.UserID, s.lines(e.Lines), e.Total, terms(e.Pool, e.CouponCode, e.CouponPool), s.since(e.PayBy))
	case domain.OrderCancelled:
		return fmt.Sprintf("OrderCancelled %s of %s, %q by %s, %s%s", s.name(e.OrderID), e.UserID, e.Reason, e.By, gaveBack(e), terms("", e.CouponCode, ""))
	case domain.OrderExpired:
		return fmt.Sprintf("OrderExpired %s of %s, released %s%s", s.name(e.OrderID), e.UserID, released(e.Released), terms("", e.CouponCode, ""))
	case domain.UserErased:
		return fmt.Sprintf("UserErased %s, key %d, by %s", e.UserID, e.Key, e.By)
	case domain.RequestAnswered:
		return fmt.Sprintf("RequestAnswered about %s %s", e.About, e.Key)
	case domain.WebhookEndpointPut:
		return fmt.Sprintf("WebhookEndpointPut %s at %s, types %v, paused %t, by %s", e.EndpointID, e.URL, e.Types, e.Paused, e.By)
	case domain.WebhookEndpointDeleted:
		return fmt.Sprintf("WebhookEndpointDeleted %s by %s", e.EndpointID, e.By)
	case domain.ProductPut:
		return fmt.Sprintf("ProductPut %s %q %v%s", e.SKU, e.Title, e.Price, tax(e.Tax))
	case domain.CampaignPut:
		return fmt.Sprintf("CampaignPut %s %v from %s to %s, %d units, %d a user, %d an order", e.Pool, e.Price, s.since(e.OpensAt), s.since(e.ClosesAt), e.Units, e.UserUnitsMax, e.OrderUnitsMax)
	case domain.PoolFilled:
		return fmt.Sprintf("PoolFilled %s %d", e.Pool, e.Units)
	case domain.PoolDrained:
		return fmt.Sprintf("PoolDrained %s %d", e.Pool, e.Units)
	case domain.CouponPut:
		return fmt.Sprintf("CouponPut %s %d minor, %d bps, %d a user, %d in all", e.Code, e.Terms.AmountMinor, e.Terms.RateBps, e.Terms.UserUsesMax, e.Terms.UsesMax)
	case domain.StockReceived:
		return fmt.Sprintf("StockReceived %s %d, %d in all", e.SKU, e.Units, e.ReceivedTotal)
	case domain.StockGranted:
		return fmt.Sprintf("StockGranted %s %d to lane %d, grant %d", e.SKU, e.Units, e.ToLane, e.GrantNumber)
	case domain.StockAllotted:
		return fmt.Sprintf("StockAllotted %s %d from lane %d, grant %d", e.SKU, e.Units, e.HomeLane, e.GrantNumber)
	case domain.StockReturned:
		return fmt.Sprintf("StockReturned %s %d to lane %d, return %d", e.SKU, e.Units, e.HomeLane, e.ReturnNumber)
	case domain.StockReclaimed:
		return fmt.Sprintf("StockReclaimed %s %d from lane %d, return %d", e.SKU, e.Units, e.FromLane, e.ReturnNumber)
	case domain.PaymentStarted:
		return s.named("PaymentStarted %s of %v through %s by %s", e.PaymentID, e.Amount, e.Provider, e.By)
	case domain.PaymentAuthorized:
		return s.named("PaymentAuthorized %s of %v", e.PaymentID, e.Amount)
	case domain.PaymentCaptureRequested:
		return s.named("PaymentCaptureRequested %s of %v by %s", e.PaymentID, e.Amount, e.By)
	case domain.PaymentCaptured:
		return s.named("PaymentCaptured %s of %v, sold %s", e.PaymentID, e.Amount, released(e.Sold))
	case domain.PaymentDeclined:
		return s.named("PaymentDeclined %s, %s", e.PaymentID, e.Code)
	case domain.PaymentBecameUnknown:
		return s.named("PaymentBecameUnknown %s", e.PaymentID)
	case domain.PaymentVoidRequested:
		return s.named("PaymentVoidRequested %s, %q by %q", e.PaymentID, e.Why, e.By)
	case domain.PaymentVoided:
		return s.named("PaymentVoided %s", e.PaymentID)
	case domain.RefundStarted:
		return strings.TrimSuffix(s.named("RefundStarted %s of %v, %q by %q for %s", e.RefundID, e.Amount, e.Reason, e.By, e.ReturnID), " for ")
	case domain.PaymentRefunded:
		return s.named("PaymentRefunded %s of %v", e.RefundID, e.Amount)
	case domain.RefundFailed:
		return s.named("RefundFailed %s, %s", e.RefundID, e.Code)
	case domain.StrayPaymentFound:
		return s.named("StrayPaymentFound %s of %v, %q", e.PaymentID, e.Amount, e.Why)
	case domain.ItemsShipped:
		return s.named("ItemsShipped %s, %s by %s", e.ShipmentID, released(e.Lines), e.By)
	case domain.ShipmentDelivered:
		return s.named("ShipmentDelivered %s by %s", e.ShipmentID, e.By)
	case domain.ReturnRequested:
		return s.named("ReturnRequested %s, %s, %q by %s", e.ReturnID, released(e.Lines), e.Reason, e.By)
	case domain.ReturnReceived:
		return s.named("ReturnReceived %s, restocked %s by %s", e.ReturnID, released(e.Restocked), e.By)
	case domain.NoteAdded:
		return s.named("NoteAdded to %s by %s, %d bytes", e.OrderID.String(), e.By, len(e.Sealed))
	case domain.PointsAwarded:
		return s.named("PointsAwarded for %s to %s, %d", e.PaymentID, e.UserID, e.Points)
	case domain.PointsTakenBack:
		return s.named("PointsTakenBack for %s from %s, %d", e.RefundID, e.UserID, e.Points)
	}
	return fmt.Sprintf("broken: unknown event %T", e)
}

// named formats a text and calls the orders in it by their names.
func (s *script) named(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	for name, id := range s.ids {
		text = strings.ReplaceAll(text, id.String(), name)
	}
	return text
}

func gaveBack(e domain.OrderCancelled) string {
	if len(e.Unsold) > 0 {
		return "unsold " + released(e.Unsold)
	}
	return "released " + released(e.Released)
}

func (s *script) lines(lines []domain.Line) string {
	var words []string
	for _, line := range lines {
		word := fmt.Sprintf("%s×%d at %d", line.SKU, line.Units, line.PriceMinor)
		if line.DiscountMinor != 0 {
			word += fmt.Sprintf(" less %d", line.DiscountMinor)
		}
		if line.Tax.RateBps != 0 {
			word += fmt.Sprintf(" taxed %d%s", line.TaxMinor, tax(line.Tax))
		}
		words = append(words, word)
	}
	return strings.Join(words, " + ")
}

func tax(t domain.Tax) string {
	switch {
	case t.RateBps == 0:
		return ""
	case t.Included:
		return fmt.Sprintf(" (%d bps, included)", t.RateBps)
	}
	return fmt.Sprintf(" (%d bps on top)", t.RateBps)
}

func terms(pool, couponCode, couponPool string) string {
	text := ""
	if pool != "" {
		text += " out of " + pool
	}
	if couponCode != "" {
		text += " with " + couponCode
	}
	if couponPool != "" {
		text += " counted in " + couponPool
	}
	return text
}

func released(releases []domain.Release) string {
	var words []string
	for _, r := range releases {
		words = append(words, fmt.Sprintf("%s×%d", r.SKU, r.Units))
	}
	return strings.Join(words, " + ")
}
