// Package points is the reactor that awards points: after an order was paid its user is given some, after money went back some
// are taken back. What they are worth, and that each is done once, is the domain's rule (domain.PointsFor).
//
// It holds up nobody: orders are placed, paid and shipped whether or not points can be written. While that fails, the reactor's
// position waits, and from there points are made up from the log when it succeeds again.
//
// With 0 points per major unit it submits nothing, neither awards nor what would take some back. Its position moves on all the same:
// points that are turned on later begin with what is paid from then on.
package points

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// Name is the reactor's name.
const Name = "points"

// inFlightMax bounds the commands of one lane that are under way at a time: enough for one group commit to take many.
const inFlightMax = 64

// A Reactor awards points and takes them back.
type Reactor struct {
	sink     lanes.Commands
	perMajor int64
	logger   *slog.Logger
}

var _ reactors.Reactor = (*Reactor)(nil)

// New returns the reactor. perMajor is how many points a whole major unit of money is worth: 0 (none are awarded) to domain.PointsPerMajorMax. Awards
// that were made keep the rule that held. A nil logger means slog.Default.
func New(sink lanes.Commands, perMajor int64, logger *slog.Logger) (*Reactor, error) {
	if sink == nil {
		return nil, errors.New("the points reactor needs a sink")
	}
	if perMajor < 0 || perMajor > domain.PointsPerMajorMax {
		return nil, fmt.Errorf("%d points per major unit are not 0 to %d", perMajor, domain.PointsPerMajorMax)
	}
	if logger == nil {
		logger = slog.Default()
	}
	return &Reactor{sink: sink, perMajor: perMajor, logger: logger}, nil
}

// Registration says how a runner is to run the reactor: from the beginning, the events of one order in order.
func (r *Reactor) Registration() reactors.Registration {
	return reactors.Registration{
		Reactor: r, Start: reactors.FromBeginning, InFlightMax: inFlightMax,
		Types: []string{stored.TypePaymentCaptured, stored.TypePaymentRefunded},
	}
}

// Name implements reactors.Reactor.
func (r *Reactor) Name() string { return Name }

// React submits the command that follows from the event. It is idempotent by the payment's or the refund's id.
func (r *Reactor) React(ctx context.Context, e reactors.Event) error {
	if r.perMajor == 0 {
		return nil
	}
	command := commandOf(e.Fact, r.perMajor)
	if command == nil {
		return nil
	}
	_, err := r.sink.Submit(ctx, lanes.Request{Partition: e.Partition, Command: command})
	var refusal domain.Refusal
	if errors.As(err, &refusal) {
		// It will be refused for ever, and must not hold up the points of others.
		r.logger.ErrorContext(ctx, "points are refused: somebody has to look at it", "event", e.ID, "order", e.AggregateID, "error", err)
		return nil
	}
	return err
}

// commandOf is what follows from an event, nil for nothing.
func commandOf(fact domain.Event, perMajor int64) domain.Command {
	if captured, ok := fact.(domain.PaymentCaptured); ok {
		return domain.AwardPoints{OrderID: captured.OrderID, PaymentID: captured.PaymentID, PerMajor: perMajor}
	}
	if refunded, ok := fact.(domain.PaymentRefunded); ok {
		return domain.TakeBackPoints{OrderID: refunded.OrderID, RefundID: refunded.RefundID}
	}
	return nil
}
