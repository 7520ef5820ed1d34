package keys_test

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

var admin = keys.Operator{RequestID: "req-admin", RemoteAddress: "192.0.2.9"}

// many issues a key to each of n organizations, prefix0, prefix1, …
func (f *fixture) many(t *testing.T, prefix string, n int) (issued []keys.Issued) {
	t.Helper()
	for i := range n {
		name := fmt.Sprint(prefix, i)
		issued = append(issued, f.create(t, user("u_"+name, name)))
		f.clock.advance(time.Millisecond)
	}
	return issued
}

// revokeAll runs RevokeMany and collects its lines.
func revokeAll(t *testing.T, s *keys.Service, r keys.ManyRequest) (lines []keys.ManyOne, sum keys.ManyReport, err error) {
	t.Helper()
	if r.Reason == "" {
		r.Reason = "leaked"
	}
	sum, err = s.RevokeMany(t.Context(), admin, r, func(int) error { return nil }, func(batch []keys.ManyOne) error {
		lines = append(lines, batch...)
		return nil
	})
	return lines, sum, err
}

// revocations counts the audit log's revocations of each key.
func (f *fixture) revocations(t *testing.T) map[string]int {
	t.Helper()
	count := map[string]int{}
	for after := int64(0); ; {
		entries, err := f.store.Audit(t.Context(), after, 1000, sqlstore.AuditFilter{Action: keys.ActRevoke, Outcome: keys.Done})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			count[e.TargetID]++
			after = e.Sequence
		}
		if len(entries) == 0 {
			return count
		}
	}
}

func keyIDs(issued []keys.Issued) (ids []string) {
	for _, i := range issued {
		ids = append(ids, i.Key.ID)
	}
	return ids
}

