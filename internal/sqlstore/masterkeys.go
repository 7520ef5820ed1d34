package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// ErrOtherMasterKey means that this program has another master key under an id than the database,
// or than another node. Nothing it would write could be read by the others, and nothing of theirs
// by it; only a person can say which is right.
var ErrOtherMasterKey = errors.New("sqlstore: another master key under the same id")

// askedFor is how long a rotation's request for a master key counts.
const askedFor = 10 * time.Minute

// advertised is what this process last said of its keys, in the row of its node.
type advertised struct {
	mu    sync.Mutex
	node  *keys.Node // nil = not registered; guarded by mu, as all below
	keyID string     // the row is authenticated under it
	going []string   // ids of keys that are about to be dropped, and so are not claimed any more
}

func (a *advertised) setGoing(ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.going = ids
}

// claimed returns those of the ring's keys that the node's row says it has. a.mu is held.
func (a *advertised) claimed(ring *seal.Ring) []seal.KeyFingerprint {
	return slices.DeleteFunc(
		ring.Fingerprints(),
		func(k seal.KeyFingerprint) bool { return slices.Contains(a.going, k.ID) },
	)
}

// keysColumn is how a node's keys lie in its row. Ids and fingerprints have neither spaces nor
// colons.
func keysColumn(all []seal.KeyFingerprint) string {
	var b strings.Builder
	b.WriteByte(' ')
	for _, k := range all {
		b.WriteString(k.ID + ":" + k.Fingerprint + " ")
	}
	return b.String()
}

func keysOfColumn(column string) (all []seal.KeyFingerprint) {
	for _, field := range strings.Fields(column) {
		id, fingerprint, _ := strings.Cut(field, ":")
		all = append(all, seal.KeyFingerprint{ID: id, Fingerprint: fingerprint})
	}
	return all
}

// columnHas is what renewNode asks of the column.
func columnHas(column, id string) bool { return strings.Contains(column, " "+id+":") }

// sealNode adds to n what the store knows, and authenticates the whole under the database's master
// key. The lock of s.advertised is held.
func (s *Store) sealNode(ctx context.Context, n *keys.Node) (seal.Seal, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	m, err := scanMeta(s.lease.QueryRowContext(ctx, readMeta))
	if err != nil {
		return seal.Seal{}, err
	}
	signer, err := s.signer(m.keyID)
	if err != nil {
		return seal.Seal{}, err
	}
	n.DatabaseID, n.MasterKeys = m.databaseID, s.advertised.claimed(s.ring)
	return signer.SealRow(keys.KindNode, n.Sealed()), nil
}

// signer returns the signer of the database's master key.
func (s *Store) signer(id string) (seal.Signer, error) {
	signer, err := s.ring.Signer(id)
	if err != nil {
		err = fmt.Errorf(
			"sqlstore: the database is authenticated under a master key that is missing from this node's keys: %w",
			err,
		)
	}
	return signer, err
}

// Advertise writes into this node's row which master keys it has, if that or the database's master
// key has changed since. It is called when the source of the keys changed, and every few seconds.
func (s *Store) Advertise(ctx context.Context) error {
	s.advertised.mu.Lock()
	n, keyID, claimed := s.advertised.node, s.advertised.keyID, s.advertised.claimed(s.ring)
	s.advertised.mu.Unlock()
	if n == nil {
		return nil // Register will
	}
	signing, _, err := s.MasterKey(ctx)
	if err != nil || signing == keyID && slices.Equal(n.MasterKeys, claimed) {
		return err
	}
	return s.advertise(ctx)
}

func (s *Store) advertise(ctx context.Context) error {
	s.advertised.mu.Lock()
	defer s.advertised.mu.Unlock()
	if s.advertised.node == nil {
		return nil
	}
	n := *s.advertised.node
	sl, err := s.sealNode(ctx, &n)
	if err != nil {
		return err
	}
	if _, err := s.write(ctx, s.lease, advertiseKeys, n.ID, keysColumn(n.MasterKeys), sl.KeyID, sl.MAC); err != nil {
		return err
	}
	s.advertised.node, s.advertised.keyID = &n, sl.KeyID
	return nil
}

// MasterKey returns the id of the key that the database is authenticated under, and the id of the
// one that a rotation waits for the nodes to have, if there is one.
func (s *Store) MasterKey(ctx context.Context) (signing, asked string, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	now, err := s.Now(ctx)
	if err != nil {
		return "", "", err
	}
	err = noMeta(
		s.reader.QueryRowContext(ctx, masterKeyNow, keys.Micros(now.Add(-askedFor))).
			Scan(&signing, &asked),
	)
	if asked == signing {
		asked = ""
	}
	return signing, asked, err
}

// DatabaseID returns the id of the database, "" before it was read.
func (s *Store) DatabaseID() string {
	if id := s.databaseID.Load(); id != nil {
		return *id
	}
	return ""
}

