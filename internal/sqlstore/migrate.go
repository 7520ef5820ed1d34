package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/sqlite/*.sql migrations/postgres/*.sql
var migrations embed.FS

// migrationLock is the advisory lock under which one process at a time migrates.
const migrationLock int64 = 0x6b657977617264 // "keyward"

// Migrate brings the schema up to date and returns its version before and after. Any number of
// processes may do so at once. A schema from a newer program is refused.
func Migrate(ctx context.Context, o Options) (from, to int64, err error) {
	e, err := openEngine(ctx, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	return migrate(ctx, e, o)
}

func migrate(ctx context.Context, e *engine, o Options) (from, to int64, err error) {
	files, err := fs.Sub(migrations, "migrations/"+e.name)
	if err != nil {
		return 0, 0, err
	}
	dialect, options := goose.DialectSQLite3, []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if e.name == Postgres {
		dialect = goose.DialectPostgres
		options = append(options, goose.WithLocker(&advisoryLock{pool: e.lease}))
	}
	provider, err := goose.NewProvider(dialect, e.writer.DB, files, options...)
	if err != nil {
		return 0, 0, fmt.Errorf("sqlstore: migrations: %w", err)
	}
	from, target, err := provider.GetVersions(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("sqlstore: migrations: %w", err)
	}
	if from > target {
		return from, from, fmt.Errorf("sqlstore: the database has schema version %d and this program knows %d: run the newer program", from, target)
	}
	if from == target {
		return from, from, nil // the account a node runs under need not be allowed to change the schema
	}
	if _, err := provider.Up(ctx); err != nil {
		return from, from, fmt.Errorf("sqlstore: migrations: %w", err)
	}
	to, err = provider.GetDBVersion(ctx)
	return from, to, err
}

// advisoryLock makes the processes that start together migrate one after the other. The lock is a
// transaction's, held on a connection of its own: a session's would stay behind in a pooler.
type advisoryLock struct {
	pool *pool
	tx   *sql.Tx // holds the lock
}

// Lock implements goose's lock.Locker.
func (l *advisoryLock) Lock(ctx context.Context, _ *sql.DB) error {
	tx, err := l.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, statement := range []string{noStatementTimeout, noIdleTimeout, noLockTimeout} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	if _, err := tx.ExecContext(ctx, lockMigrations, migrationLock); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	l.tx = tx
	return nil
}

// Unlock implements goose's lock.Locker.
func (l *advisoryLock) Unlock(context.Context, *sql.DB) error { return l.tx.Rollback() }
