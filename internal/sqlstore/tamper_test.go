package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// world is what the tests below tamper with: keys a (active, of org), b (revoked, of org), c (active, of
// other); organizations org (on) and off (switched off). Each has a past: an older revision.
type world struct {
	a, b, c keys.Key
}

func populate(t *testing.T, f *fixture) (w world) {
	t.Helper()
	w.a, w.b, w.c = keystest.NewKey("org", keys.StateActive), keystest.NewKey("org", keys.StateOverlapping), keystest.NewKey("other", keys.StateActive)
	w.a.ExpiresAt = time.UnixMicro(1_800_000_000_000_000).UTC()
	keystest.MustInsert(t, f.Store, w.a, w.b, w.c)
	keystest.MustPut(t, f.Store, keys.Organization{ID: "org", Active: true}, keys.Organization{ID: "off", Active: true})
	w.b.State, w.b.RevokedAt = keys.StateRevoked, time.UnixMicro(1_750_000_000_000_000).UTC()
	keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, w.b) })
	keystest.MustPut(t, f.Store, keys.Organization{ID: "off", Active: false})
	return w
}

// checkKey wants one key not to be genuine through every way it can be read, the rest untouched,
// and the observer to have been told once.
func checkKey(t *testing.T, f *fixture, id string) {
	t.Helper()
	f.seen()
	ctx := t.Context()
	k, err := f.Key(ctx, id)
	if err != nil || k.Genuine {
		t.Errorf("Key: genuine %v, %v", k.Genuine, err)
	}
	listed, err := f.Keys(ctx, keys.KeyQuery{OrganizationID: k.OrganizationID})
	if err != nil {
		t.Error(err)
	}
	for _, l := range listed {
		if l.Genuine != (l.ID != id) {
			t.Errorf("Keys: %s: genuine %v", l.ID, l.Genuine)
		}
	}
	undo := errors.New("undo")
	_, err = f.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		inTx, err := tx.Key(ctx, id)
		if err != nil || inTx.Genuine {
			t.Errorf("Tx.Key: genuine %v, %v", inTx.Genuine, err)
		}
		in, err := tx.KeysIn(ctx, k.OrganizationID, k.State)
		if err != nil {
			t.Error(err)
		}
		for _, l := range in {
			if l.Genuine != (l.ID != id) {
				t.Errorf("KeysIn: %s: genuine %v", l.ID, l.Genuine)
			}
		}
		return undo
	})
	if !errors.Is(err, undo) {
		t.Errorf("Write: %v", err)
	}
	a, err := f.snapshot(ctx)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	for _, l := range a.keys {
		if l.Genuine != (l.ID != id) {
			t.Errorf("Snapshot: %s: genuine %v", l.ID, l.Genuine)
		}
	}
	if want := []string{"keys " + id}; !slices.Equal(f.seen(), want) {
		t.Errorf("OnTampered was not told once of %v", want)
	}
	ch, err := f.Changes(ctx, keys.Mark{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ch.Keys {
		if l.Genuine != (l.ID != id) {
			t.Errorf("Changes: %s: genuine %v", l.ID, l.Genuine)
		}
	}
	if again := f.seen(); len(again) != 0 {
		t.Errorf("OnTampered was told again: %v", again)
	}
}

// P5: writing to the database is not enough to make or change a key.
func TestP5EachEditedColumnOfAKeyShows(t *testing.T) {
	cases := []struct {
		name, statement string
		change          func(w *world) []any  // the statement's arguments; nil = the edited key's id
		edited          func(w *world) string // the edited key's id; nil = a's
	}{
		{"a copied digest", `UPDATE keys SET digest = $1 WHERE id = $2`, func(w *world) []any {
			d := w.c.Digest
			d[0] ^= 1
			return []any{d[:], w.a.ID}
		}, nil},
		{"a moved organization", `UPDATE keys SET organization_id = 'third' WHERE id = $1`, nil, nil},
		{"test turned live", `UPDATE keys SET environment = 'live' WHERE id = $1`, nil, nil},
		{"an expiry pushed out", `UPDATE keys SET expires_at = expires_at + 1 WHERE id = $1`, nil, nil},
		{"an expiry taken away", `UPDATE keys SET expires_at = 0 WHERE id = $1`, nil, nil},
		{"a cleared revocation", `UPDATE keys SET state = 'overlapping', revoked_at = 0 WHERE id = $1`, nil, func(w *world) string { return w.b.ID }},
		{"only the state", `UPDATE keys SET state = 'expired' WHERE id = $1`, nil, nil},
		{"the time of revocation", `UPDATE keys SET revoked_at = 5 WHERE id = $1`, nil, nil},
		{"the reason", `UPDATE keys SET revoke_reason = 'x' WHERE id = $1`, nil, nil},
		{"a changed name", `UPDATE keys SET name = 'other' WHERE id = $1`, nil, nil},
		{"a description that was none", `UPDATE keys SET description = 'x' WHERE id = $1`, nil, nil},
		{"the hint", `UPDATE keys SET hint = 'abcd' WHERE id = $1`, nil, nil},
		{"the time of creation", `UPDATE keys SET created_at = created_at - 1 WHERE id = $1`, nil, nil},
		{"the creator", `UPDATE keys SET created_by = 'other' WHERE id = $1`, nil, nil},
		{"the days asked for", `UPDATE keys SET expires_in_days = 9 WHERE id = $1`, nil, nil},
		{"what it replaces", `UPDATE keys SET replaces = 'key_x' WHERE id = $1`, nil, nil},
		{"the revision", `UPDATE keys SET revision = revision + 1 WHERE id = $1`, nil, nil},
		{"a seal that is not one", `UPDATE keys SET seal = $1 WHERE id = $2`, func(w *world) []any { return []any{make([]byte, 32), w.a.ID} }, nil},
		{"an empty seal", `UPDATE keys SET seal = $1 WHERE id = $2`, func(w *world) []any { return []any{[]byte{}, w.a.ID} }, nil},
		{"a seal copied from another row", `UPDATE keys SET seal = (SELECT seal FROM keys WHERE id = $1) WHERE id = $2`, func(w *world) []any { return []any{w.c.ID, w.a.ID} }, nil},
	}
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		copyTable(t, f, "keys")
		for _, test := range cases {
			t.Run(test.name, func(t *testing.T) {
				id := w.a.ID
				if test.edited != nil {
					id = test.edited(&w)
				}
				arguments := []any{id}
				if test.change != nil {
					arguments = test.change(&w)
				}
				f.edit(t, test.statement, arguments...)
				checkKey(t, f, id)
				f.restore(t, "keys")
			})
		}
		intact(t, f)
	})
}

