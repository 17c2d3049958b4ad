package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/failback"
)

const (
	// gatewaySecretFileName is the secret of a dev node's gateway, in the data directory.
	gatewaySecretFileName = "gateway.secret"
	// gatewayOperator is whose token the gateway of a dev node looks at stock with, which is good for gatewayTokenTTL.
	gatewayOperator = "gateway"
	gatewayTokenTTL = time.Minute
	// failbackOpenPause is how long a gateway waits before it tries again to open what NATS keeps for it.
	failbackOpenPause = time.Second
	// parkedRequestsMax bounds the parked requests that are listed.
	parkedRequestsMax = 10_000
)

// A lateQueue is the queue of requests that are made later, once NATS could be reached for the first time.
type lateQueue struct {
	connection *nats.Conn
	config     failback.Config
	opened     atomic.Pointer[failback.Queue]

	mu      sync.Mutex
	options failback.Options
}

var errQueueNotOpen = errors.New("the request is not kept for later: NATS was not reached yet")

// Accept implements gateway.Keeper.
func (l *lateQueue) Accept(ctx context.Context, request failback.Request) error {
	queue := l.opened.Load()
	if queue == nil {
		return errQueueNotOpen
	}
	return queue.Accept(ctx, request)
}

// setKeys makes the queue use other keys from now on.
func (l *lateQueue) setKeys(key []byte, older [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.options.Key, l.options.OlderKeys = key, older // For a queue that is opened later.
	if queue := l.opened.Load(); queue != nil {
		return queue.SetKeys(key, older...)
	}
	return nil
}

// open opens the queue with the keys of now.
func (l *lateQueue) open(ctx context.Context) (*failback.Queue, error) {
	l.mu.Lock()
	options := l.options
	l.mu.Unlock()
	queue, err := failback.Open(ctx, l.connection, l.config, options)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := queue.SetKeys(l.options.Key, l.options.OlderKeys...); err != nil { // They may have changed meanwhile.
		return nil, err
	}
	l.opened.Store(queue)
	return queue, nil
}

// Stats implements gateway.Keeper.
func (l *lateQueue) Stats(ctx context.Context) (failback.Stats, error) {
	queue := l.opened.Load()
	if queue == nil {
		return failback.Stats{}, errQueueNotOpen
	}
	return queue.Stats(ctx)
}

// run opens the queue, and makes the requests that wait until ctx ends.
func (l *lateQueue) run(ctx context.Context, send failback.Send) error {
	said := ""
	for {
		queue, err := l.open(ctx)
		if err == nil {
			return queue.Run(ctx, send)
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			l.options.Logger.LogAttrs(ctx, slog.LevelWarn, "requests cannot be kept for later; trying again", slog.Any("error", err))
		}
		timer := time.NewTimer(failbackOpenPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// openKeeping makes what keeps calls for later, when there is NATS to keep them and a secret to seal them with.
func (f *gatewayFlags) openKeeping(end *front, options *gateway.Options) error {
	if f.operatorToken != "" {
		options.OperatorToken = (&tokenFile{path: f.operatorToken}).token
		if _, err := options.OperatorToken(); err != nil {
			return usagef("--operator-token-file: %v", err).then("write a token with the scope operator into it: weir token --help")
		}
	}
	secrets, err := readGatewaySecrets(f.secretFile)
	if err != nil || secrets == nil {
		return err
	}
	options.RoomKeys = secrets.roomKeys()
	followed := &followedSecret{file: f.secretFile, logger: end.logger, used: secrets, inUse: secrets.inUse(time.Now())}
	end.behind = append(end.behind, followed.run)
	followed.use = func(secrets gatewaySecrets) error { return end.useSecrets(secrets, nil) }
	if end.nats == nil {
		return nil
	}
	if !f.verifies() {
		end.logger.Info("no call is kept for later: the gateway does not verify tokens (--jwt-keys or --token-key-dir)")
		return nil
	}
	config := failback.Config{Replicas: f.failbackReplicas}
	if err := config.Validate(); err != nil {
		return usagef("--failback-replicas: %v", err)
	}
	late := end.keepForLater(end.nats, config, secrets)
	options.Failback = late
	followed.use = func(secrets gatewaySecrets) error { return end.useSecrets(secrets, late) }
	return nil
}

// openDevKeeping gives the gateway of a dev node what waiting rooms, the board and calls that are made later need, out of the data directory: they
// work there with no more settings than the policy.
func (n *node) openDevKeeping(options *gateway.Options) error {
	file := filepath.Join(string(n.options.data), gatewaySecretFileName)
	secrets, err := openOrCreateGatewaySecret(file)
	if err != nil {
		return err
	}
	verifier, err := n.verifier()
	if err != nil {
		return err
	}
	options.RoomKeys = secrets.roomKeys()
	options.User = userOf(verifier.Verify)
	options.Subject = subjectOf(options.User)
	options.OperatorToken = func() (string, error) {
		return identity.Mint(n.signing, gatewayOperator, identity.ScopeOperator, time.Now(), gatewayTokenTTL)
	}
	late := n.front.keepForLater(n.log.nc, failback.Config{}, secrets)
	options.Failback = late
	followed := &followedSecret{file: file, logger: n.logger, used: secrets, inUse: secrets.inUse(time.Now())}
	followed.use = func(secrets gatewaySecrets) error { return n.front.useSecrets(secrets, late) }
	n.front.behind = append(n.front.behind, followed.run)
	return nil
}

// useSecrets makes the gateway, and the queue of calls that are made later if there is one, use other secrets.
func (f *front) useSecrets(secrets gatewaySecrets, late *lateQueue) error {
	if err := f.gateway.SetRoomKeys(secrets.roomKeys()); err != nil || late == nil {
		return err
	}
	return late.setKeys(secrets.failbackKeys(time.Now()))
}

// keepForLater makes the queue of calls that are made later, which the front runs.
func (f *front) keepForLater(connection *nats.Conn, config failback.Config, secrets gatewaySecrets) *lateQueue {
	late := &lateQueue{connection: connection, config: config, options: failback.Options{Logger: f.logger}}
	late.options.Key, late.options.OlderKeys = secrets.failbackKeys(time.Now())
	f.behind = append(f.behind, func(ctx context.Context) error { return late.run(ctx, f.gateway.SendKept) })
	return late
}

// verifies is whether the gateway knows whose a token is.
func (f *gatewayFlags) verifies() bool { return f.keys.file != "" || f.tokenKeyDir != "" }

// openVerifier opens the keys that tokens are verified with, nil for none.
func (f *gatewayFlags) openVerifier(end *front) (func(authorization string) (user string, ok bool), error) {
	options := identity.VerifierOptions{Issuer: f.keys.issuer, Audience: f.keys.audience}
	var verify func(string) (*identity.Principal, error)
	switch {
	case f.keys.file != "" && f.tokenKeyDir != "":
		return nil, usagef("--jwt-keys and --token-key-dir both say what tokens are verified with").then("leave one out")
	case f.keys.file != "":
		verifier, err := identity.OpenKeyFile(identity.KeyFileOptions{Path: f.keys.file, Verifier: options, Logger: end.logger})
		if err != nil {
			return nil, usagef("--jwt-keys %s: %v", f.keys.file, err).then("give a file with one public key in PEM, or a JSON Web Key Set")
		}
		end.behind = append(end.behind, verifier.Run)
		verify = verifier.Verify
	case f.tokenKeyDir != "":
		key, err := identity.OpenSigningKey(f.tokenKeyDir)
		if err != nil {
			return nil, usagef("--token-key-dir: %v", err).then("give the directory with a copy of the nodes' %s", identity.SigningKeyFile)
		}
		options.Keys = key.Keys()
		verifier, err := identity.NewVerifier(options)
		if err != nil {
			return nil, usagef("--token-key-dir: %v", err)
		}
		verify = verifier.Verify
	default:
		return nil, nil
	}
	return userOf(verify), nil
}

// userOf returns what says whose a verified token is.
func userOf(verify func(string) (*identity.Principal, error)) func(authorization string) (user string, ok bool) {
	return func(authorization string) (string, bool) {
		principal, err := verify(authorization)
		if err != nil {
			return "", false // The node says what is wrong with it.
		}
		return principal.Subject, true
	}
}

// subjectOf returns what says whose a call is, "" for nobody's.
func subjectOf(user func(authorization string) (string, bool)) func(http.Header) string {
	return func(header http.Header) string {
		values := header["Authorization"]
		if len(values) != 1 {
			return ""
		}
		name, _ := user(values[0])
		return name
	}
}

// openSubject says how the gateway learns whose call it is.
func (f *gatewayFlags) openSubject(end *front, options *gateway.Options) error {
	verify, err := f.openVerifier(end)
	if err != nil || verify == nil {
		return err
	}
	options.User = verify
	options.Subject = subjectOf(verify)
	return nil
}

// explain says which flag gives a gateway what its policy asks for.
func (f *gatewayFlags) explain(err error) error {
	var need *gateway.NeedError
	switch {
	case errors.As(err, &need):
	case f.policyFile != "":
		return usagef("%v", err).then("correct %s, or give --upstream as http://HOST:PORT", f.policyFile)
	default:
		return usagef("%v", err).then("give --upstream as http://HOST:PORT")
	}
	return usagef("%s: this gateway is not set up for it", need.Key).then("%s", map[string]string{
		"Board":         "name under board what it is about",
		"OperatorToken": "give --operator-token-file",
		"RoomKeys":      "give --gateway-secret-file, and --jwt-keys or --token-key-dir",
		"Failback":      "give --nats, --gateway-secret-file, and --jwt-keys or --token-key-dir",
	}[need.Option])
}

// A tokenFile is a token in a file that somebody renews.
type tokenFile struct {
	path string

	mu   sync.Mutex
	last string
	read time.Time
}

// tokenFileEvery is how old what was read of a token's file gets.
const tokenFileEvery = 5 * time.Second

// token returns the token, as it was in the file a moment ago.
func (t *tokenFile) token() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last != "" && time.Since(t.read) < tokenFileEvery {
		return t.last, nil
	}
	token, err := readSecret(t.path)
	if err != nil {
		return "", err
	}
	t.last, t.read = token, time.Now()
	return token, nil
}

// failbackFlags say where requests lie that were given up.
type failbackFlags struct {
	nats       string
	access     natsAccess
	secretFile string
}

func (f *failbackFlags) add(cmd *cobra.Command) {
	addNATSFlag(cmd, &f.nats)
	f.access.addGateway(cmd)
	addGatewaySecretFlag(cmd, &f.secretFile)
}

func addGatewaySecretFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "gateway-secret-file", "", "`FILE` with the secrets that all gateways share: 64 hexadecimal digits a line, perhaps from TIME, until TIME")
	setting(cmd.Flags(), "gateway-secret-file")
}

// with opens the queue for one command.
func (f *failbackFlags) with(ctx context.Context, do func(*failback.Queue) error) error {
	if f.nats == "" {
		return usagef("requests that are made later lie on NATS").then("give --nats")
	}
	secrets, err := readGatewaySecrets(f.secretFile)
	if err != nil {
		return err
	}
	if secrets == nil {
		return usagef("requests that are made later are sealed").then("give --gateway-secret-file, the same as the gateways'")
	}
	connection, err := f.access.connect(f.nats)
	if err != nil {
		return err
	}
	defer connection.Close()
	key, older := secrets.failbackKeys(time.Now())
	queue, err := failback.Open(ctx, connection, failback.Config{}, failback.Options{Key: key, OlderKeys: older})
	if err != nil {
		return &problem{code: exitUnavailable, what: err.Error(), next: "check --nats, and that JetStream is there", cause: err}
	}
	return do(queue)
}

func (p *process) gatewayFailbackCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "failback",
		Short: "See requests that gateways gave up, and retry or drop them",
		Long: `A method whose fault mode is failback has its calls kept when no node does them, and made again every 5 seconds until a
node answers; each has its effect once. What a node refuses, and what finds no answer within a day, is parked: nobody
makes it again by himself. These commands read the sealed requests from NATS, with the secret of the gateways.`,
	})
	cmd.AddCommand(p.failbackList(), p.failbackRetry(), p.failbackDrop())
	return cmd
}

