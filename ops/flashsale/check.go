package flashsale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// expiryLag is how long after its time an unpaid order may take to expire.
	expiryLag = 30 * time.Second
	// checkersMax is how many orders are checked at a time.
	checkersMax = 32
)

const (
	// reasonSoldOut is why attempts are refused, reasonLimit why second ones by the same user are.
	reasonSoldOut = "OUT_OF_STOCK"
	reasonLimit   = "CAMPAIGN_LIMIT"
)

// checkReasons says which refusals are not the wanted one.
func (s *sale) checkReasons(refused map[string]int64, want string) {
	for reason, count := range refused {
		if reason != want {
			s.report.wrong("%d attempts were refused with %s", count, reason)
		}
	}
}

// checkOrders looks for every acknowledged order: asking again answers with the same bytes (I4), and it can be read (I1).
func (s *sale) checkOrders(ctx context.Context, name string, t *tally) error {
	seen := map[string]int64{}
	for _, each := range t.orders {
		id := each.response.GetOrder().GetOrderId()
		if other, twice := seen[id]; twice {
			s.report.wrong("attempts %d and %d were both acknowledged with order %s", other, each.attempt, id)
		}
		seen[id] = each.attempt
	}
	var checked atomic.Int64
	total := int64(len(t.orders))
	count := func() Progress {
		return Progress{Step: "check the " + name, Unit: "orders", Done: checked.Load(), Total: total}
	}
	return s.step(count, func() error {
		var mu sync.Mutex
		var next atomic.Int64
		group, ctx := errgroup.WithContext(ctx)
		for range min(checkersMax, total) {
			group.Go(func() error {
				b, err := (&rush{sale: s, crowd: newCrowd(s.Seed)}).newBuyer()
				if err != nil {
					return err
				}
				defer b.hangUp()
				for {
					i := next.Add(1) - 1
					if i >= total {
						return nil
					}
					wrong, err := b.check(ctx, &t.orders[i])
					if err != nil {
						return err
					}
					checked.Add(1)
					mu.Lock()
					for _, what := range wrong {
						s.report.wrong("%s", what)
					}
					mu.Unlock()
				}
			})
		}
		return group.Wait()
	})
}

// checkLimit lets everybody who got a unit ask for another one: nobody gets it.
func (s *sale) checkLimit(ctx context.Context, orders []placed) (refused map[string]int64, err error) {
	refused = map[string]int64{}
	var mu sync.Mutex
	var next, answered atomic.Int64
	total := int64(len(orders))
	count := func() Progress {
		return Progress{Step: "ask for a second unit", Unit: "buyers", Done: answered.Load(), Total: total}
	}
	err = s.step(count, func() error {
		group, ctx := errgroup.WithContext(ctx)
		for range min(checkersMax, total) {
			group.Go(func() error {
				b, err := (&rush{sale: s, crowd: newCrowd(s.Seed)}).newBuyer()
				if err != nil {
					return err
				}
				defer b.hangUp()
				b.kind = kindSecond
				for i := next.Add(1) - 1; i < total; i = next.Add(1) - 1 {
					b.attempt = orders[i].attempt
					answer, err := b.resolve(ctx)
					if err != nil {
						return err
					}
					answered.Add(1)
					mu.Lock()
					if answer.reason == "" {
						s.report.wrong("the user of attempt %d got a second unit", b.attempt)
					} else {
						refused[answer.reason]++
					}
					mu.Unlock()
				}
				return nil
			})
		}
		return group.Wait()
	})
	return refused, err
}

// check asks for an acknowledged order, and reads it.
func (b *buyer) check(ctx context.Context, p *placed) (wrong []string, err error) {
	b.attempt = p.attempt
	again, err := b.resolve(ctx)
	switch {
	case err != nil:
		return nil, err
	case again.reason != "":
		wrong = append(wrong, fmt.Sprintf("attempt %d was acknowledged and is refused now: %s (I1, I4)", p.attempt, again.reason))
	case !bytes.Equal(again.reply, p.reply):
		wrong = append(wrong, fmt.Sprintf("attempt %d answers %x now, %x before (I4)", p.attempt, again.reply, p.reply))
	}
	want := p.response.GetOrder()
	if total := want.GetTotal(); total.GetUnits() != priceMinor || total.GetCurrencyCode() != currency {
		wrong = append(wrong, fmt.Sprintf("order %s costs %v, the campaign's price is %d %s", want.GetOrderId(), total, priceMinor, currency))
	}
	got, err := b.read(ctx, p)
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound && err != nil:
		wrong = append(wrong, fmt.Sprintf("order %s was acknowledged and is missing (I1)", want.GetOrderId()))
	case err != nil:
		return nil, err
	case got.GetUserId() != want.GetUserId() || !proto.Equal(got.GetTotal(), want.GetTotal()) || !proto.Equal(got.GetPlacedAt(), want.GetPlacedAt()):
		wrong = append(wrong, fmt.Sprintf("order %s is\n  %v now, it was acknowledged as\n  %v (I1, I6)", want.GetOrderId(), got, want))
	}
	return wrong, nil
}

// read reads an order from the views as of its acknowledgement or later.
func (s *sale) read(ctx context.Context, p *placed) (*orderv1.Order, error) {
	var got *orderv1.GetOrderResponse
	err := s.persist(ctx, func() (err error) {
		got, err = s.orders().GetOrder(ctx, &orderv1.GetOrderRequest{
			OrderId: p.response.GetOrder().GetOrderId(), MinRevision: p.response.GetRevision(), WaitBudget: durationpb.New(s.ViewWait),
		})
		return err
	})
	return got.GetOrder(), err
}

