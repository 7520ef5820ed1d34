package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// ErrNoBackup means that the database is PostgreSQL, which has tools of its own for copies.
var ErrNoBackup = errors.New("sqlstore: only SQLite databases are copied by this program")

// Backup is an SQLite database as it was at one moment, in one read transaction: neither writes nor
// leases wait for it. The write-ahead log grows until Close.
type Backup struct {
	size     int64           // in bytes
	ctx      context.Context // of the transaction
	pageSize int64
	tx       *sql.Tx
	close    func() error
}

// Backup begins a copy of the open database. ctx bounds it until Close.
func (s *Store) Backup(ctx context.Context) (*Backup, error) {
	if s.name != SQLite {
		return nil, ErrNoBackup
	}
	// A connection of its own: a slow reader of the copy takes none from the pools.
	db, err := sql.Open("sqlite", sqliteDSN(s.description, "_pragma=query_only(1)"))
	if err != nil {
		return nil, err
	}
	return beginBackup(ctx, db, db.Close)
}

// OpenBackup begins a copy of a database file that no process has open, and keeps others off it
// until Close. It changes no row, and does not migrate.
func OpenBackup(ctx context.Context, url string) (*Backup, error) {
	if err := Check(Options{URL: url}); err != nil {
		return nil, err
	}
	path, ok := strings.CutPrefix(url, SQLite+":")
	if !ok {
		return nil, ErrNoBackup
	}
	if _, err := os.Stat(path); err != nil { // opening would make it
		return nil, err
	}
	path, unlock, err := lockedFile(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", sqliteDSN(path, "_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return beginBackup(ctx, db, func() error { return errors.Join(db.Close(), unlock()) })
}

func beginBackup(ctx context.Context, db *sql.DB, done func() error) (_ *Backup, err error) {
	db.SetMaxOpenConns(1)
	b := &Backup{ctx: ctx, close: done}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sqlstore: backup: %w", err), b.Close())
		}
	}()
	if b.tx, err = db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}); err != nil {
		return nil, err
	}
	var revision, pages int64
	// The first read fixes the moment.
	if err = b.tx.QueryRowContext(ctx, `SELECT revision FROM meta WHERE one = 1`).Scan(&revision); err != nil {
		return nil, noMeta(err)
	}
	if err = b.tx.QueryRowContext(ctx, `PRAGMA page_size`).Scan(&b.pageSize); err != nil {
		return nil, err
	}
	if err = b.tx.QueryRowContext(ctx, `PRAGMA page_count`).Scan(&pages); err != nil {
		return nil, err
	}
	b.size = pages * b.pageSize
	return b, nil
}

// Bytes is the size of the copy.
func (b *Backup) Bytes() int64 { return b.size }

// WriteTo writes the database file. It holds one page in memory at a time.
func (b *Backup) WriteTo(w io.Writer) (written int64, err error) {
	rows, err := b.tx.QueryContext(b.ctx, `SELECT pgno, data FROM sqlite_dbpage('main')`)
	err = each(rows, err, func(rows *sql.Rows) error {
		var number int64
		var page sql.RawBytes
		if err := rows.Scan(&number, &page); err != nil {
			return err
		}
		if number != written/b.pageSize+1 || int64(len(page)) != b.pageSize {
			return fmt.Errorf("sqlstore: backup: page %d has %d bytes after %d", number, len(page), written)
		}
		n, err := w.Write(page)
		written += int64(n)
		return err
	})
	if err == nil && written != b.size {
		err = fmt.Errorf("sqlstore: backup: %d of %d bytes were read", written, b.size)
	}
	return written, err
}

// Close ends the copy.
func (b *Backup) Close() error {
	if b.tx != nil {
		_ = b.tx.Rollback() // it has read only
	}
	return b.close()
}

// BackupReport is what a check of a copy found.
type BackupReport struct {
	Revision int64
	Sequence int64 // of the last audit entry
	Hash     [32]byte
	Keys     int64
	Findings []string // empty = nothing wrong
}

// CheckBackup checks an SQLite file that no process has open, and changes nothing. With a keyring
// it checks every row and the whole audit log; without one, what the file shows.
func CheckBackup(ctx context.Context, path string, ring *seal.Ring) (r BackupReport, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return r, err
	}
	// Immutable: neither a log nor a lock is made beside the copy.
	db, err := sql.Open("sqlite", sqliteDSN(path, "mode=ro", "immutable=1", "_pragma=query_only(1)"))
	if err != nil {
		return r, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	rows, err := db.QueryContext(ctx, `PRAGMA integrity_check(20)`)
	err = each(rows, err, func(rows *sql.Rows) error {
		var found string
		if err := rows.Scan(&found); err != nil {
			return err
		}
		if found != "ok" {
			r.Findings = append(r.Findings, "the file is damaged: "+found)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("sqlstore: the copy cannot be read: %w", err)
	}
	if len(r.Findings) > 0 {
		return r, nil
	}
	var hash []byte
	err = db.QueryRowContext(ctx, `SELECT m.revision, (SELECT count(*) FROM keys), coalesce(a.sequence, 0), a.hash
		FROM meta m LEFT JOIN (SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1) a ON 1 = 1
		WHERE m.one = 1`).Scan(&r.Revision, &r.Keys, &r.Sequence, &hash)
	if err != nil {
		return r, noMeta(err)
	}
	copy(r.Hash[:], hash)
	if ring == nil {
		return r, nil
	}
	return r, r.authenticate(ctx, db, ring)
}

// authenticate adds what the master keys show to be wrong.
func (r *BackupReport) authenticate(ctx context.Context, db *sql.DB, ring *seal.Ring) error {
	p := &pool{DB: db}
	s := &Store{
		engine: &engine{name: SQLite, writer: p, reader: p, lease: p, readTx: &sql.TxOptions{ReadOnly: true}},
		ring:   ring, log: slog.New(slog.DiscardHandler), reported: make(map[report]bool),
		onTampered: func(table, id string, err error) {
			if len(r.Findings) < mostFindings {
				r.Findings = append(r.Findings, fmt.Sprintf("%s %s: %v", table, id, err))
			}
		},
	}
	audit, err := s.VerifyAudit(ctx, nil)
	if err != nil {
		return err
	}
	r.Findings = append(r.Findings, audit.Findings...)
	// The store reports what is wrong with a row, so the rows themselves are not kept.
	rows := keys.Visitor{
		Key:          func(keys.Key) error { return nil },
		Organization: func(keys.Organization) error { return nil },
	}
	if _, _, err := s.Snapshot(ctx, rows); err != nil && !errors.Is(err, keys.ErrTampered) {
		return err
	}
	return nil
}

// Head is the hash of the last audit entry as text.
func (r *BackupReport) Head() string { return hex.EncodeToString(r.Hash[:]) }
