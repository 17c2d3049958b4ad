package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/feed"
	"github.com/weirhq/weir/api/reactors/webhooks"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	webhookv1 "github.com/weirhq/weir/proto/weir/webhook/v1"
	"github.com/weirhq/weir/proto/weir/webhook/v1/webhookv1connect"
)

// Webhooks deliver to endpoints. webhooks.Outbox implements it.
type Webhooks interface {
	// Endpoints returns every endpoint, by id.
	Endpoints() []webhooks.Status
	// Await waits until what is said of endpoints up to a commit of lane 0 shows in Endpoints, or until wait is over.
	Await(ctx context.Context, commit uint64, wait time.Duration) bool
	// Deliveries, Replay and Resume return webhooks.ErrNoEndpoint for an endpoint that is not there.
	Deliveries(id string, before uint64, limit int) ([]webhooks.Delivery, error)
	// Replay returns reactors.ErrNoEvent for an event that is not public or not there, before anything is delivered.
	Replay(ctx context.Context, id string, eventIDs []string) ([]webhooks.Delivery, error)
	Resume(id string) error
}

const (
	// endpointAwaitMax is how long a change of an endpoint waits to show in the list.
	endpointAwaitMax = time.Second
	// deliveriesPageDefault is how many deliveries a page has unless the caller says otherwise.
	deliveriesPageDefault = 20
)

// webhookService is weir.webhook.v1.WebhookService. The gate in front of it lets operators in and nobody else.
type webhookService struct{ *Handler }

// PutEndpoint implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) PutEndpoint(ctx context.Context, request *webhookv1.PutEndpointRequest) (*webhookv1.PutEndpointResponse, error) {
	response, err := s.putEndpoint(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, webhookv1connect.WebhookServicePutEndpointProcedure, err)
	}
	return response, nil
}

func (s webhookService) putEndpoint(ctx context.Context, request *webhookv1.PutEndpointRequest) (*webhookv1.PutEndpointResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	if err := checkEndpoint(request); err != nil {
		return nil, err
	}
	all := s.webhooks.Endpoints()
	at := slices.IndexFunc(all, func(e webhooks.Status) bool { return e.ID == request.EndpointId })
	// The hash in the log is of a MAC: nobody who reads it can try secrets.
	mac, err := s.sealer.MAC(ctx, webhooks.SecretsUser, []byte(request.Secret))
	if err != nil {
		return nil, &keysError{err}
	}
	var sealed []byte
	if request.Secret == "" && at >= 0 {
		sealed = all[at].SealedSecret
	} else if sealed, err = s.sealSecret(ctx, request.Secret); err != nil {
		return nil, err
	}
	reply, err := s.submit(ctx, request.RequestId, fingerprintPutEndpoint(request, mac), domain.PutWebhookEndpoint{
		EndpointID: request.EndpointId, URL: request.Url, SealedSecret: sealed, Types: request.Types, Paused: request.Paused,
		By: identity.FromContext(ctx).Subject,
	})
	if err != nil {
		return nil, err
	}
	// Of a repeated request it is the first one's.
	secret, err := s.sealer.Open(ctx, webhooks.SecretsUser, reply.Endpoint.SealedSecret)
	if err != nil {
		return nil, &keysError{err}
	}
	return &webhookv1.PutEndpointResponse{
		EndpointId: reply.Endpoint.EndpointID, Secret: string(secret), Revision: &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit},
	}, nil
}

// checkEndpoint checks what the rules in the proto file cannot say.
func checkEndpoint(request *webhookv1.PutEndpointRequest) error {
	u, err := url.Parse(request.Url)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return invalidArgument("url", "it is not an http or https URL without user and fragment")
	}
	public := feed.Types()
	for i, name := range request.Types {
		if !slices.Contains(public, name) {
			return invalidArgument(fmt.Sprintf("types[%d]", i), "it is not the type of a public event")
		}
	}
	if request.Secret == "" {
		return nil
	}
	if _, err := webhooksig.ParseSecret(request.Secret); err != nil {
		return invalidArgument("secret", err.Error()) // The error does not show it.
	}
	return nil
}

// sealSecret seals a secret, a new one if it is empty.
func (s webhookService) sealSecret(ctx context.Context, secret string) ([]byte, error) {
	if secret == "" {
		secret = webhooksig.NewSecret().Encode()
	}
	sealed, err := s.sealer.Seal(ctx, webhooks.SecretsUser, []byte(secret))
	if err != nil {
		return nil, &keysError{err}
	}
	return sealed, nil
}

// submit sends a command to lane 0, where all endpoints are, in the name of the operator who called, and waits for it to show.
func (s webhookService) submit(ctx context.Context, requestID string, fingerprint lanes.Fingerprint, command domain.Command) (*lanes.Reply, error) {
	reply, err := s.commands.Submit(ctx, lanes.Request{
		UserID: identity.FromContext(ctx).Subject, RequestID: requestID, Fingerprint: fingerprint, Partition: 0, Command: command,
	})
	if err == nil {
		s.webhooks.Await(ctx, reply.Commit, endpointAwaitMax) // It took effect; if it does not show yet, it will.
	}
	return reply, err
}

