package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/registry"
	"github.com/weirhq/weir/gateway/room"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

// roomRequestBytesMax bounds a request to the waiting room.
const roomRequestBytesMax = 4 << 10

// openBoard makes the board that looks at what the policy names, unless there is one or nothing is named.
func (g *Gateway) openBoard(options Options) (err error) {
	g.board = options.Board
	items := options.Policy.Board
	switch {
	case g.board != nil:
		return nil
	case len(items) == 0 && options.Policy.Edge.SoldOut:
		return &NeedError{Key: "edge.sold_out", Option: "Board"}
	case len(items) == 0:
		return nil
	}
	if options.OperatorToken == nil {
		return &NeedError{Key: "board", Option: "OperatorToken"}
	}
	client := &http.Client{Transport: &steadyTransport{gateway: g, token: options.OperatorToken}}
	const base = "http://gateway"
	g.board, err = edge.NewBoard(edge.BoardOptions{
		Items: items, Logger: g.logger,
		Catalog:   catalogv1connect.NewCatalogServiceClient(client, base),
		Campaigns: campaignv1connect.NewCampaignServiceClient(client, base),
		Orders:    orderv1connect.NewOrderServiceClient(client, base),
	})
	if err == nil {
		g.behind = append(g.behind, g.board.Run)
	}
	return err
}

// openHall makes the waiting rooms of the campaigns that the policy names.
func (g *Gateway) openHall(options Options) (err error) {
	config := options.Policy.Room
	if len(config.Campaigns) == 0 {
		return nil
	}
	if len(options.RoomKeys) == 0 || options.User == nil {
		return &NeedError{Key: "room", Option: "RoomKeys"}
	}
	g.hall, err = room.New(room.Options{
		Config: config, Keys: options.RoomKeys, Uses: options.RoomUses, Logger: g.logger,
		Rate:  g.lanesRate,
		Left:  func(campaignID string) (int64, bool) { return unitsLeft(g.board, options.Policy.Board, campaignID) },
		Share: func() float64 { return shareOf(options) },
		User:  func(_ context.Context, authorization string) (string, bool) { return options.User(authorization) },
	})
	if err != nil {
		return err
	}
	if options.Subject == nil { // A name that somebody made up must not use another's turn.
		told := g.caller
		g.caller = func(header http.Header) caller {
			values := header["Authorization"]
			if len(values) != 1 {
				return caller{}
			}
			user, verified := options.User(values[0])
			if !verified {
				return caller{}
			}
			return caller{subject: user, actsForOthers: told(header).actsForOthers}
		}
	}
	g.behind = append(g.behind, g.hall.Run)
	_, g.waiting = roomv1connect.NewRoomServiceHandler(g.hall, connect.WithReadMaxBytes(roomRequestBytesMax))
	return nil
}

// SetRoomKeys makes the waiting rooms sign and verify with other keys from now on. Whoever waits keeps its place. On an error the keys from before
// stay; a *room.DrawError says that one of them is needed until a campaign opens. Without rooms it does nothing.
func (g *Gateway) SetRoomKeys(keys []room.Key) error {
	if g.hall == nil {
		return nil
	}
	return g.hall.SetKeys(time.Now(), keys)
}

// lanesRate is that of the nodes in the registry, 0 without one.
func (g *Gateway) lanesRate() float64 {
	if g.registry == nil {
		return 0
	}
	return lanesRate(g.registry.Now().Nodes)
}

// lanesRate returns how much all lanes do in a second, as their nodes measured it while they had enough to do, 0 while none has. A lane that
// has not had enough yet counts like the others: a campaign's users are spread over all of them.
func lanesRate(nodes []registry.Node) float64 {
	sum, measured, lanes := 0.0, 0, 0
	for _, node := range nodes {
		if node.Suspect {
			continue // Its lanes are somebody else's by now, or nobody's.
		}
		for _, lane := range node.Member.GetLanes() {
			lanes++
			if perSecond := lane.GetDecidedPerSecond(); perSecond > 0 {
				measured++
				sum += float64(perSecond)
			}
		}
	}
	if measured == 0 {
		return 0
	}
	return sum / float64(measured) * float64(lanes)
}

// shareOf returns this gateway's part of all that are let in: one by the gateways that there are, as far as Redis, NATS or the policy tell. Too many
// is the safe side. It is 0 while NATS, which is to tell, was never reached, unless the policy says how many there are.
func shareOf(options Options) float64 {
	gateways := max(1, options.Policy.Room.Gateways)
	if options.Globals != nil {
		gateways = max(gateways, options.Globals.Gateways())
	}
	if options.Presence != nil {
		count, known := options.Presence.Gateways()
		if !known && options.Policy.Room.Gateways == 0 {
			return 0
		}
		gateways = max(gateways, count)
	}
	return 1 / float64(gateways)
}

