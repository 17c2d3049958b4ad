package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Finding is the outcome of one check of a live system.
type Finding struct {
	// Number of the check; it stays the same in every version.
	Number int `json:"number"`
	// Check says what was looked at.
	Check string       `json:"check"`
	State FindingState `json:"state"`
	// Found is what was found, Do what to do about it; empty where nothing is.
	Found string `json:"found"`
	Do    string `json:"do,omitempty"`
}

// A FindingState says how a check ended.
type FindingState string

// The states of a Finding.
const (
	FindingGood FindingState = "ok"
	// FindingBad says that something is wrong.
	FindingBad FindingState = "wrong"
	// FindingUnknown says that it could not be looked at: Found says why.
	FindingUnknown FindingState = "unknown"
)

// Limits that Examine holds a system to.
const (
	// serverVersionMin is the oldest nats-server whose behaviour is known to be the one that the log rests on.
	serverVersionMin = "2.15.2"
	// dedupWindowMax bounds the time that a server remembers message ids: each takes memory.
	dedupWindowMax = 10 * time.Minute
	// roomShareMax is the share of the storage limit above which a log counts as nearly full.
	roomShareMax = 0.8
	// clockSkewMax bounds the difference of the servers' clocks from ours, beyond what the question took.
	clockSkewMax = 500 * time.Millisecond
	// subjectsMax bounds the subjects of one stream: beyond it a server takes long to recover.
	subjectsMax = 1_000_000
	// examineConsumersMax bounds the consumers of a lane that are looked at.
	examineConsumersMax = 1000
	// examineListMax bounds a question for a page of streams: the servers wait 4 s for one whose leader does not answer.
	examineListMax = 10 * time.Second
	// examinePagesMax bounds the pages of streams that are looked at, of 256 each.
	examinePagesMax = 100
)

// ExamineOptions configure Examine. The zero value is valid.
type ExamineOptions struct {
	// System is a connection to the system account; without one, what only servers know stays unknown.
	System *nats.Conn
	// Known has the newest commit of each lane that a node saw acknowledged, from its witness; nil for none.
	Known map[uint32]uint64
	// Own is the server of this process, which needs no system account to be known; nil for none.
	Own *OwnServer
	// ReplicasMin is how many servers have to keep each stream; 0 means 3 in a cluster, 1 on a server that stands alone.
	ReplicasMin int
	// SubjectsMax is how many subjects a stream may have before that counts as slow to recover; 0 means a million.
	SubjectsMax uint64
	// Disk is the one that the server of this process stores on; nil for none.
	Disk *Disk
	// PasswordShown says that this process was given a password in its command line.
	PasswordShown bool
}

// A Disk is where a server stores. All counts are bytes.
type Disk struct {
	// Dir is the server's directory, Max how much it may store there, and Used how much it does.
	Dir       string
	Max, Used int64
	// Free is what the disk has left for it.
	Free int64
}

// An OwnServer is a server that runs in this process and stands alone.
type OwnServer struct {
	StoreDir       string
	SyncsBeforeAck bool
	// Open says that clients beyond this machine reach it.
	Open bool
}

// Examine looks for everything that is known to lose, hide or delay commits on the servers that keep a log, and changes nothing. It returns
// one Finding for each check, in order of numbers. An error says that the log could not be looked at at all.
func Examine(ctx context.Context, nc *nats.Conn, options ExamineOptions) ([]Finding, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	if options.SubjectsMax == 0 {
		options.SubjectsMax = subjectsMax
	}
	e := &examination{nc: nc, js: js, options: options, byNumber: map[int]*Finding{}}
	for _, check := range checks {
		e.byNumber[check.Number] = &Finding{Number: check.Number, Check: check.Check, State: FindingGood}
	}
	switch err := e.streams(ctx); {
	case err != nil && nc.ConnectedClusterName() != "" && Forming(err) && ctx.Err() == nil:
		e.leaderless(err)
	case err != nil:
		return nil, err
	default:
		e.lanes(ctx)
	}
	e.servers(ctx)
	e.exposure(ctx)
	e.account(ctx)
	e.own()
	var findings []Finding
	for _, check := range checks {
		finding := *e.byNumber[check.Number]
		if finding.State == FindingGood && finding.Found == "" {
			finding.Found = check.Found
		}
		findings = append(findings, finding)
	}
	return findings, nil
}

