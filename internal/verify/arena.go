package verify

import (
	"sync/atomic"
	"unsafe"
)

// arena keeps the texts of the index in large blocks without pointers, so that a
// million names cost the garbage collector nothing. One writer appends; readers read
// what was published to them before. A byte never changes once it was written.
type arena struct {
	blocks atomic.Pointer[[][]byte]
	used   int // bytes of the last block in use; the writer's
}

// text finds a string in an arena: block in the high bits, then offset and length.
type text uint64

const (
	blockBits  = 20 // 1 MiB a block
	lengthBits = 16
	blockSize  = 1 << blockBits
)

// add copies s into the arena. s is shorter than 64 KiB: the longest text is a
// name of 255 code points.
func (a *arena) add(s string) text {
	if s == "" {
		return 0
	}
	var blocks [][]byte
	if p := a.blocks.Load(); p != nil {
		blocks = *p
	}
	if len(blocks) == 0 || a.used+len(s) > blockSize {
		grown := make([][]byte, len(blocks)+1)
		copy(grown, blocks)
		grown[len(blocks)] = make([]byte, blockSize)
		blocks, a.used = grown, 0
		a.blocks.Store(&blocks)
	}
	last := len(blocks) - 1
	offset := a.used
	copy(blocks[last][offset:], s)
	a.used += len(s)
	return text(last)<<(blockBits+lengthBits) | text(offset)<<lengthBits | text(len(s))
}

// get returns the string without copying it.
func (a *arena) get(t text) string {
	n := int(t & (1<<lengthBits - 1))
	if n == 0 {
		return ""
	}
	offset := int(t>>lengthBits) & (blockSize - 1)
	block := (*a.blocks.Load())[t>>(blockBits+lengthBits)]
	return unsafe.String(&block[offset], n)
}
