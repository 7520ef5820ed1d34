// Package keyward lets a Go program accept the API keys that Keyward issues.
//
// A [Client] asks Keyward's verification listener whether a secret is good, and [Middleware]
// puts that question in front of an HTTP handler:
//
//	client, err := keyward.New(keyward.Config{Addresses: []string{"http://127.0.0.1:8081"}})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	http.ListenAndServe(":8080", keyward.Middleware(client)(payments))
//
// Nothing is cached: a revoked key is refused from the moment revoke has answered. When no
// address of Keyward can decide, the answer is an error and the caller must refuse.
package keyward

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/credential"
)

// ErrUndecided is wrapped by every error that Verify returns because Keyward gave no
// verdict: no address could be reached in time, or none gave an answer that makes sense.
// The caller refuses, as for an invalid key, and may ask again.
var ErrUndecided = errors.New("keyward: could not decide")

const (
	defaultAddress = "http://127.0.0.1:8081"
	defaultTimeout = 2 * time.Second
	verifyPath     = "/v1/verify"

	// answerLimit bounds what is read of an answer; a verdict is under 2 KiB.
	answerLimit = 64 << 10

	// secretLimit is far above the longest secret (60 characters, C11). What is longer is
	// malformed without asking.
	secretLimit = 512

	// rest is how long an address that failed is asked last instead of first.
	rest = 5 * time.Second

	idlePerAddress = 256
)

// Config says where Keyward is. Its zero value is a server on the same machine with the
// default verification listener.
type Config struct {
	// Addresses of verification listeners, as http://host:port or https://host:port. They are
	// tried in this order; one that failed goes to the end of the line for five seconds.
	// Empty means http://127.0.0.1:8081. Secrets cross this connection: beyond the own
	// machine or a network you trust, use https.
	Addresses []string

	// Token is the token of a credential with the scope verify, empty when Keyward has none.
	Token string

	// Timeout bounds a whole Verify, every try included. Each try gets an equal share of
	// what is left, so that one address that hangs leaves time for the next. 0 means 2 s.
	Timeout time.Duration

	// TLS configures https addresses: a private authority, or the client's certificate when
	// the verification listener asks for one. It has no effect on a Transport of your own.
	TLS *tls.Config

	// HTTPClient replaces the client's own. Redirects are refused whatever it says. When its
	// Transport is nil it gets the pooled one that this package makes; that one speaks
	// HTTP/1.1, keeps up to 256 idle connections an address, and uses no proxy.
	HTTPClient *http.Client
}

// Client asks Keyward for verdicts. It is safe for concurrent use and is meant to live as
// long as the program: it keeps its connections open. See New.
type Client struct {
	addresses []*address
	token     string
	timeout   time.Duration
	http      http.Client
	own       *http.Transport // nil when the caller brought one
	start     time.Time       // zero point of address.restUntil, monotonic
}

type address struct {
	url string
	// restUntil is when a failed address may be tried first again, in nanoseconds since
	// Client.start; 0 = in good standing. The one call that moves an elapsed value on probes
	// the address for everybody; success sets it back to 0.
	restUntil atomic.Int64
}

// New returns a client. It connects to nothing yet, so it succeeds while Keyward is away.
func New(cfg Config) (*Client, error) {
	c := &Client{token: cfg.Token, timeout: cfg.Timeout, start: time.Now()}
	if c.timeout == 0 {
		c.timeout = defaultTimeout
	}
	if c.timeout < 0 {
		return nil, errors.New("keyward: Timeout must not be negative")
	}
	if strings.ContainsFunc(c.token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("keyward: Token must be printable ASCII without spaces")
	}
	given := cfg.Addresses
	if len(given) == 0 {
		given = []string{defaultAddress}
	}
	for i, a := range given {
		u, err := url.Parse(a)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
			u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("keyward: Addresses[%d] must have the form http://host:port or https://host:port", i)
		}
		c.addresses = append(c.addresses, &address{url: u.Scheme + "://" + u.Host + verifyPath})
	}
	if cfg.HTTPClient != nil {
		c.http = *cfg.HTTPClient
	}
	// A redirect would carry the secret to a place nobody configured.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.http.Transport == nil {
		var http1 http.Protocols
		http1.SetHTTP1(true)
		c.own = &http.Transport{
			DialContext:         (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:     cfg.TLS.Clone(),
			Protocols:           &http1,
			MaxIdleConnsPerHost: idlePerAddress,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		}
		c.http.Transport = c.own
	}
	return c, nil
}

// Close lets go of idle connections. The client stays usable. A Transport that the caller
// brought is left alone.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// Reason is a verdict in one word: ReasonValid, or why the key is refused (V1). New words
// may come; whatever is not ReasonValid is a refusal.
type Reason string

