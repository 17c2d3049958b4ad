package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/retry"
)

// conformanceModule is Connect's conformance suite: a runner with a client of its own, and a server. It needs more modules than Weir
// does, so that it is built by itself and not from this module's.
const (
	conformanceModule  = "connectrpc.com/conformance"
	conformanceVersion = "v1.0.7"
	// conformanceMax bounds one run of it, and conformanceDrain how long its output is waited for after its end.
	conformanceMax   = 5 * time.Minute
	conformanceDrain = 5 * time.Second
)

var (
	conformanceFull = flag.Bool("conformance-full", false, "run Connect's whole conformance suite, directly and through the gateway (minutes)")
	// conformanceServer in the environment makes this test program the server that the suite tests: the gateway in front of the
	// suite's own server, whose path it is.
	conformanceServer = "WEIR_CONFORMANCE_SERVER"
)

func TestMain(m *testing.M) {
	if server := os.Getenv(conformanceServer); server != "" {
		if err := serveConformance(server); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestConnectConformanceIsTheSameThroughTheGateway(t *testing.T) {
	runner, server := conformanceTools(t)
	config := filepath.Join(t.TempDir(), "config.yaml")
	features := `features:
  versions: [HTTP_VERSION_1, HTTP_VERSION_2]
  codecs: [CODEC_PROTO]
  compressions: [COMPRESSION_IDENTITY]
`
	if *conformanceFull {
		features = `features:
  versions: [HTTP_VERSION_1, HTTP_VERSION_2]
  codecs: [CODEC_PROTO, CODEC_JSON]
  compressions: [COMPRESSION_IDENTITY, COMPRESSION_GZIP, COMPRESSION_BR, COMPRESSION_ZSTD]
  supportsHalfDuplexBidiOverHttp1: true
  supportsTlsClientCerts: true
`
	}
	if err := os.WriteFile(config, []byte(features), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	through := runConformance(t, runner, config, conformanceServer+"="+server, self)
	t.Logf("through the gateway: %d of %d cases pass", through.passed, through.total)
	if through.total < 1000 {
		t.Fatalf("only %d cases ran: %s", through.total, through.output)
	}
	if !*conformanceFull {
		if len(through.failed) > 0 { // The suite's own server passes all of them.
			t.Errorf("%d cases fail through the gateway: %s", len(through.failed), through.output)
		}
		return
	}
	direct := runConformance(t, runner, config, "", server)
	t.Logf("directly: %d of %d cases pass", direct.passed, direct.total)
	if direct.total != through.total || !slices.Equal(direct.failed, through.failed) {
		t.Errorf("through the gateway %d cases ran and these failed: %q; directly %d, and: %q\n%s", through.total, through.failed, direct.total, direct.failed, through.output)
	}
}

// conformanceTools returns the suite's runner and its server, built with this version of Go.
func conformanceTools(t *testing.T) (runner, server string) {
	t.Helper()
	tools := filepath.Join("..", ".bin")
	runner, server = filepath.Join(tools, "connectconformance"), filepath.Join(tools, "referenceserver")
	for _, tool := range []string{runner, server} {
		if _, err := os.Stat(filepath.Join(tools, "."+filepath.Base(tool)+"-"+conformanceVersion)); err == nil {
			continue
		}
		tools = t.TempDir()
		for _, name := range []string{"connectconformance", "referenceserver"} {
			install := exec.CommandContext(t.Context(), "go", "install", conformanceModule+"/cmd/"+name+"@"+conformanceVersion)
			install.Env = append(os.Environ(), "GOBIN="+tools, "GOFLAGS=")
			if output, err := install.CombinedOutput(); err != nil {
				t.Fatalf("build %s: %v\n%s", name, err, output)
			}
		}
		return filepath.Join(tools, "connectconformance"), filepath.Join(tools, "referenceserver")
	}
	absolute := func(path string) string {
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return absolute
	}
	return absolute(runner), absolute(server)
}

type conformanceResult struct {
	total, passed int
	failed        []string
	output        string
}

var (
	conformanceFailed = regexp.MustCompile(`(?m)^FAILED: (.*):$`)
	conformanceTotals = regexp.MustCompile(`(?m)^Total cases: (\d+)\n(\d+) passed`)
)

func runConformance(t *testing.T, runner, config, env, server string) conformanceResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), conformanceMax)
	defer cancel()
	command := exec.CommandContext(ctx, runner, "--mode", "server", "--conf", config, "--", server)
	if env != "" {
		command.Env = append(os.Environ(), env)
	}
	command.WaitDelay = conformanceDrain
	output, err := command.CombinedOutput()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("run %s: %v", runner, err)
	}
	result := conformanceResult{output: string(output)}
	totals := conformanceTotals.FindStringSubmatch(result.output)
	if totals == nil {
		t.Fatalf("the suite did not come to its end (%v): %s", err, output)
	}
	result.total, _ = strconv.Atoi(totals[1])
	result.passed, _ = strconv.Atoi(totals[2])
	for _, failed := range conformanceFailed.FindAllStringSubmatch(result.output, -1) {
		result.failed = append(result.failed, failed[1])
	}
	slices.Sort(result.failed)
	return result
}

