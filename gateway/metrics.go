package gateway

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/outcome"
)

// bucketsMax are the upper bounds of the buckets of a latency, in seconds.
var bucketsMax = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// codesMax is one more than the largest code.
const codesMax = int(connect.CodeUnauthenticated) + 1

// A series counts the attempts of one method at one upstream. Attempts count into it without a lock, and it is read when somebody looks.
type series struct {
	inFlight atomic.Int64
	codes    [codesMax]atomic.Uint64
	buckets  [len(bucketsMax) + 1]atomic.Uint64
	nanos    atomic.Int64
}

// A tally is counts that are made as they are needed, and read while others count.
type tally[K comparable, V any] struct{ counts sync.Map }

// of returns the count of a key.
func (t *tally[K, V]) of(key K) *V {
	kept, ok := t.counts.Load(key)
	if !ok {
		kept, _ = t.counts.LoadOrStore(key, new(V))
	}
	return kept.(*V) //nolint:errcheck // Nothing else is in it.
}

// each yields all of them, in no order.
func (t *tally[K, V]) each(yield func(K, *V) bool) {
	t.counts.Range(func(key, count any) bool {
		return yield(key.(K), count.(*V)) //nolint:errcheck // Nothing else is in it.
	})
}

// A watch is an attempt under way.
type watch struct {
	series *series
	began  time.Time
}

func (s *series) begin() watch {
	s.inFlight.Add(1)
	return watch{series: s, began: time.Now()}
}

// end counts the attempt, and returns how long it took.
func (w watch) end(code connect.Code) time.Duration {
	took := time.Since(w.began)
	s := w.series
	s.inFlight.Add(-1)
	s.codes[min(int(code), codesMax-1)].Add(1)
	bucket, _ := slices.BinarySearch(bucketsMax[:], took.Seconds())
	s.buckets[bucket].Add(1)
	s.nanos.Add(int64(took))
	return took
}

// metrics are what the gateway counts beside its upstreams' series.
type metrics struct {
	// refusals count the gateway's own answers.
	refusals tally[refusalKey, atomic.Uint64]
}

type refusalKey struct {
	method *method
	reason reason
}

func newMetrics() *metrics { return &metrics{} }

// refused counts an answer of the gateway itself.
func (m *metrics) refused(of *method, why reason) { m.refusals.of(refusalKey{of, why}).Add(1) }

// codeName names a code as metrics do.
func codeName(code int) string {
	if code == 0 {
		return "ok"
	}
	return connect.Code(code).String()
}

