// Package keystest holds what tests of the domain share: the suite every store passes.
package keystest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// Database is a store together with its feed.
type Database interface {
	keys.Store
	keys.Feed
}

// StoreSuite holds a database against the contract in package keys, sentence by sentence. open returns
// a new, empty one and sees to its end.
func StoreSuite(t *testing.T, open func(t *testing.T) Database) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Database)
	}{
		{"Write/numbers writes without gaps and stamps rows", writeNumbers},
		{"Write/shows fn its own rows and all before", writeSees},
		{"Write/undoes everything on an error, and returns it as it is", writeUndoes},
		{"Write/undoes everything on a panic", writePanics},
		{"Write/undoes everything when the context ends", writeCancelled},
		{"Write/does not commit what a refused statement is part of", writeRefused},
		{"Write/does not commit a row without its audit entry", writeUnaudited},
		{"Write/has one time", writeTime},
		{"Rows/C12 unique places", rowsTaken},
		{"Rows/C12 C13 one of many that race for the active place gets it", rowsRace},
		{"Rows/come back as they were written", rowsRoundTrip},
		{"Rows/are there or not while they are made", rowsReadWhileMade},
		{"Rows/KeysIn selects by state", rowsKeysIn},
		{"Rows/C18 Keys are newest first, filtered and paged", rowsKeys},
		{"Rows/organizations", rowsOrganizations},
		{"Tx/C14 rates", rates},
		{"Tx/C15 C17 kept answers", replays},
		{"Record/adds an entry without a revision", record},
		{"Uses/C20 never move back and take no revision", uses},
		{"Feed/Changes never split a write", changes},
		{"Feed/Changes and writers: the applied set is the rows", changesUnderWrites},
		{"Feed/Snapshot visits all rows of one revision", snapshot},
		{"Feed/Snapshot is consistent under writes", snapshotUnderWrites},
		{"Feed/V8 the set hash", setHash},
		{"Feed/nodes register, renew, fall behind, are fenced and leave", nodes},
		{"Feed/announcements are heard", announcements},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, open(t))
		})
	}
}

// NewKey returns a key of organization with random id, digest and hint, in state.
func NewKey(organization string, state keys.State) keys.Key {
	k := keys.Key{
		ID: "key_" + strings.ToLower(rand.Text()), OrganizationID: organization, Environment: keys.Test, Hint: rand.Text()[:4],
		Name: "a key", CreatedAt: time.UnixMicro(1_700_000_000_000_000).UTC(), CreatedBy: "user", State: state,
	}
	rand.Read(k.Digest[:])
	return k
}

// Insert adds a key together with its audit entry.
func Insert(ctx context.Context, tx keys.Tx, k keys.Key) error {
	if err := tx.InsertKey(ctx, k); err != nil {
		return err
	}
	return audit(ctx, tx, keys.ActCreate, k.ID)
}

// Update replaces a key together with its audit entry.
func Update(ctx context.Context, tx keys.Tx, k keys.Key) error {
	if err := tx.UpdateKey(ctx, k); err != nil {
		return err
	}
	return audit(ctx, tx, keys.ActRevoke, k.ID)
}

// Put writes an organization together with its audit entry.
func Put(ctx context.Context, tx keys.Tx, o keys.Organization) error {
	if err := tx.PutOrganization(ctx, o); err != nil {
		return err
	}
	return audit(ctx, tx, keys.ActPutOrganization, o.ID)
}

func audit(ctx context.Context, tx keys.Tx, act keys.Action, id string) error {
	return tx.Audit(ctx, keys.AuditEntry{Action: act, TargetID: id, Actor: "user", Outcome: keys.Done, Revision: tx.Revision()})
}

// MustWrite runs a write that has to succeed.
func MustWrite(t testing.TB, db keys.Store, fn func(ctx context.Context, tx keys.Tx) error) int64 {
	t.Helper()
	commit, err := db.Write(t.Context(), keys.Reads{}, fn)
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	return commit.Revision
}

// MustInsert writes keys, each in a write of its own.
func MustInsert(t testing.TB, db keys.Store, ks ...keys.Key) (last int64) {
	t.Helper()
	for _, k := range ks {
		last = MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return Insert(ctx, tx, k) })
	}
	return last
}

// MustPut writes organizations, each in a write of its own.
func MustPut(t testing.TB, db keys.Store, os ...keys.Organization) (last int64) {
	t.Helper()
	for _, o := range os {
		last = MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return Put(ctx, tx, o) })
	}
	return last
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

func wantSame(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func ids(ks []keys.Key) []string {
	var out []string
	for _, k := range ks {
		out = append(out, k.ID)
	}
	slices.Sort(out)
	return out
}

func nothing(context.Context, keys.Tx) error { return nil }

func writeNumbers(t *testing.T, db Database) {
	for want := int64(1); want <= 3; want++ {
		k := NewKey(fmt.Sprint("org", want), keys.StateActive)
		k.Revision = 99
		var inside int64
		got := MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
			inside = tx.Revision()
			return Insert(ctx, tx, k)
		})
		if got != want || inside != want {
			t.Fatalf("write %d has revision %d, inside %d", want, got, inside)
		}
		stored, err := db.Key(t.Context(), k.ID)
		must(t, err)
		if stored.Revision != want {
			t.Errorf("the row has revision %d, want %d", stored.Revision, want)
		}
	}
}

