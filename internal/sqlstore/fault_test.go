package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// openAt opens a store on the same database over another address.
func openAt(t *testing.T, o sqlstore.Options, address string) *sqlstore.Store {
	t.Helper()
	u, err := url.Parse(o.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = address
	s, err := sqlstore.Open(t.Context(), withURL(o, u.String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// C23: a connection lost during the commit leaves the outcome unknown, whichever it was; the
// same store goes on afterwards.
func TestC23AConnectionLostDuringTheCommit(t *testing.T) {
	for name, test := range map[string]struct {
		cut       func(p *faultproxy.Proxy, n int) <-chan struct{}
		committed bool
	}{
		"before the server had it":    {(*faultproxy.Proxy).CutBeforeCommit, false},
		"after the server had it too": {(*faultproxy.Proxy).CutAtCommit, true},
	} {
		t.Run(name, func(t *testing.T) {
			direct := open(t, sqlstore.Postgres)
			u, err := url.Parse(direct.options.URL)
			if err != nil {
				t.Fatal(err)
			}
			p := faultproxy.New(t, u.Host)
			s := openAt(t, direct.options, p.Address())
			keystest.MustInsert(t, s, keystest.NewKey("first", keys.StateActive))

			test.cut(p, 2)
			k := keystest.NewKey("org", keys.StateActive)
			_, err = s.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error { return keystest.Insert(ctx, tx, k) })
			if !errors.Is(err, keys.ErrOutcomeUnknown) {
				t.Errorf("Write: %v, want ErrOutcomeUnknown", err)
			}
			if err := s.Record(t.Context(), keys.AuditEntry{Action: keys.ActList}); !errors.Is(err, keys.ErrOutcomeUnknown) {
				t.Errorf("Record: %v, want ErrOutcomeUnknown", err)
			}
			p.CutAtCommit(0)

			_, err = direct.Key(t.Context(), k.ID)
			if committed := err == nil; committed != test.committed {
				t.Errorf("committed: %v (%v), want %v", committed, err, test.committed)
			}
			keystest.MustInsert(t, s, keystest.NewKey("last", keys.StateActive))
			intact(t, direct)
		})
	}
}

// waitFor polls a query that answers one flag until it is true, which it has to be before a call is over.
func waitFor(t *testing.T, db *sql.DB, query string, call <-chan error) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		var yes bool
		if err := db.QueryRowContext(t.Context(), query).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		select {
		case err := <-call:
			t.Fatalf("it was over, with %v, and at no time: %s", err, query)
		case <-deadline:
			t.Fatalf("still not: %s", query)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// C23: a commit whose wait for the synchronous standby is cancelled is reported as done, with a
// warning. It counts as unknown, grants no lease, and decides no verification.
func TestC23ACancelledSynchronousCommit(t *testing.T) {
	server := pgtest.NewServer(t)
	o := sqlstore.Options{URL: server.URL(), Ring: newRing(t, newLine(t, "m1"))}
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	known := keystest.NewKey("known", keys.StateActive)
	keystest.MustInsert(t, s, known)
	raw := rawConnection(t, server.URL())
	for _, statement := range []string{`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`} {
		if _, err := raw.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	const waiting = `FROM pg_stat_activity WHERE wait_event = 'SyncRep'`
	// The server takes the setting over when its checkpointer gets to it: commits wait from then on.
	probe := rawConnection(t, server.URL())
	for inForce := false; !inForce; {
		done := make(chan error, 1)
		go func() {
			_, err := probe.ExecContext(t.Context(), `CREATE TABLE IF NOT EXISTS probe (); DROP TABLE probe`)
			done <- err
		}()
		for answered := false; !answered && !inForce; {
			select {
			case err := <-done:
				if answered = true; err != nil {
					t.Fatal(err)
				}
			case <-time.After(5 * time.Millisecond):
				if err := raw.QueryRowContext(t.Context(), `SELECT count(*) = 1 `+waiting).Scan(&inForce); err != nil {
					t.Fatal(err)
				}
			}
		}
		if inForce {
			if _, err := raw.ExecContext(t.Context(), `SELECT pg_cancel_backend(pid) `+waiting); err != nil {
				t.Fatal(err)
			}
			<-done // with a warning that says it may not be on the standby
		}
	}

	for name, call := range map[string]func(context.Context) error{
		"Write": func(ctx context.Context) error {
			_, err := s.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
				return keystest.Insert(ctx, tx, keystest.NewKey("org", keys.StateRevoked))
			})
			return err
		},
		"Record": func(ctx context.Context) error {
			return s.Record(ctx, keys.AuditEntry{Action: keys.ActList})
		},
		"Renew": func(ctx context.Context) error {
			var revision int64
			if err := raw.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&revision); err != nil {
				return err
			}
			got, err := s.Renew(ctx, "n", keys.Mark{Revision: revision})
			if err == nil {
				t.Errorf("Renew = %v", got)
			}
			return err
		},
	} {
		result := make(chan error, 1)
		go func() { result <- call(t.Context()) }()
		waitFor(t, raw, `SELECT count(*) = 1 `+waiting, result)
		if _, err := raw.ExecContext(t.Context(), `SELECT pg_cancel_backend(pid) `+waiting); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, keys.ErrOutcomeUnknown) {
			t.Errorf("%s: %v, want ErrOutcomeUnknown", name, err)
		}
	}

	// The caller's patience ends while the commit waits.
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := s.Write(ctx, keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
		result <- err
	}()
	waitFor(t, raw, `SELECT count(*) = 1 `+waiting, result)
	cancel()
	if err := <-result; !errors.Is(err, keys.ErrOutcomeUnknown) {
		t.Errorf("a context that ended during the commit: %v, want ErrOutcomeUnknown", err)
	}
}

// R5: a server that is frozen, killed or stopped is an error in the time the caller gives, and the same
// store goes on when it is back.
func TestR5TheServerComesBack(t *testing.T) {
	server := pgtest.NewServer(t, "fsync=on")
	o := sqlstore.Options{URL: server.URL(), Ring: newRing(t, newLine(t, "m1"))}
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	revision := keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateRevoked))

	fails := func(t *testing.T) {
		t.Helper()
		for name, call := range map[string]func(context.Context) error{
			"Write": func(ctx context.Context) error {
				_, err := s.Write(ctx, keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
				return err
			},
			"Organization": func(ctx context.Context) error { _, err := s.Organization(ctx, "org"); return err },
			"Changes":      func(ctx context.Context) error { _, err := s.Changes(ctx, keys.Mark{}, 1); return err },
			"Renew":        func(ctx context.Context) error { _, err := s.Renew(ctx, "n", keys.Mark{}); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			began := time.Now()
			err := call(ctx)
			cancel()
			if err == nil || errors.Is(err, keys.ErrOutcomeUnknown) {
				t.Errorf("%s: %v, want an error that says nothing happened", name, err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s took %v", name, took)
			}
		}
	}
	for _, fault := range []struct {
		name       string
		away, back func(testing.TB)
	}{
		{"frozen", server.Freeze, server.Thaw},
		{"killed", server.Kill, server.Restart},
		{"stopped", server.Stop, server.Restart},
	} {
		t.Run(fault.name, func(t *testing.T) {
			fault.away(t)
			fails(t)
			fault.back(t)
			next := keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateRevoked))
			if next != revision+1 {
				t.Errorf("revision %d after %d", next, revision)
			}
			revision = next
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	began := time.Now()
	refused(t, o, "failed to connect")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Open took %v to see that the server is away", took)
	}
}
