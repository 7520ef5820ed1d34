package door

import "testing"

// R8: whose address a request is from.
func TestR8ClientAddress(t *testing.T) {
	clients, err := NewClients([]string{"10.0.0.0/8", " 192.0.2.7", "::ffff:172.16.0.0/108", "2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"no proxy", "203.0.113.5:1234", nil, "203.0.113.5"},
		{"no proxy lies", "203.0.113.5:1234", []string{"198.51.100.1"}, "203.0.113.5"},
		{"mapped", "[::ffff:203.0.113.5]:1234", nil, "203.0.113.5"},
		{"one proxy", "10.1.2.3:1234", []string{"198.51.100.1"}, "198.51.100.1"},
		{"a proxy over a mapped socket", "[::ffff:10.1.2.3]:1234", []string{"198.51.100.1"}, "198.51.100.1"},
		{"a proxy by its address", "192.0.2.7:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"a proxy in a mapped network", "172.16.9.9:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.1.2.3:1234", []string{"198.51.100.1, 10.9.9.9"}, "198.51.100.1"},
		{"the client's own word", "10.1.2.3:1234", []string{"1.1.1.1, 198.51.100.1, 10.9.9.9"}, "198.51.100.1"},
		{"over two headers", "10.1.2.3:1234", []string{"1.1.1.1, 198.51.100.1", "10.9.9.9"}, "198.51.100.1"},
		{"mapped in the header", "10.1.2.3:1234", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"with a port", "10.1.2.3:1234", []string{"198.51.100.1:5000"}, "198.51.100.1"},
		{"IPv6", "[2001:db8::1]:1234", []string{"2001:db9::5"}, "2001:db9::5"},
		{"IPv6 with a port", "[2001:db8::1]:1234", []string{"[2001:db9::5]:99"}, "2001:db9::5"},
		{"every address is a proxy's", "10.1.2.3:1234", []string{"10.0.0.1, 10.0.0.2"}, "10.0.0.1"},
		{"no header", "10.1.2.3:1234", nil, "10.1.2.3"},
		{"empty", "10.1.2.3:1234", []string{""}, "10.1.2.3"},
		{"no address", "10.1.2.3:1234", []string{"198.51.100.1, unknown"}, "10.1.2.3"},
		{"no address further left", "10.1.2.3:1234", []string{"x, 198.51.100.1"}, "198.51.100.1"},
		{"a zone in the header", "10.1.2.3:1234", []string{"fe80::1%any text"}, "fe80::1"},
		{"a link-local client", "[fe80::1%eth0]:1", nil, "fe80::1%eth0"},
		{"no address at all", "pipe", []string{"198.51.100.1"}, "pipe"},
	} {
		if got := clients.Address(tt.remote, tt.forwarded); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if got := (Clients{}).Address("10.0.0.1:1", []string{"198.51.100.1"}); got != "10.0.0.1" {
		t.Errorf("without trusted proxies: %s", got)
	}
	for _, bad := range []string{"", "10.0.0.0/33", "proxy.internal", "10.0.0.0/8/8"} {
		if _, err := NewClients([]string{bad}); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}
