package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/plan"
)

const (
	// planOpenMax bounds the wait for the plans' bucket.
	planOpenMax = 10 * time.Second
	// planWindow is how long a dry run looks by default.
	planWindow = time.Minute
	// planHistory is how many changes are shown by default.
	planHistory = 50
)

// planFlags are the flags of the commands about plans.
type planFlags struct {
	nats, by, why string
	access        natsAccess
}

// add puts the flags that reach the plans on a command.
func (f *planFlags) add(cmd *cobra.Command) {
	addNATSFlag(cmd, &f.nats)
	f.access.addGateway(cmd)
}

// addWords puts the flags of those that change something on a command.
func (f *planFlags) addWords(cmd *cobra.Command) {
	f.add(cmd)
	cmd.Flags().StringVar(&f.by, "by", "", "`NAME` of who does it, for the audit (default: this account at this machine)")
	cmd.Flags().StringVar(&f.why, "why", "", "`TEXT` that says why, for the audit")
}

// name returns who does it.
func (f *planFlags) name() string {
	if f.by != "" {
		return f.by
	}
	name, host := "unknown", "unknown"
	if account, err := user.Current(); err == nil {
		name = account.Username
	}
	if own, err := os.Hostname(); err == nil {
		host = own
	}
	return name + "@" + host
}

// connect reaches the NATS server.
func (f *planFlags) connect() (*nats.Conn, error) {
	if f.nats == "" {
		return nil, usagef("plans are kept on the NATS server of the gateways, and --nats does not say where it is").
			then("give --nats nats://HOST:4222, or set %s", envName("nats"))
	}
	return f.access.stay(f.nats, "weir plan")
}

// withPlans does something with the plans.
func (p *process) withPlans(cmd *cobra.Command, f *planFlags, do func(ctx context.Context, connection *nats.Conn, store *plan.Store) error) error {
	connection, err := f.connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(cmd.Context(), planOpenMax)
	defer cancel()
	store, err := plan.OpenStore(opening, stream, plan.StoreConfig{Now: p.now})
	if err != nil {
		return explainPlans(err)
	}
	return explainPlans(do(cmd.Context(), connection, store))
}

// explainPlans says what an error about plans means.
func explainPlans(err error) error {
	var told *problem
	var conflict *plan.ConflictError
	switch {
	case err == nil, errors.As(err, &told):
		return err
	case errors.As(err, &conflict):
		return &problem{code: exitRefused, what: err.Error(), cause: err, next: "see what is there now: weir plan list"}
	case errors.Is(err, plan.ErrNothingBefore):
		return &problem{code: exitRefused, what: err.Error(), cause: err, next: "see what is active: weir plan list"}
	case errors.Is(err, plan.ErrNotFound):
		return &problem{code: exitNotFound, what: err.Error(), cause: err, next: "see what there is: weir plan list"}
	case errors.Is(err, plan.ErrNoGateway):
		return &problem{code: exitUnavailable, what: err.Error(), cause: err, next: "start gateways with --nats and the same server"}
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return &problem{code: exitUnavailable, what: err.Error(), cause: err, next: "check --nats, and that the server has JetStream"}
	}
	return err
}

// planExits is part of the help of the commands about plans.
const planExits = `Exit code 0: done; 2: the plan or the command line is wrong; 4: somebody changed it meanwhile, or there is nothing to
roll back; 5: there is no such plan; 6: NATS, or every gateway, is away.`

func (p *process) planCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "plan",
		Short: "Prepare for bad days: switches of the gateways that are flipped in one step",
		Long: `A plan (预案) is a named set of switches of the gateways: rates, features off, reads that may be old, sold-out at the
edge, breakers forced, the priority below which calls are shed, waiting rooms, what is done about faults. It is
written and tried in peace, and applied in one step: every gateway that is connected goes by it within a fifth of a
second. It ends by itself when its time is over, and 'weir plan rollback' takes the newest change back.

Plans and what is active are kept on the NATS server of the gateways, and so is who changed what, when and why. Who
may write there may apply plans: it needs an operator's credentials. Gateways keep what is active while NATS is away,
and over a restart. Three worked plans are in ops/plans.`,
	})
	cmd.AddCommand(p.planListCommand(), p.planShowCommand(), p.planCheckCommand(), p.planPutCommand(), p.planDryRunCommand(), p.planApplyCommand(),
		p.planEndCommand(), p.planRollbackCommand(), p.planHistoryCommand())
	return cmd
}

