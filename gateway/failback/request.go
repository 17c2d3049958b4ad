package failback

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// A Request is what is made again.
type Request struct {
	// User and ID name it, as the node's ledger does: the same again has no further effect (I4).
	User string `json:"user"`
	ID   string `json:"id"`
	// Method, Header and Body are what is sent.
	Method string              `json:"method"`
	Header map[string][]string `json:"header,omitempty"`
	Body   []byte              `json:"body,omitempty"`
}

// nameBytesMax bounds what names a request.
const nameBytesMax = 256

func (r Request) validate() error {
	for name, value := range map[string]string{"user": r.User, "id": r.ID, "method": r.Method} {
		if value == "" || len(value) > nameBytesMax {
			return fmt.Errorf("a request that is kept for later has a %s of 1 to %d bytes, not of %d", name, nameBytesMax, len(value))
		}
	}
	return nil
}

// key names the request on the server: ids are not put into subjects as they are.
func (r Request) key() string {
	hash := sha256.New()
	var length [8]byte
	for _, part := range []string{r.User, r.ID} {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		hash.Write(length[:])
		hash.Write([]byte(part))
	}
	return hex.EncodeToString(hash.Sum(nil)[:16])
}

// same reports whether two requests of one key ask for the same. Credentials in headers may have been renewed.
func (r Request) same(other Request) bool {
	return r.User == other.User && r.ID == other.ID && r.Method == other.Method && bytes.Equal(r.Body, other.Body)
}

// A sealer makes records of requests that only who has the key can read: format, nonce, and AES-256-GCM of the request as JSON,
// bound to its name on the server.
type sealer struct {
	// aeads open what was sealed with any of the keys. The first one seals.
	aeads []cipher.AEAD
}

const formatSealed = 1

func newSealer(key []byte, older ...[]byte) (*sealer, error) {
	s := &sealer{}
	for _, key := range append([][]byte{key}, older...) {
		if len(key) != 32 {
			return nil, fmt.Errorf("the key that seals requests has %d bytes; make one of 32 random bytes, the same for all gateways", len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s.aeads = append(s.aeads, aead)
	}
	return s, nil
}

func (s *sealer) seal(r Request) []byte {
	plain, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("failback: strings and bytes do not become JSON: %v", err))
	}
	return s.aeads[0].Seal([]byte{formatSealed}, nil, plain, []byte(r.key()))
}

var errSealed = errors.New("it cannot be opened with this gateway's keys, or it is damaged")

func (s *sealer) open(key string, record []byte) (r Request, err error) {
	if len(record) == 0 || record[0] != formatSealed {
		return r, errors.New("it is in a format that this version does not know")
	}
	for _, aead := range s.aeads {
		plain, err := aead.Open(nil, nil, record[1:], []byte(key))
		if err != nil {
			continue
		}
		if err := json.Unmarshal(plain, &r); err != nil {
			return r, fmt.Errorf("it cannot be read: %w", err)
		}
		return r, nil
	}
	return r, errSealed
}
