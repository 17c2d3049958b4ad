package projections

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// A StockWatch asks to follow the stock of a SKU.
type StockWatch struct {
	SKU string
	// Token is that of the newest state that the caller has: if it is the state still, it is not sent again. Empty asks for
	// the stock as it is now first.
	Token string
}

// A StockChange is the stock of a SKU after it changed.
type StockChange struct {
	StockView
	// Token resumes the watch after this state.
	Token string
}

// WatchStock sends where the units of a SKU are now, over all lanes, and then again when that has changed: always the newest
// state, never the same one twice in a row, also when it goes on from a token. What changes while send is under way is sent as one
// change. It calls ready when it knows that there is something to follow, before it sends anything. It returns when ctx ends, when
// ready or send fails, when a runner stops (ErrStopped), when the token is not one of this SKU's watches (ErrBadPageToken), or when
// there is no such SKU (ErrNotFound, or ErrBehind as with Stock).
func (v *Views) WatchStock(ctx context.Context, query StockWatch, min Min, ready func() error, send func(StockChange, Freshness) error) error {
	var sent []byte
	if query.Token != "" {
		var err error
		if sent, err = v.seal.open(query.Token, "stock-watch", query.SKU); err != nil {
			return err
		}
	}
	// Enter first and read then: a change that the read does not show wakes the watcher.
	watching := newWatcher()
	for _, r := range v.runners {
		leave := r.stockWatchers.add(query.SKU, watching)
		if leave == nil {
			return ErrTooManyWatchers
		}
		defer leave()
	}
	stock, fresh, err := v.Stock(ctx, query.SKU, min)
	if err == nil {
		err = ready()
	}
	if err != nil {
		return err
	}
	for {
		if digest := stock.digest(); !slices.Equal(digest, sent) {
			change := StockChange{StockView: stock, Token: v.seal.seal(digest, "stock-watch", query.SKU)}
			if err := send(change, fresh); err != nil {
				return err
			}
			sent = digest
		}
		select {
		case <-watching.woken:
		case <-ctx.Done():
			return ctx.Err()
		}
		if v.anyStopped() {
			return ErrStopped
		}
		fresh = v.furthestBehind(&stockProjection, &productsProjection)
		fresh = fresh.parked(v.parks(&stockProjection, query.SKU))
		if stock, err = v.stockOf(ctx, query.SKU); err != nil {
			return err
		}
	}
}

// anyStopped reports whether a runner has stopped.
func (v *Views) anyStopped() bool {
	return slices.ContainsFunc(v.runners, func(r *Runner) bool {
		select {
		case <-r.stopped:
			return true
		default:
			return false
		}
	})
}

// digestBytes is how much of the SHA-256 of a state a token holds.
const digestBytes = 16

// digest tells states of the stock apart.
func (s *StockView) digest() []byte {
	var units []byte
	for _, count := range [...]int64{s.Received, s.Central, s.InTransit, s.Available, s.Reserved, s.Sold} {
		units = binary.BigEndian.AppendUint64(units, uint64(count))
	}
	sum := sha256.Sum256(units)
	return sum[:digestBytes]
}
