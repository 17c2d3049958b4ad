package redisview

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/weirhq/weir/domain"
)

// A kind is what an entry is a copy of. Each is one key of a view in one lane, as the bytes that Pebble keeps.
type kind uint8

// The kinds of entries, and their keys after the prefix and the versions of the views. What is in braces is the cluster's hash tag: the
// lanes' accounts of one stock key are read together, so they share it; copies of what is hot do not.
const (
	kindOrder  kind = iota + 1 // order:{ID}: the order's record
	kindRecent                 // user:{USER}: the user's newest orders
	kindStock                  // stock:{KEY#COPY}:LANE: a lane's account of a SKU or a pool
	kindBoard                  // board:{LANE#COPY}: a lane's campaigns
	kindTally                  // tally:{POOL#COPY}:LANE: a lane's tally of a campaign's orders
	// kindErased is no entry: a user all of whose entries are to go.
	kindErased
)

// A subject is what an entry is about.
type subject struct {
	kind kind
	lane uint32
	// text is an order's id as 16 bytes, a user's id, a stock key, or nothing.
	text string
}

func orderSubject(lane uint32, id domain.OrderID) subject {
	return subject{kind: kindOrder, lane: lane, text: string(id[:])}
}

// appendKey appends the subject's key, without the prefix.
func (s subject) appendKey(dst []byte, copyNumber int) []byte {
	switch s.kind {
	case kindOrder:
		dst = append(dst, "order:{"...)
		dst = append(dst, domain.OrderID([]byte(s.text)).String()...)
		return append(dst, '}')
	case kindRecent:
		dst = append(dst, "user:{"...)
		dst = append(dst, s.text...)
		return append(dst, '}')
	case kindStock, kindTally:
		name := "stock:{"
		if s.kind == kindTally {
			name = "tally:{"
		}
		dst = append(dst, name...)
		dst = append(dst, s.text...)
		dst = append(dst, '#')
		dst = strconv.AppendInt(dst, int64(copyNumber), 10)
		dst = append(dst, "}:"...)
		return strconv.AppendUint(dst, uint64(s.lane), 10)
	case kindBoard:
		dst = append(dst, "board:{"...)
		dst = strconv.AppendUint(dst, uint64(s.lane), 10)
		dst = append(dst, '#')
		dst = strconv.AppendInt(dst, int64(copyNumber), 10)
		return append(dst, '}')
	case kindErased:
	}
	panic(fmt.Sprintf("redisview: bug: no entry is of kind %d", s.kind))
}

// An entry in Redis:
//
//	2 bytes   "w1"
//	16 bytes  number of the commit that it is as of, hexadecimal: the script compares it
//	8 bytes   the first bytes of that commit's hash
//	1 byte    0 for a value, 1 for what was erased
//	4 bytes   CRC-32C of the key and everything else
//	rest      the value
const (
	entryMagic       = "w1"
	entryNumberEnd   = len(entryMagic) + 16
	entryHashEnd     = entryNumberEnd + 8
	entryStateEnd    = entryHashEnd + 1
	entryHeaderBytes = entryStateEnd + 4

	stateValue  byte = 0
	stateErased byte = 1

	// positionMax is the greatest number of a commit that the script's numbers hold exactly.
	positionMax = 1 << 53
)

// writeScript sets each of KEYS to its entry, for its milliseconds, which ARGV has in turn; not if what is there is as of a later
// commit, or is the mark of an erasure as of the same one. It says how many it has set. What is there is read at once, whole: a command
// costs Redis more than the bytes of an entry do, and publishing waits for Redis. A key may come twice.
const writeScript = `local sub, byte = string.sub, string.byte
local written, olds, now = 0, redis.call('MGET', unpack(KEYS)), {}
for i = 1, #KEYS do
  local key, entry, newer = KEYS[i], ARGV[2 * i - 1], false
  local old = now[key] or olds[i]
  if old and #old >= 27 and sub(old, 1, 2) == 'w1' then
    local number, mine = tonumber(sub(old, 3, 18), 16), tonumber(sub(entry, 3, 18), 16)
    newer = number and (number > mine or number == mine and byte(old, 27) == 1 and byte(entry, 27) ~= 1)
  end
  if not newer then
    redis.call('SET', key, entry, 'PX', ARGV[2 * i])
    written, now[key] = written + 1, entry
  end
end
return written`

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendEntry appends an entry to dst. REQUIRES: number ≤ positionMax.
func appendEntry(dst []byte, key string, number, hash uint64, state byte, value []byte) []byte {
	if number > positionMax {
		panic(fmt.Sprintf("redisview: bug: commit %d is beyond %d", number, uint64(positionMax)))
	}
	begin := len(dst)
	dst = append(dst, entryMagic...)
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], number)
	dst = hex.AppendEncode(dst, raw[:])
	dst = binary.BigEndian.AppendUint64(dst, hash)
	dst = append(dst, state)
	sum := entrySum(key, dst[begin:], value)
	dst = binary.BigEndian.AppendUint32(dst, sum)
	return append(dst, value...)
}

func entrySum(key string, head, value []byte) uint32 {
	return crc32.Update(crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, head), castagnoli, value)
}

// An entry is what Redis says about a key.
type entry struct {
	number, hash uint64
	erased       bool
	value        []byte
}

// readEntry reads what is stored at a key. It reports false for anything that appendEntry did not write for that key.
func readEntry(key string, data []byte) (entry, bool) {
	if len(data) < entryHeaderBytes || string(data[:len(entryMagic)]) != entryMagic {
		return entry{}, false
	}
	value := data[entryHeaderBytes:]
	if entrySum(key, data[:entryStateEnd], value) != binary.BigEndian.Uint32(data[entryStateEnd:]) {
		return entry{}, false
	}
	var raw [8]byte
	if _, err := hex.Decode(raw[:], data[len(entryMagic):entryNumberEnd]); err != nil {
		return entry{}, false
	}
	return entry{
		number: binary.BigEndian.Uint64(raw[:]), hash: binary.BigEndian.Uint64(data[entryNumberEnd:]),
		erased: data[entryHashEnd] == stateErased, value: value,
	}, true
}