// A digest of another length shows.
func TestP5ADigestOfAnotherLengthShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		f.edit(t, `UPDATE keys SET digest = $1 WHERE id = $2`, append(w.a.Digest[:], 0), w.a.ID)
		if k, err := f.Key(t.Context(), w.a.ID); err != nil || k.Genuine {
			t.Errorf("Key: genuine %v, %v", k.Genuine, err)
		}
	})
}

// P5, P3: a row inserted by SQL is accepted nowhere, even with another row's seal; it can be revoked,
// and then it is genuine.
func TestP5APlantedKeyShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		planted := keystest.NewKey("victim", keys.StateActive)
		f.edit(t, `INSERT INTO keys (id, organization_id, environment, digest, hint, name, created_at, created_by,
				expires_in_days, expires_at, state, revoked_at, revoke_reason, replaces, revision, seal_key_id, seal)
			SELECT $1, 'victim', 'live', $2, hint, name, created_at, created_by,
				expires_in_days, 0, 'active', 0, '', '', revision, seal_key_id, seal FROM keys WHERE id = $3`,
			planted.ID, planted.Digest[:], w.a.ID)
		checkKey(t, f, planted.ID)

		// An audit entry beside it does not help: it cannot be authenticated.
		f.edit(t, `INSERT INTO audit (sequence, at, actor, action, organization_id, target_id, outcome, detail,
				remote_address, request_id, revision, hash, seal_key_id, seal)
			SELECT 1000, at, actor, action, organization_id, $1, outcome, detail, remote_address, request_id, revision, hash, seal_key_id, seal
			FROM audit WHERE sequence = 1`, planted.ID)
		if _, err := f.snapshot(t.Context()); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Snapshot with a forged audit entry: %v", err)
		}
		f.edit(t, `DELETE FROM audit WHERE sequence = 1000`)

		planted.State = keys.StateRevoked
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, planted) })
		if k, err := f.Key(t.Context(), planted.ID); err != nil || !k.Genuine || k.State != keys.StateRevoked {
			t.Errorf("after the revocation: %+v, %v", k, err)
		}
		intact(t, f)
	})
}

