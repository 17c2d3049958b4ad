package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	durableTimeout   = 5 * time.Second
	durableQuiet     = 500 * time.Millisecond // after the last server's answer to a question to all of them
	durableAnswerMax = 1 << 20                // bytes of one answer
)

// CheckDurable asks whether the servers fsync before they acknowledge. It asks the monitoring addresses (http://host:8222, several
// separated by commas, one for each server that keeps replicas); without any it asks through nc, which needs the
// credentials of the system account. It returns nil only if every server that was asked does, the one that nc is connected
// to among them; a *LossyServerError says what was seen otherwise.
func CheckDurable(ctx context.Context, nc *nats.Conn, monitorURLs string) error {
	ctx, cancel := context.WithTimeout(ctx, durableTimeout)
	defer cancel()
	var servers []serverSync
	var err error
	if strings.TrimSpace(monitorURLs) == "" {
		servers, err = askSystemAccount(ctx, nc)
	} else {
		for address := range strings.SplitSeq(monitorURLs, ",") {
			var server serverSync
			if server, err = askMonitor(ctx, strings.TrimSpace(address)); err != nil {
				break
			}
			servers = append(servers, server)
		}
	}
	if err != nil {
		return &LossyServerError{Seen: "it cannot be asked: " + err.Error(), Cause: err}
	}
	connected := false
	for _, server := range servers {
		switch {
		case server.Disabled:
			continue // It keeps no streams.
		case !server.Config.SyncAlways:
			return &LossyServerError{
				Server: server.ID, Seen: fmt.Sprintf("it acknowledges at once and fsyncs every %s (sync_always is off)", server.Config.SyncInterval),
			}
		}
		connected = connected || server.ID == nc.ConnectedServerId()
	}
	if !connected {
		return &LossyServerError{
			Server: nc.ConnectedServerId(), Seen: "it is the connected server, but it was not among those that answered, or has no JetStream",
		}
	}
	return nil
}

// serverSync is what is read of a server's account of its JetStream.
type serverSync struct {
	ID       string `json:"server_id"`
	Disabled bool   `json:"disabled"`
	Config   struct {
		SyncInterval time.Duration `json:"sync_interval"`
		SyncAlways   bool          `json:"sync_always"`
	} `json:"config"`
}

// askMonitor asks a server's HTTP monitoring.
func askMonitor(ctx context.Context, address string) (server serverSync, err error) {
	base, err := url.Parse(address)
	if err != nil || base.Host == "" {
		return server, fmt.Errorf("monitoring address %q is not like http://host:8222", address)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("jsz").String()+"?config=true", nil)
	if err != nil {
		return server, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return server, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return server, fmt.Errorf("%s answers %s", request.URL, answer.Status)
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, durableAnswerMax)).Decode(&server); err != nil {
		return server, fmt.Errorf("%s answers something else than a NATS server does: %w", request.URL, err)
	}
	return server, nil
}

// askSystemAccount asks all servers at once, and waits until no more answer.
func askSystemAccount(ctx context.Context, nc *nats.Conn) ([]serverSync, error) {
	reports, err := AskServers(ctx, nc)
	var servers []serverSync
	for _, report := range reports {
		servers = append(servers, report.serverSync)
	}
	return servers, err
}

// A ServerReport is what a server of a cluster says of itself.
type ServerReport struct {
	serverSync
	// Name of the server, and the version of nats-server that it runs.
	Name, Version string
	// Sent is the server's clock when it answered; Received is ours, and Took how long the answer was on its way, at most.
	Sent, Received time.Time
	Took           time.Duration
	// StoreDir is where its streams are. StoreBytesMax is how much they may take, StoreBytes what they do.
	StoreDir                  string
	StoreBytes, StoreBytesMax uint64
	// Streams are its replicas of streams as they are on its disk, by stream, over all accounts.
	Streams map[string]StreamReplica
}

// A StreamReplica is what one server has of a stream.
type StreamReplica struct {
	Msgs, FirstSeq, LastSeq, Bytes uint64
}

