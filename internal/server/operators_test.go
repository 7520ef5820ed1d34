package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// C29: the Location of a create and of a roll is a GET that shows what list shows, in either
// environment; what is not the caller's is one 404.
func TestC29GetKey(t *testing.T) {
	f := newFixture(t)
	f.put("org_a", `{"payments_enabled":true}`)
	user := f.token("u", "org_a")
	created := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","env":"test"}`})
	k := f.issued(created)
	got := f.do(ask{method: "GET", url: f.public + created.header.Get("Location"), user: user})
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	listed := decode[api.KeyList](t, f.do(ask{method: "GET", url: f.keysURL() + "?env=all", user: user}).body)
	if diff := cmp.Diff(listed.Keys, []api.ListedKey{decode[api.ListedKey](t, got.body)}); diff != "" {
		t.Errorf("get (-list +get):\n%s", diff)
	}
	rolled := f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user})
	f.issued(rolled)
	if got := f.do(ask{method: "GET", url: f.public + rolled.header.Get("Location"), user: user}); got.status != 200 {
		t.Errorf("the roll's Location: %d %s", got.status, got.body)
	}
	for _, id := range []string{k.APIKeyID, "key_00000000000000000000000001", "key_x", "%2F", k.APIKeyID + "%2Frevoke"} {
		f.do(ask{method: "GET", url: f.keysURL() + "/" + id, user: f.token("v", "org_b")}).refused(t, 404, api.KeyNotFound, "")
	}
	f.do(ask{method: "GET", url: f.keysURL() + "/" + k.APIKeyID}).refused(t, 401, api.InvalidToken, "")
}

// C30, C23: PATCH changes what it names, and verification reports the new name once it is answered.
func TestC30UpdateKey(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	k := f.create("u", "org_a", `{"key_name":"before","description":"what for"}`)
	patch := func(body string) reply {
		return f.do(ask{method: "PATCH", url: f.keysURL() + "/" + k.APIKeyID, user: user, body: body})
	}
	named := func(want string) {
		t.Helper()
		v := decode[api.Verdict](t, f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `"}`}).body)
		if v.KeyName != want || !v.Valid {
			t.Errorf("verification says %q, %s; want %q", v.KeyName, v.Reason, want)
		}
	}
	named("before")
	for _, tt := range []struct {
		body, name string
		want       *string
	}{
		{`{"key_name":" after "}`, "after", text("what for")},
		{`{"key_name":"after"}`, "after", text("what for")},
		{`{"description":"one\r\ntwo\n"}`, "after", text("one\ntwo")},
		{`{"description":null}`, "after", nil},
		{`{"key_name":"both","description":"x"}`, "both", text("x")},
		{`{"description":""}`, "both", nil},
	} {
		got := patch(tt.body)
		if got.status != 200 || got.header.Get("X-Keyward-Revision") == "" {
			t.Fatalf("%s: %d %s", tt.body, got.status, got.body)
		}
		shown := decode[api.ListedKey](t, got.body)
		if shown.KeyName != tt.name || cmp.Diff(shown.Description, tt.want) != "" {
			t.Errorf("%s: %+v", tt.body, shown)
		}
		named(tt.name)
		again := decode[api.ListedKey](t, f.do(ask{method: "GET", url: f.keysURL() + "/" + k.APIKeyID, user: user}).body)
		again.LastUsedAt, shown.LastUsedAt = nil, nil
		if diff := cmp.Diff(shown, again); diff != "" {
			t.Errorf("%s (-patch +get):\n%s", tt.body, diff)
		}
	}
	for _, tt := range []struct{ body, param string }{
		{`{}`, ""}, {`{"key_name":null}`, "key_name"}, {`{"key_name":""}`, "key_name"}, {`{"key_name":"a\nb"}`, "key_name"},
		{`{"description":1}`, "description"}, {`{"description":"a\tb"}`, "description"}, {`{"description":"\u0000"}`, "description"},
		{`{"description":"` + strings.Repeat("é", 1001) + `"}`, "description"}, {`{"description":"` + k.Key + `"}`, "description"},
		{`{"name":"x"}`, "name"}, {`{"env":"live"}`, "env"}, {`{"key_name":"a","key_name":"b"}`, "key_name"}, {`[]`, ""},
	} {
		patch(tt.body).refused(t, 400, api.InvalidRequest, tt.param)
	}
	if got := patch(`{"description":"` + strings.Repeat("é", 1000) + `"}`); got.status != 200 {
		t.Errorf("1,000 characters: %d %s", got.status, got.body)
	}
	f.do(ask{method: "PATCH", url: f.keysURL() + "/" + k.APIKeyID, user: f.token("v", "org_b"), body: `{"key_name":"x"}`}).refused(t, 404, api.KeyNotFound, "")
	f.do(ask{method: "PATCH", url: f.keysURL() + "/" + k.APIKeyID, user: user, body: `{"key_name":"x"}`, header: http.Header{"Content-Type": {"text/plain"}}}).
		refused(t, 415, api.UnsupportedMediaType, "Content-Type")
	audited := decode[api.AuditList](t, f.do(ask{method: "GET", url: f.admin + "/v1/audit?action=key.update&outcome=done&target_id=" + k.APIKeyID}).body)
	if n := len(audited.Entries); n != 7 || audited.Entries[4].Detail != "key_name description" {
		t.Errorf("%d entries: %+v", n, audited.Entries)
	}

	// An overlapping key can be changed still, a revoked one cannot.
	next := f.issued(f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user, body: `{"overlap_seconds":3600}`}))
	if got := patch(`{"key_name":"old"}`); got.status != 200 || decode[api.ListedKey](t, got.body).Status != "overlapping" {
		t.Errorf("an overlapping key: %d %s", got.status, got.body)
	}
	f.later(2 * time.Hour)
	patch(`{"key_name":"x"}`).refused(t, 409, api.KeyNotActive, "")
	user = f.token("u", "org_a")
	f.do(ask{method: "POST", url: f.keysURL() + "/" + next.APIKeyID + "/revoke", user: user})
	f.do(ask{method: "PATCH", url: f.keysURL() + "/" + next.APIKeyID, user: user, body: `{"key_name":"x"}`}).refused(t, 409, api.KeyNotActive, "")
}

