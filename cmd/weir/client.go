package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
	"github.com/weirhq/weir/proto/weir/webhook/v1/webhookv1connect"
)

const (
	defaultAddr    = "http://127.0.0.1:8080"
	defaultTimeout = 10 * time.Second
	// responseBytesMax is the largest answer that the client takes in.
	responseBytesMax = 32 << 20
)

// A client is what the commands that talk to a node share.
type client struct {
	p    *process
	addr string
	// token is a bearer token; empty sends none.
	token string
	// timeout bounds one call; a watch has none.
	timeout time.Duration
}

// addFlags puts --addr, --token and --timeout on a group of commands.
func (c *client) addFlags(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.addr, "addr", defaultAddr, "`URL` of the node")
	flags.StringVar(&c.token, "token", "", "bearer `TOKEN`; WEIR_TOKEN keeps it out of the process list")
	flags.DurationVar(&c.timeout, "timeout", defaultTimeout, "how long one call may take")
	setting(flags, "addr", "token", "timeout")
}

// base checks the address and returns it without a trailing slash.
func (c *client) base() (string, error) {
	u, err := url.Parse(c.addr)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return "", usagef("%q is not the address of a node", c.addr).then("give --addr or WEIR_ADDR as %s", defaultAddr)
	}
	if c.timeout <= 0 {
		return "", usagef("--timeout must be more than 0, not %s", c.timeout)
	}
	return strings.TrimRight(c.addr, "/"), nil
}

func (c *client) orders() (orderv1connect.OrderServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return orderv1connect.NewOrderServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) catalog() (catalogv1connect.CatalogServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return catalogv1connect.NewCatalogServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) campaigns() (campaignv1connect.CampaignServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return campaignv1connect.NewCampaignServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) coupons() (campaignv1connect.CouponServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return campaignv1connect.NewCouponServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) users() (userv1connect.UserServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return userv1connect.NewUserServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) payments() (paymentv1connect.PaymentServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return paymentv1connect.NewPaymentServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) points() (pointsv1connect.PointsServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return pointsv1connect.NewPointsServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) reports() (reportv1connect.ReportServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return reportv1connect.NewReportServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) webhooks() (webhookv1connect.WebhookServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return webhookv1connect.NewWebhookServiceClient(c.http(), base, c.options()...), nil
}

func (c *client) options() []connect.ClientOption {
	return []connect.ClientOption{connect.WithReadMaxBytes(responseBytesMax)}
}

func (c *client) http() *http.Client {
	return &http.Client{Transport: &bearer{token: c.token, next: http.DefaultTransport}}
}

// bearer adds the token and the client's name to every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b *bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("User-Agent", "weir/"+moduleVersion())
	if b.token != "" {
		request.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(request)
}

// call runs one unary call within the timeout and explains its error.
func call[Q, A any](ctx context.Context, c *client, what string, do func(context.Context, Q) (A, error), question Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := do(ctx, question)
	if err != nil {
		return answer, c.explain(what, err)
	}
	return answer, nil
}

// read asks a service for something, as of the revision that min wants or newer, and prints the answer.
func read[S, Q any, A proto.Message](
	cmd *cobra.Command, c *client, min *minRevision, what string, service func() (S, error), do func(S, context.Context, Q) (A, error),
	question func(*typev1.Revision, *durationpb.Duration) Q, print func(A) error,
) error {
	revision, wait, err := min.parse()
	if err != nil {
		return err
	}
	return ask(cmd, c, what, service, do, question(revision, wait), print)
}

// ask is read for a question that no revision goes with.
func ask[S, Q any, A proto.Message](
	cmd *cobra.Command, c *client, what string, service func() (S, error), do func(S, context.Context, Q) (A, error), question Q, print func(A) error,
) error {
	s, err := service()
	if err != nil {
		return err
	}
	answer, err := call(cmd.Context(), c, what, func(ctx context.Context, q Q) (A, error) { return do(s, ctx, q) }, question)
	if err != nil {
		return err
	}
	if c.p.json(cmd) {
		return writeMessage(c.p.stdout, answer)
	}
	return print(answer)
}

