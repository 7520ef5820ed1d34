package server

import (
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// checkSite rejects what a web page makes an operator's browser send to the admin listener (R9): a
// request under a name that somebody else bound to this address, and one from another site. The
// verification listener cannot do the same: proxies pass the Host and the Origin of their clients
// on to it.
func (s *Server) checkSite(r *http.Request) error {
	if !s.ownHost(r) {
		return &keys.Error{Code: api.Forbidden, Param: "Host", Detail: "This is not a name of the admin listener. List it in KEYWARD_ADMIN_HOSTS if it is reached under it."}
	}
	if foreignSite(r) {
		return &keys.Error{Code: api.Forbidden, Param: "Origin", Detail: "A browser sent this for a page of another site."}
	}
	return nil
}

// checkForm rejects a body that an HTML form can send to the admin listener (R9): for those a
// browser asks nobody before it sends them.
func checkForm(r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && formBody(r) {
		return &keys.Error{Code: api.UnsupportedMediaType, Param: "Content-Type", Detail: "Send the body as Content-Type: application/json."}
	}
	return nil
}

// ownHost reports whether Host is the address that the connection came in at, a name of loopback
// with that port, or an allowed one.
func (s *Server) ownHost(r *http.Request) bool {
	if s.allowedHost(r.Host) {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return false
	}
	host, port := hostPort(r)
	if portOf(at) != port {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && (address.IsLoopback() || address.Unmap() == at.Addr().Unmap().WithZone(""))
}

func portOf(a netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// hostPort takes Host apart; a port that is left out is the scheme's.
func hostPort(r *http.Request) (host, port string) {
	host, port, err := net.SplitHostPort(r.Host)
	if err == nil {
		return host, port
	}
	host = strings.TrimSuffix(strings.TrimPrefix(r.Host, "["), "]")
	if r.TLS != nil {
		return host, "443"
	}
	return host, "80"
}

// allowedHost reports whether AdminHosts has the host with its port, or without one.
func (s *Server) allowedHost(host string) bool {
	if host == "" {
		return false
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return slices.ContainsFunc(s.cfg.AdminHosts, func(allowed string) bool {
		return strings.EqualFold(allowed, host) || strings.EqualFold(allowed, name)
	})
}

// foreignSite reports whether a browser says that another site's page sends the request. A browser
// says it by Sec-Fetch-Site; one that is too old for that by Origin, at least where it matters.
func foreignSite(r *http.Request) bool {
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" { // none: the operator typed the address
			return true
		}
	}
	for _, origin := range r.Header["Origin"] {
		u, err := url.Parse(origin)
		if err != nil || !strings.EqualFold(u.Host, r.Host) || u.Host == "" {
			return true
		}
	}
	return false
}

// formBody reports whether the body is of a type that a form can send, or has no type at all.
func formBody(r *http.Request) bool {
	types := r.Header["Content-Type"]
	if len(types) == 0 {
		return r.ContentLength != 0 || len(r.TransferEncoding) > 0
	}
	for _, t := range types {
		kind, _, err := mime.ParseMediaType(t)
		if err != nil {
			kind = strings.ToLower(strings.TrimSpace(strings.SplitN(t, ";", 2)[0]))
		}
		switch kind {
		case "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "":
			return true
		}
	}
	return false
}