// O3: each filter finds its keys and no other, newest first, page by page.
func TestO3SearchKeys(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.live(t, "org_live")
		old := f.create(t, user("u_old", "org_old"))
		f.clock.advance(time.Hour)
		between := f.clock.Now()
		live := f.create(t, user("u_live", "org_live"))
		expiring, err := f.Create(t.Context(), user("u_exp", "org_exp"), keys.CreateRequest{Name: "n", ExpiresInDays: ptr(int64(1))})
		if err != nil {
			t.Fatal(err)
		}
		f.clock.advance(time.Hour)
		rolled := f.create(t, user("u_roll", "org_roll"))
		f.clock.advance(time.Minute)
		next, err := f.Roll(t.Context(), user("u_roll", "org_roll"), keys.RollRequest{KeyID: rolled.Key.ID, OverlapSeconds: ptr(int64(86400))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Revoke(t.Context(), user("u_old", "org_old"), old.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		f.clock.advance(23 * time.Hour) // the one of a day has expired, the overlapping one has not
		if _, _, err := f.MintProbe(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		all := []string{next.Key.ID, rolled.Key.ID, expiring.Key.ID, live.Key.ID, old.Key.ID}
		for _, tt := range []struct {
			name   string
			filter keys.KeyFilter
			want   []string
		}{
			{"all, but not the probe's", keys.KeyFilter{}, all},
			{"organization", keys.KeyFilter{OrganizationID: ptr("org_roll")}, all[:2]},
			{"creator", keys.KeyFilter{CreatedBy: ptr("u_live")}, []string{live.Key.ID}},
			{"hint", keys.KeyFilter{Hint: &live.Key.Hint}, []string{live.Key.ID}},
			{"env", keys.KeyFilter{Environment: ptr("live")}, []string{live.Key.ID}},
			{"active", keys.KeyFilter{Status: ptr("active")}, []string{next.Key.ID, live.Key.ID}},
			{"overlapping", keys.KeyFilter{Status: ptr("overlapping")}, []string{rolled.Key.ID}},
			{"expired", keys.KeyFilter{Status: ptr("expired")}, []string{expiring.Key.ID}},
			{"revoked", keys.KeyFilter{Status: ptr("revoked")}, []string{old.Key.ID}},
			{"created before", keys.KeyFilter{CreatedBefore: ptr(between.Format(time.RFC3339))}, []string{old.Key.ID}},
			{"two conditions", keys.KeyFilter{OrganizationID: ptr("org_roll"), Status: ptr("active")}, []string{next.Key.ID}},
			{"none", keys.KeyFilter{OrganizationID: ptr("org_nobody")}, nil},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var got []string
				for cursor := ""; ; {
					page, err := f.SearchKeys(t.Context(), tt.filter, 2, cursor)
					if err != nil {
						t.Fatal(err)
					}
					for _, k := range page.Keys {
						got = append(got, k.ID)
					}
					if cursor = page.NextCursor; cursor == "" {
						break
					}
				}
				slices.Sort(got) // several are of the same moment
				want := slices.Sorted(slices.Values(tt.want))
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
		page, err := f.SearchKeys(t.Context(), keys.KeyFilter{}, 100, "")
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(page.Keys); i++ {
			if page.Keys[i].CreatedAt.After(page.Keys[i-1].CreatedAt) {
				t.Error("the keys are not newest first")
			}
		}
	})
}

// O3, O4: what a filter may not be.
func TestO3FilterRules(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	for param, filter := range map[string]keys.KeyFilter{
		"organization_id": {OrganizationID: ptr(".keyward")},
		"created_by":      {CreatedBy: ptr("")},
		"hint":            {Hint: ptr("abc")},
		"status":          {Status: ptr("ACTIVE")},
		"env":             {Environment: ptr("all")},
		"created_before":  {CreatedBefore: ptr("yesterday")},
	} {
		_, err := f.SearchKeys(t.Context(), filter, 10, "")
		if got := refusal(t, err); got.Code != api.InvalidRequest || got.Param != param {
			t.Errorf("search by %s: %v", param, err)
		}
		_, _, err = revokeAll(t, f.Service, keys.ManyRequest{Filter: &filter})
		if got := refusal(t, err); got.Code != api.InvalidRequest || got.Param != param {
			t.Errorf("revoke by %s: %v", param, err)
		}
	}
	for name, r := range map[string]keys.ManyRequest{
		"an empty filter":   {Filter: &keys.KeyFilter{}},
		"nothing":           {},
		"no ids":            {IDs: []string{}},
		"both":              {Filter: &keys.KeyFilter{Hint: ptr("abcd")}, IDs: []string{keys.ProbeKeyID}},
		"an id that's none": {IDs: []string{"key_x"}},
		"revoked keys":      {Filter: &keys.KeyFilter{Status: ptr("revoked")}},
		"too many ids":      {IDs: make([]string, 401)},
		"a long reason":     {Filter: &keys.KeyFilter{Hint: ptr("abcd")}, Reason: strings.Repeat("x", 256)},
	} {
		if _, _, err := revokeAll(t, f.Service, r); code(err) != api.InvalidRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	nothing := func(int) error { return nil }
	_, err := f.RevokeMany(t.Context(), admin, keys.ManyRequest{Filter: &keys.KeyFilter{Hint: ptr("abcd")}}, nothing, nil)
	if got := refusal(t, err); got.Param != "reason" {
		t.Errorf("no reason: %v", err)
	}
}

// O3, V6: a secret finds its key whatever became of it, and is not used by that.
func TestO3KeyOfSecret(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		k := f.create(t, user("u", "org_a"))
		for _, want := range []keys.State{keys.StateActive, keys.StateRevoked} {
			got, now, err := f.KeyOfSecret(t.Context(), k.Secret)
			if err != nil || got.ID != k.Key.ID || keys.Status(got.Lifecycle(), now) != want || !got.LastUsedAt.IsZero() {
				t.Errorf("%s: %+v, %v", want, got, err)
			}
			if _, err := f.RevokeAny(t.Context(), admin, k.Key.ID, "leaked"); err != nil {
				t.Fatal(err)
			}
		}
		for _, secret := range []string{k.Secret.Reveal() + "x", "no secret"} {
			if _, _, err := f.KeyOfSecret(t.Context(), token.NewSecret(secret)); code(err) != api.KeyNotFound {
				t.Errorf("another text: %v", err)
			}
		}
		probe, _, err := f.MintProbe(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.KeyOfSecret(t.Context(), probe); code(err) != api.KeyNotFound {
			t.Errorf("the probe's secret: %v", err)
		}
		for _, id := range []string{keys.ProbeKeyID, "key_x", "key_00000000000000000000000001"} {
			if _, _, err := f.AnyKey(t.Context(), id); code(err) != api.KeyNotFound {
				t.Errorf("AnyKey %s: %v", id, err)
			}
			if _, err := f.RevokeAny(t.Context(), admin, id, ""); code(err) != api.KeyNotFound {
				t.Errorf("RevokeAny %s: %v", id, err)
			}
		}
	})
}

// O4, C21, C23: an operator's revoke keeps the first time and reason, waits for the barrier, and is in
// the audit log under the operator and the key's organization.
func TestO4RevokeAny(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		k := f.create(t, user("u", "org_a")).Key
		first, err := f.RevokeAny(t.Context(), admin, k.ID, "leaked")
		if err != nil || first.RevokeReason != "leaked" || f.barrier.last != first.Revision {
			t.Fatalf("%+v, %v, waited for %d", first, err, f.barrier.last)
		}
		f.clock.advance(time.Hour)
		again, err := f.RevokeAny(t.Context(), admin, k.ID, "again")
		if err != nil || !again.RevokedAt.Equal(first.RevokedAt) || again.RevokeReason != "leaked" || f.barrier.last != again.Revision {
			t.Errorf("%+v, %v", again, err)
		}
		f.barrier.set(errors.New("no answer"))
		if _, err := f.RevokeAny(t.Context(), admin, k.ID, ""); code(err) != api.Unavailable {
			t.Errorf("without the barrier: %v", err)
		}
		entries, err := f.store.Audit(t.Context(), 0, 10, sqlstore.AuditFilter{TargetID: k.ID, Actor: "operator"})
		if err != nil || len(entries) != 3 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		if e := entries[0]; e.OrganizationID != "org_a" || e.Detail != "leaked" || e.RequestID != admin.RequestID || e.RemoteAddress != admin.RemoteAddress {
			t.Errorf("%+v", e)
		}
	})
}

// O4, C23: every matching key is revoked, each with one audit entry, in batches with one wait each,
// and a key is reported only after the wait for its batch.
func TestO4RevokeMany(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RevokeBatch = 3 })
		leaked, others := f.many(t, "org_leaked_", 8), f.many(t, "org_other_", 2)
		before := f.create(t, user("u_before", "org_before"))
		limit := ptr(f.clock.Now().Add(time.Second).Format(time.RFC3339))
		f.clock.advance(2 * time.Second)
		after := f.create(t, user("u_after", "org_after"))
		if _, err := f.Revoke(t.Context(), user("u_before", "org_before"), before.Key.ID, "its owner"); err != nil {
			t.Fatal(err)
		}

		dry, sum, err := revokeAll(t, f.Service, keys.ManyRequest{Filter: &keys.KeyFilter{CreatedBefore: limit}, DryRun: true})
		if err != nil || len(dry) != 10 || sum.Revoked != 10 || sum.Total != 10 || len(f.revocations(t)) != 1 {
			t.Fatalf("dry run: %d lines, %+v, %v", len(dry), sum, err)
		}

		calls := f.barrier.calls
		var lines []keys.ManyOne
		sum, err = f.RevokeMany(t.Context(), admin, keys.ManyRequest{Filter: &keys.KeyFilter{CreatedBefore: limit}, Reason: "leaked"},
			func(total int) error {
				if total != 10 {
					t.Errorf("started with %d", total)
				}
				return nil
			}, func(batch []keys.ManyOne) error {
				for _, one := range batch {
					k, err := f.store.Key(t.Context(), one.KeyID)
					if err != nil || k.State != keys.StateRevoked || f.barrier.last < k.Revision {
						t.Errorf("%s is reported: %s of revision %d, waited for %d, %v", one.KeyID, k.State, k.Revision, f.barrier.last, err)
					}
				}
				lines = append(lines, batch...)
				return nil
			})
		if err != nil || sum.Revoked != 10 || sum.Total != 10 || sum.Revision != f.barrier.last {
			t.Errorf("%+v, %v", sum, err)
		}
		if n := f.barrier.calls - calls; n != 5 { // 3 + 3 + 3 + 1, and the one that found no more
			t.Errorf("%d waits", n)
		}
		var got []string
		for i, one := range lines {
			got = append(got, one.KeyID)
			if one.Done != i+1 || one.Status != keys.ManyRevoked || one.OrganizationID == "" {
				t.Errorf("line %d: %+v", i, one)
			}
		}
		want := append(keyIDs(leaked), keyIDs(others)...)
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		revoked := f.revocations(t)
		for _, id := range append(want, before.Key.ID) {
			if revoked[id] != 1 {
				t.Errorf("%s has %d revocations in the audit log", id, revoked[id])
			}
		}
		if len(revoked) != 11 || revoked[after.Key.ID] != 0 {
			t.Errorf("%d keys were revoked", len(revoked))
		}
		summary, err := f.store.Audit(t.Context(), 0, 10, sqlstore.AuditFilter{Action: keys.ActRevokeMany})
		if err != nil || len(summary) != 1 || summary[0].Detail != "filter=created_before revoked=10" {
			t.Errorf("%+v, %v", summary, err)
		}
	})
}

