// Package freeports gives tests ports that a server is told before it listens there: the servers of a cluster have to know
// each other's first.
//
// A port that a listener of :0 had is free again once that is closed, and the next one that asks the kernel for any port
// gets it, or the next outgoing connection. Ports from here are below those that the kernel gives away by itself, and
// no other process that asks here gets the same ones.
package freeports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	// blockPorts is how many ports a process reserves at a time.
	blockPorts = 50
	// blocks of them there are; all of them end where the second port of a Redis, which is 10,000 above the first, is not
	// yet one of the kernel's.
	blocks = 9000 / blockPorts
	// kernelFirst is the kernel's first port where it does not say.
	kernelFirst = 32768
	redisBus    = 10_000
)

// reserved are the ports of this process.
var reserved struct {
	mu sync.Mutex
	// free ports are handed out from the end.
	free []int
	// locks hold this process's blocks until it ends.
	locks []*os.File
}

// Take returns ports of 127.0.0.1 that nobody listens on, and that nobody else is given as long as this process runs.
func Take(tb testing.TB, count int) []int {
	tb.Helper()
	reserved.mu.Lock()
	defer reserved.mu.Unlock()
	var ports []int
	for len(ports) < count {
		if len(reserved.free) == 0 {
			if err := reserve(); err != nil {
				tb.Fatal(err)
			}
		}
		last := len(reserved.free) - 1
		port := reserved.free[last]
		reserved.free = reserved.free[:last]
		listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", address(port))
		if err != nil {
			continue // Somebody who does not ask here listens on it.
		}
		if err := listener.Close(); err != nil {
			tb.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}

// Addresses is Take as HOST:PORT.
func Addresses(tb testing.TB, count int) []string {
	tb.Helper()
	var addresses []string
	for _, port := range Take(tb, count) {
		addresses = append(addresses, address(port))
	}
	return addresses
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// reserve locks a block that no other process has.
func reserve() error {
	first := kernelFirst
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if given, err := strconv.Atoi(strings.Fields(string(text))[0]); err == nil {
			first = given
		}
	}
	lowest := first - redisBus - blocks*blockPorts
	if lowest < 1024 {
		return fmt.Errorf("the kernel gives away ports from %d on, which leaves none for tests", first)
	}
	for _, block := range rand.Perm(blocks) {
		name := filepath.Join(os.TempDir(), fmt.Sprintf("weir-test-ports-%d.lock", block))
		lock, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			continue // Another user's.
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = lock.Close()
			continue
		}
		reserved.locks = append(reserved.locks, lock)
		for port := range blockPorts {
			reserved.free = append(reserved.free, lowest+block*blockPorts+port)
		}
		return nil
	}
	return fmt.Errorf("all %d blocks of ports are taken by other processes (weir-test-ports-*.lock in %s)", blocks, os.TempDir())
}
