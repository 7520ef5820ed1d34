package server

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// inactive is the one answer to every token that is not accepted, whatever the reason.
var inactive = []byte(`{"active":false}`)

// introspect answers POST /v1/introspect (V4, RFC 7662).
func (s *Server) introspect(x *exchange) error {
	var secret, accountID, env, revision *string
	err := x.readForm(field{"token", &secret}, field{"connected_account_id", &accountID}, field{"env", &env}, field{"min_revision", &revision})
	if err != nil {
		return err
	}
	if secret == nil || *secret == "" {
		return keys.Invalid("token", "token is required: the secret to introspect.")
	}
	r := verify.Request{Secret: *secret}
	if r.Environment, err = environment("env", env); err != nil {
		return err
	}
	least, err := number("min_revision", revision)
	if err != nil {
		return err
	}
	if r.MinRevision, err = minRevision(least); err != nil {
		return err
	}
	account, err := connectedAccount(x.r.Header, accountID)
	if accountID != nil && account == "" || err != nil {
		account = credential.NotAnAccount // a form that cannot be meant is one more token that is not accepted
	}
	r.ConnectedAccountID = account
	verdict, err := s.decide(x, doorIntrospect, r)
	if err != nil {
		return err
	}
	body := inactive
	if verdict.Valid() {
		buf := answers.Get().(*[]byte)
		defer answers.Put(buf)
		*buf = appendIntrospection((*buf)[:0], &verdict)
		body = *buf
	}
	x.Header()["Content-Type"] = plainJSON
	x.WriteHeader(http.StatusOK)
	_, _ = x.Write(body) // the client is gone; there is nobody left to tell
	return nil
}

// appendIntrospection appends what an active token is (RFC 7662 section 2.2): sub is the organization, client_id the key's id, iat and exp
// seconds since 1970, without exp for a key that never expires. The members after token_type's are Keyward's own.
func appendIntrospection(b []byte, v *verify.Verdict) []byte {
	b = append(b, `{"active":true`...)
	b = appendText(b, "sub", v.OrganizationID)
	b = appendText(b, "client_id", v.KeyID)
	b = append(b, `,"token_type":"Bearer","iat":`...)
	b = strconv.AppendInt(b, v.CreatedAt.Unix(), 10)
	if !v.ExpiresAt.IsZero() {
		b = append(b, `,"exp":`...)
		b = strconv.AppendInt(b, v.ExpiresAt.Unix(), 10)
	}
	b = appendText(b, "env", string(v.Environment))
	if v.ConnectedAccountID != "" {
		b = appendText(b, "connected_account_id", v.ConnectedAccountID)
	}
	b = append(b, `,"payments_enabled":`...)
	b = strconv.AppendBool(b, v.PaymentsEnabled)
	return append(b, '}')
}

// readForm reads the body as a form into the fields, each a **string. Parameters that are not known are ignored (RFC 7662 section 2.1), and
// none may be given twice (RFC 6749 section 3.2).
func (x *exchange) readForm(fields ...field) error {
	const form = "application/x-www-form-urlencoded"
	if err := contentType(x.r.Header, form, "Send the body as Content-Type: "+form+"."); err != nil {
		return err
	}
	buf := bodies.Get().(*[maxBody + 1]byte)
	n, err := readBody(x.r, buf)
	defer func() {
		clear(buf[:n])
		bodies.Put(buf)
	}()
	if err != nil {
		return err
	}
	return parseForm(string(buf[:n]), fields)
}

// parseForm is url.ParseQuery into the fields: it makes no map of what nobody asked for, and the body's limit is the only one on parameters.
func parseForm(text string, fields []field) error {
	for pair := range strings.SplitSeq(text, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		if nameErr != nil || valueErr != nil || strings.Contains(pair, ";") {
			return keys.Invalid("", "The body must be one form.")
		}
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			continue
		}
		into := fields[i].into.(**string)
		if *into != nil {
			return keys.Invalid(name, name+" must be given once.")
		}
		*into = &value
	}
	return nil
}
