package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
)

// startGateway runs 'weir gateway -o json' in-process on free ports, and returns what it printed and what stops it.
func startGateway(t *testing.T, args ...string) (gatewayLines, func() result) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	reader, writer := io.Pipe()
	var stderr bytes.Buffer
	p := &process{stdout: writer, stderr: &stderr, now: time.Now}
	ended := make(chan result, 1)
	go func() {
		code := p.execute(ctx, append([]string{"gateway", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "-o", "json"}, args...))
		_ = writer.Close()
		ended <- result{code: code, stderr: stderr.String()}
	}()
	stop := sync.OnceValue(func() result {
		cancel(errInterrupted)
		return <-ended
	})
	t.Cleanup(func() { stop() })
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err != nil {
		t.Fatalf("the gateway did not get ready: %+v", stop())
	}
	return decode[gatewayLines](t, line), stop
}

func TestAGatewayStandsInFrontOfANode(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo", "--no-gateway")
	if n.lines.Node != "" {
		t.Errorf("a node without a gateway says that it is behind one: %+v", n.lines)
	}
	lines, stop := startGateway(t, "--upstream", n.lines.API)
	n.lines.API = lines.Gateway
	order := place(t, n.customer(), "tea-sencha=1")
	if again := place(t, n.customer(), "tea-sencha=1", "--request-id", order.RequestID); again != order {
		t.Errorf("the same request answered %+v, before %+v", again, order)
	}

	r := live(t, nil, "gateway", "top", "--addr", lines.Operator, "--count", "1").want(t, exitOK)
	wantText(t, r.stdout, "weir.order.v1.OrderService/PlaceOrder", lines.Upstreams[0], "in use")
	looks := strings.Split(strings.TrimSpace(live(t, nil, "gateway", "top", "--addr", lines.Operator+"/", "--count", "2", "--every", "100ms", "-o", "json").want(t, exitOK).stdout), "\n")
	if len(looks) != 2 {
		t.Fatalf("two looks printed %d lines", len(looks))
	}
	status := decode[gateway.Status](t, looks[1])
	if len(status.Methods) != 1 || status.Methods[0].Good != 2 || status.Methods[0].Codes["ok"] != 2 {
		t.Errorf("methods are %+v, want two good calls", status.Methods)
	}
	stop().want(t, exitOK)
	live(t, nil, "gateway", "top", "--addr", lines.Operator, "--count", "1").want(t, exitUnavailable)
}

func TestADevNodesGatewayIsInFrontOfItsAPI(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	if n.lines.Node == "" || n.lines.Node == n.lines.API {
		t.Fatalf("the node says that it is at %q, the gateway at %q", n.lines.Node, n.lines.API)
	}
	order := place(t, n.customer(), "tea-sencha=1")
	n.lines.API = n.lines.Node
	if again := place(t, n.customer(), "tea-sencha=1", "--request-id", order.RequestID); again != order {
		t.Errorf("behind the gateway the same request answered %+v, before it %+v", again, order)
	}
}

func TestAGatewayServesTLSAndHTTP2(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo", "--no-gateway")
	certificate, key, pool := selfSigned(t)
	lines, _ := startGateway(t, "--upstream", n.lines.API, "--tls-cert", certificate, "--tls-key", key)
	if !strings.HasPrefix(lines.Gateway, "https://") {
		t.Errorf("it says that it serves at %s", lines.Gateway)
	}
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: http2}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, lines.Gateway+"/grpc.health.v1.Health/Check", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || !strings.Contains(string(text), "SERVING") || (response.ProtoMajor == 2) != http2 {
			t.Errorf("HTTP/2 %t: got %s over %s, %v", http2, text, response.Proto, err)
		}
		transport.CloseIdleConnections()
	}
}

// selfSigned makes a certificate for 127.0.0.1.
func selfSigned(t *testing.T) (certificate, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	certificatePEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, text := range map[string][]byte{certificate: certificatePEM, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certificatePEM)
	return certificate, key, pool
}

func TestAGatewayWithoutANodeIsReadyAndSaysUnavailable(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	nodes := filepath.Join(t.TempDir(), "nodes")
	lines, stop := startGateway(t, "--nats", server.ClientURL(), "--nodes-file", nodes)
	if len(lines.Upstreams) != 0 {
		t.Errorf("it knows of %q", lines.Upstreams)
	}
	r := live(t, []string{"WEIR_ADDR=" + lines.Gateway, "WEIR_TOKEN=x"}, "order", "place", "tea-sencha=1").want(t, exitUnavailable)
	wantText(t, r.stderr, "there is no node to call")
	stop().want(t, exitOK)
}

func TestWrongFlagsOfAGatewayAreSaidSo(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("deadlines:\n  defalt: 1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                                       "needs --upstream or --nats",
		"--upstream ftp://x":                     "http://HOST:PORT",
		"--upstream http://127.0.0.1/x":          "http://HOST:PORT",
		"--upstream http://a --nats nats://b":    "leave one out",
		"--upstream http://a --tls-cert x":       "--tls-key",
		"--upstream http://a --jwt-keys /no":     "--jwt-keys",
		"--upstream http://a --policy /no":       "check the path",
		"--upstream http://a --policy " + policy: `did you mean "default"?`,
		"check /no":                              "check the path",
		"check " + policy:                        "line 2: unknown key \"defalt\" in deadlines; did you mean \"default\"?",
		"top --every 1ms":                        "--every",
		"top --count=-1":                         "--count",
	} {
		r := live(t, nil, append([]string{"gateway"}, strings.Fields(args)...)...).want(t, exitUsage)
		wantText(t, r.stderr, want)
	}
	for args, want := range map[string]string{
		"--no-gateway --api-listen 127.0.0.1:0":   "--listen",
		"--no-gateway --gateway-policy " + policy: "leave out --no-gateway",
		"--gateway-policy " + policy:              "did you mean",
	} {
		r := live(t, nil, append([]string{"dev", "--data", t.TempDir(), "--listen", "127.0.0.1:0"}, strings.Fields(args)...)...).want(t, exitUsage)
		wantText(t, r.stderr, want)
	}
}

func TestTheExamplePolicyIsGood(t *testing.T) {
	r := live(t, nil, "gateway", "check", "../../gateway/policy/example.yaml").want(t, exitOK)
	wantText(t, r.stdout, "is a good policy")
	var said struct{ Good bool }
	if err := json.Unmarshal([]byte(live(t, nil, "gateway", "check", "../../gateway/policy/example.yaml", "-o", "json").want(t, exitOK).stdout), &said); err != nil || !said.Good {
		t.Errorf("got %+v, %v", said, err)
	}
}
