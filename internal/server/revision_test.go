package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// revision reads the header of an answered write.
func (got reply) revision(t *testing.T) int64 {
	t.Helper()
	n, err := strconv.ParseInt(got.header.Get("X-Keyward-Revision"), 10, 64)
	if err != nil || n < 1 || len(got.header["X-Keyward-Revision"]) != 1 {
		t.Fatalf("%d with X-Keyward-Revision %q: %s", got.status, got.header["X-Keyward-Revision"], got.body)
	}
	return n
}

// C23: the answer to each write carries its revision, a replay that of the key's row; nothing else carries one.
func TestC23RevisionOfTheAnswer(t *testing.T) {
	barrier := &failingBarrier{}
	f := newFixture(t, func(s *setup) {
		s.barrier = func(b keys.Barrier) keys.Barrier { barrier.Barrier = b; return barrier }
	})
	user := f.token("u", "org_a")
	put := ask{method: "PUT", url: f.admin + "/v1/organizations/org_a", body: `{}`}
	create := ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"retry-1"}`}
	last := f.do(put).revision(t)
	next := func(what string, got reply) {
		t.Helper()
		if n := got.revision(t); n != last+1 {
			t.Errorf("%s: revision %d after %d", what, n, last)
		}
		last++
	}
	got := f.do(create)
	next("create", got)
	created, k := last, f.issued(got)
	next("put again", f.do(put))
	if got := f.do(create); got.header.Get("Idempotent-Replayed") != "true" || got.revision(t) != created {
		t.Errorf("replay: revision %d, want %d, replayed %q", got.revision(t), created, got.header.Get("Idempotent-Replayed"))
	}
	got = f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user})
	next("roll", got)
	revoke := ask{method: "POST", url: f.keysURL() + "/" + f.issued(got).APIKeyID + "/revoke", user: user}
	next("revoke", f.do(revoke))
	next("revoke again", f.do(revoke))

	barrier.on = true
	for what, r := range map[string]ask{
		"list":                   {method: "GET", url: f.keysURL(), user: user},
		"create refused":         {method: "POST", url: f.keysURL(), user: user, body: `{"key_name":""}`},
		"create too soon":        {method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`},
		"revoke of no key":       {method: "POST", url: f.keysURL() + "/key_x/revoke", user: user},
		"roll of a revoked key":  {method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user},
		"put refused":            {method: "PUT", url: f.admin + "/v1/organizations/org_a", body: `{"name":1}`},
		"get":                    {method: "GET", url: f.admin + "/v1/organizations/org_a"},
		"not known everywhere":   revoke,
		"put, the same":          put,
		"no token":               {method: "POST", url: f.keysURL(), body: `{"key_name":"k"}`},
		"verify":                 {method: "POST", url: f.verification + "/v1/verify", body: `{"key":"x","min_revision":1}`},
		"a client's own, echoed": {method: "GET", url: f.keysURL(), user: user, header: http.Header{"X-Keyward-Revision": {"7"}}},
	} {
		if got := f.do(r); len(got.header["X-Keyward-Revision"]) > 0 {
			t.Errorf("%s: %d with X-Keyward-Revision %q", what, got.status, got.header["X-Keyward-Revision"])
		}
	}
}

// unregistered is a database whose node has no row and is told that its lease is renewed: no writer waits for it, as if its clock were wrong.
type unregistered struct{ keys.Feed }

func (unregistered) Register(context.Context, keys.Node) error { return nil }
func (unregistered) Leave(context.Context, string) error       { return nil }
func (unregistered) Renew(context.Context, string, keys.Mark) (keys.Renewal, error) {
	return keys.Renewal{Outcome: keys.Renewed}, nil
}
func (unregistered) Listen(ctx context.Context, _ func(keys.Announcement)) error {
	<-ctx.Done()
	return ctx.Err()
}

