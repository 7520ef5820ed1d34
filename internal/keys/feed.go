package keys

import (
	"context"
	"errors"
	"time"

	"github.com/syncgram/keyward/token"
)

// Feed is what verification needs of a database: all rows once, then what changed,
// and the rows in which serving nodes say how far they are. The keys and organizations
// rows are their own change log: each carries the revision that last changed it.
type Feed interface {
	// Snapshot visits every key and organization as of one revision and returns its mark.
	// It also checks the seal over the whole set of rows: when a row was rolled back
	// to an older sealed copy or removed, it finds out which from the audit log, visits a rolled-back row
	// with Genuine false, a removed organization as one with Genuine and Active
	// false, and a removed key as one that has its id alone. If even the audit log does not hold together, it returns ErrTampered.
	Snapshot(ctx context.Context, v Visitor) (Mark, error)

	// Changes returns the rows changed after a mark, in one consistent read, and the mark
	// that read stands for. At most limit rows are returned; a write's rows are never split.
	// ErrDiverged means that the mark is of another history than the database's.
	Changes(ctx context.Context, after Mark, limit int) (Changes, error)

	// LookUp reads one key by its digest, and its organization and (when connected is not empty)
	// that organization too, from the primary in one consistent read. ErrNotFound when there
	// is no such key.
	LookUp(ctx context.Context, d token.Digest, connected string) (Found, error)

	// RecordUses moves each key's last use forward, never back. It takes no revision and changes
	// no sealed row.
	RecordUses(ctx context.Context, uses []Use) error

	// Register adds a node's row, with applied = -1, and commits it.
	Register(ctx context.Context, n Node) error
	// Renew acknowledges applied and renews the lease in ONE conditional statement: it
	// succeeds only if the node's row is still there, the database's revision equals applied, and its history has
	// applied in it.
	Renew(ctx context.Context, nodeID string, applied Mark) (Renewal, error)
	// Behind returns how many node rows have not acknowledged revision, and the longest lease among them. A database that
	// does not have that revision is an error: the rows in it say nothing about the write.
	Behind(ctx context.Context, revision int64) (nodes int, longest time.Duration, err error)
	// Fence deletes the node rows that have not acknowledged revision and returns their ids.
	Fence(ctx context.Context, revision int64) ([]string, error)
	// Leave deletes a node's row.
	Leave(ctx context.Context, nodeID string) error

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

// Changes is what happened after a mark.
type Changes struct {
	Mark          // everything up to and including it is in these and earlier changes
	Keys          []Key
	Organizations []Organization
}

// Found is a key read from the primary for one verification.
type Found struct {
	Key       Key
	Owner     Organization
	Connected Organization // the zero Organization when none was asked for
}

// Node is a serving process.
type Node struct {
	ID      string // drawn anew at every registration, so a late packet of a dead process acknowledges nothing
	Address string // where the internal listener is reached
	Version string
	Lease   time.Duration // how long a renewal lasts here; a writer waits for the longest
}

// Renewal is the outcome of Renew.
type Renewal int

// The outcomes.
const (
	Renewed Renewal = iota // acknowledged and renewed
	Lagging                // the row is there, but the database is not at applied
	Fenced                 // the row is gone: drop the lease and register anew
)
