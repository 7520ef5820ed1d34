package verify

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/syncgram/keyward/internal/keys"
)

// putBack shows every reader the row of a key as it was, authentic as it is, while what was written
// says otherwise: what somebody with write access to the database does. It returns what undoes it.
func (f *memoryFeed) putBack(old keys.Key) (undo func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.keys[old.ID]
	f.keys[old.ID] = old
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.keys[old.ID] = now
	}
}

// V8, C23: a write whose row is kept from a node while the write is in progress is not
// acknowledged by that node: what its memory holds is not what Keyward wrote. The node decides
// nothing until it has loaded again, and never accepts the secret.
func TestV8RowKeptFromANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.terse, feed.deaf = true, true
		secret, key := newKey(t, "org_a", keys.Live)
		other, otherKey := newKey(t, "org_b", keys.Live)
		feed.write(key, otherKey)
		v, _ := start(t, feed, nil)
		time.Sleep(time.Second)

		feed.mu.Lock()
		before := feed.keys[key.ID]
		feed.mu.Unlock()
		key.State = keys.StateRevoked
		commit := feed.write(key)
		undo := feed.putBack(before)
		feed.mu.Lock()
		feed.unproven = true // as a snapshot finds it
		feed.mu.Unlock()
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != "undecided" {
			t.Errorf("%s while the row of a revocation is kept from the node", got)
		}
		if err := v.Proven(); !errors.Is(err, errNotProven) {
			t.Errorf("proven: %v", err)
		}
		if n := v.Stats().Differences; n != 1 {
			t.Errorf("%d differences counted, want 1", n)
		}
		if st, err := feed.Standing(t.Context(), v.NodeID(), commit); err != nil || st.Behind != 1 {
			t.Errorf("%+v, %v: the write was acknowledged", st, err)
		}

		undo()
		feed.mu.Lock()
		feed.unproven = false
		feed.mu.Unlock()
		time.Sleep(2 * time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Errorf("%s once the database is whole again", got)
		}
		if got := reasonOf(v, Request{Secret: other}); got != keys.Valid || v.Proven() != nil {
			t.Errorf("%s for another key, proven %v", got, v.Proven())
		}
	})
}

// V8: a scrub compares memory with the database in both directions, by content, and closes the
// node when they differ.
func TestV8ScrubComparesMemory(t *testing.T) {
	for _, tt := range []struct {
		name    string
		differ  func(ix *index, k *keys.Key, o *keys.Organization)
		disturb func(feed *memoryFeed)
		ok      bool
	}{
		{"nothing", func(*index, *keys.Key, *keys.Organization) {}, nil, true},
		{"a key that memory lacks", func(ix *index, k *keys.Key, _ *keys.Organization) { ix.keys.remove(k.Digest, true) }, nil, false},
		{"a key of another revision in memory", func(ix *index, k *keys.Key, _ *keys.Organization) {
			e, _ := ix.keys.get(k.Digest)
			e.revision--
			ix.keys.replace(k.Digest, e)
		}, nil, false},
		{"a key that lives longer in memory", func(ix *index, k *keys.Key, _ *keys.Organization) {
			e, _ := ix.keys.get(k.Digest)
			e.expiresAt = 0
			ix.keys.replace(k.Digest, e)
		}, nil, false},
		{"a key that memory knows to be revoked", func(ix *index, k *keys.Key, _ *keys.Organization) { // I2: no difference
			e, _ := ix.keys.get(k.Digest)
			e.state = stateRevoked
			ix.keys.replace(k.Digest, e)
		}, nil, true},
		{"a key that only memory holds", func(ix *index, k *keys.Key, _ *keys.Organization) {
			_, more := newKey(t, "org_a", keys.Live)
			more.Revision = 1
			sum := ix.set.sum
			ix.applyKey(&more, true)
			ix.set.sum = sum
		}, nil, false},
		{"an organization that is on in memory", func(ix *index, _ *keys.Key, o *keys.Organization) {
			place, _ := ix.organizations.places.get(handleOf(o.ID))
			ix.organizations.store(place, ownerRegistered|ownerActive)
		}, nil, false},
		{"a database that cannot be proven", func(*index, *keys.Key, *keys.Organization) {}, func(feed *memoryFeed) { feed.unproven = true }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				feed := newMemoryFeed()
				_, key := newKey(t, "org_a", keys.Live)
				key.ExpiresAt = time.Now().Add(time.Hour)
				organization := keys.Organization{ID: "org_a", Active: true, PaymentsEnabled: true, Registered: true, Genuine: true}
				feed.write(key, organization)
				v, _ := start(t, feed, nil)
				time.Sleep(time.Second)
				v.writing.Lock()
				tt.differ(v.view.Load().index, &key, &organization)
				v.writing.Unlock()
				if tt.disturb != nil {
					feed.mu.Lock()
					tt.disturb(feed)
					feed.mu.Unlock()
				}
				err := v.Scrub(t.Context())
				// What differs is loaded again at once, so that the node may be proven again by now.
				if tt.ok && errors.Join(err, v.Proven()) != nil || v.Stats().Differences != map[bool]int64{true: 0, false: 1}[tt.ok] {
					t.Errorf("scrub: %v; proven: %v; %d differences", err, v.Proven(), v.Stats().Differences)
				}
				feed.mu.Lock()
				feed.unproven = false
				feed.mu.Unlock()
				time.Sleep(3 * time.Second)
				if err := errors.Join(v.Proven(), v.Ready(), v.Scrub(t.Context())); err != nil {
					t.Errorf("after the keys were loaded again: %v", err)
				}
			})
		})
	}
}

