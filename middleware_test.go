package keyward_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/token"
)

// identify is a handler that answers with the identity it was given and the headers it saw.
func identify(t testing.TB) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := keyward.FromContext(r.Context())
		if !ok {
			t.Error("the handler was reached without an identity")
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"identity": id, "headers": r.Header})
	})
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// V2: where the secret may come from, and what is refused for the form alone.
func TestV2Credential(t *testing.T) {
	l := newListener(t)
	secret, other := newSecret(t, token.Live), newSecret(t, token.Live)
	l.set(secret, goodVerdict("live"))
	l.set(other, goodVerdict("live"))
	h := keyward.Middleware(newClient(t, keyward.Config{Addresses: []string{l.URL}}))(identify(t))

	type header struct{ name, value string }
	escaped := strings.ReplaceAll(secret, "_", "%5F")
	for _, tc := range []struct {
		name    string
		target  string
		headers []header
		status  int
	}{
		{"bearer", "/", []header{{"Authorization", "Bearer " + secret}}, 200},
		{"bearer, lower case", "/", []header{{"authorization", "bearer " + secret}}, 200},
		{"bearer, two spaces", "/", []header{{"Authorization", "BEARER  " + secret + " "}}, 200},
		{"basic, no password", "/", []header{{"Authorization", basic(secret, "")}}, 200},
		{"basic, lower case", "/", []header{{"Authorization", strings.Replace(basic(secret, ""), "Basic", "basic", 1)}}, 200},
		{"api key", "/", []header{{"X-API-Key", secret}}, 200},
		{"api key and the same bearer", "/", []header{{"X-API-Key", secret}, {"Authorization", "Bearer " + secret}}, 200},
		{"api key and the same basic", "/", []header{{"X-API-Key", secret}, {"Authorization", basic(secret, "")}}, 200},
		{"one api key twice", "/", []header{{"X-API-Key", secret}, {"X-API-Key", secret}}, 200},
		{"harmless query", "/?limit=3&q=sk_live_&note=%zz", []header{{"X-API-Key", secret}}, 200},

		{"none", "/", nil, 401},
		{"unknown secret", "/", []header{{"X-API-Key", newSecret(t, token.Live)}}, 401},
		{"api key and another bearer", "/", []header{{"X-API-Key", secret}, {"Authorization", "Bearer " + other}}, 401},
		{"api key and another basic", "/", []header{{"X-API-Key", secret}, {"Authorization", basic(other, "")}}, 401},
		{"api key and a scheme that is not ours", "/", []header{{"X-API-Key", secret}, {"Authorization", "Digest x"}}, 401},
		{"api key and an empty authorization", "/", []header{{"X-API-Key", secret}, {"Authorization", ""}}, 401},
		{"two authorizations", "/", []header{{"Authorization", "Bearer " + secret}, {"Authorization", "Bearer " + other}}, 401},
		{"one authorization twice", "/", []header{{"Authorization", "Bearer " + secret}, {"Authorization", "Bearer " + secret}}, 401},
		{"two authorizations and an api key", "/", []header{{"Authorization", "Bearer " + secret}, {"Authorization", "Bearer " + secret}, {"X-API-Key", secret}}, 401},
		{"two api keys and a bearer", "/", []header{{"X-API-Key", secret}, {"X-API-Key", other}, {"Authorization", "Bearer " + secret}}, 401},
		{"two in one authorization", "/", []header{{"Authorization", "Bearer " + secret + ", Bearer " + other}}, 401},
		{"two api keys", "/", []header{{"X-API-Key", secret}, {"X-API-Key", other}}, 401},
		{"empty api key", "/", []header{{"X-API-Key", ""}, {"Authorization", "Bearer " + secret}}, 401},
		{"no scheme", "/", []header{{"Authorization", secret}}, 401},
		{"scheme alone", "/", []header{{"Authorization", "Bearer"}}, 401},
		{"empty bearer", "/", []header{{"Authorization", "Bearer  "}}, 401},
		{"basic, with a password", "/", []header{{"Authorization", basic(secret, "x")}}, 401},
		{"basic, as password", "/", []header{{"Authorization", basic("", secret)}}, 401},
		{"basic, not base64", "/", []header{{"Authorization", "Basic !" + secret}}, 401},
		{"basic, no colon", "/", []header{{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(secret))}}, 401},
		{"longer than any secret", "/", []header{{"X-API-Key", strings.Repeat("a", 8<<10)}}, 401},

		{"in the query", "/?api_key=" + secret, nil, 400},
		{"in the query too", "/?api_key=" + secret, []header{{"X-API-Key", secret}}, 400},
		{"in the query, escaped", "/?a=b;c=" + escaped, []header{{"X-API-Key", secret}}, 400},
		{"in the query beside a bad escape", "/?bad=%zz&k=" + escaped, []header{{"X-API-Key", secret}}, 400},
		{"as a parameter's name", "/?" + secret, []header{{"X-API-Key", secret}}, 400},
		{"in the path", "/keys/" + escaped, []header{{"X-API-Key", secret}}, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", tc.target, nil)
			for _, h := range tc.headers {
				r.Header.Add(h.name, h.value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.status {
				t.Fatalf("status = %d, want %d", w.Code, tc.status)
			}
			switch w.Code {
			case 400:
				checkProblem(t, w, api.InvalidRequest)
			case 401:
				checkProblem(t, w, api.InvalidToken)
			}
		})
	}
}

