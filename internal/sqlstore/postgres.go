package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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

// Limits of Options.Connections.
const (
	DefaultConnections = 10
	MinConnections     = 6
	MaxConnections     = 1000
)

// shares says how many connections each pool may have. Pools of their own, so that callers who wait
// for their turn never keep a node from renewing its lease.
type shares struct{ writer, reader, barrier, lease, listen int }

// sharesOf splits a total. The lease and the notifications have a fixed share.
func sharesOf(total int) shares {
	if total == 0 {
		total = DefaultConnections
	}
	s := shares{lease: 2, listen: 1, barrier: max(1, total/10)}
	rest := total - s.lease - s.listen - s.barrier
	s.reader = rest / 2
	s.writer = rest - s.reader
	return s
}

// AtOnce returns how many writes, and how many reads for lists, there should be at the same time.
// PostgreSQL's writers wait for the lock behind each other, so that it is never free between two.
// Lists leave half of the readers to others. SQLite has one writer, and reads with this process's
// own processors: one list at a time leaves the others to verification.
func (o Options) AtOnce() (writes, lists int) {
	if strings.HasPrefix(o.URL, SQLite+":") {
		return 1, 1
	}
	s := sharesOf(o.Connections)
	return s.writer, max(1, s.reader/2)
}

func (s shares) total() int64 { return int64(s.writer + s.reader + s.barrier + s.lease + s.listen) }

// String says it in words.
func (s shares) String() string {
	return fmt.Sprintf("%d: writes %d, reads %d, barrier %d, lease %d, notifications %d", s.total(), s.writer, s.reader, s.barrier, s.lease, s.listen)
}

func openPostgres(ctx context.Context, o Options) (_ *engine, err error) {
	config, err := postgresConfig(o)
	if err != nil {
		return nil, err
	}
	// A node that stands still in the middle of a write holds every writer's lock: the server ends its transaction soon. Reads hold none.
	writing := config.with(guc{"idle_in_transaction_session_timeout", mostIdleInWrite})
	// What nodes ask for every write is planned once. Left to itself PostgreSQL plans the look for changes anew each time, because it takes
	// their number, which it does not know, for a third of the table; and for the same reason would compile it.
	leasing := writing.with(guc{"plan_cache_mode", "force_generic_plan"}, guc{"jit", "off"})
	share := sharesOf(o.Connections)
	pooler := new(atomic.Bool)
	open := func(config postgresSettings, most int, idle time.Duration) *pool {
		return newPool(sql.OpenDB(newConnector(config, pooler)), most, idle)
	}
	e := &engine{
		name: Postgres, writer: open(writing, share.writer, maxIdle), reader: open(config, share.reader, maxIdle),
		barrier: open(leasing, share.barrier, maxIdle), lease: open(leasing, share.lease, 5*time.Minute),
		readTx:      &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		taken:       postgresTaken,
		rolledBack:  postgresRolledBack,
		patience:    patience,
		description: net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))) + "/" + config.Database,
		shares:      share,
		pooler:      pooler,
	}
	e.listen = func(ctx context.Context, heard func(string)) error {
		return postgresListen(ctx, config, e.lease, heard)
	}
	pools := e.pools()
	for _, p := range pools {
		p.full = postgresFull
		for _, other := range pools {
			if other != p && other != e.lease {
				p.others = append(p.others, other)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The lease's first: what it needs is there before anything else takes connections.
	if err := e.lease.PingContext(ctx); err != nil {
		if errors.Is(err, errStandby) && severalHosts(config.ConnConfig) {
			err = fmt.Errorf("%w: %w", ErrNoPrimary, err)
		}
		return nil, errors.Join(fmt.Errorf("sqlstore: %w", err), e.close())
	}
	return e, nil
}

// postgresConfig reads the URL, as libpq would, and refuses what is unsafe in it.
func postgresConfig(o Options) (postgresSettings, error) {
	config, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return postgresSettings{}, errors.New("sqlstore: the database URL cannot be read; it should look like postgres://user@host:5432/database?sslmode=verify-full")
	}
	if host, plain := plaintextHost(config); plain && !o.AllowPlaintext {
		return postgresSettings{}, fmt.Errorf("sqlstore: the connection to PostgreSQL on %s would not be encrypted: set sslmode=verify-full (or require) in the database URL, or allow plaintext on purpose", host)
	}
	if o.Connections != 0 && (o.Connections < MinConnections || o.Connections > MaxConnections) {
		return postgresSettings{}, fmt.Errorf("sqlstore: the number of connections must be %d to %d", MinConnections, MaxConnections)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if _, set := config.RuntimeParams["application_name"]; !set {
		config.RuntimeParams["application_name"] = "keyward"
	}
	settings := postgresSettings{ConnConfig: config, requireFsync: o.RequireFsync, password: o.Password}
	if settings.password == nil {
		settings.password = func() (string, error) { return passwordOf(o.URL) }
	}
	if settings.gucs, err = gucsOf(config.RuntimeParams); err != nil {
		return postgresSettings{}, err
	}
	config.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) {
		// Severity arrives untranslated only in the second field.
		if n.SeverityUnlocalized == "WARNING" || n.Code == "01000" {
			c.CustomData()[postgresWarned] = true
		}
	}
	return settings, nil
}

// passwordOf returns the password of a URL, or of the password file that goes with it (PGPASSFILE,
// ~/.pgpass), as it is now.
func passwordOf(rawURL string) (string, error) {
	config, err := pgx.ParseConfig(rawURL)
	if err != nil {
		return "", errors.New("the password file or a certificate that the database URL names cannot be read")
	}
	return config.Password, nil
}

// ErrNoPrimary means that several hosts were named and, just now, none that answers is a primary: one may be about to be promoted.
var ErrNoPrimary = errors.New("none of the database's hosts is a primary")

// errStandby is a server that takes no writes. Of a single host it is a mistake in the settings.
const errStandby = unfitError("this server is a hot standby; point the database URL at the primary, or list every host in it")

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
		if p, _ := postgresOf(c); p != nil {
			delete(p.PgConn().CustomData(), postgresWarned)
		}
		return nil
	})
}

// warned reports whether the server warned this connection since clearWarning. A
// commit whose wait for the synchronous standby was cancelled succeeds with nothing but a warning.
func warned(conn *sql.Conn) (w bool) {
	_ = conn.Raw(func(c any) error {
		if p, _ := postgresOf(c); p != nil {
			_, w = p.PgConn().CustomData()[postgresWarned]
		}
		return nil
	})
	return w
}
