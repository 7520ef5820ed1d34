package sqlstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
)

// V8: somebody removes the latest entry of an organization's row. A write of that row fails: it
// would take another revision out of the set hash than the one that is in it, and the database
// could not be loaded again even with the entry back.
func TestV8WriteOfARowWhoseEntryWasRemoved(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		put := func(first keys.Reads) error {
			again := func(ctx context.Context, tx keys.Tx) error {
				o, err := tx.Organization(ctx, "org")
				if err != nil {
					return err
				}
				o.Active = true
				return keystest.Put(ctx, tx, o)
			}
			_, err := f.Write(t.Context(), first, again)
			return err
		}
		keystest.MustPut(t, f.Store, keys.Organization{ID: "org", Active: true})
		last := keystest.MustPut(t, f.Store, keys.Organization{ID: "org", Active: false})
		keystest.MustInsert(t, f.Store, keystest.NewKey("other", keys.StateActive))
		copyTable(t, f, "audit")
		f.edit(t, `DELETE FROM audit WHERE revision = $1`, last)
		for _, first := range []keys.Reads{{}, {OrganizationID: "org"}} {
			if err := put(first); !errors.Is(err, keys.ErrTampered) {
				t.Errorf("a put without the entry, %+v: %v, want ErrTampered", first, err)
			}
		}
		f.edit(t, `INSERT INTO audit SELECT * FROM old_audit WHERE revision = $1`, last)
		if err := put(keys.Reads{}); err != nil {
			t.Errorf("a put with the entry back: %v", err)
		}
		intact(t, f)
	})
}
