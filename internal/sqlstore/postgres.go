package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	oldestPostgres = 150000 // server_version_num

	connectTimeout = 5 * time.Second
	// patience bounds every call but the ones that read whole tables, so that a server
	// which neither answers nor closes its connections is an error like any other.
	patience = 15 * time.Second

	// mostIdleInWrite is how long a write transaction may wait for its node's next statement; between two lie microseconds.
	mostIdleInWrite = "1s"

	// postgresWarned is where a connection notes that the server warned it.
	postgresWarned = "keyward.warned"
)

// Pools of their own, so that writers waiting for their turn never keep a node from renewing
// its lease.
const (
	postgresWriters = 8
	postgresReaders = 8
	postgresLeases  = 3
)

func openPostgres(ctx context.Context, o Options) (_ *engine, err error) {
	config, err := postgresConfig(o.URL, o.AllowPlaintext)
	if err != nil {
		return nil, err
	}
	// A node that stands still in the middle of a write holds every writer's lock: the server ends its transaction soon. Reads hold none.
	writing := config.Copy()
	writing.RuntimeParams["idle_in_transaction_session_timeout"] = mostIdleInWrite
	// What nodes ask for every write is planned once. Left to itself PostgreSQL plans the look for changes anew each time, because it takes
	// their number, which it does not know, for a third of the table; and for the same reason would compile it.
	leasing := writing.Copy()
	leasing.RuntimeParams["plan_cache_mode"], leasing.RuntimeParams["jit"] = "force_generic_plan", "off"
	open := func(config *pgx.ConnConfig, most int) *sql.DB {
		db := stdlib.OpenDB(*config)
		db.SetMaxOpenConns(most)
		db.SetMaxIdleConns(most)
		db.SetConnMaxIdleTime(5 * time.Minute)
		return db
	}
	e := &engine{
		name: Postgres, writer: open(writing, postgresWriters), reader: open(config, postgresReaders), lease: open(leasing, postgresLeases),
		readTx:      &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		listen:      func(ctx context.Context, heard func(string)) error { return postgresListen(ctx, config, heard) },
		taken:       postgresTaken,
		rolledBack:  postgresRolledBack,
		patience:    patience,
		description: net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))) + "/" + config.Database,
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := e.writer.PingContext(ctx); err != nil {
		if errors.Is(err, errStandby) && severalHosts(config) {
			err = fmt.Errorf("%w: %w", ErrNoPrimary, err)
		}
		return nil, errors.Join(fmt.Errorf("sqlstore: %w", err), e.close())
	}
	return e, nil
}

// postgresConfig reads the URL, as libpq would, and refuses what is unsafe in it.
func postgresConfig(rawURL string, allowPlaintext bool) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(rawURL)
	if err != nil {
		return nil, errors.New("sqlstore: the database URL cannot be read; it should look like postgres://user@host:5432/database?sslmode=verify-full")
	}
	if host, plain := plaintextHost(config); plain && !allowPlaintext {
		return nil, fmt.Errorf("sqlstore: the connection to PostgreSQL on %s would not be encrypted: set sslmode=verify-full (or require) in the database URL, or allow plaintext on purpose", host)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	for name, value := range map[string]string{
		"application_name":                    "keyward",
		"statement_timeout":                   "15s",
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": "30s",
	} {
		if _, set := config.RuntimeParams[name]; !set {
			config.RuntimeParams[name] = value
		}
	}
	config.ValidateConnect = validatePostgres
	config.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) {
		// Severity arrives untranslated only in the second field.
		if n.SeverityUnlocalized == "WARNING" || n.Code == "01000" {
			c.CustomData()[postgresWarned] = true
		}
	}
	return config, nil
}

// ErrNoPrimary means that several hosts were named and, just now, none that answers is a primary: one may be about to be promoted.
var ErrNoPrimary = errors.New("none of the database's hosts is a primary")

// errStandby is a server that takes no writes. Of a single host it is a mistake in the settings.
var errStandby = errors.New("this server is a hot standby; point the database URL at the primary, or list every host in it")

func severalHosts(config *pgx.ConnConfig) bool {
	for _, f := range config.Fallbacks { // the same host is there with TLS and without
		if f.Host != config.Host || f.Port != config.Port {
			return true
		}
	}
	return false
}

// plaintextHost returns a host of the configuration that could be spoken to without TLS
// over a network.
func plaintextHost(config *pgx.ConnConfig) (string, bool) {
	if config.TLSConfig == nil && !thisMachine(config.Host) {
		return config.Host, true
	}
	for _, f := range config.Fallbacks {
		if f.TLSConfig == nil && !thisMachine(f.Host) {
			return f.Host, true
		}
	}
	return "", false
}

func thisMachine(host string) bool {
	if host == "localhost" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// validatePostgres accepts a server that is new enough and takes writes. It runs on every new
// connection, so that after a failover no pool reads from what has become a standby; with
// several hosts the next one is tried.
func validatePostgres(ctx context.Context, c *pgconn.PgConn) error {
	results, err := c.Exec(ctx, `SELECT current_setting('server_version_num'), pg_is_in_recovery()::int, current_setting('transaction_read_only')`).ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return errors.New("unexpected answer to the version query")
	}
	row := results[0].Rows[0]
	version, err := strconv.Atoi(string(row[0]))
	switch {
	case err != nil || version < oldestPostgres:
		return fmt.Errorf("PostgreSQL 15 or newer is needed; this server is %d", version/10000)
	case string(row[1]) != "0":
		return errStandby
	case string(row[2]) != "off":
		return errors.New("this server takes no writes (default_transaction_read_only)")
	}
	return nil
}

func postgresTaken(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "23505"
}

// postgresRolledBack reports whether a failed COMMIT certainly left nothing behind: the server
// said ERROR, which it cannot any more once the commit record is written, or it answered
// ROLLBACK. Everything else, a FATAL too, leaves it open.
func postgresRolledBack(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	var e *pgconn.PgError
	return errors.As(err, &e) && e.SeverityUnlocalized == "ERROR"
}

// clearWarning forgets what the server warned this connection of.
func clearWarning(conn *sql.Conn) {
	_ = conn.Raw(func(c any) error {
		if p, ok := c.(*stdlib.Conn); ok {
			delete(p.Conn().PgConn().CustomData(), postgresWarned)
		}
		return nil
	})
}

// warned reports whether the server warned this connection since clearWarning. A
// commit whose wait for the synchronous standby was cancelled succeeds with nothing but a warning.
func warned(conn *sql.Conn) (w bool) {
	_ = conn.Raw(func(c any) error {
		if p, ok := c.(*stdlib.Conn); ok {
			_, w = p.Conn().PgConn().CustomData()[postgresWarned]
		}
		return nil
	})
	return w
}
