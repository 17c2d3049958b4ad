package projections

import (
	"fmt"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// The view of products: SKU → the newest ProductPut, as an Entry. It is kept in the SKU's home lane.

// applyProducts keeps the newest of a product's events.
func applyProducts(v *view, c *change) error {
	if c.kind != kindProductPut {
		return nil
	}
	sku := c.event.AggregateID
	if sku == "" {
		return errNoSKU
	}
	entry := Entry{Number: c.number, At: c.at, Type: c.event.Type, Version: c.event.Version, Payload: c.event.Payload}
	op := v.batch.SetDeferred(prefixBytes+len(sku), EntryBytes(entry))
	copy(op.Key, v.prefix[:])
	copy(op.Key[prefixBytes:], sku)
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
