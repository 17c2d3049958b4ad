package freeports

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// childEnv makes the test's binary print ports and wait until its input ends.
const childEnv = "WEIR_FREEPORTS_CHILD"

func TestPortsAreGivenOnce(t *testing.T) {
	const count = 3 * blockPorts / 2 // Of two blocks.
	addresses := Addresses(t, count)
	if os.Getenv(childEnv) != "" {
		if _, err := os.Stdout.WriteString(strings.Join(addresses, " ") + "\n"); err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	seen := map[string]bool{}
	take := func(who string, addresses []string) {
		for _, address := range addresses {
			if seen[address] {
				t.Errorf("%s got %s, which was given before", who, address)
			}
			seen[address] = true
		}
	}
	take("this process", addresses)
	take("this process, later", Addresses(t, count))
	for _, who := range []string{"a second process", "a third process"} {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPortsAreGivenOnce$")
		child.Env = append(os.Environ(), childEnv+"=1")
		in, err := child.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { // It keeps its ports until all have theirs.
			_ = in.Close()
			if err := child.Wait(); err != nil {
				t.Errorf("%s: %v", who, err)
			}
		}()
		text := make([]byte, count*len("127.0.0.1:65535 "))
		n, err := out.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text[:n]), "\n")
		got := strings.Fields(line)
		if len(got) != count {
			t.Fatalf("%s got %d ports, want %d: %q", who, len(got), count, line)
		}
		take(who, got)
	}
}

func TestAPortThatIsInUseIsNotGiven(t *testing.T) {
	Take(t, 1) // There is a block now.
	reserved.mu.Lock()
	if len(reserved.free) == 0 {
		if err := reserve(); err != nil {
			t.Fatal(err)
		}
	}
	next := address(reserved.free[len(reserved.free)-1])
	reserved.mu.Unlock()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", next)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if got := Addresses(t, 1)[0]; got == next {
		t.Fatalf("got %s, where somebody listens", got)
	}
}
