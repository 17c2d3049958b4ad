package domain_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

var writeTransitions = flag.Bool("write-transitions", false, "write testdata/transitions.txt")

// lifeCommands are all commands to an order that was placed, by the name that the table calls them.
var lifeCommands = []struct {
	name string
	make func(o domain.Order) domain.Command
}{
	{"CancelOrder", func(o domain.Order) domain.Command { return domain.CancelOrder{OrderID: o.ID, By: "clerk"} }},
	{"ExpireOrder, due", func(o domain.Order) domain.Command { return domain.ExpireOrder{OrderID: o.ID} }},
	{"ExpireOrder, in its grace", func(o domain.Order) domain.Command {
		return domain.ExpireOrder{OrderID: o.ID, Grace: time.Hour}
	}},
	{"StartPayment", func(o domain.Order) domain.Command {
		return domain.StartPayment{OrderID: o.ID, Provider: "sandbox", Method: "card", By: "alice"}
	}},
	{"CapturePayment", func(o domain.Order) domain.Command { return domain.CapturePayment{OrderID: o.ID, By: "clerk"} }},
	{"VoidPayment", func(o domain.Order) domain.Command { return domain.VoidPayment{OrderID: o.ID, By: "clerk"} }},
	{"result authorized", resultOf(domain.ResultAuthorized, 0)},
	{"result authorized, wrong amount", resultOf(domain.ResultAuthorized, 1)},
	{"result captured", resultOf(domain.ResultCaptured, 0)},
	{"result captured, wrong amount", resultOf(domain.ResultCaptured, 1)},
	{"result declined", resultOf(domain.ResultDeclined, 0)},
	{"result unknown", resultOf(domain.ResultUnknown, 0)},
	{"result voided", resultOf(domain.ResultVoided, 0)},
	{"RecordStrayPayment", func(o domain.Order) domain.Command {
		return domain.RecordStrayPayment{OrderID: o.ID, PaymentID: newestPayment(o), Amount: o.Total}
	}},
	{"RefundPayment, a part", func(o domain.Order) domain.Command {
		return domain.RefundPayment{OrderID: o.ID, Amount: domain.Money{Currency: "EUR", Minor: 1}}
	}},
	{"RefundPayment, all", func(o domain.Order) domain.Command { return domain.RefundPayment{OrderID: o.ID} }},
	{"refund succeeded", func(o domain.Order) domain.Command {
		refund := newestRefund(o)
		return domain.RecordRefundResult{OrderID: o.ID, RefundID: refund.ID, Succeeded: true, Amount: refund.Amount}
	}},
	{"refund failed", func(o domain.Order) domain.Command {
		return domain.RecordRefundResult{OrderID: o.ID, RefundID: newestRefund(o).ID, Code: "closed"}
	}},
	{"ShipItems, one", func(o domain.Order) domain.Command {
		return domain.ShipItems{OrderID: o.ID, Lines: []domain.LineRequest{{SKU: "mug", Units: 1}}}
	}},
	{"ShipItems, the rest", func(o domain.Order) domain.Command { return domain.ShipItems{OrderID: o.ID} }},
	{"ConfirmDelivery", func(o domain.Order) domain.Command {
		return domain.ConfirmDelivery{OrderID: o.ID, ShipmentID: domain.ShipmentID(o.ID, len(o.Shipments))}
	}},
	{"RequestReturn, one", func(o domain.Order) domain.Command {
		return domain.RequestReturn{OrderID: o.ID, Lines: []domain.LineRequest{{SKU: "mug", Units: 1}}}
	}},
	{"RequestReturn, the rest", func(o domain.Order) domain.Command { return domain.RequestReturn{OrderID: o.ID} }},
	{"ReceiveReturn", func(o domain.Order) domain.Command {
		return domain.ReceiveReturn{OrderID: o.ID, ReturnID: domain.ReturnID(o.ID, len(o.Returns)), Restock: []domain.LineRequest{{SKU: "mug", Units: 1}}}
	}},
	{"AddNote", func(o domain.Order) domain.Command {
		return domain.AddNote{OrderID: o.ID, By: "clerk", Sealed: []byte{1}}
	}},
	{"AwardPoints", func(o domain.Order) domain.Command {
		return domain.AwardPoints{OrderID: o.ID, PaymentID: newestPayment(o), PerMajor: 1}
	}},
	{"TakeBackPoints", func(o domain.Order) domain.Command {
		return domain.TakeBackPoints{OrderID: o.ID, RefundID: newestRefund(o).ID}
	}},
}

