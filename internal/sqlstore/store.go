// Package sqlstore keeps keys, organizations and the audit log in SQLite or PostgreSQL (15 or
// newer) with one SQL text for both: it implements keys.Store, keys.Tx and keys.Feed. Only
// the migrations differ.
package sqlstore

import (
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// Options says which database to use and how.
type Options struct {
	// URL is sqlite:PATH, or postgres://… or postgresql://… with one or several hosts.
	URL string
	// Ring seals and checks every row.
	Ring *seal.Ring
	// Now replaces the clock. Nil means the database's on PostgreSQL, time.Now on SQLite.
	Now func() time.Time
	// OnTampered, when set, is told once of each row, per revision, that fails its check.
	OnTampered func(table, id string, err error)
	// AllowPlaintext permits PostgreSQL without TLS on a host that is not this machine.
	AllowPlaintext bool
	// Logger receives what an operator should read; nil means slog.Default.
	Logger *slog.Logger
}

// Store is a database, safe for concurrent use.
type Store struct {
	keys.Store
	keys.Feed
}

// Finding is one line of Durability.
type Finding struct {
	Name, Value string
	OK          bool
	Advice      string // what to do when it is not OK
}

// AuditFilter selects audit entries; an empty field selects all.
type AuditFilter struct {
	OrganizationID, TargetID, Actor string
	Action                          keys.Action
}

// ResealReport is what Reseal did and what it had to leave.
type ResealReport struct {
	Keys, Organizations, AuditEntries int64
	Refused                           []string         // rows whose seal is bad, left as they were; at most 100
	RefusedCount                      int64            // all of them
	KeptAnswers                       map[string]int64 // answers still sealed, by master key id
}

// Open connects, migrates and refuses what is unsafe.
func Open(ctx context.Context, o Options) (*Store, error) { panic("not yet") }

// Migrate brings the schema up to date and returns its version before and after.
func Migrate(ctx context.Context, o Options) (from, to int64, err error) { panic("not yet") }

// Close releases the database.
func (s *Store) Close() error { panic("not yet") }

// Engine returns "sqlite" or "postgres".
func (s *Store) Engine() string { panic("not yet") }

// Durability reports the settings that decide whether an answered write survives.
func (s *Store) Durability(ctx context.Context) ([]Finding, error) { panic("not yet") }

// Audit returns up to limit entries with a sequence greater than after, in order.
func (s *Store) Audit(ctx context.Context, after int64, limit int, f AuditFilter) ([]keys.AuditEntry, error) {
	panic("not yet")
}

// VerifyAudit checks the whole log.
func (s *Store) VerifyAudit(ctx context.Context, progress func(done, total int64)) (keys.AuditReport, error) {
	panic("not yet")
}

// Reseal seals everything that can be sealed anew under the ring's current master key.
func (s *Store) Reseal(ctx context.Context, progress func(done, total int64)) (ResealReport, error) {
	panic("not yet")
}

// Stats returns the state of the connection pools by name.
func (s *Store) Stats() map[string]sql.DBStats { panic("not yet") }
