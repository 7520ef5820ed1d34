package identity

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// reasonOf returns why a token was rejected, "" when it was not.
func reasonOf(err error) string {
	var invalid *InvalidTokenError
	if errors.As(err, &invalid) {
		return invalid.Reason
	}
	return ""
}

// TestR3OrganizationClaimPath: the literal name first, then a path, and never a guess.
func TestR3OrganizationClaimPath(t *testing.T) {
	k := secretKey(testSecret)
	for _, tt := range []struct {
		name, path, claims string // claims are the members of the payload besides the ordinary ones
		want               string
		reason             string // of the rejection, when want is empty
	}{
		{name: "path", path: "app_metadata.org_id", claims: `"app_metadata":{"org_id":"a"}`, want: "a"},
		{name: "long path", path: "a.b.c.d", claims: `"a":{"b":{"c":{"d":"deep"}}}`, want: "deep"},
		{name: "literal name", path: "app_metadata.org_id",
			claims: `"app_metadata.org_id":"lit"`, want: "lit"},
		{name: "literal name before the path", path: "a.b",
			claims: `"a":{"b":"path"},"a.b":"lit"`, want: "lit"},
		{name: "literal name that is null", path: "a.b",
			claims: `"a":{"b":"path"},"a.b":null`, reason: "is missing"},
		{name: "literal name of another type", path: "a.b",
			claims: `"a":{"b":"path"},"a.b":7`, reason: "is no string"},
		{name: "URL", path: "https://example.com/org",
			claims: `"https://example.com/org":"u"`, want: "u"},
		{name: "object under a URL", path: "https://example.com/claims.org.id", want: "u",
			claims: `"https://example.com/claims":{"org":{"id":"u"}}`},
		{name: "the longest name counts", path: "a.b.c",
			claims: `"a":{"b":{"c":"short"}},"a.b":{"c":"long"}`, want: "long"},
		{name: "no way back from the longest name", path: "a.b.c",
			claims: `"a":{"b":{"c":"short"}},"a.b":{}`,
			reason: "is missing"},
		{name: "another case", path: "App_Metadata.org_id",
			claims: `"app_metadata":{"org_id":"a"}`, reason: "is missing"},

		{name: "array of one", path: "organization", claims: `"organization":["acme"]`, want: "acme"},
		{name: "array at the end of a path", path: "a.orgs",
			claims: `"a":{"orgs":["acme"]}`, want: "acme"},
		{name: "empty array", path: "organization", claims: `"organization":[]`, reason: "is missing"},
		{name: "array of two", path: "organization", claims: `"organization":["a","b"]`,
			reason: "names several organizations"},
		{name: "array of one twice", path: "organization", claims: `"organization":["a","a"]`,
			reason: "names several organizations"},
		{name: "array in an array", path: "organization",
			claims: `"organization":[["a"]]`, reason: "is no string"},
		{name: "array of an object", path: "organization",
			claims: `"organization":[{"id":"a"}]`, reason: "is no string"},
		{name: "object", path: "organization",
			claims: `"organization":{"id":"a"}`, reason: "is no string"},
		{name: "map without ids", path: "organization",
			claims: `"organization":{"acme":{}}`, reason: "is no string"},

		{name: "only object of an array", path: "orgs.*.id", claims: `"orgs":[{"id":"a"}]`, want: "a"},
		{name: "only member of a map", path: "organization.*.id",
			claims: `"organization":{"acme":{"id":"a"}}`, want: "a"},
		{name: "only element", path: "orgs.*", claims: `"orgs":["a"]`, want: "a"},
		{name: "two objects of an array", path: "orgs.*.id", claims: `"orgs":[{"id":"a"},{"id":"b"}]`,
			reason: "names several organizations"},
		{name: "two objects, one without an id", path: "orgs.*.id", claims: `"orgs":[{"id":"a"},{}]`,
			reason: "names several organizations"},
		{name: "two members of a map", path: "organization.*.id",
			claims: `"organization":{"a":{"id":"a"},"b":{"id":"b"}}`, reason: "names several organizations"},
		{name: "no member of a map", path: "organization.*.id",
			claims: `"organization":{}`, reason: "is missing"},
		{name: "no element", path: "orgs.*.id", claims: `"orgs":[]`, reason: "is missing"},
		{name: "only element is a string", path: "orgs.*.id",
			claims: `"orgs":["a"]`, reason: "is missing"},
		{name: "a member named *", path: "o.*", claims: `"o":{"*":"star","b":"c"}`, want: "star"},
		{name: "the star alone is a name", path: "*", claims: `"x":"a"`, reason: "is missing"},
		{name: "an index is a name", path: "orgs.0", claims: `"orgs":["a"]`, reason: "is missing"},

		{name: "path through a string", path: "a.b", claims: `"a":"b"`, reason: "is missing"},
		{name: "path through a number", path: "a.b", claims: `"a":1`, reason: "is missing"},
		{name: "path through null", path: "a.b", claims: `"a":null`, reason: "is missing"},
		{name: "path through an array", path: "a.b", claims: `"a":[{"b":"x"}]`, reason: "is missing"},
		{name: "member twice", path: "a.b", claims: `"a":{"b":"x","b":"y"}`, reason: "cannot be read"},
		{name: "another member twice", path: "a.b",
			claims: `"a":{"b":"x","c":1,"c":2}`, reason: "cannot be read"},
		{name: "number", path: "a.b", claims: `"a":{"b":7}`, reason: "is no string"},
		{name: "boolean", path: "a.b", claims: `"a":{"b":true}`, reason: "is no string"},
		{name: "empty", path: "a.b", claims: `"a":{"b":""}`, reason: "is not an organization id"},
		{name: "not an id", path: "a.b", claims: `"a":{"b":"../x"}`, reason: "is not an organization id"},
		{name: "not an id in an array", path: "a",
			claims: `"a":["x y"]`, reason: "is not an organization id"},
		{name: "dots alone", path: "...", claims: `"a":{"":"x"}`, reason: "is missing"},
		{name: "empty names", path: "a..b", claims: `"a":{"":{"b":"x"}}`, want: "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := authenticator(t, Config{HS256Secret: testSecret, OrganizationClaim: tt.path})
			ordinary := mustJSON(t, claims(map[string]any{"org_id": nil}))
			payload := strings.TrimSuffix(ordinary, "}") + "," + tt.claims + "}"
			if !json.Valid([]byte(payload)) {
				t.Fatalf("the test's payload is no JSON: %s", payload)
			}
			token := k.raw(k.header(t, nil), payload)
			got, err := a.Authenticate(t.Context(), token)
			if tt.want != "" {
				if err != nil || got.OrganizationID != tt.want {
					t.Errorf("got %q, %v, want %q", got.OrganizationID, err, tt.want)
				}
				return
			}
			if !refused(t, token, err) {
				t.Fatalf("got %q, %v, want a rejection", got.OrganizationID, err)
			}
			// The log says which claim was looked at, and what is wrong with it.
			want := `organization claim "` + tt.path + `" ` + tt.reason
			if !strings.HasPrefix(reasonOf(err), want) {
				t.Errorf("reason %q, want %q", reasonOf(err), want)
			}
		})
	}
}

