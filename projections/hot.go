package projections

import (
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"github.com/weirhq/weir/domain"
)

// hotOrders are the orders that are read often, folded: the first level of the read path. A read that finds its order here
// costs neither Pebble nor a fold.
//
// It never answers with less than the view holds (I6). Whoever fills it takes the generation first, reads the view, and
// puts what it read: put refuses it when the generation has moved on. The runner writes the view, then moves the
// generation on and drops the orders that changed, and only then says how far the view is.
type hotOrders struct {
	orders     *otter.Cache[domain.OrderID, OrderView]
	generation atomic.Uint64
}

const (
	// hotOrdersBytesMax bounds what the hot orders of a node take, about; each lane has its share.
	hotOrdersBytesMax = 64 << 20
	// hotOrderBytes and hotLineBytes are what an order and a line take beside their text: the structs, and the cache's own.
	hotOrderBytes = 512
	hotLineBytes  = 80
)

func newHotOrders(lanes uint32) *hotOrders {
	return &hotOrders{orders: otter.Must(&otter.Options[domain.OrderID, OrderView]{
		MaximumWeight: hotOrdersBytesMax / uint64(lanes),
		Weigher:       func(_ domain.OrderID, view OrderView) uint32 { return hotWeight(&view) },
	})}
}

// hotWeight returns about how many bytes an order takes.
func hotWeight(view *OrderView) uint32 {
	o := &view.Order
	bytes := hotOrderBytes + len(o.UserID) + len(o.CancelReason) + len(o.SealedNote)
	for i := range o.Lines {
		bytes += hotLineBytes + len(o.Lines[i].SKU) + len(o.Lines[i].Title)
	}
	return uint32(bytes)
}

// get returns an order as the view had it, or false.
func (h *hotOrders) get(id domain.OrderID) (OrderView, bool) { return h.orders.GetIfPresent(id) }

// put keeps an order that was read after generation was taken.
func (h *hotOrders) put(id domain.OrderID, view OrderView, generation uint64) {
	h.orders.Compute(id, func(old OrderView, found bool) (OrderView, otter.ComputeOp) {
		if h.generation.Load() != generation {
			return old, otter.CancelOp
		}
		return view, otter.WriteOp
	})
}

// drop forgets orders that were written. The runner calls it between writing them and saying so.
func (h *hotOrders) drop(changed []domain.OrderID) {
	h.generation.Add(1) // First: a put that comes after an order was dropped must see it.
	for _, id := range changed {
		h.orders.Invalidate(id)
	}
}
