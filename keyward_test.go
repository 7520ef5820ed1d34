package keyward_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newSecret draws a secret; no literal one is in the tree.
func newSecret(t testing.TB, env token.Environment) string {
	t.Helper()
	format, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	s, err := format.Generate(env)
	if err != nil {
		t.Fatal(err)
	}
	return s.Reveal()
}

// internalListener speaks POST /v1/verify as the server does: it judges a secret by a table and
// refuses whatever is not a well-formed question.
type internalListener struct {
	*httptest.Server
	t        testing.TB
	token    string
	accepted atomic.Int64 // connections
	asked    atomic.Int64 // questions

	mu       sync.Mutex
	verdicts map[string]api.Verdict // by secret
	children map[string]string      // connected account → its organization
	last     api.VerifyKey
}

func newListener(t testing.TB) *internalListener {
	l := &internalListener{t: t, verdicts: map[string]api.Verdict{}, children: map[string]string{}}
	l.Server = httptest.NewUnstartedServer(l)
	l.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			l.accepted.Add(1)
		}
	}
	l.Start()
	t.Cleanup(l.Close)
	return l
}

func (l *internalListener) set(secret string, v api.Verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verdicts[secret] = v
}

func (l *internalListener) question() api.VerifyKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *internalListener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.asked.Add(1)
	if r.Method != http.MethodPost || r.URL.Path != "/v1/verify" || r.URL.RawQuery != "" ||
		r.Header.Get("Content-Type") != "application/json" || len(r.Header.Values("Idempotency-Key")) != 0 {
		l.t.Errorf("the question is not as the door expects it: %s %s", r.Method, r.URL.Path)
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	want := ""
	if l.token != "" {
		want = "Bearer " + l.token
	}
	if r.Header.Get("Authorization") != want {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	var q api.VerifyKey
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		l.t.Errorf("body: %v", err)
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = q
	v, known := l.verdicts[q.Key]
	switch {
	case !known:
		v = api.Verdict{Reason: "unknown"}
	case v.Valid && q.Env != "" && q.Env != v.Env:
		v.Valid, v.Reason = false, "environment_mismatch"
	case v.Valid && q.ConnectedAccountID != "" && l.children[q.ConnectedAccountID] != v.OrganizationID:
		v.Valid, v.Reason = false, "connected_account_forbidden"
	case v.Valid:
		v.ConnectedAccountID = q.ConnectedAccountID
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func goodVerdict(env string) api.Verdict {
	enabled := true
	return api.Verdict{
		Valid: true, Reason: "valid", APIKeyID: "key_1", OrganizationID: "org_1", Env: env,
		KeyName: "Till", PaymentsEnabled: &enabled,
	}
}

func newClient(t testing.TB, cfg keyward.Config) *keyward.Client {
	t.Helper()
	c, err := keyward.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestNewRefusesAWrongConfig(t *testing.T) {
	for name, cfg := range map[string]keyward.Config{
		"no scheme":        {Addresses: []string{"127.0.0.1:8081"}},
		"another scheme":   {Addresses: []string{"ftp://127.0.0.1:8081"}},
		"no host":          {Addresses: []string{"http://:8081"}},
		"path":             {Addresses: []string{"http://127.0.0.1:8081/v1/verify"}},
		"password":         {Addresses: []string{"http://u:p@127.0.0.1:8081"}},
		"query":            {Addresses: []string{"http://127.0.0.1:8081?x=hunter2"}},
		"control":          {Addresses: []string{"http://127.0.0.1:8081\nhunter2"}},
		"second":           {Addresses: []string{"http://127.0.0.1:8081", ""}},
		"negative timeout": {Timeout: -1},
		"token with space": {Token: "hunter2 hunter2"},
		"token with break": {Token: "hunter2\r\nX: y"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keyward.New(cfg)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error echoes the value: %v", err)
			}
		})
	}
	for _, address := range []string{"http://127.0.0.1:8081", "https://keyward.internal:8081/", "http://[::1]:8081"} {
		if _, err := keyward.New(keyward.Config{Addresses: []string{address}}); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := keyward.New(keyward.Config{}); err != nil {
		t.Errorf("the zero Config: %v", err)
	}
}

// V1, V3, V5: every verdict reaches the caller as the server gave it.
func TestV1Verdicts(t *testing.T) {
	l := newListener(t)
	l.children["acct_1"], l.children["acct_2"] = "org_1", "org_2"
	c := newClient(t, keyward.Config{Addresses: []string{l.URL}})

	live, test := newSecret(t, token.Live), newSecret(t, token.Test)
	expiry, disabled := "2031-02-03T04:05:06.5Z", false
	inLive := goodVerdict("live")
	inLive.ExpiresAt = &expiry
	l.set(live, inLive)
	inTest := goodVerdict("test")
	inTest.PaymentsEnabled = &disabled
	l.set(test, inTest)
	refused := map[string]string{}
	for _, reason := range []string{"revoked", "expired", "organization_inactive", "a_word_of_tomorrow"} {
		refused[reason] = newSecret(t, token.Live)
		l.set(refused[reason], api.Verdict{Reason: reason, APIKeyID: "key_2", OrganizationID: "org_2", Env: "live"})
	}

	liveIdentity := keyward.Identity{
		APIKeyID: "key_1", OrganizationID: "org_1", Env: "live", KeyName: "Till", PaymentsEnabled: true,
		ExpiresAt: time.Date(2031, 2, 3, 4, 5, 6, 500e6, time.UTC),
	}
	narrowed := liveIdentity
	narrowed.ConnectedAccountID = "acct_1"
	testIdentity := keyward.Identity{APIKeyID: "key_1", OrganizationID: "org_1", Env: "test", KeyName: "Till"}
	other := keyward.Identity{APIKeyID: "key_2", OrganizationID: "org_2", Env: "live"}

	for _, tc := range []struct {
		name string
		req  keyward.VerifyRequest
		want keyward.Verdict
	}{
		{"live", keyward.VerifyRequest{Secret: live}, keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: liveIdentity}},
		{"live wanted", keyward.VerifyRequest{Secret: live, Env: "live"}, keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: liveIdentity}},
		{"test, payments disabled", keyward.VerifyRequest{Secret: test}, keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: testIdentity}},
		{"narrowed", keyward.VerifyRequest{Secret: live, ConnectedAccountID: "acct_1"}, keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: narrowed}},
		{"another's account", keyward.VerifyRequest{Secret: live, ConnectedAccountID: "acct_2"}, keyward.Verdict{Reason: keyward.ReasonConnectedAccountForbidden, Identity: liveIdentity}},
		{"no account's form", keyward.VerifyRequest{Secret: live, ConnectedAccountID: "acct 1"}, keyward.Verdict{Reason: keyward.ReasonConnectedAccountForbidden, Identity: liveIdentity}},
		{"no account's form and unknown", keyward.VerifyRequest{Secret: newSecret(t, token.Live), ConnectedAccountID: "acct 1"}, keyward.Verdict{Reason: keyward.ReasonUnknown}},
		{"wrong environment", keyward.VerifyRequest{Secret: live, Env: "test"}, keyward.Verdict{Reason: keyward.ReasonEnvironmentMismatch, Identity: liveIdentity}},
		{"unknown", keyward.VerifyRequest{Secret: newSecret(t, token.Live)}, keyward.Verdict{Reason: keyward.ReasonUnknown}},
		{"revoked", keyward.VerifyRequest{Secret: refused["revoked"]}, keyward.Verdict{Reason: keyward.ReasonRevoked, Identity: other}},
		{"expired", keyward.VerifyRequest{Secret: refused["expired"]}, keyward.Verdict{Reason: keyward.ReasonExpired, Identity: other}},
		{"switched off", keyward.VerifyRequest{Secret: refused["organization_inactive"]}, keyward.Verdict{Reason: keyward.ReasonOrganizationInactive, Identity: other}},
		{"a new reason", keyward.VerifyRequest{Secret: refused["a_word_of_tomorrow"]}, keyward.Verdict{Reason: "a_word_of_tomorrow", Identity: other}},
		{"empty", keyward.VerifyRequest{}, keyward.Verdict{Reason: keyward.ReasonMalformed}},
		{"space", keyward.VerifyRequest{Secret: live + " "}, keyward.Verdict{Reason: keyward.ReasonMalformed}},
		{"NUL", keyward.VerifyRequest{Secret: live + "\x00"}, keyward.Verdict{Reason: keyward.ReasonMalformed}},
		{"invalid UTF-8", keyward.VerifyRequest{Secret: live[:45] + "\xff"}, keyward.Verdict{Reason: keyward.ReasonMalformed}},
		{"long", keyward.VerifyRequest{Secret: strings.Repeat(live, 100)}, keyward.Verdict{Reason: keyward.ReasonMalformed}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := c.Verify(t.Context(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
	before := l.asked.Load()
	if _, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: live, Env: "prod"}); err == nil || l.asked.Load() != before {
		t.Errorf("an environment that is none: err = %v", err)
	}
	if _, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: live, MinRevision: -1}); err == nil || l.asked.Load() != before {
		t.Errorf("a revision that is none: err = %v", err)
	}
}

