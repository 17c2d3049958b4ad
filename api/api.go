// Package api binds the Connect, gRPC and gRPC-Web services to commands and queries: it says who may ask what, refuses
// what is not a request, submits commands to the lanes and answers queries from the views.
//
// A handler may be called by any number of goroutines. What it refuses never reaches a lane.
package api

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
	"github.com/weirhq/weir/proto/weir/webhook/v1/webhookv1connect"
)

// Commands takes commands. lanes.Set implements it.
type Commands interface {
	// Submit decides a request and returns once its effect is durable. Errors: a domain.Refusal,
	// *lanes.KeyReusedError, *eventstore.QueueFullError, *eventstore.UnavailableError, eventstore.ErrLogFull, or ctx's.
	Submit(ctx context.Context, request lanes.Request) (*lanes.Reply, error)
}

// Views answers queries. projections.Views implements it. Each answer is at least as new as min, or its freshness says
// that it is not. Errors: projections.ErrNotFound, ErrBehind for a key that is missing while min is not reached,
// ErrParked for one that is missing because its events are parked, ErrBadPageToken, ErrTooManyWatchers, ErrStopped, or ctx's.
type Views interface {
	// OrderOf returns an order of a user. Another user's is answered exactly as a missing one (I7). An empty userID
	// means any user.
	OrderOf(ctx context.Context, id domain.OrderID, userID string, min projections.Min) (projections.OrderView, projections.Freshness, error)
	Orders(ctx context.Context, query projections.OrdersQuery, min projections.Min) (projections.OrdersPage, projections.Freshness, error)
	SearchOrders(ctx context.Context, query projections.SearchQuery, min projections.Min) (projections.OrdersPage, projections.Freshness, error)
	Product(ctx context.Context, sku string, min projections.Min) (projections.ProductView, projections.Freshness, error)
	Products(ctx context.Context, query projections.ProductsQuery, min projections.Min) (projections.ProductsPage, projections.Freshness, error)
	Stock(ctx context.Context, sku string, min projections.Min) (projections.StockView, projections.Freshness, error)
	// Campaign returns a campaign by id and SKU. An empty SKU means the only one of that id; of several it is
	// projections.ErrSeveral.
	Campaign(ctx context.Context, campaignID, sku string, min projections.Min) (projections.CampaignView, projections.Freshness, error)
	Campaigns(ctx context.Context, query projections.KeysQuery, min projections.Min) (projections.CampaignsPage, projections.Freshness, error)
	Coupon(ctx context.Context, code string, min projections.Min) (projections.CouponView, projections.Freshness, error)
	Coupons(ctx context.Context, query projections.KeysQuery, min projections.Min) (projections.CouponsPage, projections.Freshness, error)
	// Timeline returns a page of what became of an order. Users as with OrderOf.
	Timeline(ctx context.Context, query projections.TimelineQuery, min projections.Min) (projections.TimelinePage, projections.Freshness, error)
	NeedingAttention(ctx context.Context, query projections.AttentionQuery, min projections.Min) (projections.AttentionPage, projections.Freshness, error)
	// Points returns a user's balance and a page of its ledger, both of the same moment. Who never had any has none: it is never
	// projections.ErrNotFound.
	Points(ctx context.Context, query projections.PointsQuery, min projections.Min) (projections.PointsPage, projections.Freshness, error)
	// Sales returns what was sold, over all lanes. Errors beside the others': projections.ErrSalesRange.
	Sales(ctx context.Context, query projections.SalesQuery, min projections.Min) ([]projections.SalesRow, projections.Freshness, error)
	Board(ctx context.Context, query projections.BoardQuery, min projections.Min) (projections.BoardPage, projections.Freshness, error)
	// OrderAsOf returns an order as it was at a moment of the past. Users as with OrderOf.
	OrderAsOf(ctx context.Context, id domain.OrderID, userID string, moment projections.AsOf, min projections.Min) (projections.OrderView, projections.Freshness, error)
	// WatchOrder calls send with the order as it is now, or what its watcher missed, and then after each commit that changes
	// it, until send fails or ctx ends. Users as with OrderOf.
	WatchOrder(ctx context.Context, query projections.OrderWatch, min projections.Min, send func(projections.OrderView, projections.Freshness) error) error
	// WatchUser calls ready once what changes from then on will be sent, and send with each order of a user after each commit
	// that changes it. Errors beside the others': projections.ErrWatchTooOld.
	WatchUser(ctx context.Context, query projections.UserWatch, min projections.Min, ready func() error, send func(projections.UserChange, projections.Freshness) error) error
	// WatchStock calls ready once there is something to follow, and send with the stock of a SKU unless the token says that its
	// watcher has it, and then after each change.
	WatchStock(ctx context.Context, query projections.StockWatch, min projections.Min, ready func() error, send func(projections.StockChange, projections.Freshness) error) error
}

