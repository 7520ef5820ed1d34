//go:build unix

package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

func run(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// R13, P7: with synchronous_commit=off for the role, the database or the whole server, a revoke that
// was answered is there after the server was killed right afterwards.
func TestR13AnsweredRevocationsSurviveACrash(t *testing.T) {
	const rounds = 3
	for _, source := range []struct {
		name, statement string
		modes           []string // of a pooler; empty = without one
	}{
		{"role", `ALTER ROLE postgres SET synchronous_commit = off`, []string{"", "session", "transaction"}},
		{"database", `ALTER DATABASE postgres SET synchronous_commit = off`, []string{""}},
		{"server", `ALTER SYSTEM SET synchronous_commit = off`, []string{""}},
	} {
		for _, mode := range source.modes {
			t.Run(strings.TrimSpace(source.name+" "+mode), func(t *testing.T) {
				t.Parallel()
				// Without a flush of its own the server writes its log every ten seconds.
				server := pgtest.NewServer(t, "fsync=on", "wal_writer_delay=10s", "wal_writer_flush_after=100MB", "autovacuum=off", "recovery_init_sync_method=syncfs")
				raw := rawConnection(t, server.URL())
				run(t, raw, source.statement, `SELECT pg_reload_conf()`)
				raw.Close()
				url := server.URL()
				if mode != "" {
					url = server.NewPooler(t, mode).URL()
				}
				o := sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1")), Logger: slog.New(slog.DiscardHandler)}
				lost := 0
				for round := range rounds {
					s, err := sqlstore.Open(t.Context(), o)
					if err != nil {
						t.Fatal(err)
					}
					k := keystest.NewKey("org"+fmt.Sprint(round), keys.StateActive)
					keystest.MustInsert(t, s, k)
					k.State = keys.StateRevoked
					keystest.MustWrite(t, s, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, k) })
					server.Kill(t)
					s.Close()
					server.Restart(t)
					if s, err = sqlstore.Open(t.Context(), o); err != nil {
						t.Fatal(err)
					}
					if got, err := s.Key(t.Context(), k.ID); err != nil || got.State != keys.StateRevoked {
						lost++
					}
					s.Close()
				}
				if lost > 0 {
					t.Errorf("%d of %d answered revocations were lost", lost, rounds)
				}
			})
		}
	}
}

// R13: a server that does not wait for its disk is rejected, and waiting would not help.
func TestR13FsyncOff(t *testing.T) {
	for setting, rejected := range map[string]bool{"off": true, "on": false} {
		server := pgtest.NewServer(t, "fsync="+setting)
		o := sqlstore.Options{URL: server.URL(), Ring: newRing(t, newLine(t, "m1")), RequireFsync: true}
		s, err := sqlstore.Open(t.Context(), o)
		if err == nil {
			s.Close()
		}
		if why := sqlstore.WrongSetting(err); (why != "") != rejected || rejected && !strings.Contains(why, "fsync=off") {
			t.Errorf("fsync=%s: %v (%s)", setting, err, why)
		}
		if sqlstore.Away(err) {
			t.Errorf("fsync=%s: %v counts as away", setting, err)
		}
	}
}

// R13: where a role may have fewer connections than the nodes would use, calls wait for one.
func TestR13ConnectionLimit(t *testing.T) {
	server := pgtest.NewServer(t)
	raw := rawConnection(t, server.URL())
	run(t, raw, `CREATE ROLE node LOGIN`, `ALTER DATABASE postgres OWNER TO node`, `GRANT ALL ON SCHEMA public TO node`)
	o := sqlstore.Options{
		URL: strings.Replace(server.URL(), "postgres@", "node@", 1), Ring: newRing(t, newLine(t, "m1")), Logger: slog.New(slog.DiscardHandler),
	}
	run(t, raw, `ALTER ROLE node CONNECTION LIMIT 20`)
	var nodes []*sqlstore.Store
	for range 3 {
		nodes = append(nodes, mustOpen(t, o))
	}
	const creates = 60
	failed := make(chan error, creates)
	var calls sync.WaitGroup
	begin := make(chan struct{})
	for i := range creates {
		s := nodes[i%len(nodes)]
		calls.Go(func() {
			<-begin
			org := fmt.Sprint("org", i)
			if _, err := s.Organization(t.Context(), org); err != nil {
				failed <- fmt.Errorf("read: %w", err)
				return
			}
			commit, err := s.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
				return keystest.Insert(ctx, tx, keystest.NewKey(org, keys.StateActive))
			})
			if err == nil {
				_, err = s.Standing(t.Context(), "n", commit)
			}
			if err != nil {
				failed <- fmt.Errorf("create: %w", err)
			}
		})
	}
	close(begin)
	calls.Wait()
	close(failed)
	n := 0
	for err := range failed {
		if n++; n == 1 {
			t.Log(err)
		}
	}
	if n > 0 {
		t.Errorf("%d of %d creates failed", n, creates)
	}
}

