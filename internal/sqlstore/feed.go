package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// Changes implements keys.Feed. A single write with more rows than limit is returned whole.
func (s *Store) Changes(ctx context.Context, after keys.Mark, limit int) (ch keys.Changes, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	limit = max(limit, 1)
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		if err := s.sameHistory(ctx, tx, after, st); err != nil {
			return err
		}
		if ch.Mark, err = s.mark(ctx, tx, st); err != nil {
			return err
		}
		// One more than asked for tells whether that was all.
		if ch.Keys, err = s.someKeys(ctx, tx, keysAfter, after.Revision, int64(limit)+1); err != nil {
			return err
		}
		if ch.Organizations, err = s.organizations(ctx, tx, organizationsAfter, after.Revision, int64(limit)+1); err != nil {
			return err
		}
		if len(ch.Keys)+len(ch.Organizations) <= limit {
			return nil
		}
		first, cut := lastWhole(ch, limit)
		if cut < first {
			ch.Mark = keys.Mark{Revision: first}
			if ch.Keys, err = s.someKeys(ctx, tx, keysOfWrite, first); err != nil {
				return err
			}
			ch.Organizations, err = s.organizations(ctx, tx, organizationsOfWrite, first)
			return err
		}
		ch.Mark = keys.Mark{Revision: cut} // a stop on the way: the next read is compared again
		ch.Keys = slices.DeleteFunc(ch.Keys, func(k keys.Key) bool { return k.Revision > cut })
		ch.Organizations = slices.DeleteFunc(ch.Organizations, func(o keys.Organization) bool { return o.Revision > cut })
		return nil
	})
	if err != nil {
		return keys.Changes{}, err
	}
	return ch, nil
}

// mark returns the point in history that st stands for. When somebody took the last entry away the history cannot be
// compared with it; VerifyAudit says so.
func (s *Store) mark(ctx context.Context, q queries, st state) (keys.Mark, error) {
	m := keys.Mark{Revision: st.revision, Sequence: st.sequence, Hash: st.hash}
	there, err := s.hasEntry(ctx, q, m)
	if err == nil && !there {
		m.Sequence, m.Hash = 0, [32]byte{}
	}
	return m, err
}

// sameHistory returns ErrDiverged unless after is a point in the history that st stands for.
func (s *Store) sameHistory(ctx context.Context, q queries, after keys.Mark, st state) error {
	if after.Revision > st.revision || after.Sequence > st.sequence {
		return keys.ErrDiverged
	}
	if after.Sequence == 0 {
		return nil
	}
	_, err := s.hasEntry(ctx, q, after)
	return err
}

// hasEntry reports whether the log has the mark's last entry, and returns ErrDiverged when it has another in its place.
func (s *Store) hasEntry(ctx context.Context, q queries, m keys.Mark) (bool, error) {
	var hash []byte
	err := q.QueryRowContext(ctx, entryHash, m.Sequence).Scan(&hash)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case string(hash) != string(m.Hash[:]):
		return false, keys.ErrDiverged
	}
	return true, nil
}

// lastWhole returns the first revision of more than limit changes, and the last one up to which
// at most limit rows lie; less than first when the first write alone has more.
func lastWhole(ch keys.Changes, limit int) (first, last int64) {
	var revisions []int64
	for i := range ch.Keys {
		revisions = append(revisions, ch.Keys[i].Revision)
	}
	for i := range ch.Organizations {
		revisions = append(revisions, ch.Organizations[i].Revision)
	}
	slices.Sort(revisions)
	// The limit+1 first of both lists together are all there are up to that revision, and
	// the write of the one too many is left out.
	return revisions[0], revisions[limit] - 1
}

// LookUp implements keys.Feed.
func (s *Store) LookUp(ctx context.Context, d token.Digest, connected string) (f keys.Found, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if f.Key, err = s.oneKey(ctx, tx, keyByDigest, d[:]); err != nil {
			return err
		}
		if f.Owner, err = s.organization(ctx, tx, anyRevision, f.Key.OrganizationID, sameRevision); err != nil {
			return err
		}
		if connected != "" {
			f.Connected, err = s.organization(ctx, tx, anyRevision, connected, sameRevision)
		}
		return err
	})
	if err != nil {
		return keys.Found{}, err
	}
	return f, nil
}

