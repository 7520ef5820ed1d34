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
)

// Changes implements keys.Feed. A single write with more rows than limit is returned whole.
//
// It is one consistent read, since memory is compared with the set hash of exactly that moment.
// Every node does this for every write, so on PostgreSQL the transaction is one trip to the server.
func (s *Store) Changes(ctx context.Context, after keys.Mark, limit int) (ch keys.Changes, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	limit = max(limit, 1)
	var m meta
	var there, last []byte
	var sequence int64
	// One more than asked for tells whether that was all.
	err = s.readTogether(ctx,
		call{statement: news, arguments: []any{after.Sequence}, into: append(m.columns(), &there, &sequence, &last)},
		call{statement: keysAfter, arguments: []any{anyRevision, after.Revision, int64(limit) + 1}, each: s.keyInto(&ch.Keys)},
		call{statement: organizationsAfter, arguments: []any{anyRevision, after.Revision, int64(limit) + 1}, each: s.organizationInto(&ch.Organizations)})
	if err = noMeta(err); err != nil {
		return keys.Changes{}, err
	}
	st, err := s.openState(m, m.revision)
	if err != nil {
		return keys.Changes{}, err
	}
	if after.Revision > st.revision || after.Sequence > st.sequence || there != nil && string(there) != string(after.Hash[:]) {
		return keys.Changes{}, keys.ErrDiverged
	}
	if err := s.checkHead(st, sequence, last); err != nil {
		return keys.Changes{}, err
	}
	ch.Mark, ch.Set = st.mark(), st.set()
	if len(ch.Keys)+len(ch.Organizations) <= limit {
		return ch, nil
	}
	first, cut := lastWhole(ch, limit)
	// A stop on the way: the next read is compared again.
	ch.Mark, ch.Set = keys.Mark{Revision: max(first, cut)}, keys.SetHash{}
	if cut < first {
		if ch.Keys, err = s.someKeys(ctx, s.lease, keysOfWrite, first); err != nil {
			return keys.Changes{}, err
		}
		ch.Organizations, err = s.organizations(ctx, s.lease, organizationsOfWrite, first)
		return ch, err
	}
	ch.Keys = slices.DeleteFunc(ch.Keys, func(k keys.Key) bool { return k.Revision > cut })
	ch.Organizations = slices.DeleteFunc(ch.Organizations, func(o keys.Organization) bool { return o.Revision > cut })
	return ch, nil
}

