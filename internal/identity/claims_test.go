package identity

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// TestC1Times: the skew is 60 s, and what it allows ends at the very second.
func TestC1Times(t *testing.T) {
	k := secretKey(testSecret)
	a := authenticator(t, Config{HS256Secret: testSecret})
	at := func(seconds int) int64 { return testNow.Unix() + int64(seconds) }
	for _, tt := range []struct {
		claim string
		value any
		want  bool
	}{
		{"exp", at(300), true},
		{"exp", at(1), true},
		{"exp", at(0), true},
		{"exp", at(-59), true},
		{"exp", float64(at(-60)) + 0.5, true},
		{"exp", at(-60), false},
		{"exp", at(-61), false},
		{"exp", at(-3600), false},
		{"exp", 0, false},
		{"exp", -1, false},
		{"exp", nil, false},
		{"exp", fmt.Sprint(at(300)), false},
		{"exp", true, false},
		{"exp", []any{at(300)}, false},
		{"exp", map[string]any{}, false},
		{"exp", 1e300, false},
		{"exp", int64(latestDate), true},
		{"exp", int64(latestDate) + 1, false},

		{"nbf", nil, true},
		{"nbf", 0, true},
		{"nbf", at(0), true},
		{"nbf", at(59), true},
		{"nbf", at(60), true},
		{"nbf", at(61), false},
		{"nbf", at(3600), false},
		{"nbf", fmt.Sprint(at(0)), false},
		{"nbf", -1, false},
		{"nbf", 1e300, false},
		{"nbf", false, false},

		{"iat", nil, false},
		{"iat", 0, true},
		{"iat", at(0), true},
		{"iat", float64(at(0)) + 0.25, true},
		{"iat", at(60), true},
		{"iat", at(61), false},
		{"iat", "yesterday", false},
		{"iat", -1, false},
	} {
		token := k.token(t, claims(map[string]any{tt.claim: tt.value}))
		_, err := a.Authenticate(t.Context(), token)
		if (err == nil) != tt.want || (err != nil && !refused(t, token, err)) {
			t.Errorf("%s %v: got %v, want accepted = %v", tt.claim, tt.value, err, tt.want)
		}
	}
	for _, claim := range []string{"exp", "nbf", "iat"} {
		for _, value := range []string{"null", "1e400", `""`, "-0.5", "[]"} {
			body := mustJSON(t, claims(map[string]any{claim: nil}))
			token := k.raw(k.header(t, nil), strings.TrimSuffix(body, "}")+`,"`+claim+`":`+value+"}")
			if _, err := a.Authenticate(t.Context(), token); !refused(t, token, err) {
				t.Errorf("%s %s: got %v, want a refusal", claim, value, err)
			}
		}
	}
}

// TestC1TokenExpiresWhileKnown: a token is held against the clock each time it is presented.
func TestC1TokenExpiresWhileKnown(t *testing.T) {
	k, now := secretKey(testSecret), testNow
	a := authenticator(t, Config{HS256Secret: testSecret, Now: func() time.Time { return now }})
	token := k.token(t, claims(nil))
	for _, tt := range []struct {
		later time.Duration
		want  bool
	}{{0, true}, {5 * time.Minute, true}, {6*time.Minute - 1, true}, {6 * time.Minute, false}, {time.Hour, false}} {
		now = testNow.Add(tt.later)
		if _, err := a.Authenticate(t.Context(), token); (err == nil) != tt.want {
			t.Errorf("after %v: got %v, want accepted = %v", tt.later, err, tt.want)
		}
	}
}

