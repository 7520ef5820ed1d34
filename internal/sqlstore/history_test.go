package sqlstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C23: a database that lost its last writes and counted on to the same revision is not taken for the one a node
// knows: no lease is renewed on it and its changes are no continuation.
func TestC23LostWritesAreTold(t *testing.T) {
	server := pgtest.NewServer(t)
	ring := newRing(t, newLine(t, "m1"))
	open := func() *sqlstore.Store {
		t.Helper()
		s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: server.URL(), Ring: ring})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() }) // a store that was closed already says so
		return s
	}
	write := func(s *sqlstore.Store, organization string) {
		t.Helper()
		keystest.MustInsert(t, s, keystest.NewKey(organization, keys.StateActive))
	}
	mark := func(s *sqlstore.Store) keys.Mark {
		t.Helper()
		m, _, err := s.Snapshot(t.Context(), keys.Visitor{
			Key:          func(keys.Key) error { return nil },
			Organization: func(keys.Organization) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}

	s := open()
	write(s, "org_kept")
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	kept := mark(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(server.Folder())); err != nil {
		t.Fatal(err)
	}
	server.Restart(t)

	s = open()
	write(s, "org_lost_1")
	write(s, "org_lost_2")
	lost := mark(s)
	changes, err := s.Changes(t.Context(), kept, 100)
	if err != nil || changes.Mark != lost {
		t.Errorf("before anything was lost: %+v, %v", changes.Mark, err)
	}
	if r, err := s.Renew(t.Context(), "n", lost); err != nil || r.Outcome != keys.Renewed {
		t.Errorf("Renew before anything was lost: %+v, %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	putBack(t, backup, server.Folder())
	server.Restart(t)

	s = open()
	behind := func(when string) {
		t.Helper()
		if _, err := s.Changes(t.Context(), lost, 100); !errors.Is(err, keys.ErrDiverged) {
			t.Errorf("Changes, %s: %v, want ErrDiverged", when, err)
		}
		if r, err := s.Renew(t.Context(), "n", lost); err != nil || r.Outcome != keys.Lagging {
			t.Errorf("Renew, %s: %+v, %v, want Lagging", when, r, err)
		}
	}
	behind("two writes short")
	write(s, "org_new_1")
	write(s, "org_new_2")
	if again := mark(s); again.Revision != lost.Revision {
		t.Fatalf("revision %d, want %d again", again.Revision, lost.Revision)
	}
	behind("at the same revision")
	write(s, "org_new_3")
	behind("one write further")
	if _, err := s.Changes(t.Context(), kept, 100); err != nil {
		t.Errorf("Changes from a mark of both histories: %v", err)
	}
}

// putBack replaces what is in a data folder, and gives it to who had it.
func putBack(t *testing.T, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(to)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(to, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	giveTo(t, to)
}

// C23: a database that does not have a write says nothing of it and fences nobody for it, whether it has fewer writes or another of
// the same number.
func TestC23AWriteThatIsNotHere(t *testing.T) {
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: pgtest.URL(t), Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "behind", Lease: 2e9}); err != nil {
		t.Fatal(err)
	}
	commit, err := s.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		return keystest.Insert(ctx, tx, keystest.NewKey("org_a", keys.StateActive))
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]keys.Commit{
		"a later number":               {Mark: keys.Mark{Revision: commit.Revision + 1}},
		"another write of that number": {Mark: keys.Mark{Revision: commit.Revision, Sequence: commit.Sequence, Hash: [32]byte{1}}},
	} {
		if st, err := s.Standing(t.Context(), "behind", other); !errors.Is(err, keys.ErrDiverged) {
			t.Errorf("%s: Standing %+v, %v, want ErrDiverged", name, st, err)
		}
		if fenced, err := s.Fence(t.Context(), other); !errors.Is(err, keys.ErrDiverged) || len(fenced) > 0 {
			t.Errorf("%s: fenced %v, %v, want ErrDiverged", name, fenced, err)
		}
	}
	if st, err := s.Standing(t.Context(), "behind", commit); err != nil || st.Behind != 1 || !st.Own || !st.Settled || st.Timeline != commit.Timeline {
		t.Errorf("Standing %+v, %v", st, err)
	}
	if fenced, err := s.Fence(t.Context(), commit); err != nil || !slices.Equal(fenced, []string{"behind"}) {
		t.Errorf("fenced %v, %v", fenced, err)
	}
}

// C23: a node that registers while a write is on its way, and holds a lease for what was before it, is waited for.
func TestC23NodeThatRegistersMeanwhile(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		commit, err := f.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			if err := f.Register(ctx, keys.Node{ID: "n"}); err != nil {
				return err
			}
			if r, err := f.Renew(ctx, "n", keys.Mark{}); err != nil || r.Outcome != keys.Renewed {
				t.Errorf("Renew before the commit: %+v, %v", r, err)
			}
			return keystest.Insert(ctx, tx, keystest.NewKey("org_a", keys.StateActive))
		})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := f.Standing(t.Context(), "n", commit); err != nil || st.Behind != 1 {
			t.Errorf("%d nodes are behind, %v; want the one that registered meanwhile", st.Behind, err)
		}
	})
}

