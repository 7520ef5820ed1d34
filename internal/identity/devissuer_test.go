package identity

import (
	"crypto/elliptic"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

func openDev(t testing.TB, folder string) *DevIssuer {
	t.Helper()
	d, err := OpenDevIssuer(folder)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// devAuthenticator accepts what d issues.
func devAuthenticator(t testing.TB, d *DevIssuer) *Authenticator {
	t.Helper()
	c := d.Config()
	c.Logger = slog.New(slog.DiscardHandler)
	a, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// R1, R4: the development issuer's tokens are accepted while they are good, and go on being accepted
// when the issuer is opened again.
func TestR1DevIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := filepath.Join(t.TempDir(), ".keyward", "issuer")
		d := openDev(t, folder)
		a := devAuthenticator(t, d)
		token, err := d.Issue("ada", "org_demo", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Authenticate(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(keys.Principal{User: "ada", OrganizationID: "org_demo"}, got); diff != "" {
			t.Errorf("principal (-want +got):\n%s", diff)
		}

		again, err := openDev(t, folder).Issue("bob", "org_sandbox", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Authenticate(t.Context(), again); err != nil {
			t.Errorf("opened again: %v", err)
		}
		time.Sleep(2*time.Minute - time.Second)
		if _, err := a.Authenticate(t.Context(), again); err != nil {
			t.Errorf("within the skew: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := a.Authenticate(t.Context(), again); !refused(t, again, err) {
			t.Errorf("expired: got %v, want a refusal", err)
		}

		stranger, err := openDev(t, t.TempDir()).Issue("ada", "org_demo", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Authenticate(t.Context(), stranger); !refused(t, stranger, err) {
			t.Errorf("another folder's issuer: got %v, want a refusal", err)
		}
	})
}

// TestR1DevIssuerFiles: the folder is private, and the key set holds nothing private.
func TestR1DevIssuerFiles(t *testing.T) {
	folder := filepath.Join(t.TempDir(), ".keyward")
	d := openDev(t, folder)
	modes := make(map[string]string)
	info, err := os.Stat(folder)
	if err != nil {
		t.Fatal(err)
	}
	modes["."] = info.Mode().Perm().String()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		modes[e.Name()] = info.Mode().Perm().String()
	}
	want := map[string]string{".": "-rwx------", DevKeyFile: "-rw-------", devKeySetFile: "-rw-------"}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}

	data, err := os.ReadFile(d.Config().JWKS)
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(data, &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 1 {
		t.Fatalf("%d keys", len(set.Keys))
	}
	var members []string
	for _, name := range []string{"alg", "crv", "d", "kid", "kty", "use", "x", "y"} {
		if _, found := set.Keys[0][name]; found {
			members = append(members, name)
		}
	}
	if diff := cmp.Diff([]string{"alg", "crv", "kid", "kty", "use", "x", "y"}, members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// TestR4TwoProcessesAtOnce: whoever opens a new folder first makes the key, and all use it.
func TestR4TwoProcessesAtOnce(t *testing.T) {
	folder := t.TempDir()
	tokens := make([]string, 16)
	var group sync.WaitGroup
	for i := range tokens {
		group.Go(func() {
			d, err := OpenDevIssuer(folder)
			if err != nil {
				t.Error(err)
				return
			}
			if tokens[i], err = d.Issue("ada", "org_demo", time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	a := devAuthenticator(t, openDev(t, folder))
	for _, token := range tokens {
		if _, err := a.Authenticate(t.Context(), token); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("files left behind: %v", entries)
	}
}

// TestR1DevIssuerBadFolder: a key that others may read, or that is none, is not used.
func TestR1DevIssuerBadFolder(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, key string)
		want string
	}{
		{"readable by the group", func(t *testing.T, key string) { chmod(t, key, 0o640) }, "others may read it"},
		{"readable by all", func(t *testing.T, key string) { chmod(t, key, 0o604) }, "others may read it"},
		{"empty", func(t *testing.T, key string) { overwrite(t, key, nil) }, "not a PEM file"},
		{"no PEM", func(t *testing.T, key string) { overwrite(t, key, []byte("key")) }, "not a PEM file"},
		{"no key in it", func(t *testing.T, key string) {
			overwrite(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{0x30, 0}}))
		}, "not a P-256 private key"},
		{"a folder", func(t *testing.T, key string) {
			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(key, 0o700); err != nil {
				t.Fatal(err)
			}
		}, DevKeyFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder := t.TempDir()
			openDev(t, folder)
			tt.make(t, filepath.Join(folder, DevKeyFile))
			if _, err := OpenDevIssuer(folder); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	overwrite(t, file, nil)
	if _, err := OpenDevIssuer(file); err == nil {
		t.Error("a file was taken for a folder")
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestR4Issue: what would be refused is not issued, and two tokens are never the same.
func TestR4Issue(t *testing.T) {
	d := openDev(t, t.TempDir())
	for _, tt := range []struct {
		user, organization string
		ttl                time.Duration
		want               string // what the error names; empty = issued
	}{
		{"ada", "org_demo", time.Second, ""},
		{"ada", "org_demo", 365 * 24 * time.Hour, ""},
		{"", "org_demo", time.Hour, "user"},
		{"ada\n", "org_demo", time.Hour, "user"},
		{strings.Repeat("a", 256), "org_demo", time.Hour, "user"},
		{"ada", "", time.Hour, "organization"},
		{"ada", "org demo", time.Hour, "organization"},
		{"ada", "org_demo", 0, "ttl"},
		{"ada", "org_demo", -time.Hour, "ttl"},
		{"ada", "org_demo", time.Millisecond, "ttl"},
	} {
		token, err := d.Issue(tt.user, tt.organization, tt.ttl)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%q, %q, %v: %v", tt.user, tt.organization, tt.ttl, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), tt.want+":") || token != "" {
			t.Errorf("%q, %q, %v: got %v, want an error that names %s", tt.user, tt.organization, tt.ttl, err, tt.want)
		}
	}
	one, err := d.Issue("ada", "org_demo", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	two, err := d.Issue("ada", "org_demo", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := d.Config()
	c.RoleClaim, c.Logger = devRoleClaim, slog.New(slog.DiscardHandler)
	a, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	withRoles, err := d.Issue("ada", "org_demo", time.Hour, "admin", "key manager")
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string][]string{one: nil, withRoles: {"admin", "key manager"}} {
		got, err := a.Authenticate(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Roles); diff != "" {
			t.Errorf("roles (-want +got):\n%s", diff)
		}
	}
	payload := func(token string) string { return strings.Split(token, ".")[1] }
	if payload(one) == payload(two) {
		t.Error("two tokens with one jti")
	}
	key, err := loadDevKey(filepath.Join(filepath.Dir(d.keySetPath), DevKeyFile))
	if err != nil || key.Curve != elliptic.P256() {
		t.Errorf("key: %v", err)
	}
}
