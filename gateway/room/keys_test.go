package room

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

// keyAt returns a key that signs from so long after now on; what it signed is good until so long after now, 0 for ever.
func keyAt(letter string, now time.Time, from, until time.Duration) Key {
	key := Key{Secret: bytes.Repeat([]byte(letter), keyBytesMin), From: now.Add(from)}
	if until != 0 {
		key.Until = now.Add(until)
	}
	return key
}

// causeOf returns what programs are told.
func causeOf(err error) string {
	var told *connect.Error
	if !errors.As(err, &told) {
		return ""
	}
	for _, detail := range told.Details() {
		if value, err := detail.Value(); err == nil {
			if info, is := value.(*errdetails.ErrorInfo); is {
				return info.GetMetadata()["cause"]
			}
		}
	}
	return ""
}

func TestTheNewestKeySignsAndOlderOnesVerifyUntilTheirTime(t *testing.T) {
	now := time.Now()
	r := ringOf(t, keyAt("c", now, 2*time.Hour, 0), keyAt("a", now, -time.Hour, 3*time.Hour), keyAt("b", now, time.Hour, 0))
	ids := map[string]string{}
	for _, letter := range []string{"a", "b", "c"} {
		ids[keyAt(letter, now, 0, 0).ID()] = letter
	}
	for after, want := range map[time.Duration]string{0: "a", time.Hour - 1: "a", time.Hour: "b", 2*time.Hour - 1: "b", 2 * time.Hour: "c", 100 * time.Hour: "c"} {
		if _, id := r.signing(now.Add(after)); ids[id.String()] != want {
			t.Errorf("after %s key %s signs, want %s", after, ids[id.String()], want)
		}
	}
	ticket := r.ticket(now, "spring", "alice", rank{draw: 7})
	for after, want := range map[time.Duration]error{0: nil, 3*time.Hour - 1: nil, 3 * time.Hour: errKeyGone} {
		if _, at, _, err := r.readTicket(now.Add(after), "alice", ticket); !errors.Is(err, want) || (err == nil && at != rank{draw: 7}) {
			t.Errorf("after %s the ticket is %v, %v, want %v", after, at, err, want)
		}
	}
	// A gateway whose clock is ahead signs earlier than others think that it may.
	ahead := r.ticket(now.Add(time.Hour), "spring", "alice", rank{draw: 7})
	if _, _, _, err := r.readTicket(now, "alice", ahead); err != nil {
		t.Errorf("a ticket of a key that is not used yet: %v", err)
	}
}

func TestImpossibleKeysAreRefused(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		keys []Key
		want string
	}{
		"none":                    {nil, "0 keys"},
		"too many":                {make([]Key, keysMax+1), "17 keys"},
		"short":                   {[]Key{{Secret: []byte("short")}}, "5 bytes"},
		"twice":                   {[]Key{keyAt("a", now, 0, 0), keyAt("a", now, time.Hour, 0)}, "twice"},
		"two at a time":           {append(keysOf("a"), keysOf("b")...), "same moment"},
		"ends before it begins":   {[]Key{keyAt("a", now, time.Hour, time.Minute), keyAt("b", now, 2*time.Hour, 0)}, "is good until"},
		"the newest ends":         {[]Key{keyAt("a", now, 0, time.Hour)}, "is the newest"},
		"nobody signs in between": {[]Key{keyAt("a", now, 0, time.Hour), keyAt("b", now, 2*time.Hour, 0)}, "in between"},
	} {
		if _, err := newRing(c.keys); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error = %v, want one with %q", name, err, c.want)
		}
	}
}

