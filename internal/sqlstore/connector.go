package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// guc is one of PostgreSQL's parameters and what Keyward sets it to.
type guc struct{ name, value string }

// What the promises need of a session, whatever the role, the database or the server say. It is set
// once connected: a pooler passes no startup parameters on.
var neededGUCs = []guc{
	{"synchronous_commit", "on"},
	// A temporary table, which another client of the same pooler may have left, hides no table.
	{"search_path", "public, pg_temp"},
	{"default_transaction_isolation", "read committed"},
	{"bytea_output", "hex"}, // the form in which values come from a pooler
	{"statement_timeout", "15s"},
	{"lock_timeout", "10s"},
	{"idle_in_transaction_session_timeout", "30s"},
}

// gucsOf returns the needed parameters with what the database URL says of them, which it takes out of
// the startup parameters.
func gucsOf(startup map[string]string) ([]guc, error) {
	needed := append([]guc(nil), neededGUCs...)
	for i := range needed {
		g := &needed[i]
		value, set := startup[g.name]
		if !set {
			continue
		}
		delete(startup, g.name)
		switch g.name {
		case "synchronous_commit":
			if value != "on" && value != "remote_apply" {
				return nil, errors.New("sqlstore: synchronous_commit in the database URL must be on or remote_apply: an answered write could be lost with the server")
			}
		case "search_path":
			value += ", pg_temp"
		case "default_transaction_isolation", "bytea_output":
			continue // Keyward's alone
		}
		g.value = value
	}
	return needed, nil
}

