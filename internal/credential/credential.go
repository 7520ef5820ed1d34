// Package credential is the one rule where a request carries its API key and the account it is
// narrowed to (V2, V3). Every door that takes a client's own headers asks it, so that none accepts what another
// refuses. It takes the values of single headers, because not every door has an http.Header.
package credential

import (
	"encoding/base64"
	"regexp"
	"strconv"
	"strings"
)

// NotAnAccount names no organization: it stands for a header that was sent empty or several
// times, which narrows to nothing anyone owns (V3).
const NotAnAccount = "-"

// Secret returns the one secret that the values of Authorization and X-API-Key carry. Two that differ, several
// Authorization headers, and a scheme or form that is not taken are refused, so that nobody behind the door
// reads another credential than the one that was verified (V2).
func Secret(authorization, apiKeys []string) (secret string, ok bool) {
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
	for _, v := range apiKeys {
		if secret == "" {
			secret = v
		}
		if v == "" || v != secret {
			return "", false
		}
	}
	return secret, secret != ""
}

// Bearer returns the token of the one Authorization header, or nothing (RFC 6750 section 2.1).
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

// basicUser returns the user name of Basic credentials without a password, else nothing.
func basicUser(authorization string) string {
	if user, password, ok := Basic(authorization); ok && password == "" {
		return user
	}
	return ""
}

// Basic takes Basic credentials apart (RFC 7617).
func Basic(authorization string) (user, password string, ok bool) {
	scheme, encoded, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	plain, err := base64.StdEncoding.Strict().DecodeString(strings.Trim(encoded, " "))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(plain), ":")
}

// Account returns the account that the values of X-Connected-Account-ID narrow to, or nothing. An empty header
// and several name no account, which is refused: the caller meant one, and must not reach the organization's own
// data instead.
func Account(values []string) string {
	switch {
	case len(values) == 0:
		return ""
	case len(values) == 1 && values[0] != "":
		return values[0]
	default:
		return NotAnAccount
	}
}

// IsIdentity reports whether a header is one of X-Keyward-*, which Keyward alone may set, or reads as one; see ReadsAs.
func IsIdentity(header string) bool {
	const prefix = "x-keyward-"
	return len(header) >= len(prefix) && ReadsAs(header[:len(prefix)], prefix)
}

// ReadsAs reports whether a header is taken for the one named in lower case by what makes variables of headers: CGI and WSGI cannot
// tell an underscore from a hyphen, and some of their kin nothing from it that is neither a letter nor a digit.
func ReadsAs(header, name string) bool {
	if len(header) != len(name) {
		return false
	}
	for i := range len(name) {
		c := header[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case ('a' > c || c > 'z') && ('0' > c || c > '9'):
			c = '-'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// shape is C11 under any deployment's word, and something longer or a little shorter too.
var shape = regexp.MustCompile(`[a-z0-9]_(live|test)_[0-9A-Za-z]{32}`)

// InText reports whether text holds what looks like a secret, for doors that do not know the deployment's word.
func InText(text string) bool { return shape.MatchString(text) }

// InURL reports whether a part of a URL holds a secret, where logs, histories and Referer headers would keep it, however often
// it is percent-encoded.
func InURL(parts ...string) bool {
	for _, text := range parts {
		if AnyDecoded(text, InText) {
			return true
		}
	}
	return false
}

// mostDecoded is how often a text is decoded. Each time makes it shorter, so few are encoded as often.
const mostDecoded = 20

// AnyDecoded reports whether found is true of text, or of what it is when it is decoded once or more often.
func AnyDecoded(text string, found func(string) bool) bool {
	for range mostDecoded {
		if found(text) {
			return true
		}
		if !strings.Contains(text, "%") {
			return false
		}
		decoded := Decoded(text)
		if decoded == text {
			return false
		}
		text = decoded
	}
	return found(text)
}

// Decoded returns text with every percent-encoded octet in it decoded, and what is no encoding as it stands, so that it hides
// nothing beside it.
func Decoded(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			if octet, err := strconv.ParseUint(text[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(octet))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
