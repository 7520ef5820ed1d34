package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testKeySetURL = "https://login.example/.well-known/jwks.json?client=cleartext"

// remote returns an Authenticator that fetches its keys from srv, on the clock of the test's bubble.
func remote(t *testing.T, srv *issuerServer, log *logBuffer) *Authenticator {
	t.Helper()
	c := Config{JWKS: testKeySetURL, Client: srv.client(), Issuer: testIssuer, Audience: testAudience, Logger: slog.New(slog.DiscardHandler)}
	if log != nil {
		c.Logger = log.logger()
	}
	a, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// fresh returns a token that is good for an hour on the bubble's clock.
func fresh(t testing.TB, k signingKey) string {
	t.Helper()
	now := time.Now()
	return k.token(t, claims(map[string]any{"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}))
}

// judge says what became of a token: "accepted", "refused" or "unavailable".
func judge(t testing.TB, a *Authenticator, token string) string {
	t.Helper()
	_, err := a.Authenticate(t.Context(), token)
	switch {
	case err == nil:
		return "accepted"
	case refused(t, token, err):
		return "refused"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	}
	t.Errorf("unexpected error: %v", err)
	return ""
}

func expect(t testing.TB, what, want, got string) {
	t.Helper()
	if want != got {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func expectFetches(t testing.TB, srv *issuerServer, want int64) {
	t.Helper()
	if n := srv.hits.Load(); n != want {
		t.Errorf("%d fetches, want %d", n, want)
	}
}

// TestC1KeyRotation: a new key is found by its kid, and a withdrawn one is forgotten.
func TestC1KeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := ecKey(t, "old"), edKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, old.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "first key", "accepted", judge(t, a, fresh(t, old)))
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, next.with(nil)) })
		expect(t, "old key, nobody named the new one", "accepted", judge(t, a, fresh(t, old)))
		expectFetches(t, srv, 1)
		expect(t, "new key", "accepted", judge(t, a, fresh(t, next)))
		expect(t, "withdrawn key", "refused", judge(t, a, fresh(t, old)))
		expectFetches(t, srv, 3)
	})
}

// TestC1BackgroundRefresh: without any unknown kid, a withdrawn key is forgotten after ten minutes.
func TestC1BackgroundRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := ecKey(t, "old"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, old.with(nil), next.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "key", "accepted", judge(t, a, fresh(t, old)))
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, next.with(nil)) })
		time.Sleep(10*time.Minute - time.Second)
		expect(t, "withdrawn key before the refresh", "accepted", judge(t, a, fresh(t, old)))
		expectFetches(t, srv, 1)
		time.Sleep(2 * time.Second)
		expectFetches(t, srv, 2)
		expect(t, "withdrawn key", "refused", judge(t, a, fresh(t, old)))
		expect(t, "kept key", "accepted", judge(t, a, fresh(t, next)))
	})
}

// TestC1IssuerAway: away at the start, back, lost later.
func TestC1IssuerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, other := ecKey(t, "known"), ecKey(t, "other")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil)), fail: errors.New("connection refused")}
		var log logBuffer
		a := remote(t, srv, &log)
		for range 5 {
			expect(t, "no key set yet", "unavailable", judge(t, a, fresh(t, k)))
			time.Sleep(time.Second)
		}
		expect(t, "not even a token", "refused", judge(t, a, "x.y.z"))
		expectFetches(t, srv, 5)

		// It comes back without anybody asking.
		srv.set(func(s *issuerServer) { s.fail = nil })
		time.Sleep(4 * time.Second)
		expectFetches(t, srv, 6)
		expect(t, "key set read", "accepted", judge(t, a, fresh(t, k)))
		expectFetches(t, srv, 6)

		srv.set(func(s *issuerServer) { s.fail = errors.New("connection refused") })
		time.Sleep(24 * time.Hour)
		expect(t, "known key, issuer lost", "accepted", judge(t, a, fresh(t, k)))
		expect(t, "unknown key, issuer lost", "unavailable", judge(t, a, fresh(t, other)))

		text := log.String()
		for _, want := range []string{"have_keys=false", "connection refused", "readable again", "have_keys=true"} {
			if !strings.Contains(text, want) {
				t.Errorf("the log does not say %q", want)
			}
		}
		if strings.Contains(text, "cleartext") {
			t.Error("the log holds the URL's query")
		}
		if n := strings.Count(text, "\n"); n > 5 {
			t.Errorf("%d log lines: a lasting fault is logged once", n)
		}
	})
}

