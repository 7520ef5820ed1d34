package paymentsapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/examples/payments/paymentsapi"
	"github.com/syncgram/keyward/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is the payments API in front of an verification listener whose keys the test decides about.
type world struct {
	t   testing.TB
	api http.Handler
	log bytes.Buffer

	mu   sync.Mutex
	now  time.Time
	keys map[string]api.Verdict // by secret
}

var children = map[string]string{"acct_1": "org_a", "acct_2": "org_a"}

func newWorld(t testing.TB, most int) *world {
	t.Helper()
	w := &world{t: t, keys: map[string]api.Verdict{}, now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	internal := httptest.NewServer(http.HandlerFunc(w.verify))
	t.Cleanup(internal.Close)
	client, err := keyward.New(keyward.Config{Addresses: []string{internal.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	w.api = paymentsapi.New(paymentsapi.Config{
		Client: client, Logger: slog.New(slog.NewJSONHandler(&w.log, nil)), MaxPayments: most,
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.now = w.now.Add(time.Second)
			return w.now
		},
	})
	return w
}

func (w *world) verify(rw http.ResponseWriter, r *http.Request) {
	var q api.VerifyKey
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(rw, "", http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	v, known := w.keys[q.Key]
	w.mu.Unlock()
	switch {
	case !known:
		v = api.Verdict{Reason: "unknown"}
	case v.Valid && q.ConnectedAccountID != "" && children[q.ConnectedAccountID] != v.OrganizationID:
		v.Valid, v.Reason = false, "connected_account_forbidden"
	case v.Valid:
		v.ConnectedAccountID = q.ConnectedAccountID
	}
	_ = json.NewEncoder(rw).Encode(v)
}

// key issues a key and returns its secret.
func (w *world) key(organization, env string, paymentsEnabled bool) string {
	w.t.Helper()
	format, err := token.NewFormat("sk")
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := format.Generate(token.Environment(env))
	if err != nil {
		w.t.Fatal(err)
	}
	w.set(s.Reveal(), api.Verdict{
		Valid: true, Reason: "valid", APIKeyID: "key_" + organization, OrganizationID: organization, Env: env, PaymentsEnabled: &paymentsEnabled,
	})
	return s.Reveal()
}

func (w *world) set(secret string, v api.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys[secret] = v
}

func (w *world) do(method, target, secret, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, r)
	return rec
}

const account = "X-Connected-Account-ID"

func decode[T any](t testing.TB, rec *httptest.ResponseRecorder, status int) T {
	t.Helper()
	var v T
	if rec.Code != status {
		t.Fatalf("status = %d, want %d: %s", rec.Code, status, rec.Body)
	}
	d := json.NewDecoder(bytes.NewReader(rec.Body.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("body: %v", err)
	}
	return v
}

func checkProblem(t testing.TB, rec *httptest.ResponseRecorder, status int, code, param string) {
	t.Helper()
	p := decode[api.Problem](t, rec, status)
	if string(p.Code) != code || p.Param != param || p.Status != status || p.Detail == "" ||
		p.RequestID == "" || p.RequestID != rec.Header().Get("X-Request-Id") {
		t.Errorf("problem = %+v, want code %s, param %q", p, code, param)
	}
	if got := rec.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type = %q", got)
	}
}

func TestPaymentLife(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "live", true)
	rec := w.do("POST", "/v1/payments", secret, `{"amount": 1999 ,"currency":"eur","description":"Zwei Kaffee ☕"}`)
	got := decode[paymentsapi.Payment](t, rec, 201)
	description, refundedAt := "Zwei Kaffee ☕", "2030-01-02T03:04:07Z"
	want := paymentsapi.Payment{
		ID: got.ID, Amount: 1999, Currency: "eur", Description: &description, Status: "succeeded", Env: "live",
		OrganizationID: "org_a", CreatedAt: "2030-01-02T03:04:06Z",
	}
	if diff := cmp.Diff(want, got); diff != "" || !strings.HasPrefix(got.ID, "pay_") || len(got.ID) != 30 {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	if got := rec.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q", got)
	}
	want.Status, want.RefundedAt = "refunded", &refundedAt
	for _, body := range []string{"", "{}", " { } "} { // again → the same, the first time kept
		got := decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments/"+want.ID+"/refund", secret, body), 200)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("refunded with body %q (-want +got):\n%s", body, diff)
		}
	}
	if diff := cmp.Diff(want, decode[paymentsapi.Payment](t, w.do("GET", "/v1/payments/"+want.ID, secret, ""), 200)); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(paymentsapi.PaymentList{Payments: []paymentsapi.Payment{want}}, decode[paymentsapi.PaymentList](t, w.do("GET", "/v1/payments", secret, ""), 200)); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	for _, body := range []string{`{"amount":1}`, "[]", "x"} {
		if rec := w.do("POST", "/v1/payments/"+want.ID+"/refund", secret, body); rec.Code != 400 {
			t.Errorf("refund with body %s: status %d", body, rec.Code)
		}
	}
}

// V3: what one owner made, no other sees, lists, refunds or pages by. Every pair of owners is tried.
func TestV3OwnersAreApart(t *testing.T) {
	w := newWorld(t, 0)
	type caller struct{ name, secret, account string }
	liveA, testA, liveB := w.key("org_a", "live", true), w.key("org_a", "test", true), w.key("org_b", "live", true)
	callers := []caller{
		{"org_a live", liveA, ""},
		{"org_a live for acct_1", liveA, "acct_1"},
		{"org_a live for acct_2", liveA, "acct_2"},
		{"org_a test", testA, ""},
		{"org_a test for acct_1", testA, "acct_1"},
		{"org_b live", liveB, ""},
		{"org_b test", w.key("org_b", "test", false), ""},
		{"acct_1 by itself, live", w.key("acct_1", "live", true), ""},
	}
	as := func(c caller, method, target, body string) *httptest.ResponseRecorder {
		if c.account == "" {
			return w.do(method, target, c.secret, body)
		}
		return w.do(method, target, c.secret, body, account, c.account)
	}
	ids := map[string]string{}
	for _, c := range callers {
		p := decode[paymentsapi.Payment](t, as(c, "POST", "/v1/payments", `{"amount":1,"currency":"usd"}`), 201)
		if p.ConnectedAccountID != c.account {
			t.Errorf("%s: connected account %q", c.name, p.ConnectedAccountID)
		}
		ids[c.name] = p.ID
	}
	for _, c := range callers {
		list := decode[paymentsapi.PaymentList](t, as(c, "GET", "/v1/payments", ""), 200)
		if len(list.Payments) != 1 || list.Payments[0].ID != ids[c.name] {
			t.Errorf("%s lists %+v", c.name, list.Payments)
		}
		for _, of := range callers {
			t.Run(c.name+" and the payment of "+of.name, func(t *testing.T) {
				get, refund := as(c, "GET", "/v1/payments/"+ids[of.name], ""), as(c, "POST", "/v1/payments/"+ids[of.name]+"/refund", "")
				page := as(c, "GET", "/v1/payments?starting_after="+ids[of.name], "")
				if c == of {
					if get.Code != 200 || refund.Code != 200 || page.Code != 200 {
						t.Errorf("the owner got %d, %d, %d", get.Code, refund.Code, page.Code)
					}
					return
				}
				checkProblem(t, get, 404, "payment_not_found", "")
				checkProblem(t, refund, 404, "payment_not_found", "")
				checkProblem(t, page, 400, "invalid_request", "starting_after")
			})
		}
	}
	checkProblem(t, w.do("GET", "/v1/payments", liveB, "", account, "acct_1"), 403, "connected_account", account)
}

// V2, C23 as the merchant meets it: the request after a revoke is refused, for each route.
func TestRevokedKeyIsRefused(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "live", true)
	p := decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments", secret, `{"amount":1,"currency":"usd"}`), 201)
	w.set(secret, api.Verdict{Reason: "revoked", APIKeyID: "key_1", OrganizationID: "org_a", Env: "live"})
	for _, target := range []string{
		"POST /v1/payments", "GET /v1/payments", "GET /v1/payments/" + p.ID, "POST /v1/payments/" + p.ID + "/refund",
		"DELETE /v1/payments", "GET /nowhere",
	} {
		method, path, _ := strings.Cut(target, " ")
		for name, secret := range map[string]string{"revoked": secret, "none": ""} {
			rec := w.do(method, path, secret, "")
			checkProblem(t, rec, 401, "invalid_token", "")
			if rec.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %s: no WWW-Authenticate", target, name)
			}
		}
	}
}