// parkedRequest is a parked request as it is printed. What customers wrote is not in it.
type parkedRequest struct {
	Key       string    `json:"key"`
	User      string    `json:"user,omitempty"`
	RequestID string    `json:"requestId,omitempty"`
	Method    string    `json:"method,omitempty"`
	Reason    string    `json:"reason"`
	Attempts  int       `json:"attempts"`
	At        time.Time `json:"at"`
	// Unreadable says why the request cannot be read.
	Unreadable string `json:"unreadable,omitempty"`
}

func newParkedRequest(p *failback.Parked) parkedRequest {
	r := parkedRequest{
		Key: p.Key, User: p.Request.User, RequestID: p.Request.ID, Method: p.Request.Method, Reason: p.Reason, Attempts: p.Attempts, At: p.At.UTC(),
	}
	if p.Unreadable != nil {
		r.Unreadable = p.Unreadable.Error()
	}
	return r
}

func (p *process) failbackList() *cobra.Command {
	var f failbackFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print the requests that gateways gave up",
		Long: `Print each parked request, the oldest first: its key, whose it is, its request id and method, how often it was made,
and why it was given up. Exit code 0: nothing is parked; 3: something is.`,
		Example: `  weir gateway failback list --nats nats://10.0.0.1:4222 --gateway-secret-file /etc/weir/gateway.secret
  weir gateway failback list -o json | jq -r '.parked[].key'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd.Context(), func(queue *failback.Queue) error {
				parked, err := queue.Parked(cmd.Context(), "", parkedRequestsMax)
				if err != nil {
					return &problem{code: exitUnavailable, what: err.Error(), next: "try again", cause: err}
				}
				if err := p.printParkedRequests(cmd, parked); err != nil || len(parked) == 0 {
					return err
				}
				return &problem{
					code: exitDifference, what: fmt.Sprintf("%d requests are parked", len(parked)),
					next: "when the cause is gone: weir gateway failback retry KEY; to give one up for ever: weir gateway failback drop KEY",
				}
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (p *process) printParkedRequests(cmd *cobra.Command, parked []failback.Parked) error {
	all := make([]parkedRequest, 0, len(parked))
	for i := range parked {
		all = append(all, newParkedRequest(&parked[i]))
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"parked": all})
	}
	rows := newTable("KEY", "USER", "REQUEST", "METHOD", ">ATTEMPTS", "PARKED", "REASON")
	for i := range all {
		r := &all[i]
		reason := r.Reason
		if r.Unreadable != "" {
			reason += " (" + r.Unreadable + ")"
		}
		rows.row(r.Key, r.User, r.RequestID, r.Method, strconv.Itoa(r.Attempts), instantText(&r.At), reason)
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

func (p *process) failbackRetry() *cobra.Command {
	return p.failbackChange(&cobra.Command{
		Use:   "retry KEY",
		Short: "Have a parked request made again",
		Long: `Have a parked request made again, as if it had just been accepted: a gateway makes it until a node answers. It has its
effect once, also if it had it before. Exit code 5: nothing is parked under that key.`,
		Example: `  weir gateway failback retry 0f5bd1b6f2f64a4c9d1ee84f8a1f3c55`,
	}, "is made again", (*failback.Queue).Retry)
}

func (p *process) failbackDrop() *cobra.Command {
	return p.failbackChange(&cobra.Command{
		Use:   "drop KEY",
		Short: "Remove a parked request for ever",
		Long: `Remove a parked request for ever, on the disk too. Whoever made it was told that it would be made: tell them.
Exit code 5: nothing is parked under that key.`,
		Example: `  weir gateway failback drop 0f5bd1b6f2f64a4c9d1ee84f8a1f3c55`,
	}, "is removed", (*failback.Queue).Drop)
}

// failbackChange completes a command that does something to one parked request.
func (p *process) failbackChange(cmd *cobra.Command, done string, do func(*failback.Queue, context.Context, string) error) *cobra.Command {
	var f failbackFlags
	cmd.Args = exactArgs("KEY")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return f.with(cmd.Context(), func(queue *failback.Queue) error {
			err := do(queue, cmd.Context(), args[0])
			switch {
			case errors.Is(err, failback.ErrNotParked):
				return &problem{code: exitNotFound, what: fmt.Sprintf("%q is not parked", args[0]), next: "see what is: weir gateway failback list", cause: err}
			case err != nil:
				return &problem{code: exitUnavailable, what: err.Error(), next: "look at it again: weir gateway failback list", cause: err}
			}
			if p.json(cmd) {
				return writeJSON(p.stdout, map[string]any{"key": args[0], "ok": true})
			}
			_, err = fmt.Fprintf(p.stdout, "%s %s\n", args[0], done)
			return err
		})
	}
	f.add(cmd)
	return cmd
}
