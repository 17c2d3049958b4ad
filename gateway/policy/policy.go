// Package policy is what an operator decides about a gateway, as one strict YAML file: what is not in it has a default that works,
// and what nobody knows is refused with its line.
package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/retry"
	"github.com/weirhq/weir/gateway/room"
)

// A Policy is the content of the file. Its zero value works.
type Policy struct {
	// Deadlines bound calls in time.
	Deadlines Deadlines `yaml:"deadlines"`
	// Limits bound what clients may cost.
	Limits Limits `yaml:"limits"`
	// CORS says which web pages may call.
	CORS CORS `yaml:"cors"`
	// TrustedProxies are the addresses and networks whose X-Forwarded-For is believed, such as 10.0.0.0/8. By default nobody's is.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Balance says which node gets a call.
	Balance balance.Config `yaml:"balance"`
	// Breaker says when a node gets no more calls of a method.
	Breaker breaker.Limits `yaml:"breaker"`
	// Retry says how much may be repeated, over all methods.
	Retry retry.Config `yaml:"retry"`
	// Rates bound how often is called, and Concurrency how much is under way.
	Rates       Rates                   `yaml:"rates"`
	Concurrency limit.ConcurrencyConfig `yaml:"concurrency"`
	// Edge is what the gateway answers by itself: what is turned off, older answers to reads, what is sold out.
	Edge edge.Config `yaml:"edge"`
	// Board names what edge.sold_out is about, and Room the campaigns that have a waiting room. Both hold from the next start on.
	Board []edge.Item `yaml:"board"`
	Room  room.Config `yaml:"room"`
	// Methods say how calls are treated, by what they are called: package.Service/Method, package.Service/* or *. What the nearest
	// one leaves out is taken from the next.
	Methods map[string]Method `yaml:"methods"`
}

// Deadlines bound a unary call, and a stream whose caller gives a deadline.
type Deadlines struct {
	// Default is how long a unary call may take whose caller does not say; 0 means 10 s.
	Default time.Duration `yaml:"default"`
	// Max is how long it may take at most; 0 means 30 s.
	Max time.Duration `yaml:"max"`
}

// Limits bound what clients may cost (I8). Those of connections hold from the next start on.
type Limits struct {
	// RequestBytes bounds the body of a unary request on the wire; 0 means 66,560 (64 KiB and an envelope). A message of a stream is
	// bounded by the node.
	RequestBytes int64 `yaml:"request_bytes"`
	// HeaderBytes bounds the request line and the headers; 0 means 32 KiB.
	HeaderBytes int `yaml:"header_bytes"`
	// HeaderTime bounds the arrival of the headers; 0 means 5 s.
	HeaderTime time.Duration `yaml:"header_time"`
	// BodyTime bounds the arrival of a unary request's body; 0 means 10 s.
	BodyTime time.Duration `yaml:"body_time"`
	// ReplyTime bounds a unary call from its headers to the last byte of its reply; 0 means 60 s.
	ReplyTime time.Duration `yaml:"reply_time"`
	// StreamWriteTime bounds each write to the client of a stream: one that does not read is cut; 0 means 30 s.
	StreamWriteTime time.Duration `yaml:"stream_write_time"`
	// IdleTime bounds the life of a connection without a call; 0 means 2 min.
	IdleTime time.Duration `yaml:"idle_time"`
	// StreamsPerConnection bounds the calls at once of one HTTP/2 connection; 0 means 250.
	StreamsPerConnection int `yaml:"streams_per_connection"`
	// Connections bounds the connections at once; 0 means 20,000.
	Connections int `yaml:"connections"`
	// ConnectionsPerAddress bounds those of one client address, which is a whole office behind one router; 0 means 2,000.
	ConnectionsPerAddress int `yaml:"connections_per_address"`
	// Calls bounds the calls at once, streams with them; 0 means 50,000.
	Calls int `yaml:"calls"`
}

// CORS says which web pages may call from a browser.
type CORS struct {
	// Origins are the pages' origins, such as https://shop.example, with one * in each at most. By default there are none.
	Origins []string `yaml:"origins"`
	// MaxAge is how long a browser may remember the answer; 0 means 2 h, the most that browsers honour.
	MaxAge time.Duration `yaml:"max_age"`
}

