package api_test

import (
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/api"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

func TestANodeThatStartsSaysSoInEveryProtocol(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewStartingServer(func() string { return "the servers" })
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	url := "http://" + listener.Addr().String()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	h2c := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
	t.Cleanup(h2c.CloseIdleConnections)
	for name, client := range map[string]orderv1connect.OrderServiceClient{
		"Connect":         orderv1connect.NewOrderServiceClient(http.DefaultClient, url),
		"Connect in JSON": orderv1connect.NewOrderServiceClient(http.DefaultClient, url, connect.WithProtoJSON()),
		"gRPC":            orderv1connect.NewOrderServiceClient(h2c, url, connect.WithGRPC()),
		"gRPC-Web":        orderv1connect.NewOrderServiceClient(http.DefaultClient, url, connect.WithGRPCWeb()),
	} {
		_, err := client.PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
		wantError(t, name, err, connect.CodeUnavailable, api.ReasonStarting)
	}
	response, err := http.Get(url + "/metrics") //nolint:noctx // Of this test alone.
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get(api.HeaderWaitsFor) != "the servers" {
		t.Errorf("to what is no call: %s, it waits for %q", response.Status, response.Header.Get(api.HeaderWaitsFor))
	}
}
