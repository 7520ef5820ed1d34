package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
)

// The listeners. None serves a route of another, but for health. On the verification listener
// nothing administers, because proxies pass their clients' Host and Origin on to it (R9).
const (
	public       = "public"
	verification = "verification"
	admin        = "admin"
)

// auth is what a caller must show before a route does anything else.
type auth int

const (
	open        auth = iota // nothing
	userToken               // a user's JWT, and an organization that may manage keys (C1–C5)
	bearer                  // a credential of the deployment with the route's scope, when it has any (O5)
	forwarded               // as bearer, in X-Internal-Token: Authorization is the merchant's (V2)
	oauthClient             // as bearer, or the token as the secret of an OAuth client (RFC 7662 section 2.1)
)

// anyMethod is the method of a route that takes every one, OPTIONS too.
const anyMethod = "*"

// endpoint answers a request that passed everything before it, or returns the error to answer.
type endpoint func(x *exchange) error

// authorizePath is where proxies ask.
const authorizePath = "/v1/authorize"

// everything is the segment that takes whatever follows, slashes and nothing too: what a client asked Envoy for.
const everything = "/{original_path}"

// route is one line of the table.
type route struct {
	listener string
	method   string // GET answers HEAD as well
	pattern  string // at most one {name} segment; everything only at the end
	name     string // method and pattern, for the audit log; newListener sets it
	auth     auth
	scope    access.Scope // what the caller of a route with bearer, forwarded or oauthClient needs (O5)
	action   keys.Action  // under which a refusal is in the audit log; routes with userToken only
	query    []string     // the query parameters it takes; nil = none, anyQuery = whatever comes
	quiet    bool         // its request line is at debug level: too many pass, and metrics count them
	endpoint endpoint
}

// anyQuery marks a route that has no use for a query but is called with one.
var anyQuery = []string{anyMethod}

