package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// people is a fixture with one key in each state that a verdict tells apart.
type people struct {
	*fixture
	live, test, revoked, expired, off, disabled api.IssuedKey
	unknown                                     string
}

func newPeople(t *testing.T, change ...func(*setup)) *people {
	p := &people{fixture: newFixture(t, change...)}
	p.fixture.live("org_live")
	p.fixture.live("org_off")
	p.fixture.live("org_disabled")
	p.put("org_child", `{"parent_organization_id":"org_live"}`)
	p.put("org_child_off", `{"parent_organization_id":"org_live","is_active":false}`)
	p.put("org_stranger", `{"parent_organization_id":"org_off"}`)
	p.expired = p.create("u1", "org_expired", `{"key_name":"k","expires_in_days":1}`)
	p.later(24 * time.Hour)
	p.live = p.create("u2", "org_live", `{"key_name":"Łive \"key\" <1>","expires_in_days":7}`)
	p.test = p.create("u3", "org_test", `{"key_name":"k"}`)
	p.revoked = p.create("u4", "org_revoked", `{"key_name":"k"}`)
	if got := p.do(ask{method: "POST", url: p.keysURL() + "/" + p.revoked.APIKeyID + "/revoke", user: p.token("u4", "org_revoked")}); got.status != 200 {
		t.Fatalf("revoke: %d", got.status)
	}
	p.off = p.create("u5", "org_off", `{"key_name":"k"}`)
	p.put("org_off", `{"payments_enabled":true,"is_active":false}`)
	p.disabled = p.create("u6", "org_disabled", `{"key_name":"k"}`)
	p.put("org_disabled", `{"payments_enabled":false}`)
	p.unknown = p.secret(keys.Live)
	return p
}

// V1, V3, V5: every verdict of POST /v1/verify.
func TestV1Verify(t *testing.T) {
	p := newPeople(t)
	known := func(k api.IssuedKey, organization, reason string, payments bool) api.Verdict {
		return api.Verdict{Valid: reason == "valid", Reason: reason, APIKeyID: k.APIKeyID, OrganizationID: organization,
			Env: k.Env, KeyName: k.KeyName, ExpiresAt: k.ExpiresAt, PaymentsEnabled: &payments}
	}
	withAccount := func(v api.Verdict, account string) api.Verdict { v.ConnectedAccountID = account; return v }
	for _, tt := range []struct {
		name, secret, members string
		want                  api.Verdict
	}{
		{"live", p.live.Key, "", known(p.live, "org_live", "valid", true)},
		{"test", p.test.Key, "", known(p.test, "org_test", "valid", false)},
		{"nulls", p.live.Key, `,"env":null,"connected_account_id":null`, known(p.live, "org_live", "valid", true)},
		{"its environment", p.live.Key, `,"env":"live"`, known(p.live, "org_live", "valid", true)},
		{"the other environment", p.live.Key, `,"env":"test"`, known(p.live, "org_live", "environment_mismatch", true)},
		{"revoked", p.revoked.Key, "", known(p.revoked, "org_revoked", "revoked", false)},
		{"expired", p.expired.Key, "", known(p.expired, "org_expired", "expired", false)},
		{"switched off", p.off.Key, "", known(p.off, "org_off", "organization_inactive", true)},
		{"payments disabled", p.disabled.Key, "", known(p.disabled, "org_disabled", "valid", false)},
		{"unknown", p.unknown, "", api.Verdict{Reason: "unknown"}},
		{"its child", p.live.Key, `,"connected_account_id":"org_child"`, withAccount(known(p.live, "org_live", "valid", true), "org_child")},
		{"its child, switched off", p.live.Key, `,"connected_account_id":"org_child_off"`, known(p.live, "org_live", "connected_account_forbidden", true)},
		{"another's child", p.live.Key, `,"connected_account_id":"org_stranger"`, known(p.live, "org_live", "connected_account_forbidden", true)},
		{"itself", p.live.Key, `,"connected_account_id":"org_live"`, known(p.live, "org_live", "connected_account_forbidden", true)},
		{"nobody", p.live.Key, `,"connected_account_id":"org_nobody"`, known(p.live, "org_live", "connected_account_forbidden", true)},
		{"no id at all", p.live.Key, `,"connected_account_id":"../\u0000"`, known(p.live, "org_live", "connected_account_forbidden", true)},
		{"empty", "", "", api.Verdict{Reason: "malformed"}},
		{"short", "x", "", api.Verdict{Reason: "malformed"}},
		{"the word alone", "sk_live_", "", api.Verdict{Reason: "malformed"}},
		{"cut", p.hide(p.live.Key[:45]), "", api.Verdict{Reason: "malformed"}},
		{"longer", p.live.Key + "0", "", api.Verdict{Reason: "malformed"}},
		{"padded", " " + p.live.Key, "", api.Verdict{Reason: "malformed"}},
		{"upper case", strings.ToUpper(p.live.Key), "", api.Verdict{Reason: "malformed"}},
		{"escaped", strings.Replace(p.live.Key, "_", `\u005f`, 1), "", known(p.live, "org_live", "valid", true)},
		{"Unicode", "🔑é", "", api.Verdict{Reason: "malformed"}},
		{"long", strings.Repeat("x", 10_000), "", api.Verdict{Reason: "malformed"}},
		{"control", `\u0000\n`, "", api.Verdict{Reason: "malformed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, p.verify(tt.secret, tt.members)); diff != "" {
				t.Error(diff)
			}
		})
	}

	url := p.verification + "/v1/verify"
	for _, tt := range []struct{ name, body, param string }{
		{"nothing", `{}`, "key"}, {"null", `{"key":null}`, "key"}, {"number", `{"key":1}`, "key"}, {"array", `{"key":[]}`, "key"},
		{"lone surrogate", `{"key":"\ud800"}`, "key"}, {"invalid UTF-8", "{\"key\":\"\xff\"}", "key"},
		{"duplicate", `{"key":"a","key":"b"}`, "key"}, {"case", `{"Key":"a"}`, "Key"}, {"unknown", `{"key":"a","organization_id":"x"}`, "organization_id"},
		{"env", `{"key":"a","env":"prod"}`, "env"}, {"env empty", `{"key":"a","env":""}`, "env"}, {"env bool", `{"key":"a","env":true}`, "env"},
		{"account empty", `{"key":"a","connected_account_id":""}`, "connected_account_id"}, {"account number", `{"key":"a","connected_account_id":1}`, "connected_account_id"},
		{"a secret as a name", `{"` + p.live.Key + `":1}`, ""}, {"two objects", `{"key":"a"}{"key":"b"}`, ""}, {"array around", `[{"key":"a"}]`, ""},
		{"deep", `{"key":` + strings.Repeat("[", 8000), "key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.do(ask{method: "POST", url: url, body: tt.body}).refused(t, 400, api.InvalidRequest, tt.param)
		})
	}
	p.do(ask{method: "POST", url: url, body: `{"key":"a"}`, header: http.Header{"Content-Type": {"text/plain"}}}).refused(t, 415, api.UnsupportedMediaType, "Content-Type")
	p.do(ask{method: "POST", url: url, body: `{"key":"` + strings.Repeat("x", 1<<20) + `"}`}).refused(t, 413, api.BodyTooLarge, "")
	p.do(ask{method: "POST", url: url + "?key=" + p.live.Key, body: `{"key":"a"}`}).refused(t, 400, api.InvalidRequest, "")
	p.do(ask{method: "POST", url: url + "?env=live", body: `{"key":"a"}`}).refused(t, 400, api.InvalidRequest, "env")
	p.do(ask{method: "GET", url: url}).refused(t, 405, api.MethodNotAllowed, "")
}