// readTogether runs reads in one transaction: everything they read stands for one moment.
func (s *Store) readTogether(ctx context.Context, calls ...call) error {
	// The renewal comes next, on the same connection: its server process is awake.
	conn, err := s.lease.Conn(ctx)
	if err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	defer conn.Close()
	if s.name == SQLite {
		return s.viewOn(ctx, conn, func(ctx context.Context, tx *sql.Tx) error { return together(ctx, tx, conn, calls...) })
	}
	tx := &transaction{queries: conn, conn: conn}
	defer tx.rollBack(ctx)
	_, err = pipeline(ctx, conn, slices.Concat([]call{{statement: beginRead}}, calls, []call{{statement: commitTx}}))
	return err
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

// SetElement implements keys.Feed.
func (s *Store) SetElement(keyID, kind, id string, revision int64) ([32]byte, error) {
	return s.ring.Weight(keyID, kind, id, revision)
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
	return s.transact(ctx, s.writer, nil, func(ctx context.Context, tx *transaction) error {
		return tx.execMany(ctx, putUse, arguments)
	})
}

// Register implements keys.Feed.
func (s *Store) Register(ctx context.Context, n keys.Node) error {
	if s.nodes != nil {
		return s.nodes.register(n) // in this process there is nobody to tell of its keys
	}
	s.advertised.mu.Lock()
	defer s.advertised.mu.Unlock()
	sl, err := s.sealNode(ctx, &n)
	if err != nil {
		return err
	}
	added, err := s.write(
		ctx,
		s.lease,
		registerNode,
		n.ID,
		n.Address,
		n.Version,
		keys.LeaseProtocol,
		n.Lease.Microseconds(),
		sl.KeyID,
		sl.MAC,
		keysColumn(n.MasterKeys),
	)
	switch {
	case err != nil:
		return err
	case added == 0:
		return keys.ErrOutdated
	}
	s.advertised.node, s.advertised.keyID = &n, sl.KeyID
	return nil
}

// noRow is what nodeState says of a node without a row; one that has acknowledged nothing is at -1.
const noRow = -2

// errAhead is a node's row that says more than the database has.
var errAhead = errors.New("the row acknowledges writes that are not in the database")

// Renew implements keys.Feed.
func (s *Store) Renew(ctx context.Context, nodeID string, applied keys.Mark) (r keys.Renewal, err error) {
	if s.nodes != nil {
		r.Settled = true
		r.Outcome, err = s.nodes.renew(ctx, nodeID, applied, s.at)
		return r, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var at, settled int64
	renewed, err := s.writeReturning(ctx, s.lease, []any{&at, &r.Timeline, &settled}, renewNode, applied.Revision, nodeID, applied.Sequence, applied.Hash[:], keys.LeaseProtocol)
	if err != nil {
		return keys.Renewal{Outcome: keys.Fenced}, err
	}
	if !renewed {
		var acknowledged, revision, protocol int64
		var has, signing string
		if err := s.lease.QueryRowContext(ctx, nodeState, nodeID).
			Scan(&acknowledged, &revision, &protocol, &settled, &r.Timeline, &has, &signing); err != nil {
			return keys.Renewal{Outcome: keys.Fenced}, err
		}
		if acknowledged != noRow && !columnHas(has, signing) {
			// No lease for a node that says it lacks the database's key. By now it may have it.
			if err := s.advertise(ctx); err != nil {
				return keys.Renewal{Outcome: keys.Fenced}, err
			}
		}
		switch {
		case protocol > keys.LeaseProtocol:
			return keys.Renewal{Outcome: keys.Fenced}, keys.ErrOutdated
		case acknowledged > revision:
			// No node acknowledges what is not there. The row would never be renewed again, nor fenced: give it up.
			s.tampered("serving_nodes", nodeID, acknowledged, errAhead)
			if _, err := s.write(ctx, s.lease, deleteNode, nodeID); err != nil {
				return keys.Renewal{Outcome: keys.Fenced}, err
			}
			r.Outcome = keys.Fenced
		case acknowledged == noRow:
			r.Outcome = keys.Fenced
		default:
			r.Outcome = keys.Lagging
		}
	}
	r.Settled, r.At = settled == r.Timeline, keys.FromMicros(at)
	return r, nil
}

// at reports whether the database is at a mark.
func (s *Store) at(ctx context.Context, m keys.Mark) (bool, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var n int
	err := s.lease.QueryRowContext(ctx, atMark, m.Revision, m.Sequence, m.Hash[:]).Scan(&n)
	return n == 1, err
}

// Standing implements keys.Feed.
func (s *Store) Standing(ctx context.Context, nodeID string, c keys.Commit) (st keys.Standing, err error) {
	if s.nodes != nil {
		return s.nodes.standing(nodeID, c.Revision), nil // the writer is in the same process: there is no other history
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var longest, settled int64
	var has bool
	err = s.barrier.QueryRowContext(ctx, standing, c.Revision, nodeID, c.Sequence, c.Hash[:]).
		Scan(&st.Behind, &longest, &st.Own, &st.Timeline, &settled, &has)
	if err == nil && !has {
		err = keys.ErrDiverged // an old primary, or a database put back
	}
	st.Longest, st.Settled = time.Duration(longest)*time.Microsecond, settled == st.Timeline
	return st, err
}

// Fence implements keys.Feed.
func (s *Store) Fence(ctx context.Context, c keys.Commit) (fenced []string, err error) {
	if s.nodes != nil {
		return s.nodes.fence(c.Revision), nil
	}
	err = s.transact(ctx, s.barrier, nil, func(ctx context.Context, tx *transaction) error {
		var has bool
		if err := tx.QueryRowContext(ctx, hasWrite, c.Revision, c.Sequence, c.Hash[:]).Scan(&has); err != nil {
			return err
		}
		if !has {
			return keys.ErrDiverged
		}
		rows, err := tx.QueryContext(ctx, fenceNodes, c.Revision)
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

// Settle implements keys.Feed.
func (s *Store) Settle(ctx context.Context, timeline int64) error {
	if s.nodes != nil {
		return nil
	}
	_, err := s.write(ctx, s.barrier, settleLineage, timeline)
	return err
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