// persist tries until the answer stands.
func (s *sale) persist(ctx context.Context, try func() error) error {
	for end := time.Now().Add(resolveWait); ; {
		err := try()
		switch connect.CodeOf(err) {
		case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeAborted, connect.CodeDeadlineExceeded:
		default:
			return err
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		wait(ctx, retryInterval)
	}
}

// stock reads the campaign's account. What remains of it is free somewhere: at its home lane, at another, or on its way.
func (s *sale) stock(ctx context.Context) (Stock, error) {
	var got *campaignv1.GetCampaignResponse
	err := s.persist(ctx, func() (err error) {
		got, err = s.campaigns().GetCampaign(ctx, &campaignv1.GetCampaignRequest{CampaignId: campaign, Sku: s.sku})
		return err
	})
	if err != nil {
		return Stock{}, fmt.Errorf("read the campaign of %s: %w", s.sku, err)
	}
	c := got.GetCampaign()
	return Stock{Units: c.GetUnits(), Remaining: c.GetRemaining(), Reserved: c.GetReserved(), Sold: c.GetSold()}, nil
}

// checkStock compares the campaign's account with the orders that hold a unit, and those of them that are paid (I3). The view may still be on its way there.
func (s *sale) checkStock(ctx context.Context, holding, paid int64) error {
	for end := time.Now().Add(s.ViewWait); ; {
		stock, err := s.stock(ctx)
		if err != nil {
			return err
		}
		s.report.Stock = stock
		wrong := stock.check(s.Units, holding, paid)
		if wrong == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			s.report.wrong("%v", wrong)
			return nil
		}
		wait(ctx, retryInterval)
	}
}

// check returns what is wrong with an account.
func (s *Stock) check(units, holding, paid int64) error {
	sum := s.Remaining + s.Reserved + s.Sold
	switch {
	case sum != s.Units:
		return fmt.Errorf("the campaign has %d units, its account %d: %+v (I3)", s.Units, sum, *s)
	case min(s.Units, s.Remaining, s.Reserved, s.Sold) < 0:
		return fmt.Errorf("a term of the account is negative: %+v (I3)", *s)
	case s.Units != units:
		return fmt.Errorf("the campaign has %d units, it was given %d", s.Units, units)
	case s.Reserved+s.Sold != holding:
		return fmt.Errorf("%d units are reserved or sold, the acknowledged orders hold %d: %+v", s.Reserved+s.Sold, holding, *s)
	case s.Sold != paid:
		return fmt.Errorf("%d units are sold for good, %d orders are paid: %+v", s.Sold, paid, *s)
	}
	return nil
}

// audit replays the log and compares what it says with the view.
func (s *sale) audit(ctx context.Context) error {
	if s.Audit == nil || s.node.Data() == "" {
		s.report.Notes = append(s.report.Notes, "the log was not replayed: that needs the node's data directory; 'weir audit stock' does it")
		return nil
	}
	found, err := s.Audit(ctx, s.node.Data(), s.sku, campaign)
	if err != nil {
		return fmt.Errorf("audit the stock of %s: %w", s.sku, err)
	}
	s.report.Audit = found
	for _, violation := range found.Violations {
		s.report.wrong("the log: %s (I3)", violation)
	}
	// Once orders may have expired since the view was read, the two may differ.
	if view := s.report.Stock; len(found.Violations) == 0 && time.Now().Before(s.heldUntil) && found.Stock != view {
		s.report.wrong("the log says that the account is %+v, the view %+v (I6)", found.Stock, view)
	}
	return nil
}

// expire waits until unpaid orders have expired and given their units back; holding is how many units all orders hold before.
func (s *sale) expire(ctx context.Context, unpaid []placed, holding int64) error {
	var last time.Time
	for _, each := range unpaid {
		if by := each.response.GetOrder().GetPayBy().AsTime(); by.After(last) {
			last = by
		}
	}
	total := int64(len(unpaid))
	var expired atomic.Int64
	count := func() Progress {
		return Progress{Step: "wait for unpaid orders to expire", Unit: "orders", Done: expired.Load(), Total: total}
	}
	return s.step(count, func() error {
		for {
			stock, err := s.stock(ctx)
			if err != nil {
				return err
			}
			expired.Store(min(total, max(0, holding-stock.Reserved-stock.Sold)))
			if expired.Load() == total {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if time.Since(last) > expiryLag {
				return fmt.Errorf("%d of %d unpaid orders have not expired %v after they should have (I5)", total-expired.Load(), total, expiryLag)
			}
			wait(ctx, watchEvery)
		}
		for i := range unpaid {
			if err := s.isExpired(ctx, &unpaid[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// isExpired waits until a view shows that the order has expired.
func (s *sale) isExpired(ctx context.Context, p *placed) error {
	for end := time.Now().Add(s.ViewWait); ; {
		got, err := s.read(ctx, p)
		switch {
		case err != nil:
			return err
		case got.GetStatus() == orderv1.OrderStatus_ORDER_STATUS_EXPIRED:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return errors.New("order " + got.GetOrderId() + " gave its unit back and is " + got.GetStatus().String())
		}
		wait(ctx, retryInterval)
	}
}