func writeSees(t *testing.T, db Database) {
	before := NewKey("org", keys.StateRevoked)
	MustInsert(t, db, before)
	own := NewKey("org", keys.StateActive)
	organization := keys.Organization{ID: "org", Name: "first", Active: true, CurrentEnvironment: keys.Test}
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		if err := Insert(ctx, tx, own); err != nil {
			return err
		}
		for _, id := range []string{before.ID, own.ID} {
			if k, err := tx.Key(ctx, id); err != nil || !k.Genuine {
				t.Errorf("Key: genuine %v, %v", k.Genuine, err)
			}
		}
		// A row written twice in one write stays genuine, in it and after it.
		own.Name = "renamed"
		if err := tx.UpdateKey(ctx, own); err != nil {
			return err
		}
		if k, err := tx.Key(ctx, own.ID); err != nil || !k.Genuine || k.Name != "renamed" {
			t.Errorf("Key after update: genuine %v, name %q, %v", k.Genuine, k.Name, err)
		}
		if o, err := tx.Organization(ctx, "org"); err != nil || o.Registered {
			t.Errorf("Organization before put: registered %v, %v", o.Registered, err)
		}
		// An entry may come before the row it tells of.
		if err := audit(ctx, tx, keys.ActPutOrganization, "org"); err != nil {
			return err
		}
		if err := tx.PutOrganization(ctx, organization); err != nil {
			return err
		}
		o, err := tx.Organization(ctx, "org")
		if err != nil || !o.Registered || !o.Genuine || !o.Active || o.Name != "first" {
			t.Errorf("Organization after put: %+v, %v", o, err)
		}
		return nil
	})
	if k, err := db.Key(t.Context(), own.ID); err != nil || !k.Genuine {
		t.Errorf("after the write: genuine %v, %v", k.Genuine, err)
	}
	_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		_, err := tx.Key(ctx, "key_none")
		wantError(t, "Key of no row", err, keys.ErrNotFound)
		return nil
	})
	wantError(t, "a write after ErrNotFound", err, nil)
}

func writeUndoes(t *testing.T, db Database) {
	k, failure := NewKey("org", keys.StateActive), errors.New("failure")
	_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		must(t, Insert(ctx, tx, k))
		must(t, Put(ctx, tx, keys.Organization{ID: "org"}))
		must(t, tx.Take(ctx, keys.ActCreate, "user", tx.Now()))
		must(t, tx.KeepReplay(ctx, keys.Replay{KeyID: k.ID, Sealed: []byte("x")}))
		return failure
	})
	if err != failure {
		t.Errorf("error %v, want the one fn returned", err)
	}
	_, err = db.Key(t.Context(), k.ID)
	wantError(t, "Key", err, keys.ErrNotFound)
	_, err = db.Replay(t.Context(), []keys.Handle{{}})
	wantError(t, "Replay", err, keys.ErrNotFound)
	if o, err := db.Organization(t.Context(), "org"); err != nil || o.Registered {
		t.Errorf("organization: %+v, %v", o, err)
	}
	revision := MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		if at, err := tx.LastTake(ctx, keys.ActCreate, "user"); err != nil || !at.IsZero() {
			t.Errorf("LastTake = %v, %v", at, err)
		}
		return Insert(ctx, tx, k)
	})
	if revision != 1 {
		t.Errorf("the first write that took effect has revision %d", revision)
	}
}

func writePanics(t *testing.T, db Database) {
	func() {
		defer func() {
			if recover() != "oh" {
				t.Error("the panic did not come through")
			}
		}()
		_, _ = db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			must(t, Insert(ctx, tx, NewKey("org", keys.StateActive)))
			panic("oh")
		})
	}()
	if revision := MustInsert(t, db, NewKey("org", keys.StateActive)); revision != 1 {
		t.Errorf("revision %d, want 1", revision)
	}
}

func writeCancelled(t *testing.T, db Database) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := db.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		must(t, Insert(ctx, tx, NewKey("org", keys.StateActive)))
		cancel()
		return nil
	})
	if err == nil || errors.Is(err, keys.ErrOutcomeUnknown) {
		t.Errorf("error %v, want one that says that nothing was written", err)
	}
	if revision := MustInsert(t, db, NewKey("org", keys.StateActive)); revision != 1 {
		t.Errorf("revision %d, want 1", revision)
	}
}

func writeRefused(t *testing.T, db Database) {
	holder := NewKey("org", keys.StateActive)
	MustInsert(t, db, holder)
	_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		must(t, Insert(ctx, tx, NewKey("other", keys.StateActive)))
		wantError(t, "InsertKey", tx.InsertKey(ctx, NewKey("org", keys.StateActive)), keys.ErrTaken)
		return nil // as if nothing had happened
	})
	wantError(t, "Write", err, keys.ErrTaken)
	all, err := db.Keys(t.Context(), keys.KeyQuery{OrganizationID: "other"})
	if err != nil || len(all) != 0 {
		t.Errorf("%d keys were written, %v", len(all), err)
	}
}

func writeUnaudited(t *testing.T, db Database) {
	for name, fn := range map[string]func(ctx context.Context, tx keys.Tx) error{
		"no entry": func(ctx context.Context, tx keys.Tx) error {
			return tx.InsertKey(ctx, NewKey("org", keys.StateActive))
		},
		"an entry of another table": func(ctx context.Context, tx keys.Tx) error {
			must(t, tx.PutOrganization(ctx, keys.Organization{ID: "org"}))
			return audit(ctx, tx, keys.ActCreate, "org")
		},
		"an entry of another revision": func(ctx context.Context, tx keys.Tx) error {
			k := NewKey("org", keys.StateActive)
			must(t, tx.InsertKey(ctx, k))
			return tx.Audit(ctx, keys.AuditEntry{Action: keys.ActCreate, TargetID: k.ID, Revision: tx.Revision() + 1})
		},
	} {
		if _, err := db.Write(t.Context(), keys.Reads{}, fn); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
	if revision := MustWrite(t, db, nothing); revision != 1 {
		t.Errorf("revision %d, want 1", revision)
	}
}

func writeTime(t *testing.T, db Database) {
	var first, second time.Time
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		first = tx.Now()
		second = tx.Now()
		return nil
	})
	after, err := db.Now(t.Context())
	must(t, err)
	if first.IsZero() || !first.Equal(second) || first.Location() != time.UTC || first.Nanosecond()%1000 != 0 || after.Nanosecond()%1000 != 0 {
		t.Errorf("Now is %v, then %v, and %v outside", first, second, after)
	}
	if d := after.Sub(first); d < 0 || d > time.Minute {
		t.Errorf("the store's clock is %v after the transaction's", d)
	}
}

