// Package embedded runs a NATS server with JetStream inside this process: the log of a node that needs no other
// server. It stores in one directory, which no other process may use meanwhile, and fsyncs before it acknowledges.
package embedded

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// MaxPayload is the largest message that the server takes, in bytes, headers included. NATS advises against more.
const MaxPayload = 8 << 20

const (
	// memoryMax bounds memory storage, in bytes. Only readers' consumers live there.
	memoryMax = 256 << 20
	// pendingMax bounds the bytes that wait for one connection. Each follower of a lane asks for a window at a time,
	// and all of them share one connection.
	pendingMax = 512 << 20
	// diskShare of the free space is what the log may take by default; the rest is for everything beside it.
	diskShare = 0.8
	// routeTLSTimeout bounds the handshake of a route or a client: three servers that start at once have much to do.
	routeTLSTimeout = 5 * time.Second
	// startMax bounds the wait for the server to recover its streams and accept connections.
	startMax = 5 * time.Minute
)

// Options configure a Server. Dir is required.
type Options struct {
	// Dir holds the streams. It is created if it does not exist.
	Dir string
	// MaxBytes bounds the streams' sizes together. 0 means what they have now and 80% of the free disk; it is never
	// allowed to be more than the streams and the free disk have.
	MaxBytes int64
	// Listen is a TCP address (host:port, port 0 = any free one) for other clients; empty means none, but in a cluster
	// any free port of 127.0.0.1, since the server starts its routes only once it listens.
	Listen string
	// Monitor is a TCP address for HTTP monitoring; empty means none.
	Monitor string
	// ServerName is the server's name; empty means one made from Dir. In a cluster each has its own and keeps it.
	ServerName string
	// SyncInterval > 0 makes the server acknowledge before it fsyncs, and fsync every so often: a power cut then loses
	// acknowledged commits. 0 means fsync before each acknowledgement.
	SyncInterval time.Duration
	// Cluster makes the server part of a cluster; nil means it stands alone.
	Cluster *Cluster
	// Logger gets the server's warnings and errors; nil means slog.Default().
	Logger *slog.Logger
}

// A Server is a NATS server in this process. Its methods may be called by several goroutines.
type Server struct {
	options  server.Options // as first started, with the ports that it then got
	maxBytes int64
	secret   Secret // nil for a server without users
	logger   *slog.Logger
	lock     *dirLock

	mu      sync.Mutex
	running *server.Server // nil while it is down
}

// errDown answers a connection attempt while the server is down; the client tries again.
var errDown = errors.New("the embedded server is down")

// Start starts a server and returns once it accepts connections. It returns a *DirInUseError if another process uses Dir.
func Start(options Options) (*Server, error) {
	logger := options.Logger
	if logger == nil {
		logger = slog.Default()
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("start embedded server: %w", err)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("start embedded server: %w", err)
	}
	lock, err := lockDir(options.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{logger: logger, lock: lock}
	if err := s.configure(options, dir); err != nil {
		lock.release()
		return nil, fmt.Errorf("start embedded server in %s: %w", options.Dir, err)
	}
	if err := s.start(); err != nil {
		lock.release()
		return nil, fmt.Errorf("start embedded server in %s: %w", options.Dir, err)
	}
	return s, nil
}

func (s *Server) configure(options Options, dir string) error {
	maxBytes, err := storeLimit(dir, options.MaxBytes)
	if err != nil {
		return err
	}
	if options.MaxBytes > maxBytes {
		s.logger.Warn("the log may not take more than the free disk", "wanted_bytes", options.MaxBytes, "max_bytes", maxBytes)
	}
	s.maxBytes = maxBytes
	name := options.ServerName
	if name == "" {
		name = "weir-" + filepath.Base(dir)
	}
	if options.Cluster != nil && options.Cluster.Secret != nil {
		if err := options.Cluster.Secret.accounts(&s.options); err != nil {
			return err
		}
	}
	o := &s.options
	o.ServerName, o.DontListen, o.NoSigs, o.NoLog = name, true, true, true
	o.MaxPayload, o.MaxPending = MaxPayload, pendingMax
	o.JetStream, o.StoreDir, o.JetStreamMaxStore, o.JetStreamMaxMemory = true, dir, maxBytes, memoryMax
	o.SyncAlways, o.SyncInterval = options.SyncInterval == 0, options.SyncInterval
	o.DisableJetStreamBanner = true
	if options.Listen == "" && options.Cluster != nil {
		options.Listen = "127.0.0.1:0"
	}
	if options.Listen != "" {
		s.options.DontListen = false
		if s.options.Host, s.options.Port, err = splitAddress(options.Listen); err != nil {
			return err
		}
	}
	if options.Monitor != "" {
		if s.options.HTTPHost, s.options.HTTPPort, err = splitAddress(options.Monitor); err != nil {
			return err
		}
	}
	owner := identity{}
	if c := options.Cluster; c != nil {
		owner = identity{Cluster: c.Name, Server: name}
		s.secret = c.Secret
		if err := c.configure(&s.options); err != nil {
			return err
		}
	}
	return claim(dir, owner)
}

// splitAddress turns port 0 into the server's own sign for any free port.
func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	if port, err = strconv.Atoi(text); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("address %s: the port is not a number from 0 to 65535", address)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// start runs a server with the options. It is called when none runs.
func (s *Server) start() error {
	log := &serverLog{logger: s.logger}
	s.mu.Lock()
	options := s.options.Clone()
	s.mu.Unlock()
	running, err := server.NewServer(options)
	if err != nil {
		return err
	}
	running.SetLoggerV2(log, false, false, false)
	running.Start()
	if err := log.fatal(); err != nil {
		running.Shutdown()
		return err
	}
	if !running.ReadyForConnections(startMax) {
		running.Shutdown()
		return errors.Join(fmt.Errorf("the server was not ready after %s", startMax), log.fatal())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A restarted server keeps its ports.
	if tcp, ok := running.Addr().(*net.TCPAddr); ok && !s.options.DontListen {
		s.options.Port = tcp.Port
	}
	if tcp := running.MonitorAddr(); tcp != nil {
		s.options.HTTPPort = tcp.Port
	}
	s.running = running
	return nil
}

// Connect returns a connection that stays within the process. It survives Restart. The caller closes it.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	if s.secret != nil {
		signIn, err := s.secret.ClientOption()
		if err != nil {
			return nil, err
		}
		opts = append(opts, signIn)
	}
	return s.connect(opts...)
}

