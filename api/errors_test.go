package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/webhooks"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/readpath"
)

// constantsOf returns the names of a file's constants that begin with prefix.
func constantsOf(t *testing.T, file, prefix string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, declaration := range parsed.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.CONST {
			continue
		}
		for _, spec := range general.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if strings.HasPrefix(name.Name, prefix) {
					names = append(names, name.Name)
				}
			}
		}
	}
	return names
}

// constantName is the Go name of a reason: OUT_OF_STOCK is ReasonOutOfStock.
func constantName(reason Reason) string {
	name := "Reason"
	for _, word := range strings.Split(string(reason), "_") {
		name += word[:1] + strings.ToLower(word[1:])
	}
	return name
}

func TestReasonsAreTheSameInTheTableTheConstantsAndTheDocument(t *testing.T) {
	var inTable []string
	for reason := range reasons {
		inTable = append(inTable, constantName(reason))
	}
	inCode := constantsOf(t, "errors.go", "Reason")
	slices.Sort(inTable)
	slices.Sort(inCode)
	if !slices.Equal(inTable, inCode) || len(inCode) == 0 {
		t.Errorf("the table has %v, the constants are %v", inTable, inCode)
	}
	for _, name := range constantsOf(t, "../domain/refusal.go", "Reason") {
		if !slices.Contains(inTable, name) {
			t.Errorf("the domain refuses with %s, which is not in the table", name)
		}
	}

	document, err := os.ReadFile("REASONS.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[Reason]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([a-z_]+) \\| (yes)? ?\\| ([a-z_, ]*)\\|").FindAllStringSubmatch(string(document), -1) {
		reason := Reason(row[1])
		documented[reason] = true
		entry, known := reasons[reason]
		if !known {
			t.Errorf("REASONS.md has %s, the table does not", reason)
			continue
		}
		if facts := strings.TrimSpace(row[4]); entry.code.String() != row[2] || entry.retry != (row[3] == "yes") || strings.Join(entry.facts, ", ") != facts {
			t.Errorf("%s: REASONS.md says %s, retry %q, %q; the table says %s, %t, %v", reason, row[2], row[3], facts, entry.code, entry.retry, entry.facts)
		}
	}
	for reason := range reasons {
		if !documented[reason] {
			t.Errorf("REASONS.md lacks %s", reason)
		}
	}
}

// detailsOf returns what an error carries.
func detailsOf(t *testing.T, err *connect.Error) (info *errdetails.ErrorInfo, retry *errdetails.RetryInfo, bad *errdetails.BadRequest) {
	t.Helper()
	for _, detail := range err.Details() {
		value, err := detail.Value()
		if err != nil {
			t.Fatal(err)
		}
		switch value := value.(type) {
		case *errdetails.ErrorInfo:
			info = value
		case *errdetails.RetryInfo:
			retry = value
		case *errdetails.BadRequest:
			bad = value
		}
	}
	return info, retry, bad
}

func newTestHandler(logs *bytes.Buffer) *Handler {
	return &Handler{logger: slog.New(slog.NewTextHandler(logs, nil))}
}

