package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// writeFile writes a file that only its owner can read and returns its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// R3: the settings about keys and organizations are in force: KEYWARD_SECRET_PREFIX,
// KEYWARD_MAX_EXPIRES_IN_DAYS, KEYWARD_MAX_OVERLAP, KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS.
func TestR3KeySettings(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{
		Flags: []string{"--secret-prefix=acme", "--max-overlap=1h"},
		Env:   []string{"KEYWARD_MAX_EXPIRES_IN_DAYS=30", "KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS=true"},
	})
	ann := p.Token(t, "ann", "org_a")
	resp, body := request(t, "POST", p.Public+keysPath, ann, `{"key_name":"k","expires_in_days":30}`)
	problem(t, resp, body, 403, api.OrganizationUnknown) // C4

	if resp, body := request(t, "PUT", p.Admin+"/v1/organizations/org_a", "", `{}`); resp.StatusCode != 200 {
		t.Fatalf("put: %d %s", resp.StatusCode, body)
	}
	for _, body := range []string{`{"key_name":"k","expires_in_days":31}`, `{"key_name":"k"}`} { // C8
		resp, answer := request(t, "POST", p.Public+keysPath, ann, body)
		problem(t, resp, answer, 400, api.InvalidRequest)
	}
	resp, body = request(t, "POST", p.Public+keysPath, ann, `{"key_name":"k","expires_in_days":30}`)
	if resp.StatusCode != 201 {
		t.Fatalf("create: %d %s", resp.StatusCode, body)
	}
	k := decode[api.IssuedKey](t, body)
	if !strings.HasPrefix(k.Key, "acme_test_") || len(k.Key) != len("acme_test_")+38 { // C11
		t.Errorf("the secret does not begin with acme_test_ or has length %d", len(k.Key))
	}
	if v := verdict(t, p, k.Key); !v.Valid {
		t.Errorf("verdict %+v", v)
	}
	if v := verdict(t, p, newSecret(t)); v.Reason != "malformed" {
		t.Errorf("a secret with another prefix: %+v", v)
	}
	resp, body = request(t, "POST", p.Public+keysPath+"/"+k.APIKeyID+"/roll", ann, `{"overlap_seconds":3601}`) // C24
	problem(t, resp, body, 400, api.InvalidRequest)
	resp, body = request(t, "POST", p.Public+keysPath+"/"+k.APIKeyID+"/roll", ann, `{"overlap_seconds":3600}`)
	if resp.StatusCode != 201 {
		t.Errorf("roll: %d %s", resp.StatusCode, body)
	}
}

// R3: KEYWARD_MAX_OVERLAP=0s allows no overlap, where unset it is a day.
func TestR3NoOverlap(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--max-overlap=0s"}})
	k := create(t, p, "ann", "org_a")
	roll := p.Public + keysPath + "/" + k.APIKeyID + "/roll"
	resp, body := request(t, "POST", roll, p.Token(t, "ann", "org_a"), `{"overlap_seconds":1}`)
	problem(t, resp, body, 400, api.InvalidRequest)
	if resp, body := request(t, "POST", roll, p.Token(t, "ann", "org_a"), ""); resp.StatusCode != 201 {
		t.Errorf("roll without overlap: %d %s", resp.StatusCode, body)
	}
}

// R3: KEYWARD_JWT_ROLE_CLAIM and KEYWARD_JWT_ROLES: without one of the roles every management
// call is 403 forbidden.
func TestR3Roles(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--jwt-role-claim=roles", "--jwt-roles=keys,admin"}})
	issuer, err := identity.OpenDevIssuer(p.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		roles []string
		want  int
	}{
		"none":    {nil, 403},
		"another": {[]string{"auditor"}, 403},
		"one":     {[]string{"auditor", "admin"}, 200},
	} {
		token, err := issuer.Issue("ann", "org_a", time.Hour, tt.roles...)
		if err != nil {
			t.Fatal(err)
		}
		resp, body := request(t, "GET", p.Public+keysPath, token, "")
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
		if tt.want == 403 {
			problem(t, resp, body, 403, api.Forbidden)
		}
	}
}