func text(s string) *string { return &s }

// C31: create takes a description; roll keeps it, changes it, or removes it; a retry answers as before.
func TestC31Description(t *testing.T) {
	f := newFixture(t)
	user := f.token("u", "org_a")
	k := f.create("u", "org_a", `{"key_name":"k","description":" what for ","idempotency_key":"i"}`)
	if got := f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","description":"what for","idempotency_key":"i"}`}); got.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the same request again: %d %s", got.status, got.body)
	}
	f.do(ask{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k","idempotency_key":"i"}`}).refused(t, 422, api.IdempotencyKeyReused, "idempotency_key")
	for _, tt := range []struct {
		body string
		want *string
	}{
		{`{}`, text("what for")}, {`{"description":"other"}`, text("other")}, {`{"description":null}`, nil},
		{`{}`, nil}, {`{"description":"x"}`, text("x")}, {`{"description":""}`, nil},
	} {
		f.later(2 * time.Minute)
		k = f.issued(f.do(ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: f.token("u", "org_a"), body: tt.body}))
		got := decode[api.ListedKey](t, f.do(ask{method: "GET", url: f.keysURL() + "/" + k.APIKeyID, user: f.token("u", "org_a")}).body)
		if diff := cmp.Diff(tt.want, got.Description); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.body, diff)
		}
	}
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("v", "org_b"), body: `{"key_name":"k","description":"\u0007"}`}).
		refused(t, 400, api.InvalidRequest, "description")
	for _, none := range []string{"null", `""`, `" "`} {
		issued := f.create("w"+url.QueryEscape(none), "org_"+fmt.Sprint(len(none)), `{"key_name":"k","description":`+none+`}`)
		got := decode[api.OperatorKey](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys/" + issued.APIKeyID}).body)
		if got.Description != nil {
			t.Errorf("%s: %+v", none, got)
		}
	}
}

