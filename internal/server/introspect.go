package server

import (
	"net/http"
	"net/url"

	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// introspection is an active token (RFC 7662 section 2.2). Members after TokenType are Keyward's own.
type introspection struct {
	Active             bool   `json:"active"`
	Sub                string `json:"sub"`       // the organization
	ClientID           string `json:"client_id"` // the key's id
	TokenType          string `json:"token_type"`
	IssuedAt           int64  `json:"iat"`           // seconds since 1970
	ExpiresAt          int64  `json:"exp,omitempty"` // absent = never
	Env                string `json:"env"`
	ConnectedAccountID string `json:"connected_account_id,omitempty"`
	PaymentsEnabled    bool   `json:"payments_enabled"`
}

// inactive is the one answer to every token that is not accepted, whatever the reason.
var inactive = []byte(`{"active":false}`)

// introspect answers POST /v1/introspect (V4, RFC 7662).
func (s *Server) introspect(x *exchange) error {
	form, err := x.readForm()
	if err != nil {
		return err
	}
	for _, name := range [...]string{"token", "connected_account_id", "env", "min_revision"} {
		if len(form[name]) > 1 {
			return keys.Invalid(name, name+" must be given once.") // RFC 6749 section 3.2
		}
	}
	if form.Get("token") == "" {
		return keys.Invalid("token", "token is required: the secret to introspect.")
	}
	r := verify.Request{Secret: form.Get("token")}
	if r.Environment, err = environment("env", parameter(form, "env")); err != nil {
		return err
	}
	least, err := number("min_revision", parameter(form, "min_revision"))
	if err != nil {
		return err
	}
	if r.MinRevision, err = minRevision(least); err != nil {
		return err
	}
	account, err := connectedAccount(x.r.Header, parameter(form, "connected_account_id"))
	if form.Has("connected_account_id") && account == "" || err != nil {
		account = credential.NotAnAccount // a form that cannot be meant is one more token that is not accepted
	}
	r.ConnectedAccountID = account
	verdict, err := s.decide(x, doorIntrospect, r)
	if err != nil {
		return err
	}
	if !verdict.Valid() {
		x.Header()["Content-Type"] = plainJSON
		x.WriteHeader(http.StatusOK)
		_, _ = x.Write(inactive) // the client is gone; there is nobody left to tell
		return nil
	}
	body := introspection{
		Active: true, Sub: verdict.OrganizationID, ClientID: verdict.KeyID, TokenType: "Bearer",
		IssuedAt: verdict.CreatedAt.Unix(), Env: string(verdict.Environment),
		ConnectedAccountID: verdict.ConnectedAccountID, PaymentsEnabled: verdict.PaymentsEnabled,
	}
	if !verdict.ExpiresAt.IsZero() {
		body.ExpiresAt = verdict.ExpiresAt.Unix()
	}
	return x.answer(answer{body: body})
}

// parameter returns a form's parameter, nil when it was not given. It is known to be given once at most.
func parameter(form url.Values, name string) *string {
	if list := form[name]; len(list) > 0 {
		return &list[0]
	}
	return nil
}

// readForm reads the body as a form. Parameters that are not known are ignored (RFC 7662 section 2.1).
func (x *exchange) readForm() (url.Values, error) {
	const form = "application/x-www-form-urlencoded"
	if err := contentType(x.r.Header, form, "Send the body as Content-Type: "+form+"."); err != nil {
		return nil, err
	}
	buf := bodies.Get().(*[maxBody + 1]byte)
	n, err := readBody(x.r, buf)
	defer func() {
		clear(buf[:n])
		bodies.Put(buf)
	}()
	if err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(string(buf[:n]))
	if err != nil {
		return nil, keys.Invalid("", "The body must be one form.")
	}
	return values, nil
}
