package courier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// Run answers other nodes until ctx ends: for the lanes that this node decides, and, by the node's id, for every lane, of which it names the
// owner if it is another one. What it has taken when ctx ends is still decided. When it begins and when it has ended, and whenever its
// connection broke meanwhile, it has others ask again what they wait for an answer to from it. An error says that the connection is closed.
func (c *Courier) Run(ctx context.Context, local Local) error {
	// A command that was taken is decided within its own time, also when this node stops.
	deciding := context.WithoutCancel(ctx)
	watch, unwatch := context.WithCancel(deciding)
	defer unwatch()
	c.closing.Go(func() {
		if err := c.watchConnections(watch); err != nil {
			c.fail(err)
		}
	})
	c.mu.Lock()
	c.local = local
	c.open = func(lane uint32) error { return c.serve(deciding, local, lane) }
	for lane, owned := range c.owned {
		if owned {
			c.begin(lane)
		}
	}
	if c.options.NodeID != "" {
		for lane := range c.options.Topology.Lanes {
			service, err := c.answer(deciding, local, lane, eventstore.NodeCommandSubject(lane, c.options.NodeID))
			if err != nil {
				c.fail(err)
				break
			}
			c.addressed = append(c.addressed, service)
		}
	}
	c.mu.Unlock()
	c.sayBack()
	var err error
	select {
	case <-ctx.Done():
	case err = <-c.failed:
	}
	c.mu.Lock()
	c.local, c.open = nil, nil
	for lane := range c.services {
		c.end(lane)
	}
	c.close(c.addressed)
	c.addressed = nil
	c.mu.Unlock()
	unwatch()
	c.closing.Wait()
	c.sayBack()
	return err
}

// Own is told when a lane begins to be decided here, and before it stops: see lanes.Options.OnOwnership. Commands that are on their way
// then are still answered, by whatever the lane says.
func (c *Courier) Own(lane uint32, owned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owned[lane] == owned {
		return
	}
	c.owned[lane] = owned
	switch {
	case !owned:
		c.end(lane)
	case c.open != nil:
		c.begin(lane)
	}
	c.waits.own(lane, owned)
}

// begin answers for a lane from now on. REQUIRES: c.mu, Run runs.
func (c *Courier) begin(lane uint32) {
	if err := c.open(lane); err != nil {
		c.fail(err)
	}
}

// fail ends Run. The first error is enough.
func (c *Courier) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}

// end answers no more for a lane than what is on its way here. REQUIRES: c.mu.
func (c *Courier) end(lane uint32) {
	c.close(c.services[lane])
	delete(c.services, lane)
}

// close lets nothing come to services any more than is on its way here. It does not wait. REQUIRES: c.mu.
func (c *Courier) close(services []*eventstore.Service) {
	for _, service := range services {
		service.Stop()
		c.closing.Go(service.Close)
	}
}

func (c *Courier) serve(ctx context.Context, local Local, lane uint32) error {
	commands, err := c.answer(ctx, local, lane, eventstore.CommandSubject(lane))
	if err != nil {
		return err
	}
	c.services[lane] = append(c.services[lane], commands)
	messages, err := c.options.Post.Hear(eventstore.EscrowSubject(lane), escrowPendingMax, func(data []byte) { c.hear(local, lane, data) })
	if err != nil {
		return err
	}
	c.services[lane] = append(c.services[lane], messages)
	return nil
}

// answer answers commands for a lane on a subject.
func (c *Courier) answer(ctx context.Context, local Local, lane uint32, subject string) (*eventstore.Service, error) {
	return c.options.Post.Serve(ctx, subject, c.options.InFlightMax, func(ctx context.Context, question []byte) []byte {
		outcome := c.decide(ctx, local, lane, question)
		return encode(make([]byte, 0, bytesUsual), &outcome, walkAnswer)
	})
}

// errRefusedAsAsked stands for a request's own Refusal, which stays with whoever sent the request.
var errRefusedAsAsked = errors.New("refused for the reason that came with the request")

