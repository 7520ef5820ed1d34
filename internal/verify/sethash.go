package verify

import (
	"crypto/subtle"

	"github.com/syncgram/keyward/internal/keys"
)

// setElement is keys.Feed.SetElement.
type setElement func(keyID, kind, id string, revision int64) ([32]byte, error)

// rowName names a row of the keys or the organizations table.
type rowName struct{ kind, id string }

// memorySet is the set hash of the rows that memory holds, kept as they change. Before memory
// acknowledges a write, this hash must equal the one in the database's authenticated state: then
// no row was kept from this node, put back or removed on the way (V8).
type memorySet struct {
	element setElement
	sum     keys.SetHash // of every row held, while failed is nil; its KeyID is empty before the first comparison
	failed  error        // an element could not be made: the next comparison computes the sum again

	// withheld are rows that the database has at another revision than their entry says, because
	// memory took nothing else from them: rows that are not authentic, or that conflict.
	withheld map[rowName]int64
}

func newMemorySet(element setElement) memorySet {
	return memorySet{element: element, withheld: make(map[rowName]int64)}
}

// move notes that the database has a row at revision to; 0 = it has none. entry is the revision
// of the row's entry so far, which the caller sets to the new one.
func (m *memorySet) move(row rowName, entry, to int64) {
	from := entry
	if w, ok := m.withheld[row]; ok {
		from = w
		delete(m.withheld, row)
	}
	if m.sum.KeyID == "" || from == to {
		return
	}
	for _, revision := range []int64{from, to} {
		if revision == 0 {
			continue
		}
		if err := m.add(&m.sum, row, revision); err != nil {
			m.failed = err
		}
	}
}

// withhold is move for a row whose entry stays as it is.
func (m *memorySet) withhold(row rowName, entry, to int64) {
	m.move(row, entry, to)
	if to != entry {
		m.withheld[row] = to
	}
}

// add puts a row into a sum, or takes it out: XOR is its own inverse.
func (m *memorySet) add(sum *keys.SetHash, row rowName, revision int64) error {
	e, err := m.element(sum.KeyID, row.kind, row.id, revision)
	if err == nil {
		subtle.XORBytes(sum.Sum[:], sum.Sum[:], e[:])
	}
	return err
}
