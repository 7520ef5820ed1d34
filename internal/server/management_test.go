package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C1: who is not a signed-in user is not let in, and is told so in one way.
func TestC1UserTokens(t *testing.T) {
	f := newFixture(t)
	good := f.token("user", "org_a")
	known := f.create("other", "org_b", `{"key_name":"k"}`).Key
	unknown := f.secret(keys.Live)
	cut := good[:len(good)-4]
	f.hide(cut)
	for _, tt := range []struct {
		name          string
		authorization []string
		want          api.Code // empty = let in
	}{
		{"good", []string{"Bearer " + good}, ""},
		{"scheme in any case", []string{"bEARER " + good}, ""},
		{"two spaces", []string{"Bearer  " + good}, ""},
		{"none", nil, api.InvalidToken},
		{"empty", []string{""}, api.InvalidToken},
		{"scheme alone", []string{"Bearer"}, api.InvalidToken},
		{"scheme and a space", []string{"Bearer "}, api.InvalidToken},
		{"token alone", []string{good}, api.InvalidToken},
		{"Basic", []string{"Basic " + good}, api.InvalidToken},
		{"not a token", []string{"Bearer x"}, api.InvalidToken},
		{"signature cut", []string{"Bearer " + cut}, api.InvalidToken},
		{"two headers", []string{"Bearer " + good, "Bearer " + good}, api.InvalidToken},
		{"a token and a secret", []string{"Bearer " + good, "Bearer " + known}, api.InvalidToken},
		{"two tokens in one header", []string{"Bearer " + good + ", Bearer " + good}, api.InvalidToken},
		{"a valid secret", []string{"Bearer " + known}, api.UserTokenRequired},
		{"an unknown secret", []string{"Bearer " + unknown}, api.UserTokenRequired},
		{"the word of secrets", []string{"Bearer sk_"}, api.UserTokenRequired},
		{"a control character", []string{"Bearer a\tb"}, api.InvalidToken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []ask{
				{method: "GET", url: f.keysURL()},
				{method: "POST", url: f.keysURL(), body: `{`},
				{method: "POST", url: f.keysURL() + "/key_x/revoke"},
				{method: "POST", url: f.keysURL() + "/key_x/roll"},
			} {
				r.header = http.Header{"Authorization": tt.authorization}
				got := f.do(r)
				if tt.want == "" {
					if got.status == http.StatusUnauthorized {
						t.Errorf("%s: got 401", r.method)
					}
					continue
				}
				got.refused(t, http.StatusUnauthorized, tt.want, "")
				if h := got.header.Values("WWW-Authenticate"); len(h) != 1 || h[0] != `Bearer error="invalid_token"` {
					t.Errorf("WWW-Authenticate %q", h)
				}
			}
		})
	}
	if n := len(f.logged(map[string]any{"msg": "request", "code": "invalid_token", "reason": "no single bearer token"})); n == 0 {
		t.Error("the log does not say why a request without a token was refused")
	}
}

// C1: a key set that was never read is nobody's fault but ours.
func TestC1KeySetAway(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.server.Authenticator = noKeySet{} })
	got := f.do(ask{method: "GET", url: f.keysURL(), user: f.token("user", "org_a")})
	got.refused(t, http.StatusServiceUnavailable, api.Unavailable, "")
	if got.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
}

type noKeySet struct{}

func (noKeySet) Authenticate(context.Context, string) (keys.Principal, error) {
	return keys.Principal{}, identity.ErrUnavailable
}

// C2: the order of the checks, each request failing at everything after the one that answers.
func TestC2Order(t *testing.T) {
	f := newFixture(t)
	f.put("org_parent", `{}`)
	f.put("org_child", `{"parent_organization_id":"org_parent"}`)
	f.put("org_off", `{"is_active":false}`)
	plain := http.Header{"Content-Type": {"text/plain"}}

	f.do(ask{method: "POST", url: f.keysURL(), body: `{`, header: plain}).refused(t, 401, api.InvalidToken, "")
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_child"), body: `{`, header: plain}).refused(t, 403, api.ConnectedAccount, "")
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_off"), body: `{`, header: plain}).refused(t, 403, api.OrganizationInactive, "")
	f.do(ask{method: "POST", url: f.keysURL() + "?x=1", user: f.token("u", "org_off")}).refused(t, 403, api.OrganizationInactive, "")
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_a"), body: `{`, header: plain}).refused(t, 415, api.UnsupportedMediaType, "Content-Type")

	// create, create is 400; create, revoke, create within the minute is 429; a replay is neither.
	user := f.token("u", "org_a")
	idem := f.hide("idempotency-key-of-C2")
	first := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"` + idem + `"}`})
	k := f.issued(first)
	f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":""}`}).refused(t, 400, api.InvalidRequest, "key_name")
	again := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"` + idem + `"}`})
	if again.status != 201 || again.body != first.body {
		t.Errorf("the replay differs: %d", again.status)
	}
	refused := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`})
	refused.refused(t, 400, api.ActiveKeyExists, "") // C12
	if refused.problem.ActiveAPIKeyID != k.APIKeyID || refused.problem.ActiveEnv != "test" {
		t.Errorf("active key %q %q", refused.problem.ActiveAPIKeyID, refused.problem.ActiveEnv)
	}
	if got := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: user}); got.status != 200 {
		t.Fatalf("revoke: %d", got.status)
	}
	f.later(20*time.Second + 500*time.Millisecond)
	limited := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`})
	limited.refused(t, 429, api.RateLimited, "") // C14
	if s := limited.header.Get("Retry-After"); s != "40" && s != "39" {
		t.Errorf("Retry-After %q, want what is left of the minute, rounded up", s)
	}
	f.later(40 * time.Second)
	f.issued(f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`}))
}

