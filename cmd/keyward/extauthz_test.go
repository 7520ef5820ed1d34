package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// envoy is a client as Envoy is one, at the ext_authz listener of p. Without a config it speaks in the clear.
func envoy(t *testing.T, p *keywardtest.Process, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	trust := insecure.NewCredentials()
	if config != nil {
		trust = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(p.Address(t, "extauthz"), grpc.WithTransportCredentials(trust))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// checkOf is a check of a request with that secret.
func checkOf(secret string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
		Method: "POST", Path: "/v1/payments", Host: "pay.example", Scheme: "https", Protocol: "HTTP/2",
		Headers: map[string]string{":method": "POST", ":path": "/v1/payments", ":authority": "pay.example", "authorization": "Bearer " + secret},
	}}}}
}

// checked returns the HTTP status of an answer, 200 when the request passes. A call that fails fails the test: with failure_mode_allow
// Envoy lets such a request pass.
func checked(t *testing.T, ctx context.Context, conn *grpc.ClientConn, secret string) int {
	t.Helper()
	out, err := authv3.NewAuthorizationClient(conn).Check(ctx, checkOf(secret))
	if err != nil {
		t.Fatalf("the call failed: %v", err)
	}
	if out.GetOkResponse() != nil {
		return http.StatusOK
	}
	return int(out.GetDeniedResponse().GetStatus().GetCode())
}

// V4, C23: the binary answers ten thousand checks of a client with Envoy's types, and refuses a revoked key from the answer on.
func TestV4TenThousandChecks(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--extauthz-listen=127.0.0.1:0"}})
	conn := envoy(t, p, nil)
	client := authv3.NewAuthorizationClient(conn)
	one, two, unknown := create(t, p, "ann", "org_a"), create(t, p, "bob", "org_b"), newSecret(t)
	const total, workers = 10_000, 64
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < total; i += workers {
				secret, want := one.Key, one.APIKeyID
				switch i % 3 {
				case 1:
					secret, want = two.Key, two.APIKeyID
				case 2:
					secret, want = unknown, ""
				}
				out, err := client.Check(t.Context(), checkOf(secret))
				if err != nil || out.GetDynamicMetadata().GetFields()["api_key_id"].GetStringValue() != want || (out.GetOkResponse() == nil) != (want == "") {
					t.Errorf("check %d: %v, %v", i, out, err)
					return
				}
			}
		})
	}
	all.Wait()
	if resp, body := request(t, "POST", p.Public+keysPath+"/"+one.APIKeyID+"/revoke", p.Token(t, "ann", "org_a"), ""); resp.StatusCode != 200 {
		t.Fatalf("revoke: %d %s", resp.StatusCode, body)
	}
	if a, b := checked(t, t.Context(), conn, one.Key), checked(t, t.Context(), conn, two.Key); a != 401 || b != 200 {
		t.Errorf("revoked %d, the other %d", a, b)
	}
	_, metrics := request(t, "GET", p.Admin+"/metrics", "", "")
	if want := fmt.Sprintf("keyward_verifications_total{door=%q,path=%q,reason=%q} %d\n", "extauthz", "memory", "valid", total-total/3+1); !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}

	// R5: it stops with somebody watching its health.
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watch.Recv(); err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", r, err)
	}
	began := time.Now()
	if code := p.Stop(t); code != 0 || time.Since(began) > drainTime/2 {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
}

