package server

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// watchedStore tells of what is asked of the store, and can fail or hold the lists.
type watchedStore struct {
	keys.Store
	calls atomic.Int64 // of any method below
	pages func(ctx context.Context, q keys.KeyQuery) error

	mu     sync.Mutex
	limits []int // of the pages asked for; guarded by mu
}

func (w *watchedStore) Keys(ctx context.Context, q keys.KeyQuery) ([]keys.UsedKey, error) {
	w.calls.Add(1)
	w.mu.Lock()
	w.limits = append(w.limits, q.Limit)
	w.mu.Unlock()
	if w.pages != nil {
		if err := w.pages(ctx, q); err != nil {
			return nil, err
		}
	}
	return w.Store.Keys(ctx, q)
}

func (w *watchedStore) Organization(ctx context.Context, id string) (keys.Organization, error) {
	w.calls.Add(1)
	return w.Store.Organization(ctx, id)
}

func (w *watchedStore) Key(ctx context.Context, id string) (keys.Key, error) {
	w.calls.Add(1)
	return w.Store.Key(ctx, id)
}

func (w *watchedStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	w.calls.Add(1)
	return w.Store.Write(ctx, first, fn)
}

func (w *watchedStore) Record(ctx context.Context, e keys.AuditEntry) error {
	w.calls.Add(1)
	return w.Store.Record(ctx, e)
}

func (w *watchedStore) Now(ctx context.Context) (time.Time, error) {
	w.calls.Add(1)
	return w.Store.Now(ctx)
}

func watched(t *testing.T, pages func(context.Context, keys.KeyQuery) error, change ...func(*setup)) (*fixture, *watchedStore) {
	w := &watchedStore{pages: pages}
	f := newFixture(t, append(change, func(s *setup) {
		s.store = func(inner keys.Store) keys.Store { w.Store = inner; return w }
	})...)
	return f, w
}