// The descriptions of the metrics.
var (
	attemptsDesc     = prometheus.NewDesc("weir_gateway_attempts_total", "Calls sent to an upstream, by how they ended there.", []string{"method", "upstream", "code"}, nil)
	latencyDesc      = prometheus.NewDesc("weir_gateway_attempt_seconds", "How long an upstream took, to the end of the reply.", []string{"method", "upstream"}, nil)
	inFlightDesc     = prometheus.NewDesc("weir_gateway_attempts_in_flight", "Calls under way at an upstream.", []string{"method", "upstream"}, nil)
	refusalsDesc     = prometheus.NewDesc("weir_gateway_refusals_total", "Calls that the gateway answered itself, by reason.", []string{"method", "reason"}, nil)
	callsDesc        = prometheus.NewDesc("weir_gateway_calls_in_flight", "Calls under way in the gateway.", nil, nil)
	breakerDesc      = prometheus.NewDesc("weir_gateway_breaker_open", "1 while calls of a method to an upstream are refused, 0.5 while some go through to see.", []string{"method", "upstream"}, nil)
	openedDesc       = prometheus.NewDesc("weir_gateway_breaker_opened_total", "How often a breaker opened.", []string{"method", "upstream"}, nil)
	ejectedDesc      = prometheus.NewDesc("weir_gateway_upstream_ejected", "1 while an upstream gets no calls.", []string{"upstream"}, nil)
	placesDesc       = prometheus.NewDesc("weir_gateway_places", "How many calls may be under way at once.", nil, nil)
	groupedDesc      = prometheus.NewDesc("weir_gateway_grouped", "The share of methods whose upstreams say that they commit in groups, so that calls may take longer.", nil, nil)
	waitingDesc      = prometheus.NewDesc("weir_gateway_waiting", "Calls that wait for a place.", nil, nil)
	strandedDesc     = prometheus.NewDesc("weir_gateway_stranded", "Calls that wait at a node for a lane that nobody decides, and take no place.", nil, nil)
	edgeDesc         = prometheus.NewDesc("weir_gateway_edge_total", "Calls that the edge answered: turned off, sold out, without a pass, or with an older answer.", []string{"what"}, nil)
	roomWaitingDesc  = prometheus.NewDesc("weir_gateway_room_waiting", "Users in a waiting room whose turn has not come.", []string{"campaign"}, nil)
	roomAdmittedDesc = prometheus.NewDesc("weir_gateway_room_admitted_total", "Users whom a waiting room let in.", []string{"campaign"}, nil)
	barDesc          = prometheus.NewDesc("weir_gateway_bar", "Share of the levels of priority that is refused at once.", nil, nil)
	retriesDesc      = prometheus.NewDesc("weir_gateway_retries_total", "Attempts after a call's first, by whether the budget paid.", []string{"paid"}, nil)
	planDesc         = prometheus.NewDesc("weir_gateway_plan_active", "1 for each plan that is active, with its revision.", []string{"plan", "revision"}, nil)
	lackingDesc      = prometheus.NewDesc("weir_gateway_plan_switches_lacking", "Switches of active plans that do nothing at this gateway.", nil, nil)
	refusedConns     = prometheus.NewDesc("weir_gateway_connections_refused_total", "Connections closed because there were too many.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *Gateway) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{attemptsDesc, latencyDesc, inFlightDesc, refusalsDesc, callsDesc, refusedConns, breakerDesc, openedDesc, ejectedDesc, placesDesc, groupedDesc, waitingDesc, strandedDesc, barDesc, retriesDesc, keptDesc, keptEventsDesc, edgeDesc, planDesc, lackingDesc, roomWaitingDesc, roomAdmittedDesc} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (g *Gateway) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.MustNewConstMetric(callsDesc, prometheus.GaugeValue, float64(g.calls.Load()))
	metrics <- prometheus.MustNewConstMetric(refusedConns, prometheus.CounterValue, float64(g.connectionsRefused.Load()))
	g.collectStates(metrics)
	g.collectFailback(metrics)
	answers := g.edge.Stats()
	for what, count := range map[string]uint64{
		"off": answers.Off, "sold_out": answers.SoldOut, "waiting_room": answers.Room, "stale_failed": answers.StaleFailed, "stale_planned": answers.StalePlanned,
	} {
		metrics <- prometheus.MustNewConstMetric(edgeDesc, prometheus.CounterValue, float64(count), what)
	}
	for _, upstream := range g.upstreams.Load().all() {
		for m, s := range upstream.counts.each {
			name := strings.TrimPrefix(m.name, "/")
			for code := range codesMax {
				if count := s.codes[code].Load(); count > 0 {
					metrics <- prometheus.MustNewConstMetric(attemptsDesc, prometheus.CounterValue, float64(count), name, upstream.id, codeName(code))
				}
			}
			buckets, total := make(map[float64]uint64, len(bucketsMax)), uint64(0)
			for i, bound := range bucketsMax {
				total += s.buckets[i].Load()
				buckets[bound] = total
			}
			total += s.buckets[len(bucketsMax)].Load()
			metrics <- prometheus.MustNewConstHistogram(latencyDesc, total, time.Duration(s.nanos.Load()).Seconds(), buckets, name, upstream.id)
			metrics <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(s.inFlight.Load()), name, upstream.id)
		}
	}
	for key, count := range g.metrics.refusals.each {
		metrics <- prometheus.MustNewConstMetric(refusalsDesc, prometheus.CounterValue, float64(count.Load()), strings.TrimPrefix(key.method.name, "/"), string(key.reason))
	}
}

// collectStates tells how breakers, upstreams, limits and the budget stand.
func (g *Gateway) collectStates(metrics chan<- prometheus.Metric) {
	status := g.Status()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge(placesDesc, float64(status.Places))
	gauge(groupedDesc, status.Grouped)
	gauge(waitingDesc, float64(status.Waiting))
	gauge(strandedDesc, float64(status.Stranded))
	gauge(barDesc, status.Bar)
	counter(retriesDesc, status.RetriesPaid, "yes")
	counter(retriesDesc, status.RetriesUnpaid, "no")
	gauge(lackingDesc, float64(len(status.PlansLacking)))
	for _, of := range status.Rooms {
		gauge(roomWaitingDesc, float64(of.Waiting), of.CampaignID)
		counter(roomAdmittedDesc, of.Admitted, of.CampaignID)
	}
	for _, active := range g.rules.Load().planned.set.Plans {
		gauge(planDesc, 1, active.Plan.Name, strconv.FormatUint(active.Revision, 10))
	}
	for _, of := range status.Breakers {
		open := map[string]float64{breaker.Open.String(): 1, breaker.HalfOpen.String(): 0.5}[of.State]
		gauge(breakerDesc, open, of.Method, of.Upstream)
		counter(openedDesc, of.Opened, of.Method, of.Upstream)
	}
	for _, of := range status.Upstreams {
		ejected := 0.0
		if of.Ejected {
			ejected = 1
		}
		gauge(ejectedDesc, ejected, of.ID)
	}
}