func TestEveryErrorOfALaneOrAViewHasItsCodeAndReason(t *testing.T) {
	id := domain.NewOrderID(time.UnixMilli(1), 3, [10]byte{})
	min := projections.Min{Lane: 2, Commit: 7}
	secret := errors.New("dial tcp 10.0.0.1:4222: password wrong")
	for _, test := range []struct {
		err    error
		reason Reason
		retry  time.Duration
		logged bool
	}{
		{&domain.OutOfStockError{SKU: "a", Want: 2, Free: 1}, ReasonOutOfStock, 0, false},
		{&domain.StockMovingError{SKU: "a", Want: 2, Short: 1}, ReasonStockMoving, 100 * time.Millisecond, false},
		{&domain.UnknownProductError{SKU: "a"}, ReasonUnknownProduct, 0, false},
		{&domain.OrderNotFoundError{OrderID: id}, ReasonOrderNotFound, 0, false},
		{&domain.OrderExpiredError{OrderID: id}, ReasonOrderExpired, 0, false},
		{&domain.OrderCancelledError{OrderID: id}, ReasonOrderCancelled, 0, false},
		{&domain.OrderShippedError{OrderID: id}, ReasonOrderShipped, 0, false},
		{&domain.PaymentStateError{OrderID: id, Payment: domain.PayPending}, ReasonPaymentState, 0, false},
		{&domain.FulfilmentStateError{OrderID: id, Fulfilment: domain.FulfilmentShipped}, ReasonFulfilmentState, 0, false},
		{&domain.OrderPartNotFoundError{Part: "refund", ID: "r"}, ReasonOrderPartNotFound, 0, false},
		{&domain.OrderLimitError{Part: "notes", Limit: 100}, ReasonOrderLimit, 0, false},
		{&domain.EndpointLimitError{Limit: 64}, ReasonEndpointLimit, 0, false},
		{&domain.RefundExceedsCapturedError{PaymentID: "p"}, ReasonRefundExceedsCaptured, 0, false},
		{&domain.UnitsExceededError{SKU: "a", Want: 2, Left: 1}, ReasonUnitsExceeded, 0, false},
		{&domain.AmountMismatchError{PaymentID: "p"}, ReasonAmountMismatch, 0, false},
		{&domain.MixedCurrenciesError{First: "EUR", Other: "JPY"}, ReasonMixedCurrencies, 0, false},
		{&domain.AmountOverflowError{What: "9 × 9 EUR"}, ReasonAmountOverflow, 0, false},
		{&domain.InvalidArgumentError{Argument: "lines", Problem: "none"}, ReasonInvalidArgument, 0, false},
		{fmt.Errorf("wrapped: %w", &domain.OutOfStockError{SKU: "a"}), ReasonOutOfStock, 0, false},
		{&lanes.KeyReusedError{UserID: "ada", RequestID: "r"}, ReasonKeyReused, 0, false},
		{&eventstore.QueueFullError{Lane: 2, RetryAfter: 1500 * time.Millisecond}, ReasonQueueFull, 1500 * time.Millisecond, false},
		{&eventstore.QueueFullError{Lane: 2, RetryAfter: time.Hour}, ReasonQueueFull, time.Minute, false},
		{&eventstore.QueueFullError{Lane: 2}, ReasonQueueFull, time.Millisecond, false},
		{eventstore.ErrLogFull, ReasonLogFull, 5 * time.Second, false},
		{&eventstore.UnavailableError{Lane: 2, RetryAfter: time.Second, Cause: eventstore.ErrLogFull}, ReasonLogFull, 5 * time.Second, false},
		{&eventstore.UnavailableError{Lane: 2, RetryAfter: time.Second, Cause: secret}, ReasonLaneUnavailable, time.Second, false},
		{&keysError{secret}, ReasonKeysUnavailable, 5 * time.Second, true},
		{&keysError{context.DeadlineExceeded}, ReasonDeadlineExceeded, 0, false},
		{context.DeadlineExceeded, ReasonDeadlineExceeded, 0, false},
		{os.ErrDeadlineExceeded, ReasonDeadlineExceeded, 0, false},
		{context.Canceled, ReasonCanceled, 0, false},
		{secret, ReasonInternal, 0, true},
		{viewFault(projections.ErrBehind, min, nil), ReasonViewBehind, 100 * time.Millisecond, false},
		{viewFault(projections.ErrParked, min, nil), ReasonViewParked, time.Minute, false},
		{viewFault(projections.ErrNotFound, min, productNotFound("a")), ReasonProductNotFound, 0, false},
		{webhookFault(webhooks.ErrNoEndpoint, "erp"), ReasonEndpointNotFound, 0, false},
		{webhookFault(reactors.ErrNoEvent, "erp"), ReasonEventNotFound, 0, false},
		{viewFault(projections.ErrBadPageToken, min, nil), ReasonInvalidArgument, 0, false},
		{viewFault(projections.ErrTooManyWatchers, min, nil), ReasonTooManyWatches, 5 * time.Second, false},
		{viewFault(&readpath.OverloadedError{Name: "orders", LoadsMax: 64, RetryAfter: time.Second}, min, nil), ReasonReadsFull, time.Second, false},
		{viewFault(projections.ErrStopped, min, nil), ReasonLaneUnavailable, 5 * time.Second, false},
		{viewFault(secret, min, nil), ReasonInternal, 0, true},
		{unauthenticated(), ReasonUnauthenticated, 0, false},
		{permissionDenied(identity.ScopeActAs), ReasonPermissionDenied, 0, false},
		{errShuttingDown, ReasonShuttingDown, time.Second, false},
	} {
		var logs bytes.Buffer
		var got *connect.Error
		if !errors.As(newTestHandler(&logs).fail(t.Context(), "/p", test.err), &got) {
			t.Fatalf("%v: not a Connect error", test.err)
		}
		info, retry, bad := detailsOf(t, got)
		row := reasons[test.reason]
		if got.Code() != row.code || info.GetReason() != string(test.reason) || info.GetDomain() != "weir" {
			t.Errorf("%v: got %s %v, want %s %s", test.err, got.Code(), info, row.code, test.reason)
		}
		for fact := range info.GetMetadata() {
			if !slices.Contains(row.facts, fact) {
				t.Errorf("%v: the fact %s is not in the table", test.err, fact)
			}
		}
		if (retry != nil) != row.retry || retry.GetRetryDelay().AsDuration() != test.retry || (got.Meta().Get("Retry-After") != "") != row.retry {
			t.Errorf("%v: got %v, Retry-After %q, want a delay of %s", test.err, retry, got.Meta().Get("Retry-After"), test.retry)
		}
		if bad != nil && test.reason != ReasonInvalidArgument {
			t.Errorf("%v: got %v", test.err, bad)
		}
		if lines := strings.Count(logs.String(), "\n"); (lines == 1) != test.logged || lines > 1 {
			t.Errorf("%v: logged %d lines: %s", test.err, lines, logs.String())
		}
		if strings.Contains(got.Message(), "password") || strings.Contains(fmt.Sprint(got.Details()), "password") {
			t.Errorf("%v: the caller is told the cause: %s", test.err, got)
		}
	}
}

func TestRetryAfterHeaderIsWholeSecondsRoundedUp(t *testing.T) {
	for delay, want := range map[time.Duration]string{
		time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Hour: "60", -time.Second: "1",
	} {
		f := &fault{reason: ReasonQueueFull, retryAfter: delay}
		if got := f.connectError().Meta().Get("Retry-After"); got != want {
			t.Errorf("%s: got %q, want %q", delay, got, want)
		}
	}
}

func TestSameFaultHasTheSameBytes(t *testing.T) {
	make := func() []byte {
		f := &fault{reason: ReasonOutOfStock, facts: map[string]string{"sku": "a", "want": "2", "free": "1"}}
		return f.connectError().Details()[0].Bytes()
	}
	first := make()
	for range 50 {
		if again := make(); !bytes.Equal(first, again) {
			t.Fatalf("got %x, then %x", first, again)
		}
	}
}
