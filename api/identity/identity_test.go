package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/weirhq/weir/api/identity"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// good returns the claims of a token that every verifier here accepts.
func good() jwt.MapClaims {
	return jwt.MapClaims{"iss": "weir", "aud": "weir", "sub": "ada", "exp": start.Add(time.Hour).Unix(), "scope": "act-as"}
}

func with(name string, value any) jwt.MapClaims {
	c := good()
	if value == nil {
		delete(c, name)
	} else {
		c[name] = value
	}
	return c
}

func sign(t testing.TB, method jwt.SigningMethod, k any, kid string, c jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	if kid != "" {
		token.Header["kid"] = kid
	}
	signed, err := token.SignedString(k)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func verifier(t testing.TB, keys identity.Keys, now func() time.Time) *identity.Verifier {
	t.Helper()
	v, err := identity.NewVerifier(identity.VerifierOptions{Keys: keys, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func atStart() time.Time { return start }

func secretKeys(t testing.TB) ([]byte, identity.Keys) {
	t.Helper()
	secret := []byte("0123456789abcdef0123456789abcdef")
	keys, err := identity.SecretKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return secret, keys
}

func TestTokenIsRefusedUnlessEveryClaimHolds(t *testing.T) {
	secret, keys := secretKeys(t)
	for _, test := range []struct {
		name   string
		claims jwt.MapClaims
		ok     bool
	}{
		{"good", good(), true},
		{"no scope", with("scope", nil), true},
		{"foreign scope", with("scope", "openid profile"), true},
		{"audience among others", with("aud", []string{"shop", "weir"}), true},
		{"no issuer", with("iss", nil), false},
		{"other issuer", with("iss", "weird"), false},
		{"no audience", with("aud", nil), false},
		{"other audience", with("aud", "shop"), false},
		{"no expiry", with("exp", nil), false},
		{"expired", with("exp", start.Add(-31*time.Second).Unix()), false},
		{"expired within the leeway", with("exp", start.Add(-29*time.Second).Unix()), true},
		{"expiry is text", with("exp", "tomorrow"), false},
		{"not yet", with("nbf", start.Add(time.Minute).Unix()), false},
		{"not yet, within the leeway", with("nbf", start.Add(20*time.Second).Unix()), true},
		{"no subject", with("sub", nil), false},
		{"empty subject", with("sub", ""), false},
		{"subject with a wildcard", with("sub", "*"), false},
		{"subject with a dot", with("sub", "a.b"), false},
		{"subject with a NUL", with("sub", "a\x00"), false},
		{"subject with a look-alike", with("sub", "аda"), false}, // The first letter is Cyrillic.
		{"subject of 64", with("sub", strings.Repeat("a", 64)), true},
		{"subject of 65", with("sub", strings.Repeat("a", 65)), false},
		{"subject is a number", with("sub", 7), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := verifier(t, keys, atStart)
			header := "Bearer " + sign(t, jwt.SigningMethodHS256, secret, "", test.claims)
			for range 2 { // The second one may come from the cache.
				p, err := v.Verify(header)
				if test.ok != (err == nil) || (err != nil) != errors.Is(err, identity.ErrUnauthenticated) || (p == nil) != (err != nil) {
					t.Fatalf("got %v, %v, want ok = %t", p, err, test.ok)
				}
			}
		})
	}
}

func TestHeaderThatIsNotABearerTokenIsRefused(t *testing.T) {
	secret, keys := secretKeys(t)
	v := verifier(t, keys, atStart)
	token := sign(t, jwt.SigningMethodHS256, secret, "", good())
	parts := strings.Split(token, ".")
	for name, header := range map[string]string{
		"nothing": "", "scheme only": "Bearer", "no token": "Bearer ", "basic": "Basic " + token, "bare token": token,
		"garbled": "Bearer abc.def.ghi", "two parts": "Bearer " + parts[0] + "." + parts[1], "no signature": "Bearer " + parts[0] + "." + parts[1] + ".",
		"cut": "Bearer " + token[:len(token)-3], "changed": "Bearer " + parts[0] + "." + parts[1] + "A." + parts[2], "two spaces": "Bearer  " + token,
		"trailing": "Bearer " + token + " ", "long": "Bearer " + strings.Repeat("a", identity.TokenBytesMax+1), "control": "Bearer \x00\x01",
	} {
		if p, err := v.Verify(header); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%s: got %v, %v, want ErrUnauthenticated", name, p, err)
		}
	}
	for _, header := range []string{"Bearer " + token, "bearer " + token, "BEARER " + token} {
		if _, err := v.Verify(header); err != nil {
			t.Errorf("%.7s…: %v", header, err)
		}
	}
}

// pair is a private key with what a verifier gets of it.
type pair struct {
	name    string
	method  jwt.SigningMethod
	private any
	public  crypto.PublicKey
}

func pairs(t testing.TB) []pair {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return []pair{
		{"RS256", jwt.SigningMethodRS256, r, &r.PublicKey},
		{"ES256", jwt.SigningMethodES256, e, &e.PublicKey},
		{"EdDSA", jwt.SigningMethodEdDSA, edPrivate, edPublic},
	}
}

func pemOf(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func jwkOf(t testing.TB, kid string, public crypto.PublicKey) map[string]string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	switch public := public.(type) {
	case *rsa.PublicKey:
		return map[string]string{"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": encode(public.N.Bytes()), "e": encode(big.NewInt(int64(public.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"kty": "EC", "crv": "P-256", "kid": kid, "x": encode(point[1:33]), "y": encode(point[33:])}
	case ed25519.PublicKey:
		return map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": encode(public)}
	default:
		t.Fatalf("no JWK for %T", public)
		return nil
	}
}

func jwksOf(t testing.TB, entries ...map[string]string) []byte {
	t.Helper()
	document, err := json.Marshal(map[string]any{"keys": entries})
	if err != nil {
		t.Fatal(err)
	}
	return document
}

func TestEachKindOfPublicKeyVerifiesItsOwnAlgorithmAlone(t *testing.T) {
	all := pairs(t)
	for _, signer := range all {
		for _, believed := range all {
			document := pemOf(t, believed.public)
			keys, err := identity.PublicKeyPEM(document)
			if err != nil {
				t.Fatal(err)
			}
			v := verifier(t, keys, atStart)
			_, err = v.Verify("Bearer " + sign(t, signer.method, signer.private, "", good()))
			if (err == nil) != (signer.name == believed.name) {
				t.Errorf("token signed %s, key %s: got %v", signer.name, believed.name, err)
			}
			// The classic: the public key, which everybody has, as an HMAC secret.
			for _, secret := range [][]byte{document, []byte(strings.TrimSpace(string(document)))} {
				if _, err := v.Verify("Bearer " + sign(t, jwt.SigningMethodHS256, secret, "", good())); err == nil {
					t.Errorf("a token signed HS256 with the public %s key passed", believed.name)
				}
			}
			if _, err := v.Verify("Bearer " + sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", good())); err == nil {
				t.Errorf("a token with alg=none passed the %s key", believed.name)
			}
		}
	}
}

func TestAlgorithmNoneAndLongerHashesAreRefusedForASecret(t *testing.T) {
	secret, keys := secretKeys(t)
	v := verifier(t, keys, atStart)
	for _, token := range []string{
		sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", good()),
		sign(t, jwt.SigningMethodHS512, secret, "", good()),
		strings.Replace(sign(t, jwt.SigningMethodHS256, secret, "", good()), "eyJhbGciOiJIUzI1NiIs", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"nOnE", `))+"", 1),
	} {
		if _, err := v.Verify("Bearer " + token); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("got %v, want ErrUnauthenticated", err)
		}
	}
	critical := jwt.NewWithClaims(jwt.SigningMethodHS256, good())
	critical.Header["crit"] = []string{"exp"}
	signed, err := critical.SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify("Bearer " + signed); err == nil {
		t.Error("a token with an unknown critical header passed")
	}
}

func TestKeySetPicksTheKeyByItsID(t *testing.T) {
	all := pairs(t)
	var entries []map[string]string
	for _, p := range all {
		entries = append(entries, jwkOf(t, "key-"+p.name, p.public))
	}
	entries = append(entries, map[string]string{"kty": "RSA", "use": "enc", "kid": "for-encryption"})
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, jwksOf(t, entries...), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := identity.ReadPublicKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	v := verifier(t, keys, atStart)
	for _, signer := range all {
		for _, kid := range []string{"", "key-RS256", "key-ES256", "key-EdDSA", "for-encryption", "unknown"} {
			_, err := v.Verify("Bearer " + sign(t, signer.method, signer.private, kid, good()))
			if (err == nil) != (kid == "key-"+signer.name) {
				t.Errorf("signed %s, kid %q: got %v", signer.name, kid, err)
			}
		}
	}
}

func TestOneKeyNeedsNoIDOnOneSide(t *testing.T) {
	p := pairs(t)[2]
	for _, test := range []struct {
		keyID, tokenID string
		ok             bool
	}{{"", "", true}, {"", "a", true}, {"a", "", true}, {"a", "a", true}, {"a", "b", false}} {
		keys, err := identity.JWKS(jwksOf(t, jwkOf(t, test.keyID, p.public)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifier(t, keys, atStart).Verify("Bearer " + sign(t, p.method, p.private, test.tokenID, good()))
		if (err == nil) != test.ok {
			t.Errorf("key %q, token %q: got %v", test.keyID, test.tokenID, err)
		}
	}
}

func TestWeakOrMixedUpKeyMaterialIsRefused(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all := pairs(t)
	private, err := x509.MarshalPKCS8PrivateKey(all[1].private)
	if err != nil {
		t.Fatal(err)
	}
	change := func(entry map[string]string, name, value string) map[string]string {
		entry[name] = value
		return entry
	}
	ec := func() map[string]string { return jwkOf(t, "a", all[1].public) }
	for name, read := range map[string]func() (identity.Keys, error){
		"short secret": func() (identity.Keys, error) { return identity.SecretKey([]byte("password")) },
		"no PEM":       func() (identity.Keys, error) { return identity.PublicKeyPEM([]byte("hello")) },
		"RSA 1024":     func() (identity.Keys, error) { return identity.PublicKeyPEM(pemOf(t, &weak.PublicKey)) },
		"P-384":        func() (identity.Keys, error) { return identity.PublicKeyPEM(pemOf(t, &p384.PublicKey)) },
		"private PEM": func() (identity.Keys, error) {
			return identity.PublicKeyPEM(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
		},
		"two PEM blocks": func() (identity.Keys, error) {
			return identity.PublicKeyPEM(append(pemOf(t, all[0].public), pemOf(t, all[1].public)...))
		},
		"JWKS: not JSON":     func() (identity.Keys, error) { return identity.JWKS([]byte("{")) },
		"JWKS: empty":        func() (identity.Keys, error) { return identity.JWKS([]byte(`{"keys":[]}`)) },
		"JWKS: secret":       func() (identity.Keys, error) { return identity.JWKS([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`)) },
		"JWKS: private":      func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, change(ec(), "d", "AAAA"))) },
		"JWKS: alg mixed up": func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, change(ec(), "alg", "HS256"))) },
		"JWKS: off the curve": func() (identity.Keys, error) {
			return identity.JWKS(jwksOf(t, change(ec(), "x", strings.Repeat("A", 43))))
		},
		"JWKS: other curve":    func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, change(ec(), "crv", "P-384"))) },
		"JWKS: short point":    func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, change(ec(), "x", "AAAA"))) },
		"JWKS: kid twice":      func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, ec(), ec())) },
		"JWKS: two, one no id": func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, ec(), jwkOf(t, "", all[2].public))) },
		"JWKS: RSA 1024":       func() (identity.Keys, error) { return identity.JWKS(jwksOf(t, jwkOf(t, "a", &weak.PublicKey))) },
	} {
		if _, err := read(); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

func TestCachedTokenStopsBeingGoodWhenItExpires(t *testing.T) {
	secret, keys := secretKeys(t)
	now := start
	v := verifier(t, keys, func() time.Time { return now })
	header := "Bearer " + sign(t, jwt.SigningMethodHS256, secret, "", good())
	for _, step := range []struct {
		at time.Duration
		ok bool
	}{{0, true}, {59 * time.Minute, true}, {time.Hour + 29*time.Second, true}, {time.Hour + 31*time.Second, false}, {2 * time.Hour, false}} {
		now = start.Add(step.at)
		if _, err := v.Verify(header); (err == nil) != step.ok {
			t.Fatalf("after %s: got %v, want ok = %t", step.at, err, step.ok)
		}
	}
}

func TestCacheIsBoundedAndStaysRightWhenItIsFull(t *testing.T) {
	key := newSigningKey(t)
	v := verifier(t, key.Keys(), atStart)
	var headers []string
	for i := range 100 {
		token, err := identity.Mint(key, fmt.Sprintf("user-%d", i), 0, start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, "Bearer "+token)
		if _, err := v.Verify(headers[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * identity.CacheTokensMax {
		identity.Remember(v, fmt.Sprintf("token-%06d", i), &identity.Principal{Subject: "other", Expires: start.Add(time.Hour)})
	}
	if n := identity.CachedTokens(v); n > identity.CacheTokensMax {
		t.Errorf("%d tokens are remembered, at most %d may be", n, identity.CacheTokensMax)
	}
	for i, header := range headers {
		p, err := v.Verify(header)
		if want := fmt.Sprintf("user-%d", i); err != nil || p.Subject != want {
			t.Fatalf("got %v, %v, want %s", p, err, want)
		}
	}
}

func TestVerifierServesManyGoroutines(t *testing.T) {
	key := newSigningKey(t)
	v := verifier(t, key.Keys(), atStart)
	var headers [8]string
	for i := range headers {
		token, err := identity.Mint(key, fmt.Sprintf("user-%d", i), 0, start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		headers[i] = "Bearer " + token
	}
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 500 {
				which := (i + worker) % len(headers)
				if p, err := v.Verify(headers[which]); err != nil || p.Subject != fmt.Sprintf("user-%d", which) {
					t.Errorf("got %v, %v, want user-%d", p, err, which)
					return
				}
			}
		})
	}
	group.Wait()
}

func newSigningKey(t testing.TB) identity.SigningKey {
	t.Helper()
	key, err := identity.OpenOrCreateSigningKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestMintedTokenVerifiesWithTheKeyInTheDataDirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := identity.OpenSigningKey(dir); err == nil || !strings.Contains(err.Error(), "weir dev --data "+dir) {
		t.Fatalf("got %v, want an error that says how the key is made", err)
	}
	if _, err := identity.OpenOrCreateSigningKey(dir); err != nil {
		t.Fatal(err)
	}
	key, err := identity.OpenSigningKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := verifier(t, key.Keys(), atStart)
	for _, scopes := range []identity.Scopes{0, identity.ScopeActAs, identity.ScopeOperator, identity.ScopeActAs | identity.ScopeOperator} {
		token, err := identity.Mint(key, "ada", scopes, start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		p, err := v.Verify("Bearer " + token)
		if err != nil || p.Subject != "ada" || p.Scopes != scopes || !p.Expires.Equal(start.Add(time.Hour)) {
			t.Fatalf("scopes %q: got %+v, %v", scopes, p, err)
		}
	}
	if _, err := verifier(t, newSigningKey(t).Keys(), atStart).Verify("Bearer " + mustMint(t, key)); err == nil {
		t.Error("a token of another directory's key passed")
	}
	for _, bad := range []struct {
		subject string
		ttl     time.Duration
	}{{"", time.Hour}, {"a b", time.Hour}, {"ada", 0}, {"ada", -time.Second}, {"ada", 1 << 62}} {
		if _, err := identity.Mint(key, bad.subject, 0, start, bad.ttl); err == nil {
			t.Errorf("minted a token for %q and %s", bad.subject, bad.ttl)
		}
	}
}

func mustMint(t testing.TB, key identity.SigningKey) string {
	t.Helper()
	token, err := identity.Mint(key, "ada", 0, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestScopeClaimIsReadWordByWord(t *testing.T) {
	for claim, want := range map[string]identity.Scopes{
		"": 0, "operator": identity.ScopeOperator, " act-as  operator ": identity.ScopeActAs | identity.ScopeOperator,
		"operators": 0, "Operator": 0, "operator,act-as": 0, "openid operator": identity.ScopeOperator,
	} {
		if got, _ := identity.ParseScopes(claim); got != want {
			t.Errorf("%q: got %q, want %q", claim, got, want)
		}
	}
	if _, unknown := identity.ParseScopes("operator admin"); len(unknown) != 1 || unknown[0] != "admin" {
		t.Errorf("unknown words: got %v, want [admin]", unknown)
	}
}

func BenchmarkVerifyHit(b *testing.B) {
	key := newSigningKey(b)
	v := verifier(b, key.Keys(), time.Now)
	token, err := identity.Mint(key, "ada", 0, time.Now(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	header := "Bearer " + token
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Verify(header); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkVerifyMiss(b *testing.B) {
	for _, p := range append(pairs(b), pair{name: "HS256", method: jwt.SigningMethodHS256}) {
		var keys identity.Keys
		var err error
		if p.private == nil {
			p.private, keys = secretKeys(b)
		} else {
			keys, err = identity.PublicKeyPEM(pemOf(b, p.public))
		}
		if err != nil {
			b.Fatal(err)
		}
		header := "Bearer " + sign(b, p.method, p.private, "", with("exp", start.Add(-time.Hour).Unix()))
		b.Run(p.name, func(b *testing.B) {
			v := verifier(b, keys, atStart) // An expired token is verified in full, and never remembered.
			for b.Loop() {
				if _, err := v.Verify(header); err == nil {
					b.Fatal("an expired token passed")
				}
			}
		})
	}
}
