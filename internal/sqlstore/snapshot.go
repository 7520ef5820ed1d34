package sqlstore

import (
	"context"
	"crypto/subtle"
	"database/sql"

	"github.com/syncgram/keyward/internal/keys"
)

// Snapshot implements keys.Feed. It reads the tables twice: once for the weight of the set, and,
// knowing then whether a row is not what it should be, once for the rows.
func (s *Store) Snapshot(ctx context.Context, v keys.Visitor) (mark keys.Mark, err error) {
	err = s.viewAll(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		if mark, err = s.mark(ctx, tx, st); err != nil {
			return err
		}
		weight := state{weightKeyID: st.weightKeyID}
		err = s.eachRevision(ctx, tx, func(row target, revision int64) error {
			return weight.addRow(s.ring, row.kind, row.id, revision)
		})
		if err != nil {
			return err
		}
		var wrong map[target]bool
		var removed map[target]int64
		if weight.weight != st.weight {
			if wrong, removed, err = s.findWrong(ctx, tx, st); err != nil {
				return err
			}
		}

		rows, err := tx.QueryContext(ctx, everyOrganization)
		err = each(rows, err, func(rows *sql.Rows) error {
			r, err := scanOrganization(rows)
			if err != nil {
				return err
			}
			o, err := s.organizationFromRow(&r, !wrong[target{keys.KindOrganization, r.ID}])
			if err != nil {
				return err
			}
			return v.Organization(o)
		})
		if err != nil {
			return err
		}
		for row, latest := range removed {
			if row.kind == keys.KindKey {
				s.tampered("keys", row.id, latest, errRemoved)
				if err := v.Key(keys.Key{ID: row.id, Revision: latest}); err != nil {
					return err
				}
				continue
			}
			if err := v.Organization(s.removedOrganization(row.id, latest)); err != nil {
				return err
			}
		}
		rows, err = tx.QueryContext(ctx, everyKey)
		return each(rows, err, func(rows *sql.Rows) error {
			r, err := scanKey(rows)
			if err != nil {
				return err
			}
			k, err := s.keyFromRow(&r, !wrong[target{keys.KindKey, r.ID}])
			if err != nil {
				return err
			}
			return v.Key(k)
		})
	})
	if err != nil {
		return keys.Mark{}, err
	}
	return mark, nil
}

// eachRevision visits the name and the revision of every key and organization.
func (s *Store) eachRevision(ctx context.Context, q queries, visit func(row target, revision int64) error) error {
	for kind, statement := range map[string]string{
		keys.KindKey: everyKeyRevision, keys.KindOrganization: everyOrganizationRevision,
	} {
		rows, err := q.QueryContext(ctx, statement)
		err = each(rows, err, func(rows *sql.Rows) error {
			row, revision := target{kind: kind}, int64(0)
			if err := rows.Scan(&row.id, &revision); err != nil {
				return err
			}
			return visit(row, revision)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// findWrong names the rows whose revision is not the one the audit log has, and, with that
// revision, the rows the log has and the tables do not. The log must hold together for that, and
// agree with the sealed weight.
func (s *Store) findWrong(ctx context.Context, tx *sql.Tx, st state) (wrong map[target]bool, removed map[target]int64, err error) {
	audit, err := s.verifyLog(ctx, tx, &st, nil)
	if err != nil {
		return nil, nil, err
	}
	if len(audit.Findings) > 0 {
		return nil, nil, s.badState(st.revision, "rows are not what the sealed state says, and the audit log does not hold together: "+audit.Findings[0])
	}
	latest, err := s.logged(ctx, tx)
	if err != nil {
		return nil, nil, err
	}
	if err := s.checkLogged(latest, st); err != nil {
		return nil, nil, err
	}
	wrong = make(map[target]bool)
	err = s.eachRevision(ctx, tx, func(row target, revision int64) error {
		if latest[row] != revision {
			wrong[row] = true
		}
		delete(latest, row)
		return nil
	})
	return wrong, latest, err
}

// logged returns the latest revision that the audit log has for every row.
func (s *Store) logged(ctx context.Context, q queries) (map[target]int64, error) {
	latest := make(map[target]int64)
	rows, err := q.QueryContext(ctx, latestOfAll)
	err = each(rows, err, func(rows *sql.Rows) error {
		row := target{kind: keys.KindKey}
		var organization, revision int64
		if err := rows.Scan(&row.id, &organization, &revision); err != nil {
			return err
		}
		if organization == 1 {
			row.kind = keys.KindOrganization
		}
		latest[row] = revision
		return nil
	})
	return latest, err
}

// checkLogged holds what the audit log says of the rows against the sealed weight.
func (s *Store) checkLogged(latest map[target]int64, st state) error {
	sum := state{weightKeyID: st.weightKeyID}
	for row, revision := range latest {
		if err := sum.addRow(s.ring, row.kind, row.id, revision); err != nil {
			return err
		}
	}
	if subtle.ConstantTimeCompare(sum.weight[:], st.weight[:]) != 1 {
		return s.badState(st.revision, "the audit log and the sealed state tell of different rows")
	}
	return nil
}
