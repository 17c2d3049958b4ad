// Package sandbox has a payment provider that takes no real money, for development and tests: Server, a real HTTP server
// that keeps its charges in a journal and breaks on demand, and Client, the adapter that payments are made with.
package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// Name is the provider's name in events.
const Name = "sandbox"

// Limits of a client (I8).
const (
	// replyBytesMax bounds an answer to a payment call, ledgerBytesMax a part of the ledger.
	replyBytesMax  = 256 << 10
	ledgerBytesMax = 16 << 20
	// connectionsMax bounds the connections to the sandbox, idleConnectionsMax those that are kept.
	connectionsMax     = 256
	idleConnectionsMax = 64
)

// ClientOptions make a Client.
type ClientOptions struct {
	// URL of the sandbox, for example "http://127.0.0.1:8085". Required.
	URL string
	// CallTimeMax bounds a call; 0 means payments.CallTimeMax.
	CallTimeMax time.Duration
}

// A Client makes payments with a sandbox. It implements payments.Provider.
type Client struct {
	base        string
	callTimeMax time.Duration
	http        *http.Client
}

var _ payments.Provider = (*Client)(nil)

// NewClient returns a client. It does not connect.
func NewClient(options ClientOptions) (*Client, error) {
	base, err := url.Parse(options.URL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a sandbox", options.URL)
	}
	if options.CallTimeMax < 0 {
		return nil, errors.New("CallTimeMax is negative")
	}
	if options.CallTimeMax == 0 {
		options.CallTimeMax = payments.CallTimeMax
	}
	return &Client{
		base: strings.TrimRight(options.URL, "/"), callTimeMax: options.CallTimeMax,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, MaxConnsPerHost: connectionsMax, MaxIdleConnsPerHost: idleConnectionsMax,
				IdleConnTimeout: idleTimeMax / 2, MaxResponseHeaderBytes: headerBytesMax,
			},
			// An answer from elsewhere is no answer of the sandbox.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Name implements payments.Provider.
func (c *Client) Name() string { return Name }

// Authorize implements payments.Provider.
func (c *Client) Authorize(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	return c.pay(ctx, "authorize", http.MethodPost, "", charge, wireCharge{
		OrderID: charge.OrderID, Amount: wireOf(charge.Amount), Method: charge.Method, CaptureNow: charge.CaptureNow,
	})
}

// Capture implements payments.Provider.
func (c *Client) Capture(ctx context.Context, charge payments.Charge, amount domain.Money) (payments.Status, error) {
	if err := payments.CheckAmount(Name, "capture", charge, amount); err != nil {
		return payments.Status{}, err
	}
	return c.pay(ctx, "capture", http.MethodPost, "/capture", charge, wireCapture{Amount: wireOf(amount)})
}

// Void implements payments.Provider.
func (c *Client) Void(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	return c.pay(ctx, "void", http.MethodPost, "/void", charge, struct{}{})
}

// Lookup implements payments.Provider.
func (c *Client) Lookup(ctx context.Context, charge payments.Charge) (payments.Status, error) {
	status, err := c.pay(ctx, "lookup", http.MethodGet, "", charge, nil)
	var rejected *payments.RejectedError
	if errors.As(err, &rejected) && rejected.Code == codeNoSuchPayment {
		return payments.Status{PaymentID: charge.PaymentID, State: payments.StateNone}, nil
	}
	return status, err
}

// Refund implements payments.Provider.
func (c *Client) Refund(ctx context.Context, charge payments.Charge, refund payments.Refund) (payments.RefundStatus, error) {
	const call = "refund"
	err := payments.CheckCharge(Name, call, charge)
	if err == nil {
		err = payments.CheckRefund(Name, call, charge, refund)
	}
	if err != nil {
		return payments.RefundStatus{}, err
	}
	var reply wireRefund
	path := "/v1/payments/" + charge.PaymentID + "/refunds/" + refund.RefundID
	if err := c.call(ctx, call, charge.PaymentID, http.MethodPost, path, wireRefundAsk{Amount: wireOf(refund.Amount)}, &reply); err != nil {
		return payments.RefundStatus{}, err
	}
	status, err := reply.status()
	if err == nil && status.RefundID != refund.RefundID {
		err = fmt.Errorf("the answer is about refund %.80q", status.RefundID)
	}
	if err != nil {
		return payments.RefundStatus{}, unknown(call, charge.PaymentID, err)
	}
	return status, nil
}

// pay makes a call that is answered with a payment.
func (c *Client) pay(ctx context.Context, call, method, path string, charge payments.Charge, body any) (payments.Status, error) {
	if err := payments.CheckCharge(Name, call, charge); err != nil {
		return payments.Status{}, err
	}
	var reply wirePayment
	if err := c.call(ctx, call, charge.PaymentID, method, "/v1/payments/"+charge.PaymentID+path, body, &reply); err != nil {
		return payments.Status{}, err
	}
	status, err := reply.status()
	if err == nil && status.PaymentID != charge.PaymentID {
		err = fmt.Errorf("the answer is about payment %.80q", status.PaymentID)
	}
	if err != nil {
		return payments.Status{}, unknown(call, charge.PaymentID, err)
	}
	return status, nil
}

func (p wirePayment) status() (payments.Status, error) {
	state, ok := payments.ParseState(p.State)
	if !ok {
		return payments.Status{}, fmt.Errorf("the answer has the unknown state %.40q", p.State)
	}
	status := payments.Status{
		PaymentID: p.PaymentID, State: state, Reference: p.Reference,
		Amount: p.Amount.money(), Captured: p.Captured.money(), Refunded: p.Refunded.money(),
		DeclineCode: p.DeclineCode, DeclineMessage: p.DeclineMessage,
	}
	for _, r := range p.Refunds {
		refund, err := r.status()
		if err != nil {
			return payments.Status{}, err
		}
		status.Refunds = append(status.Refunds, refund)
	}
	return status, nil
}

func (r wireRefund) status() (payments.RefundStatus, error) {
	state, ok := payments.ParseRefundState(r.State)
	if !ok {
		return payments.RefundStatus{}, fmt.Errorf("the answer has the unknown refund state %.40q", r.State)
	}
	return payments.RefundStatus{
		RefundID: r.RefundID, Reference: r.Reference, State: state, Amount: r.Amount.money(), FailureCode: r.FailureCode,
	}, nil
}

func unknown(call, paymentID string, cause error) error {
	return &payments.UnknownOutcomeError{Provider: Name, Call: call, PaymentID: paymentID, Cause: cause}
}

// call makes a call about a payment. Whatever is not clearly a "yes" or a "no" of a sandbox is an unknown outcome.
func (c *Client) call(ctx context.Context, call, paymentID, method, path string, body, into any) error {
	status, data, err := c.send(ctx, method, path, body, replyBytesMax)
	if err != nil {
		return unknown(call, paymentID, err)
	}
	if status == http.StatusOK {
		if err := json.Unmarshal(data, into); err != nil {
			return unknown(call, paymentID, fmt.Errorf("read the answer: %w", err))
		}
		return nil
	}
	var refused wireError
	if err := json.Unmarshal(data, &refused); err != nil || refused.Error.Code == "" || !saysNo(status) {
		return unknown(call, paymentID, fmt.Errorf("status %d", status))
	}
	return &payments.RejectedError{
		Provider: Name, Call: call, PaymentID: paymentID, Code: refused.Error.Code, Message: refused.Error.Message,
	}
}

// saysNo reports whether a status says that nothing happened and nothing will.
func saysNo(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// send sends one request and reads its answer, all within the time of a call.
func (c *Client) send(ctx context.Context, method, path string, body any, bytesMax int64) (status int, reply []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.callTimeMax)
	defer cancel()
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		reader = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	reply, err = io.ReadAll(io.LimitReader(response.Body, bytesMax+1))
	if err == nil && int64(len(reply)) > bytesMax {
		err = fmt.Errorf("the answer has more than %d bytes", bytesMax)
	}
	return response.StatusCode, reply, err
}

// Ledger returns the whole ledger: every movement of money, once.
func (c *Client) Ledger(ctx context.Context) (Ledger, error) {
	var whole Ledger
	for after := uint64(0); ; {
		status, data, err := c.send(ctx, http.MethodGet, "/ledger?after="+strconv.FormatUint(after, 10), nil, ledgerBytesMax)
		var page Ledger
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		if err == nil {
			err = json.Unmarshal(data, &page)
		}
		if err == nil && page.Next != 0 && page.Next <= after {
			err = errors.New("the ledger does not end")
		}
		if err != nil {
			return Ledger{}, fmt.Errorf("read the ledger of the sandbox: %w", err)
		}
		page.Entries = append(whole.Entries, page.Entries...)
		whole, after = page, page.Next
		if after == 0 {
			return whole, nil
		}
	}
}

// SetFaults replaces what goes wrong; no faults end them.
func (c *Client) SetFaults(ctx context.Context, faults Faults) error {
	status, data, err := c.send(ctx, http.MethodPost, "/faults", faults, replyBytesMax)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", status, data)
	}
	if err != nil {
		return fmt.Errorf("set the faults of the sandbox: %w", err)
	}
	return nil
}