// RecordUses implements keys.Feed. Uses of keys that are not there are dropped.
func (s *Store) RecordUses(ctx context.Context, uses []keys.Use) error {
	last := make(map[string]int64, len(uses))
	for _, u := range uses {
		last[u.KeyID] = max(last[u.KeyID], keys.Micros(u.At))
	}
	rows := make([]keys.Use, 0, len(last))
	for id, at := range last {
		rows = append(rows, keys.Use{KeyID: id, At: keys.FromMicros(at)})
	}
	// In one order everywhere, so that two nodes never wait for each other.
	slices.SortFunc(rows, func(a, b keys.Use) int { return strings.Compare(a.KeyID, b.KeyID) })
	for batch := range slices.Chunk(rows, 1000) {
		if err := s.putUses(ctx, batch); err != nil {
			return fmt.Errorf("sqlstore: %w", err)
		}
	}
	return nil
}

func (s *Store) putUses(ctx context.Context, uses []keys.Use) error {
	arguments := make([][]any, len(uses))
	for i, u := range uses {
		arguments[i] = []any{keys.Micros(u.At), u.KeyID}
	}
	return s.transact(ctx, s.writer, func(ctx context.Context, tx *transaction) error {
		return tx.execMany(ctx, putUse, arguments)
	})
}

// Register implements keys.Feed.
func (s *Store) Register(ctx context.Context, n keys.Node) error {
	if s.nodes != nil {
		return s.nodes.register(n.ID)
	}
	_, err := s.write(ctx, s.lease, registerNode, n.ID, n.Address, n.Version, n.Lease.Microseconds(), keys.Micros(s.localTime()))
	return err
}

// Renew implements keys.Feed.
func (s *Store) Renew(ctx context.Context, nodeID string, applied keys.Mark) (keys.Renewal, error) {
	if s.nodes != nil {
		return s.nodes.renew(ctx, nodeID, applied, s.at)
	}
	changed, err := s.write(ctx, s.lease, renewNode, applied.Revision, keys.Micros(s.localTime()), nodeID, applied.Sequence, applied.Hash[:])
	if err != nil {
		return keys.Fenced, err
	}
	if changed > 0 {
		return keys.Renewed, nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var n int64
	if err := s.lease.QueryRowContext(ctx, countNode, nodeID).Scan(&n); err != nil {
		return keys.Fenced, err
	}
	if n == 0 {
		return keys.Fenced, nil
	}
	return keys.Lagging, nil
}

// at reports whether the database is at a mark.
func (s *Store) at(ctx context.Context, m keys.Mark) (bool, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var n int
	err := s.reader.QueryRowContext(ctx, atMark, m.Revision, m.Sequence, m.Hash[:]).Scan(&n)
	return n == 1, err
}

// localTime is this machine's, for what only a person reads.
func (s *Store) localTime() time.Time {
	if s.now != nil {
		return s.now()
	}
	return time.Now()
}

// Behind implements keys.Feed.
func (s *Store) Behind(ctx context.Context, revision int64) (n int, longest time.Duration, err error) {
	if s.nodes != nil {
		return s.nodes.behind(revision), 0, nil // the one node is the writer itself
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var lease, newest int64
	err = s.lease.QueryRowContext(ctx, countBehind, revision).Scan(&n, &lease, &newest)
	if err == nil && newest < revision {
		err = keys.ErrDiverged // the write is not here: an old primary, or a database put back
	}
	return n, time.Duration(lease) * time.Microsecond, err
}

// Fence implements keys.Feed.
func (s *Store) Fence(ctx context.Context, revision int64) (fenced []string, err error) {
	if s.nodes != nil {
		return s.nodes.fence(revision), nil
	}
	err = s.transact(ctx, s.lease, func(ctx context.Context, tx *transaction) error {
		rows, err := tx.QueryContext(ctx, fenceNodes, revision)
		return each(rows, err, func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			fenced = append(fenced, id)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(fenced)
	return fenced, nil
}

// Leave implements keys.Feed.
func (s *Store) Leave(ctx context.Context, nodeID string) error {
	if s.nodes != nil {
		s.nodes.leave(nodeID)
		return nil
	}
	_, err := s.write(ctx, s.lease, deleteNode, nodeID)
	return err
}

// EraseKeptAnswers implements keys.Feed.
func (s *Store) EraseKeptAnswers(ctx context.Context, before time.Time) (int64, error) {
	if _, err := s.write(ctx, s.writer, deleteTakes, keys.Micros(before)); err != nil {
		return 0, err
	}
	return s.write(ctx, s.writer, deleteReplays, keys.Micros(before))
}