// hs256 signs claims with a shared secret.
func hs256(t *testing.T, secret string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(secret)}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	claims["exp"], claims["iat"] = time.Now().Add(time.Hour).Unix(), time.Now().Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// R3: KEYWARD_JWT_HS256_SECRET_FILE, whose final newline does not count; KEYWARD_JWT_ISSUER and
// KEYWARD_JWT_AUDIENCE, unchecked only when empty on purpose; KEYWARD_JWT_ORGANIZATION_CLAIM.
func TestR3JWT(t *testing.T) {
	t.Parallel()
	secret := rand.Text() + rand.Text()
	dir := t.TempDir()
	masterKey := filepath.Join(dir, "master.key")
	keywardtest.WriteMasterKey(t, masterKey)
	common := []string{
		"KEYWARD_LISTEN=127.0.0.1:0", "KEYWARD_VERIFY_LISTEN=127.0.0.1:0", "KEYWARD_ADMIN_LISTEN=127.0.0.1:0", "KEYWARD_MASTER_KEY_FILE=" + masterKey,
		"KEYWARD_JWT_HS256_SECRET_FILE=" + writeFile(t, dir, "secret", secret+"\n"), "KEYWARD_JWT_ORGANIZATION_CLAIM=tenant",
	}
	start := func(issuer, audience string) *keywardtest.Process {
		return keywardtest.Start(t, keywardtest.Options{
			Dir: t.TempDir(), Args: []string{"serve"}, // every setting from the environment
			Env: append([]string{"KEYWARD_JWT_ISSUER=" + issuer, "KEYWARD_JWT_AUDIENCE=" + audience}, common...),
		})
	}
	strict, lax := start("https://login", "keyward"), start("", "")
	for name, tt := range map[string]struct {
		token       string
		strict, lax int
	}{
		"all right":            {hs256(t, secret, map[string]any{"iss": "https://login", "aud": "keyward", "sub": "ann", "tenant": "org_a"}), 200, 200},
		"another issuer":       {hs256(t, secret, map[string]any{"iss": "https://x", "aud": "keyward", "sub": "ann", "tenant": "org_a"}), 401, 200},
		"another audience":     {hs256(t, secret, map[string]any{"iss": "https://login", "aud": "x", "sub": "ann", "tenant": "org_a"}), 401, 200},
		"no such claim":        {hs256(t, secret, map[string]any{"iss": "https://login", "aud": "keyward", "sub": "ann", "org_id": "org_a"}), 401, 401},
		"another secret":       {hs256(t, secret+"x", map[string]any{"iss": "https://login", "aud": "keyward", "sub": "ann", "tenant": "org_a"}), 401, 401},
		"secret with new line": {hs256(t, secret+"\n", map[string]any{"iss": "https://login", "aud": "keyward", "sub": "ann", "tenant": "org_a"}), 401, 401},
	} {
		for want, p := range map[int]*keywardtest.Process{tt.strict: strict, tt.lax + 1000: lax} {
			resp, body := request(t, "GET", p.Public+keysPath, tt.token, "")
			if resp.StatusCode != want%1000 {
				t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, body, want%1000)
			}
		}
	}
}

// R3: KEYWARD_JWT_JWKS as a URL on loopback; a key set that cannot be had yet is 503, and the server
// starts all the same.
func TestR3JWKSURL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer, err := identity.OpenDevIssuer(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	set := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, issuer.Config().JWKS) })}
	served := make(chan struct{})
	go func() { defer close(served); _ = set.Serve(l) }()
	t.Cleanup(func() { set.Close(); <-served })

	p := keywardtest.Start(t, keywardtest.Options{Dir: dir, Flags: []string{"--jwt-jwks=http://" + l.Addr().String() + "/jwks.json"}})
	if err := keywardtest.Poll(func() bool {
		resp, _ := request(t, "GET", p.Public+keysPath, p.Token(t, "ann", "org_a"), "")
		return resp.StatusCode == 200
	}, p.Exited()); err != nil {
		t.Errorf("a token of that issuer: %v", err)
	}

	away := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--jwt-jwks=http://127.0.0.1:1/jwks.json"}})
	resp, body := request(t, "GET", away.Public+keysPath, away.Token(t, "ann", "org_a"), "")
	problem(t, resp, body, 503, api.Unavailable)
}