// C23, V4: at every endpoint, a node whose memory is behind and does not know it reads what is new
// when a verification carries a revision token, and decides nothing when the database does not have
// that revision.
func TestC23RevisionTokenAtEachDoor(t *testing.T) {
	f := newFixture(t)
	revoked, user := f.create("u", "org_a", `{"key_name":"k"}`), f.token("u", "org_a")
	behind, err := verify.New(verify.Config{Feed: unregistered{f.store}, Format: f.format})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); behind.Run(running) }()
	t.Cleanup(func() { stop(); <-done })
	eventually(t, "ready", func() bool { return behind.Ready() == nil })
	cfg := f.server.cfg
	cfg.Verifier, cfg.Metrics = behind, NewMetrics()
	node, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	at := f.listen(node.Verification(), cfg.Logger)

	f.do(ask{method: "POST", url: f.keysURL() + "/" + revoked.APIKeyID + "/revoke", user: user}).revision(t)
	created := f.create("u2", "org_b", `{"key_name":"k"}`)
	token := f.do(ask{method: "PUT", url: f.admin + "/v1/organizations/org_c", body: `{}`}).revision(t)

	for _, tt := range []struct {
		name   string
		secret string
		least  int64
		status int  // 200 or 503
		valid  bool // of 200
	}{
		{"revoked, no token", revoked.Key, -1, 200, true}, // which is why there are tokens
		{"revoked, any revision", revoked.Key, 0, 200, true},
		{"created, no token", created.Key, -1, 200, false},
		{"revoked", revoked.Key, token, 200, false},
		{"created", created.Key, token, 200, true},
		{"never there", f.secret(keys.Live), token, 200, false},
		{"revoked, a revision nobody has", revoked.Key, token + 1, 503, false},
		{"created, a revision nobody has", created.Key, token + 1, 503, false},
		{"never there, a revision nobody has", f.secret(keys.Live), token + 1, 503, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			member, query, form := "", "", url.Values{"token": {tt.secret}}
			if tt.least >= 0 {
				member, query = fmt.Sprintf(`,"min_revision":%d`, tt.least), fmt.Sprintf("?min_revision=%d", tt.least)
				form.Set("min_revision", fmt.Sprint(tt.least))
			}
			verified := f.do(ask{method: "POST", url: at + "/v1/verify", body: `{"key":"` + tt.secret + `"` + member + `}`})
			authorized := f.do(ask{method: "GET", url: at + "/v1/authorize" + query, header: http.Header{"X-Api-Key": {tt.secret}}})
			introspected := f.do(ask{method: "POST", url: at + "/v1/introspect", body: form.Encode(), header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}})
			if tt.status == 503 {
				for _, got := range []reply{verified, authorized, introspected} {
					got.refused(t, 503, api.Unavailable, "")
				}
				return
			}
			if v := decode[api.Verdict](t, verified.body); verified.status != 200 || v.Valid != tt.valid {
				t.Errorf("verify: %d %s", verified.status, verified.body)
			}
			if want := map[bool]int{true: 200, false: 401}[tt.valid]; authorized.status != want {
				t.Errorf("authorize: %d, want %d", authorized.status, want)
			}
			if introspected.status != 200 || strings.Contains(introspected.body, `"active":true`) != tt.valid {
				t.Errorf("introspect: %d %s", introspected.status, introspected.body)
			}
		})
	}
	scrape := f.do(ask{method: "GET", url: f.listen(node.Admin(), cfg.Logger) + "/metrics"}).body
	for _, door := range []string{"verify", "authorize", "introspect"} {
		for _, want := range []string{
			`path="memory",reason="valid"} 3`, `path="memory",reason="unknown"} 2`, `path="closed",reason="undecided"} 3`,
		} {
			if want = `keyward_verifications_total{door="` + door + `",` + want; !strings.Contains(scrape, want) {
				t.Errorf("metrics lack %s", want)
			}
		}
	}
}

