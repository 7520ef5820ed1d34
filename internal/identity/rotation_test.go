package identity

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// heldBack returns how long an answer "unavailable" asks the caller to wait.
func heldBack(t testing.TB, a *Authenticator, token string) time.Duration {
	t.Helper()
	_, err := a.Authenticate(t.Context(), token)
	var hint interface{ RetryAfter() time.Duration }
	if !errors.Is(err, ErrUnavailable) || !errors.As(err, &hint) {
		t.Fatalf("got %v, want ErrUnavailable with a Retry-After", err)
	}
	return hint.RetryAfter()
}

// stranger returns a token that names a key nobody has.
func stranger(t testing.TB, k signingKey, kid string) string {
	t.Helper()
	k.kid = kid
	return fresh(t, k)
}

// fetchTimes records when an issuer was asked, counted from the first time.
type fetchTimes struct {
	mu    sync.Mutex
	first time.Time
	at    []time.Duration
}

func (f *fetchTimes) watch(next http.RoundTripper) *http.Client {
	return &http.Client{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
		f.mu.Lock()
		if f.first.IsZero() {
			f.first = time.Now()
		}
		f.at = append(f.at, time.Since(f.first))
		f.mu.Unlock()
		return next.RoundTrip(r)
	})}
}

// TestC1NewKeyRightAfterAFetch: a rotation at the issuer is seen by the first token of the new key.
func TestC1NewKeyRightAfterAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signers := make([]signingKey, 6)
		for i := range signers {
			signers[i] = ecKey(t, fmt.Sprint(i))
		}
		srv := &issuerServer{body: keySetJSON(t, signers[0].with(nil))}
		a := remote(t, srv, nil)
		expect(t, "first key", "accepted", judge(t, a, fresh(t, signers[0])))
		for i, k := range signers[1:] {
			srv.set(func(s *issuerServer) { s.body = keySetJSON(t, k.with(nil)) })
			expect(t, "new key", "accepted", judge(t, a, fresh(t, k)))
			expectFetches(t, srv, int64(2+i))
		}
	})
}

// TestC1IssuerStartsLater: until the first key set, fetches are 250 ms apart at first and 30 s in
// the end, and a 503 says when the next one is.
func TestC1IssuerStartsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil)), fail: errors.New("connection refused")}
		var times fetchTimes
		a, err := New(t.Context(), Config{
			JWKS: testKeySetURL, Client: times.watch(srv), Logger: new(logBuffer).logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		synctest.Wait()
		for range 9 {
			wait := heldBack(t, a, fresh(t, k))
			before := srv.hits.Load()
			time.Sleep(wait - time.Nanosecond)
			synctest.Wait()
			if srv.hits.Load() != before {
				t.Errorf("fetched before the %v that Retry-After said", wait)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if srv.hits.Load() != before+1 {
				t.Errorf("%d fetches after the %v that Retry-After said, want 1", srv.hits.Load()-before, wait)
			}
		}
		want := []time.Duration{0}
		for gap := 250 * time.Millisecond; len(want) < 10; gap = min(2*gap, 30*time.Second) {
			want = append(want, want[len(want)-1]+gap)
		}
		if diff := cmp.Diff(want, times.at); diff != "" {
			t.Errorf("fetches (-want +got):\n%s", diff)
		}
		srv.set(func(s *issuerServer) { s.fail = nil })
		time.Sleep(heldBack(t, a, fresh(t, k)))
		synctest.Wait()
		expect(t, "issuer there", "accepted", judge(t, a, fresh(t, k)))
	})
}

// TestC1SlowIssuerBacksOff: a fetch that ends by its time limit is followed by the same gaps.
func TestC1SlowIssuerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &issuerServer{hang: true}
		var times fetchTimes
		a, err := New(t.Context(), Config{
			JWKS: testKeySetURL, Client: times.watch(srv), Logger: new(logBuffer).logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		time.Sleep(17 * time.Second)
		synctest.Wait()
		const ms = time.Millisecond
		want := []time.Duration{0, 5250 * ms, 10750 * ms, 16750 * ms}
		if diff := cmp.Diff(want, times.at); diff != "" {
			t.Errorf("fetches (-want +got):\n%s", diff)
		}
	})
}

