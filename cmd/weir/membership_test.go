package main

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/eventstore/embedded"
)

// A hangingDoor passes on what goes to a server and comes from it until it hangs: then its connections stay, and nothing passes any more.
type hangingDoor struct {
	listener net.Listener
	hung     chan struct{}
	passing  sync.WaitGroup
}

func openDoor(t *testing.T, server string) *hangingDoor {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &hangingDoor{listener: listener, hung: make(chan struct{})}
	var mu sync.Mutex
	var open []net.Conn
	d.passing.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			behind, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			open = append(open, client, behind)
			mu.Unlock()
			d.passing.Go(func() { d.pass(behind, client) })
			d.passing.Go(func() { d.pass(client, behind) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, each := range open {
			_ = each.Close()
		}
		mu.Unlock()
		d.passing.Wait()
	})
	return d
}

func (d *hangingDoor) pass(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		count, err := from.Read(buffer)
		select {
		case <-d.hung:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if err == nil {
			_, err = to.Write(buffer[:count])
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

func TestAServerThatHangsIsLeftForAnotherOne(t *testing.T) {
	t.Parallel() // It waits, mostly.
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	address, err := url.Parse(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	door := openDoor(t, address.Host)
	hanging := "nats://" + door.listener.Addr().String()
	nc, err := (&natsAccess{}).stay(hanging+","+server.ClientURL(), "a node", nats.DontRandomize())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if got := nc.ConnectedUrl(); got != hanging {
		t.Fatalf("it is connected to %s, want %s", got, hanging)
	}
	back := nc.StatusChanged(nats.CONNECTED)
	close(door.hung)
	select {
	case <-back:
	case <-time.After(time.Minute):
		t.Fatal("a minute after the server hung the connection is still there")
	}
	if err := nc.FlushTimeout(10 * time.Second); err != nil {
		t.Fatalf("the other server does not answer: %v", err)
	}
}
