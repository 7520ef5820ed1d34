package keys

import (
	"context"
	"time"

	"github.com/syncgram/keyward/token"
)

// Feed is what verification needs of a database: all rows once, then what changed,
// and the rows in which serving nodes say how far they are. The keys and organizations
// rows are their own change log: each carries the revision that last changed it.
type Feed interface {
	// Snapshot visits every key and organization as of one revision and returns that revision.
	// It also checks the seal over the whole set of rows: when a row was rolled back
	// to an older sealed copy or removed, it finds out which from the audit log, visits a rolled-back row
	// with Genuine false, and visits a removed organization as one with Genuine and Active
	// false. If even the audit log does not hold together, it returns ErrTampered.
	Snapshot(ctx context.Context, v Visitor) (revision int64, err error)

	// Changes returns the rows changed after revision, in one consistent read, and the revision
	// that read stands for. At most limit rows are returned; a write's rows are never split.
	Changes(ctx context.Context, after int64, limit int) (Changes, error)

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
	// succeeds only if the node's row is still there and the database's revision equals applied.
	Renew(ctx context.Context, nodeID string, applied int64) (Renewal, error)
	// Behind returns how many node rows have not acknowledged revision.
	Behind(ctx context.Context, revision int64) (int, error)
	// Fence deletes the node rows that have not acknowledged revision and returns their ids.
	Fence(ctx context.Context, revision int64) ([]string, error)
	// Leave deletes a node's row.
	Leave(ctx context.Context, nodeID string) error

	// EraseKeptAnswers deletes kept answers created before the time given and returns how many.
	EraseKeptAnswers(ctx context.Context, before time.Time) (int64, error)
}

// Visitor receives a snapshot. The values are the visitor's to keep. A non-nil error ends the visit.
type Visitor struct {
	Key          func(Key) error
	Organization func(Organization) error
}

// Changes is what happened after a revision.
type Changes struct {
	Revision      int64 // everything up to and including it is in these and earlier changes
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
}

// Renewal is the outcome of Renew.
type Renewal int

// The outcomes.
const (
	Renewed Renewal = iota // acknowledged and renewed
	Lagging                // the row is there, but the revision is newer than applied
	Fenced                 // the row is gone: drop the lease and register anew
)