// planLine is a plan as it is listed.
type planLine struct {
	Name       string     `json:"name"`
	Revision   uint64     `json:"revision"`
	Precedence int        `json:"precedence"`
	About      string     `json:"about,omitempty"`
	PutBy      string     `json:"putBy"`
	PutAt      time.Time  `json:"putAt"`
	Active     uint64     `json:"active,omitempty"` // its revision that is active
	Until      *time.Time `json:"until,omitempty"`
}

// activeLines are what is active.
type activeLines struct {
	Label     string       `json:"label"`
	Revision  uint64       `json:"revision"`
	Plans     []activeLine `json:"plans"`
	Conflicts []string     `json:"conflicts"`
}

type activeLine struct {
	Plan  string    `json:"plan"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	By    string    `json:"by"`
	Why   string    `json:"why,omitempty"`
}

func newActiveLines(set *plan.Set) activeLines {
	lines := activeLines{Label: set.Label, Revision: set.Revision, Plans: []activeLine{}, Conflicts: []string{}}
	for _, applied := range set.Plans {
		lines.Plans = append(lines.Plans, activeLine{Plan: applied.Label(), Since: applied.At, Until: applied.Until, By: applied.By, Why: applied.Why})
	}
	for _, conflict := range set.Conflicts {
		lines.Conflicts = append(lines.Conflicts, conflict.String())
	}
	return lines
}

// printActive says what is active now.
func (p *process) printActive(cmd *cobra.Command, set *plan.Set) error {
	lines := newActiveLines(set)
	if p.json(cmd) {
		return writeJSON(p.stdout, lines)
	}
	paint := p.painterFor(p.stdout)
	if len(lines.Plans) == 0 {
		_, err := fmt.Fprintln(p.stdout, "No plan is active: the policy alone holds.")
		return err
	}
	rows := newTable("ACTIVE", "SINCE", "UNTIL", "BY", "WHY")
	for _, line := range lines.Plans {
		rows.row(line.Plan, instantText(&line.Since), instantText(&line.Until), line.By, line.Why)
	}
	if err := rows.print(p.stdout, paint); err != nil {
		return err
	}
	for _, conflict := range lines.Conflicts {
		fmt.Fprintf(p.stdout, "%s %s\n", paint.warn("conflict:"), printable(conflict))
	}
	return nil
}

func (p *process) planListCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print the plans, and which are active",
		Long: `Print each plan with its newest revision, who put it there, and if it is active until when it is. What counts where
active plans contradict each other is said below.

` + planExits,
		Example: `  weir plan list --nats nats://127.0.0.1:4222
  weir plan list -o json | jq -r .active.label`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withPlans(cmd, &f, func(ctx context.Context, _ *nats.Conn, store *plan.Store) error {
				versions, err := store.Plans(ctx)
				if err != nil {
					return err
				}
				set, err := store.Active(ctx, gateway.Procedures())
				if err != nil {
					return err
				}
				return p.printPlans(cmd, versions, set)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (p *process) printPlans(cmd *cobra.Command, versions []plan.Version, set *plan.Set) error {
	lines := []planLine{}
	for _, version := range versions {
		line := planLine{
			Name: version.Plan.Name, Revision: version.Revision, Precedence: version.Plan.Precedence, About: firstLine(version.Plan.About),
			PutBy: version.Change.By, PutAt: version.Change.At,
		}
		if i := slices.IndexFunc(set.Plans, func(a plan.Applied) bool { return a.Plan.Name == line.Name }); i >= 0 {
			line.Active, line.Until = set.Plans[i].Revision, &set.Plans[i].Until
		}
		lines = append(lines, line)
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"plans": lines, "active": newActiveLines(set)})
	}
	rows := newTable("PLAN", ">REVISION", ">PRECEDENCE", ">ACTIVE", "UNTIL", "PUT BY", "ABOUT")
	for _, line := range lines {
		active := "-"
		if line.Active > 0 {
			active = strconv.FormatUint(line.Active, 10)
		}
		rows.row(line.Name, strconv.FormatUint(line.Revision, 10), strconv.Itoa(line.Precedence), active, instantText(line.Until), line.PutBy, line.About)
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printActive(cmd, set)
}

// firstLine returns a text up to its first sentence or line.
func firstLine(text string) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if sentence, _, more := strings.Cut(text, ". "); more {
		return sentence + "."
	}
	return text
}

// parseLabel reads NAME or NAME@REVISION.
func parseLabel(text string) (name string, revision uint64, err error) {
	name, digits, given := strings.Cut(text, "@")
	if given {
		if revision, err = strconv.ParseUint(digits, 10, 64); err != nil || revision == 0 {
			return "", 0, usagef("%q is no plan", text).then("give NAME, or NAME@REVISION as in 'weir plan history'")
		}
	}
	return name, revision, nil
}

// readPlan reads and checks a plan; - is standard input.
func (p *process) readPlan(path string) ([]byte, plan.Plan, error) {
	from := p.stdin
	if path != "-" {
		file, err := os.Open(filepath.Clean(path))
		if err != nil {
			return nil, plan.Plan{}, usagef("read the plan: %v", err).then("check the path")
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, plan.TextBytesMax+1))
	if err != nil {
		return nil, plan.Plan{}, usagef("read the plan %s: %v", path, err)
	}
	parsed, err := plan.Parse(text)
	if err == nil {
		err = parsed.Check(gateway.Procedures())
	}
	if err != nil {
		return nil, parsed, usagef("plan %s: %v", path, err).then("correct it; what plans may say is in ops/plans/README.md")
	}
	return text, parsed, nil
}

func (p *process) planCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a file is a good plan",
		Long: `Read a plan as 'weir plan put' would, and say what is wrong with it: a key that is not known, with its line; a value
that is none; a method that there is not. Nothing is changed, and no server is asked. - is standard input. Exit code
0: it is good; 2: it is not.`,
		Example: `  weir plan check ops/plans/flash-sale.yaml`,
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, parsed, err := p.readPlan(args[0])
			if err != nil {
				return err
			}
			if p.json(cmd) {
				return writeJSON(p.stdout, map[string]any{"file": args[0], "name": parsed.Name, "good": true})
			}
			_, err = fmt.Fprintf(p.stdout, "%s is a good plan, %s\n", args[0], parsed.Name)
			return err
		},
	}
}

func (p *process) planShowCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "show NAME[@REVISION]",
		Short: "Print a plan as it was put",
		Long: `Print a plan with its comments, as it was put: the newest revision, or one of the last 64. With -o json also who put
it, when and why.

` + planExits,
		Example: `  weir plan show flash-sale
  weir plan show flash-sale@12 > flash-sale.yaml`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, revision, err := parseLabel(args[0])
			if err != nil {
				return err
			}
			return p.withPlans(cmd, &f, func(ctx context.Context, _ *nats.Conn, store *plan.Store) error {
				version, err := store.Plan(ctx, name, revision)
				if err != nil {
					return err
				}
				if !p.json(cmd) {
					_, err := io.WriteString(p.stdout, strings.TrimRight(version.Text, "\n")+"\n")
					return err
				}
				var content map[string]any
				if err := yaml.Unmarshal([]byte(version.Text), &content); err != nil {
					return err
				}
				return writeJSON(p.stdout, map[string]any{"plan": content, "revision": version.Revision, "change": version.Change, "text": version.Text})
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (p *process) planPutCommand() *cobra.Command {
	var f planFlags
	var revision uint64
	cmd := &cobra.Command{
		Use:   "put FILE",
		Short: "Write a new revision of a plan; nothing is applied",
		Long: `Check a plan and write it as the newest revision of its name. It is not applied, and neither does it change the
revision that is active. - is standard input. The same text again is no new revision. With --revision it is written
only if that is the newest one: nobody else's change is written over.

` + planExits,
		Example: `  weir plan put ops/plans/flash-sale.yaml
  weir plan put flash-sale.yaml --revision 12 --why "half the rate, after the rehearsal"`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, _, err := p.readPlan(args[0])
			if err != nil {
				return err
			}
			var expect *uint64
			if cmd.Flags().Changed("revision") {
				expect = &revision
			}
			return p.withPlans(cmd, &f, func(ctx context.Context, _ *nats.Conn, store *plan.Store) error {
				version, err := store.Put(ctx, text, expect, f.name(), f.why)
				if err != nil {
					return err
				}
				if p.json(cmd) {
					return writeJSON(p.stdout, map[string]any{"plan": version.Plan.Name, "revision": version.Revision})
				}
				_, err = fmt.Fprintf(p.stdout, "%s is there. Try it: %s plan dry-run %s\n", version.Label(), commandName(), version.Plan.Name)
				return err
			})
		},
	}
	f.addWords(cmd)
	cmd.Flags().Uint64Var(&revision, "revision", 0, "`NUMBER` of the revision that is to be the newest before; 0 is none")
	return cmd
}

func (p *process) planApplyCommand() *cobra.Command {
	var f planFlags
	var ttl time.Duration
	var after uint64
	cmd := &cobra.Command{
		Use:   "apply NAME[@REVISION]",
		Short: "Make a plan active, for a while",
		Long: `Make a plan active at all gateways, until its time is over or it is taken back. Another revision of the same plan that
is active is replaced; other plans stay. Where two say different things of the same, the one with the higher
precedence counts, and of equals the one that was applied later: such conflicts are printed. With --after it is
applied only if nobody changed what is active since that revision, which list and apply print with -o json.

` + planExits,
		Example: `  weir plan apply flash-sale --ttl 2h --why "the spring sale opens"
  weir plan apply payment-down@14`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, revision, err := parseLabel(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") {
				if err := plan.ValidateTTL(ttl); err != nil {
					return usagef("--%v", err).then("give --ttl 2h, or leave it out for the plan's own")
				}
			}
			application := plan.Application{Name: name, Revision: revision, TTL: ttl, By: f.name(), Why: f.why, Procedures: gateway.Procedures()}
			if cmd.Flags().Changed("after") {
				application.Expect = &after
			}
			return p.changePlans(cmd, &f, func(ctx context.Context, store *plan.Store) (*plan.Set, error) { return store.Apply(ctx, application) })
		},
	}
	f.addWords(cmd)
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it holds (default: as the plan says, or 1h)")
	cmd.Flags().Uint64Var(&after, "after", 0, "`NUMBER` of the revision of what is active that this is to follow")
	return cmd
}

// changePlans changes what is active, and prints what is then.
func (p *process) changePlans(cmd *cobra.Command, f *planFlags, change func(ctx context.Context, store *plan.Store) (*plan.Set, error)) error {
	return p.withPlans(cmd, f, func(ctx context.Context, _ *nats.Conn, store *plan.Store) error {
		set, err := change(ctx, store)
		if err != nil {
			return err
		}
		return p.printActive(cmd, set)
	})
}

func (p *process) planEndCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "end NAME",
		Short: "Take one plan back, and leave the others",
		Long: `End one active plan before its time is over. Others stay active. It can be rolled back as any change.

` + planExits,
		Example: `  weir plan end flash-sale --why "sold out"`,
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.changePlans(cmd, &f, func(ctx context.Context, store *plan.Store) (*plan.Set, error) {
				return store.End(ctx, args[0], gateway.Procedures(), f.name(), f.why)
			})
		},
	}
	f.addWords(cmd)
	return cmd
}

func (p *process) planRollbackCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Undo the newest change: what was active before is active again",
		Long: `Undo the newest apply or end that is not undone yet, at all gateways. What was active before it is active again, with
the end that it had; what has ended meanwhile stays ended. Once more, it undoes the change before that.

` + planExits,
		Example: `  weir plan rollback --why "the rate was too low"`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.changePlans(cmd, &f, func(ctx context.Context, store *plan.Store) (*plan.Set, error) {
				return store.Rollback(ctx, gateway.Procedures(), f.name(), f.why)
			})
		},
	}
	f.addWords(cmd)
	return cmd
}

func (p *process) planHistoryCommand() *cobra.Command {
	var f planFlags
	var limit int
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Print who changed what, when and why",
		Long: `Print the newest changes of plans and of what is active, the oldest of them first. The audit has every change that was
ever stored, also by other tools, and nobody may remove one. BY is who the change says; who may write at all is up to
the server's credentials. A plan that ended by itself shows as the change that applied it, with the end that it was
given.

` + planExits,
		Example: `  weir plan history
  weir plan history --limit 1000 -o json | jq -c 'select(.verb == "apply")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > plan.HistoryMax {
				return usagef("--limit is %d; it is between 1 and %d", limit, plan.HistoryMax)
			}
			return p.withPlans(cmd, &f, func(ctx context.Context, _ *nats.Conn, store *plan.Store) error {
				entries, behind, err := store.History(ctx, limit)
				if err != nil {
					return err
				}
				if err := p.printHistory(cmd, entries); err != nil || !behind {
					return err
				}
				_, err = fmt.Fprintln(p.stderr, "The audit does not have the newest change yet; ask again.")
				return err
			})
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", planHistory, "how many changes")
	return cmd
}

