package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/apitest"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// setup is what a test changes of the fixture before it starts.
type setup struct {
	server   Config
	service  keys.Config
	store    func(keys.Store) keys.Store
	barrier  func(keys.Barrier) keys.Barrier
	verifier func(Verifier) Verifier

	credentials string // a credentials file with tokens in plain; empty = everybody may do everything
}

// fixture is the three listeners on loopback, over a database of their own in a temporary folder. Every
// exchange is held against the OpenAPI document (C28), and at the end everything that was said is
// searched for every secret that was used (V7).
type fixture struct {
	t       *testing.T
	server  *Server
	service *keys.Service
	store   *sqlstore.Store
	format  token.Format
	client  *http.Client
	log     *lockedBuffer
	offset  atomic.Int64 // of the clock, in nanoseconds

	public, verification, admin string // base URLs

	issuer *identity.DevIssuer

	mu     sync.Mutex
	hidden []string // secrets, tokens and idempotency keys; guarded by mu
	said   bytes.Buffer
}

// The test runs beside others from here on: most of its time goes to waiting for the disk.
func newFixture(t *testing.T, change ...func(*setup)) *fixture {
	t.Helper()
	t.Parallel()
	return newFixtureAlone(t, change...)
}

// newFixtureAlone is newFixture for a test that nothing else may run beside.
func newFixtureAlone(t *testing.T, change ...func(*setup)) *fixture {
	t.Helper()
	f := &fixture{t: t, log: new(lockedBuffer)}
	logger := slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	line, err := seal.NewLine("")
	must(err)
	ring, err := seal.Parse([]byte(line))
	must(err)
	folder := t.TempDir()
	f.store, err = sqlstore.Open(t.Context(), sqlstore.Options{
		URL: "sqlite:" + filepath.Join(folder, "keyward.db"), Ring: ring, Logger: logger, Now: f.now,
	})
	must(err)
	t.Cleanup(func() {
		if err := f.store.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	f.format, err = token.NewFormat("sk")
	must(err)
	verifier, err := verify.New(verify.Config{Feed: f.store, Format: f.format, Logger: logger, Now: f.now, FlushEvery: 20 * time.Millisecond})
	must(err)
	running, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		verifier.Run(running)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	eventually(t, "ready", func() bool { return verifier.Ready() == nil })

	f.issuer, err = identity.OpenDevIssuer(filepath.Join(folder, "issuer"))
	must(err)
	issuer := f.issuer.Config()
	issuer.Logger = logger
	authenticator, err := identity.New(running, issuer)
	must(err)
	t.Cleanup(authenticator.Close)

	s := setup{
		service: keys.Config{Store: f.store, Ring: ring, Format: f.format, Barrier: verifier, Render: RenderIssued},
		server:  Config{Authenticator: authenticator, Verifier: verifier, Operations: operationsOf{f.store}, Format: f.format, Logger: logger, Version: "test", Metrics: NewMetrics()},
	}
	s.service.Observe = s.server.Metrics.Act
	for _, c := range change {
		c(&s)
	}
	if s.store != nil {
		s.service.Store = s.store(f.store)
	}
	if s.barrier != nil {
		s.service.Barrier = s.barrier(verifier)
	}
	if s.verifier != nil {
		s.server.Verifier = s.verifier(verifier)
	}
	f.service, err = keys.NewService(s.service)
	must(err)
	s.server.Service = f.service
	s.server.Access = access.Open()
	if s.credentials != "" {
		all, err := access.Parse([]byte(s.credentials))
		must(err)
		s.server.Access = access.NewGate(func() access.Credentials { return all }, f.service.RecordDenied)
		for line := range strings.Lines(s.credentials) {
			f.hide(strings.Fields(line)[2])
		}
	}
	s.server.Metrics.WatchPools(f.store.Stats)
	f.server, err = New(s.server)
	must(err)
	f.public = f.listen(f.server.Public(), logger)
	f.verification = f.listen(f.server.Verification(), logger)
	f.admin = f.listen(f.server.Admin(), logger)
	transport := &http.Transport{}
	f.client = &http.Client{
		Transport:     apitest.Transport(t, transport),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(transport.CloseIdleConnections)
	t.Cleanup(f.search)
	return f
}

func (f *fixture) listen(h http.Handler, logger *slog.Logger) string {
	return f.serve(NewHTTPServer(h, Limits{}, logger))
}

// serve serves on a free port until the test ends, and returns the URL.
func (f *fixture) serve(srv HTTPServer) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	f.t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-served); err != nil {
			f.t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func (f *fixture) now() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) }

// later moves the clock.
func (f *fixture) later(d time.Duration) { f.offset.Add(int64(d)) }

// token returns a fresh access token of the user.
func (f *fixture) token(user, organization string) string {
	f.t.Helper()
	signed, err := f.issuer.Issue(user, organization, time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	f.hide(signed)
	return signed
}

// secret draws a well-formed secret that no one was issued.
func (f *fixture) secret(env token.Environment) string {
	f.t.Helper()
	s, err := f.format.Generate(env)
	if err != nil {
		f.t.Fatal(err)
	}
	f.hide(s.Reveal())
	return s.Reveal()
}

// hide notes text that must be said nowhere, and returns it.
func (f *fixture) hide(text string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hidden = append(f.hidden, text)
	return text
}

// search is V7: no answer, log line or metric of the test holds what is hidden.
func (f *fixture) search() {
	var scrape bytes.Buffer
	rec := httptest.NewRecorder()
	f.server.cfg.Metrics.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	scrape.Write(rec.Body.Bytes())
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, where := range []struct {
		name string
		text string
	}{{"the log", f.log.String()}, {"the metrics", scrape.String()}, {"an answer", f.said.String()}} {
		for i, secret := range f.hidden {
			if strings.Contains(where.text, secret) {
				f.t.Errorf("V7: %s holds hidden text %d", where.name, i)
			}
		}
	}
	for line := range strings.Lines(f.log.String()) {
		if !json.Valid([]byte(line)) {
			f.t.Errorf("a log line is not one JSON object: %q", line)
		}
	}
}

// ask is one request. A header given as nil is not sent.
type ask struct {
	method, url string
	user        string // an access token
	body        string
	header      http.Header
	raw         io.Reader // instead of body; sent in chunks
}

// reply is its answer.
type reply struct {
	status  int
	header  http.Header
	body    string
	problem api.Problem
}

func (f *fixture) do(a ask) reply {
	f.t.Helper()
	var body io.Reader
	if a.body != "" {
		body = strings.NewReader(a.body)
	}
	if a.raw != nil {
		body = a.raw
	}
	r, err := http.NewRequestWithContext(f.t.Context(), a.method, a.url, body)
	if err != nil {
		f.t.Fatal(err)
	}
	if a.raw != nil {
		r.ContentLength = -1
	}
	if a.body != "" || a.raw != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if a.user != "" {
		r.Header.Set("Authorization", "Bearer "+a.user)
	}
	for name, values := range a.header {
		if values == nil {
			r.Header.Del(name)
			continue
		}
		r.Header[http.CanonicalHeaderKey(name)] = values
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
	got := reply{status: resp.StatusCode, header: resp.Header, body: string(b)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := resp.Header.Write(&f.said); err != nil {
		f.t.Fatal(err)
	}
	if got.status != http.StatusCreated {
		f.said.WriteString(got.body)
	}
	if resp.Header.Get("Content-Type") == "application/problem+json" && len(b) > 0 {
		if err := json.Unmarshal(b, &got.problem); err != nil {
			f.t.Fatalf("a problem that is no JSON: %v", err)
		}
	}
	return got
}

// listeners are the base URLs by the names that the document uses.
func (f *fixture) listeners() map[apitest.Listener]string {
	return map[apitest.Listener]string{
		apitest.Public: f.public, apitest.Verification: f.verification, apitest.Admin: f.admin,
	}
}

// keysURL is where keys are managed.
func (f *fixture) keysURL() string { return f.public + "/api/v1/auth/api-keys" }

// create creates a key and fails the test unless that works.
func (f *fixture) create(user, organization, body string) api.IssuedKey {
	f.t.Helper()
	got := f.do(ask{method: "POST", url: f.keysURL(), user: f.token(user, organization), body: body})
	return f.issued(got)
}

// issued reads a 201.
func (f *fixture) issued(got reply) api.IssuedKey {
	f.t.Helper()
	if got.status != http.StatusCreated {
		f.t.Fatalf("status %d, want 201: %s", got.status, got.body)
	}
	k := decode[api.IssuedKey](f.t, got.body)
	f.hide(k.Key)
	return k
}

// put puts an organization.
func (f *fixture) put(id, body string) {
	f.t.Helper()
	if got := f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/" + id, body: body}); got.status != http.StatusOK {
		f.t.Fatalf("put %s: %d %s", id, got.status, got.body)
	}
}

// live puts an organization that takes payments.
func (f *fixture) live(id string) { f.t.Helper(); f.put(id, `{"payments_enabled":true}`) }

// verify asks POST /v1/verify.
func (f *fixture) verify(secret, members string) api.Verdict {
	f.t.Helper()
	got := f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + secret + `"` + members + `}`})
	if got.status != http.StatusOK {
		f.t.Fatalf("verify: %d %s", got.status, got.body)
	}
	return decode[api.Verdict](f.t, got.body)
}

// refused fails the test unless got is that problem.
func (got reply) refused(t *testing.T, status int, code api.Code, param string) {
	t.Helper()
	if got.status != status || got.problem.Code != code || got.problem.Param != param {
		t.Errorf("got %d %s param %q, want %d %s param %q: %s", got.status, got.problem.Code, got.problem.Param, status, code, param, got.body)
	}
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %T: %v", v, err)
	}
	return v
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("not %s in time", what)
		case <-tick.C:
		}
	}
}