// V5: reports and refunds go on; only live payments stop.
func TestV5PaymentsDisabled(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "live", true)
	const body = `{"amount":1,"currency":"usd"}`
	p := decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments", secret, body), 201)
	disabled := false
	w.set(secret, api.Verdict{Valid: true, Reason: "valid", APIKeyID: "key_1", OrganizationID: "org_a", Env: "live", PaymentsEnabled: &disabled})
	checkProblem(t, w.do("POST", "/v1/payments", secret, body), 403, "payments_disabled", "")
	// An answer that does not say is no permission either.
	w.set(secret, api.Verdict{Valid: true, Reason: "valid", APIKeyID: "key_1", OrganizationID: "org_a", Env: "live"})
	checkProblem(t, w.do("POST", "/v1/payments", secret, body), 403, "payments_disabled", "")
	if list := decode[paymentsapi.PaymentList](t, w.do("GET", "/v1/payments", secret, ""), 200); len(list.Payments) != 1 {
		t.Errorf("listed %d payments", len(list.Payments))
	}
	decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments/"+p.ID+"/refund", secret, ""), 200)
	decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments", w.key("org_a", "test", false), body), 201)
}

func TestBodies(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "test", false)
	with := func(member string) string { return `{"amount":1,"currency":"usd",` + member + `}` }
	amount := func(value string) string { return `{"amount":` + value + `,"currency":"usd"}` }
	currency := func(value string) string { return `{"amount":1,"currency":` + value + `}` }
	for _, tc := range []struct {
		name, body string
		status     int
		code       string
		param      string
	}{
		{"least", amount("1"), 201, "", ""},
		{"most", amount("99999999"), 201, "", ""},
		{"longest description", with(`"description":"` + strings.Repeat("ä", 255) + `"`), 201, "", ""},
		{"null description", with(`"description":null`), 201, "", ""},
		{"white space", " \n" + amount(" 1 ") + "\n", 201, "", ""},
		{"escaped member name", `{"\u0061mount":1,"currency":"usd"}`, 201, "", ""},

		{"zero", amount("0"), 400, "invalid_request", "amount"},
		{"negative", amount("-1"), 400, "invalid_request", "amount"},
		{"too much", amount("100000000"), 400, "invalid_request", "amount"},
		{"beyond 64 bits", amount("18446744073709551617"), 400, "invalid_request", "amount"},
		{"fraction", amount("1.5"), 400, "invalid_request", "amount"},
		{"whole fraction", amount("1.0"), 400, "invalid_request", "amount"},
		{"exponent", amount("1e2"), 400, "invalid_request", "amount"},
		{"amount a string", amount(`"1"`), 400, "invalid_request", "amount"},
		{"amount null", amount("null"), 400, "invalid_request", "amount"},
		{"amount an array", amount("[1]"), 400, "invalid_request", "amount"},
		{"no amount", `{"currency":"usd"}`, 400, "invalid_request", "amount"},
		{"leading zero", amount("01"), 400, "invalid_request", ""},

		{"upper case", currency(`"USD"`), 400, "invalid_request", "currency"},
		{"no currency's code", currency(`"abc"`), 400, "invalid_request", "currency"},
		{"two codes", currency(`"usd eur"`), 400, "invalid_request", "currency"},
		{"empty currency", currency(`""`), 400, "invalid_request", "currency"},
		{"currency a number", currency("840"), 400, "invalid_request", "currency"},
		{"currency null", currency("null"), 400, "invalid_request", "currency"},
		{"no currency", `{"amount":1}`, 400, "invalid_request", "currency"},

		{"empty description", with(`"description":""`), 400, "invalid_request", "description"},
		{"blank description", with(`"description":"  "`), 400, "invalid_request", "description"},
		{"long description", with(`"description":"` + strings.Repeat("ä", 256) + `"`), 400, "invalid_request", "description"},
		{"NUL", with(`"description":"a\u0000"`), 400, "invalid_request", "description"},
		{"line separator", with(`"description":"a\u2028b"`), 400, "invalid_request", "description"},
		{"lone surrogate", with(`"description":"\ud800"`), 400, "invalid_request", "description"},
		{"description a number", with(`"description":5`), 400, "invalid_request", "description"},

		{"unknown member", with(`"amout":1`), 400, "invalid_request", "amout"},
		{"unknown member with an odd name", with(`"x-1":1`), 400, "invalid_request", ""},
		{"another case", with(`"Amount":2`), 400, "invalid_request", ""},
		{"twice", with(`"amount":2`), 400, "invalid_request", "amount"},
		{"twice, escaped", with(`"\u0061mount":2`), 400, "invalid_request", "amount"},

		{"empty", "", 400, "invalid_request", ""},
		{"blank", "  ", 400, "invalid_request", ""},
		{"null", "null", 400, "invalid_request", ""},
		{"array", "[" + amount("1") + "]", 400, "invalid_request", ""},
		{"string", `"amount"`, 400, "invalid_request", ""},
		{"cut short", `{"amount":1`, 400, "invalid_request", ""},
		{"trailing data", amount("1") + "{}", 400, "invalid_request", ""},
		{"trailing comma", `{"amount":1,"currency":"usd",}`, 400, "invalid_request", ""},
		{"comment", `{"amount":1,/**/"currency":"usd"}`, 400, "invalid_request", ""},
		{"byte order mark", "\ufeff" + amount("1"), 400, "invalid_request", ""},
		{"invalid UTF-8", with("\"description\":\"\xff\""), 400, "invalid_request", ""},
		{"deep", `{"amount":` + strings.Repeat("[", 8000) + strings.Repeat("]", 8000) + `}`, 400, "invalid_request", "amount"},
		{"large", with(`"description":"` + strings.Repeat("a", 17<<10) + `"`), 413, "body_too_large", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := w.do("POST", "/v1/payments", secret, tc.body, "Content-Type", "application/json; charset=utf-8")
			if tc.status == 201 {
				decode[paymentsapi.Payment](t, rec, 201)
				return
			}
			checkProblem(t, rec, tc.status, tc.code, tc.param)
		})
	}
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json-seq", "application/json; ;"} {
		checkProblem(t, w.do("POST", "/v1/payments", secret, amount("1"), "Content-Type", kind), 415, "unsupported_media_type", "")
	}
}

