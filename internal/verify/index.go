package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// index holds every key and organization. Readers take no lock: a shard is an
// immutable map behind an atomic pointer, and a change replaces its one shard. Entries are of
// fixed size and hold no pointers. There is one writer at a time, the follow loop.
type index struct {
	keys          sharded[token.Digest, keyEntry]
	organizations owners
	texts         arena
	uses          uses

	// byID finds a key's entry from its id, by the first bytes of its digest: a change whose row names
	// another digest than before must still end the entry it had. The writer's.
	byID map[idHandle]uint64

	set memorySet // of the rows held; the writer's

	keyCount, organizationCount atomic.Int64
}

type idHandle [16]byte

// keyEntry is what a verification needs of a key.
type keyEntry struct {
	id, name, organization text
	createdAt, expiresAt   int64 // microseconds since 1970; 0 = never
	revision               int64
	owner                  owner
	slot                   uint32 // place of its last use
	state                  state
	live                   bool
}

// state is keys.State in one byte. The zero state is refused as unknown: it is what an
// entry becomes whose row turned out not to be genuine.
type state uint8

const (
	stateRefused state = iota
	stateActive
	stateOverlapping
	stateExpired
	stateRevoked
)

var states = [...]keys.State{"", keys.StateActive, keys.StateOverlapping, keys.StateExpired, keys.StateRevoked}

func stateOf(s keys.State) state {
	for i, name := range states {
		if name == s {
			return state(i)
		}
	}
	return stateRefused
}

const shardBits = 12

// sharded is a map in 4,096 immutable parts. Its keys are uniform: digests.
type sharded[K ~[16]byte | ~[32]byte, V any] struct {
	shards [1 << shardBits]atomic.Pointer[map[K]V]
}

func (m *sharded[K, V]) shard(k K) *atomic.Pointer[map[K]V] {
	return &m.shards[(uint16(k[0])<<8|uint16(k[1]))>>(16-shardBits)]
}

func (m *sharded[K, V]) get(k K) (v V, ok bool) {
	if p := m.shard(k).Load(); p != nil {
		v, ok = (*p)[k]
	}
	return v, ok
}

// replace publishes a copy of the shard with k in it.
func (m *sharded[K, V]) replace(k K, v V) {
	shard := m.shard(k)
	next := make(map[K]V)
	if p := shard.Load(); p != nil {
		next = maps.Clone(*p)
	}
	next[k] = v
	shard.Store(&next)
}

// remove publishes a copy of the shard without k. While the index is not published it takes k out in place.
func (m *sharded[K, V]) remove(k K, published bool) {
	shard := m.shard(k)
	p := shard.Load()
	if p == nil {
		return
	}
	if !published {
		delete(*p, k)
		return
	}
	next := maps.Clone(*p)
	delete(next, k)
	shard.Store(&next)
}

// put is replace, or fill while the index is not published.
func (m *sharded[K, V]) put(k K, v V, published bool) {
	if published {
		m.replace(k, v)
	} else {
		m.fill(k, v)
	}
}

// fill adds to the shard in place. Only for an index no reader has yet.
func (m *sharded[K, V]) fill(k K, v V) {
	shard := m.shard(k)
	p := shard.Load()
	if p == nil {
		p = &map[K]V{}
		shard.Store(p)
	}
	(*p)[k] = v
}

// each visits every element.
func (m *sharded[K, V]) each(visit func(K, V)) {
	for i := range m.shards {
		if p := m.shards[i].Load(); p != nil {
			for k, v := range *p {
				visit(k, v)
			}
		}
	}
}

func newIndex(element setElement) *index {
	ix := &index{byID: make(map[idHandle]uint64), set: newMemorySet(element)}
	ix.organizations.texts, ix.organizations.set = &ix.texts, &ix.set
	return ix
}

func idHandleOf(id string) (h idHandle) {
	sum := sha256.Sum256([]byte(id))
	copy(h[:], sum[:])
	return h
}

// conflict is what a row said that the index cannot take.
type conflict string

