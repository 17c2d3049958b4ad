package eventstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// replicasKey is set among a lane's stream's metadata to the number of replicas that it is about to have. From then on writers append
// as to a replicated stream.
const replicasKey = "weir.replicas"

const (
	upgradeLook     = 250 * time.Millisecond // between looks at how far the replicas are
	upgradeCallMax  = 10 * time.Second       // of one call that changes a stream
	upgradeAttempts = 5                      // of a call that gets no answer
	upgradeStallMax = 2 * time.Minute        // without any replica coming closer
	upgradeFenceMax = time.Minute            // of getting in between the commits of a lane's writer

	upgradeOwnerName = "weir cluster upgrade"
)

// statesChain reports whether appends to a stream state the hash of the commit before: not on one that is replicated, or is about to be.
func statesChain(config *jetstream.StreamConfig) bool {
	return max(1, config.Replicas) == 1 && config.Metadata[replicasKey] == ""
}

// An UpgradeStep says how far an upgrade is.
type UpgradeStep struct {
	Stream string `json:"stream"`
	// Step is "announced", "fenced", "replicating" or "current"; "kept" for a stream that had all replicas before.
	Step string `json:"step"`
	// Behind are the replicas that do not have everything yet, and by how many messages.
	Behind map[string]uint64 `json:"behind,omitempty"`
}

// UpgradeOptions configure Upgrade. Replicas is required.
type UpgradeOptions struct {
	// Replicas that every stream, bucket and object store is to have.
	Replicas int
	// System is a connection to the system account, in which every server is asked what it really has; nil believes the
	// streams' leaders, which call a replica current that has heard of everything and stored only some of it.
	System *nats.Conn
	// Owner names who fences the lanes, in the log.
	Owner string
	// Progress is told of each step; may be nil.
	Progress func(UpgradeStep)
	// Now is the clock for the commits that fence.
	Now Clock
}

// A FewerReplicasError says that a log would be kept by fewer servers than it is.
type FewerReplicasError struct {
	Stream        string
	Found, Wanted int
}

func (e *FewerReplicasError) Error() string {
	return fmt.Sprintf("stream %s has %d replicas and would have %d: a commit that a majority acknowledged may be on just the servers that would drop it; to make a smaller log, back this one up and restore it there",
		e.Stream, e.Found, e.Wanted)
}

// Upgrade gives every stream that Weir keeps more replicas, one after the other, while nodes use them, and returns when all replicas have
// everything. It may be stopped at any point and called again. Errors: *FewerReplicasError, or a fault of the servers.
//
// Appends to a stream with one replica state the hash of the commit before, so that several may be under way; on a replicated one they
// must not (see ChecksChain). A lane changes over in this order, and each step is done before the next one begins:
//
//	announced    the stream's settings say how many replicas it is going to have
//	fenced       a LaneOpened commit: a writer from before the announcement can append nothing more. A writer asks for the rule
//	             behind its own fence, so each that opens the lane from here on has the new one. Whose fence it is does not
//	             matter: a writer that hears of the announcement opens its lane again
//	replicating  the stream gets its replicas
//	current      every replica has everything
func Upgrade(ctx context.Context, nc *nats.Conn, options UpgradeOptions) error {
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(upgradeCallMax))
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if options.Progress == nil {
		options.Progress = func(UpgradeStep) {}
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Owner == "" {
		options.Owner = upgradeOwnerName
	}
	record, err := ReadClusterRecord(ctx, nc)
	if err != nil {
		return err
	}
	u := &upgrade{nc: nc, js: js, options: options, topology: Topology{Lanes: record.Lanes}}
	streams, err := u.streams(ctx)
	if err != nil {
		return err
	}
	for _, stream := range streams {
		if err := u.stream(ctx, stream); err != nil {
			return fmt.Errorf("upgrade stream %s: %w", stream, err)
		}
	}
	return nil
}

type upgrade struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	options  UpgradeOptions
	topology Topology
}

// ours reports whether a stream is one that Weir keeps.
func ours(stream string) bool {
	for _, prefix := range []string{"ORDERS-", "WEIR-", "KV_WEIR-", "OBJ_WEIR-"} {
		if strings.HasPrefix(stream, prefix) {
			return true
		}
	}
	return false
}