// C23: on a timeline that is not noted as settled the rows say so, until it is.
func TestC23UnsettledTimeline(t *testing.T) {
	url := pgtest.URL(t)
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	settled := func(want bool) (timeline int64) {
		t.Helper()
		st, err := s.Standing(t.Context(), "n", keys.Commit{})
		r, err2 := s.Renew(t.Context(), "n", keys.Mark{})
		if err := errors.Join(err, err2); err != nil || st.Settled != want || r.Settled != want || st.Timeline != r.Timeline {
			t.Errorf("%+v, %+v, %v; want settled %t", st, r, err, want)
		}
		return st.Timeline
	}
	timeline := settled(true) // a new database has no lease to wait for
	if _, err := rawConnection(t, url).ExecContext(t.Context(), `UPDATE lineage SET settled = 99`); err != nil {
		t.Fatal(err)
	}
	settled(false)
	if err := s.Settle(t.Context(), timeline); err != nil {
		t.Fatal(err)
	}
	settled(true)
}

// C23: the version gate: a database that asks for a newer version of the protocol gives this program no lease, neither a running
// node nor one that starts.
func TestC23VersionGate(t *testing.T) {
	url := pgtest.URL(t)
	o := sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))}
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	raw := rawConnection(t, url)
	for _, gate := range []struct {
		protocol int
		want     error
	}{{keys.LeaseProtocol + 1, keys.ErrOutdated}, {keys.LeaseProtocol, nil}} {
		if _, err := raw.ExecContext(t.Context(), `UPDATE lineage SET protocol = $1`, gate.protocol); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Renew(t.Context(), "n", keys.Mark{}); !errors.Is(err, gate.want) || err == nil && r.Outcome != keys.Renewed {
			t.Errorf("gate at %d: Renew %+v, %v", gate.protocol, r, err)
		}
		if err := s.Register(t.Context(), keys.Node{ID: "another"}); !errors.Is(err, gate.want) {
			t.Errorf("gate at %d: Register %v", gate.protocol, err)
		}
		again, err := sqlstore.Open(t.Context(), o)
		if !errors.Is(err, gate.want) {
			t.Errorf("gate at %d: Open %v", gate.protocol, err)
		}
		if err == nil {
			again.Close()
		}
	}
}

// R5: a row that somebody made acknowledge what is not in the database could never be renewed again: its node is told to register anew.
func TestR5ARowAheadOfTheDatabase(t *testing.T) {
	url := pgtest.URL(t)
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	if _, err := rawConnection(t, url).ExecContext(t.Context(), `UPDATE serving_nodes SET applied = 9000000000`); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Renew(t.Context(), "n", keys.Mark{}); err != nil || r.Outcome != keys.Fenced {
		t.Errorf("Renew: %+v, %v, want Fenced", r, err)
	}
	if nodes, _, err := s.Nodes(t.Context()); err != nil || len(nodes) != 0 {
		t.Errorf("%d rows left, %v", len(nodes), err)
	}
}
