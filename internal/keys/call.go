package keys

import (
	"regexp"
	"unicode"
	"unicode/utf8"
)

// Principal is the signed-in user of the management API, taken from a verified token.
type Principal struct {
	User           string   // the token's sub
	OrganizationID string   // the token's organization claim
	Roles          []string // the token's role claim, when the deployment reads one
}

// Call is one management call: who asks, and what the log and the audit entry say of it.
type Call struct {
	Principal        Principal
	Operator         string // the actor of a call on the admin listener, which has no Principal
	ConnectedAccount bool   // the call carried X-Connected-Account-ID (C3)
	RequestID        string
	RemoteAddress    string
}

// Operator is a call on the admin listener, which has no user.
type Operator struct {
	Actor         string // in the audit log (O5); empty = OperatorActor
	RequestID     string
	RemoteAddress string
}

// OperatorActor is an operator in the audit log whose name is not known: the deployment has no
// credentials. Those with a name are operator:NAME.
const OperatorActor = "operator"

// AuditActor is the operator in the audit log.
func (o Operator) AuditActor() string {
	if o.Actor == "" {
		return OperatorActor
	}
	return o.Actor
}

var organizationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$`)

// ValidOrganizationID reports whether id can name an organization: 1–128 letters,
// digits and _.:- with a letter or digit first, so that it fits a header and a path.
func ValidOrganizationID(id string) bool { return organizationID.MatchString(id) }

// printableText reports whether s is valid UTF-8, at most most code points long, and free of
// control characters and of the line and paragraph separators.
func printableText(s string, most int) bool {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > most {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return false
		}
	}
	return true
}