// addKeys gives an organization n revoked keys with names of the given length.
func (f *fixture) addKeys(organization string, n, nameLength int) {
	f.t.Helper()
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	_, err := f.store.Write(f.t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		for i := range n {
			b := make([]byte, 25)
			rand.Read(b)
			for j := range b {
				b[j] = alphabet[b[j]&31]
			}
			k := keys.Key{
				ID: "key_0" + string(b), OrganizationID: organization, Environment: keys.Test, Hint: "hint",
				Name: strings.Repeat("🔑", nameLength), CreatedAt: tx.Now().Add(-time.Duration(i/3) * time.Second),
				CreatedBy: "u", State: keys.StateRevoked, RevokedAt: tx.Now(),
			}
			rand.Read(k.Digest[:])
			if err := tx.InsertKey(ctx, k); err != nil {
				return err
			}
			e := keys.AuditEntry{Action: keys.ActCreate, TargetID: k.ID, Actor: "u", Outcome: keys.Done, Revision: tx.Revision()}
			if err := tx.Audit(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// C33: a list without limit answers all keys and is read in pages, so that memory is bounded.
func TestC33AllKeysInPages(t *testing.T) {
	f, w := watched(t, nil)
	for _, n := range []int{0, 1, 100, 101, 250} {
		organization := fmt.Sprint("org_", n)
		f.addKeys(organization, n, 5)
		user := f.token("u", organization)
		all := api.KeyList{Keys: []api.ListedKey{}}
		for query := "?limit=100"; query != ""; {
			page := decode[api.KeyList](t, f.do(ask{method: "GET", url: f.keysURL() + query, user: user}).body)
			all.Keys = append(all.Keys, page.Keys...)
			if query = ""; page.NextCursor != nil {
				query = "?limit=100&cursor=" + *page.NextCursor
			}
		}
		got := f.do(ask{method: "GET", url: f.keysURL(), user: user})
		if got.status != 200 || got.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d keys: %d %s", n, got.status, got.header.Get("Content-Type"))
		}
		one := decode[api.KeyList](t, got.body)
		if diff := cmp.Diff(all.Keys, one.Keys); diff != "" || len(one.Keys) != n || one.HasMore != nil || strings.HasSuffix(got.body, "\n") {
			t.Errorf("%d keys: got %d (-pages +list):\n%s", n, len(one.Keys), diff)
		}
	}
	for _, limit := range w.limits {
		if limit < 1 || limit > 101 {
			t.Fatalf("the store was asked for a page of %d keys, want 1 to 101", limit)
		}
	}
}

// C33: four lists of one user run at the same time; a fifth is 429, and another user's is not.
func TestC33FourListsAtOnce(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	f, _ := watched(t, func(context.Context, keys.KeyQuery) error {
		entered <- struct{}{}
		<-release
		return nil
	})
	defer func() { close(release) }()
	get := func(user string, code chan<- int) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", f.keysURL(), nil)
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Authorization", "Bearer "+user)
		go func() {
			resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
			if err != nil {
				code <- 0
				return
			}
			resp.Body.Close()
			code <- resp.StatusCode
		}()
	}
	user, codes := f.token("u", "org_a"), make(chan int, 10)
	for range 4 {
		get(user, codes)
	}
	<-entered
	eventually(t, "four lists", func() bool { return f.service.Lists() == 4 })
	got := f.do(ask{method: "GET", url: f.keysURL(), user: user})
	got.refused(t, http.StatusTooManyRequests, api.TooManyRequests, "")
	if after, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || after < 1 {
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
	get(f.token("v", "org_a"), codes)
	<-entered // the first user has one read at a time, so this is the other's
	for range 5 {
		release <- struct{}{}
	}
	for range 5 {
		if code := <-codes; code != 200 {
			t.Errorf("a list ended with %d", code)
		}
	}
	if n := f.service.Lists(); n != 0 {
		t.Errorf("%d lists are still counted", n)
	}
}

// C33: what fails once the answer has begun does not look like a complete answer.
func TestC33ABrokenListIsNotComplete(t *testing.T) {
	f, _ := watched(t, func(_ context.Context, q keys.KeyQuery) error {
		if q.Before != nil {
			return errors.New("the disk is away")
		}
		return nil
	})
	f.addKeys("org_a", 150, 5)
	r, err := http.NewRequestWithContext(t.Context(), "GET", f.keysURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+f.token("u", "org_a"))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("the client sees %v, want the connection to end", err)
	}
	eventually(t, "logged", func() bool {
		return len(f.logged(map[string]any{"msg": "request", "reason": "the list ended early"})) == 1
	})
}

// C33: a list ends when its client hangs up.
func TestC33AListEndsWithItsClient(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan error)
	f, _ := watched(t, func(ctx context.Context, _ keys.KeyQuery) error {
		close(entered)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.public, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /api/v1/auth/api-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", f.token("u", "org_a"))
	<-entered
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the list is still read")
	}
	eventually(t, "logged", func() bool {
		return len(f.logged(map[string]any{"msg": "request", "reason": "the client hung up", "level": "INFO"})) == 1
	})
}

// C33: a list ends when its client stops reading, and then holds nothing.
func TestC33AClientThatStopsReading(t *testing.T) {
	f, w := watched(t, nil, func(s *setup) { s.server.ListStall = 100 * time.Millisecond })
	f.addKeys("org_a", 4_000, 255)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.public, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /api/v1/auth/api-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", f.token("u", "org_a"))
	eventually(t, "ended", func() bool {
		return len(f.logged(map[string]any{"msg": "request", "reason": "the client stopped reading the list"})) == 1
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.limits); n == 0 || n >= 40 {
		t.Errorf("%d pages were read for a client that read nothing", n)
	}
	if n := f.service.Lists(); n != 0 {
		t.Errorf("%d lists are still counted", n)
	}
}

// C32: a user's budget. What is over it reaches no database, says when to come back, and costs
// nobody else anything.
func TestC32UserBudget(t *testing.T) {
	f, w := watched(t, nil, func(s *setup) { s.server.UserRequestsPerMinute = 3 })
	k := f.create("u", "org_a", `{"key_name":"k"}`)
	user := f.token("u", "org_a")
	bad := ask{method: "POST", url: f.keysURL(), user: user, body: `{`}
	for range 2 {
		f.do(bad).refused(t, 400, api.InvalidRequest, "")
	}
	before := w.calls.Load()
	for _, r := range []ask{
		bad,
		{method: "GET", url: f.keysURL(), user: user},
		{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/roll", user: user},
		{method: "POST", url: f.keysURL(), user: user, body: `{"key_name":"k"}`, header: http.Header{"Content-Type": {"text/plain"}}},
	} {
		got := f.do(r)
		got.refused(t, http.StatusTooManyRequests, api.TooManyRequests, "")
		if after, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || after < 1 || after > 20 {
			t.Errorf("Retry-After %q, want 1 to 20", got.header.Get("Retry-After"))
		}
	}
	if n := w.calls.Load() - before; n != 0 {
		t.Errorf("the store was asked %d times for what is over the budget", n)
	}
	if got := f.do(ask{method: "GET", url: f.keysURL(), user: f.token("v", "org_a")}); got.status != 200 {
		t.Errorf("another user's list: %d", got.status)
	}

	// A revoke that changes something passes; what changes nothing does not.
	revoke := ask{method: "POST", url: f.keysURL() + "/" + k.APIKeyID + "/revoke", user: user}
	for _, id := range []string{"key_01hm6q9zt0e5v8s3d7k2x4w1np", "x"} {
		other := revoke
		other.url = f.keysURL() + "/" + id + "/revoke"
		f.do(other).refused(t, http.StatusTooManyRequests, api.TooManyRequests, "")
	}
	if got := f.do(revoke); got.status != 200 {
		t.Fatalf("a revoke that changes something: %d %s", got.status, got.body)
	}
	before = w.calls.Load()
	f.do(revoke).refused(t, http.StatusTooManyRequests, api.TooManyRequests, "")
	if n := w.calls.Load() - before; n != 0 {
		t.Errorf("a repeated revoke asked the store %d times", n)
	}
	if got := f.do(ask{method: "POST", url: f.verification + "/v1/verify", body: `{"key":"` + k.Key + `"}`}); !strings.Contains(got.body, `"revoked"`) {
		t.Errorf("after the revoke: %s", got.body)
	}
}

// C32: of a rejection that repeats there is one entry when it happens and one a minute with the
// count.
func TestC32RepeatedRejectionsAreOneEntry(t *testing.T) {
	f := newFixture(t)
	user, other := f.token("u", "org_a"), f.token("v", "org_a")
	for i := range 50 {
		f.do(ask{method: "POST", url: f.keysURL(), user: user, body: fmt.Sprintf(`{"oops_%c":1}`, 'a'+i%26)})
	}
	f.do(ask{method: "POST", url: f.keysURL(), user: other, body: `{`})
	if err := f.service.WriteRepeats(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	entries, err := f.store.Audit(t.Context(), 0, 100, sqlstore.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprint(e.Actor, " ", e.Action, " ", e.Outcome, " ", e.Detail))
	}
	want := []string{
		"u key.create invalid_request oops_a", "v key.create invalid_request ",
		"u key.create invalid_request repeated 49 times within a minute",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

// A caller that nobody knows cannot fill the log: some lines of a kind pass, the others are
// counted.
func TestRejectedStrangersAreSampled(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		code   api.Code
		set    func(*setup)
	}{
		{"rejected tokens", 401, api.InvalidToken, func(*setup) {}},
		{"tokens that cannot be judged", 503, api.Unavailable, func(s *setup) { s.server.Authenticator = noKeySet{} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, tt.set)
			const n = 300
			for range n {
				f.do(ask{method: "GET", url: f.keysURL(), header: http.Header{"Authorization": {"Bearer x"}}}).
					refused(t, tt.status, tt.code, "")
			}
			count := func() (lines, leftOut int) {
				lines = len(f.logged(map[string]any{"msg": "request", "status": float64(tt.status)}))
				for _, l := range f.logged(map[string]any{
					"msg": "requests left out of the log", "listener": "public", "code": string(tt.code),
				}) {
					leftOut += int(l["left_out"].(float64))
				}
				return lines, leftOut
			}
			eventually(t, "all accounted for", func() bool { lines, leftOut := count(); return lines+leftOut == n })
			if lines, _ := count(); lines > 100 {
				t.Errorf("%d lines for %d requests", lines, n)
			}
			metrics := f.do(ask{method: "GET", url: f.admin + "/metrics"}).body
			want := fmt.Sprintf(`route="/api/v1/auth/api-keys",status="%d"} %d`, tt.status, n)
			if !strings.Contains(metrics, want) {
				t.Errorf("the metrics do not count all: no %s", want)
			}
		})
	}
}

// idle opens n connections that send nothing, and returns a function that says how many are open.
func idle(t *testing.T, address string, n int) (open func() int) {
	var left atomic.Int64
	for range n {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		left.Add(1)
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			left.Add(-1)
		}()
	}
	return func() int { return int(left.Load()) }
}

// R3: a listener's budget of connections. Idle ones make room for new ones, the oldest first.
func TestR3IdleConnectionsMakeRoom(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits ConnectionLimits
		want   int
	}{
		{"total", ConnectionLimits{Total: 20}, 20},
		{"of one source", ConnectionLimits{Total: 100, PerSource: 10}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			url := f.serve(NewHTTPServer(f.server.Verification(), Limits{Connections: tt.limits}, f.server.cfg.Logger))
			address := strings.TrimPrefix(url, "http://")
			open := idle(t, address, 50)
			eventually(t, "down to the budget", func() bool { return open() <= tt.want })
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for range 3 {
				resp, err := client.Get(url + "/livez")
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
			if n := open(); n < tt.want-3 {
				t.Errorf("%d idle connections are left, want about %d", n, tt.want)
			}
		})
	}
}

// R3: a connection with a request under way is not closed to make room; without room the new one
// is.
func TestR3BusyConnectionsStay(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 2)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
	})
	f := newFixture(t)
	url := f.serve(NewHTTPServer(h, Limits{Connections: ConnectionLimits{Total: 2}}, f.server.cfg.Logger))
	address := strings.TrimPrefix(url, "http://")
	var busy []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		<-entered
		busy = append(busy, conn)
	}
	late, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := late.Read(make([]byte, 1)); err == nil {
		t.Error("the connection without room was answered")
	}
	close(release)
	for _, conn := range busy {
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("a request under way: %v", err)
		}
	}
}

