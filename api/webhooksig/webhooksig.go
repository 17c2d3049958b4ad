// Package webhooksig signs and verifies webhooks as Standard Webhooks says (https://www.standardwebhooks.com).
//
// A signed request carries three headers:
//
//	webhook-id         the message's id, the same in every attempt to deliver it
//	webhook-timestamp  when this attempt was made, in seconds since 1970
//	webhook-signature  one or more signatures, separated by spaces, each "v1," and base64 of
//	                   HMAC-SHA256(key, id "." timestamp "." body)
//
// A secret is written "whsec_" and base64 of the key. Whoever replaces a secret signs with the old and the new one, or
// verifies with both, until both ends have the new one.
//
// A good signature says who made a message and that it is at most skewMax old. It does not say that it comes for the
// first time: a replay within that time verifies as well. Only a durable list of the ids that were taken tells, and only
// the receiver has one.
package webhooksig

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of a signed request.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// SkewMax is how far a message's timestamp may be from the receiver's clock, either way, unless the caller says otherwise.
const SkewMax = 5 * time.Minute

// Limits (I8).
const (
	// SecretBytesMin and SecretBytesMax bound a key.
	SecretBytesMin = 24
	SecretBytesMax = 64
	// idBytesMax bounds a message's id.
	idBytesMax = 256
	// timestampDigitsMax reaches far beyond the year 9999.
	timestampDigitsMax = 12
	// signaturesMax bounds how many signatures of one request are looked at; it is refused if it has more.
	signaturesMax = 16
)

const (
	secretPrefix  = "whsec_"
	schemeVersion = "v1"
)

// ErrUnverified says that a request was not signed by someone who has a secret, or too long ago. Its receiver answers with
// HTTP status 401 and does nothing else with it.
var ErrUnverified = errors.New("the webhook is not verified")

// UnverifiedError says what is wrong with a request's signature. It is ErrUnverified.
type UnverifiedError struct{ Problem string }

func (e *UnverifiedError) Error() string { return ErrUnverified.Error() + ": " + e.Problem }

// Unwrap returns ErrUnverified.
func (e *UnverifiedError) Unwrap() error { return ErrUnverified }

func unverifiedf(format string, args ...any) error {
	return &UnverifiedError{Problem: fmt.Sprintf(format, args...)}
}

// A Secret signs and verifies. It does not print itself.
type Secret struct{ key []byte }

// NewSecret makes a secret of 32 random bytes.
func NewSecret() Secret {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // It does not fail.
	return Secret{key: key}
}

// SecretOf returns the secret with this key. It fails if the key is too short or too long.
func SecretOf(key []byte) (Secret, error) {
	if len(key) < SecretBytesMin || len(key) > SecretBytesMax {
		return Secret{}, fmt.Errorf("a webhook secret has %d to %d bytes, not %d", SecretBytesMin, SecretBytesMax, len(key))
	}
	return Secret{key: append([]byte(nil), key...)}, nil
}

// ParseSecret reads what Encode wrote. The error does not show the text.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	if !ok {
		return Secret{}, fmt.Errorf("a webhook secret starts with %q", secretPrefix)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return Secret{}, fmt.Errorf("a webhook secret is %q and base64, and this is not", secretPrefix)
	}
	return SecretOf(key)
}

// Encode writes the secret down: "whsec_" and base64 of its key. Who reads it can sign.
func (s Secret) Encode() string { return secretPrefix + base64.StdEncoding.EncodeToString(s.key) }

// String hides the secret from logs.
func (s Secret) String() string { return secretPrefix + "…" }

// GoString hides the secret from logs.
func (s Secret) GoString() string { return s.String() }

// Sign returns a signature as it stands in the header. REQUIRES: the secret comes from a constructor; ValidID(id).
func Sign(secret Secret, id string, timestamp time.Time, body []byte) string {
	if len(secret.key) == 0 {
		panic("webhooksig: signing with no secret")
	}
	if !ValidID(id) {
		panic(fmt.Sprintf("webhooksig: %q is no id of a message", id))
	}
	return schemeVersion + "," + base64.StdEncoding.EncodeToString(mac(secret, id, strconv.FormatInt(timestamp.Unix(), 10), body))
}

// SetHeaders signs with every secret and sets the three headers. REQUIRES: as Sign; at least one secret.
func SetHeaders(header http.Header, secrets []Secret, id string, timestamp time.Time, body []byte) {
	signatures := make([]string, 0, len(secrets))
	for _, secret := range secrets {
		signatures = append(signatures, Sign(secret, id, timestamp, body))
	}
	header.Set(HeaderID, id)
	header.Set(HeaderTimestamp, strconv.FormatInt(timestamp.Unix(), 10))
	header.Set(HeaderSignature, strings.Join(signatures, " "))
}

// ValidID reports whether an id may be a message's: 1 to 256 printable ASCII characters without a space or a full stop.
// A full stop ends the id in what is signed: with one inside, two messages could have one signature.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > idBytesMax {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' || id[i] == '.' {
			return false
		}
	}
	return true
}

// Verify checks that one of the secrets signed the request, at most skewMax before or after now. The error is an
// *UnverifiedError. REQUIRES: the secrets come from a constructor.
func Verify(secrets []Secret, header http.Header, body []byte, now time.Time, skewMax time.Duration) error {
	if err := VerifyHeaders(header, now, skewMax); err != nil {
		return err
	}
	id, timestamp := header.Get(HeaderID), header.Get(HeaderTimestamp)
	signatures := strings.Split(header.Get(HeaderSignature), " ")
	for _, secret := range secrets {
		if len(secret.key) == 0 {
			panic("webhooksig: verifying with no secret")
		}
		want := mac(secret, id, timestamp, body)
		for _, signature := range signatures {
			version, encoded, _ := strings.Cut(signature, ",")
			if version != schemeVersion {
				continue // Another scheme: its sender also signs with ours.
			}
			got, err := base64.StdEncoding.DecodeString(encoded)
			if err == nil && hmac.Equal(got, want) { // Takes the same time whichever bytes differ.
				return nil
			}
		}
	}
	return unverifiedf("no signature is of a secret that is known here")
}

// VerifyHeaders checks all that can be checked before the body is read. Verify does it too.
func VerifyHeaders(header http.Header, now time.Time, skewMax time.Duration) error {
	for _, name := range [...]string{HeaderID, HeaderTimestamp, HeaderSignature} {
		switch values := header[name]; {
		case len(values) == 0 || values[0] == "":
			return unverifiedf("the header %s is missing", strings.ToLower(name))
		case len(values) > 1:
			return unverifiedf("the header %s is there %d times", strings.ToLower(name), len(values))
		}
	}
	if !ValidID(header.Get(HeaderID)) {
		return unverifiedf("the header %s is not an id", strings.ToLower(HeaderID))
	}
	timestamp := header.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || len(timestamp) > timestampDigitsMax || strconv.FormatInt(seconds, 10) != timestamp {
		return unverifiedf("the header %s is not a time in seconds", strings.ToLower(HeaderTimestamp))
	}
	if skew := now.Sub(time.Unix(seconds, 0)); skew > skewMax || skew < -skewMax {
		return unverifiedf("its time is more than %s from now", skewMax)
	}
	if strings.Count(header.Get(HeaderSignature), " ") >= signaturesMax {
		return unverifiedf("it has more than %d signatures", signaturesMax)
	}
	return nil
}

func mac(secret Secret, id, timestamp string, body []byte) []byte {
	hash := hmac.New(sha256.New, secret.key)
	hash.Write([]byte(id + "." + timestamp + "."))
	hash.Write(body)
	return hash.Sum(nil)
}