// R13: doctor's findings say what is in force, what it was set over, and whether the connections
// suffice.
func TestR13Findings(t *testing.T) {
	server := pgtest.NewServer(t)
	raw := rawConnection(t, server.URL())
	run(t, raw, `ALTER ROLE postgres SET synchronous_commit = off`, `ALTER ROLE postgres CONNECTION LIMIT 11`)
	pooler := server.NewPooler(t, "transaction")
	ring := newRing(t, newLine(t, "m1"))
	for url, want := range map[string]map[string]string{
		server.URL(): {"connected": "to the server", "connections": "12: writes 4, reads 4, barrier 1, lease 2, notifications 1"},
		pooler.URL(): {"connected": "through a pooler: statements are not prepared"},
		server.URL() + "&default_query_exec_mode=exec": {"connected": "through a pooler: statements are not prepared"},
	} {
		s := mustOpen(t, sqlstore.Options{URL: url, Ring: ring, Connections: 12})
		found, err := s.Durability(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]sqlstore.Finding)
		for _, f := range found {
			got[f.Name] = f
		}
		want["synchronous_commit"] = "on (set by Keyward; the role, the database or the server says off)"
		want["fsync"] = "off"
		for name, value := range want {
			if got[name].Value != value {
				t.Errorf("%s: %s is %q, want %q", url, name, got[name].Value, value)
			}
		}
		if got["fsync"].OK || !got["synchronous_commit"].OK || got["connections"].OK != (url != server.URL()) {
			t.Errorf("%s: %+v", url, found)
		}
	}
}

