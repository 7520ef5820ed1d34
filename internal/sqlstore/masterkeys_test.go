package sqlstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// R10: what is under a master key that this node lacks is "cannot decide" by every way it can be
// read, and nothing is reported as forged.
func TestR10UnknownKeyIsNeverForged(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		var asked []string
		f.options.Ring.OnUnknownKey(func(id string) { asked = append(asked, id) })
		for _, table := range []string{"keys", "organizations", "audit"} {
			copyTable(t, f, table)
		}
		write := func(fn func(context.Context, keys.Tx) error) func() error {
			return func() error { _, err := f.Write(t.Context(), keys.Reads{}, fn); return err }
		}
		ways := map[string]func() error{
			"Snapshot": func() error { _, err := f.snapshot(t.Context()); return err },
			"Changes":  func() error { _, err := f.Changes(t.Context(), keys.Mark{}, 100); return err },
			"Key":      func() error { _, err := f.Key(t.Context(), w.a.ID); return err },
			"Keys": func() error {
				_, err := f.Keys(t.Context(), keys.KeyQuery{OrganizationID: w.a.OrganizationID})
				return err
			},
			"Tx.Key": write(
				func(ctx context.Context, tx keys.Tx) error { _, err := tx.Key(ctx, w.a.ID); return err },
			),
			"Organization":  func() error { _, err := f.Organization(t.Context(), "off"); return err },
			"Organizations": func() error { _, err := f.Organizations(t.Context(), "", 10); return err },
			"Tx.Organization": write(func(ctx context.Context, tx keys.Tx) error {
				_, err := tx.Organization(ctx, "off")
				return err
			}),
			"VerifyAudit": func() error { _, err := f.VerifyAudit(t.Context(), nil); return err },
			"CheckState":  func() error { return f.CheckState(t.Context()) },
			"Write":       write(func(context.Context, keys.Tx) error { return nil }),
			"Register": func() error {
				if f.Engine() == sqlstore.SQLite {
					return f.CheckState(t.Context()) // its node rows are in memory
				}
				return f.Register(t.Context(), keys.Node{ID: "n"})
			},
		}
		for _, test := range []struct {
			table, edit string
			argument    any
			ways        []string
		}{
			{"keys", `UPDATE keys SET seal_key_id = 'm0' WHERE id = $1`, w.a.ID, []string{"Snapshot", "Changes", "Key", "Keys", "Tx.Key"}},
			{"organizations", `UPDATE organizations SET seal_key_id = 'm0' WHERE id = $1`, "off",
				[]string{"Snapshot", "Changes", "Organization", "Organizations", "Tx.Organization"}},
			{"audit", `UPDATE audit SET seal_key_id = 'm0' WHERE sequence = $1`, 2, []string{"VerifyAudit"}},
			{"meta", `UPDATE meta SET state_key_id = 'm0' WHERE one = $1`, 1,
				[]string{"Snapshot", "Changes", "VerifyAudit", "CheckState", "Write", "Register"}},
		} {
			f.edit(t, test.edit, test.argument)
			for _, way := range test.ways {
				asked = nil
				if err := ways[way](); !errors.Is(err, seal.ErrUnknownKey) ||
					errors.Is(err, keys.ErrTampered) {
					t.Errorf("%s of a %s row under another key: %v", way, test.table, err)
				}
				if len(asked) == 0 || asked[0] != "m0" {
					t.Errorf(
						"%s of a %s row: the observer of missing keys was told of %v",
						way,
						test.table,
						asked,
					)
				}
			}
			if test.table == "meta" {
				f.edit(t, `UPDATE meta SET state_key_id = 'm1'`)
			} else {
				f.restore(t, test.table)
			}
		}
		if seen := f.seen(); len(seen) != 0 {
			t.Errorf("OnTampered was told of %v", seen)
		}
		intact(t, f)
	})
}