// intact wants a database in which nothing is wrong.
func intact(t *testing.T, f *fixture) {
	t.Helper()
	f.reopen(t) // forgets what was told before
	f.seen()
	a, err := f.snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	for id, k := range a.keys {
		if !k.Genuine {
			t.Errorf("key %s is not genuine", id)
		}
	}
	for id, o := range a.organizations {
		if !o.Genuine {
			t.Errorf("organization %s is not genuine", id)
		}
	}
	report, err := f.VerifyAudit(t.Context(), nil)
	if err != nil || len(report.Findings) != 0 {
		t.Errorf("VerifyAudit: %v, %v", report.Findings, err)
	}
	if seen := f.seen(); len(seen) != 0 {
		t.Errorf("OnTampered was told of %v", seen)
	}
}

// P5: an edited organization is switched off, whatever the edit.
func TestP5EachEditedColumnOfAnOrganizationShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		copyTable(t, f, "organizations")
		for _, edit := range []string{
			`name = 'other'`, `parent_organization_id = 'org'`, `payments_enabled = 1`, `payments_enabled = 2`, `current_environment = 'live'`,
			`active = 1`, `active = 7`, `deleted = 1`, `deleted = 2`, `created_at = 5`, `updated_at = 5`, `revision = revision + 1`,
			`seal = (SELECT o.seal FROM organizations o WHERE o.id = 'org')`,
		} {
			t.Run(edit, func(t *testing.T) {
				f.edit(t, `UPDATE organizations SET `+edit+` WHERE id = 'off'`)
				checkOrganization(t, f, "off")
				f.restore(t, "organizations")
			})
		}
		intact(t, f)
	})
}

// checkOrganization wants one organization neither genuine nor active through every way it
// can be read, and the observer to have been told once.
func checkOrganization(t *testing.T, f *fixture, id string) {
	t.Helper()
	f.seen()
	check := func(how string, o keys.Organization, err error) {
		t.Helper()
		if err != nil || o.Genuine || o.Active || o.ID != id {
			t.Errorf("%s: %+v, %v", how, o, err)
		}
	}
	ctx := t.Context()
	o, err := f.Organization(ctx, id)
	check("Organization", o, err)
	k := keystest.NewKey(id, keys.StateRevoked)
	keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
		o, err := tx.Organization(ctx, id)
		check("Tx.Organization", o, err)
		return keystest.Insert(ctx, tx, k)
	})
	a, err := f.snapshot(ctx)
	o, ok := a.organizations[id]
	if !ok {
		t.Error("Snapshot leaves it out")
	}
	check("Snapshot", o, err)
	for other, o := range a.organizations {
		if other != id && !o.Genuine {
			t.Errorf("Snapshot: %s is not genuine", other)
		}
	}
	if seen, want := f.seen(), []string{"organizations " + id}; !slices.Equal(seen, want) {
		t.Errorf("OnTampered was told of %v, want %v", seen, want)
	}
}

// A put makes an organization good again that somebody edited or removed, and the weight with it.
func TestPutRepairsAnOrganization(t *testing.T) {
	for _, statement := range []string{`DELETE FROM organizations WHERE id = 'off'`, `UPDATE organizations SET active = 1 WHERE id = 'off'`} {
		t.Run(statement, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fixture) {
				populate(t, f)
				f.edit(t, statement)
				checkOrganization(t, f, "off")
				keystest.MustPut(t, f.Store, keys.Organization{ID: "off", Active: false})
				intact(t, f)
			})
		})
	}
}

