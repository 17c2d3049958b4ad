package projections

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheGuideToAFirstProjectionWorksAsWritten does what FIRST.md says, without touching the source: the compiler is given its files
// as an overlay.
func TestTheGuideToAFirstProjectionWorksAsWritten(t *testing.T) {
	text, err := os.ReadFile("FIRST.md")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	_, rest, _ := strings.Cut(string(text), "```go\n")
	for rest != "" {
		file, after, ended := strings.Cut(rest, "\n```\n")
		if !ended {
			t.Fatal("a block of FIRST.md has no end")
		}
		files = append(files, file+"\n")
		_, rest, _ = strings.Cut(after, "```go\n")
	}
	_, line, _ := strings.Cut(string(text), "```diff\n+")
	line, _, found := strings.Cut(line, "\n")
	if len(files) != 2 || !found {
		t.Fatalf("FIRST.md has %d files, want two, and a line for view.go: %t", len(files), found)
	}
	list, err := os.ReadFile("view.go")
	if err != nil {
		t.Fatal(err)
	}
	const opens = "var Projections = [...]*Projection{\n"
	before, after, found := strings.Cut(string(list), opens)
	if !found {
		t.Fatalf("view.go has no %q", opens)
	}
	after = strings.Replace(after, "\n}\n", "\n"+line+"\n}\n", 1)

	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, content := range map[string]string{
		"cancelreasons.go": files[0], "cancelreasons_test.go": files[1], "view.go": before + opens + after,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[filepath.Join(here, name)] = path
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "go", "test", "-overlay", path, "-run", "^TestTheReasonOfACancellationIsKept$", "-v", ".")
	out, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestTheReasonOfACancellationIsKept") {
		t.Fatalf("%v\n%s", err, out)
	}
}