// R10: a node that was started early with the new file writes under the database's key, so the
// others can read it.
func TestR10TheDatabaseNamesTheKey(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		w := populate(t, f)
		old := f.options.Ring
		f.lines = append([]string{newLine(t, "m2")}, f.lines...)
		f.options.Ring = newRing(t, f.lines...)
		f.reopen(t)
		if signing, _, err := f.MasterKey(t.Context()); signing != "m1" || err != nil {
			t.Fatalf("signing under %q, %v", signing, err)
		}
		keystest.MustInsert(t, f.Store, keystest.NewKey("early", keys.StateActive))
		keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
			if id := tx.Signer().KeyID(); id != "m1" {
				t.Errorf("a transaction is under %q", id)
			}
			return nil
		})
		if err := f.Record(t.Context(), keys.AuditEntry{Actor: "x", Action: keys.ActList, Outcome: keys.Done}); err != nil {
			t.Fatal(err)
		}
		report, err := f.Reseal(t.Context(), nil)
		if diff := cmp.Diff(sqlstore.ResealReport{KeptAnswers: map[string]int64{}}, report); err != nil ||
			diff != "" {
			t.Errorf("re-authenticating without a switch did something: %v %s", err, diff)
		}
		f.options.Ring = old // a node that has not got the new key yet
		intact(t, f)
		if k, err := f.Key(t.Context(), w.a.ID); err != nil || !k.Genuine {
			t.Errorf("%+v, %v", k, err)
		}
	})
}

