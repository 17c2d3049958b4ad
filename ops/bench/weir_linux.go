package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/ops/bench/load"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	// skusMany is the number of SKUs when it is not one hot one.
	skusMany = 1000
	// usersMax is the number of users that orders come from.
	usersMax = 1_000_000
	// stockUnits of each SKU: more than any run can sell.
	stockUnits = 1_000_000_000

	placePath = orderv1connect.OrderServicePlaceOrderProcedure
	getPath   = orderv1connect.OrderServiceGetOrderProcedure

	protoType = "application/proto"
	jsonType  = "application/json"

	// These stand in a request where load.Template patches it.
	requestPlace = "bench-0000-000000000000"
	userPlace    = "u0000000"
	skuPlace     = "sku-000"
)

// weir is a node under test.
type weir struct {
	*server
	binary, data string
	lanes        int
	// operator may stock, trusted may order for anybody.
	operator, trusted string
}

// sources counts what made requests, so that no two use the same request ids.
var sources atomic.Uint64

// startWeir runs 'weir dev' on a data directory and waits until it serves. It returns how long that took.
func startWeir(ctx context.Context, binary, data string, lanes int, arguments ...string) (*weir, time.Duration, error) {
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, 0, err
	}
	command := exec.Command(binary, append([]string{"dev", "--data", data, "--listen", addr, "--lanes", strconv.Itoa(lanes)}, arguments...)...) //nolint:noctx // stop ends it, cleanly.
	// Orders stay open for as long as the measurement takes.
	command.Env = append(os.Environ(), "WEIR_PAY_WITHIN=24h")
	began := time.Now()
	process, err := start("weir dev", addr, nil, command)
	if err != nil {
		return nil, 0, err
	}
	w := &weir{server: process, binary: binary, data: data, lanes: lanes}
	if _, err := w.ready(ctx, w.healthy); err != nil {
		return nil, 0, errors.Join(err, w.end())
	}
	took := time.Since(began)
	for scope, token := range map[string]*string{"operator": &w.operator, "act-as": &w.trusted} {
		if *token, err = output(ctx, nil, binary, "token", "--data", data, "--user", "bench", "--scope", scope, "--ttl", "24h"); err != nil {
			return nil, 0, errors.Join(err, w.end())
		}
	}
	return w, took, nil
}

// end stops the node cleanly.
func (w *weir) end() error { return w.stop(syscall.SIGTERM) }

// crash kills the node as a crash would.
func (w *weir) crash() error { return w.stop(syscall.SIGKILL) }

var healthBody = []byte("{}")

// healthy asks the health service over JSON, which needs no token.
func (w *weir) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+w.addr+"/grpc.health.v1.Health/Check", bytes.NewReader(healthBody))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", jsonType)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("SERVING")) || bytes.Contains(body, []byte("NOT_SERVING")) {
		return fmt.Errorf("health is %d %s", response.StatusCode, body)
	}
	return nil
}

