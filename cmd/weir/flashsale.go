package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/ops/flashsale"
)

func (p *process) demoCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "demo",
		Short: "Show what Weir does under a flood",
		Long:  `Show what Weir does under a flood, on this machine: it starts a node of its own, or goes to one that runs.`,
	})
	cmd.AddCommand(p.flashSaleCommand())
	return cmd
}

// flashSaleFlags are what 'weir demo flash-sale' was asked.
type flashSaleFlags struct {
	options flashsale.Options
	addr    string
	data    string
	token   string
	weir    string
}

func (p *process) flashSaleCommand() *cobra.Command {
	f := flashSaleFlags{options: flashsale.DefaultOptions()}
	cmd := &cobra.Command{
		Use:   "flash-sale",
		Short: "Sell 1,000 units to 100,000 buyers at once, and check the books",
		Long: `Put units of a product on sale, in a campaign with a price, a stock and a limit of its own, let simulated buyers storm
it as fast as this machine allows, and check the books from outside. Every buyer is a user of its own and wants one
unit; who got one asks for another, in vain. Most pay their order, through the sandbox provider, which takes no real
money; some are declined (--declined) and some never pay (--unpaid). When their orders have expired, the units are
sold once more, to buyers who pay. Then it ends, with a report, after about 12 seconds; when this machine is too slow
for that, it is held again with more time to pay.

It starts a node in a temporary directory, and removes both at the end. With --addr it goes to a node that runs, with
an operator's token (--token, WEIR_TOKEN) or the key of that node's data directory (--data). It leaves a product
there, and does not wait for expiry when that node gives more than 2 minutes to pay.

With --kill the node is killed with kill -9 when half of the units are sold, and started again. Requests that were not
answered are asked again with the same request id, so that each takes effect once.

What it checks: as many attempts as there are units were acknowledged, each with an order of its own at the campaign's
price, and all others refused; nobody got two units; every acknowledged order is there, and its request answers with
the same bytes again; every payment captured what its order costs, or nothing; the campaign's account adds up, and
holds as many units as there are orders; the log says the same after every event ('weir audit stock'). If not, the
exit code is 3 (difference).

The totals (sold, refused by reason, paid, declined, expired, resold) are the same for every run with the same flags,
killed or not: every attempt is for one unit and by another user, so it does not matter who comes first, and those
with an order get their fates in exact shares. --seed draws the users, and with them how many buyers each lane has,
and deals the fates. Who gets a unit, and every time and rate, is as it happens.

Limits: 1,000,000 units, 100,000,000 attempts, 4,096 connections, an hour; a request is asked again for at most 2
minutes.`,
		Example: `  weir demo flash-sale
  weir demo flash-sale --kill --lanes 4 -o json
  weir demo flash-sale --addr http://127.0.0.1:8080 --data ./weir-data --attempts 20000`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.flashSale(cmd, f) },
	}
	flags := cmd.Flags()
	flags.Int64Var(&f.options.Units, "units", f.options.Units, "`NUMBER` of units on sale")
	flags.Int64Var(&f.options.Attempts, "attempts", f.options.Attempts, "`NUMBER` of attempts to buy one, each by another user")
	flags.IntVar(&f.options.DeclinedPercent, "declined", f.options.DeclinedPercent, "`PERCENT` of the orders whose card is declined")
	flags.IntVar(&f.options.UnpaidPercent, "unpaid", f.options.UnpaidPercent, "`PERCENT` of the orders that nobody tries to pay")
	flags.IntVar(&f.options.Connections, "connections", f.options.Connections, "`NUMBER` of connections that the buyers come over")
	flags.Uint64Var(&f.options.Seed, "seed", f.options.Seed, "`SEED` that the users are drawn by")
	flags.IntVar(&f.options.Lanes, "lanes", f.options.Lanes, "`NUMBER` of lanes of the node, a power of two")
	flags.DurationVar(&f.options.PayWithin, "pay-within", f.options.PayWithin, "how long an order keeps its unit unpaid; the rush must be over by then (0: 7s, and longer on a machine that is slower than that)")
	flags.BoolVar(&f.options.Kill, "kill", false, "kill the node with kill -9 in the middle, and start it again")
	flags.StringVar(&f.options.Dir, "dir", "", "`DIR` where the node's data is made and removed (default: the system's for temporary files)")
	flags.StringVar(&f.weir, "weir", "", "`FILE`: the binary to start (default: this one)")
	// Not settings: a sale on a node that runs is asked for by name.
	flags.StringVar(&f.addr, "addr", "", "`URL` of a node that runs, http or https; without it one is started")
	flags.StringVar(&f.data, "data", "", "`DIR` with the data of the node at --addr, whose key makes an operator's token")
	flags.StringVar(&f.token, "token", "", "bearer `TOKEN`; WEIR_TOKEN keeps it out of the process list")
	setting(flags, "token")
	return cmd
}

