// Package echo is the ceiling that Weir is measured against: a Connect server that takes the same requests, does nothing,
// and answers with one prebuilt reply of the same size. Beside it are what a gateway is measured with: upstreams that behave as
// they are told, and a bare reverse proxy.
package echo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"connectrpc.com/connect"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// Options say where to listen and what to answer.
type Options struct {
	// Listen is host:port.
	Listen string
	// PlaceReply and GetReply are encoded replies of the real server, given back for every call.
	PlaceReply, GetReply []byte
}

// Run serves until ctx ends.
func Run(ctx context.Context, options Options) error {
	service := &service{}
	if err := errors.Join(proto.Unmarshal(options.PlaceReply, &service.placed), proto.Unmarshal(options.GetReply, &service.got)); err != nil {
		return fmt.Errorf("decode the reply to echo: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", options.Listen)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(service, connect.WithReadMaxBytes(readMaxBytes), connect.WithCompressMinBytes(compressMinBytes)))
	return serve(ctx, listener, mux)
}

// serve serves a handler as api.NewServer and its default limits have it, until ctx ends: deadlines cost time too. The JSON codec is Connect's own.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: handler, Protocols: &protocols, MaxHeaderBytes: 32 << 10,
		ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // Whoever is still waiting for an echo has gone too.
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

const (
	readMaxBytes     = 256 << 10
	compressMinBytes = 8 << 10
)

// service reads its two replies only, so many calls may encode them at once.
type service struct {
	orderv1connect.UnimplementedOrderServiceHandler
	placed orderv1.PlaceOrderResponse
	got    orderv1.GetOrderResponse
}

func (s *service) PlaceOrder(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	return &s.placed, nil
}

func (s *service) GetOrder(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	return &s.got, nil
}
