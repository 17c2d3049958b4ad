package load_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
)

func TestAClosedLoopMakesEveryCallOnceAndReadsEveryKindOfBody(t *testing.T) {
	var calls atomic.Int64
	seen := make([]atomic.Int64, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		var number int
		if _, err := fmt.Sscanf(string(body), "call-%d", &number); err == nil {
			seen[number].Add(1)
		}
		// Long bodies go out in chunks, short ones with their length, some with none at all.
		_, _ = w.Write(bytes.Repeat([]byte("x"), []int{0, 10, 5000, 70000}[number%4]))
	}))
	defer server.Close()
	template, err := load.NewTemplate("/", "text/plain", "", []byte("call-000"), load.Field{Placeholder: "000", Fill: load.Counter("")})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[int]int{}
	result, err := load.Run(t.Context(), load.Options{
		Addr: server.Listener.Addr().String(), Connections: 8, Calls: 1000, Source: template,
		OnReply: func(_ int, body []byte) { sizes[len(body)]++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Calls != 1000 || result.Failed != 0 || result.Latency.Count() != 1000 || calls.Load() != 1000 {
		t.Errorf("%d calls, %d failed, %d latencies, %d at the server, want 1000, 0, 1000, 1000", result.Calls, result.Failed, result.Latency.Count(), calls.Load())
	}
	for number := range seen {
		if got := seen[number].Load(); got != 1 {
			t.Errorf("request %d arrived %d times, want once", number, got)
		}
	}
	for _, size := range []int{0, 10, 5000, 70000} {
		if sizes[size] != 250 {
			t.Errorf("%d bodies of %d bytes, want 250", sizes[size], size)
		}
	}
}

// A server hangs up on a connection that carries nothing, also on a new one: a flood of few calls over many connections ended there.
func TestAConnectionThatIsHungUpOnBeforeItsTurnIsOpenedAgain(t *testing.T) {
	const connections = 4
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan net.Conn)
	server := http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})} //nolint:gosec // It serves this test.
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(&handed{listener, opened}) }()
	go func() {
		defer close(opened)
		for i := 0; ; i++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if i > 0 && i < connections { // All of the first ones but that of the first call.
				_ = conn.Close()
				continue
			}
			opened <- conn
		}
	}()
	defer func() {
		_ = server.Close()
		<-ended
	}()
	result, err := load.Run(t.Context(), load.Options{
		Addr: listener.Addr().String(), Connections: connections, Rate: 4, Calls: connections, Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Calls != connections || result.Failed != 0 {
		t.Errorf("%d calls were answered and %d failed, want %d and 0", result.Calls, result.Failed, connections)
	}
}

// handed is a listener of connections that somebody else accepts.
type handed struct {
	net.Listener
	opened <-chan net.Conn
}

func (h *handed) Accept() (net.Conn, error) {
	conn, open := <-h.opened
	if !open {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// A server hangs up on a connection that carries nothing, and a generator that left some of them idle failed in the middle of a long run.
func TestAnOpenLoopTakesTurnsAmongItsConnections(t *testing.T) {
	const connections, calls = 4, 40
	var seen sync.Map // by the client's address
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen.Store(r.RemoteAddr, true) }))
	defer server.Close()
	timed := 0
	_, err := load.Run(t.Context(), load.Options{
		Addr: server.Listener.Addr().String(), Connections: connections, Rate: 1000, Calls: calls, Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		OnTimed: func(status int, due, answered time.Time) {
			if timed++; status != http.StatusOK || due.IsZero() || answered.Before(due) {
				t.Errorf("reply %d: status %d, due %v, answered %v", timed, status, due, answered)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if timed != calls {
		t.Errorf("OnTimed was told of %d replies, want %d", timed, calls)
	}
	used := 0
	seen.Range(func(any, any) bool { used++; return true })
	if used != connections {
		t.Errorf("%d of %d connections carried calls", used, connections)
	}
}

func TestRepliesOtherThan200AreFailures(t *testing.T) {
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 7 {
			http.Error(w, "sold out", http.StatusConflict)
		}
	}))
	defer server.Close()
	result, err := load.Run(t.Context(), load.Options{Addr: server.Listener.Addr().String(), Connections: 2, Calls: 20, Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n")})
	if err != nil {
		t.Fatal(err)
	}
	if result.Failed != 1 || result.Calls != 19 || result.FirstFailure != "status 409: sold out\n" {
		t.Errorf("%d calls, %d failed, %q, want 19, 1 and the conflict", result.Calls, result.Failed, result.FirstFailure)
	}
}

func TestAConnectionRestsAfterARefusal(t *testing.T) {
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	const connections = 4
	template, err := load.NewTemplate("/", "text/plain", "", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rest := range []time.Duration{time.Hour, time.Millisecond} {
		calls.Store(0)
		result, err := load.Run(t.Context(), load.Options{
			Addr: server.Listener.Addr().String(), Connections: connections, Duration: 300 * time.Millisecond, Rest: rest, Source: template,
		})
		if err != nil {
			t.Fatal(err)
		}
		got := calls.Load()
		if rest == time.Hour && got != connections || rest < time.Hour && got <= connections || result.Failed != uint64(got) {
			t.Errorf("%d connections that rest for %v made %d calls, of which %d failed", connections, rest, got, result.Failed)
		}
	}
}

func TestACallMayWantAnotherReplyThan200(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "sold out", http.StatusConflict) }))
	defer server.Close()
	result, err := load.Run(t.Context(), load.Options{
		Addr: server.Listener.Addr().String(), Connections: 2, Calls: 20, Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		Answered: func(status int, body []byte) bool {
			return status == http.StatusConflict && string(body) == "sold out\n"
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Failed != 0 || result.Calls != 20 || result.Latency.Count() != 20 {
		t.Errorf("%d calls, %d failed, %d latencies, want 20, 0 and 20", result.Calls, result.Failed, result.Latency.Count())
	}
}

// An open loop must not let a slow server slow down the requests that would show how slow it is.
func TestAnOpenLoopCountsLatencyFromWhenTheCallWasDue(t *testing.T) {
	const stall = 300 * time.Millisecond
	stalled := make(chan struct{}, 1)
	stalled <- struct{}{}
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case <-stalled:
			<-time.After(stall)
		default:
		}
	}))
	defer server.Close()
	// One connection: while the first call stalls, the others wait for it without having been sent.
	result, err := load.Run(t.Context(), load.Options{
		Addr: server.Listener.Addr().String(), Connections: 1, Rate: 100, Duration: time.Second,
		Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Calls != 100 || result.Failed != 0 {
		t.Errorf("%d calls, %d failed, want 100 and 0", result.Calls, result.Failed)
	}
	// 30 calls were due during the stall; the middle one of them waited for half of it.
	if got := result.Latency.Quantile(0.8); got < stall/5 {
		t.Errorf("the 80th percentile is %v: the stall of %v is hidden", got, stall)
	}
}

func TestAServerThatHangsUpIsAnError(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	if _, err := load.Run(t.Context(), load.Options{Addr: listener.Addr().String(), Connections: 1, Calls: 1, Source: fixed("GET / HTTP/1.1\r\nHost: x\r\n\r\n")}); err == nil {
		t.Error("no error")
	}
}

func TestHistogramQuantilesAreWithinTheirBucket(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var histogram, other load.Histogram
	const count = 10_000
	for i := range count {
		// Every duration of 1 to 10,000 µs once, in two histograms.
		into := &histogram
		if random.IntN(2) == 0 {
			into = &other
		}
		into.Record(time.Duration(i+1) * time.Microsecond)
	}
	histogram.Merge(&other)
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999} {
		exact := time.Duration(q*count+1) * time.Microsecond
		if got := histogram.Quantile(q); got < exact || got > exact+exact/64+1 {
			t.Errorf("seed %d: quantile %g = %v, want %v or up to 1/64 more", seed, q, got, exact)
		}
	}
	if got := histogram.Quantile(1); got != count*time.Microsecond || histogram.Count() != count {
		t.Errorf("seed %d: longest %v of %d, want 10ms of 10000", seed, got, histogram.Count())
	}
}

func TestTemplatePatchesEveryPlaceOfAField(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	template, err := load.NewTemplate("/order", "application/json", "token", []byte(`{"id":"r-000","again":"r-000","sku":"sku-00"}`),
		load.Field{Placeholder: "r-000", Fill: load.Counter("r-")},
		load.Field{Placeholder: `"sku-00"`, Fill: load.Pick(random, []string{`"sku-7"`})})
	if err != nil {
		t.Fatal(err)
	}
	template.Next()
	if got, want := string(template.Next()), `{"id":"r-001","again":"r-001","sku":"sku-7" }`; !bytes.HasSuffix([]byte(got), []byte("\r\n\r\n"+want)) {
		t.Errorf("the second request is %q, want the body %q", got, want)
	}
	if _, err := load.NewTemplate("/", "text/plain", "", []byte("nothing here"), load.Field{Placeholder: "000"}); err == nil {
		t.Error("a placeholder that the body does not have: no error")
	}
}

type fixed string

func (f fixed) Next() []byte { return []byte(f) }