// TestR3RoleClaimPath: roles are found by a path too. A token without them has no roles (403) and
// is not a bad token (401).
func TestR3RoleClaimPath(t *testing.T) {
	k := secretKey(testSecret)
	for _, tt := range []struct {
		name, path, claims string
		want               []string
		reason             string // of the rejection, if the token is rejected
	}{
		{name: "path", path: "realm_access.roles",
			claims: `"realm_access":{"roles":["a","b c"]}`, want: []string{"a", "b c"}},
		{name: "literal name first", path: "a.b",
			claims: `"a":{"b":["path"]},"a.b":["lit"]`, want: []string{"lit"}},
		{name: "a string at a path", path: "o.rol",
			claims: `"o":{"rol":"admin"}`, want: []string{"admin"}},
		{name: "spaces", path: "o.scope", claims: `"o":{"scope":"r w"}`, want: []string{"r", "w"}},
		{name: "only member", path: "resource_access.*.roles",
			claims: `"resource_access":{"x":{"roles":["r"]}}`,
			want:   []string{"r"}},
		{name: "two members", path: "resource_access.*.roles",
			claims: `"resource_access":{"x":{"roles":["r"]},"y":{"roles":["s"]}}`,
			reason: "has several members at *"},
		{name: "no member", path: "resource_access.*.roles", claims: `"resource_access":{}`},
		{name: "missing", path: "realm_access.roles", claims: `"x":1`},
		{name: "missing below", path: "realm_access.roles", claims: `"realm_access":{}`},
		{name: "path through a string", path: "realm_access.roles", claims: `"realm_access":"roles"`},
		{name: "member twice", path: "a.roles",
			claims: `"a":{"roles":["x"],"roles":["y"]}`, reason: "cannot be read"},
		{name: "number", path: "a.roles", claims: `"a":{"roles":1}`, reason: "is neither"},
		{name: "array of numbers", path: "a.roles", claims: `"a":{"roles":[1]}`, reason: "is neither"},

		// Zitadel: role → organizations that granted it. What another organization granted does not
		// count.
		{name: "role of the organization", path: "roles",
			claims: `"roles":{"admin":{"org_1":"acme.example"}}`,
			want:   []string{"admin"}},
		{name: "role of another organization", path: "roles",
			claims: `"roles":{"admin":{"org_2":"x"},"viewer":{"org_1":"y"}}`,
			want:   []string{"viewer"}},
		{name: "role of both", path: "roles",
			claims: `"roles":{"admin":{"org_2":"x","org_1":"y"}}`, want: []string{"admin"}},
		{name: "several roles, in order", path: "roles",
			claims: `"roles":{"c":{"org_1":""},"a":{"org_1":""},"b":{"org_1":""}}`,
			want:   []string{"a", "b", "c"}},
		{name: "no role", path: "roles", claims: `"roles":{}`},
		{name: "role of no organization", path: "roles", claims: `"roles":{"admin":{}}`},
		{name: "flags", path: "roles", claims: `"roles":{"admin":true}`, reason: "is neither"},
		{name: "one flag", path: "roles",
			claims: `"roles":{"a":{"org_1":""},"admin":true}`, reason: "is neither"},
		{name: "role twice", path: "roles",
			claims: `"roles":{"admin":{},"admin":{"org_1":""}}`, reason: "cannot be read"},
		{name: "organization twice", path: "roles", claims: `"roles":{"admin":{"org_1":"","org_1":""}}`,
			reason: "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := authenticator(t, Config{HS256Secret: testSecret, RoleClaim: tt.path})
			payload := strings.TrimSuffix(mustJSON(t, claims(nil)), "}") + "," + tt.claims + "}"
			token := k.raw(k.header(t, nil), payload)
			got, err := a.Authenticate(t.Context(), token)
			if tt.reason != "" {
				if !refused(t, token, err) || !strings.HasPrefix(reasonOf(err), `role claim "`+tt.path+`" `+tt.reason) {
					t.Errorf("got %v, %v, want a rejection: %s", got.Roles, err, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Roles) == 0 {
				got.Roles = nil
			}
			if diff := cmp.Diff(tt.want, got.Roles); diff != "" {
				t.Errorf("roles (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzR3ClaimPath: whatever path is set and whatever is signed, a principal that comes out has one
// valid organization, and the text of a rejection is no longer than the setting makes it.
func FuzzR3ClaimPath(f *testing.F) {
	for _, seed := range []struct{ path, claims string }{
		{"a.b", `{"a":{"b":"x"}}`}, {"a.*.id", `{"a":[{"id":"x"}]}`}, {"*", `{"*":["x"]}`},
		{"a.", `{"a":{"":"x"}}`}, {".", `{"":{"":"x"}}`}, {"a.*.*", `{"a":{"b":["x"]}}`},
		{"a.b", `{"a":{"b":{"c":{"x":""}}}}`}, {"", `{"":["x"]}`},
	} {
		f.Add(seed.path, seed.claims)
	}
	f.Fuzz(func(t *testing.T, path, payload string) {
		members, ok := object([]byte(payload))
		if !ok {
			return
		}
		a := &Authenticator{organizationClaim: path, roleClaim: path}
		id, err := a.organization(members)
		if err == nil && !keys.ValidOrganizationID(id) {
			t.Errorf("organization %q", id)
		}
		if err != nil && (id != "" || len(err.Error()) > 200+10*len(path)) {
			t.Errorf("%q with %d bytes of error", id, len(err.Error()))
		}
		if roles, err := a.roles(members, "x"); err != nil && roles != nil {
			t.Errorf("roles %q with %v", roles, err)
		}
	})
}
