package main

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// V1, V2, V3, V4: every verdict of the real server through the Go middleware.
func TestV4MiddlewareVerdicts(t *testing.T) {
	t.Parallel()
	server := keywardtest.Start(t, keywardtest.Options{})
	s := server.Issue(t, "")
	newClient := func(timeout time.Duration) *keyward.Client {
		c, err := keyward.New(keyward.Config{Addresses: []string{server.Verification}, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	client := newClient(keywardtest.Patience)
	ask := func(t *testing.T, status int, opts []keyward.Option, target, secret string, headers ...string) (seen *http.Request) {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.Header.Set("X-Api-Key", secret)
		r.Header.Set("X-Keyward-Organization-Id", "org_victim")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Add(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		keyward.Middleware(client, opts...)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r })).ServeHTTP(w, r)
		if w.Code != status || (seen != nil) != (status == 200) {
			t.Errorf("status %d, handler reached %v; want %d", w.Code, seen != nil, status)
		}
		return seen
	}
	const account = "X-Connected-Account-Id"
	live, test := []keyward.Option{keyward.WithEnv(keyward.Live)}, []keyward.Option{keyward.WithEnv(keyward.Test)}
	for _, tc := range []struct {
		name    string
		opts    []keyward.Option
		target  string
		secret  string
		headers []string
		status  int
	}{
		{"valid", live, "/", s.Live, nil, 200},
		{"test", test, "/", s.Test, nil, 200},
		{"own child", nil, "/", s.Live, []string{account, s.Account}, 200},
		{"foreign child", nil, "/", s.Live, []string{account, s.ForeignAccount}, 403},
		{"other environment", test, "/", s.Live, nil, 401},
		{"revoked", nil, "/", s.Revoked, nil, 401},
		{"expired", nil, "/", s.Expired, nil, 401},
		{"unknown", nil, "/", s.Unknown, nil, 401},
		{"malformed", nil, "/", s.Malformed, nil, 401},
		{"inactive organization", nil, "/", s.Inactive, nil, 401},
		{"two that differ", nil, "/", s.Live, []string{"Authorization", "Bearer " + s.Test}, 401},
		{"in the URL", nil, "/?key=" + s.Live, s.Live, nil, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen := ask(t, tc.status, tc.opts, tc.target, tc.secret, tc.headers...)
			if seen == nil {
				return
			}
			if seen.Header.Get("X-Keyward-Organization-Id") != "" {
				t.Error("the handler saw a client's own identity header")
			}
			id, ok := keyward.FromContext(seen.Context())
			id.APIKeyID, id.ExpiresAt = "", time.Time{}
			want := keyward.Identity{OrganizationID: s.Organization, Env: keyward.Live, KeyName: "Till", PaymentsEnabled: true, ConnectedAccountID: seen.Header.Get(account)}
			if tc.secret == s.Test {
				want.OrganizationID, want.Env, want.PaymentsEnabled = "org_test", keyward.Test, false
			}
			if diff := cmp.Diff(want, id); diff != "" || !ok {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
		})
	}
	client = newClient(300 * time.Millisecond)
	server.Signal(t, syscall.SIGSTOP)
	if err := keywardtest.Poll(func() bool { // the signal takes a moment to be felt
		_, err := client.Verify(t.Context(), keyward.VerifyRequest{Secret: s.Live})
		return err != nil
	}, server.Exited()); err != nil {
		t.Fatal(err)
	}
	ask(t, 503, nil, "/", s.Live)
	server.Kill()
	ask(t, 503, nil, "/", s.Live)
}
