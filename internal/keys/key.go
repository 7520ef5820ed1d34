// Package keys is the domain: what a key and an organization are, every rule of
// the contract, and the one gate through which each management act passes. It
// knows neither HTTP nor SQL: doors call the Service, and the Service calls a Store.
package keys

import (
	"encoding/binary"
	"time"

	"github.com/syncgram/keyward/token"
)

// Environment is live or test.
type Environment = token.Environment

// The two environments.
const (
	Live = token.Live
	Test = token.Test
)

// State is what has been done to a key. Time is not part of it: an active key whose
// expiry has passed is expired without any write (C19).
type State string

// The states. At most one key of an organization is in StateActive, and at most one in
// StateOverlapping; two unique indexes in the database hold that (C12, C24).
const (
	StateActive      State = "active"      // holds the organization's one slot
	StateOverlapping State = "overlapping" // rolled; still accepted until ExpiresAt
	StateExpired     State = "expired"     // found expired by a write that needed its slot
	StateRevoked     State = "revoked"
)

// Key is the record of an API key. Its secret is not part of it.
type Key struct {
	ID             string
	OrganizationID string
	Environment    Environment
	Digest         token.Digest
	Hint           string // last four characters of the secret
	Name           string
	Description    string    // empty = none (C31)
	CreatedAt      time.Time // UTC, whole microseconds, as every time here
	CreatedBy      string    // the principal's user
	ExpiresInDays  int       // as asked for at creation; 0 = never. A roll gives its successor as many (C24)
	ExpiresAt      time.Time // zero = never. A roll with overlap brings it forward to the overlap's end
	State          State
	RevokedAt      time.Time // zero unless StateRevoked
	RevokeReason   string
	Replaces       string // the key this one was rolled from, or empty

	// Revision numbers the write that last changed this row.
	Revision int64

	// Genuine is set by the store, never by a caller: false when the row's seal does not
	// match its content, or the audit log knows a later revision of it. Such a row was not
	// written by Keyward. It is accepted nowhere; the only act it allows is revoke.
	Genuine bool
}

// Lifecycle returns what of the key decides a verdict.
func (k *Key) Lifecycle() Lifecycle {
	return Lifecycle{State: k.State, ExpiresAt: k.ExpiresAt}
}

// Sealed returns the bytes the row seal covers: every column, each with its
// length before it, so that no two rows have the same bytes. What was added later follows the
// revision, which ends the fixed part, as tagged fields, and only where it is not empty: so
// the bytes of a row without it are what they were.
func (k *Key) Sealed() []byte {
	var b sealedBytes
	b.text(k.ID, k.OrganizationID, string(k.Environment), string(k.Digest[:]), k.Hint, k.Name)
	b.time(k.CreatedAt)
	b.text(k.CreatedBy)
	b.number(int64(k.ExpiresInDays))
	b.time(k.ExpiresAt)
	b.text(string(k.State))
	b.time(k.RevokedAt)
	b.text(k.RevokeReason, k.Replaces)
	b.number(k.Revision)
	b.tagged(tagDescription, k.Description)
	return b
}

// Organization owns keys.
type Organization struct {
	ID                 string
	Name               string
	ParentID           string // set = a connected account
	PaymentsEnabled    bool
	CurrentEnvironment Environment // as stored; see EffectiveEnvironment
	Active             bool
	CreatedAt          time.Time
	UpdatedAt          time.Time

	// Registered is false for an organization no one has put: it counts as active,
	// without a parent, payments not enabled (C4). Stored rows are registered, but for deleted ones.
	Registered bool

	// Deleted marks the row that a deleted organization leaves. Rows are never removed, so the row
	// says what an organization that was never put counts as, and is not Registered (O2).
	Deleted bool

	Revision int64
	Genuine  bool // as in Key; an organization that is not genuine counts as switched off
}

// Unregistered returns what an organization that was never put counts as (C4).
func Unregistered(id string) Organization {
	return Organization{ID: id, Active: true, CurrentEnvironment: Test, Genuine: true}
}

// EffectiveEnvironment is the organization's current environment: test until
// payments are enabled, whatever was asked for (C9).
func (o *Organization) EffectiveEnvironment() Environment {
	if o.PaymentsEnabled {
		return o.CurrentEnvironment
	}
	return Test
}

// Sealed returns the bytes the row seal covers.
func (o *Organization) Sealed() []byte {
	var b sealedBytes
	b.text(o.ID, o.Name, o.ParentID, string(o.CurrentEnvironment))
	b.flag(o.PaymentsEnabled)
	b.flag(o.Active)
	b.time(o.CreatedAt)
	b.time(o.UpdatedAt)
	b.number(o.Revision)
	if o.Deleted {
		b.tagged(tagDeleted, "1")
	}
	return b
}

// Tags of fields that were added to a row after its first version. A tag is never used again for
// anything else.
const (
	tagDescription byte = 1 // of a key
	tagDeleted     byte = 1 // of an organization
)

// Row kinds name the tables in seals, so that a key's seal never fits an organization.
const (
	KindKey          = "key"
	KindOrganization = "organization"
	KindNode         = "node" // not part of the set of rows: its content is for other nodes to trust, no verdict rests on it
)

type sealedBytes []byte

func (b *sealedBytes) text(fields ...string) {
	for _, f := range fields {
		*b = binary.BigEndian.AppendUint32(*b, uint32(len(f)))
		*b = append(*b, f...)
	}
}

// tagged adds a field after the fixed part of a row, unless its value is empty.
func (b *sealedBytes) tagged(tag byte, value string) {
	if value != "" {
		*b = append(*b, tag)
		b.text(value)
	}
}

func (b *sealedBytes) number(n int64) { *b = binary.BigEndian.AppendUint64(*b, uint64(n)) }

func (b *sealedBytes) time(t time.Time) { b.number(Micros(t)) }

func (b *sealedBytes) flag(f bool) {
	if f {
		*b = append(*b, 1)
	} else {
		*b = append(*b, 0)
	}
}

// Micros is how a time is stored and sealed: microseconds since 1970, 0 for the zero time.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// FromMicros is the inverse of Micros.
func FromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}
