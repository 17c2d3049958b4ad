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
//	given: COMMAND               the command is decided and yields events, whatever they are
//	when: COMMAND                the command is decided; the then lines that follow say what comes of it, in order
//	then: EVENT | nothing | refused REASON, message | conflict, message
//	order o1: STATUS …           the order now
//	product mug: …               the product now
//	stock mug: …                 the sum over all lanes now; "stock mug @2" is lane 2's account
//
// Commands end in "@2" if lane 2 decides them, else lane 0 does:
//
//	put SKU "title" PRICE · receive SKU UNITS · allot SKU GRANT UNITS
//	place ORDER USER SKU×UNITS… · cancel ORDER "reason" · expire ORDER
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d scripts: %v", len(files), err)
	}
	for _, file := range files {
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
		got := fmt.Sprintf("%v of %s, %s, total %v, updated %s", o.Status, o.UserID, s.lines(o.Lines), o.Total, s.since(o.UpdatedAt))
		if o.CancelReason != "" {
			got += fmt.Sprintf(", %q", o.CancelReason)
		}
		return match(got, step.text)
	case "product":
		p := s.products[argument]
		return match(fmt.Sprintf("%q %v, updated %s", p.Title, p.Price, s.since(p.UpdatedAt)), step.text)
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

func match(got, want string) error {
	if got != want {
		return fmt.Errorf("\n got %s\nwant %s", got, want)
	}
	return nil
}

// do decides the command that the text says.
func (s *script) do(text string) ([]domain.Event, error) {
	words, err := split(text)
	if err != nil {
		return nil, err
	}
	number := 0
	if last := words[len(words)-1]; last[0] == '@' {
		if number, err = strconv.Atoi(last[1:]); err != nil {
			return nil, err
		}
		words = words[:len(words)-1]
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
	var c domain.Command
	switch words[0] {
	case "put":
		price, parseErr := domain.ParseMoney(word(3) + " " + word(4))
		err = errors.Join(err, parseErr)
		c = domain.PutProduct{SKU: word(1), Title: word(2), Price: price}
	case "receive":
		c = domain.ReceiveStock{SKU: word(1), Units: units(word(2)), Lanes: uint32(len(s.lanes))}
	case "allot":
		c = domain.AllotStock{SKU: word(1), GrantNumber: uint64(units(word(2))), Units: units(word(3))}
	case "place":
		place := domain.PlaceOrder{OrderID: s.id(word(1)), UserID: word(2), PayBy: s.now.Add(15 * time.Minute)}
		for _, line := range words[3:] {
			sku, count, _ := strings.Cut(line, "×")
			place.Lines = append(place.Lines, domain.LineRequest{SKU: sku, Units: units(count)})
		}
		c = place
	case "cancel":
		c = domain.CancelOrder{OrderID: s.id(word(1)), Reason: word(2), By: "clerk"}
	case "expire":
		c = domain.ExpireOrder{OrderID: s.id(word(1))}
	default:
		return nil, fmt.Errorf("broken: there is no command %q", words[0])
	}
	if err != nil {
		return nil, fmt.Errorf("broken: %w", err)
	}
	return s.decide(number, c)
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
	var conflict *domain.GrantOutOfOrderError
	message := fmt.Sprint(err)
	for name, id := range s.ids {
		message = strings.ReplaceAll(message, id.String(), name)
	}
	switch {
	case errors.As(err, &refusal):
		return []string{fmt.Sprintf("refused %s, %s", refusal.Reason(), message)}
	case errors.As(err, &conflict):
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
		return fmt.Sprintf("OrderPlaced %s of %s, %s, total %v, pay by %s", s.name(e.OrderID), e.UserID, s.lines(e.Lines), e.Total, s.since(e.PayBy))
	case domain.OrderCancelled:
		return fmt.Sprintf("OrderCancelled %s of %s, %q by %s, released %s", s.name(e.OrderID), e.UserID, e.Reason, e.By, released(e.Released))
	case domain.OrderExpired:
		return fmt.Sprintf("OrderExpired %s of %s, released %s", s.name(e.OrderID), e.UserID, released(e.Released))
	case domain.ProductPut:
		return fmt.Sprintf("ProductPut %s %q %v", e.SKU, e.Title, e.Price)
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
	}
	return fmt.Sprintf("broken: unknown event %T", e)
}

func (s *script) lines(lines []domain.Line) string {
	var words []string
	for _, line := range lines {
		words = append(words, fmt.Sprintf("%s×%d at %d", line.SKU, line.Units, line.PriceMinor))
	}
	return strings.Join(words, " + ")
}

func released(releases []domain.Release) string {
	var words []string
	for _, r := range releases {
		words = append(words, fmt.Sprintf("%s×%d", r.SKU, r.Units))
	}
	return strings.Join(words, " + ")
}