// O3: operators find keys of any organization, and the key of a secret without using it.
func TestO3OperatorsFindKeys(t *testing.T) {
	f := newFixture(t)
	a, b := f.create("u", "org_a", `{"key_name":"a"}`), f.create("v", "org_b", `{"key_name":"b"}`)
	page := decode[api.OperatorKeyList](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys?limit=1"}).body)
	if len(page.Keys) != 1 || page.Keys[0].APIKeyID != b.APIKeyID || page.Keys[0].OrganizationID != "org_b" || !page.HasMore || page.LeftOut != 0 {
		t.Fatalf("%+v", page)
	}
	page = decode[api.OperatorKeyList](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys?limit=1&cursor=" + *page.NextCursor}).body)
	if len(page.Keys) != 1 || page.Keys[0].APIKeyID != a.APIKeyID || page.HasMore || page.NextCursor != nil {
		t.Fatalf("%+v", page)
	}
	for _, query := range []string{"organization_id=org_a", "created_by=u", "hint=" + a.Hint, "organization_id=org_a&status=active&env=test"} {
		got := decode[api.OperatorKeyList](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys?" + query}).body)
		if len(got.Keys) != 1 || got.Keys[0].APIKeyID != a.APIKeyID {
			t.Errorf("%s: %+v", query, got)
		}
	}
	for query, param := range map[string]string{
		"hint=x": "hint", "status=on": "status", "env=all": "env", "created_before=now": "created_before", "limit=0": "limit",
		"limit=101": "limit", "cursor=x": "cursor", "cursor=": "cursor", "organization_id=": "organization_id", "key=x": "key", "hint=abcd&hint=abcd": "hint",
	} {
		f.do(ask{method: "GET", url: f.admin + "/v1/keys?" + query}).refused(t, 400, api.InvalidRequest, param)
	}
	f.do(ask{method: "GET", url: f.admin + "/v1/keys?hint=" + a.Key}).refused(t, 400, api.InvalidRequest, "")

	lookUp := func(key string) reply {
		return f.do(ask{method: "POST", url: f.admin + "/v1/keys/lookup", body: `{"key":"` + key + `"}`})
	}
	found := decode[api.OperatorKey](t, lookUp(a.Key).body)
	shown := decode[api.OperatorKey](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys/" + a.APIKeyID}).body)
	if diff := cmp.Diff(shown, found); diff != "" || found.APIKeyID != a.APIKeyID || found.LastUsedAt != nil {
		t.Errorf("(-show +lookup):\n%s%+v", diff, found)
	}
	lookUp(f.secret("live")).refused(t, 404, api.KeyNotFound, "")
	lookUp("").refused(t, 400, api.InvalidRequest, "key")
	lookUp(strings.Repeat("x", 256)).refused(t, 400, api.InvalidRequest, "key")
	for _, id := range []string{"key_x", keys.ProbeKeyID, "%2F"} {
		f.do(ask{method: "GET", url: f.admin + "/v1/keys/" + id}).refused(t, 404, api.KeyNotFound, "")
		f.do(ask{method: "POST", url: f.admin + "/v1/keys/" + id + "/revoke"}).refused(t, 404, api.KeyNotFound, "")
	}
}

// O4, C23: an operator ends a key of any organization.
func TestO4OperatorRevokes(t *testing.T) {
	f := newFixture(t)
	k := f.create("u", "org_a", `{"key_name":"a"}`)
	for range 2 {
		got := f.do(ask{method: "POST", url: f.admin + "/v1/keys/" + k.APIKeyID + "/revoke", body: `{"reason":"leaked"}`})
		if got.status != 200 || got.body != `{"status":"revoked","api_key_id":"`+k.APIKeyID+`"}` || got.header.Get("X-Keyward-Revision") == "" {
			t.Fatalf("%d %s", got.status, got.body)
		}
		v := decode[api.Verdict](t, f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `"}`}).body)
		if v.Reason != "revoked" {
			t.Errorf("verification says %s", v.Reason)
		}
	}
	f.do(ask{method: "POST", url: f.admin + "/v1/keys/" + k.APIKeyID + "/revoke", body: `{"reason":"` + k.Key + `"}`}).refused(t, 400, api.InvalidRequest, "reason")
}

func lines(t *testing.T, body string) (all []api.RevokeLine) {
	t.Helper()
	for line := range strings.Lines(body) {
		all = append(all, decode[api.RevokeLine](t, line))
	}
	return all
}

// O4: many keys at once over HTTP, one JSON object a line.
func TestO4RevokeMany(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.service.RevokeBatch = 2 })
	var issued []api.IssuedKey
	for i := range 5 {
		issued = append(issued, f.create(fmt.Sprint("u", i), fmt.Sprint("org_", i), `{"key_name":"k"}`))
	}
	revoke := func(body string) reply {
		return f.do(ask{method: "POST", url: f.admin + "/v1/keys/revoke", body: body})
	}
	for body, param := range map[string]string{
		`{}`: "reason", `{"reason":"x"}`: "filter", `{"reason":"x","filter":{}}`: "filter", `{"reason":"x","filter":null}`: "filter",
		`{"reason":"x","filter":{"hint":null}}`: "filter", `{"reason":"x","filter":[]}`: "filter", `{"reason":"x","filter":{"key":"x"}}`: "key",
		`{"reason":"x","filter":{"hint":{}}}`: "hint", `{"reason":"x","ids":[]}`: "filter", `{"reason":"x","ids":["a"]}`: "ids", `{"reason":"x","ids":[1]}`: "ids",
		`{"reason":"x","ids":"a"}`: "ids", `{"reason":"x","ids":["a"`: "", `{"filter":{"env":"test"}}`: "reason", `{"reason":"x","dry_run":1}`: "dry_run",
		`{"reason":"x","filter":{"env":"test"},"ids":["` + issued[0].APIKeyID + `"]}`: "filter", `{"reason":"x","filter":{"status":"revoked"}}`: "status",
	} {
		t.Run(body, func(t *testing.T) { revoke(body).refused(t, 400, api.InvalidRequest, param) })
	}

	dry := lines(t, revoke(`{"filter":{"env":"test"},"dry_run":true}`).body)
	if len(dry) != 7 || dry[0].Status != "started" || *dry[0].Total != 5 || dry[1].Status != "would_revoke" || dry[6].Status != "dry_run" || *dry[6].Revoked != 5 {
		t.Fatalf("%+v", dry)
	}
	got := revoke(`{"filter":{"env":"test"},"reason":"leaked"}`)
	all := lines(t, got.body)
	if got.header.Get("Content-Type") != "application/x-ndjson" || len(all) != 7 || all[6].Status != "done" || *all[6].Revoked != 5 || *all[6].Total != 5 || all[6].Revision == 0 {
		t.Fatalf("%s", got.body)
	}
	for i, line := range all[1:6] {
		if line.Status != "revoked" || *line.Done != i+1 || *line.Total != 5 || line.APIKeyID != issued[4-i].APIKeyID {
			t.Errorf("line %d: %+v", i, line)
		}
	}
	for _, k := range issued {
		v := decode[api.Verdict](t, f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `"}`}).body)
		if v.Reason != "revoked" {
			t.Errorf("verification says %s", v.Reason)
		}
	}
	named := lines(t, revoke(`{"ids":["`+issued[0].APIKeyID+`","key_00000000000000000000000001"],"reason":"again"}`).body)
	if len(named) != 4 || named[1].Status != "already_revoked" || named[2].Status != "not_found" || *named[3].Revoked != 0 || *named[3].NotFound != 1 {
		t.Errorf("%+v", named)
	}
}

