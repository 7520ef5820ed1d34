package server

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"go/ast"
	goparser "go/parser"
	"go/token"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/apitest"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/reload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// C26: a sane request id is kept, anything else replaced, and it is in the log.
func TestC26RequestIDs(t *testing.T) {
	f := newFixture(t)
	secret := f.secret(keys.Live)
	own := regexp.MustCompile(`^req_[0-9a-f]{16}_[0-9a-z]+$`)
	for _, tt := range []struct {
		name string
		sent []string
		kept bool
	}{
		{"plain", []string{"4f1c2b7a-90d3"}, true},
		{"every safe character", []string{"azAZ09._:/+=@-"}, true},
		{"128", []string{strings.Repeat("x", 128)}, true},
		{"129", []string{strings.Repeat("x", 129)}, false},
		{"none", nil, false},
		{"empty", []string{""}, false},
		{"two", []string{"a", "a"}, false},
		{"space", []string{"a b"}, false},
		{"quote", []string{`a"b`}, false},
		{"comma", []string{"a,b"}, false},
		{"angle", []string{"<script>"}, false},
		{"Unicode", []string{"é"}, false},
		{"tab", []string{"a\tb"}, false},
		{"a secret", []string{secret}, false},
		{"a secret inside", []string{"id-" + secret}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, url := range []string{f.public + "/docs", f.public + "/nowhere", f.keysURL(), f.verification + "/livez", f.verification + "/v1/authorize", f.admin + "/metrics"} {
				got := f.do(ask{method: "GET", url: url, header: http.Header{"X-Request-Id": tt.sent}})
				id := got.header.Values("X-Request-Id")
				if len(id) != 1 || tt.kept != (len(tt.sent) == 1 && id[0] == tt.sent[0]) || !tt.kept && !own.MatchString(id[0]) {
					t.Fatalf("%s: request id %q", url, id)
				}
				if got.problem.Code != "" && got.problem.RequestID != id[0] {
					t.Errorf("%s: the problem has another id", url)
				}
				eventually(t, "in the log", func() bool { return len(f.logged(map[string]any{"msg": "request", "request_id": id[0]})) > 0 })
			}
		})
	}
}