// historyLine is a change as it is printed.
type historyLine struct {
	Revision uint64               `json:"revision"`
	At       time.Time            `json:"at"`
	Stored   time.Time            `json:"stored"`
	By       string               `json:"by"`
	Verb     string               `json:"verb"`
	Plan     string               `json:"plan,omitempty"`
	From     []string             `json:"from"`
	To       []string             `json:"to"`
	Ends     map[string]time.Time `json:"ends,omitempty"`
	Why      string               `json:"why,omitempty"`
}

func (p *process) printHistory(cmd *cobra.Command, entries []plan.Entry) error {
	rows := newTable(">REVISION", "AT", "BY", "CHANGE", "FROM", "TO", "UNTIL", "WHY")
	for _, entry := range entries {
		change := entry.Change
		if p.json(cmd) {
			line := historyLine{
				Revision: entry.Revision, At: change.At, Stored: entry.Stored, By: change.By, Verb: change.Verb, Plan: change.Plan,
				From: append([]string{}, change.From...), To: append([]string{}, change.To...), Ends: entry.Ends, Why: change.Why,
			}
			if err := writeJSON(p.stdout, line); err != nil {
				return err
			}
			continue
		}
		until := "-"
		if end, applied := entry.Ends[change.Plan]; applied {
			until = instantText(&end)
		}
		rows.row(strconv.FormatUint(entry.Revision, 10), instantText(&change.At), orDash(change.By), strings.TrimSpace(change.Verb+" "+change.Plan),
			orDash(strings.Join(change.From, ",")), orDash(strings.Join(change.To, ",")), until, change.Why)
	}
	if p.json(cmd) {
		return nil
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (p *process) planDryRunCommand() *cobra.Command {
	var f planFlags
	var window time.Duration
	var file string
	cmd := &cobra.Command{
		Use:   "dry-run NAME[@REVISION] | --file FILE",
		Short: "Say what a plan would refuse, without applying it",
		Long: `Let every gateway judge the calls that it gets for a while as it would with this plan active beside those that are,
and count what it would refuse and why. Nothing is refused, and nothing is changed. Interrupted, it prints what there
is.

` + planExits,
		Example: `  weir plan dry-run flash-sale
  weir plan dry-run --file flash-sale.yaml --for 10s -o json`,
		Args: atMostArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (len(args) == 1) == (file != ""):
				return usagef("weir plan dry-run wants the name of a plan, or --file, and not both").then("see weir plan dry-run --help")
			case window <= 0 || window > plan.TrialMax:
				return usagef("--for is %s; it is more than 0 and at most %s", window, plan.TrialMax)
			}
			var text []byte
			var name string
			var revision uint64
			var err error
			if file != "" {
				text, _, err = p.readPlan(file)
			} else {
				name, revision, err = parseLabel(args[0])
			}
			if err != nil {
				return err
			}
			return p.withPlans(cmd, &f, func(ctx context.Context, connection *nats.Conn, store *plan.Store) error {
				if file == "" {
					version, err := store.Plan(ctx, name, revision)
					if err != nil {
						return err
					}
					text = []byte(version.Text)
				}
				progress := p.newProgress("dry run", "calls", 0)
				reports, err := plan.DryRun(ctx, connection, text, window, func(reports []*plan.Report) {
					progress.at(int64(sumOf(reports).Total().Calls))
				})
				progress.end()
				if err != nil && (!errors.Is(err, context.Canceled) || len(reports) == 0) {
					return err
				}
				return p.printDryRun(cmd, reports)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&window, "for", planWindow, "how long to look")
	cmd.Flags().StringVar(&file, "file", "", "`FILE` with the plan, which need not be put yet")
	return cmd
}

// sumOf adds up what gateways report.
func sumOf(reports []*plan.Report) *plan.Report {
	sum := &plan.Report{}
	for _, report := range reports {
		sum.Add(report)
	}
	return sum
}

// dryRunLines is what a dry run prints with -o json.
type dryRunLines struct {
	Calls       uint64                        `json:"calls"`
	Refused     uint64                        `json:"refused"`
	WouldRefuse uint64                        `json:"wouldRefuse"`
	Seconds     float64                       `json:"seconds"`
	Reasons     map[plan.Reason]uint64        `json:"reasons"`
	Methods     map[string]*plan.MethodReport `json:"methods"`
	Skipped     uint64                        `json:"usersSkipped"`
	Gateways    []dryRunGateway               `json:"gateways"`
}

type dryRunGateway struct {
	Gateway string `json:"gateway"`
	Calls   uint64 `json:"calls"`
	Done    bool   `json:"done"`
	Problem string `json:"problem,omitempty"`
}

// printDryRun says what would be refused. A gateway that made none is a problem: the figures are without it.
func (p *process) printDryRun(cmd *cobra.Command, reports []*plan.Report) error {
	sum := sumOf(reports)
	total := sum.Total()
	lines := dryRunLines{
		Calls: total.Calls, Refused: total.Refused, WouldRefuse: total.WouldRefuse(), Seconds: sum.Time.Seconds(), Reasons: total.Would,
		Methods: sum.Methods, Skipped: sum.UsersSkipped, Gateways: []dryRunGateway{},
	}
	var missing *problem
	for _, report := range reports {
		lines.Gateways = append(lines.Gateways, dryRunGateway{Gateway: report.Gateway, Calls: report.Total().Calls, Done: report.Done, Problem: report.Problem})
		switch {
		case report.Problem != "":
			missing = &problem{code: exitUnavailable, what: fmt.Sprintf("gateway %s made no dry run: %s", report.Gateway, report.Problem), next: "the figures are without it; try again"}
		case !report.Done && missing == nil:
			missing = &problem{code: exitUnavailable, what: fmt.Sprintf("gateway %s did not finish", report.Gateway), next: "the figures are what there was; try again"}
		}
	}
	slices.SortFunc(lines.Gateways, func(a, b dryRunGateway) int { return strings.Compare(a.Gateway, b.Gateway) })
	if err := p.writeDryRun(cmd, &lines, sum); err != nil {
		return err
	}
	if missing != nil {
		return missing
	}
	return nil
}

func (p *process) writeDryRun(cmd *cobra.Command, lines *dryRunLines, sum *plan.Report) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, lines)
	}
	fmt.Fprintf(p.stdout, "Would have refused %s of %s calls in %s at %s; refused now: %s.\n", shareText(lines.WouldRefuse, lines.Calls),
		groupDigits(lines.Calls), sum.Time.Round(time.Second), gatewaysText(len(lines.Gateways)), shareText(lines.Refused, lines.Calls))
	if lines.Calls == 0 {
		return nil
	}
	rows := newTable("METHOD", ">CALLS", ">REFUSED", ">WOULD BE", ">SHARE", "WHY")
	for _, procedure := range slices.Sorted(maps.Keys(sum.Methods)) {
		method := sum.Methods[procedure]
		reasons := []string{}
		for _, reason := range slices.Sorted(maps.Keys(method.Would)) {
			reasons = append(reasons, fmt.Sprintf("%s %s", reason, groupDigits(method.Would[reason])))
		}
		rows.row(strings.TrimPrefix(procedure, "/"), groupDigits(method.Calls), groupDigits(method.Refused), groupDigits(method.WouldRefuse()),
			shareText(method.WouldRefuse(), method.Calls), strings.Join(reasons, ", "))
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

func gatewaysText(count int) string {
	if count == 1 {
		return "one gateway"
	}
	return fmt.Sprintf("%d gateways", count)
}

// shareText writes a part of a whole in percent.
func shareText(part, whole uint64) string {
	if whole == 0 {
		return "0.0%"
	}
	return fmt.Sprintf("%.1f%%", float64(part)/float64(whole)*100)
}
