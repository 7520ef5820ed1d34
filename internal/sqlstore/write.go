package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// Write implements keys.Store.
func (s *Store) Write(ctx context.Context, fn func(ctx context.Context, tx keys.Tx) error) (commit keys.Commit, err error) {
	err = s.transact(ctx, s.writer, func(ctx context.Context, q *transaction) error {
		t, err := s.lock(ctx, q, bumpMeta)
		if err != nil {
			return err
		}
		if err := fn(ctx, t); err != nil {
			return err
		}
		commit = keys.Commit{Mark: t.state.mark(), Timeline: t.timeline}
		return t.finish(ctx)
	})
	if err != nil {
		return keys.Commit{}, err
	}
	return commit, nil
}

// Record implements keys.Store.
func (s *Store) Record(ctx context.Context, e keys.AuditEntry) error {
	return s.transact(ctx, s.writer, func(ctx context.Context, q *transaction) error {
		t, err := s.lock(ctx, q, lockMeta)
		if err != nil {
			return err
		}
		if e.Revision != 0 {
			return errors.New("sqlstore: an entry outside a write must have revision 0")
		}
		if err := t.Audit(ctx, e); err != nil {
			return err
		}
		return t.finish(ctx)
	})
}

// writeTx is one write transaction. It implements keys.Tx.
type writeTx struct {
	s     *Store
	q     *transaction
	now   time.Time
	meta  meta
	state state // as finish will seal it

	timeline int64 // of the server this transaction is on

	pending []call          // statements whose answers nobody waits for; a read of their rows, and the end, sends them first
	written map[target]bool // rows written so far
	audited map[target]bool // rows that have an entry of this write
	failed  error           // what keeps this transaction from committing, whatever fn makes of it
}

// target is a row of the keys or the organizations table.
type target struct{ kind, id string }

// kindOf tells which table an entry's target is in. An organization may be named like a key.
func kindOf(a keys.Action) string {
	if a == keys.ActPutOrganization {
		return keys.KindOrganization
	}
	return keys.KindKey
}

// lock takes the meta row's lock by statement, bumpMeta or lockMeta, and checks that what the
// transaction is about to build on is what the last one left.
func (s *Store) lock(ctx context.Context, q *transaction, statement string) (*writeTx, error) {
	var m meta
	var now, timeline, sequence int64
	var hash []byte
	err := q.together(ctx,
		call{statement: statement, into: m.columns()},
		call{statement: readHead, into: []any{&now, &timeline, &sequence, &hash}})
	if err = noMeta(err); err != nil {
		return nil, err
	}
	before := m.revision
	if statement == bumpMeta {
		before--
	}
	st, err := s.openState(m, before)
	if err != nil {
		return nil, err
	}
	if err := s.checkHead(st, sequence, hash); err != nil {
		return nil, err
	}
	t := &writeTx{
		s: s, q: q, now: keys.FromMicros(now), timeline: timeline, meta: m, state: st,
		written: make(map[target]bool), audited: make(map[target]bool),
	}
	if s.now != nil {
		t.now = wholeMicros(s.now())
	}
	t.state.revision = m.revision
	return t, nil
}

// finish seals the new state.
func (t *writeTx) finish(ctx context.Context) error {
	if t.failed != nil {
		return t.failed
	}
	for row := range t.written {
		if !t.audited[row] {
			return fmt.Errorf("sqlstore: a %s row was written without an audit entry", row.kind)
		}
	}
	keyID, box := t.s.ring.SealState(t.state.encode(), stateContext(t.meta.databaseID, t.state.revision))
	t.later(writeState, keyID, box)
	return t.send(ctx)
}

// later has a statement sent with the next one that is waited for.
func (t *writeTx) later(statement string, arguments ...any) {
	t.pending = append(t.pending, call{statement: statement, arguments: arguments})
}

// send sends what is pending.
func (t *writeTx) send(ctx context.Context) error {
	if len(t.pending) == 0 {
		return nil
	}
	calls := t.pending
	t.pending = nil
	return t.fail(t.q.together(ctx, calls...))
}

