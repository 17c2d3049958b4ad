package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A Trial sees calls as they come and counts what would have become of them under other plans. It changes nothing. Its methods may be called by
// several goroutines.
type Trial struct {
	set    *Set
	policy Policy
	start  time.Time
	until  time.Time

	mu      sync.Mutex
	cells   map[string]*cell // by procedure and which rate
	users   map[string]*cell // by procedure and user
	methods map[string]*MethodReport
	skipped uint64
	forgot  time.Time
}

// A Policy says what holds where plans say nothing. A nil function means no rate, the priority that Priority is told with the call, and one gateway.
type Policy struct {
	// Rates of a procedure: of this gateway, of one user, and of all gateways.
	Rates func(procedure string) (rate, user, global Rate)
	// Gateways that share global rates.
	Gateways func() int
}

// A Call is one that the gateway has just let through, or not.
type Call struct {
	Procedure string
	// User that it is of, "" if that is not known.
	User string
	// Priority is one of Priorities, Upstream the node that it went to, "" if it went to none.
	Priority string
	Upstream string
	// UnderWay counts the calls under way when it came.
	UnderWay int
	// SoldOut says that it orders what is sold out, as far as the edge knows; Campaign is that which it orders in, and Admitted that its ticket
	// would let it through the waiting room.
	SoldOut  bool
	Campaign string
	Admitted bool
	// Refused is why the gateway did not let it through; "" if it did.
	Refused Reason
}

// A Reason is why a call is refused.
type Reason string

// The reasons. Of any other reason the trial says that it stays as it is.
const (
	ByOff         Reason = "off"
	ByPriority    Reason = "priority"
	ByConcurrency Reason = "concurrency"
	ByRate        Reason = "rate"
	ByUser        Reason = "user"
	ByGlobal      Reason = "global"
	ByBreaker     Reason = "breaker"
	BySoldOut     Reason = "sold_out"
	ByRoom        Reason = "waiting_room"
)

// A MethodReport counts the calls of one method.
type MethodReport struct {
	// Calls that came, and those of them that were Refused really.
	Calls   uint64 `json:"calls"`
	Refused uint64 `json:"refused"`
	// Would be refused under the plans that are tried, by reason.
	Would map[Reason]uint64 `json:"would"`
}

// WouldRefuse returns how many would be refused, for whatever reason.
func (r *MethodReport) WouldRefuse() uint64 {
	var sum uint64
	for _, calls := range r.Would {
		sum += calls
	}
	return sum
}

// A Report is what a trial saw, at one gateway or at several.
type Report struct {
	Gateway string        `json:"gateway"`
	Time    time.Duration `json:"time"`
	// Methods by procedure.
	Methods map[string]*MethodReport `json:"methods"`
	// UsersSkipped counts the calls of users that were too many to be counted each.
	UsersSkipped uint64 `json:"users_skipped"`
	// Problem is why there is no trial at this gateway.
	Problem string `json:"problem,omitempty"`
	// Done says that it is the last report of this gateway.
	Done bool `json:"done"`
}

// Total adds the methods up.
func (r *Report) Total() MethodReport {
	total := MethodReport{Would: map[Reason]uint64{}}
	for _, method := range r.Methods {
		total.Calls += method.Calls
		total.Refused += method.Refused
		for reason, calls := range method.Would {
			total.Would[reason] += calls
		}
	}
	return total
}

// Add takes another gateway's report in. The time is the longest.
func (r *Report) Add(other *Report) {
	if r.Methods == nil {
		r.Methods = map[string]*MethodReport{}
	}
	r.Time = max(r.Time, other.Time)
	r.UsersSkipped += other.UsersSkipped
	for procedure, more := range other.Methods {
		method := r.Methods[procedure]
		if method == nil {
			method = &MethodReport{Would: map[Reason]uint64{}}
			r.Methods[procedure] = method
		}
		method.Calls += more.Calls
		method.Refused += more.Refused
		for reason, calls := range more.Would {
			method.Would[reason] += calls
		}
	}
}

// Limits of trials.
const (
	// TrialMax bounds the time of one.
	TrialMax = 10 * time.Minute

	trialUsersMax   = 1 << 16
	trialForget     = time.Second
	trialMethodsMax = 512
	trialReportMax  = 512 << 10
	trialSubject    = "weir.plans.trial"
	trialReport     = time.Second
	trialPatience   = 3 * time.Second
	trialPending    = 16
)

