package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
)

// The listeners. Neither serves a route of the other.
const (
	public   = "public"
	internal = "internal"
)

// auth is what a caller must show before a route does anything else.
type auth int

const (
	open          auth = iota // nothing
	userToken                 // a user's JWT, and an organization that may manage keys (C1–C5)
	internalToken             // one of the deployment's internal tokens, when it has any (R3)
	forwarded                 // as internalToken, in X-Internal-Token: Authorization is the merchant's (V2)
	oauthClient               // as internalToken, or the token as the secret of an OAuth client (RFC 7662 section 2.1)
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
	auth     auth
	action   keys.Action // under which a refusal is in the audit log; routes with userToken only
	query    []string    // the query parameters it takes; nil = none, anyQuery = whatever comes
	quiet    bool        // its request line is at debug level: too many pass, and metrics count them
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
		{public, "POST", keysPath, userToken, keys.ActCreate, nil, false, handle(s, readCreate, s.create)},
		{public, "GET", keysPath, userToken, keys.ActList, []string{"env", "limit", "cursor"}, false, handle(s, readList, s.list)},
		{public, "GET", keysPath + "/{api_key_id}", userToken, keys.ActGet, nil, false, handle(s, readKeyID, s.getKey)},
		{public, "PATCH", keysPath + "/{api_key_id}", userToken, keys.ActUpdate, nil, false, handle(s, readUpdate, s.updateKey)},
		{public, "POST", keysPath + "/{api_key_id}/revoke", userToken, keys.ActRevoke, nil, false, handle(s, readRevoke, s.revoke)},
		{public, "POST", keysPath + "/{api_key_id}/roll", userToken, keys.ActRoll, nil, false, handle(s, readRoll, s.roll)},

		{public, "GET", "/openapi.json", open, "", anyQuery, false, docs},
		{public, "GET", "/openapi.yaml", open, "", anyQuery, false, docs},
		{public, "GET", "/docs", open, "", anyQuery, false, docs},
		{public, "GET", "/docs/style.css", open, "", anyQuery, false, docs},
		{public, "GET", "/docs/docs.js", open, "", anyQuery, false, docs},

		{internal, "POST", "/v1/verify", internalToken, "", nil, true, s.verify},
		{internal, anyMethod, authorizePath, forwarded, "", anyQuery, true, s.authorize(rulesInQuery)},
		{internal, anyMethod, authorizePath + everything, forwarded, "", anyQuery, true, s.authorize(always(door.Rules{}))},
		{internal, anyMethod, authorizePath + ":live" + everything, forwarded, "", anyQuery, true, s.authorize(always(door.Rules{Environment: keys.Live}))},
		{internal, anyMethod, authorizePath + ":test" + everything, forwarded, "", anyQuery, true, s.authorize(always(door.Rules{Environment: keys.Test}))},
		{internal, "POST", "/v1/introspect", oauthClient, "", nil, true, s.introspect},

		{internal, "GET", "/v1/organizations", internalToken, "", []string{"limit", "cursor"}, false, handle(s, readPage, s.listOrganizations)},
		{internal, "GET", "/v1/organizations/{id}", internalToken, "", anyQuery, false, handle(s, readOrganizationID, s.getOrganization)},
		{internal, "PUT", "/v1/organizations/{id}", internalToken, "", nil, false, handle(s, readOrganization, s.putOrganization)},
		{internal, "PATCH", "/v1/organizations/{id}", internalToken, "", nil, false, handle(s, readOrganizationUpdate, s.updateOrganization)}, // scope operate
		{internal, "DELETE", "/v1/organizations/{id}", internalToken, "", nil, false, handle(s, readOrganizationID, s.deleteOrganization)},    // scope operate

		{internal, "GET", "/v1/keys", internalToken, "", keyFilter, false, handle(s, readKeySearch, s.searchKeys)},            // scope read
		{internal, "GET", "/v1/keys/{api_key_id}", internalToken, "", nil, false, handle(s, readKeyID, s.showKey)},            // scope read
		{internal, "POST", "/v1/keys/lookup", internalToken, "", nil, false, handle(s, readSecret, s.lookUpKey)},              // scope operate: O5 gives read GET routes alone
		{internal, "POST", "/v1/keys/{api_key_id}/revoke", internalToken, "", nil, false, handle(s, readRevoke, s.revokeAny)}, // scope operate
		{internal, "POST", "/v1/keys/revoke", internalToken, "", nil, false, s.long(s.revokeMany)},                            // scope operate

		{internal, "GET", "/v1/audit", internalToken, "", auditFilter, false, handle(s, readAudit, s.listAudit)},
		{internal, "POST", "/v1/audit/verify", internalToken, "", anyQuery, false, s.long(handle(s, readNothing, s.verifyAudit))},
		{internal, "POST", "/v1/master-key/rotate", internalToken, "", anyQuery, false, s.long(handle(s, readNothing, s.rotate))},
		{internal, "GET", "/v1/status", internalToken, "", anyQuery, false, handle(s, readNothing, s.status)},
		{internal, "GET", "/v1/nodes", internalToken, "", anyQuery, false, handle(s, readNothing, s.nodes)},
		{internal, "GET", "/metrics", internalToken, "", anyQuery, true, s.metrics()},

		{internal, "GET", "/healthz", open, "", anyQuery, true, s.ready},
		{internal, "GET", "/livez", open, "", anyQuery, true, s.alive},
		{internal, "GET", "/readyz", open, "", anyQuery, true, s.ready},
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