// V8, R10: the set hash is made under another master key after a rotation. Nodes compare on, and
// none closes.
func TestV8SetHashUnderAnotherMasterKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key, keys.Organization{ID: "org_a", Active: true, Registered: true, Genuine: true})
		v, _ := start(t, feed, nil)
		time.Sleep(time.Second)
		feed.mu.Lock()
		feed.setKeyID = "k2"
		feed.mu.Unlock()
		for range 3 {
			_, another := newKey(t, "org_b", keys.Live)
			if err := v.Await(t.Context(), feed.write(another)); err != nil {
				t.Fatal(err)
			}
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid || v.Stats().Differences != 0 {
			t.Errorf("%s, %d differences", got, v.Stats().Differences)
		}
		if set := v.view.Load().index.set.sum; set.KeyID != "k2" {
			t.Errorf("memory's set hash is still made under %s", set.KeyID)
		}
	})
}

// V8: memory's set hash, kept as rows change, is the one of its entries, whatever comes in: rows
// that are not authentic, older ones, other digests, and rows that take another key's digest.
func TestV8SetHashAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ix := newIndex(element)
		written := map[rowName]int64{}
		if ok, err := ix.equals(setOf("k1", nil)); !ok || err != nil {
			rt.Fatal(ok, err)
		}
		digests := make([][32]byte, 6)
		for i := range digests {
			digests[i] = [32]byte{byte(i + 1), 1}
		}
		states := []keys.State{keys.StateActive, keys.StateOverlapping, keys.StateExpired, keys.StateRevoked, "unheard of"}
		for revision := int64(1); revision <= 40; revision++ {
			if rapid.IntRange(0, 3).Draw(rt, "organization") == 0 {
				o := keys.Organization{ID: fmt.Sprint("org_", rapid.IntRange(0, 3).Draw(rt, "org")), Active: rapid.Bool().Draw(rt, "active"),
					Registered: true, Genuine: rapid.Bool().Draw(rt, "authentic"),
					Revision: rapid.Int64Range(max(0, revision-3), revision).Draw(rt, "revision")}
				ix.applyOrganization(&o, true)
				written[rowName{keys.KindOrganization, o.ID}] = o.Revision
				if rapid.Bool().Draw(rt, "refuse") {
					ix.refuseOrganization(o.ID)
				}
			} else {
				id := keys.ProbeKeyID
				if n := rapid.IntRange(0, 5).Draw(rt, "key"); n > 0 {
					id = fmt.Sprint("key_", n)
				}
				k := keys.Key{ID: id, OrganizationID: "org_0", Environment: keys.Live,
					Digest: digests[rapid.IntRange(0, len(digests)-1).Draw(rt, "digest")], State: rapid.SampledFrom(states).Draw(rt, "state"),
					Genuine:  rapid.IntRange(0, 3).Draw(rt, "authentic") > 0,
					Revision: rapid.Int64Range(max(0, revision-3), revision).Draw(rt, "revision")}
				ix.applyKey(&k, true)
				written[rowName{keys.KindKey, k.ID}] = k.Revision
				if rapid.IntRange(0, 5).Draw(rt, "refuse") == 0 {
					ix.refuseKey(k.ID, true)
				}
			}
			want := setOf("k1", written)
			if ix.set.sum != want {
				rt.Fatalf("revision %d: the hash that is kept differs", revision)
			}
			if got, err := ix.setHash("k1"); err != nil || got != want {
				rt.Fatalf("revision %d: the hash of the entries differs: %v", revision, err)
			}
		}
	})
}
