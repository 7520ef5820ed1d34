package sqlstore_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C14, C15, C20: rates, kept answers and last uses survive a restart, as rows do.
func TestEverythingSurvivesARestart(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		at := time.UnixMicro(1_700_000_000_000_123).UTC()
		kept := keys.Replay{
			Handle: keys.Handle{7}, Fingerprint: [32]byte{8}, KeyID: w.a.ID, MasterKeyID: "m1",
			Salt: []byte("salt"), Sealed: []byte("sealed"), CreatedAt: at,
		}
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			if err := tx.Take(ctx, keys.ActCreate, "user", at); err != nil {
				return err
			}
			return tx.KeepReplay(ctx, kept)
		})
		if err := f.RecordUses(t.Context(), []keys.Use{{KeyID: w.a.ID, At: at}}); err != nil {
			t.Fatal(err)
		}
		before, err := f.snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.reopen(t)
		after, err := f.snapshot(t.Context())
		if diff := cmp.Diff(before, after, cmp.AllowUnexported(all{})); err != nil || diff != "" {
			t.Errorf("rows: %v %s", err, diff)
		}
		if r, err := f.Replay(t.Context(), []keys.Handle{kept.Handle}); err != nil || cmp.Diff(kept, r) != "" {
			t.Errorf("kept answer: %v %s", err, cmp.Diff(kept, r))
		}
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			if got, err := tx.LastTake(ctx, keys.ActCreate, "user"); err != nil || !got.Equal(at) {
				t.Errorf("rate: %v, %v", got, err)
			}
			return nil
		})
		listed, err := f.Keys(t.Context(), keys.KeyQuery{OrganizationID: "org", Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range listed {
			if used := k.LastUsedAt.Equal(at); used != (k.ID == w.a.ID) {
				t.Errorf("%s: last used %v", k.ID, k.LastUsedAt)
			}
		}
	})
}

// The clock given in the options is the transaction's and the store's.
func TestTheClockCanBeSet(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		f.options.Now = func() time.Time {
			return time.Date(2031, 1, 2, 3, 4, 5, 6789, time.FixedZone("", 7200))
		}
		f.reopen(t)
		want := time.Date(2031, 1, 2, 1, 4, 5, 6000, time.UTC)
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			if got := tx.Now(); got != want {
				t.Errorf("Tx.Now = %v, want %v", got, want)
			}
			return nil
		})
		if got, err := f.Now(t.Context()); err != nil || got != want {
			t.Errorf("Now = %v, %v", got, err)
		}
		if err := f.Record(t.Context(), keys.AuditEntry{Action: keys.ActList}); err != nil {
			t.Fatal(err)
		}
		if entries, err := f.Audit(t.Context(), 0, 1, sqlstore.AuditFilter{}); err != nil || !entries[0].At.Equal(want) {
			t.Errorf("the entry's time: %v, %v", entries, err)
		}
	})
}

// C17: once erased, a kept answer is in none of the database's files.
func TestC17AnErasedAnswerIsInNoFile(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	marks := []string{rand.Text(), rand.Text()}
	for i, mark := range marks {
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			return tx.KeepReplay(ctx, keys.Replay{
				Handle: keys.Handle{byte(i)}, KeyID: mark[:4], Sealed: []byte(mark), CreatedAt: time.UnixMicro(int64(i + 1)),
			})
		})
	}
	f.raw.Close()
	files := func(mark string) (in []string) {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f.Store = nil
		path := strings.TrimPrefix(f.options.URL, "sqlite:")
		all, err := filepath.Glob(path + "*")
		if err != nil || len(all) == 0 {
			t.Fatal(all, err)
		}
		for _, name := range all {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte(mark)) {
				in = append(in, name)
			}
		}
		f.reopen(t)
		return in
	}
	for _, mark := range marks {
		if len(files(mark)) == 0 {
			t.Fatal("the answer cannot be found while it is kept: this test could not fail")
		}
	}
	keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return tx.EraseReplays(ctx, marks[1][:4]) })
	if _, err := f.EraseKeptAnswers(t.Context(), time.UnixMicro(2)); err != nil {
		t.Fatal(err)
	}
	for i, mark := range marks {
		if in := files(mark); len(in) != 0 {
			t.Errorf("answer %d is still in %v", i, in)
		}
	}
}

// The account a node runs under needs no right to change the schema.
func TestAnAccountThatCannotChangeTheSchema(t *testing.T) {
	server := pgtest.NewServer(t)
	o := sqlstore.Options{URL: server.URL(), Ring: newRing(t, newLine(t, "m1"))}
	if _, _, err := sqlstore.Migrate(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	raw := rawConnection(t, server.URL())
	for _, statement := range []string{
		`CREATE ROLE node LOGIN`, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO node`,
	} {
		if _, err := raw.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	o.URL = strings.Replace(o.URL, "postgres@", "node@", 1)
	s, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	keystest.MustInsert(t, s, keystest.NewKey("org", keys.StateActive))
	if _, err := rawConnection(t, o.URL).ExecContext(t.Context(), `CREATE TABLE x (y int)`); err == nil {
		t.Error("the account can change the schema: this test could not fail")
	}
}
