// Package sqlstore keeps keys, organizations and the audit log in SQLite or PostgreSQL (15 or
// newer) with one SQL text for both: it implements keys.Store, keys.Tx and keys.Feed. Only
// the migrations differ.
//
// # How tampering shows
//
// Each key and organization row carries a seal over all of its columns, its revision among them.
// So an edited column does not match its seal. A whole row put back to an older
// sealed copy does; but each write leaves an audit entry with the row's id and revision, and a row
// whose revision is not the latest the log knows is not genuine. Taking those entries
// away breaks the log: each entry's hash covers the one before, each hash is authenticated under
// the master key, and the hash of the last one is in the database's sealed state. The state also
// holds the weight of the whole set of rows, an XOR over keyed digests of (table, id, revision),
// which Snapshot recomputes: so a row that was removed or put back cannot hide even where no single
// row shows it. What none of this can show is the whole database put back to an older copy of itself.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// The engines, as Store.Engine names them.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Options says which database to use and how.
type Options struct {
	// URL is sqlite:PATH, or postgres://… or postgresql://… with one or several hosts.
	URL string
	// Ring seals and checks every row.
	Ring *seal.Ring
	// Now replaces the clock. Nil means the database's on PostgreSQL, time.Now on SQLite.
	Now func() time.Time
	// OnTampered, when set, is told once of each row, per revision, that fails its check: the
	// table, the row's id, and why. It must not call the store.
	OnTampered func(table, id string, err error)
	// AllowPlaintext permits PostgreSQL without TLS on a host that is not this machine.
	AllowPlaintext bool
	// RequireFsync rejects a PostgreSQL that does not wait for its disk (fsync=off).
	RequireFsync bool
	// Connections is how many connections to PostgreSQL all pools together may have, from
	// MinConnections to MaxConnections; 0 means DefaultConnections.
	Connections int
	// Password, when set, returns the password for each new connection to PostgreSQL. Nil means
	// that of the URL, or of the password file that libpq reads.
	Password func() (string, error)
	// Logger receives what an operator should read; nil means slog.Default.
	Logger *slog.Logger
}

// Store is a database, safe for concurrent use.
type Store struct {
	*engine
	ring       *seal.Ring
	now        func() time.Time
	onTampered func(table, id string, err error)
	log        *slog.Logger

	databaseID atomic.Pointer[string] // once it is known
	advertised advertised
	replacing  sync.Mutex // held while the ring's keys are replaced

	mu       sync.Mutex
	reported map[report]bool // guarded by mu
}

var (
	_ keys.Store = (*Store)(nil)
	_ keys.Feed  = (*Store)(nil)
)

// engine is what differs between the two databases besides the migrations.
type engine struct {
	name        string
	description string // where the database is; never holds a password

	// writer serves what takes the meta row's lock, reader what only reads, lease the node's own row and what it follows, barrier
	// what a write asks of the other nodes before it is answered; nil on SQLite. No caller can queue for lease.
	writer, reader, lease, barrier *pool
	nodes                          *localNodes // the node rows when no other process can have any; nil = in the database
	readTx                         *sql.TxOptions

	listen func(ctx context.Context, heard func(payload string)) error // see keys.Feed.Listen; nil where nodes is not

	taken      func(error) bool // a unique index refused a row
	rolledBack func(error) bool // a failed COMMIT certainly left nothing behind
	ownClock   bool             // the database has no clock but ours
	patience   time.Duration    // bounds a call; 0 = the caller alone does
	afterClose func() error

	shares shares       // of the connections to PostgreSQL
	pooler *atomic.Bool // the last new connection was one to a pooler; nil on SQLite
}

// pools returns every pool there is.
func (e *engine) pools() (all []*pool) {
	for _, p := range []*pool{e.lease, e.writer, e.reader, e.barrier} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

func (e *engine) close() error {
	var err error
	for _, p := range e.pools() {
		err = errors.Join(err, p.Close())
	}
	if e.afterClose != nil {
		err = errors.Join(err, e.afterClose())
	}
	return err
}

// bound gives a call its patience.
func (e *engine) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.patience == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, e.patience)
}