// C27: what is not served says so as a problem, with Allow, and is never redirected.
func TestC27Routes(t *testing.T) {
	f := newFixture(t)
	id := "/key_00000000000000000000000000"
	for _, path := range []string{
		"/", "//", "/api", "/api/v1/auth/api-keys/", "/api/v1/auth//api-keys", "//api/v1/auth/api-keys", "/api/v1/auth/api-keys" + id + "/",
		"/api/v1/auth/api-keys" + id + "/revoke/", "/api/v1/auth/api-keys" + id + "/revoke/x", "/api/v1/auth/api-keys//revoke", "/api/v1/auth/api-keys/a/b/revoke", "/api/v1/auth%2Fapi-keys" + id + "/revoke",
		"/api/v1/auth/./api-keys", "/api/v1/auth/../auth/api-keys", "/api/v1/auth/api-keys" + id + "/Revoke", "/API/v1/auth/api-keys", "/api/v1/auth/api-keys;x=1", "/api/v1/auth/api-keys%20", "/api%2Fv1/auth/api-keys", "/%61pi/v1/auth/api-keys", "/api/v1/auth/api-keys.json", "/api/v1/auth/api-keys%00",
		"/api/v2/auth/api-keys", "/docs/", "/docs/../docs", "/docs/page.html", "/docs/style.css/", "/openapi", "/.git/config", "/debug/pprof/", "/favicon.ico",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
			got := f.do(ask{method: method, url: f.public + path, user: "x"})
			if got.status != 404 || method != "HEAD" && got.problem.Code != api.RouteNotFound || got.header.Get("Location") != "" {
				t.Errorf("%s %s: %d %s", method, path, got.status, got.body)
			}
		}
	}
	for _, path := range []string{"/v1/organizations/", "/v1/organizations//", "/v1/organizations/a/b", "/v1/organizations/a%2Fb", "/v1/verify/", "/v1/authorizex", "/v1/authorize:live", "/v1/authorize:prod/x", "/v1/authorize%3Alive/x", "/v1/authorize%2Fx", "/v1", "/healthz/", "/debug/pprof/"} {
		for _, base := range []string{f.verification, f.admin} {
			if got := f.do(ask{method: "GET", url: base + path}); got.status != 404 || got.problem.Code != api.RouteNotFound {
				t.Errorf("%s%s: %d %s", base, path, got.status, got.body)
			}
		}
	}
	for _, tt := range []struct{ url, allow, not string }{
		{f.keysURL(), "GET, HEAD, OPTIONS, POST", "PUT DELETE PATCH TRACE PROPFIND get Post"},
		{f.keysURL() + id, "GET, HEAD, OPTIONS, PATCH", "POST PUT DELETE"},
		{f.keysURL() + id + "%2Frevoke", "GET, HEAD, OPTIONS, PATCH", "POST"}, // an id that is none
		{f.keysURL() + id + "/revoke", "OPTIONS, POST", "GET HEAD PUT DELETE PATCH"},
		{f.keysURL() + id + "/roll", "OPTIONS, POST", "GET HEAD PUT"},
		{f.public + "/docs", "GET, HEAD, OPTIONS", "POST PUT DELETE"},
		{f.public + "/openapi.json", "GET, HEAD, OPTIONS", "POST"},
		{f.verification + "/v1/verify", "OPTIONS, POST", "GET HEAD PUT"},
		{f.verification + "/v1/introspect", "OPTIONS, POST", "GET"},
		{f.admin + "/v1/organizations/x", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT", "POST"},
		{f.admin + "/v1/keys", "GET, HEAD, OPTIONS", "POST PUT"},
		{f.admin + "/v1/keys/x", "GET, HEAD, OPTIONS", "POST PATCH"},
		{f.admin + "/v1/keys/lookup", "OPTIONS, POST", "GET"},
		{f.admin + "/v1/keys/revoke", "OPTIONS, POST", "GET"},
		{f.admin + "/v1/keys/x/revoke", "OPTIONS, POST", "GET"},
		{f.admin + "/v1/organizations", "GET, HEAD, OPTIONS", "POST PUT"},
		{f.admin + "/v1/audit/verify", "OPTIONS, POST", "GET"},
		{f.admin + "/metrics", "GET, HEAD, OPTIONS", "POST"},
		{f.verification + "/readyz", "GET, HEAD, OPTIONS", "POST"},
	} {
		for method := range strings.FieldsSeq(tt.not) {
			got := f.do(ask{method: method, url: tt.url, body: `{}`})
			if got.status != 405 || method != "HEAD" && got.problem.Code != api.MethodNotAllowed || got.header.Get("Allow") != tt.allow {
				t.Errorf("%s %s: %d Allow %q", method, tt.url, got.status, got.header.Get("Allow"))
			}
		}
		if got := f.do(ask{method: "OPTIONS", url: tt.url}); got.status != 204 || got.header.Get("Allow") != tt.allow || got.body != "" {
			t.Errorf("OPTIONS %s: %d Allow %q", tt.url, got.status, got.header.Get("Allow"))
		}
	}
	user := f.token("u", "org_a")
	for _, url := range []string{f.keysURL(), f.public + "/docs", f.public + "/openapi.json", f.public + "/openapi.yaml", f.admin + "/v1/status", f.verification + "/livez", f.admin + "/v1/organizations"} {
		get, head := f.do(ask{method: "GET", url: url, user: user}), f.do(ask{method: "HEAD", url: url, user: user})
		if head.status != 200 || head.body != "" || head.header.Get("Content-Type") != get.header.Get("Content-Type") {
			t.Errorf("HEAD %s: %d %v", url, head.status, head.header)
		}
	}
	if got := raw(t, f.public, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 204 ") || !strings.Contains(got, "X-Request-Id: ") || !strings.Contains(got, "PATCH") {
		t.Errorf("OPTIONS *: %s", got)
	}
	for _, line := range []string{"CONNECT x:1 HTTP/1.1", "GET * HTTP/1.1", "GET http://evil.example/docs/ HTTP/1.1"} {
		if got := raw(t, f.public, line+"\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 404 ") && !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s: %s", line, got)
		}
	}
}

// C28: the document and the table have the same routes, on the same listeners.
func TestC28RoutesAndDocument(t *testing.T) {
	f := newFixture(t)
	var documented, served []string
	for _, r := range apitest.Routes() {
		documented = append(documented, fmt.Sprintf("%s %s %s", r.Listener, r.Method, r.Path))
	}
	for _, r := range f.server.routes() {
		methods := []string{r.method}
		if r.method == anyMethod {
			methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
		}
		for _, m := range methods {
			served = append(served, fmt.Sprintf("%s %s %s", r.listener, m, r.pattern))
		}
	}
	slices.Sort(documented)
	slices.Sort(served)
	if diff := cmp.Diff(documented, served); diff != "" {
		t.Errorf("document (-) and table (+): %s", diff)
	}
}