// unitsLeft returns how many units of a campaign are to be had, of all its products that the board looks at.
func unitsLeft(board *edge.Board, items []edge.Item, campaignID string) (units int64, known bool) {
	for _, item := range items {
		if item.CampaignID != campaignID {
			continue
		}
		left, seen := board.Left(item)
		if !seen {
			return 0, false
		}
		units, known = units+max(left, 0), true
	}
	return units, known
}

// checkPass says why an order of a campaign with a waiting room is not taken, or whom to tell how it ended. It is nil if there are no rooms.
func (g *Gateway) checkPass() func(*http.Request, string, *orderv1.PlaceOrderRequest) (func(connect.Code), *connect.Error) {
	if g.hall == nil {
		return nil
	}
	return func(r *http.Request, user string, request *orderv1.PlaceOrderRequest) (func(connect.Code), *connect.Error) {
		campaignID := request.GetCampaignId()
		if waits, says := g.rules.Load().planned.set.WaitingRooms[campaignID]; says && !waits {
			return nil, nil
		}
		message, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
		if err != nil { // Not valid UTF-8, which the node refuses as well.
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the order cannot be read: %w", err))
		}
		done, refused := g.hall.Check(r.Context(), time.Now(), user, campaignID, r.Header.Get(room.HeaderPass), room.OrderOf(message))
		if done == nil {
			return nil, refused
		}
		call := callOf(r.Context())
		return func(code connect.Code) { done(call.endOfOrder(code)) }, nil
	}
}

// endOfOrder says what is known of an order that was answered with a code: whether it may have been placed.
func (c *call) endOfOrder(code connect.Code) room.End {
	switch code {
	case 0: // The order; or it is kept for later, and holds the turn.
		return room.Placed
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied, connect.CodeFailedPrecondition,
		connect.CodeAborted, connect.CodeOutOfRange, connect.CodeUnimplemented, connect.CodeUnauthenticated:
		return room.Refused // A node said so, after it had looked for an order of this request.
	case connect.CodeUnavailable, connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss, connect.CodeDeadlineExceeded, connect.CodeResourceExhausted, connect.CodeCanceled:
	}
	if !c.sent.Load() {
		return room.Refused
	}
	return room.Unknown
}

// isWaiting is whether a call is one to the waiting room, which no node serves.
func (g *Gateway) isWaiting(c *call) bool {
	return g.waiting != nil && strings.HasPrefix(c.method.name, "/"+roomv1connect.RoomServiceName+"/")
}

// checkStart says what a changed policy asks for that only a start can do.
func (g *Gateway) checkStart(p policy.Policy) error {
	for _, item := range p.Board {
		if g.board == nil {
			return fmt.Errorf("board: %s: this gateway was started without a board; start it again", item.SKU)
		}
	}
	for _, campaign := range p.Room.Campaigns {
		if g.hall == nil {
			return fmt.Errorf("room: campaign %s: this gateway was started without waiting rooms; start it again", campaign.CampaignID)
		}
	}
	return nil
}

// A steadyTransport sends every request to the same upstream, as long as that answers, with an operator's token. Views of two nodes are not
// equally new, and what one saw of the stock is not to be compared with what another knows of the orders.
type steadyTransport struct {
	gateway *Gateway
	token   func() (string, error)
	// next counts the upstreams that failed.
	next atomic.Uint64
}

// RoundTrip implements http.RoundTripper.
func (t *steadyTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	token, err := t.token()
	if err != nil {
		return nil, err
	}
	known := t.gateway.upstreams.Load().all()
	if len(known) == 0 {
		return nil, errors.New("there is no node to ask")
	}
	at := t.next.Load()
	to := known[at%uint64(len(known))]
	ctx := request.Context()
	if t.gateway.methods[request.URL.Path].isUnary() {
		ctx = contextOfUnary(ctx)
	}
	out := request.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.Host = to.scheme, to.host, ""
	out.Header.Set("Authorization", "Bearer "+token)
	response, err := to.unary.RoundTrip(out)
	if err != nil && request.Context().Err() == nil {
		t.next.CompareAndSwap(at, at+1)
	}
	return response, err
}

// isUnary is whether a method of the schema has one request and one reply.
func (m *method) isUnary() bool { return m != nil && m.unary }
