// Package doors puts every door that Keyward has in front of a payments API, the real nginx and the real Caddy among them, and holds
// each to the same verdicts. It is tests alone.
package doors

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/examples/payments/paymentsapi"
	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := keywardtest.Main(m)
	pgtest.ReapAll()
	_ = os.RemoveAll(installRoot) // "" when nothing was installed
	os.Exit(code)
}

// platform is three nodes over one PostgreSQL, an API behind them, and the doors between the two. At its end everything that the
// nodes and the proxies wrote is searched for every secret that was used (V7).
type platform struct {
	t             *testing.T
	databases     []*faultproxy.Proxy // between each node and the database
	nodes         []*keywardtest.Process
	client        *http.Client
	api           *payments
	nginx         *proxy
	caddy         *proxy
	proxies       []*proxy         // that are programs
	traefik       string           // its URL, or that of what plays it
	checked       *httptest.Server // the API behind the Go middleware
	live          *httptest.Server // the same, for live keys alone
	grpc          func(request, int) (answer, error)
	express       express // the API behind the TypeScript client's middleware
	expressOutput *keywardtest.Output
	envoy         []authv3.AuthorizationClient // of each node
	users         int
	secrets       []string
	token         string // a credential of every node
}

const lease = 2 * time.Second

func newPlatform(t *testing.T) *platform {
	t.Helper()
	p := &platform{t: t, token: rand.Text(), client: &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       keywardtest.Patience,
	}}
	t.Cleanup(p.client.CloseIdleConnections)
	server := pgtest.NewServer(t)
	dir := t.TempDir()
	tokens := filepath.Join(dir, "credentials")
	if err := os.WriteFile(tokens, []byte("proxies verify,operate "+p.token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for range 3 {
		database := faultproxy.New(t, server.Address())
		p.databases = append(p.databases, database)
		node := keywardtest.Start(t, keywardtest.Options{
			Dir:         dir,
			DatabaseURL: "postgres://postgres@" + database.Address() + "/postgres?sslmode=disable",
			Flags:       []string{"--lease=" + lease.String(), "--log-level=debug", "--extauthz-listen=127.0.0.1:0", "--credentials-file=" + tokens},
		})
		p.nodes = append(p.nodes, node)
		p.envoy = append(p.envoy, p.connectEnvoy(node))
		addresses = append(addresses, node.Verification)
	}
	client, err := keyward.New(keyward.Config{Addresses: addresses, Token: p.token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	p.api = newPayments(t, client)
	p.checked = httptest.NewServer(keyward.Middleware(client)(p.api))
	t.Cleanup(p.checked.Close)
	p.live = httptest.NewServer(keyward.Middleware(client, keyward.WithEnv(keyward.Live))(p.api))
	t.Cleanup(p.live.Close)
	t.Cleanup(p.search) // after the proxies have ended
	p.grpc = p.interceptors(client)
	p.nginx = startNginx(p, nil)
	p.caddy = startCaddy(p, nil)
	p.proxies = []*proxy{p.nginx, p.caddy}
	if *traefikProgram == "" {
		p.traefik = newTraefik(p).URL
	} else {
		real := startTraefik(p)
		p.traefik, p.proxies = real.url, append(p.proxies, real)
	}
	p.express = startExpress(p, addresses)
	return p
}

// search is V7: what stands in a log is no part of a secret that is longer than its hint, in whichever way it was sent.
func (p *platform) search() {
	written := map[string]string{}
	for i, n := range p.nodes {
		written[fmt.Sprintf("node %d", i)] = n.Stdout() + n.Stderr()
	}
	for _, x := range p.proxies {
		for name, text := range x.written(p.t) {
			written[name] = text
		}
	}
	written["Express"] = p.expressOutput.String()
	if strings.Contains(written["Caddy caddy.log"], "expression") {
		p.t.Error("Caddy: an expression of the Caddyfile fails")
	}
	for name, text := range written {
		if strings.Contains(text, p.token) {
			p.t.Errorf("%s: the internal token is written there", name)
		}
		for _, secret := range p.secrets {
			basic := base64.StdEncoding.EncodeToString([]byte(secret + ":"))
			if random := secret[len("sk_live_"):]; strings.Contains(text, random) || strings.Contains(text, basic[12:40]) {
				p.t.Errorf("%s: a secret is written there", name)
			}
		}
	}
}

// do sends a request and returns the answer with its body.
func (p *platform) do(method, url, body string, header http.Header) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, text, err
}

// call sends JSON and reads JSON, and fails the test when the status is another.
func call[T any](p *platform, method, url, body, token string, status int) (v T) {
	p.t.Helper()
	header := http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + token}}
	resp, text, err := p.do(method, url, body, header)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.StatusCode != status {
		p.t.Fatalf("%s %s: %d, want %d: %s", method, url, resp.StatusCode, status, text)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		p.t.Fatal(err)
	}
	return v
}

