package projections

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// Two views hold orders.
//
//	orders          order id, 16 bytes → the order's record
//	orders-by-user  length of the user id, the user id, the order id's complement → how it ended, 1 byte
//
// The complement makes the newest order the first of its user's. How it ended is the status of a cancelled or expired order, which
// stays; that of any other order changes with its payment and shipments, and follows from its record alone.

var ordersProjection = Projection{
	Name: "orders", Version: 1, space: spaceOrders, open: stateless(applyOrders),
	key: orderKey,
	describe: func(suffix []byte) string {
		if len(suffix) != len(domain.OrderID{}) {
			return fmt.Sprintf("key %x", suffix)
		}
		return "order " + domain.OrderID(suffix).String()
	},
	print:     printRecord,
	partition: orderPartition,
	byOrder:   true,
}

var ordersByUserProjection = Projection{
	Name: "orders-by-user", Version: 1, space: spaceOrdersByUser, open: stateless(applyOrdersByUser),
	key: func(c *change) string {
		if c.kind != kindOrderPlaced && c.kind != kindOrderCancelled && c.kind != kindOrderExpired {
			return ""
		}
		return orderKey(c)
	},
	describe: func(suffix []byte) string {
		user, rest, ok := cutUser(suffix)
		if !ok || len(rest) != len(domain.OrderID{}) {
			return fmt.Sprintf("key %x", suffix)
		}
		return fmt.Sprintf("order %s of user %s", domain.OrderID(appendComplement(nil, domain.OrderID(rest))), user)
	},
	print: func(_, value []byte) (string, error) {
		if len(value) != 1 {
			return "", errIndexDamaged
		}
		switch status := domain.OrderStatus(value[0]); status {
		case statusOpen:
			return "has not ended", nil
		default:
			return status.String(), nil
		}
	},
	partition: userPartition,
	byOrder:   true,
}

// orderKey is the order that an event is about, "" when it is about none.
func orderKey(c *change) string {
	if !c.kind.isOrder() {
		return ""
	}
	return c.event.AggregateID
}

// orderPartition is the partition of a key that begins with an order's id.
func orderPartition(suffix []byte) uint32 {
	var id domain.OrderID
	copy(id[:], suffix)
	return id.Partition()
}

// printRecord writes an order's record as people do.
func printRecord(suffix, value []byte) (string, error) {
	var id domain.OrderID
	copy(id[:], suffix)
	fold := newOrderFold(id)
	for entry, err := range ReadEntries(value) {
		if err == nil {
			err = fold.take(entry)
		}
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d events up to commit %d, of user %s, %s", fold.entries, fold.revision, fold.userID, fold.order.Status), nil
}

// userIDBytesMax is the longest user id that the index takes; the API lets in 64.
const userIDBytesMax = 255

// applyOrders appends the event to its order's record.
func applyOrders(v *view, c *change) error {
	if !c.kind.isOrder() {
		return nil
	}
	entry := Entry{Number: c.number, At: c.at, Type: c.event.Type, Version: c.event.Version, Payload: c.event.Payload}
	if c.kind == kindOrderPlaced {
		entry.UserID = c.event.UserID
	}
	var op *pebble.DeferredBatchOp
	if keyBytes, valueBytes := prefixBytes+len(c.order), EntryBytes(entry); c.kind == kindOrderPlaced {
		op = v.batch.SetDeferred(keyBytes, valueBytes)
	} else {
		op = v.batch.MergeDeferred(keyBytes, valueBytes)
	}
	putOrderKey(op.Key, v.prefix, c.order)
	AppendEntry(op.Value[:0], entry)
	return op.Finish()
}

func putOrderKey(key []byte, p prefix, id domain.OrderID) {
	copy(key, p[:])
	copy(key[prefixBytes:], id[:])
}

// statusOpen is what the index says of an order that has not ended.
const statusOpen = domain.StatusPendingPayment

// applyOrdersByUser notes the order, and later how it ended, under its user.
func applyOrdersByUser(v *view, c *change) error {
	var status domain.OrderStatus
	switch c.kind {
	case kindOrderPlaced:
		status = statusOpen
	case kindOrderCancelled:
		status = domain.StatusCancelled
	case kindOrderExpired:
		status = domain.StatusExpired
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindPaymentCaptured, kindReturnReceived, kindOrderChanged, kindUserErased, kindWebhookEndpoint, kindRequestAnswered,
		kindCampaignPut, kindPoolFilled, kindPoolDrained, kindCouponPut:
		return nil
	}
	userID := c.event.UserID
	if userID == "" || len(userID) > userIDBytesMax {
		return fmt.Errorf("a user id has %d bytes, want 1 to %d", len(userID), userIDBytesMax)
	}
	op := v.batch.SetDeferred(prefixBytes+1+len(userID)+len(c.order), 1)
	key := append(op.Key[:0], v.prefix[:]...)
	appendComplement(appendUser(key, userID), c.order)
	op.Value[0] = byte(status)
	return op.Finish()
}

// appendUser appends the part of an index key that all of a user's orders have.
func appendUser(key []byte, userID string) []byte {
	return append(append(key, byte(len(userID))), userID...)
}

// cutUser takes what appendUser appended off a key.
func cutUser(suffix []byte) (userID string, rest []byte, ok bool) {
	if len(suffix) == 0 || len(suffix) < 1+int(suffix[0]) {
		return "", nil, false
	}
	return string(suffix[1 : 1+suffix[0]]), suffix[1+suffix[0]:], true
}

// userPartition is the partition of a key that begins with a user.
func userPartition(suffix []byte) uint32 {
	userID, _, _ := cutUser(suffix)
	return eventstore.PartitionOf(userID)
}

// appendComplement appends the order id with every bit turned over; turning it over again gives it back.
func appendComplement(key []byte, id domain.OrderID) []byte {
	key = binary.BigEndian.AppendUint64(key, ^binary.BigEndian.Uint64(id[:8]))
	return binary.BigEndian.AppendUint64(key, ^binary.BigEndian.Uint64(id[8:]))
}

// errIndexDamaged says that a key or value of the index is not what applyOrdersByUser wrote.
var errIndexDamaged = errors.New("the index of orders by user is damaged")

// mayHaveStatus reports whether an order of which the index says this may be of a status; 0 is any.
func mayHaveStatus(indexed, want domain.OrderStatus) bool {
	switch want {
	case 0:
		return true
	case domain.StatusCancelled, domain.StatusExpired:
		return indexed == want
	default:
		return indexed == statusOpen
	}
}

// readIndexEntry reads what the index says of one order.
func readIndexEntry(key, value []byte) (domain.OrderID, domain.OrderStatus, error) {
	var id domain.OrderID
	if len(key) < prefixBytes+len(id) || len(value) != 1 {
		return id, 0, errIndexDamaged
	}
	copy(id[:], key[len(key)-len(id):])
	copy(id[:], appendComplement(nil, id))
	return id, domain.OrderStatus(value[0]), nil
}
