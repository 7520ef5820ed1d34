package doors

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// C23, V4: a key is accepted by every door once create has answered, and by none once revoke has, whichever node made the write and
// whichever node a door asks.
func TestC23EveryDoorRightAfterTheAnswer(t *testing.T) {
	p := newPlatform(t)
	p.organization("org_keep", `{"payments_enabled":true}`)
	doors := p.doors()
	const rounds = 50
	for round := range rounds {
		k := p.create(fmt.Sprint("org_", round), round%3)
		everyDoor := func(accepted bool) {
			t.Helper()
			for _, d := range doors {
				for at := range p.nodes {
					got, err := d.ask(bearer(k.Key), at)
					if err != nil {
						t.Errorf("round %d, %s: %v", round, d.name, err)
					}
					if got.accepted != accepted || accepted && got.identity.Key != k.APIKeyID {
						t.Errorf("round %d, %s, node %d: %q for %+v, want accepted: %t", round, d.name, at, got.word, got.identity, accepted)
					}
				}
			}
		}
		everyDoor(true)
		p.revoke(k, (round+1)%3)
		everyDoor(false)
		if t.Failed() {
			return
		}
	}
	// Every node was asked by every proxy: 6 questions a round, spread evenly.
	for i, n := range p.nodes {
		resp, text, err := p.do("GET", n.Admin+"/metrics", "", with("Authorization", "Bearer "+p.token))
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(err)
		}
		const asked = `keyward_verifications_total{door="authorize"`
		var count float64
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, asked) {
				var n float64
				if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
					t.Fatal(err)
				}
				count += n
			}
		}
		// Asked for itself twice a round in each of three forms, and by each of three proxies twice.
		if want := float64(rounds * (3*2 + 3*2)); count < want*0.9 || count > want*1.1 {
			t.Errorf("node %d answered %v questions at /v1/authorize, want about %v", i, count, want)
		}
	}
}

// What goes for the proxies that are run, beside their verdicts.
func TestV2Proxies(t *testing.T) {
	p := newPlatform(t)
	p.organization("org_a", `{"payments_enabled":true,"current_env":"live"}`)
	p.organization("org_child", `{"parent_organization_id":"org_a"}`)
	k := p.create("org_a", 0)
	for _, tt := range []struct {
		name string
		test func(*testing.T, *platform, key)
	}{{"payments", testPayments}, {"limits", testLimits}, {"connection", testConnection}, {"nodes go away", testNodesGoAway}} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, p, k) })
	}
}

// The payments API of examples works behind each proxy as it does alone, and a payment is its merchant's.
func testPayments(t *testing.T, p *platform, k key) {
	for _, x := range p.proxies {
		header := bearer(k.Key, "X-Test-Real", "1", "X-Connected-Account-ID", "org_child", "Content-Type", "application/json").header
		resp, text, err := p.do("POST", x.url+"/v1/payments", `{"amount":1999,"currency":"eur","description":"Two coffees"}`, header)
		if err != nil || resp.StatusCode != 201 {
			t.Fatalf("%s: %v %s", x.name, err, text)
		}
		var paid struct {
			ID                 string
			Env                string
			OrganizationID     string `json:"organization_id"`
			ConnectedAccountID string `json:"connected_account_id"`
		}
		if err := json.Unmarshal(text, &paid); err != nil {
			t.Fatal(err)
		}
		if paid.Env != "live" || paid.OrganizationID != "org_a" || paid.ConnectedAccountID != "org_child" {
			t.Errorf("%s: %s", x.name, text)
		}
		resp, text, err = p.do("GET", x.url+"/v1/payments?limit=1&min_revision=999999999", "", header)
		if err != nil || resp.StatusCode != 400 || !strings.Contains(string(text), "The query takes limit") {
			t.Errorf("%s: a query is for the API, not for Keyward: %v %s", x.name, err, text)
		}
		resp, text, err = p.do("GET", x.url+"/v1/payments/"+paid.ID, "", header)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(text), paid.ID) {
			t.Errorf("%s: %v %s", x.name, err, text)
		}
	}
}