// routes is every route there is. The OpenAPI document describes the same ones; a test holds the
// two together (C28).
func (s *Server) routes() []route {
	const keysPath = "/api/v1/auth/api-keys"
	docs := docs()
	return []route{
		{listener: public, method: "POST", pattern: keysPath, auth: userToken, action: keys.ActCreate, endpoint: handle(s, readCreate, s.create)},
		{listener: public, method: "GET", pattern: keysPath, auth: userToken, action: keys.ActList, query: []string{"env", "limit", "cursor"}, endpoint: s.list},
		{listener: public, method: "GET", pattern: keysPath + "/{api_key_id}", auth: userToken, action: keys.ActGet, endpoint: handle(s, readKeyID, s.getKey)},
		{listener: public, method: "PATCH", pattern: keysPath + "/{api_key_id}", auth: userToken, action: keys.ActUpdate, endpoint: handle(s, readUpdate, s.updateKey)},
		{listener: public, method: "POST", pattern: keysPath + "/{api_key_id}/revoke", auth: userToken, action: keys.ActRevoke, endpoint: handle(s, readRevoke, s.revoke)},
		{listener: public, method: "POST", pattern: keysPath + "/{api_key_id}/roll", auth: userToken, action: keys.ActRoll, endpoint: handle(s, readRoll, s.roll)},

		{listener: public, method: "GET", pattern: "/openapi.json", query: anyQuery, endpoint: docs},
		{listener: public, method: "GET", pattern: "/openapi.yaml", query: anyQuery, endpoint: docs},
		{listener: public, method: "GET", pattern: "/docs", query: anyQuery, endpoint: docs},
		{listener: public, method: "GET", pattern: "/docs/style.css", query: anyQuery, endpoint: docs},
		{listener: public, method: "GET", pattern: "/docs/docs.js", query: anyQuery, endpoint: docs},

		{listener: verification, method: "POST", pattern: "/v1/verify", auth: bearer, scope: access.Verify, quiet: true, endpoint: s.verify},
		{listener: verification, method: anyMethod, pattern: authorizePath, auth: forwarded, scope: access.Verify, query: anyQuery, quiet: true, endpoint: s.authorize(rulesInQuery)},
		{listener: verification, method: anyMethod, pattern: authorizePath + everything, auth: forwarded, scope: access.Verify, query: anyQuery, quiet: true, endpoint: s.authorize(always(door.Rules{}))},
		{listener: verification, method: anyMethod, pattern: authorizePath + ":live" + everything, auth: forwarded, scope: access.Verify, query: anyQuery, quiet: true, endpoint: s.authorize(always(door.Rules{Environment: keys.Live}))},
		{listener: verification, method: anyMethod, pattern: authorizePath + ":test" + everything, auth: forwarded, scope: access.Verify, query: anyQuery, quiet: true, endpoint: s.authorize(always(door.Rules{Environment: keys.Test}))},
		{listener: verification, method: "POST", pattern: "/v1/probe", quiet: true, endpoint: s.probe},
		{listener: verification, method: "POST", pattern: "/v1/introspect", auth: oauthClient, scope: access.Verify, quiet: true, endpoint: s.introspect},

		{listener: verification, method: "GET", pattern: "/healthz", query: anyQuery, quiet: true, endpoint: s.ready},
		{listener: verification, method: "GET", pattern: "/livez", query: anyQuery, quiet: true, endpoint: s.alive},
		{listener: verification, method: "GET", pattern: "/readyz", query: anyQuery, quiet: true, endpoint: s.ready},

		{listener: admin, method: "GET", pattern: "/v1/organizations", auth: bearer, scope: access.Read, query: []string{"limit", "cursor"}, endpoint: handle(s, readPage, s.listOrganizations)},
		{listener: admin, method: "GET", pattern: "/v1/organizations/{id}", auth: bearer, scope: access.Read, query: anyQuery, endpoint: handle(s, readOrganizationID, s.getOrganization)},
		{listener: admin, method: "PUT", pattern: "/v1/organizations/{id}", auth: bearer, scope: access.Operate, endpoint: handle(s, readOrganization, s.putOrganization)},
		{listener: admin, method: "PATCH", pattern: "/v1/organizations/{id}", auth: bearer, scope: access.Operate, endpoint: handle(s, readOrganizationUpdate, s.updateOrganization)},
		{listener: admin, method: "DELETE", pattern: "/v1/organizations/{id}", auth: bearer, scope: access.Operate, endpoint: handle(s, readOrganizationID, s.deleteOrganization)},

		{listener: admin, method: "GET", pattern: "/v1/keys", auth: bearer, scope: access.Read, query: keyFilter, endpoint: handle(s, readKeySearch, s.searchKeys)},
		{listener: admin, method: "GET", pattern: "/v1/keys/{api_key_id}", auth: bearer, scope: access.Read, endpoint: handle(s, readKeyID, s.showKey)},
		{listener: admin, method: "POST", pattern: "/v1/keys/lookup", auth: bearer, scope: access.Operate, endpoint: handle(s, readSecret, s.lookUpKey)}, // O5 gives read GET routes alone
		{listener: admin, method: "POST", pattern: "/v1/keys/{api_key_id}/revoke", auth: bearer, scope: access.Operate, endpoint: handle(s, readRevoke, s.revokeAny)},
		{listener: admin, method: "POST", pattern: "/v1/keys/revoke", auth: bearer, scope: access.Operate, endpoint: s.long(s.revokeMany)},

		{listener: admin, method: "GET", pattern: "/v1/audit", auth: bearer, scope: access.Read, query: auditFilter, endpoint: handle(s, readAudit, s.listAudit)},
		{listener: admin, method: "POST", pattern: "/v1/audit/verify", auth: bearer, scope: access.Operate, query: anyQuery, endpoint: s.long(handle(s, readNothing, s.verifyAudit))},
		{listener: admin, method: "POST", pattern: "/v1/master-key/rotate", auth: bearer, scope: access.Operate, query: anyQuery, endpoint: s.long(handle(s, readNothing, s.rotate))},
		{listener: admin, method: "POST", pattern: "/v1/backup", auth: bearer, scope: access.Operate, query: anyQuery, endpoint: s.long(s.backup)},
		{listener: admin, method: "GET", pattern: "/v1/status", auth: bearer, scope: access.Read, query: anyQuery, endpoint: handle(s, readNothing, s.status)},
		{listener: admin, method: "GET", pattern: "/v1/nodes", auth: bearer, scope: access.Read, query: anyQuery, endpoint: handle(s, readNothing, s.nodes)},
		{listener: admin, method: "GET", pattern: "/metrics", auth: bearer, scope: access.Read, query: anyQuery, quiet: true, endpoint: s.metrics()},

		{listener: admin, method: "GET", pattern: "/livez", query: anyQuery, quiet: true, endpoint: s.alive},
		{listener: admin, method: "GET", pattern: "/readyz", query: anyQuery, quiet: true, endpoint: s.ready},
	}
}

