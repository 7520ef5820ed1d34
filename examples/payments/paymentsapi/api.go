// Package paymentsapi is a small payments API behind Keyward: what an API that accepts
// Keyward's keys looks like, small enough to read in one go.
//
// Who asks, and in which environment, comes from the key alone. Payments of another
// organization, of the other environment and of another connected account do not exist for the
// caller: they are answered 404.
package paymentsapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/syncgram/keyward"
)

// Config of an API. Client is required.
type Config struct {
	// Client decides about keys: a *keyward.Client outside of tests.
	Client keyward.Verifier

	// Logger gets one line a request, and none when nil. No line has a secret, a URL or a body.
	Logger *slog.Logger

	// Now is the time a payment is made at; nil means time.Now.
	Now func() time.Time

	// MaxPayments is how many payments one ledger holds: an organization's or a connected
	// account's, in one environment. 0 means 10 000. All ledgers together hold ten times as
	// many. Payments live in memory; beyond the limit they are refused, never forgotten.
	MaxPayments int
}

// Payment is the body of every answer about one payment.
type Payment struct {
	ID                 string  `json:"id"`
	Amount             int64   `json:"amount"` // in the currency's minor unit
	Currency           string  `json:"currency"`
	Description        *string `json:"description"`
	Status             string  `json:"status"` // succeeded, refunded
	Env                string  `json:"env"`
	OrganizationID     string  `json:"organization_id"`
	ConnectedAccountID string  `json:"connected_account_id,omitempty"`
	CreatedAt          string  `json:"created_at"` // RFC 3339 UTC
	RefundedAt         *string `json:"refunded_at"`
}

// PaymentList answers GET /v1/payments, newest first.
type PaymentList struct {
	Payments []Payment `json:"payments"`
	HasMore  bool      `json:"has_more"`
}

const (
	defaultMaxPayments = 10_000
	defaultPage        = 20
	maxPage            = 100
)

type server struct {
	log    *slog.Logger
	now    func() time.Time
	ledger *ledgers
}

// New returns the API's handler:
//
//	POST /v1/payments              create a payment
//	GET  /v1/payments              list them: ?limit=1…100, ?starting_after=<id>
//	GET  /v1/payments/{id}         one of them
//	POST /v1/payments/{id}/refund  give the money back; again → the same answer
//
// Every request needs a key (see keyward.Middleware), one for an unknown route too.
func New(cfg Config) http.Handler {
	if cfg.Client == nil {
		panic("paymentsapi: Config.Client is required")
	}
	s := &server{log: cfg.Logger, now: cfg.Now}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	most := cfg.MaxPayments
	if most <= 0 {
		most = defaultMaxPayments
	}
	s.ledger = newLedgers(most)

	mux := http.NewServeMux()
	mux.Handle("POST /v1/payments", s.endpoint(s.create))
	mux.Handle("GET /v1/payments", s.endpoint(s.list))
	mux.Handle("/v1/payments", s.endpoint(allow("GET, HEAD, POST")))
	mux.Handle("GET /v1/payments/{id}", s.endpoint(s.get))
	mux.Handle("/v1/payments/{id}", s.endpoint(allow("GET, HEAD")))
	mux.Handle("POST /v1/payments/{id}/refund", s.endpoint(s.refund))
	mux.Handle("/v1/payments/{id}/refund", s.endpoint(allow("POST")))
	mux.Handle("/", s.endpoint(func(*http.Request, keyward.Identity) (int, any, error) {
		return 0, nil, &problem{Status: http.StatusNotFound, Code: "route_not_found", Detail: "There is nothing at this path."}
	}))
	guard := keyward.Middleware(cfg.Client, keyward.WithObserver(observe))
	return s.logged(guard(mux))
}

// endpoint answers a request of an identified caller with a status and a body, or an error.
type endpoint func(r *http.Request, caller keyward.Identity) (status int, body any, err error)

func (s *server) endpoint(do endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l := lineOf(r.Context()); l != nil {
			l.route = r.Pattern
		}
		caller, ok := keyward.FromContext(r.Context())
		if !ok {
			answerError(w, &problem{Status: http.StatusUnauthorized, Code: "invalid_token", Detail: "An API key is required."})
			return
		}
		status, body, err := do(r, caller)
		if err != nil {
			answerError(w, err)
			return
		}
		answer(w, status, "application/json", body)
	})
}

func allow(methods string) endpoint {
	return func(*http.Request, keyward.Identity) (int, any, error) {
		return 0, nil, &problem{
			Status: http.StatusMethodNotAllowed, Code: "method_not_allowed",
			Detail: "This path takes " + methods + ".", allow: methods,
		}
	}
}

