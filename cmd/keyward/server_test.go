package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// request sends a request with a bearer token and a JSON body, each left out when empty.
func request(t testing.TB, method, url, token, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(answer)
}

const keysPath = "/api/v1/auth/api-keys"

// create creates a key for a user of an organization and returns it with its secret.
func create(t testing.TB, p *keywardtest.Process, user, organization string) api.IssuedKey {
	t.Helper()
	resp, body := request(t, "POST", p.Public+keysPath, p.Token(t, user, organization), `{"key_name":"k"}`)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("create: %d %s", resp.StatusCode, body)
	}
	return decode[api.IssuedKey](t, body)
}

// verdict asks the verification listener about a secret.
func verdict(t testing.TB, p *keywardtest.Process, secret string) api.Verdict {
	t.Helper()
	resp, body := request(t, "POST", p.Verification+"/v1/verify", "", `{"key":"`+secret+`"}`)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("verify: %d %s", resp.StatusCode, body)
	}
	return decode[api.Verdict](t, body)
}

func decode[T any](t testing.TB, body string) (v T) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader([]byte(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

// R4: the commands that talk to a running server. Each script has a server of its own.
func TestR4ServerScripts(t *testing.T) {
	files, err := os.ReadDir("testdata/server")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(f.Name(), ".txtar"), func(t *testing.T) {
			t.Parallel()
			p := keywardtest.Start(t, keywardtest.Options{})
			t.Cleanup(func() { // when the script, which runs in parallel, is over
				if code := p.Stop(t); code != 0 {
					t.Errorf("the server exited with %d", code)
				}
			})
			var mu sync.Mutex
			created := map[string]api.IssuedKey{} // by organization; guarded by mu
			testscript.Run(t, testscript.Params{
				Files:               []string{"testdata/server/" + f.Name()},
				RequireExplicitExec: true,
				Setup: func(e *testscript.Env) error {
					e.Setenv("KEYWARD_SERVER", p.Admin)
					e.Setenv("KEYWARD_VERIFY_SERVER", p.Verification)
					e.Setenv("PUBLIC", p.Public)
					e.Setenv("FOLDER", p.Dir)
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits,
					// key ORG FILE creates a key of the organization and puts its secret into the file.
					"key": func(ts *testscript.TestScript, _ bool, args []string) {
						k := create(t, p, "ann_"+args[0], args[0])
						mu.Lock()
						created[args[0]] = k
						mu.Unlock()
						ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(k.Key+"\n"), 0o600))
					},
					// revoke ORG revokes that key.
					"revoke": func(ts *testscript.TestScript, _ bool, args []string) {
						mu.Lock()
						k := created[args[0]]
						mu.Unlock()
						resp, body := request(t, "POST", p.Public+keysPath+"/"+k.APIKeyID+"/revoke", p.Token(t, "ann_"+args[0], args[0]), "")
						if resp.StatusCode != http.StatusOK {
							ts.Fatalf("revoke: %d %s", resp.StatusCode, body)
						}
					},
					// accepted FILE checks that the management API takes the token in the file.
					"accepted": func(ts *testscript.TestScript, _ bool, args []string) {
						resp, body := request(t, "GET", p.Public+keysPath, strings.TrimSpace(ts.ReadFile(args[0])), "")
						if resp.StatusCode != http.StatusOK {
							ts.Fatalf("the token: %d %s", resp.StatusCode, body)
						}
					},
				},
			})
		})
	}
}