// TestC1UnknownKidFlood: 10,000 unknown kids cost the issuer five fetches and then one in 30 s.
// Known keys do not notice, and what is remembered has a bound.
func TestC1UnknownKidFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		good := fresh(t, k)
		expect(t, "known key", "accepted", judge(t, a, good))
		parts := strings.SplitN(good, ".", 2)
		names := 0
		flood := func(each int) (refusals, unavailable int64) {
			var group sync.WaitGroup
			var r, u atomic.Int64
			for g := range 20 {
				from := names + g*each
				group.Go(func() {
					for i := range each {
						h := k.header(t, map[string]any{"kid": fmt.Sprintf("kid-%d", from+i)})
						switch got := judge(t, a, b64([]byte(h))+"."+parts[1]); got {
						case "refused":
							r.Add(1)
						case "unavailable":
							u.Add(1)
						default:
							t.Errorf("unknown kid: %s", got)
							return
						}
					}
				})
			}
			group.Wait()
			names += 20 * each
			expect(t, "known key", "accepted", judge(t, a, good))
			return r.Load(), u.Load()
		}
		refusals, unavailable := flood(500)
		expectFetches(t, srv, 1+5)
		if refusals < 5 || refusals+unavailable != 10_000 {
			t.Errorf("%d rejected and %d unavailable", refusals, unavailable)
		}
		if wait := heldBack(t, a, stranger(t, k, "one more")); wait <= 0 || wait > 30*time.Second {
			t.Errorf("Retry-After %v", wait)
		}
		time.Sleep(30 * time.Second)
		flood(500)
		expectFetches(t, srv, 1+5+1)
		// An hour of floods.
		for range 120 {
			time.Sleep(30 * time.Second)
			flood(5)
		}
		if n := srv.hits.Load(); n > 1+5+1+120+6 {
			t.Errorf("%d fetches in an hour of floods", n)
		}
		for i := range 10_000 {
			a.cache.remember(nameOf("ES256", fmt.Sprint("missing ", i)))
		}
		if n := len(a.cache.misses); n > maxMisses {
			t.Errorf("%d missing keys are kept, want %d at most", n, maxMisses)
		}
	})
}

// TestC1NewKeyDuringAFlood: while random kids use up the quick looks, a token of a new key gets
// 503, not 401, and is accepted when Retry-After says.
func TestC1NewKeyDuringAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, next := ecKey(t, "known"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		for i := range 5 {
			expect(t, "quick look", "refused", judge(t, a, stranger(t, k, fmt.Sprint("random ", i))))
		}
		expectFetches(t, srv, 6)
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, k.with(nil), next.with(nil)) })
		wait := heldBack(t, a, fresh(t, next))
		if wait != 30*time.Second {
			t.Errorf("Retry-After %v, want 30s", wait)
		}
		time.Sleep(10 * time.Second)
		if wait := heldBack(t, a, fresh(t, next)); wait != 20*time.Second {
			t.Errorf("10 s later: Retry-After %v, want 20s", wait)
		}
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		expectFetches(t, srv, 6)
		time.Sleep(20 * time.Second)
		// An attacker is faster. The fetch is for all.
		judge(t, a, stranger(t, k, "random again"))
		expect(t, "new key", "accepted", judge(t, a, fresh(t, next)))
		expectFetches(t, srv, 7)
	})
}

