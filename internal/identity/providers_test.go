package identity

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// providerToken is an access token of the shape that an identity provider sends, shortened to what
// matters and with time claims left out.
type providerToken struct {
	typ    string // of the header; empty = none
	claims string
	want   keys.Principal
	// several is the same token of a user who is in two organizations, where the provider has such
	// tokens. It must be rejected.
	several string
}

func who(user, organization string, roles ...string) keys.Principal {
	return keys.Principal{User: user, OrganizationID: organization, Roles: roles}
}

// providerTokens are by the first column of the table in docs/operations.md.
var providerTokens = map[string]providerToken{
	"Auth0": {
		typ: "at+jwt",
		claims: `"iss":"https://acme.eu.auth0.com/","sub":"auth0|5f7c8ec7c33c6c004bbafe82",
			"aud":["https://keys.example.com","https://acme.eu.auth0.com/userinfo"],
			"azp":"my_client_id","scope":"openid profile","org_id":"org_9ybsU1dN2dKfDkBi",
			"permissions":["keys:manage"]`,
		want: who("auth0|5f7c8ec7c33c6c004bbafe82", "org_9ybsU1dN2dKfDkBi", "keys:manage"),
	},
	"Clerk": {
		typ: "JWT",
		claims: `"iss":"https://clerk.example.com","sub":"user_2NNEqL2nrIRdJ194ndJqAHwEfxC",
			"azp":"https://example.com",
			"fva":[7,-1],"sid":"sess_123","v":2,"pla":"u:free","fea":"o:dashboard",
			"o":{"id":"org_2PZ1bHMl5wC6L3","slg":"acme","rol":"admin","per":"read,manage","fpm":"3"}`,
		want: who("user_2NNEqL2nrIRdJ194ndJqAHwEfxC", "org_2PZ1bHMl5wC6L3", "admin"),
	},
	"Entra ID": {
		typ: "JWT",
		claims: `"iss":"https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0",
			"ver":"2.0",
			"aud":"00001111-aaaa-2222-bbbb-3333cccc4444","azp":"11112222-bbbb-3333-cccc-4444dddd5555",
			"azpacr":"0",
			"oid":"aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb",
			"sub":"AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
			"tid":"72f988bf-86f1-41af-91ab-2d7cd011db47","scp":"access_as_user","roles":["KeyManager"],
			"uti":"x","rh":"y"`,
		want: who("AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
			"72f988bf-86f1-41af-91ab-2d7cd011db47", "KeyManager"),
	},
	"Keycloak, names": {
		typ: "JWT",
		claims: `"iss":"https://sso.example.com/realms/acme",
			"sub":"a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c","typ":"Bearer","azp":"dashboard",
			"aud":["keyward","account"],"acr":"1","realm_access":{"roles":["offline_access",
			"key-manager"]},
			"resource_access":{"account":{"roles":["view-profile"]}},"scope":"openid organization",
			"organization":["testcorp"]`,
		want: who("a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c", "testcorp", "offline_access", "key-manager"),
		several: `"sub":"a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c","scope":"openid organization:*",
			"organization":["testcorp","other"]`,
	},
	"Keycloak, ids": {
		typ: "JWT",
		claims: `"iss":"https://sso.example.com/realms/acme",
			"sub":"a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c","typ":"Bearer","azp":"dashboard",
			"aud":"keyward","realm_access":{"roles":["key-manager"]},
			"organization":{"testcorp":{"id":"42c3e46f-2477-44d7-a85b-d3b43f6b31fa","attr1":["value1"]}}`,
		want: who("a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c",
			"42c3e46f-2477-44d7-a85b-d3b43f6b31fa", "key-manager"),
		several: `"sub":"a0c4d9b1-7f1c-4f8e-9f7a-0f6f1a1f2b3c",
			"organization":{"a":{"id":"42c3e46f-2477-44d7-a85b-d3b43f6b31fa"},
			"b":{"id":"53d4f570-2477-44d7-a85b-d3b43f6b31fa"}}`,
	},
	"Okta": {
		claims: `"ver":1,"jti":"AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
			"iss":"https://acme.okta.com/oauth2/default",
			"aud":"api://default","cid":"0oabucvyc38HLL1ef0h7","uid":"00ukz6E5NtW8RhLV60g5",
			"scp":["openid"],
			"sub":"jane@example.com","org_id":"acme","groups":["Everyone","Key managers"]`,
		want: who("jane@example.com", "acme", "Everyone", "Key managers"),
	},
	"Stytch": {
		typ: "JWT",
		claims: `"iss":"stytch.com/project-live-8aed2e54","aud":["project-live-8aed2e54"],
			"sub":"member-live-32fc5024",
			"https://stytch.com/organization":{"organization_id":"organization-live-07971b06",
			"slug":"acme"},
			"https://stytch.com/session":{"id":"session-live-fe6c042b","roles":["stytch_member",
			"key_manager"]}`,
		want: who("member-live-32fc5024", "organization-live-07971b06", "stytch_member", "key_manager"),
	},
	"Supabase": {
		typ: "JWT",
		claims: `"iss":"https://abcdefghijkl.supabase.co/auth/v1","aud":"authenticated",
			"sub":"123e4567-e89b-12d3-a456-426614174000",
			"role":"authenticated","aal":"aal1","session_id":"x","email":"jane@example.com","phone":"",
			"is_anonymous":false,
			"app_metadata":{"provider":"email","providers":["email"],"org_id":"acme",
			"roles":["key_manager"]},
			"user_metadata":{"org_id":"of-the-users-own-choice"}`,
		want: who("123e4567-e89b-12d3-a456-426614174000", "acme", "key_manager"),
	},
	"WorkOS": {
		claims: `"iss":"https://api.workos.com","sub":"user_01HBEQKA6K4QJAS93VPE39W1JT",
			"act":{"sub":"admin@foocorp.com"},
			"org_id":"org_01HRDMC6CM357W30QMHMQ96Q0S","role":"member","roles":["member"],
			"permissions":["keys:manage"],"entitlements":["audit-logs"],
			"sid":"session_01HQSXZGF8FHF7A9ZZFCW4387R"`,
		want: who("user_01HBEQKA6K4QJAS93VPE39W1JT", "org_01HRDMC6CM357W30QMHMQ96Q0S", "member"),
	},
	"Zitadel": {
		claims: `"iss":"https://acme.zitadel.cloud","sub":"359478213648374507",
			"aud":["358982420441159448","358982239599491392"],
			"client_id":"358982420441159448","jti":"V2_1",
			"urn:zitadel:iam:user:resourceowner:id":"358981944035333912",
			"urn:zitadel:iam:user:resourceowner:name":"acme","urn:zitadel:iam:org:project:roles":{
			"key_manager":{"358981944035333912":"acme.zitadel.cloud"},
			"admin":{"999999999999999999":"other.zitadel.cloud"}}`,
		want: who("359478213648374507", "358981944035333912", "key_manager"),
	},
}