func TestQuestionCarriesEverything(t *testing.T) {
	l := newListener(t)
	l.token = "internal-token"
	secret := newSecret(t, token.Live)
	c := newClient(t, keyward.Config{Addresses: []string{l.URL}, Token: "internal-token"})
	if _, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret, ConnectedAccountID: "acct_9", Env: "live", MinRevision: 18}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(api.VerifyKey{Key: secret, ConnectedAccountID: "acct_9", Env: "live", MinRevision: 18}, l.question()); diff != "" {
		t.Errorf("question (-want +got):\n%s", diff)
	}
	for _, wrong := range []string{"", "another-token"} {
		c := newClient(t, keyward.Config{Addresses: []string{l.URL}, Token: wrong})
		v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret})
		if !errors.Is(err, keyward.ErrUndecided) || v.Valid || !strings.Contains(err.Error(), "Config.Token") {
			t.Errorf("token %q: %v, %v", wrong, v, err)
		}
	}
}

// closedAddress is an address where nothing listens.
func closedAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// echo answers every request with what it got, in place of a status line.
func echo(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n", body)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// V1, P6, V7: whatever else happens than a verdict is an error, never "valid", and no error
// says the secret or the token.
func TestV7FailsClosedWithoutTheSecret(t *testing.T) {
	secret, internal := newSecret(t, token.Live), "internal-"+newSecret(t, token.Test)[8:]
	narrowed := goodVerdict("live")
	narrowed.ConnectedAccountID = "acct_1"
	valid, err := json.Marshal(narrowed) // each case spoils one thing of this answer
	if err != nil {
		t.Fatal(err)
	}
	without := func(member string) string {
		var m map[string]any
		if err := json.Unmarshal(valid, &m); err != nil {
			t.Fatal(err)
		}
		delete(m, member)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	with := func(member string, value any) string {
		var m map[string]any
		if err := json.Unmarshal(valid, &m); err != nil {
			t.Fatal(err)
		}
		m[member] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	release := make(chan struct{})
	redirected := newListener(t)
	redirected.set(secret, goodVerdict("live"))

	cases := map[string]http.HandlerFunc{
		"400":           answer(400, string(valid)),
		"401":           answer(401, string(valid)),
		"404":           answer(404, string(valid)),
		"429":           answer(429, string(valid)),
		"500":           answer(500, string(valid)),
		"503":           answer(503, string(valid)),
		"201":           answer(201, string(valid)),
		"204":           answer(204, ""),
		"empty":         answer(200, ""),
		"garbage":       answer(200, "<html>welcome</html>"),
		"null":          answer(200, "null"),
		"array":         answer(200, "["+string(valid)+"]"),
		"trailing data": answer(200, string(valid)+"{}"),
		"cut short":     answer(200, string(valid[:len(valid)-1])),
		"too large":     answer(200, string(valid)+strings.Repeat(" ", 70<<10)),
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 32<<10)); err != nil {
					return
				}
			}
		},
		"valid missing":     answer(200, without("valid")),
		"valid null":        answer(200, with("valid", nil)),
		"valid a string":    answer(200, with("valid", "true")),
		"valid but revoked": answer(200, with("reason", "revoked")),
		"refused as valid":  answer(200, with("valid", false)),
		"reason missing":    answer(200, without("reason")),
		"no key id":         answer(200, without("api_key_id")),
		"no organization":   answer(200, without("organization_id")),
		"no environment":    answer(200, without("env")),
		"odd environment":   answer(200, with("env", "prod")),
		"other environment": answer(200, with("env", "test")),
		"odd expiry":        answer(200, with("expires_at", "soon")),
		"other account":     answer(200, with("connected_account_id", "acct_9")),
		"no account":        answer(200, without("connected_account_id")),
		"redirect 302":      http.RedirectHandler(redirected.URL+"/v1/verify", http.StatusFound).ServeHTTP,
		"redirect 307":      http.RedirectHandler(redirected.URL+"/v1/verify", http.StatusTemporaryRedirect).ServeHTTP,
		"redirect 308":      http.RedirectHandler(redirected.URL+"/v1/verify", http.StatusPermanentRedirect).ServeHTTP,
		"echo":              func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) },
		"echo as an error": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Echo", r.Header.Get("Authorization"))
			w.WriteHeader(500)
			_, _ = io.Copy(w, r.Body)
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"hangs up half way": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(valid)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"never answers": func(w http.ResponseWriter, _ *http.Request) { <-release },
		"never ends": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(valid[:20])
			_ = http.NewResponseController(w).Flush()
			<-release
		},
	}
	control := httptest.NewServer(answer(200, string(valid)))
	t.Cleanup(control.Close)
	question := keyward.VerifyRequest{Secret: secret, ConnectedAccountID: "acct_1", Env: "live"}
	if v, err := newClient(t, keyward.Config{Addresses: []string{control.URL}}).Verify(t.Context(), question); err != nil || !v.Valid {
		t.Fatalf("the unspoilt answer: %v, %v", v, err)
	}
	addresses := map[string]string{"refused connection": closedAddress(t), "no HTTP": echo(t)}
	for name, h := range cases {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		addresses[name] = s.URL
	}
	t.Cleanup(func() { close(release) }) // before the servers close: they wait for their handlers

	for name, address := range addresses {
		t.Run(name, func(t *testing.T) {
			cfg := keyward.Config{Addresses: []string{address}, Token: internal}
			if strings.HasPrefix(name, "never") {
				cfg.Timeout = 50 * time.Millisecond
			}
			c := newClient(t, cfg)
			question := question
			if name == "no environment" || name == "odd environment" {
				question.Env = "" // else the answer would fail for not being the one asked for
			}
			v, err := c.Verify(t.Context(), question)
			if diff := cmp.Diff(keyward.Verdict{}, v); diff != "" {
				t.Errorf("verdict beside an error (-want +got):\n%s", diff)
			}
			if !errors.Is(err, keyward.ErrUndecided) {
				t.Fatalf("err = %v, want ErrUndecided", err)
			}
			if got := errors.Is(err, context.DeadlineExceeded); got != strings.HasPrefix(name, "never") {
				t.Errorf("ended by the deadline: %v", got)
			}
			for _, text := range unwound(err) {
				if strings.Contains(text, secret[8:]) || strings.Contains(text, internal) {
					t.Error("the error quotes the secret or the token") // not shown here either
				}
			}
		})
	}
	if redirected.asked.Load() != 0 {
		t.Error("a redirect was followed: the secret went to an address nobody configured")
	}
}

