package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
)

func (p *process) doctorCommand() *cobra.Command {
	var (
		data   string
		log    logOptions
		access natsAccess
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what may lose, hide or delay orders",
		Long: `Look at a log and the servers that keep it for everything that is known to lose, hide or delay what was
acknowledged, and change nothing. Each check has a number that it keeps, says what it found, and what to do about it.

It looks at the node that runs on --data, or, when none runs, at the log in that directory; with --nats at a log on NATS
servers. Some things only servers know: they are asked in the system account, which the secret of a cluster of Weir's
own servers opens, or --nats-system-creds. What could not be looked at is "unknown", and is no finding.

It ends with exit code 3 when something is wrong.`,
		Example: `  weir doctor --data /var/lib/weir
  weir doctor --nats nats://10.0.0.1:4222 --nats-creds weir.creds --nats-system-creds sys.creds -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if log.replicas != 0 && log.replicas != 1 && log.replicas != replicasOfCluster {
				return usagef("--replicas must be 1 or %d, not %d", replicasOfCluster, log.replicas)
			}
			log.access, log.replicasMin, log.passwordShown = access, log.replicas, p.showsPassword()
			findings, err := p.examine(cmd.Context(), dataDir(data), log)
			if err != nil {
				return err
			}
			return p.printFindings(cmd, findings)
		},
	}
	addDataFlag(cmd, &data)
	addNATSFlag(cmd, &log.nats)
	access.add(cmd)
	access.addSystem(cmd)
	cmd.Flags().IntVar(&log.replicas, "want-replicas", 0, "`NUMBER` of servers that have to keep each commit (0: 3 in a cluster, 1 on a server that stands alone)")
	return cmd
}

// examine asks the node that runs, or looks itself.
func (p *process) examine(ctx context.Context, dir dataDir, log logOptions) ([]eventstore.Finding, error) {
	if log.nats == "" {
		if err := dir.check(); err != nil {
			return nil, err
		}
		record, err := readNodeRecord(dir)
		if err != nil {
			return nil, err
		}
		if node, _ := dialNode(ctx, record); node != nil {
			defer node.client.CloseIdleConnections()
			var findings []eventstore.Finding
			err := node.getJSON(ctx, inspectDoctor, url.Values{"replicas": {strconv.Itoa(log.replicasMin)}}, &findings)
			return findings, err
		}
	}
	l, err := connectLog(dir, log, slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		return nil, explainStart(dir, err)
	}
	if log.nats == "" {
		if l.witness, err = eventstore.OpenWitness(dir.witness()); err != nil {
			return nil, errors.Join(explainStart(dir, err), l.nc.LastError())
		}
	}
	findings, err := l.examine(ctx, log)
	l.witness = nil // It was only read.
	return findings, errors.Join(explainStart(dir, err), l.close())
}

// passwordInURL finds a password in an address.
var passwordInURL = regexp.MustCompile(`://[^/@\s]*:[^/@\s]+@`)

// showsPassword reports whether the command line has a password in an address. One from the environment or the configuration file is not
// there.
func (p *process) showsPassword() bool {
	return slices.ContainsFunc(p.arguments, passwordInURL.MatchString)
}

func (i *inspector) serveDoctor(w http.ResponseWriter, r *http.Request) {
	replicasMin, err := strconv.Atoi(cmp.Or(r.FormValue("replicas"), "0")) // Commands of before do not say it.
	if err != nil || replicasMin < 0 {
		http.Error(w, "replicas is not a number", http.StatusBadRequest)
		return
	}
	findings, err := i.doctor(r.Context(), replicasMin)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, findings)
}

// printFindings prints one line for each check, and ends with exitDifference when one found something wrong.
func (p *process) printFindings(cmd *cobra.Command, findings []eventstore.Finding) error {
	wrong := 0
	for _, finding := range findings {
		if finding.State == eventstore.FindingBad {
			wrong++
		}
	}
	if p.json(cmd) {
		for _, finding := range findings {
			if err := writeJSON(p.stdout, finding); err != nil {
				return err
			}
		}
	} else {
		paint := p.painterFor(p.stdout)
		rows := newTable(">no", "check", "state", "found", "do")
		rows.style = func(column int, cell string) string {
			switch {
			case column == 2 && cell == string(eventstore.FindingBad):
				return paint.bad(cell)
			case column == 2 && cell == string(eventstore.FindingUnknown):
				return paint.warn(cell)
			case column == 2:
				return paint.good(cell)
			}
			return cell
		}
		for _, finding := range findings {
			rows.row(strconv.Itoa(finding.Number), finding.Check, string(finding.State), finding.Found, finding.Do)
		}
		if err := rows.print(p.stdout, paint); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return &problem{code: exitDifference, what: fmt.Sprintf("%d of %d checks found something wrong", wrong, len(findings)), next: "do what the last column says"}
	}
	return nil
}