func rowsTaken(t *testing.T, db Database) {
	active, overlapping := NewKey("org", keys.StateActive), NewKey("org", keys.StateOverlapping)
	dead := NewKey("org", keys.StateRevoked)
	MustInsert(t, db, active, overlapping, dead, NewKey("org", keys.StateRevoked), NewKey("org", keys.StateExpired), NewKey("org", keys.StateExpired))
	MustInsert(t, db, NewKey("other", keys.StateActive))

	with := func(organization string, state keys.State, change func(*keys.Key)) keys.Key {
		k := NewKey(organization, state)
		change(&k)
		return k
	}
	for name, k := range map[string]keys.Key{
		"the id":                          with("third", keys.StateActive, func(k *keys.Key) { k.ID = active.ID }),
		"the digest":                      with("third", keys.StateActive, func(k *keys.Key) { k.Digest = active.Digest }),
		"the digest of a dead key":        with("third", keys.StateActive, func(k *keys.Key) { k.Digest = dead.Digest }),
		"the active place":                NewKey("org", keys.StateActive),
		"the active place, other env":     with("org", keys.StateActive, func(k *keys.Key) { k.Environment = keys.Live }),
		"the overlapping place":           NewKey("org", keys.StateOverlapping),
		"the overlapping place, live env": with("org", keys.StateOverlapping, func(k *keys.Key) { k.Environment = keys.Live }),
	} {
		_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error { return Insert(ctx, tx, k) })
		wantError(t, "insert with "+name+" of another", err, keys.ErrTaken)
	}
	dead.State = keys.StateActive
	_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error { return Update(ctx, tx, dead) })
	wantError(t, "update into a place that is held", err, keys.ErrTaken)
	_, err = db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		return Update(ctx, tx, NewKey("third", keys.StateActive))
	})
	wantError(t, "update of no row", err, keys.ErrNotFound)

	// A place is free as soon as its holder gave it up, in the same write.
	active.State = keys.StateRevoked
	successor := NewKey("org", keys.StateActive)
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		must(t, Update(ctx, tx, active))
		return Insert(ctx, tx, successor)
	})
}

// A key that is made while it is read is there or is not: it is never taken for one that somebody removed.
func rowsReadWhileMade(t *testing.T, db Database) {
	for range 20 {
		k := NewKey("org_made", keys.StateRevoked)
		made := make(chan error, 1)
		go func() {
			_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error { return Insert(ctx, tx, k) })
			made <- err
		}()
		for over := false; !over; {
			select {
			case err := <-made:
				must(t, err)
				over = true
			default:
			}
			if _, err := db.Key(t.Context(), k.ID); err != nil && (over || !errors.Is(err, keys.ErrNotFound)) {
				t.Fatalf("a key that is being made: %v", err)
			}
		}
	}
}

func rowsRace(t *testing.T, db Database) {
	const racers = 32
	results := make(chan error, racers)
	for range racers {
		go func() {
			_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
				return Insert(ctx, tx, NewKey("org", keys.StateActive))
			})
			results <- err
		}()
	}
	won := 0
	for range racers {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, keys.ErrTaken):
			t.Errorf("error %v, want ErrTaken", err)
		}
	}
	if won != 1 {
		t.Errorf("%d racers hold the one active place", won)
	}
	if revision := MustWrite(t, db, nothing); revision != 2 {
		t.Errorf("the next revision is %d, want 2", revision)
	}
}

// oddText is text that careless SQL, encodings or collations would change.
const oddText = `' "; DROP TABLE keys; -- %_\ ÄΩ日本 😀 e` + "\u0301"

func fullKey() keys.Key {
	k := NewKey("org."+"A_b:c-1", keys.StateRevoked)
	k.Environment, k.Hint, k.Name, k.CreatedBy = keys.Live, "Zz09", oddText, "auth0|"+oddText
	k.CreatedAt = time.Date(2026, 2, 3, 4, 5, 6, 789_012_000, time.UTC)
	k.ExpiresInDays, k.ExpiresAt = 36500, time.Date(2126, 2, 3, 4, 5, 6, 789_013_000, time.UTC)
	k.RevokedAt, k.RevokeReason, k.Replaces = time.Date(2026, 5, 6, 7, 8, 9, 1_000, time.UTC), oddText, "key_before"
	k.Digest[0], k.Digest[31] = 0, 0xff
	k.Description = "line\n" + oddText
	return k
}

func rowsRoundTrip(t *testing.T, db Database) {
	full, bare := fullKey(), NewKey("org", keys.StateActive)
	bare.Name, bare.CreatedBy, bare.Hint = "", "", ""
	organizations := []keys.Organization{
		{ID: "bare", CurrentEnvironment: keys.Test},
		{
			ID: "full", Name: oddText, ParentID: "bare", PaymentsEnabled: true, CurrentEnvironment: keys.Live, Active: true,
			CreatedAt: full.CreatedAt, UpdatedAt: full.RevokedAt,
		},
		{ID: "gone", Active: true, CurrentEnvironment: keys.Test, UpdatedAt: full.RevokedAt, Deleted: true},
	}
	MustInsert(t, db, full, bare)
	MustPut(t, db, organizations...)

	for i, want := range []keys.Key{full, bare} {
		want.Revision, want.Genuine = int64(i+1), true
		got, err := db.Key(t.Context(), want.ID)
		must(t, err)
		wantSame(t, "Key", got, want)
		listed, err := db.Keys(t.Context(), keys.KeyQuery{OrganizationID: want.OrganizationID})
		must(t, err)
		wantSame(t, "Keys", listed, []keys.UsedKey{{Key: want}})
	}
	for i, want := range organizations {
		want.Revision, want.Genuine, want.Registered = int64(i+3), true, !want.Deleted
		got, err := db.Organization(t.Context(), want.ID)
		must(t, err)
		wantSame(t, "Organization", got, want)
	}
	_, err := db.Key(t.Context(), "key_none")
	wantError(t, "Key of no row", err, keys.ErrNotFound)

	// Times come back in UTC and whole microseconds, whatever went in.
	odd := NewKey("odd", keys.StateActive)
	odd.CreatedAt = time.Date(2026, 1, 1, 0, 0, 0, 1999, time.FixedZone("", 3600))
	MustInsert(t, db, odd)
	got, err := db.Key(t.Context(), odd.ID)
	must(t, err)
	wantSame(t, "CreatedAt", got.CreatedAt, time.Date(2025, 12, 31, 23, 0, 0, 1000, time.UTC))
	if !got.Genuine {
		t.Error("the key is not genuine")
	}
}

