package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/syncgram/keyward/internal/keys"
)

// oldestSQLite is the first version without the WAL-reset bug that can corrupt a database.
var oldestSQLite = [3]int{3, 51, 3}

// Connections to the file besides the one that writes. Lists, and whatever else callers ask for,
// share the readers. The lease has connections of its own: one for the renewal, one to catch up.
const (
	sqliteReaders = 4
	sqliteLeases  = 2
)

func openSQLite(ctx context.Context, path string) (_ *engine, err error) {
	path, unlock, err := lockedFile(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock())
		}
	}()

	writer, err := sql.Open("sqlite", sqliteDSN(path, "_txlock=immediate",
		"_pragma=journal_mode(wal)", "_pragma=synchronous(full)", "_pragma=foreign_keys(1)", "_pragma=secure_delete(1)"))
	if err != nil {
		return nil, err
	}
	reader, err := sql.Open("sqlite", sqliteDSN(path, "_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	lease, err := sql.Open("sqlite", sqliteDSN(path, "_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, writer.Close(), reader.Close())
	}
	e := &engine{
		name: SQLite, writer: newPool(writer, 1, 0), reader: newPool(reader, sqliteReaders, 0), lease: newPool(lease, sqliteLeases, 0),
		nodes:       &localNodes{applied: make(map[string]int64), of: make(map[string]keys.Node)},
		readTx:      &sql.TxOptions{ReadOnly: true},
		taken:       sqliteTaken,
		rolledBack:  sqliteRolledBack,
		afterClose:  unlock,
		ownClock:    true,
		description: path,
	}
	if err := checkSQLite(ctx, writer); err != nil {
		return nil, errors.Join(err, writer.Close(), reader.Close(), lease.Close())
	}
	return e, nil
}

// sqliteDSN builds the driver's name for the file; an escaped path cannot add parameters.
func sqliteDSN(path string, parameters ...string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path)}
	parameters = append(parameters, "_pragma=busy_timeout(10000)", "_pragma=trusted_schema(0)")
	return u.String() + "?" + strings.Join(parameters, "&")
}

// lockedFile makes the database file, readable by its owner alone, and the folder it is in, locks
// it for this process, and returns its path without symbolic links.
//
// The lock is on the file itself, whatever name it was reached by. POSIX drops all locks of a
// process on a file, SQLite's too, when the process closes any descriptor of it. So the
// one that is locked is opened before SQLite's, and unlock, which closes it, comes after SQLite has
// closed its own.
func lockedFile(path string) (_ string, unlock func() error, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", nil, err
	}
	if unlock, err = lock(f); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(0o600)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", nil, errors.Join(err, unlock())
	}
	return path, unlock, nil
}

func checkSQLite(ctx context.Context, db *sql.DB) error {
	var version, mode string
	if err := db.QueryRowContext(ctx, `SELECT sqlite_version()`).Scan(&version); err != nil {
		return err
	}
	if olderThan(version, oldestSQLite) {
		return fmt.Errorf("sqlstore: SQLite %s can corrupt a database in WAL mode; build with %d.%d.%d or newer",
			version, oldestSQLite[0], oldestSQLite[1], oldestSQLite[2])
	}
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("sqlstore: the database cannot use a write-ahead log (its journal mode is %s); keep it on a local disk", mode)
	}
	return nil
}

// olderThan reports whether a dotted version comes before oldest; what cannot be read counts as older.
func olderThan(version string, oldest [3]int) bool {
	var v [3]int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &v[0], &v[1], &v[2]); n != 3 {
		return true
	}
	for i := range v {
		if v[i] != oldest[i] {
			return v[i] < oldest[i]
		}
	}
	return false
}

func sqliteTaken(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) &&
		(e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// sqliteRolledBack reports whether a failed COMMIT certainly left nothing behind. Not so
// after an I/O error: the frames of the log may be on the disk and whole.
func sqliteRolledBack(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CONSTRAINT:
		return true
	}
	return false
}