// watch asks a service to follow something and prints each answer, until count of them (0 is no limit), the server's end or
// the caller's. again says how to go on after the server's end.
func watch[S, Q, A any](
	cmd *cobra.Command, c *client, count int, what, again string, service func() (S, error),
	do func(S, context.Context, Q) (*connect.ServerStreamForClient[A], error), question Q, print func(*A) error,
) error {
	if count < 0 {
		return usagef("--count must not be negative")
	}
	s, err := service()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	stream, err := do(s, ctx, question)
	if err != nil {
		return c.watchEnd(cmd.Context(), what, again, err)
	}
	defer func() {
		cancel() // Closing would otherwise read on to an end that does not come.
		_ = stream.Close()
	}()
	for printed := 0; stream.Receive(); {
		if err := print(stream.Msg()); err != nil {
			return err
		}
		if printed++; printed == count {
			return nil
		}
	}
	return c.watchEnd(cmd.Context(), what, again, stream.Err())
}

// watchEnd tells an end that was asked for from one that was not.
func (c *client) watchEnd(ctx context.Context, what, again string, err error) error {
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return nil
	}
	if err == nil {
		err = connect.NewError(connect.CodeUnavailable, errors.New("the node ended the watch"))
		p := problemOf(c.explain(what, err))
		p.what, p.next = what+": the node ended the watch", again
		return p
	}
	return c.explain(what, err)
}

// change asks a service for a change under the request id, which is made up when there is none, and prints the answer.
func change[S, Q any, A proto.Message](
	cmd *cobra.Command, c *client, request *requestID, what string, service func() (S, error), do func(S, context.Context, Q) (A, error),
	question func(requestID string) Q, print func(A) error,
) error {
	s, err := service()
	if err != nil {
		return err
	}
	if err := request.fill(c.p); err != nil {
		return err
	}
	answer, err := call(cmd.Context(), c, what, func(ctx context.Context, q Q) (A, error) { return do(s, ctx, q) }, question(request.value))
	if err != nil {
		return request.remind(err)
	}
	if c.p.json(cmd) {
		return writeMessage(c.p.stdout, answer, "requestId", request.value)
	}
	return print(answer)
}

// An orderAnswer is the answer to a change of an order.
type orderAnswer interface {
	proto.Message
	GetOrder() *orderv1.Order
	GetRevision() *typev1.Revision
}

// changeOrder is change for an order: it prints what became of it.
func changeOrder[S, Q any, A orderAnswer](
	cmd *cobra.Command, c *client, request *requestID, what string, service func() (S, error), do func(S, context.Context, Q) (A, error),
	question func(requestID string) Q,
) error {
	return change(cmd, c, request, what, service, do, question, func(answer A) error {
		part, id := changedPart(answer)
		return c.p.printOrder(answer.GetOrder(), part, id, "revision", revisionText(answer.GetRevision()), "request id", request.value)
	})
}

// explain says which thing failed and, when nobody answered, where it was looked for.
func (c *client) explain(what string, err error) error {
	var coded *connect.Error
	if !errors.As(err, &coded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	p := problemOfConnect(coded, err)
	if !connect.IsWireError(err) {
		switch coded.Code() {
		case connect.CodeUnavailable:
			p.what = fmt.Sprintf("no node answers at %s (%v)", c.addr, coded.Unwrap())
			p.next = "start one with 'weir dev', or say where it is with --addr or WEIR_ADDR"
		case connect.CodeDeadlineExceeded:
			p.what = fmt.Sprintf("no answer from %s within %s", c.addr, c.timeout)
			p.next = "repeat it, with the same --request-id if it changes something, or give it longer with --timeout"
		case connect.CodeUnknown, connect.CodeInternal, connect.CodeUnimplemented:
			p.what = fmt.Sprintf("%s does not answer as a weir node does (%s)", c.addr, p.what)
			p.next = "check --addr"
		}
	}
	p.what = what + ": " + p.what
	return p
}

// newRequestID makes up a request id.
func (p *process) newRequestID() (string, error) {
	id, err := ulid.New(ulid.Timestamp(p.now()), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make up a request id: %w", err)
	}
	return "cli-" + id.String(), nil
}

// requestID is the --request-id of a command that changes something.
type requestID struct {
	value string
	// made says that it was made up here.
	made bool
}

func (r *requestID) addFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.value, "request-id", "", "`ID` that names this request for ever; made up and printed when not given")
}

