package limit

import (
	"math"
	"time"
)

// A demand tells upstreams that stall from a flood. In a flood more is asked than was served lately, and fewer calls at a time are served sooner; while
// upstreams stall, as much is asked as ever and all of it takes longer, whatever the gate does. So for a moment calls that are no more than usual get
// more places, and the pace does not fall for what they take. If it lasts, it is an overload: upstreams can do less than they did.
type demand struct {
	// asked and served are of about the last demandTime, of which known is the share that was seen yet, and usual is the most that was served in as long
	// lately.
	asked, served, known, usual float64
	at                          int64
	// slow is since when calls take long, or more places were used than the pace has; 0 for not now.
	slow int64
}

const (
	// demandTime is what asked and served are of: long enough that callers who stall with the upstreams and come all at once then are no more than usual.
	demandTime = 3 * time.Second
	// usualTime is how long what is usual is remembered.
	usualTime = 30 * time.Second
	// usualMargin times the square root of what is usual, by which calls that come at random vary, and usualFew calls more are no more than usual.
	usualMargin = 3
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
	d.asked, d.served, d.known = d.asked*kept+asked, d.served*kept+served, d.known*kept+1-kept
	d.usual = max(d.served/d.known, d.usual*math.Exp(-passed/float64(usualTime)))
	switch {
	case !slow:
		d.slow = 0
	case d.slow == 0:
		d.slow = now
	}
}

// isUsual reports whether no more is asked than usual, with so many calls since the newest window, and calls have not taken long for long.
func (d *demand) isUsual(now int64, since int) bool {
	asked := d.asked*math.Exp(-float64(now-d.at)/float64(demandTime)) + float64(since)
	return asked <= d.usual+math.Sqrt(d.usual)*usualMargin+usualFew && (d.slow == 0 || now-d.slow < int64(slowMax))
}

// lately returns the most calls that were served in a window lately.
func (d *demand) lately() float64 { return d.usual * float64(windowLength) / float64(demandTime) }
