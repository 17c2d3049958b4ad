// Package load is a light HTTP/1.1 load generator for one server on the same machine.
//
// A generator that shares the processors with what it measures must cost little: one thread serves all connections from one
// epoll, requests are built once and patched, and a reply is read no further than its status and its length.
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what is sent, where and how fast.
type Options struct {
	// Addr of the server, host:port.
	Addr string
	// Connections kept alive, each with at most one request on its way; 0 means 256.
	Connections int
	// Rate is calls per second for an open loop: requests start when they are due whether earlier ones were answered
	// or not, and latency counts from when a request was due. 0 is a closed loop: a connection sends again when it was answered.
	Rate float64
	// Warmup runs before anything is counted.
	Warmup time.Duration
	// Duration of counting. 0 with Calls set means until Calls are made.
	Duration time.Duration
	// Calls ends the run after that many replies; 0 means Duration ends it.
	Calls uint64
	// Source makes the requests.
	Source Source
	// Rest is how long a connection of a closed loop rests after another answer than the wanted one, as a caller does who is told to come again later.
	Rest time.Duration
	// Answered reports whether a reply is the one that the call wants; nil means status 200.
	Answered func(status int, body []byte) bool
	// OnReply is told of every reply, the warm-up's too; body is valid until it returns. May be nil.
	OnReply func(status int, body []byte)
	// OnTimed is told of every reply, the warm-up's too: when its request was due, and when the reply was whole. May be nil.
	OnTimed func(status int, due, answered time.Time)
	// Processes are other processes whose CPU is counted over the same time, each with its descendants.
	Processes []int
}

// Result is what a run counted after its warm-up.
type Result struct {
	// Calls that were answered as wanted.
	Calls uint64
	// Failed calls: another answer, or no reply within replyWait after the end.
	Failed uint64
	// FirstFailure is the first of them, for people.
	FirstFailure string
	// Elapsed time of counting.
	Elapsed time.Duration
	// Latency of the calls that were answered as wanted.
	Latency Histogram
	// CPU that this whole process used.
	CPU time.Duration
	// ProcessCPU of Options.Processes, in their order.
	ProcessCPU []time.Duration
}

// PerSecond returns the answered calls per second.
func (r *Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Calls) / r.Elapsed.Seconds()
}

// CPUPerCall returns this process's CPU for one call.
func (r *Result) CPUPerCall() time.Duration { return r.perCall(r.CPU) }

// ProcessCPUPerCall returns the CPU of Options.Processes[i] for one call.
func (r *Result) ProcessCPUPerCall(i int) time.Duration { return r.perCall(r.ProcessCPU[i]) }

func (r *Result) perCall(cpu time.Duration) time.Duration {
	return cpu / time.Duration(max(r.Calls+r.Failed, 1))
}

const (
	// replyWait is how long the run waits after its end for replies that are still out.
	replyWait = 10 * time.Second
	// callsWait bounds a run that has no Duration.
	callsWait = 15 * time.Minute
	// eventsMax is how many ready connections are taken at a time.
	eventsMax = 256
)