// R3: a connection whose request only waits to be rejected makes room, too.
func TestR3SlowRejectionsMakeRoom(t *testing.T) {
	f := newFixture(t, func(s *setup) { s.server.UserRequestsPerMinute = 1 })
	url := f.serve(NewHTTPServer(f.server.Public(), Limits{Connections: ConnectionLimits{Total: 2}}, f.server.cfg.Logger))
	user := f.token("u", "org_a")
	f.server.users.take("u", time.Now())
	for range 200 {
		f.server.slowUsers.delay("u", time.Now())
	}
	for range 2 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET /api/v1/auth/api-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", user)
	}
	client := &http.Client{Transport: &http.Transport{}, Timeout: 3 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url + "/docs/style.css")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// R3: who opens connections as fast as they are closed is closed without a request being read.
func TestR3ChurnIsBounded(t *testing.T) {
	f := newFixture(t)
	limits := Limits{Connections: ConnectionLimits{Total: 100, PerSource: 5}}
	url := f.serve(NewHTTPServer(f.server.Verification(), limits, f.server.cfg.Logger))
	open := idle(t, strings.TrimPrefix(url, "http://"), 300)
	eventually(t, "down to the budget", func() bool { return open() <= 5 })
	if n := len(f.logged(map[string]any{"msg": "connections closed to make room: the listener's limit is reached"})); n != 1 {
		t.Errorf("%d lines in the log, want 1", n)
	}
}