// V3: the header narrows POST /v1/verify and POST /v1/introspect as it narrows /v1/authorize. What differs from the
// body, or names no account, is never accepted.
func TestV3HeaderNarrows(t *testing.T) {
	p := newPeople(t)
	for _, tt := range []struct {
		name    string
		header  []string
		account string // in the body; empty = not sent
		reason  string // empty = 400
		acting  string
	}{
		{"its child", []string{"org_child"}, "", "valid", "org_child"},
		{"its child in both", []string{"org_child"}, "org_child", "valid", "org_child"},
		{"another's child", []string{"org_stranger"}, "", "connected_account_forbidden", ""},
		{"itself", []string{"org_live"}, "", "connected_account_forbidden", ""},
		{"empty", []string{""}, "", "connected_account_forbidden", ""},
		{"twice", []string{"org_child", "org_child"}, "", "connected_account_forbidden", ""},
		{"no account", []string{"-"}, "-", "connected_account_forbidden", ""},
		{"another than the body's", []string{"org_stranger"}, "org_child", "", ""},
		{"another body's", []string{"org_child"}, "org_stranger", "", ""},
		{"empty and the body's", []string{""}, "org_child", "", ""},
		{"twice and the body's", []string{"org_child", "org_child"}, "org_child", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body, form := `{"key":"`+p.live.Key+`"}`, url.Values{"token": {p.live.Key}}
			if tt.account != "" {
				body = `{"key":"` + p.live.Key + `","connected_account_id":"` + tt.account + `"}`
				form.Set("connected_account_id", tt.account)
			}
			got := p.do(ask{method: "POST", url: p.verification + "/v1/verify", body: body, header: http.Header{"X-Connected-Account-Id": tt.header}})
			if tt.reason == "" {
				got.refused(t, 400, api.InvalidRequest, "connected_account_id")
			} else if v := decode[api.Verdict](t, got.body); got.status != 200 || v.Reason != tt.reason || v.ConnectedAccountID != tt.acting {
				t.Errorf("verify: %d %s", got.status, got.body)
			}
			got = p.do(ask{method: "POST", url: p.verification + "/v1/introspect", body: form.Encode(), header: http.Header{
				"Content-Type": {"application/x-www-form-urlencoded"}, "X-Connected-Account-Id": tt.header}})
			if tt.reason != "valid" {
				if got.status != 200 || got.body != `{"active":false}` {
					t.Errorf("introspect: %d %s", got.status, got.body)
				}
			} else if !strings.Contains(got.body, `"connected_account_id":"`+tt.acting+`"`) {
				t.Errorf("introspect: %d %s", got.status, got.body)
			}
		})
	}
	got := p.do(ask{method: "POST", url: p.verification + "/v1/introspect", body: "connected_account_id=&token=" + p.live.Key, header: http.Header{
		"Content-Type": {"application/x-www-form-urlencoded"}, "X-Connected-Account-Id": {"org_child"}}})
	if got.status != 200 || got.body != `{"active":false}` {
		t.Errorf("an empty one in the form: %d %s", got.status, got.body)
	}
}

// V5: a switched-off organization is refused at once and back when it is back on.
func TestV5SwitchedOff(t *testing.T) {
	f := newFixture(t)
	f.live("org_a")
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	for _, on := range []bool{false, true, false, true} {
		f.put("org_a", fmt.Sprintf(`{"payments_enabled":true,"is_active":%t}`, on))
		if v := f.verify(k.Key, ""); v.Valid != on {
			t.Errorf("is_active %t: %+v", on, v)
		}
	}
}

