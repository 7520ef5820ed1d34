package access

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// minToken is the least length of a token, in bytes.
const minToken = 16

// Prefixes of the third field of a line.
const (
	digestPrefix      = "sha256:"
	certificatePrefix = "cert:"
)

// nameForm is a credential's name. It stands in the audit log as operator:NAME.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// Credential is one line of a credentials file. It has a Token, a digest or a Subject.
type Credential struct {
	Name    string
	Scopes  Scope
	Token   string // in plain; empty when the file holds a digest or a subject
	Subject string // of a client certificate: RFC 2253, or the common name alone

	digest [sha256.Size]byte // of the token
}

// Credentials are what a credentials file holds. The zero value holds none.
type Credentials struct{ list []Credential }

// Parse reads a credentials file: lines `<name> <scope>[,<scope>] <token>`, the token plain, as
// `sha256:<hex>`, or `cert:<subject>` for a client certificate. Lines that are empty or start with
// # are skipped. Several lines may have one name, such as an old and a new token. An error names
// the line and repeats nothing of it but the word that is no scope.
func Parse(file []byte) (Credentials, error) {
	var c Credentials
	number := 0
	for line := range bytes.Lines(file) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		parsed, err := parseLine(text)
		if err == nil && slices.ContainsFunc(c.list, parsed.collides) {
			err = errors.New("its token or subject is on an earlier line too")
		}
		if err != nil {
			return Credentials{}, fmt.Errorf("line %d: %w", number, err)
		}
		c.list = append(c.list, parsed)
	}
	if len(c.list) == 0 {
		return Credentials{}, errors.New("the file holds no credential;" +
			" make one with `keyward credential new --name NAME --scope verify`")
	}
	return c, nil
}

func parseLine(text string) (Credential, error) {
	name, rest, _ := cutSpace(text)
	scopes, token, ok := cutSpace(rest)
	if !ok {
		return Credential{}, errors.New("must be `<name> <scope>[,<scope>] <token>`")
	}
	c := Credential{Name: name}
	if !nameForm.MatchString(name) {
		return c, errors.New("a name is 1–64 letters, digits and ._@-, with a letter or digit first")
	}
	var err error
	if c.Scopes, err = ParseScopes(strings.Split(scopes, ",")); err != nil {
		return c, err
	}
	if subject, ok := strings.CutPrefix(token, certificatePrefix); ok {
		if subject == "" || strings.ContainsFunc(subject, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return c, errors.New("cert: must be followed by the subject of a client certificate")
		}
		c.Subject = subject
		return c, nil
	}
	if digest, ok := strings.CutPrefix(token, digestPrefix); ok {
		b, err := hex.DecodeString(digest)
		if err != nil || len(b) != sha256.Size {
			return c, errors.New("sha256: must be followed by 64 hexadecimal digits")
		}
		c.digest = [sha256.Size]byte(b)
		return c, nil
	}
	if len(token) < minToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return c, errors.New("a token has at least 16 printable ASCII characters and no space")
	}
	c.Token, c.digest = token, sha256.Sum256([]byte(token))
	return c, nil
}

// cutSpace cuts at the first white space, and what follows of it.
func cutSpace(text string) (before, after string, found bool) {
	i := strings.IndexFunc(text, unicode.IsSpace)
	if i < 0 {
		return text, "", false
	}
	return text[:i], strings.TrimSpace(text[i:]), true
}

// ParseScopes returns the scopes of these names, at least one.
func ParseScopes(names []string) (Scope, error) {
	var all Scope
	for _, name := range names {
		i := slices.IndexFunc(scopeNames[:], func(n struct {
			scope Scope
			name  string
		}) bool {
			return n.name == name
		})
		if i < 0 {
			return 0, errors.New("a scope is verify, read or operate; several are separated by commas")
		}
		all |= scopeNames[i].scope
	}
	if all == 0 {
		return 0, errors.New("a scope is missing: verify, read or operate")
	}
	return all, nil
}

// Line is a line for a credentials file that holds the digest of a token.
func Line(name string, scopes Scope, token string) (string, error) {
	digest := sha256.Sum256([]byte(token))
	line := fmt.Sprintf("%s %s %s%x", name, scopes, digestPrefix, digest)
	_, err := parseLine(line)
	return line, err
}

// collides reports whether a caller could be either of the two.
func (c *Credential) collides(other Credential) bool {
	if c.Subject != "" || other.Subject != "" {
		return c.Subject == other.Subject
	}
	return c.digest == other.digest
}

// Plain returns the first token in plain whose scopes allow need, empty when there is none.
func (c Credentials) Plain(need Scope) string {
	for _, k := range c.list {
		if k.Token != "" && k.Scopes.Allows(need) {
			return k.Token
		}
	}
	return ""
}

// Any reports whether a credential allows need.
func (c Credentials) Any(need Scope) bool {
	return slices.ContainsFunc(c.list, func(k Credential) bool { return k.Scopes.Allows(need) })
}

// token finds the caller that a token belongs to, in constant time.
func (c Credentials) token(token string) (Caller, bool) {
	digest := sha256.Sum256([]byte(token))
	found := -1
	for i := range c.list {
		if c.list[i].Subject == "" && subtle.ConstantTimeCompare(digest[:], c.list[i].digest[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return Caller{}, false
	}
	return Caller{name: c.list[found].Name, Scopes: c.list[found].Scopes}, true
}

// certificate is the caller with a client certificate of the deployment's authorities. Without a
// line for its subject it may verify: that is what a proxy needs, and nothing administers with it.
func (c Credentials) certificate(cert *x509.Certificate) Caller {
	caller := Caller{cert: cert, Scopes: Verify}
	for _, k := range c.list {
		if k.Subject == "" {
			continue
		}
		name := cert.Subject.CommonName
		if strings.Contains(k.Subject, "=") {
			name = cert.Subject.String()
		}
		if k.Subject == name {
			caller.Scopes = k.Scopes
			return caller
		}
	}
	return caller
}

// subjectOf names a certificate for the audit log: its subject, or another name of it.
func subjectOf(cert *x509.Certificate) string {
	name := cert.Subject.String()
	switch {
	case name != "":
	case len(cert.URIs) > 0:
		name = cert.URIs[0].String()
	case len(cert.DNSNames) > 0:
		name = "DNS:" + cert.DNSNames[0]
	default:
		name = "serial:" + cert.SerialNumber.Text(16)
	}
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
	if runes := []rune(name); len(runes) > maxSubject {
		name = string(runes[:maxSubject])
	}
	return name
}

// maxSubject bounds an actor in the audit log, in code points.
const maxSubject = 256
