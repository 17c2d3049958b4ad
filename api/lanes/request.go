// Package lanes decides: it binds the domain to the lanes of the event store. A Machine is one lane's state machine, a
// Set is the lanes of this node.
package lanes

import (
	"context"
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
)

// A Request is one command and who sent it.
type Request struct {
	// UserID is whose request ids these are: the user who orders, or the operator who keeps the catalogue. For
	// commands on an order that exists it is ignored, the order's own user counts.
	UserID string
	// RequestID names the request for ever; empty when it need not be remembered.
	RequestID string
	// Fingerprint identifies the request's body.
	Fingerprint Fingerprint
	// Keyed says that the second half of Fingerprint is made under the user's key, and the first one of all that is not
	// personal. Once the key is erased, the first half alone has to match.
	Keyed bool
	// Former is the fingerprint that an older program gave the same request; zero for none.
	Former Fingerprint
	// Partition of the key that the command is about.
	Partition uint32
	// Owner, when set, makes every order that is not this user's a missing one (I7).
	Owner string
	// Refusal, when set, is the answer unless the request was accepted before: what makes it invalid here and now, such as this node's
	// configuration, did not hold then. The command is not decided.
	Refusal error
	// Command to decide. The lane fills in what only it may: PlaceOrder's OrderID and PayBy.
	Command domain.Command
}

// A Fingerprint is the first 16 bytes of the SHA-256 of a request's canonical form.
type Fingerprint [16]byte

// A Reply is what a command led to. The same request gets the same reply, for ever (I4). It is large, and whoever passes it on passes on the
// pointer; nobody changes it once it is given.
type Reply struct {
	// Lane and Commit are the revision at which the command took effect, At its log time.
	Lane   uint32
	Commit uint64
	At     time.Time
	// Order after the command, and OrderCommit, its newest change. Set for commands on orders.
	Order       domain.Order
	OrderCommit uint64
	// PartID is the payment, refund, shipment, return or note of the order that the command made, or else the one that it was about.
	// Empty for commands that are about none, and for notes of old.
	PartID string
	// Product after PutProduct.
	Product domain.Product
	// Campaign after PutCampaign.
	Campaign domain.Campaign
	// Coupon after PutCoupon.
	Coupon domain.Coupon
	// Received by ReceiveStock.
	Received domain.StockReceived
	// Erased by EraseUser.
	Erased domain.UserErased
	// Granted by PreheatStock to each lane.
	Granted domain.StockGranted
	// Stock is the lane's account after a command of an escrow.
	Stock domain.Account
	// Endpoint as PutWebhookEndpoint said it.
	Endpoint domain.WebhookEndpointPut
}

// Commands takes requests. Set implements it.
type Commands interface {
	// Submit decides a request and returns once its effect is durable. An order for units that are on their way waits for them,
	// for a time. Errors: a domain.Refusal, *domain.KeyErasedError, *KeyReusedError,
	// *eventstore.QueueFullError, *eventstore.UnavailableError, eventstore.ErrLogFull, or ctx's; then there is no reply.
	Submit(ctx context.Context, request Request) (*Reply, error)
}

// A KeyReusedError says that a request id was used before, with another body (I4).
type KeyReusedError struct {
	UserID    string
	RequestID string
}

func (e *KeyReusedError) Error() string {
	return fmt.Sprintf("request id %s was used before with another body; use a new id for a new request", e.RequestID)
}
