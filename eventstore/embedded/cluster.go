package embedded

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Cluster says which cluster a server is part of.
type Cluster struct {
	// Name of the cluster, the same in each server.
	Name string
	// Listen is the TCP address (host:port) for the other servers. Routes are the addresses of all of them.
	Listen string
	Routes []string
	// Secret is what the servers and clients of the cluster know and nobody else does: a server that comes with another one
	// gets no route, and clients sign in with keys that are made of it. Without one anybody may, which is for tests alone.
	// A server at one of Routes, which the others dial, proves itself by its certificate (TLS) and is not asked for the secret.
	Secret Secret
	// TLS protects the routes, on both of their ends (see RouteTLS), and the client port; nil leaves them in the clear.
	TLS *tls.Config
}

// SecretBytesMin is the least length of a Secret, in bytes.
const SecretBytesMin = 16

// The accounts of a server that has a secret: the log and its clients are in one, and questions about servers are asked in the other. The
// users of the log are named by it and by what they are; those that have the account's own name are nodes.
const (
	logAccount    = "WEIR"
	systemAccount = "SYS"
	gatewayUser   = "WEIR gateway"
)

// A Secret is a cluster's. What servers and clients prove themselves with is derived from it, so it never travels. It is
// printed as stars.
type Secret []byte

// String hides the secret.
func (s Secret) String() string { return "***" }

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// derive makes a key for one purpose: HMAC-SHA-256 of the purpose's name.
func (s Secret) derive(purpose string) []byte {
	mac := hmac.New(sha256.New, s)
	mac.Write([]byte("weir cluster secret: " + purpose))
	return mac.Sum(nil)
}

// key makes a client's key pair.
func (s Secret) key(purpose string) (nkeys.KeyPair, error) {
	seed, err := nkeys.EncodeSeed(nkeys.PrefixByteUser, s.derive(purpose))
	if err != nil {
		return nil, err
	}
	return nkeys.FromSeed(seed)
}

// ClientOption signs a connection in as a node, or as one who reads the log as nodes do (see NodePermissions).
func (s Secret) ClientOption() (nats.Option, error) { return s.signIn(logAccount) }

// GatewayOption signs a connection in as a gateway, or as one who keeps what gateways do: it may not write what nodes write.
func (s Secret) GatewayOption() (nats.Option, error) { return s.signIn(gatewayUser) }

// SystemOption signs a connection in to the system account, in which servers are asked about themselves.
func (s Secret) SystemOption() (nats.Option, error) { return s.signIn(systemAccount) }

