package server

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
)

// R8: behind a trusted proxy the audit log and the log name the client, not the proxy.
func TestR8AuditNamesTheClient(t *testing.T) {
	trusted, err := door.NewClients([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, func(s *setup) { s.server.Clients = trusted })
	const client = "203.0.113.9"
	forwarded := http.Header{"X-Forwarded-For": {"198.51.100.1, " + client}} // the first is the client's own word
	put := ask{method: "PUT", url: f.admin + "/v1/organizations/org_a", body: `{}`, header: forwarded}
	if got := f.do(put); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("ann", "org_a"), body: `{"key_name":"k"}`, header: forwarded})
	audit := decode[api.AuditList](t, f.do(ask{method: "GET", url: f.admin + "/v1/audit"}).body)
	if len(audit.Entries) != 2 {
		t.Errorf("%d entries", len(audit.Entries))
	}
	for _, e := range audit.Entries {
		if e.RemoteAddress != client {
			t.Errorf("%s is from %s", e.Action, e.RemoteAddress)
		}
	}
	f.do(ask{method: "GET", url: f.verification + "/v1/authorize", header: forwarded})
	for _, listener := range []string{public, verification, admin} {
		eventually(t, "in the log", func() bool {
			return len(f.logged(map[string]any{"msg": "request", "listener": listener, "remote": client})) > 0
		})
	}
}

// R8: nobody is believed about the client unless a proxy is trusted.
func TestR8NoProxyIsTrusted(t *testing.T) {
	f := newFixture(t)
	f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/org_a", body: `{}`, header: http.Header{"X-Forwarded-For": {"203.0.113.9"}}})
	audit := decode[api.AuditList](t, f.do(ask{method: "GET", url: f.admin + "/v1/audit"}).body)
	if len(audit.Entries) != 1 || audit.Entries[0].RemoteAddress != "127.0.0.1" {
		t.Errorf("entries %+v", audit.Entries)
	}
}

// scopeOf is O5: what each route needs, by its listener and method alone. Health is
// open, and a node asks another for nothing but what it encrypted itself (V7).
func scopeOf(r route) access.Scope {
	switch {
	case slices.Contains([]string{"/healthz", "/livez", "/readyz", "/v1/probe"}, r.pattern) || r.listener == public:
		return 0
	case r.listener == verification:
		return access.Verify
	case r.method == http.MethodGet:
		return access.Read
	}
	return access.Operate
}

// O5: credential scope × route × listener. The routes are those of the table, so that none is left
// out; ext_authz has a test of its own (TestO5ExtAuthzToken).
func TestO5Matrix(t *testing.T) {
	tokens := map[access.Scope]string{}
	var file strings.Builder
	for scopes := access.Scope(1); scopes <= access.All; scopes++ {
		tokens[scopes] = rand.Text()
		file.WriteString("name-" + strings.ReplaceAll(scopes.String(), ",", "-") + " " + scopes.String() + " " + tokens[scopes] + "\n")
	}
	f := newFixture(t, func(s *setup) { s.credentials = file.String() })
	tokens[0] = "" // none is shown
	listeners := map[string]string{public: f.public, verification: f.verification, admin: f.admin}
	for _, r := range f.server.routes() {
		need := scopeOf(r)
		if r.scope != need || (need == 0) != (r.auth == open || r.auth == userToken) {
			t.Errorf("%s %s on the %s listener needs %q, want %q", r.method, r.pattern, r.listener, r.scope, need)
		}
		path := strings.NewReplacer("{api_key_id}", "key_x", "{id}", "org_a", "{original_path}", "x").Replace(r.pattern)
		method := r.method
		if method == anyMethod {
			method = http.MethodGet
		}
		for scopes, token := range tokens {
			h := http.Header{}
			if token != "" && r.auth == forwarded {
				h.Set("X-Internal-Token", token)
			} else if token != "" {
				h.Set("Authorization", "Bearer "+token)
			}
			got := f.do(ask{method: method, url: listeners[r.listener] + path, body: `{}`, header: h})
			allowed := got.problem.Code != api.Forbidden && got.problem.Code != api.InternalTokenRequired
			want := need == 0 || scopes.Allows(need)
			if allowed != want || !want && token == "" && got.status != http.StatusUnauthorized || !want && token != "" && got.status != http.StatusForbidden {
				t.Errorf("%s %s%s with %q: %d %s", method, r.listener, path, scopes, got.status, got.body)
			}
			if r.auth == userToken && got.status != http.StatusUnauthorized {
				t.Errorf("%s %s with a credential for a user's token: %d", method, path, got.status)
			}
		}
	}
}

// O5: an act names who did it, and a credential without the scope leaves an audit entry: one a
// minute for each route.
func TestO5Audit(t *testing.T) {
	operator, reader := rand.Text(), rand.Text()
	f := newFixture(t, func(s *setup) { s.credentials = "ann operate " + operator + "\nprometheus read " + reader + "\n" })
	put := func(token, id, body string) reply {
		t.Helper()
		return f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/" + id, user: token, body: body})
	}
	put(operator, "org_a", `{}`)
	put(operator, "org_b", `{"current_env":"x"}`)
	f.do(ask{method: "POST", url: f.admin + "/v1/master-key/rotate", user: operator})
	for range 3 {
		put(reader, "org_c", `{}`).refused(t, 403, api.Forbidden, "")
	}
	f.do(ask{method: "POST", url: f.verification + "/v1/verify", user: reader, body: `{"key":"x"}`}).refused(t, 403, api.Forbidden, "")
	audit := decode[api.AuditList](t, f.do(ask{method: "GET", url: f.admin + "/v1/audit", user: reader}).body)
	var got [][4]string
	for _, e := range audit.Entries {
		got = append(got, [4]string{e.Actor, e.Action, e.Outcome, e.Detail})
	}
	want := [][4]string{
		{"operator:ann", "organization.put", "done", `active=true payments_enabled=false current_env=test parent=""`},
		{"operator:ann", "organization.put", "invalid_request", "current_env"},
		{"operator:prometheus", "credential.use", "forbidden", "PUT /v1/organizations/{id} needs operate"},
		{"operator:prometheus", "credential.use", "forbidden", "POST /v1/verify needs verify"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
