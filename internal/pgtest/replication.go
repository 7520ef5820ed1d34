//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// NewStandby starts a hot standby of s: a base backup of it on a port of its own, which streams what is written from
// then on. settings come on top of those of s. When it is synchronous, a commit on s waits for this standby from
// the moment NewStandby returns.
func (s *Server) NewStandby(tb testing.TB, synchronous bool, settings ...string) *Server {
	tb.Helper()
	// What a test asks of the standby never holds up what it replays.
	standby, err := newFolder(slices.Concat(s.settings, []string{"max_standby_streaming_delay=0", "max_standby_archive_delay=0"}, settings))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := standby.remove(); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	standby.follow(tb, s, synchronous, standby.runFirst)
	return standby
}

// Follow makes a server that is not running a standby of primary, as NewStandby does: what data it had is
// replaced by a base backup, its port stays.
func (s *Server) Follow(tb testing.TB, primary *Server, synchronous bool) {
	tb.Helper()
	if s.process != nil {
		tb.Fatal("pgtest: a running server cannot be made a standby")
	}
	s.follow(tb, primary, synchronous, s.run)
}

func (s *Server) follow(tb testing.TB, primary *Server, synchronous bool, run func() error) {
	tb.Helper()
	if err := os.RemoveAll(s.Folder()); err != nil {
		tb.Fatal(err)
	}
	s.baseBackup(tb, primary, s.Folder(), "--write-recovery-conf")
	s.source = primary
	if err := run(); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	if synchronous {
		execute(tb, primary.URL(), fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '"%s"'`, s.name()))
		execute(tb, primary.URL(), "SELECT pg_reload_conf()")
		primary.waitFor(tb, `SELECT current_setting('synchronous_standby_names') <> ''`) // a new connection: the setting is announced to every process
		// It is the checkpointer that makes commits wait. It reads the setting between two checkpoints.
		execute(tb, primary.URL(), "CHECKPOINT")
		execute(tb, primary.URL(), "CHECKPOINT")
	}
	state := map[bool]string{false: "async", true: "sync"}[synchronous]
	primary.waitFor(tb, `SELECT EXISTS (SELECT 1 FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming' AND sync_state = $2)`, s.name(), state)
}

// name is what the server calls itself towards the one it follows.
func (s *Server) name() string { return filepath.Base(s.folder) }

// baseBackup copies a running server's data into a new folder.
func (s *Server) baseBackup(tb testing.TB, from *Server, folder string, arguments ...string) {
	tb.Helper()
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres application_name=%s", from.port, s.name())
	c := s.command("pg_basebackup", append([]string{
		"--pgdata=" + folder, "--dbname=" + source, "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--no-manifest",
	}, arguments...)...)
	if out, err := c.CombinedOutput(); err != nil {
		tb.Fatalf("pgtest: pg_basebackup: %v\n%s", err, out)
	}
}

// WaitReplayed waits until a standby shows everything that its primary has written so far.
func (s *Server) WaitReplayed(tb testing.TB) {
	tb.Helper()
	var written string
	s.source.ask(tb, &written, `SELECT pg_current_wal_insert_lsn()::text`)
	s.source.waitFor(tb, `SELECT pg_current_wal_flush_lsn() >= $1::pg_lsn`, written)
	s.waitFor(tb, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, written)
}

// Withhold cuts a standby off from its primary: it gets nothing that is written from now on. With synchronous
// replication no commit on the primary is acknowledged any more.
func (s *Server) Withhold(tb testing.TB) {
	tb.Helper()
	execute(tb, s.URL(), "ALTER SYSTEM SET primary_conninfo = ''")
	execute(tb, s.URL(), "SELECT pg_reload_conf()")
	s.waitFor(tb, `SELECT NOT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)`)
	s.source.waitFor(tb, `SELECT NOT EXISTS (SELECT 1 FROM pg_stat_replication WHERE application_name = $1)`, s.name())
}

// Promote makes a standby a primary of its own, on a new timeline, and returns once it takes writes. The server it
// followed is left as it is.
func (s *Server) Promote(tb testing.TB) {
	tb.Helper()
	execute(tb, s.URL(), "SELECT pg_promote(true, 60)")
	s.waitFor(tb, `SELECT NOT pg_is_in_recovery()`)
}

// Backup takes a base backup of a running server and returns its folder.
func (s *Server) Backup(tb testing.TB) string {
	tb.Helper()
	folder, err := os.MkdirTemp(s.folder, "backup-")
	if err != nil {
		tb.Fatal(err)
	}
	if s.account != nil {
		if err := os.Chown(folder, int(s.account.Uid), int(s.account.Gid)); err != nil {
			tb.Fatal(err)
		}
	}
	s.baseBackup(tb, s, folder)
	return folder
}

// Restore puts a backup in the place of the data of a server that is not running. The backup is
// kept.
func (s *Server) Restore(tb testing.TB, backup string) {
	tb.Helper()
	if s.process != nil {
		tb.Fatal("pgtest: a backup cannot be restored under a running server")
	}
	if err := os.RemoveAll(s.Folder()); err != nil {
		tb.Fatal(err)
	}
	c := s.command("cp", "-a", backup, s.Folder())
	c.Path = filepath.Join("/bin", "cp")
	if out, err := c.CombinedOutput(); err != nil {
		tb.Fatalf("pgtest: %v\n%s", err, out)
	}
}

// ask scans the one value a query answers on the server's first database.
func (s *Server) ask(tb testing.TB, value any, query string, arguments ...any) {
	tb.Helper()
	err := connected(s.URL(), func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, query, arguments...).Scan(value)
	})
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// waitFor asks, on a new connection each time, until a query answers true.
func (s *Server) waitFor(tb testing.TB, query string, arguments ...any) {
	tb.Helper()
	deadline := time.After(startTimeout)
	for {
		var yes bool
		if s.ask(tb, &yes, query, arguments...); yes {
			return
		}
		select {
		case <-deadline:
			tb.Fatalf("pgtest: still not: %s", query)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