// The reasons.
const (
	ReasonValid                     Reason = "valid"
	ReasonMalformed                 Reason = "malformed"
	ReasonUnknown                   Reason = "unknown"
	ReasonRevoked                   Reason = "revoked"
	ReasonExpired                   Reason = "expired"
	ReasonOrganizationInactive      Reason = "organization_inactive"
	ReasonConnectedAccountForbidden Reason = "connected_account_forbidden"
	ReasonEnvironmentMismatch       Reason = "environment_mismatch"
)

// The environments a key can belong to.
const (
	Live = "live"
	Test = "test"
)

// VerifyRequest is one question. Printing or logging it shows no secret.
type VerifyRequest struct {
	Secret string `json:"-"`

	// ConnectedAccountID narrows the question to a connected account of the key's
	// organization; the verdict refuses any other (V3). Empty means the organization itself.
	ConnectedAccountID string

	// Env, Live or Test, makes the verdict refuse a key of the other environment. Empty
	// accepts both.
	Env string

	// MinRevision is the least revision the verdict may rest on: the X-Keyward-Revision of the answer to a
	// create, roll, revoke or organization change. The verdict then reflects that write, whatever any
	// machine's clock says; what nobody can decide so is an error. 0, the usual value, needs no more than that
	// clocks run at about the same rate: every answered write is in force everywhere.
	MinRevision int64
}

// Format implements fmt.Formatter for every verb.
func (VerifyRequest) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, "[verify request]") }

// LogValue implements slog.LogValuer.
func (VerifyRequest) LogValue() slog.Value { return slog.StringValue("[verify request]") }

// Identity is whose key it is.
type Identity struct {
	APIKeyID       string
	OrganizationID string
	Env            string // Live or Test
	KeyName        string
	ExpiresAt      time.Time // zero = never

	// ConnectedAccountID is the account the request was narrowed to, checked to belong to
	// OrganizationID. Empty: the request concerns the organization itself.
	ConnectedAccountID string

	// PaymentsEnabled is false when the organization may not take payments. Its keys stay
	// valid, so that reports and refunds go on (V5): the API decides what that forbids.
	PaymentsEnabled bool
}

// Verdict is Keyward's answer about one secret. When Valid is false, Reason says why, and
// the Identity holds what is known of the key, if anything; it must not be acted upon.
type Verdict struct {
	Valid  bool
	Reason Reason
	Identity
}

// Verifier is what [Middleware] needs. *Client is one; tests may bring their own.
type Verifier interface {
	Verify(ctx context.Context, req VerifyRequest) (Verdict, error)
}