// TestC1IssuerSlow: a fetch ends after 5 s, and a token whose key is known never waits for one.
func TestC1IssuerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, other := ecKey(t, "known"), ecKey(t, "other")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil)), hang: true}
		a := remote(t, srv, nil)
		start := time.Now()
		expect(t, "first fetch hangs", "unavailable", judge(t, a, fresh(t, k)))
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("waited %v, want 5s", d)
		}
		srv.set(func(s *issuerServer) { s.hang = false })
		time.Sleep(time.Minute)
		expect(t, "key", "accepted", judge(t, a, fresh(t, k)))

		srv.set(func(s *issuerServer) { s.hang = true })
		time.Sleep(time.Minute)
		start = time.Now()
		var group sync.WaitGroup
		group.Go(func() {
			expect(t, "unknown key", "unavailable", judge(t, a, fresh(t, other)))
			if d := time.Since(start); d != 5*time.Second {
				t.Errorf("an unknown key waited %v, want 5s", d)
			}
		})
		synctest.Wait() // the fetch hangs now
		for range 100 {
			expect(t, "known key", "accepted", judge(t, a, fresh(t, k)))
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("a known key waited %v", d)
		}
		group.Wait()
	})
}

// TestC1BadKeySets: a document that is no key set leaves the one before in force.
func TestC1BadKeySets(t *testing.T) {
	k := ecKey(t, "known")
	good := keySetJSON(t, k.with(nil))
	many := make([]any, maxKeys+1)
	for i := range many {
		many[i] = k.with(map[string]any{"kid": fmt.Sprint(i)})
	}
	for _, tt := range []struct {
		name, body string
		code       int
	}{
		{name: "10 MB", body: `{"keys":[],"x":"` + strings.Repeat("x", 10<<20) + `"}`},
		{name: "one byte too long", body: good + strings.Repeat(" ", maxKeySetBytes+1-len(good))},
		{name: "101 keys", body: keySetJSON(t, many...)},
		{name: "cut off", body: good[:len(good)-1]},
		{name: "empty", body: ""},
		{name: "HTML", body: "<!doctype html><title>login</title>"},
		{name: "array", body: "[]"},
		{name: "null", body: "null"},
		{name: "no keys", body: "{}"},
		{name: "keys is no array", body: `{"keys":{}}`},
		{name: "keys is null", body: `{"keys":null}`},
		{name: "keys twice", body: `{"keys":[],"keys":[]}`},
		{name: "Keys", body: `{"Keys":[]}`},
		{name: "trailing data", body: good + "{}"},
		{name: "invalid UTF-8", body: `{"keys":[],"x":"` + "\xff" + `"}`},
		{name: "deep", body: strings.Repeat("[", 20_000)},
		{name: "404", body: `{"keys":[]}`, code: 404},
		{name: "500", body: `{"keys":[]}`, code: 500},
		{name: "204", code: 204},
		{name: "302", body: `{"keys":[]}`, code: 302},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := &issuerServer{body: good}
				var log logBuffer
				a := remote(t, srv, &log)
				expect(t, "before", "accepted", judge(t, a, fresh(t, k)))
				srv.set(func(s *issuerServer) { s.body, s.code = tt.body, tt.code })
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := srv.hits.Load(); n < 5 {
					t.Errorf("%d fetches in an hour", n)
				}
				expect(t, "after", "accepted", judge(t, a, fresh(t, k)))
				if !strings.Contains(log.String(), "the last good one is kept") {
					t.Error("the log says nothing")
				}
			})
		})
	}
	// The largest ones allowed are taken.
	for name, body := range map[string]string{
		"512 KiB":  good + strings.Repeat(" ", maxKeySetBytes-len(good)),
		"100 keys": keySetJSON(t, append(many[:maxKeys-1:maxKeys-1], k.with(nil))...),
	} {
		synctest.Test(t, func(t *testing.T) {
			a := remote(t, &issuerServer{body: body}, nil)
			expect(t, name, "accepted", judge(t, a, fresh(t, k)))
		})
	}
}