// Signer returns the id of the database and the signer of the master key that it is authenticated
// under.
func (s *Store) Signer(ctx context.Context) (databaseID string, signer seal.Signer, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	m, err := scanMeta(s.reader.QueryRowContext(ctx, readMeta))
	if err == nil {
		signer, err = s.signer(m.keyID)
	}
	return m.databaseID, signer, err
}

// AskForMasterKey has the nodes read their keys again until they have that one.
func (s *Store) AskForMasterKey(ctx context.Context, id string) error {
	now, err := s.Now(ctx)
	if err == nil {
		_, err = s.write(
			ctx,
			s.writer,
			askForMasterKey,
			id,
			s.ring.FingerprintOf(id),
			keys.Micros(now),
		)
	}
	return err
}

// MasterKeysInUse returns the ids of the keys without which something in the database cannot be
// read. It reads whole tables.
func (s *Store) MasterKeysInUse(ctx context.Context) (ids []string, err error) {
	err = s.viewAll(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		ids = append(ids, st.weightKeyID)
		statements := []string{keysInUse}
		if s.nodes == nil {
			statements = append(statements, nodeKeysInUse)
		}
		for _, statement := range statements {
			rows, err := tx.QueryContext(ctx, statement)
			err = each(rows, err, func(rows *sql.Rows) error {
				var id string
				err := rows.Scan(&id)
				ids = append(ids, id)
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// ReplaceMasterKeys gives the ring the keys of next, unless the database needs a key that next
// lacks, or another node has another key under an id of next's. After an error the ring is as it
// was.
//
// A key is dropped in this order: the node's row no longer claims it, nothing in the database needs
// it, it goes. A rotation that switches to it meanwhile either does not find it claimed, or is seen
// in the second step.
func (s *Store) ReplaceMasterKeys(ctx context.Context, next *seal.Ring) (changed bool, err error) {
	s.replacing.Lock()
	defer s.replacing.Unlock()
	if err := s.CompareKeys(ctx, next); errors.Is(err, ErrOtherMasterKey) {
		return false, err // another error may be that a key is missing, which is why this is called
	}
	gone := s.ring.Missing(next)
	needed, err := s.neededOf(ctx, gone)
	if err == nil && len(gone) > 0 && len(needed) == 0 {
		s.advertised.setGoing(gone)
		if err = s.Advertise(ctx); err == nil {
			needed, err = s.neededOf(ctx, gone)
		}
	}
	if err == nil {
		changed, err = s.ring.Replace(next, needed...)
	}
	s.advertised.setGoing(nil)
	if later := s.Advertise(ctx); later != nil {
		s.log.Warn(
			"the node's row does not say which master keys it has; trying again",
			"error",
			later,
		)
	}
	return changed, err
}

// neededOf returns those of ids without which something in the database cannot be read.
func (s *Store) neededOf(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	used, err := s.MasterKeysInUse(ctx)
	return slices.DeleteFunc(
		slices.Clone(ids),
		func(id string) bool { return !slices.Contains(used, id) },
	), err
}

// masterKeyRow is a row of that table.
type masterKeyRow struct {
	fingerprint string
	since       int64
}

func (s *Store) masterKeyRows(ctx context.Context, q queries) (map[string]masterKeyRow, error) {
	all := make(map[string]masterKeyRow)
	rows, err := q.QueryContext(ctx, everyMasterKey)
	err = each(rows, err, func(rows *sql.Rows) error {
		var id string
		var r masterKeyRow
		err := rows.Scan(&id, &r.fingerprint, &r.since)
		all[id] = r
		return err
	})
	return all, err
}

// checkSigningKey tells another key under the id of the database's from a state that somebody
// forged: the fingerprint differs, and the state does not open.
func (s *Store) checkSigningKey(ctx context.Context) error {
	m, err := scanMeta(s.reader.QueryRowContext(ctx, readMeta))
	if errors.Is(err, keys.ErrTampered) {
		return nil // a new database, or one without its row; see begin
	}
	if err != nil {
		return err
	}
	if _, err := s.signer(m.keyID); err != nil {
		return err
	}
	known, err := s.masterKeyRows(ctx, s.reader)
	if err != nil {
		return err
	}
	fingerprint := known[m.keyID].fingerprint
	if fingerprint == "" || fingerprint == s.ring.FingerprintOf(m.keyID) {
		return nil
	}
	if _, err := s.ring.OpenState(m.keyID, m.box, stateContext(m.databaseID, m.revision)); err == nil {
		return nil
	}
	return s.otherKey(m.keyID, "this database is authenticated under")
}

func (s *Store) otherKey(id, where string) error {
	return fmt.Errorf(
		"%w: the master key %q of this node is not the one that %s by that id; give it the right key, or a new key a new id",
		ErrOtherMasterKey,
		id,
		where,
	)
}

// checkMasterKeys compares this node's keys with those the database knows by fingerprint, and notes
// the one it is authenticated under. It returns ErrOtherMasterKey.
func (s *Store) checkMasterKeys(ctx context.Context) error {
	var m meta
	var known map[string]masterKeyRow
	err := s.view(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
		if m, err = scanMeta(tx.QueryRowContext(ctx, readMeta)); err == nil {
			known, err = s.masterKeyRows(ctx, tx)
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := s.ring.OpenState(m.keyID, m.box, stateContext(m.databaseID, m.revision)); err != nil {
		return nil // nothing is known of a database whose state was forged; begin has told of it
	}
	for id, row := range known {
		if own := s.ring.FingerprintOf(id); own != "" && own != row.fingerprint && row.since > 0 &&
			id != m.keyID {
			return s.otherKey(id, "this database knows")
		}
	}
	if err := s.CompareKeys(ctx, s.ring); err != nil {
		return err
	}
	own := s.ring.FingerprintOf(m.keyID)
	if row := known[m.keyID]; row.fingerprint == own && row.since > 0 {
		return nil
	}
	now, err := s.Now(ctx)
	if err == nil {
		_, err = s.write(ctx, s.writer, putSigningKey, m.keyID, own, max(keys.Micros(now), 1))
	}
	return err
}

// CompareKeys returns ErrOtherMasterKey when a node that serves has another key under the id of one
// in ring.
func (s *Store) CompareKeys(ctx context.Context, ring *seal.Ring) error {
	if s.nodes != nil {
		return nil
	}
	nodes, _, err := s.Nodes(ctx)
	if err != nil {
		return err
	}
	for i := range nodes {
		n := &nodes[i]
		if !n.Genuine ||
			n.RenewedAgo > 2*n.Lease { // what a node that is gone had is nobody's any more
			continue
		}
		for _, k := range n.MasterKeys {
			if own := ring.FingerprintOf(k.ID); own != "" && own != k.Fingerprint {
				return s.otherKey(k.ID, fmt.Sprintf("node %s at %s has", n.ID, n.Address))
			}
		}
	}
	return nil
}

// errLacking undoes a switch that not every node could follow.
var errLacking = errors.New("sqlstore: a node lacks the master key")

// SwitchMasterKey makes id the key that the database is authenticated under, if every registered
// node's row says that it has it; otherwise it returns those that do not, and changes nothing. It
// is a write: once its commit is awaited, every node that serves has read the state under the new
// key, or was fenced. What was authenticated before stays as it is; see Reseal.
func (s *Store) SwitchMasterKey(
	ctx context.Context,
	id string,
	entry keys.AuditEntry,
) (commit keys.Commit, lacking []keys.ServingNode, err error) {
	next, err := s.ring.Signer(id)
	if err != nil {
		return keys.Commit{}, nil, err
	}
	commit, err = s.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		t := tx.(*writeTx)
		var moved [][]any
		if s.nodes == nil {
			rows, err := t.q.QueryContext(ctx, everyNode)
			err = each(rows, err, func(rows *sql.Rows) error {
				n, before, err := s.scanNode(rows)
				if err != nil {
					return err
				}
				if !s.canFollow(&n, id) {
					lacking = append(lacking, n)
				}
				moved = append(
					moved,
					[]any{n.ID, before.MAC, id, next.SealRow(keys.KindNode, n.Sealed()).MAC},
				)
				return nil
			})
			if err != nil {
				return err
			}
		}
		if len(lacking) > 0 {
			return errLacking
		}
		from := t.signer.KeyID()
		t.signer = next // what this transaction writes from here on, its state too
		t.later(putSigningKey, id, s.ring.FingerprintOf(id), max(keys.Micros(t.now), 1))
		for _, arguments := range moved {
			t.later(sealNode, arguments...) // so that no row of a node needs the old key
		}
		entry.Detail = fmt.Sprintf("from=%s to=%s", from, id)
		return t.Audit(ctx, entry)
	})
	if errors.Is(err, errLacking) {
		return keys.Commit{}, lacking, nil
	}
	return commit, nil, err
}

// canFollow reports whether a node that serves can read what is authenticated under a key of this
// node's.
func (s *Store) canFollow(n *keys.ServingNode, id string) bool {
	has, _ := n.HasMasterKey(id, s.ring.FingerprintOf(id))
	return n.Genuine && has
}

// NodesWithout returns the registered nodes that do not say they have a key of this node's.
func (s *Store) NodesWithout(
	ctx context.Context,
	id string,
) (lacking []keys.ServingNode, err error) {
	if s.nodes != nil {
		return nil, nil
	}
	nodes, _, err := s.Nodes(ctx)
	for i := range nodes {
		if !s.canFollow(&nodes[i], id) {
			lacking = append(lacking, nodes[i])
		}
	}
	return lacking, err
}