// organization creates or replaces one.
func (p *platform) organization(id, body string) {
	p.t.Helper()
	call[api.Organization](p, "PUT", p.nodes[0].Admin+"/v1/organizations/"+id, body, p.token, 200)
}

// key is an issued key and who may manage it.
type key struct {
	api.IssuedKey
	organization, token string
}

// create issues a key by a user of its own, since a user gets one a minute (C14). at is the node that is asked.
func (p *platform) create(organization string, at int) key {
	p.t.Helper()
	p.users++
	k := key{organization: organization, token: p.nodes[0].Token(p.t, fmt.Sprint("user", p.users), organization)}
	k.IssuedKey = call[api.IssuedKey](p, "POST", p.nodes[at].Public+"/api/v1/auth/api-keys", `{"key_name":"k"}`, k.token, 201)
	p.secrets = append(p.secrets, k.Key)
	return k
}

func (p *platform) revoke(k key, at int) {
	p.t.Helper()
	call[any](p, "POST", p.nodes[at].Public+"/api/v1/auth/api-keys/"+k.APIKeyID+"/revoke", "", k.token, 200)
}

// expired returns a key whose time is up: the one that a roll left an overlap of a second.
func (p *platform) expired(organization string) key {
	p.t.Helper()
	old := p.create(organization, 0)
	successor := call[api.IssuedKey](p, "POST", p.nodes[0].Public+"/api/v1/auth/api-keys/"+old.APIKeyID+"/roll", `{"overlap_seconds":1}`, old.token, 201)
	p.secrets = append(p.secrets, successor.Key)
	p.wait("the overlap's end on every node", func(node *keywardtest.Process) bool {
		return p.verdict(node, old.Key).Reason == "expired"
	})
	return old
}

// wait waits until something holds on every node.
func (p *platform) wait(what string, holds func(*keywardtest.Process) bool) {
	p.t.Helper()
	for _, n := range p.nodes {
		if err := keywardtest.Poll(func() bool { return holds(n) }, n.Exited()); err != nil {
			p.t.Fatalf("%s: %v", what, err)
		}
	}
}

// verdict asks a node; the zero one says that it could not decide.
func (p *platform) verdict(node *keywardtest.Process, secret string) (v api.Verdict) {
	body, err := json.Marshal(api.VerifyKey{Key: secret})
	if err != nil {
		p.t.Fatal(err)
	}
	resp, text, err := p.do("POST", node.Verification+"/v1/verify", string(body), http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + p.token}})
	if err == nil && resp.StatusCode == 200 {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// cut takes the database away from every node and returns when none can decide any more: their leases are over.
func (p *platform) cut(secret string) {
	p.t.Helper()
	for _, d := range p.databases {
		d.Set(faultproxy.Fault{Refuse: true})
		d.Cut()
	}
	p.wait("no node can decide", func(n *keywardtest.Process) bool { return p.verdict(n, secret).Reason == "" })
}

// identity is what an API learns of the caller.
type identity struct {
	Organization, Environment, Key, Account string
	Payments                                bool
}

// identityIn reads what a proxy was told, or passed on.
func identityIn(h http.Header) identity {
	return identity{
		h.Get("X-Keyward-Organization-Id"), h.Get("X-Keyward-Environment"), h.Get("X-Keyward-Key-Id"),
		h.Get("X-Keyward-Connected-Account-Id"), h.Get("X-Keyward-Payments-Enabled") == "true",
	}
}

// payments is the API behind the doors. It answers what reached it; with X-Test-Real it is the one of examples/payments.
type payments struct {
	*httptest.Server
	reached atomic.Int64
	real    http.Handler
}

// reached is what an API behind a door sees.
type reached struct {
	Identity identity
	Method   string
	URI      string
	Header   http.Header
	Body     string
	Trailer  http.Header
}

func newPayments(t *testing.T, client *keyward.Client) *payments {
	a := &payments{real: paymentsapi.New(paymentsapi.Config{Client: client})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *payments) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.reached.Add(1)
	if r.Header.Get("X-Test-Real") != "" {
		a.real.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	seen := reached{identityIn(r.Header), r.Method, r.RequestURI, r.Header, string(body), r.Trailer}
	if id, ok := keyward.FromContext(r.Context()); ok {
		seen.Identity = identity{id.OrganizationID, id.Env, id.APIKeyID, id.ConnectedAccountID, id.PaymentsEnabled}
	}
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(seen); err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out.Bytes()) // the client is gone; there is nobody left to tell
}