// unwound returns the texts of err and of everything it wraps, in several forms.
func unwound(err error) []string {
	if err == nil {
		return nil
	}
	texts := []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		texts = append(texts, unwound(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			texts = append(texts, unwound(inner)...)
		}
	}
	return texts
}

// V7
func TestV7RequestDoesNotPrint(t *testing.T) {
	secret := newSecret(t, token.Live)
	req := keyward.VerifyRequest{Secret: secret, Env: "live"}
	var b strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb, req)
		fmt.Fprintf(&b, verb, &req)
		fmt.Fprintf(&b, verb, []keyward.VerifyRequest{req})
	}
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "request", req, "pointer", &req)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "request", req, "pointer", &req)
	if err := json.NewEncoder(&b).Encode(req); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), secret) || strings.Contains(b.String(), fmt.Sprintf("%x", secret)) {
		t.Error("a request printed its secret")
	}
}

// One try an address, in order; the next one after a connection error or a 503 only.
func TestNextAddress(t *testing.T) {
	secret := newSecret(t, token.Live)
	good := newListener(t)
	good.set(secret, goodVerdict("live"))
	status := func(code int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	garbage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	t.Cleanup(garbage.Close)

	for _, tc := range []struct {
		name      string
		addresses []string
		valid     bool
	}{
		{"first refuses connections", []string{closedAddress(t), good.URL}, true},
		{"first answers 503", []string{status(503), good.URL}, true},
		{"two are away", []string{closedAddress(t), status(503), good.URL}, true},
		{"first answers 500", []string{status(500), good.URL}, false},
		{"first answers 401", []string{status(401), good.URL}, false},
		{"first answers nonsense", []string{garbage.URL, good.URL}, false},
		{"all answer 503", []string{status(503), status(503)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newClient(t, keyward.Config{Addresses: tc.addresses})
			before := good.asked.Load()
			v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret})
			if v.Valid != tc.valid || (err == nil) != tc.valid {
				t.Fatalf("valid = %v, err = %v; want valid = %v", v.Valid, err, tc.valid)
			}
			if got := good.asked.Load() - before; got != map[bool]int64{true: 1, false: 0}[tc.valid] {
				t.Errorf("the good address was asked %d times", got)
			}
		})
	}
}

