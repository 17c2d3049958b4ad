package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// waitsForHeader is the header of the health service's answer that says what a node waits for which does not serve.
const waitsForHeader = "Weir-Waits-For"

// payWithinDefault is how long an order stays open unpaid when the node does not say.
const payWithinDefault = 24 * time.Hour

// A Node is a 'weir dev' on a data directory, or a 'weir serve'. It may be started again and again.
type Node struct {
	*Server
	// Binary is the path of weir, Data its data directory, Lanes how many it has.
	Binary, Data string
	Lanes        int
	// NATS is the URL of the servers that keep the log of a 'weir serve'; empty for a 'weir dev', and for a Member: a 'weir serve' that is a
	// server of its own cluster.
	NATS   string
	Member bool
	// Listen is where it serves, host:port, after each start; empty for a free port of loopback that is another one each time.
	Listen string
	// Prefix is a command that runs the node's, such as one that enters a network namespace.
	Prefix []string
	// PayWithin is how long an order stays open unpaid; 0 means a day, so that none expires while it is looked at.
	PayWithin time.Duration
	// Flags are further flags of 'weir dev'.
	Flags []string
	// Gateway has calls go through the gateway of the process; without it they meet the node alone.
	Gateway bool
	// Operator and Trusted are tokens: for everything, and for ordering for any user.
	Operator, Trusted string

	began time.Time
}

// Begin starts the node. It does not wait: Serving does.
func (n *Node) Begin(ctx context.Context) error {
	addr, name := n.Listen, "dev"
	if addr == "" {
		var err error
		if addr, err = FreeAddr(ctx); err != nil {
			return err
		}
	}
	arguments := []string{"--data", n.Data, "--listen", addr, "--lanes", strconv.Itoa(n.Lanes)}
	switch {
	case n.Member:
		name = "serve"
	case n.NATS != "":
		name = "serve"
		arguments = append(arguments, "--nats", n.NATS)
	case !n.Gateway:
		arguments = append(arguments, "--no-gateway")
	}
	command := prefixed(n.Prefix, n.Binary, slices.Concat([]string{name}, arguments, n.Flags)...)
	payWithin := n.PayWithin
	if payWithin == 0 {
		payWithin = payWithinDefault
	}
	command.Env = append(os.Environ(), "WEIR_PAY_WITHIN="+payWithin.String())
	n.began = time.Now()
	server, err := Start("weir "+name, addr, nil, command)
	if err != nil {
		return err
	}
	n.Server = server
	return nil
}

// Serving waits until the node serves, and returns how long that took since it was begun. The first time it makes the tokens.
func (n *Node) Serving(ctx context.Context) (time.Duration, error) {
	if err := n.Ready(ctx, n.healthy); err != nil {
		return 0, err
	}
	took := time.Since(n.began)
	for scope, token := range map[string]*string{"operator": &n.Operator, "act-as": &n.Trusted} {
		if *token != "" {
			continue
		}
		var err error
		if *token, err = n.Output(ctx, "token", "--data", n.Data, "--user", "harness", "--scope", scope, "--ttl", "24h"); err != nil {
			return 0, err
		}
	}
	return took, nil
}

// Output runs a command of weir where the node runs, which alone may reach what the node listens on, and returns what it printed.
func (n *Node) Output(ctx context.Context, arguments ...string) (string, error) {
	line := slices.Concat(n.Prefix, []string{n.Binary}, arguments)
	return Output(ctx, nil, line[0], line[1:]...)
}

// PrintedLines runs a command of weir where the node runs, and gives every line that it prints to take.
func (n *Node) PrintedLines(ctx context.Context, take func(line []byte) error, arguments ...string) error {
	line := slices.Concat(n.Prefix, []string{n.Binary}, arguments)
	return Lines(ctx, take, line[0], line[1:]...)
}

// prefixed makes a command that another one runs, if there is one. Stop ends it.
func prefixed(prefix []string, binary string, arguments ...string) *exec.Cmd {
	line := slices.Concat(prefix, []string{binary}, arguments)
	return exec.Command(line[0], line[1:]...) //nolint:noctx // Stop ends it.
}

// Start begins the node, waits until it serves and returns how long that took. After an error nothing runs.
func (n *Node) Start(ctx context.Context) (time.Duration, error) {
	if err := n.Begin(ctx); err != nil {
		return 0, err
	}
	took, err := n.Serving(ctx)
	if err != nil {
		return 0, errors.Join(err, n.Crash())
	}
	return took, nil
}

// End stops the node cleanly.
func (n *Node) End() error { return n.Stop(syscall.SIGTERM) }

// Crash kills the node.
func (n *Node) Crash() error { return n.Stop(syscall.SIGKILL) }

// Orders returns a client that may order for any user.
func (n *Node) Orders(client connect.HTTPClient) orderv1connect.OrderServiceClient {
	return orderv1connect.NewOrderServiceClient(client, "http://"+n.Addr, connect.WithInterceptors(Bearer(n.Trusted)))
}

// Catalog returns an operator's client.
func (n *Node) Catalog(client connect.HTTPClient) catalogv1connect.CatalogServiceClient {
	return catalogv1connect.NewCatalogServiceClient(client, "http://"+n.Addr, connect.WithInterceptors(Bearer(n.Operator)))
}

// healthy asks the health service in JSON, which needs no token.
func (n *Node) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.Addr+"/grpc.health.v1.Health/Check", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return err
	}
	if text := string(body); response.StatusCode != http.StatusOK || !strings.Contains(text, "SERVING") || strings.Contains(text, "NOT_SERVING") {
		return fmt.Errorf("health is %d %s, it waits for %q", response.StatusCode, body, response.Header.Get(waitsForHeader))
	}
	return nil
}

// Bearer puts a token on every call.
func Bearer(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
			request.Header().Set("Authorization", "Bearer "+token)
			return next(ctx, request)
		}
	}
}
