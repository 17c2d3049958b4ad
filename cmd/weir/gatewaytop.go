package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/gateway"
)

const (
	// topMethodsMax bounds the rows of methods that are shown: the busiest.
	topMethodsMax = 20
	// topAnswerMax bounds the wait for a gateway's answer, and statusBytesMax its size.
	topAnswerMax   = 5 * time.Second
	statusBytesMax = 16 << 20
)

func (p *process) gatewayTopCommand() *cobra.Command {
	var (
		address string
		every   time.Duration
		count   int
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "See live what a gateway does",
		Long: `Show, again each --every, which calls go where, how they end, what is refused and why, and how breakers, limits and
upstreams stand. Rates are those since the time before; the first ones are since the gateway started.

On a terminal it shows one page after the other in the same place. Elsewhere, and with -o json, each follows the one
before. Ctrl-c ends it.`,
		Example: `  weir gateway top
  weir gateway top --addr http://10.0.0.7:9080 --every 5s
  weir gateway top --count 1 -o json | jq .refusals`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return usagef("--every must be at least 100ms, not %s", every)
			}
			if count < 0 {
				return usagef("--count must not be negative")
			}
			return p.watchGateway(cmd, strings.TrimSuffix(address, "/"), every, count)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&address, "addr", "http://"+defaultOperatorListen, "`URL` of the gateway's --operator-listen")
	flags.DurationVar(&every, "every", time.Second, "how long between two looks, at least 100ms")
	flags.IntVar(&count, "count", 0, "`NUMBER` of looks; 0 goes on until it is stopped")
	return cmd
}

// watchGateway shows a gateway's state again and again.
func (p *process) watchGateway(cmd *cobra.Command, address string, every time.Duration, count int) error {
	ctx := cmd.Context()
	client := &http.Client{Timeout: topAnswerMax}
	defer client.CloseIdleConnections()
	last := gateway.Status{}
	var lastAt time.Time
	for look := 1; ; look++ {
		status, err := gatewayStatus(ctx, client, address)
		if err != nil {
			return err
		}
		now := p.now()
		switch {
		case p.json(cmd):
			err = writeJSON(p.stdout, status)
		default:
			err = p.printTop(status, last, now.Sub(lastAt), lastAt.IsZero())
		}
		if err != nil {
			return err
		}
		last, lastAt = status, now
		if look == count || !pause(ctx, every) {
			return ctx.Err()
		}
	}
}

