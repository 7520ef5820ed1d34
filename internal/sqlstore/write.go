package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// Write implements keys.Store.
func (s *Store) Write(ctx context.Context, first keys.Reads, fn func(ctx context.Context, tx keys.Tx) error) (commit keys.Commit, err error) {
	err = s.locked(ctx, s.transact, bumpMeta, first, func(ctx context.Context, t *writeTx) error {
		if err := fn(ctx, t); err != nil {
			return err
		}
		commit = keys.Commit{Mark: t.state.mark(), Timeline: t.timeline}
		t.q.after = []call{{statement: announce, arguments: []any{t.announcement()}}}
		return nil
	})
	if err != nil {
		return keys.Commit{}, err
	}
	if s.nodes != nil {
		s.nodes.announce(keys.Announcement{Revision: commit.Revision})
	}
	return commit, nil
}

// Record implements keys.Store.
func (s *Store) Record(ctx context.Context, e keys.AuditEntry) error {
	if e.Revision != 0 {
		return errors.New("sqlstore: an entry outside a write must have revision 0")
	}
	return s.locked(ctx, s.transact, lockMeta, keys.Reads{}, func(ctx context.Context, t *writeTx) error { return t.Audit(ctx, e) })
}

// locked runs fn in a transaction that takes the meta row's lock by statement, bumpMeta or lockMeta, and seals the state it leaves.
func (s *Store) locked(
	ctx context.Context, transact func(context.Context, *pool, func() []call, func(context.Context, *transaction) error) error,
	statement string, first keys.Reads, fn func(context.Context, *writeTx) error,
) error {
	var t *writeTx
	return transact(ctx, s.writer, func() []call {
		t = s.newWrite()
		return append(t.lock(statement), t.ahead(first)...)
	}, func(ctx context.Context, q *transaction) error {
		if err := t.begin(q, statement == bumpMeta); err != nil {
			return err
		}
		if err := fn(ctx, t); err != nil {
			return err
		}
		return t.finish()
	})
}

// writeTx is one write transaction. It implements keys.Tx.
type writeTx struct {
	s     *Store
	q     *transaction
	now   time.Time
	meta  meta
	state state // as finish will seal it
	// signer is of the master key that the database names, read under the lock: never of the one
	// that this node's source happens to have first (R10).
	signer seal.Signer

	// What the first trip reads besides meta.
	clock, timeline int64 // of the server this transaction is on
	sequence        int64 // of the log's last entry
	hash            []byte
	read            map[target]readRow // rows read ahead, as they were before this write

	pending []call           // statements whose answers nobody waits for; a read of their rows, and the end, sends them first
	logged  map[target]int64 // the latest revision the log had before this write, of rows that were read
	written map[target]bool  // rows written so far
	changed map[target][]any // their columns, as they are to be
	audited map[target]bool  // rows that have an entry of this write
	failed  error            // what keeps this transaction from committing, whatever fn makes of it
}

// readRow is a row read ahead: one of the two.
type readRow struct {
	key          *keyRow // nil = there is none
	organization organizationRow
	logged       int64
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

func (s *Store) newWrite() *writeTx {
	return &writeTx{
		s: s, read: make(map[target]readRow), logged: make(map[target]int64),
		written: make(map[target]bool), changed: make(map[target][]any), audited: make(map[target]bool),
	}
}

// lock takes the meta row's lock, and then reads where the log ends.
func (t *writeTx) lock(statement string) []call {
	return []call{
		{statement: statement, into: t.meta.columns()},
		{statement: readHead, into: []any{&t.clock, &t.timeline, &t.sequence, &t.hash}},
	}
}

// ahead reads the rows that are asked for first. Of this write there are no entries in the log yet.
func (t *writeTx) ahead(first keys.Reads) (calls []call) {
	if id := first.OrganizationID; id != "" {
		calls = append(calls, call{statement: organizationByID, arguments: []any{anyRevision, id}, each: func(row scanner) (err error) {
			var r readRow
			r.organization, err = scanOrganization(row, &r.logged)
			t.read[target{keys.KindOrganization, id}] = r
			return err
		}})
	}
	if id := first.KeyID; id != "" {
		// What the log has is read apart, so that a key that is not there costs the same
		// statements (C22).
		row, r := target{keys.KindKey, id}, new(readRow)
		calls = append(calls, call{statement: latestOfKeyID, arguments: []any{anyRevision, id}, each: func(found scanner) error {
			err := found.Scan(&r.logged)
			t.read[row] = *r
			return err
		}}, call{statement: keyByID, arguments: []any{anyRevision, id}, each: func(found scanner) error {
			k, err := scanKey(found, &r.logged)
			r.key = &k
			t.read[row] = *r
			return err
		}})
	}
	return calls
}

// begin checks that what the transaction is about to build on is what the last one left.
func (t *writeTx) begin(q *transaction, bumped bool) error {
	before := t.meta.revision
	if bumped {
		before--
	}
	st, err := t.s.openState(t.meta, before)
	if err != nil {
		return err
	}
	if err := t.s.checkHead(st, t.sequence, t.hash); err != nil {
		return err
	}
	if t.signer, err = t.s.ring.Signer(t.meta.keyID); err != nil {
		return err
	}
	t.q, t.now, t.state = q, keys.FromMicros(t.clock), st
	if t.s.now != nil {
		t.now = wholeMicros(t.s.now())
	}
	t.state.revision = t.meta.revision
	return nil
}

// finish seals the new state. What is still pending goes with the commit.
func (t *writeTx) finish() error {
	if t.failed != nil {
		return t.failed
	}
	for row := range t.written {
		if !t.audited[row] {
			return fmt.Errorf("sqlstore: a %s row was written without an audit entry", row.kind)
		}
	}
	keyID, box := t.signer.SealState(
		t.state.encode(),
		stateContext(t.meta.databaseID, t.state.revision),
	)
	t.later(writeState, keyID, box)
	t.q.closing, t.pending = t.pending, nil
	return nil
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
	return t.failWrite(t.q.together(ctx, calls...))
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

// Signer implements keys.Tx.
func (t *writeTx) Signer() seal.Signer { return t.signer }

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

func (t *writeTx) key(r *keyRow, logged int64) (keys.Key, error) {
	row := target{keys.KindKey, r.ID}
	latest := t.latest(row, r.Revision, logged)
	t.note(row, logged)
	k, err := t.s.keyFromRow(r, latest)
	return k, t.fail(err)
}

// note keeps what the log has of a row. Once the row is written, that is asked no more.
func (t *writeTx) note(row target, logged int64) {
	if !t.written[row] {
		t.logged[row] = logged
	}
}

func (t *writeTx) Key(ctx context.Context, id string) (keys.Key, error) {
	row := target{keys.KindKey, id}
	if r, ok := t.read[row]; ok && !t.written[row] {
		if r.key == nil {
			err := t.s.absentKey(id, r.logged)
			if !errors.Is(err, keys.ErrNotFound) {
				t.fail(err)
			}
			return keys.Key{}, err
		}
		return t.key(r.key, r.logged)
	}
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
	return t.key(&r, logged)
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
		if err != nil {
			return err
		}
		k, err := t.key(&r, logged)
		found = append(found, k)
		return err
	})
	return found, t.fail(err)
}

