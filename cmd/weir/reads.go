package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/projections/readpath"
	"github.com/weirhq/weir/projections/redisview"
)

// readReport is what reads were answered from since a node started.
type readReport struct {
	// Reads by what was read.
	Reads map[string]readCounts `json:"reads"`
	// Redis is nil for a node without one.
	Redis *redisCounts `json:"redis,omitempty"`
}

// readCounts count the reads of one kind by where their answers came from.
type readCounts struct {
	Memory uint64 `json:"memory"`
	Redis  uint64 `json:"redis"`
	// Loads went to the view; Joined waited for the load of another.
	Loads  uint64 `json:"loads"`
	Joined uint64 `json:"joined"`
	// Missing were known not to be there: from memory, or by the filter.
	Missing  uint64 `json:"missing"`
	Filtered uint64 `json:"filtered"`
	// Refused found too many loads under way.
	Refused uint64 `json:"refused"`
}

// redisCounts count what was asked of and sent to Redis.
type redisCounts struct {
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
	// Stale were there and not as new as they had to be.
	Stale  uint64 `json:"stale"`
	Failed uint64 `json:"failed"`
	// Skipped were not asked, since Redis had failed just before.
	Skipped uint64 `json:"skipped"`
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"`
}

func countsOf(s readpath.Stats) readCounts {
	return readCounts{
		Memory: s.MemoryHits, Redis: s.SharedHits, Loads: s.Loads, Joined: s.Joined, Missing: s.MissingHits,
		Filtered: s.FilterRefusals, Refused: s.Overloaded,
	}
}

func redisCountsOf(s redisview.Stats) *redisCounts {
	return &redisCounts{
		Hits: s.Hits, Misses: s.Misses, Stale: s.Refused, Failed: s.Failed, Skipped: s.KeptBack, Written: s.Written, Dropped: s.Dropped,
	}
}

// reads returns what the node's reads were answered from.
func (n *node) reads() readReport {
	report := readReport{Reads: map[string]readCounts{}}
	if n.views == nil {
		return report
	}
	for kind, stats := range n.views.ReadStats() {
		report.Reads[kind] = countsOf(stats)
	}
	if n.mirror != nil {
		report.Redis = redisCountsOf(n.mirror.Stats())
	}
	return report
}

func (i *inspector) serveReads(w http.ResponseWriter, _ *http.Request) { respond(w, i.reads()) }

// Reads asks a running node what its reads were answered from.
func (n *remoteNode) Reads(ctx context.Context) (report readReport, err error) {
	return report, n.getJSON(ctx, inspectReads, nil, &report)
}

func (p *process) readsCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "reads",
		Short: "See what reads were answered from",
		Long: `Print, for each kind of read, how many answers came from this node's memory, from Redis (--redis) and from its views,
since the node started.

"joined" reads waited for another's load of the same thing; "missing" and "filtered" ones asked for what is known not to
be there; "refused" ones found too many loads under way and were told to come again.

Of Redis it prints how often it had an answer, none, or one that was not as new as it had to be ("stale"), how often it
did not answer and was not asked for that ("skipped"), and how much was sent to it. It needs a running node.`,
		Example: `  weir reads --data ./weir-data
  weir reads -o json | jq .reads.orders`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := dataDir(data)
			if err := dir.check(); err != nil {
				return err
			}
			record, err := readNodeRecord(dir)
			if err != nil {
				return err
			}
			node, _ := dialNode(cmd.Context(), record)
			if node == nil {
				return &problem{code: exitUnavailable, what: fmt.Sprintf("no node runs on %s: reads are counted by one", dir), next: "start it, or name another directory with --data"}
			}
			defer node.client.CloseIdleConnections()
			report, err := node.Reads(cmd.Context())
			if err != nil {
				return err
			}
			return p.printReads(cmd, report)
		},
	}
	addDataFlag(cmd, &data)
	return cmd
}

func (p *process) printReads(cmd *cobra.Command, report readReport) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, report)
	}
	paint := p.painterFor(p.stdout)
	rows := newTable("READ", ">MEMORY", ">REDIS", ">LOADS", ">JOINED", ">MISSING", ">FILTERED", ">REFUSED")
	for _, kind := range slices.Sorted(maps.Keys(report.Reads)) {
		c := report.Reads[kind]
		rows.row(kind, groupDigits(c.Memory), groupDigits(c.Redis), groupDigits(c.Loads), groupDigits(c.Joined),
			groupDigits(c.Missing), groupDigits(c.Filtered), groupDigits(c.Refused))
	}
	if err := rows.print(p.stdout, paint); err != nil || report.Redis == nil {
		return err
	}
	r := report.Redis
	_, err := fmt.Fprintf(p.stdout, "\nRedis: %s hits, %s misses, %s stale, %s failed, %s skipped; %s written, %s dropped\n",
		groupDigits(r.Hits), groupDigits(r.Misses), groupDigits(r.Stale), groupDigits(r.Failed), groupDigits(r.Skipped), groupDigits(r.Written), groupDigits(r.Dropped))
	return err
}
