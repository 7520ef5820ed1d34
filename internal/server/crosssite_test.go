package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/syncgram/keyward/api"
)

// browser sends a request as a browser does for a page, and returns the status and the body.
func (f *fixture) browser(method, url, host, body string, header map[string]string) (int, string) {
	f.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(f.t.Context(), method, url, content)
	if err != nil {
		f.t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// R9: a page of another site makes the operator's browser rotate the master key.
func TestR9CrossSitePostDoesNotRotate(t *testing.T) {
	f := newFixture(t)
	status, body := f.browser("POST", f.admin+"/v1/master-key/rotate", "", "x", map[string]string{
		"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site",
	})
	if status != http.StatusForbidden || !strings.Contains(body, `"code":"`+string(api.Forbidden)+`"`) {
		t.Errorf("answered %d %s", status, body)
	}
}

// R9: a page whose name was bound to this machine's address reads the audit log.
func TestR9ReboundHostReadsNothing(t *testing.T) {
	f := newFixture(t)
	f.put("org_a", `{}`)
	status, body := f.browser("GET", f.admin+"/v1/audit", "evil.example:8082", "", map[string]string{"Sec-Fetch-Site": "same-origin"})
	if status != http.StatusForbidden || strings.Contains(body, "org_a") {
		t.Errorf("answered %d %s", status, body)
	}
}

// R9: the names under which the admin listener answers.
func TestR9Host(t *testing.T) {
	f := newFixture(t, func(s *setup) {
		s.server.AdminHosts = []string{"keyward.internal", "ops.example:8443"}
	})
	_, port, _ := strings.Cut(strings.TrimPrefix(f.admin, "http://"), ":")
	for host, want := range map[string]int{
		"127.0.0.1:" + port: 200, "localhost:" + port: 200, "LOCALHOST:" + port: 200, "[::1]:" + port: 200,
		"keyward.internal": 200, "keyward.internal:1": 200, "Keyward.Internal:" + port: 200, "ops.example:8443": 200,
		"127.0.0.1": 403, "127.0.0.1:1": 403, "localhost": 403, "localhost.:" + port: 403,
		"evil.example": 403, "evil.example:" + port: 403, "ops.example": 403, "ops.example:" + port: 403,
		"10.0.0.1:" + port: 403, "[2001:db8::1]:" + port: 403, "x.keyward.internal": 403, "localhost.evil.example:" + port: 403,
	} {
		for _, path := range []string{"/v1/status", "/livez", "/metrics"} {
			if got, body := f.browser("GET", f.admin+path, host, "", nil); got != want {
				t.Errorf("%s as %s: %d, want %d: %s", path, host, got, want, body)
			}
		}
		if got, _ := f.browser("GET", f.verification+"/livez", host, "", nil); got != 200 {
			t.Errorf("the verification listener as %s: %d", host, got)
		}
	}
	if got := raw(t, f.admin, "GET /v1/audit HTTP/1.0\r\n\r\n"); !strings.Contains(got, " 403 ") {
		t.Errorf("without a Host: %.100s", got)
	}
}

// R9: what a browser says of where a request comes from, and the bodies that a form can send.
func TestR9CrossSite(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		name   string
		header map[string]string
		body   string
		want   int // of PUT
		get    int
	}{
		{"no browser", map[string]string{"Content-Type": "application/json"}, `{}`, 200, 200},
		{"same origin", map[string]string{"Content-Type": "application/json", "Origin": f.admin, "Sec-Fetch-Site": "same-origin"}, `{}`, 200, 200},
		{"typed by the operator", map[string]string{"Content-Type": "application/json", "Sec-Fetch-Site": "none"}, `{}`, 200, 200},
		{"cross-site", map[string]string{"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, `{}`, 403, 403},
		{"another port of this machine", map[string]string{"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}, `{}`, 403, 403},
		{"an unknown word", map[string]string{"Content-Type": "application/json", "Sec-Fetch-Site": "x"}, `{}`, 403, 403},
		{"another origin", map[string]string{"Content-Type": "application/json", "Origin": "https://evil.example"}, `{}`, 403, 403},
		{"another port as the origin", map[string]string{"Content-Type": "application/json", "Origin": f.public}, `{}`, 403, 403},
		{"an opaque origin", map[string]string{"Content-Type": "application/json", "Origin": "null"}, `{}`, 403, 403},
		{"text", map[string]string{"Content-Type": "text/plain"}, `{}`, 415, 200},
		{"text with a parameter", map[string]string{"Content-Type": "Text/Plain; charset=utf-8"}, `{}`, 415, 200},
		{"JSON in a parameter of text", map[string]string{"Content-Type": "text/plain; application/json"}, `{}`, 415, 200},
		{"a form", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, `a=b`, 415, 200},
		{"a form of parts", map[string]string{"Content-Type": "multipart/form-data; boundary=x"}, `--x--`, 415, 200},
		{"no type", nil, `{}`, 415, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, body := f.browser("PUT", f.admin+"/v1/organizations/org_a", "", tt.body, tt.header); got != tt.want {
				t.Errorf("PUT: %d, want %d: %s", got, tt.want, body)
			}
			if got, body := f.browser("POST", f.admin+"/v1/master-key/rotate", "", tt.body, tt.header); got != tt.want {
				t.Errorf("POST: %d, want %d: %s", got, tt.want, body)
			}
			if got, body := f.browser("GET", f.admin+"/v1/audit", "", "", tt.header); got != tt.get {
				t.Errorf("GET: %d, want %d: %s", got, tt.get, body)
			}
		})
	}
	// Without a body no type is needed.
	if got, body := f.browser("POST", f.admin+"/v1/audit/verify", "", "", nil); got != 200 {
		t.Errorf("no body: %d %s", got, body)
	}
}
