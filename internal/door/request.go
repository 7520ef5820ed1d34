package door

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// OriginalURLs are the headers, in canonical form, in which proxies send the URL the client asked them for.
var OriginalURLs = [...]string{"X-Original-Uri", "X-Original-Url", "X-Forwarded-Uri"}

// HoldsSecret reports whether text has part of a secret in it, also when it is percent-encoded, twice
// at most, and whatever stands beside it.
func HoldsSecret(f token.Format, text string) bool {
	return credential.AnyDecoded(text, f.HoldsPart)
}

// SecretInURL is the answer to a URL with a secret in it (V2).
func SecretInURL() error {
	return keys.Invalid("", "A secret must never be part of a URL: URLs are logged and remembered. Send it in a header, and roll the key it belongs to.")
}

// RequestIDs makes ids that are unique over processes and restarts. They are no secret.
type RequestIDs struct {
	format  token.Format
	process string
	count   *atomic.Uint64
}

// NewRequestIDs returns a maker of ids. format keeps secrets out of those that are kept.
func NewRequestIDs(format token.Format) RequestIDs {
	var b [8]byte
	rand.Read(b[:])
	return RequestIDs{format, "req_" + hex.EncodeToString(b[:]) + "_", new(atomic.Uint64)}
}

func (g RequestIDs) next() string {
	var b [64]byte
	return string(strconv.AppendUint(append(b[:0], g.process...), g.count.Add(1), 32))
}

// Of keeps the client's request id when there is one, it has 1–128 letters, digits and
// ._:/+=@- only, and holds no secret; otherwise it makes one (C26, V7).
func (g RequestIDs) Of(values []string) string {
	if len(values) != 1 || values[0] == "" || len(values[0]) > 128 || HoldsSecret(g.format, values[0]) {
		return g.next()
	}
	for _, c := range []byte(values[0]) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("._:/+=@-", c) >= 0) {
			return g.next()
		}
	}
	return values[0]
}
