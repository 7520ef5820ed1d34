package token

import (
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"unsafe"
)

const redacted = "[secret]"

// Secret is a key's plaintext. It cannot print: every formatting verb, encoder and
// logger shows a fixed word, because the text sits behind a pointer that none of them
// follows. Reveal is the one way out.
type Secret struct{ p *string }

// NewSecret wraps a secret that came from outside, unchecked.
func NewSecret(s string) Secret { return Secret{&s} }

// Reveal returns the plaintext. It is called where a secret is answered once, and in tests.
func (s Secret) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// Digest returns the look-up handle of the secret.
func (s Secret) Digest() Digest { return digestOf(s.Reveal()) }

// Hint returns the last four characters, or nothing for a text too short to be a secret.
func (s Secret) Hint() string {
	t := s.Reveal()
	if len(t) < HintLength+randomLength {
		return ""
	}
	return t[len(t)-HintLength:]
}

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, redacted) }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler, which JSON and XML use.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// GobEncode implements gob.GobEncoder.
func (s Secret) GobEncode() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// bytesOf views s as bytes that must not be written to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func digestOf(s string) Digest { return sha256.Sum256(bytesOf(s)) }

func crcOf(s string) uint32 { return crc32.ChecksumIEEE(bytesOf(s)) }
