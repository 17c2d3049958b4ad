package gateway_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/room"
	"github.com/weirhq/weir/ops/redisserver"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

// onRedis serves a gateway that shares what gateways share through Redis.
func onRedis(t *testing.T, address, id string, decided policy.Policy, upstream string) (*front, *limit.Globals) {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DialTimeout: testTimeMax, ReadTimeout: testTimeMax})
	t.Cleanup(func() { client.Close() })
	globals, err := limit.NewGlobals(limit.GlobalConfig{Interval: 50 * time.Millisecond}, id, client, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	base, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	user := func(authorization string) (string, bool) { return strings.CutPrefix(authorization, "Bearer ") }
	f := serveGateway(t, gateway.Options{
		Upstreams: []*url.URL{base}, Policy: decided, Globals: globals, Logger: slog.New(slog.DiscardHandler),
		RoomKeys: []room.Key{{Secret: bytes.Repeat([]byte("k"), 32)}}, RoomUses: room.NewRedisUses(client, "test"), User: user,
		Subject: func(header http.Header) string { name, _ := user(header.Get("Authorization")); return name },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{globals.Run, f.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return f, globals
}

// holdsWithin polls until something holds.
func holdsWithin(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(testTimeMax); !holds(); <-ticker.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestTwoGatewaysOnOneRedisAreAsOne(t *testing.T) {
	const perSecond = 100
	n := (&node{}).start(t)
	address := redisserver.Start(t).Addr
	decided := policy.Policy{
		Methods: map[string]policy.Method{getOrder: {Global: &limit.Rate{PerSecond: perSecond}}},
		Room: room.Config{
			RateDefault: 100, Campaigns: []room.Campaign{{CampaignID: "rush", OpensAt: time.Now().Add(-time.Minute), ClosesAt: time.Now().Add(time.Hour)}},
		},
	}
	var fronts [2]*front
	var globals [2]*limit.Globals
	for i, id := range []string{"edge-1", "edge-2"} {
		fronts[i], globals[i] = onRedis(t, address, id, decided, n.URL)
	}
	holdsWithin(t, "the gateways know each other", func() bool {
		return !globals[0].Away() && !globals[1].Away() && globals[0].Gateways() == 2 && globals[1].Gateways() == 2
	})

	t.Run("the global rate holds over both", func(t *testing.T) {
		var admitted [2]atomic.Int64
		began := time.Now()
		var asking sync.WaitGroup
		for i, f := range fronts {
			for range 2 {
				client := orders(t, f.URL, "connect")
				asking.Go(func() {
					for admitted[0].Load()+admitted[1].Load() < 3*perSecond {
						switch _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{}); {
						case err == nil:
							admitted[i].Add(1)
						case connect.CodeOf(err) != connect.CodeResourceExhausted:
							t.Errorf("gateway %d: %v", i, err)
							return
						}
					}
				})
			}
		}
		asking.Wait()
		took, got := time.Since(began), [2]int64{admitted[0].Load(), admitted[1].Load()}
		// A second's worth may be there when it begins, and what each is given ahead.
		if most := perSecond*(took.Seconds()+1)*1.1 + 4; float64(got[0]+got[1]) > most {
			t.Errorf("both let %v through within %s, want %.0f at most", got, took, most)
		}
		if got[0] == 0 || got[1] == 0 {
			t.Errorf("they let %v through, want a part at each", got)
		}
	})

	t.Run("one turn is good for one order at both", func(t *testing.T) {
		enters := roomv1connect.NewRoomServiceClient(http.DefaultClient, fronts[0].URL)
		waits := roomv1connect.NewRoomServiceClient(http.DefaultClient, fronts[1].URL)
		entered, err := enters.Enter(with(t, "Authorization", "Bearer alice"), &roomv1.EnterRequest{CampaignId: "rush"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := waits.Poll(with(t, "Authorization", "Bearer mallory"), &roomv1.PollRequest{Ticket: entered.GetTicket()}); err == nil {
			t.Error("somebody else's ticket is good")
		}
		stream, err := waits.Wait(with(t, "Authorization", "Bearer alice"), &roomv1.WaitRequest{Ticket: entered.GetTicket()})
		if err != nil {
			t.Fatal(err)
		}
		pass := ""
		for pass == "" && stream.Receive() {
			pass = stream.Msg().GetPass()
		}
		if err := stream.Close(); err != nil || pass == "" {
			t.Fatalf("no pass came at the other gateway: %v, %v", stream.Err(), err)
		}
		order := func(at int, request string) error {
			ctx, info := connect.NewClientContext(t.Context())
			info.RequestHeader().Set("Authorization", "Bearer alice")
			info.RequestHeader().Set(room.HeaderPass, pass)
			_, err := orders(t, fronts[at].URL, "connect").PlaceOrder(ctx, &orderv1.PlaceOrderRequest{RequestId: request, CampaignId: "rush"})
			return err
		}
		for at := range fronts { // The same order twice is one.
			if err := order(at, "first"); err != nil {
				t.Errorf("the order at gateway %d: %v", at, err)
			}
		}
		for at := range fronts {
			if _, reason, _ := details(t, order(at, "second")); reason != room.ReasonWaitingRoom {
				t.Errorf("another order with the same turn at gateway %d: reason %q, want %s", at, reason, room.ReasonWaitingRoom)
			}
		}
	})
}
