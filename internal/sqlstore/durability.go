package sqlstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// Finding is one setting that decides whether an answered write survives.
type Finding struct {
	Name   string
	Value  string
	OK     bool
	Advice string // what to do when it is not OK
}

// mostClockDifference is how far the database's clock may be from this machine's before
// Durability says so.
const mostClockDifference = 2 * time.Second

// Mode says what an answered write survives, and with it an answered revocation.
type Mode string

// The modes.
const (
	Local        Mode = "local"        // SQLite: the loss of power, not of the disk
	Single       Mode = "single"       // PostgreSQL without a standby: as Local
	Asynchronous Mode = "asynchronous" // a standby that takes over may lack the last writes
	Synchronous  Mode = "synchronous"  // the loss of the primary too
)

// Meaning says it in words.
func (m Mode) Meaning() string {
	switch m {
	case Asynchronous:
		return "a crash of the primary, not its loss: the standby may lack the last writes; set synchronous_standby_names"
	case Synchronous:
		return "the loss of the primary"
	default:
		return "a crash, not the loss of the disk"
	}
}

// Mode returns which is configured now.
func (s *Store) Mode(ctx context.Context) (Mode, error) {
	if s.name == SQLite {
		return Local, nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var waits, standby bool
	if err := s.reader.QueryRowContext(ctx, replication).Scan(&waits, &standby); err != nil {
		return "", fmt.Errorf("sqlstore: %w", err)
	}
	switch {
	case waits:
		return Synchronous, nil
	case standby:
		return Asynchronous, nil
	}
	return Single, nil
}

// Durability reads the settings that decide whether an answered write survives (P7), for a person
// to look at.
func (s *Store) Durability(ctx context.Context) ([]Finding, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if s.name == SQLite {
		return s.sqliteDurability(ctx)
	}
	return s.postgresDurability(ctx)
}

func (s *Store) sqliteDurability(ctx context.Context) ([]Finding, error) {
	var found []Finding
	// The settings are the writer's own; the long check runs beside it.
	for _, setting := range []struct {
		on                        *pool
		name, query, want, advice string
	}{
		{s.writer, "sqlite version", `SELECT sqlite_version()`, "", ""},
		{s.writer, "journal_mode", `PRAGMA journal_mode`, "wal", "keep the file on a local disk that supports a write-ahead log"},
		{s.writer, "synchronous", `PRAGMA synchronous`, "2", "must be FULL (2): an answered write could be lost with the power"},
		{s.writer, "foreign_keys", `PRAGMA foreign_keys`, "1", "must be on (1)"},
		{s.writer, "secure_delete", `PRAGMA secure_delete`, "1", "must be on (1): erased answers would stay in the file"},
		{s.reader, "quick_check", `PRAGMA quick_check(1)`, "ok", "the file is damaged: restore it from a backup"},
	} {
		f := Finding{Name: setting.name}
		if err := setting.on.QueryRowContext(ctx, setting.query).Scan(&f.Value); err != nil {
			return nil, err
		}
		f.OK = setting.want == "" || f.Value == setting.want
		if !f.OK {
			f.Advice = setting.advice
		}
		found = append(found, f)
	}
	return found, nil
}

func (s *Store) postgresDurability(ctx context.Context) ([]Finding, error) {
	var found []Finding
	for _, setting := range []struct {
		name, query, advice string
		ok                  func(string) bool
	}{
		{"postgres version", `SELECT current_setting('server_version')`, "", func(string) bool { return true }},
		{"pg_is_in_recovery", `SELECT CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END`, "this is a standby: use the primary", is("off")},
		{"fsync", `SELECT current_setting('fsync')`, "must be on: a crash loses answered revocations, or the whole database", is("on")},
		{
			"full_page_writes", `SELECT current_setting('full_page_writes')`,
			"must be on, unless the file system writes whole pages (ZFS): a crash of the machine could damage the database", is("on"),
		},
		{
			"synchronous_commit", readSynchronousCommit, "must not be off: an answered write could be lost with the server",
			func(v string) bool { return strings.HasPrefix(v, "on") || strings.HasPrefix(v, "remote_apply") },
		},
		{"search_path", `SELECT current_setting('search_path')`, "", func(string) bool { return true }},
		{
			"synchronous_standby_names", `SELECT current_setting('synchronous_standby_names')`,
			"empty: what was answered survives a crash of the primary, not its loss; name a synchronous standby",
			func(v string) bool { return strings.TrimSpace(v) != "" },
		},
	} {
		f := Finding{Name: setting.name}
		if err := s.reader.QueryRowContext(ctx, setting.query).Scan(&f.Value); err != nil {
			return nil, err
		}
		f.OK = setting.ok(f.Value)
		if !f.OK {
			f.Advice = setting.advice
		}
		found = append(found, f)
	}

	connections, err := s.connections(ctx)
	if err != nil {
		return nil, err
	}
	found = append(found, connections...)

	before := time.Now()
	var micros int64
	if err := s.reader.QueryRowContext(ctx, readClock).Scan(&micros); err != nil {
		return nil, err
	}
	trip := time.Since(before)
	difference := keys.FromMicros(micros).Sub(before.Add(trip / 2))
	clock := Finding{
		Name: "clock difference", Value: fmt.Sprintf("%+.3fs (± %.3fs)", difference.Seconds(), (trip / 2).Seconds()),
		OK: difference.Abs() <= mostClockDifference+trip/2,
	}
	if !clock.OK {
		clock.Advice = "the database's clock and this machine's differ: run NTP on both"
	}
	return append(found, clock), nil
}

// connections says how this node reaches the server, and whether it may have as many connections as
// it is told to use.
func (s *Store) connections(ctx context.Context) ([]Finding, error) {
	way := Finding{Name: "connected", Value: "to the server", OK: true}
	if s.pooler.Load() {
		way.Value = "through a pooler: statements are not prepared"
	}
	var role, database, server int64
	if err := s.reader.QueryRowContext(ctx, readLimits).Scan(&role, &database, &server); err != nil {
		return nil, err
	}
	allowed := server
	for _, limit := range []int64{role, database} {
		if limit >= 0 {
			allowed = min(allowed, limit)
		}
	}
	share := Finding{Name: "connections", Value: s.shares.String(), OK: s.pooler.Load() || allowed >= s.shares.total()}
	if !share.OK {
		share.Advice = fmt.Sprintf("the server lets this role have %d, for all nodes together: raise its limit, or lower KEYWARD_DATABASE_CONNECTIONS", allowed)
	}
	return []Finding{way, share}, nil
}

func is(want string) func(string) bool { return func(v string) bool { return v == want } }