func resultOf(result domain.PaymentResult, off int64) func(domain.Order) domain.Command {
	return func(o domain.Order) domain.Command {
		c := domain.RecordPaymentResult{OrderID: o.ID, PaymentID: newestPayment(o), Result: result, Code: "declined"}
		if result == domain.ResultAuthorized || result == domain.ResultCaptured {
			c.Amount = domain.Money{Currency: o.Total.Currency, Minor: o.Total.Minor + off}
		}
		return c
	}
}

func newestPayment(o domain.Order) string {
	if len(o.Payments) == 0 {
		return domain.PaymentID(o.ID, 1)
	}
	return o.Payments[len(o.Payments)-1].ID
}

func newestRefund(o domain.Order) domain.Refund {
	if len(o.Refunds) == 0 {
		return domain.Refund{ID: domain.RefundID(newestPayment(o), 1)}
	}
	return o.Refunds[len(o.Refunds)-1]
}

// stateOf is what the table tells apart of an order.
func stateOf(o domain.Order) string {
	payment := o.Payment.String()
	if count := len(o.Payments); count > 0 {
		switch newest := o.Payments[count-1]; {
		case newest.CaptureRequested && newest.VoidRequested:
			payment += "+capture+void"
		case newest.CaptureRequested:
			payment += "+capture"
		case newest.VoidRequested:
			payment += "+void"
		case newest.Stray:
			payment += "+stray"
		case newest.State == domain.PayNone:
			payment = "declined"
		}
	}
	if count := len(o.Refunds); count > 0 && o.Refunds[count-1].State == domain.RefundUnderWay {
		payment += "+refund"
	}
	fulfilment := o.Fulfilment.String()
	if count := len(o.Returns); count > 0 && o.Returns[count-1].ReceivedAt.IsZero() {
		fulfilment += "+return"
	}
	return fmt.Sprintf("%v %s %s", o.Ending, payment, fulfilment)
}

// keyOf is what the walk tells apart: beside the state, what is left to refund, ship and return.
func keyOf(o domain.Order) string {
	left := int64(0)
	for _, p := range o.Payments {
		left += p.Taken.Minor
	}
	for _, r := range o.Refunds {
		if r.State != domain.RefundHasFailed {
			left -= r.Amount.Minor
		}
	}
	units := 0
	for _, r := range o.Returns {
		for _, line := range r.Lines {
			units += int(line.Units)
		}
	}
	return fmt.Sprintf("%s, %t left, %d back", stateOf(o), left > 0, units)
}

// forked copies a world of one lane, so that a command can be tried on it.
func (w *world) forked() *world {
	copied := newWorld(1)
	copied.now = w.now
	for id, o := range w.lanes[0].orders {
		copied.lanes[0].orders[id] = o
	}
	for sku, a := range w.lanes[0].accounts {
		copied.lanes[0].accounts[sku] = a
	}
	for sku, p := range w.products {
		copied.products[sku] = p
	}
	return copied
}

// statesMax bounds the walk.
const statesMax = 500

