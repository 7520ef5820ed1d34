package seal

import (
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Ring is the master keys a node has. What is written is authenticated under the key that the
// database names, by a Signer; the first key of the source is the wanted one, and a rotation makes
// it the database's. It is safe for concurrent use. The zero Ring is not usable; see Load.
type Ring struct {
	keys      atomic.Pointer[keySet]
	reload    sync.Mutex // held from comparing a new set with keys to storing it
	onUnknown atomic.Pointer[func(id string)]
}

// keySet is immutable once a Ring holds it.
type keySet struct {
	inOrder []*masterKey // the wanted one first; never empty
	byID    map[string]*masterKey
}

func (s *keySet) wanted() *masterKey { return s.inOrder[0] }

// masterKey is the children of one master key, each for one use.
type masterKey struct {
	id       string
	identity [keySize]byte // tells two master keys apart, opens nothing

	rows, weights, handles, requests, audit, verdicts *mac

	state, answers, probes [keySize]byte // HKDF secrets of the boxes
}

func newMasterKey(id string, secret []byte) *masterKey {
	child := func(info string) [keySize]byte { return derive(secret, nil, info) }
	authenticator := func(info string) *mac {
		key := child(info)
		return newMAC(key[:])
	}
	return &masterKey{
		id:       id,
		identity: child("keyward/identity/v1"),
		rows:     authenticator("keyward/row/v1"),
		weights:  authenticator("keyward/weight/v1"),
		handles:  authenticator("keyward/handle/v1"),
		requests: authenticator("keyward/request/v1"),
		audit:    authenticator("keyward/audit/v1"),
		verdicts: authenticator("keyward/probe-verdict/v1"),
		state:    child("keyward/state/v1"),
		answers:  child("keyward/answer/v1"),
		probes:   child("keyward/probe/v1"),
	}
}

// The info strings under which one box's key is derived from a child and the box's salt.
const (
	stateBoxInfo  = "keyward/state-box/v1"
	answerBoxInfo = "keyward/answer-box/v1"
	probeBoxInfo  = "keyward/probe-box/v1"
)

func (k *masterKey) same(other *masterKey) bool {
	return hmac.Equal(k.identity[:], other.identity[:])
}

// Errors of opening, to be told apart with errors.Is. They name a master key id, never key bytes.
var (
	ErrBadSeal    = errors.New("seal: the seal does not match")
	ErrUnknownKey = errors.New("seal: sealed under a master key this node does not have")
)

// byID finds a key or says which one is missing, to the observer too.
func (r *Ring) byID(id string) (*masterKey, error) {
	if k := r.keys.Load().byID[id]; k != nil {
		return k, nil
	}
	if fn := r.onUnknown.Load(); fn != nil {
		(*fn)(id)
	}
	return nil, unknownKey(id)
}

func unknownKey(id string) error {
	if !idPattern.MatchString(id) {
		return ErrUnknownKey // the id came from a database somebody else wrote to
	}
	return fmt.Errorf("%w: %q", ErrUnknownKey, id)
}

// OnUnknownKey has fn called with each id that was looked for and not found, so that the keys are
// read again. fn returns at once.
func (r *Ring) OnUnknownKey(fn func(id string)) { r.onUnknown.Store(&fn) }

// Wanted returns the id of the source's first key, which a rotation makes the database's.
func (r *Ring) Wanted() string { return r.keys.Load().wanted().id }

// Has reports whether the ring has a key of that id.
func (r *Ring) Has(id string) bool { return r.keys.Load().byID[id] != nil }

// KeyIDs returns the ids, the wanted one first.
func (r *Ring) KeyIDs() []string {
	set := r.keys.Load()
	ids := make([]string, len(set.inOrder))
	for i, k := range set.inOrder {
		ids[i] = k.id
	}
	return ids
}

// A KeyFingerprint proves that two programs have the same key under an id. It reveals nothing of
// the key and authenticates nothing.
type KeyFingerprint struct{ ID, Fingerprint string }

// fingerprintSize is how many bytes of a key's identity its fingerprint has.
const fingerprintSize = 16

func (k *masterKey) fingerprint() string { return hex.EncodeToString(k.identity[:fingerprintSize]) }

// Fingerprints returns one fingerprint a key, the wanted one's first.
func (r *Ring) Fingerprints() []KeyFingerprint {
	set := r.keys.Load()
	all := make([]KeyFingerprint, len(set.inOrder))
	for i, k := range set.inOrder {
		all[i] = KeyFingerprint{k.id, k.fingerprint()}
	}
	return all
}

// FingerprintOf returns the fingerprint of one key, "" when the ring does not have it.
func (r *Ring) FingerprintOf(id string) string {
	if k := r.keys.Load().byID[id]; k != nil {
		return k.fingerprint()
	}
	return ""
}

// Signer authenticates and encrypts under one master key. It stays usable whatever becomes of the
// ring.
type Signer struct{ k *masterKey }

// Signer returns the signer of the key that the database names. ErrUnknownKey.
func (r *Ring) Signer(id string) (Signer, error) {
	k, err := r.byID(id)
	return Signer{k}, err
}

// KeyID returns the id of the signer's key.
func (s Signer) KeyID() string { return s.k.id }

// Seal is an authenticator and the id of the master key it was made under.
type Seal struct {
	KeyID string
	MAC   []byte // 32 bytes
}

// SealRow authenticates a row's content; kind names its table.
func (s Signer) SealRow(kind string, content []byte) Seal {
	sum := s.k.row(kind, content)
	return Seal{KeyID: s.k.id, MAC: sum[:]}
}

// CheckRow returns nil, ErrBadSeal or ErrUnknownKey. The comparison takes constant time.
func (r *Ring) CheckRow(kind string, content []byte, s Seal) error {
	k, err := r.byID(s.KeyID)
	if err != nil {
		return err
	}
	sum := k.row(kind, content)
	return compare(sum, s)
}

func (k *masterKey) row(kind string, content []byte) [32]byte {
	m := k.rows.begin()
	m.text(kind)
	return m.finish(content)
}

func compare(sum [32]byte, s Seal) error {
	if !hmac.Equal(sum[:], s.MAC) {
		return ErrBadSeal
	}
	return nil
}

// Weight is the element a row adds to the digest of the whole set of rows: a keyed digest of
// kind, id and revision under the named master key. ErrUnknownKey.
func (r *Ring) Weight(keyID, kind, id string, revision int64) ([32]byte, error) {
	k, err := r.byID(keyID)
	if err != nil {
		return [32]byte{}, err
	}
	m := k.weights.begin()
	m.text(kind)
	m.text(id)
	m.number(revision)
	return m.finish(nil), nil
}

// SealState encrypts and authenticates the database's state. The box is
// salt (32 bytes) ‖ nonce (12) ‖ AES-256-GCM ciphertext ‖ tag (16), under an HKDF child
// that the random salt makes the box's own.
func (s Signer) SealState(state, additional []byte) (keyID string, box []byte) {
	return s.k.id, sealBox(&s.k.state, stateBoxInfo, state, additional)
}

// sealBox encrypts under a child of secret that a random salt makes the box's own.
func sealBox(secret *[keySize]byte, info string, plain, additional []byte) []byte {
	salt := newSalt()
	key := derive(secret[:], salt, info)
	return append(salt, encrypt(key, plain, additional)...)
}

// openBox is the inverse of sealBox. ErrBadSeal.
func openBox(secret *[keySize]byte, info string, box, additional []byte) ([]byte, error) {
	if len(box) < saltSize {
		return nil, ErrBadSeal
	}
	key := derive(secret[:], box[:saltSize], info)
	return decrypt(key, box[saltSize:], additional)
}

// OpenState is the inverse of SealState. ErrBadSeal, ErrUnknownKey.
func (r *Ring) OpenState(keyID string, box, additional []byte) ([]byte, error) {
	k, err := r.byID(keyID)
	if err != nil {
		return nil, err
	}
	return openBox(&k.state, stateBoxInfo, box, additional)
}

// Handles returns the lookup hashes of an idempotency record under every master key, the wanted
// one's
// first: a keyed digest of the parts, each with its length before it (C15, C17).
func (r *Ring) Handles(parts ...string) [][32]byte {
	set := r.keys.Load()
	handles := make([][32]byte, len(set.inOrder))
	for i, k := range set.inOrder {
		handles[i] = k.handle(parts)
	}
	return handles
}

// Handle returns the lookup hash under the signer's key, one of those that Handles returns.
func (s Signer) Handle(parts ...string) [32]byte { return s.k.handle(parts) }

func (k *masterKey) handle(parts []string) [32]byte {
	m := k.handles.begin()
	for _, part := range parts {
		m.text(part)
	}
	return m.finish(nil)
}

// Fingerprint is a keyed digest of a request under the named master key (C16). ErrUnknownKey.
func (r *Ring) Fingerprint(keyID string, request []byte) ([32]byte, error) {
	k, err := r.byID(keyID)
	if err != nil {
		return [32]byte{}, err
	}
	return k.requests.begin().finish(request), nil
}

// Answer is a kept answer's sealed form.
type Answer struct {
	KeyID  string
	Salt   []byte // 32 random bytes
	Sealed []byte // nonce (12 bytes) ‖ AES-256-GCM ciphertext ‖ tag (16)
}

// SealAnswer encrypts plain under a key derived from the signer's master key AND the client's
// idempotency key, so that neither the database nor the server's configuration alone can open it (C17).
// It panics when the idempotency key is empty: such a box would not keep that promise.
func (s Signer) SealAnswer(idempotencyKey string, plain, additional []byte) Answer {
	if idempotencyKey == "" {
		panic("seal: a kept answer needs an idempotency key")
	}
	salt := newSalt()
	return Answer{
		KeyID:  s.k.id,
		Salt:   salt,
		Sealed: encrypt(s.k.answer(idempotencyKey, salt), plain, additional),
	}
}

// OpenAnswer is the inverse of SealAnswer. ErrBadSeal also when the idempotency key is another;
// ErrUnknownKey.
func (r *Ring) OpenAnswer(idempotencyKey string, a Answer, additional []byte) ([]byte, error) {
	k, err := r.byID(a.KeyID)
	if err != nil {
		return nil, err
	}
	// HKDF pads a short salt with zeros, so a salt of another length could be the same salt.
	if idempotencyKey == "" || len(a.Salt) != saltSize {
		return nil, ErrBadSeal
	}
	return decrypt(k.answer(idempotencyKey, a.Salt), a.Sealed, additional)
}

// answer derives the key of one box. The child has a fixed length and comes first, so
// that no two pairs of child and idempotency key have the same bytes.
func (k *masterKey) answer(idempotencyKey string, salt []byte) [keySize]byte {
	secret := slices.Concat(k.answers[:], []byte(idempotencyKey))
	defer clear(secret)
	return derive(secret, salt, answerBoxInfo)
}

// SealAudit authenticates one link of the audit chain.
func (s Signer) SealAudit(sequence int64, hash [32]byte) Seal {
	sum := s.k.link(sequence, hash)
	return Seal{KeyID: s.k.id, MAC: sum[:]}
}

// CheckAudit returns nil, ErrBadSeal or ErrUnknownKey. The comparison takes constant time.
func (r *Ring) CheckAudit(sequence int64, hash [32]byte, s Seal) error {
	k, err := r.byID(s.KeyID)
	if err != nil {
		return err
	}
	return compare(k.link(sequence, hash), s)
}

func (k *masterKey) link(sequence int64, hash [32]byte) [32]byte {
	m := k.audit.begin()
	m.number(sequence)
	return m.finish(hash[:])
}
