package extauthz

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
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

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// fixture is the door on loopback beside the verification listener's, both over one verifier, with one key in each state that a
// verdict tells apart. At the end everything that was said is searched for the secrets (V7).
type fixture struct {
	t       *testing.T
	format  token.Format
	server  *Server
	metrics *server.Metrics
	conn    *grpc.ClientConn
	client  authv3.AuthorizationClient
	service *keys.Service
	log     lockedBuffer
	offset  atomic.Int64 // of the clock
	said    lockedBuffer

	verification, admin http.Handler

	live, test, revoked, expired, off, disabled, unknown string // secrets
	ids                                                  map[string]string
}

// refuser cannot decide, or panics, for two revisions that are not there yet, and for as long as it is told to.
type refuser struct {
	*verify.Verifier
	away atomic.Bool
}

func (v *refuser) Verify(ctx context.Context, r verify.Request) (verify.Verdict, error) {
	switch {
	case v.away.Load() || r.MinRevision == 9000:
		return verify.Verdict{}, verify.ErrUndecided
	case r.MinRevision == 9001:
		panic("on purpose")
	case r.MinRevision == 9002:
		return verify.Verdict{}, ctx.Err()
	}
	return v.Verifier.Verify(ctx, r)
}

func (v *refuser) Ready() error {
	if v.away.Load() {
		return verify.ErrUndecided
	}
	return v.Verifier.Ready()
}

func newFixture(t *testing.T, change ...func(*Config)) (*fixture, *refuser) {
	t.Helper()
	f := &fixture{t: t, metrics: server.NewMetrics(), ids: map[string]string{}}
	logger := slog.New(slog.NewJSONHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	now := func() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) }
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
	store, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "k.db"), Ring: ring, Logger: logger, Now: now})
	must(err)
	t.Cleanup(func() { must(store.Close()) })
	f.format, err = token.NewFormat("sk")
	must(err)
	verifier, err := verify.New(verify.Config{Feed: store, Format: f.format, Logger: logger, Now: now})
	must(err)
	running, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); verifier.Run(running) }()
	t.Cleanup(func() { stop(); <-done })
	f.eventually("ready", func() bool { return verifier.Ready() == nil })
	f.service, err = keys.NewService(keys.Config{Store: store, Ring: ring, Format: f.format, Barrier: verifier, Render: server.RenderIssued})
	must(err)
	f.populate()

	v := &refuser{Verifier: verifier}
	doors, err := server.New(server.Config{
		Service: f.service, Authenticator: nobody{}, Verifier: v, Operations: noOperations{}, Format: f.format, Logger: logger, Metrics: f.metrics,
		Access: access.Open(), AdminHosts: []string{"example.com"}, // the host of httptest.NewRequest
	})
	must(err)
	f.verification, f.admin = doors.Verification(), doors.Admin()
	cfg := Config{Verifier: v, Format: f.format, Metrics: f.metrics, Logger: logger, Access: access.Open()}
	for _, c := range change {
		c(&cfg)
	}
	f.server, err = New(cfg)
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(l) }()
	t.Cleanup(func() { must(f.server.Close()); must(<-served) })
	trust := insecure.NewCredentials()
	if cfg.TLS != nil {
		trust = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	f.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(trust))
	must(err)
	t.Cleanup(func() { must(f.conn.Close()) })
	f.client = authv3.NewAuthorizationClient(f.conn)
	t.Cleanup(f.search)
	return f, v
}

func (f *fixture) eventually(what string, holds func() bool) {
	f.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			f.t.Fatalf("not %s in time", what)
		case <-tick.C:
		}
	}
}

// populate makes the organizations and their keys.
func (f *fixture) populate() {
	f.t.Helper()
	put := func(id, parent string, payments, active bool) {
		f.t.Helper()
		r := keys.OrganizationRequest{ID: id, PaymentsEnabled: &payments, Active: &active}
		if parent != "" {
			r.ParentID = &parent
		}
		if _, err := f.service.PutOrganization(f.t.Context(), keys.Operator{}, r); err != nil {
			f.t.Fatal(err)
		}
	}
	put("org_live", "", true, true)
	put("org_off", "", true, true)
	put("org_disabled", "", true, true)
	put("org_child", "org_live", false, true)
	put("org_stranger", "org_off", false, true)
	f.expired = f.issue("org_expired", 1)
	f.offset.Add(int64(24 * time.Hour))
	f.live, f.test, f.revoked, f.off, f.disabled = f.issue("org_live", 7), f.issue("org_test"), f.issue("org_revoked"), f.issue("org_off"), f.issue("org_disabled")
	if _, err := f.service.Revoke(f.t.Context(), call("org_revoked"), f.ids["org_revoked"], ""); err != nil {
		f.t.Fatal(err)
	}
	put("org_off", "", true, false)
	put("org_disabled", "", false, true)
	s, err := f.format.Generate(token.Live)
	if err != nil {
		f.t.Fatal(err)
	}
	f.unknown = s.Reveal()
}

// issue creates a key for an organization, notes its id and returns its secret.
func (f *fixture) issue(organization string, days ...int64) string {
	f.t.Helper()
	r := keys.CreateRequest{Name: "k"}
	if len(days) > 0 {
		r.ExpiresInDays = &days[0]
	}
	issued, err := f.service.Create(f.t.Context(), call(organization), r)
	if err != nil {
		f.t.Fatal(err)
	}
	f.ids[organization] = issued.Key.ID
	return issued.Secret.Reveal()
}