// TestEveryCommandInEveryReachableState walks through all states that an order can reach, as far as they can be told apart,
// gives it every command in each, and compares what comes of it with testdata/transitions.txt. I3 and I4 are checked after each.
func TestEveryCommandInEveryReachableState(t *testing.T) {
	first := newWorld(1)
	id := orderIDs(1)[0]
	for _, c := range []domain.Command{
		domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 150}},
		domain.ReceiveStock{SKU: "mug", Units: 5},
		domain.PlaceOrder{OrderID: id, UserID: "alice", Lines: []domain.LineRequest{{SKU: "mug", Units: 2}}, PayBy: epoch.Add(time.Minute)},
	} {
		if _, err := first.decide(0, c); err != nil {
			t.Fatal(err)
		}
	}
	reached := map[string]*world{keyOf(first.lanes[0].orders[id]): first}
	keys := []string{keyOf(first.lanes[0].orders[id])}
	states := map[string]bool{}
	outcomes := map[string]map[string][]string{} // Command, outcome, states.
	for i := 0; i < len(keys); i++ {
		if len(keys) > statesMax {
			t.Fatalf("there are more than %d states", statesMax)
		}
		state := stateOf(reached[keys[i]].lanes[0].orders[id])
		states[state] = true
		for _, command := range lifeCommands {
			w := reached[keys[i]].forked()
			order := w.lanes[0].orders[id]
			if strings.HasPrefix(command.name, "ExpireOrder") {
				w.now = epoch.Add(time.Minute)
			}
			c := order.Next(command.make(order))
			events, err := w.decide(0, c)
			outcome := ""
			var refusal domain.Refusal
			switch {
			case errors.As(err, &refusal):
				outcome = "refused " + string(refusal.Reason())
			case err != nil:
				t.Fatalf("%s in %s: %v", command.name, keys[i], err)
			case len(events) == 0:
				outcome = "nothing"
			default:
				for _, e := range events {
					outcome += strings.TrimPrefix(fmt.Sprintf(" %T", e), " domain.") + " "
				}
			}
			if err := w.check(); err != nil {
				t.Fatalf("%s in %s: %v", command.name, keys[i], err)
			}
			if again, repeated := w.decide(0, c); len(again) > 0 || (repeated == nil) != (err == nil) {
				t.Errorf("%s in %s yielded %v, %v; again: %v, %v", command.name, keys[i], events, err, again, repeated)
			}
			if outcomes[command.name] == nil {
				outcomes[command.name] = map[string][]string{}
			}
			outcome = strings.TrimSpace(outcome)
			if in := outcomes[command.name][outcome]; !slices.Contains(in, state) {
				outcomes[command.name][outcome] = append(in, state)
			}
			w.now = epoch
			if next := keyOf(w.lanes[0].orders[id]); reached[next] == nil {
				reached[next] = w
				keys = append(keys, next)
			}
		}
	}
	got := transitionsText(len(states), outcomes)
	const file = "testdata/transitions.txt"
	if *writeTransitions {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range max(len(wantLines), len(gotLines)) {
		if i >= len(wantLines) || i >= len(gotLines) || wantLines[i] != gotLines[i] {
			t.Fatalf("%s, line %d:\n got %q\nwant %q", file, i+1, gotLines[i:min(i+1, len(gotLines))], wantLines[i:min(i+1, len(wantLines))])
		}
	}
}

// transitionsText is the table as people read it: by command, by outcome, the states.
func transitionsText(states int, outcomes map[string]map[string][]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "What comes of every command to an order, in all %d states that it can reach (go test ./domain -write-transitions).\n", states)
	fmt.Fprintf(&b, "Each line: how the order ended, what was shipped if anything, and the states of the newest payment;\n+capture, +void, +refund and +return were asked for and not answered. A state is in two outcomes when it matters what is left.\n")
	for _, command := range lifeCommands {
		fmt.Fprintf(&b, "\n%s\n", command.name)
		var names []string
		for outcome := range outcomes[command.name] {
			names = append(names, outcome)
		}
		slices.Sort(names)
		for _, outcome := range names {
			fmt.Fprintf(&b, "  %s\n", outcome)
			in := outcomes[command.name][outcome]
			payments := map[string][]string{} // By ending and fulfilment.
			for _, state := range in {
				words := strings.Fields(state)
				group := words[0]
				if words[2] != "none" {
					group += " " + words[2]
				}
				payments[group] = append(payments[group], words[1])
			}
			for _, group := range slices.Sorted(maps.Keys(payments)) {
				slices.Sort(payments[group])
				fmt.Fprintf(&b, "      %s: %s\n", group, strings.Join(payments[group], " "))
			}
		}
	}
	return b.String()
}