// flashSale holds the sale and prints how it went.
func (p *process) flashSale(cmd *cobra.Command, f flashSaleFlags) error {
	options, err := p.flashSaleOptions(cmd, f)
	if err != nil {
		return err
	}
	watch := &saleProgress{p: p}
	options.Watch = watch.at
	options.Audit = func(ctx context.Context, data, sku, campaign string) (*flashsale.Audit, error) {
		watch.end()
		return p.auditSale(ctx, data, sku, campaign)
	}
	report, err := flashsale.Run(cmd.Context(), options)
	watch.end()
	var slow *flashsale.TooSlowError
	switch {
	case errors.As(err, &slow):
		return &problem{code: exitFailure, what: err.Error(), cause: err, next: "give it longer with --pay-within, or fewer --attempts"}
	case err != nil:
		return fmt.Errorf("flash sale: %w", err)
	}
	if p.json(cmd) {
		err = writeJSON(p.stdout, report)
	} else {
		err = p.printSale(report)
	}
	if err == nil && len(report.Wrong) > 0 {
		err = &problem{code: exitDifference, what: fmt.Sprintf("the books of the sale are wrong: %s", report.Wrong[0])}
	}
	return err
}

// flashSaleOptions checks the flags, and finds the node that runs or the binary to start.
func (p *process) flashSaleOptions(cmd *cobra.Command, f flashSaleFlags) (flashsale.Options, error) {
	o := f.options
	if f.addr != "" {
		for _, name := range []string{"lanes", "pay-within", "kill", "dir", "weir"} {
			if cmd.Flags().Changed(name) {
				return o, usagef("--%s is for a node that is started here, and --addr names one that runs", name).then("leave one of them out")
			}
		}
		at, err := url.Parse(f.addr)
		isHTTPS := err == nil && at.Scheme == "https"
		if err != nil || !isHTTPS && (at.Scheme != "http" || at.Port() == "") || at.Hostname() == "" || strings.Trim(at.Path, "/") != "" || at.RawQuery != "" || at.User != nil {
			return o, usagef("%q is not the address of a node as this command needs it: http://HOST:PORT or https://HOST", f.addr).then("give --addr as %s", defaultAddr)
		}
		o.Addr, o.Token, o.Data = at.Host, f.token, f.data
		if isHTTPS {
			o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			if at.Port() == "" {
				o.Addr = net.JoinHostPort(at.Hostname(), "443")
			}
		}
		if f.data != "" {
			key, err := openTokenKey(dataDir(f.data))
			if err != nil {
				return o, err
			}
			if o.Token, err = identity.Mint(key, "flash-sale", identity.ScopeOperator, p.now(), flashSaleTokenTTL); err != nil {
				return o, err
			}
		}
		if o.Token == "" {
			return o, usagef("a sale on a node that runs needs an operator's token").then("give --token or WEIR_TOKEN, or the node's data directory with --data")
		}
	} else {
		if f.data != "" {
			return o, usagef("--data is for a node that runs; the one that is started here has a directory of its own").then("name the node with --addr, or leave --data out")
		}
		if o.Lanes < 1 {
			return o, usagef("--lanes must be at least 1, not %d", o.Lanes)
		}
		if err := topologyOf(uint32(o.Lanes)).Validate(); err != nil {
			return o, usagef("--lanes: %v", err)
		}
		if o.Weir = f.weir; o.Weir == "" {
			self, err := os.Executable()
			if err != nil {
				return o, fmt.Errorf("find this binary: %w", err)
			}
			o.Weir = self
		}
	}
	if err := o.Validate(); err != nil {
		return o, usagef("%v", err)
	}
	return o, nil
}

// auditSale is 'weir audit stock' of the sale's product.
func (p *process) auditSale(ctx context.Context, data, sku, campaign string) (*flashsale.Audit, error) {
	s, err := p.openSource(ctx, &sourceFlags{data: data})
	if err != nil {
		return nil, err
	}
	a := newStockAuditor(s.topology, sku)
	if err := closeWith(s, p.replay(ctx, s, a)); err != nil {
		return nil, err
	}
	replayed := a.report()
	found := &flashsale.Audit{Violations: []string{}}
	for _, each := range replayed.SKUs {
		found.Events += each.Events
		if each.SKU == domain.CampaignPool(sku, campaign) {
			found.Remaining = each.Central + each.InTransit + each.Allotted
			found.Reserved, found.Sold = each.Reserved, each.Sold
			found.Units = found.Remaining + found.Reserved + found.Sold
		}
	}
	for _, v := range replayed.Violations {
		found.Violations = append(found.Violations, fmt.Sprintf("%s, lane %d, commit %d, event %d (%s): %s", v.SKU, v.Lane, v.Commit, v.Event, v.Type, v.What))
	}
	return found, nil
}

// flashSaleTokenTTL is how long the token for a sale is good.
const flashSaleTokenTTL = 2 * time.Hour