// fill makes an id up when none was given.
func (r *requestID) fill(p *process) error {
	if r.value != "" {
		return nil
	}
	value, err := p.newRequestID()
	r.value, r.made = value, true
	return err
}

// remind adds the made-up request id to an error after which the same call may be repeated.
func (r *requestID) remind(err error) error {
	var p *problem
	if r.made && errors.As(err, &p) && p.code == exitUnavailable {
		repeat := "repeat with --request-id " + r.value + ": it changes nothing twice"
		if strings.HasPrefix(p.next, "repeat with the same") || p.next == "" {
			p.next = repeat
		} else {
			p.next += "; then " + repeat
		}
	}
	return err
}

// minRevision is the --min-revision and --wait of a command that reads.
type minRevision struct {
	text string
	wait time.Duration
}

func (m *minRevision) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.text, "min-revision", "", "answer as of this revision or newer: `LANE:COMMIT` as a change prints it")
	cmd.Flags().DurationVar(&m.wait, "wait", time.Second, "how long to wait for --min-revision, at most 10s")
}

// parse returns the revision and the budget; nil when no revision was asked for.
func (m *minRevision) parse() (*typev1.Revision, *durationpb.Duration, error) {
	if m.text == "" {
		return nil, nil, nil
	}
	revision, err := parseRevision("--min-revision", m.text)
	if err != nil {
		return nil, nil, err
	}
	return revision, durationpb.New(m.wait), nil
}

// parseRevision reads LANE:COMMIT.
func parseRevision(flag, text string) (*typev1.Revision, error) {
	lane, commit, ok := strings.Cut(text, ":")
	laneNumber, laneErr := strconv.ParseUint(lane, 10, 32)
	commitNumber, commitErr := strconv.ParseUint(commit, 10, 64)
	if !ok || laneErr != nil || commitErr != nil {
		return nil, usagef("%s %q is not LANE:COMMIT", flag, text).then("give it as a change printed it, for example 0:42")
	}
	return &typev1.Revision{Lane: uint32(laneNumber), Commit: commitNumber}, nil
}

func revisionText(r *typev1.Revision) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", r.GetLane(), r.GetCommit())
}

// freshnessText says how far the view that answered has followed the log.
func freshnessText(f *typev1.Freshness) string {
	if f == nil {
		return ""
	}
	at := revisionText(f.GetRevision())
	switch f.GetState() {
	case typev1.Freshness_STATE_FRESH:
		return "fresh as of " + at
	case typev1.Freshness_STATE_CATCHING_UP:
		return fmt.Sprintf("catching up, %d commits behind; as of %s, %s", f.GetLagCommits(), at, timeText(f.GetAsOf()))
	case typev1.Freshness_STATE_REBUILDING:
		return "as of " + at + ", while a new generation of the view is built"
	case typev1.Freshness_STATE_PARKED:
		return "parked as of " + at + ": a change of it could not be applied and waits for replay"
	case typev1.Freshness_STATE_UNSPECIFIED:
		return "as of " + at
	}
	return "as of " + at
}

// moneyText writes an amount as "12.99 EUR".
func moneyText(m *typev1.Money) string {
	if m == nil {
		return ""
	}
	return domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetUnits()}.String()
}

// timeText writes a time as people read it, in UTC, to the millisecond.
func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05.000Z")
}
