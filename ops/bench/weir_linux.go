package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
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
	// setUpMax is how many calls at a time make what is measured.
	setUpMax = 64
	// A user may have campaignUserUnits of skuCampaign in the campaign: more than one will get in any run.
	skuCampaign       = "flash-sku"
	campaignID        = "flash-sale"
	campaignUserUnits = 100_000
	// flashUnits of the product of the flash sale, skuFlash, are sold before anything is measured.
	flashUnits = 1000
	skuFlash   = "flash"

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
type weir struct{ *launch.Node }

// sources counts what made requests, so that no two use the same request ids.
var sources atomic.Uint64

// startWeir runs a node on a data directory and returns how long it took to serve.
func startWeir(ctx context.Context, binary, data string, lanes int, flags ...string) (*weir, time.Duration, error) {
	node := &launch.Node{Binary: binary, Data: data, Lanes: lanes, Flags: flags}
	took, err := node.Start(ctx)
	if err != nil {
		return nil, 0, err
	}
	return &weir{node}, took, nil
}

// server returns the node as one that is measured.
func (w *weir) server() *server { return &server{Server: w.Server} }

// stock puts and stocks the products sku-000 and so on.
func (w *weir) stock(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(setUpMax)
	for i := range skusMany {
		group.Go(func() error {
			return w.put(ctx, fmt.Sprintf("sku-%03d", i), stockUnits)
		})
	}
	return group.Wait()
}

// put puts a product and receives units of it.
func (w *weir) put(ctx context.Context, sku string, units int64) error {
	catalog := w.Catalog(http.DefaultClient)
	_, err := catalog.PutProduct(ctx, &catalogv1.PutProductRequest{
		Sku: sku, Title: "Product number " + sku, Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299},
	})
	if err != nil {
		return fmt.Errorf("put %s: %w", sku, err)
	}
	_, err = catalog.ReceiveStock(ctx, &catalogv1.ReceiveStockRequest{RequestId: "bench-" + sku, Sku: sku, Quantity: units})
	if err != nil {
		return fmt.Errorf("receive %s: %w", sku, err)
	}
	return nil
}

