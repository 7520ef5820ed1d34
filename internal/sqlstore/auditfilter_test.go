package sqlstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// O6: bounds of time hold although a clock was set back, and beside a place to go on from.
func TestO6AuditByTime(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fixture) {
		base := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		for _, minutes := range []int{0, 10, 5, 20, 15, 30} { // sequences 1 to 6
			keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error {
				return tx.Audit(ctx, keys.AuditEntry{At: base.Add(time.Duration(minutes) * time.Minute), Actor: "a", Action: "b", Outcome: keys.Done})
			})
		}
		at := func(minutes int) time.Time { return base.Add(time.Duration(minutes) * time.Minute) }
		for _, tt := range []struct {
			name  string
			after int64
			f     sqlstore.AuditFilter
			want  string
		}{
			{"all", 0, sqlstore.AuditFilter{}, "123456"},
			{"since", 0, sqlstore.AuditFilter{Since: at(10)}, "2456"},
			{"until", 0, sqlstore.AuditFilter{Until: at(15)}, "123"},
			{"both", 0, sqlstore.AuditFilter{Since: at(5), Until: at(20)}, "235"},
			{"after too", 3, sqlstore.AuditFilter{Since: at(5), Until: at(20)}, "5"},
			{"an actor too", 0, sqlstore.AuditFilter{Since: at(15), Actor: "a"}, "456"},
			{"another actor", 0, sqlstore.AuditFilter{Since: at(15), Actor: "x"}, ""},
			{"before the first", 0, sqlstore.AuditFilter{Until: at(0)}, ""},
			{"behind the last", 0, sqlstore.AuditFilter{Since: at(31)}, ""},
		} {
			entries, err := f.Audit(t.Context(), tt.after, 100, tt.f)
			got := ""
			for _, e := range entries {
				got += string(rune('0' + e.Sequence))
			}
			if err != nil || got != tt.want {
				t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
			}
		}
	})
}