func TestListPages(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "test", false)
	if got := w.do("GET", "/v1/payments", secret, "").Body.String(); got != `{"payments":[],"has_more":false}`+"\n" {
		t.Errorf("an empty list is %s", got)
	}
	var newestFirst []string
	for i := range 25 {
		p := decode[paymentsapi.Payment](t, w.do("POST", "/v1/payments", secret, fmt.Sprintf(`{"amount":%d,"currency":"usd"}`, i+1)), 201)
		newestFirst = append([]string{p.ID}, newestFirst...)
	}
	for limit, want := range map[string]int{"": 20, "?limit=1": 1, "?limit=25": 25, "?limit=100": 25} {
		list := decode[paymentsapi.PaymentList](t, w.do("GET", "/v1/payments"+limit, secret, ""), 200)
		if len(list.Payments) != want || list.HasMore != (want < 25) || list.Payments[0].ID != newestFirst[0] {
			t.Errorf("%s: %d payments, has_more %v", limit, len(list.Payments), list.HasMore)
		}
	}
	var walked []string
	for after := ""; ; {
		list := decode[paymentsapi.PaymentList](t, w.do("GET", "/v1/payments?limit=7"+after, secret, ""), 200)
		for _, p := range list.Payments {
			walked = append(walked, p.ID)
		}
		if !list.HasMore {
			break
		}
		after = "&starting_after=" + walked[len(walked)-1]
	}
	if diff := cmp.Diff(newestFirst, walked); diff != "" {
		t.Errorf("walked (-want +got):\n%s", diff)
	}
	for query, param := range map[string]string{
		"limit=0": "limit", "limit=101": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=": "limit", "limit=1&limit=2": "limit",
		"starting_after=pay_x": "starting_after", "offset=3": "",
	} {
		checkProblem(t, w.do("GET", "/v1/payments?"+query, secret, ""), 400, "invalid_request", param)
	}
}