func (s *server) create(r *http.Request, caller keyward.Identity) (int, any, error) {
	p, err := readPayment(r)
	if err != nil {
		return 0, nil, err
	}
	// Keys of an organization that may not take payments stay valid, so that everything else
	// goes on. Test payments move no money.
	if caller.Env == keyward.Live && !caller.PaymentsEnabled {
		return 0, nil, &problem{
			Status: http.StatusForbidden, Code: "payments_disabled",
			Detail: "Live payments are not enabled for this organization. Reading and refunding go on.",
		}
	}
	p.ID = "pay_" + strings.ToLower(rand.Text())
	p.Status = "succeeded"
	p.Env = caller.Env
	p.OrganizationID = caller.OrganizationID
	p.ConnectedAccountID = caller.ConnectedAccountID
	p.CreatedAt = s.timestamp()
	if !s.ledger.add(ownerOf(caller), p) {
		return 0, nil, &problem{
			Status: http.StatusInsufficientStorage, Code: "ledger_full",
			Detail: "This example keeps payments in memory and holds no more of them.",
		}
	}
	return http.StatusCreated, p, nil
}

func (s *server) list(r *http.Request, caller keyward.Identity) (int, any, error) {
	limit := defaultPage
	query := r.URL.Query()
	for name, values := range query {
		switch {
		case name != "limit" && name != "starting_after":
			return 0, nil, invalid("", "The query takes limit and starting_after only.")
		case len(values) != 1:
			return 0, nil, invalid(name, name+" may be given once.")
		}
	}
	if query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 1 || n > maxPage {
			return 0, nil, invalid("limit", "limit must be a whole number from 1 to 100.")
		}
		limit = n
	}
	page, more, ok := s.ledger.page(ownerOf(caller), query.Get("starting_after"), limit)
	if !ok {
		return 0, nil, invalid("starting_after", "starting_after must be the id of one of your payments.")
	}
	return http.StatusOK, PaymentList{Payments: page, HasMore: more}, nil
}

func (s *server) get(r *http.Request, caller keyward.Identity) (int, any, error) {
	p, ok := s.ledger.get(ownerOf(caller), r.PathValue("id"))
	if !ok {
		return 0, nil, errPaymentNotFound
	}
	return http.StatusOK, p, nil
}

func (s *server) refund(r *http.Request, caller keyward.Identity) (int, any, error) {
	if err := readNothing(r); err != nil {
		return 0, nil, err
	}
	p, ok := s.ledger.refund(ownerOf(caller), r.PathValue("id"), s.timestamp())
	if !ok {
		return 0, nil, errPaymentNotFound
	}
	return http.StatusOK, p, nil
}

func (s *server) timestamp() string { return s.now().UTC().Format(time.RFC3339Nano) }

// problem is an error answer (RFC 9457).
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
	Param     string `json:"param,omitempty"`

	allow string
}

func (p *problem) Error() string { return p.Code + ": " + p.Detail }

var errPaymentNotFound = &problem{Status: http.StatusNotFound, Code: "payment_not_found", Detail: "You have no such payment."}

func invalid(param, detail string) *problem {
	return &problem{Status: http.StatusBadRequest, Code: "invalid_request", Param: param, Detail: detail}
}

func answerError(w http.ResponseWriter, err error) {
	p, ok := err.(*problem)
	if !ok {
		p = &problem{Status: http.StatusInternalServerError, Code: "internal", Detail: "Something went wrong on our side."}
	}
	out := *p // some are shared
	out.Type, out.Title = "urn:payments:problem:"+p.Code, http.StatusText(p.Status)
	out.RequestID = w.Header().Get("X-Request-Id")
	if p.allow != "" {
		w.Header().Set("Allow", p.allow)
	}
	answer(w, p.Status, "application/problem+json", out)
}

func answer(w http.ResponseWriter, status int, contentType string, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}

// line is what the log says of one request. The request's goroutine alone writes it.
type line struct {
	route, organization, key, verdict string
	err                               error
	status                            int
}

type lineKey struct{}

func lineOf(ctx context.Context) *line {
	l, _ := ctx.Value(lineKey{}).(*line)
	return l
}

// observe notes the verdict for the log. A refused key's owner is noted too: it tells whose
// revoked key is still in use.
func observe(r *http.Request, v keyward.Verdict, err error) {
	if l := lineOf(r.Context()); l != nil {
		l.organization, l.key, l.verdict, l.err = v.OrganizationID, v.APIKeyID, string(v.Reason), err
	}
}

var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9.:-]{1,128}$`) // no underscore: never a secret

// logged gives each request an id, writes its log line and sets what every answer has.
func (s *server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !saneRequestID.MatchString(id) {
			id = "req-" + strings.ToLower(rand.Text())
		}
		h := w.Header()
		h.Set("X-Request-Id", id)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		l := &line{route: "none", status: http.StatusOK}
		start := time.Now()
		next.ServeHTTP(&statusWriter{w, l}, r.WithContext(context.WithValue(r.Context(), lineKey{}, l)))
		level, cause := slog.LevelInfo, ""
		if l.err != nil {
			level, cause = slog.LevelError, l.err.Error()
		}
		s.log.LogAttrs(r.Context(), level, "request",
			slog.String("request_id", id), slog.String("method", r.Method), slog.String("route", l.route),
			slog.Int("status", l.status), slog.Duration("took", time.Since(start)),
			slog.String("verdict", l.verdict), slog.String("organization_id", l.organization),
			slog.String("api_key_id", l.key), slog.String("error", cause))
	})
}

type statusWriter struct {
	http.ResponseWriter
	line *line
}

func (w *statusWriter) WriteHeader(status int) {
	w.line.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
