package sqlstore_test

import (
	"context"
	"database/sql"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
)

var engines = []string{sqlstore.SQLite, sqlstore.Postgres}

// onBoth runs a test on a new database of each engine.
func onBoth(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, engine))
		})
	}
}

// fixture is a store and, beside it, a connection of somebody who can write to its database
// and does not know the master key.
type fixture struct {
	*sqlstore.Store
	options sqlstore.Options
	lines   []string // of the master key file
	raw     *sql.DB

	mu       sync.Mutex
	tampered []string // guarded by mu: "table id" as OnTampered was told
}

func newLine(t testing.TB, id string) string {
	t.Helper()
	line, err := seal.NewLine(id)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func newRing(t testing.TB, lines ...string) *seal.Ring {
	t.Helper()
	ring, err := seal.Parse([]byte(strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// newDatabase returns the URL of an empty database.
func newDatabase(t testing.TB, engine string) string {
	if engine == sqlstore.Postgres {
		return pgtest.URL(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "keyward.db")
}

func open(t testing.TB, engine string) *fixture {
	t.Helper()
	f := &fixture{lines: []string{newLine(t, "m1")}}
	f.options = sqlstore.Options{
		URL: newDatabase(t, engine), Ring: newRing(t, f.lines...), Logger: slog.New(slog.DiscardHandler),
		OnTampered: func(table, id string, err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.tampered = append(f.tampered, strings.TrimSpace(table+" "+id))
		},
	}
	f.reopen(t)
	t.Cleanup(func() { f.Close() })
	f.raw = rawConnection(t, f.options.URL)
	return f
}

// reopen closes the store, if it is open, and opens it again.
func (f *fixture) reopen(t testing.TB) {
	t.Helper()
	if f.Store != nil {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if f.Store, err = sqlstore.Open(t.Context(), f.options); err != nil {
		t.Fatal(err)
	}
}

func rawConnection(t testing.TB, target string) *sql.DB {
	t.Helper()
	driver, name := "pgx", target
	if path, ok := strings.CutPrefix(target, "sqlite:"); ok {
		driver, name = "sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path}).String()+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(2)
	t.Cleanup(func() { db.Close() })
	return db
}

// edit runs a statement behind the store's back; it has to change a row.
func (f *fixture) edit(t testing.TB, statement string, arguments ...any) {
	t.Helper()
	result, err := f.raw.ExecContext(t.Context(), statement, arguments...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%s: %d rows changed, %v", statement, n, err)
	}
}

// seen returns what OnTampered was told since the last call.
func (f *fixture) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.tampered
	f.tampered = nil
	return seen
}

// all is one snapshot.
type all struct {
	revision      int64
	keys          map[string]keys.Key
	organizations map[string]keys.Organization
}

func (f *fixture) snapshot(ctx context.Context) (a all, err error) {
	a = all{keys: make(map[string]keys.Key), organizations: make(map[string]keys.Organization)}
	mark, _, err := f.Snapshot(ctx, keys.Visitor{
		Key:          func(k keys.Key) error { a.keys[k.ID] = k; return nil },
		Organization: func(o keys.Organization) error { a.organizations[o.ID] = o; return nil },
	})
	a.revision = mark.Revision
	return a, err
}

func TestStoreSuite(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			keystest.StoreSuite(t, func(t *testing.T) keystest.Database { return open(t, engine).Store })
		})
	}
}