// asked returns the transaction for a read of what may be pending.
func (t *writeTx) asked(ctx context.Context) (queries, error) { return t.q, t.send(ctx) }

// fail keeps the transaction from committing: PostgreSQL has given it up, and SQLite must
// not go on where PostgreSQL does not.
func (t *writeTx) fail(err error) error {
	if err != nil && t.failed == nil {
		t.failed = err
	}
	return err
}

// failWrite is fail for a statement that a unique index may have refused.
func (t *writeTx) failWrite(err error) error {
	if err != nil && t.s.taken(err) {
		err = keys.ErrTaken
	}
	return t.fail(err)
}

func (t *writeTx) Revision() int64 { return t.state.revision }
func (t *writeTx) Now() time.Time  { return t.now }

// earlier bounds the audit log to what was there before this write: its own entries may come before
// or after the rows they tell of.
func (t *writeTx) earlier() int64 { return t.state.revision - 1 }

// latest reports whether a row is of the revision it must have, given what the log had before
// this write.
func (t *writeTx) latest(row target, revision, logged int64) bool {
	if t.written[row] {
		logged = t.state.revision
	}
	return revision == logged
}

func (t *writeTx) key(r *keyRow, logged int64) keys.Key {
	return t.s.keyFromRow(r, t.latest(target{keys.KindKey, r.ID}, r.Revision, logged))
}

func (t *writeTx) Key(ctx context.Context, id string) (keys.Key, error) {
	q, err := t.asked(ctx)
	if err != nil {
		return keys.Key{}, err
	}
	var logged int64
	r, err := scanKey(q.QueryRowContext(ctx, keyByID, t.earlier(), id), &logged)
	if errors.Is(err, sql.ErrNoRows) {
		err = t.s.noSuchKey(ctx, t.q, t.earlier(), id)
		if !errors.Is(err, keys.ErrNotFound) {
			t.fail(err)
		}
		return keys.Key{}, err
	}
	if err != nil {
		return keys.Key{}, t.fail(err)
	}
	return t.key(&r, logged), nil
}

func (t *writeTx) KeysIn(ctx context.Context, organizationID string, states ...keys.State) ([]keys.Key, error) {
	var in [4]string
	if len(states) > len(in) {
		return nil, t.fail(errors.New("sqlstore: more states than there are"))
	}
	for i, st := range states {
		in[i] = string(st)
	}
	q, err := t.asked(ctx)
	if err != nil {
		return nil, err
	}
	var found []keys.Key
	rows, err := q.QueryContext(ctx, keysInStates, t.earlier(), organizationID, in[0], in[1], in[2], in[3])
	err = each(rows, err, func(rows *sql.Rows) error {
		var logged int64
		r, err := scanKey(rows, &logged)
		if err == nil {
			found = append(found, t.key(&r, logged))
		}
		return err
	})
	return found, t.fail(err)
}

func (t *writeTx) InsertKey(ctx context.Context, k keys.Key) error {
	k.Revision = t.state.revision
	sl := t.s.ring.SealRow(keys.KindKey, k.Sealed())
	return t.putRow(ctx, target{keys.KindKey, k.ID}, insertKey, keyArguments(&k, sl))
}

func (t *writeTx) UpdateKey(ctx context.Context, k keys.Key) error {
	k.Revision = t.state.revision
	sl := t.s.ring.SealRow(keys.KindKey, k.Sealed())
	return t.putRow(ctx, target{keys.KindKey, k.ID}, updateKey, keyArguments(&k, sl))
}

func (t *writeTx) PutOrganization(ctx context.Context, o keys.Organization) error {
	o.Revision = t.state.revision
	sl := t.s.ring.SealRow(keys.KindOrganization, o.Sealed())
	return t.putRow(ctx, target{keys.KindOrganization, o.ID}, putOrganization, organizationArguments(&o, sl))
}