// Run makes the calls and blocks until the last reply. It returns an error when the server cannot be reached, hangs up
// or does not speak HTTP; a reply other than the wanted one is not an error but counted.
func Run(ctx context.Context, options Options) (*Result, error) {
	if options.Connections == 0 {
		options.Connections = 256
	}
	if options.Duration == 0 && options.Calls == 0 {
		return nil, errors.New("load: neither a duration nor a number of calls")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := &generator{Options: options, result: &Result{}}
	defer g.close()
	if err := g.connect(); err != nil {
		return nil, fmt.Errorf("load %s: %w", options.Addr, err)
	}
	if err := g.run(ctx); err != nil {
		return nil, fmt.Errorf("load %s: %w", options.Addr, err)
	}
	return g.result, nil
}

// generator is one run.
type generator struct {
	Options
	result *Result

	to           *unix.SockaddrInet4
	epoll, timer int
	connections  []connection
	idle         []int32

	// Requests are counted from start to end; replies are waited for a little longer.
	start, end time.Time
	counting   bool
	// began is when counting did, zero before.
	began   time.Time
	cpu     time.Duration
	process []time.Duration
	// dueNext is when the next request of an open loop is due.
	dueNext time.Time
	waiting int
	replies uint64
	// resting are the connections that rest, in the order in which they may go on.
	resting []rest
}

type rest struct {
	connection int32
	until      time.Time
}

type connection struct {
	fd     int
	buffer []byte
	filled int
	// due is when the request on its way was due; zero when there is none.
	due time.Time
}

func (g *generator) connect() error {
	addr, err := net.ResolveTCPAddr("tcp4", g.Addr)
	if err != nil {
		return err
	}
	g.to = &unix.SockaddrInet4{Port: addr.Port, Addr: addr.AddrPort().Addr().As4()}
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, g.timer, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	g.connections = make([]connection, 0, g.Connections)
	for i := range g.Connections {
		g.connections = append(g.connections, connection{fd: -1, buffer: make([]byte, readSize)})
		g.idle = append(g.idle, int32(i))
		if err := g.dial(int32(i)); err != nil {
			return err
		}
	}
	return nil
}

// dial opens a connection that is not open.
func (g *generator) dial(i int32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	g.connections[i].fd = fd
	if err := unix.Connect(fd, g.to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := errors.Join(
		unix.SetNonblock(fd, true),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: i}),
	); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

func (g *generator) close() {
	for i := range g.connections {
		if fd := g.connections[i].fd; fd >= 0 {
			_ = unix.Close(fd) // Nothing was written that a close could lose.
		}
	}
	for _, fd := range []int{g.timer, g.epoll} {
		if fd > 0 {
			_ = unix.Close(fd)
		}
	}
}

func (g *generator) run(ctx context.Context) error {
	now := time.Now()
	g.start = now.Add(g.Warmup)
	g.end = now.Add(g.Warmup + g.Duration)
	if g.Duration == 0 {
		g.end = now.Add(callsWait)
	}
	g.dueNext = now
	events := make([]unix.EpollEvent, eventsMax)
	for {
		if g.began.IsZero() && !now.Before(g.start) {
			if err := g.begin(now); err != nil {
				return err
			}
		}
		if g.counting && g.Duration > 0 && !now.Before(g.end) {
			if err := g.finish(now); err != nil {
				return err
			}
		}
		more := g.more(ctx, now)
		if !more && g.waiting == 0 {
			break
		}
		if unanswered := g.waiting + g.unsent(); now.Sub(g.end) > replyWait {
			g.result.Failed += uint64(unanswered)
			g.fail(fmt.Sprintf("%d calls without a reply %v after the end", unanswered, replyWait))
			break
		}
		if more {
			if err := g.send(ctx, now); err != nil {
				return err
			}
		}
		ready, err := g.wait(events, now, more)
		if err != nil {
			return err
		}
		now = time.Now()
		for _, event := range events[:ready] {
			if event.Fd < 0 {
				continue // The timer, which is set anew when it is needed.
			}
			if now, err = g.receive(event.Fd, now); err != nil {
				return err
			}
		}
	}
	if err := g.finish(now); err != nil {
		return err
	}
	return ctx.Err()
}

// more reports whether requests are still to be sent.
func (g *generator) more(ctx context.Context, now time.Time) bool {
	switch {
	case ctx.Err() != nil:
		return false
	case g.Calls > 0 && g.replies+uint64(g.waiting) >= g.Calls:
		return false
	case g.Rate > 0:
		// What was due before the end is sent also after it: leaving it out would hide the worst.
		return g.dueNext.Before(g.end)
	default:
		return now.Before(g.end)
	}
}

// unsent returns how many requests of an open loop are due before the end and not sent yet.
func (g *generator) unsent() int {
	if g.Rate == 0 || !g.dueNext.Before(g.end) {
		return 0
	}
	return int(g.end.Sub(g.dueNext).Seconds()*g.Rate) + 1
}

// send starts every request that is due and has a connection.
func (g *generator) send(ctx context.Context, now time.Time) error {
	for len(g.resting) > 0 && !g.resting[0].until.After(now) {
		g.idle = append(g.idle, g.resting[0].connection)
		g.resting = g.resting[1:]
	}
	for len(g.idle) > 0 && g.more(ctx, now) {
		due := now
		if g.Rate > 0 {
			if g.dueNext.After(now) {
				return nil
			}
			due = g.dueNext
			g.dueNext = g.dueNext.Add(time.Duration(float64(time.Second) / g.Rate))
		}
		// The one that was idle for the longest: servers hang up on connections that nothing comes over.
		i := g.idle[0]
		g.idle = g.idle[1:]
		conn := &g.connections[i]
		conn.due = due
		g.waiting++
		if err := writeAll(conn.fd, g.Source.Next()); err != nil {
			return err
		}
	}
	return nil
}

// wait blocks until a connection has something, the next request is due, or a while has passed.
func (g *generator) wait(events []unix.EpollEvent, now time.Time, more bool) (int, error) {
	const whileMilliseconds = 20
	timeout := whileMilliseconds
	if more && g.Rate > 0 && len(g.idle) > 0 {
		if wait := g.dueNext.Sub(now); wait < whileMilliseconds*time.Millisecond {
			at := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(wait, 1)))}
			if err := unix.TimerfdSettime(g.timer, 0, &at, nil); err != nil {
				return 0, fmt.Errorf("timerfd: %w", err)
			}
		}
	}
	for {
		ready, err := unix.EpollWait(g.epoll, events, timeout)
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return 0, fmt.Errorf("epoll: %w", err)
			}
			return ready, nil
		}
	}
}

