package server

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/syncgram/keyward/internal/keys"
)

// The query parameters that page and filter the audit log (O6).
var auditFilter = []string{
	"after", "limit", "organization_id", "target_id", "actor", "action", "outcome", "since", "until",
}

// maxFilterText bounds an actor, an action and an outcome that is asked for, in bytes.
const maxFilterText = 1024

// readAuditFilter reads what an entry must have. An action or outcome that there is none of is no
// fault: another version of the program may have written it.
func (x *exchange) readAuditFilter(q *AuditQuery) error {
	for name, into := range map[string]*string{"actor": &q.Actor, "action": &q.Action, "outcome": &q.Outcome} {
		if v := x.parameter(name); v != nil {
			if *v == "" || len(*v) > maxFilterText || !utf8.ValidString(*v) || strings.ContainsRune(*v, 0) {
				return keys.Invalid(name, name+" must be 1 to 1024 characters.")
			}
			*into = *v
		}
	}
	for name, into := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if v := x.parameter(name); v != nil {
			at, err := time.Parse(time.RFC3339, *v)
			if err != nil || at.Unix() <= 0 {
				return keys.Invalid(name, name+" must be a time such as 2026-01-31T12:00:00Z.")
			}
			*into = at
		}
	}
	return nil
}