// R3: no listener serves a route of another, whatever the caller shows.
func TestListenersDoNotMix(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	routes := apitest.Routes()
	for _, r := range routes {
		path := strings.NewReplacer("{api_key_id}", "key_00000000000000000000000000", "{id}", "org_a").Replace(r.Path)
		for other, base := range f.listeners() {
			if slices.Contains(routes, apitest.Route{Method: r.Method, Path: r.Path, Listener: other}) {
				continue
			}
			got := f.do(ask{method: r.Method, url: base + path, user: user, body: `{}`})
			if got.status != 404 || r.Method != "HEAD" && got.problem.Code != api.RouteNotFound {
				t.Errorf("%s %s on the %s listener: %d", r.Method, r.Path, other, got.status)
			}
		}
	}
}

// R3, O5: credentials, where Authorization carries them and where it is the merchant's.
func TestO5Tokens(t *testing.T) {
	one, two := "first-"+rand.Text(), "second-"+rand.Text()
	f := newFixture(t, func(s *setup) { s.credentials = "one verify,operate " + one + "\ntwo verify,operate " + two + "\n" })
	secret := f.secret(keys.Live)
	for _, r := range apitest.Routes() {
		if r.Listener == apitest.Public || r.Path == "/v1/probe" { // TestProbeRoute has its rejections
			continue
		}
		base := f.listeners()[r.Listener]
		path := strings.ReplaceAll(r.Path, "{id}", "org_a")
		client := path == "/v1/introspect"
		isOpen := slices.Contains([]string{"/healthz", "/livez", "/readyz"}, path)
		forwarded := strings.HasPrefix(path, "/v1/authorize")
		for name, h := range map[string]http.Header{
			"none":         {},
			"wrong":        {"Authorization": {"Bearer " + one + "x"}, "X-Internal-Token": {one + "x"}},
			"prefix":       {"Authorization": {"Bearer " + one[:16]}, "X-Internal-Token": {one[:16]}},
			"empty":        {"Authorization": {"Bearer "}, "X-Internal-Token": {""}},
			"twice":        {"Authorization": {"Bearer " + one, "Bearer " + one}, "X-Internal-Token": {one, one}},
			"a secret":     {"Authorization": {"Bearer " + secret}},
			"as user name": {"Authorization": {basic(one, "")}},
			"wrong secret": {"Authorization": {basic("gateway", one+"x")}},
			"no secret":    {"Authorization": {basic("gateway", "")}},
			"Basic twice":  {"Authorization": {basic("gateway", one), basic("gateway", one)}},
			"other header": {map[bool]string{true: "Authorization", false: "X-Internal-Token"}[forwarded]: {map[bool]string{true: "Bearer " + one, false: one}[forwarded]}},
		} {
			got := f.do(ask{method: r.Method, url: base + path, header: h})
			if got.status == 401 && (len(got.header["Www-Authenticate"]) == 2) != client {
				t.Errorf("%s %s with %s: challenges %q", r.Method, path, name, got.header["Www-Authenticate"])
			}
			if isOpen != (got.status == 200) || !isOpen && got.status != 401 || !isOpen && r.Method != "HEAD" && got.problem.Code != api.InternalTokenRequired {
				t.Errorf("%s %s with %s: %d %s", r.Method, path, name, got.status, got.body)
			}
		}
		for _, token := range []string{one, two} {
			h := http.Header{"Authorization": {"Bearer " + token}}
			if forwarded {
				h = http.Header{"X-Internal-Token": {token}}
			}
			got := f.do(ask{method: r.Method, url: base + path, header: h, body: `{}`})
			if got.problem.Code == api.InternalTokenRequired || forwarded && got.status != 401 {
				t.Errorf("%s %s with a good token: %d", r.Method, path, got.status)
			}
		}
	}
}