const (
	noConflict   conflict = ""
	notGenuine   conflict = "not genuine"
	wentBack     conflict = "an older revision than before"
	unrevoked    conflict = "no longer revoked"
	otherDigest  conflict = "another digest than before"
	takenDigest  conflict = "the digest of another key"
	stateUnknown conflict = "a state this version does not know"
)

// applyKey brings a key's row into the index. published is false while the index is being
// filled. Whatever conflicts is refused from then on, and never accepted again (I2). Each row
// counts in the set at the revision the database has for it, accepted or not.
func (ix *index) applyKey(k *keys.Key, published bool) conflict {
	id := idHandleOf(k.ID)
	if k.Genuine && ix.taken(k, published) {
		ix.refuse(id, published)
		ix.withhold(k, id)
		return takenDigest
	}
	if before, ok := ix.byID[id]; ok && before != binary.BigEndian.Uint64(k.Digest[:]) {
		if k.ID == keys.ProbeKeyID && k.Genuine {
			return ix.remint(k, id, published)
		}
		ix.refuse(id, published)
		if k.Genuine {
			ix.orphan(k.ID, id, published)
			ix.put(k, id, published)
		} else {
			ix.withhold(k, id)
		}
		return otherDigest
	}
	if !k.Genuine {
		ix.refuse(id, published)
		ix.withhold(k, id)
		return notGenuine
	}
	if before, ok := ix.keys.get(k.Digest); ok {
		found := noConflict
		switch {
		case before.state == stateRefused && k.State != keys.StateRevoked:
			found = notGenuine
		case k.Revision < before.revision:
			found = wentBack
		case before.state == stateRevoked && k.State != keys.StateRevoked:
			found = unrevoked
		}
		if found != noConflict {
			ix.withhold(k, id)
			return found
		}
	}
	ix.put(k, id, published)
	if stateOf(k.State) == stateRefused {
		return stateUnknown
	}
	return noConflict
}

// taken reports whether the digest of a row is another key's, which is refused then.
func (ix *index) taken(k *keys.Key, published bool) bool {
	e, ok := ix.keys.get(k.Digest)
	if !ok || ix.texts.get(e.id) == k.ID {
		return false
	}
	if e.state != stateRevoked {
		e.state = stateRefused
		ix.keys.put(k.Digest, e, published)
	}
	return true
}

// refuseKey ends the entry a key id has, whatever row of it the database has.
func (ix *index) refuseKey(id string, published bool) { ix.refuse(idHandleOf(id), published) }

// withhold counts a row in the set that no entry takes its content from.
func (ix *index) withhold(k *keys.Key, id idHandle) {
	_, e, _ := ix.entryOf(id)
	ix.set.withhold(rowName{keys.KindKey, k.ID}, e.revision, k.Revision)
}

// orphan takes the row of a key id away from the entry it had: another entry is its now.
func (ix *index) orphan(keyID string, id idHandle, published bool) {
	if d, e, ok := ix.entryOf(id); ok {
		ix.set.move(rowName{keys.KindKey, keyID}, e.revision, 0)
		e.revision = 0
		ix.keys.put(d, e, published)
	}
}

func (ix *index) put(k *keys.Key, id idHandle, published bool) {
	e, known := ix.keys.get(k.Digest)
	if !known {
		e.id, e.name, e.organization = ix.texts.add(k.ID), ix.texts.add(k.Name), ix.texts.add(k.OrganizationID)
		e.slot = ix.uses.add(e.id)
		ix.keyCount.Add(1)
	} else if ix.texts.get(e.name) != k.Name { // renamed (C30)
		e.name = ix.texts.add(k.Name)
	}
	ix.byID[id] = binary.BigEndian.Uint64(k.Digest[:])
	ix.set.move(rowName{keys.KindKey, k.ID}, e.revision, k.Revision)
	e.owner = ix.organizations.place(k.OrganizationID, published)
	e.createdAt, e.expiresAt = keys.Micros(k.CreatedAt), keys.Micros(k.ExpiresAt)
	e.revision, e.state, e.live = k.Revision, stateOf(k.State), k.Environment == keys.Live
	ix.keys.put(k.Digest, e, published)
}

