package lanes

import (
	"strconv"
	"testing"
)

// A filter that has grown by a generation knows every request that was added, and takes few others for one of them.
func TestAFilterForgetsNoRequestAndTakesFewForKnown(t *testing.T) {
	const added, others = filterCapacityFirst + filterCapacityFirst/4, 1 << 16
	key := func(kind string, i int) requestKey { return requestKey{kind, strconv.Itoa(i)} }
	var f requestFilter
	for i := range added {
		f.add(key("known", i))
	}
	if generations := len(f.generations); generations != 2 {
		t.Fatalf("%d requests made %d generations, want 2", added, generations)
	}
	taken := 0
	for i := 0; i < added; i += 7 {
		if !f.mayHold(key("known", i)) {
			t.Fatalf("request %d of %d was added and is not known", i, added)
		}
	}
	for i := range others {
		if f.mayHold(key("other", i)) {
			taken++
		}
	}
	// The first generation is full, the second an eighth: twice the rate of one leaves room for chance.
	if most := 2 * filterFalsePositives * others; float64(taken) > most {
		t.Errorf("%d of %d other requests were taken for known ones, want at most %.0f", taken, others, most)
	}
}