// O5, V4: an OAuth client's secret is the token of a credential, at introspection alone.
func TestO5ClientSecret(t *testing.T) {
	secret := "a+b%2F" + rand.Text() // what form encoding changes
	f := newFixture(t, func(s *setup) {
		s.credentials = "first verify first-" + rand.Text() + "\ngateway verify " + secret + "\n"
	})
	for name, header := range map[string]string{
		"as it is": basic("gateway", secret), "form-encoded": basic("a%3Ab", url.QueryEscape(secret)), "no client id": basic("", secret), "bearer": "Bearer " + secret,
	} {
		got := f.do(ask{method: "POST", url: f.verification + "/v1/introspect", body: "token=x", header: http.Header{
			"Content-Type": {"application/x-www-form-urlencoded"}, "Authorization": {header},
		}})
		if got.status != 200 || got.body != `{"active":false}` {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		got = f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"x"}`, header: http.Header{"Authorization": {header}}})
		if want := map[bool]int{true: 200, false: 401}[name == "bearer"]; got.status != want {
			t.Errorf("%s at another route: %d, want %d", name, got.status, want)
		}
	}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Headers beyond 16 KiB are 431, as a problem up to twice that.
func TestHeaderLimit(t *testing.T) {
	f := newFixture(t)
	for _, n := range []int{15 << 10, 17 << 10, 30 << 10} {
		for _, url := range []string{f.public + "/docs", f.verification + "/v1/authorize"} {
			got := f.do(ask{method: "GET", url: url, header: http.Header{"X-Padding": {strings.Repeat("x", n)}}})
			if n > door.MaxHeader {
				got.refused(t, 431, api.HeadersTooLarge, "")
			} else if got.status == 431 {
				t.Errorf("%d bytes: 431", n)
			}
		}
	}
	f.do(ask{method: "GET", url: f.public + "/docs?" + strings.Repeat("x", 17<<10)}).refused(t, 431, api.HeadersTooLarge, "")
	got := raw(t, f.public, "GET /docs HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
	if got != "" && !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("1 MB of headers: %.80s", got)
	}
}

// raw writes bytes to a server and returns all it says until it closes.
func raw(t *testing.T, base, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, request) // the server may close before it has read everything
	b, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server neither answered nor closed: %.200s", b)
	}
	return string(b)
}

// Requests whose end two parsers could see in two places get one answer and no connection to go on with.
func TestSmuggling(t *testing.T) {
	f := newFixture(t)
	const hidden = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, request := range map[string]string{
		"CL and TE":           "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE and CL":           "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"chunked alone":       "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":         "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 34\r\n\r\n" + hidden,
		"length list":         "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 34\r\n\r\n" + hidden,
		"negative length":     "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + hidden,
		"plus length":         "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n" + hidden,
		"unknown coding":      "POST /v1/verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
		"two codings":         "POST /v1/verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
		"coding twice":        "POST /v1/verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"space before colon":  "POST /v1/verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		"NUL in a header":     "GET /livez HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n" + hidden,
		"CR in a header":      "GET /livez HTTP/1.1\r\nHost: x\r\nA: b\rX-B: c\r\n\r\n" + hidden,
		"two hosts":           "GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + hidden,
		"no host":             "GET /livez HTTP/1.1\r\n\r\n" + hidden,
		"chunk size too long": "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n" + hidden,
		"chunk size not hex":  "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden,
	} {
		got := raw(t, f.verification, request)
		if n := strings.Count(got, "HTTP/1.1 "); n != 1 || !regexp.MustCompile(`^HTTP/1\.1 (4..|501) `).MatchString(got) {
			t.Errorf("%s: %d answers: %.300s", name, n, got)
		}
	}
	// Two honest requests on one connection are both answered.
	if got := raw(t, f.verification, hidden+strings.Replace(hidden, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)); strings.Count(got, "HTTP/1.1 200 ") != 2 {
		t.Errorf("pipelined: %s", got)
	}
}

// C6: a body that never ends is given up on, and refused.
func TestBodyDeadline(t *testing.T) {
	f := newFixture(t)
	url := f.serve(NewHTTPServer(f.server.Verification(), Limits{Read: 200 * time.Millisecond, ReadHeader: 200 * time.Millisecond}, slog.New(slog.DiscardHandler)))
	got := raw(t, url, "POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "did not arrive whole") {
		t.Errorf("a slow body: %s", got)
	}
	if got := raw(t, url, "POST /v1/verify HTTP/1.1\r\nHost: x\r\n"); strings.HasPrefix(got, "HTTP/1.1 2") {
		t.Errorf("slow headers: %s", got)
	}
}

// C25: a panic in any handler is a 500 problem without its cause; the process lives, the log has the
// stack, and it is counted.
func TestC25Panics(t *testing.T) {
	secret := make(chan string, 1)
	f := newFixture(t, func(s *setup) {
		s.verifier = func(v Verifier) Verifier { return panicking{v, secret} }
		s.server.Operations = panickingOperations{}
	})
	known := f.secret(keys.Live)
	for _, r := range []ask{
		{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + known + `"}`},
		{method: "GET", url: f.verification + "/v1/authorize", header: http.Header{"X-Api-Key": {known}}},
		{method: "GET", url: f.admin + "/v1/audit"},
		{method: "GET", url: f.admin + "/v1/audit?limit=1"},
	} {
		secret <- known
		got := f.do(r)
		got.refused(t, 500, api.Internal, "")
		if strings.Contains(got.body, "goroutine") || strings.Contains(got.body, "boom") || strings.Contains(got.body, ".go") {
			t.Errorf("%s: %s", r.url, got.body)
		}
		<-secret
	}
	lines := f.logged(map[string]any{"msg": "panic"})
	if len(lines) != 4 || !strings.Contains(lines[0]["stack"].(string), "panicking") {
		t.Errorf("%d log lines", len(lines))
	}
	if got := f.do(ask{method: "GET", url: f.admin + "/metrics"}); !strings.Contains(got.body, `keyward_http_panics_total{listener="verification"} 2`) || !strings.Contains(got.body, `keyward_http_panics_total{listener="admin"} 2`) {
		t.Error("panics are not counted")
	}
}