// The numbers of the checks.
const (
	checkFsync = 1 + iota
	checkPersistMode
	checkVersion
	checkAppendRule
	checkDedup
	checkDirect
	checkHoles
	checkSettingsOf
	checkStoreDir
	checkThere
	checkRoom
	checkReplicas
	checkReaders
	checkSlow
	checkSubjects
	checkLeaseAge
	checkMonitoring
	checkClients
	checkPermissions
	checkIndex
	checkClocks
	checkPasswords
)

// checks are what Examine does; Found is what a good outcome says.
var checks = []Finding{
	{Number: checkFsync, Check: "fsync before ack", Found: "every server does"},
	{Number: checkPersistMode, Check: "persist mode", Found: "no stream acknowledges before it writes"},
	{Number: checkVersion, Check: "server version", Found: "every server has " + serverVersionMin + " or newer"},
	{Number: checkAppendRule, Check: "append rule", Found: "no upgrade is unfinished"},
	{Number: checkDedup, Check: "dedup window", Found: "message ids are remembered for a short time"},
	{Number: checkDirect, Check: "direct reads", Found: "only leaders answer reads of the log, the keys and the leases"},
	{Number: checkHoles, Check: "holes in the log", Found: "every number from 1 on is there (weir log verify reads them)"},
	{Number: checkSettingsOf, Check: "stream settings", Found: "nothing expires, is deleted or overwritten"},
	{Number: checkStoreDir, Check: "store directory", Found: "no server stores in a temporary directory"},
	{Number: checkThere, Check: "streams and buckets", Found: "all that were made are there, as far as they are known to reach"},
	{Number: checkRoom, Check: "room", Found: "no limit is near"},
	{Number: checkReplicas, Check: "replicas", Found: "all are there and current"},
	{Number: checkReaders, Check: "readers", Found: "nobody takes the log by acknowledgement"},
	{Number: checkSlow, Check: "slow consumers", Found: "none was cut off"},
	{Number: checkSubjects, Check: "foreign messages", Found: "each lane has one subject"},
	{Number: checkLeaseAge, Check: "leases expire", Found: "buckets of leases and nodes have an age limit, if there are any"},
	{Number: checkMonitoring, Check: "monitoring port", Found: "on loopback, or off"},
	{Number: checkClients, Check: "client port", Found: "clients sign in"},
	{Number: checkPermissions, Check: "permissions", Found: "this account may not delete the log"},
	{Number: checkIndex, Check: "number of subjects", Found: "far from what slows a recovery down"},
	{Number: checkClocks, Check: "clocks", Found: "the servers agree with this machine"},
	{Number: checkPasswords, Check: "passwords", Found: "none in a command line"},
}

type examination struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	options  ExamineOptions
	byNumber map[int]*Finding

	record ClusterRecord
	all    map[string]*jetstream.StreamInfo
	// silent are the streams that were made and of which no server that is there can say anything, in order of names.
	silent []string
}

// wrong adds to a check what is wrong, and what to do.
func (e *examination) wrong(number int, do, format string, args ...any) {
	finding := e.byNumber[number]
	if finding.State != FindingBad {
		finding.State, finding.Found, finding.Do = FindingBad, "", do
	}
	if finding.Found != "" {
		finding.Found += "; "
	}
	finding.Found += fmt.Sprintf(format, args...)
}

// unknown says why a check could not be made, unless something wrong was found all the same.
func (e *examination) unknown(number int, do, reason string) {
	if finding := e.byNumber[number]; finding.State == FindingGood {
		finding.State, finding.Found, finding.Do = FindingUnknown, reason, do
	}
}

// leaderless says what is unknown while no server speaks for the others: the log can be neither read nor written.
func (e *examination) leaderless(err error) {
	e.wrong(checkReplicas, "start the servers that are missing: without more than half of them nothing is acknowledged", "the servers have no leader: %v", err)
	for _, number := range slices.Concat(laneChecks, []int{checkAppendRule, checkThere, checkLeaseAge, checkIndex}) {
		e.unknown(number, "look again when they have one", "the servers have no leader")
	}
}

// laneChecks are those for which a lane's stream has to answer.
var laneChecks = []int{checkPersistMode, checkDedup, checkDirect, checkHoles, checkSettingsOf, checkRoom, checkReaders, checkSubjects}