// TestC1Claims: who may be named, by whom and for whom.
func TestC1Claims(t *testing.T) {
	k := secretKey(testSecret)
	a := authenticator(t, Config{HS256Secret: testSecret})
	for _, tt := range []struct {
		claim string
		value any // nil = absent
		want  bool
	}{
		{"iss", nil, false},
		{"iss", "", false},
		{"iss", testIssuer + "/", false},
		{"iss", strings.ToUpper(testIssuer), false},
		{"iss", []string{testIssuer}, false},
		{"iss", 1, false},

		{"aud", nil, false},
		{"aud", "", false},
		{"aud", "other", false},
		{"aud", "Keyward", false},
		{"aud", "keyward other", false},
		{"aud", []string{testAudience}, true},
		{"aud", []string{"other", testAudience}, true},
		{"aud", []string{"other"}, false},
		{"aud", []string{}, false},
		{"aud", []any{testAudience, 1}, false},
		{"aud", []any{[]string{testAudience}}, false},
		{"aud", map[string]any{testAudience: true}, false},
		{"aud", true, false},

		{"sub", nil, false},
		{"sub", "", false},
		{"sub", "u", true},
		{"sub", "auth0|5f7c8ec7c33c6c004bbafe82", true},
		{"sub", "Zoë Müller", true},
		{"sub", "日本", true},
		{"sub", strings.Repeat("u", 255), true},
		{"sub", strings.Repeat("é", 255), true},
		{"sub", strings.Repeat("u", 256), false},
		{"sub", "user\x00", false},
		{"sub", "user\n", false},
		{"sub", "user\u202e", false},
		{"sub", "user\u2028", false},
		{"sub", "user\u200b", false},
		{"sub", "user\ufffd", false},
		{"sub", "user\u00a0", false},
		{"sub", 1, false},
		{"sub", []string{"user_1"}, false},
		{"sub", map[string]any{}, false},

		{"org_id", nil, false},
		{"org_id", "", false},
		{"org_id", "o", true},
		{"org_id", "Org.1:a-b_c", true},
		{"org_id", strings.Repeat("o", 128), true},
		{"org_id", strings.Repeat("o", 129), false},
		{"org_id", "_org", false},
		{"org_id", "org 1", false},
		{"org_id", "org_1\n", false},
		{"org_id", "org/1", false},
		{"org_id", "../org_1", false},
		{"org_id", "orgé", false},
		{"org_id", "' OR 1=1", false},
		{"org_id", 1, false},
		{"org_id", []string{"org_1", "org_2"}, false},
		{"org_id", []string{}, false},

		// What is not read does not matter.
		{"email", "other@example.com", true},
		{"azp", 7, true},
		{"SUB", "user_2", true},
		{"Org_Id", "org_2", true},
		{"ORG_ID", "org_2", true},
		{"EXP", 1, true},
	} {
		token := k.token(t, claims(map[string]any{tt.claim: tt.value}))
		got, err := a.Authenticate(t.Context(), token)
		if (err == nil) != tt.want || (err != nil && !refused(t, token, err)) {
			t.Errorf("%s %v: got %v, want accepted = %v", tt.claim, tt.value, err, tt.want)
			continue
		}
		want := wantPrincipal
		switch {
		case err != nil:
			want = keys.Principal{}
		case tt.claim == "sub":
			want.User = tt.value.(string)
		case tt.claim == "org_id":
			want.OrganizationID = tt.value.(string)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %v: principal (-want +got):\n%s", tt.claim, tt.value, diff)
		}
	}
}