func rowsKeysIn(t *testing.T, db Database) {
	active, overlapping, revoked := NewKey("org", keys.StateActive), NewKey("org", keys.StateOverlapping), NewKey("org", keys.StateRevoked)
	MustInsert(t, db, active, overlapping, revoked, NewKey("org", keys.StateExpired), NewKey("other", keys.StateActive))
	for _, test := range []struct {
		states []keys.State
		want   []string
	}{
		{nil, nil},
		{[]keys.State{keys.StateActive}, ids([]keys.Key{active})},
		{[]keys.State{keys.StateActive, keys.StateOverlapping}, ids([]keys.Key{active, overlapping})},
		{[]keys.State{keys.StateRevoked, keys.StateActive, keys.StateOverlapping}, ids([]keys.Key{active, overlapping, revoked})},
	} {
		MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
			got, err := tx.KeysIn(ctx, "org", test.states...)
			wantSame(t, fmt.Sprint("KeysIn ", test.states), ids(got), test.want)
			return err
		})
	}
}

func rowsKeys(t *testing.T, db Database) {
	var want []keys.Key
	for i := range 9 {
		k := NewKey("org", keys.StateRevoked)
		k.CreatedAt = k.CreatedAt.Add(time.Duration(i/3) * time.Microsecond) // three of each time
		if i%2 == 0 {
			k.Environment = keys.Live
		}
		want = append(want, k)
	}
	MustInsert(t, db, want...)
	MustInsert(t, db, NewKey("other", keys.StateActive))
	slices.SortFunc(want, func(a, b keys.Key) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(b.ID, a.ID))
	})
	order := func(environment keys.Environment) (out []string) {
		for _, k := range want {
			if environment == "" || k.Environment == environment {
				out = append(out, k.ID)
			}
		}
		return out
	}
	for _, environment := range []keys.Environment{"", keys.Live, keys.Test} {
		for _, limit := range []int{0, 1, 2, 4, 100} {
			q := keys.KeyQuery{OrganizationID: "org", Environment: environment, Limit: limit}
			var got []string
			for {
				page, err := db.Keys(t.Context(), q)
				must(t, err)
				if limit > 0 && len(page) > limit {
					t.Fatalf("a page has %d keys, limit %d", len(page), limit)
				}
				for _, k := range page {
					got = append(got, k.ID)
				}
				if limit == 0 || len(page) == 0 {
					break
				}
				last := page[len(page)-1]
				q.Before = &keys.Position{CreatedAt: last.CreatedAt, ID: last.ID}
			}
			wantSame(t, fmt.Sprintf("environment %q, limit %d", environment, limit), got, order(environment))
		}
	}
}

func rowsOrganizations(t *testing.T, db Database) {
	none, err := db.Organization(t.Context(), "none")
	must(t, err)
	wantSame(t, "an organization that is not there", none, keys.Unregistered("none"))

	// By bytes, so upper case first: the order must not depend on a locale.
	inOrder := []string{"B", "a", "a-b", "a.b", "aB", "a_b", "ab", "b"}
	for _, i := range mathrand.Perm(len(inOrder)) {
		MustPut(t, db, keys.Organization{ID: inOrder[i], Active: true, CurrentEnvironment: keys.Test})
	}
	var got []string
	for after := ""; ; {
		page, err := db.Organizations(t.Context(), after, 3)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, o := range page {
			if !o.Genuine || !o.Registered {
				t.Errorf("%s: genuine %v, registered %v", o.ID, o.Genuine, o.Registered)
			}
			got = append(got, o.ID)
		}
		after = page[len(page)-1].ID
	}
	wantSame(t, "organizations", got, inOrder)

	MustPut(t, db, keys.Organization{ID: "a", Name: "again", Active: false, CurrentEnvironment: keys.Live})
	again, err := db.Organization(t.Context(), "a")
	must(t, err)
	if again.Name != "again" || again.Active || again.CurrentEnvironment != keys.Live || !again.Genuine {
		t.Errorf("after a second put: %+v", again)
	}

	MustPut(t, db, keys.Organization{ID: "child", ParentID: "B", Active: true})
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		for id, want := range map[string]bool{"B": true, "b": false, "child": false, "none": false} {
			if got, err := tx.HasChildren(ctx, id); err != nil || got != want {
				t.Errorf("HasChildren(%s) = %v, %v", id, got, err)
			}
		}
		o, err := tx.Organization(ctx, "none")
		wantSame(t, "in a write", o, keys.Unregistered("none"))
		return err
	})

	// An organization may have the name of a key: their entries in the log are told apart.
	k := NewKey("org", keys.StateActive)
	MustInsert(t, db, k)
	MustPut(t, db, keys.Organization{ID: k.ID, Active: true})
	if got, err := db.Key(t.Context(), k.ID); err != nil || !got.Genuine {
		t.Errorf("key with an organization's name: genuine %v, %v", got.Genuine, err)
	}
	if o, err := db.Organization(t.Context(), k.ID); err != nil || !o.Genuine {
		t.Errorf("organization with a key's name: genuine %v, %v", o.Genuine, err)
	}
}