// connectedAccountID is the form of an organization's id.
var connectedAccountID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$`)

// Verify asks whether a secret is good at this moment. A refusal is a verdict, not an error.
// An error means that it could not be decided (see [ErrUndecided]; it wraps the context's
// error too, if that ended the call) or that req.Env is not an environment or req.MinRevision is
// negative: the caller must refuse. No error contains the secret.
//
// Each address is asked at most once, and the next one only after a connection that failed or
// gave no answer in its share of the time, or a 503. An accepted verification counts as a use
// of the key (C20).
func (c *Client) Verify(ctx context.Context, req VerifyRequest) (Verdict, error) {
	switch {
	case req.Env != "" && req.Env != Live && req.Env != Test:
		return Verdict{}, errors.New("keyward: VerifyRequest.Env must be live, test or empty")
	case req.MinRevision < 0:
		return Verdict{}, errors.New("keyward: VerifyRequest.MinRevision must not be negative")
	case !possibleSecret(req.Secret):
		return Verdict{Reason: ReasonMalformed}, nil
	case req.ConnectedAccountID != "" && !connectedAccountID.MatchString(req.ConnectedAccountID):
		// No organization has that id. Keyward still judges the secret first, so that an unknown one is unknown here too.
		req.ConnectedAccountID = credential.NotAnAccount
	}
	body, err := json.Marshal(api.VerifyKey{Key: req.Secret, ConnectedAccountID: req.ConnectedAccountID, Env: req.Env, MinRevision: req.MinRevision})
	if err != nil {
		return Verdict{}, &undecidedError{}
	}
	whole, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	var failed undecidedError
	line := c.line()
	for i, a := range line {
		answer, err := c.ask(whole, a.url, body, len(line)-i)
		if err == nil {
			a.restUntil.Store(0)
			verdict, err := answer.verdict(req)
			if err != nil {
				failed.causes = append(failed.causes, fmt.Errorf("%s: %w", a.url, err))
				return Verdict{}, &failed
			}
			return verdict, nil
		}
		failed.causes = append(failed.causes, c.scrub(err, req.Secret))
		if ctx.Err() != nil { // the caller gave up: no fault of the address
			break
		}
		if refused := (*refusal)(nil); errors.As(err, &refused) && refused.status != http.StatusServiceUnavailable {
			break
		}
		a.restUntil.Store(int64(time.Since(c.start) + rest))
	}
	return Verdict{}, &failed
}

// possibleSecret reports whether s could be a secret of any deployment: without it, a JWT or a
// stray paste would travel for nothing.
func possibleSecret(s string) bool {
	if s == "" || len(s) > secretLimit {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// line returns the addresses in the order to try them: as configured, resting ones last.
func (c *Client) line() []*address {
	if len(c.addresses) == 1 {
		return c.addresses
	}
	now := int64(time.Since(c.start))
	first := make([]*address, 0, len(c.addresses))
	var last []*address
	for _, a := range c.addresses {
		until := a.restUntil.Load()
		if until == 0 || now >= until && a.restUntil.CompareAndSwap(until, now+int64(rest)) {
			first = append(first, a)
		} else {
			last = append(last, a)
		}
	}
	return append(first, last...)
}

// refusal is an HTTP answer that is no verdict. Nothing of its body is shown.
type refusal struct {
	url    string
	status int
}

func (r *refusal) Error() string {
	hint := ""
	switch {
	case r.status == http.StatusUnauthorized || r.status == http.StatusForbidden:
		hint = ": check Config.Token and its scope"
	case r.status == http.StatusNotFound:
		hint = ": is this Keyward's verification listener?"
	case r.status/100 == 3:
		hint = ": redirects are not followed"
	}
	return fmt.Sprintf("%s answered %d%s", r.url, r.status, hint)
}

var errNoVerdict = errors.New("the answer is not a verdict")

// ask puts the question to one address, within 1/shares of the time that ctx has left.
func (c *Client) ask(ctx context.Context, url string, body []byte, shares int) (answer, error) {
	if deadline, ok := ctx.Deadline(); ok && shares > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(shares))
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	// To verify twice does no harm. This entry, which is not sent, tells net/http so: it then
	// replaces a pooled connection that the server had closed meanwhile.
	req.Header["Idempotency-Key"] = nil

	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	// Read to its end, so that the connection can be used again; not beyond the limit.
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	if resp.StatusCode != http.StatusOK {
		return answer{}, &refusal{url: url, status: resp.StatusCode}
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", url, err)
	}
	if len(text) > answerLimit {
		return answer{}, nil
	}
	var a answer
	if json.Unmarshal(text, &a) != nil {
		return answer{}, nil // the zero answer is no verdict; the decoder's error might quote it
	}
	return a, nil
}

// answer is api.Verdict whose deciding members must be there.
type answer struct {
	api.Verdict
	Valid *bool `json:"valid"`
}

// verdict turns a well-formed answer to req into a verdict. An answer that contradicts itself or
// the question decides nothing.
func (a answer) verdict(req VerifyRequest) (Verdict, error) {
	if a.Valid == nil || a.Reason == "" || *a.Valid != (a.Reason == string(ReasonValid)) {
		return Verdict{}, errNoVerdict
	}
	v := Verdict{Valid: *a.Valid, Reason: Reason(a.Reason), Identity: Identity{
		APIKeyID:           a.APIKeyID,
		OrganizationID:     a.OrganizationID,
		Env:                a.Env,
		KeyName:            a.KeyName,
		ConnectedAccountID: a.ConnectedAccountID,
		PaymentsEnabled:    a.PaymentsEnabled != nil && *a.PaymentsEnabled,
	}}
	if a.ExpiresAt != nil {
		t, err := time.Parse(time.RFC3339, *a.ExpiresAt)
		if err != nil {
			return Verdict{}, errNoVerdict
		}
		v.ExpiresAt = t
	}
	if v.Valid && (v.APIKeyID == "" || v.OrganizationID == "" ||
		v.Env != Live && v.Env != Test ||
		req.Env != "" && v.Env != req.Env ||
		v.ConnectedAccountID != req.ConnectedAccountID || v.ConnectedAccountID == credential.NotAnAccount) {
		return Verdict{}, errNoVerdict
	}
	return v, nil
}

// scrub replaces an error that quotes the secret or the token, as one about an answer that
// echoes the question would (V7).
func (c *Client) scrub(err error, secret string) error {
	if text := err.Error(); strings.Contains(text, secret) || c.token != "" && strings.Contains(text, c.token) {
		return errNoVerdict
	}
	return err
}

// undecidedError is ErrUndecided with one cause for each address that was tried.
type undecidedError struct{ causes []error }

func (e *undecidedError) Error() string {
	text := ErrUndecided.Error()
	for i, cause := range e.causes {
		text += [...]string{": ", "; "}[min(i, 1)] + cause.Error()
	}
	return text
}

func (e *undecidedError) Unwrap() []error { return append([]error{ErrUndecided}, e.causes...) }