// O4: a run that broke off in the middle is run again: the rest is revoked, nothing twice in the audit
// log, and what the first run wrote without waiting for every node is waited for now.
func TestO4RunAgain(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RevokeBatch = 3 })
		ids := keyIDs(f.many(t, "org_", 10))
		r := keys.ManyRequest{Filter: &keys.KeyFilter{Environment: ptr("test")}, Reason: "leaked"}
		nothing := func(int) error { return nil }

		reported := 0
		_, err := f.RevokeMany(t.Context(), admin, r, nothing, func(batch []keys.ManyOne) error {
			reported += len(batch)
			f.barrier.set(errors.New("a node does not answer"))
			return nil
		})
		if code(err) != api.Unavailable || reported != 3 || len(f.revocations(t)) != 6 {
			t.Fatalf("%v after %d keys, %d revoked", err, reported, len(f.revocations(t)))
		}
		f.barrier.set(nil)
		_, err = f.RevokeMany(t.Context(), admin, r, nothing, func([]keys.ManyOne) error { return errors.New("the client is gone") })
		if !errors.Is(err, keys.ErrStopped) || len(f.revocations(t)) != 9 {
			t.Fatalf("the client is gone: %v, %d revoked", err, len(f.revocations(t)))
		}
		lines, sum, err := revokeAll(t, f.Service, r)
		if err != nil || len(lines) != 1 || sum.Revoked != 1 {
			t.Fatalf("%d lines, %+v, %v", len(lines), sum, err)
		}
		lines, sum, err = revokeAll(t, f.Service, r)
		if err != nil || len(lines) != 0 || sum.Revoked != 0 || f.barrier.last != sum.Revision {
			t.Fatalf("once more: %d lines, %+v, %v", len(lines), sum, err)
		}
		want := map[string]int{}
		for _, id := range ids {
			want[id] = 1
		}
		if diff := cmp.Diff(want, f.revocations(t)); diff != "" {
			t.Errorf("revocations (-want +got):\n%s", diff)
		}
	})
}