// stock puts and stocks the products sku-000 and so on.
func (w *weir) stock(ctx context.Context) error {
	catalog := catalogv1connect.NewCatalogServiceClient(http.DefaultClient, "http://"+w.addr, connect.WithInterceptors(bearer(w.operator)))
	group, ctx := errgroup.WithContext(ctx)
	const parallelMax = 64
	group.SetLimit(parallelMax)
	for i := range skusMany {
		group.Go(func() error {
			sku := fmt.Sprintf("sku-%03d", i)
			_, err := catalog.PutProduct(ctx, &catalogv1.PutProductRequest{
				Sku: sku, Title: "Product number " + sku, Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299},
			})
			if err != nil {
				return fmt.Errorf("put %s: %w", sku, err)
			}
			_, err = catalog.ReceiveStock(ctx, &catalogv1.ReceiveStockRequest{RequestId: "bench-" + sku, Sku: sku, Quantity: stockUnits})
			if err != nil {
				return fmt.Errorf("receive %s: %w", sku, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// orders returns a client for orders, as the trusted backend.
func (w *weir) orders() orderv1connect.OrderServiceClient {
	return orderv1connect.NewOrderServiceClient(http.DefaultClient, "http://"+w.addr, connect.WithInterceptors(bearer(w.trusted)))
}

// sample places one order and reads it, and returns both replies.
func (w *weir) sample(ctx context.Context) (*orderv1.PlaceOrderResponse, *orderv1.GetOrderResponse, error) {
	client := w.orders()
	placed, err := client.PlaceOrder(ctx, &orderv1.PlaceOrderRequest{
		RequestId: fmt.Sprintf("sample-%d", time.Now().UnixNano()), UserId: userPlace,
		Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("place an order: %w", err)
	}
	got, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision})
	if err != nil {
		return nil, nil, fmt.Errorf("get the order: %w", err)
	}
	return placed, got, nil
}

// placeSource makes PlaceOrder requests over that many SKUs, from random users.
func (w *weir) placeSource(contentType string, skus int) (load.Source, error) {
	run := sources.Add(1)
	body, err := encode(contentType, &orderv1.PlaceOrderRequest{
		RequestId: requestPlace, UserId: userPlace, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}},
	})
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(run, 0))
	return load.NewTemplate(placePath, contentType, w.trusted, body,
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", run%10_000))},
		load.Field{Placeholder: userPlace, Fill: load.Draw(random, "u", usersMax)},
		load.Field{Placeholder: skuPlace, Fill: load.Draw(random, "sku-", uint64(skus))},
	)
}

// getSource makes GetOrder requests for orders drawn from ids, which are equally long.
func getSource(token string, ids []string) (load.Source, error) {
	body, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: ids[0]})
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(uint64(len(ids)), 0))
	return load.NewTemplate(getPath, protoType, token, body, load.Field{Placeholder: ids[0], Fill: load.Pick(random, ids)})
}

// place makes that many orders as fast as they go, and returns every nth order's id, and the newest revision.
func (w *weir) place(ctx context.Context, options Options, calls, nth int) (ids []string, newest *typev1.Revision, result *load.Result, err error) {
	source, err := w.placeSource(protoType, skusMany)
	if err != nil {
		return nil, nil, nil, err
	}
	newest = &typev1.Revision{}
	count := 0
	result, err = load.Run(ctx, load.Options{
		Addr: w.addr, Connections: options.Connections, Calls: uint64(calls), Source: source, Processes: w.processes,
		OnReply: func(status int, body []byte) {
			if count++; status != http.StatusOK || count%nth != 0 && count != calls {
				return
			}
			var placed orderv1.PlaceOrderResponse
			if proto.Unmarshal(body, &placed) != nil {
				return // A reply that cannot be read is missed below.
			}
			ids = append(ids, placed.GetOrder().GetOrderId())
			if placed.GetRevision().GetCommit() > newest.Commit {
				newest = placed.Revision
			}
		},
	})
	switch {
	case err != nil:
		return nil, nil, nil, err
	case result.Failed > 0:
		return nil, nil, nil, fmt.Errorf("%d of %d orders failed: %s", result.Failed, calls, result.FirstFailure)
	case len(ids) < calls/nth:
		return nil, nil, nil, fmt.Errorf("only %d of %d replies could be read", len(ids), calls/nth)
	}
	return ids, newest, result, nil
}

// startEcho runs the ceiling: a server that answers with these replies.
func startEcho(ctx context.Context, dir string, placed *orderv1.PlaceOrderResponse, got *orderv1.GetOrderResponse) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	arguments := []string{"bench", "echo", "--listen", addr}
	for flag, message := range map[string]proto.Message{"place-reply": placed, "get-reply": got} {
		data, err := proto.Marshal(message)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, flag)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
		arguments = append(arguments, "--"+flag, path)
	}
	process, err := start("echo", addr, nil, exec.Command(self, arguments...)) //nolint:noctx // stop ends it, cleanly.
	if err != nil {
		return nil, err
	}
	if _, err := process.ready(ctx, process.accepts); err != nil {
		return nil, errors.Join(err, process.stop(syscall.SIGTERM))
	}
	return process, nil
}

func encode(contentType string, message proto.Message) ([]byte, error) {
	if contentType == jsonType {
		return protojson.Marshal(message)
	}
	return proto.Marshal(message)
}

// bearer puts a token on every call.
func bearer(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
			request.Header().Set("Authorization", "Bearer "+token)
			return next(ctx, request)
		}
	}
}