type panicking struct {
	Verifier
	secret chan string
}

func (p panicking) Verify(context.Context, verifyRequest) (verifyVerdict, error) {
	s := <-p.secret
	defer func() { p.secret <- s }()
	panic("boom " + s) // the value of a panic may hold anything
}

type panickingOperations struct{ brokenOperations }

func (panickingOperations) Audit(context.Context, AuditQuery) ([]keys.AuditEntry, error) {
	var none []keys.AuditEntry
	return none[:1], nil
}

// A panic after an answer has begun ends the connection, so that half an answer never passes for a
// whole one.
func TestPanicMidAnswer(t *testing.T) {
	f := newFixture(t)
	rt := f.server.verification.fixed["/livez"].methods["GET"]
	rt.endpoint = func(x *exchange) error {
		x.WriteHeader(200)
		_, _ = x.Write([]byte("half"))
		_ = http.NewResponseController(x).Flush()
		panic("boom")
	}
	if got := raw(t, f.verification, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); strings.HasSuffix(got, "0\r\n\r\n") {
		t.Errorf("the answer looks complete: %s", got)
	}
	if n := len(f.logged(map[string]any{"msg": "panic"})); n != 1 {
		t.Errorf("%d panics logged", n)
	}
}

// V7 and the log's form: one line a request, with what is named and nothing else.
func TestV7LogLines(t *testing.T) {
	f := newFixture(t)
	user := f.token("user-7", "org_a")
	idem := f.hide("idempotency-key-of-V7")
	k := f.issued(f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"name-of-V7","idempotency_key":"` + idem + `"}`}))
	f.hide("name-of-V7")
	f.do(ask{method: "GET", url: f.keysURL() + "?api_key=" + k.Key, user: user})
	f.do(ask{method: "GET", url: f.keysURL() + "/" + k.Key + "/revoke", user: user})
	f.do(ask{method: "POST", url: f.keysURL() + "/" + k.Key + "/revoke", user: user})
	f.do(ask{method: "GET", url: f.public + "/" + k.Key, user: k.Key})
	f.do(ask{method: k.Key, url: f.verification + "/livez"})
	f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"` + k.Key + `":1}`})
	f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `","env":"` + k.Key + `"}`})
	f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/" + k.Key, body: `{"current_env":"` + k.Key + `"}`})
	f.do(ask{method: "GET", url: f.admin + "/v1/organizations?cursor=" + k.Key})
	f.do(ask{method: "GET", url: f.admin + "/v1/audit?target_id=" + k.Key})
	f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"x","env":"` + k.Key + `"}`, header: http.Header{"Idempotency-Key": {idem + "2"}, "X-Request-Id": {k.Key}}})
	f.do(ask{method: "GET", url: f.verification + "/v1/authorize?k=" + k.Key, header: http.Header{"X-Original-Uri": {"/" + k.Key}, "Cookie": {k.Key}, "User-Agent": {k.Key}}})

	allowed := []string{"time", "level", "msg", "listener", "method", "route", "status", "duration_ms", "request_id", "remote", "user", "organization", "actor", "code", "reason"}
	lines := f.logged(map[string]any{"msg": "request"})
	if len(lines) != 13 {
		t.Errorf("%d lines for 13 requests", len(lines))
	}
	for _, line := range lines {
		for name := range line {
			if !slices.Contains(allowed, name) {
				t.Errorf("the log has %q", name)
			}
		}
	}
	first := lines[0]
	for name, want := range map[string]any{"listener": "public", "method": "POST", "route": "/api/v1/auth/api-keys", "status": 201.0, "user": "user-7", "organization": "org_a", "remote": "127.0.0.1", "level": "INFO"} {
		if first[name] != want {
			t.Errorf("%s is %v, want %v", name, first[name], want)
		}
	}
	for _, line := range lines {
		if strings.HasPrefix(line["route"].(string), "/v1/verify") && line["level"] != "DEBUG" {
			t.Errorf("a verification is logged at %v", line["level"])
		}
	}
	got := f.do(ask{method: "GET", url: f.admin + "/metrics"}).body
	for _, want := range []string{
		`keyward_http_requests_total{listener="public",method="POST",route="/api/v1/auth/api-keys",status="201"} 1`,
		`keyward_http_requests_total{listener="verification",method="other",route="none",status="405"} 1`,
		`keyward_act_duration_seconds_count{action="key.create",outcome="done"} 1`,
		`keyward_index_keys 1`, `keyward_database_connections{pool="writer",state="idle"}`, `keyward_lease_seconds `, `go_goroutines `, `keyward_revision 1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// Security headers are on every answer, and no-store on all but the documentation.
