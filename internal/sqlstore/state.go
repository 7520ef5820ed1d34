package sqlstore

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// state is what the sealed box in meta says of the whole database.
type state struct {
	revision    int64
	weightKeyID string   // the master key the weight is made under
	weight      [32]byte // XOR over the weights of all key and organization rows
	sequence    int64    // of the last audit entry
	hash        [32]byte // of the last audit entry
}

// mark is the point in history that the state stands for.
func (st *state) mark() keys.Mark {
	return keys.Mark{Revision: st.revision, Sequence: st.sequence, Hash: st.hash}
}

// set is the set hash that the state authenticates.
func (st *state) set() keys.SetHash { return keys.SetHash{KeyID: st.weightKeyID, Sum: st.weight} }

const stateVersion = 1

func (st *state) encode() []byte {
	b := []byte{stateVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(st.revision))
	b = binary.BigEndian.AppendUint64(b, uint64(st.sequence))
	b = append(b, st.hash[:]...)
	b = append(b, st.weight[:]...)
	return append(b, st.weightKeyID...)
}

func decodeState(b []byte) (st state, ok bool) {
	const fixed = 1 + 8 + 8 + 32 + 32
	if len(b) < fixed || b[0] != stateVersion {
		return state{}, false
	}
	st.revision = int64(binary.BigEndian.Uint64(b[1:]))
	st.sequence = int64(binary.BigEndian.Uint64(b[9:]))
	copy(st.hash[:], b[17:])
	copy(st.weight[:], b[49:])
	st.weightKeyID = string(b[fixed:])
	return st, true
}

// addRow puts a row into the weight, or takes it out: XOR is its own inverse.
func (st *state) addRow(ring *seal.Ring, kind, id string, revision int64) error {
	w, err := ring.Weight(st.weightKeyID, kind, id, revision)
	if err != nil {
		return fmt.Errorf("sqlstore: the weight of the rows is made under a master key that is missing from the key file: %w", err)
	}
	subtle.XORBytes(st.weight[:], st.weight[:], w[:])
	return nil
}

// meta is the one row of that table.
type meta struct {
	revision   int64
	databaseID string
	keyID      string
	box        []byte
}

func scanMeta(row *sql.Row) (m meta, err error) {
	err = noMeta(row.Scan(m.columns()...))
	return m, err
}

func (m *meta) columns() []any { return []any{&m.revision, &m.databaseID, &m.keyID, &m.box} }

// noMeta says what it means that the meta row was not found.
func noMeta(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("%w: the meta row is gone", keys.ErrTampered)
	}
	return err
}

// stateContext is what a box is bound to besides its content.
func stateContext(databaseID string, revision int64) []byte {
	return binary.BigEndian.AppendUint64([]byte(databaseID), uint64(revision))
}

// openState opens the box of m, which was sealed at revision.
func (s *Store) openState(m meta, revision int64) (state, error) {
	plain, err := s.ring.OpenState(m.keyID, m.box, stateContext(m.databaseID, revision))
	if errors.Is(err, seal.ErrUnknownKey) {
		return state{}, fmt.Errorf("sqlstore: the database is sealed under a master key that is missing from the key file: %w", err)
	}
	if err != nil {
		return state{}, s.badState(revision, "the sealed state does not open")
	}
	st, ok := decodeState(plain)
	if !ok || st.revision != revision {
		return state{}, s.badState(revision, "the sealed state is of another revision")
	}
	if known := s.databaseID.Load(); known == nil || *known != m.databaseID {
		s.databaseID.Store(&m.databaseID)
	}
	return st, nil
}

func (s *Store) badState(revision int64, why string) error {
	err := fmt.Errorf("%w: %s", keys.ErrTampered, why)
	s.tampered("meta", "", revision, err)
	return err
}

// CheckState returns ErrTampered when the sealed state does not open or the audit log does not end where it says:
// then no write is accepted any more. It changes nothing.
func (s *Store) CheckState(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		var now, timeline, sequence int64
		var hash []byte
		if err := tx.QueryRowContext(ctx, readHead).Scan(&now, &timeline, &sequence, &hash); err != nil {
			return err
		}
		return s.checkHead(st, sequence, hash)
	})
}

// checkHead holds the audit log's last entry against the state.
func (s *Store) checkHead(st state, sequence int64, hash []byte) error {
	if sequence != st.sequence || (sequence > 0 && string(hash) != string(st.hash[:])) {
		return s.badState(st.revision, "the audit log does not end where the sealed state says")
	}
	return nil
}

// currentState reads the revision and the state that goes with it.
func (s *Store) currentState(ctx context.Context, q queries) (state, error) {
	m, err := scanMeta(q.QueryRowContext(ctx, readMeta))
	if err != nil {
		return state{}, err
	}
	return s.openState(m, m.revision)
}

// begin writes the meta row of a new database. It refuses a database whose rows are there without
// it, or whose master key is missing; one whose state does not open can still be looked
// at, but neither written nor served from.
func (s *Store) begin(ctx context.Context) error {
	if err := s.checkSigningKey(ctx); err != nil {
		return err
	}
	_, err := s.currentState(ctx, s.reader)
	if err == nil || errors.Is(err, seal.ErrUnknownKey) {
		return err
	}
	var rows int64
	known := s.reader.QueryRowContext(ctx, `SELECT count(*) FROM meta`).Scan(&rows)
	if known != nil {
		return known
	}
	if rows > 0 {
		if errors.Is(err, keys.ErrTampered) {
			return nil // told; see currentState
		}
		return err
	}

	signer, err := s.ring.Signer(
		s.ring.Wanted(),
	) // the one time that the order of the source decides
	if err != nil {
		return err
	}
	fresh := state{weightKeyID: signer.KeyID()}
	databaseID := uuid.NewString()
	keyID, box := signer.SealState(fresh.encode(), stateContext(databaseID, 0))
	return s.transact(ctx, s.writer, nil, func(ctx context.Context, tx *transaction) error {
		result, err := tx.ExecContext(ctx, insertMeta, databaseID, keyID, box)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return err // another process began it first
		}
		// No row can be written without the meta row, so these were here before it went.
		if err := tx.QueryRowContext(ctx, anyRow).Scan(&rows); err != nil {
			return err
		}
		if rows > 0 {
			return fmt.Errorf("%w: there are rows but no meta row; restore the database from a backup", keys.ErrTampered)
		}
		return nil
	})
}