// C23, V2: what is no revision is refused by name at every door, and a header is never taken for one.
func TestC23RevisionTokenForms(t *testing.T) {
	f := newFixture(t)
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	key := http.Header{"X-Api-Key": {k.Key}}
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for _, value := range []string{"-1", "-0", "01", "1.0", "1e3", "+1", "0x1", "9223372036854775808", "x", "", " 1", "true"} {
		if value != " 1" && value != "0x1" { // fine, and no JSON at all
			f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `","min_revision":` + value + `}`}).refused(t, 400, api.InvalidRequest, "min_revision")
		}
		f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `","min_revision":"` + value + `"}`}).refused(t, 400, api.InvalidRequest, "min_revision")
		query := url.Values{"min_revision": {value}}.Encode()
		f.do(ask{method: "GET", url: f.verification + "/v1/authorize?" + query, header: key}).refused(t, 400, api.InvalidRequest, "min_revision")
		f.do(ask{method: "POST", url: f.verification + "/v1/introspect", body: "token=" + k.Key + "&" + query, header: form}).refused(t, 400, api.InvalidRequest, "min_revision")
	}
	f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `","min_revision":1,"min_revision":1}`}).refused(t, 400, api.InvalidRequest, "min_revision")
	f.do(ask{method: "GET", url: f.verification + "/v1/authorize?min_revision=1&min_revision=1", header: key}).refused(t, 400, api.InvalidRequest, "min_revision")
	f.do(ask{method: "POST", url: f.verification + "/v1/introspect", body: "token=" + k.Key + "&min_revision=1&min_revision=1", header: form}).refused(t, 400, api.InvalidRequest, "min_revision")
	f.do(ask{method: "GET", url: f.verification + "/v1/authorize?min_revision=%zz", header: key}).refused(t, 400, api.InvalidRequest, "")

	if v := f.verify(k.Key, `,"min_revision":null`); !v.Valid {
		t.Errorf("null: %+v", v)
	}
	if got := f.do(ask{method: "GET", url: f.verification + "/v1/authorize?env=test&min_revision=1", header: key}); got.status != 200 {
		t.Errorf("beside an environment: %d", got.status)
	}
	for _, name := range []string{"X-Keyward-Revision", "X-Keyward-Min-Revision", "Min-Revision", "Min_revision"} {
		if got := f.do(ask{method: "GET", url: f.verification + "/v1/authorize", header: http.Header{"X-Api-Key": {k.Key}, name: {"999999"}}}); got.status != 200 {
			t.Errorf("%s in a header: %d", name, got.status)
		}
	}
}

// What the barrier took and what a revocation survives are shown as told.
func TestBarrierMetrics(t *testing.T) {
	f := newFixture(t)
	m := f.server.cfg.Metrics
	m.Barrier(verify.BarrierAcknowledged, 2*time.Millisecond)
	m.Barrier(verify.BarrierAcknowledged, time.Millisecond)
	m.Barrier(verify.BarrierFenced, 12550*time.Millisecond)
	m.Barrier(verify.BarrierFailed, time.Hour)
	m.Durability("single")
	m.Durability("synchronous")
	scrape := f.do(ask{method: "GET", url: f.admin + "/metrics"}).body
	for _, want := range []string{
		`keyward_barrier_seconds_bucket{outcome="acknowledged",le="0.001"} 1`,
		`keyward_barrier_seconds_bucket{outcome="acknowledged",le="0.0025"} 2`,
		`keyward_barrier_seconds_bucket{outcome="fenced",le="10"} 0`,
		`keyward_barrier_seconds_bucket{outcome="fenced",le="15"} 1`,
		`keyward_barrier_seconds_bucket{outcome="failed",le="60"} 0`,
		`keyward_barrier_seconds_count{outcome="failed"} 1`,
		`keyward_revocation_durability{mode="synchronous"} 1`,
		`keyward_revocation_durability{mode="asynchronous"} 0`,
		`keyward_revocation_durability{mode="single"} 0`,
		`keyward_revocation_durability{mode="local"} 0`,
		`keyward_lease_seconds `, `keyward_fenced_total 0`, `keyward_regressions_total 0`, `keyward_revision 0`,
	} {
		if !strings.Contains(scrape, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for _, gone := range []string{"keyward_verifications_undecided_total", "keyward_verifications_from_primary_total"} {
		if strings.Contains(scrape, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
}