// C3, C4: who may not manage keys, on every route and before any body is read.
func TestC3Forbidden(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.service.RequireRegistered = true; s.service.RequiredRoles = nil })
	f.put("org_a", `{}`)
	f.put("org_child", `{"parent_organization_id":"org_a"}`)
	f.put("org_off", `{"is_active":false}`)
	for _, tt := range []struct {
		name, organization string
		account            []string
		want               api.Code
		param              string
	}{
		{"a connected account's token", "org_child", nil, api.ConnectedAccount, ""},
		{"for a connected account", "org_a", []string{"org_child"}, api.ConnectedAccount, "X-Connected-Account-ID"},
		{"for itself", "org_a", []string{"org_a"}, api.ConnectedAccount, "X-Connected-Account-ID"},
		{"the header empty", "org_a", []string{""}, api.ConnectedAccount, "X-Connected-Account-ID"},
		{"switched off", "org_off", nil, api.OrganizationInactive, ""},
		{"never registered", "org_nobody", nil, api.OrganizationUnknown, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user := f.token("u", tt.organization)
			for _, r := range []ask{
				{method: "GET", url: f.keysURL()},
				{method: "POST", url: f.keysURL(), body: `{"key_name":"k"}`},
				{method: "POST", url: f.keysURL(), body: strings.Repeat("x", 1<<20)},
				{method: "POST", url: f.keysURL() + "/key_00000000000000000000000000/revoke"},
				{method: "POST", url: f.keysURL() + "/key_00000000000000000000000000/roll", body: `{}`},
			} {
				r.user, r.header = user, http.Header{}
				if tt.account != nil {
					r.header["X-Connected-Account-ID"] = tt.account
				}
				f.do(r).refused(t, 403, tt.want, tt.param)
			}
		})
	}
}

// R3: a token without one of the required roles is refused.
func TestR3Roles(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.service.RequiredRoles = []string{"key-admin"} })
	f.do(ask{method: "GET", url: f.keysURL(), user: f.token("u", "org_a")}).refused(t, 403, api.Forbidden, "")
}

// C5: when the organization's status cannot be read, nothing is guessed.
func TestC5StatusUnreadable(t *testing.T) {
	broken := &blindStore{}
	f := newFixture(t, func(s *setup) { s.store = func(inner keys.Store) keys.Store { broken.Store = inner; return broken } })
	user := f.token("u", "org_a")
	for _, r := range []ask{
		{method: "GET", url: f.keysURL()},
		{method: "POST", url: f.keysURL(), body: `{"key_name":"k","env":"live"}`},
	} {
		r.user = user
		got := f.do(r)
		got.refused(t, 503, api.Unavailable, "")
		if got.header.Get("Retry-After") == "" || strings.Contains(got.body, errBroken.Error()) {
			t.Errorf("Retry-After %q, body %s", got.header.Get("Retry-After"), got.body)
		}
	}
	if len(f.logged(map[string]any{"status": 503.0, "cause": errBroken.Error()})) != 2 {
		t.Error("the log does not give the cause")
	}
	if rows, err := f.store.Keys(t.Context(), keys.KeyQuery{OrganizationID: "org_a"}); err != nil || len(rows) != 0 {
		t.Errorf("rows %v, %v: a key was made", rows, err)
	}
}

type blindStore struct{ keys.Store }

func (b *blindStore) Organization(context.Context, string) (keys.Organization, error) {
	return keys.Organization{}, errBroken
}