// Removing the row of a switched-off organization does not make it an unregistered one, which is on.
func TestARemovedOrganizationShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		f.edit(t, `DELETE FROM organizations WHERE id = 'off'`)
		checkOrganization(t, f, "off")
	})
}

func TestARemovedKeyShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		f.edit(t, `DELETE FROM keys WHERE id = $1`, w.b.ID)
		a, err := f.snapshot(t.Context())
		if err != nil || len(a.keys) != 3 || !a.keys[w.a.ID].Genuine || a.keys[w.b.ID].Genuine {
			t.Errorf("Snapshot: %v, %v", a, err) // the removed one is visited, so that a node that has it refuses it
		}
		if k, err := f.Key(t.Context(), w.b.ID); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Key: %v, %v; it must not be answered as one that never was", k, err)
		}
		_, err = f.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			_, err := tx.Key(ctx, w.b.ID)
			return err
		})
		if !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Key in a write: %v", err)
		}
		if seen, want := f.seen(), []string{"keys " + w.b.ID}; !slices.Equal(seen, want) {
			t.Errorf("OnTampered was told of %v, want %v", seen, want)
		}
	})
}

// P5: a row that somebody deletes between a write's reading it and changing it. The write is in force for all that know the key, and is
// not answered with success. On SQLite nobody else can write meanwhile.
func TestP5RowThatVanishesInAWrite(t *testing.T) {
	f := open(t, sqlstore.Postgres)
	w := populate(t, f)
	_, err := f.Write(t.Context(), keys.Reads{KeyID: w.b.ID}, func(ctx context.Context, tx keys.Tx) error {
		k, err := tx.Key(ctx, w.b.ID)
		if err != nil {
			return err
		}
		f.edit(t, `DELETE FROM keys WHERE id = $1`, w.b.ID)
		k.State = keys.StateRevoked
		return keystest.Update(ctx, tx, k)
	})
	if !errors.Is(err, keys.ErrOutcomeUnknown) {
		t.Errorf("Write: %v, want ErrOutcomeUnknown", err)
	}
	if _, err := f.Key(t.Context(), w.b.ID); !errors.Is(err, keys.ErrTampered) {
		t.Errorf("Key: %v, want ErrTampered", err)
	}
	if a, err := f.snapshot(t.Context()); err != nil || a.keys[w.b.ID].Genuine {
		t.Errorf("Snapshot: %v, genuine %t", err, a.keys[w.b.ID].Genuine)
	}
}

// copyTable keeps a table as it is, to be put back later.
func copyTable(t *testing.T, f *fixture, table string) {
	t.Helper()
	if _, err := f.raw.ExecContext(t.Context(), `CREATE TABLE old_`+table+` AS SELECT * FROM `+table); err != nil {
		t.Fatal(err)
	}
}

// restore puts a table back as copyTable found it, and makes the store forget what it told of.
func (f *fixture) restore(t *testing.T, table string) {
	t.Helper()
	f.edit(t, `DELETE FROM `+table)
	f.edit(t, `INSERT INTO `+table+` SELECT * FROM old_`+table)
	f.reopen(t)
}

// A row rolled back to an older copy, whose seal is good.
func TestARolledBackRowShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		copyTable(t, f, "keys")
		copyTable(t, f, "organizations")
		revoked := w.a
		revoked.State, revoked.RevokedAt = keys.StateRevoked, time.UnixMicro(1_760_000_000_000_000).UTC()
		last := keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, revoked) })
		keystest.MustPut(t, f.Store, keys.Organization{ID: "org", Active: false})

		f.edit(t, `DELETE FROM keys WHERE id = $1`, w.a.ID)
		f.edit(t, `INSERT INTO keys SELECT * FROM old_keys WHERE id = $1`, w.a.ID)
		checkKey(t, f, w.a.ID)
		f.edit(t, `DELETE FROM organizations WHERE id = 'org'`)
		f.edit(t, `INSERT INTO organizations SELECT * FROM old_organizations WHERE id = 'org'`)
		if o, err := f.Organization(t.Context(), "org"); err != nil || o.Genuine || o.Active {
			t.Errorf("Organization: %+v, %v", o, err)
		}

		// With the entries that tell of it taken away no single row shows it; the whole does.
		f.edit(t, `DELETE FROM audit WHERE revision >= $1`, last)
		if _, err := f.snapshot(t.Context()); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Snapshot: %v, want ErrTampered", err)
		}
		_, err := f.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
		if !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Write: %v, want ErrTampered", err)
		}
		if !slices.Contains(f.seen(), "meta") {
			t.Error("OnTampered was not told of the database's state")
		}
	})
}