// TestC1PayloadText: a payload that two readers could understand in two ways is refused.
func TestC1PayloadText(t *testing.T) {
	k := secretKey(testSecret)
	a := authenticator(t, Config{HS256Secret: testSecret})
	good := mustJSON(t, claims(nil))
	open := strings.TrimSuffix(good, "}")
	for _, tt := range []struct {
		name, payload string
		want          bool
	}{
		{"as it should be", good, true},
		{"white space around it", " \n" + good + "\t ", true},
		{"sub twice, the same", open + `,"sub":"user_1"}`, false},
		{"sub twice, another", open + `,"sub":"user_2"}`, false},
		{"sub twice, one escaped", open + `,"\u0073ub":"user_2"}`, false},
		{"org_id twice", open + `,"org_id":"org_2"}`, false},
		{"org_id twice, the first null", `{"org_id":null,` + good[1:], false},
		{"exp twice", open + `,"exp":9999999999}`, false},
		{"aud twice", open + `,"aud":"other"}`, false},
		{"an unread claim twice", open + `,"x":1,"x":2}`, false},
		{"SUB after sub", open + `,"SUB":"user_2"}`, true},
		{"SUB before sub", `{"SUB":"user_2",` + good[1:], true},
		{"SUB alone", strings.Replace(good, `"sub"`, `"SUB"`, 1), false},
		{"Org_id alone", strings.Replace(good, `"org_id"`, `"Org_id"`, 1), false},
		{"EXP alone", strings.Replace(good, `"exp"`, `"EXP"`, 1), false},
		{"sub with a Kelvin sign's cousin", strings.Replace(good, `"sub"`, `"ſub"`, 1), false},
		{"invalid UTF-8 in a value", strings.Replace(good, "user_1", "user\xff", 1), false},
		{"invalid UTF-8 in a name", open + ",\"\xff\":1}", false},
		{"lone surrogate in sub", strings.Replace(good, "user_1", `user\ud800`, 1), false},
		{"NUL in sub", strings.Replace(good, "user_1", `user\u0000`, 1), false},
		{"byte order mark", "\ufeff" + good, false},
		{"trailing data", good + "{}", false},
		{"trailing comma", open + ",}", false},
		{"cut off", open, false},
		{"array", "[" + good + "]", false},
		{"string", mustJSON(t, good), false},
		{"null", "null", false},
		{"empty", "", false},
		{"empty object", "{}", false},
		{"comment", "/**/" + good, false},
		{"deep nesting", open + `,"x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + "}", true},
		{"unclosed nesting", open + `,"x":` + strings.Repeat("[", 4000), false},
	} {
		token := k.raw(k.header(t, nil), tt.payload)
		got, err := a.Authenticate(t.Context(), token)
		if (err == nil) != tt.want || (err != nil && !refused(t, token, err)) {
			t.Errorf("%s: got %v, want accepted = %v", tt.name, err, tt.want)
		}
		if err == nil {
			if diff := cmp.Diff(wantPrincipal, got); diff != "" {
				t.Errorf("%s: principal (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

// TestR3IssuerAndAudience: what is configured empty is not checked, and only that.
func TestR3IssuerAndAudience(t *testing.T) {
	k := secretKey(testSecret)
	for _, tt := range []struct {
		issuer, audience string
		claims           map[string]any
		want             bool
	}{
		{"", "", map[string]any{"iss": nil, "aud": nil}, true},
		{"", "", map[string]any{"iss": 7, "aud": 7}, true},
		{testIssuer, "", map[string]any{"aud": nil}, true},
		{testIssuer, "", map[string]any{"aud": nil, "iss": "other"}, false},
		{testIssuer, "", map[string]any{"aud": nil, "iss": nil}, false},
		{"", testAudience, map[string]any{"iss": nil}, true},
		{"", testAudience, map[string]any{"iss": nil, "aud": "other"}, false},
		{"", testAudience, map[string]any{"iss": nil, "aud": nil}, false},
	} {
		a, err := New(t.Context(), Config{
			HS256Secret: testSecret, Issuer: tt.issuer, Audience: tt.audience,
			Now: func() time.Time { return testNow },
		})
		if err != nil {
			t.Fatal(err)
		}
		token := k.token(t, claims(tt.claims))
		if _, err := a.Authenticate(t.Context(), token); (err == nil) != tt.want {
			t.Errorf("issuer %q, audience %q, claims %v: got %v, want accepted = %v", tt.issuer, tt.audience, tt.claims, err, tt.want)
		}
	}
}

// TestR3OrganizationClaim: KEYWARD_JWT_ORGANIZATION_CLAIM names any claim, and then no other one counts.
func TestR3OrganizationClaim(t *testing.T) {
	k := secretKey(testSecret)
	for _, tt := range []struct {
		name   string
		claims map[string]any
		want   string // empty = refused
	}{
		{"", nil, "org_1"},
		{"org_id", nil, "org_1"},
		{"tenant", nil, ""},
		{"tenant", map[string]any{"tenant": "org_7"}, "org_7"},
		{"https://example.com/organization", map[string]any{"https://example.com/organization": "org_8"}, "org_8"},
		{"a.b", map[string]any{"a": map[string]any{"b": "org_9"}}, "org_9"},
		{"tenant", map[string]any{"tenant": []string{"org_7"}}, "org_7"},
		{"a.b", map[string]any{"a.b": "org_9"}, "org_9"},
		{"tenant", map[string]any{"Tenant": "org_7"}, ""},
	} {
		a := authenticator(t, Config{HS256Secret: testSecret, OrganizationClaim: tt.name})
		token := k.token(t, claims(tt.claims))
		got, err := a.Authenticate(t.Context(), token)
		if tt.want == "" {
			if !refused(t, token, err) {
				t.Errorf("claim %q of %v: got %v, want a refusal", tt.name, tt.claims, err)
			}
			continue
		}
		if err != nil || got.OrganizationID != tt.want {
			t.Errorf("claim %q of %v: got %q, %v, want %q", tt.name, tt.claims, got.OrganizationID, err, tt.want)
		}
	}
}

// TestR3RoleClaim: KEYWARD_JWT_ROLE_CLAIM is a string, a list with spaces or an array; a token
// without roles is a principal without roles, whom the caller refuses.
func TestR3RoleClaim(t *testing.T) {
	k := secretKey(testSecret)
	for _, tt := range []struct {
		name   string
		claim  string
		claims map[string]any
		want   []string
		refuse bool
	}{
		{name: "not configured", claims: map[string]any{"roles": "admin"}},
		{name: "absent", claim: "roles"},
		{name: "one", claim: "roles", claims: map[string]any{"roles": "admin"}, want: []string{"admin"}},
		{name: "several", claim: "scope", claims: map[string]any{"scope": "keys:read keys:write"}, want: []string{"keys:read", "keys:write"}},
		{name: "spaces all over", claim: "scope", claims: map[string]any{"scope": " a  b "}, want: []string{"a", "b"}},
		{name: "tabs are no separator", claim: "scope", claims: map[string]any{"scope": "a\tb"}, want: []string{"a\tb"}},
		{name: "empty string", claim: "roles", claims: map[string]any{"roles": ""}},
		{name: "array", claim: "roles", claims: map[string]any{"roles": []string{"admin", "key manager"}}, want: []string{"admin", "key manager"}},
		{name: "empty array", claim: "roles", claims: map[string]any{"roles": []string{}}},
		{name: "another case", claim: "roles", claims: map[string]any{"Roles": "admin"}},
		{name: "array of another kind", claim: "roles", claims: map[string]any{"roles": []any{"admin", 1}}, refuse: true},
		{name: "number", claim: "roles", claims: map[string]any{"roles": 1}, refuse: true},
		{name: "object", claim: "roles", claims: map[string]any{"roles": map[string]any{"admin": true}}, refuse: true},
		{name: "boolean", claim: "roles", claims: map[string]any{"roles": true}, refuse: true},
	} {
		a := authenticator(t, Config{HS256Secret: testSecret, RoleClaim: tt.claim})
		token := k.token(t, claims(tt.claims))
		got, err := a.Authenticate(t.Context(), token)
		if tt.refuse {
			if !refused(t, token, err) {
				t.Errorf("%s: got %v, want a refusal", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(got.Roles) == 0 {
			got.Roles = nil
		}
		if diff := cmp.Diff(tt.want, got.Roles); diff != "" {
			t.Errorf("%s: roles (-want +got):\n%s", tt.name, diff)
		}
	}
	a := authenticator(t, Config{HS256Secret: testSecret, RoleClaim: "roles"})
	body := strings.TrimSuffix(mustJSON(t, claims(nil)), "}") + `,"roles":null}`
	if got, err := a.Authenticate(t.Context(), k.raw(k.header(t, nil), body)); err != nil || got.Roles != nil {
		t.Errorf("null: got %v, %v, want no roles", got.Roles, err)
	}
}

// FuzzC1Claims: whatever is signed, a principal that comes out is one the rest of the program can bear.
func FuzzC1Claims(f *testing.F) {
	k := secretKey(testSecret)
	all := claims(map[string]any{"roles": []string{"a"}})
	f.Add(mustJSON(f, all), k.header(f, nil))
	for name := range maps.Keys(all) {
		f.Add(mustJSON(f, claims(map[string]any{name: nil})), k.header(f, map[string]any{"typ": nil}))
	}
	f.Add(`{"sub":"a","sub":"b"}`, `{"alg":"HS256","crit":[]}`)
	a := authenticator(f, Config{HS256Secret: testSecret, RoleClaim: "roles"})
	f.Fuzz(func(t *testing.T, payload, header string) {
		token := k.raw(header, payload)
		p, err := a.Authenticate(t.Context(), token)
		if err != nil {
			if !refused(t, "", err) || p.User != "" || p.OrganizationID != "" || p.Roles != nil {
				t.Fatalf("got %v with %v", p, err)
			}
			return
		}
		if !validUser(p.User) || !keys.ValidOrganizationID(p.OrganizationID) {
			t.Fatalf("principal %+v", p)
		}
	})
}