// list reads what there is of every stream. It does not ask as the client library does: that leaves out, without a word, the streams whose
// servers do not answer.
func (e *examination) list(ctx context.Context) error {
	e.all = map[string]*jetstream.StreamInfo{}
	for offset, page := 0, 0; page < examinePagesMax; page++ {
		var answer struct {
			apiRefusal
			Total   int                     `json:"total"`
			Limit   int                     `json:"limit"`
			Streams []*jetstream.StreamInfo `json:"streams"`
			Missing []string                `json:"missing"`
		}
		request := struct {
			Offset int `json:"offset"`
		}{offset}
		if err := apiRequest(ctx, e.nc, examineListMax, "STREAM.LIST", request, &answer); err != nil {
			return fmt.Errorf("list the streams: %w", err)
		}
		e.silent = append(e.silent, answer.Missing...)
		for _, info := range answer.Streams {
			if !slices.Contains(answer.Missing, info.Config.Name) {
				e.all[info.Config.Name] = info
			}
		}
		if offset += max(1, answer.Limit); offset >= answer.Total {
			break
		}
	}
	slices.Sort(e.silent)
	return nil
}

// streams reads the record and all streams.
func (e *examination) streams(ctx context.Context) error {
	if err := e.list(ctx); err != nil {
		return err
	}
	for _, name := range e.silent {
		if ours(name) {
			e.wrong(checkReplicas, startMissing, "%s has no leader, or its servers are not there", name)
		}
	}
	var err error
	e.record, err = ReadClusterRecord(ctx, e.nc)
	switch {
	case err != nil && slices.Contains(e.silent, "KV_"+clusterBucket):
		e.unknown(checkThere, "look again when its servers are there", "the record of the log does not answer (bucket "+clusterBucket+")")
	case errors.Is(err, ErrNotProvisioned):
		e.wrong(checkThere, "start a node to make a log, or restore the one that was there", "there is no record of a log (bucket %s)", clusterBucket)
	case err != nil:
		return err
	case e.record.State != StateReady:
		e.wrong(checkThere, "start a node: it finishes what was begun", "the log is still being created")
	}
	for name, info := range e.all {
		if ours(name) && e.record.Lanes > 0 {
			e.placement(name, info)
		}
		if info.State.NumSubjects > e.options.SubjectsMax {
			e.wrong(checkIndex, "keep fewer keys in it, or expect slow restarts", "%s has %d subjects", name, info.State.NumSubjects)
		}
	}
	e.buckets()
	return nil
}

// startMissing is what to do about replicas that are not there.
const startMissing = "start the server that is missing, or wait until it has caught up"

// placement looks at where a stream is kept.
func (e *examination) placement(name string, info *jetstream.StreamInfo) {
	least := e.options.ReplicasMin
	if least == 0 {
		least = 1
		if info.Cluster != nil && info.Cluster.Name != "" {
			least = 3
		}
	}
	const add = "weir cluster upgrade --replicas 3"
	if have := max(1, info.Config.Replicas); have < least {
		e.wrong(checkReplicas, add, "%s is on %d of %d servers", name, have, least)
	}
	if info.Config.Metadata[replicasKey] != "" && strconv.Itoa(info.Config.Replicas) != info.Config.Metadata[replicasKey] {
		e.wrong(checkAppendRule, "call weir cluster upgrade again: it goes on", "%s was to have %s replicas and has %d", name, info.Config.Metadata[replicasKey], info.Config.Replicas)
	}
	if info.Cluster == nil || info.Config.Replicas <= 1 {
		return
	}
	for _, peer := range info.Cluster.Replicas {
		switch {
		case peer.Offline:
			e.wrong(checkReplicas, startMissing, "%s: %s is not there", name, peer.Name)
		case !peer.Current:
			e.wrong(checkReplicas, startMissing, "%s: %s is %d behind", name, peer.Name, peer.Lag)
		}
	}
}

// passingBuckets say what is now and end by themselves: they are in memory, and have an age limit.
var passingBuckets = []string{"KV_WEIR-LEASES", "KV_WEIR-NODES"}

