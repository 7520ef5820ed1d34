package identity

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// aged returns an Authenticator with an age limit for the key set.
func aged(t *testing.T, srv *issuerServer, limit time.Duration, log *logBuffer) *Authenticator {
	t.Helper()
	a, err := New(t.Context(), Config{
		JWKS: testKeySetURL, JWKSMaxAge: limit, Client: srv.client(), Logger: log.logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// TestC1KeySetMaxAge: a key set that cannot be read again is trusted for its age limit and no
// longer: then tokens get 503, not 401, until the issuer is back.
func TestC1KeySetMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		var log logBuffer
		a := aged(t, srv, 24*time.Hour, &log)
		expect(t, "first", "accepted", judge(t, a, fresh(t, k)))
		srv.set(func(s *issuerServer) { s.fail = errors.New("connection refused") })
		time.Sleep(24 * time.Hour)
		expect(t, "at the limit", "accepted", judge(t, a, fresh(t, k)))
		time.Sleep(time.Second)
		if wait := heldBack(t, a, fresh(t, k)); wait <= 0 || wait > 30*time.Second {
			t.Errorf("Retry-After %v", wait)
		}
		expect(t, "unknown key", "unavailable", judge(t, a, stranger(t, k, "other")))
		expect(t, "not even a token", "refused", judge(t, a, "x.y.z"))
		if n := strings.Count(log.String(), "too old"); n > 1 {
			t.Errorf("%d lines say that the key set is too old", n)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "too old"); n != 1 {
			t.Errorf("an hour later: %d lines say that the key set is too old, want 1", n)
		}
		wait := heldBack(t, a, fresh(t, k))
		srv.set(func(s *issuerServer) { s.fail = nil })
		time.Sleep(wait)
		synctest.Wait()
		expect(t, "issuer back", "accepted", judge(t, a, fresh(t, k)))
	})
}

// TestC1KeySetStaysFresh: while the issuer answers, the limit never matters, however short; without
// one, a key set is trusted for ever.
func TestC1KeySetStaysFresh(t *testing.T) {
	for _, limit := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			k := ecKey(t, "known")
			var log logBuffer
			a := aged(t, &issuerServer{body: keySetJSON(t, k.with(nil))}, limit, &log)
			for range 200 {
				time.Sleep(limit/10 + time.Second)
				if got := judge(t, a, fresh(t, k)); got != "accepted" {
					t.Fatalf("limit %v: %s", limit, got)
				}
				if age := a.KeySetAge(); age > min(limit/4, 10*time.Minute) {
					t.Fatalf("limit %v: age %v", limit, age)
				}
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil))}
		var log logBuffer
		a := aged(t, srv, 0, &log)
		expect(t, "first", "accepted", judge(t, a, fresh(t, k)))
		srv.set(func(s *issuerServer) { s.fail = errors.New("connection refused") })
		time.Sleep(1000 * time.Hour)
		expect(t, "no limit", "accepted", judge(t, a, fresh(t, k)))
	})
}

// TestC1KeySetMaxAgeOfAFile: a file that is gone, or cannot be used, ages as a URL does; one that
// is there and unchanged does not.
func TestC1KeySetMaxAgeOfAFile(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"removed": os.Remove,
		"emptied": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		synctest.Test(t, func(t *testing.T) {
			k := ecKey(t, "known")
			path := writeFile(t, keySetJSON(t, k.with(nil)))
			a, err := New(t.Context(), Config{
				JWKS: path, JWKSMaxAge: time.Hour, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			time.Sleep(2 * time.Hour)
			expect(t, name+": unchanged", "accepted", judge(t, a, fresh(t, k)))
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			time.Sleep(59 * time.Minute)
			expect(t, name+": within the limit", "accepted", judge(t, a, fresh(t, k)))
			time.Sleep(2 * time.Minute)
			expect(t, name+": beyond the limit", "unavailable", judge(t, a, fresh(t, k)))
			if err := os.WriteFile(path, []byte(keySetJSON(t, k.with(nil))), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			expect(t, name+": back", "accepted", judge(t, a, fresh(t, k)))
		})
	}
}

// TestC1KeySetAgeMetric: the age counts from the latest good read, or from the start if there is
// none.
func TestC1KeySetAgeMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := ecKey(t, "known")
		srv := &issuerServer{body: keySetJSON(t, k.with(nil)), fail: errors.New("connection refused")}
		var log logBuffer
		a := aged(t, srv, 0, &log)
		registry := prometheus.NewRegistry()
		registry.MustRegister(a.Collectors()...)
		check := func(what string, want float64) {
			t.Helper()
			families, err := registry.Gather()
			if err != nil || len(families) != 1 || families[0].GetName() != "keyward_jwks_age_seconds" {
				t.Fatalf("gathered %v, %v", families, err)
			}
			if got := families[0].GetMetric()[0].GetGauge().GetValue(); got != want {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		time.Sleep(30 * time.Second)
		check("never read", 30)
		srv.set(func(s *issuerServer) { s.fail = nil })
		time.Sleep(1750 * time.Millisecond) // the eighth attempt is 31.75 s after the first
		synctest.Wait()
		check("read", 0)
		time.Sleep(9 * time.Minute)
		check("nine minutes later", 540)
		time.Sleep(time.Minute)
		synctest.Wait()
		check("read again", 0)
	})
	if n := len(authenticator(t, Config{HS256Secret: testSecret}).Collectors()); n != 0 {
		t.Errorf("%d collectors with a shared secret, want none", n)
	}
}
