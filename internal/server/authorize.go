package server

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// notAnAccount names no organization: it stands for a header that was sent empty or several
// times, which narrows to nothing anyone owns (V3).
const notAnAccount = "-"

// statusHeader tells nginx the status that was meant.
const statusHeader = "X-Keyward-Status"

// Values of X-Keyward-Payments-Enabled, and of statusHeader when a request may pass.
var (
	paymentsEnabled  = []string{"true"}
	paymentsDisabled = []string{"false"}
	statusOK         = []string{"200"}
)

// authorize answers a proxy's question whether a request may pass (V2). A proxy sends the request's own
// headers here; it copies the X-Keyward-* headers of the answer over the client's.
func (s *Server) authorize(x *exchange) error {
	h := x.r.Header
	if s.secretInURL(x.r) {
		return secretInURL()
	}
	r, err := required(x.r.URL)
	if err != nil {
		return err
	}
	secret, ok := credentials(h)
	if !ok {
		return unauthorized()
	}
	r.Secret = secret
	if r.ConnectedAccountID, err = connectedAccount(h, nil); err != nil {
		return err
	}
	verdict, err := s.decide(x, doorAuthorize, r)
	switch {
	case err != nil:
		return err
	case verdict.Reason == keys.ConnectedAccountForbidden:
		return &keys.Error{Code: api.ConnectedAccount, Param: "X-Connected-Account-ID", Detail: "The connected account is not one of this API key's organization."}
	case !verdict.Valid():
		return unauthorized()
	}
	// Every one is sent, an empty one too: a header that were missing here would let the client's
	// own through.
	out := x.Header()
	values := [...]string{verdict.OrganizationID, string(verdict.Environment), verdict.KeyID, verdict.ConnectedAccountID}
	out["X-Keyward-Organization-Id"] = values[0:1:1]
	out["X-Keyward-Environment"] = values[1:2:2]
	out["X-Keyward-Key-Id"] = values[2:3:3]
	out["X-Keyward-Connected-Account-Id"] = values[3:4:4]
	out["X-Keyward-Payments-Enabled"] = paymentsDisabled
	if verdict.PaymentsEnabled {
		out["X-Keyward-Payments-Enabled"] = paymentsEnabled
	}
	if x.nginx {
		out[statusHeader] = statusOK
	}
	x.WriteHeader(http.StatusOK)
	return nil
}

// nginxAsks reports whether ?mode=nginx asks for an answer that nginx's auth_request understands: to it, any status
// but 200, 401 and 403 is a fault of its own, which it answers with 500.
func nginxAsks(u *url.URL) bool { return u.RawQuery != "" && u.Query().Get("mode") == "nginx" }

// connectedAccount returns the account that X-Connected-Account-ID or the body's member of that meaning
// narrows to, empty when neither was sent. They must agree when both were: a caller that looks at one alone must
// not act for another account than the one that was verified (V3).
func connectedAccount(h http.Header, inBody *string) (string, error) {
	values := h["X-Connected-Account-Id"]
	if len(values) == 0 {
		if inBody == nil {
			return "", nil
		}
		return *inBody, nil
	}
	account := notAnAccount
	if len(values) == 1 && values[0] != "" {
		account = values[0]
	}
	if inBody != nil && *inBody != account {
		return "", keys.Invalid("connected_account_id", "connected_account_id and the header X-Connected-Account-ID differ. Send one of them.")
	}
	return account, nil
}

// unauthorized is the one answer to every credential that is not accepted, whatever the reason (V2).
func unauthorized() error {
	return &keys.Error{Code: api.InvalidToken, Detail: "A valid API key is required: Authorization: Bearer <key>, the key as the Basic user name, or X-API-Key."}
}

// credentials returns the one secret the headers carry. Two that differ, several Authorization
// headers and a scheme or form that is not taken are refused, so that no one behind the proxy reads another
// credential than the one that was verified (V2).
func credentials(h http.Header) (secret string, ok bool) {
	switch values := h["Authorization"]; len(values) {
	case 0:
	case 1:
		if secret = bearer(h); secret == "" {
			secret = basicUser(values[0])
		}
		if secret == "" {
			return "", false
		}
	default:
		return "", false
	}
	for _, v := range h["X-Api-Key"] {
		if secret == "" {
			secret = v
		}
		if v == "" || v != secret {
			return "", false
		}
	}
	return secret, secret != ""
}

// basicUser returns the user name of Basic credentials without a password (RFC 7617), else nothing.
func basicUser(v string) string {
	scheme, encoded, _ := strings.Cut(v, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return ""
	}
	plain, err := base64.StdEncoding.Strict().DecodeString(strings.Trim(encoded, " "))
	user, found := strings.CutSuffix(string(plain), ":")
	if err != nil || !found || strings.Contains(user, ":") {
		return ""
	}
	return user
}

// required reads ?env=, by which a proxy's configuration narrows a route to one environment, and ?min_revision=, the least
// revision it lets a verdict rest on, and checks ?mode=. Anything else in the query is the client's own, which some proxies pass along.
func required(u *url.URL) (r verify.Request, err error) {
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

// secretInURL reports whether the URL asked here, or the one the client asked the proxy for, holds a
// secret.
func (s *Server) secretInURL(r *http.Request) bool {
	if s.holdsSecret(r.URL.RawQuery) || s.holdsSecret(r.URL.Path) {
		return true
	}
	for _, name := range [...]string{"X-Original-Uri", "X-Original-Url", "X-Forwarded-Uri"} {
		for _, v := range r.Header[name] {
			if s.holdsSecret(v) {
				return true
			}
		}
	}
	return false
}