// gatewayStatus asks a gateway how it stands.
func gatewayStatus(ctx context.Context, client *http.Client, address string) (status gateway.Status, err error) {
	unreachable := func(err error) error {
		return &problem{
			code: exitUnavailable, cause: err, what: fmt.Sprintf("no gateway answers at %s: %v", address, err),
			next: "give the URL of its --operator-listen with --addr; a gateway prints it when it starts",
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/status", http.NoBody)
	if err != nil {
		return status, usagef("--addr %q is no URL", address).then("give it as http://HOST:PORT")
	}
	response, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return status, ctx.Err()
		}
		return status, unreachable(errors.Unwrap(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return status, unreachable(fmt.Errorf("HTTP %d", response.StatusCode))
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, statusBytesMax)).Decode(&status); err != nil {
		return status, unreachable(err)
	}
	return status, nil
}

// methodKey names a row over two looks.
type methodKey struct{ method, upstream string }

// printTop shows one page. since is the time from the look before; first is whether there was none.
func (p *process) printTop(status, last gateway.Status, since time.Duration, first bool) error {
	paint := p.painterFor(p.stdout)
	var page strings.Builder
	if isTerminal(p.stdout) {
		page.WriteString("\x1b[H\x1b[2J") // To the top, and nothing below.
	}
	seconds := since.Seconds()
	rate := func(count uint64) string {
		if first {
			return groupDigits(count)
		}
		return fmt.Sprintf("%.1f/s", float64(count)/seconds)
	}
	fmt.Fprintf(&page, "%s %d under way of %d places, %d wait, bar at %.0f%%; %d streams and others; retries %d paid, %d not\n",
		paint.bold("Calls:"), status.UnderWay, status.Places, status.Waiting, status.Bar*100, max(0, status.CallsInFlight-int64(status.UnderWay)), status.RetriesPaid, status.RetriesUnpaid)
	if status.Panics {
		page.WriteString("So few upstreams are healthy that calls go to all of them.\n")
	}
	upstreams := newTable("UPSTREAM", ">IN FLIGHT", ">LATENCY", ">PICKED", "STATE")
	for _, u := range status.Upstreams {
		state := "in use"
		switch {
		case u.Ejected:
			state = "ejected: " + u.EjectedWhy
		case u.Draining:
			state = "draining"
		}
		upstreams.row(u.ID, groupDigits(uint64(max(0, u.InFlight))), time.Duration(u.LatencySeconds*float64(time.Second)).Round(10*time.Microsecond).String(), groupDigits(u.Picks), state)
	}
	page.WriteByte('\n')
	if err := upstreams.print(&page, paint); err != nil {
		return err
	}
	page.WriteByte('\n')
	if err := methodsTable(status, last, rate).print(&page, paint); err != nil {
		return err
	}
	if len(status.Breakers) > 0 {
		breakers := newTable("BREAKER", "UPSTREAM", "STATE", ">OPENED", ">REFUSED")
		for _, b := range status.Breakers {
			state := b.State
			if b.Forced != "auto" {
				state += ", forced " + b.Forced
			}
			breakers.row(b.Method, b.Upstream, state, groupDigits(b.Opened), groupDigits(b.Refused))
		}
		page.WriteByte('\n')
		if err := breakers.print(&page, paint); err != nil {
			return err
		}
	}
	if len(status.Refusals) > 0 {
		before := map[methodKey]uint64{}
		for _, r := range last.Refusals {
			before[methodKey{r.Method, r.Reason}] = r.Count
		}
		refusals := newTable("REFUSED", "REASON", ">CALLS")
		for _, r := range status.Refusals {
			refusals.row(r.Method, r.Reason, rate(r.Count-before[methodKey{r.Method, r.Reason}]))
		}
		page.WriteByte('\n')
		if err := refusals.print(&page, paint); err != nil {
			return err
		}
	}
	if err := p.printKeeping(&page, status); err != nil {
		return err
	}
	_, err := io.WriteString(p.stdout, page.String())
	return err
}

// printKeeping shows what the edge answered, what is made later and who waits, as far as there is any of it.
func (p *process) printKeeping(page *strings.Builder, status gateway.Status) error {
	paint := p.painterFor(p.stdout)
	if edge := status.Edge; edge != (gateway.EdgeStatus{}) {
		fmt.Fprintf(page, "\n%s %s sold out, %s older answers (%s as planned), %s turned off, %s without a pass\n", paint.bold("Edge:"),
			groupDigits(edge.SoldOut), groupDigits(edge.StaleFailed+edge.StalePlanned), groupDigits(edge.StalePlanned), groupDigits(edge.Off), groupDigits(edge.WithoutPass))
	}
	if kept := status.Failback; kept != nil {
		fmt.Fprintf(page, "\n%s %s wait and %s are parked at all gateways; here %s accepted, %s refused, %s attempts, %s done\n", paint.bold("Kept for later:"),
			groupDigits(kept.Waiting), groupDigits(kept.Parked), groupDigits(kept.Accepted), groupDigits(kept.Full), groupDigits(kept.Attempts), groupDigits(kept.Done))
	}
	if len(status.Rooms) == 0 {
		return nil
	}
	rooms := newTable("WAITING ROOM", ">WAITING", ">PLACES", ">LET IN", ">PASSES")
	for _, r := range status.Rooms {
		rooms.row(r.CampaignID, groupDigits(uint64(max(0, r.Waiting))), groupDigits(uint64(max(0, r.Places))), groupDigits(r.Admitted), groupDigits(uint64(max(0, r.Outstanding))))
	}
	page.WriteByte('\n')
	return rooms.print(page, paint)
}

// methodsTable has the busiest methods, each at each upstream.
func methodsTable(status, last gateway.Status, rate func(uint64) string) *table {
	type row struct {
		gateway.MethodStatus
		calls, fault, overload uint64
		mean                   time.Duration
	}
	before := map[methodKey]gateway.MethodStatus{}
	for _, m := range last.Methods {
		before[methodKey{m.Method, m.Upstream}] = m
	}
	var rows []row
	for _, m := range status.Methods {
		b := before[methodKey{m.Method, m.Upstream}]
		calls := m.Good + m.Overload + m.Fault + m.Abandoned - b.Good - b.Overload - b.Fault - b.Abandoned
		r := row{MethodStatus: m, calls: calls, fault: m.Fault - b.Fault, overload: m.Overload - b.Overload}
		if calls > 0 {
			r.mean = time.Duration((m.Nanos - b.Nanos) / int64(calls))
		}
		rows = append(rows, r)
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.calls, a.calls) })
	t := newTable("METHOD", "UPSTREAM", ">CALLS", ">IN FLIGHT", ">MEAN", ">FAULTS", ">OVERLOAD")
	for _, r := range rows[:min(len(rows), topMethodsMax)] {
		t.row(r.Method, r.Upstream, rate(r.calls), groupDigits(uint64(max(0, r.InFlight))), r.mean.Round(10*time.Microsecond).String(), rate(r.fault), rate(r.overload))
	}
	return t
}