// providerRow is a row of the table.
type providerRow struct{ audience, organization, roles string }

// providerRows reads the table under "Connect an identity provider".
func providerRows(t *testing.T) map[string]providerRow {
	t.Helper()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## Connect an identity provider\n")
	if !found {
		t.Fatal("docs/operations.md has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := make(map[string]providerRow)
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 6 || strings.Contains(line, "---") || strings.HasPrefix(line, "| provider ") {
			continue
		}
		for i, c := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(c), "`")
		}
		rows[cells[0]] = providerRow{audience: cells[2], organization: cells[3], roles: cells[4]}
	}
	return rows
}

// TestR3IdentityProviders: each row of the table fits a token of that provider.
func TestR3IdentityProviders(t *testing.T) {
	rows := providerRows(t)
	for name := range rows {
		if _, found := providerTokens[name]; !found {
			t.Errorf("docs/operations.md has a row %q without a token here", name)
		}
	}
	k := rsaKey(t, "k")
	path := writeFile(t, keySetJSON(t, k.with(nil)))
	for name, tt := range providerTokens {
		row, found := rows[name]
		if !found {
			t.Errorf("docs/operations.md has no row %q", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			c := Config{JWKS: path, OrganizationClaim: row.organization, RoleClaim: row.roles,
				Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return testNow }}
			if row.audience != "none" {
				c.Audience = row.audience
			}
			a, err := New(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			sign := func(members string) string {
				h := map[string]any{"typ": nil}
				if tt.typ != "" {
					h["typ"] = tt.typ
				}
				times := fmt.Sprintf(`"iat":%d,"exp":%d,`, testNow.Unix(), testNow.Add(time.Minute).Unix())
				return k.raw(k.header(t, h), "{"+times+members+"}")
			}
			got, err := a.Authenticate(t.Context(), sign(tt.claims))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
			if tt.several == "" {
				return
			}
			members := tt.several
			if c.Audience != "" {
				members += `,"aud":` + mustJSON(t, c.Audience)
			}
			_, err = a.Authenticate(t.Context(), sign(members))
			if !strings.Contains(reasonOf(err), "names several organizations") {
				t.Errorf("two organizations: got %v, want a rejection", err)
			}
		})
	}
}