// buckets looks at what is kept beside the log.
func (e *examination) buckets() {
	if keys, there := e.all[userKeysStream]; there {
		if keys.Config.AllowDirect {
			e.wrong(checkDirect, "start a node: it corrects the bucket", "%s lets replicas that are behind answer", userKeysStream)
		}
	} else if e.record.State == StateReady && !slices.Contains(e.silent, userKeysStream) {
		e.wrong(checkThere, "restore the bucket from a backup: notes cannot be read without it", "the bucket %s is missing", userKeysBucket)
	}
	for _, bucket := range []string{"KV_WEIR-LEASES", "KV_WEIR-NODES", "KV_WEIR-PLACEMENT"} {
		info, there := e.all[bucket]
		if !there {
			continue
		}
		if info.Config.AllowDirect {
			e.wrong(checkDirect, "start a node: it corrects the bucket", "%s lets replicas that are behind answer", bucket)
		}
		if info.Config.MaxAge == 0 && slices.Contains(passingBuckets, bucket) {
			e.wrong(checkLeaseAge, "remove the bucket while no node runs; the next one makes it anew", "%s keeps for ever what its owner does not renew", bucket)
		}
	}
	for name, info := range e.all {
		if ours(name) && info.Config.Storage != jetstream.FileStorage && !slices.Contains(passingBuckets, name) {
			e.wrong(checkSettingsOf, "restore it into a stream on disk", "%s is in memory", name)
		}
	}
}

// lanes looks at each lane's stream.
func (e *examination) lanes(ctx context.Context) {
	for lane := range e.record.Lanes {
		name := StreamName(lane)
		info, there := e.all[name]
		if slices.Contains(e.silent, name) {
			for _, number := range laneChecks {
				e.unknown(number, "look again when its servers are there", name+" does not answer")
			}
			continue
		}
		if !there {
			e.wrong(checkThere, "keep everything as it is, and restore the log from a backup", "stream %s is missing", name)
			continue
		}
		for _, wrong := range wrongSettings(lane, &info.Config) {
			number := checkSettingsOf
			switch wrong.Setting {
			case "persist_mode":
				number = checkPersistMode
			case "allow_direct":
				number = checkDirect
			}
			e.wrong(number, "correct it with nats stream edit, or restore the log into a new stream", "%s has %s = %s, not %s", name, wrong.Setting, wrong.Value, wrong.Want)
		}
		if info.Config.Duplicates > dedupWindowMax {
			e.wrong(checkDedup, "set duplicate_window to 2m: repeated appends are found in the log itself", "%s remembers message ids for %s", name, info.Config.Duplicates)
		}
		state := info.State
		if state.LastSeq > 0 && (state.FirstSeq != 1 || state.Msgs != state.LastSeq || state.NumDeleted > 0) {
			e.wrong(checkHoles, "weir log verify says which; restore the log from a backup", "%s has %d messages with numbers %d to %d", name, state.Msgs, state.FirstSeq, state.LastSeq)
		}
		if state.Lost != nil && len(state.Lost.Msgs) > 0 {
			e.wrong(checkHoles, "weir log verify says which; restore the log from a backup", "%s: its server reports %d messages lost", name, len(state.Lost.Msgs))
		}
		if known := e.options.Known[lane]; known > state.LastSeq {
			e.wrong(checkThere, "keep everything as it is, and restore the log from a backup", "%s ends at %d, and this node saw commit %d acknowledged", name, state.LastSeq, known)
		}
		if info.Config.MaxBytes > 0 && float64(state.Bytes) > roomShareMax*float64(info.Config.MaxBytes) {
			e.wrong(checkRoom, "raise max_bytes of the stream while there is room", "%s has %d of %d bytes", name, state.Bytes, info.Config.MaxBytes)
		}
		if state.NumSubjects > 1 {
			e.wrong(checkSubjects, "see who publishes there, and take the permission away", "%s has messages of %d subjects", name, state.NumSubjects)
		}
		e.readers(ctx, name)
	}
}

// readers looks for consumers that would take the log in another order than it is in.
func (e *examination) readers(ctx context.Context, name string) {
	stream, err := e.js.Stream(ctx, name)
	if err != nil {
		e.unknown(checkReaders, "look again", err.Error())
		return
	}
	list, seen := stream.ListConsumers(ctx), 0
	for info := range list.Info() {
		if info.Config.AckPolicy != jetstream.AckNonePolicy {
			e.wrong(checkReaders, "read from a position of your own: what is delivered again comes out of order", "%s has consumer %s, which is acknowledged", name, info.Name)
		}
		if seen++; seen >= examineConsumersMax {
			break
		}
	}
	if err := list.Err(); err != nil {
		e.unknown(checkReaders, "look again", err.Error())
	}
}