// TestC1AllKeysWithdrawn: a well-formed set without a usable key is the issuer's word.
func TestC1AllKeysWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "before", "accepted", judge(t, a, fresh(t, k)))
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t) })
		time.Sleep(11 * time.Minute)
		expect(t, "after", "refused", judge(t, a, fresh(t, k)))
	})
}

// countedReader is an endless body that counts what was taken of it.
type countedReader struct{ n *atomic.Int64 }

func (r countedReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	r.n.Add(int64(len(p)))
	return len(p), nil
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestC1EndlessKeySet(t *testing.T) {
	var n atomic.Int64
	client := &http.Client{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(countedReader{&n}), Request: r}, nil
	})}
	read := urlReader(testKeySetURL, client)
	if _, err := read(t.Context()); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v, want the size refused", err)
	}
	if got := n.Load(); got > maxKeySetBytes+1<<10 {
		t.Errorf("%d bytes were taken", got)
	}
}

// TestC1RedirectIsNotFollowed: ASVS 1.3.6. The address an issuer points to is not asked, whatever the client's own policy.
func TestC1RedirectIsNotFollowed(t *testing.T) {
	k := ecKey(t, "known")
	var hits, redirects atomic.Int64
	canary := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = io.WriteString(w, keySetJSON(t, k.with(nil)))
	}))
	defer canary.Close()
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		redirects.Add(1)
		http.Redirect(w, r, canary.URL, http.StatusFound)
	}))
	defer issuer.Close()
	permissive := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return nil },
	}
	for _, client := range []*http.Client{nil, permissive} {
		a := authenticator(t, Config{JWKS: issuer.URL, Client: client})
		expect(t, "redirected", "unavailable", judge(t, a, k.token(t, claims(nil))))
		a.Close()
	}
	if hits.Load() != 0 || redirects.Load() != 2 {
		t.Errorf("the issuer was asked %d times, the address it points to %d times; want 2 and 0", redirects.Load(), hits.Load())
	}
	if permissive.CheckRedirect == nil {
		t.Error("the caller's client was changed")
	}
}

// TestR3JWKSOverHTTP: the client of its own fetches from a real server on loopback.
func TestR3JWKSOverHTTP(t *testing.T) {
	k := rsaKey(t, "r")
	var accept atomic.Value
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accept.Store(r.Header.Get("Accept"))
		_, _ = io.WriteString(w, keySetJSON(t, k.with(nil)))
	}))
	defer issuer.Close()
	a := authenticator(t, Config{JWKS: issuer.URL + "/jwks"})
	expect(t, "first token, while the first fetch runs", "accepted", judge(t, a, k.token(t, claims(nil))))
	if accept.Load() != "application/jwk-set+json, application/json" {
		t.Errorf("Accept: %v", accept.Load())
	}
}

// TestC1CloseDuringFetch: closing does not wait for a slow issuer, twice is once, and what is known stays known.
func TestC1CloseDuringFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "key", "accepted", judge(t, a, fresh(t, k)))
		srv.set(func(s *issuerServer) { s.hang = true })
		time.Sleep(time.Minute)
		var group sync.WaitGroup
		group.Go(func() { expect(t, "unknown key", "unavailable", judge(t, a, fresh(t, ecKey(t, "other")))) })
		synctest.Wait()
		start := time.Now()
		a.Close()
		a.Close()
		group.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("closing took %v", d)
		}
		before := srv.hits.Load()
		time.Sleep(time.Hour)
		expect(t, "unknown key, closed", "unavailable", judge(t, a, fresh(t, ecKey(t, "other"))))
		expect(t, "known key, closed", "accepted", judge(t, a, fresh(t, k)))
		expectFetches(t, srv, before)
	})
}

