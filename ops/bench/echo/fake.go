package echo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// A Behaviour is what a fake upstream does with every call. The zero value answers at once.
type Behaviour struct {
	// Places is how many calls are served at a time, the others wait for their turn; 0 means all.
	Places int `json:"places,omitempty"`
	// Delay is how long a call takes once it has a place.
	Delay time.Duration `json:"delay,omitempty"`
	// Fails makes every call end as UNAVAILABLE.
	Fails bool `json:"fails,omitempty"`
}

// The paths at which a fake upstream is told what to do (PUT) and asked how many calls it got (GET). They are no procedures.
const (
	BehaviourPath = "/behaviour"
	CallsPath     = "/calls"
)

// behaviourBytesMax bounds a behaviour in JSON, placesMax its places, and delayMax its delay.
const (
	behaviourBytesMax = 4 << 10
	placesMax         = 10_000
	delayMax          = time.Minute
)

// A fake is an upstream that behaves as it is told. It counts every call before anything else: what a gateway says that it sent and
// what arrived are two figures, and the second one counts.
type fake struct {
	options Options
	errors  *connect.ErrorWriter
	calls   atomic.Uint64
	now     atomic.Pointer[behaving]
}

type behaving struct {
	Behaviour
	places chan struct{} // nil if all are served at once
}

// RunFake serves every unary Connect call until ctx ends: orders with the replies of options, all others with an empty message.
func RunFake(ctx context.Context, options Options) error {
	f := &fake{options: options, errors: connect.NewErrorWriter()}
	f.now.Store(&behaving{})
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+BehaviourPath, f.behave)
	mux.HandleFunc("GET "+CallsPath, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, f.calls.Load()) })
	mux.HandleFunc("POST /", f.serve)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", options.Listen)
	if err != nil {
		return err
	}
	return serve(ctx, listener, mux)
}

func (f *fake) behave(w http.ResponseWriter, r *http.Request) {
	var next Behaviour
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, behaviourBytesMax))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&next)
	switch {
	case err != nil:
	case next.Places < 0 || next.Places > placesMax:
		err = fmt.Errorf("places must be 0 to %d, not %d", placesMax, next.Places)
	case next.Delay < 0 || next.Delay > delayMax:
		err = fmt.Errorf("a delay must be 0 to %v, not %v", delayMax, next.Delay)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	to := &behaving{Behaviour: next}
	if next.Places > 0 {
		to.places = make(chan struct{}, next.Places)
	}
	f.now.Store(to)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	f.calls.Add(1)
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, readMaxBytes)); err != nil {
		_ = f.errors.Write(w, r, connect.NewError(connect.CodeInvalidArgument, err)) // Whoever asked has left.
		return
	}
	now := f.now.Load()
	if now.places != nil {
		select {
		case now.places <- struct{}{}:
			defer func() { <-now.places }()
		case <-r.Context().Done():
			return
		}
	}
	if now.Delay > 0 {
		select {
		case <-time.After(now.Delay):
		case <-r.Context().Done():
			return
		}
	}
	if now.Fails {
		_ = f.errors.Write(w, r, connect.NewError(connect.CodeUnavailable, errors.New("told to fail"))) // Whoever asked has left.
		return
	}
	w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	switch r.URL.Path {
	case orderv1connect.OrderServicePlaceOrderProcedure:
		_, _ = w.Write(f.options.PlaceReply)
	case orderv1connect.OrderServiceGetOrderProcedure:
		_, _ = w.Write(f.options.GetReply)
	}
}
