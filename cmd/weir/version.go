package main

import (
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
)

// mainDependencies are the modules whose versions say how a node behaves.
var mainDependencies = []string{
	"connectrpc.com/connect",
	"github.com/cockroachdb/pebble/v2",
	"github.com/nats-io/nats-server/v2",
	"github.com/nats-io/nats.go",
	"google.golang.org/protobuf",
}

// build is what 'weir version' prints.
type build struct {
	Version      string            `json:"version"`
	Revision     string            `json:"revision"`
	Modified     bool              `json:"modified"`
	Time         string            `json:"time"`
	Go           string            `json:"go"`
	Platform     string            `json:"platform"`
	Dependencies map[string]string `json:"dependencies"`
	// NodeProtocol is the newest version of the messages between nodes that this build understands, and LogFormat the form in which it
	// writes commits. Both only grow: see nodeProtocol and logFormat.
	NodeProtocol int `json:"nodeProtocol"`
	LogFormat    int `json:"logFormat"`
}

// logFormat is the version of weir.log.v1.Commit, which is in the package's name: one that older programs could not read would be v2.
const logFormat = 1

// moduleVersion returns the version of this module, "(devel)" when it was built from a work tree.
func moduleVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func readBuild() build {
	b := build{
		Version: moduleVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Dependencies: map[string]string{}, NodeProtocol: nodeProtocol, LogFormat: logFormat,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	for _, m := range info.Deps {
		if slices.Contains(mainDependencies, m.Path) {
			b.Dependencies[m.Path] = m.Version
		}
	}
	return b
}

func (p *process) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Long: `Print the version of this build, the revision it was built from, and the versions of what it mainly stands on.

Nodes of one log may be of two neighbouring versions: the node protocol, the newest form of the messages between nodes, and
the log format only grow.`,
		Example: "  weir version\n  weir version -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := readBuild()
			if p.json(cmd) {
				return writeJSON(p.stdout, b)
			}
			revision := b.Revision
			if b.Modified {
				revision += " (modified)"
			}
			pairs := []string{"weir", b.Version, "revision", revision, "committed", b.Time, "go", b.Go, "platform", b.Platform, "node protocol", strconv.Itoa(b.NodeProtocol), "log format", strconv.Itoa(b.LogFormat)}
			for _, path := range mainDependencies {
				pairs = append(pairs, path, b.Dependencies[path])
			}
			return fields(p.stdout, p.painterFor(p.stdout), pairs...)
		},
	}
}