func TestRoutes(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "test", false)
	for target, allow := range map[string]string{
		"DELETE /v1/payments": "GET, HEAD, POST", "PUT /v1/payments": "GET, HEAD, POST", "OPTIONS /v1/payments": "GET, HEAD, POST",
		"POST /v1/payments/pay_x": "GET, HEAD", "GET /v1/payments/pay_x/refund": "POST",
	} {
		method, path, _ := strings.Cut(target, " ")
		rec := w.do(method, path, secret, "")
		checkProblem(t, rec, 405, "method_not_allowed", "")
		if got := rec.Header().Get("Allow"); got != allow {
			t.Errorf("%s: Allow = %q, want %q", target, got, allow)
		}
	}
	checkProblem(t, w.do("GET", "/v1/payment", secret, ""), 404, "route_not_found", "")
	checkProblem(t, w.do("GET", "/v1/payments/pay_x", secret, ""), 404, "payment_not_found", "")
	if rec := w.do("HEAD", "/v1/payments", secret, ""); rec.Code != 200 {
		t.Errorf("HEAD: %d", rec.Code)
	}
}

func TestLedgersAreBounded(t *testing.T) {
	w := newWorld(t, 2)
	const body = `{"amount":1,"currency":"usd"}`
	full := 0
	for i := range 12 {
		secret := w.key(fmt.Sprintf("org_%d", i), "test", false)
		for range 3 {
			switch rec := w.do("POST", "/v1/payments", secret, body); rec.Code {
			case 201:
			case 507:
				full++
				checkProblem(t, rec, 507, "ledger_full", "")
			default:
				t.Fatalf("status %d", rec.Code)
			}
		}
	}
	if made := 36 - full; made != 20 {
		t.Errorf("%d payments were kept, want 2 in each ledger and 20 in all", made)
	}
}

