package readpath

import (
	"errors"
	"iter"
	"strconv"
	"sync"
	"testing"
)

func numbered(from, to int) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for i := from; i < to; i++ {
			if !yield("sku-"+strconv.Itoa(i), nil) {
				return
			}
		}
	}
}

func TestAFilterHoldsEveryKeyThatWasAdded(t *testing.T) {
	const keys = 4 * filterKeysMin // It grows on the way.
	var f Filter
	if f.MayHold("sku-0") {
		t.Fatal("an empty filter holds a key")
	}
	for key := range numbered(0, keys) {
		f.Add(key)
		if !f.MayHold(key) {
			t.Fatalf("%s was added and is not held", key)
		}
	}
	check(t, &f, keys)
	if parts := len(*f.parts.Load()); parts < 2 || parts > 4 {
		t.Errorf("the filter has %d parts, want it to have grown by doubling", parts)
	}
	if err := f.Rebuild(keys, numbered(0, keys)); err != nil {
		t.Fatal(err)
	}
	check(t, &f, keys)
	if parts := len(*f.parts.Load()); parts != 1 {
		t.Errorf("the filter has %d parts after it was rebuilt, want 1", parts)
	}
}

// check looks for all keys, and counts how many others are held.
func check(t *testing.T, f *Filter, keys int) {
	t.Helper()
	for key := range numbered(0, keys) {
		if !f.MayHold(key) {
			t.Fatalf("%s is not held", key)
		}
	}
	const others = 5000
	held := 0
	for key := range numbered(keys, keys+others) {
		if f.MayHold(key) {
			held++
		}
	}
	if held > others*3/100 {
		t.Errorf("%d of %d keys that were never added are held, want at most 3 in 100", held, others)
	}
}

func TestAKeyThatIsAddedWhileTheFilterIsRebuiltIsHeldAfterwards(t *testing.T) {
	var f Filter
	f.Add("before")
	err := f.Rebuild(2, func(yield func(string, error) bool) {
		if !yield("before", nil) {
			return
		}
		f.Add("meanwhile")
		f.Add("before")
		if !f.MayHold("meanwhile") {
			t.Error("a key that is added while the filter is rebuilt is not held at once")
		}
	})
	if err != nil || !f.MayHold("meanwhile") || !f.MayHold("before") {
		t.Errorf("got %v, meanwhile %v, before %v", err, f.MayHold("meanwhile"), f.MayHold("before"))
	}
}

func TestARebuildThatFailsLeavesTheFilter(t *testing.T) {
	var f Filter
	f.Add("before")
	failure := errors.New("planted")
	if err := f.Rebuild(1, func(yield func(string, error) bool) { yield("", failure) }); !errors.Is(err, failure) || !f.MayHold("before") {
		t.Errorf("got %v, before %v", err, f.MayHold("before"))
	}
}

func TestAFilterIsAskedWhileItGrows(t *testing.T) {
	var f Filter
	const keys = 2 * filterKeysMin
	var asking sync.WaitGroup
	added := make(chan string, 64)
	for range 2 {
		asking.Go(func() {
			for key := range added {
				if !f.MayHold(key) {
					t.Errorf("%s was added and is not held", key)
				}
			}
		})
	}
	for key := range numbered(0, keys) {
		f.Add(key)
		added <- key
	}
	close(added)
	asking.Wait()
}
