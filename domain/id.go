package domain

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// An OrderID is a ULID (48 bits of milliseconds since the Unix epoch, 80 bits of entropy) whose first 10 bits of entropy
// are the partition of the order's user. It sorts by time and routes itself without an index.
//
// Its text is 27 characters: the ULID's 26 in Crockford's base 32, upper case, and one check character, so that a
// mistyped or invented id is refused without I/O.
type OrderID [16]byte

const (
	// OrderIDLen is the length of an order id's text in characters.
	OrderIDLen = 27

	partitionMax   = 1<<10 - 1
	milliMax       = 1<<48 - 1
	crockford      = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	notInCrockford = 0xff
)

// symbolOf maps a byte to its value in Crockford's base 32. Lower case and look-alikes are not in it: an id has one
// text.
var symbolOf = func() (table [256]byte) {
	for i := range table {
		table[i] = notInCrockford
	}
	for value := range len(crockford) {
		table[crockford[value]] = byte(value)
	}
	return table
}()

// NewOrderID makes the id of an order that is placed at a time (its milliseconds count) by a user of a partition. The
// first 10 bits of entropy are replaced by the partition.
// REQUIRES: partition ≤ 1023, the time between 1970 and the year 10889.
func NewOrderID(at time.Time, partition uint32, entropy [10]byte) OrderID {
	milli := at.UnixMilli()
	assert(partition <= partitionMax, "order id: partition %d > %d", partition, partitionMax)
	assert(milli >= 0 && milli <= milliMax, "order id: time %v does not fit", at)
	var id OrderID
	binary.BigEndian.PutUint64(id[:8], uint64(milli)<<16)
	copy(id[6:], entropy[:])
	id[6] = byte(partition >> 2)
	id[7] = byte(partition&3)<<6 | id[7]&0x3f
	return id
}

// ParseOrderID reads the text of an order id. Only the canonical text is accepted; anything else, the zero id
// included, is an *InvalidIDError.
func ParseOrderID(text string) (OrderID, error) {
	if len(text) != OrderIDLen {
		return OrderID{}, &InvalidIDError{Text: text, Problem: fmt.Sprintf("it has %d characters, want %d", len(text), OrderIDLen)}
	}
	// No step waits for another's result: an id is read for every event of the log.
	var first, middle, last uint64 // The values of 12, 12 and 2 characters.
	var sum, all byte
	for i := range 12 {
		one, other := symbolOf[text[i]], symbolOf[text[12+i]]
		first, middle = first<<5|uint64(one), middle<<5|uint64(other)
		sum ^= weighted[i][one&31] ^ weighted[12+i][other&31]
		all |= one | other
	}
	one, other, check := symbolOf[text[24]], symbolOf[text[25]], symbolOf[text[26]]
	last = uint64(one)<<5 | uint64(other)
	sum ^= weighted[24][one&31] ^ weighted[25][other&31] ^ check
	if all|one|other|check == notInCrockford {
		at := strings.IndexFunc(text, func(r rune) bool { return r >= rune(len(symbolOf)) || symbolOf[r] == notInCrockford })
		return OrderID{}, &InvalidIDError{Text: text, Problem: fmt.Sprintf("character %d is not of 0-9 A-Z without I L O U", at+1)}
	}
	hi, lo := first<<6|middle>>54, middle<<10|last
	if text[0] > '7' {
		return OrderID{}, &InvalidIDError{Text: text, Problem: "the first character is above 7"}
	}
	if sum != 0 {
		return OrderID{}, &InvalidIDError{Text: text, Problem: "the check character does not match"}
	}
	if hi|lo == 0 {
		return OrderID{}, &InvalidIDError{Text: text, Problem: "it is zero"}
	}
	var id OrderID
	binary.BigEndian.PutUint64(id[:8], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	return id, nil
}

// String returns the 27 characters of the id.
func (id OrderID) String() string {
	var text [OrderIDLen]byte
	hi, lo := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	first, middle := hi>>6, hi<<58>>4|lo>>10
	var sum byte
	for i := 11; i >= 0; i-- {
		one, other := first&31, middle&31
		text[i], text[12+i] = crockford[one], crockford[other]
		sum ^= weighted[i][one] ^ weighted[12+i][other]
		first, middle = first>>5, middle>>5
	}
	one, other := lo>>5&31, lo&31
	text[24], text[25] = crockford[one], crockford[other]
	text[26] = crockford[sum^weighted[24][one]^weighted[25][other]]
	return string(text[:])
}

// Partition returns the partition of the order's user, 0 to 1023.
func (id OrderID) Partition() uint32 { return uint32(id[6])<<2 | uint32(id[7])>>6 }

// Time returns when the id was made, to the millisecond.
func (id OrderID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// IsZero reports whether the id is the zero id, which no order has.
func (id OrderID) IsZero() bool { return id == OrderID{} }

// timesAlpha multiplies a value by α in GF(32), where α is a root of the primitive polynomial x⁵+x²+1.
//
// A text x₀…x₂₆ is valid when Σ xᵢ·α²⁶⁻ⁱ = 0. The powers α⁰…α²⁶ are nonzero and all different, because the order of α is
// 31: so changing any one character, or exchanging any two that differ, makes the sum nonzero.
func timesAlpha(value byte) byte {
	value <<= 1
	if value&0x20 != 0 {
		value ^= 0x25
	}
	return value
}

// weighted holds x·α²⁶⁻ⁱ for each place i of a text and each value x of a character.
var weighted = func() (table [OrderIDLen][32]byte) {
	for x := range table[0] {
		product := byte(x)
		for i := OrderIDLen - 1; i >= 0; i-- {
			table[i][x] = product
			product = timesAlpha(product)
		}
	}
	return table
}()
