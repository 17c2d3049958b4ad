package room

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Key signs tickets and passes from one moment on, until the next key does, and verifies what it signed for as long as it is good.
type Key struct {
	// Secret has at least 32 random bytes, the same in all gateways.
	Secret []byte
	// From is when it begins to sign; zero for the first of all. It verifies earlier than that: the clock of the gateway that signed may be ahead.
	From time.Time
	// Until is when what it signed is refused; zero for as long as the key is there.
	Until time.Time
}

const (
	keyIDBytes = 4
	// keysMax bounds the keys of a hall.
	keysMax = 16
)

// A keyID names a key in what it signed. It is made of the key: two gateways that mean the same key have the same name for it.
type keyID [keyIDBytes]byte

// String returns the id as logs and operators have it.
func (id keyID) String() string { return hex.EncodeToString(id[:]) }

// ID names the key, as tickets and logs do.
func (k Key) ID() string { return k.id().String() }

func (k Key) id() (id keyID) {
	copy(id[:], seal(k.Secret, kindID, "", "", nil))
	return id
}

// A ring has the keys of a hall, the oldest first.
type ring struct {
	keys []Key
	ids  []keyID
}

// newRing checks keys. The order in which they come says nothing.
func newRing(keys []Key) (*ring, error) {
	if len(keys) == 0 || len(keys) > keysMax {
		return nil, fmt.Errorf("room: %d keys, want 1 to %d", len(keys), keysMax)
	}
	r := &ring{keys: slices.SortedFunc(slices.Values(keys), func(a, b Key) int { return a.From.Compare(b.From) })}
	for i, key := range r.keys {
		id := key.id()
		switch {
		case len(key.Secret) < keyBytesMin:
			return nil, fmt.Errorf("room: a key has %d bytes, want at least %d random ones", len(key.Secret), keyBytesMin)
		case slices.Contains(r.ids, id):
			return nil, fmt.Errorf("room: key %s is there twice", id)
		case i > 0 && key.From.Equal(r.keys[i-1].From):
			return nil, fmt.Errorf("room: keys %s and %s begin to sign at the same moment: say from when on the newer one does", r.ids[i-1], id)
		case !key.Until.IsZero() && !key.Until.After(key.From):
			return nil, fmt.Errorf("room: key %s is good until %s and signs from %s on", id, instant(key.Until), instant(key.From))
		case !key.Until.IsZero() && i == len(r.keys)-1:
			return nil, fmt.Errorf("room: key %s is the newest and good until %s: none would sign after that", id, instant(key.Until))
		case !key.Until.IsZero() && key.Until.Before(r.keys[i+1].From):
			return nil, fmt.Errorf("room: key %s is good until %s, and the next one signs from %s on: none would in between", id, instant(key.Until), instant(r.keys[i+1].From))
		}
		r.ids = append(r.ids, id)
	}
	return r, nil
}

func instant(at time.Time) string {
	if at.IsZero() {
		return "ever"
	}
	return at.UTC().Format(time.RFC3339)
}

// draws returns the secret that places are drawn with: that of the oldest key, so that a new one draws nobody's place again.
func (r *ring) draws() []byte { return r.keys[0].Secret }

// signing returns the key that signs: the newest whose time has come.
func (r *ring) signing(now time.Time) (Key, keyID) {
	at := len(r.keys) - 1
	for at > 0 && now.Before(r.keys[at].From) {
		at--
	}
	return r.keys[at], r.ids[at]
}

// errKeyGone says that a ticket or a pass was signed with a key that is not there, or not any more.
var errKeyGone = errors.New("the key that signed it is not in use any more")

// verifying returns the key of an id, if it is still good.
func (r *ring) verifying(id keyID, now time.Time) (Key, error) {
	at := slices.Index(r.ids, id)
	if at < 0 || (!r.keys[at].Until.IsZero() && !now.Before(r.keys[at].Until)) {
		return Key{}, errKeyGone
	}
	return r.keys[at], nil
}

// A DrawError says that keys cannot be used yet: places were drawn with one that is not among them.
type DrawError struct {
	// KeyID names the key, CampaignID the campaign that it draws for, until OpensAt.
	KeyID, CampaignID string
	OpensAt           time.Time
}

func (e *DrawError) Error() string {
	return fmt.Sprintf("room: key %s draws the places of campaign %s until it opens at %s, and has to stay so long, as the oldest; "+
		"what it signed is refused once its until is over", e.KeyID, e.CampaignID, instant(e.OpensAt))
}

// SetKeys makes the hall sign and verify with other keys from now on. Whoever waits keeps its place. On an error, which may be a *DrawError, the
// keys from before stay.
func (h *Hall) SetKeys(now time.Time, keys []Key) error {
	next, err := newRing(keys)
	if err != nil {
		return err
	}
	before := h.keys.Load()
	if !bytes.Equal(before.draws(), next.draws()) {
		for _, r := range h.inOrder() {
			if now.Before(r.campaign.OpensAt) {
				return &DrawError{KeyID: before.ids[0].String(), CampaignID: r.campaign.CampaignID, OpensAt: r.campaign.OpensAt}
			}
		}
	}
	h.keys.Store(next)
	return nil
}

// inOrder returns the rooms in the order in which their campaigns open.
func (h *Hall) inOrder() []*room {
	rooms := make([]*room, 0, len(h.rooms))
	for _, r := range h.rooms {
		rooms = append(rooms, r)
	}
	slices.SortFunc(rooms, func(a, b *room) int {
		return cmp.Or(a.campaign.OpensAt.Compare(b.campaign.OpensAt), cmp.Compare(a.campaign.CampaignID, b.campaign.CampaignID))
	})
	return rooms
}
