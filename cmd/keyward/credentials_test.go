package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// replaceFile writes a file as tools do that replace one: beside it, then in its place.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	writeFile(t, filepath.Dir(path), filepath.Base(path)+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// made runs credential new and returns what it printed.
func made(t *testing.T, name, scope string) newCredential {
	t.Helper()
	code, out, stderr := command(t, []string{"credential", "new", "--name", name, "--scope", scope, "--output", "json"}, nil, "")
	if code != 0 {
		t.Fatalf("credential new: %d %s", code, stderr)
	}
	return decode[newCredential](t, out)
}

// O5, item 6: what the token of a proxy may do, and what not; the file is read again when it
// changes and at SIGHUP, which does not end the process (R11).
func TestO5CredentialsFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	proxy, ann, late := made(t, "proxy", "verify"), made(t, "ann", "operate"), made(t, "late", "verify")
	file := writeFile(t, dir, "credentials", "# services\n"+proxy.Line+"\n"+ann.Line+"\n")
	p := keywardtest.Start(t, keywardtest.Options{Dir: dir, Flags: []string{"--credentials-file=" + file, "--extauthz-listen=127.0.0.1:0"}})
	status := func(method, url, token, body string) int {
		t.Helper()
		resp, _ := request(t, method, url, token, body)
		return resp.StatusCode
	}
	const check = `{"key":"x"}`
	for name, got := range map[string]int{
		"the proxy verifies":        status("POST", p.Verification+"/v1/verify", proxy.Token, check),
		"an operator administers":   status("PUT", p.Admin+"/v1/organizations/org_a", ann.Token, `{}`),
		"an operator reads metrics": status("GET", p.Admin+"/metrics", ann.Token, ""),
	} {
		if got != http.StatusOK {
			t.Errorf("%s: %d", name, got)
		}
	}
	for name, got := range map[string]int{
		"the proxy takes an organization": status("PUT", p.Admin+"/v1/organizations/org_a", proxy.Token, `{"parent_organization_id":"org_evil"}`),
		"the proxy reads the audit log":   status("GET", p.Admin+"/v1/audit", proxy.Token, ""),
		"the proxy rotates":               status("POST", p.Admin+"/v1/master-key/rotate", proxy.Token, ""),
		"an operator verifies":            status("POST", p.Verification+"/v1/verify", ann.Token, check),
	} {
		if got != http.StatusForbidden {
			t.Errorf("%s: %d", name, got)
		}
	}
	for token, want := range map[string]int{proxy.Token: 401, ann.Token: 403, late.Token: 401} { // the secret is not valid
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		if got := checked(t, ctx, envoy(t, p, nil), newSecret(t)); got != want {
			t.Errorf("ext_authz with %.8s…: %d, want %d", token, got, want)
		}
	}

	_, body := request(t, "GET", p.Admin+"/v1/audit", ann.Token, "")
	var got []string
	for _, e := range decode[api.AuditList](t, body).Entries {
		got = append(got, e.Actor+" "+e.Action+" "+e.Outcome)
	}
	denied := map[string]int{}
	for _, line := range got {
		denied[line]++
	}
	want := map[string]int{
		"operator:ann organization.put done": 1, "operator:proxy credential.use forbidden": 3, "operator:ann credential.use forbidden": 2,
	}
	if diff := cmp.Diff(want, denied); diff != "" {
		t.Errorf("audit log (-want +got):\n%s", diff)
	}

	// A line more, and one less, without a restart.
	replaceFile(t, file, ann.Line+"\n"+late.Line+"\n")
	p.Signal(t, syscall.SIGHUP)
	if err := keywardtest.Poll(func() bool { return status("POST", p.Verification+"/v1/verify", late.Token, check) == 200 }, p.Exited()); err != nil {
		t.Errorf("the new credential: %v", err)
	}
	if got := status("POST", p.Verification+"/v1/verify", proxy.Token, check); got != http.StatusUnauthorized {
		t.Errorf("the credential that was taken away: %d", got)
	}
	// A file that is wrong keeps the last good one, and is told of without what it holds.
	replaceFile(t, file, "late everything "+late.Token+"\n")
	if err := keywardtest.Poll(func() bool { // by itself, when it is used
		status("POST", p.Verification+"/v1/verify", late.Token, check)
		return len(p.Log("changed files cannot be used; the former content stays")) > 0
	}, p.Exited()); err != nil {
		t.Errorf("the wrong file: %v", err)
	}
	if got := status("POST", p.Verification+"/v1/verify", late.Token, check); got != http.StatusOK {
		t.Errorf("the last good credential: %d", got)
	}
	for _, token := range []string{proxy.Token, ann.Token, late.Token} {
		if strings.Contains(p.Stderr(), token) {
			t.Error("the log holds a token")
		}
	}
}