// R3: how descriptors are divided.
func TestR3ConnectionShares(t *testing.T) {
	for _, tt := range []struct {
		descriptors, perListener int
		listeners                []string
		want                     map[string]ConnectionLimits
	}{
		{1024, 0, []string{"public", "verification"}, map[string]ConnectionLimits{"public": {384, 192}, "verification": {384, 0}}},
		{1024, 0, []string{"public", "verification", "admin", "extauthz"}, map[string]ConnectionLimits{
			"public": {307, 153}, "verification": {307, 0}, "admin": {76, 0}, "extauthz": {76, 0}}},
		{1 << 20, 0, []string{"public", "verification", "admin"}, map[string]ConnectionLimits{
			"public": {4096, 2048}, "verification": {16384, 0}, "admin": {1024, 0}}},
		{1024, 100, []string{"public", "verification"}, map[string]ConnectionLimits{"public": {100, 50}, "verification": {100, 0}}},
		{1024, 400, []string{"public", "verification"}, nil},
	} {
		got, ok := ConnectionShares(tt.descriptors, tt.perListener, tt.listeners)
		if diff := cmp.Diff(tt.want, got); diff != "" || ok != (tt.want != nil) {
			t.Errorf("%d descriptors, %d each: ok %v\n%s", tt.descriptors, tt.perListener, ok, diff)
		}
	}
}

// What a listener holds for a connection before it knows the caller is bounded, whatever is sent.
func TestBytesHeldForAStranger(t *testing.T) {
	const connections, perConnection = 200, 96 << 10
	header := "POST /api/v1/auth/api-keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	for _, tt := range []struct{ name, send string }{
		{"nothing", ""},
		{"half a header", header + "X-Fill: " + strings.Repeat("x", 15<<10)},
		{"headers without an end", header + strings.Repeat("X-Fill: "+strings.Repeat("x", 1000)+"\r\n", 100)},
		{"a body that is not read", header + "Authorization: Bearer none\r\nContent-Length: 16000000\r\n\r\n" + strings.Repeat("x", 1<<20)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixtureAlone(t)
			send := []byte(tt.send)
			for _, url := range []string{f.public, f.verification, f.admin} {
				before := heldBytes()
				for range connections {
					conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					go func() { _, _ = conn.Write(send) }()
				}
				// What is sent is read, or kept out, while this is measured.
				most := int64(0)
				for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); runtime.Gosched() {
					most = max(most, heldBytes()-before)
				}
				if got := most / connections; got > perConnection {
					t.Errorf("%s holds %d bytes for a connection, want at most %d", url, got, perConnection)
				}
			}
		})
	}
}

func heldBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