func (s Secret) signIn(user string) (nats.Option, error) {
	pair, err := s.key(user)
	if err != nil {
		return nil, fmt.Errorf("make a key of the cluster's secret: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("make a key of the cluster's secret: %w", err)
	}
	return nats.Nkey(public, pair.Sign), nil
}

// accounts sets the options up so that only who knows the secret is let in. The accounts come from a configuration text, since the
// server takes JetStream's limits of an account from there alone. There are three of them, with the global one, that nobody is in: a
// server with no more than the global and the system account lets everybody into the global one. A node may what it needs, and no more.
func (s Secret) accounts(options *server.Options) error {
	public := map[string]string{}
	for _, user := range []string{logAccount, gatewayUser, systemAccount} {
		pair, err := s.key(user)
		if err != nil {
			return err
		}
		if public[user], err = pair.PublicKey(); err != nil {
			return err
		}
	}
	return options.ProcessConfigString(fmt.Sprintf(`
accounts {
  %s { jetstream: enabled, users: [ { nkey: %s, %s }, { nkey: %s, %s } ] }
  %s { users: [ { nkey: %s } ] }
}
system_account: %s
`, logAccount, public[logAccount], permit("allow", nodePublish, nodeSubscribe), public[gatewayUser], permit("deny", gatewayNever, gatewaySubscribe),
		systemAccount, public[systemAccount], systemAccount))
}

// A server whose machine is cut off does not close its routes. One on which routePingsMax questions in a row are not answered, one each
// routePingEvery, is given up: until then its place is taken, and the server that is there again is turned away. The server's own would take a
// minute and a half.
const (
	routePingEvery = 3 * time.Second
	routePingsMax  = 2
)

// configure adds the cluster to a server's options.
func (c *Cluster) configure(options *server.Options) (err error) {
	if c.Secret != nil && len(c.Secret) < SecretBytesMin {
		return fmt.Errorf("the cluster's secret has %d bytes, fewer than %d", len(c.Secret), SecretBytesMin)
	}
	options.Cluster.Name = c.Name
	if options.Cluster.Host, options.Cluster.Port, err = splitAddress(c.Listen); err != nil {
		return err
	}
	options.Cluster.NoAdvertise = true // Clients are told where to connect by people.
	options.Cluster.PingInterval, options.Cluster.MaxPingsOut = routePingEvery, routePingsMax
	var user *url.Userinfo
	if c.Secret != nil {
		options.Cluster.Username, options.Cluster.Password = "weir", hex.EncodeToString(c.Secret.derive("routes"))
		user = url.UserPassword(options.Cluster.Username, options.Cluster.Password)
	}
	if c.TLS != nil {
		options.Cluster.TLSConfig, options.Cluster.TLSTimeout = c.TLS, routeTLSTimeout.Seconds()
		options.TLSConfig, options.TLS = clientTLS(c.TLS), true
		options.TLSTimeout = routeTLSTimeout.Seconds()
	}
	for _, route := range c.Routes {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats", Host: route, User: user})
	}
	return nil
}

// clientTLS is for the client port: clients prove who they are with a key and not with a certificate.
func clientTLS(routes *tls.Config) *tls.Config {
	clients := routes.Clone()
	clients.ClientAuth, clients.ClientCAs = tls.NoClientCert, nil
	return clients
}

// identityName is the file that says whose directory it is.
const identityName = "server.json"

// An identity says which server of which cluster a directory belongs to. It is empty for a server that stands alone.
type identity struct {
	Cluster string `json:"cluster"`
	Server  string `json:"server"`
}

func (i identity) String() string {
	if i.Cluster == "" {
		return "a server that stands alone"
	}
	return fmt.Sprintf("server %s of cluster %s", i.Server, i.Cluster)
}

// A DirOwnerError says that a directory holds the streams of another server. A server with another name would be a new one to its
// cluster, with streams that nobody knows of, and one that joins a cluster with streams that it made alone drops them.
type DirOwnerError struct {
	Dir string
	// Found is whose directory it is, Wanted who was started on it.
	Found, Wanted string
}

func (e *DirOwnerError) Error() string {
	return fmt.Sprintf("data directory %s is that of %s, and cannot become that of %s", e.Dir, e.Found, e.Wanted)
}

// claim makes the directory this server's for ever, or finds it so.
func claim(dir string, want identity) error {
	path := filepath.Join(dir, identityName)
	text, err := os.ReadFile(path)
	var found identity
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &found); err != nil {
			return fmt.Errorf("%s is damaged: %w; restore it, it says which server of which cluster this is", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		streams, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "*"))
		if err != nil {
			return err
		}
		if len(streams) == 0 && want.Cluster != "" {
			return writeIdentity(path, want)
		}
	}
	if found != want {
		return &DirOwnerError{Dir: dir, Found: found.String(), Wanted: want.String()}
	}
	return nil
}

// writeIdentity is durable before the server makes its first stream.
func writeIdentity(path string, id identity) error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// A ClusterState is what a server sees of its cluster.
type ClusterState struct {
	// Servers are the names of those that have a route to this one, and its own, in order.
	Servers []string
	// Leader is the server that leads JetStream in the cluster; empty while there is none.
	Leader string
	// Current says that this server knows all streams that the leader knows.
	Current bool
}

// Cluster returns what the server sees of its cluster now. A server that stands alone sees itself.
func (s *Server) Cluster() ClusterState {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	if running == nil {
		return ClusterState{}
	}
	state := ClusterState{Servers: []string{running.Name()}, Current: running.JetStreamIsCurrent()}
	if routes, err := running.Routez(nil); err == nil { // It fails on options alone.
		for _, route := range routes.Routes {
			state.Servers = append(state.Servers, route.RemoteName)
		}
	}
	slices.Sort(state.Servers)
	state.Servers = slices.Compact(state.Servers)
	if js, err := running.Jsz(nil); err == nil && js.Meta != nil {
		state.Leader = js.Meta.Leader
	}
	return state
}

// ConnectSystem returns a connection to the system account, in which all servers of the cluster can be asked about themselves.
// REQUIRES: the cluster has a secret. The caller closes it.
func (s *Server) ConnectSystem(opts ...nats.Option) (*nats.Conn, error) {
	signIn, err := s.secret.SystemOption()
	if err != nil {
		return nil, err
	}
	return s.connect(append(opts, signIn)...)
}

// RouteAddress returns where other servers connect, "" if the server stands alone.
func (s *Server) RouteAddress() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.Cluster.Port == 0 {
		return ""
	}
	return net.JoinHostPort(s.options.Cluster.Host, strconv.Itoa(s.options.Cluster.Port))
}