// V6, C20: only an accepted verification is a use.
func TestV6LastUsed(t *testing.T) {
	p := newPeople(t)
	p.verify(p.live.Key, `,"env":"test"`)
	p.verify(p.live.Key, `,"connected_account_id":"org_nobody"`)
	p.verify(p.test.Key, "")
	of := func(user, organization string) *string {
		got := p.do(ask{method: "GET", url: p.keysURL(), user: p.token(user, organization)})
		return decode[api.KeyList](t, got.body).Keys[0].LastUsedAt
	}
	eventually(t, "used", func() bool { return of("u3", "org_test") != nil })
	if at := of("u2", "org_live"); at != nil {
		t.Errorf("a refused verification counted as a use at %s", *at)
	}
}

// V2, V3: forward-auth.
func TestV2Authorize(t *testing.T) {
	p := newPeople(t)
	basic := func(user string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
	}
	h := func(pairs ...string) http.Header {
		header := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			header[http.CanonicalHeaderKey(pairs[i])] = append(header[http.CanonicalHeaderKey(pairs[i])], pairs[i+1])
		}
		return header
	}
	live := p.live.Key
	for _, tt := range []struct {
		name   string
		query  string
		header http.Header
		status int
		env    string // of the key accepted
		acting string
	}{
		{"Bearer", "", h("Authorization", "Bearer "+live), 200, "live", ""},
		{"bearer", "", h("Authorization", "bearer "+live), 200, "live", ""},
		{"Basic", "", h("Authorization", basic(live+":")), 200, "live", ""},
		{"X-API-Key", "", h("X-API-Key", live), 200, "live", ""},
		{"all three alike", "", h("Authorization", "Bearer "+live, "X-API-Key", live), 200, "live", ""},
		{"Basic and X-API-Key alike", "", h("Authorization", basic(live+":"), "X-API-Key", live), 200, "live", ""},
		{"X-API-Key twice alike", "", h("X-API-Key", live, "X-API-Key", live), 200, "live", ""},
		{"payments disabled", "", h("X-API-Key", p.disabled.Key), 200, "live", ""},
		{"right environment", "?env=test", h("X-API-Key", p.test.Key), 200, "test", ""},
		{"the client's own query", "?page=2&x=%20", h("X-API-Key", live), 200, "live", ""},
		{"its child", "", h("X-API-Key", live, "X-Connected-Account-ID", "org_child"), 200, "live", "org_child"},
		{"identity headers of the client", "", h("X-API-Key", live, "X-Keyward-Organization-Id", "org_evil", "X-Keyward-Connected-Account-Id", "org_evil"), 200, "live", ""},

		{"nothing", "", nil, 401, "", ""},
		{"identity headers alone", "", h("X-Keyward-Organization-Id", "org_live", "X-Keyward-Key-Id", p.live.APIKeyID), 401, "", ""},
		{"Bearer empty", "", h("Authorization", "Bearer "), 401, "", ""},
		{"Bearer and more", "", h("Authorization", "Bearer "+live+" x"), 401, "", ""},
		{"no scheme", "", h("Authorization", live), 401, "", ""},
		{"another scheme", "", h("Authorization", "Digest "+live), 401, "", ""},
		{"another scheme and a good key", "", h("Authorization", "Digest x", "X-API-Key", live), 401, "", ""},
		{"empty Authorization and a good key", "", h("Authorization", "", "X-API-Key", live), 401, "", ""},
		{"two Authorization", "", h("Authorization", "Bearer "+live, "Authorization", "Bearer "+live), 401, "", ""},
		{"Bearer and Basic in two headers", "", h("Authorization", "Bearer "+live, "Authorization", basic(live+":")), 401, "", ""},
		{"two in one", "", h("Authorization", "Bearer "+live+", Bearer "+live), 401, "", ""},
		{"two that differ", "", h("Authorization", "Bearer "+live, "X-API-Key", p.test.Key), 401, "", ""},
		{"good and empty", "", h("Authorization", "Bearer "+live, "X-API-Key", ""), 401, "", ""},
		{"X-API-Key that differ", "", h("X-API-Key", live, "X-API-Key", p.test.Key), 401, "", ""},
		{"X-API-Key empty", "", h("X-API-Key", ""), 401, "", ""},
		{"X-API-Key empty, then good", "", h("X-API-Key", "", "X-API-Key", live), 401, "", ""},
		{"X-API-Key list", "", h("X-API-Key", live+","+live), 401, "", ""},
		{"Basic with a password", "", h("Authorization", basic(live+":x")), 401, "", ""},
		{"Basic as the password", "", h("Authorization", basic(":"+live)), 401, "", ""},
		{"Basic without a colon", "", h("Authorization", basic(live)), 401, "", ""},
		{"Basic with two colons", "", h("Authorization", basic(live+"::")), 401, "", ""},
		{"Basic not base64", "", h("Authorization", "Basic "+live+":"), 401, "", ""},
		{"Basic empty", "", h("Authorization", "Basic "), 401, "", ""},
		{"Basic unpadded", "", h("Authorization", strings.TrimRight(basic(live+":"), "=")), map[bool]int{true: 401, false: 200}[strings.HasSuffix(basic(live+":"), "=")], "live", ""},
		{"malformed", "", h("X-API-Key", "x"), 401, "", ""},
		{"unknown", "", h("X-API-Key", p.unknown), 401, "", ""},
		{"revoked", "", h("X-API-Key", p.revoked.Key), 401, "", ""},
		{"expired", "", h("X-API-Key", p.expired.Key), 401, "", ""},
		{"switched off", "", h("X-API-Key", p.off.Key), 401, "", ""},
		{"wrong environment", "?env=test", h("X-API-Key", live), 401, "", ""},
		{"revoked, for a child", "", h("X-API-Key", p.revoked.Key, "X-Connected-Account-ID", "org_child"), 401, "", ""},
		{"a user's token", "", h("Authorization", "Bearer "+p.token("u2", "org_live")), 401, "", ""},

		{"another's child", "", h("X-API-Key", live, "X-Connected-Account-ID", "org_stranger"), 403, "", ""},
		{"itself", "", h("X-API-Key", live, "X-Connected-Account-ID", "org_live"), 403, "", ""},
		{"nobody", "", h("X-API-Key", live, "X-Connected-Account-ID", "x y"), 403, "", ""},
		{"account empty", "", h("X-API-Key", live, "X-Connected-Account-ID", ""), 403, "", ""},
		{"account twice", "", h("X-API-Key", live, "X-Connected-Account-ID", "org_child", "X-Connected-Account-ID", "org_child"), 403, "", ""},

		{"secret in the query", "?api_key=" + live, h("X-API-Key", live), 400, "", ""},
		{"secret as the query", "?" + live, h("X-API-Key", live), 400, "", ""},
		{"secret in the query, encoded", "?k=" + strings.Replace(live, "_", "%5f", 2), h("X-API-Key", live), 400, "", ""},
		{"secret in the query, encoded nine times", "?k=" + strings.Replace(live, "_", "%"+strings.Repeat("25", 8)+"5f", 2), h("X-API-Key", live), 400, "", ""},
		{"a rule in the wrong letter case", "?ENV=live", h("X-API-Key", live), 400, "", ""},
		{"secret in the query, encoded twice", "?k=" + strings.Replace(live, "_", "%255f", 2), h("X-API-Key", live), 400, "", ""},
		{"secret in the original URI", "", h("X-API-Key", live, "X-Original-URI", "/v1/payments?key="+live), 400, "", ""},
		{"secret in the original URL", "", h("X-API-Key", live, "X-Original-URL", "https://pay.example/v1/"+live), 400, "", ""},
		{"secret in the forwarded URI", "", h("X-API-Key", live, "X-Forwarded-Uri", "/v1/payments/"+live), 400, "", ""},
		{"env unknown", "?env=prod", h("X-API-Key", live), 400, "", ""},
		{"env twice", "?env=live&env=test", h("X-API-Key", live), 400, "", ""},
		{"env empty", "?env=", h("X-API-Key", live), 400, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} {
				header := tt.header.Clone()
				if header == nil {
					header = http.Header{}
				}
				header["X-Request-Id"] = []string{"same"}
				got := p.do(ask{method: method, url: p.verification + "/v1/authorize" + tt.query, header: header})
				if got.status != tt.status {
					t.Fatalf("%s: %d, want %d: %s", method, got.status, tt.status, got.body)
				}
				switch tt.status {
				case 200:
					k := map[string]api.IssuedKey{"live": p.live, "test": p.test}[tt.env]
					organization, payments := "org_"+tt.env, fmt.Sprint(tt.env == "live")
					if tt.name == "payments disabled" {
						k, organization, payments = p.disabled, "org_disabled", "false"
					}
					want := http.Header{
						"X-Keyward-Organization-Id":      {organization},
						"X-Keyward-Environment":          {tt.env},
						"X-Keyward-Key-Id":               {k.APIKeyID},
						"X-Keyward-Connected-Account-Id": {tt.acting},
						"X-Keyward-Payments-Enabled":     {payments},
					}
					sent := http.Header{}
					for _, name := range names(got.header, "X-Keyward-") {
						sent[name] = got.header[name]
					}
					if diff := cmp.Diff(want, sent); diff != "" || got.body != "" {
						t.Errorf("%s: %s %s", method, diff, got.body)
					}
				case 401:
					const want = `{"type":"urn:keyward:problem:invalid_token","title":"Invalid token","status":401,"detail":"A valid API key is required: Authorization: Bearer \u003ckey\u003e, the key as the Basic user name, or X-API-Key.","code":"invalid_token","request_id":"same"}`
					if method != "HEAD" && got.body != want || got.header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
						t.Errorf("%s: the 401 is not the one answer: %s", method, got.body)
					}
				}
				if tt.status != 200 && len(names(got.header, "X-Keyward-")) > 0 {
					t.Errorf("%s: identity headers on %d", method, got.status)
				}
				if got.header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: Cache-Control %q", method, got.header.Get("Cache-Control"))
				}
			}
		})
	}
}