// O4: two at once share the keys and write none twice.
func TestO4TwoAtOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RevokeBatch = 2 })
		ids := keyIDs(f.many(t, "org_", 15))
		var wg sync.WaitGroup
		sums := make([]keys.ManyReport, 2)
		for i := range sums {
			s := f.another(t)
			wg.Go(func() {
				var err error
				if _, sums[i], err = revokeAll(t, s, keys.ManyRequest{Filter: &keys.KeyFilter{Environment: ptr("test")}}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if sums[0].Revoked+sums[1].Revoked != len(ids) {
			t.Errorf("%+v", sums)
		}
		for id, n := range f.revocations(t) {
			if n != 1 {
				t.Errorf("%s has %d revocations in the audit log", id, n)
			}
		}
		if len(f.revocations(t)) != len(ids) {
			t.Errorf("%d of %d keys", len(f.revocations(t)), len(ids))
		}
	})
}

// O4: keys that are created and rolled meanwhile and match are revoked too: at the revision that the
// end names none is left.
func TestO4WhileKeysAreCreated(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RevokeBatch = 2 })
		existing := f.many(t, "org_", 8)
		rolling := existing[0] // the oldest: a pass that began is past its successor
		created := 0
		sum, err := f.RevokeMany(t.Context(), admin, keys.ManyRequest{Filter: &keys.KeyFilter{Environment: ptr("test")}, Reason: "leaked"},
			func(int) error { return nil }, func([]keys.ManyOne) error {
				created++
				if created == 2 {
					f.clock.advance(2 * time.Minute)
					_, err := f.Roll(t.Context(), user("u_org_0", "org_0"), keys.RollRequest{KeyID: rolling.Key.ID, OverlapSeconds: ptr(int64(3600))})
					return err
				}
				if created > 9 {
					return nil
				}
				_, err := f.Create(t.Context(), user(fmt.Sprint("new", created), fmt.Sprint("new_", created)), keys.CreateRequest{Name: "n"})
				f.clock.advance(time.Millisecond)
				return err
			})
		if err != nil {
			t.Fatal(err)
		}
		if want := len(existing) + 1 + 8; sum.Revoked != want {
			t.Errorf("%+v, want %d", sum, want)
		}
		page, err := f.SearchKeys(t.Context(), keys.KeyFilter{}, 100, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range page.Keys {
			if k.State != keys.StateRevoked && k.Revision <= sum.Revision {
				t.Errorf("%s of revision %d is %s, and the end was %d", k.ID, k.Revision, k.State, sum.Revision)
			}
		}
	})
}

