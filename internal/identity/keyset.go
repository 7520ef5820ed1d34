package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeySetBytes = 512 << 10
	maxKeys        = 100

	// minRSABits is what RFC 7518 §3.3 asks of RS256.
	minRSABits = 2048
)

// errWeakKey marks a key that is too easy to break.
var errWeakKey = errors.New("weak key")

// errUnknownKey means that no key of the set fits. A newer set may have one.
var errUnknownKey = refuse("no key of the issuer fits alg and kid")

// keySet is one JWK set, reduced to the keys that can verify a token. It never changes.
type keySet struct{ keys []publicKey }

// publicKey is bound to one algorithm (RFC 8725 §3.1).
type publicKey struct {
	id        string // its kid; empty when it has none
	algorithm jose.SignatureAlgorithm
	key       any // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// find returns the one key that fits. A token without kid must leave no choice, and a set with two
// keys of one kid and algorithm is ambiguous: neither is tried. A nil set has no keys.
func (s *keySet) find(alg jose.SignatureAlgorithm, kid string) (any, error) {
	if s == nil {
		return nil, errUnknownKey
	}
	var found any
	for _, k := range s.keys {
		if k.algorithm != alg || (kid != "" && k.id != kid) {
			continue
		}
		if found != nil {
			return nil, refuse("more than one key of the issuer fits alg and kid")
		}
		found = k.key
	}
	if found == nil {
		return nil, errUnknownKey
	}
	return found, nil
}

// parseKeySet reads a JWK set (RFC 7517 §5). A key that cannot or must not verify a token is left
// out, and the error that says why is in the second result; the third is for a document
// that is no key set at all.
func parseKeySet(data []byte) (*keySet, []error, error) {
	members, ok := object(data)
	if !ok {
		return nil, nil, errors.New("not one JSON object with distinct members")
	}
	var entries []json.RawMessage
	if raw := members["keys"]; len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &entries) != nil {
		return nil, nil, errors.New(`"keys" is missing or no array`)
	}
	if len(entries) > maxKeys {
		return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	set := &keySet{}
	var left []error
	for i, raw := range entries {
		k, err := parseKey(raw)
		if err != nil {
			left = append(left, fmt.Errorf("key %d: %w", i, err))
			continue
		}
		set.keys = append(set.keys, k)
	}
	return set, left, nil
}

// parseKey reads one public key and settles which algorithm it is for.
func parseKey(raw json.RawMessage) (publicKey, error) {
	var none publicKey
	members, ok := object(raw)
	if !ok {
		return none, errors.New("not one JSON object with distinct members")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if _, found := members[private]; found {
			// Who can fetch the set can sign with it: such a key proves nothing.
			return none, errors.New("private or symmetric key in a public key set")
		}
	}
	if raw, found := members["use"]; found {
		if use, ok := text(raw); !ok || use != "sig" {
			return none, errors.New("not for signatures (use)")
		}
	}
	if raw, found := members["key_ops"]; found {
		if ops, ok := texts(raw); !ok || raw[0] != '[' || !slices.Contains(ops, "verify") {
			return none, errors.New("not for signatures (key_ops)")
		}
	}
	k := publicKey{}
	if raw, found := members["kid"]; found {
		if k.id, ok = text(raw); !ok {
			return none, errors.New("kid is no string")
		}
	}

	// Only what makes up the key reaches the parser: certificates beside it decide nothing here.
	plain := make(map[string]json.RawMessage)
	for _, name := range []string{"kty", "crv", "x", "y", "n", "e"} {
		if raw, found := members[name]; found {
			plain[name] = raw
		}
	}
	data, err := json.Marshal(plain)
	if err != nil {
		return none, errors.New("not a JWK")
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(data); err != nil {
		return none, errors.New("not a key of a supported type and size")
	}
	switch key := jwk.Key.(type) {
	case *rsa.PublicKey:
		k.algorithm = jose.RS256
		if err := checkRSA(key); err != nil {
			return none, err
		}
	case *ecdsa.PublicKey:
		k.algorithm = jose.ES256
		if key.Curve != elliptic.P256() {
			return none, errors.New("not on the curve P-256")
		}
	case ed25519.PublicKey:
		k.algorithm = jose.EdDSA
	default:
		return none, errors.New("not a key of a supported type and size")
	}
	if raw, found := members["alg"]; found {
		if alg, ok := text(raw); !ok || alg != string(k.algorithm) {
			return none, errors.New("for an algorithm that is not accepted")
		}
	}
	k.key = jwk.Key
	return k, nil
}

// checkRSA refuses keys that can be broken: a short modulus, an exponent that is no
// proper one, and the structure of the primes that CVE-2017-15361 (ROCA) left behind.
func checkRSA(key *rsa.PublicKey) error {
	switch {
	case key.N.BitLen() < minRSABits:
		return fmt.Errorf("%w: RSA with fewer than %d bits", errWeakKey, minRSABits)
	case key.E < 3 || key.E%2 == 0:
		return fmt.Errorf("%w: RSA exponent", errWeakKey)
	case hasROCA(key.N):
		return fmt.Errorf("%w: RSA modulus with the ROCA structure", errWeakKey)
	}
	return nil
}

// hasROCA reports whether n is, modulo each of the first odd primes, a power of 65537. Every modulus
// of the faulty generator is; of sound ones fewer than one in 2^27 (Nemec et al., The Return
// of Coppersmith's Attack, CCS 2017, §5.1).
func hasROCA(n *big.Int) bool {
	for _, p := range []int64{
		3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
		97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
	} {
		residue := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for power != residue {
			if power = power * 65537 % p; power == 1 {
				return false
			}
		}
	}
	return true
}