// issueNamed returns a client certificate with a subject, and its key, in PEM.
func (a *authority) issueNamed(t *testing.T, subject pkix.Name, names ...string) (cert, key string) {
	t.Helper()
	private := newECKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: subject, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// O5: a client certificate is a caller. It may verify, by HTTP and by ext_authz; what else, a line
// of the credentials file says. A token that comes with it decides instead of it.
func TestO5ClientCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAuthority(t)
	cert, key := a.issue(t, 1)
	ann, reader := made(t, "ann", "operate"), made(t, "prometheus", "read")
	file := writeFile(t, dir, "credentials", ann.Line+"\n"+reader.Line+"\nops operate cert:CN=ops,O=Acme\nscraper read cert:scraper\n")
	p := keywardtest.Start(t, keywardtest.Options{Dir: dir, NotReady: true, Flags: []string{
		"--tls-cert-file=" + writeFile(t, dir, "tls.crt", cert), "--tls-key-file=" + writeFile(t, dir, "tls.key", key), "--credentials-file=" + file,
		"--internal-client-ca-file=" + writeFile(t, dir, "ca.pem", a.pem), "--extauthz-listen=127.0.0.1:0",
	}})
	p.WaitLog(t, `"msg":"ready"`)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	config := func(subject pkix.Name) *tls.Config {
		cert, key := a.issueNamed(t, subject)
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	}
	for _, tt := range []struct {
		name                  string
		subject               pkix.Name
		token                 string
		verify, read, operate int
	}{
		{"no line for it", pkix.Name{CommonName: "envoy"}, "", 200, 403, 403},
		{"by its common name", pkix.Name{CommonName: "scraper", Organization: []string{"Any"}}, "", 403, 200, 403},
		{"by its subject", pkix.Name{CommonName: "ops", Organization: []string{"Acme"}}, "", 403, 200, 200},
		{"another subject", pkix.Name{CommonName: "ops", Organization: []string{"Evil"}}, "", 200, 403, 403},
		{"a common name that reads like a subject", pkix.Name{CommonName: "CN=ops,O=Acme"}, "", 200, 403, 403},
		{"no subject", pkix.Name{}, "", 200, 403, 403},
		{"with a token that may more", pkix.Name{CommonName: "envoy"}, ann.Token, 403, 200, 200},
		{"with a token that may less", pkix.Name{CommonName: "ops", Organization: []string{"Acme"}}, reader.Token, 403, 200, 403},
		{"with a wrong token", pkix.Name{CommonName: "ops", Organization: []string{"Acme"}}, "no-such-token-is-there", 401, 401, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(tt.subject)
			transport := &http.Transport{TLSClientConfig: c}
			defer transport.CloseIdleConnections()
			ask := func(method, url, body string) int {
				t.Helper()
				req, err := http.NewRequest(method, url, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if body != "" {
					req.Header.Set("Content-Type", "application/json")
				}
				if tt.token != "" {
					req.Header.Set("Authorization", "Bearer "+tt.token)
				}
				resp, err := (&http.Client{Transport: transport}).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				return resp.StatusCode
			}
			got := [3]int{ask("POST", p.Verification+"/v1/verify", `{"key":"x"}`), ask("GET", p.Admin+"/v1/status", ""), ask("PUT", p.Admin+"/v1/organizations/org_a", `{}`)}
			if want := [3]int{tt.verify, tt.read, tt.operate}; got != want {
				t.Errorf("verify, read, operate: %v, want %v", got, want)
			}
			ctx := context.Context(t.Context())
			if tt.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tt.token)
			}
			want := tt.verify
			if want == 200 {
				want = 401 // the secret is not valid
			}
			if got := checked(t, ctx, envoy(t, p, c), newSecret(t)); got != want {
				t.Errorf("ext_authz: %d, want %d", got, want)
			}
		})
	}
	// The certificate's subject is the actor.
	env := []string{
		"KEYWARD_SERVER=" + p.Admin, "KEYWARD_SERVER_CA_FILE=" + dir + "/ca.pem", "KEYWARD_CREDENTIALS_FILE=",
		"KEYWARD_CREDENTIAL_FILE=" + writeFile(t, dir, "token", ann.Token+"\n"), "KEYWARD_CLIENT_CERT_FILE=" + dir + "/tls.crt", "KEYWARD_CLIENT_KEY_FILE=" + dir + "/tls.key",
	}
	code, out, stderr := command(t, []string{"audit", "list"}, env, "")
	if code != 0 || !regexp.MustCompile(`CN=ops,O=Acme +organization.put`).MatchString(out) || !strings.Contains(out, "operator:ann") || !regexp.MustCompile(`CN=envoy +credential.use`).MatchString(out) {
		t.Errorf("audit list: %d\n%s%s", code, out, stderr)
	}
}