// C6–C9, C15: what a create may hold, member by member.
func TestC6CreateBodies(t *testing.T) {
	f := newFixture(t)
	f.live("org_live")
	long := strings.Repeat("é", 255)
	for _, tt := range []struct {
		name, body string
		status     int
		param      string
	}{
		// C7
		{"one character", `{"key_name":"k"}`, 201, ""},
		{"255 code points", `{"key_name":"` + long + `"}`, 201, ""},
		{"256 code points", `{"key_name":"` + long + `x"}`, 400, "key_name"},
		{"255 and white space", `{"key_name":"  ` + long + ` \t"}`, 201, ""},
		{"missing", `{}`, 400, "key_name"},
		{"null", `{"key_name":null}`, 400, "key_name"},
		{"empty", `{"key_name":""}`, 400, "key_name"},
		{"white space", `{"key_name":" \t\u00a0\u2003"}`, 400, "key_name"},
		{"NUL", `{"key_name":"a\u0000b"}`, 400, "key_name"},
		{"DEL", `{"key_name":"a\u007fb"}`, 400, "key_name"},
		{"C1 control", `{"key_name":"a\u0085b"}`, 400, "key_name"},
		{"line separator", `{"key_name":"a\u2028b"}`, 400, "key_name"},
		{"a line break inside", `{"key_name":"a\nb"}`, 400, "key_name"},
		{"number", `{"key_name":7}`, 400, "key_name"},
		{"bool", `{"key_name":true}`, 400, "key_name"},
		{"array", `{"key_name":["k"]}`, 400, "key_name"},
		{"object", `{"key_name":{"a":"k"}}`, 400, "key_name"},
		{"astral", `{"key_name":"\ud83d\udd11"}`, 201, ""},
		{"lone high surrogate", `{"key_name":"\ud800"}`, 400, "key_name"},
		{"lone low surrogate", `{"key_name":"\udc00"}`, 400, "key_name"},
		{"surrogates in the wrong order", `{"key_name":"\udc00\ud800"}`, 400, "key_name"},
		{"high surrogate and a letter", `{"key_name":"\ud800a"}`, 400, "key_name"},
		{"high surrogate and an escape", `{"key_name":"\ud800\u0041"}`, 400, "key_name"},
		{"invalid UTF-8", "{\"key_name\":\"\xff\"}", 400, "key_name"},
		{"overlong UTF-8", "{\"key_name\":\"\xc0\xaf\"}", 400, "key_name"},
		{"surrogate in UTF-8", "{\"key_name\":\"\xed\xa0\x80\"}", 400, "key_name"},
		{"cut UTF-8", "{\"key_name\":\"\xe2\x82\"}", 400, "key_name"},
		// C8
		{"a day", `{"key_name":"k","expires_in_days":1}`, 201, ""},
		{"most days", `{"key_name":"k","expires_in_days":36500}`, 201, ""},
		{"no expiry", `{"key_name":"k","expires_in_days":null}`, 201, ""},
		{"0", `{"key_name":"k","expires_in_days":0}`, 400, "expires_in_days"},
		{"-0", `{"key_name":"k","expires_in_days":-0}`, 400, "expires_in_days"},
		{"-1", `{"key_name":"k","expires_in_days":-1}`, 400, "expires_in_days"},
		{"36501", `{"key_name":"k","expires_in_days":36501}`, 400, "expires_in_days"},
		{"fraction", `{"key_name":"k","expires_in_days":1.5}`, 400, "expires_in_days"},
		{"whole fraction", `{"key_name":"k","expires_in_days":1.0}`, 400, "expires_in_days"},
		{"exponent", `{"key_name":"k","expires_in_days":1e2}`, 400, "expires_in_days"},
		{"huge", `{"key_name":"k","expires_in_days":99999999999999999999999999}`, 400, "expires_in_days"},
		{"wraps in 64 bits", `{"key_name":"k","expires_in_days":18446744073709551617}`, 400, "expires_in_days"},
		{"leading zero", `{"key_name":"k","expires_in_days":01}`, 400, "expires_in_days"},
		{"plus", `{"key_name":"k","expires_in_days":+1}`, 400, "expires_in_days"},
		{"minus alone", `{"key_name":"k","expires_in_days":-}`, 400, "expires_in_days"},
		{"hex", `{"key_name":"k","expires_in_days":0x10}`, 400, ""},
		{"NaN", `{"key_name":"k","expires_in_days":NaN}`, 400, "expires_in_days"},
		{"string", `{"key_name":"k","expires_in_days":"30"}`, 400, "expires_in_days"},
		{"days true", `{"key_name":"k","expires_in_days":true}`, 400, "expires_in_days"},
		// C9
		{"live", `{"key_name":"k","env":"live"}`, 201, ""},
		{"test", `{"key_name":"k","env":"test"}`, 201, ""},
		{"env null", `{"key_name":"k","env":null}`, 201, ""},
		{"env empty", `{"key_name":"k","env":""}`, 400, "env"},
		{"env in capitals", `{"key_name":"k","env":"LIVE"}`, 400, "env"},
		{"env padded", `{"key_name":"k","env":"live "}`, 400, "env"},
		{"env all", `{"key_name":"k","env":"all"}`, 400, "env"},
		{"env number", `{"key_name":"k","env":1}`, 400, "env"},
		// C15
		{"idempotency key", `{"key_name":"k","idempotency_key":"x y"}`, 201, ""},
		{"255 code points of idempotency key", `{"key_name":"k","idempotency_key":"` + long + `"}`, 201, ""},
		{"256", `{"key_name":"k","idempotency_key":"` + long + `x"}`, 400, "idempotency_key"},
		{"idempotency key null", `{"key_name":"k","idempotency_key":null}`, 201, ""},
		{"idempotency key empty", `{"key_name":"k","idempotency_key":""}`, 400, "idempotency_key"},
		{"idempotency key with NUL", `{"key_name":"k","idempotency_key":"a\u0000"}`, 400, "idempotency_key"},
		{"idempotency key number", `{"key_name":"k","idempotency_key":1}`, 400, "idempotency_key"},
		// C6
		{"typo", `{"key_name":"k","expires_in_day":1}`, 400, "expires_in_day"},
		{"case variant", `{"Key_Name":"k"}`, 400, "Key_Name"},
		{"case variant beside", `{"key_name":"k","EXPIRES_IN_DAYS":1}`, 400, "EXPIRES_IN_DAYS"},
		{"Kelvin sign for k", `{"` + "\u212a" + `ey_name":"k"}`, 400, ""},
		{"unknown object", `{"key_name":"k","extra":{"a":[1]}}`, 400, "extra"},
		{"unknown name that may not be said back", `{"key_name":"k","x1":1}`, 400, ""},
		{"long unknown name", `{"key_name":"k","` + strings.Repeat("x", 33) + `":1}`, 400, ""},
		{"empty name", `{"":1,"key_name":"k"}`, 400, ""},
		{"duplicate", `{"key_name":"k","key_name":"k"}`, 400, "key_name"},
		{"duplicate by escape", `{"key_name":"k","key\u005fname":"k"}`, 400, "key_name"},
		{"name by escape", `{"\u006bey_name":"k"}`, 201, ""},
		{"duplicate null", `{"key_name":"k","env":null,"env":"live"}`, 400, "env"},
		{"read-only member", `{"key_name":"k","api_key_id":"x"}`, 400, "api_key_id"},
		{"another organization", `{"key_name":"k","organization_id":"org_b"}`, 400, "organization_id"},
		{"white space around", " \t\r\n{ \"key_name\" : \"k\" } \n", 201, ""},
		{"escapes", `{"key_name":"\"\\\/ \u00e9"}`, 201, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			organization := strings.ReplaceAll("org_"+tt.name, " ", "-")
			organization = strings.Map(func(r rune) rune {
				if r < 128 && r != '+' && r != ',' {
					return r
				}
				return -1
			}, organization)
			got := f.do(ask{method: "POST", url: f.keysURL(), user: f.token("user "+tt.name, organization), body: tt.body})
			if tt.status == 201 {
				f.issued(got)
				return
			}
			got.refused(t, tt.status, api.InvalidRequest, tt.param)
		})
	}
}

