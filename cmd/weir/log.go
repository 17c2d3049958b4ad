package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/weirhq/weir/eventstore"
	eventv1 "github.com/weirhq/weir/proto/stored/weir/event/v1"
	logv1 "github.com/weirhq/weir/proto/stored/weir/log/v1"
)

func (p *process) logCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "log",
		Short: "Read, verify and measure the log",
		Long: `The log is the truth: everything that a node shows is computed from it.

Each lane's log is a chain of commits. A commit holds the events that were decided together; it is written and fsynced
as one record, numbered without a gap, and holds the hash of the commit before.

` + sourceHelp,
	})
	cmd.AddCommand(p.logCat(), p.logVerify(), p.logStats())
	return cmd
}

// An eventLine is how 'log cat' prints one event.
type eventLine struct {
	Lane      uint32    `json:"lane"`
	Commit    uint64    `json:"commit"`
	Index     int       `json:"index"`
	Time      time.Time `json:"time"`
	Epoch     uint64    `json:"epoch"`
	Type      string    `json:"type"`
	Version   uint32    `json:"version"`
	Partition uint32    `json:"partition"`
	User      string    `json:"user,omitempty"`
	Aggregate string    `json:"aggregate,omitempty"`
	Request   string    `json:"request,omitempty"`
	Causation string    `json:"causation,omitempty"`
	// Payload as JSON, or Raw when this build does not know the type.
	Payload json.RawMessage `json:"payload,omitempty"`
	Raw     []byte          `json:"raw,omitempty"`
}

// lineOf makes the line of one event.
func lineOf(commit *eventstore.Commit, index int) eventLine {
	event := &commit.Events[index]
	line := eventLine{
		Lane: commit.Lane, Commit: commit.Number, Index: index, Time: commit.Time.UTC(), Epoch: commit.Epoch,
		Type: event.Type, Version: event.Version, Partition: event.Partition,
		User: event.UserID, Aggregate: event.AggregateID, Request: event.RequestID, Causation: event.CausationID,
	}
	payload, err := payloadJSON(event)
	if err != nil {
		line.Raw = event.Payload
	} else {
		line.Payload = payload
	}
	return line
}

// payloadJSON decodes the payload of an event whose type this build knows.
func payloadJSON(event *eventstore.Event) (json.RawMessage, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(payloadName(event.Type))
	if err != nil {
		return nil, err
	}
	message := kind.New().Interface()
	if err := proto.Unmarshal(event.Payload, message); err != nil {
		return nil, err
	}
	return messageJSON(message)
}

// payloadName returns the message that a type's payload is.
func payloadName(typeName string) protoreflect.FullName {
	if typeName == eventstore.TypeLaneOpened {
		return (*logv1.LaneOpened)(nil).ProtoReflect().Descriptor().FullName()
	}
	return eventv1.File_weir_event_v1_event_proto.Package().Append(protoreflect.Name(typeName))
}

// eventTypes are the types that this build knows, for --type.
func eventTypes() []string {
	types := []string{eventstore.TypeLaneOpened}
	messages := eventv1.File_weir_event_v1_event_proto.Messages()
	for i := range messages.Len() {
		if name := string(messages.Get(i).Name()); name != "OrderLine" && name != "UnitsReleased" {
			types = append(types, name)
		}
	}
	return types
}

// catFilter says which events 'log cat' prints. Empty fields let everything through.
type catFilter struct {
	types     []string
	user      string
	aggregate string
}

func (f *catFilter) lets(event *eventstore.Event) bool {
	return (len(f.types) == 0 || slices.Contains(f.types, event.Type)) &&
		(f.user == "" || f.user == event.UserID) &&
		(f.aggregate == "" || f.aggregate == event.AggregateID)
}