// listener finds the route of a request. It is used instead of http.ServeMux because that one
// redirects what it would rather have been asked, and says 404 and 405 in plain text (C27).
type listener struct {
	name      string
	metrics   *listenerMetrics
	fixed     map[string]*resource
	variable  []*resource
	unmatched route // stands for no route, in the log and the metrics
}

// resource is one path with its methods.
type resource struct {
	prefix, suffix string // around the {name} segment of a variable one
	methods        map[string]*route
	anySegment     bool   // an encoded slash in the {name} segment does not unmake the route
	everything     bool   // the {name} segment is everything that follows
	every          *route // takes every method
	allow          string
}

func newListener(name string, table []route, m *Metrics) *listener {
	l := &listener{name: name, fixed: map[string]*resource{}, unmatched: route{listener: name, pattern: "none"}}
	variable := map[string]*resource{}
	for i := range table {
		rt := &table[i]
		if rt.listener != name {
			continue
		}
		rt.name = rt.method + " " + rt.pattern
		of := l.fixed
		if strings.Contains(rt.pattern, "{") {
			of = variable
		}
		res := of[rt.pattern]
		if res == nil {
			res = &resource{methods: map[string]*route{}}
			of[rt.pattern] = res
			if before, after, ok := strings.Cut(rt.pattern, "{"); ok {
				_, rest, _ := strings.Cut(after, "}")
				res.prefix, res.suffix = before, rest
				// An id of a key that cannot be one is not found like any other (C22).
				res.anySegment = strings.HasPrefix(after, "api_key_id}")
				res.everything = strings.HasSuffix(rt.pattern, everything)
				l.variable = append(l.variable, res)
			}
		}
		if rt.method == anyMethod {
			res.every = rt
		} else {
			res.methods[rt.method] = rt
		}
		res.allow = allowed(res.methods)
	}
	l.metrics = m.listener(name)
	return l
}

// allowed is the Allow header of a resource (RFC 9110 section 10.2.1).
func allowed(methods map[string]*route) string {
	list := []string{http.MethodOptions}
	for m := range methods {
		list = append(list, m)
		if m == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// find returns the resource a request names and the text of its {name} segment, or nil. A path is
// taken as it was sent and split before it is decoded: nothing is cleaned, and an encoded slash does not end a segment.
func (l *listener) find(u *url.URL) (*resource, string) {
	if u.RawPath == "" {
		if res := l.fixed[u.Path]; res != nil {
			return res, ""
		}
	}
	path := u.EscapedPath()
	for _, res := range l.variable {
		segment, ok := strings.CutPrefix(path, res.prefix)
		if ok && res.everything {
			return res, ""
		}
		if ok {
			segment, ok = strings.CutSuffix(segment, res.suffix)
		}
		if !ok || segment == "" || strings.Contains(segment, "/") {
			continue
		}
		value, err := url.PathUnescape(segment)
		if err != nil || !res.anySegment && strings.ContainsAny(value, `/\`) {
			return nil, ""
		}
		return res, value
	}
	return nil, ""
}

// route returns the resource's route for a method, or nil.
func (r *resource) route(method string) *route {
	switch {
	case r.every != nil:
		return r.every
	case method == http.MethodHead:
		return r.methods[http.MethodGet]
	default:
		return r.methods[method]
	}
}
