package doors

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// onNode is a platform of one node: as much as a proxy needs to be started.
func onNode(t *testing.T) (p *platform, live string) {
	t.Helper()
	p = &platform{t: t, token: "an-internal-token-of-it", client: &http.Client{
		Transport: &http.Transport{}, Timeout: keywardtest.Patience,
	}}
	t.Cleanup(p.client.CloseIdleConnections)
	credentials := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(credentials, []byte("proxy verify,operate "+p.token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	node := keywardtest.Start(t, keywardtest.Options{
		Flags: []string{"--credentials-file=" + credentials, "--lease=60s"},
	})
	p.nodes = []*keywardtest.Process{node, node, node}
	p.api = newPayments(t, nil)
	return p, node.Issue(t, p.token).Live
}

// upload posts n bytes, with a Content-Length or in chunks, and returns the status and how many of
// them the API got, -1 when it was not reached.
func (p *platform) upload(url, secret string, n int, chunked bool) (status, got int) {
	p.t.Helper()
	var content io.Reader = bytes.NewReader(bytes.Repeat([]byte("x"), n))
	if chunked {
		content = io.MultiReader(content) // of unknown length to net/http
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), keywardtest.Patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, content)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Expect", "100-continue") // so that a rejection is read before the body is sent
	if secret != "" {
		r.Header.Set("X-API-Key", secret)
	}
	before := p.api.reached.Load()
	resp, err := p.client.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.api.reached.Load() == before {
		return resp.StatusCode, -1
	}
	var seen reached
	if resp.StatusCode == http.StatusOK && json.Unmarshal(text, &seen) != nil {
		p.t.Fatalf("not from the API: %.200s", text)
	}
	return resp.StatusCode, len(seen.Body)
}

// V4: a route that takes a large body is asked about like any other. What a proxy permits for a
// request must not hold for the question about it, which has no body.
func TestV4UploadsThroughProxies(t *testing.T) {
	p, live := onNode(t)
	const large = 2 << 20
	type route struct {
		url   string
		takes int // bytes
	}
	uploads := `        location /v1/uploads {
            set $keyward_question "?env=live";
            client_max_body_size 4m;
            proxy_pass http://payments;
        }

`
	nginx := startNginx(p, map[string]string{"        location / {\n": uploads + "        location / {\n"})
	caddy := startCaddy(p, nil).url
	raised := startCaddy(p, map[string]string{"max_size 64KB": "max_size 4MB"}).url
	for name, tt := range map[string]route{
		"nginx, a location that takes more": {nginx.url + "/v1/uploads", 4 << 20},
		"nginx, any other":                  {nginx.url + "/v1/payouts", 64 << 10},
		"Caddy":                             {caddy + "/v1/payouts", 64 << 10},
		"Caddy, with more":                  {raised + "/v1/payouts", 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				want := 401
				if tt.takes < large {
					want = 413 // before or after the question: it reaches nobody
				}
				if status, got := p.upload(tt.url, "", large, chunked); status != 401 && status != want || got != -1 {
					t.Errorf("chunked %t: without a key: %d, %d bytes", chunked, status, got)
				}
				if status, got := p.upload(tt.url, live, 60<<10, chunked); status != 200 || got != 60<<10 {
					t.Errorf("chunked %t: 60 KiB: %d, the API got %d bytes", chunked, status, got)
				}
				status, got := p.upload(tt.url, live, large, chunked)
				switch {
				case tt.takes >= large && (status != 200 || got != large):
					t.Errorf("chunked %t: 2 MiB: %d, the API got %d bytes", chunked, status, got)
				case tt.takes < large && (status != 413 || got > 0):
					t.Errorf("chunked %t: 2 MiB, which it does not take: %d, %d bytes", chunked, status, got)
				}
			}
		})
	}
}

// The question that Traefik and Envoy send has no body, so no limit of one holds for it: nothing in
// their examples makes it carry the client's.
func TestV4QuestionsCarryNoBody(t *testing.T) {
	var file struct {
		HTTP struct {
			Middlewares map[string]struct {
				ForwardAuth map[string]any `yaml:"forwardAuth"`
			}
			Routers map[string]struct{ Middlewares []string }
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "traefik/dynamic.yml")), &file); err != nil {
		t.Fatal(err)
	}
	questions := 0
	for name, m := range file.HTTP.Middlewares {
		if m.ForwardAuth == nil {
			continue
		}
		questions++
		for _, option := range []string{"forwardBody", "maxBodySize", "preserveRequestMethod"} {
			if _, ok := m.ForwardAuth[option]; ok {
				t.Errorf("traefik/dynamic.yml: %s has %s", name, option)
			}
		}
	}
	for _, m := range file.HTTP.Routers["keyward"].Middlewares {
		if m == "limits" {
			t.Error("traefik/dynamic.yml: the router of the question has a limit of bodies")
		}
	}
	if questions != 2 {
		t.Errorf("traefik/dynamic.yml: %d questions", questions)
	}
	for _, name := range []string{"envoy/grpc.yaml", "envoy/http.yaml"} {
		for line := range strings.Lines(read(t, name)) {
			if setting, _, _ := strings.Cut(line, "#"); strings.Contains(setting, "with_request_body") {
				t.Errorf("%s sends bodies", name)
			}
		}
	}
}
