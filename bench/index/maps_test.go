// Package index measures what the index of internal/verify could be made of. Every candidate holds
// the same entries: a digest of 32 bytes, and 72 bytes without pointers.
package index

import (
	"encoding/binary"
	"maps"
	"sync"
	"sync/atomic"
)

type digest [32]byte

// entry has the size and shape of the index's own.
type entry struct {
	owner                  [16]byte
	id, name, organization uint64
	createdAt, expiresAt   int64
	revision               int64
	slot                   uint32
	state                  uint8
	live                   bool
}

// table is a candidate. put is called by one goroutine at a time, get by many. load is put for a table
// that nobody reads yet.
type table interface {
	get(digest) (entry, bool)
	put(digest, entry)
	load(digest, entry)
}

// candidates, by name. They are asked through the interface, which costs all of them the same.
var candidates = []struct {
	name  string
	empty func(n int) table
}{
	{"rwmutex", func(int) table { return &locked{m: map[digest]entry{}} }},
	{"rwmutex-sharded", func(int) table { return newLockedShards() }},
	{"sync.Map", func(int) table { return &syncMap{} }},
	{"open-addressing", func(n int) table { return newOpen(n) }},
	{"copy-on-write", func(int) table { return &copied{} }},
}

// locked is one map under one lock.
type locked struct {
	mu sync.RWMutex
	m  map[digest]entry // guarded by mu
}

func (l *locked) get(d digest) (entry, bool) {
	l.mu.RLock()
	e, ok := l.m[d]
	l.mu.RUnlock()
	return e, ok
}

func (l *locked) put(d digest, e entry) {
	l.mu.Lock()
	l.m[d] = e
	l.mu.Unlock()
}

func (l *locked) load(d digest, e entry) { l.put(d, e) }

// lockedShards is 256 of them, each on cache lines of its own.
type lockedShards [256]struct {
	locked
	_ [128]byte
}

func newLockedShards() *lockedShards {
	s := new(lockedShards)
	for i := range s {
		s[i].m = map[digest]entry{}
	}
	return s
}

func (s *lockedShards) get(d digest) (entry, bool) { return s[d[0]].get(d) }
func (s *lockedShards) put(d digest, e entry)      { s[d[0]].put(d, e) }
func (s *lockedShards) load(d digest, e entry)     { s[d[0]].put(d, e) }

// syncMap holds pointers, so that a look-up copies the entry and not an interface's copy of it.
type syncMap struct{ m sync.Map }

func (s *syncMap) get(d digest) (entry, bool) {
	v, ok := s.m.Load(d)
	if !ok {
		return entry{}, false
	}
	return *v.(*entry), true
}

func (s *syncMap) put(d digest, e entry)  { s.m.Store(d, &e) }
func (s *syncMap) load(d digest, e entry) { s.m.Store(d, &e) }

// copied is what internal/verify uses: a shard is an immutable map, and a change replaces its one
// shard. Readers take no lock.
type copied struct {
	shards [4096]atomic.Pointer[map[digest]entry]
}

func (c *copied) shard(d digest) *atomic.Pointer[map[digest]entry] {
	return &c.shards[binary.BigEndian.Uint16(d[:])>>4]
}

func (c *copied) get(d digest) (e entry, ok bool) {
	if p := c.shard(d).Load(); p != nil {
		e, ok = (*p)[d]
	}
	return e, ok
}

func (c *copied) put(d digest, e entry) {
	shard := c.shard(d)
	next := make(map[digest]entry)
	if p := shard.Load(); p != nil {
		next = maps.Clone(*p)
	}
	next[d] = e
	shard.Store(&next)
}

func (c *copied) load(d digest, e entry) {
	shard := c.shard(d)
	p := shard.Load()
	if p == nil {
		p = &map[digest]entry{}
		shard.Store(p)
	}
	(*p)[d] = e
}

// open is a table with linear probing, at most half full. Each slot has a sequence lock: odd while the
// writer is in it. All words are atomic, so that a reader that meets the writer reads old or
// new words, sees that the sequence has moved, and reads again. It is as large as it was made:
// one that must grow would be copied, as a shard of copied is, but whole.
type open struct {
	mask  uint64
	slots []slot
}

type slot struct {
	sequence atomic.Uint64
	digest   [4]atomic.Uint64
	entry    [9]atomic.Uint64
}

func newOpen(n int) *open {
	size := 1
	for size < 2*n {
		size *= 2
	}
	return &open{mask: uint64(size - 1), slots: make([]slot, size)}
}

func (o *open) get(d digest) (entry, bool) {
	want := [4]uint64{binary.LittleEndian.Uint64(d[:]), binary.LittleEndian.Uint64(d[8:]), binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:])}
	for i := want[0] & o.mask; ; {
		s := &o.slots[i]
		before := s.sequence.Load()
		if before == 0 {
			return entry{}, false // never written: the end of the run
		}
		if s.digest[0].Load() != want[0] || s.digest[1].Load() != want[1] || s.digest[2].Load() != want[2] || s.digest[3].Load() != want[3] {
			if before&1 == 0 && s.sequence.Load() == before {
				i = (i + 1) & o.mask
			}
			continue
		}
		var w [9]uint64
		for j := range w {
			w[j] = s.entry[j].Load()
		}
		if before&1 == 0 && s.sequence.Load() == before {
			return unpack(&w), true
		}
	}
}

func (o *open) put(d digest, e entry) {
	var want [4]uint64
	for j := range want {
		want[j] = binary.LittleEndian.Uint64(d[8*j:])
	}
	i := want[0] & o.mask
	s := &o.slots[i]
	for s.sequence.Load() != 0 && (s.digest[0].Load() != want[0] || s.digest[1].Load() != want[1] || s.digest[2].Load() != want[2] || s.digest[3].Load() != want[3]) {
		i = (i + 1) & o.mask
		s = &o.slots[i]
	}
	s.sequence.Add(1)
	for j := range want {
		s.digest[j].Store(want[j])
	}
	for j, word := range pack(&e) {
		s.entry[j].Store(word)
	}
	s.sequence.Add(1)
}

func (o *open) load(d digest, e entry) { o.put(d, e) }

func pack(e *entry) [9]uint64 {
	w := [9]uint64{
		binary.LittleEndian.Uint64(e.owner[:]), binary.LittleEndian.Uint64(e.owner[8:]),
		e.id, e.name, e.organization, uint64(e.createdAt), uint64(e.expiresAt), uint64(e.revision),
		uint64(e.slot) | uint64(e.state)<<32,
	}
	if e.live {
		w[8] |= 1 << 40
	}
	return w
}

func unpack(w *[9]uint64) (e entry) {
	binary.LittleEndian.PutUint64(e.owner[:], w[0])
	binary.LittleEndian.PutUint64(e.owner[8:], w[1])
	e.id, e.name, e.organization = w[2], w[3], w[4]
	e.createdAt, e.expiresAt, e.revision = int64(w[5]), int64(w[6]), int64(w[7])
	e.slot, e.state, e.live = uint32(w[8]), uint8(w[8]>>32), w[8]>>40 == 1
	return e
}
