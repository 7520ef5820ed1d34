package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// A search names the one condition that an index serves, and then holds every row to all of them.
const (
	selectUsedKey = `SELECT ` + keyColumns + `, ` + latestOfKey + `, coalesce(u.last_used_at, 0)
		FROM keys k LEFT JOIN key_uses u ON u.key_id = k.id `
	usedKeyByID     = selectUsedKey + `WHERE k.id = $2`
	usedKeyByDigest = selectUsedKey + `WHERE k.digest = $2`

	searchKeys     = selectUsedKey + `WHERE (k.created_at, k.id) < ($2, $3)`
	searchKeysRest = ` AND ($4 = '' OR k.organization_id = $4) AND ($5 = '' OR k.created_by = $5)
			AND ($6 = '' OR k.hint = $6) AND ($7 = '' OR k.environment = $7)
			AND ($8 = '' OR k.state IN ($8, $9, $10, $11))
			AND (CAST($12 AS BIGINT) = 0 OR k.expires_at = 0 OR k.expires_at > CAST($12 AS BIGINT))
			AND (CAST($13 AS BIGINT) = 0 OR k.state = $14
				OR (k.expires_at <> 0 AND k.expires_at <= CAST($13 AS BIGINT)))
		ORDER BY k.created_at DESC, k.id DESC LIMIT $15`

	searchOfOrganization = ` AND k.organization_id = $4`
	searchOfCreator      = ` AND k.created_by = $5`
	searchOfHint         = ` AND k.hint = $6`
	searchUnrevoked      = ` AND k.state <> 'revoked'`
)

// search returns the statement that serves q, and its arguments.
func search(q *keys.KeySearch, bound int64) (statement string, arguments []any) {
	lead := ""
	switch {
	case q.OrganizationID != "":
		lead = searchOfOrganization
	case q.CreatedBy != "":
		lead = searchOfCreator
	case q.Hint != "":
		lead = searchOfHint
	case len(q.States) > 0 && !slices.Contains(q.States, keys.StateRevoked):
		lead = searchUnrevoked
	}
	before, beforeID := int64(math.MaxInt64), ""
	if q.After != nil {
		before, beforeID = keys.Micros(q.After.CreatedAt), q.After.ID
	}
	if limit := keys.Micros(q.CreatedBefore); limit != 0 && limit <= before {
		before, beforeID = limit, "" // no id is less
	}
	var states [4]string
	copy(states[:], stateNames(q.States))
	return searchKeys + lead + searchKeysRest, []any{
		bound, before, beforeID, q.OrganizationID, q.CreatedBy, q.Hint, string(q.Environment),
		states[0], states[1], states[2], states[3], keys.Micros(q.NotExpiredAt), keys.Micros(q.ExpiredAt),
		string(keys.StateExpired), int64(q.Limit),
	}
}

func stateNames(states []keys.State) (names []string) {
	for _, st := range states {
		names = append(names, string(st))
	}
	return names
}

// SearchKeys implements keys.Store.
func (s *Store) SearchKeys(ctx context.Context, q keys.KeySearch) ([]keys.UsedKey, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var found []keys.UsedKey
	statement, arguments := search(&q, anyRevision)
	rows, err := s.reader.QueryContext(ctx, statement, arguments...)
	err = each(rows, err, func(rows *sql.Rows) error {
		k, err := s.usedKey(rows)
		found = append(found, k)
		return err
	})
	return found, err
}

func (s *Store) usedKey(row scanner) (keys.UsedKey, error) {
	var logged, used int64
	r, err := scanKey(row, &logged, &used)
	if err != nil {
		return keys.UsedKey{}, err
	}
	k, err := s.keyFromRow(&r, r.Revision == logged)
	return keys.UsedKey{Key: k, LastUsedAt: keys.FromMicros(used)}, err
}

// UsedKey implements keys.Store.
func (s *Store) UsedKey(ctx context.Context, id string) (k keys.UsedKey, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, err = s.usedKey(tx.QueryRowContext(ctx, usedKeyByID, anyRevision, id))
		if errors.Is(err, sql.ErrNoRows) {
			return s.noSuchKey(ctx, tx, anyRevision, id)
		}
		return err
	})
	return k, err
}

// KeyOfDigest implements keys.Store.
func (s *Store) KeyOfDigest(ctx context.Context, d token.Digest) (keys.UsedKey, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	k, err := s.usedKey(s.reader.QueryRowContext(ctx, usedKeyByDigest, anyRevision, d[:]))
	if errors.Is(err, sql.ErrNoRows) {
		err = keys.ErrNotFound
	}
	return k, err
}

// SearchKeys implements keys.Tx.
func (t *writeTx) SearchKeys(ctx context.Context, q keys.KeySearch) (found []keys.Key, err error) {
	tx, err := t.asked(ctx)
	if err != nil {
		return nil, err
	}
	statement, arguments := search(&q, t.earlier())
	rows, err := tx.QueryContext(ctx, statement, arguments...)
	err = each(rows, err, func(rows *sql.Rows) error {
		var logged, used int64
		r, err := scanKey(rows, &logged, &used)
		if err != nil {
			return err
		}
		k, err := t.key(&r, logged)
		found = append(found, k)
		return err
	})
	return found, t.fail(err)
}

// KeysByID implements keys.Tx.
func (t *writeTx) KeysByID(ctx context.Context, ids []string) (found []keys.Key, err error) {
	if _, err := t.asked(ctx); err != nil {
		return nil, err
	}
	calls := make([]call, len(ids))
	for i, id := range ids {
		calls[i] = call{statement: keyByID, arguments: []any{t.earlier(), id}, each: func(row scanner) error {
			var logged int64
			r, err := scanKey(row, &logged)
			if err != nil {
				return err
			}
			k, err := t.key(&r, logged)
			found = append(found, k)
			return err
		}}
	}
	return found, t.fail(t.q.together(ctx, calls...))
}