func rates(t *testing.T, db Database) {
	at := time.UnixMicro(1_700_000_000_123_456).UTC()
	take := func(rate keys.Action, user string, at time.Time) {
		MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return tx.Take(ctx, rate, user, at) })
	}
	take(keys.ActCreate, "user", at)
	take(keys.ActCreate, "user", at.Add(time.Minute))
	take(keys.ActRoll, "user", at.Add(time.Hour))
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		for _, test := range []struct {
			rate keys.Action
			user string
			want time.Time
		}{
			{keys.ActCreate, "user", at.Add(time.Minute)},
			{keys.ActRoll, "user", at.Add(time.Hour)},
			{keys.ActCreate, "User", time.Time{}},
			{keys.ActRevoke, "user", time.Time{}},
		} {
			got, err := tx.LastTake(ctx, test.rate, test.user)
			must(t, err)
			wantSame(t, fmt.Sprint(test.rate, " of ", test.user), got, test.want)
		}
		return nil
	})
}

func newReplay(keyID string) keys.Replay {
	r := keys.Replay{
		KeyID: keyID, MasterKeyID: "m1", Salt: []byte(rand.Text()), Sealed: []byte(rand.Text()),
		CreatedAt: time.UnixMicro(1_700_000_000_000_001).UTC(),
	}
	rand.Read(r.Handle[:])
	rand.Read(r.Fingerprint[:])
	return r
}

func replays(t *testing.T, db Database) {
	one, two := newReplay("key_1"), newReplay("key_2")
	two.CreatedAt = one.CreatedAt.Add(time.Hour)
	keep := func(r keys.Replay) {
		MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return tx.KeepReplay(ctx, r) })
	}
	keep(one)
	keep(two)
	missing := keys.Handle{1}
	// The same answers, in and outside of a write.
	reads := func(what string, handles []keys.Handle, want keys.Replay, wantErr error) {
		t.Helper()
		got, err := db.Replay(t.Context(), handles)
		wantError(t, what, err, wantErr)
		wantSame(t, what, got, want)
		MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
			got, err := tx.Replay(ctx, handles)
			wantError(t, what+", in a write", err, wantErr)
			wantSame(t, what+", in a write", got, want)
			return nil
		})
	}
	reads("none", nil, keys.Replay{}, keys.ErrNotFound)
	reads("a missing one", []keys.Handle{missing}, keys.Replay{}, keys.ErrNotFound)
	reads("the first that is there", []keys.Handle{missing, two.Handle, one.Handle}, two, nil)

	again := newReplay("key_3")
	again.Handle = one.Handle
	keep(again)
	reads("replaced", []keys.Handle{one.Handle}, again, nil)

	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return tx.EraseReplays(ctx, "key_3") })
	got, err := db.Replay(t.Context(), []keys.Handle{again.Handle})
	if err != nil || got.Sealed != nil || got.KeyID != "key_3" || got.Fingerprint != again.Fingerprint {
		t.Errorf("erased: %+v, %v; want the row without the answer", got, err)
	}
	reads("of another key", []keys.Handle{two.Handle}, two, nil)

	for _, test := range []struct {
		before time.Time
		want   int64
	}{{again.CreatedAt, 0}, {again.CreatedAt.Add(time.Microsecond), 1}, {two.CreatedAt.Add(time.Hour), 1}, {two.CreatedAt.Add(time.Hour), 0}} {
		if n, err := db.EraseKeptAnswers(t.Context(), test.before); err != nil || n != test.want {
			t.Errorf("EraseKeptAnswers = %d, %v; want %d", n, err, test.want)
		}
	}
	// What is old of the rates goes with them.
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		return errors.Join(tx.Take(ctx, keys.ActCreate, "old", two.CreatedAt), tx.Take(ctx, keys.ActCreate, "new", two.CreatedAt.Add(time.Hour)))
	})
	_, err = db.EraseKeptAnswers(t.Context(), two.CreatedAt.Add(time.Hour))
	must(t, err)
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
		gone, err := tx.LastTake(ctx, keys.ActCreate, "old")
		must(t, err)
		kept, err := tx.LastTake(ctx, keys.ActCreate, "new")
		must(t, err)
		if !gone.IsZero() || kept.IsZero() {
			t.Errorf("old take %v, new take %v", gone, kept)
		}
		return nil
	})
	reads("after 24 hours", []keys.Handle{one.Handle, two.Handle}, keys.Replay{}, keys.ErrNotFound)
}

func record(t *testing.T, db Database) {
	k := NewKey("org", keys.StateActive)
	revision := MustInsert(t, db, k)
	must(t, db.Record(t.Context(), keys.AuditEntry{Action: keys.ActRevoke, TargetID: k.ID, Outcome: "api_key_not_found", Detail: oddText}))
	if err := db.Record(t.Context(), keys.AuditEntry{Action: keys.ActRevoke, TargetID: k.ID, Revision: revision}); err == nil {
		t.Error("an entry with a revision was recorded outside a write")
	}
	ch, err := db.Changes(t.Context(), keys.Mark{}, 10)
	if err != nil || ch.Revision != revision {
		t.Errorf("the revision is %d, %v; want %d", ch.Revision, err, revision)
	}
	if got, err := db.Key(t.Context(), k.ID); err != nil || !got.Genuine {
		t.Errorf("the key: genuine %v, %v", got.Genuine, err)
	}
	if next := MustWrite(t, db, nothing); next != revision+1 {
		t.Errorf("the next write has revision %d, want %d", next, revision+1)
	}
}

