package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/readpath"
	"github.com/weirhq/weir/projections/redisview"
)

// redisOptions say which Redis keeps copies of views, if any does.
type redisOptions struct {
	// url is redis://[USER[:PASSWORD]@]HOST:PORT[,HOST:PORT...], or rediss:// over TLS; empty means none.
	url string
	// passwordFile holds the password, instead of the URL.
	passwordFile          string
	prefix                string
	caFile, cert, certKey string

	// parsed is what finish made of them; nil for none.
	parsed *redisview.Options
}

func (o *redisOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.url, "redis", "", "`URL` of a Redis that keeps copies of views: redis://[USER[:PASSWORD]@]HOST:PORT, several hosts with commas for a cluster, rediss:// over TLS; empty is none")
	flags.StringVar(&o.passwordFile, "redis-password-file", "", "`FILE` with the password for Redis, so that it is in no URL")
	flags.StringVar(&o.prefix, "redis-prefix", redisview.PrefixDefault, "`PREFIX` of every key in Redis; shops that share one have different ones")
	flags.StringVar(&o.caFile, "redis-ca-file", "", "`FILE` with the authority that signed Redis's certificate; the system's when not given")
	flags.StringVar(&o.cert, "redis-cert-file", "", "`FILE` with this node's certificate for Redis")
	flags.StringVar(&o.certKey, "redis-cert-key-file", "", "`FILE` with the key of this node's certificate")
	setting(flags, "redis", "redis-password-file", "redis-prefix", "redis-ca-file", "redis-cert-file", "redis-cert-key-file")
}

// finish reads the flags and the files that they name.
func (o *redisOptions) finish() error {
	if o.url == "" {
		return nil
	}
	bad := func(problem string) error {
		return usagef("--redis: %s", problem).then("write it as redis://HOST:PORT, or rediss://USER@HOST:PORT with --redis-password-file")
	}
	scheme, rest, _ := strings.Cut(o.url, "://")
	account, hosts, named := strings.Cut(rest, "@")
	if !named {
		account, hosts = "", rest
	}
	if scheme != "redis" && scheme != "rediss" {
		return bad("it begins neither with redis:// nor with rediss://")
	}
	options := &redisview.Options{Prefix: o.prefix}
	for _, address := range strings.Split(hosts, ",") {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || strings.Contains(port, "/") {
			return bad("every host needs a port, and nothing follows it") // The URL may hold a password: it is not printed.
		}
		options.Addresses = append(options.Addresses, address)
	}
	user, password, _ := strings.Cut(account, ":")
	var err error
	if options.Username, err = url.PathUnescape(user); err != nil {
		return bad("its user is not escaped as URLs are")
	}
	if options.Password, err = url.PathUnescape(password); err != nil {
		return bad("its password is not escaped as URLs are")
	}
	if o.passwordFile != "" {
		if options.Password != "" {
			return usagef("both --redis and --redis-password-file have a password").then("leave one out")
		}
		text, err := os.ReadFile(o.passwordFile)
		if err != nil {
			return usagef("--redis-password-file: %v", err)
		}
		if options.Password = strings.TrimRight(string(text), "\r\n"); options.Password == "" || len(text) > secretBytesMax {
			return usagef("--redis-password-file %s holds no password", o.passwordFile)
		}
	}
	if scheme == "rediss" {
		if options.TLS, err = redisview.LoadTLS(o.caFile, o.cert, o.certKey); err != nil {
			return usagef("%v", err)
		}
	} else if o.caFile != "" || o.cert != "" || o.certKey != "" {
		return usagef("files for TLS are given, and --redis does not use it").then("begin the URL with rediss://")
	}
	o.parsed = options
	return nil
}

