package weir_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// modulePath is this module's; what does not start with it or with a domain name is the standard library.
const modulePath = "github.com/weirhq/weir"

// A room is a folder with what lies below it, except for rooms further down.
type room struct {
	path string
	// may lists the other rooms that it imports. "*" is every room but cmd.
	may []string
	// inTests lists the rooms that its _test.go files import on top of that.
	inTests []string
	// only lists the modules of others that it imports; nil means any that guarded allows.
	only []string
	// never lists parts of the standard library that it does not import, in its tests it may.
	never []string
}

// impure is I/O, randomness, concurrency and logging. The clock is in package time, where the linter looks for it.
var impure = []string{"os", "net", "io/fs", "log", "math/rand", "crypto/rand", "sync", "context", "os/exec", "syscall", "runtime"}

// rooms holds the arrows between the folders (ARCHITECTURE.md draws them). A folder without a room here is an error.
var rooms = []room{
	{path: "."},
	{path: "domain", only: []string{}, never: impure, inTests: []string{"domain/stored"}},
	{
		// stored writes domain events down as the generated types that the log keeps.
		path: "domain/stored", may: []string{"domain", "proto/stored/weir/event"},
		only: []string{"google.golang.org/protobuf"}, never: impure,
	},
	{path: "eventstore", may: []string{"proto/stored/weir/log"}, inTests: []string{"eventstore/embedded"}},
	{path: "eventstore/embedded", may: []string{"eventstore"}},
	// ownership shares lanes among nodes; the nodes, gateways and operators read what it writes.
	{path: "eventstore/ownership", may: []string{"eventstore", "proto"}, inTests: []string{"eventstore/embedded"}},
	{path: "projections", may: []string{"projections/readpath", "eventstore", "domain", "domain/stored"}, inTests: []string{"eventstore/embedded"}},
	// The read path caches anything for anybody.
	{path: "projections/readpath"},
	{
		path: "api", may: []string{
			"api/lanes", "api/payments", "api/reactors", "api/webhooksig", "projections", "projections/readpath", "eventstore", "eventstore/ownership", "domain", "domain/stored", "proto",
		},
		inTests: []string{"api/courier", "eventstore/embedded"},
	},
	{
		// The courier has the lanes of other nodes decide; its messages are held to the generated types by tests.
		path: "api/courier", may: []string{"api/lanes", "eventstore", "domain"},
		inTests: []string{"projections", "eventstore/embedded", "proto"},
	},
	{
		path: "api/lanes", may: []string{"projections", "eventstore", "domain", "domain/stored"},
		inTests: []string{"eventstore/embedded", "eventstore/ownership"},
	},
	// The ports to payment providers know no log and no wire but the providers'.
	{path: "api/payments", may: []string{"api/webhooksig", "domain"}},
	{path: "api/webhooksig"},
	{
		path: "api/reactors", may: []string{"api/lanes", "api/webhooksig", "projections", "eventstore", "domain", "domain/stored", "proto"},
		inTests: []string{"eventstore/embedded"},
	},
	{
		path: "api/reactors/paying", may: []string{"api/lanes", "api/payments", "api/reactors", "projections", "eventstore", "domain", "domain/stored"},
	},
	{
		path: "api/reactors/points", may: []string{"api/lanes", "api/reactors", "domain", "domain/stored"},
		inTests: []string{"projections", "eventstore"},
	},
	{path: "gateway", may: []string{"proto"}, inTests: []string{"eventstore/embedded"}},
	{path: "ops", may: []string{"*"}},
	{path: freePorts},
	{path: redisServer, may: []string{freePorts}},
	{path: "cmd", may: []string{"*"}},
	{path: "proto"},
	{path: "proto/stored/weir/log"},
	{path: "proto/stored/weir/event"},
}

