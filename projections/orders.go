package projections

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
)

// Two views hold orders.
//
//	orders          order id, 16 bytes → the order's record
//	orders-by-user  length of the user id, the user id, the order id's complement → how it ended, 1 byte
//
// The complement makes the newest order the first of its user's. How it ended is the status of a cancelled or expired order, which
// stays; that of any other order changes with its payment and shipments, and follows from its record alone.

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
		kindPaymentCaptured, kindReturnReceived, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
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
