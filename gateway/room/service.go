package room

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

var _ roomv1connect.RoomServiceHandler = (*Hall)(nil)

const (
	// ErrorDomain is the domain of every google.rpc.ErrorInfo.
	ErrorDomain = "weir"
	// ReasonWaitingRoom is the reason of an order without a pass, or of a ticket that is not good.
	ReasonWaitingRoom = "WAITING_ROOM"
	// HeaderPass carries the pass with PlaceOrder.
	HeaderPass = "Weir-Room-Pass"
)

// Enter implements roomv1connect.RoomServiceHandler.
func (h *Hall) Enter(ctx context.Context, request *roomv1.EnterRequest) (*roomv1.EnterResponse, error) {
	user, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	r := h.rooms[request.GetCampaignId()]
	if r == nil {
		return nil, refusal(connect.CodeNotFound, request.GetCampaignId(), causeNoRoom, "the campaign has no waiting room")
	}
	keys, now := h.keys.Load(), time.Now()
	_, at, err := r.enter(user, rankOf(keys.draws(), r.campaign, user, now), true)
	if err != nil {
		return nil, h.full(r, err)
	}
	return &roomv1.EnterResponse{
		Ticket: keys.ticket(now, r.campaign.CampaignID, user, at), OpensAt: timestamppb.New(r.campaign.OpensAt),
	}, nil
}

// Wait implements roomv1connect.RoomServiceHandler.
func (h *Hall) Wait(ctx context.Context, request *roomv1.WaitRequest, stream *connect.ServerStream[roomv1.WaitResponse]) error {
	user, err := h.caller(ctx)
	if err != nil {
		return err
	}
	found, err := h.find(user, request.GetTicket())
	if err != nil {
		return err
	}
	return found.room.wait(ctx, found.id, func(s standing) error { return stream.Send(h.response(user, found, s)) })
}

// Poll implements roomv1connect.RoomServiceHandler.
func (h *Hall) Poll(ctx context.Context, request *roomv1.PollRequest) (*roomv1.PollResponse, error) {
	user, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	found, err := h.find(user, request.GetTicket())
	if err != nil {
		return nil, err
	}
	s, after := found.room.poll(time.Now(), found.id)
	told := h.response(user, found, s)
	response := &roomv1.PollResponse{
		State: told.GetState(), Before: told.GetBefore(), Eta: told.GetEta(), Pass: told.GetPass(), PassExpires: told.GetPassExpires(), Ticket: told.GetTicket(),
	}
	if after > 0 {
		response.PollAfter = durationpb.New(after.Round(time.Millisecond))
	}
	return response, nil
}

// A found place is one that a ticket stands for.
type found struct {
	room     *room
	id       placeID
	rank     rank
	signedBy keyID // the ticket
}

// find returns the place that a user's ticket stands for.
func (h *Hall) find(user, ticket string) (found, error) {
	campaignID, _, _ := strings.Cut(ticket, ".")
	r := h.rooms[campaignID]
	if r == nil {
		return found{}, refusal(connect.CodeNotFound, "", causeNoRoom, "the ticket is for no room that there is")
	}
	_, at, signedBy, err := h.keys.Load().readTicket(time.Now(), user, ticket)
	switch {
	case errors.Is(err, errKeyGone):
		return found{}, refusal(connect.CodePermissionDenied, campaignID, causeKeyGone, fmt.Sprintf("ticket: %v; enter again", err))
	case err != nil:
		return found{}, refusal(connect.CodePermissionDenied, campaignID, causeForged, fmt.Sprintf("ticket: %v", err))
	}
	id, at, err := r.enter(user, at, false)
	if err != nil {
		return found{}, h.full(r, err)
	}
	return found{r, id, at, signedBy}, nil
}

func (h *Hall) response(user string, of found, s standing) *roomv1.WaitResponse {
	keys, now := h.keys.Load(), time.Now()
	response := &roomv1.WaitResponse{Before: s.before}
	if _, signs := keys.signing(now); signs != of.signedBy {
		response.Ticket = keys.ticket(now, of.room.campaign.CampaignID, user, of.rank)
	}
	if s.eta > 0 {
		response.Eta = durationpb.New(s.eta)
	}
	switch s.state {
	case NotOpen:
		response.State = roomv1.WaitState_WAIT_STATE_NOT_OPEN
	case Waiting:
		response.State = roomv1.WaitState_WAIT_STATE_WAITING
	case Admitted:
		response.State = roomv1.WaitState_WAIT_STATE_ADMITTED
		response.Pass, response.PassExpires = keys.pass(now, of.room.campaign.CampaignID, user, of.rank.late, s.until), timestamppb.New(s.until)
	case SoldOut:
		response.State = roomv1.WaitState_WAIT_STATE_SOLD_OUT
	case Closed:
		response.State = roomv1.WaitState_WAIT_STATE_CLOSED
	}
	return response
}

