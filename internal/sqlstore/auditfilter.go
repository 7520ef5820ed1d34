package sqlstore

import (
	"context"
	"database/sql"
	"math"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// AuditFilter selects audit entries (O6); an empty field selects all.
type AuditFilter struct {
	OrganizationID string
	TargetID       string // a key or an organization
	Actor          string
	Action         keys.Action
	Outcome        string
	Since, Until   time.Time // at or after, before; zero = no bound
}

// A filtered read of the log names the one condition that an index serves, and then holds every
// row to all of them. A time becomes a bound on the sequence first. The unary plus keeps the
// planners of both databases from sorting all entries of a time, and from walking the log from its
// beginning to that time.
const (
	selectEntries = `SELECT ` + entryColumns + ` FROM audit WHERE sequence > $1 AND sequence <= $2`
	entriesRest   = ` AND ($3 = '' OR organization_id = $3) AND ($4 = '' OR target_id = $4)
			AND ($5 = '' OR actor = $5) AND ($6 = '' OR action = $6) AND ($7 = '' OR outcome = $7)
			AND +at >= $8 AND +at < $9
		ORDER BY sequence LIMIT $10`

	entriesOfTarget       = ` AND target_id = $4`
	entriesOfActor        = ` AND actor = $5`
	entriesOfOrganization = ` AND organization_id = $3`
	entriesOfOutcome      = ` AND outcome = $7 AND outcome <> 'done'`
	entriesOfAction       = ` AND action = $6`

	firstEntrySince = `SELECT coalesce(min(+sequence), 9223372036854775807) FROM audit WHERE at >= $1`
	lastEntryBefore = `SELECT coalesce(max(+sequence), 0) FROM audit WHERE at < $1`
)

// statement is the read that uses the index of the filter's narrowest condition.
func (f *AuditFilter) statement() string {
	lead := ""
	switch {
	case f.TargetID != "":
		lead = entriesOfTarget
	case f.Actor != "":
		lead = entriesOfActor
	case f.OrganizationID != "":
		lead = entriesOfOrganization
	case f.Outcome != "" && f.Outcome != keys.Done:
		lead = entriesOfOutcome
	case f.Action != "":
		lead = entriesOfAction
	}
	return selectEntries + lead + entriesRest
}

// Audit returns up to limit entries with a sequence greater than after, in order.
func (s *Store) Audit(
	ctx context.Context, after int64, limit int, f AuditFilter,
) ([]keys.AuditEntry, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	last, until := int64(math.MaxInt64), int64(math.MaxInt64)
	if !f.Since.IsZero() {
		var first int64
		if err := s.reader.QueryRowContext(ctx, firstEntrySince, keys.Micros(f.Since)).Scan(&first); err != nil {
			return nil, err
		}
		after = max(after, first-1)
	}
	if !f.Until.IsZero() {
		until = keys.Micros(f.Until)
		if err := s.reader.QueryRowContext(ctx, lastEntryBefore, until).Scan(&last); err != nil {
			return nil, err
		}
	}
	var found []keys.AuditEntry
	rows, err := s.reader.QueryContext(ctx, f.statement(), after, last, f.OrganizationID, f.TargetID, f.Actor,
		string(f.Action), f.Outcome, keys.Micros(f.Since), until, int64(limit))
	err = each(rows, err, func(rows *sql.Rows) error {
		e, _, err := scanEntry(rows)
		if err == nil {
			found = append(found, e)
		}
		return err
	})
	return found, err
}