// putRow writes a row and moves the weight from its old revision to this one. The old one is
// what the audit log says, never what the row said: a row may have been planted, put back or
// removed by somebody else, and the weight knows only what Keyward wrote.
func (t *writeTx) putRow(ctx context.Context, row target, statement string, arguments []any) error {
	var logged int64
	err := t.q.QueryRowContext(ctx, statement, append([]any{t.earlier()}, arguments...)...).Scan(&logged)
	if errors.Is(err, sql.ErrNoRows) {
		return keys.ErrNotFound
	}
	if err != nil {
		return t.failWrite(err)
	}
	if t.written[row] {
		return nil // the weight has it at this revision
	}
	if logged > 0 {
		if err := t.state.addRow(t.s.ring, row.kind, row.id, logged); err != nil {
			return t.fail(err)
		}
	}
	if err := t.state.addRow(t.s.ring, row.kind, row.id, t.state.revision); err != nil {
		return t.fail(err)
	}
	t.written[row] = true
	return nil
}

func (t *writeTx) Organization(ctx context.Context, id string) (keys.Organization, error) {
	o, err := t.s.organization(ctx, t.q, t.earlier(), id, func(revision, logged int64) bool {
		return t.latest(target{keys.KindOrganization, id}, revision, logged)
	})
	return o, t.fail(err)
}

func (t *writeTx) HasChildren(ctx context.Context, organizationID string) (bool, error) {
	q, err := t.asked(ctx)
	if err != nil {
		return false, err
	}
	var n int64
	err = q.QueryRowContext(ctx, countChildren, organizationID).Scan(&n)
	return n > 0, t.fail(err)
}

func (t *writeTx) LastTake(ctx context.Context, rate keys.Action, user string) (time.Time, error) {
	q, err := t.asked(ctx)
	if err != nil {
		return time.Time{}, err
	}
	var micros int64
	err = q.QueryRowContext(ctx, lastTake, string(rate), user).Scan(&micros)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	return keys.FromMicros(micros), t.fail(err)
}

func (t *writeTx) Take(_ context.Context, rate keys.Action, user string, at time.Time) error {
	t.later(putTake, string(rate), user, keys.Micros(at))
	return nil
}

func (t *writeTx) Replay(ctx context.Context, handles []keys.Handle) (keys.Replay, error) {
	q, err := t.asked(ctx)
	if err != nil {
		return keys.Replay{}, err
	}
	r, err := firstReplay(ctx, q, handles)
	if errors.Is(err, keys.ErrNotFound) {
		return r, err
	}
	return r, t.fail(err)
}

func (t *writeTx) KeepReplay(_ context.Context, r keys.Replay) error {
	t.later(putReplay, r.Handle[:], r.Fingerprint[:], r.KeyID, r.MasterKeyID,
		notNull(r.Salt), notNull(r.Sealed), keys.Micros(r.CreatedAt))
	return nil
}

func (t *writeTx) EraseReplays(_ context.Context, keyID string) error {
	t.later(eraseReplays, []byte{}, keyID)
	return nil
}

// Audit implements keys.Tx. An entry without a time gets the transaction's.
func (t *writeTx) Audit(_ context.Context, e keys.AuditEntry) error {
	if e.Revision != 0 && e.Revision != t.state.revision {
		return t.fail(errors.New("sqlstore: an audit entry must have the revision of its write, or 0"))
	}
	if e.At.IsZero() {
		e.At = t.now
	}
	e.Sequence = t.state.sequence + 1
	e.Hash = chain(t.state.hash, &e)
	sl := t.s.ring.SealAudit(e.Sequence, e.Hash)
	t.later(insertEntry, e.Sequence, keys.Micros(e.At), e.Actor, string(e.Action), e.OrganizationID,
		e.TargetID, e.Outcome, e.Detail, e.RemoteAddress, e.RequestID, e.Revision, e.Hash[:], sl.KeyID, sl.MAC)
	t.state.sequence, t.state.hash = e.Sequence, e.Hash
	if e.Revision != 0 {
		t.audited[target{kindOf(e.Action), e.TargetID}] = true
	}
	return nil
}

// chain is an entry's hash, over the hash before it and the entry.
func chain(before [32]byte, e *keys.AuditEntry) [32]byte {
	h := sha256.New()
	h.Write(before[:])
	h.Write(e.Sealed())
	return [32]byte(h.Sum(nil))
}

func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
