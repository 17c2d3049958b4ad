package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
)

// peerModes are what orderpeer can be.
var peerModes = []string{"pg", "pgbatch", "redis"}

// peers are the programs that a team would write instead of Weir, with a PostgreSQL and a Redis of their own.
type peers struct {
	// modes holds a server for each of peerModes.
	modes     map[string]*server
	databases []*launch.Server
	sources   uint64
}

// startPeers builds orderpeer and starts everything that it needs below dir. The error says which part is missing.
func startPeers(ctx context.Context, source, dir string) (started *peers, err error) {
	orderpeer := filepath.Join(dir, "orderpeer")
	folder := filepath.Join(source, "orderpeer")
	if _, err := os.Stat(filepath.Join(folder, "main.go")); err != nil {
		return nil, fmt.Errorf("no source of orderpeer: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", orderpeer, ".")
	build.Dir = folder
	if printed, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build orderpeer: %w: %s", err, printed)
	}
	p := &peers{modes: map[string]*server{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.end())
		}
	}()
	postgres, tools, credential, err := startPostgres(ctx, dir)
	if err != nil {
		return nil, err
	}
	p.databases = append(p.databases, postgres)
	redis, err := startRedis(ctx, dir, durably...)
	if err != nil {
		return nil, err
	}
	p.databases = append(p.databases, redis)
	host, port, err := net.SplitHostPort(postgres.Addr)
	if err != nil {
		return nil, err
	}
	for _, mode := range peerModes {
		// Each mode has a database of its own, since each makes its tables anew.
		if _, err := launch.Output(ctx, credential, filepath.Join(tools, "createdb"), "-h", host, "-p", port, "-U", "bench", mode); err != nil {
			return nil, err
		}
		addr, err := launch.FreeAddr(ctx)
		if err != nil {
			return nil, err
		}
		process, err := launch.Start("orderpeer "+mode, addr, nil, exec.Command(orderpeer, "-mode", mode, "-addr", addr, "-redis", redis.Addr, //nolint:noctx // end ends it.
			"-dsn", fmt.Sprintf("postgres://bench@%s/%s?sslmode=disable", postgres.Addr, mode)))
		if err != nil {
			return nil, err
		}
		p.modes[mode] = &server{Server: process, needs: p.databases}
		if err := process.Ready(ctx, process.Accepts); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// end stops everything that startPeers started.
func (p *peers) end() error {
	var errs []error
	for _, process := range p.modes {
		errs = append(errs, process.Stop(syscall.SIGTERM))
	}
	for _, process := range p.databases {
		// PostgreSQL takes SIGINT as: drop the clients and stop.
		errs = append(errs, process.Stop(syscall.SIGINT))
	}
	return errors.Join(errs...)
}

// servers returns all of them, for settle.
func (p *peers) servers() []*server {
	all := make([]*server, 0, len(peerModes))
	for _, mode := range peerModes {
		all = append(all, p.modes[mode])
	}
	return all
}

// reset empties a mode's tables and stocks them.
func (p *peers) reset(ctx context.Context, mode string, skus int) error {
	url := fmt.Sprintf("http://%s/reset?skus=%d&stock=%d", p.modes[mode].Addr, skus, stockUnits)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("reset orderpeer %s: %w", mode, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("reset orderpeer %s: status %d", mode, response.StatusCode)
	}
	return nil
}

// source makes orders for orderpeer.
func (p *peers) source(skus int) (load.Source, error) {
	p.sources++
	random := rand.New(rand.NewPCG(p.sources, 0))
	const skuField = `"sku-000"`
	body := `{"userId":"` + userPlace + `","requestId":"` + requestPlace + `","sku":` + skuField + `,"quantity":1}`
	return load.NewTemplate("/order", jsonType, "", []byte(body),
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", p.sources%10_000))},
		load.Field{Placeholder: userPlace, Fill: load.Draw(random, "u", usersMax)},
		// Its names are not equally long: spaces after the string make up for it.
		load.Field{Placeholder: skuField, Fill: load.Pick(random, load.Names(`"sku-`, `"`, skus))},
	)
}

// startPostgres makes a cluster below dir and runs it as an unprivileged user, with fsync. It returns the folder of its tools
// and the user too.
func startPostgres(ctx context.Context, dir string) (*launch.Server, string, *syscall.Credential, error) {
	installed, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return nil, "", nil, err
	}
	if inPath, err := exec.LookPath("initdb"); err == nil && len(installed) == 0 {
		installed = []string{inPath}
	}
	if len(installed) == 0 {
		return nil, "", nil, errors.New("PostgreSQL is not installed (Debian: apt-get install postgresql)")
	}
	tools := filepath.Dir(slices.Max(installed))
	data := filepath.Join(dir, "postgres")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, "", nil, err
	}
	credential, err := unprivileged(data, "postgres")
	if err != nil {
		return nil, "", nil, err
	}
	if _, err := launch.Output(ctx, credential, filepath.Join(tools, "initdb"), "-D", data, "-U", "bench", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"); err != nil {
		return nil, "", nil, err
	}
	addr, err := launch.FreeAddr(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", nil, err
	}
	process, err := launch.Start("PostgreSQL", addr, credential, exec.Command(filepath.Join(tools, "postgres"), "-D", data, "-h", host, "-p", port, "-k", data)) //nolint:noctx // end ends it.
	if err != nil {
		return nil, "", nil, err
	}
	err = process.Ready(ctx, func(ctx context.Context) error {
		_, err := launch.Output(ctx, credential, filepath.Join(tools, "pg_isready"), "-q", "-h", host, "-p", port)
		return err
	})
	if err != nil {
		return nil, "", nil, errors.Join(err, process.Stop(syscall.SIGINT))
	}
	return process, tools, credential, nil
}

// durably are settings of a Redis with an append-only file that is fsynced once a second.
var durably = []string{"--appendonly", "yes", "--appendfsync", "everysec"}

// startRedis runs a Redis in a folder of its own. Without more settings it keeps nothing on disk, as a cache does.
func startRedis(ctx context.Context, dir string, settings ...string) (*launch.Server, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis is not installed (Debian: apt-get install redis-server)")
	}
	data, err := os.MkdirTemp(dir, "redis-")
	if err != nil {
		return nil, err
	}
	addr, err := launch.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	process, err := launch.Start("Redis", addr, nil, exec.Command(binary, append([]string{ //nolint:noctx // end ends it.
		"--bind", host, "--port", port, "--dir", data, "--save", "",
	}, settings...)...))
	if err != nil {
		return nil, err
	}
	if err := process.Ready(ctx, process.Accepts); err != nil {
		return nil, errors.Join(err, process.Stop(syscall.SIGTERM))
	}
	return process, nil
}

// unprivileged returns whom to run a server as that refuses root, and gives that user the folder. For anybody but root it is nil.
func unprivileged(folder string, names ...string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range append(names, "nobody") {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(found.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(found.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(folder, int(uid), int(gid))
	}
	return nil, errors.New("no user to run PostgreSQL as: it refuses root")
}
