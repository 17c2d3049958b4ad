package projections

import (
	"fmt"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// The view of products: SKU → the newest ProductPut, as an Entry. It is kept in the SKU's home lane.

var productsProjection = Projection{
	Name: "products", Version: 1, space: spaceProducts, open: stateless(applyProducts),
	key: func(c *change) string {
		if c.kind != kindProductPut {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  describeSKU,
	print:     printNewest,
	partition: textPartition,
}

func describeSKU(suffix []byte) string { return "SKU " + string(suffix) }

// textPartition is the partition of a key that is one text.
func textPartition(suffix []byte) uint32 { return eventstore.PartitionOf(string(suffix)) }

// printNewest writes what keepNewest wrote as people do.
func printNewest(_, value []byte) (string, error) {
	entry, _, err := readEntry(value)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s of commit %d, %x", entry.Type, entry.Number, entry.Payload), nil
}

// applyProducts keeps the newest of a product's events.
func applyProducts(v *view, c *change) error {
	if c.kind != kindProductPut {
		return nil
	}
	return v.keepNewest(c, c.event.AggregateID)
}

// keepNewest keeps the event as its key's Entry, in place of the one before.
func (v *view) keepNewest(c *change, key string) error {
	if key == "" {
		return errNoSKU
	}
	entry := Entry{Number: c.number, At: c.at, Type: c.event.Type, Version: c.event.Version, Payload: c.event.Payload}
	op := v.batch.SetDeferred(prefixBytes+len(key), EntryBytes(entry))
	copy(op.Key, v.prefix[:])
	copy(op.Key[prefixBytes:], key)
	AppendEntry(op.Value[:0], entry)
	return op.Finish()
}

// readProduct reads a value of the view.
func readProduct(sku string, lane uint32, value []byte) (ProductView, error) {
	entry, _, err := readEntry(value)
	if err != nil {
		return ProductView{}, fmt.Errorf("product %s: %w", sku, err)
	}
	event, err := stored.Decode(entry.Type, entry.Version, sku, entry.UserID, entry.Payload)
	if err != nil {
		return ProductView{}, fmt.Errorf("product %s: %w", sku, err)
	}
	return ProductView{
		Product:  domain.Product{}.Evolve(event, entry.At),
		Revision: Revision{Lane: lane, Commit: entry.Number},
	}, nil
}
