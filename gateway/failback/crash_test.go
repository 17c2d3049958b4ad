package failback

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway/outcome"
)

// The environment of a child: this test's binary as a gateway with its server, that is killed.
const (
	childDir  = "WEIR_FAILBACK_TEST_DIR"
	childNode = "WEIR_FAILBACK_TEST_NODE"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := gatewayThatIsKilled(dir, os.Getenv(childNode)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// gatewayThatIsKilled accepts the requests whose ids it reads, says which it has accepted, and makes them at the node.
func gatewayThatIsKilled(dir, node string) error {
	server, err := embedded.Start(embedded.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	nc, err := server.Connect()
	if err != nil {
		return err
	}
	ctx := context.Background()
	q, err := Open(ctx, nc, quickly, Options{Key: testKey, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			if err := q.Accept(ctx, request(lines.Text())); err != nil {
				fmt.Fprintln(os.Stderr, err)
				continue
			}
			fmt.Println(lines.Text())
		}
	}()
	return q.Run(ctx, func(ctx context.Context, r Request) Answer {
		post, err := http.NewRequestWithContext(ctx, http.MethodPost, node, strings.NewReader(r.ID))
		if err != nil {
			return Answer{Outcome: outcome.Fault, Err: err}
		}
		response, err := http.DefaultClient.Do(post)
		if err != nil {
			return Answer{Outcome: outcome.Fault, Err: err}
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return Answer{Outcome: outcome.Fault, Err: fmt.Errorf("status %d", response.StatusCode)}
		}
		return Answer{Outcome: outcome.Good}
	})
}

func TestNothingThatWasAcceptedIsLostWhenTheGatewayIsKilled(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	effects, attempts := make(map[string]int), 0
	failing := true
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		attempts++
		// Half of the faults come before the effect, half after it: the gateway cannot tell.
		fails := failing && random.IntN(3) > 0
		if err != nil || fails && random.IntN(2) == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		effects[string(id)] = 1
		if fails {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer node.Close()

	dir := t.TempDir()
	accepted := make(map[string]bool)
	var number int
	const kills = 6
	for round := range kills + 1 {
		last := round == kills
		if last {
			mu.Lock()
			failing = false
			mu.Unlock()
		}
		child := startGateway(t, dir, node.URL)
		// The killer does not care what is under way.
		mu.Lock()
		killAfter := 1 + random.IntN(40)
		mu.Unlock()
		for range 40 {
			if last {
				break
			}
			number++
			if _, err := fmt.Fprintf(child.stdin, "r%d\n", number); err != nil {
				t.Fatal(err)
			}
		}
		for range killAfter {
			if last {
				break
			}
			id, err := child.stdout.ReadString('\n')
			if err != nil {
				t.Fatalf("seed %d, round %d: the gateway ended by itself: %v\n%s", seed, round, err, child.stderr)
			}
			accepted[strings.TrimSpace(id)] = true
		}
		if last {
			eventually(t, "all that was accepted was made", func() bool {
				mu.Lock()
				defer mu.Unlock()
				for id := range accepted {
					if effects[id] == 0 {
						return false
					}
				}
				return true
			})
		}
		child.kill()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(accepted) < kills {
		t.Fatalf("seed %d: only %d requests were accepted", seed, len(accepted))
	}
	t.Logf("seed %d: %d kills, %d requests accepted, %d attempts", seed, kills, len(accepted), attempts)
}

// A killable gateway is a process of its own.
type killable struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	stderr  *strings.Builder
}

func startGateway(t *testing.T, dir, node string) *killable {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := &killable{command: exec.CommandContext(ctx, os.Args[0]), stderr: &strings.Builder{}}
	c.command.Env = append(os.Environ(), childDir+"="+dir, childNode+"="+node)
	c.command.Stderr = c.stderr
	var err error
	if c.stdin, err = c.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewReader(stdout)
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// kill is kill -9.
func (c *killable) kill() {
	_ = c.command.Process.Kill()
	_ = c.command.Wait()
}
