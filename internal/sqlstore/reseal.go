package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// ResealReport is what Reseal did and what it had to leave.
type ResealReport struct {
	Keys, Organizations, AuditEntries int64 // sealed anew

	Refused []string // rows and entries whose seal is bad, left as they were; at most 100
	Left    int64    // how many those are

	// KeptAnswers counts, by master key id, the kept answers that only the client's
	// idempotency key can open, and that so stay under a retired key until they are erased.
	KeptAnswers map[string]int64
}

// resealBatch is how many rows are sealed anew in one transaction.
const resealBatch = 500

// Reseal re-authenticates rows, the audit log's links and the set hash under the database's master
// key, without a new revision; SwitchMasterKey chooses the key. What is under it already is passed
// over, so a run
// that was cut short is simply run again. A row or entry whose seal is bad is left: nothing here makes
// a forgery good. When the report has Left 0 and no KeptAnswers, the retired keys can go.
//
// The state comes last, and holds writers up while the log is read, about a second for
// a million rows.
func (s *Store) Reseal(ctx context.Context, progress func(done, total int64)) (ResealReport, error) {
	current, _, err := s.MasterKey(ctx)
	if err != nil {
		return ResealReport{}, err
	}
	run := resealing{s: s, current: current, progress: progress}
	if err := s.reader.QueryRowContext(ctx, countStale, run.current).Scan(&run.total); err != nil {
		return run.report, fmt.Errorf("sqlstore: %w", err)
	}
	for _, batch := range []func(context.Context, *writeTx) (more bool, err error){
		run.keys, run.organizations, run.entries,
	} {
		for more := true; more; {
			// The lock keeps writers from changing a row between its being read and sealed.
			var t *writeTx
			err := s.transact(ctx, s.writer, func() []call {
				t = s.newWrite()
				return t.lock(lockMeta)
			}, func(ctx context.Context, tx *transaction) (err error) {
				if err = t.begin(tx, false); err != nil {
					return err
				}
				if t.signer.KeyID() != run.current {
					return errors.New("sqlstore: another rotation began; run it again")
				}
				more, err = batch(ctx, t)
				return err
			})
			if err != nil {
				return run.report, err
			}
			run.tell()
		}
	}
	if err := s.resealState(ctx); err != nil {
		return run.report, err
	}

	run.report.KeptAnswers = make(map[string]int64)
	rows, err := s.reader.QueryContext(ctx, countKeptUnder, run.current)
	err = each(rows, err, func(rows *sql.Rows) error {
		var id string
		var n int64
		err := rows.Scan(&id, &n)
		run.report.KeptAnswers[id] = n
		return err
	})
	return run.report, err
}

// resealing is one run of Reseal: how far it is in each table.
type resealing struct {
	s           *Store
	current     string
	report      ResealReport
	progress    func(done, total int64)
	done, total int64

	keyID, organizationID string
	sequence              int64
}

func (r *resealing) tell() {
	if r.progress != nil {
		r.progress(r.done, max(r.total, r.done))
	}
}

func (r *resealing) refuse(what string) {
	r.report.Left++
	if len(r.report.Refused) < mostFindings {
		r.report.Refused = append(r.report.Refused, what)
	}
}

func (r *resealing) keys(ctx context.Context, t *writeTx) (more bool, err error) {
	var seals [][]any
	var seen int64
	rows, err := t.q.QueryContext(ctx, staleKeys, anyRevision, r.keyID, r.current, resealBatch)
	err = each(rows, err, func(rows *sql.Rows) error {
		var logged int64
		row, err := scanKey(rows, &logged)
		if err != nil {
			return err
		}
		seen++
		r.keyID = row.ID
		k, err := r.s.keyFromRow(&row, row.Revision == logged)
		if err != nil {
			return err
		}
		if !k.Genuine {
			r.refuse("key " + k.ID)
			return nil
		}
		sl := t.signer.SealRow(keys.KindKey, row.Sealed())
		seals = append(seals, []any{sl.KeyID, sl.MAC, row.ID})
		return nil
	})
	if err != nil {
		return false, err
	}
	r.done += seen
	r.report.Keys += int64(len(seals))
	return seen == resealBatch, t.q.execMany(ctx, sealKey, seals)
}

func (r *resealing) organizations(ctx context.Context, t *writeTx) (more bool, err error) {
	var seals [][]any
	var seen int64
	rows, err := t.q.QueryContext(
		ctx,
		staleOrganizations,
		anyRevision,
		r.organizationID,
		r.current,
		resealBatch,
	)
	err = each(rows, err, func(rows *sql.Rows) error {
		var logged int64
		row, err := scanOrganization(rows, &logged)
		if err != nil {
			return err
		}
		seen++
		r.organizationID = row.ID
		o, err := r.s.organizationFromRow(&row, row.Revision == logged)
		if err != nil {
			return err
		}
		if !o.Genuine {
			r.refuse("organization " + o.ID)
			return nil
		}
		sl := t.signer.SealRow(keys.KindOrganization, row.Sealed())
		seals = append(seals, []any{sl.KeyID, sl.MAC, row.ID})
		return nil
	})
	if err != nil {
		return false, err
	}
	r.done += seen
	r.report.Organizations += int64(len(seals))
	return seen == resealBatch, t.q.execMany(ctx, sealOrganization, seals)
}

func (r *resealing) entries(ctx context.Context, t *writeTx) (more bool, err error) {
	var seals [][]any
	var seen int64
	rows, err := t.q.QueryContext(ctx, staleEntries, r.sequence, r.current, resealBatch)
	err = each(rows, err, func(rows *sql.Rows) error {
		var hash []byte
		var sl seal.Seal
		if err := rows.Scan(&r.sequence, &hash, &sl.KeyID, &sl.MAC); err != nil {
			return err
		}
		seen++
		err := seal.ErrBadSeal
		if len(hash) == 32 {
			err = r.s.ring.CheckAudit(r.sequence, [32]byte(hash), sl)
		}
		if errors.Is(err, seal.ErrUnknownKey) {
			return fmt.Errorf("sqlstore: audit entry %d: %w", r.sequence, err)
		}
		if err != nil {
			r.refuse(fmt.Sprintf("audit entry %d", r.sequence))
			return nil
		}
		sl = t.signer.SealAudit(r.sequence, [32]byte(hash))
		seals = append(seals, []any{sl.KeyID, sl.MAC, r.sequence})
		return nil
	})
	if err != nil {
		return false, err
	}
	r.done += seen
	r.report.AuditEntries += int64(len(seals))
	return seen == resealBatch, t.q.execMany(ctx, sealEntry, seals)
}

// resealState makes the weight anew under the current key and seals the state. The weight comes from
// the audit log, which it always agrees with, not from the rows: a row that somebody removed or put
// back is as wrong under the new weight as it was under the old.
func (s *Store) resealState(ctx context.Context) error {
	return s.locked(ctx, s.transactWithin, lockMeta, keys.Reads{}, func(ctx context.Context, t *writeTx) error {
		if err := s.noTimeouts(ctx, t.q); err != nil {
			return err
		}
		current := t.signer.KeyID()
		if t.state.weightKeyID == current {
			return nil
		}
		latest, err := s.logged(ctx, t.q)
		if err != nil {
			return err
		}
		if err := s.checkLogged(latest, t.state); err != nil {
			return err
		}
		t.state.weightKeyID, t.state.weight = current, [32]byte{}
		for row, revision := range latest {
			if err := t.state.addRow(s.ring, row.kind, row.id, revision); err != nil {
				return err
			}
		}
		return nil
	})
}
