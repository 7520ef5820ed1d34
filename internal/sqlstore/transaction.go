package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncgram/keyward/internal/keys"
)

// transaction is a write transaction and the connection it runs on. Every writer waits while another holds the lock, and each
// trip to the server makes it longer: so on PostgreSQL BEGIN travels with the first statements, and COMMIT with the last.
type transaction struct {
	queries
	conn    *sql.Conn
	tx      *sql.Tx // nil on PostgreSQL
	closing []call  // what goes with the COMMIT, before it
	after   []call  // and what after it, of which nothing depends
}

// transact begins a write transaction on db with the statements of opening, which may be nil and is asked again when they are sent
// again; it runs fn in the transaction and commits. The error is
// ErrOutcomeUnknown when the commit may or may not have taken effect; any other error means that nothing happened.
func (s *Store) transact(ctx context.Context, db *pool, opening func() []call, fn func(context.Context, *transaction) error) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.transactWithin(ctx, db, opening, fn)
}

// transactWithin is transact without a bound of its own.
func (s *Store) transactWithin(ctx context.Context, db *pool, opening func() []call, fn func(context.Context, *transaction) error) error {
	tx, err := s.startTx(ctx, db, opening)
	if err != nil {
		return err
	}
	defer tx.conn.Close()
	defer tx.rollBack(ctx) // also when fn panics
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.commit(ctx, tx)
}

// startTx begins a transaction. A pool's connections die together when the server goes; until the first statements are answered
// nothing has been done, so another connection is tried.
func (s *Store) startTx(ctx context.Context, db *pool, opening func() []call) (*transaction, error) {
	for try := 0; ; try++ {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, fmt.Errorf("sqlstore: %w", err)
		}
		tx := &transaction{queries: conn, conn: conn}
		var first []call
		if opening != nil {
			first = opening()
		}
		if s.name == Postgres {
			_, err = pipeline(ctx, conn, append([]call{{statement: beginTx}}, first...))
		} else if tx.tx, err = conn.BeginTx(ctx, nil); err == nil {
			tx.queries = tx.tx
			err = tx.together(ctx, first...)
		}
		if err == nil {
			return tx, nil
		}
		lost := isClosed(conn)
		tx.rollBack(ctx)
		_ = conn.Close()
		if try == 2 || ctx.Err() != nil || !lost {
			return nil, fmt.Errorf("sqlstore: begin: %w", noMeta(err))
		}
	}
}

// commit runs what is left to run and commits.
func (s *Store) commit(ctx context.Context, tx *transaction) (err error) {
	clearWarning(tx.conn)
	committed := false
	if tx.tx == nil {
		calls := append(tx.closing, call{statement: commitTx, answered: func() { committed = true }})
		_, err = pipeline(ctx, tx.conn, append(calls, tx.after...))
	} else {
		if err := tx.together(ctx, tx.closing...); err != nil {
			return s.refused(err)
		}
		err = tx.tx.Commit()
		committed = err == nil
	}
	switch {
	case committed && warned(tx.conn):
		return errWarned
	case committed:
		return nil
	case s.rolledBack(err):
		return s.refused(fmt.Errorf("sqlstore: commit: %w", err))
	}
	return fmt.Errorf("%w: %w", keys.ErrOutcomeUnknown, err)
}

// refused makes ErrTaken of a refusal by a unique index.
func (s *Store) refused(err error) error {
	if s.taken(err) {
		return keys.ErrTaken
	}
	return err
}

