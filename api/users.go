package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	userv1 "github.com/weirhq/weir/proto/weir/user/v1"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
)

// userService is weir.user.v1.UserService.
type userService struct{ *Handler }

// ExportUser implements userv1connect.UserServiceHandler.
func (s userService) ExportUser(ctx context.Context, request *userv1.ExportUserRequest) (*userv1.ExportUserResponse, error) {
	response, err := s.exportUser(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, userv1connect.UserServiceExportUserProcedure, err)
	}
	return response, nil
}

func (s userService) exportUser(ctx context.Context, request *userv1.ExportUserRequest) (*userv1.ExportUserResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	userID, err := personFor(ctx, request.UserId)
	if err != nil {
		return nil, err
	}
	min, err := s.minOf(request.MinRevision, request.WaitBudget, s.topology.LaneOf(eventstore.PartitionOf(userID)))
	if err != nil {
		return nil, err
	}
	page, freshness, err := s.views.Orders(ctx, projections.OrdersQuery{
		UserID: userID, PageSize: int(request.PageSize), PageToken: request.PageToken, Events: true,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, err)
	}
	response := &userv1.ExportUserResponse{UserId: userID, NextPageToken: page.Next, Freshness: newFreshness(freshness)}
	for i := range page.Orders {
		view := &page.Orders[i]
		exported := &userv1.ExportedOrder{}
		if exported.Order, err = s.newOrder(ctx, view); err != nil {
			return nil, err
		}
		for _, entry := range view.Events {
			event, err := s.exportEvent(ctx, userID, view.Revision.Lane, entry)
			if err != nil {
				return nil, fmt.Errorf("export order %v: %w", view.Order.ID, err)
			}
			exported.Events = append(exported.Events, event)
		}
		response.Orders = append(response.Orders, exported)
	}
	return response, nil
}

// exportEvent makes the message of one event, with what is sealed in it opened.
func (h *Handler) exportEvent(ctx context.Context, userID string, lane uint32, entry projections.Entry) (*userv1.ExportedEvent, error) {
	text, err := stored.JSON(entry.Type, entry.Version, entry.Payload)
	if err != nil {
		return nil, err
	}
	details := &structpb.Struct{}
	if err := protojson.Unmarshal(text, details); err != nil {
		return nil, err
	}
	if err := h.openDetails(ctx, userID, details.GetFields()); err != nil {
		return nil, err
	}
	return &userv1.ExportedEvent{
		Type: entry.Type, Time: fillTime(&timestamppb.Timestamp{}, entry.At), Details: details,
		Revision: &typev1.Revision{Lane: lane, Commit: entry.Number},
	}, nil
}

// sealedPrefix is how the names of sealed fields begin; what they hold is shown under the rest of the name.
const sealedPrefix = "sealed"

// openDetails opens every sealed field of an event, whatever its type. What is erased or does not open is left out.
func (h *Handler) openDetails(ctx context.Context, userID string, fields map[string]*structpb.Value) error {
	var names []string
	for name := range fields {
		if strings.HasPrefix(name, sealedPrefix) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		sealed, err := base64.StdEncoding.DecodeString(fields[name].GetStringValue())
		delete(fields, name)
		if err != nil {
			continue // A field of that name that is not of bytes.
		}
		text, err := h.sealer.Open(ctx, userID, sealed)
		switch {
		case errors.Is(err, sealing.ErrErased), errors.Is(err, sealing.ErrDamaged):
			continue
		case err != nil:
			return &keysError{err}
		}
		shown := "text" // Of a field that is called sealed and nothing else.
		if rest := strings.TrimPrefix(name, sealedPrefix); rest != "" {
			shown = strings.ToLower(rest[:1]) + rest[1:]
		}
		fields[shown] = structpb.NewStringValue(strings.ToValidUTF8(string(text), "\uFFFD"))
		if person, err := readPersonal(text); name == "sealedPersonal" && err == nil {
			value := &structpb.Struct{}
			if text, err := protojson.Marshal(person); err == nil && protojson.Unmarshal(text, value) == nil {
				fields[shown] = structpb.NewStructValue(value)
			}
		}
	}
	return nil
}

// EraseUser implements userv1connect.UserServiceHandler.
func (s userService) EraseUser(ctx context.Context, request *userv1.EraseUserRequest) (*userv1.EraseUserResponse, error) {
	response, err := s.eraseUser(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, userv1connect.UserServiceEraseUserProcedure, err)
	}
	return response, nil
}

// eraseUser records the erasure and then destroys the key. Stopped in between, the log says what is left to do: the same request
// does it, or the user's next order, or the node's next start (FinishErasures).
func (s userService) eraseUser(ctx context.Context, request *userv1.EraseUserRequest) (*userv1.EraseUserResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	userID, err := personFor(ctx, request.UserId)
	if err != nil {
		return nil, err
	}
	if request.ConfirmUserId != userID {
		return nil, invalidArgument("confirm_user_id", "it is not the id of the user to erase")
	}
	// Every user has a key here, so that an order which is placed at this moment is sealed under the erased key or a later one.
	key, err := s.sealer.Key(ctx, userID)
	if err != nil {
		return nil, &keysError{err}
	}
	reply, err := s.commands.Submit(ctx, lanes.Request{
		UserID: userID, RequestID: request.RequestId, Fingerprint: fingerprintEraseUser(userID),
		Partition: eventstore.PartitionOf(userID),
		Command:   domain.EraseUser{UserID: userID, Key: domain.KeyID(key), By: identity.FromContext(ctx).Subject},
	})
	if err != nil {
		return nil, err
	}
	if err := s.sealer.Destroy(ctx, userID, uint64(reply.Erased.Key)); err != nil {
		return nil, &keysError{err}
	}
	return &userv1.EraseUserResponse{
		UserId: userID, ErasedAt: fillTime(&timestamppb.Timestamp{}, reply.At), Revision: &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit},
	}, nil
}

// personFor returns the user whom a call concerns as a person: the token's subject, or anybody for an operator. The scope
// act-as does not reach so far: it is for what a shop does for its users, and a stolen one is everybody's.
func personFor(ctx context.Context, userID string) (string, error) {
	caller := identity.FromContext(ctx)
	if userID == "" || userID == caller.Subject {
		return caller.Subject, nil
	}
	if !caller.Operates() {
		return "", permissionDenied(identity.ScopeOperator)
	}
	return userID, nil
}

// FinishErasures destroys every key that the log says is erased and that is there all the same: because a node was stopped
// between the two, or because an older backup of the keys was restored. each calls its argument with every erased key.
func FinishErasures(ctx context.Context, sealer Sealer, each func(func(userID string, key domain.KeyID) error) error) error {
	return each(func(userID string, key domain.KeyID) error {
		return sealer.Destroy(ctx, userID, uint64(key))
	})
}

var _ userv1connect.UserServiceHandler = userService{}
