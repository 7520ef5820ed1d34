package identity

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// maxTokenBytes bounds a token before anything of it is looked at.
const maxTokenBytes = 8 << 10

// open checks a token's form, its header and its signature, in this order, and returns the payload
// that was signed. Nothing of the payload is read before its signature has been verified.
func (a *Authenticator) open(ctx context.Context, token string) ([]byte, error) {
	if len(token) > maxTokenBytes {
		return nil, refuse("longer than 8 KiB")
	}
	// Four dots would be a JWE (RFC 7516), which is never decrypted.
	if strings.Count(token, ".") != 2 {
		return nil, refuse("not three parts")
	}
	parts := strings.Split(token, ".")
	header, ok := decodeSegment(parts[0])
	if !ok {
		return nil, refuse("header is not canonical base64url")
	}
	payload, ok := decodeSegment(parts[1])
	if !ok {
		return nil, refuse("payload is not canonical base64url")
	}
	if _, ok := decodeSegment(parts[2]); !ok {
		return nil, refuse("signature is not canonical base64url")
	}
	h, err := readHeader(header)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(a.algorithms, h.algorithm) {
		return nil, refuse("alg is not one of the issuer's")
	}
	key, err := a.key(ctx, h.algorithm, h.keyID)
	if err != nil {
		return nil, err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{h.algorithm})
	if err != nil {
		return nil, refuse("not a JWS in compact form")
	}
	if _, err := jws.Verify(key); err != nil {
		return nil, refuse("signature does not verify")
	}
	return payload, nil
}

// decodeSegment decodes base64url without padding and takes only the one spelling that encoding
// would have produced: no line breaks, no unused bits set (RFC 7515 §2, RFC 4648 §3.5).
func decodeSegment(s string) ([]byte, bool) {
	// The decoder of the standard library skips line breaks, even a strict one.
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil
}

// header is what of a JOSE header decides anything.
type header struct {
	algorithm jose.SignatureAlgorithm
	keyID     string // empty when the token names no key
}

func readHeader(data []byte) (header, error) {
	members, ok := object(data)
	if !ok {
		return header{}, refuse("header is not one JSON object with distinct members")
	}
	for _, m := range []struct{ name, reason string }{
		// No extension is understood, so each critical one must be refused (RFC 7515 §4.1.11).
		{"crit", "crit names an extension"},
		// RFC 7797 changes what is signed and RFC 7519 forbids it for a JWT.
		{"b64", "payload is not encoded"},
		{"jwk", "header brings its own key"},
		{"x5c", "header brings its own certificate"},
		{"enc", "encrypted"},
		{"zip", "compressed"},
	} {
		if _, found := members[m.name]; found {
			return header{}, refuse(m.reason)
		}
	}
	var h header
	alg, ok := text(members["alg"])
	if !ok {
		return header{}, refuse("alg is missing or no string")
	}
	h.algorithm = jose.SignatureAlgorithm(alg)
	if raw, found := members["kid"]; found {
		if h.keyID, ok = text(raw); !ok {
			return header{}, refuse("kid is no string")
		}
	}
	if raw, found := members["typ"]; found {
		// A JWT made for another purpose says so in its type (RFC 8725 §3.11, RFC 9068 §2.1).
		typ, ok := text(raw)
		typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
		if !ok || (typ != "jwt" && typ != "at+jwt") {
			return header{}, refuse("typ is not JWT or at+jwt")
		}
	}
	return h, nil
}
