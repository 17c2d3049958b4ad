package policy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/room"
)

func TestSettingsThatNeedAStartAreNamed(t *testing.T) {
	started := Policy{Limits: Limits{HeaderTime: time.Second}, Board: []edge.Item{{SKU: "mug"}}}
	for _, c := range []struct {
		name   string
		change func(*Policy)
		want   []string
	}{
		{"nothing", func(*Policy) {}, nil},
		{"what is used at once", func(p *Policy) { p.Limits.Calls, p.Deadlines.Max = 7, time.Minute }, nil},
		{"a default that is said", func(p *Policy) { p.Limits.IdleTime = started.WithDefaults().Limits.IdleTime }, nil},
		{"two limits", func(p *Policy) { p.Limits.HeaderTime, p.Limits.StreamsPerConnection = 0, 7 }, []string{"limits.header_time", "limits.streams_per_connection"}},
		{"an item less", func(p *Policy) { p.Board = nil }, []string{"board"}},
		{"another item", func(p *Policy) { p.Board = []edge.Item{{SKU: "cup"}} }, []string{"board"}},
		{"a room", func(p *Policy) { p.Room.Campaigns = []room.Campaign{{CampaignID: "flash"}} }, []string{"room"}},
	} {
		changed := started
		c.change(&changed)
		if got := started.AtStart(changed); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestTheExampleMarksWhatNeedsAStart compares the example with what AtStart looks at.
func TestTheExampleMarksWhatNeedsAStart(t *testing.T) {
	text, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	marked := regexp.MustCompile(`(?m)^  (\w+): .*# \(start\)`).FindAllStringSubmatch(string(text), -1)
	var all Policy
	all.Limits = Limits{HeaderBytes: 1, HeaderTime: 1, ReplyTime: 1, IdleTime: 1, StreamsPerConnection: 1}
	var want, got []string
	for _, name := range (Policy{}).AtStart(all) {
		want = append(want, strings.TrimPrefix(name, "limits."))
	}
	for _, match := range marked {
		got = append(got, match[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the example marks %q, and %q need a start", got, want)
	}
}