// Open connects, brings the schema up to date and refuses what is unsafe: another process on the
// same file, an SQLite or PostgreSQL that is too old, a hot standby, a connection over a
// network without TLS, a schema from a newer program, a master key that is missing from the ring.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Ring == nil {
		return nil, errors.New("sqlstore: no master keys")
	}
	e, err := openEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &Store{
		engine: e, ring: o.Ring, now: o.Now, onTampered: o.OnTampered, log: o.Logger,
		reported: make(map[report]bool),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.now == nil && e.ownClock {
		s.now = time.Now
	}
	if _, _, err := migrate(ctx, e, o); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := s.checkMasterKeys(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := s.checkProtocol(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return s, nil
}

func openEngine(ctx context.Context, o Options) (*engine, error) {
	if err := Check(o); err != nil {
		return nil, err
	}
	if path, ok := strings.CutPrefix(o.URL, SQLite+":"); ok {
		return openSQLite(ctx, path)
	}
	return openPostgres(ctx, o)
}

// Close releases the database. Calls that still run fail.
func (s *Store) Close() error { return s.close() }

// Engine returns SQLite or Postgres.
func (s *Store) Engine() string { return s.name }

// Stats returns the state of the connection pools by name.
func (s *Store) Stats() map[string]sql.DBStats {
	m := map[string]sql.DBStats{"writer": s.writer.Stats(), "reader": s.reader.Stats(), "lease": s.lease.Stats()}
	if s.barrier != nil {
		m["barrier"] = s.barrier.Stats()
	}
	return m
}

// Now implements keys.Store.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if s.now != nil {
		return wholeMicros(s.now()), nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var micros int64
	if err := s.reader.QueryRowContext(ctx, readClock).Scan(&micros); err != nil {
		return time.Time{}, err
	}
	return keys.FromMicros(micros), nil
}

func wholeMicros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// queries is a transaction, a connection or a pool.
type queries interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// write runs one statement that is its own transaction and returns how many rows it changed.
// A warning counts as a failure: the change may not be durable.
func (s *Store) write(ctx context.Context, db *pool, query string, args ...any) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, fmt.Errorf("sqlstore: %w", err)
	}
	defer conn.Close()
	return s.writeOn(ctx, conn, query, args...)
}

func (s *Store) writeOn(ctx context.Context, conn *sql.Conn, query string, args ...any) (int64, error) {
	clearWarning(conn)
	result, err := conn.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, fmt.Errorf("sqlstore: %w", err)
	}
	if warned(conn) {
		return 0, errWarned
	}
	return result.RowsAffected()
}

// writeReturning is write for a statement that changes at most one row and returns something of it. It reports whether it
// changed one.
func (s *Store) writeReturning(ctx context.Context, db *pool, dest []any, query string, args ...any) (bool, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("sqlstore: %w", err)
	}
	defer conn.Close()
	clearWarning(conn)
	err = conn.QueryRowContext(ctx, query, args...).Scan(dest...)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("sqlstore: %w", err)
	case warned(conn):
		return false, errWarned
	}
	return true, nil
}

// errWarned is a commit that the server warned about: it may not be durable.
var errWarned = fmt.Errorf("%w: the server warned during the commit", keys.ErrOutcomeUnknown)

// view runs fn in a read transaction: everything fn reads stands for one moment.
func (s *Store) view(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	return s.viewOn(ctx, s.reader, fn)
}

// beginner is a pool or a connection.
type beginner interface {
	BeginTx(ctx context.Context, o *sql.TxOptions) (*sql.Tx, error)
}

func (s *Store) viewOn(ctx context.Context, on beginner, fn func(context.Context, *sql.Tx) error) error {
	tx, err := on.BeginTx(ctx, s.readTx)
	if err != nil {
		return fmt.Errorf("sqlstore: begin: %w", err)
	}
	defer tx.Rollback()
	return fn(ctx, tx)
}

// viewAll is view for reading whole tables, which may take longer than any one statement should.
func (s *Store) viewAll(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	return s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := s.noTimeouts(ctx, tx); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
}

// noTimeouts is for a transaction that reads whole tables: its statements take long, and so does what is reckoned between them.
func (s *Store) noTimeouts(ctx context.Context, tx queries) error {
	if s.name != Postgres {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`)
	return err
}

// report is a row that failed its check, at the revision it claims.
type report struct {
	table, id string
	revision  int64
}

// mostReports bounds what is remembered of tampered rows; beyond it some are told again.
const mostReports = 10_000

// tampered tells the observer of a row that failed its check, once.
func (s *Store) tampered(table, id string, revision int64, why error) {
	r := report{table, id, revision}
	s.mu.Lock()
	seen := s.reported[r]
	if !seen {
		if len(s.reported) >= mostReports {
			clear(s.reported)
		}
		s.reported[r] = true
	}
	s.mu.Unlock()
	if seen {
		return
	}
	s.log.Error("a database row was not written by Keyward", "table", table, "id", id, "revision", revision, "reason", why.Error())
	if s.onTampered != nil {
		s.onTampered(table, id, why)
	}
}