// caller returns the user whom the call's token is of.
func (h *Hall) caller(ctx context.Context) (string, error) {
	call, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		panic("room: bug: called by no handler of Connect")
	}
	user, ok := h.options.User(ctx, call.RequestHeader().Get("Authorization"))
	if !ok || user == "" {
		return "", connect.NewError(connect.CodeUnauthenticated, errors.New("a waiting room needs a good token"))
	}
	return user, nil
}

// fullRetry is when to try again to enter a room that is full, at the earliest, and at twice that at the latest: it may have as many outside as inside.
const fullRetry = 30 * time.Second

// full says when to try again.
func (h *Hall) full(r *room, err error) *connect.Error {
	refused := refusal(connect.CodeResourceExhausted, r.campaign.CampaignID, causeFull, err.Error())
	if detail, detailErr := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(fullRetry + rand.N(fullRetry))}); detailErr == nil {
		refused.AddDetail(detail)
	}
	return refused
}

// Check says why an order of a user is not taken without waiting: because the campaign has a room, it is open, and the pass is none of the user's, or
// its turn was used for another order. With no error the order may go on; done, if it is not nil, is to be told once how that ended.
// An order that is no campaign's, or of one without a room, passes.
func (h *Hall) Check(ctx context.Context, now time.Time, user, campaignID, pass string, order Order) (done func(End), refused *connect.Error) {
	r := h.rooms[campaignID]
	if r == nil || now.Before(r.campaign.OpensAt) || !now.Before(r.campaign.ClosesAt) {
		return nil, nil // Outside of its time the node refuses the order in its own words.
	}
	if pass == "" {
		return nil, refusal(connect.CodeFailedPrecondition, campaignID, causeNoPass, "enter the campaign's waiting room first")
	}
	late, until, err := h.keys.Load().readPass(now, campaignID, user, pass)
	switch {
	case errors.Is(err, errKeyGone):
		return nil, refusal(connect.CodeFailedPrecondition, campaignID, causeKeyGone, fmt.Sprintf("pass: %v; wait with the ticket again", err))
	case err != nil:
		return nil, refusal(connect.CodeFailedPrecondition, campaignID, causeForged, fmt.Sprintf("pass: %v; wait with the ticket again", err))
	}
	who := hashOf([]byte(user))
	entered, came := time.Duration(late).Microseconds(), now.Sub(r.campaign.OpensAt).Microseconds()
	r.mu.Lock()
	if has, known := r.uses[who]; !now.Before(until) && (!known || has.order != order.hash) { // Who has used it may ask again what came of it.
		r.mu.Unlock()
		return nil, refusal(connect.CodeFailedPrecondition, campaignID, causeOver, "pass: its time is over; wait with the ticket again")
	}
	taken, err := r.takeTurn(who, order.hash, entered, came)
	r.mu.Unlock()
	if err != nil {
		return nil, h.full(r, err)
	}
	use := r.useOf(who, order.hash, entered, came)
	if taken && !h.shared.take(ctx, use) {
		taken = false
		r.mu.Lock()
		r.giveBackTurn(who, order.hash)
		r.spend(who, came)
		r.mu.Unlock()
	}
	if !taken {
		return nil, refusal(connect.CodeFailedPrecondition, campaignID, causeUsed,
			"pass: its turn has been used for another order; send that one again as it was, or enter the waiting room again for another turn")
	}
	return func(end End) {
		switch end {
		case Unknown:
		case Placed:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.spend(who, came)
		case Refused:
			r.mu.Lock()
			r.giveBackTurn(who, order.hash)
			r.mu.Unlock()
			h.shared.giveBack(ctx, use)
		}
	}, nil
}

// The causes of a refusal, for programs: the metadata "cause" of its ErrorInfo.
const (
	causeNoRoom  = "no_room"
	causeFull    = "full"
	causeNoPass  = "no_pass"
	causeForged  = "not_given"
	causeOver    = "over"
	causeKeyGone = "key_removed"
	causeUsed    = "used"
)

func refusal(code connect.Code, campaignID, cause, message string) *connect.Error {
	err := connect.NewError(code, errors.New(message))
	info := &errdetails.ErrorInfo{Reason: ReasonWaitingRoom, Domain: ErrorDomain, Metadata: map[string]string{"cause": cause}}
	if campaignID != "" {
		info.Metadata["campaign_id"] = campaignID
	}
	if detail, detailErr := connect.NewErrorDetail(info); detailErr == nil {
		err.AddDetail(detail)
	}
	return err
}