// R3, O5: KEYWARD_CREDENTIALS_FILE: each of its lines opens what its scopes say, nothing else does,
// and health needs none. KEYWARD_CORS_ORIGINS: exactly those origins.
func TestR3Doors(t *testing.T) {
	t.Parallel()
	one, two := rand.Text(), rand.Text()
	dir := t.TempDir()
	tokens := writeFile(t, dir, "credentials", "# services\none operate "+one+"\n\ntwo read "+two+"\n")
	p := keywardtest.Start(t, keywardtest.Options{
		Dir: dir, Env: []string{"KEYWARD_CREDENTIALS_FILE=" + tokens},
		Flags: []string{"--admin-listen=0.0.0.0:0", "--cors-origins=https://a.example, https://b.example:8443"},
	})
	admin := strings.Replace(p.Admin, "0.0.0.0", "127.0.0.1", 1)
	admin = strings.Replace(admin, "[::]", "127.0.0.1", 1)
	for token, want := range map[string]int{one: 200, two: 200, "": 401, rand.Text(): 401, "# services": 401} {
		if resp, body := request(t, "GET", admin+"/v1/organizations", token, ""); resp.StatusCode != want {
			t.Errorf("token %.4q…: %d %s, want %d", token, resp.StatusCode, body, want)
		}
	}
	if resp, _ := request(t, "GET", admin+"/readyz", "", ""); resp.StatusCode != 200 {
		t.Errorf("readyz without a token: %d", resp.StatusCode)
	}
	env := []string{"KEYWARD_SERVER=" + admin, "KEYWARD_CREDENTIALS_FILE=" + tokens}
	if code, out, stderr := command(t, []string{"org", "list"}, env, ""); code != 0 {
		t.Errorf("org list with the token file: %d %s %s", code, out, stderr)
	}
	if code, _, stderr := command(t, []string{"org", "list"}, env[:1], ""); code != 1 || !strings.Contains(stderr, "--credential-file") {
		t.Errorf("org list without it: %d %s", code, stderr)
	}

	for origin, allowed := range map[string]bool{
		"https://a.example": true, "https://b.example:8443": true, "https://b.example": false, "https://a.example.evil": false, "null": false,
	} {
		req, err := http.NewRequest("OPTIONS", p.Public+keysPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		req.Header.Set("Access-Control-Request-Method", "POST")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Access-Control-Allow-Origin"); (got == origin) != allowed || !allowed && got != "" {
			t.Errorf("origin %s: Access-Control-Allow-Origin is %q", origin, got)
		}
	}
}

