package sqlstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// refused wants Open to fail with one line that says part.
func refused(t *testing.T, o sqlstore.Options, part string) {
	t.Helper()
	s, err := sqlstore.Open(t.Context(), o)
	if err == nil {
		s.Close()
		t.Fatalf("Open succeeded, want an error with %q", part)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("Open: %v; want %q in it", err, part)
	}
}

func TestOpenRefusesURLsItDoesNotKnow(t *testing.T) {
	ring := newRing(t, newLine(t, "m1"))
	for url, part := range map[string]string{
		"":                      "must start with",
		"mysql://host/db":       "must start with",
		"keyward.db":            "must start with",
		"sqlite:":               "sqlite:PATH",
		"sqlite::memory:":       "sqlite:PATH",
		"sqlite:file:x?mode=rw": "sqlite:PATH",
		"postgres://db.example/x?sslmode=disable": "not be encrypted",
		"postgres://h:x/y":                        "cannot be read",
	} {
		refused(t, sqlstore.Options{URL: url, Ring: ring}, part)
	}
	refused(t, sqlstore.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "x")}, "no master keys")
}

func TestSQLiteFilesAreTheOwnersAlone(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "new ?#%41", "deep")
	path := filepath.Join(folder, "key ward?mode=memory.db")
	o := sqlstore.Options{URL: "sqlite:" + path, Ring: newRing(t, newLine(t, "m1"))}
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateActive))
	check := func(path string, want os.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	check(folder, 0o700)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		check(path+suffix, 0o600)
	}
	if files, err := os.ReadDir(folder); err != nil || len(files) != 3 {
		t.Errorf("the folder has %v, %v; want the database's three files", files, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// One that others could read is closed to them.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err = sqlstore.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check(path, 0o600)
}

// The lock is on the file itself: no name of it leads a second process in, nor does the removal
// of any other file.
func TestSQLiteOpensForOneProcess(t *testing.T) {
	const refusal = "another process has this database open"
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	path := at("keyward.db")
	o := sqlstore.Options{URL: "sqlite:" + path, Ring: newRing(t, newLine(t, "m1"))}
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(path, at("symbolic.db")), os.Link(path, at("hard.db"))); err != nil {
		t.Fatal(err)
	}
	stray, err := filepath.Glob(at("*lock*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stray {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"keyward.db", "symbolic.db", "hard.db"} {
		refused(t, withURL(o, "sqlite:"+at(name)), refusal)
	}
	if _, _, err := sqlstore.Migrate(t.Context(), o); err == nil {
		t.Error("Migrate went around the process that has the database open")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = sqlstore.Open(t.Context(), o); err != nil {
		t.Fatalf("after the first one closed it: %v", err)
	}
	s.Close()
}

func TestMigrate(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			o := sqlstore.Options{URL: newDatabase(t, engine)}
			from, to, err := sqlstore.Migrate(t.Context(), o)
			if err != nil || from != 0 || to < 1 {
				t.Fatalf("Migrate = %d, %d, %v", from, to, err)
			}
			again, same, err := sqlstore.Migrate(t.Context(), o)
			if err != nil || again != to || same != to {
				t.Errorf("Migrate again = %d, %d, %v", again, same, err)
			}
			o.Ring = newRing(t, newLine(t, "m1"))
			s, err := sqlstore.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if s.Engine() != engine {
				t.Errorf("Engine = %s", s.Engine())
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			// A schema from a newer program.
			raw := rawConnection(t, o.URL)
			if _, err := raw.ExecContext(t.Context(), `UPDATE goose_db_version SET version_id = 999 WHERE version_id = $1`, to); err != nil {
				t.Fatal(err)
			}
			refused(t, o, "newer program")
		})
	}
}

func TestManyOpenANewPostgresDatabaseAtOnce(t *testing.T) {
	o := sqlstore.Options{URL: pgtest.URL(t), Ring: newRing(t, newLine(t, "m1"))}
	stores := make([]*sqlstore.Store, 8)
	var group sync.WaitGroup
	for i := range stores {
		group.Go(func() {
			var err error
			if stores[i], err = sqlstore.Open(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i, s := range stores {
		if s == nil {
			continue
		}
		defer s.Close()
		if got := keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateRevoked)); got != int64(i+1) {
			t.Errorf("store %d wrote revision %d", i, got)
		}
	}
}

func TestPostgresStandbyIsRefused(t *testing.T) {
	standby, primary := pgtest.NewServer(t), pgtest.NewServer(t)
	standby.Stop(t)
	signal := filepath.Join(standby.Folder(), "standby.signal")
	if err := os.WriteFile(signal, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	standby.Restart(t)
	o := sqlstore.Options{URL: standby.URL(), Ring: newRing(t, newLine(t, "m1"))}
	refused(t, o, "hot standby")

	// With both hosts in the URL the one that takes writes is found.
	o.URL = "postgres://postgres@" + standby.Address() + "," + primary.Address() + "/postgres?sslmode=disable"
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateActive))
}

// C23: nothing is read from a standby, also when it is the first host of the URL: what was answered need not be there yet.
func TestC23NothingIsReadFromAStandby(t *testing.T) {
	primary := pgtest.NewServer(t)
	o := sqlstore.Options{URL: primary.URL(), Ring: newRing(t, newLine(t, "m1"))}
	first, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	k := keystest.NewKey("org", keys.StateActive)
	keystest.MustInsert(t, first, k)
	standby := primary.NewStandby(t, false)
	standby.WaitReplayed(t)
	standby.Withhold(t)

	o.URL = "postgres://postgres@" + standby.Address() + "," + primary.Address() + "/postgres?sslmode=disable"
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k.State = keys.StateRevoked
	commit := keystest.MustWrite(t, s, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, k) })
	if got, err := s.Key(t.Context(), k.ID); err != nil || got.State != keys.StateRevoked {
		t.Errorf("Key: %q, %v", got.State, err)
	}
	if got, err := s.Changes(t.Context(), keys.Mark{}, 100); err != nil || got.Mark.Revision != commit {
		t.Errorf("Changes up to %d of %d, %v", got.Mark.Revision, commit, err)
	}
}

func TestDurability(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		found, err := f.Durability(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byName := make(map[string]sqlstore.Finding)
		for _, x := range found {
			byName[x.Name] = x
			if x.Value == "" && x.Name != "synchronous_standby_names" {
				t.Errorf("%s has no value", x.Name)
			}
			if !x.OK && x.Advice == "" {
				t.Errorf("%s is not OK, and nothing says what to do", x.Name)
			}
		}
		want := map[string]string{"journal_mode": "wal", "synchronous": "2", "secure_delete": "1", "quick_check": "ok"}
		if f.Engine() == sqlstore.Postgres {
			want = map[string]string{
				"pg_is_in_recovery": "off", "synchronous_commit": "on", "search_path": "public, pg_temp", "connected": "to the server",
			}
			if _, ok := byName["clock difference"]; !ok {
				t.Error("the clock is not compared")
			}
		}
		for name, value := range want {
			if x := byName[name]; x.Value != value || !x.OK {
				t.Errorf("%s: %+v, want %s", name, x, value)
			}
		}
		for name, stats := range f.Stats() {
			if stats.MaxOpenConnections == 0 {
				t.Errorf("pool %s is unbounded", name)
			}
		}
	})
}