// Item 17: started with the server's own settings and no flag, every command finds the server, with
// TLS, client certificates and credentials; the certificate need not be for the address.
func TestR4CommandsShareTheSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAuthority(t)
	cert, key := a.issueNamed(t, pkix.Name{CommonName: "keyward"}, "keyward.internal")
	service := made(t, "service", "verify,read").Token // in plain, as the file may have it
	certFile, keyFile := writeFile(t, dir, "tls.crt", cert), writeFile(t, dir, "tls.key", key)
	caFile := writeFile(t, dir, "ca.pem", a.pem)
	certificates := []string{"KEYWARD_TLS_CERT_FILE=" + certFile, "KEYWARD_TLS_KEY_FILE=" + keyFile}
	for name, tt := range map[string]struct {
		env    []string
		secret bool // verify is allowed
		status int  // exit code of nodes, which reads
	}{
		"in the clear": {nil, true, 0},
		"credentials":  {[]string{"KEYWARD_CREDENTIALS_FILE=" + writeFile(t, dir, "plain", "service verify,read "+service+"\n")}, true, 0},
		"digests":      {[]string{"KEYWARD_CREDENTIALS_FILE=" + writeFile(t, dir, "digests", made(t, "x", "read").Line+"\n")}, false, 1},
		"TLS":          {certificates, true, 0},
		"certificates": {append([]string{"KEYWARD_INTERNAL_CLIENT_CA_FILE=" + caFile, "KEYWARD_CREDENTIALS_FILE=" + writeFile(t, dir, "subjects", "nodes verify,read cert:keyward\n")}, certificates...), true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := keywardtest.Start(t, keywardtest.Options{Env: tt.env, NotReady: true, Flags: []string{"--extauthz-listen=127.0.0.1:0"}})
			p.WaitLog(t, `"msg":"ready"`)
			env := append([]string{
				"KEYWARD_LISTEN=" + p.Address(t, "public"), "KEYWARD_VERIFY_LISTEN=" + p.Address(t, "verification"),
				"KEYWARD_ADMIN_LISTEN=" + p.Address(t, "admin"), "KEYWARD_EXTAUTHZ_LISTEN=" + p.Address(t, "extauthz"),
			}, tt.env...)
			if code, out, stderr := command(t, []string{"healthcheck"}, env, ""); code != 0 {
				t.Errorf("healthcheck: %d %s%s", code, out, stderr)
			}
			if code, out, stderr := command(t, []string{"healthcheck", "--credentials-file", "missing"}, env, ""); code != 0 {
				t.Errorf("healthcheck without the file: %d %s%s", code, out, stderr)
			}
			if code, out, stderr := command(t, []string{"nodes"}, env, ""); code != tt.status {
				t.Errorf("nodes: %d %s%s", code, out, stderr)
			}
			want := map[bool]int{true: 1, false: 3}[tt.secret] // not valid, or not answered
			if code, out, stderr := command(t, []string{"verify"}, env, "not a secret\n"); code != want {
				t.Errorf("verify: %d %s%s", code, out, stderr)
			}
			code, out, _ := command(t, []string{"doctor"}, env, "")
			for _, check := range []string{"admin listener", "verification listener", "public listener", "listener for Envoy"} {
				if want := tt.secret || check != "listener for Envoy"; regexp.MustCompile(`(?m)^ok +`+check+` `).MatchString(out) != want {
					t.Errorf("doctor: %d, %s should be ok: %t\n%s", code, check, want, out)
				}
			}
			if code != tt.status {
				t.Errorf("doctor: %d\n%s", code, out)
			}
			if len(tt.env) < 2 {
				return
			}
			// By another name than the certificate's nothing is trusted.
			if code, out, _ := command(t, []string{"healthcheck", "--server-name", "evil.example"}, env, ""); code != 1 {
				t.Errorf("another server name: %d %s", code, out)
			}
			// Where the certificate's file is not known, its authority and its name are said.
			elsewhere := []string{"--verify-server", p.Verification, "--server-ca-file", caFile, "--server-name", "keyward.internal", "--client-cert-file", certFile, "--client-key-file", keyFile}
			if code, out, stderr := command(t, append([]string{"healthcheck"}, elsewhere...), nil, ""); code != 0 {
				t.Errorf("from elsewhere: %d %s%s", code, out, stderr)
			}
			if code, _, _ := command(t, append([]string{"healthcheck"}, elsewhere[:4]...), nil, ""); code != 1 {
				t.Errorf("from elsewhere without the name: %d", code)
			}
		})
	}
}
