package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
)

// authenticatorFunc stands in for the issuer.
type authenticatorFunc func() (keys.Principal, error)

func (f authenticatorFunc) Authenticate(context.Context, string) (keys.Principal, error) {
	return f()
}

// reasons returns the reasons in the log lines of rejected requests.
func (f *fixture) reasons(code api.Code) (list []string) {
	for _, line := range f.logged(map[string]any{"msg": "request", "code": string(code)}) {
		reason, _ := line["reason"].(string)
		list = append(list, reason)
	}
	return list
}

// TestR3RoleReason: the log says which claim was looked at, what it had, and what is needed, in a
// bounded and printable text; the answer says none of it.
func TestR3RoleReason(t *testing.T) {
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprint("role-", i)
	}
	const needed = `; one of ["key-admin", "owner"] is needed`
	for _, tt := range []struct {
		name   string
		claim  string
		roles  []string
		reason string
	}{
		{"none", "realm_access.roles", nil,
			`role claim "realm_access.roles" has no role` + needed},
		{"one", "o.rol", []string{"viewer"}, `role claim "o.rol" has ["viewer"]` + needed},
		{"another case", "roles", []string{"Owner", "KEY-ADMIN"},
			`role claim "roles" has ["Owner", "KEY-ADMIN"]` + needed},
		{"not printable", "roles", []string{"a\n{\"level\":\"ERROR\"}\u202e"},
			`role claim "roles" has ["a\n{\"level\":\"ERROR\"}\u202e"]` + needed},
		{"long", "roles", []string{strings.Repeat("é", 500)},
			`role claim "roles" has ["` + strings.Repeat("é", 64) + `…"]` + needed},
		{"many", "roles", many, `role claim "roles" has ["role-0", "role-1", "role-2", "role-3", ` +
			`"role-4", "role-5", "role-6", "role-7" and 12 more]` + needed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(s *setup) {
				s.service.RequiredRoles, s.service.RoleClaim = []string{"key-admin", "owner"}, tt.claim
				s.server.Authenticator = authenticatorFunc(func() (keys.Principal, error) {
					return keys.Principal{User: "u", OrganizationID: "org_a", Roles: tt.roles}, nil
				})
			})
			got := f.do(ask{method: "GET", url: f.keysURL(), user: f.token("u", "org_a")})
			got.refused(t, 403, api.Forbidden, "")
			if strings.Contains(got.body, "needed") || strings.Contains(got.body, "key-admin") {
				t.Errorf("the answer says %s", got.body)
			}
			if list := f.reasons(api.Forbidden); len(list) != 1 || list[0] != tt.reason {
				t.Errorf("reasons\n%q, want\n%q", list, tt.reason)
			}
		})
	}
}

// TestC1OrganizationReason: a token that names no organization, or several, is 401 as any other
// bad token, and the log says why.
func TestC1OrganizationReason(t *testing.T) {
	secret := []byte("a shared secret of 32 bytes, yes")
	sign := func(claims string) string {
		now := time.Now().Unix()
		payload := fmt.Sprintf(`{"sub":"u","iat":%d,"exp":%d%s}`, now, now+60, claims)
		enc := base64.RawURLEncoding.EncodeToString
		input := enc([]byte(`{"alg":"HS256"}`)) + "." + enc([]byte(payload))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + enc(mac.Sum(nil))
	}
	for _, tt := range []struct{ name, claims, reason string }{
		{"missing", ``, `organization claim "organization.*.id" is missing`},
		{"several", `,"organization":[{"id":"a"},{"id":"b"}]`,
			`organization claim "organization.*.id" names several organizations`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := identity.Config{HS256Secret: secret, OrganizationClaim: "organization.*.id"}
			a, err := identity.New(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.Close)
			f := newFixture(t, func(s *setup) { s.server.Authenticator = a })
			got := f.do(ask{method: "GET", url: f.keysURL(), user: f.hide(sign(tt.claims))})
			got.refused(t, 401, api.InvalidToken, "")
			var p api.Problem
			if err := json.Unmarshal([]byte(got.body), &p); err != nil || strings.Contains(p.Detail, "organization") {
				t.Errorf("%v: the answer says %s", err, got.body)
			}
			if list := f.reasons(api.InvalidToken); len(list) != 1 || !strings.HasPrefix(list[0], tt.reason) {
				t.Errorf("reasons %q, want %q", list, tt.reason)
			}
		})
	}
}

// TestC1RetryAfter: a 503 says how long the issuer's keys will not be looked for, in whole seconds,
// rounded up, and the log says why.
func TestC1RetryAfter(t *testing.T) {
	for _, tt := range []struct {
		wait time.Duration
		want string
	}{
		{0, "1"}, {250 * time.Millisecond, "1"}, {time.Second, "1"},
		{1001 * time.Millisecond, "2"}, {30 * time.Second, "30"},
	} {
		t.Run(tt.wait.String(), func(t *testing.T) {
			f := newFixture(t, func(s *setup) {
				s.server.Authenticator = authenticatorFunc(func() (keys.Principal, error) {
					return keys.Principal{}, &identity.UnavailableError{Reason: "held back", Wait: tt.wait}
				})
			})
			got := f.do(ask{method: "GET", url: f.keysURL(), user: f.token("u", "org_a")})
			got.refused(t, http.StatusServiceUnavailable, api.Unavailable, "")
			if h := got.header.Get("Retry-After"); h != tt.want {
				t.Errorf("Retry-After %q, want %q", h, tt.want)
			}
			if n := len(f.logged(map[string]any{"cause": "identity: token not judged: held back"})); n != 1 {
				t.Errorf("%d lines give the cause", n)
			}
		})
	}
}
