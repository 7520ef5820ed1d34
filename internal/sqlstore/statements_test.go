package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/seal"
)

// C22: the statements for a key of another organization, and for one that is not there, are the
// same: how long they take tells nobody which it was.
func TestC22TheSameStatements(t *testing.T) {
	line, err := seal.NewLine("")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keyward.db")
	s, err := Open(t.Context(), Options{URL: "sqlite:" + path, Ring: ring})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	theirs := keystest.NewKey("org_b", keys.StateActive)
	keystest.MustInsert(t, s, theirs)

	log := &statements{dsn: sqliteDSN(path, "_txlock=immediate")}
	for _, p := range []**pool{&s.writer, &s.reader} {
		before := *p
		defer before.Close()
		*p = &pool{DB: sql.OpenDB(log)}
	}
	s.lease = s.writer
	rejected := errors.New("not the caller's")
	for _, ask := range []struct {
		name string
		do   func(id string)
	}{
		{"Write", func(id string) {
			_, _ = s.Write(t.Context(), keys.Reads{OrganizationID: "org_a", KeyID: id}, func(ctx context.Context, tx keys.Tx) error {
				_, _ = tx.Key(ctx, id)
				return rejected
			})
		}},
		{"Key", func(id string) { _, _ = s.Key(t.Context(), id) }},
	} {
		ask.do(theirs.ID) // connections are opened
		log.take()
		ask.do(theirs.ID)
		want := log.take()
		ask.do("key_7zzzzzzzzzzzzzzzzzzzzzzzzz")
		if diff := cmp.Diff(want, log.take()); diff != "" || len(want) == 0 {
			t.Errorf("%s: %d statements (-another organization's +none):\n%s", ask.name, len(want), diff)
		}
	}
}

// statements is a database whose statements are noted.
type statements struct {
	dsn string

	mu   sync.Mutex
	list []string // guarded by mu
}

func (s *statements) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, text)
}

func (s *statements) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.list
	s.list = nil
	return list
}

func (s *statements) Driver() driver.Driver { return &sqlite.Driver{} }

func (s *statements) Connect(context.Context) (driver.Conn, error) {
	c, err := s.Driver().Open(s.dsn)
	if err != nil {
		return nil, err
	}
	return notedConn{c.(sqliteConn), s}, nil
}

type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
}

type notedConn struct {
	sqliteConn
	log *statements
}

func (c notedConn) Prepare(query string) (driver.Stmt, error) {
	c.log.note(query)
	return c.sqliteConn.Prepare(query)
}

func (c notedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.log.note(query)
	return c.sqliteConn.ExecContext(ctx, query, args)
}

func (c notedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.log.note(query)
	return c.sqliteConn.QueryContext(ctx, query, args)
}