func TestAnswerHeaders(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	for _, r := range apitest.Routes() {
		base := f.listeners()[r.Listener]
		path := strings.NewReplacer("{api_key_id}", "key_00000000000000000000000000", "{id}", "org_a").Replace(r.Path)
		for _, token := range []string{"", user} {
			got := f.do(ask{method: r.Method, url: base + path, user: token, header: http.Header{}})
			docs := strings.HasPrefix(path, "/docs") || strings.HasPrefix(path, "/openapi")
			if got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Referrer-Policy") != "no-referrer" ||
				!strings.Contains(got.header.Get("Content-Security-Policy"), "default-src 'none'") || (got.header.Get("Cache-Control") == "no-store") == docs || got.header.Get("Server") != "" {
				t.Errorf("%s %s: %v", r.Method, path, got.header)
			}
		}
	}
}

// CORS: exact origins, management routes, nothing else.
func TestCORS(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.server.CORSOrigins = []string{"https://dash.example", "http://localhost:3000"} })
	user := f.token("u", "org_a")
	for _, tt := range []struct {
		url, origin string
		allowed     bool
	}{
		{f.keysURL(), "https://dash.example", true},
		{f.keysURL(), "http://localhost:3000", true},
		{f.keysURL() + "/key_x/revoke", "https://dash.example", true},
		{f.keysURL(), "https://dash.example.evil", false}, {f.keysURL(), "https://evil.dash.example", false}, {f.keysURL(), "http://dash.example", false},
		{f.keysURL(), "https://dash.example:444", false}, {f.keysURL(), "HTTPS://DASH.EXAMPLE", false}, {f.keysURL(), "null", false}, {f.keysURL(), "*", false}, {f.keysURL(), "", false},
		{f.public + "/docs", "https://dash.example", false},
		{f.verification + "/v1/verify", "https://dash.example", false},
		{f.admin + "/v1/organizations", "https://dash.example", false},
	} {
		h := http.Header{"Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"authorization"}}
		if tt.origin != "" {
			h.Set("Origin", tt.origin)
		}
		got := f.do(ask{method: "OPTIONS", url: tt.url, header: h})
		want := ""
		if tt.allowed {
			want = tt.origin
		}
		status := 204
		if strings.HasPrefix(tt.url, f.admin) {
			status = 403 // R9
		}
		if got.status != status || got.header.Get("Access-Control-Allow-Origin") != want || (got.header.Get("Access-Control-Allow-Headers") != "") != tt.allowed || got.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("preflight of %s from %q: %d %v", tt.url, tt.origin, got.status, got.header)
		}
		if managed := strings.HasPrefix(tt.url, f.keysURL()); (got.header.Get("Vary") == "Origin") != managed {
			t.Errorf("Vary of %s: %q", tt.url, got.header.Get("Vary"))
		}
	}
	one := f.do(ask{method: "OPTIONS", url: f.keysURL() + "/key_x", header: http.Header{"Origin": {"https://dash.example"}, "Access-Control-Request-Method": {"PATCH"}}})
	if methods := one.header.Get("Access-Control-Allow-Methods"); methods != "GET, HEAD, OPTIONS, PATCH" { // C30
		t.Errorf("preflight of PATCH allows %q", methods)
	}
	got := f.do(ask{method: "GET", url: f.keysURL(), user: user, header: http.Header{"Origin": {"https://dash.example"}}})
	if got.status != 200 || got.header.Get("Access-Control-Allow-Origin") != "https://dash.example" || got.header.Get("Access-Control-Expose-Headers") != "Idempotent-Replayed, Location, Retry-After, X-Keyward-Revision, X-Request-Id" {
		t.Errorf("answer: %v", got.header)
	}
	if got := f.do(ask{method: "GET", url: f.keysURL(), header: http.Header{"Origin": {"https://dash.example"}}}); got.status != 401 || got.header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("a page cannot read its 401: %v", got.header)
	}
	for _, origin := range []string{"*", "https://a.example/", "a.example", "https://", "https://a.example/x", "ftp://a.example", "https://a@b.example"} {
		cfg := f.server.cfg
		cfg.CORSOrigins, cfg.Metrics = []string{origin}, nil
		if _, err := New(cfg); err == nil {
			t.Errorf("origin %q is accepted", origin)
		}
	}
}

