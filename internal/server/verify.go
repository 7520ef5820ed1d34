package server

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// The doors, in metrics.
const (
	doorVerify     = "verify"
	doorAuthorize  = "authorize"
	doorIntrospect = "introspect"
)

// decide asks for a verdict and counts it. The error is a 503 (V1).
func (s *Server) decide(x *exchange, door string, r verify.Request) (verify.Verdict, error) {
	verdict, err := s.cfg.Verifier.Verify(x.ctx, r)
	s.cfg.Metrics.Verification(door, &verdict, err)
	if err != nil {
		return verdict, &keys.Unavailable{Err: err}
	}
	return verdict, nil
}

// answers are buffers for verdicts.
var answers = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// verify answers POST /v1/verify (V1, V3, V5).
func (s *Server) verify(x *exchange) error {
	var asked struct {
		secret, account, env *string
		least                *int64
	}
	err := x.readJSON(false, field{"key", &asked.secret}, field{"connected_account_id", &asked.account}, field{"env", &asked.env}, field{"min_revision", &asked.least})
	if err != nil {
		return err
	}
	if asked.secret == nil {
		return keys.Invalid("key", "key is required: the secret to verify.")
	}
	r := verify.Request{Secret: *asked.secret}
	if asked.account != nil && *asked.account == "" {
		return keys.Invalid("connected_account_id", "connected_account_id must name an organization; leave it out to ask for the key's own.")
	}
	if r.ConnectedAccountID, err = connectedAccount(x.r.Header, asked.account); err != nil {
		return err
	}
	if r.Environment, err = environment("env", asked.env); err != nil {
		return err
	}
	if r.MinRevision, err = minRevision(asked.least); err != nil {
		return err
	}
	verdict, err := s.decide(x, doorVerify, r)
	if err != nil {
		return err
	}
	buf := answers.Get().(*[]byte)
	body := appendVerdict((*buf)[:0], &verdict)
	x.Header()["Content-Type"] = plainJSON
	x.WriteHeader(http.StatusOK)
	_, _ = x.Write(body) // the client is gone; there is nobody left to tell
	*buf = body
	answers.Put(buf)
	return nil
}

// environment reads the environment a caller requires; nil is either.
func environment(param string, asked *string) (keys.Environment, error) {
	if asked == nil {
		return "", nil
	}
	if *asked != string(keys.Live) && *asked != string(keys.Test) {
		return "", keys.Invalid(param, param+` must be "live" or "test".`)
	}
	return keys.Environment(*asked), nil
}

// minRevision reads the least revision a verdict may rest on; nil is any.
func minRevision(asked *int64) (int64, error) {
	if asked == nil {
		return 0, nil
	}
	if *asked < 0 {
		return 0, keys.Invalid("min_revision", "min_revision must be a whole number, 0 or more.")
	}
	return *asked, nil
}

// appendVerdict appends v as an api.Verdict in JSON.
func appendVerdict(b []byte, v *verify.Verdict) []byte {
	b = append(b, `{"valid":`...)
	b = strconv.AppendBool(b, v.Valid())
	b = appendText(b, "reason", string(v.Reason))
	if v.KeyID == "" {
		return append(b, '}')
	}
	b = appendText(b, "api_key_id", v.KeyID)
	b = appendText(b, "organization_id", v.OrganizationID)
	b = appendText(b, "env", string(v.Environment))
	b = appendText(b, "key_name", v.KeyName)
	if !v.ExpiresAt.IsZero() {
		b = appendText(b, "expires_at", timestamp(v.ExpiresAt))
	}
	if v.ConnectedAccountID != "" {
		b = appendText(b, "connected_account_id", v.ConnectedAccountID)
	}
	b = append(b, `,"payments_enabled":`...)
	b = strconv.AppendBool(b, v.PaymentsEnabled)
	return append(b, '}')
}

// literal marks the bytes that stand for themselves in a JSON string, but for those of other alphabets.
var literal = func() (is [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		is[c] = c != '"' && c != '\\'
	}
	return is
}()

// appendText appends a member whose value is text.
func appendText(b []byte, name, text string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	plain := true
	for i := range len(text) {
		plain = plain && literal[text[i]]
	}
	if !plain {
		quoted, err := json.Marshal(text)
		if err != nil { // a string always has a JSON form
			quoted = []byte(`""`)
		}
		return append(b, quoted...)
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}
