package verify

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// C23: a verification that carries the revision of a write is decided from a state that has it,
// whatever the clocks say. This node's lease looks good for an hour more, but its memory ends
// before a revoke and a create that were answered, until it reads what is new.
func TestC23RevisionToken(t *testing.T) {
	const undecided = "undecided"
	for _, tt := range []struct {
		name   string
		secret int // 0 revoked, 1 created, 2 never created, 3 malformed
		least  int64
		reads  bool // the node can read what is new
		want   keys.Reason
		path   Path
	}{
		{"no token, and nothing but the clock to go by", 0, 0, true, keys.Valid, Memory},
		{"what the memory has", 0, 1, true, keys.Valid, Memory},
		{"a miss in what the memory has", 1, 1, true, keys.Unknown, Memory},
		{"the revoke", 0, 2, true, keys.Revoked, Waited},
		{"the create", 1, 2, true, keys.Valid, Waited},
		{"a miss", 2, 2, true, keys.Unknown, Waited},
		{"a write the database does not have", 0, 3, true, undecided, 0},
		{"the same, of a key that is active there", 1, 3, true, undecided, 0},
		{"the same, a miss", 2, 3, true, undecided, 0},
		{"the revoke, and the database is away", 0, 2, false, undecided, 0},
		{"what the memory has, and the database is away", 0, 1, false, keys.Valid, Memory},
		{"no secret at all", 3, 3, true, keys.Malformed, Memory},
	} {
		synctest.Test(t, func(t *testing.T) {
			feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
			feed.deaf = true
			revoked, revokedKey := newKey(t, "org_a", keys.Live)
			created, createdKey := newKey(t, "org_a", keys.Live)
			never, _ := newKey(t, "org_a", keys.Live)
			feed.write(revokedKey)
			v, _ := start(t, feed, func(c *Config) { c.Lease, c.Poll = time.Minute, 10*time.Second })
			time.Sleep(time.Second)
			revokedKey.State = keys.StateRevoked
			feed.write(revokedKey, createdKey)
			feed.setAway(!tt.reads)
			secret := []string{revoked, created, never, "x"}[tt.secret]
			got, err := v.Verify(t.Context(), Request{Secret: secret, MinRevision: tt.least})
			if err != nil {
				got.Reason = undecided
			}
			if got.Reason != tt.want || got.Path != tt.path {
				t.Errorf("%s: %s by %s, want %s by %s", tt.name, got.Reason, got.Path, tt.want, tt.path)
			}
		})
	}

	// P2: a verification that asks for what the memory has allocates nothing.
	secret, key := newKey(t, "org_a", keys.Live)
	v := idle(t, newMemoryFeed())
	v.view.Store(&view{index: indexOf(key), applied: keys.Mark{Revision: 7}, lease: goodFor(v, time.Hour)})
	if n := testing.AllocsPerRun(200, func() {
		_, _ = v.Verify(context.Background(), Request{Secret: secret, MinRevision: 7})
	}); n != 0 {
		t.Errorf("%v allocations a verification", n)
	}
}