// guarded lists modules of others with the rooms that may import them. Tests may import any of them,
// except those of rooms that list their modules in only.
var guarded = map[string][]string{
	"github.com/nats-io/nats.go":     {"eventstore", "eventstore/embedded", "eventstore/ownership", "gateway", "cmd", "ops"},
	"github.com/nats-io/nats-server": {"eventstore/embedded"},
	"github.com/cockroachdb/pebble":  {"projections", "api/lanes", "api/reactors", "api/reactors/paying"},
	"github.com/redis/go-redis":      {"projections", "gateway", "cmd", "ops"},
	"connectrpc.com":                 {"proto", "api", "gateway", "cmd", "ops"},
	"github.com/spf13":               {"cmd", "ops"},
	"github.com/stripe/stripe-go":    {"api/payments"},
	"pgregory.net/rapid":             {},
	"github.com/anishathalye":        {"ops"},
	"github.com/stretchr/testify":    {},
}

// freePorts and redisServer are for the tests of every room.
const (
	freePorts   = "ops/freeports"
	redisServer = "ops/redisserver"
)

// testTools are modules for tests that also the tests of rooms with a closed list import.
var testTools = []string{"pgregory.net/rapid"}

func TestImportsFollowTheArrows(t *testing.T) {
	wrong, seen, err := importViolations(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	// A test that looked at nothing would be green for ever.
	if seen < 50 {
		t.Fatalf("saw %d imports in the whole module: the test did not find the source", seen)
	}
	for _, violation := range wrong {
		t.Error(violation)
	}
}

func TestPlantedImportsTripTheArrows(t *testing.T) {
	const pebble, nats = "github.com/cockroachdb/pebble/v2", "github.com/nats-io/nats.go/jetstream"
	for _, plant := range []struct {
		file, imports string
		allowed       bool
	}{
		{"domain/order.go", "os", false},
		{"domain/order.go", "math/rand/v2", false},
		{"domain/order.go", "time", true},
		{"domain/order.go", "google.golang.org/protobuf/proto", false},
		{"domain/order.go", modulePath + "/domain/stored", false},
		{"domain/order_test.go", modulePath + "/domain/stored", true},
		{"domain/order_test.go", "pgregory.net/rapid", true},
		{"domain/order_test.go", modulePath + "/eventstore", false},
		{"domain/order_test.go", modulePath + "/ops/freeports", true},
		{"domain/order.go", modulePath + "/ops/freeports", false},
		{"gateway/hall_test.go", modulePath + "/ops/redisserver", true},
		{"gateway/hall.go", modulePath + "/ops/redisserver", false},
		{"ops/redisserver/redisserver.go", modulePath + "/ops/launch", false},
		{"domain/order.go", "pgregory.net/rapid", false},
		{"domain/stored/codec.go", "google.golang.org/protobuf/proto", true},
		{"domain/stored/codec.go", modulePath + "/proto/stored/weir/event/v1", true},
		{"domain/stored/codec.go", modulePath + "/proto/weir/order/v1", false},
		{"eventstore/log.go", nats, true},
		{"eventstore/log.go", modulePath + "/domain", false},
		{"eventstore/log.go", modulePath + "/eventstore/embedded", false},
		{"eventstore/log_test.go", modulePath + "/eventstore/embedded", true},
		{"eventstore/log_test.go", modulePath + "/domain", false},
		{"eventstore/log.go", "github.com/nats-io/nats-server/v2/server", false},
		{"projections/runner.go", modulePath + "/eventstore", true},
		{"projections/runner.go", modulePath + "/api/lanes", false},
		{"projections/runner.go", nats, false},
		{"projections/reads.go", modulePath + "/projections/readpath", true},
		{"projections/readpath/cache.go", modulePath + "/domain", false},
		{"projections/readpath/cache.go", pebble, false},
		{"projections/runner.go", "github.com/cockroachdb/pebbles", true},
		{"api/order.go", pebble, false},
		{"api/lanes/machine.go", pebble, true},
		{"api/reactors/track.go", pebble, true},
		{"api/reactors/feed.go", nats, false},
		{"api/lanes/machine.go", modulePath + "/api/reactors", false},
		{"api/order.go", nats, false},
		{"api/attacktest/attack.go", nats, false},
		{"api/attacktest/attack_test.go", nats, true},
		{"api/attacktest/attack.go", modulePath + "/cmd/weir", false},
		{"api/payments/payments.go", modulePath + "/eventstore", false},
		{"api/payments/stripe/stripe.go", "github.com/stripe/stripe-go/v85", true},
		{"api/orders.go", "github.com/stripe/stripe-go/v85", false},
		{"api/orders.go", modulePath + "/api/payments", true},
		{"gateway/proxy.go", modulePath + "/eventstore", false},
		{"ops/bench/bench.go", modulePath + "/cmd/weir", false},
		{"cmd/weir/dev.go", modulePath + "/eventstore/embedded", true},
		{"proto/weir/order/v1/order.pb.go", modulePath + "/domain", false},
		{"somewhere/new.go", "fmt", false},
	} {
		source := fmt.Sprintf("package planted\n\nimport _ %q\n", plant.imports)
		violations, err := fileViolations(plant.file, source)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(violations.wrong) == 0; got != plant.allowed {
			t.Errorf("%s imports %s: allowed = %t, want %t", plant.file, plant.imports, got, plant.allowed)
		}
	}
}

// importViolations reads the imports of every Go file of the module and returns what breaks an arrow, and how many
// imports it saw.
func importViolations(module fs.FS) (wrong []string, seen int, err error) {
	err = fs.WalkDir(module, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata"):
			return fs.SkipDir
		case entry.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		source, err := fs.ReadFile(module, name)
		if err != nil {
			return err
		}
		found, err := fileViolations(name, string(source))
		wrong, seen = append(wrong, found.wrong...), seen+found.seen
		return err
	})
	return wrong, seen, err
}