// holds reports whether memory has a key's row as the database has it: the same revision, and
// what decides a verdict. A key that memory refuses or knows to be revoked stays so whatever the
// database says (I2).
func (ix *index) holds(k *keys.Key) bool {
	if ix.set.withheld[rowName{keys.KindKey, k.ID}] == k.Revision && k.Revision != 0 {
		return true
	}
	e, ok := ix.keys.get(k.Digest)
	return ok && k.Genuine && ix.texts.get(e.id) == k.ID && e.revision == k.Revision &&
		(e.state == stateOf(k.State) || e.state == stateRefused || e.state == stateRevoked) &&
		e.expiresAt == keys.Micros(k.ExpiresAt) && e.live == (k.Environment == keys.Live) &&
		ix.texts.get(e.organization) == k.OrganizationID
}

// newerThan reports whether memory has a later row of a key than k.
func (ix *index) newerThan(k *keys.Key) bool {
	_, e, ok := ix.entryOf(idHandleOf(k.ID))
	return ok && max(e.revision, ix.set.withheld[rowName{keys.KindKey, k.ID}]) > k.Revision
}

// setHash computes the set hash of what the index holds, entry by entry. ErrUnknownKey.
func (ix *index) setHash(keyID string) (keys.SetHash, error) {
	sum := keys.SetHash{KeyID: keyID}
	add := func(row rowName, revision int64) error {
		if _, withheld := ix.set.withheld[row]; withheld || revision == 0 {
			return nil
		}
		return ix.set.add(&sum, row, revision)
	}
	for row, revision := range ix.set.withheld {
		if revision == 0 {
			continue
		}
		if err := ix.set.add(&sum, row, revision); err != nil {
			return sum, err
		}
	}
	var failed error
	ix.keys.each(func(_ token.Digest, e keyEntry) {
		if failed == nil {
			failed = add(rowName{keys.KindKey, ix.texts.get(e.id)}, e.revision)
		}
	})
	for o, revision := range ix.organizations.revisions {
		if failed == nil {
			failed = add(rowName{keys.KindOrganization, ix.texts.get(ix.organizations.ids[o])}, revision)
		}
	}
	return sum, failed
}

// equals compares what memory holds with the authenticated set hash (V8). The first comparison
// under a master key computes it entry by entry; later ones cost nothing. ErrUnknownKey.
func (ix *index) equals(authentic keys.SetHash) (bool, error) {
	if ix.set.sum.KeyID != authentic.KeyID || ix.set.failed != nil {
		sum, err := ix.setHash(authentic.KeyID)
		if err != nil {
			return false, err
		}
		ix.set.sum, ix.set.failed = sum, nil
	}
	return ix.set.sum == authentic, nil
}

// entryOf finds the entry a key id has.
func (ix *index) entryOf(id idHandle) (d token.Digest, e keyEntry, ok bool) {
	first, ok := ix.byID[id]
	if !ok {
		return d, e, false
	}
	binary.BigEndian.PutUint64(d[:], first)
	p := ix.keys.shard(d).Load()
	if p == nil {
		return d, e, false
	}
	for d, e := range *p {
		if binary.BigEndian.Uint64(d[:]) == first {
			return d, e, true
		}
	}
	return d, e, false
}

// refuse ends the entry a key id has, if it has one that is not revoked.
func (ix *index) refuse(id idHandle, published bool) {
	if d, e, ok := ix.entryOf(id); ok && e.state != stateRevoked {
		e.state = stateRefused
		ix.keys.put(d, e, published)
	}
}