// roundTripper makes a transport of a function; no network, so that synctest's clock runs.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(status int, v any) (*http.Response, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(b)))}, nil
}

// hang blocks as a frozen server does.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestTimeoutIsForTheWholeCall(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  keyward.Config
		want time.Duration
	}{
		"default, one address":    {keyward.Config{}, 2 * time.Second},
		"default, four addresses": {keyward.Config{Addresses: []string{"http://a", "http://b", "http://c", "http://d"}}, 2 * time.Second},
		"own":                     {keyward.Config{Timeout: 7 * time.Second}, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.cfg.HTTPClient = &http.Client{Transport: roundTripper(hang)}
				c := newClient(t, tc.cfg)
				start := time.Now()
				_, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: newSecret(t, token.Live)})
				if !errors.Is(err, keyward.ErrUndecided) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("err = %v", err)
				}
				if got := time.Since(start); got != tc.want {
					t.Errorf("took %v, want %v", got, tc.want)
				}
			})
		})
	}
}

// A frozen first address costs its share of the time once, then it is asked last, and after its
// rest one call probes it.
func TestFrozenAddressGoesToTheEndOfTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		frozen := true
		var asked []string
		transport := roundTripper(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.Host)
			if r.URL.Host == "a" && frozen {
				return hang(r)
			}
			return respond(200, goodVerdict("live"))
		})
		c := newClient(t, keyward.Config{Addresses: []string{"http://a", "http://b"}, HTTPClient: &http.Client{Transport: transport}})
		secret := newSecret(t, token.Live)
		verify := func(took time.Duration, want ...string) {
			t.Helper()
			asked = nil
			start := time.Now()
			v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret})
			if err != nil || !v.Valid {
				t.Fatalf("%v, %v", v, err)
			}
			if diff := cmp.Diff(want, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if got := time.Since(start); got != took {
				t.Errorf("took %v, want %v", got, took)
			}
		}
		verify(time.Second, "a", "b")
		verify(0, "b")
		<-time.After(5 * time.Second)
		verify(time.Second, "a", "b") // the probe finds it still frozen
		verify(0, "b")
		frozen = false
		verify(0, "b")
		<-time.After(5 * time.Second)
		verify(0, "a")
		verify(0, "a")
	})
}

