//go:build unix

package sqlstore_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// hostile are settings of a role that would break a promise if they were in force.
var hostile = []string{
	`ALTER ROLE postgres SET synchronous_commit = 'off'`,
	`ALTER ROLE postgres SET search_path = 'elsewhere'`,
	`ALTER ROLE postgres SET default_transaction_isolation = 'serializable'`,
	`ALTER ROLE postgres SET bytea_output = 'escape'`,
	`ALTER ROLE postgres SET statement_timeout = 0`,
	`ALTER ROLE postgres SET standard_conforming_strings = 'off'`,
}

// watchSettings makes every table check, for each row that is written, what the promises need of
// the transaction.
const watchSettings = `
CREATE FUNCTION public.watch_settings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('synchronous_commit') <> 'on' OR current_setting('search_path') <> 'public, pg_temp'
		OR current_setting('transaction_isolation') <> 'read committed' OR current_setting('statement_timeout') <> '15s' THEN
		RAISE EXCEPTION 'a write of % with synchronous_commit %, search_path %, isolation %, statement_timeout %', TG_TABLE_NAME,
			current_setting('synchronous_commit'), current_setting('search_path'), current_setting('transaction_isolation'),
			current_setting('statement_timeout');
	END IF;
	IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
	RETURN NEW;
END $$;
DO $$ DECLARE t text; BEGIN
	FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'goose_db_version' LOOP
		EXECUTE format('CREATE TRIGGER watch_settings BEFORE INSERT OR UPDATE OR DELETE ON public.%I
			FOR EACH ROW EXECUTE FUNCTION public.watch_settings()', t);
	END LOOP;
END $$`

// twoWays is a store whose notifications arrive another way: a pooler in transaction mode delivers
// none.
type twoWays struct {
	*sqlstore.Store
	notified *sqlstore.Store
}

func (w twoWays) Listen(ctx context.Context, heard func(keys.Announcement)) error {
	return w.notified.Listen(ctx, heard)
}

// R13: the store keeps its contract through pgbouncer's stock configuration in both modes, and what
// the role, the database or the server set breaks no promise.
func TestR13StoreSuite(t *testing.T) {
	ways := map[string]func(*testing.T, *pgtest.Server) *pgtest.Pooler{
		"direct":      nil,
		"session":     func(t *testing.T, s *pgtest.Server) *pgtest.Pooler { return s.NewPooler(t, "session") },
		"transaction": func(t *testing.T, s *pgtest.Server) *pgtest.Pooler { return s.NewPooler(t, "transaction") },
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.NewServer(t)
			newURL, direct := func(t *testing.T) string { return server.NewDatabase(t) }, func(url string) string { return url }
			if way != nil {
				pooler := way(t, server)
				newURL = func(t *testing.T) string { return pooler.NewDatabase(t) }
				direct = func(url string) string { return strings.Replace(url, pooler.Address(), server.Address(), 1) }
			}
			raw := rawConnection(t, server.URL())
			for _, statement := range hostile {
				if _, err := raw.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			keystest.StoreSuite(t, func(t *testing.T) keystest.Database {
				o := sqlstore.Options{URL: newURL(t), Ring: newRing(t, newLine(t, "m1")), Logger: slog.New(slog.DiscardHandler)}
				s := mustOpen(t, o)
				raw := rawConnection(t, direct(o.URL))
				if _, err := raw.ExecContext(t.Context(), `SET statement_timeout = 0; `+watchSettings); err != nil {
					t.Fatal(err)
				}
				return twoWays{s, mustOpen(t, withURL(o, direct(o.URL)))}
			})
		})
	}
}

func mustOpen(t *testing.T, o sqlstore.Options) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// R13: two nodes on one pgbouncer serve each other's writes, also once it was killed and started again.
func TestR13TwoNodes(t *testing.T) {
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pooler := pgtest.NewServer(t).NewPooler(t, mode)
			o := sqlstore.Options{URL: pooler.URL(), Ring: newRing(t, newLine(t, "m1"))}
			nodes := []*sqlstore.Store{mustOpen(t, o), mustOpen(t, o)}
			for round := range 2 {
				for i, s := range nodes {
					other := nodes[1-i]
					k := keystest.NewKey("org", keys.StateActive)
					if round == 1 && i == 0 {
						pooler.Kill(t)
						pooler.Restart(t)
					}
					keystest.MustInsert(t, s, k)
					if found, err := other.Key(t.Context(), k.ID); err != nil || found.State != keys.StateActive {
						t.Fatalf("round %d: created: %+v, %v", round, found, err)
					}
					k.State = keys.StateRevoked
					keystest.MustWrite(t, s, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, k) })
					if found, err := other.Key(t.Context(), k.ID); err != nil || found.State != keys.StateRevoked {
						t.Fatalf("round %d: revoked: %+v, %v", round, found, err)
					}
				}
			}
		})
	}
}
