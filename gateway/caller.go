package gateway

import (
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"

	"github.com/maypok86/otter/v2"
)

const (
	// partitions of users, for ever: partition = FNV-1a-32(user id) mod partitions, and a lane is a range of them.
	partitions = 1024
	// tokenBytesMax bounds a token that is looked into, and subjectBytesMax the user id in it.
	tokenBytesMax   = 4 << 10
	subjectBytesMax = 256
	// callersBytesMax bounds the tokens, and what they say, that a gateway remembers; callerBytes is what an entry takes besides.
	callersBytesMax = 16 << 20
	callerBytes     = 128
)

// SubjectOf reads whose token a request carries, and believes it: the gateway has no keys, and the node that gets the call verifies the
// token in any case. "" means that it says nobody.
//
// What follows from it is only where the call goes and whose limits it counts against. Who forges a subject has the call sent to the node of
// another user's lane, which refuses it, and spends some of that user's rate at the gateway: the reason why a rate for each client address
// should stand beside one for each user, and why Options.Subject may verify.
func SubjectOf(header http.Header) string { return callerOf(header).subject }

// A caller is who makes a call, as far as it says.
type caller struct {
	subject string
	// actsForOthers is whether it may be for any user: then the subject says nothing of the lane.
	actsForOthers bool
}

// scopeActAs is in the scope of a token that may act for any user.
const scopeActAs = "act-as"

func callerOf(header http.Header) caller {
	values := header["Authorization"]
	if len(values) != 1 || len(values[0]) > tokenBytesMax {
		return caller{}
	}
	token, bearer := cutBearer(values[0])
	if !bearer {
		return caller{}
	}
	_, rest, ok := strings.Cut(token, ".")
	if !ok {
		return caller{}
	}
	claims, _, ok := strings.Cut(rest, ".")
	if !ok {
		return caller{}
	}
	text, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		return caller{}
	}
	var told struct {
		Subject string `json:"sub"`
		Scope   string `json:"scope"`
	}
	if json.Unmarshal(text, &told) != nil || len(told.Subject) > subjectBytesMax {
		return caller{}
	}
	return caller{subject: told.Subject, actsForOthers: slices.Contains(strings.Fields(told.Scope), scopeActAs)}
}

// callers remember what tokens say, as a caller comes with the same one again and again.
type callers struct{ known *otter.Cache[string, caller] }

func newCallers() callers {
	return callers{otter.Must(&otter.Options[string, caller]{
		MaximumWeight: callersBytesMax,
		Weigher: func(authorization string, told caller) uint32 {
			return uint32(len(authorization) + len(told.subject) + callerBytes)
		},
	})}
}

// of is callerOf.
func (c callers) of(header http.Header) caller {
	values := header["Authorization"]
	if len(values) != 1 || len(values[0]) > tokenBytesMax {
		return caller{}
	}
	told, known := c.known.GetIfPresent(values[0])
	if !known {
		told = callerOf(header)
		c.known.Set(strings.Clone(values[0]), told)
	}
	return told
}

func cutBearer(authorization string) (token string, ok bool) {
	const scheme = "bearer "
	if len(authorization) < len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return "", false
	}
	return strings.TrimLeft(authorization[len(scheme):], " "), true
}

// laneOf returns the lane that decides for a user. REQUIRES: lanes is a power of two, at most partitions.
func laneOf(user string, lanes uint32) uint32 {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(user)) // It does not fail.
	return hash.Sum32() % partitions / (partitions / lanes)
}