// A Sealer keeps personal data out of the log in the clear. sealing.Sealer implements it.
type Sealer interface {
	Seal(ctx context.Context, userID string, text []byte) ([]byte, error)
	// Open returns sealing.ErrErased when the user's key is gone.
	Open(ctx context.Context, userID string, sealed []byte) ([]byte, error)
	// MAC returns a MAC under a key that goes with the user's.
	MAC(ctx context.Context, userID string, text []byte) ([sha256.Size]byte, error)
	// Key returns the id of the user's key.
	Key(ctx context.Context, userID string) (sealing.KeyID, error)
	// Destroy destroys a key of the user for ever, if it is there.
	Destroy(ctx context.Context, userID string, id sealing.KeyID) error
}

// A Verifier turns an Authorization header into a caller. identity.Verifier implements it.
type Verifier interface {
	Verify(header string) (*identity.Principal, error)
}

// Options make a Handler. Commands, Verifier, Sealer, Topology and one of Views and ViewsAt are required.
type Options struct {
	Commands Commands
	Views    Views
	// ViewsAt returns the base URLs of the nodes that keep views, the best first, for a node that keeps none: calls that read views are
	// handed on to them. It is nil where there are Views.
	ViewsAt  func() []string
	Verifier Verifier
	Sealer   Sealer
	Topology eventstore.Topology
	// PaymentProviders are the names of the providers that payments may be started with, the default one first. With none,
	// no payment can be started.
	PaymentProviders []string
	// Webhooks deliver public events; nil means that there is no such service.
	Webhooks Webhooks
	// Cluster shares lanes among nodes; nil means that there is no such service.
	Cluster Cluster
	// Limits on what a caller may cost.
	Limits Limits
	// WaitsFor says, for people, what the node waits for until it takes commands, "" when it takes them; nil means that it always does. The
	// health service goes by it, and says it in HeaderWaitsFor.
	WaitsFor func() string
	// Logger is told of faults; nil means slog.Default.
	Logger *slog.Logger
}

// A Handler serves the API over HTTP. It starts no goroutine.
type Handler struct {
	commands  Commands
	views     Views
	verifier  Verifier
	sealer    Sealer
	topology  eventstore.Topology
	providers []string
	webhooks  Webhooks
	cluster   Cluster
	limits    Limits
	logger    *slog.Logger
	validator *validator
	watches   watches
	deadlines deadlines
	crowd     crowdRefusals
	errors    *connect.ErrorWriter
	// elsewhere has what reads views answered by other nodes; nil where there are views.
	elsewhere *elsewhere

	orders, payments, catalog, campaigns, coupons, points, reports, users, hooks, clusters, health, reflectV1, reflectV1Alpha mount
}

// mount is a service below its path.
type mount struct {
	path    string
	handler http.Handler
}

