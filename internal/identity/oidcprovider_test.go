package identity

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// oidcProvider is an identity provider that others wrote: npm's oidc-provider.
type oidcProvider struct {
	t      *testing.T
	issuer string
	client http.Client
}

// startOIDCProvider installs the provider into a new folder and runs it until the test ends.
func startOIDCProvider(t *testing.T) *oidcProvider {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: this test needs Node 18 or newer with npm: sudo apt-get install nodejs npm", err)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "oidc-provider"))); err != nil {
		t.Fatal(err)
	}
	install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	cmd := exec.Command("node", "issuer.mjs")
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe() // its end is the process's end
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if err != nil {
		_ = stdin.Close()
		_ = cmd.Wait()
		t.Fatalf("the provider did not start: %v\n%s", err, stderr.String())
	}
	p := &oidcProvider{t: t, issuer: strings.TrimSpace(line)}
	p.client.Transport = &http.Transport{DisableKeepAlives: true}
	return p
}

func (p *oidcProvider) body(resp *http.Response, err error) string {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		p.t.Fatalf("%d, %v: %s", resp.StatusCode, err, data)
	}
	return string(data)
}

// accessToken returns an access token for a resource. The end of its name says of which kind.
func (p *oidcProvider) accessToken(kind string) string {
	p.t.Helper()
	form := url.Values{
		"grant_type": {"client_credentials"}, "scope": {"keys:manage keys:read"},
		"resource": {testResource + "/" + kind},
	}
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.issuer+"/token",
		strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("dashboard", "not-a-secret")
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(p.body(p.client.Do(req))), &answer); err != nil {
		p.t.Fatal(err)
	}
	return answer.AccessToken
}

const testResource = "https://keys.example.com"

// TestC1OIDCProvider: a provider that others wrote. Its access tokens are accepted, of each
// algorithm; its ID tokens and opaque tokens are not (RFC 8725 §3.12); a rotation of its keys is
// seen at once.
func TestC1OIDCProvider(t *testing.T) {
	t.Parallel()
	p := startOIDCProvider(t)
	a := authenticator(t, Config{
		JWKS: p.issuer + "/jwks", Issuer: p.issuer, Audience: testResource, Now: time.Now,
		OrganizationClaim: "https://example.com/app.organizations", RoleClaim: "scope",
	})
	want := keys.Principal{
		User: "dashboard", OrganizationID: "org_acme", Roles: []string{"keys:manage", "keys:read"},
	}
	accept := func(what, token string) {
		t.Helper()
		got, err := a.Authenticate(t.Context(), token)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: principal (-want +got):\n%s", what, diff)
		}
	}
	accept("RS256", p.accessToken("rs256"))
	old := p.accessToken("es256")
	accept("ES256", old)
	for what, token := range map[string]string{
		"ID token":     p.body(p.client.Get(p.issuer + "/id_token")),
		"opaque token": p.accessToken("opaque"),
	} {
		if _, err := a.Authenticate(t.Context(), token); !refused(t, token, err) {
			t.Errorf("%s: got %v, want a rejection", what, err)
		}
	}
	p.body(p.client.Post(p.issuer+"/rotate", "", nil))
	accept("new ES256 key", p.accessToken("es256"))
	accept("new RS256 key", p.accessToken("rs256"))
	if _, err := a.Authenticate(t.Context(), old); !refused(t, old, err) {
		t.Errorf("token of the withdrawn key: got %v, want a rejection", err)
	}
}
