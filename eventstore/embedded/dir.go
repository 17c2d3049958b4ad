//go:build unix

package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// lockName is the file whose lock says that a process uses the directory. It holds that process's id.
const lockName = "LOCK"

// A DirInUseError says that another process uses the directory.
type DirInUseError struct {
	Dir string
	// PID of that process, 0 if it is not known.
	PID int
}

func (e *DirInUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("data directory %s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("data directory %s is in use by another process (pid %d)", e.Dir, e.PID)
}

// dirLock is held on a directory until release, or until the process ends, however it ends.
type dirLock struct {
	once sync.Once
	file *os.File
}

func lockDir(dir string) (*dirLock, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := os.ReadFile(file.Name()) // Who it is only helps the reader of the error.
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
		return nil, errors.Join(&DirInUseError{Dir: dir, PID: pid}, file.Close())
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock data directory %s: %w", dir, err), file.Close())
	}
	return &dirLock{file: file}, nil
}

func (l *dirLock) release() {
	l.once.Do(func() { _ = l.file.Close() }) // Closing is what unlocks; there is nothing to lose.
}

// storeLimit returns how many bytes the streams below dir may have: wanted, or by default a share of the disk.
func storeLimit(dir string, wanted int64) (int64, error) {
	used, free, err := measure(dir)
	if err != nil {
		return 0, err
	}
	if wanted > 0 {
		return min(wanted, used+free), nil
	}
	return used + int64(float64(free)*diskShare), nil
}

// measure returns how many bytes the files below dir have, and how many more there may be on their disk. A server that runs removes files
// meanwhile.
func measure(dir string) (used, free int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		used += info.Size()
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure the streams: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return 0, 0, fmt.Errorf("measure the free disk: %w", err)
	}
	return used, int64(disk.Bavail) * int64(disk.Bsize), nil //nolint:unconvert // The types differ from system to system.
}