// R5, P6: with the database gone, Envoy is answered from memory for the lease and then denied with 503, no call fails, and it comes
// back by itself.
func TestR5DatabaseLostBehindEnvoy(t *testing.T) {
	t.Parallel()
	db := pgtest.NewServer(t)
	p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: db.URL(), Flags: []string{"--lease=3s", "--extauthz-listen=127.0.0.1:0"}})
	conn := envoy(t, p, nil)
	k := create(t, p, "ann", "org_a")
	status := func() healthv1.HealthCheckResponse_ServingStatus {
		t.Helper()
		r, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	db.Kill(t)
	if got := checked(t, t.Context(), conn, k.Key); got != 200 {
		t.Errorf("within the lease: %d", got)
	}
	p.WaitStatus(t, p.Verification+"/readyz", 503)
	if got := checked(t, t.Context(), conn, k.Key); got != 503 {
		t.Errorf("past the lease: %d", got)
	}
	if got := checked(t, t.Context(), conn, "x"); got != 401 { // its form alone says so
		t.Errorf("malformed: %d", got)
	}
	if s := status(); s != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v", s)
	}
	db.Restart(t)
	p.WaitReady(t)
	if got, s := checked(t, t.Context(), conn, k.Key), status(); got != 200 || s != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("back: %d, health %v", got, s)
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// R3, O5: the ext_authz listener asks for what the verification listener asks for: a certificate, and a credential in Envoy's
// initial_metadata where Envoy sends one.
func TestR3ExtAuthzListener(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	servers, clients := newAuthority(t), newAuthority(t)
	cert, key := servers.issue(t, 100)
	const token = "token-of-the-listeners"
	p := keywardtest.Start(t, keywardtest.Options{
		Dir: dir, NotReady: true, // the helper has no certificate to ask with
		Flags: []string{
			"--extauthz-listen=127.0.0.1:0", "--tls-cert-file=" + writeFile(t, dir, "tls.crt", cert), "--tls-key-file=" + writeFile(t, dir, "tls.key", key),
			"--internal-client-ca-file=" + writeFile(t, dir, "clients.pem", clients.pem), "--credentials-file=" + writeFile(t, dir, "credentials", "envoy verify "+token+"\nann operate "+token+"-of-ann\n"),
		},
	})
	p.WaitLog(t, `"msg":"ready"`)
	roots := x509.NewCertPool()
	roots.AddCert(servers.cert)
	with := func(a *authority) *tls.Config {
		cert, key := a.issue(t, 1)
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	}
	authorized := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	good := envoy(t, p, with(clients))
	if got := checked(t, authorized, good, newSecret(t)); got != 401 {
		t.Errorf("with a certificate and a token: %d", got)
	}
	for name, tt := range map[string]struct{ authorization, want string }{
		"a certificate alone":     {"", "invalid_token"}, // the secret is looked at
		"a wrong token":           {"Bearer " + token + "x", "internal_token_required"},
		"a token without a scope": {"Bearer " + token + "-of-ann", "forbidden"},
	} {
		ctx := t.Context()
		if tt.authorization != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", tt.authorization)
		}
		out, err := authv3.NewAuthorizationClient(good).Check(ctx, checkOf(newSecret(t)))
		if err != nil || !strings.Contains(out.GetDeniedResponse().GetBody(), `"code":"`+tt.want+`"`) {
			t.Errorf("%s: %v, %v", name, out, err)
		}
	}
	clientCert, clientKey := clients.issue(t, 1)
	says := func(word, table string) bool {
		return regexp.MustCompile(`(?m)^` + word + ` +listener for Envoy `).MatchString(table)
	}
	asks := []string{
		"KEYWARD_SERVER=" + p.Admin, "KEYWARD_VERIFY_SERVER=" + p.Verification, "KEYWARD_EXTAUTHZ_ADDRESS=" + p.Address(t, "extauthz"), "KEYWARD_SERVER_CA_FILE=" + writeFile(t, dir, "ca.pem", servers.pem),
		"KEYWARD_CLIENT_CERT_FILE=" + writeFile(t, dir, "c.crt", clientCert), "KEYWARD_CLIENT_KEY_FILE=" + writeFile(t, dir, "c.key", clientKey),
	}
	if code, out, _ := command(t, []string{"doctor"}, append(asks, "KEYWARD_CREDENTIALS_FILE="+dir+"/credentials"), ""); code != 0 || !says("ok", out) {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	if code, out, _ := command(t, []string{"doctor"}, asks, ""); code != 1 || !says("ok", out) || !strings.Contains(out, "does not have the scope read") {
		t.Errorf("doctor with a certificate alone: exit code %d\n%s", code, out)
	}
	if code, out, _ := command(t, []string{"doctor"}, append(asks, "KEYWARD_EXTAUTHZ_ADDRESS="+strings.TrimPrefix(p.Public, "https://")), ""); code != 1 || !says("fail", out) || !strings.Contains(out, "no gRPC over TLS there: ") {
		t.Errorf("doctor at another listener: exit code %d\n%s", code, out)
	}
	if r, err := healthv1.NewHealthClient(good).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	for name, config := range map[string]*tls.Config{"no certificate": {RootCAs: roots}, "a stranger's": with(newAuthority(t)), "in the clear": nil} {
		if out, err := authv3.NewAuthorizationClient(envoy(t, p, config)).Check(authorized, checkOf(newSecret(t))); err == nil {
			t.Errorf("%s: answered %v", name, out)
		}
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