// V2: nginx's auth_request takes 200, 401 and 403 alone, and learns the status that was meant.
func TestV2AuthorizeForNginx(t *testing.T) {
	p := newPeople(t, func(s *setup) {
		s.verifier = func(v Verifier) Verifier { return refuser{v} }
	})
	secret := func(v string) http.Header { return http.Header{"X-Api-Key": {v}} }
	with := func(h http.Header, name string, values ...string) http.Header {
		h[name] = values
		return h
	}
	for _, tt := range []struct {
		name   string
		query  string
		header http.Header
		status int
		meant  string
		code   api.Code
	}{
		{"valid", "", secret(p.live.Key), 200, "200", ""},
		{"valid, right environment", "&env=live", secret(p.live.Key), 200, "200", ""},
		{"valid, with a status of the client's own", "", with(secret(p.live.Key), "X-Keyward-Status", "503"), 200, "200", ""},
		{"nothing", "", http.Header{}, 401, "401", api.InvalidToken},
		{"revoked, with a status of the client's own", "", with(secret(p.revoked.Key), "X-Keyward-Status", "200"), 401, "401", api.InvalidToken},
		{"another's child", "", with(secret(p.live.Key), "X-Connected-Account-Id", "org_stranger"), 403, "403", api.ConnectedAccount},
		{"undecided", "&min_revision=9000", secret(p.live.Key), 403, "503", api.Unavailable},
		{"panic", "&min_revision=9001", secret(p.live.Key), 403, "500", api.Internal},
		{"secret in the URL", "", with(secret(p.live.Key), "X-Original-Uri", "/?key="+p.live.Key), 403, "400", api.InvalidRequest},
		{"env unknown", "&env=prod", secret(p.live.Key), 403, "400", api.InvalidRequest},
		{"mode twice", "&mode=nginx", secret(p.live.Key), 403, "400", api.InvalidRequest},
		{"query malformed", "&%zz", secret(p.live.Key), 403, "400", api.InvalidRequest},
		{"headers too large", "", with(secret(p.live.Key), "X-Much", strings.Repeat("x", door.MaxHeader)), 403, "431", api.HeadersTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := p.do(ask{method: "GET", url: p.verification + "/v1/authorize?mode=nginx" + tt.query, header: tt.header})
			if got.status != tt.status || got.header.Get("X-Keyward-Status") != tt.meant || got.problem.Code != tt.code {
				t.Fatalf("%d, meant %q, code %q", got.status, got.header.Get("X-Keyward-Status"), got.problem.Code)
			}
			if retry := got.header.Get("Retry-After"); (retry == "1") != (tt.meant == "503") {
				t.Errorf("Retry-After %q", retry)
			}
			if n := len(names(got.header, "X-Keyward-")); n != map[bool]int{true: 6, false: 1}[tt.status == 200] {
				t.Errorf("%d X-Keyward headers", n)
			}
		})
	}
	for _, query := range []string{"?mode=", "?mode=envoy", "?mode=NGINX", "?mode=plain&mode=nginx"} {
		got := p.do(ask{method: "GET", url: p.verification + "/v1/authorize" + query, header: secret(p.live.Key)})
		got.refused(t, 400, api.InvalidRequest, "mode")
		if len(names(got.header, "X-Keyward-")) > 0 {
			t.Errorf("%s: %v", query, got.header)
		}
	}
}