// A Method is how calls of some methods are treated. A zero field is left to the next that matches.
type Method struct {
	// Deadline is how long a call may take whose caller does not say.
	Deadline time.Duration `yaml:"deadline"`
	// DeadlineMax is how long it may take at most.
	DeadlineMax time.Duration `yaml:"deadline_max"`
	// Balance is how the node is picked; by default as balance.policy says.
	Balance balance.Policy `yaml:"balance"`
	// Fault is what is done about calls that fail.
	Fault *fault.Config `yaml:"fault"`
	// Breaker has limits of its own; a zero field in it is as above.
	Breaker *breaker.Limits `yaml:"breaker"`
	// Rate bounds the calls through this gateway, User those of one user, Global those through all gateways.
	Rate   *limit.Rate `yaml:"rate"`
	User   *limit.Rate `yaml:"user"`
	Global *limit.Rate `yaml:"global"`
	// Priority when not everything fits: pay, cancel, place, read or points.
	Priority *limit.Priority `yaml:"priority"`
}

// Rates bound how often is called, of all methods together. A zero rate is none.
type Rates struct {
	// Client bounds one client address, User one user.
	Client limit.Rate `yaml:"client"`
	User   limit.Rate `yaml:"user"`
	// KeysMax bounds the users, and the clients, that are counted each for itself; 0 means a million. Each takes 18 bytes.
	KeysMax int `yaml:"keys_max"`
}

// WithDefaults fills in what is zero.
func (p Policy) WithDefaults() Policy {
	setDefault(&p.Deadlines.Max, 30*time.Second)
	setDefault(&p.Deadlines.Default, min(10*time.Second, p.Deadlines.Max))
	setDefault(&p.Limits.RequestBytes, 65<<10)
	setDefault(&p.Limits.HeaderBytes, 32<<10)
	setDefault(&p.Limits.HeaderTime, 5*time.Second)
	setDefault(&p.Limits.BodyTime, 10*time.Second)
	setDefault(&p.Limits.ReplyTime, time.Minute)
	setDefault(&p.Limits.StreamWriteTime, 30*time.Second)
	setDefault(&p.Limits.IdleTime, 2*time.Minute)
	setDefault(&p.Limits.StreamsPerConnection, 250)
	setDefault(&p.Limits.Connections, 20_000)
	setDefault(&p.Limits.ConnectionsPerAddress, 2_000)
	setDefault(&p.Limits.Calls, 50_000)
	setDefault(&p.CORS.MaxAge, 2*time.Hour)
	return p
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate says which value is not one, and why.
func (p Policy) Validate() error {
	for _, check := range []struct {
		name string
		bad  bool
	}{
		{"deadlines.default", p.Deadlines.Default < 0},
		{"deadlines.max", p.Deadlines.Max < 0},
		{"limits.request_bytes", p.Limits.RequestBytes < 0},
		{"limits.header_bytes", p.Limits.HeaderBytes < 0},
		{"limits.header_time", p.Limits.HeaderTime < 0},
		{"limits.body_time", p.Limits.BodyTime < 0},
		{"limits.reply_time", p.Limits.ReplyTime < 0},
		{"limits.stream_write_time", p.Limits.StreamWriteTime < 0},
		{"limits.idle_time", p.Limits.IdleTime < 0},
		{"limits.streams_per_connection", p.Limits.StreamsPerConnection < 0},
		{"limits.connections", p.Limits.Connections < 0},
		{"limits.connections_per_address", p.Limits.ConnectionsPerAddress < 0},
		{"limits.calls", p.Limits.Calls < 0},
		{"cors.max_age", p.CORS.MaxAge < 0},
	} {
		if check.bad {
			return fmt.Errorf("%s is negative", check.name)
		}
	}
	full := p.WithDefaults()
	if full.Deadlines.Default > full.Deadlines.Max {
		return fmt.Errorf("deadlines.default %s is longer than deadlines.max %s", full.Deadlines.Default, full.Deadlines.Max)
	}
	if full.Deadlines.Max > full.Limits.ReplyTime {
		return fmt.Errorf("deadlines.max %s is longer than limits.reply_time %s, which cuts a call off", full.Deadlines.Max, full.Limits.ReplyTime)
	}
	for _, part := range []struct {
		name string
		err  error
	}{{"balance", p.Balance.Validate()}, {"breaker", p.Breaker.Validate()}, {"retry", p.Retry.Validate()}, {"edge", p.Edge.Validate()}, {"room", p.Room.Validate()}} {
		if part.err != nil {
			return fmt.Errorf("%s: %w", part.name, part.err)
		}
	}
	if err := p.Limiting(nil).Validate(); err != nil {
		return err
	}
	for _, origin := range p.CORS.Origins {
		if err := validateOrigin(origin); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Methods)) {
		if err := validateMethodName(name); err != nil {
			return err
		}
		m := p.Methods[name]
		if err := m.validate(); err != nil {
			return fmt.Errorf("methods: %s: %w", name, err)
		}
		if m.Deadline < 0 || m.DeadlineMax < 0 {
			return fmt.Errorf("methods: %s: a deadline is negative", name)
		}
		if m.DeadlineMax > full.Limits.ReplyTime {
			return fmt.Errorf("methods: %s: deadline_max %s is longer than limits.reply_time %s, which cuts a call off", name, m.DeadlineMax, full.Limits.ReplyTime)
		}
	}
	return nil
}