// C6: media types, sizes and everything that is not one JSON object.
func TestC6Envelopes(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	for _, tt := range []struct {
		name   string
		types  []string // Content-Type; nil = not sent
		coding string
		body   string
		status int
		code   api.Code
		param  string
	}{
		{"none", nil, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"empty", []string{""}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"text", []string{"text/plain"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"form", []string{"application/x-www-form-urlencoded"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"json with a suffix", []string{"application/json-patch+json"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"latin-1", []string{"application/json; charset=iso-8859-1"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"another parameter", []string{"application/json; version=2"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"broken parameter", []string{"application/json; charset"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"twice", []string{"application/json", "application/json"}, "", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"compressed", []string{"application/json"}, "gzip", `{}`, 415, api.UnsupportedMediaType, "Content-Type"},
		{"utf-8", []string{"Application/JSON; Charset=UTF-8"}, "", `{}`, 400, api.InvalidRequest, "key_name"},
		{"16 KiB", []string{"application/json"}, "", `{}` + strings.Repeat(" ", maxBody-2), 400, api.InvalidRequest, "key_name"},
		{"a byte more", []string{"application/json"}, "", `{}` + strings.Repeat(" ", maxBody-1), 413, api.BodyTooLarge, ""},
		{"1 MB", []string{"application/json"}, "", `{"key_name":"` + strings.Repeat("k", 1<<20) + `"}`, 413, api.BodyTooLarge, ""},
		{"1 MB of another type", []string{"text/plain"}, "", strings.Repeat("k", 1<<20), 415, api.UnsupportedMediaType, "Content-Type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{"Content-Type": tt.types}
			if tt.coding != "" {
				h["Content-Encoding"] = []string{tt.coding}
			}
			for _, chunked := range []bool{false, true} {
				a := ask{method: "POST", url: f.keysURL(), user: user, body: tt.body, header: h}
				if chunked {
					a.body, a.raw = "", io.MultiReader(strings.NewReader(tt.body))
				}
				f.do(a).refused(t, tt.status, tt.code, tt.param)
			}
		})
	}
}

// C6: malformed JSON of every kind is 400 and quick.
func TestC6Malformed(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	for _, body := range malformedBodies() {
		got := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: body})
		got.refused(t, 400, api.InvalidRequest, got.problem.Param)
	}
	deep := func(open, end string, n int) string { return strings.Repeat(open, n) + strings.Repeat(end, n) }
	for _, tt := range []struct {
		body   string
		status int
		code   api.Code
		param  string
	}{
		{deep("[", "]", 8000), 400, api.InvalidRequest, ""},
		{`{"key_name":` + deep("[", "]", 8000) + "}", 400, api.InvalidRequest, "key_name"},
		{`{"x":` + deep(`{"a":`, "}", 2700) + "}", 400, api.InvalidRequest, "x"},
		{deep("[", "]", 10_000), 413, api.BodyTooLarge, ""},
	} {
		f.do(ask{method: "POST", url: f.keysURL(), user: user, body: tt.body}).refused(t, tt.status, tt.code, tt.param)
	}
}

// C9: the environment a key gets.
func TestC9Environment(t *testing.T) {
	f := newFixture(t)
	f.put("org_live", `{"payments_enabled":true}`)
	f.put("org_live_in_test", `{"payments_enabled":true,"current_env":"test"}`)
	f.put("org_disabled", `{"payments_enabled":false,"current_env":"live"}`)
	for _, tt := range []struct{ organization, asked, want string }{
		{"org_live", `"live"`, "live"}, {"org_live", `"test"`, "test"}, {"org_live", "null", "live"},
		{"org_live_in_test", `"live"`, "live"}, {"org_live_in_test", "null", "test"},
		{"org_disabled", `"live"`, "test"}, {"org_disabled", "null", "test"},
		{"org_unknown", `"live"`, "test"}, {"org_unknown", "null", "test"}, // C4
	} {
		k := f.create("u "+tt.organization+tt.asked, tt.organization, `{"key_name":"k","env":`+tt.asked+`}`)
		if k.Env != tt.want || !strings.HasPrefix(k.Key, "sk_"+tt.want+"_") {
			t.Errorf("%s asking %s: env %s", tt.organization, tt.asked, k.Env)
		}
		got := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: f.token("u", tt.organization)})
		if got.status != 200 {
			t.Fatalf("revoke: %d", got.status)
		}
	}
}

// C10: what a create answers.
func TestC10Created(t *testing.T) {
	f := newFixture(t)
	f.live("org_live")
	before := f.now().Truncate(time.Microsecond)
	got := f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_live"), body: `{"key_name":" Production key ","expires_in_days":2}`})
	k := f.issued(got)
	if got.header.Get("Location") != "/api/v1/auth/api-keys/"+k.APIKeyID || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("headers %v", got.header)
	}
	created, err := time.Parse(time.RFC3339, k.CreatedAt)
	if err != nil || !strings.HasSuffix(k.CreatedAt, "Z") || created.Before(before) || created.After(f.now()) {
		t.Errorf("created_at %q", k.CreatedAt)
	}
	expires, err := time.Parse(time.RFC3339, *k.ExpiresAt)
	if err != nil || expires.Sub(created) != 48*time.Hour { // C8
		t.Errorf("expires_at %q", *k.ExpiresAt)
	}
	want := api.IssuedKey{APIKeyID: k.APIKeyID, Key: k.Key, KeyName: "Production key", CreatedAt: k.CreatedAt, ExpiresAt: k.ExpiresAt, Env: "live", Hint: k.Key[len(k.Key)-4:]}
	if diff := cmp.Diff(want, k); diff != "" {
		t.Error(diff)
	}
	if env, _, err := f.format.Parse(k.Key); err != nil || env != keys.Live { // C11
		t.Errorf("the secret does not parse: %v", err)
	}
	if !strings.Contains(f.do(ask{method: "POST", url: f.keysURL(), user: f.token("v", "org_b"), body: `{"key_name":"k"}`}).body, `"expires_at":null`) {
		t.Error("a key that does not expire must say expires_at null")
	}
}