// checkProblem holds a refusal against C25 and V7.
func checkProblem(t *testing.T, w *httptest.ResponseRecorder, code api.Code) api.Problem {
	t.Helper()
	for name, values := range w.Header() {
		for _, v := range values {
			if strings.Contains(v, "sk_") {
				t.Errorf("header %s holds a secret", name)
			}
		}
	}
	if strings.Contains(w.Body.String(), "sk_") {
		t.Error("the body holds a secret")
	}
	var p api.Problem
	d := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("body: %v", err)
	}
	if p.Code != code || p.Status != w.Code || p.Title == "" || p.Detail == "" || p.Type == "" || p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("problem = %+v", p)
	}
	want := map[string]string{"Content-Type": "application/problem+json", "Cache-Control": "no-store", "WWW-Authenticate": "", "Retry-After": ""}
	switch w.Code {
	case 401:
		want["WWW-Authenticate"] = `Bearer error="invalid_token"`
	case 503:
		want["Retry-After"] = "1"
	}
	for name, value := range want {
		if got := w.Header().Get(name); got != value {
			t.Errorf("%s = %q, want %q", name, got, value)
		}
	}
	return p
}

func serve(h http.Handler, secret string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/v1/payments", nil)
	r.Header.Set("Authorization", "Bearer "+secret)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// V2: one opaque 401, byte for byte, whatever is wrong with the key.
func TestV2RefusalIsOpaque(t *testing.T) {
	l := newListener(t)
	h := keyward.Middleware(newClient(t, keyward.Config{Addresses: []string{l.URL}}), keyward.WithEnv(keyward.Live))(identify(t))
	secrets := map[string]string{"unknown": newSecret(t, token.Live), "malformed": "nonsense", "none": ""}
	for _, reason := range []string{"revoked", "expired", "organization_inactive", "malformed", "a_word_of_tomorrow"} {
		secrets[reason] = newSecret(t, token.Live)
		l.set(secrets[reason], api.Verdict{Reason: reason, APIKeyID: "key_2", OrganizationID: "org_2", Env: "live", KeyName: "Till"})
	}
	secrets["environment_mismatch"] = newSecret(t, token.Test)
	l.set(secrets["environment_mismatch"], goodVerdict("test"))

	var want *httptest.ResponseRecorder
	for reason, secret := range secrets {
		w := serve(h, secret, "X-Request-Id", "req-1")
		if w.Code != 401 {
			t.Errorf("%s: status %d", reason, w.Code)
		}
		checkProblem(t, w, api.InvalidToken)
		if want == nil {
			want = w
		}
		if diff := cmp.Diff(want.Body.String(), w.Body.String()); diff != "" {
			t.Errorf("%s: body differs:\n%s", reason, diff)
		}
		if diff := cmp.Diff(want.Header(), w.Header()); diff != "" {
			t.Errorf("%s: headers differ:\n%s", reason, diff)
		}
	}
}

// V2, V3
func TestV3ConnectedAccount(t *testing.T) {
	l := newListener(t)
	secret := newSecret(t, token.Live)
	l.set(secret, goodVerdict("live"))
	l.children["acct_1"], l.children["acct_2"] = "org_1", "org_2"
	h := keyward.Middleware(newClient(t, keyward.Config{Addresses: []string{l.URL}}))(identify(t))
	const name = "X-Connected-Account-ID"
	for _, tc := range []struct {
		name    string
		headers []string
		status  int
		account string
	}{
		{"absent", nil, 200, ""},
		{"a child", []string{name, "acct_1"}, 200, "acct_1"},
		{"a child, lower-case header", []string{"x-connected-account-id", "acct_1"}, 200, "acct_1"},
		{"another's child", []string{name, "acct_2"}, 403, ""},
		{"unknown", []string{name, "acct_3"}, 403, ""},
		{"the organization itself", []string{name, "org_1"}, 403, ""},
		{"empty", []string{name, ""}, 403, ""},
		{"twice", []string{name, "acct_1", name, "acct_1"}, 403, ""},
		{"two in one", []string{name, "acct_1, acct_2"}, 403, ""},
		{"long", []string{name, strings.Repeat("a", 4000)}, 403, ""},
		{"not ASCII", []string{name, "acct_ä"}, 403, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := serve(h, secret, tc.headers...)
			if w.Code != tc.status {
				t.Fatalf("status = %d, want %d", w.Code, tc.status)
			}
			if w.Code == 403 {
				if p := checkProblem(t, w, api.ConnectedAccount); p.Param != name {
					t.Errorf("param = %q", p.Param)
				}
				return
			}
			var got struct{ Identity keyward.Identity }
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			want := keyward.Identity{APIKeyID: "key_1", OrganizationID: "org_1", Env: "live", KeyName: "Till", PaymentsEnabled: true, ConnectedAccountID: tc.account}
			if diff := cmp.Diff(want, got.Identity); diff != "" {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
		})
	}
	for _, id := range []string{"acct_1", "acct_3", "", "-", "acct 1"} { // the key comes first
		if w := serve(h, newSecret(t, token.Live), name, id); w.Code != 401 {
			t.Errorf("account %q beside an unknown key: status %d", id, w.Code)
		}
	}
}

// V2: what a client says about itself in X-Keyward-* does not reach the handler, everything else
// does, and the caller's own header map is not changed.
func TestV2IdentityHeadersAreDeleted(t *testing.T) {
	l := newListener(t)
	secret := newSecret(t, token.Live)
	l.set(secret, goodVerdict("live"))
	h := keyward.Middleware(newClient(t, keyward.Config{Addresses: []string{l.URL}}))(identify(t))
	r := httptest.NewRequest("GET", "/", nil)
	kept := http.Header{
		"Authorization": {"Bearer " + secret}, "X-Request-Id": {"req-1"}, "X-Forwarded-For": {"192.0.2.1"},
		"X-Keywardly": {"fine"}, "X-Keywar": {"short"}, "Accept": {"a", "b"},
	}
	r.Header = kept.Clone()
	for _, name := range []string{
		"X-Keyward-Organization-Id", "x-keyward-environment", "X-KEYWARD-KEY-ID", "X_Keyward_Organization_Id",
		"X-Keyward_Organization-Id", "X-Keyward-", "X-Keyward-Anything", "X.Keyward.Organization.Id", "X!Keyward~Key|Id",
	} {
		r.Header[name] = []string{"org_victim", "org_other"}
	}
	before := r.Header.Clone()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 200 {
		t.Fatalf("status = %d", w.Code)
	}
	var got struct{ Headers http.Header }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kept, got.Headers); diff != "" {
		t.Errorf("headers the handler saw (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, r.Header); diff != "" {
		t.Errorf("the request of the caller was changed:\n%s", diff)
	}
}

// verifier makes a Verifier of a function.
type verifier func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error)