// The same with only the entry of that row taken away, from the middle of the log.
func TestARolledBackRowWithoutItsEntryShows(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		copyTable(t, f, "keys")
		revoked := w.a
		revoked.State = keys.StateRevoked
		last := keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, revoked) })
		keystest.MustInsert(t, f.Store, keystest.NewKey("fourth", keys.StateActive))
		f.edit(t, `DELETE FROM keys WHERE id = $1`, w.a.ID)
		f.edit(t, `INSERT INTO keys SELECT * FROM old_keys WHERE id = $1`, w.a.ID)
		f.edit(t, `DELETE FROM audit WHERE revision = $1`, last)
		if _, err := f.snapshot(t.Context()); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("Snapshot: %v, want ErrTampered", err)
		}
	})
}

// Nothing is written on top of a state that does not open, or does not fit what is there.
func TestAnEditedStateStopsEverything(t *testing.T) {
	for _, test := range []struct{ name, statement string }{
		{"the revision moved on", `UPDATE meta SET revision = revision + 1`},
		{"the revision moved back", `UPDATE meta SET revision = revision - 1`},
		{"another box", `UPDATE meta SET state_box = (SELECT seal FROM keys LIMIT 1)`},
		{"an empty box", `UPDATE meta SET state_box = (SELECT sealed FROM replays)`},
		{"another database's name", `UPDATE meta SET database_id = 'other'`},
		{"the row of an earlier write", `UPDATE meta SET (revision, state_key_id, state_box) = (SELECT revision, state_key_id, state_box FROM old_meta)`},
		{"no row", `DELETE FROM meta`},
	} {
		t.Run(test.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fixture) {
				populate(t, f)
				keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
					return tx.KeepReplay(ctx, keys.Replay{KeyID: "key_x"})
				})
				copyTable(t, f, "meta")
				last := keystest.MustInsert(t, f.Store, keystest.NewKey("fourth", keys.StateActive))
				f.edit(t, test.statement)
				called := false
				_, err := f.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { called = true; return nil })
				if !errors.Is(err, keys.ErrTampered) || called {
					t.Errorf("Write: %v, fn called: %v", err, called)
				}
				if err := f.Record(t.Context(), keys.AuditEntry{Action: keys.ActList}); !errors.Is(err, keys.ErrTampered) {
					t.Errorf("Record: %v", err)
				}
				if _, err := f.snapshot(t.Context()); !errors.Is(err, keys.ErrTampered) {
					t.Errorf("Snapshot: %v", err)
				}
				report, err := f.VerifyAudit(t.Context(), nil)
				if test.name == "no row" {
					if !errors.Is(err, keys.ErrTampered) && len(report.Findings) == 0 {
						t.Errorf("VerifyAudit: %v, %v", report.Findings, err)
					}
					f.Close()
					if s, err := sqlstore.Open(t.Context(), f.options); !errors.Is(err, keys.ErrTampered) {
						t.Errorf("a database without its state was taken for a new one: %v", err)
						s.Close()
					}
					return
				}
				if err != nil || len(report.Findings) == 0 {
					t.Errorf("VerifyAudit: %v, %v", report.Findings, err)
				}
				var rows int64
				if err := f.raw.QueryRowContext(t.Context(), `SELECT count(*) FROM audit WHERE revision > $1`, last).Scan(&rows); err != nil || rows != 0 {
					t.Errorf("%d entries were written, %v", rows, err)
				}
			})
		})
	}
}

func withURL(o sqlstore.Options, url string) sqlstore.Options {
	o.URL = url
	return o
}

