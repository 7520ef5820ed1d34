package verify

import (
	"crypto/sha256"
	"sync/atomic"
	"unsafe"

	"github.com/syncgram/keyward/internal/keys"
)

// owners are the organizations. A key knows its owner by place, so that a verification reads one word of it and
// looks nothing up; only a connected account named in a request is found by its id. There is one writer.
type owners struct {
	places sharded[organizationHandle, owner]
	blocks atomic.Pointer[[]*ownerBlock]

	// By place; the writer's.
	revisions []int64 // the write that last changed the row, as far as it is authentic; 0 = no row
	ids       []text

	texts *arena     // the index's
	set   *memorySet // the index's
}

// organizationHandle stands for an organization's id.
type organizationHandle [16]byte

// owner is an organization's place.
type owner uint32

const ownersPerBlock = 4096

type ownerBlock [ownersPerBlock]atomic.Uint64

// ownerState is what of an organization decides verdicts, in one word: flags, and the parent's place
// plus one in the high half, 0 for none.
type ownerState uint64

const (
	ownerActive ownerState = 1 << iota
	ownerPaymentsEnabled
	ownerRegistered
	parentShift = 32
)

func (s ownerState) has(flag ownerState) bool { return s&flag != 0 }

// childOf reports whether the state is that of a registered, active connected account of parent.
func (s ownerState) childOf(parent owner) bool {
	return s.has(ownerActive) && s.has(ownerRegistered) && s>>parentShift == ownerState(parent)+1
}

func handleOf(organizationID string) (h organizationHandle) {
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(organizationID), len(organizationID)))
	copy(h[:], sum[:])
	return h
}

// place returns an organization's place, and makes one for an id seen for the first time: as an organization
// that was never registered, which is active and has nothing else (C4).
func (os *owners) place(organizationID string, published bool) owner {
	h := handleOf(organizationID)
	if o, ok := os.places.get(h); ok {
		return o
	}
	o := owner(len(os.revisions))
	os.revisions, os.ids = append(os.revisions, 0), append(os.ids, os.texts.add(organizationID))
	var blocks []*ownerBlock
	if p := os.blocks.Load(); p != nil {
		blocks = *p
	}
	if int(o/ownersPerBlock) == len(blocks) {
		grown := make([]*ownerBlock, len(blocks)+1)
		copy(grown, blocks)
		grown[len(blocks)] = new(ownerBlock)
		blocks = grown
		os.blocks.Store(&blocks)
	}
	blocks[o/ownersPerBlock][o%ownersPerBlock].Store(uint64(ownerActive))
	os.places.put(h, o, published)
	return o
}

func (os *owners) state(o owner) ownerState {
	return ownerState((*os.blocks.Load())[o/ownersPerBlock][o%ownersPerBlock].Load())
}

// apply brings a registered organization's row in. One that is not authentic counts as switched
// off. fresh tells whether it was not registered here before.
func (os *owners) apply(row *keys.Organization, published bool) (c conflict, fresh bool) {
	o := os.place(row.ID, published)
	fresh = !os.state(o).has(ownerRegistered)
	name := rowName{keys.KindOrganization, row.ID}
	switch {
	case !row.Genuine:
		// What a forged row claims must not keep out the row that repairs it.
		os.set.withhold(name, os.revisions[o], row.Revision)
		os.store(o, ownerRegistered)
		return notGenuine, fresh
	case row.Revision < os.revisions[o]:
		os.set.withhold(name, os.revisions[o], row.Revision)
		return wentBack, fresh
	}
	os.set.move(name, os.revisions[o], row.Revision)
	os.revisions[o] = row.Revision
	os.store(o, os.stateOf(row, published))
	return noConflict, fresh && !row.Deleted
}

// refuse counts an organization as switched off until an authentic row of it comes.
func (os *owners) refuse(id string, published bool) (fresh bool) {
	o := os.place(id, published)
	fresh = !os.state(o).has(ownerRegistered)
	os.store(o, ownerRegistered)
	return fresh
}

func (os *owners) stateOf(row *keys.Organization, published bool) ownerState {
	s := ownerRegistered
	if row.Deleted {
		s = 0 // it counts as one that was never put (O2)
	}
	if row.Active {
		s |= ownerActive
	}
	if row.PaymentsEnabled {
		s |= ownerPaymentsEnabled
	}
	if row.ParentID != "" {
		s |= (ownerState(os.place(row.ParentID, published)) + 1) << parentShift
	}
	return s
}

func (os *owners) store(o owner, s ownerState) {
	(*os.blocks.Load())[o/ownersPerBlock][o%ownersPerBlock].Store(uint64(s))
}

// holds reports whether memory has an organization's row as the database has it.
func (os *owners) holds(row *keys.Organization) bool {
	if os.set.withheld[rowName{keys.KindOrganization, row.ID}] == row.Revision && row.Revision != 0 {
		return true
	}
	o, ok := os.places.get(handleOf(row.ID))
	return ok && row.Genuine && os.revisions[o] == row.Revision &&
		(os.state(o) == os.stateOf(row, true) || os.state(o) == ownerRegistered)
}

// newerThan reports whether memory has a later row of an organization.
func (os *owners) newerThan(row *keys.Organization) bool {
	o, ok := os.places.get(handleOf(row.ID))
	return ok && max(os.revisions[o], os.set.withheld[rowName{keys.KindOrganization, row.ID}]) > row.Revision
}

// revision returns the revision an organization's row is held at, 0 = none.
func (os *owners) revision(id string) int64 {
	o, ok := os.places.get(handleOf(id))
	if !ok {
		return 0
	}
	return os.revisions[o]
}

// connected returns the state of an organization named in a request; the zero state when it is not known.
func (os *owners) connected(organizationID string) ownerState {
	o, ok := os.places.get(handleOf(organizationID))
	if !ok {
		return 0
	}
	return os.state(o)
}
