package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirhq/weir/ops/launch"
)

const (
	// insideVariable is set in the environment of a program that runs in namespaces of its own.
	insideVariable = "WEIR_CHAOS_INSIDE"
	// bridge connects the namespaces of the hosts, hostAddress is what their addresses begin with.
	bridge      = "weir"
	hostAddress = "10.77.0."
	// insideEndMax is how long the program that runs there may take to end once it is told to: to stop all that it started.
	insideEndMax = time.Minute
	// setUpMax is how long the set-up of hosts or of a disk may take.
	setUpMax = time.Minute
	// diskBytes is the size of a disk that power is cut of.
	diskBytes = 1 << 30
)

// inside runs this program again in namespaces of its own for networks, mounts and processes: what is set up there touches nothing of the machine, and is
// gone with the last process in it. It needs root.
func inside(ctx context.Context, arguments []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, self, arguments...)
	command.Stdin, command.Stdout, command.Stderr = nil, os.Stdout, os.Stderr
	command.Env = append(os.Environ(), insideVariable+"=1")
	// It is the first process of its own namespace of processes: if it is killed, because it does not end when it is told to, so are all others.
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = insideEndMax
	if err := command.Run(); err != nil {
		return fmt.Errorf("in namespaces of its own, which need root: %w", err)
	}
	return nil
}

// isInside reports whether this program runs in namespaces of its own.
func isInside() bool { return os.Getenv(insideVariable) != "" }

// settleIn makes the program's namespaces its own: nothing that it mounts is seen outside, and /proc is that of its own processes.
func settleIn(ctx context.Context) error {
	return setUp(ctx, "mount --make-rprivate /", "mount -t proc proc /proc", "ip link set lo up")
}

// setUp runs commands, one a line.
func setUp(ctx context.Context, lines ...string) error {
	ctx, cancel := context.WithTimeout(ctx, setUpMax)
	defer cancel()
	for _, line := range lines {
		words := strings.Fields(line)
		if _, err := launch.Output(ctx, nil, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// hosts makes a network namespace for each host, connected by a bridge, and returns their addresses and the commands that run another
// one there. What goes from one host to another passes the chain forward of the table weir; what this program asks them does not.
func hosts(ctx context.Context, count int) (addresses []string, prefixes [][]string, err error) {
	if !isInside() {
		return nil, nil, errors.New("hosts are made in a network namespace of their own")
	}
	err = setUp(ctx,
		"mount -t tmpfs tmpfs /run",
		"ip link add "+bridge+" type bridge",
		"ip addr add "+hostAddress+"254/24 dev "+bridge,
		"ip link set "+bridge+" up",
		"nft add table bridge weir",
		"nft add chain bridge weir forward { type filter hook forward priority 0 ; }",
	)
	for i := range count {
		host, veth, address := fmt.Sprintf("host%d", i+1), vethOf(i), hostAddress+strconv.Itoa(i+1)
		within := "ip netns exec " + host + " "
		err = errors.Join(err, setUp(ctx,
			"ip netns add "+host,
			"ip link add "+veth+" type veth peer name eth0 netns "+host,
			"ip link set "+veth+" master "+bridge+" up",
			within+"ip addr add "+address+"/24 dev eth0",
			within+"ip link set eth0 up",
			within+"ip link set lo up",
		))
		addresses, prefixes = append(addresses, address), append(prefixes, strings.Fields(within))
	}
	return addresses, prefixes, err
}

func vethOf(host int) string { return fmt.Sprintf("veth%d", host+1) }

// cutOff drops everything between a host and the others; this program still reaches it.
func cutOff(ctx context.Context, host int) error {
	return setUp(ctx,
		"nft add rule bridge weir forward iifname "+vethOf(host)+" drop",
		"nft add rule bridge weir forward oifname "+vethOf(host)+" drop",
	)
}

// joinUp undoes cutOff.
func joinUp(ctx context.Context) error { return setUp(ctx, "nft flush chain bridge weir forward") }

// A disk is an ext4 file system of its own, in a file, whose power can be cut.
type disk struct{ image, mount string }

// newDisk makes a disk and mounts it.
func newDisk(ctx context.Context, dir string) (*disk, error) {
	if !isInside() {
		return nil, errors.New("disks are mounted in a mount namespace of their own")
	}
	d := &disk{image: dir + ".img", mount: dir}
	if err := os.Mkdir(d.mount, 0o700); err != nil {
		return nil, err
	}
	file, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(file.Truncate(diskBytes), file.Close()); err != nil {
		return nil, err
	}
	return d, setUp(ctx, "mkfs.ext4 -q "+d.image, "mount -o loop "+d.image+" "+d.mount)
}

// cut ends everything that goes to the disk, at once and without flushing: what was not fsynced is lost.
func (d *disk) cut() error {
	file, err := os.Open(d.mount)
	if err != nil {
		return err
	}
	defer file.Close()
	// EXT4_IOC_SHUTDOWN is _IOR('X', 125, uint32), and EXT4_GOING_FLAGS_NOLOGFLUSH is 2: fs/ext4/ext4.h of Linux.
	const (
		shutdown   = 2<<30 | 4<<16 | 'X'<<8 | 125
		noLogFlush = 2
	)
	if err := unix.IoctlSetPointerInt(int(file.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.mount, err)
	}
	return nil
}

// remember keeps what is on disks now, for forget, of all at one moment: all writing to them waits meanwhile. Of different moments one server
// could have what another has acknowledged to it and forgotten, and the two would never agree again.
func remember(ctx context.Context, disks []*disk) error {
	var freeze, keep, thaw []string
	for _, d := range disks {
		freeze, keep, thaw = append(freeze, "fsfreeze -f "+d.mount), append(keep, "cp --sparse=always "+d.image+" "+d.kept()), append(thaw, "fsfreeze -u "+d.mount)
	}
	err := setUp(ctx, slices.Concat(freeze, keep)...)
	for _, each := range thaw { // Also of what was not frozen: that it is not is no matter then.
		if thawErr := setUp(context.WithoutCancel(ctx), each); err == nil {
			err = thawErr
		}
	}
	return err
}

// forget is powerUp of a disk that has lied: what was written since remember is gone, also what was fsynced.
func (d *disk) forget(ctx context.Context) error {
	return setUp(ctx, "umount "+d.mount, "mv "+d.kept()+" "+d.image, "mount -o loop "+d.image+" "+d.mount)
}

func (d *disk) kept() string { return d.image + ".kept" }

// powerDown unmounts the disk for good.
func (d *disk) powerDown(ctx context.Context) error { return setUp(ctx, "umount "+d.mount) }

// powerUp mounts the disk again after a cut, as it is after its journal was replayed. Nothing may use it.
func (d *disk) powerUp(ctx context.Context) error {
	return setUp(ctx, "umount "+d.mount, "mount -o loop "+d.image+" "+d.mount)
}