// New refuses what cannot work.
func TestNewRefuses(t *testing.T) {
	f := newFixture(t)
	for name, change := range map[string]func(*Config){
		"no service":       func(c *Config) { c.Service = nil },
		"no authenticator": func(c *Config) { c.Authenticator = nil },
		"no verifier":      func(c *Config) { c.Verifier = nil },
		"no operations":    func(c *Config) { c.Operations = nil },
		"no format":        func(c *Config) { c.Format = (Config{}).Format },
		"no gate":          func(c *Config) { c.Access = nil },
	} {
		cfg := f.server.cfg
		cfg.Metrics = nil
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Naughty strings in every field, header and path: 2xx or a problem, never a 5xx, and every log line stays
// one JSON object (the fixture checks that).
func TestNaughtyStrings(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	for i, s := range naughtyStrings() {
		quoted := quote(s)
		for _, r := range []ask{
			{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","env":` + quoted + `}`},
			{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":` + quoted + `,"expires_in_days":0}`},
			{method: "POST", url: f.keysURL(), user: user, body: `{` + quoted + `:1}`},
			{method: "POST", url: f.keysURL() + "/key_x/revoke", user: user, body: `{"reason":` + quoted + `}`},
			{method: "POST", url: f.verification + "/v1/verify", body: `{"key":` + quoted + `}`},
			{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"x","connected_account_id":` + quoted + `}`},
			{method: "PUT", url: f.admin + "/v1/organizations/org_naughty", body: `{"name":` + quoted + `}`},
			{method: "PUT", url: f.admin + "/v1/organizations/org_naughty", body: `{"parent_organization_id":` + quoted + `}`},
		} {
			if got := f.do(r); got.status >= 500 {
				t.Errorf("string %d: %s %s: %d %s", i, r.method, r.url, got.status, got.body)
			}
		}
		if !hasControl(s) { // net/http does not send the others; TestSmuggling does
			managed := ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":""}`}
			forwarded := ask{method: "GET", url: f.verification + "/v1/authorize"}
			for header, r := range map[string]ask{
				"Idempotency-Key": managed, "Content-Type": managed, "Origin": managed,
				"X-Connected-Account-ID": forwarded, "X-Request-Id": forwarded, "X-API-Key": forwarded, "Authorization": forwarded, "X-Original-URI": forwarded,
			} {
				r.header = http.Header{header: {s}}
				if got := f.do(r); got.status >= 500 {
					t.Errorf("string %d in %s: %d", i, header, got.status)
				}
			}
		}
		for _, base := range []string{f.keysURL() + "/%s/revoke", f.admin + "/v1/organizations/%s", f.keysURL() + "?cursor=%s&limit=1", f.verification + "/v1/authorize?%s"} {
			got := f.do(ask{method: "GET", url: fmt.Sprintf(base, percent(s)), user: user})
			if got.status >= 500 {
				t.Errorf("string %d in %s: %d", i, base, got.status)
			}
		}
	}
	// A name comes back as it was sent.
	for i, s := range naughtyStrings() {
		if strings.Trim(s, " \t\u00a0\u200b\ufeff") == "" || hasControl(s) || strings.ContainsAny(s, "\u2028\u2029") || len([]rune(s)) > 255 {
			continue
		}
		organization := fmt.Sprintf("org_%d", i)
		k := f.create(fmt.Sprintf("user %d", i), organization, `{"key_name":`+quote(s)+`}`)
		if want := strings.TrimSpace(s); k.KeyName != want || f.verify(k.Key, "").KeyName != want {
			t.Errorf("string %d does not come back", i)
		}
	}
}

// Reveal is called in one place of this package: where an issued key is rendered.
func TestRevealPlaces(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var places []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := goparser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Reveal" {
					places = append(places, name+" "+fn.Name.Name)
				}
				return true
			})
		}
	}
	if diff := cmp.Diff([]string{"management.go RenderIssued"}, places); diff != "" {
		t.Error(diff)
	}
}

