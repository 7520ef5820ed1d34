package keyward

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/credential"
)

// Option changes what [Middleware] does.
type Option func(*guard)

// WithEnv makes the middleware refuse keys of the other environment. It panics when env is
// neither Live nor Test.
func WithEnv(env string) Option {
	if env != Live && env != Test {
		panic("keyward: WithEnv takes live or test")
	}
	return func(g *guard) { g.env = env }
}

// WithObserver replaces the default observer, which logs errors through slog.Default and
// nothing else. It is called once for each request that had one credential, with the verdict
// or with the error for which the request was answered 503, before that answer; use it to log
// or to count. It runs on the request's goroutine.
func WithObserver(observe func(r *http.Request, v Verdict, err error)) Option {
	return func(g *guard) { g.observe = observe }
}

func logErrors(r *http.Request, _ Verdict, err error) {
	if err != nil && r.Context().Err() == nil {
		slog.ErrorContext(r.Context(), "a request was refused because its API key could not be verified", "error", err)
	}
}

// Middleware returns a wrapper that lets a request through to the handler only with an API key
// that v says is valid, and with the key's [Identity] in its context (see [FromContext]).
//
// The secret is taken from Authorization: Bearer, from HTTP Basic as the user name without a
// password, or from X-API-Key. A request with two that differ, with several Authorization headers,
// or with a secret in its URL is refused (V2). X-Connected-Account-ID narrows the request to a connected
// account of the key's organization (V3).
//
// Refusals are application/problem+json (RFC 9457):
//
//	400  a secret in the URL
//	401  no valid key, the same answer whatever the reason, with WWW-Authenticate
//	403  the connected account is not one of the caller's
//	503  it could not be decided, with Retry-After: nothing is let through on a doubt
//
// Request headers that start with X-Keyward- are deleted, because only Keyward may set them; all
// others are left as they came.
func Middleware(v Verifier, opts ...Option) func(http.Handler) http.Handler {
	g := guard{verifier: v, observe: logErrors}
	for _, o := range opts {
		o(&g)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, next) })
	}
}

type guard struct {
	verifier Verifier
	env      string
	observe  func(*http.Request, Verdict, error)
}

func (g *guard) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if credential.InURL(r.RequestURI, r.URL.Path, r.URL.RawQuery) {
		refuse(w, r, secretInURL)
		return
	}
	secret, ok := credential.Secret(r.Header["Authorization"], r.Header["X-Api-Key"])
	if !ok {
		refuse(w, r, unauthorized)
		return
	}
	verdict, err := g.verifier.Verify(r.Context(), VerifyRequest{
		Secret: secret, ConnectedAccountID: credential.Account(r.Header["X-Connected-Account-Id"]), Env: g.env,
	})
	g.observe(r, verdict, err)
	switch {
	case err != nil:
		refuse(w, r, undecided)
	case verdict.Valid:
		r = r.WithContext(NewContext(r.Context(), verdict.Identity))
		r.Header = withoutIdentity(r.Header)
		next.ServeHTTP(w, r)
	case verdict.Reason == ReasonConnectedAccountForbidden:
		refuse(w, r, forbidden)
	default:
		refuse(w, r, unauthorized)
	}
}

// withoutIdentity returns h without X-Keyward-* headers. It copies h rather than change it.
func withoutIdentity(h http.Header) http.Header {
	var clean http.Header
	for name := range h {
		if !credential.IsIdentity(name) {
			continue
		}
		if clean == nil {
			clean = h.Clone()
		}
		delete(clean, name)
	}
	if clean == nil {
		return h
	}
	return clean
}

// The refusals. They are fixed, so that they tell a guesser nothing.
var (
	secretInURL = api.Problem{
		Title: "Invalid request", Status: http.StatusBadRequest, Code: api.InvalidRequest,
		Detail: "A secret must never be part of a URL: URLs are logged and remembered. Send it in a header, and roll the key it belongs to.",
	}
	unauthorized = api.Problem{
		Title: "Invalid token", Status: http.StatusUnauthorized, Code: api.InvalidToken,
		Detail: "Send a valid API key as Authorization: Bearer, as the user name of HTTP Basic or as X-API-Key; one of them, and never in the URL.",
	}
	forbidden = api.Problem{
		Title: "Connected account", Status: http.StatusForbidden, Code: api.ConnectedAccount,
		Detail: "X-Connected-Account-ID must name one connected account of the key's organization.",
		Param:  "X-Connected-Account-ID",
	}
	undecided = api.Problem{
		Title: "Unavailable", Status: http.StatusServiceUnavailable, Code: api.Unavailable,
		Detail: "The API key could not be verified. Nothing was done; ask again in a moment.",
	}
)

func refuse(w http.ResponseWriter, r *http.Request, p api.Problem) {
	h := w.Header()
	p.Type = "urn:keyward:problem:" + string(p.Code)
	p.RequestID = requestID(h.Get("X-Request-Id"), r.Header.Get("X-Request-Id"))
	h.Set("X-Request-Id", p.RequestID)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	}
	body, err := json.Marshal(p)
	if err != nil {
		body = nil // cannot be: strings and an integer
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9._:/+=-]{1,128}$`)

// requestID returns the first sane id given, or a new one: an outer handler's comes before the
// client's. A client's that holds a secret is not kept.
func requestID(given ...string) string {
	for _, id := range given {
		if saneRequestID.MatchString(id) && !credential.InText(id) {
			return id
		}
	}
	return "req_" + strings.ToLower(rand.Text())
}

type contextKey struct{}

// NewContext returns a copy of ctx that carries id, as the middleware does; tests of handlers
// use it.
func NewContext(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext returns whose key the request came with. The second result is false when it did
// not pass [Middleware]: refuse then.
func FromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(contextKey{}).(Identity)
	return id, ok
}
