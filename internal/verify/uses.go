package verify

import (
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// uses collects the time of each key's last accepted verification, in whole seconds, without
// a lock and without allocation. Places are added by the index's one writer.
type uses struct {
	blocks atomic.Pointer[[]*useBlock]
	next   uint32 // the writer's
}

const usesPerBlock = 4096

type useBlock struct {
	id    [usesPerBlock]atomic.Uint64 // text of the key's id
	last  [usesPerBlock]atomic.Int64  // seconds since 1970
	dirty [usesPerBlock / 64]atomic.Uint64
}

// add gives a key its place.
func (u *uses) add(id text) uint32 {
	slot := u.next
	u.next++
	var blocks []*useBlock
	if p := u.blocks.Load(); p != nil {
		blocks = *p
	}
	if int(slot/usesPerBlock) == len(blocks) {
		grown := make([]*useBlock, len(blocks)+1)
		copy(grown, blocks)
		grown[len(blocks)] = new(useBlock)
		blocks = grown
		u.blocks.Store(&blocks)
	}
	blocks[slot/usesPerBlock].id[slot%usesPerBlock].Store(uint64(id))
	return slot
}

// mark notes a use. A key used often costs one compare a second; the rest is a load.
func (u *uses) mark(slot uint32, now time.Time) {
	b := (*u.blocks.Load())[slot/usesPerBlock]
	i := slot % usesPerBlock
	second := now.Unix()
	for {
		before := b.last[i].Load()
		if second <= before {
			return
		}
		if b.last[i].CompareAndSwap(before, second) {
			break
		}
	}
	b.dirty[i/64].Or(1 << (i % 64))
}

// take returns the places used since the last take and forgets them.
func (u *uses) take() (slots []uint32) {
	p := u.blocks.Load()
	if p == nil {
		return nil
	}
	for n, b := range *p {
		for w := range b.dirty {
			bits := b.dirty[w].Swap(0)
			for i := w * 64; bits != 0; i, bits = i+1, bits>>1 {
				if bits&1 != 0 {
					slots = append(slots, uint32(n*usesPerBlock+i))
				}
			}
		}
	}
	return slots
}

// use returns the last use of a place.
func (u *uses) use(slot uint32, texts *arena) keys.Use {
	b, i := (*u.blocks.Load())[slot/usesPerBlock], slot%usesPerBlock
	return keys.Use{KeyID: texts.get(text(b.id[i].Load())), At: time.Unix(b.last[i].Load(), 0).UTC()}
}

// giveBack undoes a take, for uses that could not be written.
func (u *uses) giveBack(slots []uint32) {
	blocks := *u.blocks.Load()
	for _, slot := range slots {
		i := slot % usesPerBlock
		blocks[slot/usesPerBlock].dirty[i/64].Or(1 << (i % 64))
	}
}