// sample places one order and reads it, and returns both replies.
func (w *weir) sample(ctx context.Context) (*orderv1.PlaceOrderResponse, *orderv1.GetOrderResponse, error) {
	client := w.Orders(http.DefaultClient)
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

// preheat gives every lane units of the products.
func (w *weir) preheat(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(setUpMax)
	for i := range skusMany {
		group.Go(func() error {
			sku := fmt.Sprintf("sku-%03d", i)
			_, err := w.Catalog(http.DefaultClient).PreheatStock(ctx, &catalogv1.PreheatStockRequest{RequestId: "preheat-" + sku, Sku: sku})
			if err != nil {
				return fmt.Errorf("preheat %s: %w", sku, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// openCampaign puts a campaign that no run closes, sells out or takes to a user's limit.
func (w *weir) openCampaign(ctx context.Context) error {
	if err := w.put(ctx, skuCampaign, stockUnits); err != nil {
		return err
	}
	campaigns := campaignv1connect.NewCampaignServiceClient(http.DefaultClient, "http://"+w.Addr, connect.WithInterceptors(launch.Bearer(w.Operator)))
	now := time.Now()
	_, err := campaigns.PutCampaign(ctx, &campaignv1.PutCampaignRequest{
		RequestId: "bench-campaign", CampaignId: campaignID, Sku: skuCampaign, Price: &typev1.Money{CurrencyCode: "EUR", Units: 999},
		OpensAt: timestamppb.New(now.Add(-time.Hour)), ClosesAt: timestamppb.New(now.Add(24 * time.Hour)),
		UserUnitsMax: campaignUserUnits, OrderUnitsMax: 1, Units: stockUnits,
	})
	if err != nil {
		return fmt.Errorf("put the campaign: %w", err)
	}
	return nil
}

// campaignSource makes PlaceOrder requests for a unit of the campaign, from random users.
func (w *weir) campaignSource() (load.Source, error) {
	run := sources.Add(1)
	body, err := proto.Marshal(&orderv1.PlaceOrderRequest{
		RequestId: requestPlace, UserId: userPlace, CampaignId: campaignID, Items: []*orderv1.ItemRequest{{Sku: skuCampaign, Quantity: 1}},
	})
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(run, 0))
	return load.NewTemplate(placePath, protoType, w.Trusted, body,
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", run%10_000))},
		load.Field{Placeholder: userPlace, Fill: load.Draw(random, "u", usersMax)},
	)
}

// placeSource makes PlaceOrder requests over that many SKUs, from random users.
func (w *weir) placeSource(contentType string, skus int) (load.Source, error) {
	return w.placeSourceOf(contentType, skus, load.Draw(rand.New(rand.NewPCG(sources.Load(), 0)), "u", usersMax))
}

// placeSourceOf is placeSource for users that user says.
func (w *weir) placeSourceOf(contentType string, skus int, user func([]byte)) (load.Source, error) {
	run := sources.Add(1)
	body, err := encode(contentType, &orderv1.PlaceOrderRequest{
		RequestId: requestPlace, UserId: userPlace, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}},
	})
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(run, 0))
	return load.NewTemplate(placePath, contentType, w.Trusted, body,
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", run%10_000))},
		load.Field{Placeholder: userPlace, Fill: user},
		load.Field{Placeholder: skuPlace, Fill: load.Draw(random, "sku-", uint64(skus))},
	)
}

// flashSource makes attempts to buy a unit of the flash sale, each under a request id of its own.
func (w *weir) flashSource() (load.Source, error) {
	run := sources.Add(1)
	body, err := proto.Marshal(&orderv1.PlaceOrderRequest{
		RequestId: requestPlace, UserId: userPlace, Items: []*orderv1.ItemRequest{{Sku: skuFlash, Quantity: 1}},
	})
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(run, 0))
	return load.NewTemplate(placePath, protoType, w.Trusted, body,
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", run%10_000))},
		load.Field{Placeholder: userPlace, Fill: load.Draw(random, "u", usersMax)},
	)
}

// sellOut puts the product of the flash sale and sells all of its units.
func (w *weir) sellOut(ctx context.Context, options Options) error {
	if err := w.put(ctx, skuFlash, flashUnits); err != nil {
		return err
	}
	source, err := w.flashSource()
	if err != nil {
		return err
	}
	sold := 0
	result, err := load.Run(ctx, load.Options{
		Addr: w.Addr, Connections: options.Connections, Calls: 2 * flashUnits, Source: source,
		Answered: func(status int, body []byte) bool {
			if status == http.StatusOK {
				sold++
			}
			return status == http.StatusOK || refused(status, body)
		},
	})
	switch {
	case err != nil:
		return fmt.Errorf("sell %s out: %w", skuFlash, err)
	case result.Failed > 0 || sold != flashUnits:
		return fmt.Errorf("sell %s out: sold %d of %d units, %d calls failed: %s", skuFlash, sold, flashUnits, result.Failed, result.FirstFailure)
	}
	return nil
}

// refused reports whether a reply is what an attempt at a sold-out product is answered with.
func refused(status int, body []byte) bool {
	return status == http.StatusBadRequest && bytes.Contains(body, []byte(`"failed_precondition"`))
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

// getInTurn makes GetOrder requests for one of the ids after the other.
func getInTurn(token string, ids []string) (load.Source, error) {
	body, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: ids[0]})
	if err != nil {
		return nil, err
	}
	next := 0
	return load.NewTemplate(getPath, protoType, token, body, load.Field{Placeholder: ids[0], Fill: func(text []byte) {
		copy(text, ids[next%len(ids)])
		next++
	}})
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
		Addr: w.Addr, Connections: options.Connections, Calls: uint64(calls), Source: source, Processes: w.server().processes(),
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
	return startReplying(ctx, "echo", dir, placed, got)
}

// startReplying runs a hidden command of weir bench that answers with these replies.
func startReplying(ctx context.Context, command, dir string, placed *orderv1.PlaceOrderResponse, got *orderv1.GetOrderResponse) (*server, error) {
	var arguments []string
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
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startListening(ctx, command, self, append([]string{"bench", command}, arguments...))
}

// startListening runs a command with --listen and an address of its own, and waits until it takes connections.
func startListening(ctx context.Context, name, binary string, arguments []string) (*server, error) {
	addr, err := launch.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	process, err := launch.Start(name, addr, nil, exec.Command(binary, append(arguments, "--listen", addr)...)) //nolint:noctx // Stop ends it, cleanly.
	if err != nil {
		return nil, err
	}
	if err := process.Ready(ctx, process.Accepts); err != nil {
		return nil, errors.Join(err, process.Stop(syscall.SIGTERM))
	}
	return &server{Server: process}, nil
}

func encode(contentType string, message proto.Message) ([]byte, error) {
	if contentType == jsonType {
		return protojson.Marshal(message)
	}
	return proto.Marshal(message)
}
