package room

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

// A turn is good for one order. These are who has used theirs, and for what:
//
//   - The first order that comes with a pass takes the turn. The same order may come again, as often as its caller likes: the node does it once (I4).
//     Another one is refused, with whatever pass of whatever gateway, unless its user entered the room again after the first.
//   - A turn is given back when every attempt at the order that took it has ended with a refusal, by which nothing was done. An attempt whose end is
//     not known holds the turn: the order may have been placed.
//
// So no user places more orders than the turns that it waited for. Gateways that share Uses hold to that together, otherwise each by itself: with
// G gateways a turn is then good for up to G orders, all of the one user who waited.

// Uses is what gateways share of who has used a turn. Its methods may be called by several goroutines.
type Uses interface {
	// Take takes the turn of a use, unless another order has it. The same order takes it again.
	Take(ctx context.Context, use Use) (taken bool, err error)
	// GiveBack ends one Take that came to nothing. The turn is free when all have.
	GiveBack(ctx context.Context, use Use) error
}

// A Use is one order's of one turn.
type Use struct {
	// Key names user and campaign, Order the order, both by a hash.
	Key, Order string
	// Entered is when the user entered the room, and Now when the order came, both in µs after the campaign opened.
	Entered, Now int64
	// Keep is for how long it is to be remembered: until the campaign closes.
	Keep time.Duration
}

// hashBytes is how much of a SHA-256 names an order or a user: enough that nobody finds two of one name.
const hashBytes = 16

// A hash names a user or an order.
type hash [hashBytes]byte

func hashOf(text []byte) hash {
	sum := sha256.Sum256(text)
	return hash(sum[:hashBytes])
}

// An Order names what a user asks for, with the request id, so that the same request is known again in whatever encoding it comes.
type Order struct{ hash hash }

// OrderOf names a request by its message in a form that is always the same.
func OrderOf(message []byte) Order { return Order{hashOf(message)} }

// An End is how an attempt at an order ended.
type End uint8

// The ends.
const (
	// Unknown: the order may have been placed.
	Unknown End = iota
	// Placed: it was, now or before.
	Placed
	// Refused: nothing was done.
	Refused
)

// A used is what a room remembers of a user who used a turn.
type used struct {
	order hash
	// at is when the turn was taken, in µs after the opening, and open how many attempts did not end with a refusal.
	at   int64
	open int32
}

// takeTurn is Uses.Take for this gateway alone. The error is errFull. The lock is held.
func (r *room) takeTurn(user, order hash, entered, now int64) (taken bool, err error) {
	has, known := r.uses[user]
	switch {
	case known && has.order == order:
		has.open++
	case known && entered <= has.at:
		return false, nil
	case !known && len(r.uses) >= r.config.PlacesMax:
		return false, errFull
	default:
		has = used{order: order, at: now, open: 1}
	}
	r.uses[user] = has
	return true, nil
}

// giveBackTurn is Uses.GiveBack for this gateway alone. The lock is held.
func (r *room) giveBackTurn(user, order hash) {
	has, known := r.uses[user]
	if !known || has.order != order {
		return
	}
	if has.open--; has.open <= 0 {
		delete(r.uses, user)
		return
	}
	r.uses[user] = has
}

const (
	// usesTimeMax bounds a question to what gateways share, and usesAwayTime is how long nobody asks after it did not answer.
	usesTimeMax  = 100 * time.Millisecond
	usesAwayTime = time.Second
)

// sharedUses asks what gateways share, as long as it answers.
type sharedUses struct {
	uses   Uses // nil for none
	logger *slog.Logger
	// timeMax bounds a question: usesTimeMax but in tests.
	timeMax time.Duration
	// awayUntil is until when it is not asked, in unix ns, 0 while it answers.
	awayUntil atomic.Int64
	// unshared counts the orders that were let through without asking, though there is something to ask.
	unshared atomic.Uint64
}

// take says whether nobody has used the turn at another gateway, as far as can be known.
func (s *sharedUses) take(ctx context.Context, use Use) (taken bool) {
	if s.uses == nil {
		return true
	}
	until := s.awayUntil.Load()
	now := time.Now()
	if now.UnixNano() < until {
		s.unshared.Add(1)
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeMax)
	defer cancel()
	taken, err := s.uses.Take(ctx, use)
	if err == nil {
		if s.awayUntil.Swap(0) != 0 {
			s.logger.Info("turns of waiting rooms are counted together with other gateways again")
		}
		return taken
	}
	s.unshared.Add(1)
	if errors.Is(err, context.Canceled) {
		return true // The caller left: nobody gets anything.
	}
	if s.awayUntil.Swap(now.Add(usesAwayTime).UnixNano()) == 0 {
		s.logger.Warn("turns of waiting rooms are counted by each gateway alone", "error", err)
	}
	return true
}

// giveBack tells the others that an attempt came to nothing. If that is lost the turn stays with the order.
func (s *sharedUses) giveBack(ctx context.Context, use Use) {
	if s.uses == nil || time.Now().UnixNano() < s.awayUntil.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeMax)
	defer cancel()
	if err := s.uses.GiveBack(ctx, use); err != nil {
		s.logger.LogAttrs(ctx, slog.LevelDebug, "a turn was not given back", slog.Any("error", err))
	}
}

// useOf returns what is told of a use to other gateways.
func (r *room) useOf(user, order hash, entered, now int64) Use {
	return Use{
		Key: r.campaign.CampaignID + ":" + hex.EncodeToString(user[:]), Order: hex.EncodeToString(order[:]), Entered: entered, Now: now,
		Keep: max(time.Millisecond, r.campaign.ClosesAt.Sub(r.campaign.OpensAt)-time.Duration(now)*time.Microsecond),
	}
}
