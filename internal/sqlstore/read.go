package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"github.com/syncgram/keyward/internal/keys"
)

// Key implements keys.Store.
func (s *Store) Key(ctx context.Context, id string) (k keys.Key, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, err = s.keyOfID(ctx, tx, id)
		return err
	})
	return k, err
}

// keyOfID reads a key in a view: of two moments, one before and one after a key was made, the log would know a key that is not there.
func (s *Store) keyOfID(ctx context.Context, tx *sql.Tx, id string) (keys.Key, error) {
	// Both statements run whether or not there is a row: how long it takes tells nothing (C22).
	var logged int64
	if err := tx.QueryRowContext(ctx, latestOfKeyID, anyRevision, id).Scan(&logged); err != nil {
		return keys.Key{}, err
	}
	k, err := s.oneKey(ctx, tx, keyByID, id)
	if errors.Is(err, keys.ErrNotFound) {
		err = s.absentKey(id, logged)
	}
	return k, err
}

// KeyAsOf implements keys.Store.
func (s *Store) KeyAsOf(ctx context.Context, id string) (k keys.Key, c keys.Commit, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if k, err = s.keyOfID(ctx, tx, id); err != nil {
			return err
		}
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		if c.Mark, err = s.mark(ctx, tx, st); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, readTimeline).Scan(&c.Timeline)
	})
	return k, c, err
}

// noSuchKey tells a key that never was, ErrNotFound, from one that the audit log knows up to a bound and somebody
// removed, ErrTampered: "no such key" would be believed.
func (s *Store) noSuchKey(ctx context.Context, q queries, bound int64, id string) error {
	var logged int64
	if err := q.QueryRowContext(ctx, latestOfKeyID, bound, id).Scan(&logged); err != nil {
		return err
	}
	return s.absentKey(id, logged)
}

// absentKey is noSuchKey once it is known what the audit log has of the key.
func (s *Store) absentKey(id string, logged int64) error {
	if logged == 0 {
		return keys.ErrNotFound
	}
	s.tampered("keys", id, logged, errRemoved)
	return fmt.Errorf("%w: key %s was removed", keys.ErrTampered, id)
}

// oneKey runs a statement that selects one key.
func (s *Store) oneKey(ctx context.Context, q queries, statement string, argument any) (keys.Key, error) {
	var logged int64
	r, err := scanKey(q.QueryRowContext(ctx, statement, anyRevision, argument), &logged)
	if errors.Is(err, sql.ErrNoRows) {
		return keys.Key{}, keys.ErrNotFound
	}
	if err != nil {
		return keys.Key{}, err
	}
	return s.keyFromRow(&r, r.Revision == logged)
}

// Keys implements keys.Store.
func (s *Store) Keys(ctx context.Context, query keys.KeyQuery) ([]keys.UsedKey, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	before, beforeID, limit := int64(math.MaxInt64), "", int64(math.MaxInt64)
	if query.Before != nil {
		before, beforeID = keys.Micros(query.Before.CreatedAt), query.Before.ID
	}
	if query.Limit > 0 {
		limit = int64(query.Limit)
	}
	var found []keys.UsedKey
	rows, err := s.reader.QueryContext(ctx, keysOf, anyRevision, query.OrganizationID, string(query.Environment), before, beforeID, limit)
	err = each(rows, err, func(rows *sql.Rows) error {
		var logged, used int64
		r, err := scanKey(rows, &logged, &used)
		if err != nil {
			return err
		}
		k, err := s.keyFromRow(&r, r.Revision == logged)
		found = append(found, keys.UsedKey{Key: k, LastUsedAt: keys.FromMicros(used)})
		return err
	})
	return found, err
}

// Organization implements keys.Store.
func (s *Store) Organization(ctx context.Context, id string) (keys.Organization, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.organization(ctx, s.reader, anyRevision, id, sameRevision)
}

func sameRevision(revision, logged int64) bool { return revision == logged }

// organization reads one organization, taking audit entries up to a bound into account.
func (s *Store) organization(ctx context.Context, q queries, bound int64, id string, latest func(revision, logged int64) bool) (keys.Organization, error) {
	var logged int64
	r, err := scanOrganization(q.QueryRowContext(ctx, organizationByID, bound, id), &logged)
	if err != nil {
		return keys.Organization{}, err
	}
	return s.organizationOf(&r, logged, latest)
}

// organizationOf says what a row of organizationByID stands for.
func (s *Store) organizationOf(
	r *organizationRow,
	logged int64,
	latest func(revision, logged int64) bool,
) (keys.Organization, error) {
	switch {
	case r.Revision != 0:
		return s.organizationFromRow(r, latest(r.Revision, logged))
	case logged != 0:
		return s.removedOrganization(r.ID, logged), nil
	}
	return keys.Unregistered(r.ID), nil
}

// Organizations implements keys.Store.
func (s *Store) Organizations(ctx context.Context, after string, limit int) ([]keys.Organization, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.organizations(ctx, s.reader, organizationsFrom, after, int64(limit))
}

// organizations runs a statement that selects organizations.
func (s *Store) organizations(ctx context.Context, q queries, statement string, arguments ...any) (found []keys.Organization, err error) {
	rows, err := q.QueryContext(ctx, statement, append([]any{anyRevision}, arguments...)...)
	err = each(rows, err, func(row *sql.Rows) error { return s.organizationInto(&found)(row) })
	return found, err
}

// organizationInto adds a row's organization to found. The revision of one that is not authentic
// is the one the audit log has.
func (s *Store) organizationInto(found *[]keys.Organization) func(scanner) error {
	return func(row scanner) error {
		var logged int64
		r, err := scanOrganization(row, &logged)
		if err != nil {
			return err
		}
		o, err := s.organizationFromRow(&r, r.Revision == logged)
		if !o.Genuine {
			o.Revision = logged
		}
		*found = append(*found, o)
		return err
	}
}

// someKeys runs a statement that selects keys.
func (s *Store) someKeys(ctx context.Context, q queries, statement string, arguments ...any) (found []keys.Key, err error) {
	rows, err := q.QueryContext(ctx, statement, append([]any{anyRevision}, arguments...)...)
	err = each(rows, err, func(row *sql.Rows) error { return s.keyInto(&found)(row) })
	return found, err
}

// keyInto is organizationInto for keys.
func (s *Store) keyInto(found *[]keys.Key) func(scanner) error {
	return func(row scanner) error {
		var logged int64
		r, err := scanKey(row, &logged)
		if err != nil {
			return err
		}
		k, err := s.keyFromRow(&r, r.Revision == logged)
		if !k.Genuine {
			k.Revision = logged
		}
		*found = append(*found, k)
		return err
	}
}

// Replay implements keys.Store.
func (s *Store) Replay(ctx context.Context, handles []keys.Handle) (keys.Replay, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return firstReplay(ctx, s.reader, handles)
}

func firstReplay(ctx context.Context, q queries, handles []keys.Handle) (keys.Replay, error) {
	for _, h := range handles {
		r := keys.Replay{Handle: h}
		var fingerprint []byte
		var created int64
		err := q.QueryRowContext(ctx, replayByHandle, h[:]).
			Scan(&fingerprint, &r.KeyID, &r.MasterKeyID, &r.Salt, &r.Sealed, &created)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return keys.Replay{}, err
		}
		copy(r.Fingerprint[:], fingerprint)
		r.CreatedAt = keys.FromMicros(created)
		if len(r.Sealed) == 0 {
			r.Sealed = nil
		}
		return r, nil
	}
	return keys.Replay{}, keys.ErrNotFound
}
