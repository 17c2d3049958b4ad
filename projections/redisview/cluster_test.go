package redisview

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const clusterMasters = 3

// startCluster starts three masters that share the slots, and a replica of each. The masters come first.
func startCluster(t *testing.T) []*server {
	t.Helper()
	var servers []*server
	for range 2 * clusterMasters {
		servers = append(servers, startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"))
	}
	const slots = 16384
	for i, s := range servers[:clusterMasters] {
		s.do("CLUSTER", "ADDSLOTSRANGE", i*slots/clusterMasters, (i+1)*slots/clusterMasters-1)
		s.do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for _, s := range servers[1:] {
		host, port, _ := net.SplitHostPort(servers[0].addr)
		s.do("CLUSTER", "MEET", host, port)
	}
	known := func(count int) func() bool {
		return func() bool {
			return !slices.ContainsFunc(servers, func(s *server) bool {
				text, _ := s.do("CLUSTER", "INFO").(string)
				return !strings.Contains(text, "cluster_state:ok") || !strings.Contains(text, fmt.Sprintf("cluster_known_nodes:%d\r\n", count))
			})
		}
	}
	eventually(t, "the servers know each other", known(len(servers)))
	for i, s := range servers[clusterMasters:] {
		id, _ := servers[i].do("CLUSTER", "MYID").(string)
		s.do("CLUSTER", "REPLICATE", id)
	}
	for _, s := range servers[clusterMasters:] {
		eventually(t, "the replicas follow", func() bool {
			text, _ := s.do("INFO", "replication").(string)
			return strings.Contains(text, "role:slave") && strings.Contains(text, "master_link_status:up")
		})
	}
	return servers
}

func TestClusterOfSixKeepsEveryModelAndOutlivesAMaster(t *testing.T) {
	servers := startCluster(t)
	w := newWorld(t, 4)
	var clock atomic.Int64
	n := startNode(w, servers[0].addr, func(o *Options) {
		o.Cluster = true
		o.Addresses = nil
		for _, s := range servers {
			o.Addresses = append(o.Addresses, s.addr)
		}
		o.Now = func() time.Time { return time.Unix(0, clock.Load()) }
	})
	if n.mirror.options.StockCopies != StockCopiesOfCluster {
		t.Fatalf("%d copies in a cluster, want %d", n.mirror.options.StockCopies, StockCopiesOfCluster)
	}
	if advice, err := n.mirror.Check(t.Context()); err != nil || len(advice) != clusterMasters {
		t.Fatalf("Check says %q, %v, want advice about each master's memory", advice, err)
	}
	w.steps(100)
	n.fill()
	if got, want := n.check(), n.all(); got != want {
		t.Fatalf("seed %d: found %+v in the cluster, want %+v (%+v)", w.seed, got, want, n.mirror.Stats())
	}
	for i, s := range servers[:clusterMasters] {
		if keys, _ := s.do("DBSIZE").(int64); keys == 0 {
			t.Errorf("seed %d: master %d holds nothing: the keys are not spread", w.seed, i)
		}
	}
	n.wantTagsRight()
	copies := 2*len(w.skus)*StockCopiesOfCluster*int(w.lanes) + int(w.lanes)*StockCopiesOfCluster // Of accounts and boards; tallies are more.
	if report, err := n.mirror.Verify(t.Context(), VerifyOptions{}); err != nil || report.DifferencesTotal != 0 || report.Compared < uint64(len(w.orders)+len(w.users)+copies) {
		t.Errorf("seed %d: Verify says %+v, %v, want no difference in %d orders, %d lists and %d copies at least", w.seed, report, err, len(w.orders), len(w.users), copies)
	}

	// A replica takes over, with whatever it had got.
	servers[0].kill()
	for _, id := range slices.Clone(w.orders) {
		w.cancel(id)
	}
	n.reach()
	n.check()
	eventually(t, "a replica takes over", func() bool {
		text, _ := servers[1].do("CLUSTER", "INFO").(string)
		role, _ := servers[clusterMasters].do("INFO", "replication").(string)
		return strings.Contains(text, "cluster_state:ok") && strings.Contains(role, "role:master")
	})
	eventually(t, "everything is served again", func() bool {
		clock.Add(int64(breakerOpenMax))
		n.fill()
		return n.check() == n.all()
	})
}

// fill is warm for a Redis that may fail meanwhile.
func (n *node) fill() {
	n.w.tb.Helper()
	n.reach()
	for _, id := range n.w.orders {
		n.mirror.queue.again([]subject{orderSubject(n.mirror.laneOf(id), id)})
	}
	for range 8 { // Any copy of an account may be asked for: all are written.
		for n.waits() {
			batch, err := n.mirror.queue.take(n.w.tb.Context(), nil)
			if err != nil {
				n.w.tb.Fatal(err)
			}
			writes, err := n.mirror.read(batch)
			if err != nil {
				n.w.tb.Fatal(err)
			}
			if n.mirror.send(n.w.tb.Context(), writes) != nil {
				return
			}
		}
		if n.check() == n.all() {
			return
		}
	}
}

// wantTagsRight checks that the lanes' accounts of one copy are one slot's, and that copies are not all the same slot's.
func (n *node) wantTagsRight() {
	n.w.tb.Helper()
	client := n.mirror.client.(*redis.ClusterClient)
	slotOf := func(s subject, copyNumber int) int64 {
		slot, err := client.ClusterKeySlot(n.w.tb.Context(), n.mirror.key(s, copyNumber)).Result()
		if err != nil {
			n.w.tb.Fatal(err)
		}
		return slot
	}
	slots := make(map[int64]bool)
	for copyNumber := range StockCopiesOfCluster {
		first := slotOf(subject{kind: kindStock, lane: 0, text: "sku-0"}, copyNumber)
		slots[first] = true
		for lane := range n.w.lanes {
			if got := slotOf(subject{kind: kindStock, lane: lane, text: "sku-0"}, copyNumber); got != first {
				n.w.tb.Errorf("copy %d: lane %d is in slot %d, lane 0 in %d", copyNumber, lane, got, first)
			}
		}
	}
	if len(slots) < 2 {
		n.w.tb.Errorf("all %d copies are in slot %v: nothing is scattered", StockCopiesOfCluster, slots)
	}
}

func TestTLSAndAnACLUserAreEnough(t *testing.T) {
	files := makeCertificates(t)
	s := startServer(t,
		"--tls-cert-file", files.server.cert, "--tls-key-file", files.server.key, "--tls-ca-cert-file", files.ca, "--tls-auth-clients", "yes",
		"--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru",
		"--user", "default", "off",
		"--user", "weir", "on", ">secret", "~weir:*", "+get", "+mget", "+set", "+unlink", "+eval", "+evalsha", "+scan", "+info", "+cluster",
	)
	set := func(username, password, cert, key, ca string) func(*Options) {
		return func(o *Options) {
			var err error
			o.Username, o.Password = username, password
			if o.TLS, err = LoadTLS(ca, cert, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := newWorld(t, 2)
	n := startNode(w, s.addr, set("weir", "secret", files.client.cert, files.client.key, files.ca))
	if advice, err := n.mirror.Check(t.Context()); err != nil || len(advice) != 0 {
		t.Fatalf("Check says %q, %v", advice, err)
	}
	w.steps(50)
	n.wantServing()
	if report, err := n.mirror.Verify(t.Context(), VerifyOptions{}); err != nil || report.Compared == 0 || report.DifferencesTotal != 0 {
		t.Errorf("Verify says %+v, %v, want entries compared and no difference", report, err)
	}

	var settings *SettingsError
	wrong := startNode(w, s.addr, set("weir", "guess", files.client.cert, files.client.key, files.ca))
	if _, err := wrong.mirror.Check(t.Context()); !errors.As(err, &settings) {
		t.Errorf("a wrong password: %v, want a SettingsError", err)
	}
	short := func(set func(*Options)) func(*Options) {
		return func(o *Options) { set(o); o.WriteTimeout = 2 * time.Second }
	}
	for name, set := range map[string]func(*Options){
		"no certificate":        short(set("weir", "secret", "", "", files.ca)),
		"another's authority":   short(set("weir", "secret", files.client.cert, files.client.key, "")),
		"no TLS":                func(o *Options) { o.Username, o.Password, o.WriteTimeout = "weir", "secret", 2*time.Second },
		"a plain user's rights": short(set("default", "secret", files.client.cert, files.client.key, files.ca)),
	} {
		n := startNode(w, s.addr, set)
		n.reach()
		if _, err := n.mirror.Check(t.Context()); err == nil {
			t.Errorf("%s: Check says nothing", name)
		}
		if got := n.check(); got.total() != 0 {
			t.Errorf("%s: found %+v", name, got)
		}
	}
	for _, bad := range [][3]string{{"missing.pem", "", ""}, {files.client.key, "", ""}, {"", files.client.cert, ""}, {"", files.ca, files.client.key}} {
		if _, err := LoadTLS(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("LoadTLS(%q) took it", bad)
		}
	}
}

type certificateFiles struct {
	ca             string
	server, client struct{ cert, key string }
}

// makeCertificates makes an authority, and a certificate of a server and of a client that it signed.
func makeCertificates(t *testing.T) (files certificateFiles) {
	t.Helper()
	dir := t.TempDir()
	writePEM := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	serial := int64(0)
	make := func(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return template, key, writePEM(name+".crt", "CERTIFICATE", der), writePEM(name+".key", "PRIVATE KEY", encoded)
	}
	ca, caKey, caFile, _ := make("ca", nil, nil)
	files.ca = caFile
	_, _, files.server.cert, files.server.key = make("server", ca, caKey)
	_, _, files.client.cert, files.client.key = make("client", ca, caKey)
	return files
}

// BenchmarkPublish reads orders off the views and writes them to a Redis on the same machine, as publishers do.
func BenchmarkPublish(b *testing.B) {
	const orders = 20_000
	w := newWorld(b, 1)
	n := startNode(w, startServer(b).addr, nil)
	for range orders {
		w.place(w.users[w.random.IntN(len(w.users))])
	}
	n.reach()
	n.publish()
	before := n.mirror.Stats()
	b.ResetTimer()
	var next atomic.Int64
	var publishers sync.WaitGroup
	for range publishersOfNode {
		publishers.Go(func() {
			batch := make([]subject, 0, batchMax)
			for {
				first := next.Add(batchMax) - batchMax
				if first >= int64(b.N) {
					return
				}
				batch = batch[:0]
				for i := first; i < min(first+batchMax, int64(b.N)); i++ {
					batch = append(batch, orderSubject(0, w.orders[i%orders]))
				}
				writes, err := n.mirror.read(batch)
				if err == nil {
					err = n.mirror.send(b.Context(), writes)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	publishers.Wait()
	b.StopTimer()
	after := n.mirror.Stats()
	if got := after.Written + after.Older - before.Written - before.Older; got != uint64(b.N) {
		b.Fatalf("%d entries arrived, want %d", got, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}
