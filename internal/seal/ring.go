package seal

import "errors"

// Ring is the master keys a node knows: the current one, under which everything new
// is sealed, and the retired ones, which only open. It is safe for concurrent use.
type Ring struct{}

// Errors of opening. They name a master key id, never key bytes.
var (
	ErrBadSeal    = errors.New("seal: the seal does not match")
	ErrUnknownKey = errors.New("seal: sealed under a master key this node does not have")
)

// Seal is a row's authenticator and the id of the master key it was made under.
type Seal struct {
	KeyID string
	MAC   []byte // 32 bytes
}

// Load reads a master key file: lines `<id>:<base64 of 32 bytes>`, the first current, the others
// retired; blank lines and lines that start with # are skipped. It refuses a file that its group or
// others can read, an id or key of the wrong form, a repeated id, a repeated key, and a file without a key;
// each error says which line and what to do, and shows no key bytes.
func Load(path string) (*Ring, error) { panic("todo") }

// Parse is Load for bytes already read.
func Parse(file []byte) (*Ring, error) { panic("todo") }

// NewLine draws a master key and returns its line for the file. An empty id takes one made from the date and random characters.
func NewLine(id string) (string, error) { panic("todo") }

// Current returns the id of the current master key.
func (r *Ring) Current() string { panic("todo") }

// KeyIDs returns the ids, the current one first.
func (r *Ring) KeyIDs() []string { panic("todo") }

// SealRow seals a row's content under the current key; kind names its table.
func (r *Ring) SealRow(kind string, content []byte) Seal { panic("todo") }

// CheckRow returns nil, ErrBadSeal or ErrUnknownKey. The comparison takes constant time.
func (r *Ring) CheckRow(kind string, content []byte, s Seal) error { panic("todo") }

// Weight is the element a row adds to the digest of the whole set of rows: a keyed digest of
// kind, id and revision under the named master key.
func (r *Ring) Weight(keyID, kind, id string, revision int64) ([32]byte, error) { panic("todo") }

// SealState encrypts and authenticates the database's state under the current key (AES-256-GCM, random nonce, one HKDF child with a random salt per box).
func (r *Ring) SealState(state, additional []byte) (keyID string, box []byte) { panic("todo") }

// OpenState is its inverse.
func (r *Ring) OpenState(keyID string, box, additional []byte) ([]byte, error) { panic("todo") }

// Handles returns the look-up handles of a kept answer under every master key, the current one's
// first: a keyed digest of the parts, each with its length before it (C15, C17).
func (r *Ring) Handles(parts ...string) [][32]byte { panic("todo") }

// Fingerprint is a keyed digest of a request under the named master key (C16).
func (r *Ring) Fingerprint(keyID string, request []byte) ([32]byte, error) { panic("todo") }

// Answer is a kept answer's sealed form.
type Answer struct {
	KeyID  string
	Salt   []byte // 32 random bytes
	Sealed []byte
}

// SealAnswer seals plain under a key derived from the current master key AND the client's
// idempotency key, so that neither the database nor the server's configuration alone can open it (C17).
func (r *Ring) SealAnswer(idempotencyKey string, plain, additional []byte) Answer { panic("todo") }

// OpenAnswer is its inverse.
func (r *Ring) OpenAnswer(idempotencyKey string, a Answer, additional []byte) ([]byte, error) {
	panic("todo")
}

// SealAudit authenticates one link of the audit chain under the current key.
func (r *Ring) SealAudit(sequence int64, hash [32]byte) Seal { panic("todo") }

// CheckAudit returns nil, ErrBadSeal or ErrUnknownKey.
func (r *Ring) CheckAudit(sequence int64, hash [32]byte, s Seal) error { panic("todo") }

// Reload replaces the ring's keys with those of the file, for a rotation without a restart.
// It refuses a file that lacks the ring's current key.
func (r *Ring) Reload(path string) error { panic("todo") }
