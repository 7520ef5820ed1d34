package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

// Pauses between two attempts to get a connection that the server has none left for.
const (
	minFullPause = 5 * time.Millisecond
	maxFullPause = 250 * time.Millisecond
)

// maxIdle is how long an unused connection is kept. It is longer than the pause between two writes
// of last_used_at, which so keep a connection warm, and shorter than a call's patience: where a
// role's limit is reached, a waiting node gets what another one does not use.
const maxIdle = 12 * time.Second

// pool is a pool of connections. Where the server has none left, which is known before a statement
// is sent, its methods wait for one as long as the call may take.
type pool struct {
	*sql.DB
	full   func(error) bool // the server has no connection left; nil = it always has
	others []*pool          // pools of the same store, which give up idle connections first
	most   int
}

// newPool returns a pool of at most that many connections.
func newPool(db *sql.DB, most int, idle time.Duration) *pool {
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	db.SetConnMaxIdleTime(idle)
	return &pool{DB: db, most: most}
}

// retry runs do again for as long as it fails because the server has no connection left.
func retry[T any](ctx context.Context, p *pool, do func() (T, error)) (T, error) {
	var deadline time.Time
	for pause := minFullPause; ; pause = min(2*pause, maxFullPause) {
		v, err := do()
		if err == nil || p.full == nil || !p.full(err) {
			return v, err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(patience)
			for _, other := range p.others {
				other.closeIdle()
			}
		}
		// The clock's nanoseconds spread those that were turned away together.
		timer := time.NewTimer(pause/2 + time.Duration(time.Now().Nanosecond())%pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return v, err
		}
		if time.Now().After(deadline) {
			return v, err
		}
	}
}

// closeIdle closes the connections that are not in use.
func (p *pool) closeIdle() {
	p.SetMaxIdleConns(0)
	p.SetMaxIdleConns(p.most)
}

// Conn is sql.DB's.
func (p *pool) Conn(ctx context.Context) (*sql.Conn, error) {
	return retry(ctx, p, func() (*sql.Conn, error) { return p.DB.Conn(ctx) })
}

// BeginTx is sql.DB's.
func (p *pool) BeginTx(ctx context.Context, o *sql.TxOptions) (*sql.Tx, error) {
	return retry(ctx, p, func() (*sql.Tx, error) { return p.DB.BeginTx(ctx, o) })
}

// QueryContext is sql.DB's.
func (p *pool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return retry(ctx, p, func() (*sql.Rows, error) { return p.DB.QueryContext(ctx, query, args...) })
}

// QueryRowContext is sql.DB's.
func (p *pool) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	row, _ := retry(ctx, p, func() (*sql.Row, error) {
		row := p.DB.QueryRowContext(ctx, query, args...)
		return row, row.Err()
	})
	return row
}

// ExecContext is sql.DB's.
func (p *pool) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return retry(ctx, p, func() (sql.Result, error) { return p.DB.ExecContext(ctx, query, args...) })
}