// setGUCs makes one statement that sets parameters, for the session or for the transaction alone.
func setGUCs(gucs []guc, transaction bool) string {
	var b strings.Builder
	for i, g := range gucs {
		if i == 0 {
			b.WriteString("SELECT ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString("set_config(" + quoted(g.name) + ", " + quoted(g.value) + ", " + strconv.FormatBool(transaction) + ")")
	}
	return b.String()
}

// quoted makes a literal that means the same whatever standard_conforming_strings is.
func quoted(text string) string {
	return " E'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}

// postgresSettings is how to connect.
type postgresSettings struct {
	*pgx.ConnConfig
	gucs         []guc
	requireFsync bool
	password     func() (string, error) // asked for each connection
}

// with returns the settings with other parameters.
func (s postgresSettings) with(gucs ...guc) postgresSettings {
	all := append([]guc(nil), s.gucs...)
	for _, g := range gucs {
		at := len(all)
		for i := range all {
			if all[i].name == g.name {
				at = i
			}
		}
		all = append(all[:at], append([]guc{g}, all[min(at+1, len(all)):]...)...)
	}
	s.gucs = all
	return s
}

// connect opens a connection outside the pools.
func (s postgresSettings) connect(ctx context.Context) (*pgx.Conn, error) {
	config := s.ConnConfig.Copy()
	var err error
	if config.Password, err = s.password(); err != nil {
		return nil, err
	}
	config.ValidateConnect = func(ctx context.Context, c *pgconn.PgConn) error {
		_, err := s.prepare(ctx, c)
		return err
	}
	return pgx.ConnectConfig(ctx, config)
}

// prepare sets a new connection's parameters and accepts a server that is new enough, takes writes
// and keeps them. It runs on every new connection, so that after a failover no pool reads from what
// has become a standby; with several hosts the next one is tried. pooler tells whether something
// that hands connections out stands before the server.
func (s postgresSettings) prepare(ctx context.Context, c *pgconn.PgConn) (pooler bool, err error) {
	results, err := c.Exec(ctx, setGUCs(s.gucs, false)+"; "+examine).ReadAll()
	if err != nil {
		return false, err
	}
	if len(results) != 2 || len(results[1].Rows) != 1 {
		return false, errors.New("unexpected answer to the version query")
	}
	row := results[1].Rows[0]
	version, err := strconv.Atoi(string(row[0]))
	switch {
	case err != nil || version < oldestPostgres:
		return false, unfitError(fmt.Sprintf("PostgreSQL 15 or newer is needed; this server is %d", version/10000))
	case string(row[1]) != "0":
		return false, errStandby
	case string(row[2]) != "off":
		return false, unfitError("this server takes no writes (default_transaction_read_only)")
	case string(row[3]) != "on" && s.requireFsync:
		return false, errFsync
	}
	// A pooler gives out a cancellation key of its own, whose number is not the server process's. The
	// database URL can say that there is one, with default_query_exec_mode.
	pid, err := strconv.ParseUint(string(row[4]), 10, 32)
	said := s.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement
	return err != nil || uint32(pid) != c.PID() || said, nil
}

const errFsync = unfitError("this PostgreSQL does not wait for its disk (fsync=off): a crash loses revocations that were answered, " +
	"or the whole database; set fsync=on, or --database-allow-unsafe-fsync (KEYWARD_DATABASE_ALLOW_UNSAFE_FSYNC)")

// connector opens connections for a pool of database/sql. A pooler may give each transaction another
// connection to the server, so neither prepared statements nor a session's parameters last there:
// see pooledConn. Whether there is one shows with each new connection.
type connector struct {
	settings       postgresSettings
	direct, pooled driver.Connector
	pooler         *atomic.Bool // what the last connection was to
}

var (
	errPooler   = errors.New("there is a pooler before the server")
	errNoPooler = errors.New("there is no pooler before the server any more")
)

func newConnector(s postgresSettings, pooler *atomic.Bool) *connector {
	c := &connector{settings: s, pooler: pooler}
	before := stdlib.OptionBeforeConnect(func(_ context.Context, config *pgx.ConnConfig) (err error) {
		config.Password, err = s.password()
		return err
	})
	make := func(mode pgx.QueryExecMode, pooled bool, other error) driver.Connector {
		config := s.ConnConfig.Copy()
		config.DefaultQueryExecMode = mode
		// Through a pooler notifications can arrive on any connection. Nobody reads them here.
		config.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {}
		config.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
			there, err := s.prepare(ctx, conn)
			if err == nil && there != pooled {
				err = other
			}
			return err
		}
		return stdlib.GetConnector(*config, before)
	}
	c.direct = make(s.DefaultQueryExecMode, false, errPooler)
	c.pooled = make(pgx.QueryExecModeExec, true, errNoPooler)
	return c
}

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	pooled := c.pooler.Load()
	conn, err := c.connect(ctx, pooled)
	if errors.Is(err, errPooler) || errors.Is(err, errNoPooler) {
		conn, err = c.connect(ctx, !pooled)
		if err == nil {
			c.pooler.Store(!pooled)
		}
	}
	return conn, err
}

func (c *connector) connect(ctx context.Context, pooled bool) (driver.Conn, error) {
	if !pooled {
		return c.direct.Connect(ctx)
	}
	conn, err := c.pooled.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &pooledConn{Conn: conn.(*stdlib.Conn), settings: setGUCs(c.settings.gucs, true)}, nil
}

// Driver implements driver.Connector.
func (c *connector) Driver() driver.Driver { return c.direct.Driver() }

// postgresOf returns the connection to PostgreSQL that a driver's connection is, and the statement
// that has to begin each transaction on it; nil when it is SQLite's.
func postgresOf(driverConn any) (_ *pgx.Conn, settings string) {
	switch c := driverConn.(type) {
	case *stdlib.Conn:
		return c.Conn(), ""
	case *pooledConn:
		return c.Conn.Conn(), c.settings
	}
	return nil, ""
}

// withSettings puts the statement that has to begin each transaction into the first trip of one.
// Without a BEGIN the statements of a trip are one transaction.
func withSettings(calls []call, settings string, status byte) []call {
	switch {
	case settings == "" || status != 'I' || len(calls) == 0:
		return calls
	case calls[0].statement == beginTx, calls[0].statement == beginRead:
		return append([]call{calls[0], {statement: settings}}, calls[1:]...)
	}
	return append([]call{{statement: settings}}, calls...)
}

// pooledConn is a connection to a pooler. Its statements are not prepared, and each transaction, also
// that of a single statement, begins with the session's parameters, in the same trip.
type pooledConn struct {
	*stdlib.Conn
	settings string
}

// inTransaction reports whether the parameters are set already.
func (c *pooledConn) inTransaction() bool { return c.Conn.Conn().PgConn().TxStatus() != 'I' }

// BeginTx implements driver.ConnBeginTx.
func (c *pooledConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	begin := "BEGIN ISOLATION LEVEL READ COMMITTED"
	switch sql.IsolationLevel(o.Isolation) {
	case sql.LevelDefault, sql.LevelReadCommitted:
	case sql.LevelRepeatableRead:
		begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
	default:
		return nil, fmt.Errorf("unsupported isolation: %v", o.Isolation)
	}
	if o.ReadOnly {
		begin += " READ ONLY"
	}
	tx, err := c.Conn.Conn().BeginTx(ctx, pgx.TxOptions{BeginQuery: begin + "; " + c.settings})
	if err != nil {
		return nil, badConn(err)
	}
	return pooledTx{ctx, tx}, nil
}

type pooledTx struct {
	ctx context.Context
	tx  pgx.Tx
}

func (t pooledTx) Commit() error   { return t.tx.Commit(t.ctx) }
func (t pooledTx) Rollback() error { return t.tx.Rollback(t.ctx) }

// badConn lets database/sql try another connection when nothing was sent on this one.
func badConn(err error) error {
	if pgconn.SafeToRetry(err) {
		return driver.ErrBadConn
	}
	return err
}

// begin sends a statement in a transaction of its own. The answer of the first, which sets the
// parameters, has been read.
func (c *pooledConn) begin(ctx context.Context, query string, args []driver.NamedValue) (pgx.BatchResults, error) {
	var batch pgx.Batch
	batch.Queue(c.settings)
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = a.Value
	}
	batch.Queue(query, values...)
	results := c.Conn.Conn().SendBatch(ctx, &batch)
	if _, err := results.Exec(); err != nil {
		_ = results.Close()
		return nil, badConn(err)
	}
	return results, nil
}

