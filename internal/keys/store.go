package keys

import (
	"context"
	"time"

	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/token"
)

// Store is what the Service needs of a database. An implementation passes the suite in
// keystest. It knows no rule of the contract: it never asks whether something may be
// done or has expired, it keeps rows, seals them, and numbers writes.
//
// Seals. Every key and organization row that leaves the store has been checked against its
// seal and against the latest revision the audit log has for it; what fails has Genuine
// false and is reported once through the store's observer. Rows are sealed as they are written.
// What is authenticated under a master key that this node does not have is neither authentic nor
// forged: a method that reads it returns an error that wraps seal.ErrUnknownKey.
//
// Time. Methods that return rows give all times in UTC and whole microseconds.
type Store interface {
	// Write runs fn in one write transaction. Its first statement adds one to the
	// database's revision, which also takes the lock that puts writes in one order: so
	// revisions commit in order and without gaps, and fn sees the effect of every write before it.
	// When fn returns an error everything is undone and that error is returned as it is.
	// After a nil return the write is durable and announced (Feed.Listen). ErrOutcomeUnknown means it may or may
	// not be. fn must not keep tx and is not called twice. It may read other rows than first names, too.
	Write(ctx context.Context, first Reads, fn func(ctx context.Context, tx Tx) error) (Commit, error)

	// Record appends an audit entry for an act that changed no row (a refusal, a replay)
	// without a new revision. Its Revision must be 0.
	Record(ctx context.Context, e AuditEntry) error

	// Key returns the key with that id, ErrNotFound when there is none.
	Key(ctx context.Context, id string) (Key, error)

	// KeyAsOf is Key, and the last commit of the database it was read from: who waits for that one has waited for the key's.
	KeyAsOf(ctx context.Context, id string) (Key, Commit, error)

	// Keys returns an organization's keys, newest first (created_at, then id, both descending).
	Keys(ctx context.Context, q KeyQuery) ([]UsedKey, error)

	// UsedKey is Key with its last use.
	UsedKey(ctx context.Context, id string) (UsedKey, error)
	// KeyOfDigest returns the key with that digest, ErrNotFound when there is none.
	KeyOfDigest(ctx context.Context, d token.Digest) (UsedKey, error)
	// SearchKeys returns keys of any organization, newest first.
	SearchKeys(ctx context.Context, q KeySearch) ([]UsedKey, error)

	// Organization returns the row, or Unregistered(id) when there is none.
	Organization(ctx context.Context, id string) (Organization, error)

	// Organizations returns up to limit rows with an id greater than after, by id.
	Organizations(ctx context.Context, after string, limit int) ([]Organization, error)

	// Replay returns the kept answer found under the first of the handles that has one, or
	// ErrNotFound.
	Replay(ctx context.Context, handles []Handle) (Replay, error)

	// Now is the time of the database's clock (PostgreSQL), or this machine's (SQLite).
	Now(ctx context.Context) (time.Time, error)
}

// Reads names the rows a write reads first, so that a store can fetch them while it takes the lock. An empty id names none.
type Reads struct{ OrganizationID, KeyID string }

// Tx is one write transaction.
type Tx interface {
	// Revision is the number of this write. InsertKey, UpdateKey and PutOrganization stamp it on
	// each row they write, whatever the row says.
	Revision() int64
	// Now is one time for the whole transaction, from the same clock as Store.Now, whole microseconds.
	Now() time.Time
	// Signer is of the master key that the database names in this transaction. All it writes is
	// authenticated under that key.
	Signer() seal.Signer

	Key(ctx context.Context, id string) (Key, error)
	// KeysIn returns the organization's keys in one of the states, in no particular order.
	KeysIn(ctx context.Context, organizationID string, states ...State) ([]Key, error)
	// SearchKeys is Store.SearchKeys as the transaction sees it.
	SearchKeys(ctx context.Context, q KeySearch) ([]Key, error)
	// KeysByID returns those of the keys that are there, in no particular order.
	KeysByID(ctx context.Context, ids []string) ([]Key, error)
	// InsertKey adds a row. ErrTaken when the id, the digest or the organization's one active
	// (or overlapping) place is held by another row (P3).
	InsertKey(ctx context.Context, k Key) error
	// UpdateKey replaces the row with k.ID. ErrNotFound; ErrTaken, here or from Write.
	UpdateKey(ctx context.Context, k Key) error

	Organization(ctx context.Context, id string) (Organization, error)
	HasChildren(ctx context.Context, organizationID string) (bool, error)
	PutOrganization(ctx context.Context, o Organization) error

	// LastTake returns when a rate was last taken by user, the zero time if never.
	LastTake(ctx context.Context, rate Action, user string) (time.Time, error)
	// Take notes that user took the rate at the time at.
	Take(ctx context.Context, rate Action, user string, at time.Time) error

	Replay(ctx context.Context, handles []Handle) (Replay, error)
	// KeepReplay inserts the answer, replacing one under the same handle.
	KeepReplay(ctx context.Context, r Replay) error
	// EraseReplays overwrites the sealed answers that hold the key's secret; the rows stay, so
	// that a retry is told the result is gone (C16, C17).
	EraseReplays(ctx context.Context, keyID string) error

	// Audit appends an entry. Each row written in this transaction has one whose TargetID is
	// the row's id and whose Revision is this transaction's.
	Audit(ctx context.Context, e AuditEntry) error
}

// KeyQuery selects keys of one organization.
type KeyQuery struct {
	OrganizationID string
	Environment    Environment // empty = both
	Before         *Position   // only keys after this one in the order; nil = from the newest
	Limit          int         // 0 = all
}

// KeySearch selects keys of any organization; an empty field selects all.
type KeySearch struct {
	OrganizationID string
	CreatedBy      string
	Hint           string
	Environment    Environment
	CreatedBefore  time.Time
	States         []State
	NotExpiredAt   time.Time // keys that do not expire, or later than this
	ExpiredAt      time.Time // keys that expire at this time or earlier, or are in StateExpired
	After          *Position // only keys after this one in the order newest first
	Limit          int
}

// Position is a place in the order newest first.
type Position struct {
	CreatedAt time.Time
	ID        string
}

// UsedKey is a key with the time of its last accepted verification.
type UsedKey struct {
	Key
	LastUsedAt time.Time // zero = never
}

// Handle finds a kept answer: a keyed digest of scope and idempotency key. The
// idempotency key itself is never stored (C17).
type Handle [32]byte

// Replay is a kept answer (C15–C17).
type Replay struct {
	Handle      Handle
	Fingerprint [32]byte // keyed digest of the request it answered
	KeyID       string   // the key the answer issued
	MasterKeyID string   // which master key sealed the answer
	Salt        []byte
	Sealed      []byte // nil once erased
	CreatedAt   time.Time
}

// Use is an accepted verification, for last_used_at (C20).
type Use struct {
	KeyID string
	At    time.Time
}

// Barrier makes writes visible to verification everywhere before they are answered (P1).
type Barrier interface {
	// Await returns nil when no verification that begins afterwards, on any node, can see a
	// state older than the commit. An error means that this is not known: the caller answers 503.
	Await(ctx context.Context, c Commit) error
}
