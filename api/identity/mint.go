package identity

import (
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What tokens of a node's own key say, and what a verifier expects unless it is told otherwise.
const (
	DefaultIssuer   = "weir"
	DefaultAudience = "weir"
)

// TokenTTLMax is the longest life that Mint gives a token.
const TokenTTLMax = 10 * 365 * 24 * time.Hour

// Mint makes a token for the subject that is good from now on for ttl.
func Mint(k SigningKey, subject string, scopes Scopes, now time.Time, ttl time.Duration) (string, error) {
	if !ValidSubject(subject) {
		return "", fmt.Errorf("user %q: a user id has 1 to %d characters of A-Z a-z 0-9 _ -", subject, subjectBytesMax)
	}
	if ttl <= 0 || ttl > TokenTTLMax {
		return "", fmt.Errorf("a token lives for more than 0 s and at most %s, not %s", TokenTTLMax, ttl)
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    DefaultIssuer,
			Audience:  jwt.ClaimStrings{DefaultAudience},
			Subject:   subject,
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
		},
		Scope: scopes.String(),
	}).SignedString(k.secret)
}

// Sign makes a token that claims whatever it is given, for tests of what a verifier refuses.
func Sign(k SigningKey, claims map[string]any) (string, error) {
	return jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims(claims)).SignedString(k.secret)
}

// claims are what a verifier reads of a token.
type claims struct {
	jwt.RegisteredClaims
	// Scope holds words separated by spaces (RFC 8693 §4.2).
	Scope string `json:"scope,omitempty"`
}