// validate checks what other packages know of.
func (m Method) validate() error {
	if m.Fault != nil {
		if err := m.Fault.Validate(); err != nil {
			return fmt.Errorf("fault: %w", err)
		}
	}
	if m.Breaker != nil {
		if err := m.Breaker.Validate(); err != nil {
			return fmt.Errorf("breaker: %w", err)
		}
	}
	for name, rate := range map[string]*limit.Rate{"rate": m.Rate, "user": m.User, "global": m.Global} {
		if rate == nil {
			continue
		}
		if err := rate.Validate(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func validateOrigin(origin string) error {
	if origin == "*" {
		return errors.New(`cors: origin "*" would let every web page call: name the pages' origins`)
	}
	example := origin
	if host, any := strings.CutSuffix(origin, ":*"); any {
		example = host + ":1"
	}
	parsed, err := url.Parse(strings.Replace(example, "*", "x", 1))
	if err != nil || (parsed.Scheme != "http" && parsed.Scheme != "https") || parsed.Host == "" || parsed.Path != "" || parsed.RawQuery != "" {
		return fmt.Errorf("cors: origin %q is not SCHEME://HOST or SCHEME://HOST:PORT", origin)
	}
	return nil
}

func validateMethodName(name string) error {
	service, method, ok := strings.Cut(name, "/")
	if name != "*" && (!ok || method == "" || !strings.Contains(service, ".") || strings.Contains(method, "/")) {
		return fmt.Errorf("methods: %q is not package.Service/Method, package.Service/* or *", name)
	}
	return nil
}

// MethodFor returns how calls of a procedure, /package.Service/Method, are treated, with everything filled in. It merges what
// matches: the policy is asked once for each method, not for each call.
func (p Policy) MethodFor(procedure string) Method {
	full := p.WithDefaults()
	name := strings.TrimPrefix(procedure, "/")
	service, _, _ := strings.Cut(name, "/")
	var merged Method
	for _, pattern := range []string{name, service + "/*", "*"} {
		m := p.Methods[pattern]
		setDefault(&merged.Deadline, m.Deadline)
		setDefault(&merged.DeadlineMax, m.DeadlineMax)
		setDefault(&merged.Balance, m.Balance)
		setDefault(&merged.Fault, m.Fault)
		setDefault(&merged.Breaker, m.Breaker)
		setDefault(&merged.Rate, m.Rate)
		setDefault(&merged.User, m.User)
		setDefault(&merged.Global, m.Global)
		setDefault(&merged.Priority, m.Priority)
	}
	if merged.Fault == nil {
		merged.Fault = &fault.Config{}
	}
	setDefault(&merged.DeadlineMax, full.Deadlines.Max)
	setDefault(&merged.Deadline, min(full.Deadlines.Default, merged.DeadlineMax))
	merged.Deadline = min(merged.Deadline, merged.DeadlineMax)
	return merged
}

// Limiting returns the limits of these procedures, and of all together.
func (p Policy) Limiting(procedures []string) limit.Config {
	config := limit.Config{
		Client: p.Rates.Client, User: p.Rates.User, KeysMax: p.Rates.KeysMax, TrustedProxies: p.TrustedProxies, Concurrency: p.Concurrency,
		Methods: map[string]limit.MethodConfig{},
	}
	for _, procedure := range procedures {
		m := p.MethodFor(procedure)
		if m.Rate == nil && m.User == nil && m.Global == nil && m.Priority == nil {
			continue
		}
		of := limit.MethodConfig{Priority: m.Priority}
		for to, from := range map[*limit.Rate]*limit.Rate{&of.Rate: m.Rate, &of.User: m.User, &of.Global: m.Global} {
			if from != nil {
				*to = *from
			}
		}
		config.Methods[procedure] = of
	}
	return config
}

// Breaking returns the limits of the breakers of these procedures.
func (p Policy) Breaking(procedures []string) breaker.Config {
	config := breaker.Config{Limits: p.Breaker, Methods: map[string]breaker.Limits{}}
	for _, procedure := range procedures {
		if m := p.MethodFor(procedure); m.Breaker != nil {
			config.Methods[procedure] = *m.Breaker
		}
	}
	return config
}
