package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/apitest"
)

// docs serves the handler as the server does, with a request id, and holds it to the document.
func docs(t *testing.T) http.Handler {
	return apitest.Handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "req-1")
		api.DocsHandler().ServeHTTP(w, r)
	}))
}

func get(t *testing.T, h http.Handler, method, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// C27, C28: the page and the document are served as described, to GET and HEAD, and revalidated.
func TestC28DocsHandler(t *testing.T) {
	h := docs(t)
	for path, contentType := range map[string]string{
		"/docs":           "text/html; charset=utf-8",
		"/docs/style.css": "text/css; charset=utf-8",
		"/docs/docs.js":   "text/javascript; charset=utf-8",
		"/openapi.json":   "application/json",
		"/openapi.yaml":   "application/yaml",
	} {
		t.Run(path, func(t *testing.T) {
			got := get(t, h, "GET", path)
			body, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			if got.StatusCode != 200 || got.Header.Get("Content-Type") != contentType || len(body) == 0 {
				t.Errorf("answered %d %q, %d bytes", got.StatusCode, got.Header.Get("Content-Type"), len(body))
			}
			if got.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Error("the type may be guessed")
			}
			if policy := got.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
				t.Errorf("Content-Security-Policy: %s", policy)
			}

			head := get(t, h, "HEAD", path)
			if diff := cmp.Diff(got.Header, head.Header); diff != "" || head.StatusCode != 200 {
				t.Errorf("HEAD answered %d, headers (-GET +HEAD):\n%s", head.StatusCode, diff)
			}

			etag := got.Header.Get("ETag")
			for tag, want := range map[string]int{
				etag: 304, "W/" + etag: 304, `"other", ` + etag: 304, "*": 304,
				`"other"`: 200, strings.Trim(etag, `"`): 200, "": 200,
			} {
				if again := get(t, h, "GET", path, "If-None-Match", tag); again.StatusCode != want {
					t.Errorf("If-None-Match: %s answered %d, want %d", tag, again.StatusCode, want)
				}
			}
		})
	}
	if got := get(t, api.DocsHandler(), "GET", "/docs/page.html"); got.StatusCode != 404 {
		t.Errorf("the template is served: %d", got.StatusCode)
	}
}

var (
	idPattern   = regexp.MustCompile(` id="([^"]+)"`)
	linkPattern = regexp.MustCompile(` (?:href|src)="([^"]*)"`)
	inlineCode  = regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|javascript:|<script[^>]*>[^<]`)
)

// C28: the page has every operation and code of the document, each link on it leads somewhere, and
// nothing on it needs an exception from the policy or comes from elsewhere.
func TestC28Page(t *testing.T) {
	page := string(api.Docs())
	if m := inlineCode.FindString(page); m != "" {
		t.Errorf("the page has inline code: %q", m)
	}
	ids := make(map[string]bool)
	for _, m := range idPattern.FindAllStringSubmatch(page, -1) {
		if ids[m[1]] {
			t.Errorf("the id %s is there twice", m[1])
		}
		ids[m[1]] = true
	}
	served := []string{"/docs/style.css", "/docs/docs.js", "/openapi.json", "/openapi.yaml"}
	for _, m := range linkPattern.FindAllStringSubmatch(page, -1) {
		if target, ok := strings.CutPrefix(m[1], "#"); ok && ids[target] {
			continue
		}
		if strings.HasPrefix(m[1], "#") || !slices.Contains(served, m[1]) {
			t.Errorf("a link to %q, which is not there", m[1])
		}
	}

	for place, o := range operations(t) {
		if o.SameAs != "" {
			o.OperationID = o.SameAs
		}
		path, _, _ := strings.Cut(place, " ")
		if !ids[o.OperationID] || !strings.Contains(page, "<code>"+path+"</code>") {
			t.Errorf("%s is not on the page", place)
		}
	}
	for _, code := range []api.Code{api.InvalidToken, api.ActiveKeyExists, api.RateLimited, api.RouteNotFound, api.MethodNotAllowed, api.Unavailable} {
		row := regexp.MustCompile(`(?s)id="problem-` + string(code) + `".*?<span class="status">\d{3}</span>`)
		if !row.MatchString(page) {
			t.Errorf("the code %s is not explained with a status", code)
		}
	}
	if strings.Contains(page, "&amp;lt;") || strings.Contains(page, "`") {
		t.Error("a description was escaped twice, or its marks were not understood")
	}
}

// The examples of the specification stand in the document as it prints them.
func TestSpecifiedExamples(t *testing.T) {
	const token = `--header 'Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...'`
	want := map[string]string{
		"/api/v1/auth/api-keys post": `curl --request POST \
  --url https://api.syncgrampay.com/api/v1/auth/api-keys \
  ` + token + ` \
  --header 'Content-Type: application/json' \
  --data '{
    "key_name": "Production key",
    "expires_in_days": 365,
    "env": "live"
  }'
`,
		"/api/v1/auth/api-keys get": `curl --request GET \
  --url https://api.syncgrampay.com/api/v1/auth/api-keys \
  ` + token + "\n",
		"/api/v1/auth/api-keys/{api_key_id}/revoke post": `curl --request POST \
  --url https://api.syncgrampay.com/api/v1/auth/api-keys/key_abc123/revoke \
  ` + token + "\n",
	}
	documented := operations(t)
	for place, source := range want {
		samples := documented[place].Samples
		if len(samples) != 1 {
			t.Errorf("%s has %d samples", place, len(samples))
			continue
		}
		if diff := cmp.Diff(source, samples[0].Source); diff != "" {
			t.Errorf("%s (-want +got):\n%s", place, diff)
		}
	}
}

type operation struct {
	OperationID string
	SameAs      string                    `json:"x-same-as"`
	Samples     []struct{ Source string } `json:"x-codeSamples"`
}

// operations returns those of the document by path and method, a space between.
func operations(t *testing.T) map[string]operation {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(api.JSON(), &doc); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]operation)
	for path, item := range doc.Paths {
		for method, raw := range item {
			if method == "servers" {
				continue
			}
			var o operation
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatal(err)
			}
			found[path+" "+method] = o
		}
	}
	return found
}
