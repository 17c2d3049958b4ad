// Package identity knows who is calling: it verifies bearer JWTs, and mints them for a development node.
//
// The key decides the algorithm, never the token: a token whose header names another algorithm than its key's is
// refused before its signature is looked at, so alg=none and a public key used as an HMAC secret lead nowhere.
package identity

import (
	"context"
	"strings"
	"time"
)

// A Principal is a caller whose token was verified. It is shared between calls: nobody changes it.
type Principal struct {
	// Subject is the user id: 1 to 64 characters of A-Z a-z 0-9 _ -.
	Subject string
	// Scopes that the token grants.
	Scopes Scopes
	// Expires is when the token stops being good, leeway not included.
	Expires time.Time
}

// Scopes is a set of powers. The empty set is a customer: their own orders only.
type Scopes uint8

// The powers that a token may grant. Other words of its scope claim mean nothing here.
const (
	// ScopeActAs is a trusted backend's: it may act for any user.
	ScopeActAs Scopes = 1 << iota
	// ScopeOperator may do everything.
	ScopeOperator
)

var scopeNames = []struct {
	scope Scopes
	name  string
}{
	{ScopeActAs, "act-as"},
	{ScopeOperator, "operator"},
}

// Has reports whether s holds every power of want.
func (s Scopes) Has(want Scopes) bool { return s&want == want }

// String returns the scope claim: names separated by single spaces.
func (s Scopes) String() string {
	var names []string
	for _, known := range scopeNames {
		if s.Has(known.scope) {
			names = append(names, known.name)
		}
	}
	return strings.Join(names, " ")
}

// ParseScopes reads a scope claim. unknown are the words that grant nothing here; a verifier ignores them, a
// command line tells its user.
func ParseScopes(claim string) (scopes Scopes, unknown []string) {
words:
	for _, word := range strings.Fields(claim) {
		for _, known := range scopeNames {
			if word == known.name {
				scopes |= known.scope
				continue words
			}
		}
		unknown = append(unknown, word)
	}
	return scopes, unknown
}

// ActsForOthers reports whether the principal may act for users other than its subject.
func (p *Principal) ActsForOthers() bool { return p.Scopes&(ScopeActAs|ScopeOperator) != 0 }

// Operates reports whether the principal may call the operator's RPCs.
func (p *Principal) Operates() bool { return p.Scopes.Has(ScopeOperator) }

// subjectBytesMax bounds a subject, which becomes a user id.
const subjectBytesMax = 64

// ValidSubject reports whether s may be a user id: 1 to 64 characters of A-Z a-z 0-9 _ -.
func ValidSubject(s string) bool {
	if len(s) == 0 || len(s) > subjectBytesMax {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

type contextKey struct{}

// NewContext returns ctx with its caller.
func NewContext(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// FromContext returns the caller, or nil when nobody was verified.
func FromContext(ctx context.Context) *Principal {
	p, _ := ctx.Value(contextKey{}).(*Principal)
	return p
}
