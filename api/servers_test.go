package api

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"gopkg.in/yaml.v3"
)

// C28: the document's server is the address it was fetched from, and a host that is none changes nothing.
func TestC28ServersIsWhereTheDocumentIsFrom(t *testing.T) {
	for _, tt := range []struct {
		host, proto string
		tls         bool
		want        string
	}{
		{host: "127.0.0.1:8080", want: "http://127.0.0.1:8080"},
		{host: "keys.example.com", tls: true, want: "https://keys.example.com"},
		{host: "keys.example.com", proto: "https", want: "https://keys.example.com"},
		{host: "keys.example.com", proto: "gopher", want: "http://keys.example.com"},
		{host: "[2001:db8::1]:8443", tls: true, want: "https://[2001:db8::1]:8443"},
		{host: `a"}],"x":"`, want: "/"},
		{host: "a b", want: "/"},
		{host: "", want: "/"},
	} {
		for path, unmarshal := range map[string]func([]byte, any) error{
			"/openapi.json": json.Unmarshal, "/openapi.yaml": yaml.Unmarshal,
		} {
			t.Run(tt.want+" "+path, func(t *testing.T) {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Host = tt.host
				if tt.proto != "" {
					r.Header.Set("X-Forwarded-Proto", tt.proto)
				}
				if tt.tls {
					r.TLS = &tls.ConnectionState{}
				}
				got := httptest.NewRecorder()
				DocsHandler().ServeHTTP(got, r)
				var document struct {
					Servers []struct {
						URL string `json:"url" yaml:"url"`
					} `json:"servers" yaml:"servers"`
				}
				if err := unmarshal(got.Body.Bytes(), &document); err != nil {
					t.Fatal(err)
				}
				if len(document.Servers) != 1 || document.Servers[0].URL != tt.want {
					t.Errorf("servers %v, want %s alone", document.Servers, tt.want)
				}
				again := httptest.NewRequest(http.MethodGet, path, nil)
				again.Host, again.TLS, again.Header = r.Host, r.TLS, r.Header.Clone()
				again.Header.Set("If-None-Match", got.Header().Get("ETag"))
				same := httptest.NewRecorder()
				DocsHandler().ServeHTTP(same, again)
				if same.Code != http.StatusNotModified {
					t.Errorf("the same document again: %d, want 304", same.Code)
				}
			})
		}
	}
}
