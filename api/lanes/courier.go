package lanes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A courier takes the grants of one home lane to the lanes that they are for. The home lane's state lists what it has
// granted and the courier has not seen taken; taking a grant twice changes nothing, so whatever a crash leaves on the list
// is delivered again. Units between the two lanes are in transit, never lost (I5).
type courier struct {
	home   uint32
	lanes  uint32
	db     *pebble.DB
	keys   keys
	submit func(ctx context.Context, lane uint32, request Request) (Reply, error)
	// granted is poked by the home lane when there is something to deliver.
	granted <-chan struct{}
}

// courierPause is how long a courier waits before it tries again what a busy lane did not take.
const courierPause = 20 * time.Millisecond

// run delivers until ctx ends.
func (c *courier) run(ctx context.Context) error {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.granted:
		case <-again.C:
		}
		err := c.deliverAll(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case busy(err):
			again.Reset(courierPause)
		case err != nil:
			return fmt.Errorf("courier of lane %d: %w", c.home, err)
		}
	}
}

// busy reports whether a lane did not take a command only because it is full, or not open.
func busy(err error) bool {
	var (
		full        *eventstore.QueueFullError
		unavailable *eventstore.UnavailableError
	)
	return errors.As(err, &full) || errors.As(err, &unavailable) || errors.Is(err, eventstore.ErrLogFull)
}

// deliverAll delivers every grant on the list, per SKU and lane in order of their numbers.
func (c *courier) deliverAll(ctx context.Context) error {
	table := c.keys.table(tableGrants)
	iter, err := c.db.NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: after(table)})
	if err != nil {
		return err
	}
	for valid := iter.First(); valid; valid = iter.Next() {
		grant, err := decodeGrant(iter.Key()[len(table):], iter.Value())
		if err == nil {
			err = c.deliver(ctx, grant)
		}
		if err == nil {
			err = c.db.Delete(iter.Key(), pebble.NoSync)
		}
		if err != nil {
			return errors.Join(err, iter.Close())
		}
	}
	return iter.Close()
}

func (c *courier) deliver(ctx context.Context, grant domain.StockGranted) error {
	if grant.ToLane >= c.lanes {
		return fmt.Errorf("a grant of %s is for lane %d, and there are %d lanes", grant.SKU, grant.ToLane, c.lanes)
	}
	_, err := c.submit(ctx, grant.ToLane, Request{
		Partition: eventstore.PartitionOf(domain.HomeKey(grant.SKU)),
		Command: domain.AllotStock{
			SKU: grant.SKU, HomeLane: c.home, GrantNumber: grant.GrantNumber, Units: grant.Units,
		},
	})
	if err != nil {
		return fmt.Errorf("allot %d units of %s to lane %d: %w", grant.Units, grant.SKU, grant.ToLane, err)
	}
	return nil
}

// A listed grant's key is lane, number and SKU, its value the units.
func (k *keys) grant(grant domain.StockGranted) []byte {
	b := binary.BigEndian.AppendUint32(k.start(tableGrants), grant.ToLane)
	b = binary.BigEndian.AppendUint64(b, grant.GrantNumber)
	return k.keep(append(b, grant.SKU...))
}

func decodeGrant(key, value []byte) (domain.StockGranted, error) {
	units, length := binary.Varint(value)
	if len(key) < 12 || length <= 0 {
		return domain.StockGranted{}, errors.New("a listed grant cannot be read")
	}
	return domain.StockGranted{
		ToLane: binary.BigEndian.Uint32(key), GrantNumber: binary.BigEndian.Uint64(key[4:]), SKU: string(key[12:]), Units: units,
	}, nil
}
