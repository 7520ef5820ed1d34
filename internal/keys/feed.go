package keys

import (
	"context"
	"errors"
	"time"

	"github.com/syncgram/keyward/internal/seal"
)

// Feed is what verification needs of a database: all rows once, then what changed,
// and the rows in which serving nodes say how far they are. The keys and organizations
// rows are their own change log: each carries the revision that last changed it.
type Feed interface {
	// Snapshot visits every key and organization as of one revision and returns its mark and
	// the authenticated set hash at that mark. It proves the whole database (V8): the audit log
	// is one unbroken chain that ends where the authenticated state says, and the rows hash to
	// the authenticated set hash. If a row was rolled back or removed, the audit log tells which:
	// Snapshot visits a rolled-back row with Genuine false, a removed organization with Genuine and
	// Active false, and a removed key with its id alone. The Revision of a row that is not
	// authentic is the latest the audit log has for it, 0 if none. ErrTampered means that the
	// database cannot be proven.
	Snapshot(ctx context.Context, v Visitor) (Mark, SetHash, error)

	// Changes returns the rows changed after a mark, in one consistent read, and the mark
	// that read stands for. At most limit rows are returned; a write's rows are never split.
	// ErrDiverged means that the mark is of another history than the database's.
	Changes(ctx context.Context, after Mark, limit int) (Changes, error)

	// SetElement returns one row's element of the set hash: a keyed digest of its kind, id and
	// revision under the named master key. An error means that this node does not have the key.
	SetElement(keyID, kind, id string, revision int64) ([32]byte, error)

	// RecordUses moves each key's last use forward, never back. It takes no revision and changes
	// no sealed row.
	RecordUses(ctx context.Context, uses []Use) error

	// Register adds a node's row, with applied = -1, and commits it. ErrOutdated when the database asks for a newer
	// version of the lease protocol than this program's.
	Register(ctx context.Context, n Node) error
	// Renew acknowledges applied and renews the lease in ONE conditional statement: it
	// succeeds only if the node's row is still there, the database's revision equals applied, its history has
	// applied in it, and it takes this program's version of the protocol (else ErrOutdated).
	Renew(ctx context.Context, nodeID string, applied Mark) (Renewal, error)
	// Standing returns how far the nodes are with a write, for the node that asks. ErrDiverged when the database
	// does not have that write: the rows in it say nothing about it.
	Standing(ctx context.Context, nodeID string, c Commit) (Standing, error)
	// Fence deletes the node rows that have not acknowledged the write and returns their ids. ErrDiverged, with nothing
	// deleted, when the database does not have the write: its number may be another write's there.
	Fence(ctx context.Context, c Commit) ([]string, error)
	// Settle notes that every lease granted before a timeline began is over.
	Settle(ctx context.Context, timeline int64) error
	// Leave deletes a node's row.
	Leave(ctx context.Context, nodeID string) error

	// Announce tells the nodes that listen of a revision, as each write does of its own. It is a hint, and any may be lost.
	Announce(ctx context.Context, revision int64) error
	// Listen calls heard, which returns at once, for each announcement until ctx ends or the connection fails. All come from one server,
	// which did not stop in between.
	Listen(ctx context.Context, heard func(Announcement)) error

	// EraseKeptAnswers deletes kept answers created before the time given and returns how many. What
	// was noted of rates before that goes too.
	EraseKeptAnswers(ctx context.Context, before time.Time) (int64, error)
}

// Visitor receives a snapshot. The values are the visitor's to keep. A non-nil error ends the visit.
type Visitor struct {
	Key          func(Key) error
	Organization func(Organization) error
}

// Mark is a point in the history of one database. A revision alone is not: a database that lost its last writes (a
// restored backup, a standby that was behind) counts the same numbers again for other writes. The audit log tells
// them apart, since each entry's hash covers all before it.
type Mark struct {
	Revision int64
	Sequence int64 // of the last audit entry at that point; 0 = not known, and the history is not compared
	Hash     [32]byte
}

// ErrDiverged is what a Feed answers to a mark of a history that is not its own.
var ErrDiverged = errors.New("keys: the database lost writes that this node has seen")

// ErrUnknownKey is what a Feed answers where it would have to read what is under a master key that
// this node lacks: it cannot be decided whether that is authentic (R10).
var ErrUnknownKey = seal.ErrUnknownKey

