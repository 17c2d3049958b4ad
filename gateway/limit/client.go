package limit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the addresses whose word on where a call comes from is believed.
type Proxies []netip.Prefix

// Limits of what a call says of its way.
const (
	// hopsMax bounds the addresses of a call's way that are looked at.
	hopsMax = 32
	// clientPrefixBits6 is how much of an IPv6 address names a client: whoever has one has its whole /64.
	clientPrefixBits6 = 64
)

// ParseProxies reads addresses and prefixes, such as "10.0.0.0/8" or "::1".
func ParseProxies(texts []string) (Proxies, error) {
	proxies := make(Proxies, 0, len(texts))
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, addressErr := netip.ParseAddr(text)
			if addressErr != nil {
				return nil, fmt.Errorf("trusted proxy %q: want an address or a prefix, such as 10.0.0.0/8", text)
			}
			prefix = netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen())
		}
		proxies = append(proxies, prefix.Masked())
	}
	return proxies, nil
}

func (p Proxies) trusts(address netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// Client returns the address that a call comes from: that of the connection, and behind trusted proxies the last one in X-Forwarded-For that
// none of them is. What stands to the left of it is the caller's own invention, and what cannot be read ends the way.
// It is the zero Addr if the connection has none, as in a process.
func (p Proxies) Client(request *http.Request) netip.Addr {
	client, ok := parseHop(request.RemoteAddr)
	if !ok {
		return netip.Addr{}
	}
	hops := 0
	lines := request.Header.Values("X-Forwarded-For")
	for i := len(lines) - 1; i >= 0; i-- {
		for rest := lines[i]; rest != ""; {
			if !p.trusts(client) {
				return client
			}
			if hops++; hops > hopsMax {
				return client
			}
			text := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				text, rest = rest[comma+1:], rest[:comma]
			} else {
				rest = ""
			}
			hop, ok := parseHop(strings.TrimSpace(text))
			if !ok {
				return client
			}
			client = hop
		}
	}
	return client
}

// parseHop reads an address with or without a port.
func parseHop(text string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(text); err == nil {
		return withPort.Addr().Unmap().WithZone(""), true
	}
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	return address.Unmap().WithZone(""), err == nil
}

// clientKey returns the key under which a client's calls are counted.
func clientKey(address netip.Addr) string {
	if address.Is6() {
		if prefix, err := address.Prefix(clientPrefixBits6); err == nil {
			address = prefix.Addr()
		}
	}
	bytes := address.As16()
	return string(bytes[:])
}