// othersOfTrial stands for the methods that are too many.
const othersOfTrial = "other"

// NewTrial makes a trial of a set of plans for some time from now on.
func NewTrial(set *Set, policy Policy, now time.Time, window time.Duration) *Trial {
	return &Trial{
		set: set, policy: policy, start: now, until: now.Add(window), cells: map[string]*cell{}, users: map[string]*cell{},
		methods: map[string]*MethodReport{},
	}
}

// Trial returns the one that goes on, nil if there is none: a gateway asks for each call, and tells it of the call.
func (f *Follower) Trial() *Trial { return f.trial.Load() }

// See counts a call, at the time when it was decided on.
func (t *Trial) See(now time.Time, call Call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	method := t.methods[call.Procedure]
	if method == nil {
		name := call.Procedure
		if len(t.methods) >= trialMethodsMax {
			name = othersOfTrial
		}
		if method = t.methods[name]; method == nil {
			method = &MethodReport{Would: map[Reason]uint64{}}
			t.methods[name] = method
		}
	}
	method.Calls++
	if call.Refused != "" {
		method.Refused++
	}
	if reason := t.judge(now, call); reason != "" {
		method.Would[reason]++
	}
}

// judge says why the call would be refused, "" if it would not. It asks in the order in which a gateway does.
func (t *Trial) judge(now time.Time, call Call) Reason {
	of := t.set.Method(call.Procedure)
	if of.Off != nil {
		return ByOff
	}
	if room, says := t.set.WaitingRooms[call.Campaign]; call.Campaign != "" && says && room && !call.Admitted {
		return ByRoom
	}
	if t.set.SoldOut != nil && *t.set.SoldOut && call.SoldOut {
		return BySoldOut
	}
	if reason := t.judgeRates(now, call, of); reason != "" {
		return reason
	}
	if floor := slices.Index(Priorities, t.set.ShedBelow); floor > 0 {
		if priority := slices.Index(Priorities, call.Priority); priority >= 0 && priority < floor {
			return ByPriority
		}
	}
	if bound := t.set.Concurrency.Max; bound > 0 && call.UnderWay > bound {
		return ByConcurrency
	}
	switch force := t.set.Forced(call.Upstream, call.Procedure); {
	case force == "open" && (call.Upstream != "" || t.set.Forced("", call.Procedure) == "open"):
		return ByBreaker
	case force != "" && call.Refused == ByBreaker:
		return ""
	}
	return t.stays(call, of)
}

// stays says of a call that was refused really whether it would be again: what the plans say otherwise was judged already.
func (t *Trial) stays(call Call, of *Method) Reason {
	switch call.Refused {
	case ByRate, ByUser, ByGlobal:
		if change := map[Reason]*RateChange{ByRate: of.Rate, ByUser: of.User, ByGlobal: of.Global}[call.Refused]; change != nil {
			return ""
		}
	case ByOff:
		return "" // A plan alone turns off.
	case ByRoom:
		if on, says := t.set.WaitingRooms[call.Campaign]; !says || !on {
			return ""
		}
	case BySoldOut:
		if t.set.SoldOut == nil || !*t.set.SoldOut {
			return ""
		}
	case ByPriority:
		if t.set.ShedBelow == "" {
			return ""
		}
	}
	return call.Refused
}

// judgeRates takes the call from the rates that the plans change. What they leave as it is was decided by the gateway.
func (t *Trial) judgeRates(now time.Time, call Call, of *Method) Reason {
	var rate, user, global Rate
	if t.policy.Rates != nil {
		rate, user, global = t.policy.Rates(call.Procedure)
	}
	// Users first, as the gateway does: one who asks too often takes nothing from the others.
	if of.User != nil && call.User != "" {
		key := call.Procedure + "\x00" + call.User
		one := t.users[key]
		if one == nil {
			if len(t.users) >= trialUsersMax && now.Sub(t.forgot) >= trialForget {
				t.forget(now) // It looks at all of them: not for each call.
			}
			if len(t.users) < trialUsersMax {
				one = &cell{}
				t.users[key] = one
			}
		}
		switch {
		case one == nil:
			t.skipped++
		case !one.take(now, of.User.Over(user)):
			return ByUser
		}
	}
	if of.Rate != nil && !t.cell("rate", call.Procedure).take(now, of.Rate.Over(rate)) {
		return ByRate
	}
	if of.Global != nil {
		part := of.Global.Over(global)
		if t.policy.Gateways != nil {
			gateways := max(1, t.policy.Gateways())
			part.PerSecond /= float64(gateways)
			if part.Burst > 0 {
				part.Burst = max(1, part.Burst/gateways)
			}
		}
		if !t.cell("global", call.Procedure).take(now, part) {
			return ByGlobal
		}
	}
	return ""
}

