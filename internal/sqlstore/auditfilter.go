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
// row to all of them. A time becomes a bound on the sequence first, which an index has.
const (
	selectEntries = `SELECT ` + entryColumns + ` FROM audit WHERE sequence > $1`
	entriesRest   = ` AND ($2 = '' OR organization_id = $2) AND ($3 = '' OR target_id = $3)
			AND ($4 = '' OR actor = $4) AND ($5 = '' OR action = $5) AND ($6 = '' OR outcome = $6)
			AND at >= $7 AND at < $8
			AND (CAST($7 AS BIGINT) = 0
				OR sequence >= (SELECT coalesce(min(sequence), 0) FROM audit WHERE at >= $7))
			AND (CAST($8 AS BIGINT) = 9223372036854775807
				OR sequence <= (SELECT coalesce(max(sequence), 0) FROM audit WHERE at < $8))
		ORDER BY sequence LIMIT $9`

	entriesOfTarget       = ` AND target_id = $3`
	entriesOfActor        = ` AND actor = $4`
	entriesOfOrganization = ` AND organization_id = $2`
	entriesOfOutcome      = ` AND outcome = $6 AND outcome <> 'done'`
	entriesOfAction       = ` AND action = $5`
	entriesSince          = ` AND sequence >= (SELECT coalesce(min(sequence), 0) FROM audit WHERE at >= $7)`
)

// statement is the read that uses the index of the filter's narrowest condition.
func (f *AuditFilter) statement() string {
	switch {
	case f.TargetID != "":
		return selectEntries + entriesOfTarget + entriesRest
	case f.Actor != "":
		return selectEntries + entriesOfActor + entriesRest
	case f.OrganizationID != "":
		return selectEntries + entriesOfOrganization + entriesRest
	case f.Outcome != "" && f.Outcome != keys.Done:
		return selectEntries + entriesOfOutcome + entriesRest
	case f.Action != "":
		return selectEntries + entriesOfAction + entriesRest
	case !f.Since.IsZero():
		return selectEntries + entriesSince + entriesRest
	}
	return selectEntries + entriesRest
}

// Audit returns up to limit entries with a sequence greater than after, in order.
func (s *Store) Audit(
	ctx context.Context, after int64, limit int, f AuditFilter,
) ([]keys.AuditEntry, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	until := int64(math.MaxInt64)
	if !f.Until.IsZero() {
		until = keys.Micros(f.Until)
	}
	var found []keys.AuditEntry
	rows, err := s.reader.QueryContext(ctx, f.statement(), after, f.OrganizationID, f.TargetID, f.Actor,
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
