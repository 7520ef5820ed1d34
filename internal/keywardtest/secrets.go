package keywardtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/token"
)

// Secrets are one secret for each verdict there is. Live belongs to Organization, whose connected account is Account;
// ForeignAccount is another organization's.
type Secrets struct {
	Organization   string `json:"organization"`
	Account        string `json:"account"`
	ForeignAccount string `json:"foreign_account"`
	Live           string `json:"live"`
	LiveID         string `json:"live_id"`
	Test           string `json:"test"` // of an organization that may not take payments
	Revoked        string `json:"revoked"`
	Expired        string `json:"expired"`
	Unknown        string `json:"unknown"`
	Malformed      string `json:"malformed"`
	Inactive       string `json:"inactive"` // of an organization that is switched off
}

// Issue makes them on a server, which takes the credential for every listener; empty = it asks for none.
func (p *Process) Issue(tb testing.TB, credential string) Secrets {
	tb.Helper()
	put := func(id, body string) {
		tb.Helper()
		p.call(tb, http.MethodPut, p.Admin+"/v1/organizations/"+id, credential, body, nil)
	}
	keys := p.Public + keysPath
	create := func(organization string) api.IssuedKey { tb.Helper(); return p.Create(tb, organization) }
	put("org_1", `{"payments_enabled":true}`)
	put("acct_1", `{"parent_organization_id":"org_1"}`)
	put("org_2", `{"payments_enabled":true}`)
	put("acct_2", `{"parent_organization_id":"org_2"}`)
	live := create("org_1")
	s := Secrets{Organization: "org_1", Account: "acct_1", ForeignAccount: "acct_2", Live: live.Key, LiveID: live.APIKeyID, Test: create("org_test").Key, Malformed: "not-a-key"}

	gone := create("org_gone")
	s.Revoked = gone.Key
	p.call(tb, http.MethodPost, keys+"/"+gone.APIKeyID+"/revoke", p.Token(tb, "user_org_gone", "org_gone"), "", nil)

	old := create("org_old") // expires when the overlap ends
	s.Expired = old.Key
	p.call(tb, http.MethodPost, keys+"/"+old.APIKeyID+"/roll", p.Token(tb, "user_org_old", "org_old"), `{"overlap_seconds":1}`, nil)

	s.Inactive = create("org_off").Key
	put("org_off", `{"is_active":false}`)

	format, err := token.NewFormat("sk")
	if err != nil {
		tb.Fatal(err)
	}
	unknown, err := format.Generate(token.Live)
	if err != nil {
		tb.Fatal(err)
	}
	s.Unknown = unknown.Reveal()
	if err := Poll(func() bool {
		var v api.Verdict
		p.call(tb, http.MethodPost, p.Verification+"/v1/verify", credential, `{"key":"`+s.Expired+`"}`, &v)
		return v.Reason == "expired"
	}, p.exited); err != nil {
		tb.Fatalf("the overlap's end: %v", err)
	}
	return s
}

const keysPath = "/api/v1/auth/api-keys"

// Create issues a key for an organization, by a user of its own.
func (p *Process) Create(tb testing.TB, organization string) (k api.IssuedKey) {
	tb.Helper()
	p.call(tb, http.MethodPost, p.Public+keysPath, p.Token(tb, "user_"+organization, organization), `{"key_name":"Till","expires_in_days":30}`, &k)
	return k
}

// call sends JSON and reads the answer into v, unless that is nil. It fails the test when the answer is no success.
func (p *Process) call(tb testing.TB, method, url, bearer, body string, v any) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		tb.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		tb.Fatalf("%s %s: %s %s", method, url, resp.Status, answer)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(answer, v); err != nil {
		tb.Fatal(err)
	}
}