func (t *Trial) cell(kind, procedure string) *cell {
	key := kind + procedure
	one := t.cells[key]
	if one == nil {
		if len(t.cells) >= 2*trialMethodsMax {
			key = kind
		}
		if one = t.cells[key]; one == nil {
			one = &cell{}
			t.cells[key] = one
		}
	}
	return one
}

// forget drops the users that owe nothing: they are as good as new.
func (t *Trial) forget(now time.Time) {
	t.forgot = now
	for key, one := range t.users {
		if !one.due.After(now) {
			delete(t.users, key)
		}
	}
}

// A cell is the state of one rate, by the generic cell rate algorithm (ITU-T I.371, virtual scheduling): when the next call is on time.
type cell struct{ due time.Time }

func (c *cell) take(now time.Time, rate Rate) bool {
	if rate.PerSecond <= 0 {
		return true
	}
	burst := float64(rate.Burst)
	if burst == 0 {
		burst = max(1, rate.PerSecond)
	}
	interval := time.Duration(float64(time.Second) / rate.PerSecond)
	due := c.due
	if due.Before(now) {
		due = now
	}
	if due = due.Add(interval); due.Sub(now) > time.Duration(float64(interval)*burst) {
		return false
	}
	c.due = due
	return true
}

// Report returns what was counted so far.
func (t *Trial) Report(now time.Time) *Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	report := &Report{UsersSkipped: t.skipped, Time: min(now.Sub(t.start), t.until.Sub(t.start))}
	report.Add(&Report{Methods: t.methods})
	return report
}

// A trialRequest asks gateways for a trial.
type trialRequest struct {
	Text   string        `json:"text"`
	Window time.Duration `json:"window"`
}

// subscribeTrials subscribes to requests for dry runs, until the function that it returns is called.
func (f *Follower) subscribeTrials() (requests <-chan *nats.Msg, unsubscribe func()) {
	if f.options.Connection == nil {
		return nil, func() {}
	}
	pending := make(chan *nats.Msg, trialPending)
	subscription, err := f.options.Connection.ChanSubscribe(trialSubject, pending)
	if err != nil {
		f.options.Logger.Warn("dry runs of plans are not possible here", "error", err)
		return nil, func() {}
	}
	return pending, func() { _ = subscription.Unsubscribe() } // The connection may be closed already.
}

// serveTrials makes the dry runs that operators ask for, one at a time, until ctx ends.
func (f *Follower) serveTrials(ctx context.Context, requests <-chan *nats.Msg) {
	for {
		select {
		case <-ctx.Done():
			return
		case request := <-requests:
			f.try(ctx, request, requests)
		}
	}
}

// try makes one dry run, and refuses others meanwhile.
func (f *Follower) try(ctx context.Context, request *nats.Msg, others <-chan *nats.Msg) {
	trial, err := f.newTrial(request.Data)
	if err != nil {
		f.tell(request, &Report{Problem: err.Error(), Done: true})
		return
	}
	f.trial.Store(trial)
	defer f.trial.Store(nil)
	f.tell(request, trial.Report(f.options.Now()))
	ticker := time.NewTicker(trialReport)
	defer ticker.Stop()
	end := time.NewTimer(trial.until.Sub(trial.start))
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			f.tell(request, &Report{Problem: "the gateway stopped", Done: true})
			return
		case other := <-others:
			f.tell(other, &Report{Problem: "another dry run goes on", Done: true})
		case <-ticker.C:
			f.tell(request, trial.Report(f.options.Now()))
		case <-end.C:
			f.trial.Store(nil)
			report := trial.Report(f.options.Now())
			report.Done = true
			f.tell(request, report)
			return
		}
	}
}

