package projections

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
)

func TestCampaignsAndCouponsAreShownWithWhatIsLeftOverAllLanes(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		s.steps(300)
		n.reach(s)
	}
	n.checkCampaigns(shops...)
}

func TestACampaignOfSeveralProductsHasToBeToldApart(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.openLane()
	s.commit(domain.CampaignPut{Pool: "mug@one"}, domain.CampaignPut{Pool: "mug@two"}, domain.CampaignPut{Pool: "tee@two"}, domain.CampaignPut{Pool: "tee@on"})
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	for _, c := range []struct {
		campaignID, sku, pool string
		err                   error
	}{
		{"one", "", "mug@one", nil},
		{"on", "", "tee@on", nil},
		{"two", "", "", ErrSeveral},
		{"two", "tee", "tee@two", nil},
		{"one", "tee", "", ErrNotFound},
		{"o", "", "", ErrNotFound},
		{"three", "", "", ErrNotFound},
	} {
		got, _, err := n.views.Campaign(t.Context(), c.campaignID, c.sku, Min{Wait: patience})
		if got.Campaign.Pool != c.pool || !errors.Is(err, c.err) {
			t.Errorf("campaign %s of %q: got %+v, %v, want %s, %v", c.campaignID, c.sku, got, err, c.pool, c.err)
		}
	}
	if _, _, err := n.views.Coupon(t.Context(), "NONE", Min{Wait: patience}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a coupon that is not there: %v", err)
	}
	for _, query := range []KeysQuery{{PageToken: "x"}} {
		if _, _, err := n.views.Campaigns(t.Context(), query, Min{}); !errors.Is(err, ErrBadPageToken) {
			t.Errorf("a bad token: %v", err)
		}
	}
}
