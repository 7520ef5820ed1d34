package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// mostFindings is how many faults a report lists.
const mostFindings = 100

// progressEvery is how many rows lie between two calls of a progress function.
const progressEvery = 1000

// scanEntry reads entryColumns, then more. ok is false when the hash has not its form.
func scanEntry(row scanner, more ...any) (e keys.AuditEntry, ok bool, err error) {
	var at int64
	var hash []byte
	dest := []any{&e.Sequence, &at, &e.Actor, &e.Action, &e.OrganizationID, &e.TargetID, &e.Outcome, &e.Detail,
		&e.RemoteAddress, &e.RequestID, &e.Revision, &hash}
	if err := row.Scan(append(dest, more...)...); err != nil {
		return keys.AuditEntry{}, false, err
	}
	e.At = keys.FromMicros(at)
	copy(e.Hash[:], hash)
	return e, len(hash) == len(e.Hash), nil
}

// VerifyAudit checks the whole log: that no entry is missing, that each matches its hash and each
// hash its authenticator, and that the log ends where the sealed state says. progress, which may be
// nil, is called now and then.
func (s *Store) VerifyAudit(ctx context.Context, progress func(done, total int64)) (report keys.AuditReport, err error) {
	err = s.viewAll(ctx, func(ctx context.Context, tx *sql.Tx) error {
		known := new(state)
		*known, err = s.currentState(ctx, tx)
		if errors.Is(err, keys.ErrTampered) {
			known, err = nil, nil
		}
		if err != nil {
			return err
		}
		report, err = s.verifyLog(ctx, tx, known, progress)
		return err
	})
	return report, err
}

// verifyLog checks the log in one read. A nil state is one that does not open, itself a finding.
func (s *Store) verifyLog(ctx context.Context, q queries, st *state, progress func(done, total int64)) (report keys.AuditReport, err error) {
	find := func(format string, a ...any) {
		if len(report.Findings) < mostFindings {
			report.Findings = append(report.Findings, fmt.Sprintf(format, a...))
		}
	}
	var total int64
	if st == nil {
		find("the sealed state of the database does not open, so nothing says where the log should end")
	} else {
		total = st.sequence
	}
	tell := func() {
		if progress != nil {
			progress(report.Entries, max(total, report.Entries))
		}
	}

	rows, err := q.QueryContext(ctx, everyEntry)
	err = each(rows, err, func(rows *sql.Rows) error {
		var sl seal.Seal
		e, whole, err := scanEntry(rows, &sl.KeyID, &sl.MAC)
		if err != nil {
			return err
		}
		// After a gap the hash before it is unknown, and only the authenticator can be checked.
		next := report.Sequence + 1
		if e.Sequence != next {
			find("%s missing", span(next, e.Sequence-1))
		} else if !whole || chain(report.Hash, &e) != e.Hash {
			find("entry %d does not match its hash", e.Sequence)
		}
		if err := s.ring.CheckAudit(e.Sequence, e.Hash, sl); errors.Is(err, seal.ErrUnknownKey) {
			return fmt.Errorf("sqlstore: audit entry %d: %w", e.Sequence, err)
		} else if err != nil {
			find("entry %d: its hash is not authentic: %v", e.Sequence, err)
		}
		report.Sequence, report.Hash = e.Sequence, e.Hash
		if report.Entries++; report.Entries%progressEvery == 0 {
			tell()
		}
		return nil
	})
	if err != nil {
		return keys.AuditReport{}, err
	}
	if st != nil {
		switch {
		case report.Sequence < st.sequence:
			find("%s missing at the end", span(report.Sequence+1, st.sequence))
		case report.Sequence > st.sequence:
			find("%s added behind the end", span(st.sequence+1, report.Sequence))
		case report.Hash != st.hash:
			find("entry %d is not the one the sealed state ends with", report.Sequence)
		}
	}
	tell()
	return report, nil
}

func span(from, to int64) string {
	if from >= to {
		return fmt.Sprintf("entry %d is", from)
	}
	return fmt.Sprintf("entries %d to %d are", from, to)
}