func (s *Server) connect(opts ...nats.Option) (*nats.Conn, error) {
	base := []nats.Option{
		nats.InProcessServer(s), nats.MaxReconnects(-1),
		nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(5*time.Millisecond, 5*time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if !errors.Is(err, io.ErrClosedPipe) { // That one only says that the server was restarted.
				s.logger.Warn("connection to the embedded server", "error", err)
			}
		}),
	}
	nc, err := nats.Connect("", append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded server: %w", err)
	}
	return nc, nil
}

// InProcessConn is what Connect's connections are made of.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil, errDown
	}
	return s.running.InProcessConn()
}

// Restart stops the server and starts it again on the same directory: everything that it then shows, it read from the disk.
// When it returns an error the server is down.
func (s *Server) Restart() error {
	s.stop()
	if err := s.start(); err != nil {
		return fmt.Errorf("restart embedded server in %s: %w", s.options.StoreDir, err)
	}
	return nil
}

// Shutdown stops the server and gives the directory free. Connections should be closed before. It may be called twice.
func (s *Server) Shutdown() {
	s.stop()
	s.lock.release()
}

func (s *Server) stop() {
	s.mu.Lock()
	running := s.running
	s.running = nil
	s.mu.Unlock()
	if running != nil {
		running.Shutdown()
		running.WaitForShutdown()
	}
}

// SyncsBeforeAck reports whether every acknowledged message is on the disk.
func (s *Server) SyncsBeforeAck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.options.SyncAlways
}

// MaxBytes returns how many bytes the streams may have together.
func (s *Server) MaxBytes() int64 { return s.maxBytes }

// Disk measures the server's directory: how many bytes are used there, and how many more its disk has free.
func (s *Server) Disk() (dir string, used, free int64, err error) {
	used, free, err = measure(s.options.StoreDir)
	return s.options.StoreDir, used, free, err
}

// ClientURL returns where other clients connect, "" if nowhere.
func (s *Server) ClientURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.DontListen {
		return ""
	}
	return "nats://" + net.JoinHostPort(s.options.Host, strconv.Itoa(s.options.Port))
}

// MonitorURL returns where HTTP monitoring is, "" if nowhere.
func (s *Server) MonitorURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.HTTPPort == 0 {
		return ""
	}
	return "http://" + net.JoinHostPort(s.options.HTTPHost, strconv.Itoa(s.options.HTTPPort))
}

// serverLog passes warnings and errors on and keeps quiet about the rest.
type serverLog struct {
	logger *slog.Logger
	mu     sync.Mutex
	died   error
}

func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.died
}

func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.died = errors.Join(l.died, fmt.Errorf(format, v...))
}

func (l *serverLog) Errorf(format string, v ...any) {
	message := fmt.Sprintf(format, v...)
	switch {
	case strings.HasSuffix(message, "TLS route handshake error: EOF"):
		l.logger.Debug("nats server", "message", message) // Somebody looked whether this server listens, and left.
	case strings.HasPrefix(message, "Error trying to connect to route"):
		l.logger.Warn("nats server", "message", message) // That server is not there yet, or no more. It tries again.
	default:
		l.logger.Error("nats server", "message", message)
	}
}

func (l *serverLog) Warnf(format string, v ...any) {
	l.logger.Warn("nats server", "message", fmt.Sprintf(format, v...))
}
func (l *serverLog) Noticef(string, ...any) {}
func (l *serverLog) Debugf(string, ...any)  {}
func (l *serverLog) Tracef(string, ...any)  {}