// O4: lines arrive as the batches are done, not at the end; a client that hangs up stops the run after
// the batch that has begun; and what fails in the middle is said by the last line.
func TestO4LinesArriveAsTheyAreDone(t *testing.T) {
	step := &steppedBarrier{entered: make(chan struct{}), release: make(chan error)}
	f := newFixture(t, func(s *setup) {
		s.service.RevokeBatch = 2
		s.barrier = func(b keys.Barrier) keys.Barrier { step.Barrier = b; return step }
	})
	for i := range 6 {
		f.create(fmt.Sprint("u", i), fmt.Sprint("org_", i), `{"key_name":"k"}`)
	}
	asked := make(chan context.Context, 1)
	watched := f.listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Context()
		f.server.Admin().ServeHTTP(w, r)
	}), slog.New(slog.DiscardHandler))
	begin := func() (*http.Response, *bufio.Reader) {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Post(watched+"/v1/keys/revoke", "application/json", strings.NewReader(`{"filter":{"env":"test"},"reason":"leaked"}`))
		if err != nil {
			t.Fatal(err)
		}
		return resp, bufio.NewReader(resp.Body)
	}
	next := func(r *bufio.Reader, want string) api.RevokeLine {
		t.Helper()
		text, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		line := decode[api.RevokeLine](t, text)
		if line.Status != want {
			t.Fatalf("%+v, want %s", line, want)
		}
		return line
	}
	pass := func(err error) { <-step.entered; step.release <- err }

	step.on.Store(true)
	resp, r := begin()
	gone := <-asked
	next(r, "started")
	pass(nil)
	next(r, "revoked")
	next(r, "revoked")
	<-step.entered // the second batch waits
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	<-gone.Done()
	step.release <- nil
	eventually(t, "the run has ended", func() bool {
		return len(f.logged(map[string]any{"msg": "request", "reason": "the client is gone"})) == 1
	})
	page := decode[api.OperatorKeyList](t, f.do(ask{method: "GET", url: f.admin + "/v1/keys?status=revoked"}).body)
	if len(page.Keys) != 4 {
		t.Errorf("%d keys are revoked, want those of two batches", len(page.Keys))
	}

	resp, r = begin()
	<-asked
	defer resp.Body.Close()
	next(r, "started")
	pass(errors.New("no acknowledgement"))
	last := next(r, "failed")
	if last.Error == nil || last.Error.Code != api.Unavailable || last.Error.RequestID == "" || *last.Revoked != 0 {
		t.Errorf("%+v", last)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("something follows the last line: %v", err)
	}
	if n := len(f.logged(map[string]any{"msg": "request", "code": "unavailable"})); n != 1 {
		t.Errorf("%d request lines say that it failed", n)
	}

	step.on.Store(false)
	all := lines(t, f.do(ask{method: "POST", url: f.admin + "/v1/keys/revoke", body: `{"filter":{"env":"test"},"reason":"leaked"}`}).body)
	if last := all[len(all)-1]; last.Status != "done" || *last.Revoked != 0 {
		t.Errorf("run again: %+v", last)
	}
}

