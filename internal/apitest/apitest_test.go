package apitest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
)

// recorder is a TB that keeps what it is told.
type recorder struct{ failures []string }

func (*recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// exchange is a request and its answer. The zero method is GET.
type exchange struct {
	method, target string
	send           map[string]string
	sendBody       string
	status         int
	header         map[string]string
	body           string
}

// run puts the exchange through Handler and returns its failures.
func (x exchange) run() []string {
	var got recorder
	h := Handler(&got, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for name, value := range x.header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(x.status)
		io.WriteString(w, x.body)
	}))
	if x.method == "" {
		x.method = http.MethodGet
	}
	r := httptest.NewRequest(x.method, x.target, strings.NewReader(x.sendBody))
	for name, value := range x.send {
		r.Header.Set(name, value)
	}
	h.ServeHTTP(httptest.NewRecorder(), r)
	return got.failures
}

const (
	keysPath = "/api/v1/auth/api-keys"
	keyID    = "key_01hm6q9zt0e5v8s3d7k2x4w1np"
)

// headers returns those of an answer, plus the pairs given; an empty value takes one away.
func headers(contentType string, more ...string) map[string]string {
	h := map[string]string{"X-Request-Id": "req-1", "Cache-Control": "no-store", "Content-Type": contentType}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = more[i+1]
		if more[i+1] == "" {
			delete(h, more[i])
		}
	}
	return h
}

func problem(status int, code string, more ...string) string {
	p := map[string]any{"type": "about:blank", "title": "Refused", "status": status, "detail": "Do better.", "code": code, "request_id": "req-1"}
	for i := 0; i < len(more); i += 2 {
		p[more[i]] = more[i+1]
	}
	b, _ := json.Marshal(p)
	return string(b)
}