func uses(t *testing.T, db Database) {
	one, two := NewKey("one", keys.StateActive), NewKey("two", keys.StateActive)
	MustInsert(t, db, one, two)
	at := time.UnixMicro(1_700_000_000_000_500).UTC()
	for _, step := range []struct {
		uses             []keys.Use
		wantOne, wantTwo time.Time
		describedAs      string
	}{
		{describedAs: "no use"},
		{uses: []keys.Use{{KeyID: one.ID, At: at}}, wantOne: at, describedAs: "first"},
		{uses: []keys.Use{{KeyID: one.ID, At: at.Add(-time.Second)}}, wantOne: at, describedAs: "an older one"},
		{
			uses:    []keys.Use{{KeyID: two.ID, At: at.Add(2)}, {KeyID: two.ID, At: at.Add(time.Second)}, {KeyID: two.ID, At: at}},
			wantOne: at, wantTwo: at.Add(time.Second), describedAs: "several of one key",
		},
		{
			uses:    []keys.Use{{KeyID: "key_none", At: at}, {KeyID: one.ID, At: at.Add(time.Hour)}},
			wantOne: at.Add(time.Hour), wantTwo: at.Add(time.Second), describedAs: "beside a key that is not there",
		},
	} {
		must(t, db.RecordUses(t.Context(), step.uses))
		for organization, want := range map[string]time.Time{"one": step.wantOne, "two": step.wantTwo} {
			ks, err := db.Keys(t.Context(), keys.KeyQuery{OrganizationID: organization})
			must(t, err)
			if len(ks) != 1 || !ks[0].LastUsedAt.Equal(want) || !ks[0].Genuine {
				t.Errorf("%s: %s: %+v, want last used %v", step.describedAs, organization, ks, want)
			}
		}
	}

	// Many writers at once, over the same keys in all orders: the latest stands.
	many := make([]keys.Key, 50)
	for i := range many {
		many[i] = NewKey(fmt.Sprint("many", i), keys.StateActive)
	}
	revision := MustInsert(t, db, many...)
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			var batch []keys.Use
			for _, i := range mathrand.Perm(len(many)) {
				batch = append(batch, keys.Use{KeyID: many[i].ID, At: at.Add(time.Duration(n) * time.Second)})
			}
			if err := db.RecordUses(t.Context(), batch); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, k := range many {
		ks, err := db.Keys(t.Context(), keys.KeyQuery{OrganizationID: k.OrganizationID})
		must(t, err)
		wantSame(t, "last use", ks[0].LastUsedAt, at.Add(7*time.Second))
	}
	ch, err := db.Changes(t.Context(), keys.Mark{Revision: revision}, 10)
	if err != nil || ch.Revision != revision || len(ch.Keys) != 0 {
		t.Errorf("uses show in the changes: %+v, %v", ch, err)
	}
}

// follow reads every change after a revision, limit rows at a time.
func follow(t *testing.T, db Database, after int64, limit int, apply func(keys.Changes)) int64 {
	t.Helper()
	mark := keys.Mark{Revision: after}
	for {
		ch, err := db.Changes(t.Context(), mark, limit)
		must(t, err)
		apply(ch)
		if ch.Revision < after {
			t.Fatalf("changes went back from %d to %d", after, ch.Revision)
		}
		if ch.Revision == after {
			return after
		}
		after, mark = ch.Revision, ch.Mark
	}
}

func changes(t *testing.T, db Database) {
	ch, err := db.Changes(t.Context(), keys.Mark{}, 5)
	must(t, err)
	wantSame(t, "changes of an empty database", ch, keys.Changes{Set: keys.SetHash{KeyID: ch.Set.KeyID}})

	// Writes of 0 to 4 rows, some over both tables, one rewriting what an earlier one wrote.
	wrote := make(map[int64]int)
	var all []keys.Key
	for i := range 12 {
		var n int
		revision := MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error {
			for range i % 4 {
				k := NewKey(fmt.Sprint("org", i), keys.StateRevoked)
				all = append(all, k)
				n++
				must(t, Insert(ctx, tx, k))
			}
			if i%3 == 0 {
				n++
				must(t, Put(ctx, tx, keys.Organization{ID: fmt.Sprint("org", i)}))
			}
			return nil
		})
		wrote[revision] = n
	}
	first, err := db.Key(t.Context(), all[0].ID)
	must(t, err)
	wrote[first.Revision]--
	wrote[MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return Update(ctx, tx, first) })] = 1
	last := MustWrite(t, db, nothing)

	for limit := 1; limit <= 30; limit++ {
		got := make(map[int64]int)
		var done int64
		end := follow(t, db, 0, limit, func(ch keys.Changes) {
			here := make(map[int64]int)
			for _, k := range ch.Keys {
				here[k.Revision]++
				if !k.Genuine {
					t.Errorf("a key is not genuine")
				}
			}
			for _, o := range ch.Organizations {
				here[o.Revision]++
				if !o.Genuine {
					t.Errorf("an organization is not genuine")
				}
			}
			for revision, n := range here {
				if revision <= done || revision > ch.Revision || n != wrote[revision] {
					t.Fatalf("limit %d: changes after %d up to %d have %d rows of revision %d, which has %d", limit, done, ch.Revision, n, revision, wrote[revision])
				}
				got[revision] += n
			}
			if len(ch.Keys)+len(ch.Organizations) > limit && len(here) > 1 {
				t.Errorf("limit %d: %d rows of %d writes", limit, len(ch.Keys)+len(ch.Organizations), len(here))
			}
			done = ch.Revision
		})
		if end != last {
			t.Errorf("limit %d: the changes end at %d, want %d", limit, end, last)
		}
		for revision, n := range wrote {
			if got[revision] != n {
				t.Errorf("limit %d: %d rows of revision %d, want %d", limit, got[revision], revision, n)
			}
		}
	}
}