func (f verifier) Verify(ctx context.Context, r keyward.VerifyRequest) (keyward.Verdict, error) {
	return f(ctx, r)
}

// P6, V1: 503 and never the handler when it could not be decided, even beside a verdict that
// says valid; the operator learns why, without the secret (V7).
func TestV1UndecidedIsRefused(t *testing.T) {
	secret := newSecret(t, token.Live)
	var log bytes.Buffer
	previous := slog.Default()
	slog.SetDefault(slog.New(slog.NewJSONHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(previous) })

	for name, v := range map[string]keyward.Verifier{
		"away":       newClient(t, keyward.Config{Addresses: []string{closedAddress(t)}}),
		"not a door": newClient(t, keyward.Config{Addresses: []string{echo(t)}}),
		"both at once": verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) {
			return keyward.Verdict{Valid: true, Reason: keyward.ReasonValid}, errors.New("in doubt")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			reached := false
			h := keyward.Middleware(v)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
			w := serve(h, secret)
			if w.Code != 503 || reached {
				t.Fatalf("status = %d, handler reached = %v", w.Code, reached)
			}
			checkProblem(t, w, api.Unavailable)
			if n := strings.Count(log.String(), "\n"); n != 1 || strings.Contains(log.String(), secret) {
				t.Errorf("%d log lines; the secret in them: %v", n, strings.Contains(log.String(), secret))
			}
		})
	}
}

