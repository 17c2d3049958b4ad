package lanes

import (
	"sync"

	"github.com/weirhq/weir/domain"
)

// A Catalog is what this node knows of products, campaigns and coupons. Their facts are decided in their home lanes; every
// lane of the node reads them here, as of the commits that were applied. It is safe for use by several goroutines.
type Catalog struct {
	mu        sync.RWMutex
	products  map[string]CatalogEntry
	campaigns map[string]CampaignEntry // by the stock keys of their pools
	coupons   map[string]CouponEntry
}

// A CatalogEntry is a product and the commit of its newest change.
type CatalogEntry struct {
	Product domain.Product
	Lane    uint32
	Commit  uint64
}

// A CampaignEntry is a campaign and the commit of its newest change.
type CampaignEntry struct {
	Campaign domain.Campaign
	Commit   uint64
}

// A CouponEntry is a coupon and the commit of its newest change.
type CouponEntry struct {
	Coupon domain.Coupon
	Commit uint64
}

// NewCatalog returns an empty catalogue.
func NewCatalog() *Catalog {
	return &Catalog{products: map[string]CatalogEntry{}, campaigns: map[string]CampaignEntry{}, coupons: map[string]CouponEntry{}}
}

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

// Campaign returns the campaign that sells out of a pool, or false when there is none.
func (c *Catalog) Campaign(pool string) (CampaignEntry, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	entry, ok := c.campaigns[pool]
	return entry, ok
}

func (c *Catalog) putCampaign(entry CampaignEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.campaigns[entry.Campaign.Pool] = entry
}

// Coupon returns a coupon, or false when there is none of that code.
func (c *Catalog) Coupon(code string) (CouponEntry, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	entry, ok := c.coupons[code]
	return entry, ok
}

func (c *Catalog) putCoupon(entry CouponEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coupons[entry.Coupon.Code] = entry
}