func changesUnderWrites(t *testing.T, db Database) {
	const writers, writesEach = 64, 3
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	revisions := make(chan int64, writers*writesEach)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for range writesEach {
				commit, err := db.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
					if err := Insert(ctx, tx, NewKey(fmt.Sprint("org", w), keys.StateRevoked)); err != nil {
						return err
					}
					<-time.After(time.Duration(mathrand.IntN(4)) * time.Millisecond)
					return Insert(ctx, tx, NewKey(fmt.Sprint("org", w), keys.StateRevoked))
				})
				if err != nil {
					t.Error(err)
					return
				}
				revisions <- commit.Revision
			}
		})
	}
	finished := make(chan struct{})
	go func() { group.Wait(); close(finished) }()

	applied := make(map[string]int64)
	apply := func(ch keys.Changes) {
		count := make(map[int64]int)
		for _, k := range ch.Keys {
			applied[k.ID] = k.Revision
			count[k.Revision]++
		}
		for revision, n := range count {
			if n != 2 {
				t.Errorf("%d of the 2 rows of revision %d", n, revision)
			}
		}
	}
	var at int64
	for running := true; running; {
		select {
		case <-finished:
			running = false
		default:
		}
		at = follow(t, db, at, 7, apply)
	}
	at = follow(t, db, at, 7, apply)
	close(revisions)
	var got []int64
	for r := range revisions {
		got = append(got, r)
	}
	slices.Sort(got)
	for i, r := range got {
		if r != int64(i+1) {
			t.Fatalf("revision %d is missing", i+1)
		}
	}
	if at != int64(len(got)) {
		t.Errorf("the follower is at %d of %d", at, len(got))
	}
	stored := make(map[string]int64)
	_, _, err := db.Snapshot(t.Context(), keys.Visitor{
		Key:          func(k keys.Key) error { stored[k.ID] = k.Revision; return nil },
		Organization: func(keys.Organization) error { return nil },
	})
	must(t, err)
	wantSame(t, "applied against stored", applied, stored)
	if len(stored) != 2*writers*writesEach {
		t.Errorf("%d rows, want %d", len(stored), 2*writers*writesEach)
	}
}

func snapshot(t *testing.T, db Database) {
	read := func() (revision int64, ks []keys.Key, os []keys.Organization) {
		mark, _, err := db.Snapshot(t.Context(), keys.Visitor{
			Key:          func(k keys.Key) error { ks = append(ks, k); return nil },
			Organization: func(o keys.Organization) error { os = append(os, o); return nil },
		})
		must(t, err)
		return mark.Revision, ks, os
	}
	if revision, ks, os := read(); revision != 0 || len(ks)+len(os) != 0 {
		t.Errorf("an empty database: revision %d, %d rows", revision, len(ks)+len(os))
	}
	one, two := fullKey(), NewKey("org", keys.StateActive)
	MustInsert(t, db, one, two)
	MustPut(t, db, keys.Organization{ID: "org", Active: true, CurrentEnvironment: keys.Test})
	two.State = keys.StateOverlapping
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return Update(ctx, tx, two) })
	last := MustWrite(t, db, nothing)

	revision, ks, os := read()
	one.Revision, two.Revision = 1, 4
	one.Genuine, two.Genuine = true, true
	want := []keys.Key{one, two}
	byID := func(a, b keys.Key) int { return strings.Compare(a.ID, b.ID) }
	slices.SortFunc(want, byID)
	slices.SortFunc(ks, byID)
	wantSame(t, "keys", ks, want)
	wantSame(t, "organizations", os, []keys.Organization{
		{ID: "org", Active: true, CurrentEnvironment: keys.Test, Registered: true, Genuine: true, Revision: 3},
	})
	if revision != last {
		t.Errorf("revision %d, want %d", revision, last)
	}

	stop := errors.New("stop")
	calls := 0
	_, _, err := db.Snapshot(t.Context(), keys.Visitor{
		Key:          func(keys.Key) error { calls++; return stop },
		Organization: func(keys.Organization) error { return nil },
	})
	wantError(t, "a visitor that ends the visit", err, stop)
	if calls != 1 {
		t.Errorf("the visitor was called %d times after it ended the visit", calls-1)
	}
}

func snapshotUnderWrites(t *testing.T, db Database) {
	// Each write moves one organization's active place from one key to a new one, so that in every
	// moment each has exactly one.
	const organizations = 4
	var current [organizations]keys.Key
	for i := range current {
		current[i] = NewKey(fmt.Sprint("org", i), keys.StateActive)
	}
	MustInsert(t, db, current[:]...)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i := range current {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				next, old := NewKey(current[i].OrganizationID, keys.StateActive), current[i]
				old.State = keys.StateRevoked
				_, err := db.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
					if err := Update(ctx, tx, old); err != nil {
						return err
					}
					return Insert(ctx, tx, next)
				})
				if err != nil {
					t.Error(err)
					return
				}
				current[i] = next
			}
		})
	}
	for range 10 {
		active, rows := make(map[string]int), int64(0)
		mark, _, err := db.Snapshot(t.Context(), keys.Visitor{
			Key: func(k keys.Key) error {
				rows++
				if !k.Genuine {
					t.Errorf("revision %d: a key is not genuine", k.Revision)
				}
				if k.State == keys.StateActive {
					active[k.OrganizationID]++
				}
				return nil
			},
			Organization: func(keys.Organization) error { return nil },
		})
		if err != nil {
			t.Errorf("Snapshot: %v", err)
			break
		}
		if rows != mark.Revision {
			t.Errorf("%d rows at revision %d; each write added one", rows, mark.Revision)
		}
		wantSame(t, "active keys", active, map[string]int{"org0": 1, "org1": 1, "org2": 1, "org3": 1})
	}
	close(stop)
	group.Wait()
}

