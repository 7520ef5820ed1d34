package doors

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/token"
)

// request is what a client sends. A door that takes a secret in a body takes the parts; the others take the headers.
type request struct {
	header      http.Header
	query       string
	headersOnly bool // it is about how the credential is sent: no question to a door that gets it in a body

	secret, account, env string
}

// answer is what a door says to it.
type answer struct {
	word     string // as it stands in the table
	accepted bool
	identity identity // when accepted
	seen     *reached // by the API behind, when there is one and the request came through
}

// none stands in the table where a door has no such case.
const none = "–"

// door is one way to a verdict. at is the node to ask, where a door does not choose for itself.
type door struct {
	name string
	ask  func(r request, at int) (answer, error)
}

func (p *platform) doors() []door {
	return []door{
		{"verify", p.askVerify},
		{"introspect", p.askIntrospect},
		{"authorize", p.askAuthorize("")},
		{"authorize?mode=nginx", p.askAuthorize("mode=nginx")},
		{"Envoy gRPC", p.askEnvoy},
		{"Envoy HTTP", p.askEnvoyHTTP},
		{"nginx", p.askProxy(func() string { return p.nginx.url })},
		{"Caddy", p.askProxy(func() string { return p.caddy.url })},
		{"Traefik", p.askTraefik},
		{"Go middleware", p.askMiddleware},
		{"Go gRPC", p.grpc},
		{"Express", p.askExpress},
	}
}

func (p *platform) askVerify(r request, at int) (a answer, err error) {
	if r.headersOnly {
		return answer{word: none}, nil
	}
	body, err := json.Marshal(api.VerifyKey{Key: r.secret, Env: r.env, ConnectedAccountID: r.account})
	if err != nil {
		return a, err
	}
	header := r.header.Clone()
	header.Set("Authorization", "Bearer "+p.token)
	header.Set("Content-Type", "application/json")
	resp, text, err := p.do("POST", p.nodes[at].Verification+"/v1/verify"+r.query, string(body), header)
	if err != nil || resp.StatusCode != 200 {
		return answer{word: statusOf(resp)}, err
	}
	var v api.Verdict
	if err := json.Unmarshal(text, &v); err != nil {
		return a, err
	}
	a = answer{word: v.Reason, accepted: v.Valid}
	if v.Valid {
		a.identity = identity{v.OrganizationID, v.Env, v.APIKeyID, v.ConnectedAccountID, *v.PaymentsEnabled}
	}
	return a, nil
}