// R10: the database's key is switched only when every registered node has the new one, and the rows
// of the nodes go with it.
func TestR10SwitchWaitsForEveryNode(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	m1, m2, m2Other := newLine(t, "m1"), newLine(t, "m2"), newLine(t, "m2")
	openWith := func(lines ...string) (*sqlstore.Store, *seal.Ring) {
		t.Helper()
		ring := newRing(t, lines...)
		s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: ring})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s, ring
	}
	a, _ := openWith(m1)
	a.Close()
	a, _ = openWith(m2, m1)
	b, ringB := openWith(m1)
	c, ringC := openWith(m1)
	for name, s := range map[string]*sqlstore.Store{"a": a, "b": b, "c": c} {
		if err := s.Register(t.Context(), keys.Node{ID: name, Address: name + ":1", Version: "v", Lease: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	entry := keys.AuditEntry{Actor: "operator", Action: keys.ActReseal, Outcome: keys.Done}
	switchTo := func(want ...string) keys.Commit {
		t.Helper()
		commit, lacking, err := a.SwitchMasterKey(t.Context(), "m2", entry)
		var got []string
		for _, n := range lacking {
			got = append(got, n.ID+" "+n.Address)
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v, lacking (-want +got):\n%s", err, diff)
		}
		signing, _, err := a.MasterKey(t.Context())
		if wantKey := map[bool]string{true: "m2", false: "m1"}[len(want) == 0]; signing != wantKey ||
			err != nil {
			t.Errorf("signing under %q, %v, want %q", signing, err, wantKey)
		}
		return commit
	}
	have := func(s *sqlstore.Store, ring *seal.Ring, lines ...string) {
		t.Helper()
		if _, err := ring.Replace(newRing(t, lines...), "m1"); err != nil {
			t.Fatal(err)
		}
		if err := s.Advertise(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	switchTo("b b:1", "c c:1")
	have(b, ringB, m1, m2)
	have(c, ringC, m2Other, m1)
	switchTo("c c:1") // it has another key by that id

	fresh := newRing(t, m1)
	if err := a.CompareKeys(t.Context(), newRing(t, m2, m1)); !errors.Is(
		err,
		sqlstore.ErrOtherMasterKey,
	) ||
		!strings.Contains(err.Error(), `"m2"`) {
		t.Errorf("a node with another key is not told: %v", err)
	}
	if _, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, m1, m2)}); !errors.Is(
		err,
		sqlstore.ErrOtherMasterKey,
	) {
		t.Errorf("opened beside a node that has another key: %v", err)
	}
	if err := c.Leave(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	commit := switchTo()

	// Nobody without the key gets a lease, though it is registered; everybody with it does.
	for name, s := range map[string]*sqlstore.Store{"a": a, "b": b} {
		if r, err := s.Renew(t.Context(), name, commit.Mark); err != nil ||
			r.Outcome != keys.Renewed {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if _, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: fresh}); !errors.Is(
		err,
		seal.ErrUnknownKey,
	) {
		t.Errorf("opened without the key: %v", err)
	}
	if err := c.Register(t.Context(), keys.Node{ID: "c2"}); !errors.Is(
		err,
		sqlstore.ErrOtherMasterKey,
	) &&
		!errors.Is(err, keys.ErrTampered) &&
		err != nil {
		t.Errorf("register: %v", err)
	}
	nodes, _, err := b.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.ID != "c2" && !n.Genuine {
			t.Errorf("the row of %s is not authentic after the switch", n.ID)
		}
	}
	if err := c.Leave(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Reseal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if used, err := a.MasterKeysInUse(t.Context()); err != nil || !cmp.Equal(used, []string{"m2"}) {
		t.Errorf("in use: %v, %v", used, err)
	}
}

// R10: a node whose row says that it lacks the database's key gets no lease, whatever its memory
// holds.
func TestR10NoLeaseWithoutTheKey(t *testing.T) {
	t.Parallel()
	f := open(t, sqlstore.Postgres)
	if err := f.Register(t.Context(), keys.Node{ID: "n", Lease: time.Minute}); err != nil {
		t.Fatal(err)
	}
	f.edit(t, `UPDATE serving_nodes SET master_keys = ' m0:00 '`)
	other, err := sqlstore.Open(
		t.Context(),
		f.options,
	) // it has not registered the row, so it cannot set it right
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if r, err := other.Renew(t.Context(), "n", keys.Mark{}); err != nil ||
		r.Outcome != keys.Lagging {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := f.Renew(t.Context(), "n", keys.Mark{}); err != nil || r.Outcome != keys.Lagging {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := f.Renew(t.Context(), "n", keys.Mark{}); err != nil || r.Outcome != keys.Renewed {
		t.Errorf("after the row was set right: %+v, %v", r, err)
	}
}

// R10: another key under the database's id is told in one line, and is not a forgery.
func TestR10AnotherKeyUnderTheSameID(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		populate(t, f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f.seen()
		right := f.options.Ring
		for name, lines := range map[string][]string{
			"the database's": {newLine(t, "m1")},
			"and a new one":  {newLine(t, "m2"), newLine(t, "m1")},
		} {
			f.options.Ring = newRing(t, lines...)
			s, err := sqlstore.Open(t.Context(), f.options)
			if !errors.Is(err, sqlstore.ErrOtherMasterKey) ||
				!strings.Contains(err.Error(), `"m1"`) ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil {
				s.Close()
			}
		}
		if seen := f.seen(); len(seen) != 0 {
			t.Errorf("OnTampered was told of %v", seen)
		}
		f.options.Ring = right
		f.Store = nil
		intact(t, f)
		// A fingerprint that somebody else wrote keeps nobody out.
		f.edit(t, `UPDATE master_keys SET fingerprint = '00'`)
		intact(t, f)
		f.edit(t, `DELETE FROM master_keys`)
		intact(t, f)
	})
}

// R10: the row of a node is bound to its database.
func TestR10NodeRowsOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	line := newLine(t, "m1")
	var stores []*sqlstore.Store
	var urls []string
	for range 2 {
		url := pgtest.URL(t)
		s, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: newRing(t, line)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		stores, urls = append(stores, s), append(urls, url)
	}
	if err := stores[0].Register(t.Context(), keys.Node{ID: "n", Address: "10.0.0.1:8081", Lease: time.Minute}); err != nil {
		t.Fatal(err)
	}
	const columns = `node_id, address, version, protocol, lease, applied, renewed_at, seal_key_id, seal, master_keys`
	var row [10]any
	dest := make([]any, len(row))
	for i := range row {
		dest[i] = &row[i]
	}
	if err := rawConnection(t, urls[0]).QueryRowContext(t.Context(), `SELECT `+columns+` FROM serving_nodes`).Scan(dest...); err != nil {
		t.Fatal(err)
	}
	if _, err := rawConnection(t, urls[1]).ExecContext(t.Context(),
		`INSERT INTO serving_nodes (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, row[:]...); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		nodes, _, err := stores[i].Nodes(t.Context())
		if err != nil || len(nodes) != 1 || nodes[0].Genuine != want {
			t.Errorf("database %d: %+v, %v", i, nodes, err)
		}
	}
}
