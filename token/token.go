// Package token is the secret format: how an API key's secret is drawn, checked
// and digested (contract C11). It imports the standard library alone; vectors.json
// beside it lets an implementation in another language prove itself.
//
//	sk_live_<32 base62 characters><6 base62 characters of CRC-32>
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"regexp"
	"strings"
)

// Environment tells which data a key reaches.
type Environment string

// The two environments.
const (
	Live Environment = "live"
	Test Environment = "test"
)

// Digest is the SHA-256 of a secret, the only form in which it is kept. A secret
// has 190 random bits, so a plain hash cannot be searched (NIST SP 800-63B 5.1.2).
type Digest [sha256.Size]byte

// ErrMalformed says that a string cannot be a secret of this format: wrong word,
// environment, length, alphabet or checksum. It never carries the string.
var ErrMalformed = errors.New("token: not a well-formed secret")

const (
	randomLength   = 32
	checksumLength = 6
	// HintLength is how many final characters of a secret may be shown (C18).
	HintLength = 4

	alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	// envLength is the length of "_live_" and of "_test_".
	envLength = 6
)

// wordPattern keeps the word free of an underscore: leak scanners lose a key that
// has one more than the two around the environment.
var wordPattern = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

// Format is the secret format with a deployment's own word before _live_ and _test_.
// The zero Format generates and parses nothing; see NewFormat.
type Format struct{ word string }

// NewFormat returns the format whose secrets start with word, "sk" unless the
// deployment says otherwise: 1–16 lower-case letters and digits, a letter first.
func NewFormat(word string) (Format, error) {
	if !wordPattern.MatchString(word) {
		return Format{}, errors.New("token: the secret prefix must be 1–16 lower-case letters or digits and start with a letter")
	}
	return Format{word: word}, nil
}

// Generate draws a new secret for env from the operating system's generator,
// by rejection, so that every character is equally likely.
func (f Format) Generate(env Environment) (Secret, error) {
	if f.word == "" {
		return Secret{}, errors.New("token: a Format comes from NewFormat")
	}
	if env != Live && env != Test {
		return Secret{}, errors.New("token: the environment is neither live nor test")
	}
	b := make([]byte, 0, f.length())
	b = append(b, f.word...)
	b = append(b, '_')
	b = append(b, env...)
	b = append(b, '_')
	var pool [64]byte
	for need := randomLength; need > 0; {
		rand.Read(pool[:]) // never fails: crypto/rand ends the program first
		for _, c := range pool {
			if c >= 248 { // 248 = 4 × 62: above it the remainder would favour low characters
				continue
			}
			b = append(b, alphabet[c%62])
			if need--; need == 0 {
				break
			}
		}
	}
	var sum [checksumLength]byte
	checksum(&sum, crc32.ChecksumIEEE(b))
	s := string(append(b, sum[:]...))
	return Secret{&s}, nil
}

// Parse checks the shape and the checksum of s and returns what verification
// needs of it. It allocates nothing and compares nothing secret: the checksum is a
// guard against typing errors and noise, not a proof.
func (f Format) Parse(s string) (Environment, Digest, error) {
	env, d, err := f.Outline(s)
	if err != nil || !f.Intact(s) {
		return "", Digest{}, ErrMalformed
	}
	return env, d, nil
}

// Intact is what Parse asks beyond Outline: whether the alphabet and the checksum of s are right.
func (f Format) Intact(s string) bool {
	if len(s) != f.length() {
		return false
	}
	body := s[len(f.word)+envLength:]
	for i := range len(body) {
		if !isBase62(body[i]) {
			return false
		}
	}
	covered := len(s) - checksumLength
	var sum [checksumLength]byte
	checksum(&sum, crcOf(s[:covered]))
	return s[covered:] == string(sum[:])
}

// Outline is Parse but for what Intact looks at. Whoever finds the digest among those of
// generated secrets has no need of that: s is that secret.
func (f Format) Outline(s string) (Environment, Digest, error) {
	if len(s) != f.length() || !f.Resembles(s) {
		return "", Digest{}, ErrMalformed
	}
	switch s[len(f.word):][:envLength] {
	case "_live_":
		return Live, digestOf(s), nil
	case "_test_":
		return Test, digestOf(s), nil
	default:
		return "", Digest{}, ErrMalformed
	}
}

// Resembles reports whether s starts as a secret does. It is how a secret in a
// place where a user's token belongs is told apart (C1) without checking it.
func (f Format) Resembles(s string) bool {
	return f.word != "" && len(s) > len(f.word) && s[len(f.word)] == '_' && strings.HasPrefix(s, f.word)
}

// HoldsSecret reports whether text has a secret of this format anywhere in it. All 32 random characters are
// enough: whoever has them makes the checksum himself.
func (f Format) HoldsSecret(text string) bool { return f.holds(text, randomLength) }

// HoldsPart is HoldsSecret for a place that has no business with any part of a secret, such as a URL: the word, the
// environment and nine characters more are enough.
func (f Format) HoldsPart(text string) bool { return f.holds(text, 9) }

// holds reports whether text has the word, an environment and at least that many base62 characters in a row.
func (f Format) holds(text string, least int) bool {
	for i := range len(text) {
		if !f.Resembles(text[i:]) {
			continue
		}
		rest := text[i+len(f.word):]
		if len(rest) < envLength+least || rest[:envLength] != "_live_" && rest[:envLength] != "_test_" {
			continue
		}
		n := 0
		for n < least && isBase62(rest[envLength+n]) {
			n++
		}
		if n == least {
			return true
		}
	}
	return false
}

func (f Format) length() int { return len(f.word) + envLength + randomLength + checksumLength }

// base62 marks the characters of the alphabet. A look-up has no branch for a random character to mispredict.
var base62 = func() (in [256]bool) {
	for _, c := range []byte(alphabet) {
		in[c] = true
	}
	return in
}()

func isBase62(c byte) bool { return base62[c] }

// checksum writes v in base62, most significant digit first, zero padded.
func checksum(dst *[checksumLength]byte, v uint32) {
	for i := checksumLength - 1; i >= 0; i-- {
		dst[i] = alphabet[v%62]
		v /= 62
	}
}
