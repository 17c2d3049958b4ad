// Package attacktest attacks a served API: hostile identities, ids, quantities, sizes, encodings, timeouts, clients and
// methods. Each attack says which code it expects, and that nothing of it reached the log. It runs over anything that
// serves the API, from a handler with a fake behind it to a whole node.
package attacktest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A Target is what is attacked. Nobody else sends it commands meanwhile.
type Target struct {
	// URL of the server, for example "http://127.0.0.1:8080". It speaks plain-text HTTP/1.1 and HTTP/2.
	URL string
	// Key that its verifier believes, with the default issuer and audience.
	Key identity.SigningKey
	// Head counts the commits in its log, of all lanes together.
	Head func() uint64
	// HeaderTimeMax and BodyTimeMax are its limits for slow clients; an attack takes about that long.
	HeaderTimeMax, BodyTimeMax time.Duration
	// StreamsPerConnectionMax is its limit for HTTP/2.
	StreamsPerConnectionMax int
	// Commands are its lanes: the attacks have them pay orders and award points, which nobody may do over the wire.
	Commands lanes.Commands
	// Logs returns what it has logged, nil when that cannot be had.
	Logs func() string
}

// callTimeMax bounds one call of a test; it is far above what any of them takes.
const callTimeMax = 30 * time.Second

// rig is a target with what the attacks share.
type rig struct {
	Target
	http     *http.Client
	tokens   []string // Every token that was sent.
	ada, eve string   // Tokens of two customers.
	operator string
	actAs    string
	order    *orderv1.Order // An order of ada's.
}

// The names that the attacks use.
const (
	victim   = "attack-ada"
	attacker = "attack-eve"
	sku      = "attack-sku"
)