// R13: a node that finds every connection of its role taken starts once one is free.
func TestR13NoConnectionIsLeft(t *testing.T) {
	server := pgtest.NewServer(t)
	raw := rawConnection(t, server.URL())
	run(t, raw, `CREATE ROLE node LOGIN CONNECTION LIMIT 1`, `GRANT ALL ON SCHEMA public TO node`)
	o := sqlstore.Options{URL: strings.Replace(server.URL(), "postgres@", "node@", 1), Ring: newRing(t, newLine(t, "m1"))}
	other := rawConnection(t, o.URL)
	taken, err := other.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if s, err := sqlstore.Open(ctx, o); err == nil {
		s.Close()
		t.Fatal("the role has more connections than it may have: this test could not fail")
	} else if !sqlstore.Away(err) {
		t.Errorf("Open: %v does not count as away", err)
	}
	run(t, raw, `ALTER ROLE node CONNECTION LIMIT 3`)
	opened := make(chan error, 1)
	go func() {
		s, err := sqlstore.Open(t.Context(), o)
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	taken.Close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// C33: what callers can queue for is never what the lease waits for.
func TestC33TheLeaseWaitsForNoCaller(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		if err := f.Register(t.Context(), keys.Node{ID: "n", Lease: time.Second}); err != nil {
			t.Fatal(err)
		}
		keystest.MustInsert(t, f.Store, keystest.NewKey("org", keys.StateActive))
		renew := func() {
			t.Helper()
			within, stop := context.WithTimeout(t.Context(), 2*time.Second)
			defer stop()
			changes, err := f.Changes(within, keys.Mark{}, 10)
			if err != nil {
				t.Fatalf("Changes: %v", err)
			}
			if got, err := f.Renew(within, "n", changes.Mark); err != nil || got.Outcome != keys.Renewed {
				t.Errorf("Renew: %v, %v", got.Outcome, err)
			}
		}
		renew()
		ctx, cancel := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		defer busy.Wait()
		defer cancel()

		// More reads than there are connections for them: each stands still at its first row.
		const reads = 40
		reading := make(chan struct{}, reads)
		for range reads {
			busy.Go(func() {
				_, _, _ = f.Snapshot(ctx, keys.Visitor{
					Organization: func(keys.Organization) error { return nil },
					Key:          func(keys.Key) error { reading <- struct{}{}; <-ctx.Done(); return ctx.Err() },
				})
			})
		}
		held := 0
		for held == 0 || f.Stats()["reader"].WaitCount == 0 {
			select {
			case <-reading:
				held++
			case <-time.After(5 * time.Millisecond):
			}
		}
		// Writes that wait for a node's row, which somebody has locked, and so do not let go of
		// their connection.
		if f.Engine() == sqlstore.Postgres {
			if err := f.Register(t.Context(), keys.Node{ID: "behind"}); err != nil {
				t.Fatal(err)
			}
			tx, err := f.raw.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.ExecContext(t.Context(), `SELECT * FROM serving_nodes WHERE node_id = 'behind' FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				busy.Go(func() { _, _ = f.Fence(ctx, keys.Commit{Mark: keys.Mark{Revision: 1}}) })
			}
			for f.raw.QueryRowContext(t.Context(), `SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`).
				Scan(&held) != nil {
				time.Sleep(time.Millisecond)
			}
		}
		renew()
	})
}

// A password is read for each new connection, from wherever it comes, so that one that was changed is
// taken without a restart.
func TestAPasswordThatChanges(t *testing.T) {
	server := pgtest.NewServer(t)
	raw := rawConnection(t, server.URL())
	run(t, raw, `CREATE ROLE node LOGIN PASSWORD 'first'`, `GRANT ALL ON SCHEMA public TO node`)
	file := filepath.Join(server.Folder(), "pg_hba.conf")
	if err := os.WriteFile(file, []byte("host all node all scram-sha-256\nhost all all all trust\nlocal all all trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, raw, `SELECT pg_reload_conf()`)
	url := strings.Replace(server.URL(), "postgres@", "node@", 1)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		db, err := sql.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		err = db.PingContext(t.Context())
		db.Close()
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the server takes the user without a password: this test could not fail")
		}
	}

	dir := t.TempDir()
	pass := filepath.Join(dir, "pgpass")
	passfile := func(password string) {
		t.Helper()
		if err := os.WriteFile(pass, []byte("127.0.0.1:*:*:node:"+password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	current := "first"
	passfile(current)
	o := sqlstore.Options{Ring: newRing(t, newLine(t, "m1")), Logger: slog.New(slog.DiscardHandler)}
	fromFile, fromPassfile := o, o
	fromFile.URL, fromFile.Password = url, func() (string, error) { return current, nil }
	fromPassfile.URL = url + "&passfile=" + pass
	stores := map[string]*sqlstore.Store{"a function": mustOpen(t, fromFile), "a password file of libpq": mustOpen(t, fromPassfile)}

	run(t, raw, `ALTER ROLE node PASSWORD 'second'`)
	current = "second"
	passfile(current)
	run(t, raw, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'node'`)
	for name, s := range stores {
		var err error
		for range 10 { // a connection that is gone may be noticed by a call
			if _, err = s.Organization(t.Context(), "org"); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	fromFile.Password = func() (string, error) { return "first", nil }
	_, err := sqlstore.Open(t.Context(), fromFile)
	if why := sqlstore.WrongSetting(err); !strings.Contains(why, "password") {
		t.Errorf("the old password: %q, %v", why, err)
	}
	unreadable := errors.New("the file cannot be read")
	fromFile.Password = func() (string, error) { return "", unreadable }
	if _, err := sqlstore.Open(t.Context(), fromFile); !errors.Is(err, unreadable) {
		t.Errorf("a password that cannot be read: %v", err)
	}
}

// A wrong setting is told from a database that is away, and said without its value.
func TestWrongSettings(t *testing.T) {
	server := pgtest.NewServer(t)
	poolers := map[string]*pgtest.Pooler{"pgbouncer: ": server.NewPooler(t, "transaction"), "": nil}
	for way, pooler := range poolers {
		base := server.URL()
		if pooler != nil {
			base = pooler.URL()
		}
		for name, test := range map[string]struct{ url, why string }{
			"unknown parameter": {base + "&hunter=hunter2", "hunter"},
			"bad value":         {base + "&work_mem=hunter2", "parameter"},
			"no such database":  {strings.Replace(base, "/postgres?", "/hunter2?", 1), "database"},
			"no such user":      {strings.Replace(base, "postgres@", "hunter2@", 1), "user"},
			"no TLS":            {strings.Replace(base, "sslmode=disable", "sslmode=require", 1), "TLS"},
		} {
			_, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: test.url, Ring: newRing(t, newLine(t, "m1"))})
			why := sqlstore.WrongSetting(err)
			if !strings.Contains(why, test.why) || strings.Contains(why, "hunter2") || strings.Contains(why, "\n") {
				t.Errorf("%s%s: %q (%v)", way, name, why, err)
			}
			if sqlstore.Away(err) {
				t.Errorf("%s%s: counts as away", way, name)
			}
		}
	}
	server.Stop(t)
	for way, pooler := range poolers {
		url := server.URL()
		if pooler != nil {
			pooler.Kill(t)
			url = pooler.URL()
		}
		_, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))})
		if !sqlstore.Away(err) || sqlstore.WrongSetting(err) != "" {
			t.Errorf("%saway: %v", way, err)
		}
	}
}