// R3: KEYWARD_LOG_FORMAT and KEYWARD_LOG_LEVEL.
func TestR3Logs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokens := writeFile(t, dir, "credentials", "one verify,operate "+rand.Text()+"\n")
	args := append(keywardtest.ServeArgs(t, keywardtest.Options{Dir: dir}), "--log-format=text", "--log-level=debug", "--credentials-file="+tokens)
	p := keywardtest.Run(t, keywardtest.Options{Dir: dir, Args: args})
	p.WaitLog(t, `(?m)^time=\S+ level=INFO msg=ready `)
	public := "http://" + p.WaitLog(t, `msg=listening listener=public address=(\S+)`)[1]
	request(t, "GET", public+"/nothing", "", "")
	admin := "http://" + p.WaitLog(t, `msg=listening listener=admin address=(\S+)`)[1]
	request(t, "GET", admin+"/livez", "", "")
	p.WaitLog(t, `level=DEBUG msg=request .*route=/livez`)
	p.Stop(t)

	quiet := keywardtest.Run(t, keywardtest.Options{Dir: dir, Args: append(args, "--log-level=error")})
	if err := keywardtest.Poll(func() bool {
		_, err := os.Stat(filepath.Join(dir, "keyward.db-wal"))
		return err == nil
	}, quiet.Exited()); err != nil {
		t.Fatal(err)
	}
	if code := quiet.Stop(t); code != 0 || quiet.Stderr() != "" {
		t.Errorf("exit code %d; at level error it logged:\n%s", code, quiet.Stderr())
	}
}

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newECKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns a certificate for 127.0.0.1 and its key in PEM.
func (a *authority) issue(t *testing.T, serial int64) (cert, key string) {
	t.Helper()
	private := newECKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
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

// R3: KEYWARD_TLS_CERT_FILE and KEYWARD_TLS_KEY_FILE make all listeners speak TLS and are read again
// when they change; KEYWARD_INTERNAL_CLIENT_CA_FILE asks for a client's certificate inside.
func TestR3TLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	servers, clients := newAuthority(t), newAuthority(t)
	cert, key := servers.issue(t, 100)
	certFile, keyFile := writeFile(t, dir, "tls.crt", cert), writeFile(t, dir, "tls.key", key)
	clientCert, clientKey := clients.issue(t, 1)
	strangerCert, strangerKey := newAuthority(t).issue(t, 1)
	caFile := writeFile(t, dir, "ca.pem", servers.pem)
	p := keywardtest.Start(t, keywardtest.Options{
		Dir: dir, NotReady: true, // the helper has no certificate to ask with
		Flags: []string{"--tls-cert-file=" + certFile, "--tls-key-file=" + keyFile},
		Env: []string{
			"KEYWARD_INTERNAL_CLIENT_CA_FILE=" + writeFile(t, dir, "clients.pem", clients.pem),
			"KEYWARD_CREDENTIALS_FILE=" + writeFile(t, dir, "credentials", "ops read cert:CN=test\n"),
		},
	})
	p.WaitLog(t, `"msg":"ready"`)
	if !strings.HasPrefix(p.Public, "https://") || !strings.HasPrefix(p.Verification, "https://") || !strings.HasPrefix(p.Admin, "https://") {
		t.Fatalf("addresses %s, %s, %s", p.Public, p.Verification, p.Admin)
	}

	env := []string{
		"KEYWARD_VERIFY_SERVER=" + p.Verification, "KEYWARD_SERVER=" + p.Admin, "KEYWARD_SERVER_CA_FILE=" + caFile,
		"KEYWARD_CLIENT_CERT_FILE=" + writeFile(t, dir, "c.crt", clientCert), "KEYWARD_CLIENT_KEY_FILE=" + writeFile(t, dir, "c.key", clientKey),
	}
	stranger := append(append([]string{}, env...),
		"KEYWARD_CLIENT_CERT_FILE="+writeFile(t, dir, "s.crt", strangerCert), "KEYWARD_CLIENT_KEY_FILE="+writeFile(t, dir, "s.key", strangerKey))
	for name, tt := range map[string]struct {
		env  []string
		want int
	}{
		"with a certificate":       {env, 0},
		"without one":              {env[:3], 1},
		"with a stranger's":        {stranger, 1},
		"without knowing the CA":   {append([]string{env[0]}, env[3:]...), 1},
		"in the clear, over there": {[]string{"KEYWARD_VERIFY_SERVER=" + strings.Replace(p.Verification, "https", "http", 1)}, 1},
	} {
		if code, out, stderr := command(t, []string{"healthcheck"}, tt.env, ""); code != tt.want {
			t.Errorf("%s: exit code %d, %s %s", name, code, out, stderr)
		}
	}
	code, out, _ := command(t, []string{"doctor", "--public-url", p.Public, "--tls-cert-file", certFile}, env, "")
	if code != 0 || !strings.Contains(out, "warn  certificate here") { // it is good for an hour only
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}

	pool := x509.NewCertPool()
	pool.AddCert(servers.cert)
	serial := func() int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.Public, "https://"), &tls.Config{RootCAs: pool})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if v := conn.ConnectionState().Version; v < tls.VersionTLS12 {
			t.Errorf("TLS version %x", v)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if s := serial(); s != 100 {
		t.Errorf("serial %d, want 100", s)
	}
	// A renewal that is half done keeps the former certificate; then the new one is taken.
	cert, key = servers.issue(t, 200)
	writeFile(t, dir, "tls.crt", cert)
	if err := keywardtest.Poll(func() bool {
		return serial() == 100 && len(p.Log("changed files cannot be used; the former content stays")) > 0
	}, p.Exited()); err != nil {
		t.Errorf("half a renewal: %v", err)
	}
	writeFile(t, dir, "tls.key", key)
	if err := keywardtest.Poll(func() bool { return serial() == 200 }, p.Exited()); err != nil {
		t.Errorf("the renewed certificate: %v", err)
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