func (p *platform) askIntrospect(r request, at int) (a answer, err error) {
	if r.headersOnly {
		return answer{word: none}, nil
	}
	form := url.Values{"token": {r.secret}}
	for name, value := range map[string]string{"env": r.env, "connected_account_id": r.account} {
		if value != "" {
			form.Set(name, value)
		}
	}
	header := r.header.Clone()
	header.Set("Authorization", "Bearer "+p.token)
	header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, text, err := p.do("POST", p.nodes[at].Verification+"/v1/introspect"+r.query, form.Encode(), header)
	if err != nil || resp.StatusCode != 200 {
		return answer{word: statusOf(resp)}, err
	}
	var v struct {
		Active   bool
		Sub      string
		ClientID string `json:"client_id"`
		Env      string
		Account  string `json:"connected_account_id"`
		Payments bool   `json:"payments_enabled"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return a, err
	}
	if !v.Active {
		return answer{word: "inactive"}, nil
	}
	return answer{word: "active", accepted: true, identity: identity{v.Sub, v.Env, v.ClientID, v.Account, v.Payments}}, nil
}

// askAuthorize asks as a proxy does, with the client's headers and its own.
func (p *platform) askAuthorize(query string) func(request, int) (answer, error) {
	return func(r request, at int) (a answer, err error) {
		header := r.header.Clone()
		header.Set("X-Original-URI", "/v1/payments"+r.query)
		header.Set("X-Original-Method", "POST")
		header.Set("X-Internal-Token", p.token)
		resp, _, err := p.do("GET", p.nodes[at].Verification+"/v1/authorize?"+query+envParameter(r.env), "", header)
		if err != nil {
			return a, err
		}
		a = answer{word: statusOf(resp), accepted: resp.StatusCode == 200}
		if a.accepted {
			a.identity = identityIn(resp.Header)
		}
		if meant := resp.Header.Get("X-Keyward-Status"); meant != "" && meant != a.word {
			a.word += " (" + meant + ")"
		}
		return a, nil
	}
}

func envParameter(env string) string {
	if env == "" {
		return ""
	}
	return "&env=" + env
}

// askProxy posts a payment through a proxy. What the proxies differ in is in docs/doors; that none answers a refusal with less
// than this is here.
func (p *platform) askProxy(base func() string) func(request, int) (answer, error) {
	return func(r request, _ int) (answer, error) {
		path := "/v1/payments"
		if r.env != "" {
			path = "/v1/payouts"
		}
		return p.post(base()+path+r.query, r)
	}
}

// askTraefik is askProxy. Traefik itself, when it finds no node that can decide, says so in words of its own.
func (p *platform) askTraefik(r request, at int) (answer, error) {
	got, err := p.askProxy(func() string { return p.traefik })(r, at)
	if *traefikProgram != "" && got.word == "503" {
		err = nil
	}
	return got, err
}

func (p *platform) askMiddleware(r request, _ int) (answer, error) {
	base := p.checked.URL
	if r.env != "" {
		base = p.live.URL
	}
	return p.post(base+"/v1/payments"+r.query, r)
}

// body is a payment's.
const body = `{"amount":1999,"currency":"eur"}`

func (p *platform) post(url string, r request) (a answer, err error) {
	header := r.header.Clone()
	header.Set("Content-Type", "application/json")
	before := p.api.reached.Load()
	resp, text, err := p.do("POST", url, body, header)
	if err != nil {
		return a, err
	}
	a.word, a.accepted = statusOf(resp), resp.StatusCode == 200
	if !a.accepted {
		if p.api.reached.Load() != before {
			return a, fmt.Errorf("%s: refused with %s, and the API was reached", url, a.word)
		}
		return a, refusalIsComplete(resp, text)
	}
	if err := json.Unmarshal(text, &a.seen); err != nil {
		return a, fmt.Errorf("%s: not from the API: %w", url, err)
	}
	a.identity = a.seen.Identity
	return a, nil
}

// refusalIsComplete says what a refusal lacks: a client must be able to act on it (C25, V2).
func refusalIsComplete(resp *http.Response, text []byte) error {
	var problem api.Problem
	if resp.Header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(text, &problem) != nil ||
		problem.Status != resp.StatusCode || problem.Code == "" || problem.Type != "urn:keyward:problem:"+string(problem.Code) {
		return fmt.Errorf("%d: not a problem document: %s", resp.StatusCode, text)
	}
	codes := map[int]api.Code{400: api.InvalidRequest, 401: api.InvalidToken, 403: api.ConnectedAccount, 503: api.Unavailable}
	challenges := resp.Header["Www-Authenticate"]
	switch {
	case codes[resp.StatusCode] != problem.Code:
		return fmt.Errorf("%d: code %q", resp.StatusCode, problem.Code)
	case (resp.StatusCode == 503) != (resp.Header.Get("Retry-After") == "1"):
		return fmt.Errorf("%d: Retry-After %q", resp.StatusCode, resp.Header["Retry-After"])
	case resp.StatusCode == 401 && !slices.Equal(challenges, []string{`Bearer error="invalid_token"`}), resp.StatusCode != 401 && challenges != nil:
		return fmt.Errorf("%d: WWW-Authenticate %q", resp.StatusCode, challenges)
	case resp.StatusCode != 400 && resp.Header.Get("Cache-Control") != "no-store":
		return fmt.Errorf("%d: Cache-Control %q", resp.StatusCode, resp.Header["Cache-Control"])
	}
	return nil
}

func statusOf(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	return fmt.Sprint(resp.StatusCode)
}

// with returns headers: names and values in turn.
func with(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

func bearer(secret string, pairs ...string) request {
	return request{secret: secret, header: with(append(pairs, "Authorization", "Bearer "+secret)...)}
}

// V2, V3, V4, V7: one verdict, one meaning, through every door and on every node. The table is the one in docs/doors/README.md.
func TestV4EveryDoorEveryCase(t *testing.T) {
	p := newPlatform(t)
	const registered = `{"payments_enabled":true,"current_env":"live"}`
	p.organization("org_live", registered)
	p.organization("org_other", registered)
	p.organization("org_off", registered)
	p.organization("org_child", `{"parent_organization_id":"org_live"}`)
	p.organization("org_stranger", `{"parent_organization_id":"org_other"}`)
	live, other, test, off, revoked := p.create("org_live", 0), p.create("org_other", 1), p.create("org_test", 2), p.create("org_off", 0), p.create("org_revoked", 1)
	expired := p.expired("org_expired")
	p.revoke(revoked, 2)
	p.organization("org_off", `{"payments_enabled":true,"is_active":false}`)
	format, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := format.Generate(token.Live)
	if err != nil {
		t.Fatal(err)
	}
	malformed := live.Key[:45]
	p.secrets = append(p.secrets, unknown.Reveal(), malformed)

	self := identity{"org_live", "live", live.APIKeyID, "", true}
	child := self
	child.Account = "org_child"
	narrowed := func(account string) request {
		r := bearer(live.Key, "X-Connected-Account-ID", account)
		r.account = account
		return r
	}
	headers := func(pairs ...string) request { return request{header: with(pairs...), headersOnly: true} }
	asked := func(query string) request {
		r := bearer(live.Key)
		r.query = query
		return r
	}
	otherEnvironment := bearer(test.Key)
	otherEnvironment.env = "live"
	rightEnvironment := bearer(live.Key)
	rightEnvironment.env = "live"
	basic := func(secret string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(secret+":")) }
	spoofed := bearer(live.Key, "X-Keyward-Organization-Id", "org_evil", "X-Keyward-Connected-Account-Id", "org_evil", "X-Keyward-Key-Id", "key_evil",
		"X-Keyward-Environment", "evil", "X-Keyward-Payments-Enabled", "evil", "X-Keyward-Status", "evil", "X-Keyward-Organization-Id", "org_evil2",
		"X_Keyward_Organization_Id", "org_evil", "x-keyward_connected_account_id", "org_evil", "X_KEYWARD-Key_Id", "key_evil",
		"X.Keyward.Organization.Id", "org_evil", "X!Keyward~Key|Id", "key_evil", // to what names variables after headers each is an underscore
		"X-Internal-Token", "evil")
	twoKeys := headers("X-API-Key", live.Key)
	twoKeys.header["X-Api-Key"] = append(twoKeys.header["X-Api-Key"], other.Key)
	doors := p.doors()
	cases := []struct {
		name string
		request
		want identity // of those that are accepted
	}{
		{"valid", bearer(live.Key), self},
		{"valid, as X-API-Key", headers("X-API-Key", live.Key), self},
		{"valid, as HTTP Basic (`curl -u sk_…:`)", headers("Authorization", basic(live.Key)), self},
		{"valid, on a route for its environment", rightEnvironment, self},
		{"of the other environment", otherEnvironment, identity{}},
		{"for a connected account of its own", narrowed("org_child"), child},
		{"for another's connected account", narrowed("org_stranger"), identity{}},
		{"revoked", bearer(revoked.Key), identity{}},
		{"expired", bearer(expired.Key), identity{}},
		{"malformed", bearer(malformed), identity{}},
		{"unknown", bearer(unknown.Reveal()), identity{}},
		{"of a switched-off organization", bearer(off.Key), identity{}},
		{"no credential", headers(), identity{}},
		{"two credentials that differ", headers("Authorization", "Bearer "+live.Key, "X-API-Key", other.Key), identity{}},
		{"two X-API-Key that differ", twoKeys, identity{}},
		{"valid, with identity headers of the client's", spoofed, self},
		{"valid, with the secret in the URL too", asked("?key=" + live.Key), identity{}},
		{"the same, percent-encoded twice", asked("?key=" + strings.ReplaceAll(live.Key, "_", "%255f")), identity{}},
		{"the same, a letter encoded, beside what is no encoding", asked("?a=%zz&key=" + strings.Replace(live.Key, "live", "l%69ve", 1)), identity{}},
		{"valid, Keyward cannot decide", bearer(live.Key), identity{}},
	}
	table := []string{"| key, request |", "|---|"}
	for _, d := range doors {
		table[0] += " " + d.name + " |"
		table[1] += "---|"
	}
	for _, tt := range cases {
		line := "| " + tt.name + " |"
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.name, "cannot decide") {
				p.cut(live.Key)
			}
			for _, d := range doors {
				word := ""
				for at := range p.nodes { // the proxies ask one node after the other
					got, err := d.ask(tt.request, at)
					if err != nil {
						t.Errorf("%s: %v", d.name, err)
					}
					if got.accepted && got.identity != tt.want {
						t.Errorf("%s, node %d: %s", d.name, at, cmp.Diff(tt.want, got.identity))
					}
					if got.seen != nil {
						passedOn(t, d.name, tt.request, got.seen)
					}
					if at > 0 && got.word != word {
						t.Errorf("%s: %q, and %q on node %d", d.name, word, got.word, at)
					}
					word = got.word
				}
				line += " " + word + " |"
			}
		})
		table = append(table, line)
	}
	p.recovers(bearer(live.Key))
	measured := strings.Join(table, "\n")
	t.Logf("\n%s", measured)
	text, err := os.ReadFile("../../docs/doors/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, documented, _ := strings.Cut(string(text), "\n| key, request |")
	documented, _, _ = strings.Cut("| key, request |"+documented, "\n\n")
	if diff := cmp.Diff(strings.Split(documented, "\n"), table); diff != "" {
		t.Errorf("docs/doors/README.md (-) and what was measured (+):\n%s", diff)
	}
}

// recovers gives the database back. Each proxy lets requests through again within what docs/doors says, and some for a busy machine.
func (p *platform) recovers(r request) {
	p.t.Helper()
	for _, d := range p.databases {
		d.Set(faultproxy.Fault{})
	}
	p.wait("nodes decide again", func(n *keywardtest.Process) bool { return p.verdict(n, r.secret).Valid })
	ready := time.Now()
	for _, d := range p.doors() {
		var last answer
		err := keywardtest.Poll(func() bool {
			got, err := d.ask(r, 0)
			last = got
			return err == nil && got.accepted
		}, nil)
		if took := time.Since(ready); err != nil || took > 5*time.Second {
			p.t.Errorf("%s: last %q, %v after the nodes were back: %v", d.name, last.word, took, err)
		}
	}
	p.t.Logf("every door lets requests through %v after the nodes decide again", time.Since(ready).Round(time.Millisecond))
}

// identityHeader is the name of one, or of what reads as one.
var identityHeader = regexp.MustCompile(`(?i)^x[^a-z0-9]keyward[^a-z0-9]`)

// passedOn says what may and what must reach the API behind a door.
func passedOn(t *testing.T, door string, sent request, seen *reached) {
	t.Helper()
	if seen.Method != "POST" || seen.Body != body {
		t.Errorf("%s: the API got %s %q", door, seen.Method, seen.Body)
	}
	inService := door == "Go middleware" || door == "Express" // it takes away the identity headers of a client alone
	for name, values := range seen.Header {
		for _, v := range values {
			if strings.Contains(v, "evil") && !(inService && !identityHeader.MatchString(name)) {
				t.Errorf("%s: the API got the client's %s", door, name)
			}
		}
	}
	if inService {
		return
	}
	// The route for payments gives the credential on, the one for payouts does not.
	kept := seen.Header["Authorization"] != nil || seen.Header["X-Api-Key"] != nil
	if kept != (sent.env == "") {
		t.Errorf("%s: a credential reached the API: %t, at a route for the environment %q", door, kept, sent.env)
	}
	if forwarded := seen.Header.Get("X-Forwarded-For"); forwarded != "127.0.0.1" {
		t.Errorf("%s: X-Forwarded-For %q", door, forwarded)
	}
}
