package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The groups of the root's help, in this order.
const (
	groupRun  = "run"
	groupShop = "shop"
	groupLook = "look"
)

// globals are the flags that every command has.
type globals struct {
	format formatFlag
	config string
}

// newRoot builds the command tree. Flags bind to values that live as long as the tree: one tree runs one command.
func (p *process) newRoot() *cobra.Command {
	p.globals = globals{format: formatTable}
	root := parentCommand(&cobra.Command{
		Use:   "weir",
		Short: "An event-sourced order system for shops whose traffic comes in floods",
		Long: `Weir takes orders, loses none and sells nothing twice: every acknowledged order is on disk in a hash-chained log, and
everything that is shown is computed from that log.

Start with a node and its demo catalogue, in one process that needs no other server:

  weir dev --demo

It prints where it listens, a customer's and an operator's token, and a ready command that places an order.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	})
	root.CompletionOptions.HiddenDefaultCmd = false
	flags := root.PersistentFlags()
	flags.VarP(&p.globals.format, "output", "o", "output `FORMAT`: table or json")
	flags.StringVar(&p.globals.config, "config", "", "YAML `FILE` with settings; see 'weir help config'")
	setting(flags, "output")
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a node:"},
		&cobra.Group{ID: groupShop, Title: "Use it:"},
		&cobra.Group{ID: groupLook, Title: "Look inside:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupRun, p.devCommand(), p.serveCommand(), p.gatewayCommand(), p.sandboxPayCommand(), p.tokenCommand())
	add(groupShop, p.orderCommand(), p.paymentCommand(), p.productCommand(), p.stockCommand(), p.campaignCommand(), p.couponCommand(), p.pointsCommand(), p.salesCommand(), p.userCommand(), p.webhooksCommand())
	add(groupLook, p.clusterCommand(), p.lanesCommand(), p.logCommand(), p.auditCommand(), p.projectionsCommand(), p.parkedCommand(), p.replayCommand(), p.readsCommand(), p.doctorCommand(), p.reactorsCommand(), p.backupCommand(), p.restoreCommand(), p.benchCommand(), p.demoCommand())
	add(groupRun, p.planCommand())
	root.AddCommand(p.versionCommand())
	root.AddCommand(helpTopics(root)...)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetIn(p.stdin)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return flagProblem(c, err) })
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		return p.configure(root, cmd, p.globals.config)
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// execute parses and runs one command line, and prints what went wrong.
func (p *process) execute(ctx context.Context, args []string) exitCode {
	p.arguments = args
	root := p.newRoot() //nolint:contextcheck // Commands take their context from cobra, which ExecuteContext gives it.
	root.SetArgs(args)
	err := unknownCommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return exitOK
	}
	problem := problemOf(err)
	if errors.Is(context.Cause(ctx), errInterrupted) && errors.Is(err, context.Canceled) {
		return exitOK
	}
	if p.globals.format == formatJSON || p.asksForJSON(args) {
		if err := writeJSON(p.stderr, problem.json()); err == nil {
			return problem.code
		}
	}
	problem.print(p.stderr, p.painterFor(p.stderr))
	return problem.code
}

// asksForJSON reads the format of a command line that could not be parsed, so that its error comes as JSON all the same.
func (p *process) asksForJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "-ojson", "-o=json", "--output=json":
			return true
		case "-o", "--output":
			return i+1 < len(args) && args[i+1] == formatJSON
		}
	}
	return p.env()[envName("output")] == formatJSON
}

// json reports whether the command prints JSON.
func (p *process) json(*cobra.Command) bool { return p.globals.format == formatJSON }

// parentCommand makes a command that only holds others: alone it prints its help.
func parentCommand(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// unknownCommand finds a command that is not there. cobra itself would print the help of the parent and succeed.
func unknownCommand(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() {
		return err
	}
	word := firstWord(cmd, rest)
	if word == "" {
		return nil
	}
	known := []string{}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() || sub.Name() == "help" {
			known = append(known, sub.Name())
		}
	}
	if slices.Contains([]string{"__complete", "__completeNoDesc"}, word) || cmd.Name() == "completion" || cmd.Name() == "help" {
		return nil
	}
	return usagef("unknown command %q for %q%s", word, cmd.CommandPath(), didYouMean(word, known)).
		then("list the commands: %s --help", cmd.CommandPath())
}

// firstWord returns the first argument that is no flag and no flag's value.
func firstWord(cmd *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return ""
		case !strings.HasPrefix(arg, "-"):
			return arg
		case strings.Contains(arg, "="):
			continue
		}
		name := strings.TrimLeft(arg, "-")
		flag := cmd.Flag(name)
		if flag == nil && len(name) == 1 {
			flag = cmd.InheritedFlags().ShorthandLookup(name)
			if flag == nil {
				flag = cmd.Flags().ShorthandLookup(name)
			}
		}
		if flag != nil && flag.NoOptDefVal == "" {
			i++ // Its value.
		}
	}
	return ""
}

// flagProblem explains a flag that is unknown or has a bad value.
func flagProblem(cmd *cobra.Command, err error) error {
	p := usagef("%s: %v", cmd.CommandPath(), err).then("see %s --help", cmd.CommandPath())
	if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		known := []string{}
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		if near := nearest(name, known); near != "" {
			p.what += fmt.Sprintf("; did you mean --%s?", near)
		}
	}
	return p
}

// exactArgs wants one argument for each name.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " ")).then("see %s --help", cmd.CommandPath())
		}
		return atMostArgs(names...)(cmd, args)
	}
}

// needsFirst takes one argument for the name, and any number after it.
func needsFirst(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return exactArgs(name)(cmd, args[:min(1, len(args))]) }
}

// atMostArgs takes one argument or none for each name.
func atMostArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usagef("%s does not know what to do with %q", cmd.CommandPath(), args[len(names)]).then("see %s --help", cmd.CommandPath())
		}
		return nil
	}
}

// noArgs takes no arguments.
func noArgs(cmd *cobra.Command, args []string) error { return atMostArgs()(cmd, args) }

// needFlags says which of the flags are missing, all at once.
func needFlags(cmd *cobra.Command, names ...string) error {
	missing := []string{}
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return usagef("%s needs %s", cmd.CommandPath(), strings.Join(missing, ", ")).then("see %s --help", cmd.CommandPath())
}

// helpTopics are pages of 'weir help': commands that do nothing.
func helpTopics(root *cobra.Command) []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "What each exit code says", Long: "Every command ends with one of these, and scripts may rely on them.\n\n" + exitCodesText()},
		{Use: "reasons", Short: "Why a node refuses a request", Long: "A refusal carries a reason from this closed list (google.rpc.ErrorInfo, domain \"weir\").\n\n" + reasonsText()},
		configTopic(root),
	}
}

func exitCodesText() string {
	var b strings.Builder
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "  %3d  %-12s %s\n", e.code, e.name, wrapText(e.meaning, 20))
	}
	return strings.TrimRight(b.String(), "\n")
}

func reasonsText() string {
	var b strings.Builder
	for _, r := range reasons {
		fmt.Fprintf(&b, "  %s (%s, exit code %d)\n      %s\n      next: %s\n", r.name, r.code, exitOfCode(r.code), wrapText(r.meaning, 6), wrapText(r.next, 6))
	}
	return strings.TrimRight(b.String(), "\n")
}

// helpWidth is the width that help texts are wrapped to, in columns.
const helpWidth = 110

// wrapText breaks text into lines that fit behind an indent of so many columns.
func wrapText(text string, indent int) string {
	var b strings.Builder
	column := indent
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case column+1+len(word) > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// configTopic explains settings and lists them. The list is made when it is asked for: then the tree is complete.
func configTopic(root *cobra.Command) *cobra.Command {
	const intro = `Settings come from flags, then from WEIR_* variables, then from the YAML file of --config (or WEIR_CONFIG), then from
defaults: the first one that is there counts. Empty variables count as not there.

The file is flat: one "key: value" line for each setting. One file may serve every command. A key that is not in the
list below, or is there twice, is refused with its line.

  # weir.yaml
  listen: 127.0.0.1:8080
  data: /var/lib/weir
  pay-within: 30m
`
	topic := &cobra.Command{Use: "config", Short: "Settings: flags, WEIR_* variables and the file", Long: intro}
	topic.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_, _ = io.WriteString(cmd.OutOrStdout(), intro+"\n"+settingsText(root))
	})
	return topic
}

func settingsText(root *cobra.Command) string {
	settings := settingsOf(root)
	rows := newTable("key", "variable", "default", "meaning")
	for _, name := range names(settings) {
		flag := settings[name][0]
		_, usage := pflag.UnquoteUsage(flag)
		rows.row(name, envName(name), flag.DefValue, usage)
	}
	var b strings.Builder
	if err := rows.print(&b, false); err != nil {
		panic(err) // A strings.Builder does not fail.
	}
	return b.String()
}
