package main

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// R11: KEYWARD_JWT_HS256_SECRET_FILE is read again when it is replaced; what cannot be used changes
// nothing.
func TestR11HS256SecretFile(t *testing.T) {
	t.Parallel()
	old, next := rand.Text()+rand.Text(), rand.Text()+rand.Text()
	dir := t.TempDir()
	masterKey := filepath.Join(dir, "master.key")
	keywardtest.WriteMasterKey(t, masterKey)
	path := writeFile(t, dir, "secret", old+"\n")
	replace := func(content string) {
		t.Helper()
		if err := os.Rename(writeFile(t, dir, "secret.next", content), path); err != nil {
			t.Fatal(err)
		}
	}
	p := keywardtest.Start(t, keywardtest.Options{
		Dir: t.TempDir(), Args: []string{"serve"},
		Env: []string{
			"KEYWARD_LISTEN=127.0.0.1:0", "KEYWARD_VERIFY_LISTEN=127.0.0.1:0",
			"KEYWARD_ADMIN_LISTEN=127.0.0.1:0",
			"KEYWARD_MASTER_KEY_FILE=" + masterKey,
			"KEYWARD_JWT_HS256_SECRET_FILE=" + path, "KEYWARD_JWT_ISSUER=", "KEYWARD_JWT_AUDIENCE=",
			"KEYWARD_JWT_ORGANIZATION_CLAIM=app_metadata.org_id",
		},
	})
	status := func(secret string) int {
		t.Helper()
		metadata := map[string]any{"org_id": "org_a"}
		token := hs256(t, secret, map[string]any{"sub": "ann", "app_metadata": metadata})
		resp, _ := request(t, "GET", p.Public+keysPath, token, "")
		return resp.StatusCode
	}
	if got := status(old); got != 200 {
		t.Errorf("first secret: %d", got)
	}
	replace("too short\n")
	p.WaitLog(t, "HS256 secret not read; the last good one is kept")
	if got := status(old); got != 200 {
		t.Errorf("after a secret that is too short: %d", got)
	}
	replace(next + "\n")
	if err := keywardtest.Poll(func() bool { return status(next) == 200 }, p.Exited()); err != nil {
		t.Errorf("new secret: %v", err)
	}
	if got := status(old); got != 401 {
		t.Errorf("former secret: %d", got)
	}
	if log := p.Stderr(); strings.Contains(log, old) || strings.Contains(log, next) {
		t.Error("the log holds a secret")
	}
}

// C1: an issuer that starts after the server is found within moments, and the 503 until then says
// how long to wait. KEYWARD_JWT_ROLE_CLAIM is named in the log. The metric says how old the key
// set is.
func TestC1IssuerStartsLater(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer, err := identity.OpenDevIssuer(dir)
	if err != nil {
		t.Fatal(err)
	}
	var up atomic.Bool
	set := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			panic(http.ErrAbortHandler)
		}
		http.ServeFile(w, r, issuer.Config().JWKS)
	}))
	t.Cleanup(set.Close)
	p := keywardtest.Start(t, keywardtest.Options{
		Dir: dir, Flags: []string{"--jwt-jwks=" + set.URL, "--jwt-role-claim=roles", "--jwt-roles=admin"},
	})
	resp, body := request(t, "GET", p.Public+keysPath, p.Token(t, "ann", "org_a"), "")
	problem(t, resp, body, 503, api.Unavailable)
	if wait, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || wait < 1 || wait > 30 {
		t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
	}
	up.Store(true)
	if err := keywardtest.Poll(func() bool {
		resp, _ := request(t, "GET", p.Public+keysPath, p.Token(t, "ann", "org_a"), "")
		return resp.StatusCode == 403
	}, p.Exited()); err != nil {
		t.Errorf("a token of that issuer: %v", err)
	}
	p.WaitLog(t, `role claim \\"roles\\" has no role; one of \[\\"admin\\"\] is needed`)
	_, metrics := request(t, "GET", p.Admin+"/metrics", "", "")
	if !strings.Contains(string(metrics), "\nkeyward_jwks_age_seconds ") {
		t.Error("/metrics has no keyward_jwks_age_seconds")
	}
}
