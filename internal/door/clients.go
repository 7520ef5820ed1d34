package door

import (
	"fmt"
	"net/netip"
	"strings"
)

// Clients finds the address of the client behind proxies (R8). The zero value trusts no proxy.
type Clients struct{ trusted []netip.Prefix }

// NewClients returns Clients that believe the X-Forwarded-For of the proxies in these networks,
// each as CIDR or as a single address. An error does not repeat the value.
func NewClients(proxies []string) (Clients, error) {
	var c Clients
	for i, text := range proxies {
		text = strings.TrimSpace(text)
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			var address netip.Addr
			if address, err = netip.ParseAddr(text); err == nil {
				prefix, err = address.WithZone("").Prefix(address.BitLen())
			}
		}
		if err != nil {
			return Clients{}, fmt.Errorf("network %d must be a CIDR such as 10.0.0.0/8", i+1)
		}
		if address := prefix.Addr(); address.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(address.Unmap(), prefix.Bits()-96)
		}
		c.trusted = append(c.trusted, prefix.Masked())
	}
	return c, nil
}

// Address is the address of the client whose request came over a connection from remote, with the
// values of X-Forwarded-For: the connection's, or when that is a trusted proxy's the rightmost
// address that is not one. Each proxy appends the address it was asked from, so everything left of
// the first one that is not trusted is the client's own word. Where the header cannot be read the
// answer is the last proxy that can be relied on.
func (c Clients) Address(remote string, forwarded []string) string {
	last, err := parseAddress(remote)
	if err != nil {
		return RemoteAddress(remote)
	}
	for i := len(forwarded) - 1; i >= 0 && c.trusts(last); i-- {
		rest := forwarded[i]
		for more := true; more && c.trusts(last); {
			var next string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, next = rest[:at], rest[at+1:]
			} else {
				next, more = rest, false
			}
			address, err := parseAddress(strings.TrimSpace(next))
			if err != nil {
				return last.String()
			}
			last = address.WithZone("") // a zone is any text, and means nothing on this machine
		}
	}
	return last.String()
}

func (c Clients) trusts(address netip.Addr) bool {
	address = address.WithZone("")
	for _, prefix := range c.trusted {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// parseAddress reads an address with or without a port; IPv4 in IPv6 becomes IPv4.
func parseAddress(text string) (netip.Addr, error) {
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at.Addr().Unmap(), nil
	}
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	return address.Unmap(), err
}
