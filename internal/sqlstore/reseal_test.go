package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// rotate opens the store again with a new master key in front of the ones it has, and makes it the
// database's.
func (f *fixture) rotate(t *testing.T, id string) {
	t.Helper()
	f.lines = append([]string{newLine(t, id)}, f.lines...)
	f.options.Ring = newRing(t, f.lines...)
	f.reopen(t)
	if _, lacking, err := f.SwitchMasterKey(t.Context(), id, keys.AuditEntry{Actor: "operator", Action: keys.ActReseal, Outcome: keys.Done}); err != nil ||
		lacking != nil {
		t.Fatalf("switch to %s: %v, lacking %v", id, err, lacking)
	}
}

func (f *fixture) fill(t *testing.T, n int) {
	t.Helper()
	for i := 0; i < n; i += 100 {
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			for j := i; j < min(i+100, n); j++ {
				if err := keystest.Insert(ctx, tx, keystest.NewKey(fmt.Sprint("org", j), keys.StateActive)); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func TestResealLetsTheOldMasterKeyGo(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		f.fill(t, 1100) // more than two batches
		before, err := f.VerifyAudit(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		changes, err := f.Changes(t.Context(), keys.Mark{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			return errors.Join(
				tx.KeepReplay(ctx, keys.Replay{Handle: keys.Handle{1}, MasterKeyID: "m1", Sealed: []byte("x")}),
				tx.KeepReplay(ctx, keys.Replay{Handle: keys.Handle{2}, MasterKeyID: "m1", KeyID: "gone", Sealed: []byte("x")}),
				tx.KeepReplay(ctx, keys.Replay{Handle: keys.Handle{3}, MasterKeyID: "m2", Sealed: []byte("x")}),
				tx.EraseReplays(ctx, "gone"))
		})
		f.rotate(t, "m2")
		intact(t, f)
		// Writes before the re-sealing are under the new key, rows beside them under the old.
		fresh := keystest.NewKey("fresh", keys.StateActive)
		revision := keystest.MustInsert(t, f.Store, fresh)
		intact(t, f)

		var done, total int64
		report, err := f.Reseal(t.Context(), func(d, all int64) { done, total = d, all })
		if err != nil {
			t.Fatal(err)
		}
		want := sqlstore.ResealReport{Keys: 1103, Organizations: 2, AuditEntries: 1107, KeptAnswers: map[string]int64{"m1": 1}}
		if diff := cmp.Diff(want, report); diff != "" {
			t.Error(diff)
		}
		if done != 1103+2+1107 || total != done {
			t.Errorf("progress ended at %d of %d", done, total)
		}
		report, err = f.Reseal(t.Context(), nil)
		if diff := cmp.Diff(sqlstore.ResealReport{KeptAnswers: map[string]int64{"m1": 1}}, report); err != nil || diff != "" {
			t.Errorf("a second run: %v %s", err, diff)
		}

		f.lines = f.lines[:1]
		f.options.Ring = newRing(t, f.lines...)
		intact(t, f)
		after, err := f.VerifyAudit(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := f.Audit(t.Context(), before.Sequence-1, 1, sqlstore.AuditFilter{})
		if err != nil || entries[0].Hash != before.Hash || after.Sequence != before.Sequence+2 {
			t.Errorf("re-sealing changed the log's hashes: %v", err)
		}
		if next := keystest.MustInsert(t, f.Store, keystest.NewKey("next", keys.StateActive)); next != revision+1 || changes.Revision == 0 {
			t.Errorf("revision %d after %d: re-sealing took one", next, revision)
		}
		intact(t, f)
	})
}

// A run that was cut short is run again; what is forged stays forged.
func TestResealGoesOnAndLeavesForgeries(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		f.fill(t, 1100)
		f.edit(t, `UPDATE keys SET environment = 'live' WHERE id = $1`, w.a.ID)
		f.edit(t, `UPDATE organizations SET active = 1 WHERE id = 'off'`)
		f.edit(t, `UPDATE audit SET seal = (SELECT a.seal FROM audit a WHERE a.sequence = 1) WHERE sequence = 3`)
		f.rotate(t, "m2")

		ctx, cancel := context.WithCancel(t.Context())
		if _, err := f.Reseal(ctx, func(int64, int64) { cancel() }); err == nil {
			t.Error("Reseal went on after its context had ended")
		}
		report, err := f.Reseal(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"key " + w.a.ID, "organization off", "audit entry 3"}; !slices.Equal(report.Refused, want) || report.Left != 3 {
			t.Errorf("refused %v (%d), want %v", report.Refused, report.Left, want)
		}
		if report.Keys == 0 || report.Keys >= 1102 {
			t.Errorf("%d keys sealed by the second run: it did not go on where the first one stopped", report.Keys)
		}
		// What was left is still under the old key, which so cannot go.
		if used, err := f.MasterKeysInUse(t.Context()); err != nil ||
			!slices.Equal(used, []string{"m1", "m2"}) {
			t.Errorf("in use: %v, %v", used, err)
		}
		f.reopen(t)
		a, err := f.snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for id, k := range a.keys {
			if k.Genuine != (id != w.a.ID) {
				t.Errorf("key %s: genuine %v", id, k.Genuine)
			}
		}
		if a.organizations["off"].Genuine || !a.organizations["org"].Genuine {
			t.Errorf("organizations: %+v", a.organizations)
		}
	})
}

// What a rolled-back or removed row does to the weight stays visible under the new key.
func TestResealDoesNotHideARemovedRow(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		f.edit(t, `DELETE FROM keys WHERE id = $1`, w.b.ID)
		f.rotate(t, "m2")
		if _, err := f.Reseal(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		f.seen()
		if _, err := f.snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if seen, want := f.seen(), []string{"keys " + w.b.ID}; !slices.Equal(seen, want) {
			t.Errorf("OnTampered was told of %v, want %v", seen, want)
		}
	})
}

func TestOpenRefusesARingWithoutTheDatabasesKey(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		o := f.options
		o.Ring = newRing(t, newLine(t, "other"))
		s, err := sqlstore.Open(t.Context(), o)
		if !errors.Is(err, seal.ErrUnknownKey) {
			t.Errorf("Open: %v", err)
		}
		if err == nil {
			s.Close()
		}
		f.Store = nil
		f.reopen(t)
		intact(t, f)
	})
}

// R10, C16: an idempotency record is looked up under a handle of its master key, so that key is in use until
// the record is removed, also when its answer was erased at the revoke.
func TestR10ErasedAnswerKeepsItsMasterKey(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			return errors.Join(
				tx.KeepReplay(ctx, keys.Replay{Handle: keys.Handle{1}, MasterKeyID: "m1", KeyID: "gone", Sealed: []byte("x")}),
				tx.EraseReplays(ctx, "gone"))
		})
		f.rotate(t, "m2")
		if _, err := f.Reseal(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		inUse := func(want ...string) {
			t.Helper()
			used, err := f.MasterKeysInUse(t.Context())
			if err != nil || !slices.Equal(used, want) {
				t.Errorf("in use: %v, %v; want %v", used, err, want)
			}
		}
		inUse("m1", "m2")
		if _, err := f.EraseKeptAnswers(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		inUse("m2")
	})
}