type violations struct {
	wrong []string
	seen  int
}

// fileViolations reads the imports of one file; name is its slash-separated path in the module.
func fileViolations(name, source string) (violations, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
	if err != nil {
		return violations{}, err
	}
	found := violations{seen: len(file.Imports)}
	from, known := roomOf(path.Dir(name))
	if !known {
		found.wrong = []string{fmt.Sprintf("%s is in no room: give its folder one in arrows_test.go", name)}
		return found, nil
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return found, err
		}
		if why := from.refuses(imported, strings.HasSuffix(name, "_test.go")); why != "" {
			found.wrong = append(found.wrong, fmt.Sprintf("%s imports %s: %s", name, imported, why))
		}
	}
	return found, nil
}

// roomOf returns the room that is nearest above the folder.
func roomOf(folder string) (nearest room, known bool) {
	for _, candidate := range rooms {
		if (folder == candidate.path || within(folder, candidate.path)) && len(candidate.path) >= len(nearest.path) {
			nearest, known = candidate, true
		}
	}
	return nearest, known
}

// refuses says why the room may not import a package, or "" when it may.
func (r room) refuses(imported string, inTest bool) string {
	if folder, ours := strings.CutPrefix(imported, modulePath); ours && (folder == "" || folder[0] == '/') {
		to, known := roomOf(strings.TrimPrefix(folder, "/"))
		switch {
		case !known:
			return "it is in no room"
		case to.path == r.path || slices.Contains(r.may, to.path):
			return ""
		case slices.Contains(r.may, "*") && to.path != "cmd":
			return ""
		case inTest && (slices.Contains(r.inTests, to.path) || to.path == freePorts || to.path == redisServer):
			return ""
		}
		return fmt.Sprintf("no arrow from %s to %s", r.path, to.path)
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		if !inTest && containsPath(r.never, imported) {
			return r.path + " is pure"
		}
		return ""
	}
	if r.only != nil && !containsPath(r.only, imported) && (!inTest || !containsPath(testTools, imported)) {
		return r.path + " imports the standard library and " + strings.Join(append(r.only, "nothing else"), ", ")
	}
	for module, may := range guarded {
		if !inTest && within(imported, module) && !slices.Contains(may, r.path) {
			return fmt.Sprintf("only %s may, and tests", strings.Join(may, ", "))
		}
	}
	return ""
}

// containsPath reports whether the path or a path above it is in the list.
func containsPath(list []string, imported string) bool {
	return slices.ContainsFunc(list, func(parent string) bool { return within(imported, parent) })
}

// within reports whether child is parent or lies below it.
func within(child, parent string) bool {
	return child == parent || strings.HasPrefix(child, parent+"/")
}