// C13, C16: of many creates at once one makes a key, and with one idempotency key all get it.
func TestC13Concurrent(t *testing.T) {
	f := newFixture(t)
	creates := func(n int, user func(int) string, organization, body string) []reply {
		replies := make([]reply, n)
		var wg sync.WaitGroup
		for i := range n {
			token := f.token(user(i), organization)
			wg.Go(func() { replies[i] = f.do(ask{method: "POST", url: f.keysURL(), user: token, body: body}) })
		}
		wg.Wait()
		return replies
	}
	count := map[int]int{}
	for _, got := range creates(100, func(i int) string { return fmt.Sprint("user", i) }, "org_a", `{"key_name":"k"}`) {
		count[got.status]++
		if got.status == 201 {
			f.issued(got)
		} else {
			got.refused(t, 400, api.ActiveKeyExists, "")
		}
	}
	if count[201] != 1 || count[400] != 99 {
		t.Errorf("statuses %v", count)
	}

	idem := f.hide("idempotency-key-of-C13")
	bodies := map[string]bool{}
	for _, got := range creates(24, func(int) string { return "user" }, "org_b", `{"key_name":"k","idempotency_key":"`+idem+`"}`) {
		if got.status == 201 {
			f.issued(got)
			bodies[got.body] = true
		} else {
			got.refused(t, 409, api.IdempotencyInProgress, "")
		}
	}
	if len(bodies) != 1 {
		t.Errorf("%d different answers", len(bodies))
	}
}

// C15, C16: the idempotency key in the body and in the header, in every form.
func TestC15IdempotencyKeyForms(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		name   string
		header []string
		body   string // the member's JSON value; empty = absent
		same   string // the member value that must replay; empty = refused
		param  string
	}{
		{"bare", []string{"8e03978e-40d5-43dd-bc93-6894a57f9324"}, "", "8e03978e-40d5-43dd-bc93-6894a57f9324", ""},
		{"quoted", []string{`"8e03978e-40d5"`}, "", "8e03978e-40d5", ""},
		{"quoted with escapes", []string{`"a\"b\\c"`}, "", `a\"b\\c`, ""},
		{"quoted with spaces", []string{`" a b "`}, "", " a b ", ""},
		{"bare with quotes inside", []string{`a"b`}, "", `a\"b`, ""},
		{"both alike", []string{`"alike"`}, `"alike"`, "alike", ""},
		{"bare 255", []string{strings.Repeat("x", 255)}, "", strings.Repeat("x", 255), ""},
		{"bare 256", []string{strings.Repeat("x", 256)}, "", "", "idempotency_key"},
		{"UTF-8", []string{"schlüssel"}, "", "schlüssel", ""},
		{"not UTF-8", []string{"schl\xfcssel"}, "", "", "idempotency_key"},
		{"both, different", []string{`"one"`}, `"two"`, "", "idempotency_key"},
		{"both, header good and body empty", []string{`"one"`}, `""`, "", "idempotency_key"},
		{"empty", []string{""}, "", "", "Idempotency-Key"},
		{"empty quoted", []string{`""`}, "", "", "Idempotency-Key"},
		{"unclosed", []string{`"abc`}, "", "", "Idempotency-Key"},
		{"quote alone", []string{`"`}, "", "", "Idempotency-Key"},
		{"text after", []string{`"abc" x`}, "", "", "Idempotency-Key"},
		{"parameters", []string{`"abc";a=1`}, "", "", "Idempotency-Key"},
		{"wrong escape", []string{`"a\b"`}, "", "", "Idempotency-Key"},
		{"escape at the end", []string{`"a\`}, "", "", "Idempotency-Key"},
		{"quoted UTF-8", []string{`"schlüssel"`}, "", "", "Idempotency-Key"},
		{"twice", []string{"abc", "abc"}, "", "", "Idempotency-Key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			organization := "org_" + strings.NewReplacer(" ", "-", ",", "").Replace(tt.name)
			user := f.token("user "+tt.name, organization)
			body := `{"key_name":"k"`
			if tt.body != "" {
				body += `,"idempotency_key":` + tt.body
			}
			got := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: body + `}`, header: http.Header{"Idempotency-Key": tt.header}})
			if tt.same == "" {
				got.refused(t, 400, api.InvalidRequest, tt.param)
				return
			}
			f.issued(got)
			again := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"` + tt.same + `"}`})
			if again.status != 201 || again.body != got.body || again.header.Get("Idempotent-Replayed") != "true" || again.header.Get("Location") != got.header.Get("Location") {
				t.Errorf("replay: %d %q", again.status, again.header.Get("Idempotent-Replayed"))
			}
		})
	}
}