// V4: Envoy's HTTP mode puts the client's own path and query after the configured one. They change nothing of what is demanded.
func TestV4AuthorizeForEnvoyOverHTTP(t *testing.T) {
	p := newPeople(t, func(s *setup) { s.verifier = func(v Verifier) Verifier { return refuser{v} } })
	for _, asked := range []string{
		"/", "/v1/payments", "/v1/payments/", "//", "/%2F%2e%2e%2F", "/../organizations/org_live", "/:test/x", "/authorize:test/x", "/a%20b;c=d", "/%5c", "/é",
		"/x?env=test", "/x?env=live&env=test", "/x?env=prod", "/x?mode=nginx", "/x?mode=plain", "/x?min_revision=9000", "/x?min_revision=9001", "/x?%zz", "/x??", "/?env=live",
	} {
		for _, tt := range []struct {
			prefix, secret string
			status         int
		}{
			{"", p.live.Key, 200}, {"", p.test.Key, 200}, {"", p.revoked.Key, 401},
			{":live", p.live.Key, 200}, {":live", p.test.Key, 401},
			{":test", p.live.Key, 401}, {":test", p.test.Key, 200}, {":test", p.revoked.Key, 401},
		} {
			for _, method := range []string{"GET", "POST", "OPTIONS", "DELETE"} {
				got := p.do(ask{method: method, url: p.verification + "/v1/authorize" + tt.prefix + asked, header: http.Header{"X-Api-Key": {tt.secret}}})
				if got.status != tt.status || got.header.Get("X-Keyward-Status") != "" {
					t.Errorf("%s %s%s: %d, want %d: %s", method, tt.prefix, asked, got.status, tt.status, got.body)
				}
			}
		}
	}
	for _, asked := range []string{"/" + p.live.Key, "/x?key=" + p.live.Key, "/x/" + percent(p.live.Key), "/x?" + percent(percent(p.live.Key))} {
		p.do(ask{method: "GET", url: p.verification + "/v1/authorize:live" + asked, header: http.Header{"X-Api-Key": {p.live.Key}}}).refused(t, 400, api.InvalidRequest, "")
	}
}

