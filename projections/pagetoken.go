package projections

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// ErrBadPageToken says that a page token was not made by this service, or for another query.
var ErrBadPageToken = errors.New("the page token is not one of this query")

// pageKeyBytesMin is the least length of the key that page tokens are sealed with.
const pageKeyBytesMin = 16

// pageMACBytes is how much of the HMAC-SHA-256 a token carries.
const pageMACBytes = 16

// pageSeal seals page tokens: the cursor and a MAC over it and the query that it belongs to, in URL-safe base64.
type pageSeal struct{ key []byte }

// seal returns a token for a cursor. query is what the token is bound to; every part of it counts.
func (s pageSeal) seal(cursor []byte, query ...string) string {
	return base64.RawURLEncoding.EncodeToString(append(s.mac(cursor, query), cursor...))
}

// open returns the cursor of a token, or ErrBadPageToken.
func (s pageSeal) open(token string, query ...string) ([]byte, error) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(data) < pageMACBytes {
		return nil, ErrBadPageToken
	}
	cursor := data[pageMACBytes:]
	if !hmac.Equal(data[:pageMACBytes], s.mac(cursor, query)) {
		return nil, ErrBadPageToken
	}
	return cursor, nil
}

func (s pageSeal) mac(cursor []byte, query []string) []byte {
	h := hmac.New(sha256.New, s.key)
	var length [8]byte
	for _, part := range query {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	h.Write(cursor)
	return h.Sum(nil)[:pageMACBytes]
}