// Run attacks the target.
func Run(t *testing.T, target Target) {
	t.Helper()
	r := &rig{Target: target, http: &http.Client{
		Timeout: callTimeMax, Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128},
	}}
	t.Cleanup(r.http.CloseIdleConnections)
	r.ada, r.eve = r.token(t, victim, 0), r.token(t, attacker, 0)
	r.operator, r.actAs = r.token(t, "attack-operator", identity.ScopeOperator), r.token(t, "attack-backend", identity.ScopeActAs)
	r.mustCall(t, r.operator, catalogv1connect.CatalogServicePutProductProcedure, &catalogv1.PutProductRequest{
		Sku: sku, Title: "A thing", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299},
	}, &catalogv1.PutProductResponse{})
	r.mustCall(t, r.operator, catalogv1connect.CatalogServiceReceiveStockProcedure, &catalogv1.ReceiveStockRequest{
		RequestId: "attack-stock", Sku: sku, Quantity: 1_000_000,
	}, &catalogv1.ReceiveStockResponse{})
	r.awaitStock(t)
	r.order = r.place(t, r.ada, "attack-first")

	for _, attack := range []struct {
		name string
		run  func(*testing.T, *rig)
		// writes: the attack places orders on purpose.
		writes bool
	}{
		{"TokensThatAreNotGoodAreUnauthenticated", badTokens, false},
		{"AnothersOrderIsTheSameAsAMissingOne", anothersOrder, false},
		{"CustomerCannotNameAnotherUser", anothersName, false},
		{"CustomerAndBackendCannotKeepTheCatalogue", operatorOnly, false},
		{"AnothersPaymentsAndReturnsAreThoseOfAMissingOrder", anothersOrdersLife, false},
		{"CustomerAndBackendCannotShipCaptureRefundOrAnnotate", operatorsMethods, false},
		{"HostilePaymentsShipmentsAndReturnsAreRefused", hostileLife, false},
		{"HostileIdsAreInvalid", hostileIDs, false},
		{"HostileOrderIdsAreInvalid", hostileOrderIDs, false},
		{"HostileQuantitiesAreInvalid", hostileQuantities, false},
		{"RequestsOutsideTheirLimitsAreInvalid", outsideLimits, false},
		{"PriceAndStatusFromTheClientAreIgnored", clientPrice, true},
		{"HundredCopiesAtOnceMakeOneOrder", hundredCopies, true},
		{"RequestIdWithAnotherBodyIsRefused", keyReused, true},
		{"RequestIdOfAnotherUserIsIndependent", keyOfAnother, true},
		{"BodiesThatAreTooLargeAreRefused", largeBodies, false},
		{"CompressionBombIsRefusedCheaply", bombs, false},
		{"BodiesThatAreNoMessageAreInvalid", malformedBodies, false},
		{"WrongContentTypesMethodsAndPathsAreRefused", wrongHTTP, false},
		{"ReadsAnswerGET", readsAnswerGET, false},
		{"TimeoutsAreReadStrictly", timeouts, false},
		{"TamperedPageTokenIsInvalid", pageTokens, true},
		{"TamperedPageTokenOfAnOperatorIsInvalid", operatorsPageTokens, true},
		{"AnothersPointsAreNotShown", points, true},
		{"SearchIsAnOperatorsAndItsTokensAreSealed", search, true},
		{"StockIsWatchedByOperatorsAndTheirTokensAreSealed", stockWatches, false},
		{"SalesAreAnOperatorsAndOfABoundedTime", sales, false},
		{"TheClusterIsAnOperators", clusterOfOperators, false},
		{"SlowClientIsCut", slowClients, false},
		{"HTTP2StreamsAreBounded", manyStreams, false},
		{"HealthAndReflectionNeedNoToken", openServices, false},
	} {
		t.Run(attack.name, func(t *testing.T) {
			before := r.Head()
			attack.run(t, r)
			after := r.Head()
			if !attack.writes && after != before {
				t.Errorf("the log went from %d commits to %d, nothing should have been written", before, after)
			}
			r.place(t, r.ada, "attack-after-"+attack.name) // The server still serves.
		})
	}
	if r.Logs != nil {
		logs := r.Logs()
		for _, token := range r.tokens {
			if strings.Contains(logs, token) || strings.Contains(logs, token[strings.LastIndexByte(token, '.')+1:]) {
				t.Errorf("a token is in the logs")
				break
			}
		}
	}
}

