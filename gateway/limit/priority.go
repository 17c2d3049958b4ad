package limit

import (
	"fmt"
	"strings"
	"time"
)

// A Priority says what goes first when not everything fits. It follows an order's life: money that is on its way comes before an order
// that is not there yet.
type Priority uint8

// The priorities, from what is shed first on.
const (
	Points Priority = iota
	Read
	Place
	Cancel
	Pay
	prioritiesMax
)

var priorityNames = [prioritiesMax]string{"points", "read", "place", "cancel", "pay"}

// String names the priority as policies and metrics do.
func (p Priority) String() string {
	if p < prioritiesMax {
		return priorityNames[p]
	}
	return fmt.Sprintf("priority %d", uint8(p))
}

// UnmarshalText reads a priority as String writes it.
func (p *Priority) UnmarshalText(text []byte) error {
	for i, name := range priorityNames {
		if name == string(text) {
			*p = Priority(i)
			return nil
		}
	}
	return fmt.Errorf("priority %q: want one of %s", text, strings.Join(priorityNames[:], ", "))
}

// MarshalText writes what UnmarshalText reads.
func (p Priority) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// PriorityOf returns the priority of a procedure, such as "/weir.order.v1.OrderService/PlaceOrder", unless a policy says another.
func PriorityOf(procedure string) Priority {
	switch procedure {
	case "/weir.order.v1.OrderService/CancelOrder", "/weir.order.v1.OrderService/RequestReturn":
		return Cancel
	case "/weir.order.v1.OrderService/PlaceOrder":
		return Place
	}
	switch service, _, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/"); service {
	case "weir.payment.v1.PaymentService":
		return Pay
	case "weir.points.v1.PointsService", "weir.report.v1.ReportService", "weir.webhook.v1.WebhookService":
		return Points
	}
	return Read
}

// A level is a priority and, within it, a place that is the user's: under load the same users are refused for a while, and the others are
// served whole, where by chance every user would lose a part of every purchase. A higher one goes first.
type level uint16

const (
	levelsPerPriority = 256
	levelsMax         = level(prioritiesMax) * levelsPerPriority
	// placesTurn is how long a user keeps a place. All gateways turn places at the same time of the clock.
	placesTurn = time.Hour
)

// levelOf returns the level of a user's call. Whoever has no name shares one place.
func levelOf(priority Priority, user string, now time.Time) level {
	const (
		offset = 14695981039346656037 // FNV-1a, 64 bit
		prime  = 1099511628211
	)
	hash := uint64(offset)
	for i := range len(user) {
		hash = (hash ^ uint64(user[i])) * prime
	}
	turn := uint64(now.Unix()) / uint64(placesTurn/time.Second)
	for range 8 {
		hash = (hash ^ turn&0xff) * prime
		turn >>= 8
	}
	hash ^= hash >> 32 // The last byte alone moves little up to the top.
	return level(min(priority, Pay))*levelsPerPriority + level(hash%levelsPerPriority)
}

func (l level) priority() Priority { return Priority(l / levelsPerPriority) }