// openMirror makes what keeps copies of views in Redis, if any does. A Redis that does not answer is no fault: the node serves
// without it until it does.
func (n *node) openMirror(ctx context.Context) error {
	if n.options.redis.parsed == nil {
		return nil
	}
	if !n.options.sharing.keepsViews() {
		n.logger.Warn("this node keeps no views (--follow none), so none of their copies in Redis either: --redis does nothing")
		return nil
	}
	options := *n.options.redis.parsed
	options.Store, options.Topology, options.Logger = n.store, n.log.topology, n.logger
	mirror, err := redisview.New(options)
	if err != nil {
		return usagef("--redis: %v", err)
	}
	n.mirror = mirror
	n.later(mirror.Close)
	advice, err := mirror.Check(ctx)
	var settings *redisview.SettingsError
	switch {
	case errors.As(err, &settings):
		return &problem{code: exitUsage, what: settings.Error(), cause: err, next: "change the setting, or start without --redis: a node needs none"}
	case err != nil:
		n.logger.Warn("Redis is not used until it answers; reads are answered without it", "error", err)
	}
	for _, text := range advice {
		n.logger.Warn("Redis works, and could be set up better", "advice", text)
	}
	return nil
}

// watchedBy returns what is told of every change of a view, and the cache that nodes share: nil for none.
func (n *node) watchedBy() (projections.Observer, readpath.Level2) {
	if n.mirror == nil {
		return nil, nil
	}
	return n.mirror, n.mirror.OrderRecords()
}

// redisComparison says how Redis stands beside the views of a running node.
type redisComparison struct {
	// Compared entries, which reads are answered with; Unserved ones, with which they are not.
	Compared uint64 `json:"compared"`
	Unserved uint64 `json:"unserved"`
	// DifferencesTotal counts the entries that differ; Differences are the first of them.
	DifferencesTotal uint64       `json:"differencesTotal"`
	Differences      []difference `json:"differences"`
	// NotCompared says why Redis was not compared.
	NotCompared string `json:"notCompared,omitempty"`
}

// text says it in a line, nothing of a node without a Redis.
func (c *redisComparison) text() string {
	switch {
	case c == nil:
		return ""
	case c.NotCompared != "":
		return "not compared: " + c.NotCompared
	}
	text := fmt.Sprintf("equal to the views in %s entries", groupDigits(c.Compared))
	if c.DifferencesTotal > 0 {
		text = fmt.Sprintf("not equal to the views in %s entries, of %s compared", groupDigits(c.DifferencesTotal), groupDigits(c.Compared))
	}
	if c.Unserved > 0 {
		text += fmt.Sprintf("; %s more are too old to answer a read", groupDigits(c.Unserved))
	}
	return text
}

// VerifyRedis implements viewSource.
func (v *localViews) VerifyRedis(ctx context.Context, sample int) (*redisComparison, error) {
	if v.mirror == nil {
		return nil, nil
	}
	found := &redisComparison{Differences: []difference{}}
	report, err := v.mirror.Verify(ctx, redisview.VerifyOptions{Sample: drawPartitions(sample)})
	var settings *redisview.SettingsError
	switch {
	case errors.Is(err, redisview.ErrUnreachable) || errors.As(err, &settings):
		found.NotCompared = err.Error()
	case err != nil:
		return nil, err
	}
	found.Compared, found.Unserved, found.DifferencesTotal = report.Compared, report.Unserved, report.DifferencesTotal
	for _, d := range report.Differences {
		found.Differences = append(found.Differences, difference{Check: "redis", Lane: d.Lane, What: d.String()})
	}
	return found, nil
}

func (i *inspector) serveVerifyRedis(w http.ResponseWriter, r *http.Request) {
	sample, _ := strconv.Atoi(r.FormValue("sample")) // None compares all.
	found, err := i.views.VerifyRedis(r.Context(), sample)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, found)
}

// VerifyRedis implements viewSource.
func (n *remoteNode) VerifyRedis(ctx context.Context, sample int) (found *redisComparison, err error) {
	err = n.getJSON(ctx, inspectVerifyRedis, url.Values{"sample": {strconv.Itoa(sample)}}, &found)
	return found, err
}