// A Status is what an operator sees of a gateway at one moment. Counters count from the gateway's start.
type Status struct {
	Upstreams []UpstreamStatus `json:"upstreams"`
	// Panics is whether so few upstreams are healthy that calls go to all.
	Panics   bool            `json:"panics"`
	Methods  []MethodStatus  `json:"methods"`
	Breakers []BreakerStatus `json:"breakers"`
	Refusals []RefusalStatus `json:"refusals"`
	// CallsInFlight are the calls under way, those with them that wait or are refused.
	CallsInFlight int64 `json:"calls_in_flight"`
	// UnderWay of Places calls are let through, and Waiting wait for a place. Bar is the share of the priorities' levels that is refused at once.
	UnderWay int `json:"under_way"`
	Places   int `json:"places"`
	Waiting  int `json:"waiting"`
	// Grouped is the share of methods whose upstreams say that they commit in groups (HeaderGroups).
	Grouped float64 `json:"grouped"`
	// Stranded are calls that wait at a node for a lane that nobody decides. They take no place.
	Stranded int     `json:"stranded"`
	Bar      float64 `json:"bar"`
	// RetriesPaid and RetriesUnpaid count attempts after a call's first, and those that the budget did not pay for.
	RetriesPaid   uint64 `json:"retries_paid"`
	RetriesUnpaid uint64 `json:"retries_unpaid"`
	// Plans that are active, as in HeaderPlan, and PlansLacking their switches that do nothing at this gateway.
	Plans        string   `json:"plans"`
	PlansLacking []string `json:"plans_lacking"`
	// Edge counts the calls that the edge answered, Rooms are the waiting rooms, and Failback what is made later: null where nothing is kept, or NATS does
	// not say.
	Edge     EdgeStatus      `json:"edge"`
	Rooms    []RoomStatus    `json:"rooms"`
	Failback *FailbackStatus `json:"failback"`
}

// An EdgeStatus counts the calls that were answered without a node.
type EdgeStatus struct {
	Off          uint64 `json:"off"`
	SoldOut      uint64 `json:"sold_out"`
	WithoutPass  uint64 `json:"without_pass"`
	StaleFailed  uint64 `json:"stale_failed"`
	StalePlanned uint64 `json:"stale_planned"`
}

// A RoomStatus is the waiting room of one campaign at this gateway.
type RoomStatus struct {
	CampaignID string `json:"campaign_id"`
	Waiting    int    `json:"waiting"`
	Places     int    `json:"places"`
	Admitted   uint64 `json:"admitted"`
	// Outstanding have a pass that is good and not used; Unshared orders were let through without asking the other gateways, in all rooms.
	Outstanding int    `json:"outstanding"`
	Unshared    uint64 `json:"unshared"`
}

// A FailbackStatus is what is kept for later: Waiting and Parked in all gateways' stream, the rest counts what this gateway did.
type FailbackStatus struct {
	Waiting  uint64 `json:"waiting"`
	Parked   uint64 `json:"parked"`
	Accepted uint64 `json:"accepted"`
	Full     uint64 `json:"full"`
	Attempts uint64 `json:"attempts"`
	Failed   uint64 `json:"failed"`
	Done     uint64 `json:"done"`
}

// An UpstreamStatus is what is known of one upstream.
type UpstreamStatus struct {
	ID       string `json:"id"`
	Draining bool   `json:"draining"`
	InFlight int64  `json:"in_flight"`
	// LatencySeconds is what it is expected to take.
	LatencySeconds float64 `json:"latency_seconds"`
	// Ejected says that it gets no calls now, and EjectedWhy why it was the last time.
	Ejected    bool   `json:"ejected"`
	EjectedWhy string `json:"ejected_why"`
	Picks      uint64 `json:"picks"`
	Ejections  uint64 `json:"ejections"`
}

// A BreakerStatus is a breaker that has something to tell: it is not closed, or was not always.
type BreakerStatus struct {
	Upstream string `json:"upstream"`
	Method   string `json:"method"`
	State    string `json:"state"`
	Forced   string `json:"forced"`
	Opened   uint64 `json:"opened"`
	Refused  uint64 `json:"refused"`
}

