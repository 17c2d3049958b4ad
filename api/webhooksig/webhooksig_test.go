package webhooksig_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/api/webhooksig"
)

// The example that implementations of Standard Webhooks share.
const (
	knownSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	knownID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	knownBody      = `{"test": 2432232314}`
	knownSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var knownTime = time.Unix(1614265330, 0)

func mustParse(t *testing.T, text string) webhooksig.Secret {
	t.Helper()
	secret, err := webhooksig.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func signed(secrets ...webhooksig.Secret) http.Header {
	header := http.Header{}
	webhooksig.SetHeaders(header, secrets, knownID, knownTime, []byte(knownBody))
	return header
}

func TestSignatureIsThatOfTheStandardsExample(t *testing.T) {
	secret := mustParse(t, knownSecret)
	if got := webhooksig.Sign(secret, knownID, knownTime, []byte(knownBody)); got != knownSignature {
		t.Fatalf("got %s, want %s", got, knownSignature)
	}
	if err := webhooksig.Verify([]webhooksig.Secret{secret}, signed(secret), []byte(knownBody), knownTime, webhooksig.SkewMax); err != nil {
		t.Fatal(err)
	}
	if got := secret.Encode(); got != knownSecret {
		t.Fatalf("encoded to %s, want %s", got, knownSecret)
	}
}

func TestSecretsAreReplacedWithoutAGap(t *testing.T) {
	older, newer := webhooksig.NewSecret(), webhooksig.NewSecret()
	for name, test := range map[string]struct{ signs, verifies []webhooksig.Secret }{
		"the sender has both":   {[]webhooksig.Secret{older, newer}, []webhooksig.Secret{newer}},
		"the receiver has both": {[]webhooksig.Secret{older}, []webhooksig.Secret{newer, older}},
		"both have the new one": {[]webhooksig.Secret{newer}, []webhooksig.Secret{newer}},
	} {
		if err := webhooksig.Verify(test.verifies, signed(test.signs...), []byte(knownBody), knownTime, webhooksig.SkewMax); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := webhooksig.Verify([]webhooksig.Secret{newer}, signed(older), []byte(knownBody), knownTime, webhooksig.SkewMax); !errors.Is(err, webhooksig.ErrUnverified) {
		t.Errorf("signed by a secret that was replaced: got %v", err)
	}
}

func TestWhatIsNotSignedIsUnverified(t *testing.T) {
	secret := mustParse(t, knownSecret)
	set := func(name, value string) func(http.Header) { return func(h http.Header) { h.Set(name, value) } }
	for _, test := range []struct {
		name   string
		change func(http.Header)
		body   string
		now    time.Time
	}{
		{"no id", func(h http.Header) { h.Del(webhooksig.HeaderID) }, knownBody, knownTime},
		{"no timestamp", func(h http.Header) { h.Del(webhooksig.HeaderTimestamp) }, knownBody, knownTime},
		{"no signature", func(h http.Header) { h.Del(webhooksig.HeaderSignature) }, knownBody, knownTime},
		{"an empty signature", set(webhooksig.HeaderSignature, ""), knownBody, knownTime},
		{"another id", set(webhooksig.HeaderID, "msg_other"), knownBody, knownTime},
		{"a full stop in the id", set(webhooksig.HeaderID, "msg.1"), knownBody, knownTime},
		{"a huge id", set(webhooksig.HeaderID, strings.Repeat("x", 300)), knownBody, knownTime},
		{"a second id", func(h http.Header) { h.Add(webhooksig.HeaderID, knownID) }, knownBody, knownTime},
		{"a second signature header", func(h http.Header) { h.Add(webhooksig.HeaderSignature, knownSignature) }, knownBody, knownTime},
		{"another timestamp", set(webhooksig.HeaderTimestamp, "1614265331"), knownBody, knownTime},
		{"a timestamp that is none", set(webhooksig.HeaderTimestamp, "yesterday"), knownBody, knownTime},
		{"the timestamp written otherwise", set(webhooksig.HeaderTimestamp, "+1614265330"), knownBody, knownTime},
		{"a timestamp beyond any time", set(webhooksig.HeaderTimestamp, "9223372036854775807"), knownBody, knownTime},
		{"another body", func(http.Header) {}, knownBody + " ", knownTime},
		{"no body", func(http.Header) {}, "", knownTime},
		{"a signature that is no base64", set(webhooksig.HeaderSignature, "v1,!!!"), knownBody, knownTime},
		{"half a signature", set(webhooksig.HeaderSignature, knownSignature[:20]), knownBody, knownTime},
		{"an empty v1", set(webhooksig.HeaderSignature, "v1,"), knownBody, knownTime},
		{"another scheme alone", set(webhooksig.HeaderSignature, "v1a,"+knownSignature[3:]), knownBody, knownTime},
		{"very many signatures", set(webhooksig.HeaderSignature, strings.Repeat(knownSignature+" ", 17)), knownBody, knownTime},
		{"too old", func(http.Header) {}, knownBody, knownTime.Add(webhooksig.SkewMax + time.Second)},
		{"from the future", func(http.Header) {}, knownBody, knownTime.Add(-webhooksig.SkewMax - time.Second)},
	} {
		header := signed(secret)
		test.change(header)
		err := webhooksig.Verify([]webhooksig.Secret{secret}, header, []byte(test.body), test.now, webhooksig.SkewMax)
		var told *webhooksig.UnverifiedError
		if !errors.Is(err, webhooksig.ErrUnverified) || !errors.As(err, &told) || told.Problem == "" {
			t.Errorf("%s: got %v, want an UnverifiedError", test.name, err)
		}
	}
}

func TestSkewUpToTheLimitIsAccepted(t *testing.T) {
	secret := mustParse(t, knownSecret)
	for _, skew := range []time.Duration{-webhooksig.SkewMax, 0, webhooksig.SkewMax} {
		if err := webhooksig.Verify([]webhooksig.Secret{secret}, signed(secret), []byte(knownBody), knownTime.Add(skew), webhooksig.SkewMax); err != nil {
			t.Errorf("%s: %v", skew, err)
		}
	}
}

func TestSignatureOfAnotherSchemeBesideOursIsNoHarm(t *testing.T) {
	secret := mustParse(t, knownSecret)
	header := signed(secret)
	header.Set(webhooksig.HeaderSignature, "v1a,abc v2,xyz "+knownSignature)
	if err := webhooksig.Verify([]webhooksig.Secret{secret}, header, []byte(knownBody), knownTime, webhooksig.SkewMax); err != nil {
		t.Fatal(err)
	}
}

func TestBadSecretsAreRefusedAndNeverShown(t *testing.T) {
	for _, text := range []string{"", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2VjcmV0", "whsec_not base64 at all!", "whsec_" + strings.Repeat("QUJD", 30)} {
		if _, err := webhooksig.ParseSecret(text); err == nil {
			t.Errorf("%q was taken for a secret", text)
		} else if len(text) > 12 && strings.Contains(err.Error(), text[6:]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	secret := mustParse(t, knownSecret)
	for _, shown := range []string{fmt.Sprint(secret), fmt.Sprintf("%+v", secret), fmt.Sprintf("%#v", secret), fmt.Sprintf("%v", struct{ S webhooksig.Secret }{secret})} {
		if strings.Contains(shown, "MfKQ") || strings.Contains(shown, "[") {
			t.Errorf("printed as %s", shown)
		}
	}
}