// O4: named keys, each with what became of it.
func TestO4RevokeNamed(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		issued := f.many(t, "org_", 3)
		if _, err := f.RevokeAny(t.Context(), admin, issued[1].Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		nobody := "key_00000000000000000000000001"
		ids := []string{issued[0].Key.ID, issued[1].Key.ID, nobody, issued[0].Key.ID, keys.ProbeKeyID}
		dry, sum, err := revokeAll(t, f.Service, keys.ManyRequest{IDs: ids, DryRun: true})
		if err != nil || len(dry) != 1 || sum.Before != 1 || sum.NotFound != 2 {
			t.Errorf("dry run: %v, %+v, %v", dry, sum, err)
		}
		lines, sum, err := revokeAll(t, f.Service, keys.ManyRequest{IDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		want := []keys.ManyOne{
			{issued[0].Key.ID, "org_0", keys.ManyRevoked, 1}, {issued[1].Key.ID, "org_1", keys.ManyBefore, 2},
			{nobody, "", keys.ManyNotFound, 3}, {keys.ProbeKeyID, "", keys.ManyNotFound, 4},
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if sum.Revoked != 1 || sum.Before != 1 || sum.NotFound != 2 || sum.Revision != f.barrier.last {
			t.Errorf("%+v", sum)
		}
		if diff := cmp.Diff(map[string]int{issued[0].Key.ID: 1, issued[1].Key.ID: 1}, f.revocations(t)); diff != "" {
			t.Errorf("revocations (-want +got):\n%s", diff)
		}
	})
}

// P5, O3, O4: rows that somebody edited are left out and counted, keep no batch from going on, and can
// be ended by their ids.
func TestO4ForgedRows(t *testing.T) {
	f := open(t, sqlstore.SQLite, func(c *keys.Config) { c.RevokeBatch = 2 })
	issued := f.many(t, "org_", 7)
	db, err := sql.Open("sqlite", f.path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	forged := []string{issued[2].Key.ID, issued[3].Key.ID, issued[4].Key.ID}
	for _, id := range forged {
		if _, err := db.Exec(`UPDATE keys SET created_by = 'u_forged' WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
	}
	page, err := f.SearchKeys(t.Context(), keys.KeyFilter{}, 100, "")
	if err != nil || len(page.Keys) != 4 || page.LeftOut != 3 {
		t.Errorf("%d keys, %d left out, %v", len(page.Keys), page.LeftOut, err)
	}
	if _, _, err := f.AnyKey(t.Context(), forged[0]); code(err) != api.Unavailable {
		t.Errorf("AnyKey: %v", err)
	}
	_, sum, err := revokeAll(t, f.Service, keys.ManyRequest{Filter: &keys.KeyFilter{Environment: ptr("test")}})
	if err != nil || sum.Revoked != 4 || sum.LeftOut != 3 || sum.Total != 4 {
		t.Errorf("%+v, %v", sum, err)
	}
	_, sum, err = revokeAll(t, f.Service, keys.ManyRequest{IDs: forged})
	if err != nil || sum.Revoked != 3 {
		t.Errorf("by their ids: %+v, %v", sum, err)
	}
	if _, err := db.Exec(`DELETE FROM keys WHERE id = $1`, issued[0].Key.ID); err != nil {
		t.Fatal(err)
	}
	lines, sum, err := revokeAll(t, f.Service, keys.ManyRequest{IDs: []string{issued[0].Key.ID, issued[1].Key.ID}})
	if err != nil || sum.Unknown != 1 || sum.NotFound != 0 || lines[0].Status != keys.ManyUnknown || lines[1].Status != keys.ManyBefore {
		t.Errorf("a removed row: %+v, %+v, %v", lines, sum, err)
	}
}

// O2, C23: an update changes what it names and nothing else, and never switches on what was off.
func TestO2UpdateOrganization(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.put(t, keys.OrganizationRequest{ID: "org_p"})
		f.put(t, keys.OrganizationRequest{ID: "org_a", Name: ptr("Acme"), PaymentsEnabled: ptr(true), Active: ptr(false)})
		for _, tt := range []struct {
			name string
			u    keys.OrganizationUpdate
			want keys.Organization // its name, parent, payments, environment and activity
			code api.Code
		}{
			{"the name", keys.OrganizationUpdate{Name: ptr(" New ")}, keys.Organization{Name: "New", PaymentsEnabled: true, CurrentEnvironment: keys.Live}, ""},
			{"on", keys.OrganizationUpdate{Active: ptr(true)}, keys.Organization{Name: "New", PaymentsEnabled: true, CurrentEnvironment: keys.Live, Active: true}, ""},
			{"payments", keys.OrganizationUpdate{PaymentsEnabled: ptr(false)}, keys.Organization{Name: "New", CurrentEnvironment: keys.Live, Active: true}, ""},
			{"environment", keys.OrganizationUpdate{CurrentEnvironment: ptr("test")}, keys.Organization{Name: "New", CurrentEnvironment: keys.Test, Active: true}, ""},
			{"a parent", keys.OrganizationUpdate{ParentID: ptr("org_p")}, keys.Organization{Name: "New", ParentID: "org_p", CurrentEnvironment: keys.Test, Active: true}, ""},
			{"no parent, no name", keys.OrganizationUpdate{ParentID: ptr(""), Name: ptr("")}, keys.Organization{CurrentEnvironment: keys.Test, Active: true}, ""},
			{"nothing", keys.OrganizationUpdate{Force: true}, keys.Organization{}, api.InvalidRequest},
			{"itself", keys.OrganizationUpdate{ParentID: ptr("org_a")}, keys.Organization{}, api.InvalidRequest},
			{"nobody's child", keys.OrganizationUpdate{ParentID: ptr("org_x")}, keys.Organization{}, api.InvalidRequest},
			{"a bad environment", keys.OrganizationUpdate{CurrentEnvironment: ptr("prod")}, keys.Organization{}, api.InvalidRequest},
		} {
			tt.u.ID = "org_a"
			o, err := f.UpdateOrganization(t.Context(), admin, tt.u)
			if code(err) != tt.code {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if err != nil {
				continue
			}
			got := keys.Organization{Name: o.Name, ParentID: o.ParentID, PaymentsEnabled: o.PaymentsEnabled, CurrentEnvironment: o.CurrentEnvironment, Active: o.Active}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
			if stored, err := f.Organization(t.Context(), "org_a"); err != nil || stored != o || f.barrier.last != o.Revision {
				t.Errorf("%s: stored %+v, answered %+v, %v", tt.name, stored, o, err)
			}
		}
		if _, err := f.UpdateOrganization(t.Context(), admin, keys.OrganizationUpdate{ID: "org_x", Active: ptr(true)}); code(err) != api.OrganizationNotFound {
			t.Errorf("of no organization: %v", err)
		}
	})
}

// O2: an organization that has a key is given a parent only by force, by PATCH and by PUT; and PUT that
// is to create replaces nothing.
func TestO2ParentByForce(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.put(t, keys.OrganizationRequest{ID: "org_attacker"})
		f.put(t, keys.OrganizationRequest{ID: "org_a"})
		k := f.create(t, user("u", "org_a")).Key
		f.create(t, user("v", "org_c")) // never put
		attempts := map[string]func(id string, force bool) error{
			"PATCH": func(id string, force bool) error {
				_, err := f.UpdateOrganization(t.Context(), admin, keys.OrganizationUpdate{ID: id, ParentID: ptr("org_attacker"), Force: force})
				return err
			},
			"PUT": func(id string, force bool) error {
				_, err := f.PutOrganization(t.Context(), admin, keys.OrganizationRequest{ID: id, ParentID: ptr("org_attacker"), Force: force})
				return err
			},
		}
		for name, attempt := range attempts {
			if err := attempt("org_a", false); code(err) != api.OrganizationHasKeys {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := attempts["PUT"]("org_c", false); code(err) != api.OrganizationHasKeys {
			t.Errorf("PUT of one that was never put: %v", err)
		}
		if err := attempts["PATCH"]("org_a", true); err != nil {
			t.Error(err)
		}
		if err := attempts["PUT"]("org_a", false); err != nil {
			t.Errorf("the same parent again: %v", err)
		}
		f.put(t, keys.OrganizationRequest{ID: "org_a"})
		if _, err := f.RevokeAny(t.Context(), admin, k.ID, ""); err != nil {
			t.Fatal(err)
		}
		if err := attempts["PATCH"]("org_a", false); err != nil {
			t.Errorf("without a key: %v", err)
		}
		for id, want := range map[string]api.Code{"org_a": api.OrganizationExists, "org_new": ""} {
			if _, err := f.PutOrganization(t.Context(), admin, keys.OrganizationRequest{ID: id, CreateOnly: true}); code(err) != want {
				t.Errorf("create %s: %v", id, err)
			}
		}
	})
}

// O2, C4: a deleted organization counts as one that was never put, is listed no more, and comes back
// with PUT. It goes only without a key that is accepted and without connected accounts.
func TestO2DeleteOrganization(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RequireRegistered = true })
		remove := func(id string) error {
			_, err := f.DeleteOrganization(t.Context(), admin, id)
			return err
		}
		f.put(t, keys.OrganizationRequest{ID: "org_a", Name: ptr("Acme"), PaymentsEnabled: ptr(true)})
		f.put(t, keys.OrganizationRequest{ID: "org_b"})
		f.put(t, keys.OrganizationRequest{ID: "org_child", ParentID: ptr("org_b")})
		k := f.create(t, user("u", "org_a")).Key
		for id, want := range map[string]api.Code{
			"org_a": api.OrganizationHasKeys, "org_b": api.OrganizationHasAccounts, "org_x": api.OrganizationNotFound, ".x": api.OrganizationNotFound,
		} {
			if err := remove(id); code(err) != want {
				t.Errorf("%s: %v, want %s", id, err, want)
			}
		}
		if _, err := f.RevokeAny(t.Context(), admin, k.ID, ""); err != nil {
			t.Fatal(err)
		}
		for range 2 { // repeating it is safe
			if err := remove("org_a"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.Organization(t.Context(), "org_a"); code(err) != api.OrganizationNotFound {
			t.Errorf("get: %v", err)
		}
		list, _, err := f.Organizations(t.Context(), "", 100)
		if err != nil || len(list) != 2 {
			t.Errorf("list: %+v, %v", list, err)
		}
		if _, err := f.Create(t.Context(), user("w", "org_a"), keys.CreateRequest{Name: "n"}); code(err) != api.OrganizationUnknown {
			t.Errorf("create: %v", err)
		}
		if _, err := f.UpdateOrganization(t.Context(), admin, keys.OrganizationUpdate{ID: "org_a", Active: ptr(true)}); code(err) != api.OrganizationNotFound {
			t.Errorf("update: %v", err)
		}
		if _, err := f.PutOrganization(t.Context(), admin, keys.OrganizationRequest{ID: "org_d", ParentID: ptr("org_a")}); code(err) != api.InvalidRequest {
			t.Errorf("as a parent: %v", err)
		}
		seen := 0
		_, _, err = f.store.Snapshot(t.Context(), keys.Visitor{Key: func(keys.Key) error { return nil }, Organization: func(o keys.Organization) error {
			if o.ID == "org_a" && (!o.Deleted || !o.Genuine || o.Registered || !o.Active || o.PaymentsEnabled) {
				t.Errorf("the row is %+v", o)
			}
			seen++
			return nil
		}})
		if err != nil || seen != 3 {
			t.Errorf("%d rows, %v", seen, err)
		}
		if o := f.put(t, keys.OrganizationRequest{ID: "org_a"}); o.Deleted || !o.CreatedAt.Equal(f.clock.Now()) {
			t.Errorf("put again: %+v", o)
		}
		if _, err := f.Create(t.Context(), user("w", "org_a"), keys.CreateRequest{Name: "n"}); err != nil {
			t.Errorf("create after it was put again: %v", err)
		}
		if err := remove("org_child"); err != nil {
			t.Error(err)
		}
		if err := remove("org_b"); err != nil {
			t.Errorf("without its connected account: %v", err)
		}
	})
}