// TestC1StaleKid: a client that repeats one withdrawn key gets 401, is not looked for each time,
// and leaves quick looks for others. One that the issuer publishes late is found.
func TestC1StaleKid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, next := ecKey(t, "known"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		var times fetchTimes
		a, err := New(t.Context(), Config{
			JWKS: testKeySetURL, Client: times.watch(srv), Logger: new(logBuffer).logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		for range 100 {
			expect(t, "stale key", "refused", judge(t, a, stranger(t, k, "stale")))
			time.Sleep(100 * time.Millisecond)
		}
		want := []time.Duration{0, 0, time.Second, 3 * time.Second, 7 * time.Second}
		if diff := cmp.Diff(want, times.at); diff != "" {
			t.Errorf("fetches (-want +got):\n%s", diff)
		}
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, k.with(nil), next.with(nil)) })
		expect(t, "another new key", "accepted", judge(t, a, fresh(t, next)))
	})
	synctest.Test(t, func(t *testing.T) {
		k, next := ecKey(t, "known"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		expect(t, "key that is not published yet", "refused", judge(t, a, fresh(t, next)))
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, k.with(nil), next.with(nil)) })
		time.Sleep(time.Second)
		expect(t, "published", "accepted", judge(t, a, fresh(t, next)))
	})
}

// TestC1TokenDuringAFetch: a fetch that began before the token came proves nothing against it.
func TestC1TokenDuringAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, next := ecKey(t, "known"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))

		hold := make(chan struct{})
		srv.set(func(s *issuerServer) { s.hold = hold })
		var group sync.WaitGroup
		group.Go(func() { expect(t, "unknown key", "refused", judge(t, a, stranger(t, k, "random"))) })
		synctest.Wait() // the fetch has the old answer now
		both := keySetJSON(t, k.with(nil), next.with(nil))
		srv.set(func(s *issuerServer) { s.body, s.hold = both, nil })
		for range 100 {
			group.Go(func() { expect(t, "new key", "accepted", judge(t, a, fresh(t, next))) })
		}
		synctest.Wait()
		close(hold)
		group.Wait()
		expectFetches(t, srv, 3)
	})
}

// TestC1RefreshFails: a token whose key cannot be looked for is not judged: 503, not 401.
func TestC1RefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, next := ecKey(t, "known"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		srv.set(func(s *issuerServer) {
			s.body, s.fail = keySetJSON(t, k.with(nil), next.with(nil)), errors.New("connection reset")
		})
		if wait := heldBack(t, a, fresh(t, next)); wait != 250*time.Millisecond {
			t.Errorf("Retry-After %v, want 250ms", wait)
		}
		expectFetches(t, srv, 2)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := srv.hits.Load(); n < 100 || n > 130 {
			t.Errorf("%d fetches in an hour without an answer, want one in 30 s", n)
		}
		expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		wait := heldBack(t, a, fresh(t, next))
		srv.set(func(s *issuerServer) { s.fail = nil })
		time.Sleep(wait)
		synctest.Wait()
		expect(t, "issuer back", "accepted", judge(t, a, fresh(t, next)))
	})
}

// TestR3IssuerOverHTTP: the same with a real server, which starts late, rotates, goes away and
// comes back.
func TestR3IssuerOverHTTP(t *testing.T) {
	first, second, third := rsaKey(t, "1"), ecKey(t, "2"), edKey(t, "3")
	var body atomic.Pointer[string] // nil = the connection is cut
	publish := func(jwks ...any) { s := keySetJSON(t, jwks...); body.Store(&s) }
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := body.Load()
		if s == nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, *s)
	}))
	defer issuer.Close()
	a := authenticator(t, Config{JWKS: issuer.URL + "/jwks", Now: time.Now})
	// accepted asks until a token is accepted, as a client that minds Retry-After.
	accepted := func(what string, k signingKey) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for judge(t, a, fresh(t, k)) != "accepted" {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not accepted in 20 s", what)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	expect(t, "nobody there", "unavailable", judge(t, a, fresh(t, first)))
	publish(first.with(nil))
	accepted("first key", first)
	publish(second.with(nil))
	expect(t, "new key, at once", "accepted", judge(t, a, fresh(t, second)))
	expect(t, "withdrawn key", "refused", judge(t, a, fresh(t, first)))
	body.Store(nil)
	expect(t, "known key, issuer away", "accepted", judge(t, a, fresh(t, second)))
	expect(t, "unknown key, issuer away", "unavailable", judge(t, a, fresh(t, third)))
	publish(second.with(nil), third.with(nil))
	accepted("third key", third)
}