// R3: certificates are read again when they change, and client certificates are asked for.
func TestR3TLS(t *testing.T) {
	folder := t.TempDir()
	ca := newAuthority(t)
	files := TLSFiles{Cert: filepath.Join(folder, "cert.pem"), Key: filepath.Join(folder, "key.pem"), ClientCA: filepath.Join(folder, "ca.pem")}
	write := func(serial int64) {
		cert, key := ca.issue(t, serial)
		writeFile(t, files.Cert, cert)
		writeFile(t, files.Key, key)
	}
	write(100)
	writeFile(t, files.ClientCA, ca.pem)
	log := new(lockedBuffer)
	cfg, err := TLSConfig(files, reload.New(slog.New(slog.NewTextHandler(log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	srv := NewHTTPServer(f.server.Public(), Limits{}, slog.New(slog.DiscardHandler))
	srv.TLSConfig = cfg
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	}()
	cert, key := ca.issue(t, 7)
	mine, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	get := func(clients ...tls.Certificate) (serial int64, header http.Header, err error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, Certificates: clients}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String() + "/openapi.json")
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("HTTP/%d", resp.ProtoMajor)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), resp.Header, nil
	}
	serial, header, err := get(mine)
	if err != nil || serial != 100 || header.Get("Strict-Transport-Security") == "" {
		t.Fatalf("serial %d, %v", serial, err)
	}
	if _, _, err := get(); err == nil {
		t.Error("a client without a certificate is served")
	}
	strangerCert, strangerKey := newAuthority(t).issue(t, 8)
	stranger, err := tls.X509KeyPair(strangerCert, strangerKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(stranger); err == nil {
		t.Error("a client of another authority is served")
	}
	write(200)
	eventually(t, "renewed", func() bool { serial, _, err := get(mine); return err == nil && serial == 200 })
	writeFile(t, files.Key, []byte("broken"))
	eventually(t, "noticed", func() bool {
		serial, _, err := get(mine)
		if err != nil || serial != 200 {
			t.Fatalf("the last good certificate is gone: %v", err)
		}
		return strings.Contains(log.String(), "cannot be used")
	})
	for _, bad := range []TLSFiles{{Cert: "missing", Key: "missing"}, {Cert: files.Cert, Key: files.Key}} {
		if _, err := TLSConfig(bad, reload.New(slog.New(slog.DiscardHandler))); err == nil {
			t.Errorf("%+v: accepted", bad)
		}
	}
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	// Renamed into place, as certificate tools do it, so that no half-written file is read.
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// authority issues certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) issue(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// A client that hangs up in the middle of a create does not undo it, and the next try with the same
// idempotency key gets the key (C16, C23).
func TestClientHangsUp(t *testing.T) {
	hold := &heldBarrier{entered: make(chan struct{}), release: make(chan struct{})}
	f := newFixture(t, func(s *setup) { s.barrier = func(b keys.Barrier) keys.Barrier { hold.Barrier = b; return hold } })
	user := f.token("u", "org_a")
	idem := f.hide("idempotency-key-of-a-client-that-left")
	body := `{"key_name":"k","idempotency_key":"` + idem + `"}`
	hold.on.Store(true)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.public, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /api/v1/auth/api-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", user, len(body), body)
	<-hold.entered
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	hold.on.Store(false)
	close(hold.release)
	eventually(t, "answered", func() bool { return len(f.logged(map[string]any{"msg": "request", "status": 201.0})) == 1 })
	got := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: body})
	f.issued(got)
	if got.header.Get("Idempotent-Replayed") != "true" {
		t.Error("the key was lost with the connection")
	}
}

// The documentation is served with its own policy, and asks to be checked before reuse (C28).
func TestC28Documents(t *testing.T) {
	f := newFixture(t)
	for path, body := range map[string][]byte{"/openapi.json": api.JSON(), "/openapi.yaml": api.YAML()} {
		got := f.do(ask{method: "GET", url: f.public + path})
		relative := strings.NewReplacer(`"`+f.public+`"`, `"/"`).Replace(got.body)
		relative = strings.Replace(relative, `- url: "/"`, "- url: /", 1)
		if got.status != 200 || relative != string(body) || relative == got.body {
			t.Errorf("%s: %d", path, got.status)
		}
		again := f.do(ask{method: "GET", url: f.public + path, header: http.Header{"If-None-Match": {got.header.Get("ETag")}}})
		if again.status != 304 || again.body != "" {
			t.Errorf("%s again: %d", path, again.status)
		}
	}
	page := f.do(ask{method: "GET", url: f.public + "/docs"})
	if !strings.Contains(page.header.Get("Content-Security-Policy"), "style-src 'self'") || !strings.Contains(page.body, "<title>") {
		t.Errorf("/docs: %v", page.header)
	}
	if got, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw(t, f.public, "HEAD /docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))), &http.Request{Method: "HEAD"}); err != nil || got.ContentLength != int64(len(page.body)) {
		t.Errorf("HEAD /docs: %v", err)
	}
}
