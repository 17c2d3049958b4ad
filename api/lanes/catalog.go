package lanes

import (
	"sync"

	"github.com/weirhq/weir/domain"
)

// A Catalog is what this node knows of products. Facts of a product are decided in its home lane; every lane of the node
// reads them here, as of the commits that were applied. It is safe for use by several goroutines.
type Catalog struct {
	mu       sync.RWMutex
	products map[string]CatalogEntry
}

// A CatalogEntry is a product and the commit of its newest change.
type CatalogEntry struct {
	Product domain.Product
	Lane    uint32
	Commit  uint64
}

// NewCatalog returns an empty catalogue.
func NewCatalog() *Catalog { return &Catalog{products: map[string]CatalogEntry{}} }

// Product returns a product, or false when there is none of that SKU.
func (c *Catalog) Product(sku string) (CatalogEntry, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	entry, ok := c.products[sku]
	return entry, ok
}

func (c *Catalog) put(entry CatalogEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.products[entry.Product.SKU] = entry
}
