package main

import "connectrpc.com/connect"

// A reason is one entry of the closed list that ErrorInfo.reason comes from.
type reason struct {
	name    string
	code    connect.Code
	meaning string
	// next is what the client's user can do about it.
	next string
}

// reasons is the closed list, in the order in which a caller is likely to meet them.
var reasons = []reason{
	{"OUT_OF_STOCK", connect.CodeFailedPrecondition, "fewer units are free than the order asks for", "order fewer, or look at the stock: weir stock get --sku SKU"},
	{"STOCK_MOVING", connect.CodeAborted, "units of the product are on their way between lanes; whether there are enough is not known yet", "wait as long as it says and repeat with the same request id"},
	{"UNKNOWN_PRODUCT", connect.CodeFailedPrecondition, "an order or a stock receipt names a product that does not exist", "put it first: weir product put --sku SKU --title TITLE --price \"12.99 EUR\""},
	{"PRODUCT_NOT_FOUND", connect.CodeNotFound, "there is no such product", "list what there is: weir product list"},
	{"ENDPOINT_NOT_FOUND", connect.CodeNotFound, "there is no such webhook endpoint", "list what there is: weir webhooks list"},
	{"ENDPOINT_LIMIT", connect.CodeFailedPrecondition, "there are as many webhook endpoints as there may be", "delete one that is no longer needed: weir webhooks list"},
	{"EVENT_NOT_FOUND", connect.CodeNotFound, "there is no event of this id in the log, or it is not a public one", "take an id from: weir webhooks deliveries ENDPOINT"},
	{"ORDER_NOT_FOUND", connect.CodeNotFound, "there is no such order, or it is another user's", "check the id, and that the token is of the order's user: weir order list"},
	{"ORDER_EXPIRED", connect.CodeFailedPrecondition, "the order was not paid in time and has ended", "place a new order"},
	{"ORDER_CANCELLED", connect.CodeFailedPrecondition, "the order was cancelled and has ended", "place a new order"},
	{"ORDER_SHIPPED", connect.CodeFailedPrecondition, "units of the order were shipped, so it cannot be cancelled", "return it: weir order return ORDER_ID"},
	{"PAYMENT_STATE", connect.CodeFailedPrecondition, "this does not go with where the order's payment stands", "look at it: weir payment get ORDER_ID"},
	{"FULFILMENT_STATE", connect.CodeFailedPrecondition, "this does not go with what of the order was shipped", "look at it: weir order get ORDER_ID"},
	{"ORDER_PART_NOT_FOUND", connect.CodeNotFound, "the order has no such payment, refund, shipment or return", "look at what it has: weir order get ORDER_ID"},
	{"ORDER_LIMIT", connect.CodeFailedPrecondition, "the order has as many payments, refunds, shipments, returns or notes as one may have", "look at what it has: weir order timeline ORDER_ID"},
	{"REFUND_EXCEEDS_CAPTURED", connect.CodeFailedPrecondition, "more is to be refunded than is left of what was captured", "refund what is left, or less: weir payment get ORDER_ID"},
	{"UNITS_EXCEEDED", connect.CodeFailedPrecondition, "more units are to be shipped than were ordered, or returned than were shipped", "ship or return what is left, or less: weir order get ORDER_ID"},
	{"AMOUNT_MISMATCH", connect.CodeFailedPrecondition, "a provider named another amount of a payment or refund than the one that is known", "compare what the provider shows with: weir payment get ORDER_ID"},
	{"KEY_REUSED", connect.CodeFailedPrecondition, "the request id was used before with another body", "use a new request id for a new request; repeat the same one only with the same body"},
	{"MIXED_CURRENCIES", connect.CodeInvalidArgument, "the items of one order have prices in more than one currency", "place one order for each currency"},
	{"AMOUNT_OVERFLOW", connect.CodeInvalidArgument, "the order's amount does not fit into 64 bits of minor units", "order fewer units"},
	{"INVALID_ARGUMENT", connect.CodeInvalidArgument, "a field breaks its rule; the message names it", "correct the value that the message names"},
	{"CAMPAIGN_NOT_FOUND", connect.CodeNotFound, "there is no such campaign, or it is not of this product", "list what there is: weir campaign list"},
	{"CAMPAIGN_NOT_OPEN", connect.CodeFailedPrecondition, "the campaign has not opened yet; the message says when it does", "repeat it then"},
	{"CAMPAIGN_CLOSED", connect.CodeFailedPrecondition, "the campaign has closed", "order without --campaign"},
	{"CAMPAIGN_MAX_PER_ORDER", connect.CodeFailedPrecondition, "one order of the campaign may not hold that many units", "order fewer"},
	{"CAMPAIGN_LIMIT", connect.CodeFailedPrecondition, "the user would hold more units of the campaign than one may, over all orders", "order fewer, or without --campaign"},
	{"COUPON_INVALID", connect.CodeNotFound, "there is no such coupon", "check the code, or order without --coupon"},
	{"COUPON_NOT_YET", connect.CodeFailedPrecondition, "the coupon is not valid yet; the message says from when", "repeat it then, or order without --coupon"},
	{"COUPON_EXPIRED", connect.CodeFailedPrecondition, "the coupon is not valid any more", "order without --coupon"},
	{"COUPON_MIN_SUBTOTAL", connect.CodeFailedPrecondition, "the order is too small for the coupon", "order more, or without --coupon"},
	{"COUPON_LIMIT", connect.CodeFailedPrecondition, "the coupon was redeemed as often as it may be, by this user or in all", "order without --coupon"},
	{"UNAUTHENTICATED", connect.CodeUnauthenticated, "the token is missing, malformed, expired or not of this issuer", "give a token with --token or WEIR_TOKEN; one more: weir token --data DIR --user USER --scope SCOPE"},
	{"PERMISSION_DENIED", connect.CodePermissionDenied, "the token is good but lacks the scope for this", "use a token with the scope: weir token --data DIR --user USER --scope operator"},
	{"NODE_NOT_FOUND", connect.CodeNotFound, "there is no such node in the cluster now", "see which there are: weir cluster status"},
	{"NODE_DRAINED", connect.CodeFailedPrecondition, "the node that was to get a lane is drained, or about to leave", "let it have lanes again: weir cluster undrain NODE"},
	{"LAST_NODE", connect.CodeFailedPrecondition, "no other node could have the lanes of the node that was to be drained", "start another node first"},
	{"LANE_NOT_FOUND", connect.CodeNotFound, "the log has fewer lanes", "see which there are: weir cluster status"},
	{"QUEUE_FULL", connect.CodeResourceExhausted, "the lane has as much waiting as it can do in time", "wait as long as it says and repeat with the same request id"},
	{"RATE_LIMITED", connect.CodeResourceExhausted, "the gateway is called more often than its policy allows, from this address, by this user or at this method", "wait as long as it says and repeat with the same request id"},
	{"OVERLOADED", connect.CodeResourceExhausted, "more is asked than the nodes can do, and other calls matter more", "wait as long as it says and repeat with the same request id"},
	{"TOO_MANY_CALLS", connect.CodeResourceExhausted, "the gateway has as many calls under way as it may", "wait as long as it says and repeat with the same request id"},
	{"BREAKER_OPEN", connect.CodeUnavailable, "the nodes fail at this and are left alone for a while; nothing was done", "wait as long as it says and repeat with the same request id"},
	{"NO_UPSTREAM", connect.CodeUnavailable, "the gateway reaches no node; nothing was done", "see whether nodes run, then repeat with the same request id: weir gateway top"},
	{"UPSTREAM_BROKE", connect.CodeUnavailable, "a node broke off before it had answered", "repeat with the same request id: what took effect is not done twice"},
	{"REQUEST_TOO_LARGE", connect.CodeResourceExhausted, "the request is larger than a node or the gateway takes", "send less"},
	{"REQUEST_TOO_SLOW", connect.CodeDeadlineExceeded, "the request did not arrive in time", "send it again, faster"},
	{"REQUEST_UNREADABLE", connect.CodeInvalidArgument, "the request broke off, or is not the message of its method", "send it again, whole; a client of another version may be to blame"},
	{"METHOD_UNKNOWN", connect.CodeUnimplemented, "the server has no such service or method", "compare the versions: weir version, and see that the address is a node's or a gateway's"},
	{"NOT_A_CALL", connect.CodeUnimplemented, "the method is not called with this HTTP method, HTTP version or content type", "use a client of Connect, gRPC or gRPC-Web"},
	{"ENCODING_UNKNOWN", connect.CodeUnimplemented, "the message is compressed in a way that the server does not know", "compress with gzip, or not at all"},
	{"TOO_MANY_WATCHES", connect.CodeResourceExhausted, "as many orders are watched as may be, by this token or by all", "end a watch that is no longer needed, or try again later"},
	{"WATCH_TOO_OLD", connect.CodeOutOfRange, "too much was missed since the watch stopped", "list the orders, and watch from the list's watch_token"},
	{"READS_FULL", connect.CodeResourceExhausted, "as many reads that memory does not answer are under way, and wait, as may", "try again after the delay; if it goes on, the node's disk is too slow"},
	{"LOG_FULL", connect.CodeResourceExhausted, "the log has no room left; reads go on", "the operator has to make room for the log, then repeat with the same request id"},
	{"LANE_UNAVAILABLE", connect.CodeUnavailable, "the lane is opening, stepping down or cannot reach its log", "repeat with the same request id"},
	{"KEYS_UNAVAILABLE", connect.CodeUnavailable, "the keys that seal notes are out of reach", "repeat with the same request id"},
	{"SHUTTING_DOWN", connect.CodeUnavailable, "the node stops and ends its watches", "watch again once the node is back"},
	{"STARTING", connect.CodeUnavailable, "the node is starting and takes no calls yet; the message says what it waits for", "call another node, or wait as long as it says and repeat with the same request id"},
	{"VIEW_BEHIND", connect.CodeUnavailable, "the view did not reach --min-revision in time", "repeat, or give it longer with --wait"},
	{"VIEWS_UNAVAILABLE", connect.CodeUnavailable, "the node keeps no views, and no node that does could be asked, or that node is gone", "wait as long as it says and call again; 'weir cluster status' shows which nodes keep views"},
	{"VIEW_PARKED", connect.CodeUnavailable, "it is in the log, but an event of it could not be applied to the view", "the operator has to replay it: weir parked list"},
	{"DEADLINE_EXCEEDED", connect.CodeDeadlineExceeded, "the answer did not come in time; a change may have happened", "repeat with the same request id: it answers with what happened"},
	{"CANCELED", connect.CodeCanceled, "the caller left before the answer; a change may have happened", "repeat with the same request id: it answers with what happened"},
	{"INTERNAL", connect.CodeInternal, "a fault in the server; its log has the details", "look at the server's log"},
}

// reasonNamed returns the entry of a reason.
func reasonNamed(name string) (reason, bool) {
	for _, r := range reasons {
		if r.name == name {
			return r, true
		}
	}
	return reason{}, false
}
