package server

import (
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// statusHeader tells nginx the status that was meant.
const statusHeader = "X-Keyward-Status"

var statusOK = []string{"200"}

// authorize answers a proxy's question whether a request may pass (V2). A proxy sends the request's own
// headers here; it copies the X-Keyward-* headers of the answer over the client's. rules reads what the proxy's configuration
// demands.
func (s *Server) authorize(rules func(*url.URL) (door.Rules, error)) endpoint {
	return func(x *exchange) error {
		if s.secretInURL(x.r) {
			return door.SecretInURL()
		}
		demanded, err := rules(x.r.URL)
		if err != nil {
			return err
		}
		h := x.r.Header
		asked := door.Asked{Authorization: h["Authorization"], APIKey: h["X-Api-Key"], ConnectedAccount: h["X-Connected-Account-Id"]}
		verdict, err := door.Authorize(asked, demanded, func(r verify.Request) (verify.Verdict, error) { return s.decide(x, doorAuthorize, r) })
		if err != nil {
			return err
		}
		// Every one is sent, an empty one too: a header that were missing here would let the client's
		// own through.
		out, values := x.Header(), door.Identity(&verdict)
		for i, name := range door.IdentityHeaders {
			out[name] = values[i : i+1 : i+1]
		}
		if x.nginx {
			out[statusHeader] = statusOK
		}
		x.WriteHeader(http.StatusOK)
		return nil
	}
}

// nginxAsks reports whether ?mode=nginx asks for an answer that nginx's auth_request understands: to it, any status
// but 200, 401 and 403 is a fault of its own, which it answers with 500.
func nginxAsks(u *url.URL) bool { return u.RawQuery != "" && u.Query().Get("mode") == "nginx" }

// connectedAccount returns the account that X-Connected-Account-ID or the body's member of that meaning
// narrows to, empty when neither was sent. They must agree when both were: a caller that looks at one alone must
// not act for another account than the one that was verified (V3).
func connectedAccount(h http.Header, inBody *string) (string, error) {
	values := h["X-Connected-Account-Id"]
	account := credential.Account(values)
	switch {
	case inBody == nil:
		return account, nil
	case len(values) > 0 && *inBody != account:
		return "", keys.Invalid("connected_account_id", "connected_account_id and the header X-Connected-Account-ID differ. Send one of them.")
	default:
		return *inBody, nil
	}
}

// rulesInQuery reads ?env=, by which a proxy's configuration narrows a route to one environment, and ?min_revision=, the least
// revision it lets a verdict rest on, and checks ?mode=. Anything else in the query is the client's own, which some proxies pass along.
func rulesInQuery(u *url.URL) (r door.Rules, err error) {
	if u.RawQuery == "" {
		return r, nil
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return r, keys.Invalid("", "The query string is malformed.")
	}
	for _, name := range [...]string{"env", "min_revision", "mode"} {
		if len(values[name]) > 1 {
			return r, keys.Invalid(name, name+" must be given once.")
		}
		for given := range values {
			if given != name && strings.EqualFold(given, name) { // a rule that was meant must not be passed over
				return r, keys.Invalid(name, "The parameter with the wrong letter case is "+name+".")
			}
		}
	}
	if mode := parameter(values, "mode"); mode != nil && *mode != "nginx" {
		return r, keys.Invalid("mode", `mode must be "nginx"; leave it out for every other proxy.`)
	}
	if r.Environment, err = environment("env", parameter(values, "env")); err != nil {
		return r, err
	}
	least, err := number("min_revision", parameter(values, "min_revision"))
	if err != nil {
		return r, err
	}
	r.MinRevision, err = minRevision(least)
	return r, err
}

// parameter returns a parameter, nil when it was not given. It is known to be given once at most.
func parameter(values url.Values, name string) *string {
	if list := values[name]; len(list) > 0 {
		return &list[0]
	}
	return nil
}

// always is the rules of a path that Envoy's HTTP mode is configured with. Envoy puts the client's own path and query after it: neither may
// change what is demanded, so nothing of them is read.
func always(r door.Rules) func(*url.URL) (door.Rules, error) {
	return func(*url.URL) (door.Rules, error) { return r, nil }
}

// original is what a proxy says of the request it asks for, for the log alone: whoever reaches the listener can send it, so
// nothing is decided by it, and what is not of the form it should have is left out. Never the query.
func (s *Server) original(h http.Header) (attrs []slog.Attr) {
	one := func(names ...string) string {
		for _, name := range names {
			if values := h[name]; len(values) == 1 && len(values[0]) <= maxOriginal && !door.HoldsSecret(s.cfg.Format, values[0]) {
				return values[0]
			}
		}
		return ""
	}
	if m := one("X-Original-Method", "X-Forwarded-Method"); m != "" {
		attrs = append(attrs, slog.String("original_method", door.Method(m)))
	}
	if host := one("X-Forwarded-Host"); plain(host, ".:[]-_") {
		attrs = append(attrs, slog.String("original_host", host))
	}
	path, _, _ := strings.Cut(one("X-Original-Uri", "X-Forwarded-Uri"), "?")
	if strings.HasPrefix(path, "/") && plain(path, "/.:-_~%@!$&'()*+,;=") {
		attrs = append(attrs, slog.String("original_path", path))
	}
	// The last one is the address that the proxy itself was asked from; those before it are what it was told.
	forwarded := one("X-Forwarded-For")
	if client, err := netip.ParseAddr(strings.TrimSpace(forwarded[strings.LastIndexByte(forwarded, ',')+1:])); err == nil {
		attrs = append(attrs, slog.String("client", client.WithZone("").String()))
	}
	return attrs
}

// maxOriginal is the longest of a proxy's headers that is logged, in bytes.
const maxOriginal = 256

// plain reports whether text is there, and nothing but letters, digits and marks.
func plain(text, marks string) bool {
	for _, c := range []byte(text) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte(marks, c) >= 0) {
			return false
		}
	}
	return text != ""
}

// secretInURL reports whether the URL asked here, or the one the client asked the proxy for, holds a
// secret.
func (s *Server) secretInURL(r *http.Request) bool {
	if door.HoldsSecret(s.cfg.Format, r.RequestURI) { // also what stands before the path
		return true
	}
	for _, name := range door.OriginalURLs {
		for _, v := range r.Header[name] {
			if door.HoldsSecret(s.cfg.Format, v) {
				return true
			}
		}
	}
	return false
}
