package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// RenderIssued is the body that answers create and roll, and one of the few places where a secret is
// revealed: once, to its owner (C10, C24). It is what keys.Config.Render wants.
func RenderIssued(i keys.Issued) ([]byte, error) {
	k := &i.Key
	return json.Marshal(api.IssuedKey{
		APIKeyID: k.ID, Key: i.Secret.Reveal(), KeyName: k.Name,
		CreatedAt: timestamp(k.CreatedAt), ExpiresAt: optionalTime(k.ExpiresAt),
		Env: string(k.Environment), Hint: k.Hint, Replaces: k.Replaces,
	})
}

// timestamp is RFC 3339 in UTC with a Z, to the microsecond when there is more than whole seconds.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999999Z") }

func optionalTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := timestamp(t)
	return &s
}

func readCreate(x *exchange) (keys.CreateRequest, error) {
	var b api.CreateKey
	err := x.readJSON(false,
		field{"key_name", &b.KeyName}, field{"expires_in_days", &b.ExpiresInDays},
		field{"idempotency_key", &b.IdempotencyKey}, field{"env", &b.Env}, field{"description", &b.Description})
	if err != nil {
		return keys.CreateRequest{}, err
	}
	key, err := idempotencyKey(x.r.Header, b.IdempotencyKey)
	return keys.CreateRequest{Name: b.KeyName, Description: b.Description, ExpiresInDays: b.ExpiresInDays, Environment: b.Env, IdempotencyKey: key}, err
}

func (s *Server) create(ctx context.Context, c keys.Call, r keys.CreateRequest) (answer, error) {
	issued, err := s.cfg.Service.Create(ctx, c, r)
	return created(issued), err
}

func readRoll(x *exchange) (keys.RollRequest, error) {
	var b api.RollKey
	var description nullable
	err := x.readJSON(true,
		field{"overlap_seconds", &b.OverlapSeconds}, field{"key_name", &b.KeyName},
		field{"expires_in_days", &b.ExpiresInDays}, field{"idempotency_key", &b.IdempotencyKey},
		field{"description", &description})
	if err != nil {
		return keys.RollRequest{}, err
	}
	key, err := idempotencyKey(x.r.Header, b.IdempotencyKey)
	return keys.RollRequest{KeyID: x.segment, OverlapSeconds: b.OverlapSeconds, Name: b.KeyName, Description: description.pointer(), ExpiresInDays: b.ExpiresInDays, IdempotencyKey: key}, err
}

func (s *Server) roll(ctx context.Context, c keys.Call, r keys.RollRequest) (answer, error) {
	issued, err := s.cfg.Service.Roll(ctx, c, r)
	return created(issued), err
}

// created is 201 with the bytes that were rendered when the key was issued (C10, C16).
func created(i keys.Issued) answer {
	return answer{
		status: http.StatusCreated, rendered: i.Body, location: "/api/v1/auth/api-keys/" + i.Key.ID,
		replayed: i.Replayed, revision: i.Key.Revision,
	}
}

// idempotencyKey returns the one from the body or the header, which must agree; empty when neither
// was sent (C15).
func idempotencyKey(h http.Header, inBody *string) (string, error) {
	if inBody != nil && *inBody == "" {
		return "", keys.Invalid("idempotency_key", "idempotency_key must be 1 to 255 printable characters.")
	}
	const name = "Idempotency-Key"
	values := h[name]
	if len(values) == 0 {
		if inBody == nil {
			return "", nil
		}
		return *inBody, nil
	}
	key, ok := bareItem(values[0])
	switch {
	case len(values) > 1:
		return "", keys.Invalid(name, "The header Idempotency-Key must be sent once.")
	case !ok || key == "":
		return "", keys.Invalid(name, "The header Idempotency-Key must be 1 to 255 printable characters, bare or in double quotes.")
	case inBody != nil && *inBody != key:
		return "", keys.Invalid("idempotency_key", "idempotency_key and the header Idempotency-Key differ. Send one of them.")
	}
	return key, nil
}

// bareItem reads a header value that is a structured-field string (RFC 9651 section 3.3.3) or,
// without quotes, stands for itself.
func bareItem(v string) (string, bool) {
	inner, quoted := strings.CutPrefix(v, `"`)
	if !quoted {
		return v, true
	}
	var out strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; {
		case c == '"':
			return out.String(), i == len(inner)-1
		case c < ' ' || c > '~':
			return "", false
		case c == '\\':
			if i++; i == len(inner) || inner[i] != '"' && inner[i] != '\\' {
				return "", false
			}
			out.WriteByte(inner[i])
		default:
			out.WriteByte(c)
		}
	}
	return "", false
}

func readRevoke(x *exchange) (revocation, error) {
	var b api.RevokeKey
	err := x.readJSON(true, field{"reason", &b.Reason})
	r := revocation{keyID: x.segment}
	if b.Reason != nil {
		r.reason = *b.Reason
	}
	return r, err
}

type revocation struct{ keyID, reason string }

func (s *Server) revoke(ctx context.Context, c keys.Call, r revocation) (answer, error) {
	k, err := s.cfg.Service.Revoke(ctx, c, r.keyID, r.reason)
	return answer{body: api.RevokedKey{Status: string(keys.StateRevoked), APIKeyID: k.ID}, revision: k.Revision}, err
}

func readList(x *exchange) (keys.ListRequest, error) {
	limit, err := x.number("limit")
	r := keys.ListRequest{Environment: x.parameter("env"), Limit: limit}
	if cursor := x.parameter("cursor"); cursor != nil {
		if *cursor == "" {
			return r, keys.Invalid("cursor", "cursor must be the next_cursor of an earlier page.")
		}
		r.Cursor = *cursor
	}
	return r, err
}
