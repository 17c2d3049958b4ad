import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { ErrorInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { OrderService, OrderStatus } from "./generated/weir/order/v1/order_pb.js";

// Given is what the test tells the page.
interface Given {
  gateway: string;
  token: string;
}

// Shopped is what one page saw over one protocol; browser_test.go reads it.
interface Shopped {
  protocol: string;
  orderId: string;
  // repeatedOrderId is what the same request answered with when it was sent again.
  repeatedOrderId: string;
  // watched holds the statuses in the order in which the stream sent them.
  watched: string[];
  refusal: Refusal | null;
  // failure says how the page failed, or is empty.
  failure: string;
}

interface Refusal {
  code: string;
  reason: string;
  domain: string;
  metadata: Record<string, string>;
}

// shop places an order, watches it, cancels it while it is watched, and asks for more than there is.
async function shop(protocol: string, transport: Transport): Promise<Shopped> {
  const shopped: Shopped = { protocol, orderId: "", repeatedOrderId: "", watched: [], refusal: null, failure: "" };
  const orders = createClient(OrderService, transport);
  const requestId = `page-${protocol}`;
  try {
    const request = { requestId, items: [{ sku: "tea-sencha", quantity: 2n }] };
    shopped.orderId = (await orders.placeOrder(request)).order?.orderId ?? "";
    shopped.repeatedOrderId = (await orders.placeOrder(request)).order?.orderId ?? "";

    for await (const { order } of orders.watchOrder({ orderId: shopped.orderId })) {
      if (order === undefined) {
        throw new Error("a message of the watch has no order");
      }
      shopped.watched.push(OrderStatus[order.status]);
      if (order.status === OrderStatus.CANCELLED) {
        break;
      }
      // What follows is seen by this very stream: it was open before.
      await orders.cancelOrder({ requestId: `${requestId}-cancel`, orderId: shopped.orderId });
    }

    try {
      await orders.placeOrder({ requestId: `${requestId}-too-many`, items: [{ sku: "tea-sencha", quantity: 1_000_000n }] });
    } catch (error) {
      shopped.refusal = refusalOf(ConnectError.from(error));
    }
  } catch (error) {
    shopped.failure = String(error);
  }
  return shopped;
}

function refusalOf(error: ConnectError): Refusal {
  const [info] = error.findDetails(ErrorInfoSchema);
  return {
    code: Code[error.code],
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: { ...info?.metadata },
  };
}

// The page's own server has the gateway's address and a customer's token, and is told what the page saw.
const given: Given = await (await fetch("given")).json();
const options = {
  baseUrl: given.gateway,
  fetch: (input: RequestInfo | URL, init?: RequestInit) => {
    const headers = new Headers(init?.headers);
    headers.set("Authorization", `Bearer ${given.token}`);
    return fetch(input, { ...init, headers });
  },
};
const seen = await Promise.all([
  shop("connect", createConnectTransport(options)),
  shop("grpc-web", createGrpcWebTransport(options)),
]);
await fetch("seen", { method: "POST", body: JSON.stringify(seen) });
