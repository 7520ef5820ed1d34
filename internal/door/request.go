package door

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// NotAnAccount names no organization: it stands for a connected account that was sent empty or several
// times, which narrows to nothing anyone owns (V3).
const NotAnAccount = "-"

// ConnectedAccount returns the account that the values of X-Connected-Account-ID narrow to, empty when there are none.
func ConnectedAccount(values []string) string {
	switch {
	case len(values) == 0:
		return ""
	case len(values) == 1 && values[0] != "":
		return values[0]
	default:
		return NotAnAccount
	}
}

// Credential returns the one secret that the values of Authorization and X-API-Key carry. Two that differ, several
// Authorization headers and a scheme or form that is not taken are refused, so that no one behind the door reads another
// credential than the one that was verified (V2).
func Credential(authorization, apiKey []string) (secret string, ok bool) {
	switch len(authorization) {
	case 0:
	case 1:
		if secret = Bearer(authorization); secret == "" {
			secret = basicUser(authorization[0])
		}
		if secret == "" {
			return "", false
		}
	default:
		return "", false
	}
	for _, v := range apiKey {
		if secret == "" {
			secret = v
		}
		if v == "" || v != secret {
			return "", false
		}
	}
	return secret, secret != ""
}

// Bearer returns the token of the one Authorization value, or nothing (RFC 6750 section 2.1).
func Bearer(authorization []string) string {
	if len(authorization) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(authorization[0], " ")
	token = strings.Trim(token, " ")
	if !strings.EqualFold(scheme, "Bearer") || strings.ContainsAny(token, " \t,") {
		return ""
	}
	return token
}

// basicUser returns the user name of Basic credentials without a password (RFC 7617), else nothing.
func basicUser(v string) string {
	scheme, encoded, _ := strings.Cut(v, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return ""
	}
	plain, err := base64.StdEncoding.Strict().DecodeString(strings.Trim(encoded, " "))
	user, found := strings.CutSuffix(string(plain), ":")
	if err != nil || !found || strings.Contains(user, ":") {
		return ""
	}
	return user
}

// OriginalURLs are the headers, in canonical form, in which proxies send the URL the client asked them for.
var OriginalURLs = [...]string{"X-Original-Uri", "X-Original-Url", "X-Forwarded-Uri"}

// HoldsSecret reports whether text has part of a secret in it, also when it is percent-encoded, twice
// at most.
func HoldsSecret(f token.Format, text string) bool {
	for range 3 {
		if f.HoldsPart(text) {
			return true
		}
		plain, err := url.QueryUnescape(text)
		if err != nil || plain == text {
			return false
		}
		text = plain
	}
	return false
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
	return string(strconv.AppendUint(append(b[:0], g.process...), g.count.Add(1), 36))
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
