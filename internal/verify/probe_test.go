package verify

import (
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// nextProbe is a row of the probe key with a secret of its own.
func nextProbe(tb testing.TB, revision int64) (string, keys.Key) {
	tb.Helper()
	secret, k := newKey(tb, keys.ProbeOrganizationID, keys.Test)
	k.ID, k.Name, k.Revision = keys.ProbeKeyID, "probe", revision
	return secret, k
}

// The probe key gets a new digest each minute: the one before is forgotten, and memory does not grow.
func TestProbeKeyTakesNoMemory(t *testing.T) {
	for _, published := range []bool{true, false} {
		ix := newIndex(element)
		_, k := nextProbe(t, 1)
		ix.applyKey(&k, published)
		texts, uses := ix.texts.used, ix.uses.next
		for i := range int64(10_000) {
			k.State, k.Revision = keys.StateRevoked, 2*i+2
			if c := ix.applyKey(&k, published); c != noConflict {
				t.Fatalf("end: %s", c)
			}
			before := k.Digest
			_, k = nextProbe(t, 2*i+3)
			if c := ix.applyKey(&k, published); c != noConflict {
				t.Fatalf("mint: %s", c)
			}
			if _, ok := ix.keys.get(before); ok {
				t.Fatal("the digest before is still there")
			}
		}
		entries := 0
		ix.keys.each(func(_ token.Digest, _ keyEntry) { entries++ })
		if n := ix.keyCount.Load(); n != 1 || entries != 1 || len(ix.byID) != 1 || ix.texts.used != texts || ix.uses.next != uses {
			t.Errorf("%d keys, %d entries, %d ids, %d bytes of text (%d before), %d uses (%d before)", n, entries, len(ix.byID), ix.texts.used, texts, ix.uses.next, uses)
		}
		f, ok := ix.find(k.Digest, keys.Test, "")
		if !ok || ix.texts.get(f.key.id) != keys.ProbeKeyID || ix.texts.get(f.key.organization) != keys.ProbeOrganizationID || f.key.state != stateActive {
			t.Errorf("the last one: %+v, %t", f, ok)
		}
	}
}

// P5: another digest under the same id is taken from a newer genuine row of the probe key, and from nothing else.
func TestP5ProbeKeyRefusesOtherRows(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*keys.Key)
		want   conflict
	}{
		"not genuine":    {func(k *keys.Key) { k.Genuine = false }, otherDigest},
		"an older row":   {func(k *keys.Key) { k.Revision = 4 }, wentBack},
		"unknown state":  {func(k *keys.Key) { k.State = "new" }, stateUnknown},
		"genuine, newer": {func(*keys.Key) {}, noConflict},
	} {
		t.Run(name, func(t *testing.T) {
			ix := newIndex(element)
			_, k := nextProbe(t, 5)
			ix.applyKey(&k, true)
			_, next := nextProbe(t, 6)
			tt.change(&next)
			if c := ix.applyKey(&next, true); c != tt.want {
				t.Errorf("conflict %q, want %q", c, tt.want)
			}
			if _, ok := ix.find(k.Digest, keys.Test, ""); ok {
				t.Error("the former secret is found")
			}
			if _, ok := ix.find(next.Digest, keys.Test, ""); ok != (tt.want == noConflict) {
				t.Errorf("the new secret is found: %t", ok)
			}
		})
	}
}

// I2: what a node knows of the probe key outlives a load only for the same secret, and is not written again.
func TestI2ProbeKeyAfterLostWrites(t *testing.T) {
	older := newIndex(element)
	_, k := nextProbe(t, 7)
	k.State = keys.StateRevoked
	older.applyKey(&k, true)

	same := newIndex(element)
	k.State, k.Revision = keys.StateActive, 6
	same.applyKey(&k, false)
	if kept, lost := same.keepRevoked(older); kept != 1 || len(lost) != 0 {
		t.Errorf("the same secret: kept %d, to revoke again %v", kept, lost)
	}
	if f, ok := same.find(k.Digest, keys.Test, ""); !ok || f.key.state != stateRevoked {
		t.Errorf("the same secret: %+v, %t", f, ok)
	}

	other := newIndex(element)
	_, before := nextProbe(t, 5)
	other.applyKey(&before, false)
	if kept, lost := other.keepRevoked(older); kept != 0 || len(lost) != 0 || other.keyCount.Load() != 1 {
		t.Errorf("another secret: kept %d, to revoke again %v, %d keys", kept, lost, other.keyCount.Load())
	}
	_, next := nextProbe(t, 6)
	if c := other.applyKey(&next, true); c != noConflict {
		t.Errorf("the next probe: %s", c)
	}
}