// A rotation of keys goes on while somebody waits, with the ticket that the old key signed: it keeps its place, is given a ticket of the new key, and
// its pass is good. Once the old key is removed, what it signed is refused, with the reason; nobody draws again.
func TestATicketOfTheOldKeyKeepsItsPlaceOverARotation(t *testing.T) {
	now := time.Now()
	oldKey, newKey := keyAt("a", now, -time.Hour, 0), keyAt("b", now, -time.Minute, 0)
	_, before := served(t, Config{}, []Key{oldKey})
	entered, err := before.Enter(as(t, "alice"), &roomv1.EnterRequest{CampaignId: "spring"})
	if err != nil {
		t.Fatal(err)
	}
	_, drawn, _, err := ringOf(t, oldKey).readTicket(now, "alice", entered.GetTicket())
	if err != nil {
		t.Fatal(err)
	}
	// Another gateway, or the same one after a restart, knows the ticket alone.
	hall, client := served(t, Config{}, []Key{oldKey})
	if err := hall.SetKeys(now, []Key{newKey, oldKey}); err != nil {
		t.Fatal(err)
	}
	r := hall.rooms["spring"]
	stream, err := client.Wait(as(t, "alice"), &roomv1.WaitRequest{Ticket: entered.GetTicket()})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	first := stream.Msg()
	if got := r.places.at(r.byUser[hashOf([]byte("alice"))]).rank; got != drawn {
		t.Errorf("its place is %+v after the rotation, %+v before", got, drawn)
	}
	_, again, _, err := ringOf(t, newKey).readTicket(now, "alice", first.GetTicket())
	if err != nil || again != drawn {
		t.Fatalf("the ticket of the new key is %q: %+v, %v, want the place %+v", first.GetTicket(), again, err, drawn)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}

	if err := hall.SetKeys(now, []Key{newKey}); err != nil {
		t.Fatal(err)
	}
	stream, err = client.Wait(as(t, "alice"), &roomv1.WaitRequest{Ticket: entered.GetTicket()})
	if err == nil {
		stream.Receive()
		err = errors.Join(stream.Err(), stream.Close())
	}
	if connect.CodeOf(err) != connect.CodePermissionDenied || causeOf(err) != causeKeyGone {
		t.Errorf("a ticket of the key that is removed: %v, cause %q", err, causeOf(err))
	}
	pass := ringOf(t, oldKey).pass(now, "spring", "alice", 0, now.Add(time.Minute))
	if _, err := hall.Check(t.Context(), now, "alice", "spring", pass, Order{}); err == nil || causeOf(err) != causeKeyGone {
		t.Errorf("a pass of the key that is removed: %v", err)
	}
	stream, err = client.Wait(as(t, "alice"), &roomv1.WaitRequest{Ticket: first.GetTicket()})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || stream.Msg().GetTicket() != "" {
		t.Errorf("with the new ticket: %v, %v, want no other ticket", stream.Msg(), stream.Err())
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
}

func TestTheKeyThatDrewPlacesStaysUntilTheCampaignOpens(t *testing.T) {
	now := time.Now()
	hall, err := New(Options{
		Config: Config{Campaigns: []Campaign{{CampaignID: "spring", OpensAt: now.Add(time.Hour), ClosesAt: now.Add(2 * time.Hour)}}},
		Keys:   []Key{keyAt("a", now, -time.Hour, 0)}, User: func(context.Context, string) (string, bool) { return "", false },
	})
	if err != nil {
		t.Fatal(err)
	}
	draw := func() rank { return rankOf(hall.keys.Load().draws(), hall.rooms["spring"].campaign, "alice", now) }
	before := draw()
	if err := hall.SetKeys(now, []Key{keyAt("a", now, -time.Hour, 1), keyAt("b", now, 0, 0)}); err != nil || draw() != before {
		t.Errorf("with a newer key %v, and alice draws %+v, before %+v", err, draw(), before)
	}
	var draws *DrawError
	if err := hall.SetKeys(now, []Key{keyAt("b", now, 0, 0)}); !errors.As(err, &draws) || draws.CampaignID != "spring" || draw() != before {
		t.Errorf("without the key that draws: %v, and alice draws %+v, before %+v", err, draw(), before)
	}
	if err := hall.SetKeys(now.Add(time.Hour), []Key{keyAt("b", now, 0, 0)}); err != nil {
		t.Errorf("once the campaign has opened: %v", err)
	}
	if err := hall.SetKeys(now, nil); err == nil {
		t.Error("no keys at all were taken")
	}
}

// served serves a hall with the campaigns spring and autumn, which are open, until the test ends. A caller's user is what its token says.
func served(t *testing.T, config Config, keys []Key) (*Hall, roomv1connect.RoomServiceClient) {
	t.Helper()
	for _, id := range []string{"spring", "autumn"} {
		config.Campaigns = append(config.Campaigns, Campaign{CampaignID: id, OpensAt: time.Now().Add(-time.Hour), ClosesAt: time.Now().Add(time.Hour)})
	}
	hall, err := New(Options{
		Config: config, Keys: keys,
		User: func(_ context.Context, authorization string) (string, bool) {
			return strings.CutPrefix(authorization, "Bearer ")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, handler := roomv1connect.NewRoomServiceHandler(hall)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return hall, roomv1connect.NewRoomServiceClient(server.Client(), server.URL)
}

// as returns a context in which a user calls.
func as(t *testing.T, user string) context.Context {
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+user)
	return ctx
}
