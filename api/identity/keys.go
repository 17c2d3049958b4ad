package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"

	"github.com/golang-jwt/jwt/v5"

	"github.com/weirhq/weir/api/secretfile"
)

// Limits on key material.
const (
	secretBytesMin   = 32   // RFC 7518 §3.2: at least the hash's size.
	rsaBitsMin       = 2048 // RFC 7518 §3.3.
	rsaBitsMax       = 8192 // A larger one only makes every verification slow.
	keyFileBytesMax  = 1 << 20
	keysPerSetMax    = 64
	keyIDBytesMax    = 256
	ecCoordinateSize = 32
)

// Keys are the keys whose signatures a verifier believes, each with its one algorithm.
type Keys struct{ keys []key }

type key struct {
	id     string // JWKS kid; empty when there is none.
	method jwt.SigningMethod
	public any // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey or []byte
}

// SecretKey believes HS256 signatures of the secret.
func SecretKey(secret []byte) (Keys, error) {
	if len(secret) < secretBytesMin {
		return Keys{}, fmt.Errorf("an HS256 secret needs at least %d bytes, not %d", secretBytesMin, len(secret))
	}
	return Keys{[]key{{method: jwt.SigningMethodHS256, public: bytes.Clone(secret)}}}, nil
}

// PublicKeyPEM believes signatures of the one public key in a PEM document: RS256 for an RSA key, ES256 for a P-256
// key, EdDSA for an Ed25519 key.
func PublicKeyPEM(document []byte) (Keys, error) {
	block, rest := pem.Decode(document)
	if block == nil {
		return Keys{}, errors.New("there is no PEM block in it")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return Keys{}, errors.New("there is more than one PEM block in it; give one public key, or a JWKS file")
	}
	var public any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return Keys{}, fmt.Errorf("it holds a %q; a verifier needs a \"PUBLIC KEY\"", block.Type)
	}
	if err != nil {
		return Keys{}, err
	}
	k, err := publicKey(public)
	if err != nil {
		return Keys{}, err
	}
	return Keys{[]key{k}}, nil
}

// publicKey pins the algorithm of a public key.
func publicKey(public crypto.PublicKey) (key, error) {
	switch public := public.(type) {
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < rsaBitsMin || bits > rsaBitsMax {
			return key{}, fmt.Errorf("an RSA key needs %d to %d bits, not %d", rsaBitsMin, rsaBitsMax, bits)
		}
		if public.E < 3 || public.E%2 == 0 {
			return key{}, fmt.Errorf("an RSA key cannot have the exponent %d", public.E)
		}
		return key{method: jwt.SigningMethodRS256, public: public}, nil
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return key{}, fmt.Errorf("an EC key needs the curve P-256, not %s", public.Curve.Params().Name)
		}
		return key{method: jwt.SigningMethodES256, public: public}, nil
	case ed25519.PublicKey:
		return key{method: jwt.SigningMethodEdDSA, public: public}, nil
	default:
		return key{}, fmt.Errorf("a %T is not an RSA, P-256 or Ed25519 key", public)
	}
}

