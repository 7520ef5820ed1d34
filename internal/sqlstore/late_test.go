package sqlstore_test

import (
	"context"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C23: a renewal that was held up in the database, and is executed after the node acknowledged more,
// does not take that back: a writer would fence a node whose lease is fresh.
func TestC23ALateRenewalLowersNothing(t *testing.T) {
	url := pgtest.URL(t)
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Register(t.Context(), keys.Node{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	raw := rawConnection(t, url)
	hold, err := raw.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// The node's row is locked, so the renewal at revision 0 takes its snapshot and waits.
	if _, err := hold.ExecContext(t.Context(), `UPDATE serving_nodes SET applied = 1 WHERE node_id = 'n'`); err != nil {
		t.Fatal(err)
	}
	late := make(chan keys.Renewal, 1)
	go func() {
		r, err := s.Renew(context.Background(), "n", keys.Mark{})
		if err != nil {
			t.Error(err)
		}
		late <- r
	}()
	waiting := `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE serving_nodes%' AND datname = current_database()`
	for n := 0; n == 0; {
		if err := raw.QueryRowContext(t.Context(), waiting).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := hold.Commit(); err != nil { // what a later renewal of the same node did meanwhile
		t.Fatal(err)
	}
	if r := <-late; r.Outcome == keys.Renewed {
		t.Error("the late renewal was granted")
	}
	if st, err := s.Standing(t.Context(), "n", keys.Commit{Mark: keys.Mark{Revision: 1}}); err != nil || st.Behind != 0 {
		t.Errorf("%d nodes are behind (%v): the late renewal took the acknowledgement back", st.Behind, err)
	}
}
