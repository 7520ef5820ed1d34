package identity

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/syncgram/keyward/internal/keys"
)

const (
	// skew is how far the issuer's clock may be from ours, either way.
	skew = 60 * time.Second

	// maxUserLength bounds sub, in Unicode code points.
	maxUserLength = 255

	// latestDate is the last second of the year 9999, beyond which a time cannot be RFC 3339.
	latestDate = 253402300799
)

// principal checks the claims of a token whose signature was verified and reads who it
// speaks for. exp, iat, sub and the organization are required (RFC 9068 §2.2), iss and aud
// when the configuration names them.
func (a *Authenticator) principal(payload []byte) (keys.Principal, error) {
	claims, ok := object(payload)
	if !ok {
		return keys.Principal{}, refuse("payload is not one JSON object with distinct members")
	}
	if err := a.checkTimes(claims); err != nil {
		return keys.Principal{}, err
	}
	if a.issuer != "" {
		if iss, ok := text(claims["iss"]); !ok || iss != a.issuer {
			return keys.Principal{}, refuse("iss is missing or another")
		}
	}
	if a.audience != "" {
		aud, ok := texts(claims["aud"])
		if !ok || !slices.Contains(aud, a.audience) {
			return keys.Principal{}, refuse("aud is missing or does not name this service")
		}
	}

	var p keys.Principal
	if p.User, ok = text(claims["sub"]); !ok || !validUser(p.User) {
		return keys.Principal{}, refuse("sub is missing or not 1 to 255 printable characters")
	}
	var err error
	if p.OrganizationID, err = a.organization(claims); err != nil {
		return keys.Principal{}, err
	}
	if a.roleClaim != "" {
		if p.Roles, err = a.roles(claims, p.OrganizationID); err != nil {
			return keys.Principal{}, err
		}
	}
	return p, nil
}

// checkTimes holds exp, nbf and iat against the clock: a token is good while
// nbf − skew ≤ now < exp + skew, and was not issued after now + skew.
func (a *Authenticator) checkTimes(claims map[string]json.RawMessage) error {
	now := a.now()
	expires, ok := date(claims["exp"])
	if !ok {
		return refuse("exp is missing or no date")
	}
	if !now.Before(expires.Add(skew)) {
		return refuse("expired")
	}
	issued, ok := date(claims["iat"])
	if !ok {
		return refuse("iat is missing or no date")
	}
	if issued.After(now.Add(skew)) {
		return refuse("issued in the future")
	}
	if raw, found := claims["nbf"]; found {
		notBefore, ok := date(raw)
		if !ok {
			return refuse("nbf is no date")
		}
		if notBefore.After(now.Add(skew)) {
			return refuse("not valid yet")
		}
	}
	return nil
}

// validUser reports whether sub can name a user in the log, the audit trail and the rate limit.
// U+FFFD is what decoding leaves of a broken character: two different subjects would meet in it.
func validUser(sub string) bool {
	if sub == "" || utf8.RuneCountInString(sub) > maxUserLength {
		return false
	}
	return !strings.ContainsFunc(sub, func(r rune) bool {
		return !unicode.IsPrint(r) || r == utf8.RuneError
	})
}

// object reads one JSON object and keeps its members apart by their exact names: "SUB" is not
// "sub", and a name that appears twice makes the whole object unreadable (RFC 7519 §4).
func object(data []byte) (map[string]json.RawMessage, bool) {
	// json.Valid also refuses trailing data.
	if !utf8.Valid(data) || !json.Valid(data) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil, false
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, false
		}
		key, ok := name.(string)
		if !ok {
			return nil, false
		}
		if _, twice := members[key]; twice {
			return nil, false
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, false
		}
		members[key] = value
	}
	return members, true
}

// text reads a JSON string.
func text(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// texts reads a JSON string, or an array of nothing but strings (RFC 7519 §4.1.3).
func texts(raw json.RawMessage) ([]string, bool) {
	if s, ok := text(raw); ok {
		return []string{s}, true
	}
	var elements []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
		return nil, false
	}
	list := make([]string, len(elements))
	for i, e := range elements {
		s, ok := text(e)
		if !ok {
			return nil, false
		}
		list[i] = s
	}
	return list, true
}

// date reads a NumericDate: seconds since 1970, perhaps with a fraction (RFC 7519 §2).
func date(raw json.RawMessage) (time.Time, bool) {
	if len(raw) == 0 || raw[0] == 'n' { // null would leave the number 0
		return time.Time{}, false
	}
	var seconds float64
	if json.Unmarshal(raw, &seconds) != nil || seconds < 0 || seconds > latestDate {
		return time.Time{}, false
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)), true
}