// TestC1ContextEndsRefresh: cancelling the context of New ends the background work.
func TestC1ContextEndsRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := New(ctx, Config{JWKS: testKeySetURL, Client: srv.client(), Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		before := srv.hits.Load()
		time.Sleep(time.Hour)
		expectFetches(t, srv, before)
	}) // a goroutine still running would be reported here
}

// TestR3JWKSFile: a file is read again when it changes, and a bad one changes nothing.
func TestR3JWKSFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, third := ecKey(t, "first"), ecKey(t, "second"), ecKey(t, "third")
		path := writeFile(t, keySetJSON(t, first.with(nil)))
		a, err := New(t.Context(), Config{JWKS: path, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		expect(t, "first", "accepted", judge(t, a, fresh(t, first)))

		write := func(content string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(keySetJSON(t, first.with(nil), second.with(nil)))
		time.Sleep(time.Second)
		expect(t, "added, found by its kid", "accepted", judge(t, a, fresh(t, second)))

		// Replaced as a whole, as a rename or a mounted secret does it.
		next := path + ".next"
		if err := os.WriteFile(next, []byte(keySetJSON(t, second.with(nil))), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		expect(t, "removed", "refused", judge(t, a, fresh(t, first)))
		expect(t, "kept", "accepted", judge(t, a, fresh(t, second)))

		for name, content := range map[string]string{
			"half written":  keySetJSON(t, third.with(nil))[:50],
			"emptied":       "",
			"with weak key": keySetJSON(t, third.with(nil), weakRSA(t)),
			"too large":     strings.Repeat(" ", maxKeySetBytes+1),
		} {
			write(content)
			time.Sleep(3 * time.Second)
			expect(t, name+", new key", "unavailable", judge(t, a, fresh(t, third)))
			expect(t, name+", old key", "accepted", judge(t, a, fresh(t, second)))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		expect(t, "file removed", "accepted", judge(t, a, fresh(t, second)))
		write(keySetJSON(t, third.with(nil)))
		time.Sleep(3 * time.Second)
		expect(t, "file back", "accepted", judge(t, a, fresh(t, third)))
		expect(t, "file back, old key", "refused", judge(t, a, fresh(t, second)))
	})
}

// TestR3JWKSFileIsReadWhenItChanges: an unchanged file is not read, unless it was written so lately that
// a second write could hide behind the same time.
func TestR3JWKSFileIsReadWhenItChanges(t *testing.T) {
	path := writeFile(t, "one")
	stamp := time.Now().Add(-time.Hour)
	touch := func(at time.Time) {
		t.Helper()
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	touch(stamp)
	now := stamp.Add(time.Second)
	read := fileReader(path, func() time.Time { return now })
	check := func(want string) {
		t.Helper()
		data, err := read(t.Context())
		if err != nil && !errors.Is(err, errUnchanged) {
			t.Fatal(err)
		}
		if string(data) != want {
			t.Errorf("read %q, want %q", data, want)
		}
	}
	check("one")
	check("one") // written 1 s ago: read again
	now = stamp.Add(time.Minute)
	check("one")
	check("")
	touch(stamp.Add(time.Second))
	check("one")
	check("")
	if err := os.WriteFile(path, []byte("longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	touch(stamp.Add(time.Second))
	check("longer")
	check("")
	// Another file of the same size and time in its place.
	if err := os.WriteFile(path+".next", []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
	touch(stamp.Add(time.Second))
	check("second")
	check("")
}

// weakRSA returns a public key of 1024 bits, which must not be trusted.
func weakRSA(t testing.TB) map[string]any {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 1023)
	low, err := rand.Int(rand.Reader, n)
	if err != nil {
		t.Fatal(err)
	}
	n.Or(n, low).SetBit(n, 0, 1)
	return map[string]any{"kty": "RSA", "kid": "weak", "alg": "RS256", "use": "sig", "n": b64(n.Bytes()), "e": "AQAB"}
}

// TestC1KeySetEntries: which entries of a set become keys, and for which algorithm.
func TestC1KeySetEntries(t *testing.T) {
	rs, es, ed := rsaKey(t, "r"), ecKey(t, "e"), edKey(t, "d")
	private := newRSAKey()
	for _, tt := range []struct {
		name string
		jwk  any
		want string // the algorithm; empty = left out
		weak bool
	}{
		{name: "RSA", jwk: rs.with(nil), want: "RS256"},
		{name: "EC", jwk: es.with(nil), want: "ES256"},
		{name: "OKP", jwk: ed.with(nil), want: "EdDSA"},
		{name: "RSA with all", jwk: rs.with(map[string]any{"alg": "RS256", "use": "sig", "key_ops": []string{"verify"}, "x5t": "AAAA", "x5c": []string{"bad"}, "x5u": "::"}), want: "RS256"},
		{name: "key_ops sign and verify", jwk: es.with(map[string]any{"key_ops": []string{"sign", "verify"}}), want: "ES256"},
		{name: "unknown member", jwk: es.with(map[string]any{"ext": true, "iat": 1}), want: "ES256"},

		{name: "use enc", jwk: es.with(map[string]any{"use": "enc"})},
		{name: "use SIG", jwk: es.with(map[string]any{"use": "SIG"})},
		{name: "use empty", jwk: es.with(map[string]any{"use": ""})},
		{name: "use 1", jwk: es.with(map[string]any{"use": 1})},
		{name: "key_ops encrypt", jwk: es.with(map[string]any{"key_ops": []string{"encrypt"}})},
		{name: "key_ops sign", jwk: es.with(map[string]any{"key_ops": []string{"sign"}})},
		{name: "key_ops empty", jwk: es.with(map[string]any{"key_ops": []string{}})},
		{name: "key_ops string", jwk: es.with(map[string]any{"key_ops": "verify"})},
		{name: "kid number", jwk: es.with(map[string]any{"kid": 1})},
		{name: "alg of another type", jwk: es.with(map[string]any{"alg": "RS256"})},
		{name: "alg PS256", jwk: rs.with(map[string]any{"alg": "PS256"})},
		{name: "alg RS512", jwk: rs.with(map[string]any{"alg": "RS512"})},
		{name: "alg RSA-OAEP", jwk: rs.with(map[string]any{"alg": "RSA-OAEP"})},
		{name: "alg ES384", jwk: es.with(map[string]any{"alg": "ES384"})},
		{name: "alg HS256", jwk: es.with(map[string]any{"alg": "HS256"})},
		{name: "alg none", jwk: es.with(map[string]any{"alg": "none"})},
		{name: "alg 1", jwk: es.with(map[string]any{"alg": 1})},

		{name: "symmetric", jwk: map[string]any{"kty": "oct", "k": b64(testSecret), "alg": "HS256"}},
		{name: "symmetric in an EC key", jwk: es.with(map[string]any{"k": b64(testSecret)})},
		{name: "private RSA", jwk: rs.with(map[string]any{
			"d": b64(private.D.Bytes()), "p": b64(private.Primes[0].Bytes()), "q": b64(private.Primes[1].Bytes()),
		})},
		{name: "private, any value", jwk: es.with(map[string]any{"d": ""})},
		{name: "private null", jwk: json.RawMessage(strings.TrimSuffix(mustJSON(t, es.with(nil)), "}") + `,"d":null}`)},

		{name: "RSA 1024", jwk: weakRSA(t), weak: true},
		{name: "RSA exponent 1", jwk: rs.with(map[string]any{"e": "AQ"})},
		{name: "RSA exponent 2", jwk: rs.with(map[string]any{"e": "Ag"}), weak: true},
		{name: "RSA exponent 65536", jwk: rs.with(map[string]any{"e": "AQAA"}), weak: true},
		{name: "RSA exponent too large", jwk: rs.with(map[string]any{"e": b64(slices.Repeat([]byte{0xff}, 20))})},
		{name: "RSA without modulus", jwk: rs.with(map[string]any{"n": nil})},
		{name: "RSA 16384", jwk: rs.with(map[string]any{"n": b64(slices.Repeat([]byte{0xff}, 2048))})},
		{name: "RSA modulus 0", jwk: rs.with(map[string]any{"n": ""}), weak: true},
		{name: "off the curve", jwk: es.with(map[string]any{"x": b64(make([]byte, 32)), "y": b64(make([]byte, 32))})},
		{name: "short coordinate", jwk: es.with(map[string]any{"x": b64(make([]byte, 31))})},
		{name: "curve P-384", jwk: es.with(map[string]any{"crv": "P-384"})},
		{name: "curve secp256k1", jwk: es.with(map[string]any{"crv": "secp256k1"})},
		{name: "Ed25519 of 31 bytes", jwk: ed.with(map[string]any{"x": b64(make([]byte, 31))})},
		{name: "Ed25519 of low order", jwk: ed.with(map[string]any{"x": b64(make([]byte, 32))})},
		{name: "X25519", jwk: ed.with(map[string]any{"crv": "X25519"})},
		{name: "Ed448", jwk: ed.with(map[string]any{"crv": "Ed448"})},
		{name: "no kty", jwk: es.with(map[string]any{"kty": nil})},
		{name: "kty of another", jwk: es.with(map[string]any{"kty": "RSA"})},
		{name: "kty unknown", jwk: es.with(map[string]any{"kty": "AKP"})},
		{name: "member twice", jwk: json.RawMessage(strings.TrimSuffix(mustJSON(t, es.with(nil)), "}") + `,"kid":"other"}`)},
		{name: "null", jwk: nil},
		{name: "string", jwk: "key"},
		{name: "array", jwk: []any{}},
		{name: "empty", jwk: map[string]any{}},
	} {
		set, left, err := parseKeySet([]byte(keySetJSON(t, tt.jwk)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := ""
		if len(set.keys) > 0 {
			got = string(set.keys[0].algorithm)
		}
		if got != tt.want || len(left)+len(set.keys) != 1 {
			t.Errorf("%s: taken for %q, %v, want %q", tt.name, got, left, tt.want)
		}
		if weak := errors.Is(errors.Join(left...), errWeakKey); weak != tt.weak {
			t.Errorf("%s: weak = %v, want %v (%v)", tt.name, weak, tt.weak, left)
		}
	}

	// One bad entry does not cost the others.
	synctest.Test(t, func(t *testing.T) {
		srv := &issuerServer{body: keySetJSON(t, weakRSA(t), nil, map[string]any{"kty": "oct", "kid": "e", "k": b64(testSecret)}, es.with(nil), ed.with(map[string]any{"use": "enc"}))}
		var log logBuffer
		a := remote(t, srv, &log)
		expect(t, "good entry", "accepted", judge(t, a, fresh(t, es)))
		shared := secretKey(testSecret)
		shared.kid = "e"
		expect(t, "signed with a symmetric key of the set", "refused", judge(t, a, fresh(t, shared)))
		expect(t, "key for encryption", "refused", judge(t, a, fresh(t, ed)))
		if text := log.String(); !strings.Contains(text, "weak key") || !strings.Contains(text, "left_out=4") {
			t.Errorf("the log does not say what was left out:\n%s", text)
		}
	})
}

// TestR3BadSettings: what New refuses, without repeating the setting.
func TestR3BadSettings(t *testing.T) {
	es := ecKey(t, "e")
	missing := filepath.Join(t.TempDir(), "secret-place", "jwks.json")
	unreadable := t.TempDir()
	for _, tt := range []struct {
		name string
		c    Config
		want string
	}{
		{"nothing", Config{}, "set a JWKS or an HS256 secret"},
		{"both", Config{JWKS: "https://login.example/", HS256Secret: testSecret}, "not both"},
		{"both, secret empty", Config{JWKS: "https://login.example/", HS256Secret: []byte{}}, "not both"},
		{"empty secret", Config{HS256Secret: []byte{}}, "at least 32 bytes"},
		{"31 bytes", Config{HS256Secret: testSecret[:31]}, "at least 32 bytes"},
		{"http elsewhere", Config{JWKS: "http://login.example/secret-place"}, "http is for loopback only"},
		{"http, metadata address", Config{JWKS: "http://169.254.169.254/secret-place"}, "http is for loopback only"},
		{"http, loopback look-alike", Config{JWKS: "http://localhost.secret-place.example/"}, "http is for loopback only"},
		{"http, 127 look-alike", Config{JWKS: "http://127.0.0.1.secret-place.example/"}, "http is for loopback only"},
		{"http, unspecified address", Config{JWKS: "http://0.0.0.0/secret-place"}, "http is for loopback only"},
		{"ftp", Config{JWKS: "ftp://127.0.0.1/secret-place"}, "https URL"},
		{"file URL", Config{JWKS: "file://localhost/secret-place"}, "https URL"},
		{"no host", Config{JWKS: "https:///secret-place"}, "no host"},
		{"user in the URL", Config{JWKS: "https://me:secret-place@login.example/"}, "must not hold a user"},
		{"no URL", Config{JWKS: "https://login.example:secret-place/%zz"}, "not a URL"},
		{"no such file", Config{JWKS: missing}, "no such file"},
		{"folder", Config{JWKS: unreadable}, "not a regular file"},
		{"device", Config{JWKS: os.DevNull}, "not a regular file"},
		{"file without JSON", Config{JWKS: writeFile(t, "secret-place")}, "not one JSON object"},
		{"file too large", Config{JWKS: writeFile(t, strings.Repeat(" ", maxKeySetBytes+1))}, "larger than"},
		{"file without keys", Config{JWKS: writeFile(t, keySetJSON(t))}, "no public key"},
		{"file with a symmetric key alone", Config{JWKS: writeFile(t, keySetJSON(t, map[string]any{"kty": "oct", "k": b64(testSecret)}))}, "no public key"},
		{"file with a weak key", Config{JWKS: writeFile(t, keySetJSON(t, es.with(nil), weakRSA(t)))}, "key 1: weak key: RSA with fewer than 2048 bits"},
	} {
		tt.c.Logger = slog.New(slog.DiscardHandler)
		a, err := New(t.Context(), tt.c)
		if err == nil {
			a.Close()
			t.Errorf("%s: no error", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret-place") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	// These are fine, though nobody answers there.
	for _, address := range []string{
		"https://login.example/jwks", "HTTPS://LOGIN.EXAMPLE/jwks", "https://10.0.0.1:8443/", "http://localhost:1/", "http://LOCALHOST:1/",
		"http://127.0.0.1:1/", "http://127.9.9.9:1/", "http://[::1]:1/",
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := &issuerServer{fail: errors.New("connection refused")}
			a, err := New(t.Context(), Config{JWKS: address, Client: srv.client(), Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatalf("%s: %v", address, err)
			}
			defer a.Close()
			expect(t, address, "unavailable", judge(t, a, fresh(t, es)))
		})
	}
}

// TestR3Defaults: a JWKS is all that must be set.
func TestR3Defaults(t *testing.T) {
	k := ecKey(t, "e")
	a, err := New(t.Context(), Config{JWKS: writeFile(t, keySetJSON(t, k.with(nil)))})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got, err := a.Authenticate(t.Context(), fresh(t, k))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantPrincipal, got); diff != "" {
		t.Errorf("principal (-want +got):\n%s", diff)
	}
}

// TestC1RSASizes: the smallest accepted modulus has 2048 bits, the largest 4096.
func TestC1RSASizes(t *testing.T) {
	odd := func(bits int) []byte {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return n.SetBit(n, 0, 1).Bytes()
	}
	got := make(map[int]bool)
	for _, bits := range []int{512, 1024, 2047, 2048, 3072, 4096, 4097, 8192} {
		jwk := map[string]any{"kty": "RSA", "n": b64(odd(bits)), "e": "AQAB"}
		set, _, err := parseKeySet([]byte(keySetJSON(t, jwk)))
		if err != nil {
			t.Fatal(err)
		}
		got[bits] = len(set.keys) == 1
	}
	want := map[int]bool{512: false, 1024: false, 2047: false, 2048: true, 3072: true, 4096: true, 4097: false, 8192: false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("accepted sizes (-want +got):\n%s", diff)
	}
}