var (
	user     = map[string]string{"Authorization": "Bearer x.y.z"}
	userJSON = map[string]string{"Authorization": "Bearer x.y.z", "Content-Type": "application/json"}
	emptyOK  = exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{"keys":[]}`}
)

func TestC28Exchanges(t *testing.T) {
	revoke := keysPath + "/" + keyID + "/revoke"
	authorized := headers("", "Content-Type", "", "X-Keyward-Organization-Id", "org_demo", "X-Keyward-Environment", "live", "X-Keyward-Key-Id", keyID,
		"X-Keyward-Connected-Account-Id", "", "X-Keyward-Payments-Enabled", "true")
	authorized["X-Keyward-Connected-Account-Id"] = ""
	without := func(h map[string]string, name string) map[string]string {
		h = maps.Clone(h)
		delete(h, name)
		return h
	}
	tests := []struct {
		name string
		x    exchange
		want string // part of the failure; empty when the exchange fits
	}{
		{"an empty list", emptyOK, ""},
		{"another member", exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{"keys":[],"secret":1}`}, "secret"},
		{"a member of the wrong type", exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{"keys":null}`}, "keys"},
		{"a member missing", exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{}`}, "keys"},
		{"not JSON", exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{`}, "decode"},
		{"no body", exchange{target: keysPath, send: user, status: 200, header: headers("application/json")}, "decode"},
		{"another content type", exchange{target: keysPath, send: user, status: 200, header: headers("text/plain"), body: `{"keys":[]}`}, "Content-Type"},
		{"a status that is not described", exchange{target: keysPath, send: user, status: 202, header: headers("application/json"), body: `{"keys":[]}`}, "status is not described"},
		{"no request id", exchange{target: keysPath, send: user, status: 200, header: headers("application/json", "X-Request-Id", ""), body: `{"keys":[]}`}, "X-Request-Id"},
		{"kept by caches", exchange{target: keysPath, send: user, status: 200, header: headers("application/json", "Cache-Control", "max-age=60"), body: `{"keys":[]}`}, "Cache-Control"},
		{"a header that is not described", exchange{target: keysPath, send: user, status: 200, header: headers("application/json", "Retry-After", "1"), body: `{"keys":[]}`}, "Retry-After is not described"},
		{"a local time", exchange{target: "/v1/organizations/o", status: 200, header: headers("application/json"), body: `{"organization_id":"o","name":"","parent_organization_id":null,"payments_enabled":false,"current_env":"test","is_active":true,"created_at":"2024-01-15T10:00:00+01:00","updated_at":"2024-01-15T10:00:00Z"}`}, "created_at"},

		{"a path that is not described", exchange{target: "/api/v2/keys", status: 200, header: headers("application/json"), body: `{}`}, "not described"},
		{"a redirect from a path that is not described", exchange{target: "/api//v1", status: 301, header: headers("", "Location", "/api/v1")}, "not described"},
		{"C27 nothing there", exchange{target: "/api/v2/keys", status: 404, header: headers("application/problem+json"), body: problem(404, "route_not_found")}, ""},
		{"C27 nothing there, in plain text", exchange{target: "/api/v2/keys", status: 404, header: headers("text/plain"), body: "404 page not found\n"}, "Content-Type"},
		{"C27 nothing there, asked with HEAD", exchange{method: "HEAD", target: "/v1/status", status: 404, header: headers("application/problem+json")}, ""},
		{"C27 on the other listener", exchange{method: "POST", target: revoke, send: user, status: 404, header: headers("application/problem+json"), body: problem(404, "route_not_found")}, ""},
		{"C22 no such key", exchange{method: "POST", target: revoke, send: user, status: 404, header: headers("application/problem+json"), body: problem(404, "api_key_not_found")}, ""},
		{"C27 no such method", exchange{method: "DELETE", target: keysPath, status: 405, header: headers("application/problem+json", "Allow", "GET, HEAD, OPTIONS, POST"), body: problem(405, "method_not_allowed")}, ""},
		{"C27 no such method, without Allow", exchange{method: "DELETE", target: keysPath, status: 405, header: headers("application/problem+json"), body: problem(405, "method_not_allowed")}, "Allow"},
		{"C27 a method that is not described", exchange{method: "DELETE", target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{}`}, "not described"},
		{"C27 HEAD", exchange{method: "HEAD", target: keysPath, send: user, status: 200, header: headers("application/json")}, ""},
		{"C27 HEAD with a body", exchange{method: "HEAD", target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{"keys":[]}`}, "a body"},
		{"C27 HEAD without a request id", exchange{method: "HEAD", target: keysPath, send: user, status: 200, header: headers("application/json", "X-Request-Id", "")}, "X-Request-Id"},
		{"C27 HEAD with a status that is not described", exchange{method: "HEAD", target: keysPath, send: user, status: 202, header: headers("application/json")}, "status"},
		{"C27 OPTIONS", exchange{method: "OPTIONS", target: keysPath, status: 204, header: headers("", "Allow", "GET, HEAD, OPTIONS, POST")}, ""},
		{"C27 OPTIONS without Allow", exchange{method: "OPTIONS", target: keysPath, status: 204, header: headers("")}, "Allow"},
		{"C27 OPTIONS that answers 200", exchange{method: "OPTIONS", target: keysPath, status: 200, header: headers("", "Allow", "GET")}, "204"},

		{"C6 a refused request need not fit", exchange{method: "POST", target: keysPath, send: userJSON, sendBody: `{"key_name":7}`, status: 400, header: headers("application/problem+json"), body: problem(400, "invalid_request", "param", "key_name")}, ""},
		{"C6 an accepted request that does not fit", exchange{method: "POST", target: keysPath + "/" + keyID + "/revoke", send: userJSON, sendBody: `{"reason":"x","why":1}`, status: 200, header: headers("application/json"), body: `{"status":"revoked","api_key_id":"` + keyID + `"}`}, "accepted a request"},
		{"C18 an accepted parameter that does not fit", exchange{target: keysPath + "?limit=0", send: user, status: 200, header: headers("application/json"), body: `{"keys":[]}`}, "accepted a request"},
		{"C1 accepted without a token", exchange{target: keysPath, status: 200, header: headers("application/json"), body: `{"keys":[]}`}, "accepted a request"},
		{"C1 refused without WWW-Authenticate", exchange{target: keysPath, status: 401, header: headers("application/problem+json"), body: problem(401, "invalid_token")}, "WWW-Authenticate"},
		{"C1 refused", exchange{target: keysPath, status: 401, header: headers("application/problem+json", "WWW-Authenticate", `Bearer error="invalid_token"`), body: problem(401, "invalid_token")}, ""},
		{"C12 an active key exists, not named", exchange{method: "POST", target: keysPath, send: userJSON, status: 400, header: headers("application/problem+json"), body: problem(400, "active_key_exists")}, "active_api_key_id"},
		{"C12 an active key exists", exchange{method: "POST", target: keysPath, send: userJSON, status: 400, header: headers("application/problem+json"), body: problem(400, "active_key_exists", "active_api_key_id", keyID, "active_env", "live")}, ""},
		{"C12 a code of another route", exchange{target: keysPath, send: user, status: 400, header: headers("application/problem+json"), body: problem(400, "active_key_exists", "active_api_key_id", keyID, "active_env", "live")}, "code"},
		{"C14 Retry-After in words", exchange{method: "POST", target: keysPath, send: userJSON, status: 429, header: headers("application/problem+json", "Retry-After", "soon"), body: problem(429, "rate_limited")}, "Retry-After"},
		{"C14 Retry-After 0", exchange{method: "POST", target: keysPath, send: userJSON, status: 429, header: headers("application/problem+json", "Retry-After", "0"), body: problem(429, "rate_limited")}, "Retry-After"},
		{"C14 Retry-After", exchange{method: "POST", target: keysPath, send: userJSON, status: 429, header: headers("application/problem+json", "Retry-After", "42"), body: problem(429, "rate_limited")}, ""},
		{"C25 another status in the body", exchange{target: keysPath, send: user, status: 500, header: headers("application/problem+json"), body: problem(503, "internal")}, "status"},
		{"C25 another member", exchange{target: keysPath, send: user, status: 500, header: headers("application/problem+json"), body: problem(500, "internal", "stack", "main.go:1")}, "stack"},
		{"C19 revoked and active", exchange{target: keysPath, send: user, status: 200, header: headers("application/json"), body: `{"keys":[{"api_key_id":"` + keyID + `","key_name":"k","is_active":true,"created_at":"2024-01-15T10:00:00Z","last_used_at":null,"expires_at":null,"env":"live","hint":"abcd","status":"revoked","revoked_at":"2024-01-16T10:00:00Z","created_by":"u"}]}`}, "is_active"},

		{"V2 authorized", exchange{method: "PATCH", target: "/v1/authorize", send: map[string]string{"X-API-Key": "s"}, status: 200, header: authorized}, ""},
		{"V2 authorized, an identity header missing", exchange{method: "PATCH", target: "/v1/authorize", send: map[string]string{"X-API-Key": "s"}, status: 200, header: without(authorized, "X-Keyward-Connected-Account-Id")}, "X-Keyward-Connected-Account-Id"},
		{"V2 authorized, with a body", exchange{method: "PATCH", target: "/v1/authorize", send: map[string]string{"X-API-Key": "s"}, status: 200, header: authorized, body: "ok"}, "a body"},
		{"V2 authorized without a secret", exchange{method: "GET", target: "/v1/authorize", status: 200, header: authorized}, "accepted a request"},
		{"V2 authorized to HEAD, an identity header missing", exchange{method: "HEAD", target: "/v1/authorize", send: map[string]string{"X-API-Key": "s"}, status: 200, header: without(authorized, "X-Keyward-Key-Id")}, "X-Keyward-Key-Id"},
		{"V2 an identity header that is not described", exchange{method: "GET", target: "/v1/authorize", status: 401, header: headers("application/problem+json", "WWW-Authenticate", "Bearer", "X-Keyward-Reason", "revoked"), body: problem(401, "invalid_token")}, "X-Keyward-Reason"},
		{"V4 inactive", introspected(`{"active":false}`), ""},
		{"V4 inactive, and more", introspected(`{"active":false,"env":"live"}`), "maxProperties"},
		{"V4 active, and no more", introspected(`{"active":true}`), "sub"},
		{"V1 valid for a reason", verified(`{"valid":true,"reason":"revoked","api_key_id":"` + keyID + `","organization_id":"o","env":"live","key_name":"k","payments_enabled":true}`), "reason"},
		{"V1 refused as valid", verified(`{"valid":false,"reason":"valid"}`), "reason"},
		{"V1 unknown", verified(`{"valid":false,"reason":"unknown"}`), ""},
		{"the page", exchange{target: "/docs", status: 200, header: headers("text/html; charset=utf-8", "Cache-Control", "no-cache", "ETag", `"0123456789abcdef"`), body: "<!doctype html>"}, ""},
		{"the page, unchanged", exchange{target: "/docs", status: 304, header: headers("", "ETag", `"0123456789abcdef"`)}, ""},
		{"the page, unchanged, with a weak tag", exchange{target: "/docs", status: 304, header: headers("", "ETag", `W/"1"`)}, "ETag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.x.run()
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("failures: %q", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("failures %q, want one that names %q", got, tt.want)
			}
		})
	}
}

func introspected(body string) exchange {
	return exchange{method: "POST", target: "/v1/introspect", send: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, sendBody: "token=x",
		status: 200, header: headers("application/json"), body: body}
}

func verified(body string) exchange {
	return exchange{method: "POST", target: "/v1/verify", send: map[string]string{"Content-Type": "application/json"}, sendBody: `{"key":"x"}`,
		status: 200, header: headers("application/json"), body: body}
}

// C28: every example in the document fits, and no longer does with a member more, with a required
// member less, or with a member of another type. So each of those schemas does validate.
func TestC28EverySchemaBites(t *testing.T) {
	doc := document()
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			for status, response := range operation.Responses.Map() {
				media := response.Value.Content["application/json"]
				if media == nil || media.Example == nil {
					continue
				}
				t.Run(method+" "+path+" "+status, func(t *testing.T) {
					answer := media.Example.(map[string]any)
					send := map[string]string{"Authorization": "Bearer x"}
					x := exchange{method: method, target: strings.NewReplacer("{api_key_id}", keyID, "{id}", "org_demo").Replace(path), send: send, header: headers("application/json")}
					x.status, _ = strconv.Atoi(status)
					if status == "201" {
						x.header["Location"] = keysPath + "/" + keyID
					}
					if response.Value.Headers["X-Keyward-Revision"] != nil {
						x.header["X-Keyward-Revision"] = "18"
					}
					if body := operation.RequestBody; body != nil {
						send["Content-Type"] = "application/json"
						x.sendBody = string(encode(body.Value.Content["application/json"], t))
						if form := body.Value.Content["application/x-www-form-urlencoded"]; form != nil {
							send["Content-Type"], x.sendBody = "application/x-www-form-urlencoded", "token=x"
						}
					}
					tryWith := func(what string, change func(map[string]any), wantFailure bool) {
						t.Helper()
						changed := maps.Clone(answer)
						change(changed)
						b, err := json.Marshal(changed)
						if err != nil {
							t.Fatal(err)
						}
						x.body = string(b)
						if got := x.run(); (len(got) > 0) != wantFailure {
							t.Errorf("%s: failures %q", what, got)
						}
					}
					tryWith("the example", func(map[string]any) {}, false)
					tryWith("a member more", func(m map[string]any) { m["undescribed"] = "x" }, true)
					for name := range answer {
						tryWith(name+" of another type", func(m map[string]any) { m[name] = map[string]any{"a": 1.5} }, true)
					}
					for _, name := range required(media.Schema.Value) {
						tryWith(name+" missing", func(m map[string]any) { delete(m, name) }, true)
					}
					for name, described := range response.Value.Headers {
						if !described.Value.Required {
							continue
						}
						broken := x
						broken.header = maps.Clone(x.header)
						delete(broken.header, name)
						if len(broken.run()) == 0 {
							t.Errorf("nothing said without %s", name)
						}
					}
				})
			}
		}
	}
}

func encode(media *openapi3.MediaType, t *testing.T) []byte {
	if media == nil {
		return nil
	}
	b, err := json.Marshal(media.Example)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func required(s *openapi3.Schema) []string {
	names := slices.Clone(s.Required)
	for _, part := range s.AllOf {
		names = append(names, required(part.Value)...)
	}
	return names
}

// C28: every object an answer is made of is closed here, though the document leaves it open, or the
// tests above could not see a member more.
func TestC28EveryObjectIsClosed(t *testing.T) {
	for name, schema := range document().Components.Schemas {
		s := schema.Value
		if s.Type.Is("object") && name != "Introspect" && (s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has) {
			t.Errorf("the schema %s lets other members through", name)
		}
	}
}

func TestC28Routes(t *testing.T) {
	routes := Routes()
	for _, want := range []Route{
		{"POST", "/api/v1/auth/api-keys", Public},
		{"GET", "/api/v1/auth/api-keys", Public},
		{"POST", "/api/v1/auth/api-keys/{api_key_id}/revoke", Public},
		{"POST", "/api/v1/auth/api-keys/{api_key_id}/roll", Public},
		{"GET", "/openapi.json", Public},
		{"GET", "/docs", Public},
		{"POST", "/v1/verify", Verification},
		{"OPTIONS", "/v1/authorize", Verification},
		{"PUT", "/v1/organizations/{id}", Admin},
		{"GET", "/metrics", Admin},
		{"GET", "/readyz", Verification},
		{"GET", "/readyz", Admin},
	} {
		if !slices.Contains(routes, want) {
			t.Errorf("%v is not among the routes", want)
		}
	}
	for _, r := range routes {
		if r.Listener != Public && r.Listener != Verification && r.Listener != Admin {
			t.Errorf("%v is on no listener", r)
		}
		item := document().Paths.Value(r.Path)
		tag := document().Tags.Get(item.GetOperation(r.Method).Tags[0])
		on, _ := tag.Extensions["x-listener"].(string)
		if !slices.Contains(listenersOf(item), Listener(on)) {
			t.Errorf("%v: its tag and its servers are of different listeners", r)
		}
	}
}

// The client and the server see bodies and headers as if nothing stood between them.
func TestTransparency(t *testing.T) {
	var got recorder
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Echo", r.Header.Get("X-Sent"))
		w.WriteHeader(http.StatusAccepted)
		w.Write(b)
	})
	for name, client := range map[string]func(url string) *http.Client{
		"Handler":   func(string) *http.Client { return http.DefaultClient },
		"Transport": func(string) *http.Client { return &http.Client{Transport: Transport(&got, nil)} },
	} {
		t.Run(name, func(t *testing.T) {
			got.failures = nil
			h := http.Handler(echo)
			if name == "Handler" {
				h = Handler(&got, echo)
			}
			server := httptest.NewServer(h)
			defer server.Close()
			r, err := http.NewRequest("POST", server.URL+"/nowhere", strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Sent", "there")
			response, err := client(server.URL).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]any{202, "there", "hello"}, []any{response.StatusCode, response.Header.Get("X-Echo"), string(body)}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(got.failures) != 1 {
				t.Errorf("failures %q, want one", got.failures)
			}
		})
	}
}

// Exchanges are checked side by side, as a test of concurrent creates makes them.
func TestConcurrentExchanges(t *testing.T) {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if got := verified(`{"valid":false,"reason":"unknown"}`).run(); len(got) > 0 {
				t.Errorf("failures %q", got)
			}
			if got := verified(`{"valid":false,"reason":"valid"}`).run(); len(got) != 1 {
				t.Errorf("failures %q, want one", got)
			}
		})
	}
	wg.Wait()
}

// V7: what a failure says holds no query, no body and no header, which may hold a secret.
func TestV7FailuresRepeatNothing(t *testing.T) {
	query := emptyOK
	query.target += "?api_key=hush"
	query.status = 202
	issued := exchange{method: "POST", target: keysPath, send: userJSON, sendBody: `{"key_name":"k"}`, status: 201,
		header: headers("application/json", "Location", keysPath+"/"+keyID, "X-Keyward-Revision", "18"),
		body:   `{"api_key_id":"` + keyID + `","key":"hush","key_name":"k","created_at":"2024-01-15T10:00:00Z","expires_at":null,"env":"live","hint":"abcd"}`}
	sent := verified(`{"valid":false,"reason":"unknown"}`)
	sent.sendBody = `{"key":{"hush":1}}`
	for name, x := range map[string]exchange{"query": query, "answer": issued, "request": sent} {
		t.Run(name, func(t *testing.T) {
			if got := x.run(); len(got) != 1 || strings.Contains(got[0], "hush") {
				t.Errorf("failures %q", got)
			}
		})
	}
}