// saleProgress shows each step of a sale in turn.
type saleProgress struct {
	p    *process
	step string
	*progress
}

func (g *saleProgress) at(now flashsale.Progress) {
	if now.Step != g.step {
		g.end()
		g.step, g.progress = now.Step, g.p.newProgress(now.Step, now.Unit, now.Total)
	}
	if now.Sold+now.Refused > 0 {
		g.note = fmt.Sprintf("%s sold, %s refused", groupDigits(now.Sold), groupDigits(now.Refused))
	}
	g.progress.at(now.Done)
}

func (g *saleProgress) end() {
	if g.progress != nil {
		g.progress.end()
	}
}

// printSale prints the report for a person.
func (p *process) printSale(r *flashsale.Report) error {
	paint := p.painterFor(p.stdout)
	t := &r.Totals
	rows := newTable("rush", ">attempts", ">sold", ">refused", ">seconds", ">attempts/s", ">p50", ">p99", ">longest")
	row := func(name string, attempts, sold int64, timing *flashsale.Timing) {
		rows.row(name, groupDigits(attempts), groupDigits(sold), groupDigits(attempts-sold), fmt.Sprintf("%.2f", timing.Seconds),
			groupDigits(int64(timing.AttemptsPerSecond)), millisText(timing.P50Millis), millisText(timing.P99Millis), millisText(timing.MaxMillis))
	}
	row("sale", t.Attempts, t.Sold, &r.Rush)
	if r.Resale != nil {
		row("resale", t.ResaleAttempts, t.Resold, r.Resale)
	}
	if err := rows.print(p.stdout, paint); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout)
	again := r.Rush.Unanswered
	if r.Resale != nil {
		again += r.Resale.Unanswered
	}
	pairs := []string{
		"product", r.Run,
		"seed", fmt.Sprint(r.Seed),
		"sold", fmt.Sprintf("%s of %s units", groupDigits(t.Sold), groupDigits(t.Units)),
		"refused", reasonsOfSale(t.Refused),
		"asked for two", reasonsOfSale(t.SecondRefused),
	}
	if r.Kill != nil {
		pairs = append(pairs, "killed", fmt.Sprintf("kill -9 after %s sold, serving again in %s", groupDigits(r.Kill.SoldBefore), millisText(r.Kill.ServingAfterMillis)))
	}
	if again > 0 {
		pairs = append(pairs, "asked again", fmt.Sprintf("%s unanswered requests, with the same request ids", groupDigits(again)))
	}
	if t.Paid+t.Declined > 0 {
		pairs = append(pairs, "paid", fmt.Sprintf("%s orders in %.2f s; %s were declined, %s never paid",
			groupDigits(t.Paid), r.PaySeconds, groupDigits(t.Declined), groupDigits(t.Abandoned)))
	}
	if r.Resale != nil {
		resold := groupDigits(t.Resold) + " of their units"
		if t.ResalePaid > 0 {
			resold += ", " + groupDigits(t.ResalePaid) + " of them paid"
		}
		pairs = append(pairs, "expired", fmt.Sprintf("%s unpaid orders", groupDigits(t.Expired)), "resold", resold)
	}
	s := r.Stock
	pairs = append(pairs, "stock", fmt.Sprintf("%d units = %d remaining + %d reserved + %d sold for good", s.Units, s.Remaining, s.Reserved, s.Sold))
	if a := r.Audit; a != nil && len(a.Violations) == 0 {
		pairs = append(pairs, "audit", fmt.Sprintf("the log says the same, and adds up after each of its %s events", groupDigits(a.Events)))
	}
	if err := fields(p.stdout, paint, pairs...); err != nil {
		return err
	}
	for _, note := range r.Notes {
		fmt.Fprintln(p.stdout, paint.dim("note: "+note))
	}
	for _, wrong := range r.Wrong {
		fmt.Fprintln(p.stdout, paint.bad("WRONG ")+wrong)
	}
	if len(r.Wrong) > 0 {
		return nil
	}
	_, err := io.WriteString(p.stdout, "\n"+paint.good("Nothing was oversold, undersold or lost, and every request answers as it did.")+"\n")
	return err
}

// reasonsOfSale writes refusals by reason, the most frequent first.
func reasonsOfSale(refused map[string]int64) string {
	reasons := make([]string, 0, len(refused))
	for reason := range refused {
		reasons = append(reasons, reason)
	}
	slices.SortFunc(reasons, func(a, b string) int {
		if refused[a] != refused[b] {
			return int(refused[b] - refused[a])
		}
		return strings.Compare(a, b)
	})
	for i, reason := range reasons {
		reasons[i] = reason + " " + groupDigits(refused[reason])
	}
	return strings.Join(reasons, ", ")
}

func millisText(millis float64) string {
	return time.Duration(millis * float64(time.Millisecond)).Round(10 * time.Microsecond).String()
}