// ErrOutdated is what a Feed answers to a program that knows an older version of the lease protocol than the database demands.
var ErrOutdated = errors.New("keys: the database asks for a newer version of the lease protocol than this program has: run the newer program")

// Commit says where a write is: the point in history it made, and the timeline of the server that committed it.
type Commit struct {
	Mark
	// Timeline is PostgreSQL's number for the lineage of a database: a standby that is promoted begins the next one. 0 on a
	// database that has no such thing, and then nothing is ever lost by a promotion.
	Timeline int64
}

// Standing is how far the nodes are with a write.
type Standing struct {
	Behind   int           // node rows that have not acknowledged it
	Longest  time.Duration // the longest lease of all rows
	Own      bool          // the row of the node that asked is there
	Timeline int64         // of the server that answered
	Settled  bool          // every lease granted on an earlier timeline is known to be over
}

// SetHash is the XOR of one element for each key and organization row of the database: a keyed
// digest of the row's kind, id and revision. The database's authenticated state holds it, so a
// node can compare what its memory holds with what Keyward wrote (V8).
type SetHash struct {
	KeyID string // the master key the elements are made under; empty = the set hash is not known
	Sum   [32]byte
}

// Changes is what happened after a mark.
type Changes struct {
	Mark // everything up to and including it is in these and earlier changes

	// Set is the authenticated set hash at Mark. It is not known at a stop on the way, when more
	// rows had changed than were asked for: memory that has got so far acknowledges nothing yet.
	Set SetHash

	// The Revision of a row that is not authentic is the latest the audit log has for it.
	Keys          []Key
	Organizations []Organization
}

// Announcement tells of a commit. It is a hint: any may be lost, or come late.
type Announcement struct {
	Revision int64 // 0 = only that announcements arrive
	// Changes, when they were sent along, are all that this one write changed, and Timeline is that of the server it was committed on
	// (see Commit). Before is the point in history that the write followed: only at that point may they be applied. The store has
	// checked that they come from it.
	Changes  *Changes
	Before   Mark
	Timeline int64
}

// Node is a serving process.
type Node struct {
	ID      string // drawn anew at every registration, so a late packet of a dead process acknowledges nothing
	Address string // where the verification listener is reached
	Version string
	Lease   time.Duration // how long a renewal lasts here; a writer waits for the longest

	// The store sets these when it registers the node and when the node's keys change.
	DatabaseID string
	MasterKeys []seal.KeyFingerprint // of the keys it has; nil = an older version, which does not say
}

// Sealed returns the bytes that the MAC of a node's row covers: what the node says of itself, and
// in which database. So a row of another database, whose addresses may be other machines' by now,
// is not authentic here.
func (n *Node) Sealed() []byte {
	var b sealedBytes
	b.text(n.DatabaseID, n.ID, n.Address, n.Version)
	b.number(n.Lease.Microseconds())
	for _, k := range n.MasterKeys {
		b.text(k.ID, k.Fingerprint)
	}
	return b
}

// HasMasterKey reports whether the node says that it has the key with that fingerprint, and other
// whether it has another key under the same id.
func (n *Node) HasMasterKey(id, fingerprint string) (has, other bool) {
	for _, k := range n.MasterKeys {
		if k.ID == id {
			return k.Fingerprint == fingerprint, k.Fingerprint != fingerprint
		}
	}
	return false, false
}

// ServingNode is a node's row as another node sees it.
type ServingNode struct {
	Node
	Protocol   int
	Applied    int64 // the revision it acknowledged last; -1 = none yet
	RenewedAgo time.Duration
	Genuine    bool // the MAC over what the node says of itself holds
	Undecided  bool // it cannot be checked: it is under a master key that this node lacks
}

// LeaseProtocol is the version of the lease protocol this program speaks. A database says which is
// the oldest that may serve, so that a program which does not know a later rule of it gets no lease.
// Version 2 added the set hash to what a node checks before it acknowledges (V8), and to rows the
// columns of migrations 3 and 4.
const LeaseProtocol = 2

// Renewal is what became of Renew.
type Renewal struct {
	Outcome
	Timeline int64     // of the server that answered
	Settled  bool      // as in Standing
	At       time.Time // of a renewal: when the row was written, by the database's clock
}

// Outcome is one of three.
type Outcome int

// The outcomes.
const (
	Renewed Outcome = iota // acknowledged and renewed
	Lagging                // the row is there, but the database is not at applied
	Fenced                 // the row is gone: drop the lease and register anew
)
