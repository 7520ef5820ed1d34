package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
)

// Header values that most answers share. They are never changed in place.
var (
	twoYears    = []string{"max-age=63072000"}
	closing     = []string{"close"}
	problemJSON = []string{"application/problem+json"}
	plainJSON   = []string{"application/json"}
)

// exchange is one request with its answer.
type exchange struct {
	http.ResponseWriter
	r         *http.Request
	ctx       context.Context
	requestID string
	named     [1]string // requestID, as the value of its header
	clients   *door.Clients
	route     *route
	segment   string     // the text of the path's {name} segment
	query     url.Values // only the parameters the route takes, each once
	call      keys.Call  // who asks; Principal is set behind userToken alone
	nginx     bool       // nginx asks: it takes 200, 401 and 403 alone

	status int      // 0 until the answer has begun
	code   api.Code // of the problem answered
	cause  error    // of that problem; for the log alone
	reason string   // why a token was refused; for the log alone
}

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	return x.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// ClientAddress is whom the request comes from, for the log and the audit log (R8).
func (x *exchange) ClientAddress() string {
	return x.clients.Address(x.r.RemoteAddr, x.r.Header["X-Forwarded-For"])
}

// handler is what every request of a listener passes.
func (s *Server) handler(l *listener) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		x := &exchange{ResponseWriter: w, r: r, ctx: r.Context(), route: &l.unmatched, requestID: s.requestIDs.Of(r.Header["X-Request-Id"]), clients: &s.cfg.Clients}
		defer func() {
			panicked := recover()
			answered := panicked == nil || panicked != http.ErrAbortHandler && s.survive(l, x, panicked)
			s.account(l, x, time.Since(began))
			if !answered {
				panic(http.ErrAbortHandler) // an answer had begun: end the connection with it
			}
		}()
		if err := s.serve(l, x); err != nil {
			x.problem(err)
		}
	})
}

// serve lets the request through to its route.
func (s *Server) serve(l *listener, x *exchange) error {
	x.prepare(l)
	if l.name == admin {
		if err := s.checkSite(x.r); err != nil {
			return err
		}
	}
	if answered, err := s.match(l, x); answered || err != nil {
		return err
	}
	if l.name == admin {
		if err := checkForm(x.r); err != nil {
			return err
		}
	}
	x.nginx = x.route.pattern == authorizePath && nginxAsks(x.r.URL)
	if headerSize(x.r) > door.MaxHeader {
		return door.HeadersTooLarge()
	}
	if !x.route.quiet {
		// A client that hangs up does not break off a write that has begun.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), s.cfg.Budget)
		defer cancel()
		x.ctx = ctx
	}
	if err := s.admit(x); err != nil {
		s.slowDown(x, err)
		return err
	}
	if err := x.readQuery(s); err != nil {
		return s.refuse(x, err)
	}
	return x.route.endpoint(x)
}

// prepare sets the headers that every answer has.
func (x *exchange) prepare(l *listener) {
	h := x.Header()
	x.named[0] = x.requestID
	h["X-Request-Id"] = x.named[:]
	for _, c := range door.CommonHeaders {
		h[c.Name] = c.Values
	}
	if x.r.TLS != nil && l.name == public {
		h["Strict-Transport-Security"] = twoYears
	}
	if len(x.r.TransferEncoding) > 0 {
		// A body in chunks may have come with a length too, which net/http drops without a word. Whoever
		// stands in front and believed the length gets no second request out of this connection (RFC 9112 section 6.1).
		h["Connection"] = closing
	}
}

