package gateway

import (
	"log/slog"
	"testing"

	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/presence"
	"github.com/weirhq/weir/gateway/room"
)

func TestAGatewaysPartIsByAllThatItMayKnowOf(t *testing.T) {
	five, err := limit.NewGlobals(limit.GlobalConfig{Gateways: 5}, "g", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	silent := presence.New(nil, "g", slog.New(slog.DiscardHandler)) // Its server was never reached.
	said := func(gateways int) policy.Policy {
		return policy.Policy{Room: room.Config{Gateways: gateways}}
	}
	for name, c := range map[string]struct {
		options Options
		want    float64
	}{
		"by itself":                         {Options{}, 1},
		"the policy says":                   {Options{Policy: said(4)}, 0.25},
		"Redis says, or said":               {Options{Globals: five}, 0.2},
		"Redis says fewer than the policy":  {Options{Globals: five, Policy: said(10)}, 0.1},
		"NATS is to say, and was not there": {Options{Presence: silent}, 0},
		"and the policy says":               {Options{Presence: silent, Policy: said(2)}, 0.5},
	} {
		if got := shareOf(c.options); got != c.want {
			t.Errorf("%s: the part is %v, want %v", name, got, c.want)
		}
	}
}
