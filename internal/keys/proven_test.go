package keys_test

import (
	"errors"
	"testing"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// calls are the calls of the management API, and an operator's, on one key.
func calls(t *testing.T, f *fixture, c keys.Call, id string) map[string]func() error {
	return map[string]func() error{
		"create": func() error { _, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "k"}); return err },
		"list":   func() error { _, err := f.List(t.Context(), c, keys.ListRequest{}); return err },
		"revoke": func() error { _, err := f.Revoke(t.Context(), c, id, ""); return err },
		"roll":   func() error { _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: id}); return err },
		"put": func() error {
			_, err := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: c.Principal.OrganizationID})
			return err
		},
	}
}

// V8: while the database is not proven every call is answered with 503 and changes nothing.
func TestV8NothingIsManagedOnAnUnprovenDatabase(t *testing.T) {
	var unproven error
	f := open(t, sqlstore.SQLite, func(cfg *keys.Config) { cfg.Proven = func() error { return unproven } })
	ann := user("ann", "org_a")
	issued := f.create(t, ann)
	before, _, err := f.store.KeyAsOf(t.Context(), issued.Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	unproven = errors.New("not proven")
	for name, call := range calls(t, f, ann, issued.Key.ID) {
		if got := code(call()); got != api.Unavailable {
			t.Errorf("%s: %q", name, got)
		}
	}
	if after, _, err := f.store.KeyAsOf(t.Context(), issued.Key.ID); err != nil || after != before {
		t.Errorf("the key is %+v, %v", after, err)
	}
	unproven = nil
	if _, err := f.Revoke(t.Context(), ann, issued.Key.ID, ""); err != nil {
		t.Errorf("once it is proven: %v", err)
	}
}

// V8: a row that is older than the one verification holds was put back by somebody else. Nothing is
// decided by it.
func TestV8OlderRowThanMemoryHolds(t *testing.T) {
	for _, kind := range []string{keys.KindOrganization, keys.KindKey} {
		held := map[string]int64{}
		f := open(t, sqlstore.SQLite, func(cfg *keys.Config) {
			cfg.HeldRevision = func(k, id string) int64 { return held[k+" "+id] }
		})
		ann := user("ann", "org_a")
		o := f.put(t, keys.OrganizationRequest{ID: "org_a"})
		k := f.create(t, ann).Key
		id, revision := k.ID, k.Revision
		if kind == keys.KindOrganization {
			id, revision = o.ID, o.Revision
		}
		for _, tt := range []struct {
			held int64
			want api.Code
		}{{revision + 1, api.Unavailable}, {revision, ""}} {
			held[kind+" "+id] = tt.held
			if _, err := f.Revoke(t.Context(), ann, k.ID, ""); code(err) != tt.want {
				t.Errorf("%s at %d, held at %d: %v", kind, revision, tt.held, err)
			}
		}
	}
}
