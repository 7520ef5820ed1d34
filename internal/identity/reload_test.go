package identity

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// mounted is a file as Kubernetes mounts it: name → ..data/name, and ..data → a folder that is
// replaced as a whole.
type mounted struct {
	t      *testing.T
	folder string
	n      int
}

func mount(t *testing.T, content string) *mounted {
	m := &mounted{t: t, folder: t.TempDir()}
	m.swap(content)
	if err := os.Symlink("..data/file", m.path()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mounted) path() string { return filepath.Join(m.folder, "file") }

func (m *mounted) swap(content string) {
	m.t.Helper()
	must := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	m.n++
	version := filepath.Join(m.folder, "..v"+string(rune('0'+m.n)))
	must(os.Mkdir(version, 0o700))
	must(os.WriteFile(filepath.Join(version, "file"), []byte(content), 0o600))
	// The same time each time: only the file itself tells them apart.
	old := time.Now().Add(-time.Hour)
	must(os.Chtimes(filepath.Join(version, "file"), old, old))
	link := filepath.Join(m.folder, "..data_tmp")
	must(os.Symlink(filepath.Base(version), link))
	must(os.Rename(link, filepath.Join(m.folder, "..data")))
}

func (m *mounted) read() ([]byte, error) { return os.ReadFile(m.path()) }

// replaceFile replaces a file as a whole, and sets its time to an hour ago.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	next := path + ".next"
	old := time.Now().Add(-time.Hour)
	for _, err := range []error{
		os.WriteFile(next, []byte(content), 0o600), os.Chtimes(next, old, old), os.Rename(next, path),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestR11JWKSFile: a key set file is read again when it is replaced, as a mounted secret is too;
// one that cannot be used changes nothing and is in the log once per change.
func TestR11JWKSFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, third := ecKey(t, "1"), ecKey(t, "2"), ecKey(t, "3")
		m := mount(t, keySetJSON(t, first.with(nil)))
		var log logBuffer
		a, err := New(t.Context(), Config{JWKS: m.path(), Logger: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		m.swap(keySetJSON(t, second.with(nil)))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "swapped", "refused", judge(t, a, fresh(t, first)))
		expect(t, "swapped", "accepted", judge(t, a, fresh(t, second)))

		lines := func(what string, bad, again int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			text := log.String()
			if n := strings.Count(text, "key set not read"); n != bad {
				t.Errorf("%s: %d lines say that the file cannot be used, want %d", what, n, bad)
			}
			if n := strings.Count(text, "readable again"); n != again {
				t.Errorf("%s: %d lines say that it is readable again, want %d", what, n, again)
			}
			expect(t, what, "accepted", judge(t, a, fresh(t, second)))
		}
		m.swap("{")
		lines("half written", 1, 0)
		m.swap("[")
		lines("half written in another way", 2, 0)
		m.swap("[")
		lines("the same again", 2, 0)
		if err := os.Remove(m.path()); err != nil {
			t.Fatal(err)
		}
		lines("removed", 3, 0)
		if err := os.Symlink("..data/file", m.path()); err != nil {
			t.Fatal(err)
		}
		lines("bad one back", 4, 0)
		m.swap(keySetJSON(t, second.with(nil), third.with(nil)))
		lines("repaired", 4, 1)
		expect(t, "repaired", "accepted", judge(t, a, fresh(t, third)))
		m.swap("{")
		lines("bad again", 5, 1)
	})
}