func (t *writeTx) InsertKey(ctx context.Context, k keys.Key) error {
	k.Revision = t.state.revision
	sl := t.signer.SealRow(keys.KindKey, k.Sealed())
	return t.putRow(ctx, target{keys.KindKey, k.ID}, insertKey, keyArguments(&k, sl))
}

func (t *writeTx) UpdateKey(ctx context.Context, k keys.Key) error {
	k.Revision = t.state.revision
	sl := t.signer.SealRow(keys.KindKey, k.Sealed())
	return t.putRow(ctx, target{keys.KindKey, k.ID}, updateKey, keyArguments(&k, sl))
}

func (t *writeTx) PutOrganization(ctx context.Context, o keys.Organization) error {
	o.Revision = t.state.revision
	sl := t.signer.SealRow(keys.KindOrganization, o.Sealed())
	return t.putRow(ctx, target{keys.KindOrganization, o.ID}, putOrganization, organizationArguments(&o, sl))
}

// putRow writes a row and moves the weight from its old revision to this one. The old one is
// what the audit log says, never what the row said: a row may have been planted, put back or
// removed by somebody else, and the weight knows only what Keyward wrote. A row that was read before is written later: it is there,
// and what the log has of it is known.
func (t *writeTx) putRow(ctx context.Context, row target, statement string, arguments []any) error {
	put := call{statement: statement, arguments: append([]any{t.earlier()}, arguments...), changes: true}
	logged, known := t.logged[row]
	if known {
		t.pending = append(t.pending, put)
	} else {
		put.changes, put.into = false, []any{&logged}
		calls := append(t.pending, put)
		t.pending = nil
		err := t.q.together(ctx, calls...)
		if errors.Is(err, sql.ErrNoRows) {
			return keys.ErrNotFound
		}
		if err != nil {
			return t.failWrite(err)
		}
		t.logged[row] = logged
	}
	t.changed[row] = arguments
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
	row := target{keys.KindOrganization, id}
	if r, ok := t.read[row]; ok && !t.written[row] {
		if err := t.s.checkEntry(&r.organization, r.logged); err != nil {
			return keys.Organization{}, t.fail(err)
		}
		t.note(row, r.logged)
		o, err := t.s.organizationOf(&r.organization, r.logged, sameRevision)
		return o, t.fail(err)
	}
	q, err := t.asked(ctx)
	if err != nil {
		return keys.Organization{}, err
	}
	var logged int64
	r, err := scanOrganization(q.QueryRowContext(ctx, organizationByID, t.earlier(), id), &logged)
	if err == nil && !t.written[row] {
		err = t.s.checkEntry(&r, logged)
	}
	if err != nil {
		return keys.Organization{}, t.fail(err)
	}
	o, err := t.s.organizationOf(&r, logged, func(revision, logged int64) bool {
		t.note(row, logged)
		return t.latest(row, revision, logged)
	})
	return o, t.fail(err)
}

// checkEntry returns ErrTampered for an authentic row that is newer than what the audit log has of
// it: somebody removed the entry. A write of the row, which repairs any other edit, would take the
// wrong revision out of the set hash, and no later edit could undo that.
func (s *Store) checkEntry(r *organizationRow, logged int64) error {
	if r.Revision <= logged || r.mangled ||
		s.ring.CheckRow(keys.KindOrganization, r.Sealed(), r.seal) != nil {
		return nil
	}
	s.tampered("organizations", r.ID, r.Revision, errNoEntry)
	return fmt.Errorf("%w: the audit log lost an entry of organization %s", keys.ErrTampered, r.ID)
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
	sl := t.signer.SealAudit(e.Sequence, e.Hash)
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
