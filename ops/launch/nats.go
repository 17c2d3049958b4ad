package launch

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A NATS is a NATS server with JetStream, alone or one of a cluster. It may be started again and again.
type NATS struct {
	*Server
	// Binary is the path of nats-server, Dir where its configuration and its log are.
	Binary, Dir string
	// ServerName is its name in the cluster.
	ServerName string
	// Client, Monitor and Route are where it serves clients, HTTP and the other servers, host:port.
	Client, Monitor, Route string
	// Routes are those of all servers of its cluster; one alone is in none.
	Routes []string
	// SyncInterval is how it fsyncs; empty means before it acknowledges.
	SyncInterval string
	// Prefix is a command that runs the server's.
	Prefix []string
}

// Begin writes the configuration and starts the server. It does not wait: Serving does.
func (s *NATS) Begin() error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	interval := s.SyncInterval
	if interval == "" {
		interval = "always"
	}
	text := fmt.Sprintf("server_name: %q\nlisten: %q\nhttp: %q\njetstream { store_dir: %q, sync_interval: %s, max_file: 4G }\n",
		s.ServerName, s.Client, s.Monitor, s.Store(), interval)
	if len(s.Routes) > 1 {
		routes := make([]string, len(s.Routes))
		for i, route := range s.Routes {
			routes[i] = fmt.Sprintf("%q", "nats-route://"+route)
		}
		// Without no_advertise, clients would learn of servers past what stands in between. Routes are pinged as those of embedded servers.
		text += fmt.Sprintf("cluster { name: weir, listen: %q, no_advertise: true, ping_interval: 3s, ping_max: 2, routes: [%s] }\n", s.Route, strings.Join(routes, ", "))
	}
	file := filepath.Join(s.Dir, "nats.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	server, err := Start("nats-server "+s.ServerName, s.Client, nil, prefixed(s.Prefix, s.Binary, "-c", file))
	if err != nil {
		return err
	}
	s.Server = server
	return nil
}

// Store is where JetStream keeps its files.
func (s *NATS) Store() string { return filepath.Join(s.Dir, "js") }

// URL is where it serves clients.
func (s *NATS) URL() string { return "nats://" + s.Client }

// Serving waits until JetStream works and what this server keeps is as new as what the others have.
func (s *NATS) Serving(ctx context.Context) error { return s.Ready(ctx, s.healthy) }

// healthy asks the server how it is. It says no as long as one of its streams is behind.
func (s *NATS) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Monitor+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("health is %s", response.Status)
	}
	return nil
}

// End stops the server cleanly, Crash kills it.
func (s *NATS) End() error { return s.Stop(syscall.SIGTERM) }

// Crash kills the server.
func (s *NATS) Crash() error { return s.Stop(syscall.SIGKILL) }

// Running reports whether a process that was started has not ended.
func (s *Server) Running() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Gone returns an error that says how a process ended that nobody here ended, nil while it runs.
func (s *Server) Gone() error {
	if s.Running() {
		return nil
	}
	return fmt.Errorf("%s ended by itself (%v): %s", s.Name, s.command.ProcessState, s.Printed())
}
