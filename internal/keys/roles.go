package keys

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the roles in a log line.
const (
	maxLoggedRoles      = 8
	maxLoggedRoleLength = 64 // code points
)

// roleReason says for the log why the roles of a token do not suffice.
func (s *Service) roleReason(roles []string) string {
	return fmt.Sprintf("role claim %q has %s; one of %s is needed",
		s.cfg.RoleClaim, quoteRoles(roles), quoteRoles(s.cfg.RequiredRoles))
}

// quoteRoles writes roles in a bounded and printable form.
func quoteRoles(roles []string) string {
	if len(roles) == 0 {
		return "no role"
	}
	shown := make([]string, 0, maxLoggedRoles)
	for _, role := range roles[:min(len(roles), maxLoggedRoles)] {
		if utf8.RuneCountInString(role) > maxLoggedRoleLength {
			role = string([]rune(role)[:maxLoggedRoleLength]) + "…"
		}
		shown = append(shown, strconv.Quote(role))
	}
	text := "[" + strings.Join(shown, ", ")
	if more := len(roles) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text + "]"
}
