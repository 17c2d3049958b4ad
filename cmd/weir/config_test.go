package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/lanes"
)

// configFile writes a configuration file.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weir.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestASettingComesFromFlagThenEnvironmentThenFile(t *testing.T) {
	flagged, fromEnv, fromFile := newShop(t), newShop(t), newShop(t)
	file := configFile(t, "# where the shop is\naddr: "+fromFile.url+"\ntoken: file-token\ntimeout: 3s\n")
	for _, c := range []struct {
		name  string
		env   []string
		args  []string
		shop  *shop
		token string
	}{
		{"flag", []string{"WEIR_ADDR=" + fromEnv.url, "WEIR_TOKEN=env-token"}, []string{"--addr", flagged.url, "--token", "flag-token", "--config", file}, flagged, "flag-token"},
		{"environment", []string{"WEIR_ADDR=" + fromEnv.url, "WEIR_TOKEN=env-token"}, []string{"--config", file}, fromEnv, "env-token"},
		{"file", nil, []string{"--config", file}, fromFile, "file-token"},
		{"file named by the environment", []string{"WEIR_CONFIG=" + file}, nil, fromFile, "file-token"},
		{"empty variables count as not there", []string{"WEIR_CONFIG=" + file, "WEIR_ADDR=", "WEIR_TOKEN="}, nil, fromFile, "file-token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.shop.calls.Load()
			weir(t, c.env, append([]string{"order", "list"}, c.args...)...).want(t, exitOK)
			if c.shop.calls.Load() != before+1 {
				t.Fatal("the call went to another address")
			}
			if got := c.shop.token.Load(); got != "Bearer "+c.token {
				t.Fatalf("authorization %q, want the token %q", got, c.token)
			}
		})
	}
}

func TestWhatANodesLanesWaitForIsASetting(t *testing.T) {
	file := configFile(t, "stock-wait: 3s\npayment-grace: 3m\n")
	for _, c := range []struct {
		name         string
		env, args    []string
		config       string
		stock, grace time.Duration
	}{
		{"flag", []string{"WEIR_STOCK_WAIT=2s", "WEIR_PAYMENT_GRACE=2m"}, []string{"--stock-wait", "1s", "--payment-grace", "1m"}, file, time.Second, time.Minute},
		{"environment", []string{"WEIR_STOCK_WAIT=2s", "WEIR_PAYMENT_GRACE=2m"}, nil, file, 2 * time.Second, 2 * time.Minute},
		{"file", nil, nil, file, 3 * time.Second, 3 * time.Minute},
		{"default", nil, nil, "", lanes.StockWaitDefault, lanes.PaymentGraceDefault},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &process{stderr: io.Discard, environ: c.env}
			f, root, cmd := &nodeFlags{}, &cobra.Command{}, &cobra.Command{Run: func(*cobra.Command, []string) {}}
			f.add(cmd)
			root.AddCommand(cmd)
			if err := cmd.ParseFlags(c.args); err != nil {
				t.Fatal(err)
			}
			if err := p.configure(root, cmd, c.config); err != nil {
				t.Fatal(err)
			}
			options, err := f.finish(lanesOfDev)
			if err != nil {
				t.Fatal(err)
			}
			// What the lanes of such a node are opened with.
			got := (&node{options: options, log: &openLog{}}).laneOptions()
			if got.StockWait != c.stock || got.PaymentGrace != c.grace {
				t.Errorf("the lanes wait %s for stock and give %s of grace, want %s and %s", got.StockWait, got.PaymentGrace, c.stock, c.grace)
			}
		})
	}
}

func TestABadConfigurationFileIsRefusedWithItsLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "token: a\nadr: http://x\n", `weir.yaml:2: unknown key "adr"; did you mean "addr"?`},
		{"unknown key like no other", "zebra: 1\n", `weir.yaml:1: unknown key "zebra"`},
		{"one call's flag is no key", "sku: tea\n", `weir.yaml:1: unknown key "sku"`},
		{"bad value", "timeout: soon\n", `weir.yaml:1: "soon" is not a value for timeout`},
		{"twice", "token: a\ntoken: b\n", `weir.yaml:2: key "token" is there twice, first on line 1`},
		{"list", "token: [a]\n", `weir.yaml:1: key "token" wants one value`},
		{"no mapping", "- token\n", `weir.yaml:1: want "key: value" lines`},
		{"no YAML", "token: \"a\n", `weir.yaml`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := weir(t, nil, "order", "list", "--config", configFile(t, c.text)).want(t, exitUsage)
			wantText(t, r.stderr, c.want)
		})
	}
	wantText(t, weir(t, nil, "order", "list", "--config", "/nonexistent/weir.yaml").want(t, exitUsage).stderr, "/nonexistent/weir.yaml", "check --config")
	weir(t, nil, "version", "--config", configFile(t, "# nothing yet\n")).want(t, exitOK)
}

func TestABadVariableIsRefusedByName(t *testing.T) {
	r := weir(t, []string{"WEIR_TIMEOUT=soon"}, "order", "list").want(t, exitUsage)
	wantText(t, r.stderr, "WEIR_TIMEOUT", "soon")
}

func TestAMisspeltVariableIsPointedOut(t *testing.T) {
	r := weir(t, []string{"WEIR_TOKN=x", "WEIR_SOMETHING_ELSE=y"}, "version").want(t, exitOK)
	wantText(t, r.stderr, `WEIR_TOKN is no setting; did you mean "WEIR_TOKEN"?`)
	if r.stderr != "weir: warning: WEIR_TOKN is no setting; did you mean \"WEIR_TOKEN\"?\n" {
		t.Fatalf("got %q", r.stderr)
	}
}

func TestEverySettingIsInItsHelpPage(t *testing.T) {
	text := weir(t, nil, "help", "config").want(t, exitOK).stdout
	for name := range settingsOf(testTree()) {
		wantText(t, text, "\n"+name, envName(name))
	}
}

func TestSettingsOfTheSameNameMeanTheSame(t *testing.T) {
	for name, flags := range settingsOf(testTree()) {
		for _, flag := range flags {
			if flag.Usage != flags[0].Usage || flag.DefValue != flags[0].DefValue || flag.Value.Type() != flags[0].Value.Type() {
				t.Errorf("--%s is %q (%s) on one command and %q (%s) on another", name, flags[0].Usage, flags[0].DefValue, flag.Usage, flag.DefValue)
			}
		}
	}
}
