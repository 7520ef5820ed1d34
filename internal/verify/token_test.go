package verify

import (
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// C23: a verification that carries the revision of a write is decided from a state that has it, whatever the clocks
// say. This node's lease looks good for an hour more, but its memory ends before a revoke and a create that were answered.
func TestC23RevisionToken(t *testing.T) {
	feed := newMemoryFeed()
	revoked, revokedKey := newKey(t, "org_a", keys.Live)
	created, createdKey := newKey(t, "org_a", keys.Live)
	never, _ := newKey(t, "org_a", keys.Live)
	before := feed.write(revokedKey).Revision
	memory := indexOf(revokedKey)
	revokedKey.State = keys.StateRevoked
	after := feed.write(revokedKey, createdKey).Revision

	const good, over = time.Hour, -time.Hour // from now to the end of the lease
	behind := func(left time.Duration) *Verifier {
		v := idle(t, feed)
		v.view.Store(&view{index: memory, applied: keys.Mark{Revision: before}, lease: goodFor(v, left)})
		return v
	}
	const undecided = "undecided"
	for _, tt := range []struct {
		name   string
		left   time.Duration
		secret string
		least  int64
		want   keys.Reason
		path   Path
	}{
		{"no token, and nothing but the clock to go by", good, revoked, 0, keys.Valid, Memory},
		{"what the memory has", good, revoked, before, keys.Valid, Memory},
		{"a miss in what the memory has", good, created, before, keys.Unknown, Memory},
		{"the revoke", good, revoked, after, keys.Revoked, Database},
		{"the create", good, created, after, keys.Valid, Database},
		{"a miss", good, never, after, keys.Unknown, Database},
		{"a write the primary does not have", good, revoked, after + 1, undecided, 0},
		{"the same, of a key that is active there", good, created, after + 1, undecided, 0},
		{"the same, a miss", good, never, after + 1, undecided, 0},
		{"the lease is over", over, revoked, before, keys.Revoked, Database},
		{"the lease is over, and the primary is behind", over, revoked, after + 1, undecided, 0},
		{"no secret at all", good, "x", after + 1, keys.Malformed, Memory},
	} {
		got, err := behind(tt.left).Verify(t.Context(), Request{Secret: tt.secret, MinRevision: tt.least})
		if err != nil {
			got.Reason = undecided
		}
		if got.Reason != tt.want || got.Path != tt.path {
			t.Errorf("%s: %s from the %s, want %s from the %s", tt.name, got.Reason, got.Path, tt.want, tt.path)
		}
	}

	// While the primary is away nobody knows whether the write is there.
	v := behind(good)
	feed.setAway(true)
	if got := reasonOf(v, Request{Secret: revoked, MinRevision: after}); got != undecided {
		t.Errorf("%s while the primary is away", got)
	}
	// P2: and whoever asks for what the memory has does not ask the primary, nor allocates.
	if n := testing.AllocsPerRun(200, func() { reasonOf(v, Request{Secret: revoked, MinRevision: before}) }); n != 0 {
		t.Errorf("%v allocations a verification", n)
	}
}
