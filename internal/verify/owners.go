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

	revisions []int64 // by place: the write that last changed the row; the writer's
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
	os.revisions = append(os.revisions, 0)
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

// apply brings a registered organization's row in. One that is not genuine counts as switched off.
// fresh tells whether it was not registered here before.
func (os *owners) apply(row *keys.Organization, published bool) (c conflict, fresh bool) {
	o := os.place(row.ID, published)
	fresh = !os.state(o).has(ownerRegistered)
	if row.Genuine && row.Revision < os.revisions[o] {
		return wentBack, fresh
	}
	next := ownerRegistered
	if row.Genuine {
		os.revisions[o] = row.Revision // what a forged row claims must not keep out the row that repairs it
		if row.Deleted {
			next, fresh = 0, false // it counts as one that was never put (O2)
		}
		if row.Active {
			next |= ownerActive
		}
		if row.PaymentsEnabled {
			next |= ownerPaymentsEnabled
		}
		if row.ParentID != "" {
			next |= (ownerState(os.place(row.ParentID, published)) + 1) << parentShift
		}
	} else {
		c = notGenuine
	}
	(*os.blocks.Load())[o/ownersPerBlock][o%ownersPerBlock].Store(uint64(next))
	return c, fresh
}

// connected returns the state of an organization named in a request; the zero state when it is not known.
func (os *owners) connected(organizationID string) ownerState {
	o, ok := os.places.get(handleOf(organizationID))
	if !ok {
		return 0
	}
	return os.state(o)
}