// streams returns what is to be upgraded, the lanes last, and refuses to take replicas away.
func (u *upgrade) streams(ctx context.Context) ([]string, error) {
	var buckets, lanes []string
	list := u.js.ListStreams(ctx)
	for info := range list.Info() {
		switch name := info.Config.Name; {
		case !ours(name):
			continue
		case info.Config.Replicas > u.options.Replicas:
			return nil, &FewerReplicasError{Stream: name, Found: info.Config.Replicas, Wanted: u.options.Replicas}
		case u.lane(name) >= 0:
			lanes = append(lanes, name)
		default:
			buckets = append(buckets, name)
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the streams: %w", err)
	}
	slices.Sort(buckets)
	slices.Sort(lanes)
	return append(buckets, lanes...), nil
}

// lane returns whose log a stream is, -1 for none.
func (u *upgrade) lane(stream string) int {
	for lane := range u.topology.Lanes {
		if StreamName(lane) == stream {
			return int(lane)
		}
	}
	return -1
}

func (u *upgrade) stream(ctx context.Context, stream string) error {
	info, err := u.info(ctx, stream)
	if err != nil {
		return err
	}
	step := func(name string) { u.options.Progress(UpgradeStep{Stream: stream, Step: name}) }
	if info.Config.Replicas == u.options.Replicas {
		if err := u.await(ctx, stream); err != nil {
			return err
		}
		step("kept")
		return nil
	}
	config := info.Config
	if lane := u.lane(stream); lane >= 0 {
		if config.Metadata == nil {
			config.Metadata = map[string]string{}
		}
		config.Metadata[replicasKey] = strconv.Itoa(u.options.Replicas)
		announced, err := u.update(ctx, config)
		if err != nil {
			return fmt.Errorf("announce it: %w", err)
		}
		step("announced")
		if err := u.fence(ctx, uint32(lane), announced.State.LastSeq, upgradeFenceMax); err != nil {
			return err
		}
		step("fenced")
	}
	config.Replicas = u.options.Replicas
	if _, err := u.update(ctx, config); err != nil {
		return fmt.Errorf("replicate it: %w", err)
	}
	step("replicating")
	if err := u.await(ctx, stream); err != nil {
		return err
	}
	step("current")
	return nil
}

// update changes a stream's settings. To ask again for what was done is harmless.
func (u *upgrade) update(ctx context.Context, config jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	for attempt := 1; ; attempt++ {
		call, cancel := context.WithTimeout(ctx, upgradeCallMax)
		stream, err := u.js.UpdateStream(call, config)
		cancel()
		if err == nil {
			return stream.CachedInfo(), nil
		}
		if ctx.Err() != nil || !Forming(err) || attempt == upgradeAttempts {
			return nil, err
		}
		if err := pause(ctx, upgradeLook); err != nil {
			return nil, err
		}
	}
}

func (u *upgrade) info(ctx context.Context, stream string) (info placedStream, err error) {
	err = apiRequest(ctx, u.nc, upgradeCallMax, "STREAM.INFO."+stream, nil, &info)
	return info, err
}

// fence opens the lane as its owner would, and leaves it; or waits until its owner has opened it again. behind is the newest commit
// as of when the change was announced, or a later one. It gives up after patience.
func (u *upgrade) fence(ctx context.Context, lane uint32, behind uint64, patience time.Duration) error {
	logs, err := openJetStream(ctx, u.nc, u.topology, JetStreamOptions{}, lane, lane+1)
	if err != nil {
		return err
	}
	defer logs.Close()
	log := logs.Log(lane)
	passer := &passerBy{at: Genesis(lane, u.topology.Lanes)}
	if behind > 0 {
		record, err := log.Read(ctx, behind)
		if err != nil {
			return err
		}
		commit, err := DecodeCommit(record.Data)
		if err != nil {
			return &ChainError{Lane: lane, Number: behind, Reason: err.Error()}
		}
		passer.at, passer.logTime = Position{Number: behind, Hash: record.Hash}, commit.Time
	}
	writer := NewWriter(log, passer, WriterOptions{Lane: lane, Lanes: u.topology.Lanes, Owner: u.options.Owner})
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for outrun := error(nil); ; {
		err := writer.Open(bounded, u.options.Now())
		switch {
		case passer.opened, err == nil:
			return nil
		case errors.Is(err, ErrFenced):
			outrun = err
		case outrun != nil && bounded.Err() != nil && ctx.Err() == nil:
			return fmt.Errorf("fence it: for %s the writer of lane %d appended faster than this one could; the same command again goes on, best while there is less to do: %w",
				patience, lane, outrun)
		default:
			return fmt.Errorf("fence it: %w", err)
		}
	}
}

// A passerBy is a machine that decides nothing and only follows where the log is.
type passerBy struct {
	at      Position
	logTime time.Time
	opened  bool // whether a LaneOpened commit, anybody's, was among what it passed
}

func (m *passerBy) Position() Position                            { return m.at }
func (m *passerBy) Reached() Position                             { return m.at }
func (m *passerBy) LogTime() time.Time                            { return m.logTime }
func (m *passerBy) Decide(struct{}, time.Time) Decision[struct{}] { return Decision[struct{}]{} }
func (m *passerBy) Due(time.Time, int) []Event                    { return nil }
func (m *passerBy) Flush() error                                  { return nil }
func (m *passerBy) Rollback()                                     {}
func (m *passerBy) Apply(commit *Commit, next Position) error {
	m.at, m.logTime = next, later(m.logTime, commit.Time)
	m.opened = m.opened || slices.ContainsFunc(commit.Events, func(e Event) bool { return e.Type == TypeLaneOpened })
	return nil
}

// placedStream is what is read of the answer to a stream info request, with where it is.
type placedStream struct {
	streamState
	Cluster *jetstream.ClusterInfo `json:"cluster"`
}

// await waits until every replica has what the stream had when it was asked, and says how far they are.
func (u *upgrade) await(ctx context.Context, stream string) error {
	var least uint64
	moved := time.Now()
	for first := true; ; first = false {
		behind, err := u.behind(ctx, stream)
		if err != nil && !Forming(err) {
			return err
		}
		if err == nil && len(behind) == 0 {
			return nil
		}
		var lag uint64
		for _, messages := range behind {
			lag += messages
		}
		if first || lag < least {
			least, moved = lag, time.Now()
			if err == nil {
				u.options.Progress(UpgradeStep{Stream: stream, Step: "replicating", Behind: behind})
			}
		}
		if time.Since(moved) > upgradeStallMax {
			return errors.Join(fmt.Errorf("its replicas came no closer for %s: behind are %v; are all servers there? The same command again goes on", upgradeStallMax, behind), err)
		}
		if err := pause(ctx, upgradeLook); err != nil {
			return err
		}
	}
}

// behind returns the replicas that lack something, and how many messages; those that nothing is known of lack all.
func (u *upgrade) behind(ctx context.Context, stream string) (map[string]uint64, error) {
	info, err := u.info(ctx, stream)
	if err != nil {
		return nil, err
	}
	behind := map[string]uint64{}
	if info.Cluster == nil || len(info.Cluster.Replicas) < u.options.Replicas-1 {
		behind["(not placed yet)"] = info.State.LastSeq
		return behind, nil
	}
	for _, peer := range info.Cluster.Replicas {
		if !peer.Current || peer.Offline {
			behind[peer.Name] = max(1, peer.Lag)
		}
	}
	if len(behind) > 0 || u.options.System == nil {
		return behind, nil
	}
	servers, err := AskServers(ctx, u.options.System)
	if err != nil {
		return nil, err
	}
	for _, peer := range info.Cluster.Replicas {
		behind[peer.Name] = max(1, info.State.LastSeq)
		for _, server := range servers {
			if server.Name != peer.Name {
				continue
			}
			if has, there := server.Streams[stream]; there && has.LastSeq >= info.State.LastSeq && has.Msgs >= info.State.Msgs {
				delete(behind, peer.Name)
			} else if there {
				behind[peer.Name] = max(1, info.State.Msgs-min(info.State.Msgs, has.Msgs))
			}
		}
	}
	return behind, nil
}