// V7: the log has one line a request, and no secret, URL or body in it.
func TestV7Log(t *testing.T) {
	w := newWorld(t, 0)
	secret := w.key("org_a", "live", true)
	const marker = "hunter2"
	body := `{"amount":1,"currency":"usd","description":"` + marker + `"}`
	w.do("POST", "/v1/payments?x="+marker, secret, body, "X-Request-Id", "req-17")
	w.do("GET", "/v1/payments/"+marker, secret, "")
	w.do("GET", "/v1/payments?api_key="+secret, "", "")
	w.do("GET", "/v1/payments", secret, "", "X-Request-Id", secret)
	w.do("GET", "/v1/payments", marker, "")
	text := w.log.String()
	if strings.Contains(text, secret) || strings.Contains(text, marker) {
		t.Error("the log says what it must not")
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines for 5 requests", len(lines))
	}
	var first map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil {
		t.Fatal(err)
	}
	delete(first, "time")
	delete(first, "took")
	want := map[string]any{
		"level": "INFO", "msg": "request", "request_id": "req-17", "method": "POST", "route": "POST /v1/payments", "status": 201.0,
		"verdict": "valid", "organization_id": "org_a", "api_key_id": "key_org_a", "error": "",
	}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

// P6: without Keyward nothing is served, and the log says why.
func TestFailsClosed(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	client, err := keyward.New(keyward.Config{Addresses: []string{gone.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	var log bytes.Buffer
	h := paymentsapi.New(paymentsapi.Config{Client: client, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	r := httptest.NewRequest("GET", "/v1/payments", nil)
	r.SetBasicAuth("some-key", "")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	checkProblem(t, rec, 503, "unavailable", "")
	if rec.Header().Get("Retry-After") == "" || !strings.Contains(log.String(), `"level":"ERROR"`) || !strings.Contains(log.String(), "could not decide") {
		t.Errorf("Retry-After %q, log %s", rec.Header().Get("Retry-After"), log.String())
	}
}

func TestConcurrentPayments(t *testing.T) {
	w := newWorld(t, 0)
	h := httptest.NewServer(w.api)
	t.Cleanup(h.Close)
	secret := w.key("org_a", "live", true)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 10 {
				req, err := http.NewRequest("POST", h.URL+"/v1/payments", strings.NewReader(`{"amount":1,"currency":"usd"}`))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-API-Key", secret)
				req.Header.Set("Content-Type", "application/json")
				resp, err := h.Client().Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 201 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	group.Wait()
	list := decode[paymentsapi.PaymentList](t, w.do("GET", "/v1/payments?limit=100", secret, ""), 200)
	seen := map[string]bool{}
	for _, p := range list.Payments {
		seen[p.ID] = true
	}
	if len(seen) != 80 || list.HasMore {
		t.Errorf("%d payments listed, want 80", len(seen))
	}
}

func TestNewWithoutClientPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an API without a verifier was built")
		}
	}()
	paymentsapi.New(paymentsapi.Config{})
}