func setHash(t *testing.T, db Database) {
	read := func() keys.SetHash {
		t.Helper()
		_, set, err := db.Snapshot(t.Context(), keys.Visitor{
			Key: func(keys.Key) error { return nil }, Organization: func(keys.Organization) error { return nil },
		})
		must(t, err)
		ch, err := db.Changes(t.Context(), keys.Mark{}, 100)
		must(t, err)
		wantSame(t, "of Changes and of Snapshot", ch.Set, set)
		return set
	}
	seen := map[keys.SetHash]string{read(): "an empty database"}
	changed := func(what string) {
		t.Helper()
		set := read()
		if before, ok := seen[set]; ok {
			t.Errorf("after %s it is what it was after %s", what, before)
		}
		if set.KeyID == "" {
			t.Errorf("after %s it is not known", what)
		}
		seen[set] = what
	}
	k := NewKey("org", keys.StateActive)
	MustInsert(t, db, k)
	changed("a key")
	MustPut(t, db, keys.Organization{ID: "org", Active: true})
	changed("an organization")
	MustWrite(t, db, func(ctx context.Context, tx keys.Tx) error { return Update(ctx, tx, k) })
	changed("a key of the same content again")
	before := read()
	MustWrite(t, db, nothing)
	wantSame(t, "after a write without rows", read(), before)
	MustInsert(t, db, NewKey("other", keys.StateActive))

	// At a stop on the way it is not known.
	ch, err := db.Changes(t.Context(), keys.Mark{}, 1)
	must(t, err)
	wantSame(t, "at a stop on the way", ch.Set, keys.SetHash{})
	for at := ch.Mark; ch.Set.KeyID == ""; at = ch.Mark {
		ch, err = db.Changes(t.Context(), at, 1)
		must(t, err)
		if ch.Revision <= at.Revision {
			t.Fatalf("no way on from %d", at.Revision)
		}
	}
	wantSame(t, "at the end of the way", ch.Set, read())
}

func nodes(t *testing.T, db Database) {
	renew := func(id string, applied int64, want keys.Outcome) {
		t.Helper()
		if got, err := db.Renew(t.Context(), id, keys.Mark{Revision: applied}); err != nil || got.Outcome != want || !got.Settled {
			t.Errorf("Renew(%s, %d) = %+v, %v; want %v", id, applied, got, err, want)
		}
	}
	at := func(revision int64) keys.Commit { return keys.Commit{Mark: keys.Mark{Revision: revision}} }
	behind := func(revision int64, want int) {
		t.Helper()
		if got, err := db.Standing(t.Context(), "a", at(revision)); err != nil || got.Behind != want || !got.Settled {
			t.Errorf("Standing(%d) = %+v, %v; want %d behind", revision, got, err, want)
		}
	}
	fence := func(revision int64, want ...string) {
		t.Helper()
		got, err := db.Fence(t.Context(), at(revision))
		must(t, err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("Fence(%d) = %v, want %v", revision, got, want)
		}
	}
	own := func(want bool) {
		t.Helper()
		if got, err := db.Standing(t.Context(), "a", at(0)); err != nil || got.Own != want {
			t.Errorf("Standing: own row %t, %v; want %t", got.Own, err, want)
		}
	}
	renew("a", 0, keys.Fenced)
	own(false)
	must(t, db.Register(t.Context(), keys.Node{ID: "a", Address: "10.0.0.1:8081", Version: "v1", Lease: 7 * time.Second}))
	own(true)
	must(t, db.Register(t.Context(), keys.Node{ID: "b", Lease: 3 * time.Second}))
	if err := db.Register(t.Context(), keys.Node{ID: "a"}); err == nil {
		t.Error("a node id was registered twice")
	}
	behind(0, 2) // registered, and at -1
	renew("a", 0, keys.Renewed)
	behind(0, 1)
	if st, err := db.Standing(t.Context(), "b", at(0)); err != nil || st.Longest != 7*time.Second {
		t.Errorf("the longest lease is %v, %v; also of a node that is not behind", st.Longest, err)
	}
	MustWrite(t, db, nothing)
	renew("a", 0, keys.Lagging)
	renew("a", 2, keys.Lagging) // nor what the database does not have yet
	behind(1, 2)
	renew("a", 1, keys.Renewed)
	renew("a", 1, keys.Renewed)
	behind(1, 1)
	fence(1, "b")
	fence(1)
	renew("b", 1, keys.Fenced)
	behind(1, 0)
	own(true)
	must(t, db.Leave(t.Context(), "a"))
	must(t, db.Leave(t.Context(), "a"))
	renew("a", 1, keys.Fenced)
	own(false)

	// A write that was undone is not one that has to be acknowledged.
	must(t, db.Register(t.Context(), keys.Node{ID: "c"}))
	renew("c", 1, keys.Renewed)
	_, err := db.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return errors.New("undo") })
	if err == nil {
		t.Error("the write was not undone")
	}
	renew("c", 1, keys.Renewed)
}

// An announcement reaches whoever listens, with its revision; after the end of one who listens nothing does.
func announcements(t *testing.T, db Database) {
	ctx, stop := context.WithCancel(t.Context())
	heard := make(chan int64, 1000)
	ended := make(chan error, 1)
	go func() { ended <- db.Listen(ctx, func(a keys.Announcement) { heard <- a.Revision }) }()
	for arrived := false; !arrived; { // until it has begun to listen
		must(t, db.Announce(t.Context(), 1))
		select {
		case revision := <-heard:
			if arrived = true; revision != 1 {
				t.Errorf("heard %d", revision)
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
	const far = 1 << 40
	must(t, db.Announce(t.Context(), far))
	for revision := int64(1); revision != far; revision = <-heard {
	}
	commit, err := db.Write(t.Context(), keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
	must(t, err)
	if revision := <-heard; revision != commit.Revision {
		t.Errorf("heard of %d, want the write, %d", revision, commit.Revision)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Listen ended with %v", err)
	}
	must(t, db.Announce(t.Context(), 3))
}
