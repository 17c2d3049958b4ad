package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// testTree builds the command tree without running it.
func testTree() *cobra.Command {
	p := &process{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, now: func() time.Time { return testTime }}
	return p.newRoot()
}

// everyCommand calls do with each command of the tree, but cobra's own completion and help.
func everyCommand(root *cobra.Command, do func(*cobra.Command)) {
	do(root)
	for _, c := range root.Commands() {
		if c.Name() != "help" && c.Name() != "completion" && !c.Hidden {
			everyCommand(c, do)
		}
	}
}

func TestHelpOfEveryCommandIsAsRecorded(t *testing.T) {
	everyCommand(testTree(), func(c *cobra.Command) {
		t.Run(c.CommandPath(), func(t *testing.T) {
			args := append(strings.Fields(c.CommandPath())[1:], "--help")
			r := weir(t, nil, args...).want(t, exitOK)
			golden(t, "help/"+strings.ReplaceAll(c.CommandPath(), " ", "_")+".txt", r.stdout)
		})
	})
}

func TestEveryCommandTeaches(t *testing.T) {
	everyCommand(testTree(), func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if c.Runnable() && !c.HasAvailableSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if width := len([]rune(line)); width > helpWidth+10 {
				t.Errorf("%s: a line of its help has %d columns: %s", c.CommandPath(), width, line)
			}
		}
	})
}

func TestAnUnknownCommandIsRefusedAtEveryLevel(t *testing.T) {
	everyCommand(testTree(), func(c *cobra.Command) {
		if !c.HasSubCommands() {
			return
		}
		r := weir(t, nil, append(strings.Fields(c.CommandPath())[1:], "nonesuch", "--sku", "x")...).want(t, exitUsage)
		wantText(t, r.stderr, fmt.Sprintf("unknown command %q for %q", "nonesuch", c.CommandPath()))
	})
	wantText(t, weir(t, nil, "-o", "json", "ordr").want(t, exitUsage).stderr, `did you mean \"order\"?`)
	wantText(t, weir(t, nil, "order", "--addr", "http://x", "plase").want(t, exitUsage).stderr, `did you mean "place"?`)
}

func TestAnUnknownFlagIsRefusedWithTheNearestOne(t *testing.T) {
	r := weir(t, nil, "order", "place", "--quantty", "2").want(t, exitUsage)
	wantText(t, r.stderr, "did you mean --quantity?", "see weir order place --help")
}

func TestCompletionScriptsAreMade(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		wantText(t, weir(t, nil, "completion", shell).want(t, exitOK).stdout, "weir")
	}
	wantText(t, weir(t, nil, "__complete", "order", "").want(t, exitOK).stdout, "place\t")
}

func TestEveryExitCodeIsInItsHelpPage(t *testing.T) {
	text := weir(t, nil, "help", "exit-codes").want(t, exitOK).stdout
	seen := map[exitCode]bool{}
	for _, e := range exitCodes {
		if seen[e.code] {
			t.Errorf("exit code %d is there twice", e.code)
		}
		seen[e.code] = true
		wantText(t, text, fmt.Sprintf("%3d  %s", e.code, e.name))
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	b := decode[build](t, weir(t, nil, "version", "-o", "json").want(t, exitOK).stdout)
	if b.NodeProtocol != nodeProtocol || b.LogFormat != 1 {
		t.Errorf("node protocol %d, log format %d; want %d and 1", b.NodeProtocol, b.LogFormat, nodeProtocol)
	}
	if b.Version == "" || !strings.HasPrefix(b.Go, "go1.") || b.Dependencies["connectrpc.com/connect"] == "" {
		t.Fatalf("got %+v", b)
	}
	wantText(t, weir(t, nil, "version").want(t, exitOK).stdout, b.Go, "platform", "node protocol", "log format")
}

func TestTheREADMEHasTheExitCodes(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(readme), "`", "")
	for _, e := range exitCodes {
		wantText(t, text, fmt.Sprintf("| %d | %s | %s |", e.code, e.name, e.meaning))
	}
}

func TestTheREADMEShowsWhatADevNodePrints(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{stdout: &bytes.Buffer{}, now: func() time.Time { return time.Date(2026, 11, 2, 9, 30, 0, 0, time.UTC) }}
	lines := devLines{API: "http://" + defaultListen, Node: "http://127.0.0.1:8081", Data: defaultData, Lanes: lanesOfDev, Sandbox: "http://127.0.0.1:45489"}
	lines.Customer.User, lines.Customer.Token = devCustomer, "eyJhbGciOi…"
	lines.Operator.User, lines.Operator.Token = devOperator, "eyJhbGciOi…"
	printed := strings.ReplaceAll(p.devText(&node{}, lines, true), commandName(), "go run ./cmd/weir")
	wantText(t, string(readme), "$ go run ./cmd/weir dev --demo\n"+printed)
}

// TestTheArchitecturePagesNameFunctionsThatExist reads every "file: function" of ARCHITECTURE.md and of the pages of paths.
func TestTheArchitecturePagesNameFunctionsThatExist(t *testing.T) {
	for _, page := range []string{"ARCHITECTURE.md", "api/PATHS.md", "gateway/PATHS.md", "projections/PATHS.md"} {
		text, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`([a-z0-9/_]+\\.go): ([A-Za-z]+)`").FindAllStringSubmatch(string(text), -1)
		if len(named) < 15 {
			t.Fatalf("found %d places in %s: the page was not read", len(named), page)
		}
		for _, place := range named {
			path := "../../" + place[1]
			if !strings.Contains(place[1], "/") {
				path = place[1]
			}
			source, err := os.ReadFile(path)
			if err != nil {
				t.Errorf("%s names %s: %v", page, place[1], err)
				continue
			}
			if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + place[2] + `[\[(]`).Match(source) {
				t.Errorf("%s names %s in %s, and it is not there", page, place[2], place[1])
			}
		}
	}
}