// receive reads what a connection has, and takes its reply when that is whole.
func (g *generator) receive(i int32, now time.Time) (time.Time, error) {
	conn := &g.connections[i]
	if conn.filled == len(conn.buffer) {
		conn.buffer = append(conn.buffer, make([]byte, readSize)...)
	}
	count, err := unix.Read(conn.fd, conn.buffer[conn.filled:])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return now, nil
	case err != nil:
		return now, fmt.Errorf("read: %w", err)
	case count == 0 && conn.due.IsZero():
		// Servers hang up on connections that nothing comes over, also on those over which nothing has come yet.
		_, conn.fd = unix.Close(conn.fd), -1
		return now, g.dial(i)
	case count == 0:
		return now, errors.New("the server hung up")
	}
	conn.filled += count
	answer, taken, err := parseReply(conn.buffer[:conn.filled])
	if err != nil || taken == 0 {
		return now, err
	}
	if conn.due.IsZero() || taken != conn.filled {
		return now, errors.New("a reply that nobody asked for")
	}
	if answer.closing {
		return now, fmt.Errorf("the server closes the connection with status %d: %.200q", answer.status, answer.body)
	}
	now = time.Now()
	answered := g.count(conn, answer, now)
	conn.due, conn.filled = time.Time{}, 0
	g.waiting--
	g.replies++
	if !answered && g.Rest > 0 {
		g.resting = append(g.resting, rest{connection: i, until: now.Add(g.Rest)})
		return now, nil
	}
	g.idle = append(g.idle, i)
	return now, nil
}

// count takes in a reply, and reports whether it is the wanted one.
func (g *generator) count(conn *connection, answer reply, now time.Time) bool {
	if g.OnReply != nil {
		g.OnReply(answer.status, answer.body)
	}
	if g.OnTimed != nil {
		g.OnTimed(answer.status, conn.due, now)
	}
	answered := answer.status == 200
	if g.Answered != nil {
		answered = g.Answered(answer.status, answer.body)
	}
	if !answered {
		// A failure of the warm-up is a failure too.
		g.result.Failed++
		g.fail(fmt.Sprintf("status %d: %.300s", answer.status, answer.body))
		return false
	}
	// A closed loop counts the replies that come while it counts, an open loop the requests that were due meanwhile.
	if g.Rate > 0 && !conn.due.Before(g.start) || g.Rate == 0 && g.counting {
		g.result.Calls++
		g.result.Latency.Record(now.Sub(conn.due))
	}
	return true
}

func (g *generator) fail(what string) {
	if g.result.FirstFailure == "" {
		g.result.FirstFailure = what
	}
}

func (g *generator) begin(now time.Time) error {
	g.counting, g.began = true, now
	var err error
	g.cpu, g.process, err = g.processors()
	return err
}

func (g *generator) finish(now time.Time) error {
	if !g.counting {
		return nil
	}
	g.counting = false
	g.result.Elapsed = now.Sub(g.began)
	cpu, process, err := g.processors()
	if err != nil {
		return err
	}
	g.result.CPU = cpu - g.cpu
	for i := range process {
		g.result.ProcessCPU = append(g.result.ProcessCPU, process[i]-g.process[i])
	}
	return nil
}

func (g *generator) processors() (own time.Duration, others []time.Duration, err error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, nil, fmt.Errorf("getrusage: %w", err)
	}
	for _, pid := range g.Processes {
		cpu, err := ProcessCPU(pid)
		if err != nil {
			return 0, nil, err
		}
		others = append(others, cpu)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), others, nil
}

// ProcessCPU returns the CPU that a process and its descendants have used, in user and in system mode; of descendants that have ended to 10 ms.
func ProcessCPU(pid int) (time.Duration, error) {
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
		return 0, fmt.Errorf("process %d is gone", pid)
	}
	stats, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	ended, children := map[int]int{}, map[int][]int{}
	for _, entry := range stats {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // It ended meanwhile; its parent accounts for it.
		}
		// The name in parentheses may hold anything; the fields after it are state, parent, …, utime, stime, cutime, cstime.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 15 {
			continue
		}
		for _, field := range fields[13:15] {
			ticks, _ := strconv.Atoi(field)
			ended[id] += ticks
		}
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], id)
	}
	var cpu time.Duration
	for family := []int{pid}; len(family) > 0; family = family[1:] {
		// USER_HZ is 100 on every Linux that Go runs on.
		cpu += runTime(family[0]) + time.Duration(ended[family[0]])*10*time.Millisecond
		family = append(family, children[family[0]]...)
	}
	return cpu, nil
}

// runTime returns how long a process has run on all processors, to the nanosecond; 0 if it has ended, for its parent accounts for it then.
func runTime(pid int) time.Duration {
	// What clock_getcpuclockid(3) returns: a process's id, and the clock that the scheduler keeps for it.
	const clockOfScheduler = 2
	var used unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|clockOfScheduler), &used) != nil {
		return 0
	}
	return time.Duration(used.Nano())
}

// writeAll writes a whole request. One fits into an empty socket buffer, so it hardly ever waits.
func writeAll(fd int, request []byte) error {
	for len(request) > 0 {
		count, err := unix.Write(fd, request)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll: %w", err)
			}
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("write: %w", err)
		default:
			request = request[count:]
		}
	}
	return nil
}