// ExecContext implements driver.ExecerContext.
func (c *pooledConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.inTransaction() || c.Conn.Conn().IsClosed() {
		return c.Conn.ExecContext(ctx, query, args)
	}
	results, err := c.begin(ctx, query, args)
	if err != nil {
		return nil, err
	}
	tag, err := results.Exec()
	if closing := results.Close(); err == nil {
		err = closing // it is known only now whether it was committed
	}
	if err != nil {
		return nil, err
	}
	return driver.RowsAffected(tag.RowsAffected()), nil
}

// QueryContext implements driver.QueryerContext.
func (c *pooledConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.inTransaction() || c.Conn.Conn().IsClosed() {
		return c.Conn.QueryContext(ctx, query, args)
	}
	results, err := c.begin(ctx, query, args)
	if err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return nil, err
	}
	r := &pooledRows{results: results, rows: rows}
	// The first row's arrival shows an error of the statement now, as it does without a pooler.
	if r.more = rows.Next(); !r.more {
		if err := r.end(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// pooledRows is the answer to a statement in a transaction of its own.
type pooledRows struct {
	results pgx.BatchResults
	rows    pgx.Rows
	more    bool // a row waits to be read
}

// end reads the end of the transaction: what it answered holds only when that is no error.
func (r *pooledRows) end() error {
	r.rows.Close()
	err := r.rows.Err()
	if closing := r.results.Close(); err == nil {
		err = closing
	}
	return err
}

// Columns implements driver.Rows.
func (r *pooledRows) Columns() []string {
	fields := r.rows.FieldDescriptions()
	names := make([]string, len(fields))
	for i := range fields {
		names[i] = fields[i].Name
	}
	return names
}

// Close implements driver.Rows.
func (r *pooledRows) Close() error { return r.end() }

// Next implements driver.Rows.
func (r *pooledRows) Next(dest []driver.Value) error {
	if !r.more {
		if err := r.end(); err != nil {
			return err
		}
		return io.EOF
	}
	values, err := r.rows.Values()
	if err != nil {
		return err
	}
	for i, v := range values {
		switch n := v.(type) {
		case int32:
			v = int64(n)
		case int16:
			v = int64(n)
		}
		dest[i] = v
	}
	r.more = r.rows.Next()
	return nil
}