// P8: the audit log shows what was done to it.
func TestP8ATamperedAuditLogShows(t *testing.T) {
	for _, test := range []struct {
		name       string
		statements []string
		want       []string // parts of the findings, in order
		stops      bool     // and no write goes on top of it
	}{
		{"an edited entry", []string{`UPDATE audit SET actor = 'nobody' WHERE sequence = 3`}, []string{"entry 3 does not match"}, false},
		{"an edited revision", []string{`UPDATE audit SET revision = 1 WHERE sequence = 3`}, []string{"entry 3 does not match"}, false},
		{
			"an edited hash",
			[]string{`UPDATE audit SET hash = (SELECT a.hash FROM audit a WHERE a.sequence = 1) WHERE sequence = 3`},
			[]string{"entry 3 does not match", "entry 3: its hash is not authentic", "entry 4 does not match"}, false,
		},
		{"an empty hash", []string{`UPDATE audit SET hash = (SELECT sealed FROM replays) WHERE sequence = 3`}, []string{"entry 3 does not match", "entry 3: its hash", "entry 4 does not match"}, false},
		{"an edited authenticator", []string{`UPDATE audit SET seal = (SELECT a.seal FROM audit a WHERE a.sequence = 1) WHERE sequence = 3`}, []string{"entry 3: its hash is not authentic"}, false},
		{"the first removed", []string{`DELETE FROM audit WHERE sequence = 1`}, []string{"entry 1 is missing"}, false},
		{"two removed", []string{`DELETE FROM audit WHERE sequence IN (3, 4)`}, []string{"entries 3 to 4 are missing"}, false},
		{
			"one removed and the rest moved up",
			[]string{
				`DELETE FROM audit WHERE sequence = 6`, `UPDATE audit SET sequence = 6 WHERE sequence = 7`,
			},
			[]string{"entry 6 does not match", "entry 6: its hash is not authentic", "missing at the end"}, true,
		},
		{
			"two swapped",
			[]string{
				`UPDATE audit SET sequence = 100 WHERE sequence = 3`, `UPDATE audit SET sequence = 3 WHERE sequence = 4`,
				`UPDATE audit SET sequence = 4 WHERE sequence = 100`,
			},
			[]string{"entry 3 does not match", "entry 3: its hash", "entry 4 does not match", "entry 4: its hash", "entry 5 does not match"}, false,
		},
		{"the tail cut", []string{`DELETE FROM audit WHERE sequence > 5`}, []string{"entries 6 to 7 are missing at the end"}, true},
		{"all removed", []string{`DELETE FROM audit`}, []string{"entries 1 to 7 are missing at the end"}, true},
		{
			"one added",
			[]string{`INSERT INTO audit SELECT 8, at, actor, action, organization_id, target_id, outcome, detail, remote_address,
				request_id, revision, hash, seal_key_id, seal FROM audit WHERE sequence = 7`},
			[]string{"entry 8 does not match", "entry 8: its hash", "entry 8 is added behind the end"}, true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fixture) {
				populate(t, f)
				keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
					return tx.KeepReplay(ctx, keys.Replay{KeyID: "key_x"})
				})
				before, err := f.VerifyAudit(t.Context(), nil)
				if err != nil || len(before.Findings) != 0 || before.Entries != 7 || before.Sequence != 7 {
					t.Fatalf("before: %+v, %v", before, err)
				}
				for _, statement := range test.statements {
					f.edit(t, statement)
				}
				report, err := f.VerifyAudit(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				ok := len(report.Findings) == len(test.want)
				for i := range test.want {
					ok = ok && strings.Contains(report.Findings[i], test.want[i])
				}
				if !ok {
					t.Errorf("findings %q, want %q", report.Findings, test.want)
				}
				_, err = f.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
				if stopped := errors.Is(err, keys.ErrTampered); stopped != test.stops {
					t.Errorf("Write: %v, want it stopped: %v", err, test.stops)
				}
			})
		})
	}
}

