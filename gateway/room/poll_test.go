package room

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

// poll has a user ask as often as it is told, until it is let in, leaves after so many times, or there is nothing to wait for.
func (s *sale) poll(user string, timesMax int) {
	id, _, err := s.room.enter(user, rankOf(testKey, s.room.campaign, user, time.Now()), false)
	if err != nil {
		s.t.Fatal(err)
	}
	s.streams.Go(func() {
		for range timesMax {
			now, after := s.room.poll(time.Now(), id)
			s.note(user, now)
			if after == 0 {
				return
			}
			<-time.After(after)
		}
	})
}

func TestWhoPollsIsLetInLikeWhoReadsAStream(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		for i := range 200 {
			if i%2 == 0 {
				s.poll(fmt.Sprint("polls-", i), 1000)
			} else {
				s.come(fmt.Sprint("streams-", i))
			}
		}
		pass(opensIn + 40*time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.admitted) != 200 {
			t.Fatalf("%d of 200 were let in", len(s.admitted))
		}
		polls := 0
		for user, told := range s.told {
			if user[0] != 'p' {
				continue
			}
			polls += len(told)
			for i := 1; i < len(told); i++ {
				if told[i-1].state == Waiting && told[i].state == Waiting && told[i].before > told[i-1].before {
					t.Errorf("%s was told %d before, and then %d", user, told[i-1].before, told[i].before)
				}
			}
		}
		if polls > 100*20 {
			t.Errorf("100 users asked %d times within 20 s, want far less than once a second each", polls)
		}
	})
}

func TestWhoStopsPollingIsPassedOverAndIsNextWhenItAsksAgain(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		s.mu.Lock()
		s.rate = 1
		s.mu.Unlock()
		pass(opensIn + time.Second)
		for i := range 60 {
			s.come(fmt.Sprint("present-", i))
			pass(time.Microsecond)
		}
		s.poll("absent", 1)
		for i := range 60 {
			s.come(fmt.Sprint("later-", i))
			pass(time.Microsecond)
		}
		pass(80 * time.Second)
		if s.ended["absent"] != 0 || s.count() < 70 {
			t.Fatalf("absent is %v with %d let in, want that others were let in past it", s.ended["absent"], s.count())
		}
		s.poll("absent", 5)
		pass(5 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended["absent"] != Admitted {
			t.Errorf("who asked again was told %+v, want that it is its turn", s.told["absent"])
		}
	})
}

func TestTheTimeToAskAgainFollowsTheTimeThatIsLeft(t *testing.T) {
	opens := time.Now().Add(time.Hour)
	r := newRoom(Campaign{CampaignID: "spring", OpensAt: opens, ClosesAt: opens.Add(time.Hour)}, Config{}.withDefaults())
	var ids []placeID
	for i := range 100_000 {
		id, _, err := r.enter(fmt.Sprint(i), rank{draw: uint64(i) + 1}, false)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	within := func(what string, now time.Time, id placeID, least, most time.Duration) {
		t.Helper()
		if s, got := r.poll(now, id); got < least || got > most {
			t.Errorf("%s: %+v is to ask again after %s, want %s to %s", what, s, got, least, most)
		}
	}
	within("long before the opening", opens.Add(-time.Hour), ids[0], pollMax, pollMax+pollSpread)
	within("before the opening", opens.Add(-10*time.Second), ids[0], 10*time.Second, 10*time.Second+pollSpread)
	r.tick(opens, 0, 1, 1)
	within("nobody is let in", opens, ids[0], pollUnknown*9/10, pollUnknown)
	r.rate = 100
	within("the first", opens, ids[0], pollMin*9/10, pollMin)
	within("the 1,001st", opens, ids[1000], 2250*time.Millisecond, 2600*time.Millisecond)
	within("the last", opens, ids[99_999], 225*time.Second, 251*time.Second)
	r.rate = 1
	within("far away", opens, ids[99_999], pollMax*9/10, pollMax+pollSpread)
	r.tick(opens, 0, 1, 0)
	within("sold out", opens, ids[5], 0, 0)
	within("closed", opens.Add(time.Hour), ids[5], 0, 0)
}

func TestAPlaceIsPolledByPlainJSON(t *testing.T) {
	hall, _ := served(t, Config{}, testKeys)
	_, handler := roomv1connect.NewRoomServiceHandler(hall)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- hall.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	ask := func(method, user, body string) (status int, reply map[string]any) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/weir.room.v1.RoomService/"+method, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+user)
		response, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil {
			err = json.Unmarshal(text, &reply)
		}
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return response.StatusCode, reply
	}
	_, entered := ask("Enter", "alice", `{"campaignId":"spring"}`)
	poll := fmt.Sprintf(`{"ticket":%q}`, entered["ticket"])
	if status, reply := ask("Poll", "mallory", poll); status != http.StatusForbidden {
		t.Errorf("another's ticket: %d %v", status, reply)
	}
	deadline := time.Now().Add(patience)
	for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
		status, reply := ask("Poll", "alice", poll)
		if status != http.StatusOK {
			t.Fatalf("%d %v", status, reply)
		}
		if reply["state"] == "WAIT_STATE_ADMITTED" {
			if reply["pass"] == "" || reply["pollAfter"] != nil {
				t.Errorf("admitted with %v", reply)
			}
			return
		}
		if reply["pollAfter"] == nil || time.Now().After(deadline) {
			t.Fatalf("told %v", reply)
		}
	}
}