// steppedBarrier says when a wait begins and lets it end as the test says, while it is on.
type steppedBarrier struct {
	keys.Barrier
	on      atomic.Bool
	entered chan struct{}
	release chan error
}

func (b *steppedBarrier) Await(ctx context.Context, c keys.Commit) error {
	if b.on.Load() {
		b.entered <- struct{}{}
		if err := <-b.release; err != nil {
			return err
		}
	}
	return b.Barrier.Await(ctx, c)
}

// O2, C23: PATCH and DELETE of an organization, and PUT that is only to create, over HTTP.
func TestO2OrganizationChanges(t *testing.T) {
	f := newFixture(t)
	at := f.admin + "/v1/organizations/org_a"
	patch := func(body string) reply { return f.do(ask{method: "PATCH", url: at, body: body}) }
	patch(`{"is_active":true}`).refused(t, 404, api.OrganizationNotFound, "")
	f.put("org_a", `{"name":"Acme","payments_enabled":true,"is_active":false}`)
	f.put("org_p", `{}`)
	for body, param := range map[string]string{
		`{}`: "", `{"force":true}`: "", `{"current_env":null}`: "current_env", `{"parent_organization_id":""}`: "parent_organization_id",
		`{"is_active":"no"}`: "is_active", `{"id":"x"}`: "id", `{"parent_organization_id":"org_a"}`: "parent_organization_id",
	} {
		patch(body).refused(t, 400, api.InvalidRequest, param)
	}
	got := decode[api.Organization](t, patch(`{"name":"New"}`).body)
	want := api.Organization{OrganizationID: "org_a", Name: "New", PaymentsEnabled: true, CurrentEnv: "live", CreatedAt: got.CreatedAt, UpdatedAt: got.UpdatedAt}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	patch(`{"is_active":true,"name":null}`)
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	verify := func() string {
		return decode[api.Verdict](t, f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `"}`}).body).Reason
	}
	for body, want := range map[string]string{`{"is_active":false}`: "organization_inactive", `{"is_active":true,"current_env":"test"}`: "valid"} {
		if got := patch(body); got.status != 200 || got.header.Get("X-Keyward-Revision") == "" {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
		if got := verify(); got != want {
			t.Errorf("after %s verification says %s", body, got)
		}
	}
	patch(`{"is_active":true}`)
	patch(`{"parent_organization_id":"org_p"}`).refused(t, 409, api.OrganizationHasKeys, "parent_organization_id")
	f.do(ask{method: "PUT", url: at, body: `{"parent_organization_id":"org_p"}`}).refused(t, 409, api.OrganizationHasKeys, "parent_organization_id")
	f.do(ask{method: "PUT", url: at, body: `{}`, header: http.Header{"If-None-Match": {"*"}}}).refused(t, 412, api.OrganizationExists, "")
	f.do(ask{method: "PUT", url: at, body: `{}`, header: http.Header{"If-None-Match": {`"x"`}}}).refused(t, 400, api.InvalidRequest, "If-None-Match")
	if got := patch(`{"parent_organization_id":"org_p","force":true}`); got.status != 200 {
		t.Errorf("by force: %d %s", got.status, got.body)
	}
	f.do(ask{method: "DELETE", url: at}).refused(t, 409, api.OrganizationHasKeys, "")
	f.do(ask{method: "DELETE", url: f.admin + "/v1/organizations/org_p"}).refused(t, 409, api.OrganizationHasAccounts, "")
	f.do(ask{method: "POST", url: f.admin + "/v1/keys/" + k.APIKeyID + "/revoke"})
	for range 2 {
		if got := f.do(ask{method: "DELETE", url: at}); got.status != 200 || got.body != `{"status":"deleted","organization_id":"org_a"}` {
			t.Errorf("delete: %d %s", got.status, got.body)
		}
	}
	f.do(ask{method: "GET", url: at}).refused(t, 404, api.OrganizationNotFound, "")
	list := decode[api.OrganizationList](t, f.do(ask{method: "GET", url: f.admin + "/v1/organizations"}).body)
	if len(list.Organizations) != 1 || list.Organizations[0].OrganizationID != "org_p" {
		t.Errorf("%+v", list)
	}
	if got := verify(); got != "revoked" {
		t.Errorf("verification says %s", got)
	}
	if got := f.do(ask{method: "PUT", url: at, body: `{}`, header: http.Header{"If-None-Match": {"*"}}}); got.status != 200 {
		t.Errorf("put again: %d %s", got.status, got.body)
	}
}