// V7: the log names what a proxy says of the request it asks for when that is of the right form, never the query, never a secret; and the
// verdict is the same whatever it says.
func TestV7AuthorizeLogsTheOriginal(t *testing.T) {
	p := newPeople(t)
	hidden := p.secret(keys.Live)
	for name, tt := range map[string]struct {
		header http.Header
		want   map[string]any
	}{
		"nothing": {http.Header{}, map[string]any{}},
		"nginx": {http.Header{"X-Original-Method": {"POST"}, "X-Original-Uri": {"/v1/payments/pay_1?limit=3"}, "X-Forwarded-Host": {"api.example:443"}, "X-Forwarded-For": {"192.0.2.7"}},
			map[string]any{"original_method": "POST", "original_path": "/v1/payments/pay_1", "original_host": "api.example:443", "client": "192.0.2.7"}},
		"Caddy and Traefik": {http.Header{"X-Forwarded-Method": {"DELETE"}, "X-Forwarded-Uri": {"/a%20b"}, "X-Forwarded-Host": {"[2001:db8::1]"}, "X-Forwarded-For": {"evil, 2001:db8::2"}},
			map[string]any{"original_method": "DELETE", "original_path": "/a%20b", "original_host": "[2001:db8::1]", "client": "2001:db8::2"}},
		"of another form": {http.Header{"X-Original-Method": {"BREW it"}, "X-Original-Uri": {"/a\"b"}, "X-Forwarded-Host": {"a b"}, "X-Forwarded-For": {"192.0.2.7, x"}},
			map[string]any{"original_method": "other"}},
		"twice":       {http.Header{"X-Original-Method": {"GET", "GET"}, "X-Original-Uri": {"/", "/"}, "X-Forwarded-Host": {"a", "a"}, "X-Forwarded-For": {"::1", "::1"}}, map[string]any{}},
		"long":        {http.Header{"X-Original-Uri": {"/" + strings.Repeat("a", 300)}, "X-Forwarded-Host": {strings.Repeat("a", 300)}}, map[string]any{}},
		"not a path":  {http.Header{"X-Original-Uri": {"http://a/b"}, "X-Forwarded-For": {"::1%" + strings.Repeat("z", 20)}}, map[string]any{"client": "::1"}},
		"with secret": {http.Header{"X-Forwarded-Host": {hidden}, "X-Original-Method": {hidden}, "X-Forwarded-For": {"::1%" + hidden}}, map[string]any{}},
	} {
		id := "original-" + strings.ReplaceAll(name, " ", "-")
		header := tt.header.Clone()
		header["X-Api-Key"], header["X-Request-Id"] = []string{p.live.Key}, []string{id}
		if got := p.do(ask{method: "GET", url: p.verification + "/v1/authorize", header: header}); got.status != 200 {
			t.Errorf("%s: %d", name, got.status)
		}
		line := map[string]any{}
		eventually(t, "the line of "+name, func() bool {
			for text := range strings.Lines(p.log.String()) {
				if strings.Contains(text, `"request_id":"`+id+`"`) {
					return json.Unmarshal([]byte(text), &line) == nil
				}
			}
			return false
		})
		for _, known := range []string{"time", "level", "msg", "listener", "method", "route", "status", "duration_ms", "request_id", "remote"} {
			delete(line, known)
		}
		if diff := cmp.Diff(tt.want, line); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// refuser cannot decide, or panics, for two revisions that are not there yet.
type refuser struct{ Verifier }

func (v refuser) Verify(ctx context.Context, r verify.Request) (verify.Verdict, error) {
	switch r.MinRevision {
	case 9000:
		return verify.Verdict{}, errors.New("undecided")
	case 9001:
		panic("on purpose")
	}
	return v.Verifier.Verify(ctx, r)
}

// V4: introspection (RFC 7662).
func TestV4Introspect(t *testing.T) {
	p := newPeople(t)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	introspect := func(values url.Values) reply {
		return p.do(ask{method: "POST", url: p.verification + "/v1/introspect", body: values.Encode(), header: form})
	}
	got := introspect(url.Values{"token": {p.live.Key}, "token_type_hint": {"refresh_token"}, "unknown": {"ignored", "twice"}})
	created, _ := time.Parse(time.RFC3339, p.live.CreatedAt)
	expires, _ := time.Parse(time.RFC3339, *p.live.ExpiresAt)
	want := map[string]any{
		"active": true, "sub": "org_live", "client_id": p.live.APIKeyID, "token_type": "Bearer", "env": "live",
		"iat": float64(created.Unix()), "exp": float64(expires.Unix()), "payments_enabled": true,
	}
	var said map[string]any
	if err := json.Unmarshal([]byte(got.body), &said); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
	if got := introspect(url.Values{"token": {p.live.Key}, "connected_account_id": {"org_child"}}); !strings.Contains(got.body, `"connected_account_id":"org_child"`) {
		t.Errorf("for a child: %s", got.body)
	}
	if got := introspect(url.Values{"token": {p.test.Key}}); strings.Contains(got.body, "exp") || !strings.Contains(got.body, `"active":true`) {
		t.Errorf("a key that does not expire: %s", got.body)
	}
	for name, values := range map[string]url.Values{
		"malformed": {"token": {"x"}}, "unknown": {"token": {p.unknown}}, "revoked": {"token": {p.revoked.Key}}, "expired": {"token": {p.expired.Key}},
		"switched off": {"token": {p.off.Key}}, "another's child": {"token": {p.live.Key}, "connected_account_id": {"org_stranger"}},
		"account empty": {"token": {p.live.Key}, "connected_account_id": {""}}, "a user's token": {"token": {p.token("u2", "org_live")}},
		"the other environment": {"token": {p.live.Key}, "env": {"test"}},
		"NUL":                   {"token": {"\x00"}}, "long": {"token": {strings.Repeat("x", 10_000)}},
	} {
		if got := introspect(values); got.status != 200 || got.body != `{"active":false}` || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := introspect(url.Values{"token": {p.live.Key}, "env": {"live"}}); !strings.Contains(got.body, `"active":true`) {
		t.Errorf("its environment: %s", got.body)
	}
	introspect(url.Values{"token": {"x"}, "env": {"prod"}}).refused(t, 400, api.InvalidRequest, "env")
	introspect(url.Values{"token": {"x"}, "env": {""}}).refused(t, 400, api.InvalidRequest, "env")
	introspect(url.Values{"token": {"x"}, "env": {"live", "live"}}).refused(t, 400, api.InvalidRequest, "env")
	introspect(url.Values{}).refused(t, 400, api.InvalidRequest, "token")
	introspect(url.Values{"x": {"1"}}).refused(t, 400, api.InvalidRequest, "token")
	introspect(url.Values{"token": {""}}).refused(t, 400, api.InvalidRequest, "token")
	introspect(url.Values{"token": {p.live.Key, p.live.Key}}).refused(t, 400, api.InvalidRequest, "token")
	introspect(url.Values{"token": {"x"}, "connected_account_id": {"a", "b"}}).refused(t, 400, api.InvalidRequest, "connected_account_id")
	introspect(url.Values{"token": {strings.Repeat("x", maxBody)}}).refused(t, 413, api.BodyTooLarge, "")
	p.do(ask{method: "POST", url: p.verification + "/v1/introspect", body: `{"token":"x"}`}).refused(t, 415, api.UnsupportedMediaType, "Content-Type")
	p.do(ask{method: "POST", url: p.verification + "/v1/introspect", body: "token=%zz", header: form}).refused(t, 400, api.InvalidRequest, "")
	p.do(ask{method: "POST", url: p.verification + "/v1/introspect?token=" + p.live.Key, body: "token=x", header: form}).refused(t, 400, api.InvalidRequest, "")
	p.do(ask{method: "GET", url: p.verification + "/v1/introspect"}).refused(t, 405, api.MethodNotAllowed, "")
}

// V1, V2, V4: what cannot be decided is 503 at every door, and never valid.
func TestV1Undecided(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.verifier = func(v Verifier) Verifier { return undecided{v} } })
	secret := f.secret(keys.Live)
	for _, r := range []ask{
		{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + secret + `"}`},
		{method: "GET", url: f.verification + "/v1/authorize", header: http.Header{"X-Api-Key": {secret}}},
		{method: "POST", url: f.verification + "/v1/introspect", body: "token=" + secret, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}},
		{method: "GET", url: f.verification + "/readyz"},  // R5
		{method: "GET", url: f.verification + "/healthz"}, // R5
	} {
		got := f.do(r)
		got.refused(t, 503, api.Unavailable, "")
		if got.header.Get("Retry-After") != "1" || len(names(got.header, "X-Keyward-")) > 0 {
			t.Errorf("%s: %v", r.url, got.header)
		}
	}
	if got := f.do(ask{method: "GET", url: f.verification + "/livez"}); got.status != 200 || got.body != "ok\n" {
		t.Errorf("livez: %d", got.status)
	}
	scrape := f.do(ask{method: "GET", url: f.admin + "/metrics"}).body
	for _, door := range []string{"verify", "authorize", "introspect"} {
		if !strings.Contains(scrape, `keyward_verifications_total{door="`+door+`",path="closed",reason="undecided"} 1`) {
			t.Errorf("door %s is not counted", door)
		}
	}
	if !strings.Contains(scrape, "keyward_ready 0") {
		t.Error("not ready is not shown")
	}
	got := decode[api.Status](t, f.do(ask{method: "GET", url: f.admin + "/v1/status"}).body)
	if got.Checks[0].Status != "fail" {
		t.Errorf("status: %+v", got.Checks[0])
	}
}

