package identity

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Limits of verification.
const (
	// TokenBytesMax is the longest token that is looked at.
	TokenBytesMax = 4096
	// leeway forgives clocks that disagree.
	leeway = 30 * time.Second
	// cacheTokensMax is how many verified tokens are remembered, of all shards together.
	cacheTokensMax = 64 * 1024
	// cacheShards is a power of two.
	cacheShards = 64
	// evictionProbes is how many entries a full shard looks at for one that has expired.
	evictionProbes = 8
)

// ErrUnauthenticated is every way in which a token is not good. What it wraps is for the log; a caller is told no
// more than "not good", and never a part of the token.
var ErrUnauthenticated = errors.New("no valid bearer token")

// A Verifier turns the Authorization header into a Principal. It may be called by any number of goroutines.
type Verifier struct {
	byID   map[string]*key // One entry "" when ids do not matter.
	single *key            // The only key, when there is one.
	parser *jwt.Parser
	now    func() time.Time
	shards [cacheShards]shard
}

// shard is a part of the cache of verified tokens. A hit takes a read lock, a hash of the token and a comparison.
// Only tokens that were verified get in, so nobody fills it with inventions.
type shard struct {
	mu     sync.RWMutex
	tokens map[string]*Principal
	_      [64]byte // Keeps the locks of two shards off one cache line.
}

// VerifierOptions say whose tokens are believed.
type VerifierOptions struct {
	// Keys that sign them. Required.
	Keys Keys
	// Issuer that the claim iss must name; DefaultIssuer if empty.
	Issuer string
	// Audience that the claim aud must contain; DefaultAudience if empty.
	Audience string
	// Now tells the time; time.Now if nil.
	Now func() time.Time
}

// NewVerifier returns a verifier.
func NewVerifier(options VerifierOptions) (*Verifier, error) {
	if len(options.Keys.keys) == 0 {
		return nil, errors.New("a verifier needs at least one key")
	}
	if options.Issuer == "" {
		options.Issuer = DefaultIssuer
	}
	if options.Audience == "" {
		options.Audience = DefaultAudience
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	v := &Verifier{byID: map[string]*key{}, now: options.Now}
	algorithms := map[string]bool{}
	for i := range options.Keys.keys {
		k := &options.Keys.keys[i]
		v.byID[k.id] = k
		algorithms[k.method.Alg()] = true
	}
	if len(options.Keys.keys) == 1 {
		v.single = &options.Keys.keys[0]
	}
	var names []string
	for name := range algorithms {
		names = append(names, name)
	}
	v.parser = jwt.NewParser(
		jwt.WithValidMethods(names), // A first gate; keyFor pins the one algorithm of the very key.
		jwt.WithIssuer(options.Issuer),
		jwt.WithAudience(options.Audience),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(options.Now),
		jwt.WithStrictDecoding(),
	)
	for i := range v.shards {
		v.shards[i].tokens = map[string]*Principal{}
	}
	return v, nil
}

// Verify takes the value of an Authorization header. The error is ErrUnauthenticated.
func (v *Verifier) Verify(header string) (*Principal, error) {
	const scheme = "bearer "
	if len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return nil, fmt.Errorf("%w: the Authorization header is not \"Bearer <token>\"", ErrUnauthenticated)
	}
	token := header[len(scheme):]
	if len(token) > TokenBytesMax {
		return nil, fmt.Errorf("%w: the token has %d bytes, at most %d are read", ErrUnauthenticated, len(token), TokenBytesMax)
	}
	shard := &v.shards[shardOf(token)]
	shard.mu.RLock()
	principal := shard.tokens[token]
	shard.mu.RUnlock()
	if principal != nil && v.now().Before(principal.Expires.Add(leeway)) {
		return principal, nil // Signature, issuer, audience and nbf held once, so they hold still.
	}
	principal, err := v.verify(token)
	if err != nil {
		return nil, err
	}
	shard.remember(strings.Clone(token), principal, v.now()) // The header's string holds the whole request's headers.
	return principal, nil
}

// shardOf takes the shard from the token's last characters: they are of its signature, so they spread.
func shardOf(token string) uint32 {
	var h uint32
	for i := max(0, len(token)-6); i < len(token); i++ {
		h = h*31 + uint32(token[i])
	}
	return h % cacheShards
}

func (v *Verifier) verify(token string) (*Principal, error) {
	var parsed claims
	if _, err := v.parser.ParseWithClaims(token, &parsed, v.keyFor); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	if !ValidSubject(parsed.Subject) {
		return nil, fmt.Errorf("%w: the subject is not a user id", ErrUnauthenticated)
	}
	scopes, _ := ParseScopes(parsed.Scope)
	return &Principal{Subject: parsed.Subject, Scopes: scopes, Expires: parsed.ExpiresAt.Time}, nil
}

// keyFor picks the key that a token names, and refuses a token whose algorithm is not that key's.
func (v *Verifier) keyFor(token *jwt.Token) (any, error) {
	if _, ok := token.Header["crit"]; ok {
		return nil, errors.New("the token names a critical extension, and none is known") // RFC 7515 §4.1.11.
	}
	id, _ := token.Header["kid"].(string)
	k := v.byID[id]
	if k == nil && v.single != nil && (id == "" || v.single.id == "") {
		k = v.single // One side does not name its key, and there is only one.
	}
	if k == nil {
		return nil, errors.New("the token names no key that is known")
	}
	if token.Method.Alg() != k.method.Alg() {
		return nil, fmt.Errorf("the key signs %s only", k.method.Alg())
	}
	return k.public, nil
}

// remember puts a verified token into the shard. A full shard first loses what has expired among a few entries, or
// else one that is good: it is verified again when it comes back.
func (s *shard) remember(token string, principal *Principal, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.tokens[token]; !known && len(s.tokens) >= cacheTokensMax/cacheShards {
		probes, victim := 0, ""
		for candidate, p := range s.tokens { // Map order is random enough.
			victim = candidate
			if probes++; probes == evictionProbes || !now.Before(p.Expires.Add(leeway)) {
				break
			}
		}
		delete(s.tokens, victim)
	}
	s.tokens[token] = principal
}