// C16, C17: replays, reuse, a request still running, and a key that is gone.
func TestC16Replays(t *testing.T) {
	hold := &heldBarrier{entered: make(chan struct{}), release: make(chan struct{})}
	f := newFixture(t, func(s *setup) { s.barrier = func(b keys.Barrier) keys.Barrier { hold.Barrier = b; return hold } })
	user := f.token("u", "org_a")
	idem := f.hide("idempotency-key-of-C16")
	r := ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"` + idem + `"}`}

	hold.on.Store(true)
	first := make(chan reply)
	go func() { first <- f.do(r) }()
	<-hold.entered
	running := f.do(r)
	running.refused(t, 409, api.IdempotencyInProgress, "")
	if running.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", running.header.Get("Retry-After"))
	}
	hold.on.Store(false)
	close(hold.release)
	got := <-first
	k := f.issued(got)

	again := f.do(r)
	if again.status != 201 || again.body != got.body || again.header.Get("Idempotent-Replayed") != "true" || again.header.Get("Cache-Control") != "no-store" {
		t.Errorf("replay: %d %v", again.status, again.header)
	}
	other := r
	other.body = `{"key_name":"k2","idempotency_key":"` + idem + `"}`
	f.do(other).refused(t, 422, api.IdempotencyKeyReused, "idempotency_key")
	if got := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: user}); got.status != 200 {
		t.Fatalf("revoke: %d", got.status)
	}
	gone := f.do(r)
	gone.refused(t, 409, api.IdempotencyResultGone, "")
	if gone.problem.APIKeyID != k.APIKeyID || gone.header.Get("Retry-After") != "" {
		t.Errorf("gone: %+v", gone.problem)
	}
}

// C18, C19, C20: what list shows, and of what.
func TestC18List(t *testing.T) {
	f := newFixture(t)
	f.live("org_a")
	user := f.token("u", "org_a")
	var ids []string // newest first
	create := func(env string) api.IssuedKey {
		k := f.create("u", "org_a", `{"key_name":"<k> & é","env":"`+env+`"}`)
		ids = append([]string{k.APIKeyID}, ids...)
		f.later(time.Minute)
		return k
	}
	revoke := func(k api.IssuedKey) {
		if got := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: user}); got.status != 200 {
			t.Fatalf("revoke: %d", got.status)
		}
	}
	test1 := create("test")
	revoke(test1)
	live1 := create("live")
	revoke(live1)
	live2 := create("live")

	list := func(query string) api.KeyList {
		t.Helper()
		got := f.do(ask{method: "GET", url: f.keysURL() + query, user: user})
		if got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("list%s: %d %s", query, got.status, got.body)
		}
		return decode[api.KeyList](t, got.body)
	}
	idsOf := func(l api.KeyList) (out []string) {
		for _, k := range l.Keys {
			out = append(out, k.APIKeyID)
		}
		return out
	}
	for query, want := range map[string][]string{
		"":          {live2.APIKeyID, live1.APIKeyID},
		"?env=live": {live2.APIKeyID, live1.APIKeyID},
		"?env=test": {test1.APIKeyID},
		"?env=all":  ids,
	} {
		l := list(query)
		if diff := cmp.Diff(want, idsOf(l)); diff != "" {
			t.Errorf("list%s: %s", query, diff)
		}
		if l.HasMore != nil || l.NextCursor != nil {
			t.Errorf("list%s has pages", query)
		}
	}
	first := list("?env=all").Keys[0]
	want := api.ListedKey{APIKeyID: live2.APIKeyID, KeyName: "<k> & é", IsActive: true, CreatedAt: live2.CreatedAt, Env: "live", Hint: live2.Hint, Status: "active", CreatedBy: "u"}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
	if last := list("?env=test").Keys[0]; last.IsActive || last.Status != "revoked" || last.RevokedAt == nil {
		t.Errorf("revoked key: %+v", last)
	}

	var paged []string
	cursor := ""
	for n := 1; ; n++ {
		page := list("?env=all&limit=1" + cursor)
		paged = append(paged, idsOf(page)...)
		if page.HasMore == nil || *page.HasMore != (n < 3) || (page.NextCursor != nil) != *page.HasMore {
			t.Fatalf("page %d: %+v", n, page)
		}
		if !*page.HasMore {
			break
		}
		cursor = "&cursor=" + *page.NextCursor
	}
	if diff := cmp.Diff(ids, paged); diff != "" {
		t.Error(diff)
	}

	// An organization without keys has an empty list, not null.
	if got := f.do(ask{method: "GET", url: f.keysURL(), user: f.token("u", "org_none")}); got.body != `{"keys":[]}` {
		t.Errorf("empty list: %s", got.body)
	}
	secret := f.secret(keys.Live)
	for query, param := range map[string]string{
		"?env=": "env", "?env=LIVE": "env", "?env=prod": "env", "?env=live&env=test": "env",
		"?limit=0": "limit", "?limit=101": "limit", "?limit=-1": "limit", "?limit=": "limit", "?limit=1.0": "limit", "?limit=x": "limit", "?limit=99999999999999999999": "limit", "?limit=1&limit=1": "limit",
		"?cursor=abc": "cursor", "?limit=1&cursor=": "cursor", "?limit=1&cursor=%00": "cursor", "?limit=1&cursor=abc": "cursor", "?limit=1&cursor=" + strings.Repeat("A", 9000): "cursor",
		"?enviroment=all": "enviroment", "?Env=all": "Env", "?x1=1": "", "?%zz": "", "?env=live;limit=1": "",
		"?organization_id=org_b": "organization_id", "?api_key=" + secret: "", "?" + secret: "", "?env=" + strings.Replace(secret, "_", "%5F", 2): "",
	} {
		got := f.do(ask{method: "GET", url: f.keysURL() + query, user: user})
		got.refused(t, 400, api.InvalidRequest, param)
	}

	// C19, C20: a key that expires says so from that moment.
	short := f.create("u2", "org_b", `{"key_name":"k","expires_in_days":1}`)
	f.verify(short.Key, "")
	f.later(24 * time.Hour)
	got := decode[api.KeyList](t, f.do(ask{method: "GET", url: f.keysURL(), user: f.token("u2", "org_b")}).body).Keys[0]
	if got.IsActive || got.Status != "expired" || got.RevokedAt != nil {
		t.Errorf("expired key: %+v", got)
	}
}

// C21, C22: revoke answers the same again, and the same of everything that is not one's own.
func TestC22Revoke(t *testing.T) {
	f := newFixture(t)
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	foreign := f.create("v", "org_b", `{"key_name":"k"}`)
	user := f.token("u", "org_a")
	url := func(id string) string { return f.keysURL() + "/" + id + "/revoke" }

	for _, tt := range []struct {
		name, body string
		status     int
		param      string
	}{
		{"reason of 255", `{"reason":"` + strings.Repeat("é", 255) + `"}`, 200, ""},
		{"no body", "", 200, ""},
		{"empty object", `{}`, 200, ""},
		{"null reason", `{"reason":null}`, 200, ""},
		{"reason of 256", `{"reason":"` + strings.Repeat("é", 256) + `"}`, 400, "reason"},
		{"control", `{"reason":"a\u0007"}`, 400, "reason"},
		{"number", `{"reason":1}`, 400, "reason"},
		{"unknown", `{"why":"x"}`, 400, "why"},
		{"array", `[]`, 400, ""},
		{"space", ` `, 400, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := f.do(ask{method: "POST", url: url(k.APIKeyID), user: user, body: tt.body})
			if tt.status != 200 {
				got.refused(t, tt.status, api.InvalidRequest, tt.param)
				return
			}
			if want := `{"status":"revoked","api_key_id":"` + k.APIKeyID + `"}`; got.status != 200 || got.body != want {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	if got := f.do(ask{method: "POST", url: url(k.APIKeyID), user: user, raw: strings.NewReader(""), header: http.Header{"Content-Type": nil}}); got.status != 200 {
		t.Errorf("an empty chunked body: %d %s", got.status, got.body)
	}
	f.do(ask{method: "POST", url: url(k.APIKeyID), user: user, body: `{}`, header: http.Header{"Content-Type": nil}}).refused(t, 415, api.UnsupportedMediaType, "Content-Type")
	f.do(ask{method: "POST", url: url(k.APIKeyID), user: user, raw: strings.NewReader(`{}`), header: http.Header{"Content-Type": {"text/plain"}}}).refused(t, 415, api.UnsupportedMediaType, "Content-Type")

	var bodies []string
	for _, id := range []string{
		foreign.APIKeyID, "key_7zzzzzzzzzzzzzzzzzzzzzzzzz", "key_abc123", "x", "%00", "..", ".", "%2e%2E", "a%2Fb", "a%2fb", "%2F", "..%2f..%2Fdocs", k.APIKeyID + "%2Frevoke", k.APIKeyID + "%2F", "a%5Cb", "a%252Fb", "%F0%9F%94%91", "key_%27%20OR%201=1--",
		strings.ToUpper(k.APIKeyID), k.APIKeyID + "0", strings.Repeat("k", 4000),
	} {
		for _, verb := range []string{"/revoke", "/roll"} {
			got := f.do(ask{method: "POST", url: f.keysURL() + "/" + id + verb, user: user, header: http.Header{"X-Request-Id": {"same"}}})
			got.refused(t, 404, api.KeyNotFound, "")
			bodies = append(bodies, got.body)
		}
	}
	for _, b := range bodies {
		if b != bodies[0] {
			t.Errorf("bodies differ:\n%s\n%s", bodies[0], b)
		}
	}
	if v := f.verify(foreign.Key, ""); !v.Valid {
		t.Errorf("another organization's key was touched: %+v", v)
	}
}

// V7: a secret pasted into a text is refused by the field's name; the fixture looks for it in every answer and log line.
func TestV7SecretInATextField(t *testing.T) {
	f := newFixture(t)
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	user, other := f.token("u", "org_a"), f.token("v", "org_b")
	for _, secret := range []string{k.Key, f.secret(keys.Test)} {
		for _, r := range []struct {
			ask
			param string
		}{
			{ask{method: "POST", url: f.keysURL(), user: other, body: `{"key_name":"my ` + secret + `"}`}, "key_name"},
			{ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user, body: `{"key_name":"` + secret + ` again"}`}, "key_name"},
			{ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: user, body: `{"reason":"leaked ` + secret + `"}`}, "reason"},
			{ask{method: "PUT", url: f.admin + "/v1/organizations/org_c", body: `{"name":"` + secret + `"}`}, "name"},
			{ask{method: "PUT", url: f.admin + "/v1/organizations/" + secret, body: `{}`}, "id"},
		} {
			f.do(r.ask).refused(t, 400, api.InvalidRequest, r.param)
		}
	}
	if v := f.verify(k.Key, ""); !v.Valid {
		t.Errorf("a refusal ended the key: %+v", v)
	}
	f.do(ask{method: "GET", url: f.admin + "/v1/audit"})
}

// C23: what answered 2xx is in force.
func TestC23Revoked(t *testing.T) {
	f := newFixture(t)
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	if v := f.verify(k.Key, ""); !v.Valid {
		t.Fatalf("a new secret is refused: %+v", v)
	}
	if got := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: f.token("u", "org_a")}); got.status != 200 {
		t.Fatalf("revoke: %d", got.status)
	}
	if v := f.verify(k.Key, ""); v.Valid || v.Reason != "revoked" {
		t.Errorf("a revoked secret: %+v", v)
	}
}

// C23: a revoke whose outcome is not known is never 200, and asking again completes it.
func TestC23OutcomeUnknown(t *testing.T) {
	barrier := &failingBarrier{}
	f := newFixture(t, func(s *setup) { s.barrier = func(b keys.Barrier) keys.Barrier { barrier.Barrier = b; return barrier } })
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	r := ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: f.token("u", "org_a")}
	barrier.on = true
	f.do(r).refused(t, 503, api.Unavailable, "")
	barrier.on = false
	if got := f.do(r); got.status != 200 {
		t.Errorf("again: %d", got.status)
	}
	if v := f.verify(k.Key, ""); v.Valid {
		t.Errorf("still accepted: %+v", v)
	}
}

// C24: roll over HTTP.
func TestC24Roll(t *testing.T) {
	f := newFixture(t)
	old := f.create("u", "org_a", `{"key_name":"k","expires_in_days":30}`)
	user := f.token("u", "org_a")
	url := f.keysURL() + "/" + old.APIKeyID + "/roll"
	for _, tt := range []struct{ name, body, param string }{
		{"negative", `{"overlap_seconds":-1}`, "overlap_seconds"},
		{"over the maximum", `{"overlap_seconds":86401}`, "overlap_seconds"},
		{"fraction", `{"overlap_seconds":1.5}`, "overlap_seconds"},
		{"string", `{"overlap_seconds":"1"}`, "overlap_seconds"},
		{"name empty", `{"key_name":" "}`, "key_name"},
		{"name of 256", `{"key_name":"` + strings.Repeat("x", 256) + `"}`, "key_name"},
		{"0 days", `{"expires_in_days":0}`, "expires_in_days"},
		{"36501 days", `{"expires_in_days":36501}`, "expires_in_days"},
		{"env", `{"env":"live"}`, "env"},
		{"idempotency key empty", `{"idempotency_key":""}`, "idempotency_key"},
		{"not an object", `"x"`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.do(ask{method: "POST", url: url, user: user, body: tt.body}).refused(t, 400, api.InvalidRequest, tt.param)
		})
	}
	idem := f.hide("idempotency-key-of-C24")
	r := ask{method: "POST", url: url, user: user, body: `{"overlap_seconds":3600,"key_name":"next"}`, header: http.Header{"Idempotency-Key": {`"` + idem + `"`}}}
	got := f.do(r)
	next := f.issued(got)
	if next.Replaces != old.APIKeyID || next.KeyName != "next" || next.Env != old.Env || next.ExpiresAt == nil || got.header.Get("Location") != "/api/v1/auth/api-keys/"+next.APIKeyID {
		t.Errorf("successor: %+v", next)
	}
	if again := f.do(r); again.status != 201 || again.body != got.body {
		t.Errorf("replay: %d", again.status)
	}
	for _, secret := range []string{old.Key, next.Key} {
		if v := f.verify(secret, ""); !v.Valid {
			t.Errorf("during the overlap: %+v", v)
		}
	}
	shown := func() (got [2]string) { // the successor's line in the list, and the old key's
		for _, k := range decode[api.KeyList](t, f.do(ask{method: "GET", url: f.keysURL(), user: user}).body).Keys {
			line := fmt.Sprint(k.Status, " ", k.IsActive)
			switch k.APIKeyID {
			case next.APIKeyID:
				got[0] = line
			case old.APIKeyID:
				got[1] = line
			}
		}
		return got
	}
	if got, want := shown(), [2]string{"active true", "overlapping true"}; got != want { // C19
		t.Errorf("listed during the overlap: %q, want %q", got, want)
	}
	f.do(ask{method: "POST", url: url, user: user}).refused(t, 409, api.KeyNotActive, "")
	f.do(ask{method: "POST", url: f.keysURL() + "/" + next.APIKeyID + "/roll", user: user}).refused(t, 429, api.RateLimited, "")
	f.later(time.Hour)
	if v := f.verify(old.Key, ""); v.Valid || v.Reason != "expired" {
		t.Errorf("after the overlap: %+v", v)
	}
	if got, want := shown(), [2]string{"active true", "expired false"}; got != want { // C19
		t.Errorf("listed after the overlap: %q, want %q", got, want)
	}
	last := f.issued(f.do(ask{method: "POST", url: f.keysURL() + "/" + next.APIKeyID + "/roll", user: user, raw: strings.NewReader(""), header: http.Header{"Content-Type": nil}}))
	if v := f.verify(next.Key, ""); v.Valid {
		t.Errorf("rolled without overlap: %+v", v)
	}
	if last.KeyName != "next" || last.ExpiresAt == nil {
		t.Errorf("defaults: %+v", last)
	}
}

// P8: a refusal that was authenticated is in the audit log, with the request's id; one that was
// not is in the request log alone.
func TestRefusalsAreAudited(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	for i, r := range []ask{
		{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","oops":1}`},
		{method: "POST", url: f.keysURL(), user: user, body: `{}`, header: http.Header{"Content-Type": {"text/plain"}}},
		{method: "GET", url: f.keysURL() + "?limit=0", user: user},
		{method: "GET", url: f.keysURL() + "?limit=x", user: user},
		{method: "POST", url: f.keysURL() + "/key_x/revoke", user: user, body: `{`},
		{method: "POST", url: f.keysURL() + "/key_x/roll", user: user},
		{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`, header: http.Header{"X-Connected-Account-ID": {"x"}}},
		{method: "POST", url: f.keysURL(), body: `{"key_name":"k"}`},
	} {
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header.Set("X-Request-Id", "audited-"+string(rune('0'+i)))
		f.do(r)
	}
	entries, err := f.store.Audit(t.Context(), 0, 100, sqlstore.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		Request, Outcome, Detail, Remote string
		Action                           keys.Action
	}
	var got []line
	for _, e := range entries {
		got = append(got, line{e.RequestID, e.Outcome, e.Detail, e.RemoteAddress, e.Action})
	}
	const here = "127.0.0.1"
	want := []line{
		{"audited-0", "invalid_request", "oops", here, keys.ActCreate},
		{"audited-1", "unsupported_media_type", "Content-Type", here, keys.ActCreate},
		{"audited-2", "invalid_request", "limit", here, keys.ActList},
		// audited-3 repeats audited-2 and is counted: TestC32RepeatedRejectionsAreOneEntry.
		{"audited-4", "invalid_request", "", here, keys.ActRevoke},
		{"audited-5", "api_key_not_found", "", here, keys.ActRoll},
		{"audited-6", "connected_account", "X-Connected-Account-ID", here, keys.ActCreate},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// C5, C23: a refusal that cannot be written into the audit log is not given out as one.
func TestRefusalWithoutAudit(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.store = func(inner keys.Store) keys.Store { return deafStore{inner} } })
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_a"), body: `{`}).refused(t, 503, api.Unavailable, "")
}

type deafStore struct{ keys.Store }

func (deafStore) Record(context.Context, keys.AuditEntry) error { return errors.New("disk full") }