// O6: the audit log by each of its filters, and by several.
func TestO6AuditFilters(t *testing.T) {
	f := newFixture(t)
	a := f.create("u", "org_a", `{"key_name":"a"}`)
	f.create("v", "org_b", `{"key_name":"b"}`)
	f.do(ask{method: "POST", url: f.keysURL(), user: f.token("u", "org_a"), body: `{"key_name":"a"}`}) // there is one
	f.later(time.Hour)
	between := url.QueryEscape(f.now().UTC().Format(time.RFC3339))
	f.later(time.Hour)
	f.do(ask{method: "POST", url: f.admin + "/v1/keys/" + a.APIKeyID + "/revoke", body: `{"reason":"leaked"}`})
	for query, want := range map[string][]string{
		"":                               {"key.create done", "key.create done", "key.create active_key_exists", "key.revoke done"},
		"actor=u":                        {"key.create done", "key.create active_key_exists"},
		"actor=operator":                 {"key.revoke done"},
		"action=key.create":              {"key.create done", "key.create done", "key.create active_key_exists"},
		"outcome=active_key_exists":      {"key.create active_key_exists"},
		"outcome=done&action=key.create": {"key.create done", "key.create done"},
		"organization_id=org_b":          {"key.create done"},
		"target_id=" + a.APIKeyID:        {"key.create done", "key.revoke done"},
		"since=" + between:               {"key.revoke done"},
		"until=" + between:               {"key.create done", "key.create done", "key.create active_key_exists"},
		"since=" + between + "&actor=u":  nil,
		"action=none":                    nil,
		"until=1990-01-01T00:00:00Z":     nil,
		"since=2990-01-01T00:00:00Z":     nil,
		"after=1&organization_id=org_a":  {"key.create active_key_exists", "key.revoke done"},
	} {
		list := decode[api.AuditList](t, f.do(ask{method: "GET", url: f.admin + "/v1/audit?" + query}).body)
		var got []string
		for _, e := range list.Entries {
			got = append(got, e.Action+" "+e.Outcome)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for _, query := range []string{"actor=", "action=%00", "outcome=%ff", "since=now", "until=2026-01-01", "since=1969-01-01T00:00:00Z"} {
		param, _, _ := strings.Cut(query, "=")
		f.do(ask{method: "GET", url: f.admin + "/v1/audit?" + query}).refused(t, 400, api.InvalidRequest, param)
	}
}