// V8: a database whose audit log is broken is not loaded, also when every row and the set hash are
// as they were written; a log that does not end where it should gives a node that follows nothing.
func TestV8NothingIsLoadedOverABrokenLog(t *testing.T) {
	for _, test := range []struct {
		name, statement string
		follows         bool // the end of the log is as it was
	}{
		{"an edited entry", `UPDATE audit SET actor = 'nobody' WHERE sequence = 3`, true},
		{"an edited revision", `UPDATE audit SET revision = 1 WHERE sequence = 3`, true},
		{"the first removed", `DELETE FROM audit WHERE sequence = 1`, true},
		{"one removed in the middle", `DELETE FROM audit WHERE sequence = 3`, true},
		{"the last removed", `DELETE FROM audit WHERE sequence = 7`, false},
		{"all removed", `DELETE FROM audit`, false},
		{"one added", `INSERT INTO audit SELECT 8, at, actor, action, organization_id, target_id, outcome, detail, remote_address,
			request_id, revision, hash, seal_key_id, seal FROM audit WHERE sequence = 7`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fixture) {
				populate(t, f)
				keystest.MustWrite(t, f.Store, func(context.Context, keys.Tx) error { return nil })
				f.edit(t, test.statement)
				if _, err := f.snapshot(t.Context()); !errors.Is(err, keys.ErrTampered) {
					t.Errorf("Snapshot: %v", err)
				}
				ch, err := f.Changes(t.Context(), keys.Mark{}, 100)
				if follows := err == nil; follows != test.follows || !follows && !errors.Is(err, keys.ErrTampered) {
					t.Errorf("Changes: %+v, %v", ch.Mark, err)
				}
			})
		})
	}
}

func TestAuditIsReadInOrderAndFiltered(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		at := time.UnixMicro(1_700_000_000_000_007).UTC()
		full := keys.AuditEntry{
			At: at, Actor: "user ü", Action: keys.ActRevoke, OrganizationID: "org", TargetID: w.a.ID, Outcome: "api_key_not_found",
			Detail: "why ' \" \\", RemoteAddress: "[::1]:5", RequestID: "r-1",
		}
		if err := f.Record(t.Context(), full); err != nil {
			t.Fatal(err)
		}
		entries, err := f.Audit(t.Context(), 7, 10, sqlstore.AuditFilter{})
		if err != nil || len(entries) != 1 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		full.Sequence, full.Hash = 8, entries[0].Hash
		if diff := cmp.Diff([]keys.AuditEntry{full}, entries); diff != "" {
			t.Error(diff)
		}
		for _, test := range []struct {
			after  int64
			limit  int
			filter sqlstore.AuditFilter
			want   []int64
		}{
			{0, 100, sqlstore.AuditFilter{}, []int64{1, 2, 3, 4, 5, 6, 7, 8}},
			{2, 3, sqlstore.AuditFilter{}, []int64{3, 4, 5}},
			{0, 100, sqlstore.AuditFilter{TargetID: w.b.ID}, []int64{2, 6}},
			{0, 100, sqlstore.AuditFilter{OrganizationID: "org"}, []int64{8}},
			{0, 100, sqlstore.AuditFilter{Actor: "user", Action: keys.ActPutOrganization}, []int64{4, 5, 7}},
			{0, 100, sqlstore.AuditFilter{Actor: "none"}, nil},
		} {
			entries, err := f.Audit(t.Context(), test.after, test.limit, test.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, e := range entries {
				got = append(got, e.Sequence)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("after %d, limit %d, %+v: %s", test.after, test.limit, test.filter, diff)
			}
		}
	})
}

// A report lists a bounded number of findings.
func TestVerifyAuditListsAtMostAHundred(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			for i := range 150 {
				if err := tx.Audit(ctx, keys.AuditEntry{Action: keys.ActList, Detail: fmt.Sprint(i)}); err != nil {
					return err
				}
			}
			return nil
		})
		f.edit(t, `UPDATE audit SET detail = 'x'`)
		var last, total int64
		report, err := f.VerifyAudit(t.Context(), func(done, all int64) { last, total = done, all })
		if err != nil || len(report.Findings) != 100 || report.Entries != 150 {
			t.Errorf("%d findings of %d entries, %v", len(report.Findings), report.Entries, err)
		}
		if last != 150 || total != 150 {
			t.Errorf("progress ended at %d of %d", last, total)
		}
	})
}
