package main

import (
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/weirhq/weir/eventstore"
)

// withoutPlace takes out of a table what differs from machine to machine, and the widths of its columns with it.
func withoutPlace(table, dir string) string {
	table = strings.ReplaceAll(table, dir, "DIR")
	return regexp.MustCompile(`(?m) {2,}| +$`).ReplaceAllString(table, "  ")
}

func TestTheDoctorLooksAtANodeThatRunsAndAtADirectory(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir)
	// A test's directory is a temporary one.
	r := live(t, nil, "doctor", "--data", dir).want(t, exitDifference)
	golden(t, "output/doctor.table", withoutPlace(r.stdout, dir))
	wantText(t, r.stderr, "1 of 22 checks found something wrong", "do what the last column says")
	few := live(t, nil, "doctor", "--data", dir, "--want-replicas", "3", "-o", "json").want(t, exitDifference)
	wantText(t, few.stdout, "ORDERS-00 is on 1 of 3 servers", "KV_WEIR-LEASES is on 1 of 3 servers")
	live(t, nil, "doctor", "--data", dir, "--want-replicas", "2").want(t, exitUsage)
	n.stop().want(t, exitOK)

	stopped := live(t, nil, "doctor", "--data", dir).want(t, exitDifference)
	if got, want := withoutPlace(stopped.stdout, dir), withoutPlace(r.stdout, dir); got != want {
		t.Errorf("of the same log at rest the doctor says\n%s\nand of the node that ran\n%s", got, want)
	}
	live(t, nil, "doctor", "--data", filepath.Join(dir, "none")).want(t, exitUsage)
}

func TestOnlyWhatIsWrongIsADifference(t *testing.T) {
	for _, test := range []struct {
		state eventstore.FindingState
		want  exitCode
	}{{eventstore.FindingGood, exitOK}, {eventstore.FindingUnknown, exitOK}, {eventstore.FindingBad, exitDifference}} {
		p := &process{stdout: new(strings.Builder)}
		err := p.printFindings(p.doctorCommand(), []eventstore.Finding{{Number: 1, Check: "fsync before ack", State: test.state, Found: "so"}})
		got := exitOK
		if told := (*problem)(nil); errors.As(err, &told) {
			got = told.code
		}
		if got != test.want {
			t.Errorf("a finding that is %s ends with %d, want %d", test.state, got, test.want)
		}
	}
}