// lockedBuffer is a log sink.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// operationsOf is the store's part of Operations, without a master key file to read again.
type operationsOf struct{ store *sqlstore.Store }

func (o operationsOf) Audit(ctx context.Context, q AuditQuery) ([]keys.AuditEntry, error) {
	return o.store.Audit(ctx, q.After, q.Limit, sqlstore.AuditFilter{
		OrganizationID: q.OrganizationID, TargetID: q.TargetID, Actor: q.Actor, Action: keys.Action(q.Action),
		Outcome: q.Outcome, Since: q.Since, Until: q.Until,
	})
}

func (o operationsOf) VerifyAudit(ctx context.Context) (keys.AuditReport, error) {
	return o.store.VerifyAudit(ctx, nil)
}

func (o operationsOf) Rotate(ctx context.Context, _ keys.Operator) (api.Reseal, error) {
	r, err := o.store.Reseal(ctx, nil)
	return api.Reseal{MasterKeyID: "current", RowsResealed: r.Keys + r.Organizations, AuditResealed: r.AuditEntries}, err
}

func (o operationsOf) Backup(ctx context.Context, _ keys.Operator) (Backup, error) {
	return o.store.Backup(ctx)
}

func (o operationsOf) Checks(ctx context.Context) ([]api.Check, error) {
	found, err := o.store.Durability(ctx)
	var checks []api.Check
	for _, d := range found {
		c := api.Check{Name: d.Name, Status: "ok", Detail: d.Value}
		if !d.OK {
			c.Status = "warn"
		}
		checks = append(checks, c)
	}
	return checks, err
}