func (r *rig) token(t *testing.T, subject string, scopes identity.Scopes) string {
	t.Helper()
	token, err := identity.Mint(r.Key, subject, scopes, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r.tokens = append(r.tokens, token)
	return token
}

// A reply is what came back over HTTP.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// wireError is a Connect error.
type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"details"`
}

// code returns the Connect code of a unary reply: "ok", a code, or "http 415" for an error that is not Connect's.
func (r reply) code() string {
	if r.status == http.StatusOK {
		return "ok"
	}
	var wire wireError
	if json.Unmarshal(r.body, &wire) != nil || wire.Code == "" {
		return fmt.Sprintf("http %d", r.status)
	}
	return wire.Code
}

// reason returns the reason in the error's ErrorInfo, "" without one.
func (r reply) reason() string {
	var wire wireError
	if json.Unmarshal(r.body, &wire) != nil {
		return ""
	}
	for _, detail := range wire.Details {
		data, err := base64.RawStdEncoding.DecodeString(detail.Value)
		var info errdetails.ErrorInfo
		if detail.Type == "google.rpc.ErrorInfo" && err == nil && proto.Unmarshal(data, &info) == nil && info.Domain == "weir" {
			return info.Reason
		}
	}
	return ""
}

func (r reply) String() string {
	return fmt.Sprintf("%s %s (HTTP %d) %.200q", r.code(), r.reason(), r.status, r.body)
}

// send makes one HTTP request. Headers come in pairs; an empty token sends none.
func (r *rig) send(t *testing.T, method, path, token string, body io.Reader, headers ...string) reply {
	t.Helper()
	got, err := r.try(t, method, path, token, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// try is send for a target that may cut the connection.
func (r *rig) try(t *testing.T, method, path, token string, body io.Reader, headers ...string) (reply, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, r.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := r.http.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, data}, err
}

// call sends a message in binary.
func (r *rig) call(t *testing.T, token, procedure string, request proto.Message, headers ...string) reply {
	t.Helper()
	data, err := proto.MarshalOptions{AllowPartial: true}.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return r.send(t, http.MethodPost, procedure, token, bytes.NewReader(data), append([]string{"Content-Type", "application/proto"}, headers...)...)
}

// callJSON sends a text as JSON.
func (r *rig) callJSON(t *testing.T, token, procedure, text string, headers ...string) reply {
	t.Helper()
	return r.send(t, http.MethodPost, procedure, token, strings.NewReader(text), append([]string{"Content-Type", "application/json"}, headers...)...)
}

func (r *rig) mustCall(t *testing.T, token, procedure string, request, response proto.Message) {
	t.Helper()
	got := r.call(t, token, procedure, request)
	if got.code() != "ok" {
		t.Fatalf("%s: got %s", procedure, got)
	}
	if err := proto.Unmarshal(got.body, response); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) place(t *testing.T, token, requestID string) *orderv1.Order {
	t.Helper()
	var response orderv1.PlaceOrderResponse
	r.mustCall(t, token, orderv1connect.OrderServicePlaceOrderProcedure, goodRequest(requestID), &response)
	return response.Order
}

// awaitStock returns once each customer's lane has units to order from.
func (r *rig) awaitStock(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(callTimeMax)
	for _, token := range []string{r.ada, r.eve} {
		for {
			got := r.call(t, token, placeOrder, goodRequest("attack-stock"))
			if got.code() == "ok" {
				break
			}
			if (got.reason() != "OUT_OF_STOCK" && got.reason() != "UNKNOWN_PRODUCT") || time.Now().After(deadline) {
				t.Fatalf("the stock did not arrive: %s", got)
			}
		}
	}
}

// goodRequest is one that is taken.
func goodRequest(requestID string) *orderv1.PlaceOrderRequest {
	return &orderv1.PlaceOrderRequest{RequestId: requestID, Items: []*orderv1.ItemRequest{{Sku: sku, Quantity: 1}}}
}

// want fails the test unless the reply has the code and, if one is given, the reason.
func want(t *testing.T, what string, got reply, code, reason string) {
	t.Helper()
	if got.code() != code || (reason != "" && got.reason() != reason) {
		t.Errorf("%s: got %s, want %s %s", what, got, code, reason)
	}
}

// stream sends one message to a server stream over Connect and returns the code and reason it ends with.
func (r *rig) stream(t *testing.T, token, procedure string, request proto.Message) reply {
	t.Helper()
	data, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	got := r.send(t, http.MethodPost, procedure, token, bytes.NewReader(envelope(data)), "Content-Type", "application/connect+proto")
	if got.status != http.StatusOK {
		return got
	}
	for rest := got.body; len(rest) >= 5; {
		size := int(binary.BigEndian.Uint32(rest[1:5]))
		if len(rest) < 5+size {
			break
		}
		if rest[0]&2 != 0 { // The end of the stream.
			var end struct {
				Error json.RawMessage `json:"error"`
			}
			if json.Unmarshal(rest[5:5+size], &end) == nil && len(end.Error) > 0 {
				return reply{http.StatusInternalServerError, got.header, end.Error}
			}
			return reply{http.StatusOK, got.header, nil}
		}
		rest = rest[5+size:]
	}
	t.Fatalf("%s: the stream has no end: %q", procedure, got.body)
	return reply{}
}

// envelope puts the five bytes of gRPC and Connect streams before a message.
func envelope(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// dial opens a raw connection that gives up after callTimeMax.
func (r *rig) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(callTimeMax)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func marshalJSON(t *testing.T, message proto.Message) string {
	t.Helper()
	data, err := protojson.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
