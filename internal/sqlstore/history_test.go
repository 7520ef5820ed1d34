package sqlstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
		m, err := s.Snapshot(t.Context(), keys.Visitor{
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
	if r, err := s.Renew(t.Context(), "n", lost); err != nil || r != keys.Renewed {
		t.Errorf("Renew before anything was lost: %v, %v", r, err)
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
		if r, err := s.Renew(t.Context(), "n", lost); err != nil || r != keys.Lagging {
			t.Errorf("Renew, %s: %v, %v, want Lagging", when, r, err)
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

// C23: a writer waits for the longest lease among the nodes that are behind.
func TestC23LongestLease(t *testing.T) {
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: pgtest.URL(t), Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, n := range []keys.Node{{ID: "a", Lease: 2e9}, {ID: "b", Lease: 20e9}, {ID: "c", Lease: 5e9}} {
		if err := s.Register(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if n, longest, err := s.Behind(t.Context(), 0); err != nil || n != 3 || longest != 20e9 {
		t.Errorf("%d behind, %v, %v", n, longest, err)
	}
	if _, err := s.Renew(context.Background(), "b", keys.Mark{}); err != nil {
		t.Fatal(err)
	}
	if n, longest, err := s.Behind(t.Context(), 0); err != nil || n != 2 || longest != 5e9 {
		t.Errorf("%d behind, %v, %v", n, longest, err)
	}
	if n, _, err := s.Behind(t.Context(), 1); !errors.Is(err, keys.ErrDiverged) {
		t.Errorf("%d behind a write that is not in this database: %v, want ErrDiverged", n, err)
	}
}