// needsSystem is why a check was not made.
const needsSystem, giveSystem = "only servers know, and they were not asked", "give --nats-system-creds, or --cluster-secret-file"

// servers asks every server about itself.
func (e *examination) servers(ctx context.Context) {
	if own := e.options.Own; own != nil && e.options.System == nil {
		if !own.SyncsBeforeAck {
			e.wrong(checkFsync, "start it without a sync interval", "the node's own server does not")
		}
		if isTemporary(own.StoreDir) {
			e.wrong(checkStoreDir, "move the data directory, while no node runs", "the node's own server stores in %s", own.StoreDir)
		}
		if own.Open {
			e.wrong(checkClients, "listen on loopback alone", "the node's own server lets anybody in")
		}
		return
	}
	if e.options.System == nil {
		for _, number := range []int{checkFsync, checkVersion, checkStoreDir, checkClocks, checkSlow, checkMonitoring, checkClients} {
			e.unknown(number, giveSystem, needsSystem)
		}
		return
	}
	reports, err := AskServers(ctx, e.options.System)
	if err != nil {
		for _, number := range []int{checkFsync, checkVersion, checkStoreDir, checkClocks} {
			e.unknown(number, "see that the credentials are those of the system account", err.Error())
		}
		return
	}
	for _, server := range reports {
		if olderThan(server.Version, serverVersionMin) {
			e.wrong(checkVersion, "bring it to "+serverVersionMin+" or newer, one server after the other", "%s runs %s", server.Name, server.Version)
		}
		// Its clock was read between our question and its answer.
		late, early := server.Sent.Sub(server.Received), server.Received.Add(-server.Took).Sub(server.Sent)
		if skew := max(late, early); skew > clockSkewMax {
			e.wrong(checkClocks, "run a time service on every machine", "the clock of %s is at least %s off", server.Name, skew.Round(time.Millisecond))
		}
		if server.Disabled {
			continue
		}
		if !server.Config.SyncAlways {
			e.wrong(checkFsync, "set sync_interval: always in the jetstream block of every server", "%s fsyncs every %s", server.Name, server.Config.SyncInterval)
		}
		if isTemporary(server.StoreDir) {
			e.wrong(checkStoreDir, "set store_dir, and move the streams there", "%s stores in %s", server.Name, server.StoreDir)
		}
		if server.StoreBytesMax > 0 && float64(server.StoreBytes) > roomShareMax*float64(server.StoreBytesMax) {
			e.wrong(checkRoom, "give it more disk, or raise max_file_store", "%s has used %d of %d bytes", server.Name, server.StoreBytes, server.StoreBytesMax)
		}
		for lane := range e.record.Lanes {
			name := StreamName(lane)
			has, there := server.Streams[name]
			if whole := e.all[name]; there && whole != nil && has.LastSeq+uint64(followBatchMax) < whole.State.LastSeq {
				e.wrong(checkReplicas, "wait until it has caught up, and stop no other server meanwhile", "%s: %s has %d of %d messages on its disk", name, server.Name, has.LastSeq, whole.State.LastSeq)
			}
		}
	}
}

// isTemporary reports whether a directory is gone after a restart of the machine.
func isTemporary(dir string) bool {
	for _, temporary := range []string{os.TempDir(), "/tmp", "/var/tmp", "/dev/shm"} {
		if below, err := filepath.Rel(temporary, dir); err == nil && below != ".." && !strings.HasPrefix(below, "../") {
			return true
		}
	}
	return false
}

// olderThan compares versions like 2.15.2; what is no number counts as 0.
func olderThan(version, least string) bool {
	have, want := strings.Split(version, "."), strings.Split(least, ".")
	for i := range want {
		var a, b int
		if i < len(have) {
			a, _ = strconv.Atoi(have[i])
		}
		b, _ = strconv.Atoi(want[i])
		if a != b {
			return a < b
		}
	}
	return false
}

