package domain_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

// hot is a state with one product that never runs out.
type hot struct {
	product  domain.Product
	account  domain.Account
	campaign domain.Campaign
}

func (*hot) Order(domain.OrderID) (domain.Order, bool) { return domain.Order{}, false }
func (h *hot) Product(string) (domain.Product, bool)   { return h.product, true }
func (*hot) KeyErased(string, domain.KeyID) bool       { return false }
func (h *hot) Stock(string) domain.Account             { return h.account }
func (h *hot) Campaign(string) (domain.Campaign, bool) { return h.campaign, true }
func (h *hot) Coupon(string) (domain.Coupon, bool)     { return domain.Coupon{}, false }
func (*hot) WebhookEndpoints(string) (int, bool)       { return 0, false }
func (h *hot) Used(domain.Use) int64                   { return 0 }
func (*hot) Supply(string) domain.Supply               { return domain.Supply{Lanes: 1} }
func hotState() (*hot, domain.PlaceOrder)              { return hotWith(1) }
func hotWith(lines int) (*hot, domain.PlaceOrder) {
	h := &hot{
		product: domain.Product{SKU: "mug", Title: "Enamel mug", Price: domain.Money{Currency: "EUR", Minor: 1299}},
		account: domain.Account{Allotted: 1 << 40, Taken: domain.Tally{Number: 1, Units: 1 << 40}},
	}
	place := domain.PlaceOrder{OrderID: orderIDs(1)[0], UserID: "alice", PayBy: epoch.Add(time.Minute)}
	for i := range lines {
		place.Lines = append(place.Lines, domain.LineRequest{SKU: "mug" + string(rune('A'+i)), Units: 1})
	}
	return h, place
}

// The command in its interface, the lines, the event in its interface and the list of events.
const placeAllocsMax = 4

func TestPlacingAnOrderOfOneLineAllocatesLittle(t *testing.T) {
	h, place := hotState()
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := domain.Decide(h, place, epoch); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > placeAllocsMax {
		t.Errorf("Decide allocates %v times, want at most %d", allocs, placeAllocsMax)
	}
	events, err := domain.Decide(h, place, epoch)
	if err != nil {
		t.Fatal(err)
	}
	var free int64
	if allocs := testing.AllocsPerRun(100, func() {
		for sku := range domain.SKUs(events[0]) {
			free += h.account.Evolve(events[0], sku).Allotted
		}
	}); allocs > 0 {
		t.Errorf("evolving the accounts allocates %v times, want 0", allocs)
	}
}

// An order of a campaign allocates the key of its pool besides.
func TestPlacingACampaignsOrderAllocatesOnceMore(t *testing.T) {
	h, place := hotState()
	h.campaign = domain.Campaign{Pool: "mugA@flash", Price: h.product.Price, OpensAt: epoch, ClosesAt: epoch.Add(time.Hour), UserUnitsMax: 1}
	place.CampaignID = "flash"
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := domain.Decide(h, place, epoch); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > placeAllocsMax+1 {
		t.Errorf("Decide allocates %v times, want at most %d", allocs, placeAllocsMax+1)
	}
}

func BenchmarkDecidePlaceOrder(b *testing.B) {
	for name, lines := range map[string]int{"lines=1": 1, "lines=3": 3, "lines=26": 26} {
		b.Run(name, func(b *testing.B) {
			h, place := hotWith(lines)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := domain.Decide(h, place, epoch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEvolveAccount(b *testing.B) {
	h, place := hotState()
	events, err := domain.Decide(h, place, epoch)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	account := h.account
	for b.Loop() {
		for sku := range domain.SKUs(events[0]) {
			account = account.Evolve(events[0], sku)
		}
	}
}

func BenchmarkOrderIDText(b *testing.B) {
	var ids [1 << 16]domain.OrderID // So many that a processor cannot learn them.
	random := rand.New(rand.NewPCG(1, 1))
	for i := range ids {
		binary.BigEndian.PutUint64(ids[i][:], random.Uint64()>>1)
		binary.BigEndian.PutUint64(ids[i][8:], random.Uint64())
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := domain.ParseOrderID(ids[i%len(ids)].String()); err != nil {
			b.Fatal(err)
		}
	}
}
