package sqlstore_test

import (
	"context"
	"io/fs"
	"os"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C23: a node of the version before this one, which knows no gate, gets no lease after the migration; and while one that it had may
// still be good, nothing is answered early.
func TestC23MigrationUnderANodeOfTheVersionBefore(t *testing.T) {
	for _, serving := range []bool{false, true} {
		url := pgtest.URL(t)
		raw := rawConnection(t, url)
		provider, err := goose.NewProvider(goose.DialectPostgres, raw, must(fs.Sub(os.DirFS("migrations"), "postgres")), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := provider.UpTo(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if serving {
			if _, err := raw.ExecContext(t.Context(), `INSERT INTO nodes (node_id, address, version, lease, applied, renewed_at) VALUES ('old', '', '', 10000000, 0, 0)`); err != nil {
				t.Fatal(err)
			}
		}
		s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if st, err := s.Standing(t.Context(), "n", keys.Commit{}); err != nil || st.Settled == serving {
			t.Errorf("a node of the version before was serving: %t; Standing %+v, %v", serving, st, err)
		}
		if _, err := raw.ExecContext(t.Context(), `UPDATE nodes SET applied = 0 WHERE node_id = 'old'`); err == nil {
			t.Error("the version before can renew its lease")
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// P7: which durability is configured.
func TestP7Mode(t *testing.T) {
	primary := pgtest.NewServer(t)
	s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: primary.URL(), Ring: newRing(t, newLine(t, "m1"))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mode := func(want sqlstore.Mode) {
		t.Helper()
		if got, err := s.Mode(t.Context()); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	mode(sqlstore.Single)
	standby := primary.NewStandby(t, false)
	mode(sqlstore.Asynchronous)
	standby.Stop(t)
	standby.Follow(t, primary, true)
	mode(sqlstore.Synchronous)
}

// C23: a node that stands still in the middle of a write does not hold the others' writes up for long: the server ends its transaction.
func TestC23AWriteThatStandsStill(t *testing.T) {
	url := pgtest.URL(t)
	o := sqlstore.Options{URL: url, Ring: newRing(t, newLine(t, "m1"))}
	still, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer still.Close()
	other, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	begun, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := still.Write(context.Background(), keys.Reads{}, func(context.Context, keys.Tx) error {
			close(begun)
			<-goOn
			return nil
		})
		ended <- err
	}()
	<-begun
	if _, err := other.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return nil }); err != nil {
		t.Errorf("the other node's write: %v", err)
	}
	close(goOn)
	if err := <-ended; err == nil {
		t.Error("the write that stood still was committed after another had its number")
	}
}