// decide decides the command of another node. What goes wrong is told here, where it can be looked into, and there, where somebody
// waits.
func (c *Courier) decide(ctx context.Context, local Local, lane uint32, question []byte) (outcome answer) {
	var asked command
	defer func() {
		if value := recover(); value != nil { // A bug ends this command alone, as it does at home.
			c.options.Logger.LogAttrs(ctx, slog.LevelError, "deciding a command of another node panicked", slog.Any("lane", lane),
				slog.String("principal", asked.principal), slog.Any("panic", value), slog.String("stack", string(debug.Stack())))
			outcome = answer{failure: failureOf(lane, errPanicked)}
		}
	}()
	err := c.read(question, lane, &asked)
	if err == nil {
		var reply *lanes.Reply
		if reply, err = local.SubmitLocal(ctx, lane, asked.request); err == nil {
			return answer{reply: reply}
		}
	}
	failed := failureOf(lane, err)
	switch failed.kind.(type) { //nolint:errorlint // failureOf has looked into it.
	case *fault, *unsupported:
		c.options.Logger.LogAttrs(ctx, slog.LevelWarn, "a command of another node failed", slog.Any("lane", lane),
			slog.String("principal", asked.principal), slog.String("request_id", asked.request.RequestID), slog.Any("error", err))
	}
	return answer{failure: failed}
}

var errPanicked = errors.New("deciding panicked; the node's log says where")

// read reads a command for a lane and checks that the lane may decide it: what no node sends must not get so far as to break what
// the domain requires.
func (c *Courier) read(question []byte, lane uint32, asked *command) error {
	err := decode(question, asked, walkCommand)
	switch {
	case errors.Is(err, errNewer), asked.needs > protocol:
		return &unsupported{newest: protocol}
	case err != nil:
		return fmt.Errorf("the command cannot be read: %w", err)
	case asked.needs == 0:
		return errors.New("it is no command of a node")
	case asked.request.Command == nil:
		return &unsupported{newest: protocol}
	}
	partition, err := partitionOf(asked.request.Command)
	if err != nil {
		return err
	}
	if asked.request.Partition != partition || c.options.Topology.LaneOf(partition) != lane {
		return fmt.Errorf("%T is about a key of partition %d, and came for partition %d to lane %d", asked.request.Command, partition, asked.request.Partition, lane)
	}
	if asked.refuseNew {
		asked.request.Refusal = errRefusedAsAsked
	}
	return nil
}

// partitionOf returns the partition of the key that a command of another node is about.
func partitionOf(command domain.Command) (uint32, error) {
	switch command := command.(type) {
	case domain.PlaceOrder:
		return eventstore.PartitionOf(command.UserID), nil
	case domain.PutProduct:
		return eventstore.PartitionOf(command.SKU), nil
	case domain.ReceiveStock:
		return eventstore.PartitionOf(command.SKU), nil
	case domain.PreheatStock:
		return eventstore.PartitionOf(domain.HomeKey(command.SKU)), nil
	case domain.PutCampaign:
		return eventstore.PartitionOf(command.SKU), nil
	case domain.PutCoupon:
		return eventstore.PartitionOf(command.Code), nil
	case domain.EraseUser:
		return eventstore.PartitionOf(command.UserID), nil
	case domain.PutWebhookEndpoint, domain.DeleteWebhookEndpoint:
		return 0, nil
	case domain.ExpireOrder, domain.GrantStock, domain.AllotStock, domain.ReturnStock, domain.ReclaimStock: // The lane's own affair.
	case domain.CancelOrder, domain.StartPayment, domain.CapturePayment, domain.VoidPayment, domain.RecordPaymentResult,
		domain.RecordStrayPayment, domain.RefundPayment, domain.RecordRefundResult, domain.ShipItems, domain.ConfirmDelivery,
		domain.RequestReturn, domain.ReceiveReturn, domain.AddNote, domain.AwardPoints, domain.TakeBackPoints:
		id, _ := domain.CommandOrderID(command)
		return id.Partition(), nil
	}
	return 0, fmt.Errorf("no node has another one decide %T", command)
}

// hear gives a message of another lane's escrow to that of a lane of this node. What cannot be read is lost, as Transport allows.
func (c *Courier) hear(local Local, lane uint32, data []byte) {
	var message lanes.Message
	if err := decode(data, &message, walkMessage); err != nil {
		c.options.Logger.Warn("a message to an escrow cannot be read", "lane", lane, "error", err)
		return
	}
	if message.Kind == 0 || message.To != lane || message.From >= c.options.Topology.Lanes {
		c.options.Logger.Warn("a message to an escrow is none", "lane", lane, "kind", message.Kind, "from", message.From, "to", message.To)
		return
	}
	local.Deliver(message)
}
