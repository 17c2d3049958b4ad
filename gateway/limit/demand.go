package limit

import (
	"math"
	"time"
)

// A demand tells upstreams that stall from a flood. In a flood more is asked than was served lately, and fewer calls at a time are served sooner; while
// upstreams stall, as much is asked as ever and all of it takes longer, whatever the gate does. So for a moment calls that are no more than usual get
// more places, and the pace does not fall for what they take. If it lasts, it is an overload: upstreams can do less than they did.
type demand struct {
	// asked and served are of about the last demandTime, and usual is the most that served was lately.
	asked, served, usual float64
	at                   int64
	// slow is since when calls take long, or more places were used than the pace has; 0 for not now.
	slow int64
}

const (
	// demandTime is what asked and served are of: long enough that callers who stall with the upstreams and come all at once then are no more than usual.
	demandTime = 3 * time.Second
	// usualTime is how long what is usual is remembered.
	usualTime = 30 * time.Second
	// usualMargin times as much as usual, and usualFew calls, are no more than usual.
	usualMargin = 1.25
	usualFew    = 10
	// usualPlaces are the places for calls that are no more than usual, and slowMax is how long they have them once calls take long.
	usualPlaces = 128
	slowMax     = 3 * time.Second
)

// pass takes in a window that ends now: how many calls came and were served, and whether they took long.
func (d *demand) pass(now int64, asked, served float64, slow bool) {
	passed := float64(now - d.at)
	d.at = now
	kept := math.Exp(-passed / float64(demandTime))
	d.asked, d.served = d.asked*kept+asked, d.served*kept+served
	d.usual = max(d.served, d.usual*math.Exp(-passed/float64(usualTime)))
	switch {
	case !slow:
		d.slow = 0
	case d.slow == 0:
		d.slow = now
	}
}

// isUsual reports whether no more is asked than usual, and calls have not taken long for long.
func (d *demand) isUsual(now int64) bool {
	return d.asked <= d.usual*usualMargin+usualFew && (d.slow == 0 || now-d.slow < int64(slowMax))
}