// newTrial makes a trial of what would be active if the plan of the request were applied now.
func (f *Follower) newTrial(data []byte) (*Trial, error) {
	var request trialRequest
	if err := json.Unmarshal(data, &request); err != nil {
		return nil, fmt.Errorf("the request for a dry run is no JSON: %w", err)
	}
	if request.Window <= 0 || request.Window > TrialMax {
		return nil, fmt.Errorf("a dry run of %s: it is at most %s", request.Window, TrialMax)
	}
	plan, err := Parse([]byte(request.Text))
	if err == nil {
		err = plan.Check(f.options.Procedures)
	}
	if err != nil {
		return nil, err
	}
	now, active := f.options.Now(), f.Now()
	return NewTrial(With(active, plan, now, f.options.Procedures), f.options.Policy, now, request.Window), nil
}

// With returns the set as it would be with a plan applied.
func With(active *Set, plan Plan, now time.Time, procedures []string) *Set {
	plans := slices.DeleteFunc(slices.Clone(active.Plans), func(a Applied) bool { return a.Plan.Name == plan.Name })
	return NewSet(active.Revision, append(plans, Applied{Plan: plan, At: now}), procedures)
}

// tell answers; a report that does not reach anybody is not missed.
func (f *Follower) tell(request *nats.Msg, report *Report) {
	report.Gateway = f.options.Gateway
	data, err := json.Marshal(report)
	if err == nil && len(data) > trialReportMax {
		err = fmt.Errorf("the report has %d bytes, want at most %d", len(data), trialReportMax)
	}
	if err == nil {
		err = request.Respond(data)
	}
	if err != nil {
		f.options.Logger.Debug("the report of a dry run was not sent", "error", err)
	}
}

// ErrNoGateway says that no gateway answered.
var ErrNoGateway = errors.New("no gateway answered: dry runs are made by gateways that are connected to this NATS server")

// DryRun asks all gateways to try a plan for some time, and returns what each reported last. progress is called with all of them after each report;
// it may be nil. A gateway that falls silent has what it reported last, without Done.
func DryRun(ctx context.Context, connection *nats.Conn, text []byte, window time.Duration, progress func([]*Report)) ([]*Report, error) {
	if _, err := Parse(text); err != nil {
		return nil, err
	}
	if window <= 0 || window > TrialMax {
		return nil, fmt.Errorf("a dry run of %s: it is at most %s", window, TrialMax)
	}
	request, err := json.Marshal(trialRequest{Text: string(text), Window: window})
	if err != nil {
		return nil, fmt.Errorf("write the request: %w", err)
	}
	inbox := nats.NewInbox()
	replies := make(chan *nats.Msg, 256)
	subscription, err := connection.ChanSubscribe(inbox, replies)
	if err != nil {
		return nil, fmt.Errorf("ask for a dry run: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }() // The connection may be gone; then so is the subscription.
	if err := connection.PublishRequest(trialSubject, inbox, request); err != nil {
		return nil, fmt.Errorf("ask for a dry run: %w", err)
	}
	// Gateways report each second; after that much silence there is nobody left.
	silence := time.NewTimer(trialPatience)
	defer silence.Stop()
	all := []*Report{}
	for {
		select {
		case <-ctx.Done():
			return all, ctx.Err()
		case <-silence.C:
			if len(all) == 0 {
				return nil, ErrNoGateway
			}
			return all, nil
		case reply := <-replies:
			report := &Report{}
			if len(reply.Data) == 0 && reply.Header.Get("Status") == "503" { // Nobody listens.
				return nil, ErrNoGateway
			}
			if len(reply.Data) > trialReportMax || json.Unmarshal(reply.Data, report) != nil {
				continue // It is none of a gateway.
			}
			i := slices.IndexFunc(all, func(r *Report) bool { return r.Gateway == report.Gateway })
			if i < 0 {
				all = append(all, report)
			} else {
				all[i] = report
			}
			if progress != nil {
				progress(all)
			}
			silence.Reset(trialPatience) // What progress takes is nobody's silence.
			// Who has not answered by the time that the first is done never will. That all who answered so far had a reason not to make it
			// says nothing of the others: silence does.
			if report.Time >= window && !slices.ContainsFunc(all, func(r *Report) bool { return !r.Done }) {
				return all, nil
			}
		}
	}
}