// NewHandler returns the handler of every service. Options that lack something are a bug of the program: it panics.
func NewHandler(options Options) *Handler {
	if options.Commands == nil || (options.Views == nil) == (options.ViewsAt == nil) || options.Verifier == nil || options.Sealer == nil {
		panic("api: bug: Options need Commands, either Views or ViewsAt, Verifier and Sealer")
	}
	if err := options.Topology.Validate(); err != nil {
		panic("api: bug: " + err.Error())
	}
	if err := options.Limits.Validate(); err != nil {
		panic("api: bug: " + err.Error())
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	limits := options.Limits.withDefaults()
	h := &Handler{
		commands: options.Commands, views: options.Views, verifier: options.Verifier, sealer: options.Sealer,
		topology: options.Topology, webhooks: options.Webhooks, cluster: options.Cluster, providers: slices.Clone(options.PaymentProviders), limits: limits, logger: options.Logger,
		validator: newValidator(), watches: newWatches(limits), deadlines: newDeadlines(limits), errors: connect.NewErrorWriter(),
	}
	if options.ViewsAt != nil {
		h.elsewhere = newElsewhere(h, options.ViewsAt)
	}
	open := []connect.HandlerOption{
		connect.WithReadMaxBytes(limits.RequestBytesMax),
		connect.WithCompressMinBytes(compressBytesMin),
		connect.WithCompression("gzip", func() connect.Decompressor {
			return &boundedGzip{bytesMax: int64(limits.RequestBytesMax) + 1}
		}, func() connect.Compressor { return gzip.NewWriter(nil) }),
		connect.WithCodec(newJSONCodec("json", limits.NestingMax)),
		connect.WithCodec(newJSONCodec("json; charset=utf-8", limits.NestingMax)),
		connect.WithRecover(h.recovered),
		connect.WithInterceptors(streamErrors{}),
	}
	authenticated := append(open[:len(open):len(open)], connect.WithRequestGate(h.authenticate))
	operators := append(authenticated[:len(authenticated):len(authenticated)], connect.WithRequestGate(operatorsOnly))
	mixed := append(authenticated[:len(authenticated):len(authenticated)], connect.WithRequestGate(operatorMethodsOnly))

	h.orders.path, h.orders.handler = orderv1connect.NewOrderServiceHandler(orderService{h}, mixed...)
	h.payments.path, h.payments.handler = paymentv1connect.NewPaymentServiceHandler(paymentService{h}, mixed...)
	h.catalog.path, h.catalog.handler = catalogv1connect.NewCatalogServiceHandler(catalogService{h}, operators...)
	h.campaigns.path, h.campaigns.handler = campaignv1connect.NewCampaignServiceHandler(campaignService{h}, authenticated...)
	h.coupons.path, h.coupons.handler = campaignv1connect.NewCouponServiceHandler(couponService{h}, operators...)
	h.points.path, h.points.handler = pointsv1connect.NewPointsServiceHandler(pointsService{h}, authenticated...)
	h.reports.path, h.reports.handler = reportv1connect.NewReportServiceHandler(reportService{h}, operators...)
	h.users.path, h.users.handler = userv1connect.NewUserServiceHandler(userService{h}, authenticated...)
	services := []string{
		orderv1connect.OrderServiceName, paymentv1connect.PaymentServiceName, catalogv1connect.CatalogServiceName, userv1connect.UserServiceName,
		campaignv1connect.CampaignServiceName, campaignv1connect.CouponServiceName, pointsv1connect.PointsServiceName, reportv1connect.ReportServiceName,
	}
	if h.webhooks != nil {
		h.hooks.path, h.hooks.handler = webhookv1connect.NewWebhookServiceHandler(webhookService{h}, operators...)
		services = append(services, webhookv1connect.WebhookServiceName)
	}
	if h.cluster != nil {
		h.clusters.path, h.clusters.handler = clusterv1connect.NewClusterServiceHandler(clusterService{h}, operators...)
		services = append(services, clusterv1connect.ClusterServiceName)
	}
	h.health.path, h.health.handler = grpchealth.NewHandler(&checker{services: services, waitsFor: options.WaitsFor}, open...)
	reflector := grpcreflect.NewStaticReflector(append(services, grpchealth.HealthV1ServiceName)...)
	h.reflectV1.path, h.reflectV1.handler = grpcreflect.NewHandlerV1(reflector, open...)
	h.reflectV1Alpha.path, h.reflectV1Alpha.handler = grpcreflect.NewHandlerV1Alpha(reflector, open...)
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := &explained{ResponseWriter: w, handler: h, request: r}
	h.serve(answer, r)
	answer.finish()
}

func (h *Handler) serve(w *explained, r *http.Request) {
	for _, m := range [...]*mount{
		&h.orders, &h.payments, &h.catalog, &h.campaigns, &h.coupons, &h.points, &h.reports, &h.users, &h.hooks, &h.clusters, &h.health, &h.reflectV1, &h.reflectV1Alpha,
	} {
		if m.handler != nil && strings.HasPrefix(r.URL.Path, m.path) {
			h.bound(w.ResponseWriter, r)
			if badBase64(r) {
				_ = h.errors.Write(w, r, invalidArgument("message", "it is not URL-safe base64").connectError())
				return
			}
			if h.elsewhere != nil && viewMethods[r.URL.Path] {
				h.elsewhere.serve(w.ResponseWriter, r)
				return
			}
			m.handler.ServeHTTP(w, r)
			return
		}
	}
	http.NotFound(w, r)
}

// authenticate is the gate in front of every service but health and reflection. It runs before a body is read.
func (h *Handler) authenticate(ctx context.Context, _ connect.Spec, _ connect.Peer, header http.Header) (context.Context, error) {
	var authorization string
	if values := header["Authorization"]; len(values) == 1 { // Two are one too many to be sure which counts.
		authorization = values[0]
	}
	principal, err := h.verifier.Verify(authorization)
	if err != nil {
		h.logger.LogAttrs(ctx, slog.LevelDebug, "token refused", slog.Any("error", err))
		return nil, unauthenticated().connectError()
	}
	return identity.NewContext(ctx, principal), nil
}

// operatorsOnly is the gate in front of the operator's services.
func operatorsOnly(ctx context.Context, _ connect.Spec, _ connect.Peer, _ http.Header) (context.Context, error) {
	if !identity.FromContext(ctx).Operates() {
		return nil, permissionDenied(identity.ScopeOperator).connectError()
	}
	return ctx, nil
}

// recovered turns a panic, which is a bug, into an internal error of that one call.
func (h *Handler) recovered(ctx context.Context, spec connect.Spec, _ http.Header, value any) error {
	h.logger.LogAttrs(ctx, slog.LevelError, "call panicked",
		slog.String("procedure", spec.Procedure), slog.Any("panic", value), slog.String("stack", string(debug.Stack())))
	f, _ := faultOf(errPanicked)
	return f.connectError()
}

// HeaderWaitsFor is the header of the health service's answer that says what a node waits for which is not serving.
const HeaderWaitsFor = "Weir-Waits-For"

// checker answers the health service: for the node (the empty name) and for each service alike.
type checker struct {
	services []string
	waitsFor func() string
}

// Check implements grpchealth.Checker.
func (c *checker) Check(ctx context.Context, request *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	known := request.Service == ""
	for _, service := range c.services {
		known = known || request.Service == service
	}
	switch {
	case !known:
		return nil, connect.NewError(connect.CodeNotFound, errUnknownService)
	case c.waitsFor == nil:
		return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
	}
	what := c.waitsFor()
	if what == "" {
		return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
	}
	if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
		call.ResponseHeader().Set(HeaderWaitsFor, what)
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
}
