package faults

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// C17, C25, V7, P4: after everything that can be done with secrets, also in the wrong places, and a kill -9 that
// leaves the write-ahead logs as they are: no file, log, metric or error holds a secret, an idempotency key or a token.
func TestV7NothingLeaks(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			o := keywardtest.Options{Dir: t.TempDir(), Flags: []string{"--log-level=debug", "--extauthz-listen=127.0.0.1:0"}}
			folders := []string{o.Dir}
			stop := func() {}
			if engine == "postgres" {
				server := pgtest.NewServer(t)
				o.DatabaseURL = server.URL()
				folders = append(folders, server.Folder())
				stop = func() { server.Kill(t) }
			}
			p := keywardtest.Start(t, o)
			hidden := map[string]string{} // what must not be found, with a name for it
			errors := useEverything(t, p, hidden)

			metrics := do(t, "GET", p.Admin+"/metrics", nil, nil)
			status := do(t, "GET", p.Admin+"/v1/status", nil, nil)
			audit := do(t, "GET", p.Admin+"/v1/audit?limit=1000", nil, nil)
			if metrics.status != 200 || status.status != 200 || audit.status != 200 {
				t.Fatalf("metrics %v, status %v, audit %v", metrics, status, audit)
			}
			p.Signal(t, syscall.SIGKILL)
			p.Wait(t)
			stop()

			places := map[string][]byte{
				"the log": []byte(p.Stderr()), "the output": []byte(p.Stdout()),
				"the metrics": metrics.body, "the status": status.body, "the audit log": audit.body,
			}
			for name, body := range errors {
				places[name] = body
			}
			files := 0
			for _, folder := range folders {
				err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
					if err != nil || !d.Type().IsRegular() {
						return err
					}
					b, err := os.ReadFile(path)
					places[path] = b
					files++
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if files < 4 || len(p.Stderr()) < 1000 || len(hidden) < 8 {
				t.Fatalf("%d files, %d bytes of log, %d things to hide: the test looks at too little", files, len(p.Stderr()), len(hidden))
			}
			found := 0
			for place, content := range places {
				for text, name := range hidden {
					for form, needle := range formsOf(text) {
						if bytes.Contains(content, needle) {
							t.Errorf("%s holds %s (%s)", place, name, form)
						}
					}
				}
				// The control: what may be kept is found by the same search.
				if bytes.Contains(content, []byte("org_leak")) {
					found++
				}
			}
			if found < 3 {
				t.Errorf("the organization was found in %d places only: the search sees nothing", found)
			}
		})
	}
}

// formsOf are the ways a text could stand in a file.
func formsOf(text string) map[string][]byte {
	forms := map[string][]byte{"as it is": []byte(text), "hex": []byte(hex.EncodeToString([]byte(text))), "escaped": []byte(url.QueryEscape(text))}
	for shift := range 3 { // base64 of a text that starts anywhere in a group of three
		b := []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat(" ", shift) + text)))
		forms["base64"+strings.Repeat("'", shift)] = b[4*((shift+2)/3) : len(b)-4]
	}
	return forms
}

