package main

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// errAway is what every call answers until the database was opened; the doors make 503 of it.
var errAway = errors.New("the database has not been reached yet")

// lateStore is a database that may be away when the program starts (R5). So listeners and doors
// are there from the beginning, and one way leads to 503, whenever the database is away.
type lateStore struct {
	options sqlstore.Options
	store   atomic.Pointer[sqlstore.Store] // nil until opened
}

var (
	_ keys.Store = (*lateStore)(nil)
	_ keys.Feed  = (*lateStore)(nil)
)

// Pauses between tries to reach a database.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 2 * time.Second
)

// open opens the database, and tries again for as long as it is away, telling waiting of each
// failure. Any other fault is an error at once: a person has to do something about it. When ctx ends
// first the error is ctx's.
func (l *lateStore) open(ctx context.Context, waiting func(err error, pause time.Duration)) error {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		s, err := sqlstore.Open(ctx, l.options)
		if err == nil {
			l.store.Store(s)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !away(err) {
			return err
		}
		waiting(err, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// away reports whether err means that the database could not be reached or is not ready to
// talk, or that a master key is missing here, so that it helps to wait.
func away(err error) bool {
	var network *net.OpError
	var name *net.DNSError
	var server *pgconn.PgError
	switch {
	case errors.As(err, &server):
		// Connection exceptions, too many connections, and shutting down or starting up.
		return strings.HasPrefix(server.Code, "08") || server.Code == "53300" || strings.HasPrefix(server.Code, "57P0")
	case errors.As(err, &network), errors.As(err, &name):
		return true
	}
	return errors.Is(err, seal.ErrUnknownKey) || errors.Is(err, sqlstore.ErrNoPrimary) ||
		errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

func (l *lateStore) close() error {
	if s := l.store.Load(); s != nil {
		return s.Close()
	}
	return nil
}

// engine names the database before it is open too.
func (l *lateStore) engine() string {
	if strings.HasPrefix(l.options.URL, sqlstore.SQLite+":") {
		return sqlstore.SQLite
	}
	return sqlstore.Postgres
}

func (l *lateStore) stats() map[string]sql.DBStats {
	if s := l.store.Load(); s != nil {
		return s.Stats()
	}
	return nil
}

// opened returns the database, or errAway.
func (l *lateStore) opened() (*sqlstore.Store, error) {
	if s := l.store.Load(); s != nil {
		return s, nil
	}
	return nil, errAway
}

// with calls one method of the database.
func with[T any](l *lateStore, call func(*sqlstore.Store) (T, error)) (T, error) {
	s, err := l.opened()
	if err != nil {
		var none T
		return none, err
	}
	return call(s)
}

// do is with for a method that returns nothing else.
func (l *lateStore) do(call func(*sqlstore.Store) error) error {
	s, err := l.opened()
	if err != nil {
		return err
	}
	return call(s)
}

// The methods of keys.Store and keys.Feed.

func (l *lateStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	return with(l, func(s *sqlstore.Store) (keys.Commit, error) { return s.Write(ctx, first, fn) })
}

func (l *lateStore) Record(ctx context.Context, e keys.AuditEntry) error {
	return l.do(func(s *sqlstore.Store) error { return s.Record(ctx, e) })
}

func (l *lateStore) Key(ctx context.Context, id string) (keys.Key, error) {
	return with(l, func(s *sqlstore.Store) (keys.Key, error) { return s.Key(ctx, id) })
}

func (l *lateStore) KeyAsOf(ctx context.Context, id string) (k keys.Key, c keys.Commit, err error) {
	err = l.do(func(s *sqlstore.Store) error { k, c, err = s.KeyAsOf(ctx, id); return err })
	return k, c, err
}

func (l *lateStore) Keys(ctx context.Context, q keys.KeyQuery) ([]keys.UsedKey, error) {
	return with(l, func(s *sqlstore.Store) ([]keys.UsedKey, error) { return s.Keys(ctx, q) })
}

func (l *lateStore) Organization(ctx context.Context, id string) (keys.Organization, error) {
	return with(l, func(s *sqlstore.Store) (keys.Organization, error) { return s.Organization(ctx, id) })
}

func (l *lateStore) Organizations(ctx context.Context, after string, limit int) ([]keys.Organization, error) {
	return with(l, func(s *sqlstore.Store) ([]keys.Organization, error) { return s.Organizations(ctx, after, limit) })
}

func (l *lateStore) Replay(ctx context.Context, handles []keys.Handle) (keys.Replay, error) {
	return with(l, func(s *sqlstore.Store) (keys.Replay, error) { return s.Replay(ctx, handles) })
}

func (l *lateStore) Now(ctx context.Context) (time.Time, error) {
	return with(l, func(s *sqlstore.Store) (time.Time, error) { return s.Now(ctx) })
}

func (l *lateStore) Snapshot(ctx context.Context, v keys.Visitor) (keys.Mark, error) {
	return with(l, func(s *sqlstore.Store) (keys.Mark, error) { return s.Snapshot(ctx, v) })
}

func (l *lateStore) Changes(ctx context.Context, after keys.Mark, limit int) (keys.Changes, error) {
	return with(l, func(s *sqlstore.Store) (keys.Changes, error) { return s.Changes(ctx, after, limit) })
}

func (l *lateStore) LookUp(ctx context.Context, d token.Digest, connected string) (keys.Found, error) {
	return with(l, func(s *sqlstore.Store) (keys.Found, error) { return s.LookUp(ctx, d, connected) })
}

func (l *lateStore) RecordUses(ctx context.Context, uses []keys.Use) error {
	return l.do(func(s *sqlstore.Store) error { return s.RecordUses(ctx, uses) })
}

func (l *lateStore) Register(ctx context.Context, n keys.Node) error {
	return l.do(func(s *sqlstore.Store) error { return s.Register(ctx, n) })
}

func (l *lateStore) Renew(ctx context.Context, nodeID string, applied keys.Mark) (keys.Renewal, error) {
	return with(l, func(s *sqlstore.Store) (keys.Renewal, error) { return s.Renew(ctx, nodeID, applied) })
}

func (l *lateStore) Standing(ctx context.Context, nodeID string, c keys.Commit) (keys.Standing, error) {
	return with(l, func(s *sqlstore.Store) (keys.Standing, error) { return s.Standing(ctx, nodeID, c) })
}

func (l *lateStore) Fence(ctx context.Context, c keys.Commit) ([]string, error) {
	return with(l, func(s *sqlstore.Store) ([]string, error) { return s.Fence(ctx, c) })
}

func (l *lateStore) Settle(ctx context.Context, timeline int64) error {
	return l.do(func(s *sqlstore.Store) error { return s.Settle(ctx, timeline) })
}

func (l *lateStore) Announce(ctx context.Context, revision int64) error {
	return l.do(func(s *sqlstore.Store) error { return s.Announce(ctx, revision) })
}

func (l *lateStore) Listen(ctx context.Context, heard func(keys.Announcement)) error {
	return l.do(func(s *sqlstore.Store) error { return s.Listen(ctx, heard) })
}

func (l *lateStore) Leave(ctx context.Context, nodeID string) error {
	return l.do(func(s *sqlstore.Store) error { return s.Leave(ctx, nodeID) })
}

func (l *lateStore) EraseKeptAnswers(ctx context.Context, before time.Time) (int64, error) {
	return with(l, func(s *sqlstore.Store) (int64, error) { return s.EraseKeptAnswers(ctx, before) })
}

// databaseID names the database, "" until it was opened.
func (l *lateStore) databaseID() string {
	if s := l.store.Load(); s != nil {
		return s.DatabaseID()
	}
	return ""
}

// signer returns what nodes authenticate to each other by.
func (l *lateStore) signer(ctx context.Context) (id string, signer seal.Signer, err error) {
	err = l.do(func(s *sqlstore.Store) error { id, signer, err = s.Signer(ctx); return err })
	return id, signer, err
}

// nodes returns the nodes that serve.
func (l *lateStore) nodes(ctx context.Context) ([]keys.ServingNode, error) {
	return with(l, func(s *sqlstore.Store) ([]keys.ServingNode, error) {
		nodes, _, err := s.Nodes(ctx)
		return nodes, err
	})
}