func TestObserverSeesEachVerdict(t *testing.T) {
	var got []string
	answers := []keyward.Verdict{{Valid: true, Reason: keyward.ReasonValid}, {Reason: keyward.ReasonRevoked}, {}}
	v := verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) {
		next := answers[0]
		answers = answers[1:]
		if next.Reason == "" {
			return next, keyward.ErrUndecided
		}
		return next, nil
	})
	h := keyward.Middleware(v, keyward.WithObserver(func(r *http.Request, v keyward.Verdict, err error) {
		got = append(got, fmt.Sprint(r.Method, " ", v.Valid, " ", v.Reason, " ", err))
	}))(identify(t))
	for _, status := range []int{200, 401, 503} {
		if w := serve(h, newSecret(t, token.Live)); w.Code != status {
			t.Errorf("status = %d, want %d", w.Code, status)
		}
	}
	serve(h, "")
	want := []string{"GET true valid <nil>", "GET false revoked <nil>", "GET false  " + keyward.ErrUndecided.Error()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

// C26: an outer handler's request id wins, a client's is kept when it is sane, and nothing else
// is ever echoed.
func TestC26RequestID(t *testing.T) {
	v := verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) {
		return keyward.Verdict{Reason: keyward.ReasonUnknown}, nil
	})
	h := keyward.Middleware(v)(identify(t))
	for _, tc := range []struct {
		name, outer, client string
		kept                string // "" = a new one
	}{
		{"outer handler's", "outer-1", "client-1", "outer-1"},
		{"client's", "", "client-1", "client-1"},
		{"none", "", "", ""},
		{"too long", "", strings.Repeat("a", 129), ""},
		{"with a break", "", "a\nb", ""},
		{"mark-up", "", "<script>", ""},
		{"a secret", "", newSecret(t, token.Live), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("X-Request-Id", tc.client)
			w := httptest.NewRecorder()
			if tc.outer != "" {
				w.Header().Set("X-Request-Id", tc.outer)
			}
			h.ServeHTTP(w, r)
			p := checkProblem(t, w, api.InvalidToken)
			if tc.kept != "" && p.RequestID != tc.kept || tc.kept == "" && (p.RequestID == tc.client || len(p.RequestID) != 30) {
				t.Errorf("request id = %q, want %q", p.RequestID, tc.kept)
			}
		})
	}
}

func TestWithEnvPanicsOnAWrongWord(t *testing.T) {
	for _, env := range []string{"", "prod", "Live"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("WithEnv(%q) did not panic", env)
				}
			}()
			keyward.WithEnv(env)
		}()
	}
}

func TestContext(t *testing.T) {
	if id, ok := keyward.FromContext(t.Context()); ok {
		t.Errorf("an identity out of nowhere: %+v", id)
	}
	want := keyward.Identity{OrganizationID: "org_1"}
	if got, ok := keyward.FromContext(keyward.NewContext(t.Context(), want)); !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
}

// Many requests at once over real connections: each handler sees its own key's identity, and
// a key that is revoked meanwhile is refused from the next request on.
func TestConcurrentRequests(t *testing.T) {
	l := newListener(t)
	c := newClient(t, keyward.Config{Addresses: []string{l.URL}})
	api1 := httptest.NewServer(keyward.Middleware(c)(identify(t)))
	t.Cleanup(api1.Close)
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)

	var group sync.WaitGroup
	for i := range 16 {
		secret, organization := newSecret(t, token.Live), "org_"+strconv.Itoa(i)
		verdict := goodVerdict("live")
		verdict.OrganizationID = organization
		l.set(secret, verdict)
		group.Go(func() {
			for round := range 20 {
				if round == 15 {
					l.set(secret, api.Verdict{Reason: "revoked"})
				}
				req, err := http.NewRequest("GET", api1.URL, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.URL.User = url.User(secret) // curl -u: HTTP Basic
				resp, err := transport.RoundTrip(withBasic(req))
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				switch {
				case err != nil:
					t.Error(err)
				case round >= 15 && resp.StatusCode != 401:
					t.Errorf("revoked, then %d", resp.StatusCode)
				case round < 15 && !strings.Contains(string(body), `"OrganizationID":"`+organization+`"`):
					t.Errorf("organization %s got status %d and another's identity", organization, resp.StatusCode)
				}
			}
		})
	}
	group.Wait()
}

// withBasic moves the user of the URL to the header, as http.Client does.
func withBasic(r *http.Request) *http.Request {
	r.SetBasicAuth(r.URL.User.Username(), "")
	r.URL.User = nil
	return r
}

func BenchmarkMiddleware(b *testing.B) {
	secret := newSecret(b, token.Live)
	verdict := keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: keyward.Identity{OrganizationID: "org_1"}}
	v := verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) { return verdict, nil })
	h := keyward.Middleware(v)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest("GET", "/v1/payments?limit=10", nil)
	r.Header.Set("Authorization", "Bearer "+secret)
	w := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
