package api

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/domain"
)

// crowdOf are refusals that a crowd gets, one of each kind.
func crowdOf() []error {
	return []error{
		&domain.OutOfStockError{SKU: "tea <&\u2028>\"\\茶", Want: 2, Free: 1},
		&domain.CampaignClosedError{CampaignID: "single's day", ClosedAt: time.UnixMilli(1_762_819_200_000).UTC()},
		&domain.CampaignLimitError{CampaignID: "c", Limit: 1, Already: 1, Want: 1},
		&domain.CampaignMaxPerOrderError{CampaignID: "c", Limit: 1, Want: 7},
	}
}

// written is an error as it goes over the wire.
func written(t *testing.T, contentType string, err error) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/p", http.NoBody)
	request.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	if err := connect.NewErrorWriter().Write(w, request, err); err != nil {
		t.Fatal(err)
	}
	w.Header().Del("Trailer") // The trailers' names, in an order that Connect leaves open.
	return w
}

// keep lets the handler refuse until it keeps what it says.
func keep(t *testing.T, h *Handler, refusal error) {
	t.Helper()
	key, crowd := crowdKey(refusal)
	for range crowdMissesPerKept {
		if err := h.fail(t.Context(), "/p", refusal); err == nil {
			t.Fatalf("%v: no error", refusal)
		}
	}
	if _, kept := h.crowd.connectError(key); !kept || !crowd {
		t.Fatalf("%v: after %d refusals it is not kept", refusal, crowdMissesPerKept)
	}
}

func TestRefusalOfACrowdIsWrittenInTheSameBytesWhetherItIsKeptOrNot(t *testing.T) {
	for _, refusal := range crowdOf() {
		var logs bytes.Buffer
		h := newTestHandler(&logs)
		first := map[string]*httptest.ResponseRecorder{}
		for _, contentType := range []string{"application/proto", "application/json", "application/grpc", "application/grpc-web"} {
			f, _ := faultOf(refusal)
			first[contentType] = written(t, contentType, f.connectError())
		}
		keep(t, h, refusal)
		for contentType, want := range first {
			got := written(t, contentType, h.fail(t.Context(), "/p", fmt.Errorf("wrapped: %w", refusal)))
			if got.Code != want.Code || !bytes.Equal(got.Body.Bytes(), want.Body.Bytes()) || !reflect.DeepEqual(got.Header(), want.Header()) {
				t.Errorf("%s, %v:\ngot  %d %v %q\nwant %d %v %q", contentType, refusal, got.Code, got.Header(), got.Body, want.Code, want.Header(), want.Body)
			}
		}
		if logs.Len() > 0 {
			t.Errorf("%v: it was logged: %s", refusal, &logs)
		}
	}
}

func TestRefusalsOfACrowdDifferWhereTheirFactsDo(t *testing.T) {
	h := newTestHandler(&bytes.Buffer{})
	keep(t, h, &domain.OutOfStockError{SKU: "tea", Want: 2, Free: 1})
	for _, other := range []error{
		&domain.OutOfStockError{SKU: "tea", Want: 2}, &domain.OutOfStockError{SKU: "tea", Want: 3, Free: 1}, &domain.OutOfStockError{SKU: "te", Want: 2, Free: 1},
	} {
		var got *connect.Error
		if !errors.As(h.fail(t.Context(), "/p", other), &got) {
			t.Fatalf("%v: not a Connect error", other)
		}
		var refusal domain.Refusal
		errors.As(other, &refusal)
		if info, _, _ := detailsOf(t, got); !maps.Equal(info.GetMetadata(), refusal.Facts()) || got.Message() != other.Error() {
			t.Errorf("%v: got %v", other, got)
		}
	}
}

func TestNoRefusalOfACrowdSaysWhenToComeAgain(t *testing.T) {
	for _, refusal := range crowdOf() {
		f, _ := faultOf(refusal)
		if reasons[f.reason].retry || len(f.connectError().Meta()) > 0 {
			t.Errorf("%v has headers, which are lost when it is kept", refusal)
		}
	}
}

func TestRefusalsOfACrowdThatAreKeptAreBounded(t *testing.T) {
	h := newTestHandler(&bytes.Buffer{})
	f, _ := faultOf(&domain.OutOfStockError{SKU: "tea", Want: 1})
	connectErr := f.connectError()
	for want := range int64(crowdRefusalsMax + 1) {
		for range crowdMissesPerKept {
			h.crowd.miss(t.Context(), domain.OutOfStockError{SKU: "tea", Want: want}, f, connectErr)
		}
		kept := 0
		h.crowd.kept.Range(func(any, any) bool { kept++; return true })
		if most := int(want)%crowdRefusalsMax + 1; kept != most {
			t.Fatalf("%d are kept after %d that differ, want %d (I8)", kept, want+1, most)
		}
	}
}

func TestRefusalsOfACrowdMayBeMadeByManyAtOnce(t *testing.T) {
	h := newTestHandler(&bytes.Buffer{})
	refusal := &domain.OutOfStockError{SKU: "tea", Want: 1}
	f, _ := faultOf(refusal)
	want := written(t, "application/proto", f.connectError()).Body.String()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 4 * crowdMissesPerKept {
				w := httptest.NewRecorder()
				request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/p", http.NoBody)
				request.Header.Set("Content-Type", "application/proto")
				if err := connect.NewErrorWriter().Write(w, request, h.fail(t.Context(), "/p", refusal)); err != nil || w.Body.String() != want {
					t.Errorf("got %v %s, want %s", err, w.Body, want)
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkMissCrowdRefusal is what a refusal costs that is kept and not asked for again.
func BenchmarkMissCrowdRefusal(b *testing.B) {
	h := newTestHandler(&bytes.Buffer{})
	b.ReportAllocs()
	for want := int64(0); b.Loop(); want++ {
		_ = h.fail(b.Context(), "/p", &domain.OutOfStockError{SKU: "tea", Want: want})
	}
}