type undecided struct{ Verifier }

func (undecided) Verify(context.Context, verify.Request) (verify.Verdict, error) {
	return verify.Verdict{Reason: keys.Valid}, verify.ErrUndecided
}
func (undecided) Ready() error { return verify.ErrUndecided }

// O1: organizations over HTTP.
func TestO1Organizations(t *testing.T) {
	f := newFixture(t)
	put := func(id, body string) reply {
		return f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/" + id, body: body})
	}
	f.put("org_p", `{"name":"Parent","payments_enabled":true}`)
	f.put("org_c", `{"parent_organization_id":"org_p"}`)
	for _, tt := range []struct {
		name, id, body, param string
	}{
		{"itself as parent", "org_x", `{"parent_organization_id":"org_x"}`, "parent_organization_id"},
		{"no such parent", "org_x", `{"parent_organization_id":"org_none"}`, "parent_organization_id"},
		{"a child as parent", "org_x", `{"parent_organization_id":"org_c"}`, "parent_organization_id"},
		{"a parent becomes a child", "org_p", `{"parent_organization_id":"org_x"}`, "parent_organization_id"},
		{"parent empty", "org_x", `{"parent_organization_id":""}`, "parent_organization_id"},
		{"parent number", "org_x", `{"parent_organization_id":1}`, "parent_organization_id"},
		{"name of 256", "org_x", `{"name":"` + strings.Repeat("x", 256) + `"}`, "name"},
		{"name with NUL", "org_x", `{"name":"\u0000"}`, "name"},
		{"payments as text", "org_x", `{"payments_enabled":"true"}`, "payments_enabled"},
		{"payments as number", "org_x", `{"payments_enabled":1}`, "payments_enabled"},
		{"env", "org_x", `{"current_env":"prod"}`, "current_env"},
		{"active null word", "org_x", `{"is_active":nul}`, "is_active"},
		{"unknown", "org_x", `{"active":true}`, "active"},
		{"id in the body", "org_x", `{"organization_id":"org_x"}`, "organization_id"},
		{"malformed", "org_x", `{`, ""},
		{"id with a space", "org%20x", `{}`, "id"},
		{"id with a dot first", ".org", `{}`, "id"},
		{"id of 129", strings.Repeat("x", 129), `{}`, "id"},
		{"id in Unicode", "%C3%B6rg", `{}`, "id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "a parent becomes a child" {
				f.put("org_x", `{}`)
			}
			put(tt.id, tt.body).refused(t, 400, api.InvalidRequest, tt.param)
		})
	}

	got := put("org_p", `{"name":" Parent ","payments_enabled":true,"current_env":"test","is_active":true,"parent_organization_id":null}`)
	o := decode[api.Organization](t, got.body)
	want := api.Organization{OrganizationID: "org_p", Name: "Parent", PaymentsEnabled: true, CurrentEnv: "test", IsActive: true, CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt}
	if diff := cmp.Diff(want, o); diff != "" {
		t.Error(diff)
	}
	if again := put("org_p", `{"name":"Parent","payments_enabled":true,"current_env":"test"}`); decode[api.Organization](t, again.body).CreatedAt != o.CreatedAt {
		t.Error("created_at moved")
	}
	child := decode[api.Organization](t, f.do(ask{method: "GET", url: f.admin + "/v1/organizations/org_c"}).body)
	if child.ParentOrganizationID == nil || *child.ParentOrganizationID != "org_p" || child.CurrentEnv != "test" || !child.IsActive {
		t.Errorf("child: %+v", child)
	}
	f.put("org:d.e-f_1", `{}`)
	if got := f.do(ask{method: "GET", url: f.admin + "/v1/organizations/org%3Ad.e-f_1"}); got.status != 200 {
		t.Errorf("an id with a colon, encoded: %d", got.status)
	}
	for _, id := range []string{"org_none", "..", "%00", "org%20x"} {
		f.do(ask{method: "GET", url: f.admin + "/v1/organizations/" + id}).refused(t, 404, api.OrganizationNotFound, "")
	}

	var ids []string
	for cursor := ""; ; {
		page := decode[api.OrganizationList](t, f.do(ask{method: "GET", url: f.admin + "/v1/organizations?limit=2" + cursor}).body)
		for _, o := range page.Organizations {
			ids = append(ids, o.OrganizationID)
		}
		if page.HasMore != (page.NextCursor != nil) {
			t.Fatalf("page: %+v", page)
		}
		if !page.HasMore {
			break
		}
		cursor = "&cursor=" + url.QueryEscape(*page.NextCursor)
	}
	if diff := cmp.Diff([]string{"org:d.e-f_1", "org_c", "org_p", "org_x"}, ids); diff != "" {
		t.Error(diff)
	}
	for query, param := range map[string]string{"?limit=0": "limit", "?limit=101": "limit", "?limit=x": "limit", "?cursor=%00": "cursor", "?cursor=": "cursor", "?after=x": "after"} {
		f.do(ask{method: "GET", url: f.admin + "/v1/organizations" + query}).refused(t, 400, api.InvalidRequest, param)
	}
}