func (p *process) logCat() *cobra.Command {
	var (
		from   sourceFlags
		filter catFilter
		number uint64
		follow bool
	)
	cmd := &cobra.Command{
		Use:   "cat",
		Short: "Print events as JSON, one line each",
		Long: `Print the events of the log as JSON, one line each, lane by lane in order of their commits.

A line names the event's place (lane, commit, index), its log time, the epoch under which it was written, its type and
version, whose it is (partition, user, aggregate), what asked for it (request, causation), and its payload. Notes are
sealed: they are shown as they are stored.

With --follow it goes on with new events until ctrl-c; that needs a running node.

` + sourceHelp,
		Example: `  weir log cat --data ./weir-data
  weir log cat --type OrderPlaced --user alice
  weir log cat --lane 0 --from 1000 --follow
  weir log cat --aggregate 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 | jq -c '[.time,.type]'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range filter.types {
				if !slices.Contains(eventTypes(), name) {
					return usagef("--type %q is unknown%s", name, didYouMean(name, eventTypes())).then("one of: %v", eventTypes())
				}
			}
			if number == 0 {
				return usagef("--from must be at least 1: commits are counted from 1")
			}
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.cat(cmd.Context(), s, &from, &filter, number, follow))
		},
	}
	from.addFlags(cmd, true)
	cmd.Flags().Uint64Var(&number, "from", 1, "`COMMIT` to start with, in each lane")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with new events until ctrl-c")
	cmd.Flags().StringArrayVar(&filter.types, "type", nil, "only events of this `TYPE`; repeat it for more")
	cmd.Flags().StringVar(&filter.user, "user", "", "only events of this `USER`")
	cmd.Flags().StringVar(&filter.aggregate, "aggregate", "", "only events of this `ID`: an order's, or a SKU")
	return cmd
}

func closeWith(s *source, err error) error { return errors.Join(err, s.close()) }

func (p *process) cat(ctx context.Context, s *source, from *sourceFlags, filter *catFilter, number uint64, follow bool) error {
	lanes, err := from.wanted(s.topology)
	if err != nil {
		return err
	}
	if follow && !s.running && from.nats == "" {
		return usagef("--follow needs a running node, and none runs on %s", from.data).then("start it, or leave --follow out")
	}
	printer := &eventPrinter{out: bufio.NewWriterSize(p.stdout, 64<<10), filter: filter}
	group, ctx := errgroup.WithContext(ctx)
	if !follow {
		group.SetLimit(1) // Lane by lane, in order.
	}
	for _, lane := range lanes {
		group.Go(func() error {
			return explainLog(lane, p.catLane(ctx, s.lane(lane), number, follow, printer))
		})
	}
	err = group.Wait()
	if follow && errors.Is(context.Cause(ctx), errInterrupted) {
		err = nil
	}
	return errors.Join(err, printer.flush())
}

func (p *process) catLane(ctx context.Context, lane laneReader, from uint64, follow bool, printer *eventPrinter) error {
	head := uint64(0)
	if !follow {
		var err error
		if head, err = lane.Head(ctx); err != nil {
			return err
		}
	}
	return readLane(ctx, lane, from, head, follow, printer.flush, printer.print)
}

// An eventPrinter prints the events of several lanes, a commit at a time.
type eventPrinter struct {
	filter *catFilter
	mu     sync.Mutex
	out    *bufio.Writer
}

func (e *eventPrinter) print(record eventstore.Record) error {
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return fmt.Errorf("commit %d: %w", record.Number, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range commit.Events {
		if e.filter.lets(&commit.Events[i]) {
			if err := writeJSON(e.out, lineOf(commit, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *eventPrinter) flush() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.out.Flush()
}

// laneStats is what 'log stats' says of one lane.
type laneStats struct {
	Lane            uint32           `json:"lane"`
	Commits         int64            `json:"commits"`
	Events          int64            `json:"events"`
	Bytes           int64            `json:"bytes"`
	EventsPerCommit float64          `json:"eventsPerCommit"`
	First           *time.Time       `json:"first,omitempty"`
	Last            *time.Time       `json:"last,omitempty"`
	Types           map[string]int64 `json:"types"`
}

// take adds a commit.
func (l *laneStats) take(record eventstore.Record) error {
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return fmt.Errorf("commit %d: %w", record.Number, err)
	}
	at := commit.Time.UTC()
	if l.First == nil {
		l.First = &at
	}
	l.Last = &at
	l.Commits++
	l.Bytes += int64(len(record.Data))
	l.Events += int64(len(commit.Events))
	l.EventsPerCommit = float64(l.Events) / float64(l.Commits)
	for i := range commit.Events {
		l.Types[commit.Events[i].Type]++
	}
	return nil
}

func (p *process) logStats() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Count commits, events and bytes of each lane",
		Long: `Read the whole log and count, for each lane: commits, events, bytes, events per commit, the log time of the first and
the newest commit, and events by type. Bytes are those of the commits, without what the server adds.

` + sourceHelp,
		Example: `  weir log stats --data ./weir-data
  weir log stats -o json | jq '.lanes[].types'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.stats(cmd, s, &from))
		},
	}
	from.addFlags(cmd, true)
	return cmd
}

func (p *process) stats(cmd *cobra.Command, s *source, from *sourceFlags) error {
	lanes, err := from.wanted(s.topology)
	if err != nil {
		return err
	}
	all := []*laneStats{}
	for _, lane := range lanes {
		l := &laneStats{Lane: lane, Types: map[string]int64{}}
		all = append(all, l)
		head, err := s.lane(lane).Head(cmd.Context())
		if err != nil {
			return explainLog(lane, err)
		}
		progress := p.newLogProgress(cmd.Context(), fmt.Sprintf("read lane %d", lane), s.lane(lane))
		err = readLane(cmd.Context(), s.lane(lane), 1, head, false, nil, func(record eventstore.Record) error {
			progress.read(record)
			return l.take(record)
		})
		progress.end()
		if err != nil {
			return explainLog(lane, err)
		}
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"lanes": all})
	}
	return p.printStats(all)
}

func (p *process) printStats(all []*laneStats) error {
	paint := p.painterFor(p.stdout)
	lanes := newTable(">LANE", ">COMMITS", ">EVENTS", ">EVENTS/COMMIT", ">BYTES", "FIRST", "NEWEST")
	types := map[string]int64{}
	for _, l := range all {
		lanes.row(strconv.FormatUint(uint64(l.Lane), 10), groupDigits(l.Commits), groupDigits(l.Events),
			fmt.Sprintf("%.1f", l.EventsPerCommit), bytesText(l.Bytes), instantText(l.First), instantText(l.Last))
		for name, count := range l.Types {
			types[name] += count
		}
	}
	if err := lanes.print(p.stdout, paint); err != nil {
		return err
	}
	if len(types) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	counts := newTable("TYPE", ">EVENTS")
	for _, name := range slices.Sorted(maps.Keys(types)) {
		counts.row(name, groupDigits(types[name]))
	}
	return counts.print(p.stdout, paint)
}

func instantText(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z")
}