// AskServers asks every server that the system account reaches, and returns in order of names what each says. nc is a connection to that
// account.
func AskServers(ctx context.Context, nc *nats.Conn) ([]ServerReport, error) {
	asked := time.Now()
	answers, err := pingServers(ctx, nc, "JSZ", `{"config":true,"accounts":true,"streams":true}`)
	if err != nil {
		return nil, err
	}
	var reports []ServerReport
	for _, answer := range answers {
		report, err := readReport(answer.data)
		if err != nil {
			return nil, err
		}
		report.Received, report.Took = answer.received, answer.received.Sub(asked)
		reports = append(reports, report)
	}
	slices.SortFunc(reports, func(a, b ServerReport) int { return strings.Compare(a.Name, b.Name) })
	return reports, nil
}

func readReport(data []byte) (report ServerReport, err error) {
	var answer struct {
		Server struct {
			Name    string    `json:"name"`
			Version string    `json:"ver"`
			Time    time.Time `json:"time"`
		} `json:"server"`
		Data struct {
			serverSync
			Config struct {
				StoreDir   string `json:"store_dir"`
				MaxStorage uint64 `json:"max_storage"`
			} `json:"config"`
			Storage  uint64 `json:"storage"`
			Accounts []struct {
				Streams []struct {
					Name  string `json:"name"`
					State struct {
						Messages uint64 `json:"messages"`
						Bytes    uint64 `json:"bytes"`
						FirstSeq uint64 `json:"first_seq"`
						LastSeq  uint64 `json:"last_seq"`
					} `json:"state"`
				} `json:"stream_detail"`
			} `json:"account_details"`
		} `json:"data"`
	}
	var sync struct {
		Data serverSync `json:"data"`
	}
	if err := errors.Join(json.Unmarshal(data, &answer), json.Unmarshal(data, &sync)); err != nil {
		return report, fmt.Errorf("a server's answer cannot be read: %w", err)
	}
	report = ServerReport{
		serverSync: sync.Data, Name: answer.Server.Name, Version: answer.Server.Version, Sent: answer.Server.Time,
		StoreDir: answer.Data.Config.StoreDir, StoreBytes: answer.Data.Storage, StoreBytesMax: answer.Data.Config.MaxStorage,
		Streams: map[string]StreamReplica{},
	}
	for _, account := range answer.Data.Accounts {
		for _, stream := range account.Streams {
			state := stream.State
			report.Streams[stream.Name] = StreamReplica{Msgs: state.Messages, FirstSeq: state.FirstSeq, LastSeq: state.LastSeq, Bytes: state.Bytes}
		}
	}
	return report, nil
}

// serverAnswer is one server's answer to a question to all of them.
type serverAnswer struct {
	data     []byte
	received time.Time
}

// pingServers asks all servers a question of the system account, and waits until no more answer.
func pingServers(ctx context.Context, nc *nats.Conn, question, body string) ([]serverAnswer, error) {
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }() // Fails on a closed connection only.
	if err := nc.PublishRequest("$SYS.REQ.SERVER.PING."+question, inbox, []byte(body)); err != nil {
		return nil, err
	}
	var all []serverAnswer
	for {
		wait, cancel := context.WithTimeout(ctx, durableQuiet)
		answer, err := answers.NextMsgWithContext(wait)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && len(all) > 0:
			return all, nil
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			continue // A server that starts takes its time.
		case err != nil:
			return nil, fmt.Errorf("no server answers on the system account (are these its credentials?): %w", err)
		case len(answer.Data) == 0:
			return nil, errors.New("the connection is not to the system account")
		}
		all = append(all, serverAnswer{answer.Data, time.Now()})
	}
}

// A LossyServerError says that a server acknowledges what a power cut may take away, or that this cannot be ruled out.
type LossyServerError struct {
	// Server is the server's id, empty if it is not known.
	Server string
	// Seen is what was seen.
	Seen string
	// Cause is why it could not be asked; nil if it was.
	Cause error
}

func (e *LossyServerError) Error() string {
	name := "the NATS server"
	if e.Server != "" {
		name += " " + e.Server
	}
	return name + " may lose acknowledged orders in a power cut: " + e.Seen +
		"; set 'sync_interval: always' in the jetstream block of every server (and give their monitoring addresses), or accept the loss with --allow-lossy-log"
}

func (e *LossyServerError) Unwrap() error { return e.Cause }