// DeleteEndpoint implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) DeleteEndpoint(ctx context.Context, request *webhookv1.DeleteEndpointRequest) (*webhookv1.DeleteEndpointResponse, error) {
	fail := func(err error) (*webhookv1.DeleteEndpointResponse, error) {
		return nil, s.fail(ctx, webhookv1connect.WebhookServiceDeleteEndpointProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	reply, err := s.submit(ctx, request.RequestId, fingerprintDeleteEndpoint(request.EndpointId), domain.DeleteWebhookEndpoint{
		EndpointID: request.EndpointId, By: identity.FromContext(ctx).Subject,
	})
	if err != nil {
		return fail(err)
	}
	return &webhookv1.DeleteEndpointResponse{Revision: &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit}}, nil
}

// ListEndpoints implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) ListEndpoints(context.Context, *webhookv1.ListEndpointsRequest) (*webhookv1.ListEndpointsResponse, error) {
	response := &webhookv1.ListEndpointsResponse{}
	for _, e := range s.webhooks.Endpoints() {
		endpoint := &webhookv1.Endpoint{
			EndpointId: e.ID, Url: e.URL, Types: e.Types, Paused: e.Paused, CreateTime: timestamppb.New(e.CreatedAt), UpdateTime: timestamppb.New(e.UpdatedAt),
			Raised: e.Raised, Error: e.Error, LagCommits: e.LagCommits,
		}
		if e.Raised {
			endpoint.RaiseTime = timestamppb.New(e.RaisedAt)
		}
		response.Endpoints = append(response.Endpoints, endpoint)
	}
	return response, nil
}

// ResumeEndpoint implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) ResumeEndpoint(ctx context.Context, request *webhookv1.ResumeEndpointRequest) (*webhookv1.ResumeEndpointResponse, error) {
	err := s.validator.check(request)
	if err == nil {
		err = webhookFault(s.webhooks.Resume(request.EndpointId), request.EndpointId)
	}
	if err != nil {
		return nil, s.fail(ctx, webhookv1connect.WebhookServiceResumeEndpointProcedure, err)
	}
	return &webhookv1.ResumeEndpointResponse{}, nil
}

// ListDeliveries implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) ListDeliveries(ctx context.Context, request *webhookv1.ListDeliveriesRequest) (*webhookv1.ListDeliveriesResponse, error) {
	fail := func(err error) (*webhookv1.ListDeliveriesResponse, error) {
		return nil, s.fail(ctx, webhookv1connect.WebhookServiceListDeliveriesProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	size := int(request.PageSize)
	if size == 0 {
		size = deliveriesPageDefault
	}
	page, err := s.webhooks.Deliveries(request.EndpointId, request.Before, size+1)
	if err != nil {
		return fail(webhookFault(err, request.EndpointId))
	}
	response := &webhookv1.ListDeliveriesResponse{}
	if len(page) > size {
		page = page[:size]
		response.NextBefore = page[size-1].Number
	}
	response.Deliveries = newDeliveries(page)
	return response, nil
}

// ReplayDeliveries implements webhookv1connect.WebhookServiceHandler.
func (s webhookService) ReplayDeliveries(ctx context.Context, request *webhookv1.ReplayDeliveriesRequest) (*webhookv1.ReplayDeliveriesResponse, error) {
	fail := func(err error) (*webhookv1.ReplayDeliveriesResponse, error) {
		return nil, s.fail(ctx, webhookv1connect.WebhookServiceReplayDeliveriesProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	deliveries, err := s.webhooks.Replay(ctx, request.EndpointId, request.EventIds)
	if err != nil {
		return fail(webhookFault(err, request.EndpointId))
	}
	return &webhookv1.ReplayDeliveriesResponse{Deliveries: newDeliveries(deliveries)}, nil
}

func newDeliveries(all []webhooks.Delivery) []*webhookv1.Delivery {
	deliveries := make([]*webhookv1.Delivery, len(all))
	for i, d := range all {
		deliveries[i] = &webhookv1.Delivery{
			Number: d.Number, EventId: d.EventID, Type: d.Type, OrderId: d.OrderID, Time: timestamppb.New(d.At), Took: durationpb.New(d.Took),
			Status: int32(d.Status), Error: d.Error, Replayed: d.Replayed,
		}
	}
	return deliveries
}

// webhookFault explains an error of the webhooks of an endpoint.
func webhookFault(err error, endpointID string) error {
	switch {
	case errors.Is(err, webhooks.ErrNoEndpoint):
		return &fault{reason: ReasonEndpointNotFound, message: "there is no webhook endpoint " + endpointID, facts: map[string]string{"endpoint_id": endpointID}}
	case errors.Is(err, reactors.ErrNoEvent):
		return &fault{reason: ReasonEventNotFound, message: err.Error()}
	}
	return err
}

var _ webhookv1connect.WebhookServiceHandler = webhookService{}
