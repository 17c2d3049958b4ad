package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/weirhq/weir/domain"
)

// crowdRefusals keeps the refusals that a crowd gets: when a sale is over, nearly every call is refused in the same words. Their
// details are kept as a client reads them, because Connect writes such a detail as the text that it was read from. Of any
// other it makes that text each time, by reflection, which is a quarter of what refusing costs.
type crowdRefusals struct {
	// kept has a *crowdRefusal for each refusal, by value.
	kept   sync.Map
	count  atomic.Int64
	missed atomic.Uint64
}

type crowdRefusal struct {
	code    connect.Code
	fault   *fault
	details []*connect.ErrorDetail // shared: nobody changes them
}

// Limits of crowdRefusals.
const (
	// crowdRefusalsMax bounds how many are kept. Beyond it all are dropped: the frequent ones are soon back.
	crowdRefusalsMax = 1024
	// crowdMissesPerKept is how many refusals that are not kept there are to one that is: to keep one costs more than to
	// refuse, and somebody may want another quantity each time.
	crowdMissesPerKept = 16
)

// crowdKey returns what is the same for every refusal in the same words, and false for an error that no crowd gets. None of
// these says when to come again, so they have no headers.
func crowdKey(err error) (key any, ok bool) {
	if outOfStock, ok := errors.AsType[*domain.OutOfStockError](err); ok {
		return *outOfStock, true
	}
	if closed, ok := errors.AsType[*domain.CampaignClosedError](err); ok {
		return *closed, true
	}
	if limit, ok := errors.AsType[*domain.CampaignLimitError](err); ok {
		return *limit, true
	}
	if perOrder, ok := errors.AsType[*domain.CampaignMaxPerOrderError](err); ok {
		return *perOrder, true
	}
	return nil, false
}

// connectError returns the error of a refusal that is kept, or false.
func (c *crowdRefusals) connectError(key any) (*connect.Error, bool) {
	kept, _ := c.kept.Load(key)
	refusal, ok := kept.(*crowdRefusal)
	if !ok {
		return nil, false
	}
	connectErr := connect.NewError(refusal.code, refusal.fault)
	for _, detail := range refusal.details {
		connectErr.AddDetail(detail)
	}
	return connectErr, true
}

// miss is told of a refusal that was not kept, and keeps one in crowdMissesPerKept.
func (c *crowdRefusals) miss(ctx context.Context, key any, f *fault, connectErr *connect.Error) {
	if c.missed.Add(1)%crowdMissesPerKept != 0 {
		return
	}
	read, ok := asRead(ctx, connectErr)
	if !ok {
		return // It is as well made anew each time.
	}
	if c.count.Add(1) > crowdRefusalsMax {
		c.kept.Clear()
		c.count.Store(1)
	}
	c.kept.Store(key, &crowdRefusal{code: connectErr.Code(), fault: f, details: read.Details()})
}

// asRead returns an error as a client reads it from a reply in JSON.
func asRead(ctx context.Context, written *connect.Error) (read *connect.Error, ok bool) {
	client := connect.NewClient[emptypb.Empty, emptypb.Empty](&refuser{err: written}, "http://refuser/")
	_, err := client.CallUnary(context.WithoutCancel(ctx), connect.NewRequest(&emptypb.Empty{}))
	ok = errors.As(err, &read) && len(read.Details()) == len(written.Details())
	return read, ok
}

// A refuser answers one request with an error, without a network. It is the client's transport and its reply.
type refuser struct {
	err    error
	header http.Header
	status int
	body   bytes.Buffer
}

// Do implements connect.HTTPClient.
func (r *refuser) Do(request *http.Request) (*http.Response, error) {
	r.header = http.Header{}
	err := connect.NewErrorWriter().Write(r, request, r.err)
	return &http.Response{StatusCode: r.status, Header: r.header, Body: io.NopCloser(&r.body), Request: request}, err
}

func (r *refuser) Header() http.Header                { return r.header }
func (r *refuser) WriteHeader(status int)             { r.status = status }
func (r *refuser) Write(data []byte) (n int, _ error) { return r.body.Write(data) }
