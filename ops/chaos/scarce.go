package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A wanted is what a buyer of the last unit was answered.
type wanted struct {
	body    []byte
	reply   []byte
	refusal string
}

// scarce puts one unit on sale in every round and has all buyers ask for it at once: exactly one gets it, all others are told that
// it is sold out (I3), and the same request is answered in the same way again (I4).
func (c *chaos) scarce(ctx context.Context) error {
	for round := 1; round <= c.Rounds; round++ {
		sku := fmt.Sprintf("last-%03d", round)
		product := &catalogv1.PutProductRequest{Sku: sku, Title: "The last one", Price: &typev1.Money{CurrencyCode: "EUR", Units: 999}}
		if _, refusal, err := c.call(ctx, putProduct, product); err != nil || refusal != "" {
			return fmt.Errorf("put %s: %w %s", sku, err, refusal)
		}
		if err := c.clients[0].receive(ctx, sku, 1); err != nil {
			return err
		}
		buyers := make([]wanted, c.Buyers)
		for i := range buyers {
			var err error
			buyers[i].body, err = proto.Marshal(&orderv1.PlaceOrderRequest{
				RequestId: fmt.Sprintf("%s-%d", sku, i), UserId: fmt.Sprintf("buyer-%d", i), Items: []*orderv1.ItemRequest{{Sku: sku, Quantity: 1}},
			})
			if err != nil {
				return err
			}
		}
		for _, again := range []bool{false, true} {
			if err := c.storm(ctx, buyers, again); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
		if err := checkOneGotIt(buyers); err != nil {
			c.violated(fmt.Errorf("round %d: %w", round, err))
		}
		if err := c.checkSoldOut(ctx, sku); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "round %3d: %d buyers asked twice for 1 unit\n", round, c.Buyers)
		if len(c.violations) > 0 {
			return fmt.Errorf("round %d: %w", round, errors.Join(c.violations...))
		}
	}
	if err := c.checkLog(ctx); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%d rounds: 1 order and %d refusals each, stock is conserved, the log verifies\n", c.Rounds, c.Buyers-1)
	return nil
}

// storm lets all buyers ask at the same time, each until the answer stands.
func (c *chaos) storm(ctx context.Context, buyers []wanted, again bool) error {
	group, ctx := errgroup.WithContext(ctx)
	start := make(chan struct{})
	for i := range buyers {
		group.Go(func() error {
			b := &buyers[i]
			select {
			case <-start:
			case <-ctx.Done():
				return ctx.Err()
			}
			var reply []byte
			var refusal string
			err := c.clients[0].persist(ctx, func() (err error) {
				reply, refusal, err = c.post(ctx, placeOrder, b.body)
				return err
			})
			switch {
			case err != nil:
				return fmt.Errorf("buyer %d has no answer: %w", i, err)
			case !again:
				b.reply, b.refusal = bytes.Clone(reply), refusal
			case refusal != b.refusal || !bytes.Equal(reply, b.reply):
				c.violated(fmt.Errorf("buyer %d is answered %x %s now, %x %s before (I4)", i, reply, refusal, b.reply, b.refusal))
			}
			return nil
		})
	}
	close(start)
	return group.Wait()
}

// checkOneGotIt says whether more or fewer than one buyer got the unit, and whether the others were told why not.
func checkOneGotIt(buyers []wanted) error {
	sold, refused := 0, map[string]int{}
	for i := range buyers {
		if buyers[i].refusal == "" {
			sold++
		} else {
			refused[buyers[i].refusal]++
		}
	}
	if want := map[string]int{"OUT_OF_STOCK": len(buyers) - 1}; sold != 1 || !maps.Equal(refused, want) {
		return fmt.Errorf("%d buyers got the only unit, the others %v; want 1 and %v (I3)", sold, refused, want)
	}
	return nil
}

// checkSoldOut waits until the view says that the unit is reserved.
func (c *chaos) checkSoldOut(ctx context.Context, sku string) error {
	for end := time.Now().Add(c.ViewWait); ; wait(ctx, retryInterval) {
		var got catalogv1.GetStockResponse
		if err := c.read(ctx, getStock, &catalogv1.GetStockRequest{Sku: sku}, &got); err != nil {
			return fmt.Errorf("stock of %s: %w", sku, err)
		}
		err := checkAccount(got.GetStock(), 1, 1)
		if err == nil {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			c.violated(fmt.Errorf("stock of %s: %w", sku, err))
			return ctx.Err()
		}
	}
}
