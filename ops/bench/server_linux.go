package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
)

// A server is one that runs, with what it needs.
type server struct {
	*launch.Server
	// needs are other servers that work for this one; their CPU is its own.
	needs []*launch.Server
}

// processes are those whose CPU is the server's.
func (s *server) processes() []int {
	ids := []int{s.PID()}
	for _, other := range s.needs {
		ids = append(ids, other.PID())
	}
	return ids
}

const (
	// settleMax bounds the wait for servers to be idle, which a dozen processes of a cluster seldom are all at once; before a run it is
	// settleRuns times as long as the run at most.
	settleMax  = 15 * time.Second
	settleRuns = 3
)

// settle waits until the servers are idle: what the last run left them to do would be on the next one's account.
func settle(ctx context.Context, servers ...*server) error {
	return settleWithin(ctx, settleMax, servers...)
}

func settleWithin(ctx context.Context, waitMax time.Duration, servers ...*server) error {
	const window = 200 * time.Millisecond
	for end := time.Now().Add(waitMax); time.Now().Before(end); {
		before, err := cpuOf(servers)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(window):
		}
		after, err := cpuOf(servers)
		if err != nil {
			return err
		}
		if after-before <= window/10 {
			return nil
		}
	}
	return nil // A server that is never idle is measured as it is.
}

func cpuOf(servers []*server) (sum time.Duration, err error) {
	for _, s := range servers {
		for _, pid := range s.processes() {
			cpu, err := load.ProcessCPU(pid)
			if err != nil {
				return 0, fmt.Errorf("%s: %w: %s", s.Name, err, s.Printed())
			}
			sum += cpu
		}
	}
	return sum, nil
}

// syncLatency appends to a file and syncs it, again and again, and returns how long that takes: what a commit waits for at least.
func syncLatency(ctx context.Context, dir string, duration time.Duration) (latency load.Histogram, err error) {
	const (
		appendBytes = 16 << 10 // A commit of some dozens of orders.
		pause       = time.Millisecond
	)
	file, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return latency, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	content := make([]byte, appendBytes)
	for end := time.Now().Add(duration); time.Now().Before(end) && ctx.Err() == nil; {
		began := time.Now()
		if _, err := file.Write(content); err != nil {
			return latency, err
		}
		if err := file.Sync(); err != nil {
			return latency, err
		}
		latency.Record(time.Since(began))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return latency, ctx.Err()
}

// residentBytes returns the memory that a process has in RAM now.
func residentBytes(pid int) (int64, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("no VmRSS in the process's status")
}

// sizeOf returns how many bytes the files below a folder have.
func sizeOf(folder string) (size int64) {
	_ = filepath.WalkDir(folder, func(_ string, entry os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // A file that a running server removed is not there any more.
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	return size
}