// remint gives the probe key's entry its next digest. The one before is forgotten, and its texts and its place in uses go on, so
// that memory does not grow by a probe a minute.
func (ix *index) remint(k *keys.Key, id idHandle, published bool) conflict {
	before, e, ok := ix.entryOf(id)
	if ok && k.Revision < e.revision {
		ix.refuse(id, published)
		ix.withhold(k, id)
		return wentBack
	}
	if ok {
		ix.keys.remove(before, published)
		e.state = stateRefused // until put has all of the row
		ix.keys.put(k.Digest, e, published)
	}
	ix.put(k, id, published)
	if stateOf(k.State) == stateRefused {
		return stateUnknown
	}
	return noConflict
}

// applyOrganization brings an organization's row into the index.
func (ix *index) applyOrganization(o *keys.Organization, published bool) conflict {
	c, fresh := ix.organizations.apply(o, published)
	if fresh {
		ix.organizationCount.Add(1)
	}
	return c
}

// refuseOrganization counts an organization as switched off.
func (ix *index) refuseOrganization(id string) {
	if ix.organizations.refuse(id, true) {
		ix.organizationCount.Add(1)
	}
}

// keepRevoked carries over from an older index what must never be accepted again, whatever the
// database says now: a restored backup does not bring a revoked key back (I2). It returns how many that were and, of those the
// database still has a row for, the ids whose revocation it lost.
func (ix *index) keepRevoked(older *index) (kept int, lost []string) {
	older.keys.each(func(d token.Digest, e keyEntry) {
		if e.state != stateRevoked && e.state != stateRefused {
			return
		}
		now, known := ix.keys.get(d)
		if known && now.state == e.state {
			return
		}
		// The probe key's row is minted anew soon. Of the same secret this node goes on to know the end; an earlier one that
		// the database came back to has an owner no more.
		probe := older.texts.get(e.id) == keys.ProbeKeyID
		if probe && !known {
			return
		}
		if !known {
			now = e
			now.revision = 0 // the database has no such row
			now.id, now.name = ix.texts.add(older.texts.get(e.id)), ix.texts.add(older.texts.get(e.name))
			now.organization = ix.texts.add(older.texts.get(e.organization))
			now.owner = ix.organizations.place(older.texts.get(e.organization), false)
			now.slot = ix.uses.add(now.id)
			ix.byID[idHandleOf(older.texts.get(e.id))] = binary.BigEndian.Uint64(d[:])
			ix.keyCount.Add(1)
		}
		if known && e.state == stateRevoked && !probe {
			lost = append(lost, ix.texts.get(now.id))
		}
		now.state = e.state
		ix.keys.fill(d, now)
		kept++
	})
	return kept, lost
}

// found is what one look-up read: copies of the entries, taken before the clock is.
type found struct {
	key   keyEntry
	owner ownerState
	child bool // the account asked for is an active child of the owner (V3)
}

// find looks a digest up. It allocates nothing.
func (ix *index) find(d token.Digest, env keys.Environment, connectedAccountID string) (f found, ok bool) {
	f.key, ok = ix.keys.get(d)
	if !ok || f.key.state == stateRefused || f.key.live != (env == keys.Live) {
		return found{}, false
	}
	f.owner = ix.organizations.state(f.key.owner)
	if connectedAccountID != "" {
		f.child = ix.organizations.connected(connectedAccountID).childOf(f.key.owner)
	}
	return f, true
}

// verdict judges what was found at now. Its texts are views into the index.
func (ix *index) verdict(f *found, env keys.Environment, r *Request, now time.Time) Verdict {
	e := &f.key
	v := Verdict{
		Reason:         keys.Judge(keys.Lifecycle{State: states[e.state], ExpiresAt: keys.FromMicros(e.expiresAt)}, f.owner.has(ownerActive), now),
		KeyID:          ix.texts.get(e.id),
		OrganizationID: ix.texts.get(e.organization), KeyName: ix.texts.get(e.name),
		Environment: env, CreatedAt: keys.FromMicros(e.createdAt), ExpiresAt: keys.FromMicros(e.expiresAt),
		PaymentsEnabled: f.owner.has(ownerPaymentsEnabled),
	}
	v.narrow(r, f.child)
	return v
}
