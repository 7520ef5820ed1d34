package sqlstore

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"fmt"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// Snapshot implements keys.Feed. It reads the audit log, then the tables twice: once for the set
// hash, and, knowing then whether a row is not what it should be, once for the rows.
func (s *Store) Snapshot(ctx context.Context, v keys.Visitor) (mark keys.Mark, set keys.SetHash, err error) {
	err = s.viewAll(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		mark, set = st.mark(), st.set()
		if err := s.checkChain(ctx, tx, st); err != nil {
			return err
		}
		weight := state{weightKeyID: st.weightKeyID}
		err = s.eachRevision(ctx, tx, func(row target, revision int64) error {
			return weight.addRow(s.ring, row.kind, row.id, revision)
		})
		if err != nil {
			return err
		}
		var wrong, removed map[target]int64
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
			logged, rolledBack := wrong[target{keys.KindOrganization, r.ID}]
			o, err := s.organizationFromRow(&r, !rolledBack)
			if err != nil {
				return err
			}
			if rolledBack {
				o.Revision = logged
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
			logged, rolledBack := wrong[target{keys.KindKey, r.ID}]
			k, err := s.keyFromRow(&r, !rolledBack)
			if err != nil {
				return err
			}
			if rolledBack {
				k.Revision = logged
			}
			return v.Key(k)
		})
	})
	if err != nil {
		return keys.Mark{}, keys.SetHash{}, err
	}
	return mark, set, nil
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

// checkChain returns ErrTampered unless the audit log is one unbroken chain that ends where the
// authenticated state says (V8). The state authenticates the last hash, and each hash covers the
// one before, so the single authenticators need not be checked.
func (s *Store) checkChain(ctx context.Context, tx *sql.Tx, st state) error {
	var sequence int64
	var hash [32]byte
	rows, err := tx.QueryContext(ctx, everyEntry)
	err = each(rows, err, func(rows *sql.Rows) error {
		var sl seal.Seal
		e, whole, err := scanEntry(rows, &sl.KeyID, &sl.MAC)
		if err != nil {
			return err
		}
		if !whole || e.Sequence != sequence+1 || chain(hash, &e) != e.Hash {
			return s.badState(st.revision, fmt.Sprintf("the audit log is broken at entry %d", sequence+1))
		}
		sequence, hash = e.Sequence, e.Hash
		return nil
	})
	if err != nil {
		return err
	}
	return s.checkHead(st, sequence, hash[:])
}

// findWrong returns the rows whose revision is not the one the audit log has, and the rows that
// the log has and the tables do not, each with that revision; 0 = the log has none. The log must
// agree with the authenticated set hash for that.
func (s *Store) findWrong(ctx context.Context, tx *sql.Tx, st state) (wrong, removed map[target]int64, err error) {
	latest, err := s.logged(ctx, tx)
	if err != nil {
		return nil, nil, err
	}
	if err := s.checkLogged(latest, st); err != nil {
		return nil, nil, err
	}
	wrong = make(map[target]int64)
	err = s.eachRevision(ctx, tx, func(row target, revision int64) error {
		if latest[row] != revision {
			wrong[row] = latest[row]
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