// rollBack undoes what was not committed. A connection that cannot be told is given up, and its transaction with it.
func (tx *transaction) rollBack(ctx context.Context) {
	if tx.tx != nil {
		_ = tx.tx.Rollback() // after a commit there is nothing to undo
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = tx.conn.Raw(func(c any) error {
		p, _ := postgresOf(c)
		if p == nil || p.IsClosed() || p.PgConn().TxStatus() == 'I' {
			return nil
		}
		if _, err := p.Exec(ctx, rollBackTx); err != nil {
			return p.Close(ctx)
		}
		return nil
	})
}

// isClosed reports whether the connection to the server is gone.
func isClosed(conn *sql.Conn) (closed bool) {
	_ = conn.Raw(func(c any) error {
		p, _ := postgresOf(c)
		closed = p != nil && p.IsClosed()
		return nil
	})
	return closed
}

// call is a statement with its arguments and what it has to answer: one row, for into; every row, to each; or one changed row.
type call struct {
	statement string
	arguments []any
	into      []any
	each      func(scanner) error
	changes   bool   // exactly one row, or the call fails
	answered  func() // called when the server has done it; may be nil
}

// errNotChanged is a statement that did not find the row it was to change.
var errNotChanged = errors.New("sqlstore: a row that was just read is gone")

// together runs statements of the transaction one after the other; on PostgreSQL in one trip to the server.
func (tx *transaction) together(ctx context.Context, calls ...call) error {
	return together(ctx, tx, tx.conn, calls...)
}

// together runs statements by q, which is on conn: a transaction's, or each its own.
func together(ctx context.Context, q queries, conn *sql.Conn, calls ...call) error {
	if pipelined, err := pipeline(ctx, conn, calls); pipelined || err != nil {
		return err
	}
	for _, c := range calls {
		var err error
		switch {
		case c.each != nil:
			var rows *sql.Rows
			rows, err = q.QueryContext(ctx, c.statement, c.arguments...)
			err = each(rows, err, func(row *sql.Rows) error { return c.each(row) })
		case c.into != nil:
			err = q.QueryRowContext(ctx, c.statement, c.arguments...).Scan(c.into...)
		default:
			var result sql.Result
			if result, err = q.ExecContext(ctx, c.statement, c.arguments...); err == nil && c.changes {
				err = changedOne(result.RowsAffected())
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func changedOne(n int64, err error) error {
	if err == nil && n != 1 {
		err = errNotChanged
	}
	return err
}

// pipeline runs calls in one trip, if the driver can. The server goes on to the end whatever this side makes of an answer, and stops
// only at a statement that it refuses itself.
func pipeline(ctx context.Context, conn *sql.Conn, calls []call) (done bool, err error) {
	err = conn.Raw(func(c any) error {
		p, settings := postgresOf(c)
		if p == nil {
			return nil
		}
		done = true
		calls := withSettings(calls, settings, p.PgConn().TxStatus())
		var batch pgx.Batch
		for _, c := range calls {
			batch.Queue(c.statement, c.arguments...)
		}
		results := p.SendBatch(ctx, &batch)
		for _, c := range calls {
			if err := c.read(results); err != nil {
				return errors.Join(err, results.Close())
			}
			if c.answered != nil {
				c.answered()
			}
		}
		return results.Close()
	})
	return done, err
}

// read takes a statement's answer from those of a trip.
func (c *call) read(results pgx.BatchResults) error {
	switch {
	case c.each != nil:
		rows, err := results.Query()
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := c.each(rows); err != nil {
				return err
			}
		}
		rows.Close()
		return rows.Err()
	case c.into != nil:
		return results.QueryRow().Scan(c.into...)
	}
	tag, err := results.Exec()
	switch {
	case err != nil:
		return err
	case c.changes:
		return changedOne(tag.RowsAffected(), nil)
	case c.statement == commitTx && tag.String() != "COMMIT":
		return pgx.ErrTxCommitRollback
	}
	return nil
}

// execMany runs a statement once for each list of arguments; on PostgreSQL in one trip to the server.
func (tx *transaction) execMany(ctx context.Context, statement string, arguments [][]any) error {
	calls := make([]call, len(arguments))
	for i, a := range arguments {
		calls[i] = call{statement: statement, arguments: a}
	}
	if pipelined, err := pipeline(ctx, tx.conn, calls); pipelined || err != nil {
		return err
	}
	prepared, err := tx.tx.PrepareContext(ctx, statement)
	if err != nil {
		return err
	}
	defer prepared.Close()
	for _, a := range arguments {
		if _, err := prepared.ExecContext(ctx, a...); err != nil {
			return err
		}
	}
	return nil
}
