package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

func TestMistakesInAFileOfSecretsAreExplained(t *testing.T) {
	a, b := strings.Repeat("0a", gatewaySecretBytes), strings.Repeat("0b", gatewaySecretBytes)
	for text, want := range map[string]string{
		"":                                "no line with 64 hexadecimal digits",
		"# nothing\n\n":                   "no line with 64 hexadecimal digits",
		"abc":                             "line 1 does not begin with 64 hexadecimal digits",
		a + "\nabc\n":                     "line 2 does not begin with 64 hexadecimal digits",
		a + " since 2027-01-01T00:00:00Z": `line 1: after the digits comes "since"`,
		a + " from":                       `line 1: after "from" there is no time`,
		a + " from tomorrow":              "line 1: from \"tomorrow\" is no time",
		a + " from 2027-01-01T00:00:00Z from 2027-01-01T00:00:00Z": `line 1 says "from" twice`,
		a + "\n" + a:                      "lines 1 and 2 have the same secret",
		a + "\n" + b:                      "lines 1 and 2 are both used from the same time on",
		a + " until 2027-01-01T00:00:00Z": "line 1 is the newest secret",
		a + " until 2027-01-01T00:00:00Z\n" + b + " from 2027-01-02T00:00:00Z":                               "line 1 is good until a time at which line 2 is not used yet",
		a + "\n" + b + " from 2027-01-02T00:00:00Z until 2027-01-01T00:00:00Z":                               "line 2: until is not after from",
		strings.Repeat(fmt.Sprintf("%064x from 2027-01-02T00:00:00Z\n", 1), 1) + strings.Repeat(" ", 64<<10): "more than 65536 bytes",
	} {
		r := live(t, nil, "gateway", "check", "--gateway-secret-file", fileOf(t, "secret", text)).want(t, exitUsage)
		wantText(t, r.stderr, want)
		if strings.Contains(r.stdout+r.stderr, a) {
			t.Errorf("the secret is shown: %s", r.stderr)
		}
	}
	var many strings.Builder
	for i := range gatewaySecretsMax + 1 {
		fmt.Fprintf(&many, "%064x from %s\n", i, time.Unix(int64(i), 0).UTC().Format(time.RFC3339))
	}
	wantText(t, live(t, nil, "gateway", "check", "--gateway-secret-file", fileOf(t, "secret", many.String())).want(t, exitUsage).stderr, "17 secrets")
	wantText(t, live(t, nil, "gateway", "check").want(t, exitUsage).stderr, "nothing to check")
}

func TestCheckSaysWhatSecretsAreGoodForAndNotWhatTheyAre(t *testing.T) {
	a, b, c := strings.Repeat("0a", gatewaySecretBytes), strings.Repeat("0b", gatewaySecretBytes), strings.Repeat("0c", gatewaySecretBytes)
	file := fileOf(t, "secret", "# newest first\n"+c+"  from 2999-01-01T00:00:00Z\n"+b+" from 2020-01-01T00:00:00Z\n\n"+a+" until 2020-02-01T00:00:00Z\n")
	r := live(t, nil, "gateway", "check", "--gateway-secret-file", file).want(t, exitOK)
	golden(t, "output/gateway_check_secrets.table", strings.ReplaceAll(r.stdout, file, "SECRET"))
	r = live(t, nil, "gateway", "check", "--gateway-secret-file", file, "-o", "json").want(t, exitOK)
	golden(t, "output/gateway_check_secrets.json", r.stdout)
}

// A secret is replaced while the gateway runs: a ticket of the old one keeps its place, and is refused, with the reason, once that secret is gone.
func TestSecretsOfGatewaysAreRotatedWhileUsersWait(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--no-gateway")
	opens, closes := time.Now().Add(-time.Minute).UTC(), time.Now().Add(time.Hour).UTC()
	decided := fmt.Sprintf("room:\n  campaigns: [{campaign_id: rush, opens_at: %s, closes_at: %s}]\n", opens.Format(time.RFC3339), closes.Format(time.RFC3339))
	a, b := strings.Repeat("0a", gatewaySecretBytes), strings.Repeat("0b", gatewaySecretBytes)
	secrets := fileOf(t, "secret", a)
	lines, stop := startGateway(t, "--upstream", n.lines.API, "--token-key-dir", dir, "--gateway-secret-file", secrets, "--policy", fileOf(t, "policy.yaml", decided))
	alice := tokenFor(t, dir, "alice", "")
	rooms := roomv1connect.NewRoomServiceClient(http.DefaultClient, lines.Gateway)
	// wait returns the first that is said to who waits with a ticket.
	wait := func(ticket string) (*roomv1.WaitResponse, error) {
		ctx, call := connect.NewClientContext(t.Context())
		call.RequestHeader().Set("Authorization", "Bearer "+alice)
		stream, err := rooms.Wait(ctx, &roomv1.WaitRequest{Ticket: ticket})
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		if !stream.Receive() {
			return nil, stream.Err()
		}
		return stream.Msg(), nil
	}
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+alice)
	entered, err := rooms.Enter(ctx, &roomv1.EnterRequest{CampaignId: "rush"})
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(secrets, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(a + "\n" + b + " from 2020-01-01T00:00:00Z\n")
	var renewed string
	until(t, "a ticket of the new secret", func() (bool, string) {
		told, err := wait(entered.GetTicket())
		if err != nil {
			t.Fatalf("the ticket of the old secret: %v", err)
		}
		renewed = told.GetTicket()
		return renewed != "", told.String()
	})
	write("nonsense") // What is wrong changes nothing.
	if _, err := wait(renewed); err != nil {
		t.Errorf("the new ticket: %v", err)
	}
	write(b + "\n")
	until(t, "the old ticket is refused", func() (bool, string) {
		_, err := wait(entered.GetTicket())
		return connect.CodeOf(err) == connect.CodePermissionDenied && strings.Contains(err.Error(), "not in use any more"), fmt.Sprint(err)
	})
	if told, err := wait(renewed); err != nil || told.GetTicket() != "" {
		t.Errorf("the new ticket once the old secret is gone: %v, %v", told, err)
	}
	stop().want(t, exitOK)
}