func call(organization string) keys.Call {
	return keys.Call{Principal: keys.Principal{User: "user_" + organization, OrganizationID: organization}, RemoteAddress: "127.0.0.1"}
}

// secrets are all of them.
func (f *fixture) secrets() []string {
	return []string{f.live, f.test, f.revoked, f.expired, f.off, f.disabled, f.unknown}
}

// search is V7: nothing that was logged, measured or answered holds a secret.
func (f *fixture) search() {
	rec := httptest.NewRecorder()
	f.admin.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for name, text := range map[string]string{"the log": f.log.String(), "an answer": f.said.String(), "the metrics": rec.Body.String()} {
		for i, s := range f.secrets() {
			if strings.Contains(text, s[8:40]) {
				f.t.Errorf("V7: %s holds secret %d", name, i)
			}
		}
	}
}

// header is one header as a client sends it.
type header struct{ name, value string }

// asEnvoy is the check request for a client's request: headers in a map, repeated ones joined, or as they came when raw.
func asEnvoy(method, path string, raw bool, headers []header) *authv3.CheckRequest {
	r := &authv3.AttributeContext_HttpRequest{Id: "17", Method: method, Path: path, Host: "pay.example", Scheme: "https", Protocol: "HTTP/1.1"}
	all := append([]header{{":method", method}, {":path", path}, {":authority", "pay.example"}, {":scheme", "https"}}, headers...)
	if raw {
		r.HeaderMap = &corev3.HeaderMap{}
		for _, h := range all {
			r.HeaderMap.Headers = append(r.HeaderMap.Headers, &corev3.HeaderValue{Key: strings.ToLower(h.name), RawValue: []byte(h.value)})
		}
	} else {
		r.Headers = map[string]string{}
		for _, h := range all {
			name := strings.ToLower(h.name)
			if before, ok := r.Headers[name]; ok {
				h.value = before + "," + h.value
			}
			r.Headers[name] = h.value
		}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}}
}

// answer is a check's, in the terms of HTTP.
type answer struct {
	status int // 200 = passes
	header map[string]string
	remove []string
	body   string
	data   map[string]any
}

// check asks, and fails the test when the call fails or the answer is none that Envoy would take as meant.
func (f *fixture) check(ctx context.Context, in *authv3.CheckRequest) answer {
	f.t.Helper()
	out, err := f.client.Check(ctx, in)
	if err != nil {
		f.t.Fatalf("an error of the call, which failure_mode_allow lets through: %v", err)
	}
	return f.read(out)
}

func (f *fixture) read(out *authv3.CheckResponse) (a answer) {
	f.t.Helper()
	a.header = map[string]string{}
	var list []*corev3.HeaderValueOption
	switch r := out.HttpResponse.(type) {
	case *authv3.CheckResponse_OkResponse:
		if out.Status.GetCode() != int32(codes.OK) {
			f.t.Fatalf("passes with code %d", out.Status.GetCode())
		}
		a.status, list, a.remove = 200, r.OkResponse.Headers, slices.Sorted(slices.Values(r.OkResponse.HeadersToRemove))
		a.data = out.DynamicMetadata.AsMap()
	case *authv3.CheckResponse_DeniedResponse:
		if code := out.Status.GetCode(); code != int32(codes.PermissionDenied) && code != int32(codes.Unauthenticated) {
			f.t.Fatalf("denied with code %d", code)
		}
		a.status, list, a.body = int(r.DeniedResponse.Status.GetCode()), r.DeniedResponse.Headers, r.DeniedResponse.Body
		if a.status < 400 {
			f.t.Fatalf("denied with status %d", a.status)
		}
	default:
		f.t.Fatalf("an answer of kind %T", out.HttpResponse)
	}
	for _, o := range list {
		h := o.Header
		if _, twice := a.header[h.Key]; twice || !proto.Equal(o, &corev3.HeaderValueOption{Header: h, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}) || h.Key != strings.ToLower(h.Key) || h.Value == "" {
			f.t.Errorf("header %v", o)
		}
		if slices.Contains(a.remove, h.Key) {
			f.t.Errorf("%s is set and then removed", h.Key)
		}
		a.header[h.Key] = h.Value
	}
	f.said.Write([]byte(out.String()))
	return a
}

// overHTTP asks the verification listener the same.
func (f *fixture) overHTTP(method, query string, headers []header, uri string) answer {
	r := httptest.NewRequest(method, "/v1/authorize"+query, nil)
	for _, h := range headers {
		r.Header.Add(h.name, h.value)
	}
	r.Header.Add("X-Original-Uri", uri)
	w := httptest.NewRecorder()
	f.verification.ServeHTTP(w, r)
	a := answer{status: w.Code, header: map[string]string{}, body: w.Body.String()}
	for name, values := range w.Header() {
		a.header[strings.ToLower(name)] = values[0]
	}
	return a
}

// lines returns the request lines of the log at a level.
func (f *fixture) lines(level string) (found []map[string]any) {
	for line := range strings.Lines(f.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["level"] == level && (m["msg"] == "request" || m["msg"] == "panic") {
			found = append(found, m)
		}
	}
	return found
}

// lockedBuffer is a sink.
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

type nobody struct{}

func (nobody) Authenticate(context.Context, string) (keys.Principal, error) {
	return keys.Principal{}, errors.New("not used")
}

type noOperations struct{ server.Operations }