func TestRestingAddressIsStillTheLastHope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		healthy := false
		transport := roundTripper(func(r *http.Request) (*http.Response, error) {
			if !healthy {
				return respond(503, nil)
			}
			return respond(200, goodVerdict("live"))
		})
		c := newClient(t, keyward.Config{Addresses: []string{"http://a", "http://b"}, HTTPClient: &http.Client{Transport: transport}})
		req := keyward.VerifyRequest{Secret: newSecret(t, token.Live)}
		if _, err := c.Verify(t.Context(), req); err == nil {
			t.Fatal("want an error while both are away")
		}
		healthy = true
		if v, err := c.Verify(t.Context(), req); err != nil || !v.Valid {
			t.Fatalf("both rest and neither was asked: %v, %v", v, err)
		}
	})
}

func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		transport := roundTripper(func(r *http.Request) (*http.Response, error) { asked++; return hang(r) })
		c := newClient(t, keyward.Config{Addresses: []string{"http://a", "http://b"}, HTTPClient: &http.Client{Transport: transport}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		start := time.Now()
		_, err := c.Verify(ctx, keyward.VerifyRequest{Secret: newSecret(t, token.Live)})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, keyward.ErrUndecided) {
			t.Errorf("err = %v", err)
		}
		if asked != 1 || time.Since(start) != 100*time.Millisecond {
			t.Errorf("asked %d times in %v", asked, time.Since(start))
		}
	})
}