// A NoticeReader reads the sandbox's webhooks. It implements payments.NoticeReader.
type NoticeReader struct{ secrets []webhooksig.Secret }

var _ payments.NoticeReader = NoticeReader{}

// NewNoticeReader returns a reader that believes these secrets.
func NewNoticeReader(secrets ...webhooksig.Secret) (NoticeReader, error) {
	if len(secrets) == 0 {
		return NoticeReader{}, errors.New("webhooks need a secret to be verified with")
	}
	return NoticeReader{secrets: secrets}, nil
}

// CheckHeader implements payments.NoticeReader.
func (n NoticeReader) CheckHeader(header http.Header, now time.Time) error {
	return webhooksig.VerifyHeaders(header, now, webhooksig.SkewMax)
}

// ReadNotice implements payments.NoticeReader.
func (n NoticeReader) ReadNotice(header http.Header, body []byte, now time.Time) (payments.Notice, bool, error) {
	if err := webhooksig.Verify(n.secrets, header, body, now, webhooksig.SkewMax); err != nil {
		return payments.Notice{}, false, err
	}
	var event wireEvent
	if err := json.Unmarshal(body, &event); err != nil {
		return payments.Notice{}, false, fmt.Errorf("%w: %w", payments.ErrMalformedNotice, err)
	}
	state, known := payments.ParseState(event.Data.State)
	switch {
	case event.ID == "" || event.ID != header.Get(webhooksig.HeaderID):
		return payments.Notice{}, false, fmt.Errorf("%w: its id is not that of its header", payments.ErrMalformedNotice)
	case !payments.ValidID(event.Data.PaymentID):
		return payments.Notice{}, false, fmt.Errorf("%w: its payment id is none", payments.ErrMalformedNotice)
	case !known || state == payments.StateNone:
		return payments.Notice{}, false, fmt.Errorf("%w: it has the unknown state %.40q", payments.ErrMalformedNotice, event.Data.State)
	}
	notice := payments.Notice{
		Provider: Name, EventID: event.ID, At: event.CreatedAt, PaymentID: event.Data.PaymentID, State: state,
		Amount: event.Data.Amount.money(), DeclineCode: event.Data.DeclineCode, DeclineMessage: event.Data.DeclineMessage,
	}
	if event.Data.Refund != nil {
		refund, err := event.Data.Refund.status()
		if err != nil || !payments.ValidID(refund.RefundID) {
			return payments.Notice{}, false, fmt.Errorf("%w: its refund is none", payments.ErrMalformedNotice)
		}
		notice.Refund = &refund
	}
	return notice, true, nil
}