// P8, R4: the operations routes.
func TestOperations(t *testing.T) {
	p := newPeople(t)
	var entries []api.AuditEntry
	for after := int64(0); ; {
		page := decode[api.AuditList](t, p.do(ask{method: "GET", url: fmt.Sprintf("%s/v1/audit?limit=3&after=%d", p.admin, after)}).body)
		entries = append(entries, page.Entries...)
		after = page.NextSequence
		if !page.HasMore {
			break
		}
	}
	for i, e := range entries {
		if e.Sequence != int64(i+1) || len(e.Hash) != 64 || e.RequestID == "" || !strings.HasSuffix(e.At, "Z") {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	one := decode[api.AuditList](t, p.do(ask{method: "GET", url: p.admin + "/v1/audit?target_id=" + p.revoked.APIKeyID}).body)
	if len(one.Entries) != 2 || one.Entries[0].Action != "key.create" || one.Entries[1].Action != "key.revoke" || one.Entries[1].Actor != "u4" {
		t.Errorf("of one key: %+v", one.Entries)
	}
	org := decode[api.AuditList](t, p.do(ask{method: "GET", url: p.admin + "/v1/audit?organization_id=org_test&limit=1000"}).body)
	if len(org.Entries) != 1 || org.HasMore {
		t.Errorf("of one organization: %+v", org)
	}
	end := decode[api.AuditList](t, p.do(ask{method: "GET", url: p.admin + "/v1/audit?after=9223372036854775807"}).body)
	if len(end.Entries) != 0 || end.HasMore {
		t.Errorf("past the end: %+v", end)
	}
	for query, param := range map[string]string{"after=-1": "after", "after=x": "after", "limit=0": "limit", "limit=1001": "limit", "organization_id=": "organization_id", "target_id=%00": "target_id", "user=u": "user"} {
		p.do(ask{method: "GET", url: p.admin + "/v1/audit?" + query}).refused(t, 400, api.InvalidRequest, param)
	}

	checked := decode[api.AuditVerification](t, p.do(ask{method: "POST", url: p.admin + "/v1/audit/verify"}).body)
	if !checked.Intact || checked.Entries != int64(len(entries)) || checked.Hash != entries[len(entries)-1].Hash {
		t.Errorf("verified: %+v", checked)
	}
	if got := p.do(ask{method: "POST", url: p.admin + "/v1/master-key/rotate"}); got.status != 200 {
		t.Errorf("rotate: %d %s", got.status, got.body)
	}
	backup := p.do(ask{method: "POST", url: p.admin + "/v1/backup"})
	if backup.status != 200 || !strings.HasPrefix(backup.body, "SQLite format 3\x00") ||
		backup.header.Get("Content-Length") != strconv.Itoa(len(backup.body)) {
		t.Errorf("backup: %d, %d bytes, %v", backup.status, len(backup.body), backup.header)
	}
	status := decode[api.Status](t, p.do(ask{method: "GET", url: p.admin + "/v1/status"}).body)
	if status.Version != "test" || status.Database != "sqlite" || status.Keys < 6 || status.Revision == 0 || len(status.Checks) < 3 || status.Checks[0].Status != "ok" {
		t.Errorf("status: %+v", status)
	}
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		if got := p.do(ask{method: "GET", url: p.verification + path}); got.status != 200 || got.body != "ok\n" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// C25: operations whose database is away.
func TestOperationsAway(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.server.Operations = brokenOperations{} })
	for _, r := range []ask{
		{method: "GET", url: f.admin + "/v1/audit"},
		{method: "POST", url: f.admin + "/v1/audit/verify"},
		{method: "POST", url: f.admin + "/v1/master-key/rotate"},
		{method: "POST", url: f.admin + "/v1/backup"},
		{method: "GET", url: f.admin + "/v1/nodes"},
	} {
		got := f.do(r)
		got.refused(t, 503, api.Unavailable, "")
		if strings.Contains(got.body, errBroken.Error()) {
			t.Errorf("the cause is told: %s", got.body)
		}
	}
	status := decode[api.Status](t, f.do(ask{method: "GET", url: f.admin + "/v1/status"}).body)
	if last := status.Checks[len(status.Checks)-1]; last.Name != "database" || last.Status != "fail" {
		t.Errorf("status: %+v", last)
	}
}