// A client that names headers in Connection takes nothing out of the question, nor out of what the API gets.
func testConnection(t *testing.T, p *platform, k key) {
	for _, x := range p.proxies {
		for name, tt := range map[string]struct {
			header  http.Header
			status  int
			account string // of the identity
		}{
			"the identity": {bearer(k.Key, "X-Connected-Account-ID", "org_child",
				"Connection", "X-Keyward-Connected-Account-Id, X-Keyward-Organization-Id, X-Keyward-Environment, X-Keyward-Key-Id").header, 200, "org_child"},
			"another credential": {bearer(k.Key, "X-Api-Key", k.Key+"x", "Connection", "X-Api-Key").header, 401, ""},
			"the credential":     {bearer(k.Key+"x", "X-Api-Key", k.Key, "Connection", "Authorization").header, 401, ""},
			"another's account":  {bearer(k.Key, "X-Connected-Account-ID", "org_nobodys", "Connection", "X-Connected-Account-ID").header, 403, ""},
		} {
			if x.name == "Traefik" {
				tt.status = 200 // it takes them away before anything else: they are in the question as little as in what the API gets
			}
			resp, text, err := p.do("GET", x.url+"/v1/payouts", "", tt.header)
			if err != nil || resp.StatusCode != tt.status {
				t.Errorf("%s, %s: %v %s, want %d", x.name, name, err, text, tt.status)
				continue
			}
			if tt.status != 200 {
				continue
			}
			var seen reached
			if err := json.Unmarshal(text, &seen); err != nil {
				t.Fatal(err)
			}
			want := identity{"org_a", "live", k.APIKeyID, tt.account, true}
			if seen.Identity != want || seen.Header["X-Api-Key"] != nil || seen.Header["X-Connected-Account-Id"] != nil && x.name == "Traefik" {
				t.Errorf("%s, %s: the API got %+v and %v, want %+v", x.name, name, seen.Identity, seen.Header, want)
			}
		}

		// Trailers are not headers; nginx drops them, Caddy cannot.
		conn, err := net.Dial("tcp", strings.TrimPrefix(x.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "POST /v1/payouts HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n"+
			"Trailer: X-Keyward-Connected-Account-Id\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Keyward-Connected-Account-Id: org_planted\r\n\r\n", k.Key)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var seen reached
		if err := json.NewDecoder(resp.Body).Decode(&seen); err != nil {
			t.Fatal(err)
		}
		if want := (identity{"org_a", "live", k.APIKeyID, "", true}); seen.Identity != want || x == p.nginx && len(seen.Trailer) > 0 {
			t.Errorf("%s: with a trailer the API got %+v and %v, want %+v", x.name, seen.Identity, seen.Trailer, want)
		}
	}
}

// What a proxy does not pass on, it answers itself.
func testLimits(t *testing.T, p *platform, k key) {
	for _, x := range p.proxies {
		for name, tt := range map[string]struct {
			path, body string
			header     http.Header
			status     []int
			cleaned    string // the path that Traefik makes of it and passes on
		}{
			"a body of 64 KB":           {"/v1/payments", strings.Repeat("x", 60_000), bearer(k.Key).header, []int{200}, ""},
			"a larger one":              {"/v1/payments", strings.Repeat("x", 70_000), bearer(k.Key).header, []int{413, 400}, ""},
			"headers of 20 KiB":         {"/v1/payments", "", bearer(k.Key, "X-Much", strings.Repeat("x", 20<<10)).header, []int{400, 431}, ""},
			"headers of 5 KiB":          {"/v1/payments", "", bearer(k.Key, "X-Much", strings.Repeat("x", 5<<10)).header, []int{200}, ""},
			"another path":              {"/v1/other", "", bearer(k.Key).header, []int{404}, ""},
			"a path that begins alike":  {"/v1/paymentsx", "", nil, []int{401, 404}, ""},
			"the question":              {"/_keyward", "", bearer(k.Key).header, []int{404}, ""},
			"the verification listener": {"/v1/authorize", "", bearer(k.Key).header, []int{404}, ""},
			"a path around the door":    {"/v1/payments/../../v1/organizations", "", bearer(k.Key).header, []int{400}, ""},
			"dots":                      {"/v1/payouts/../payments", "", bearer(k.Key).header, []int{400}, "/v1/payments"},
			"dots at the end":           {"/v1/payments/x/..", "", bearer(k.Key).header, []int{400}, "/v1/payments"},
			"a dot":                     {"/v1/./payments", "", bearer(k.Key).header, []int{400}, "/v1/payments"},
			"encoded dots":              {"/v1/payouts/%2e%2E/payments", "", bearer(k.Key).header, []int{400}, "/v1/payments"},
			"an encoded slash":          {"/v1/payouts/..%2fpayments", "", bearer(k.Key).header, []int{400}, ""},
			"a backslash":               {"/v1/payouts%5c../payments", "", bearer(k.Key).header, []int{400}, ""},
			"dots with a parameter":     {"/v1/payouts/..;/payments", "", bearer(k.Key).header, []int{400}, ""},
			"and an encoded one":        {"/v1/payouts/..%3bx/payments", "", bearer(k.Key).header, []int{400}, ""},
			"a double slash":            {"//v1/payments", "", bearer(k.Key).header, []int{400}, "/v1/payments"},
			"a double slash within":     {"/v1/payments//x", "", bearer(k.Key).header, []int{400}, "/v1/payments/x"},
			"dots in the query":         {"/v1/payments?next=/../a//b%2f", "", bearer(k.Key).header, []int{200}, ""},
			"a file with dots":          {"/v1/payments/..x/.y/a.b", "", bearer(k.Key).header, []int{200}, ""},
			"the door without a key":    {"/v1/payments/x", "", nil, []int{401}, ""},
			"the door, encoded":         {"/v1/%70ayments", "", nil, []int{401}, ""},
			"the other door without it": {"/v1/payouts", "", nil, []int{401}, ""},
		} {
			if x.name == "Traefik" && slices.Equal(tt.status, []int{400}) {
				tt.status = []int{400, 404} // no router has it
				if tt.cleaned != "" {
					tt.status = []int{200}
				}
			}
			before := p.api.reached.Load()
			resp, text, err := p.do("POST", x.url+tt.path, tt.body, tt.header)
			if err != nil {
				t.Errorf("%s, %s: %v", x.name, name, err)
				continue
			}
			ok := false
			for _, s := range tt.status {
				ok = ok || resp.StatusCode == s
			}
			if !ok || (p.api.reached.Load() != before) != (resp.StatusCode == 200) && resp.StatusCode != 413 {
				t.Errorf("%s, %s: %d, want %v; reached the API: %t; %.200s", x.name, name, resp.StatusCode, tt.status, p.api.reached.Load() != before, text)
			}
			if x.name == "Traefik" && tt.cleaned != "" {
				var seen reached
				if err := json.Unmarshal(text, &seen); err != nil || seen.URI != tt.cleaned {
					t.Errorf("%s, %s: the API got the path %q, want %q", x.name, name, seen.URI, tt.cleaned)
				}
			}
		}
	}
}

// V2: a node that is gone costs no request; with all of them gone every request is refused with 503, and the API is not reached. What
// the proxies log meanwhile has no secret in it, wherever a client puts one (V7).
func testNodesGoAway(t *testing.T, p *platform, k key) {
	var proxies []door
	for _, x := range p.proxies {
		proxies = append(proxies, door{x.name, p.askProxy(func() string { return x.url })})
	}
	for _, node := range []int{1, 2} {
		var asking sync.WaitGroup
		var sent atomic.Int64
		gone := make(chan struct{})
		for _, d := range proxies {
			for range 4 {
				asking.Go(func() {
					for after := 0; after < 30; { // requests once the node is gone
						select {
						case <-gone:
							after++
						default:
						}
						if got, err := d.ask(bearer(k.Key), 0); err != nil || !got.accepted {
							t.Errorf("%s, node %d going: %q %v", d.name, node, got.word, err)
							return
						}
						sent.Add(1)
					}
				})
			}
		}
		if err := keywardtest.Poll(func() bool { return sent.Load() > 200 || t.Failed() }, nil); err != nil {
			t.Error(err)
		}
		p.nodes[node].Kill()
		close(gone)
		asking.Wait()
		t.Logf("node %d killed: %d requests, no error", node, sent.Load())
		if t.Failed() {
			return
		}
	}
	p.nodes[0].Kill()
	requests := []request{
		bearer(k.Key),
		{header: with("X-API-Key", k.Key, "Referer", "https://shop.example/?key="+k.Key, "User-Agent", k.Key, "X-Request-Id", k.Key)},
		{header: with("Authorization", "Basic "+k.Key)},
		bearer(k.Key, "Host", k.Key+".example", "Cookie", "session="+k.Key),
	}
	if *traefikProgram == "" {
		proxies = append(proxies, door{"Traefik", p.askTraefik})
	}
	for _, d := range proxies {
		for i, r := range requests {
			before := p.api.reached.Load()
			got, err := d.ask(r, 0)
			if d.name == "Traefik" {
				err = nil // the body is its own
				if *traefikProgram != "" && got.word == "502" {
					got.word = "503" // until its health check has found the nodes gone
				}
			}
			if got.word != "503" || err != nil || p.api.reached.Load() != before {
				t.Errorf("%s, all nodes gone, request %d: %q %v, reached the API: %t", d.name, i, got.word, err, p.api.reached.Load() != before)
			}
		}
		for _, query := range []string{"?key=" + k.Key, "?k=" + strings.Replace(k.Key, "live", "l%69ve", 1), "/" + k.Key} {
			r := bearer(k.Key)
			r.query = query
			if got, _ := d.ask(r, 0); got.accepted || !strings.Contains("400 404 503", got.word) && (d.name != "Traefik" || *traefikProgram == "" || got.word != "502") {
				t.Errorf("%s, all nodes gone, a secret in the URL: %q", d.name, got.word)
			}
		}
	}
}
