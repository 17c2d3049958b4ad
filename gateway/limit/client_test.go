package limit

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestTheClientIsTheLastAddressThatNoTrustedProxyHas(t *testing.T) {
	proxies, err := ParseProxies([]string{"10.0.0.0/8", "192.0.2.7", "2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"no proxy", "203.0.113.5:1234", nil, "203.0.113.5"},
		{"a forged header without a proxy", "203.0.113.5:1234", []string{"1.1.1.1"}, "203.0.113.5"},
		{"a proxy that says nothing", "10.1.1.1:1", nil, "10.1.1.1"},
		{"one proxy", "10.1.1.1:1", []string{"198.51.100.9"}, "198.51.100.9"},
		{"a forged address before the true one", "10.1.1.1:1", []string{"1.1.1.1, 198.51.100.9"}, "198.51.100.9"},
		{"a forged trusted address", "10.1.1.1:1", []string{"10.9.9.9, 198.51.100.9"}, "198.51.100.9"},
		{"two proxies", "10.1.1.1:1", []string{"1.1.1.1, 198.51.100.9, 192.0.2.7"}, "198.51.100.9"},
		{"two lines", "10.1.1.1:1", []string{"1.1.1.1, 198.51.100.9", "192.0.2.7"}, "198.51.100.9"},
		{"all are proxies", "10.1.1.1:1", []string{"10.2.2.2, 10.3.3.3"}, "10.2.2.2"},
		{"garbage ends the way", "10.1.1.1:1", []string{"198.51.100.9, junk"}, "10.1.1.1"},
		{"an empty element ends the way", "10.1.1.1:1", []string{"198.51.100.9,"}, "10.1.1.1"},
		{"with a port", "10.1.1.1:1", []string{"198.51.100.9:443"}, "198.51.100.9"},
		{"IPv6", "[2001:db8::1]:1", []string{"[2a00::5]:7"}, "2a00::5"},
		{"IPv6 in brackets", "[2001:db8::1]:1", []string{"[2a00::5]"}, "2a00::5"},
		{"mapped", "[::ffff:10.1.1.1]:1", []string{"::ffff:198.51.100.9"}, "198.51.100.9"},
		{"no connection", "", []string{"198.51.100.9"}, "invalid IP"},
	} {
		request := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		if got := proxies.Client(request).String(); got != c.want {
			t.Errorf("%s: client = %s, want %s", c.name, got, c.want)
		}
	}
}

func TestALongWayIsNotFollowed(t *testing.T) {
	proxies, _ := ParseProxies([]string{"0.0.0.0/0"})
	request := &http.Request{RemoteAddr: "10.1.1.1:1", Header: http.Header{"X-Forwarded-For": {strings.Repeat("10.0.0.1, ", 100_000) + "10.0.0.2"}}}
	if got := proxies.Client(request).String(); got != "10.0.0.1" {
		t.Errorf("client = %s, want 10.0.0.1", got)
	}
}

func TestWhoHasAnIPv6NetworkIsOneClient(t *testing.T) {
	if clientKey(netip.MustParseAddr("2a00:1::1")) != clientKey(netip.MustParseAddr("2a00:1::ffff:2")) {
		t.Error("two addresses of one /64 are two clients")
	}
	if clientKey(netip.MustParseAddr("2a00:1::1")) == clientKey(netip.MustParseAddr("2a00:1:0:1::1")) {
		t.Error("two networks are one client")
	}
	if clientKey(netip.MustParseAddr("192.0.2.1")) == clientKey(netip.MustParseAddr("192.0.2.2")) {
		t.Error("two IPv4 addresses are one client")
	}
}

func TestProxiesThatCannotBeReadAreRefused(t *testing.T) {
	if _, err := ParseProxies([]string{"10.0.0.0/33"}); err == nil {
		t.Error("a bad prefix was accepted")
	}
}