// match sets the route, or answers what needs none (C27).
func (s *Server) match(l *listener, x *exchange) (answered bool, err error) {
	options := x.r.Method == http.MethodOptions
	resource, segment := l.find(x.r.URL)
	switch {
	case resource != nil:
	case options && x.r.URL.Path == "*":
		x.Header().Set("Allow", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT")
		x.WriteHeader(http.StatusNoContent)
		return true, nil
	default:
		return false, &keys.Error{Code: api.RouteNotFound, Detail: "Nothing is served at this path."}
	}
	rt := resource.route(x.r.Method)
	if rt == nil || rt.auth == userToken {
		s.cors(x, resource)
	}
	if rt != nil {
		x.route, x.segment = rt, segment
		return false, nil
	}
	x.Header().Set("Allow", resource.allow)
	if options {
		x.WriteHeader(http.StatusNoContent)
		return true, nil
	}
	return false, &keys.Error{Code: api.MethodNotAllowed, Detail: "This path does not take this method. Allow says which it takes."}
}

// admit lets the caller of a route through, or not (C1–C5, O5).
func (s *Server) admit(x *exchange) error {
	if !x.route.quiet {
		x.call = keys.Call{RequestID: x.requestID, RemoteAddress: x.ClientAddress()}
	}
	switch x.route.auth {
	case userToken:
		x.call.ConnectedAccount = len(x.r.Header["X-Connected-Account-Id"]) > 0
		if err := s.authenticate(x); err != nil {
			return err
		}
		if err := s.spend(x); err != nil {
			return err
		}
		return s.cfg.Service.Admit(x.ctx, x.call, x.route.action, x.segment)
	case open:
		return nil
	}
	caller, err := s.cfg.Access.Admit(x.ctx, access.Attempt{
		Presented: presented(x.route.auth, x.r), Need: x.route.scope,
		Route: x.route.name, RequestID: x.requestID, Client: x,
	})
	if caller.Scopes != 0 && !x.route.quiet {
		x.call.Operator = caller.Actor()
	}
	return err
}

// authenticate sets the principal from the bearer token (C1).
func (s *Server) authenticate(x *exchange) error {
	invalid := &keys.Error{Code: api.InvalidToken, Detail: "Send a valid access token of a signed-in user: Authorization: Bearer <access_token>."}
	token := credential.Bearer(x.r.Header["Authorization"])
	switch {
	case token == "":
		x.reason = "no single bearer token"
		return invalid
	case s.cfg.Format.Resembles(token):
		return &keys.Error{Code: api.UserTokenRequired, Detail: "API keys do not manage API keys. Send the access token of a signed-in user instead."}
	}
	principal, err := s.cfg.Authenticator.Authenticate(x.ctx, token)
	var refused *identity.InvalidTokenError
	switch {
	case errors.As(err, &refused):
		x.reason = refused.Reason
		return invalid
	case err != nil:
		return &keys.Unavailable{Err: err}
	}
	x.call.Principal = principal
	return nil
}

// refuse leaves the refusal of an authenticated management call in the audit log, and passes any
// other through.
func (s *Server) refuse(x *exchange, err error) error {
	if x.route.auth != userToken {
		return err
	}
	return s.cfg.Service.Refuse(x.ctx, x.call, x.route.action, x.segment, err)
}

// readQuery takes the query apart. A parameter the route does not know is refused rather than
// ignored, as an unknown member of a body is, and so is a secret anywhere in it (V2).
func (x *exchange) readQuery(s *Server) error {
	raw := x.r.URL.RawQuery
	if raw == "" || slices.Equal(x.route.query, anyQuery) {
		return nil
	}
	if door.HoldsSecret(s.cfg.Format, raw) {
		return door.SecretInURL()
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return keys.Invalid("", "The query string is malformed.")
	}
	for name, list := range values {
		if !slices.Contains(x.route.query, name) {
			return keys.Invalid(plainName(name), "The query has a parameter that this route does not take.")
		}
		if len(list) != 1 {
			return keys.Invalid(name, name+" must be given once.")
		}
	}
	x.query = values
	return nil
}

// parameter returns a query parameter, nil when it was not given.
func (x *exchange) parameter(name string) *string {
	if list := x.query[name]; len(list) == 1 {
		return &list[0]
	}
	return nil
}

// number returns a whole number from the query, nil when it was not given.
func (x *exchange) number(name string) (*int64, error) {
	return number(name, x.parameter(name))
}

// number reads a whole number; nil is none.
func number(name string, text *string) (*int64, error) {
	if text == nil {
		return nil, nil
	}
	n, ok := wholeNumber([]byte(*text))
	if !ok {
		return nil, keys.Invalid(name, name+" must be a whole number.")
	}
	return &n, nil
}

// answer is what a handler says when it does not refuse.
type answer struct {
	status   int    // 0 = 200
	body     any    // encoded as JSON, unless
	rendered []byte // it has been already
	location string
	replayed bool  // an answer that was given before (C16)
	revision int64 // of the write that is everywhere now (C23); 0 = nothing was written
}

// handle is the adapter of every JSON route: read makes the request value, act decides.
func handle[Req any](s *Server, read func(*exchange) (Req, error), act func(context.Context, keys.Call, Req) (answer, error)) endpoint {
	return func(x *exchange) error {
		req, err := read(x)
		if err != nil {
			return s.refuse(x, err)
		}
		a, err := act(x.ctx, x.call, req)
		if err != nil {
			return err
		}
		return x.answer(a)
	}
}

// readNothing is for routes that take nothing.
func readNothing(*exchange) (struct{}, error) { return struct{}{}, nil }

// answer writes a.
func (x *exchange) answer(a answer) error {
	body, err := a.rendered, error(nil)
	if body == nil {
		if body, err = json.Marshal(a.body); err != nil {
			return err
		}
	}
	h := x.Header()
	h["Content-Type"] = plainJSON
	if a.location != "" {
		h.Set("Location", a.location)
	}
	if a.replayed {
		h.Set("Idempotent-Replayed", "true")
	}
	if a.revision > 0 {
		h.Set("X-Keyward-Revision", strconv.FormatInt(a.revision, 10))
	}
	x.WriteHeader(max(a.status, http.StatusOK))
	if a.rendered != nil {
		writeIssued(x, body)
	} else {
		_, _ = x.Write(body) // the client is gone; there is nobody left to tell
	}
	return nil
}

// cors lets the pages of the configured origins call the management routes, and answers their
// preflight (Fetch standard, section 3.2).
func (s *Server) cors(x *exchange, res *resource) {
	if len(s.cfg.CORSOrigins) == 0 || !res.managed() {
		return
	}
	h := x.Header()
	h.Add("Vary", "Origin")
	origin := x.r.Header.Get("Origin")
	if !slices.Contains(s.cfg.CORSOrigins, origin) {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if x.r.Method != http.MethodOptions {
		h.Set("Access-Control-Expose-Headers", "Idempotent-Replayed, Location, Retry-After, X-Keyward-Revision, X-Request-Id")
		return
	}
	h.Set("Access-Control-Allow-Methods", res.allow)
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, X-Request-Id")
	h.Set("Access-Control-Max-Age", "600")
}

// managed reports whether the resource belongs to the management API.
func (r *resource) managed() bool {
	for _, rt := range r.methods {
		if rt.auth == userToken {
			return true
		}
	}
	return false
}

// headerSize is the size of the request line and the headers as they were sent, near enough.
func headerSize(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

// survive reports a panic and answers it, unless an answer had begun: then it returns false.
func (s *Server) survive(l *listener, x *exchange, panicked any) bool {
	l.metrics.panics.Inc()
	s.cfg.Logger.LogAttrs(context.Background(), slog.LevelError, "panic",
		slog.String("request_id", x.requestID), slog.String("route", x.route.pattern),
		slog.String("panic", door.PanicText(panicked)), slog.String("stack", string(debug.Stack())))
	if x.status != 0 {
		return false
	}
	h := x.Header()
	clear(h)
	x.prepare(l)
	x.problem(errPanicked)
	return true
}

var errPanicked = errors.New("panic")

// account counts the request and writes its line (V7: nothing of it but what is named here).
func (s *Server) account(l *listener, x *exchange, took time.Duration) {
	if x.status == 0 {
		x.status = http.StatusOK // what net/http sends when a handler wrote nothing
	}
	l.metrics.observe(x.route, door.Method(x.r.Method), x.status, took)
	level := slog.LevelInfo
	switch {
	case x.route.quiet && x.status == http.StatusServiceUnavailable && !s.undecided.Allow(time.Now()):
		level = slog.LevelDebug // one line a second tells of an outage as well as a million do
	case x.route.quiet && x.status == http.StatusServiceUnavailable:
		level = slog.LevelWarn // a node that starts answers so, too
	case x.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case x.route.quiet:
		level = slog.LevelDebug
	}
	if !s.cfg.Logger.Enabled(x.r.Context(), level) || !s.sampled(l, x, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("listener", l.name), slog.String("method", door.Method(x.r.Method)), slog.String("route", x.route.pattern),
		slog.Int("status", x.status), slog.Float64("duration_ms", float64(took)/float64(time.Millisecond)),
		slog.String("request_id", x.requestID), slog.String("remote", x.ClientAddress()))
	if x.route.auth == forwarded {
		attrs = append(attrs, s.original(x.r.Header)...)
	}
	if x.call.Principal.User != "" {
		attrs = append(attrs, slog.String("user", x.call.Principal.User), slog.String("organization", x.call.Principal.OrganizationID))
	}
	if x.call.Operator != "" {
		attrs = append(attrs, slog.String("actor", x.call.Operator))
	}
	if x.code != "" {
		attrs = append(attrs, slog.String("code", string(x.code)))
	}
	if x.reason != "" {
		attrs = append(attrs, slog.String("reason", x.reason))
	}
	if x.cause != nil {
		attrs = append(attrs, slog.String("cause", x.cause.Error()))
	}
	s.cfg.Logger.LogAttrs(x.r.Context(), level, "request", attrs...)
}
