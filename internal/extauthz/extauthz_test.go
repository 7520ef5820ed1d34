package extauthz

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func basic(user string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(user)) }

// V2, V3, V4: one verdict, one meaning: the door for Envoy answers what /v1/authorize answers to the same headers, status,
// body and headers alike, whichever way Envoy sends them.
func TestV4ExtAuthzAnswersAsAuthorize(t *testing.T) {
	f, _ := newFixture(t)
	live := f.live
	h := func(pairs ...string) (list []header) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, header{pairs[i], pairs[i+1]})
		}
		return list
	}
	for _, tt := range []struct {
		name    string
		headers []header
		status  int
		env     string // a rule
		uri     string
		joined  int // the status when Envoy joins what was repeated; 0 = the same
	}{
		{name: "Bearer", headers: h("Authorization", "Bearer "+live), status: 200},
		{name: "Basic", headers: h("Authorization", basic(live+":")), status: 200},
		{name: "X-API-Key", headers: h("X-API-Key", live), status: 200},
		{name: "all alike", headers: h("Authorization", "Bearer "+live, "X-API-Key", live), status: 200},
		{name: "a test key", headers: h("X-API-Key", f.test), status: 200},
		{name: "payments disabled", headers: h("X-API-Key", f.disabled), status: 200},
		{name: "right environment", headers: h("X-API-Key", live), status: 200, env: "live"},
		{name: "own child", headers: h("X-API-Key", live, "X-Connected-Account-ID", "org_child"), status: 200},
		{name: "spoofed identity headers", headers: h("X-API-Key", live, "X-Keyward-Organization-Id", "org_evil", "X-Keyward-Connected-Account-Id", "org_evil"), status: 200},

		{name: "nothing", status: 401},
		{name: "spoofed identity headers alone", headers: h("X-Keyward-Organization-Id", "org_live", "X-Keyward-Key-Id", f.ids["org_live"]), status: 401},
		{name: "malformed", headers: h("X-API-Key", "x"), status: 401},
		{name: "unknown", headers: h("X-API-Key", f.unknown), status: 401},
		{name: "revoked", headers: h("X-API-Key", f.revoked), status: 401},
		{name: "expired", headers: h("X-API-Key", f.expired), status: 401},
		{name: "inactive organization", headers: h("X-API-Key", f.off), status: 401},
		{name: "other environment", headers: h("X-API-Key", live), status: 401, env: "test"},
		{name: "two that differ", headers: h("Authorization", "Bearer "+live, "X-API-Key", f.test), status: 401},
		{name: "two Authorization", headers: h("Authorization", "Bearer "+live, "Authorization", "Bearer "+live), status: 401},
		{name: "two Authorization, Basic", headers: h("Authorization", basic(live+":"), "Authorization", basic(live+":")), status: 401},
		{name: "two Authorization, good first", headers: h("Authorization", "Bearer "+live, "Authorization", "Digest x"), status: 401},
		{name: "two Authorization, good last", headers: h("Authorization", "Digest x", "Authorization", "Bearer "+live), status: 401},
		{name: "two X-API-Key that differ", headers: h("X-API-Key", live, "X-API-Key", f.test), status: 401},
		{name: "two X-API-Key, one empty", headers: h("X-API-Key", "", "X-API-Key", live), status: 401},
		// A map cannot tell this from one X-API-Key with a comma in it, which is refused.
		{name: "two X-API-Key alike", headers: h("X-API-Key", live, "X-API-Key", live), status: 200, joined: 401},
		{name: "X-API-Key with a comma", headers: h("X-API-Key", live+","+live), status: 401},
		{name: "Basic with a password", headers: h("Authorization", basic(live+":x")), status: 401},
		{name: "empty Authorization", headers: h("Authorization", "", "X-API-Key", live), status: 401},

		{name: "foreign child", headers: h("X-API-Key", live, "X-Connected-Account-ID", "org_stranger"), status: 403},
		{name: "itself", headers: h("X-API-Key", live, "X-Connected-Account-ID", "org_live"), status: 403},
		{name: "account empty", headers: h("X-API-Key", live, "X-Connected-Account-ID", ""), status: 403},
		{name: "account twice", headers: h("X-API-Key", live, "X-Connected-Account-ID", "org_child", "X-Connected-Account-ID", "org_child"), status: 403},
		{name: "foreign child of a revoked key", headers: h("X-API-Key", f.revoked, "X-Connected-Account-ID", "org_stranger"), status: 401},

		{name: "secret in the query", headers: h("X-API-Key", live), status: 400, uri: "/pay?key=" + live},
		{name: "secret in the path", headers: h("X-API-Key", live), status: 400, uri: "/" + live + "/x"},
		{name: "secret in the query, encoded twice", headers: h("X-API-Key", live), status: 400, uri: "/pay?key=" + strings.Replace(live, "_", "%255f", 2)},
		{name: "secret in another proxy's URL", headers: h("X-API-Key", live, "X-Forwarded-Uri", "/?"+live), status: 400},
		{name: "headers too large", headers: h("X-API-Key", live, "Cookie", strings.Repeat("x", 17<<10)), status: 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uri := tt.uri
			if uri == "" {
				uri = "/v1/payments?page=2"
			}
			headers := append(h("X-Request-Id", "same", "User-Agent", "curl"), tt.headers...)
			query := ""
			if tt.env != "" {
				query = "?env=" + tt.env
			}
			want := f.overHTTP("POST", query, headers, uri)
			if want.status != tt.status {
				t.Fatalf("over HTTP: %d, want %d", want.status, tt.status)
			}
			for _, raw := range []bool{false, true} {
				in := asEnvoy("POST", uri, raw, headers)
				if tt.env != "" {
					in.Attributes.ContextExtensions = map[string]string{"keyward.env": tt.env}
				}
				got := f.check(t.Context(), in)
				if !raw && tt.joined != 0 {
					if got.status != tt.joined {
						t.Errorf("joined: %d, want %d", got.status, tt.joined)
					}
					continue
				}
				if got.status != want.status || got.body != want.body {
					t.Fatalf("raw %t: %d %s, want %d %s", raw, got.status, got.body, want.status, want.body)
				}
				sent := map[string]string{}
				for name, value := range want.header {
					identity := strings.HasPrefix(name, "x-keyward-")
					switch {
					case want.status == 200 && identity && value == "":
						if !slices.Contains(got.remove, name) {
							t.Errorf("raw %t: %s is not removed", raw, name)
						}
					case want.status == 200 && identity, want.status != 200 && name != "connection":
						sent[name] = value
					}
				}
				if diff := cmp.Diff(sent, got.header); diff != "" {
					t.Errorf("raw %t: headers: %s", raw, diff)
				}
			}
		})
	}
}