// exposure asks every server who reaches it.
func (e *examination) exposure(ctx context.Context) {
	if e.options.System == nil {
		return
	}
	answers, err := pingServers(ctx, e.options.System, "VARZ", "{}")
	if err != nil {
		for _, number := range []int{checkSlow, checkMonitoring, checkClients} {
			e.unknown(number, "look again", err.Error())
		}
		return
	}
	anybody := e.letsAnybodyIn()
	for _, answer := range answers {
		var server struct {
			Data struct {
				Name          string `json:"server_name"`
				Host          string `json:"host"`
				Port          int    `json:"port"`
				AuthRequired  bool   `json:"auth_required"`
				HTTPHost      string `json:"http_host"`
				HTTPPort      int    `json:"http_port"`
				HTTPSPort     int    `json:"https_port"`
				SlowConsumers int64  `json:"slow_consumers"`
			} `json:"data"`
		}
		if err := json.Unmarshal(answer.data, &server); err != nil {
			e.unknown(checkMonitoring, "look again", "a server's answer cannot be read: "+err.Error())
			continue
		}
		s := server.Data
		if (s.HTTPPort != 0 || s.HTTPSPort != 0) && !onLoopback(s.HTTPHost) {
			e.wrong(checkMonitoring, "set http: 127.0.0.1:8222", "%s shows everything about itself on %s", s.Name, s.HTTPHost)
		}
		if (!s.AuthRequired || anybody) && !onLoopback(s.Host) {
			e.wrong(checkClients, "have clients sign in, without a no_auth_user: ops/nats/weir.conf shows how", "%s lets anybody in who reaches %s:%d", s.Name, s.Host, s.Port)
		}
		if s.SlowConsumers > 0 {
			e.wrong(checkSlow, "look for readers that ask for more than they take", "%s has cut off %d", s.Name, s.SlowConsumers)
		}
	}
}

// letsAnybodyIn tries to connect as nobody: a no_auth_user shows in no report of a server.
func (e *examination) letsAnybodyIn() bool {
	nc, err := nats.Connect("nats://"+e.nc.ConnectedAddr(), nats.NoReconnect(), nats.Timeout(2*time.Second), nats.Name("weir doctor, as nobody"))
	if err != nil {
		return false
	}
	nc.Close()
	return true
}

func onLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// account asks the server what this connection may do.
func (e *examination) account(ctx context.Context) {
	if own := e.options.Own; own != nil && !own.Open {
		e.byNumber[checkPermissions].Found = "the node's own server has no account for others than this machine's"
		return
	}
	reply, err := e.nc.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	var answer struct {
		Data struct {
			User        string `json:"user"`
			Permissions *struct {
				Publish struct {
					Allow []string `json:"allow"`
					Deny  []string `json:"deny"`
				} `json:"publish"`
			} `json:"permissions"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(reply.Data, &answer)
	}
	if err != nil {
		e.unknown(checkPermissions, "let the account publish to $SYS.REQ.USER.INFO", err.Error())
		return
	}
	for _, call := range []string{"STREAM.DELETE.", "STREAM.RESTORE."} {
		subject := jetstream.DefaultAPIPrefix + call + StreamName(0)
		allowed := true
		if permissions := answer.Data.Permissions; permissions != nil {
			matches := func(pattern string) bool { return subjectMatches(pattern, subject) }
			allowed = (len(permissions.Publish.Allow) == 0 || slices.ContainsFunc(permissions.Publish.Allow, matches)) && !slices.ContainsFunc(permissions.Publish.Deny, matches)
		}
		if allowed {
			e.wrong(checkPermissions, "give nodes an account that may do what they need and no more: ops/nats/weir.conf", "this account may publish to %s", subject)
		}
	}
}

// own looks at what this process knows of itself.
func (e *examination) own() {
	if e.options.PasswordShown {
		e.wrong(checkPasswords, "give --nats-creds, or write the address into the configuration file", "an address has one, and every user of the machine can list command lines")
	}
	if disk := e.options.Disk; disk != nil && disk.Used+disk.Free < disk.Max {
		e.wrong(checkRoom, "make room on the disk: a server that finds it full stops", "%s may grow to %d bytes, and with what is free the disk has %d", disk.Dir, disk.Max, disk.Used+disk.Free)
	}
}

// subjectMatches reports whether a pattern with * and > covers a subject.
func subjectMatches(pattern, subject string) bool {
	want, have := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range want {
		switch {
		case token == ">":
			return len(have) > i
		case i >= len(have) || (token != "*" && token != have[i]):
			return false
		}
	}
	return len(want) == len(have)
}