// Nodes are two, one that is behind and one that has acknowledged nothing.
func (o operationsOf) Nodes(ctx context.Context) (api.NodeList, error) {
	_, revision, err := o.store.Nodes(ctx)
	return api.NodeList{Revision: revision, Nodes: []api.Node{
		{NodeID: "A", Address: "10.0.0.1:8081", Version: "1.0.0", Protocol: 1, Revision: revision - 1, Lag: 1, LeaseSeconds: 10, RenewedSecondsAgo: .25, Self: true},
		{NodeID: "B", Revision: -1, Lag: revision + 1},
	}}, err
}

func (o operationsOf) Engine() string { return o.store.Engine() }

// brokenOperations always fail.
type brokenOperations struct{}

var errBroken = errors.New("the disk is away")

func (brokenOperations) Audit(context.Context, AuditQuery) ([]keys.AuditEntry, error) {
	return nil, errBroken
}
func (brokenOperations) VerifyAudit(context.Context) (keys.AuditReport, error) {
	return keys.AuditReport{}, errBroken
}
func (brokenOperations) Rotate(context.Context, keys.Operator) (api.Reseal, error) {
	return api.Reseal{}, errBroken
}
func (brokenOperations) Backup(context.Context, keys.Operator) (Backup, error) {
	return nil, errBroken
}
func (brokenOperations) Checks(context.Context) ([]api.Check, error) { return nil, errBroken }
func (brokenOperations) Nodes(context.Context) (api.NodeList, error) {
	return api.NodeList{}, errBroken
}
func (brokenOperations) Engine() string { return "sqlite" }

// logged returns the request lines of the log that hold all the attributes.
func (f *fixture) logged(attributes map[string]any) []map[string]any {
	var found []map[string]any
lines:
	for line := range strings.Lines(f.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil {
			continue
		}
		for k, v := range attributes {
			if m[k] != v {
				continue lines
			}
		}
		found = append(found, m)
	}
	return found
}

// names are the sorted keys of a header that matter to a client.
func names(h http.Header, prefix string) []string {
	var list []string
	for name := range h {
		if strings.HasPrefix(name, prefix) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}