// TestR11HS256Secret: the shared secret is read again when its file changes, and then the former
// one is not good any more; one that cannot be used changes nothing and is in the log once per
// change.
func TestR11HS256Secret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secrets := make([]string, 4)
		for i := range secrets {
			secrets[i] = strings.Repeat(string(rune('a'+i)), 32)
		}
		first, second := secretKey([]byte(secrets[0])), secretKey([]byte(secrets[1]))
		third := secretKey([]byte(secrets[2]))
		m := mount(t, secrets[0])
		var log logBuffer
		a, err := New(t.Context(), Config{HS256Read: m.read, Logger: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		expect(t, "first", "accepted", judge(t, a, fresh(t, first)))
		m.swap(secrets[1])
		expect(t, "not read yet", "accepted", judge(t, a, fresh(t, first)))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "former secret", "refused", judge(t, a, fresh(t, first)))
		expect(t, "new secret", "accepted", judge(t, a, fresh(t, second)))

		lines := func(what string, bad, again int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			text := log.String()
			if n := strings.Count(text, "secret not read"); n != bad {
				t.Errorf("%s: %d lines say that the file cannot be used, want %d", what, n, bad)
			}
			if n := strings.Count(text, "readable again"); n != again {
				t.Errorf("%s: %d lines say that it is readable again, want %d", what, n, again)
			}
		}
		m.swap(secrets[2][:31])
		lines("too short", 1, 0)
		expect(t, "too short, last good", "accepted", judge(t, a, fresh(t, second)))
		m.swap("")
		lines("empty", 2, 0)
		if err := os.Remove(m.path()); err != nil {
			t.Fatal(err)
		}
		lines("removed", 3, 0)
		expect(t, "removed, last good", "accepted", judge(t, a, fresh(t, second)))
		if err := os.Symlink("..data/file", m.path()); err != nil {
			t.Fatal(err)
		}
		m.swap(secrets[2])
		lines("repaired", 3, 1)
		expect(t, "repaired", "accepted", judge(t, a, fresh(t, third)))
		expect(t, "repaired, former", "refused", judge(t, a, fresh(t, second)))
		if text := log.String(); strings.Count(text, "secret has changed") != 2 {
			t.Errorf("the log does not say twice that the secret has changed:\n%s", text)
		}
		for i, s := range secrets {
			if strings.Contains(log.String(), s[:31]) {
				t.Errorf("the log holds secret %d", i)
			}
		}

		// What was replaced in place, and on request at once.
		replaceFile(t, m.path(), secrets[3])
		a.Reload()
		synctest.Wait()
		expect(t, "reloaded", "accepted", judge(t, a, fresh(t, secretKey([]byte(secrets[3])))))
		a.Close()
		replaceFile(t, m.path(), secrets[0])
		a.Reload()
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, "closed", "refused", judge(t, a, fresh(t, first)))
	})
}

// TestR11Reload: SIGHUP reads the key set at once, whatever was read a moment ago.
func TestR11Reload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := ecKey(t, "old"), ecKey(t, "next")
		srv := &issuerServer{body: keySetJSON(t, old.with(nil))}
		a := remote(t, srv, nil)
		expect(t, "first", "accepted", judge(t, a, fresh(t, old)))
		srv.set(func(s *issuerServer) { s.body = keySetJSON(t, next.with(nil)) })
		synctest.Wait()
		a.Reload()
		synctest.Wait()
		expectFetches(t, srv, 2)
		hold := make(chan struct{})
		srv.set(func(s *issuerServer) { s.hold = hold })
		a.Reload()
		a.Reload() // while one runs: another follows it
		a.Reload()
		synctest.Wait()
		expectFetches(t, srv, 3)
		close(hold)
		synctest.Wait()
		expectFetches(t, srv, 4)
		a.Close()
		a.Reload()
		synctest.Wait()
		expectFetches(t, srv, 4)
	})
}

// TestR11HS256SecretAtTheStart: what is wrong with the file then is an error.
func TestR11HS256SecretAtTheStart(t *testing.T) {
	gone := func() ([]byte, error) { return nil, errors.New("no such file") }
	short := func() ([]byte, error) { return testSecret[:31], nil }
	good := func() ([]byte, error) { return testSecret, nil }
	for _, tt := range []struct {
		name string
		c    Config
		want string
	}{
		{"unreadable", Config{HS256Read: gone}, "no such file"},
		{"too short", Config{HS256Read: short}, "at least 32 bytes"},
		{"with a secret", Config{HS256Read: good, HS256Secret: testSecret}, "not both"},
		{"with a JWKS", Config{HS256Read: good, JWKS: "https://login.example/"}, "not both"},
	} {
		tt.c.Logger = slog.New(slog.DiscardHandler)
		a, err := New(t.Context(), tt.c)
		if err == nil {
			a.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
