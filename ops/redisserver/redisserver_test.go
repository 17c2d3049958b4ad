package redisserver

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// ping asks what is at an address whether it is a Redis.
func ping(ctx context.Context, addr string) error {
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer client.Close()
	return client.Ping(ctx).Err()
}

func TestAServerAnswersUntilItsTestEnds(t *testing.T) {
	var s *Server
	t.Run("its test", func(t *testing.T) {
		s = Start(t)
		if err := ping(t.Context(), s.Addr); err != nil {
			t.Fatal(err)
		}
	})
	if err := ping(t.Context(), s.Addr); err == nil {
		t.Fatalf("something answers at %s", s.Addr)
	}
}

func TestAServerThatIsKilledIsStartedAgainAtItsAddress(t *testing.T) {
	s := Start(t)
	for range 3 {
		s.Kill()
		s.Kill()
		if err := ping(t.Context(), s.Addr); err == nil {
			t.Fatalf("a killed server answers at %s", s.Addr)
		}
		s = StartAt(t, s.Addr)
		if err := ping(t.Context(), s.Addr); err != nil {
			t.Fatal(err)
		}
	}
}

// A verdict is what a test of another test is told: it fails in it, and not here.
type verdict struct {
	testing.TB
	said string
}

func (v *verdict) Helper() {}

func (v *verdict) Fatal(arguments ...any) {
	v.said = fmt.Sprint(arguments...)
	panic(v)
}

func (v *verdict) Fatalf(format string, arguments ...any) { v.Fatal(fmt.Sprintf(format, arguments...)) }

// verdictOf returns how a test fails that does something, "" if it does not.
func verdictOf(t *testing.T, test func(tb testing.TB)) string {
	v := &verdict{TB: t}
	func() {
		defer func() {
			if r := recover(); r != nil && r != any(v) {
				panic(r)
			}
		}()
		test(v)
	}()
	return v.said
}

func TestATestWithoutARedisServerFailsAndSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	said := verdictOf(t, func(tb testing.TB) { Start(tb) })
	for _, want := range []string{"redis-server is not here", "make redis-server", "apt-get install redis-server"} {
		if !strings.Contains(said, want) {
			t.Errorf("the test fails with %q, want %q in it", said, want)
		}
	}
}

func TestATestWhoseServerDoesNotStartSaysWhatItSaid(t *testing.T) {
	if said := verdictOf(t, func(tb testing.TB) { Start(tb, "--no-such-setting", "1") }); !strings.Contains(said, "no-such-setting") {
		t.Errorf("the test fails with %q, want what redis-server says of its settings", said)
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if said := verdictOf(t, func(tb testing.TB) { StartAt(tb, taken.Addr().String()) }); !strings.Contains(said, "Address already in use") {
		t.Errorf("the test fails with %q, want that its address is taken", said)
	}
}