// useEverything sends secrets through every door, rightly and wrongly, and returns the error answers.
func useEverything(t *testing.T, p *keywardtest.Process, hidden map[string]string) map[string][]byte {
	t.Helper()
	refused := map[string][]byte{}
	keep := func(name string, a answer) answer {
		if a.err != nil {
			t.Fatalf("%s: %v", name, a.err)
		}
		if a.status >= 400 {
			refused["the answer to "+name] = a.body
		}
		for k, values := range a.header {
			refused["the headers of "+name+" "+k] = []byte(strings.Join(values, "\n"))
		}
		return a
	}
	put := keep("put", do(t, "PUT", p.Admin+"/v1/organizations/org_leak", nil, map[string]any{"payments_enabled": true}))
	if put.status != http.StatusOK {
		t.Fatal(put)
	}
	m := merchant{p, p.Token(t, "u", "org_leak")}
	hidden[m.token] = "a token"
	hidden[strings.Split(m.token, ".")[2]] = "a token's signature"
	secret := func(a answer, name string) api.IssuedKey {
		k := issued(t, a)
		hidden[k.Key] = "the secret of " + name
		hidden[k.Key[8:40]] = "the random part of " + name // without its prefix and checksum
		return k
	}
	const createKey, rollKey, headerKey = "idempotency-of-the-create-4711", "idempotency-of-the-roll-4712", "idempotency-in-the-header-4713"
	hidden[createKey], hidden[rollKey], hidden[headerKey] = "an idempotency key", "an idempotency key", "an idempotency key"

	first := secret(m.create(t, createKey), "a rolled key")
	keep("a replay", m.create(t, createKey))
	keep("a second create", m.create(t, headerKey))
	roll := do(t, "POST", p.Public+keysPath+"/"+first.APIKeyID+"/roll", m.bearer(), map[string]any{"overlap_seconds": 60, "idempotency_key": rollKey})
	live := secret(roll, "a live key")
	other := merchant{p, p.Token(t, "w", "org_leak_other")}
	hidden[other.token] = "another token"
	revoked := secret(do(t, "POST", p.Public+keysPath, map[string]string{"Authorization": "Bearer " + other.token, "Idempotency-Key": `"` + headerKey + `"`},
		map[string]any{"key_name": "n"}), "a revoked key")
	if a := keep("revoke", do(t, "POST", p.Public+keysPath+"/"+revoked.APIKeyID+"/revoke", other.bearer(), nil)); a.status != 200 {
		t.Fatal(a)
	}

	conn, err := grpc.NewClient(p.Address(t, "extauthz"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	envoy := func(path string, headers, rules map[string]string) {
		t.Helper()
		out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: path, Headers: headers}},
			ContextExtensions: rules,
		}})
		if err != nil {
			t.Fatal(err)
		}
		refused["Envoy's answers"] = append(refused["Envoy's answers"], out.String()...)
	}

	for _, k := range []string{live.Key, first.Key, revoked.Key, live.Key + "x", strings.ToUpper(live.Key)} {
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(k+":"))
		hidden[basic] = "a secret in Basic"
		keep("verify", do(t, "POST", p.Verification+"/v1/verify", nil, api.VerifyKey{Key: k}))
		keep("verify with an account", do(t, "POST", p.Verification+"/v1/verify", nil, api.VerifyKey{Key: k, ConnectedAccountID: k}))
		keep("authorize", do(t, "GET", p.Verification+"/v1/authorize", map[string]string{"Authorization": "Bearer " + k}, nil))
		keep("authorize with Basic", do(t, "GET", p.Verification+"/v1/authorize", map[string]string{"Authorization": basic}, nil))
		keep("authorize with X-API-Key", do(t, "GET", p.Verification+"/v1/authorize", map[string]string{"X-API-Key": k}, nil))
		keep("authorize with two", do(t, "GET", p.Verification+"/v1/authorize", map[string]string{"X-API-Key": k, "Authorization": "Bearer " + live.Key}, nil))
		envoy("/", map[string]string{"authorization": "Bearer " + k}, nil)
		envoy("/", map[string]string{"authorization": basic}, map[string]string{"keyward.strip_secret": "true"})
		envoy("/", map[string]string{"authorization": "Bearer " + k + ",Bearer " + k, "x-api-key": k + "," + live.Key}, nil)
		introspect := http.Header{}
		introspect.Set("Content-Type", "application/x-www-form-urlencoded")
		req, err := http.NewRequestWithContext(t.Context(), "POST", p.Verification+"/v1/introspect", strings.NewReader("token="+k))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = introspect
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()

		// The wrong places.
		bearer := map[string]string{"Authorization": "Bearer " + k}
		keep("a secret as a token", do(t, "GET", p.Public+keysPath, bearer, nil))
		keep("a secret in a query", do(t, "GET", p.Public+keysPath+"?api_key="+k, m.bearer(), nil))
		keep("a secret in an internal query", do(t, "GET", p.Verification+"/v1/authorize?api_key="+k, nil, nil))
		keep("a secret in the original URI", do(t, "GET", p.Verification+"/v1/authorize", map[string]string{"X-Forwarded-Uri": "/pay?key=" + k, "X-Original-URI": "/pay?key=" + k}, nil))
		envoy("/pay/"+k+"?key="+k, map[string]string{"x-api-key": k}, nil)
		envoy("/", map[string]string{"x-request-id": k, "x-forwarded-uri": "/?" + k, "cookie": k, "x-keyward-key-id": k, "x-connected-account-id": k}, nil)
		envoy("/", map[string]string{"x-api-key": live.Key, "x-connected-account-id": k}, nil)
		envoy("/", map[string]string{"x-api-key": live.Key}, map[string]string{"keyward.env": k})
		keep("a secret in a path", do(t, "POST", p.Public+keysPath+"/"+k+"/revoke", m.bearer(), nil))
		keep("a secret as a path", do(t, "GET", p.Public+"/"+k, nil, nil))
		keep("a secret as an organization", do(t, "GET", p.Admin+"/v1/organizations/"+k, nil, nil))
		keep("a secret as a request id", do(t, "GET", p.Public+keysPath, map[string]string{"X-Request-Id": k}, nil))
		keep("a secret as a member", do(t, "POST", p.Public+keysPath, m.bearer(), map[string]any{k: 1}))
		keep("a secret as an environment", do(t, "POST", p.Public+keysPath, m.bearer(), map[string]any{"key_name": "n", "env": k}))
		keep("a secret as a cursor", do(t, "GET", p.Public+keysPath+"?limit=5&cursor="+k, m.bearer(), nil))
		keep("a secret as a method", do(t, "GET", p.Public+keysPath, map[string]string{"Authorization": k}, nil))
	}
	keep("a broken token", do(t, "GET", p.Public+keysPath, map[string]string{"Authorization": "Bearer " + m.token + "x"}, nil))
	return refused
}
