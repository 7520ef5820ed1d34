// Package access decides who may use the verification and the admin listener (O5): credentials
// with a name and scopes, from a file that is read again when it changes, and client certificates.
package access

import "strings"

// Scope is what a caller may do: one of the constants, or several of them together.
type Scope uint8

// The scopes of a credential (O5).
const (
	Verify  Scope = 1 << iota // verify, authorize, introspect and ext_authz
	Read                      // the GET routes of the admin listener
	Operate                   // every route of the admin listener
)

// All is every scope there is.
const All = Verify | Read | Operate

var scopeNames = [...]struct {
	scope Scope
	name  string
}{{Verify, "verify"}, {Read, "read"}, {Operate, "operate"}}

// String lists the names, separated by commas.
func (s Scope) String() string {
	var names []string
	for _, n := range scopeNames {
		if s&n.scope != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// Allows reports whether a caller with these scopes may use a route that needs one of them.
func (s Scope) Allows(need Scope) bool {
	if s&Operate != 0 {
		s |= Read
	}
	return need != 0 && s&need == need
}