// serveConformance is a server under test: it starts the suite's own server, and serves the gateway in front of it. What the suite wants
// comes on stdin as a ServerCompatRequest, and where it listens goes to stdout as a ServerCompatResponse.
func serveConformance(server string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	request, err := readPrefixed(os.Stdin)
	if err != nil {
		return fmt.Errorf("read the suite's request: %w", err)
	}
	wanted, err := decodeFields(request)
	if err != nil {
		return err
	}
	// Behind the gateway there is no TLS. The suite's server speaks one version of HTTP only, a node both on one port.
	http1, http2 := &suiteServer{path: server, version: 1}, &suiteServer{path: server, version: 2}
	for _, behind := range []*suiteServer{http1, http2} {
		if err := behind.start(ctx, wanted); err != nil {
			return err
		}
		defer behind.stop()
	}
	upstream, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer upstream.Close()
	go splitVersions(ctx, upstream, http1.address, http2.address)

	// The suite has its server fail in every way: nobody is to draw conclusions from that.
	decided := policy.Policy{
		Limits: policy.Limits{RequestBytes: 16 << 20}, CORS: policy.CORS{Origins: []string{"https://*.example"}},
		Balance: balance.Config{Ejection: balance.Ejection{Off: true}}, Breaker: breaker.Limits{CallsMin: 1_000_000},
		Retry: retry.Config{Off: true}, Concurrency: limit.ConcurrencyConfig{Off: true},
	}
	g, err := gateway.New(gateway.Options{
		Upstreams: []*url.URL{{Scheme: "http", Host: upstream.Addr().String()}},
		Policy:    decided,
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	front := gateway.NewServer(g)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "127.0.0.1")
	answer = protowire.AppendVarint(protowire.AppendTag(answer, 2, protowire.VarintType), uint64(listener.Addr().(*net.TCPAddr).Port))
	serve := func() error { return front.Serve(listener) }
	if wanted.number[4] != 0 {
		credentials, err := decodeFields(wanted.bytes[7])
		if err != nil {
			return err
		}
		certificate, err := tls.X509KeyPair(credentials.bytes[1], credentials.bytes[2])
		if err != nil {
			return err
		}
		front.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
		if trusted := wanted.bytes[5]; len(trusted) > 0 {
			front.TLSConfig.ClientCAs, front.TLSConfig.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
			front.TLSConfig.ClientCAs.AppendCertsFromPEM(trusted)
		}
		answer = protowire.AppendBytes(protowire.AppendTag(answer, 3, protowire.BytesType), credentials.bytes[1])
		serve = func() error { return front.ServeTLS(listener, "", "") }
	}
	served := make(chan error, 1)
	go func() { served <- serve() }()
	if _, err := os.Stdout.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)); err != nil {
		return err
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	if err := front.Close(); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A suiteServer is a process of the suite's own server.
type suiteServer struct {
	path    string
	version uint64
	address string
	process *exec.Cmd
}

// start starts the server as it is wanted, but for its version of HTTP and for TLS.
func (s *suiteServer) start(ctx context.Context, wanted fields) error {
	request := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), wanted.number[1])
	request = protowire.AppendVarint(protowire.AppendTag(request, 2, protowire.VarintType), s.version)
	request = protowire.AppendVarint(protowire.AppendTag(request, 6, protowire.VarintType), wanted.number[6])
	s.process = exec.CommandContext(ctx, s.path)
	s.process.Stdin = bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...))
	// Through this process: the suite kills it when it is slow to stop, and its server would hold the suite's output open for ever.
	s.process.Stderr = struct{ io.Writer }{os.Stderr}
	out, err := s.process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.process.Start(); err != nil {
		return err
	}
	response, err := readPrefixed(out)
	if err != nil {
		return fmt.Errorf("read the server's response: %w", err)
	}
	at, err := decodeFields(response)
	s.address = net.JoinHostPort("127.0.0.1", strconv.FormatUint(at.number[2], 10))
	return err
}

func (s *suiteServer) stop() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
}

// splitVersions passes connections on by the version of HTTP that they begin with, until the listener is closed.
func splitVersions(ctx context.Context, listener net.Listener, http1, http2 string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			beginning := make([]byte, 4)
			if _, err := io.ReadFull(client, beginning); err != nil {
				return
			}
			address := http1
			if string(beginning) == "PRI " {
				address = http2
			}
			server, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return
			}
			defer server.Close()
			go func() {
				defer client.Close()
				_, _ = io.Copy(client, server)
			}()
			_, _ = io.Copy(server, io.MultiReader(bytes.NewReader(beginning), client))
		}()
	}
}

func readPrefixed(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

// fields are those of one message of the suite, by number; its Go types are internal to it.
type fields struct {
	number map[protowire.Number]uint64
	bytes  map[protowire.Number][]byte
}

func decodeFields(message []byte) (fields, error) {
	f := fields{number: map[protowire.Number]uint64{}, bytes: map[protowire.Number][]byte{}}
	for len(message) > 0 {
		number, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return f, protowire.ParseError(length)
		}
		message = message[length:]
		switch kind {
		case protowire.VarintType:
			f.number[number], length = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			f.bytes[number], length = protowire.ConsumeBytes(message)
		default:
			length = protowire.ConsumeFieldValue(number, kind, message)
		}
		if length < 0 {
			return f, protowire.ParseError(length)
		}
		message = message[length:]
	}
	return f, nil
}