// V4: the middleware door keeps its connections.
func TestConnectionsAreReused(t *testing.T) {
	l := newListener(t)
	secret := newSecret(t, token.Live)
	l.set(secret, goodVerdict("live"))
	c := newClient(t, keyward.Config{Addresses: []string{l.URL}})
	for range 50 {
		if _, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret}); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.accepted.Load(); got != 1 {
		t.Errorf("50 verifications in a row opened %d connections", got)
	}
	const clients = 16
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range 50 {
				if v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret}); err != nil || !v.Valid {
					t.Errorf("%v, %v", v.Valid, err)
				}
			}
		})
	}
	group.Wait()
	// net/http may dial for a caller that is then served by a connection that came free.
	if got := l.accepted.Load(); got > 3*clients {
		t.Errorf("%d callers opened %d connections for 800 verifications", clients, got)
	}
}

// A server that was started again is found without an error, although the pool holds the
// connections that died with it.
func TestServerRestart(t *testing.T) {
	l := newListener(t)
	secret := newSecret(t, token.Live)
	l.set(secret, goodVerdict("live"))
	c := newClient(t, keyward.Config{Addresses: []string{l.URL}})
	for range 20 {
		if _, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret}); err != nil {
			t.Fatal(err)
		}
		l.CloseClientConnections()
	}
}

func TestTLS(t *testing.T) {
	secret := newSecret(t, token.Live)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 || r.ProtoMajor != 1 {
			t.Errorf("protocol %s, %d client certificates", r.Proto, len(r.TLS.PeerCertificates))
		}
		_ = json.NewEncoder(w).Encode(goodVerdict("live"))
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	c := newClient(t, keyward.Config{Addresses: []string{s.URL}, TLS: &tls.Config{RootCAs: roots, Certificates: s.TLS.Certificates}})
	if v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret}); err != nil || !v.Valid {
		t.Errorf("%v, %v", v, err)
	}
	for name, cfg := range map[string]*tls.Config{"unknown authority": nil, "no client certificate": {RootCAs: roots}} {
		c := newClient(t, keyward.Config{Addresses: []string{s.URL}, TLS: cfg})
		if v, err := c.Verify(t.Context(), keyward.VerifyRequest{Secret: secret}); !errors.Is(err, keyward.ErrUndecided) || v.Valid {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}