// JWKS believes signatures of the keys in a JSON Web Key Set (RFC 7517). Keys for encryption are passed over. Secret
// keys are refused: a file of public keys is not kept like a secret. More than one key needs ids.
func JWKS(document []byte) (Keys, error) {
	var set struct {
		Keys []struct {
			KeyType   string   `json:"kty"`
			KeyID     string   `json:"kid"`
			Use       string   `json:"use"`
			Algorithm string   `json:"alg"`
			KeyOps    []string `json:"key_ops"`
			Curve     string   `json:"crv"`
			N         string   `json:"n"`
			E         string   `json:"e"`
			X         string   `json:"x"`
			Y         string   `json:"y"`
			D         string   `json:"d"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return Keys{}, fmt.Errorf("it is not a JSON Web Key Set: %w", err)
	}
	if len(set.Keys) > keysPerSetMax {
		return Keys{}, fmt.Errorf("it has %d keys, at most %d are read", len(set.Keys), keysPerSetMax)
	}
	var keys Keys
	ids := map[string]bool{}
	for i, entry := range set.Keys {
		if entry.Use != "" && entry.Use != "sig" {
			continue
		}
		fail := func(err error) (Keys, error) { return Keys{}, fmt.Errorf("key %d (kid %q): %w", i, entry.KeyID, err) }
		if entry.D != "" || entry.KeyType == "oct" {
			return fail(errors.New("it is a private or secret key; a verifier needs public ones"))
		}
		if len(entry.KeyID) > keyIDBytesMax {
			return fail(fmt.Errorf("a kid has at most %d bytes", keyIDBytesMax))
		}
		var public crypto.PublicKey
		var err error
		switch entry.KeyType {
		case "RSA":
			public, err = rsaKey(entry.N, entry.E)
		case "EC":
			public, err = p256Key(entry.Curve, entry.X, entry.Y)
		case "OKP":
			public, err = ed25519Key(entry.Curve, entry.X)
		default:
			err = fmt.Errorf("kty %q is not RSA, EC or OKP", entry.KeyType)
		}
		if err != nil {
			return fail(err)
		}
		k, err := publicKey(public)
		if err != nil {
			return fail(err)
		}
		if entry.Algorithm != "" && entry.Algorithm != k.method.Alg() {
			return fail(fmt.Errorf("alg %q does not go with this key, which signs %s", entry.Algorithm, k.method.Alg()))
		}
		if ids[entry.KeyID] {
			return fail(errors.New("two keys have this kid"))
		}
		ids[entry.KeyID] = true
		k.id = entry.KeyID
		keys.keys = append(keys.keys, k)
	}
	if len(keys.keys) == 0 {
		return Keys{}, errors.New("it has no key for signatures")
	}
	if len(keys.keys) > 1 && ids[""] {
		return Keys{}, errors.New("it has several keys, and one of them has no kid")
	}
	return keys, nil
}

func rsaKey(modulus, exponent string) (crypto.PublicKey, error) {
	n, err := base64.RawURLEncoding.DecodeString(modulus)
	if err != nil {
		return nil, fmt.Errorf("n: %w", err)
	}
	e, err := base64.RawURLEncoding.DecodeString(exponent)
	if err != nil {
		return nil, fmt.Errorf("e: %w", err)
	}
	if len(e) == 0 || len(e) > 4 || len(n) == 0 || len(n) > rsaBitsMax/8 {
		return nil, errors.New("n or e has an impossible size")
	}
	exp := new(big.Int).SetBytes(e).Int64()
	if exp > 1<<31-1 {
		return nil, errors.New("e is too large")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exp)}, nil
}

func p256Key(curve, xCoordinate, yCoordinate string) (crypto.PublicKey, error) {
	if curve != "P-256" {
		return nil, fmt.Errorf("an EC key needs the curve P-256, not %q", curve)
	}
	x, errX := base64.RawURLEncoding.DecodeString(xCoordinate)
	y, errY := base64.RawURLEncoding.DecodeString(yCoordinate)
	if errX != nil || errY != nil || len(x) != ecCoordinateSize || len(y) != ecCoordinateSize {
		return nil, fmt.Errorf("x and y need %d bytes each in base64url", ecCoordinateSize)
	}
	// The uncompressed form of SEC 1 §2.3.3. Parsing it checks that the point is on the curve.
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
}

func ed25519Key(curve, xCoordinate string) (crypto.PublicKey, error) {
	if curve != "Ed25519" {
		return nil, fmt.Errorf("an OKP key needs the curve Ed25519, not %q", curve)
	}
	x, err := base64.RawURLEncoding.DecodeString(xCoordinate)
	if err != nil || len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("x needs %d bytes in base64url", ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(x), nil
}

const (
	// SigningKeyFile is the name of a node's HS256 key in its data directory.
	SigningKeyFile       = "token.key"
	signingKeyPurpose    = "weir-token-key-hs256-v1"
	missingSigningKeyFmt = "there is no token key in %s: 'weir dev --data %[1]s' makes one when it starts"
)

// A SigningKey is an HS256 secret that mints tokens and verifies them.
type SigningKey struct{ secret []byte }

// Keys returns what a verifier needs.
func (k SigningKey) Keys() Keys {
	return Keys{[]key{{method: jwt.SigningMethodHS256, public: k.secret}}}
}

// OpenOrCreateSigningKey reads the token key in a data directory, or makes it, once, readable for its owner only.
func OpenOrCreateSigningKey(dir string) (SigningKey, error) {
	secret, err := secretfile.OpenOrCreate(filepath.Join(dir, SigningKeyFile), signingKeyPurpose)
	if err != nil {
		return SigningKey{}, fmt.Errorf("token key: %w", err)
	}
	return SigningKey{secret}, nil
}

// OpenSigningKey reads the token key in a data directory.
func OpenSigningKey(dir string) (SigningKey, error) {
	secret, err := secretfile.Open(filepath.Join(dir, SigningKeyFile), signingKeyPurpose)
	if errors.Is(err, os.ErrNotExist) {
		return SigningKey{}, fmt.Errorf(missingSigningKeyFmt, dir)
	}
	if err != nil {
		return SigningKey{}, fmt.Errorf("token key: %w", err)
	}
	return SigningKey{secret}, nil
}