// A MethodStatus counts the attempts of one method at one upstream.
type MethodStatus struct {
	Method   string `json:"method"`
	Upstream string `json:"upstream"`
	InFlight int64  `json:"in_flight"`
	// Good, Overload, Fault and Abandoned count how attempts ended; Codes has the same by code.
	Good      uint64            `json:"good"`
	Overload  uint64            `json:"overload"`
	Fault     uint64            `json:"fault"`
	Abandoned uint64            `json:"abandoned"`
	Codes     map[string]uint64 `json:"codes"`
	// Nanos is the sum of what they took.
	Nanos int64 `json:"nanos"`
}

// A RefusalStatus counts what the gateway answered itself.
type RefusalStatus struct {
	Method string `json:"method"`
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// Status returns what an operator sees now, in a stable order.
func (g *Gateway) Status() Status {
	rules := g.rules.Load()
	limits, retries := g.limiter.Stats(), rules.budget.Stats()
	status := Status{
		Upstreams: []UpstreamStatus{}, Methods: []MethodStatus{}, Breakers: []BreakerStatus{}, Refusals: []RefusalStatus{}, CallsInFlight: g.calls.Load(),
		UnderWay: limits.UnderWay, Places: limits.Places, Waiting: limits.Waiting, Grouped: limits.Grouped, Stranded: g.strands.waiting(), Bar: limits.Bar,
		RetriesPaid: retries.Paid, RetriesUnpaid: retries.Refused,
		Plans: rules.planned.set.Label, PlansLacking: append([]string{}, rules.planned.lacking...),
	}
	answers := g.edge.Stats()
	status.Edge = EdgeStatus{answers.Off, answers.SoldOut, answers.Room, answers.StaleFailed, answers.StalePlanned}
	status.Rooms = []RoomStatus{}
	if g.hall != nil {
		for _, of := range g.hall.Stats() {
			status.Rooms = append(status.Rooms, RoomStatus(of))
		}
	}
	var balanced []balance.Status
	balanced, status.Panics = rules.balancer.Statuses()
	for _, of := range balanced {
		status.Upstreams = append(status.Upstreams, UpstreamStatus{
			ID: of.ID, Draining: of.Draining, InFlight: of.InFlight, LatencySeconds: of.Latency.Seconds(),
			Ejected: of.Ejected, EjectedWhy: of.Reason.String(), Picks: of.Picks, Ejections: of.Ejections,
		})
	}
	for _, of := range rules.breakers.Statuses() {
		if of.State != breaker.Closed || of.Forced != breaker.NotForced || of.Opened > 0 || of.Refused > 0 {
			status.Breakers = append(status.Breakers, BreakerStatus{
				Upstream: of.Upstream, Method: strings.TrimPrefix(of.Method, "/"), State: of.State.String(), Forced: of.Forced.String(), Opened: of.Opened, Refused: of.Refused,
			})
		}
	}
	for _, upstream := range g.upstreams.Load().all() {
		for m, s := range upstream.counts.each {
			status.Methods = append(status.Methods, s.status(m, upstream))
		}
	}
	for key, count := range g.metrics.refusals.each {
		status.Refusals = append(status.Refusals, RefusalStatus{strings.TrimPrefix(key.method.name, "/"), string(key.reason), count.Load()})
	}
	slices.SortFunc(status.Methods, func(a, b MethodStatus) int {
		return strings.Compare(a.Method+"\x00"+a.Upstream, b.Method+"\x00"+b.Upstream)
	})
	slices.SortFunc(status.Refusals, func(a, b RefusalStatus) int {
		return strings.Compare(a.Method+"\x00"+a.Reason, b.Method+"\x00"+b.Reason)
	})
	return status
}

func (s *series) status(m *method, u *upstream) MethodStatus {
	status := MethodStatus{
		Method: strings.TrimPrefix(m.name, "/"), Upstream: u.id, InFlight: s.inFlight.Load(), Codes: map[string]uint64{}, Nanos: s.nanos.Load(),
	}
	for code := range codesMax {
		count := s.codes[code].Load()
		if count == 0 {
			continue
		}
		status.Codes[codeName(code)] = count
		switch outcome.OfCode(connect.Code(code)) {
		case outcome.Good:
			status.Good += count
		case outcome.Overload:
			status.Overload += count
		case outcome.Fault:
			status.Fault += count
		case outcome.Abandoned:
			status.Abandoned += count
		}
	}
	return status
}

// OperatorHandler serves /metrics for Prometheus, /status as JSON, and /healthz. It is for operators alone: it asks nobody who they are.
func (g *Gateway) OperatorHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(g)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		status := g.Status()
		status.Failback = g.failbackStatus(r.Context())
		_ = json.NewEncoder(w).Encode(status) // Whoever asked has left.
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	return mux
}
