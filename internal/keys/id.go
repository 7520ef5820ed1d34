package keys

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// crockford is Crockford's base32 alphabet in lower case: no i, l, o, u.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

const (
	idPrefix = "key_"
	idLength = len(idPrefix) + 26
)

// newID draws a key's id: key_ and a UUIDv7 (RFC 9562 section 5.7) in 26 base32 characters, so
// that ids sort by time of creation.
func newID(now time.Time) string {
	var u [16]byte
	rand.Read(u[:])
	ms := uint64(now.UnixMilli())
	binary.BigEndian.PutUint32(u[0:], uint32(ms>>16))
	binary.BigEndian.PutUint16(u[4:], uint16(ms))
	u[6] = u[6]&0x0f | 0x70
	u[8] = u[8]&0x3f | 0x80

	hi, lo := binary.BigEndian.Uint64(u[:8]), binary.BigEndian.Uint64(u[8:])
	b := make([]byte, idLength)
	copy(b, idPrefix)
	for i := idLength - 1; i >= len(idPrefix); i-- {
		b[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(b)
}

// noKeyID has the form of a key's id and is never drawn: its time is thousands of years away.
const noKeyID = "key_7zzzzzzzzzzzzzzzzzzzzzzzzz"

// knownID returns id, or in place of one that no key can have an id that no key has: looking that
// up takes as long (C22).
func knownID(id string) string {
	if validID(id) {
		return id
	}
	return noKeyID
}

// validID reports whether id has the form of a key's id. Anything else is answered as an
// unknown id is (C22).
func validID(id string) bool {
	if len(id) != idLength || id[:len(idPrefix)] != idPrefix || id[len(idPrefix)] > '7' {
		return false
	}
	for i := len(idPrefix); i < len(id); i++ {
		c := id[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' && c != 'i' && c != 'l' && c != 'o' && c != 'u' {
			continue
		}
		return false
	}
	return true
}
