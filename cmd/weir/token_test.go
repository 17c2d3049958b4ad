package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/api/identity"
)

// tokenDir is a data directory with a token key, and its verifier.
func tokenDir(t *testing.T) (string, *identity.Verifier) {
	t.Helper()
	dir := t.TempDir()
	key, err := identity.OpenOrCreateSigningKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := identity.NewVerifier(identity.VerifierOptions{Keys: key.Keys(), Now: func() time.Time { return testTime }})
	if err != nil {
		t.Fatal(err)
	}
	return dir, verifier
}

func TestATokenIsPrintedAloneOnALineAndVerifies(t *testing.T) {
	dir, verifier := tokenDir(t)
	for scope, want := range map[string]identity.Scopes{
		"": 0, "act-as": identity.ScopeActAs, "operator": identity.ScopeOperator, "act-as,operator": identity.ScopeActAs | identity.ScopeOperator,
	} {
		r := weir(t, nil, "token", "--data", dir, "--user", "alice", "--scope", scope, "--ttl", "1h").want(t, exitOK)
		token, ok := strings.CutSuffix(r.stdout, "\n")
		if !ok || strings.ContainsAny(token, " \n") {
			t.Fatalf("got %q, want one line", r.stdout)
		}
		principal, err := verifier.Verify("Bearer " + token)
		if err != nil {
			t.Fatal(err)
		}
		if principal.Subject != "alice" || principal.Scopes != want || !principal.Expires.Equal(testTime.Add(time.Hour)) {
			t.Errorf("scope %q: got %+v", scope, principal)
		}
	}
}

func TestABadTokenRequestIsRefused(t *testing.T) {
	dir, _ := tokenDir(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--data", dir}, "needs --user"},
		{[]string{"--data", dir, "--user", "a b"}, "a user id has"},
		{[]string{"--data", dir, "--user", "a", "--scope", "operater"}, `did you mean "operator"?`},
		{[]string{"--data", dir, "--user", "a", "--ttl", "-1h"}, "--ttl must be more than 0"},
		{[]string{"--data", dir + "/none", "--user", "a"}, "there is no data directory"},
	} {
		wantText(t, weir(t, nil, append([]string{"token"}, c.args...)...).want(t, exitUsage).stderr, c.want)
	}
	empty := t.TempDir()
	wantText(t, weir(t, nil, "token", "--data", empty, "--user", "a").want(t, exitFailure).stderr, "there is no token key in "+empty)
}