// V2, V4: what an upstream gets: identity headers overwritten, whatever else looks like one removed, the secret removed when
// configured, and the same in dynamic metadata.
func TestV4ExtAuthzUpstream(t *testing.T) {
	f, _ := newFixture(t)
	spoofed := []header{
		{"X-API-Key", f.live}, {"X-Keyward-Organization-Id", "org_evil"}, {"X-Keyward-Payments-Enabled", "true"}, {"X-Keyward-Connected-Account-Id", "org_evil"},
		{"X-Keyward-Status", "200"}, {"x-keyward-", "x"}, {"X_Keyward_Key_Id", "key_evil"}, {"x-keyward_environment", "live"}, {"X-Keyward-Key-Id_", "x"},
		{"X.Keyward.Key.Id", "key_evil"}, {"x-keyward!key~id", "key_evil"}, {"x.api|key", "x"},
		{"x_api_key", "x"}, {"X_Connected-Account_Id", "org_evil"}, {"X-Keywards", "kept"}, {"x_other", "kept"}, {"accept", "*/*"},
	}
	lookalikes := []string{"x-keyward-", "x-keyward-key-id_", "x-keyward-status", "x-keyward!key~id", "x-keyward_environment", "x.api|key", "x.keyward.key.id", "x_api_key", "x_connected-account_id", "x_keyward_key_id"}
	for _, tt := range []struct {
		name       string
		headers    []header
		extensions map[string]string
		account    string
		remove     []string
	}{
		{"no account", spoofed, nil, "", append([]string{"x-keyward-connected-account-id"}, lookalikes...)},
		{"an account", append([]header{{"X-Connected-Account-ID", "org_child"}}, spoofed...), nil, "org_child", lookalikes},
		{"stripped", spoofed, map[string]string{"keyward.strip_secret": "true"}, "", append([]string{"authorization", "x-api-key", "x-keyward-connected-account-id"}, lookalikes...)},
		{"not stripped, said so", spoofed[:1], map[string]string{"keyward.strip_secret": "false", "other.keyward": "x"}, "", []string{"x-keyward-connected-account-id"}},
	} {
		for _, raw := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " raw ", raw), func(t *testing.T) {
				in := asEnvoy("GET", "/", raw, tt.headers)
				in.Attributes.ContextExtensions = tt.extensions
				got := f.check(t.Context(), in)
				slices.Sort(tt.remove)
				want := answer{
					status: 200, remove: tt.remove,
					header: map[string]string{
						"x-keyward-organization-id": "org_live", "x-keyward-environment": "live", "x-keyward-key-id": f.ids["org_live"], "x-keyward-payments-enabled": "true",
					},
					data: map[string]any{
						"organization_id": "org_live", "environment": "live", "api_key_id": f.ids["org_live"], "connected_account_id": tt.account, "payments_enabled": true,
					},
				}
				if tt.account != "" {
					want.header["x-keyward-connected-account-id"] = tt.account
				}
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
	if got := f.check(t.Context(), asEnvoy("GET", "/", false, []header{{"X-API-Key", f.test}})); got.data["environment"] != "test" || got.data["payments_enabled"] != false {
		t.Errorf("a test key: %v", got.data)
	}
}

// V3: a route's rules, by context extensions. A rule that is not understood lets nothing pass, and is named in the log.
func TestV3ExtAuthzRules(t *testing.T) {
	f, _ := newFixture(t)
	child := header{"X-Connected-Account-ID", "org_child"}
	stranger := header{"X-Connected-Account-ID", "org_stranger"}
	for _, tt := range []struct {
		name, value string
		secret      string
		account     []header
		status      int
		detail      string
	}{
		{"keyward.env", "live", f.live, nil, 200, ""},
		{"keyward.env", "test", f.test, nil, 200, ""},
		{"keyward.env", "live", f.test, nil, 401, "A valid API key"},
		{"keyward.connected_account", "required", f.live, nil, 403, "This route needs X-Connected-Account-ID."},
		{"keyward.connected_account", "required", f.live, []header{child}, 200, ""},
		{"keyward.connected_account", "required", f.live, []header{stranger}, 403, "is not one of this API key's"},
		{"keyward.connected_account", "required", f.revoked, nil, 401, "A valid API key"},
		{"keyward.connected_account", "forbidden", f.live, nil, 200, ""},
		{"keyward.connected_account", "forbidden", f.live, []header{child}, 403, "leave X-Connected-Account-ID out"},
		{"keyward.connected_account", "forbidden", f.live, []header{{"X-Connected-Account-ID", ""}}, 403, "leave X-Connected-Account-ID out"},
		{"keyward.connected_account", "forbidden", f.revoked, []header{child}, 401, "A valid API key"},
		{"keyward.min_revision", "1", f.live, nil, 200, ""},
		{"keyward.min_revision", "9000", f.live, nil, 503, "could not be decided"},
	} {
		t.Run(tt.name+" "+tt.value, func(t *testing.T) {
			in := asEnvoy("GET", "/", false, append([]header{{"X-API-Key", tt.secret}}, tt.account...))
			in.Attributes.ContextExtensions = map[string]string{tt.name: tt.value, "someone.else": "x"}
			got := f.check(t.Context(), in)
			if got.status != tt.status || !strings.Contains(got.body, tt.detail) {
				t.Errorf("%d %s, want %d %s", got.status, got.body, tt.status, tt.detail)
			}
		})
	}
	for name, value := range map[string]string{
		"keyward.env": "prod", "keyward.connected_account": "org_child", "keyward.min_revision": "-1", "keyward.strip_secret": "yes",
		"keyward.environment": "live", "keyward.": "", "keyward": "x", "Keyward.env": "live", "keyward_env": "live", "KEYWARD.ENV": "live",
	} {
		t.Run("wrong "+name, func(t *testing.T) {
			in := asEnvoy("GET", "/", false, []header{{"X-API-Key", f.live}})
			in.Attributes.ContextExtensions = map[string]string{name: value}
			got := f.check(t.Context(), in)
			if got.status != 503 || got.header["retry-after"] != "1" || strings.Contains(got.body, "keyward.") {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	named := 0
	for _, line := range f.lines("ERROR") {
		if cause, _ := line["cause"].(string); strings.HasPrefix(cause, `the context extension "`) && !strings.Contains(cause, "org_child") {
			named++
		}
	}
	if named == 0 {
		t.Error("no error in the log names a rule that is not understood")
	}
}

// P6, V1: what cannot be decided is denied with 503, and never an error of the call, which an Envoy with failure_mode_allow lets
// through. check fails the test when there is one.
func TestV4ExtAuthzNeverFails(t *testing.T) {
	f, v := newFixture(t)
	good := func() *authv3.CheckRequest { return asEnvoy("GET", "/", false, []header{{"X-API-Key", f.live}}) }
	with := func(name, value string) *authv3.CheckRequest {
		in := good()
		in.Attributes.ContextExtensions = map[string]string{name: value}
		return in
	}
	big := good()
	big.Attributes.Request.Http.Headers["cookie"] = strings.Repeat("x", 8<<20)
	body := good()
	body.Attributes.Request.Http.RawBody = make([]byte, 32<<10)
	bigBody := good()
	bigBody.Attributes.Request.Http.RawBody = make([]byte, 8<<20)
	for _, tt := range []struct {
		name   string
		in     *authv3.CheckRequest
		status int
		code   api.Code
	}{
		{"undecided", with("keyward.min_revision", "9000"), 503, api.Unavailable},
		{"a panic", with("keyward.min_revision", "9001"), 503, api.Unavailable},
		{"nothing at all", &authv3.CheckRequest{}, 400, api.InvalidRequest},
		{"no request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{}}, 400, api.InvalidRequest},
		{"no HTTP request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}}, 400, api.InvalidRequest},
		{"an empty HTTP request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{}}}}, 401, api.InvalidToken},
		{"very large headers", big, 431, api.HeadersTooLarge},
		{"a body", body, 200, ""},
		{"a very large body", bigBody, 431, api.HeadersTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := f.check(t.Context(), tt.in)
			var p api.Problem
			if got.body != "" {
				if err := json.Unmarshal([]byte(got.body), &p); err != nil {
					t.Fatal(err)
				}
			}
			if got.status != tt.status || p.Code != tt.code || (got.header["retry-after"] == "1") != (tt.status == 503) {
				t.Errorf("%d %s %v", got.status, got.body, got.header)
			}
		})
	}

	// Envoy has given up already, or its deadline is over when the primary is asked.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out, err := f.server.Check(ctx, with("keyward.min_revision", "9002"))
	if err != nil || f.read(out).status != 503 {
		t.Errorf("given up: %v, %v", out, err)
	}

	// Bytes that are no CheckRequest: above all a path that is not UTF-8, which a client chooses.
	for name, bytes := range map[string][]byte{
		"no UTF-8 in the path": notUTF8(t, good()),
		"cut":                  {0x0a, 0xff, 0x01},
		"noise":                []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
	} {
		out := new(authv3.CheckResponse)
		if err := f.conn.Invoke(t.Context(), authv3.Authorization_Check_FullMethodName, bytes, out, grpc.ForceCodecV2(bytesCodec{})); err != nil {
			t.Fatalf("%s: an error of the call: %v", name, err)
		}
		if got := f.read(out); got.status != 400 {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}

	v.away.Store(true)
	if got := f.check(t.Context(), good()); got.status != 503 {
		t.Errorf("database gone: %d", got.status)
	}
	v.away.Store(false)
	if got := f.check(t.Context(), good()); got.status != 200 {
		t.Errorf("database back: %d", got.status)
	}
	if len(f.lines("WARN")) == 0 || len(f.lines("ERROR")) == 0 {
		t.Error("the log does not tell of what was not decided, or of the panic")
	}
	rec := httptest.NewRecorder()
	f.admin.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`keyward_verifications_total{door="extauthz",path="closed",reason="undecided"} 3`, `keyward_verifications_total{door="extauthz",path="memory",reason="valid"} 2`,
		`keyward_extauthz_checks_total{status="200"} 2`, `keyward_extauthz_checks_total{status="503"} 4`, `keyward_http_panics_total{listener="extauthz"} 1`,
		`keyward_extauthz_check_duration_seconds_count 15`,
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// bytesCodec sends bytes as they are and reads protobuf.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2("proto").Unmarshal(data, v)
}

// notUTF8 is in with a byte in its path that is none of UTF-8, as C++ sends it.
func notUTF8(t *testing.T, in *authv3.CheckRequest) []byte {
	t.Helper()
	in.Attributes.Request.Http.Path = "/MARK"
	data, err := encoding.GetCodecV2("proto").Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.Replace(string(data.Materialize()), "/MARK", "/M\xffRK", 1))
}

// O5: a credential with the scope verify, from Envoy's initial_metadata. Without it nothing passes, and that is no error of the
// call either. Health is open.
func TestO5ExtAuthzToken(t *testing.T) {
	one, two, operator := "first-token-of-the-test", "second-token-of-the-test", "an-operator's-token"
	var denied []string
	credentials, err := access.Parse([]byte("envoy verify " + one + "\nenvoy verify,read " + two + "\nann operate " + operator + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	f, _ := newFixture(t, func(c *Config) {
		c.Access = access.NewGate(func() access.Credentials { return credentials }, func(_ context.Context, op keys.Operator, detail string) error {
			denied = append(denied, op.AuditActor()+" from "+op.RemoteAddress+": "+detail)
			return nil
		})
	})
	in := asEnvoy("GET", "/", false, []header{{"X-API-Key", f.live}, {"X-Internal-Token", one}})
	for _, tt := range []struct {
		name   string
		sent   []string
		status int
	}{
		{"none", nil, 401},
		{"wrong", []string{"authorization", "Bearer " + one + "x"}, 401},
		{"prefix", []string{"authorization", "Bearer " + one[:16]}, 401},
		{"twice", []string{"authorization", "Bearer " + one, "authorization", "Bearer " + one}, 401},
		{"another header", []string{"x-internal-token", one}, 401},
		{"no scheme", []string{"authorization", one}, 401},
		{"the first", []string{"authorization", "Bearer " + one}, 200},
		{"the second", []string{"authorization", "Bearer " + two}, 200},
		{"without the scope", []string{"authorization", "Bearer " + operator}, 403},
		{"without the scope again", []string{"authorization", "Bearer " + operator}, 403},
	} {
		got := f.check(metadata.AppendToOutgoingContext(t.Context(), tt.sent...), in)
		code := map[int]string{200: "", 401: `"internal_token_required"`, 403: `"forbidden"`}[tt.status]
		if got.status != tt.status || !strings.Contains(got.body, code) {
			t.Errorf("%s: %d %s", tt.name, got.status, got.body)
		}
	}
	if r, err := healthv1.NewHealthClient(f.conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	want := []string{"operator:ann from 127.0.0.1: /envoy.service.auth.v3.Authorization/Check needs verify"}
	if diff := cmp.Diff(want, denied); diff != "" {
		t.Errorf("audit entries (-want +got):\n%s", diff)
	}
	if _, err := New(Config{Verifier: f.server.cfg.Verifier, Format: f.format, Metrics: f.metrics}); err == nil {
		t.Error("no gate is taken for an open one")
	}
}

// C26: the client's request id is kept when it is sane, and is in the answer and the log.
func TestC26ExtAuthzRequestID(t *testing.T) {
	f, _ := newFixture(t)
	for _, tt := range []struct {
		sent []header
		kept bool
	}{
		{[]header{{"X-Request-Id", "abc-123"}}, true}, {nil, false}, {[]header{{"X-Request-Id", "a b"}}, false},
		{[]header{{"X-Request-Id", f.live}}, false}, {[]header{{"X-Request-Id", "a"}, {"X-Request-Id", "b"}}, false},
	} {
		for _, raw := range []bool{false, true} {
			got := f.check(t.Context(), asEnvoy("GET", "/", raw, tt.sent))
			id := got.header["x-request-id"]
			if (id == "abc-123") != tt.kept || !tt.kept && !strings.HasPrefix(id, "req_") || !strings.Contains(got.body, `"`+id+`"`) {
				t.Errorf("%v: %q, %s", tt.kept, id, got.body)
			}
			if !slices.ContainsFunc(f.lines("DEBUG"), func(m map[string]any) bool { return m["request_id"] == id && m["status"] == 401.0 }) {
				t.Errorf("%q is not in the log", id)
			}
		}
	}
}

// R5: health follows readiness, for who asks and for who watches, and ends when the listener does.
func TestR5ExtAuthzHealth(t *testing.T) {
	f, v := newFixture(t)
	client := healthv1.NewHealthClient(f.conn)
	service := "envoy.service.auth.v3.Authorization"
	is := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, name := range []string{"", service} {
			if r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name}); err != nil || r.Status != want {
				t.Errorf("%q: %v, %v", name, r, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // who is not told in this time is never told
	defer cancel()
	watch, err := client.Watch(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	told := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if r, err := watch.Recv(); err != nil || r.Status != want {
			t.Fatalf("told %v, %v", r, err)
		}
	}
	is(healthv1.HealthCheckResponse_SERVING)
	told(healthv1.HealthCheckResponse_SERVING)
	v.away.Store(true)
	is(healthv1.HealthCheckResponse_NOT_SERVING)
	told(healthv1.HealthCheckResponse_NOT_SERVING)
	v.away.Store(false)
	told(healthv1.HealthCheckResponse_SERVING)
	is(healthv1.HealthCheckResponse_SERVING)

	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "nobody"}); status.Code(err).String() != "NotFound" {
		t.Errorf("an unknown service: %v", err)
	}
	stranger, err := client.Watch(ctx, &healthv1.HealthCheckRequest{Service: "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stranger.Recv(); err != nil || r.Status != healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Errorf("an unknown service: %v, %v", r, err)
	}

	// Who watches does not hold up the end.
	if err := f.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	told(healthv1.HealthCheckResponse_NOT_SERVING)
	if _, err := watch.Recv(); status.Code(err).String() != "Unavailable" {
		t.Errorf("at the end: %v", err)
	}
}

// V4, C23: checks from many at once, each with the answer to its own question, while keys are created and revoked.
func TestV4ExtAuthzConcurrentChecks(t *testing.T) {
	f, _ := newFixture(t)
	const total, workers = 2_000, 32
	kinds := []struct {
		secret string
		status int
		key    string
	}{
		{f.live, 200, f.ids["org_live"]}, {f.test, 200, f.ids["org_test"]}, {f.disabled, 200, f.ids["org_disabled"]},
		{f.revoked, 401, ""}, {f.expired, 401, ""}, {f.off, 401, ""}, {f.unknown, 401, ""}, {"x", 401, ""},
	}
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < total; i += workers {
				k := kinds[i%len(kinds)]
				id := fmt.Sprint("check-", i)
				out, err := f.client.Check(t.Context(), asEnvoy("POST", "/v1/payments", i%2 == 0, []header{{"Authorization", "Bearer " + k.secret}, {"X-Request-Id", id}}))
				if err != nil {
					t.Errorf("check %d: %v", i, err)
					return
				}
				denied, ok := out.GetDeniedResponse(), out.GetOkResponse()
				switch {
				case k.status == 200 && (ok == nil || out.DynamicMetadata.Fields["api_key_id"].GetStringValue() != k.key || ok.Headers[2].Header.Value != k.key):
					t.Errorf("check %d: %v", i, out)
					return
				case k.status != 200 && (denied == nil || int(denied.Status.Code) != k.status || !strings.Contains(denied.Body, `"`+id+`"`)):
					t.Errorf("check %d: %v", i, out)
					return
				}
			}
		})
	}
	// Beside them: revoked means refused from the answer on (C23).
	for i := range 20 {
		organization := fmt.Sprint("org_beside_", i)
		secret := f.issue(organization)
		in := asEnvoy("GET", "/", false, []header{{"X-API-Key", secret}})
		if got := f.check(t.Context(), in); got.status != 200 {
			t.Errorf("created: %d", got.status)
		}
		if _, err := f.service.Revoke(t.Context(), call(organization), f.ids[organization], ""); err != nil {
			t.Fatal(err)
		}
		if got := f.check(t.Context(), in); got.status != 401 {
			t.Errorf("revoked: %d", got.status)
		}
	}
	all.Wait()
}
