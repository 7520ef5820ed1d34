package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"sync"
)

const (
	keySize  = 32
	saltSize = 32
)

// derive returns the HKDF-SHA-256 child of secret that info names (RFC 5869).
func derive(secret, salt []byte, info string) [keySize]byte {
	out, err := hkdf.Key(sha256.New, secret, salt, info, keySize)
	if err != nil {
		// Only an output longer than 255 hashes, or in FIPS mode a secret shorter than
		// 14 bytes, is refused; neither can be asked for here.
		panic("seal: HKDF-SHA-256 refused: " + err.Error())
	}
	return [keySize]byte(out)
}

// newSalt draws the salt of one box.
func newSalt() []byte {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails: crypto/rand ends the program first
	return salt
}

// encrypt returns nonce ‖ AES-256-GCM ciphertext ‖ tag, with a random nonce. A key seals
// one box only, so neither the nonce nor a count of boxes ever becomes a limit.
func encrypt(key [keySize]byte, plain, additional []byte) []byte {
	return newGCM(key).Seal(nil, nil, plain, additional)
}

// decrypt is the inverse of encrypt; any change of its arguments is ErrBadSeal.
func decrypt(key [keySize]byte, box, additional []byte) ([]byte, error) {
	plain, err := newGCM(key).Open(nil, nil, box, additional)
	if err != nil {
		return nil, ErrBadSeal
	}
	return plain, nil
}

func newGCM(key [keySize]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("seal: AES refused a 32-byte key: " + err.Error())
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("seal: GCM refused AES: " + err.Error())
	}
	return gcm
}

// A mac computes HMAC-SHA-256 under one key (RFC 2104). It keeps hash states whose key
// blocks are already absorbed, which halves the cost of a short message. Safe for concurrent use.
type mac struct{ states sync.Pool } // of *macState

// A macState is one message on its way into a mac, owned by one goroutine from begin to finish.
type macState struct {
	owner *mac
	hash  hash.Hash
	head  []byte // fields so far, not yet hashed
}

func newMAC(key []byte) *mac {
	m := new(mac)
	m.states.New = func() any { return &macState{owner: m, hash: hmac.New(sha256.New, key)} }
	return m
}

func (m *mac) begin() *macState { return m.states.Get().(*macState) }

// text adds a string with its length before it, so that no two sequences of strings
// have the same bytes.
func (s *macState) text(field string) {
	s.head = binary.BigEndian.AppendUint64(s.head, uint64(len(field)))
	s.head = append(s.head, field...)
}

func (s *macState) number(n int64) {
	s.head = binary.BigEndian.AppendUint64(s.head, uint64(n))
}

// finish adds tail as it is, returns the MAC and gives the state back; s is not used afterwards.
func (s *macState) finish(tail []byte) [sha256.Size]byte {
	s.hash.Reset()
	s.hash.Write(s.head)
	s.hash.Write(tail)
	clear(s.head) // it may have held an idempotency key
	s.head = s.hash.Sum(s.head[:0])
	sum := [sha256.Size]byte(s.head)
	s.head = s.head[:0]
	s.owner.states.Put(s)
	return sum
}
