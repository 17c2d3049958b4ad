package domain_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// The text of an id is for ever: it is in customers' hands. The check characters were computed apart from this code, by
// summing xᵢ·α²⁶⁻ⁱ with a multiplication table of GF(32).
var goldenIDs = []struct {
	at        time.Time
	partition uint32
	entropy   [10]byte
	text      string
}{
	{time.UnixMilli(0), 0, [10]byte{9: 1}, "000000000000000000000000012"},
	{time.UnixMilli(1700000000123), 777, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, "01HF7YAT3VR91061050R3GG28AS"},
	{time.UnixMilli(1767323045000), 1023, [10]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "01KDYAK348ZZZZZZZZZZZZZZZZ9"},
	{time.UnixMilli(1<<48 - 1), 512, [10]byte{0xde, 0xad, 0xbe, 0xef, 0xde, 0xad, 0xbe, 0xef, 0xde, 0xad}, "7ZZZZZZZZZG0PVXVYYNPZEZQND8"},
}

func TestOrderIDsKeepTheirText(t *testing.T) {
	for _, golden := range goldenIDs {
		id := domain.NewOrderID(golden.at, golden.partition, golden.entropy)
		if got := id.String(); got != golden.text {
			t.Errorf("partition %d at %v: got %s, want %s", golden.partition, golden.at, got, golden.text)
		}
		parsed, err := domain.ParseOrderID(golden.text)
		if err != nil || parsed != id {
			t.Errorf("parse %s: got %v, %v", golden.text, parsed, err)
		}
		if id.Partition() != golden.partition || !id.Time().Equal(golden.at) {
			t.Errorf("%s: got partition %d at %v, want %d at %v", golden.text, id.Partition(), id.Time(), golden.partition, golden.at)
		}
	}
}

func TestAnOrderIDWithOneCharacterChangedOrTwoExchangedIsRefused(t *testing.T) {
	for _, golden := range goldenIDs {
		text := []byte(golden.text)
		for i := range text {
			was := text[i]
			for _, c := range []byte(crockford) {
				text[i] = c
				if _, err := domain.ParseOrderID(string(text)); (err == nil) != (c == was) {
					t.Errorf("%s with %c at %d: got %v", golden.text, c, i, err)
				}
			}
			text[i] = was
			for j := range i {
				text[i], text[j] = text[j], text[i]
				if _, err := domain.ParseOrderID(string(text)); (err == nil) != (text[i] == text[j]) {
					t.Errorf("%s with %d and %d exchanged: got %v", golden.text, j, i, err)
				}
				text[i], text[j] = text[j], text[i]
			}
		}
	}
}

func TestOnlyTheCanonicalTextIsAnOrderID(t *testing.T) {
	valid := goldenIDs[1].text
	for _, text := range []string{
		"", " ", valid[:26], valid + "0", " " + valid[1:], strings.ToLower(valid), strings.Repeat("A", 300),
		strings.Replace(valid, "0", "O", 1), strings.Replace(valid, "1", "I", 1), strings.Replace(valid, "1", "L", 1),
		"8" + valid[1:], "80000000000000000000000001B", // More than 128 bits; of the second the check character matches.
		"ZZZZZZZZZZZZZZZZZZZZZZZZZZZ", "*", ">", valid[:20] + ".......", valid[:25] + "\r\n", valid[:26] + "\x00",
		"000000000000000000000000000", "０" + valid[3:], // Valid length in bytes, full-width zero.
	} {
		id, err := domain.ParseOrderID(text)
		var invalid *domain.InvalidIDError
		if !errors.As(err, &invalid) || !errors.Is(err, domain.ErrInvalidArgument) || !id.IsZero() {
			t.Errorf("%.40q: got %v, %v", text, id, err)
		} else if len(err.Error()) > 400 {
			t.Errorf("%.40q: the message has %d bytes", text, len(err.Error()))
		}
	}
}

func TestARefusedOrderIDSaysWhichCharacterIsWrong(t *testing.T) {
	valid := goldenIDs[1].text
	for i := range domain.OrderIDLen {
		for _, wrong := range []string{"U", "a", "-", "\x00", "\xff"} { // Characters and bytes that are none.
			text := valid[:i] + wrong + valid[i+1:]
			var invalid *domain.InvalidIDError
			if _, err := domain.ParseOrderID(text); !errors.As(err, &invalid) || !strings.HasPrefix(invalid.Problem, fmt.Sprintf("character %d is", i+1)) {
				t.Errorf("%q: got %v, want that character %d is wrong", text, err, i+1)
			}
		}
	}
}

func TestOrderIDsSortByTime(t *testing.T) {
	var before string
	for milli := int64(1); milli < 1<<47; milli = milli*7 + 1 {
		id := domain.NewOrderID(time.UnixMilli(milli), uint32(milli%1024), [10]byte{byte(milli)}).String()
		if id <= before {
			t.Errorf("%s at %d ms does not sort after %s", id, milli, before)
		}
		before = id
	}
}

func TestNewOrderIDPanicsOnWhatDoesNotFit(t *testing.T) {
	for name, make := range map[string]func(){
		"partition":   func() { domain.NewOrderID(epoch, 1024, [10]byte{}) },
		"early time":  func() { domain.NewOrderID(time.UnixMilli(-1), 0, [10]byte{}) },
		"late time":   func() { domain.NewOrderID(time.UnixMilli(1<<48), 0, [10]byte{}) },
		"no time yet": func() { domain.NewOrderID(time.Time{}, 0, [10]byte{}) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it did not panic")
				}
			}()
			make()
		})
	}
}

func FuzzParseOrderID(f *testing.F) {
	for _, golden := range goldenIDs {
		f.Add(golden.text)
		f.Add(strings.ToLower(golden.text))
	}
	f.Add("")
	f.Add("ZZZZZZZZZZZZZZZZZZZZZZZZZZZ")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := domain.ParseOrderID(text)
		if err != nil {
			var invalid *domain.InvalidIDError
			if !errors.As(err, &invalid) || !id.IsZero() {
				t.Fatalf("got %v, %v", id, err)
			}
			return
		}
		if got := id.String(); got != text {
			t.Fatalf("the text of the id is %s, parsed from %q", got, text)
		}
		var entropy [10]byte
		copy(entropy[:], id[6:])
		if again := domain.NewOrderID(id.Time(), id.Partition(), entropy); again != id {
			t.Fatalf("made again from its parts %v is %v", id, again)
		}
	})
}
