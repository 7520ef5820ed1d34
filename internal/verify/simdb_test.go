package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// simServer is one PostgreSQL server. Each of its steps is one statement's effect, as in docs/model. Guarded by simulation.mu.
type simServer struct {
	timeline, settled int64
	history           []*simWrite       // by revision; the first is the empty database
	rows              []simRow          // of the serving nodes, in the order of their registration
	stopped           bool              // no statement has an effect any more
	cutOff            bool              // a standby has taken over and this one does not know: no commit of its is acknowledged
	putBack           map[rowName]int64 // rows that somebody put back to the authentic copy of an earlier revision
	listeners         []*simListener
}

type simRow struct {
	id      string
	applied int64
	lease   time.Duration
}

type simListener struct {
	p     *simProcess
	heard func(keys.Announcement)
	cut   chan struct{} // closed when the connection fails
}

// simWrite is one write of one history.
type simWrite struct {
	number   int // among all writes of all histories: what its hash is made of
	revision int64
	key      *simKey
	state    keys.State // of the key
	owner    *simOwner
	on       bool // the organization
	answered bool
	lost     bool // it was answered, and then a failover took it: nothing is promised of it
}

func (w *simWrite) String() string {
	switch {
	case w == nil:
		return "nothing"
	case w.key != nil && w.state == keys.StateRevoked:
		return fmt.Sprintf("write %d (revision %d): revoke %s", w.number, w.revision, w.key)
	case w.key != nil:
		return fmt.Sprintf("write %d (revision %d): create %s", w.number, w.revision, w.key)
	default:
		return fmt.Sprintf("write %d (revision %d): %s on=%v", w.number, w.revision, w.owner, w.on)
	}
}

type simOwner struct{ n int }

func (o *simOwner) String() string { return fmt.Sprint("org_", o.n) }

type simKey struct {
	n      int
	secret string
	row    keys.Key
	owner  *simOwner
	stray  bool // a revocation of it is, or was, in a history that is not the primary's: who knows of it refuses the key
}

func (k *simKey) String() string { return fmt.Sprint("key ", k.n) }

func (s *simServer) String() string {
	return fmt.Sprintf("revision %d on timeline %d", s.revision(), s.timeline)
}

func (s *simServer) revision() int64 { return int64(len(s.history) - 1) }

func (s *simServer) mark() keys.Mark { return s.markAt(s.revision()) }

func (s *simServer) markAt(revision int64) keys.Mark {
	m := keys.Mark{Revision: revision, Sequence: revision}
	if revision > 0 {
		binary.BigEndian.PutUint64(m.Hash[:], uint64(s.history[revision].number))
	}
	return m
}

// has reports whether a mark is in the history.
func (s *simServer) has(m keys.Mark) bool {
	return m.Revision <= s.revision() && m == s.markAt(m.Revision)
}

// contains reports whether a write is in the history.
func (s *simServer) contains(w *simWrite) bool {
	return w.revision <= s.revision() && s.history[w.revision] == w
}

// clone is what a standby has received, or a backup.
func (s *simServer) clone() *simServer {
	c := *s
	c.history, c.rows, c.listeners = slices.Clone(s.history), slices.Clone(s.rows), nil
	c.putBack = maps.Clone(s.putBack)
	return &c
}

func (s *simServer) row(id string) *simRow {
	for i := range s.rows {
		if s.rows[i].id == id {
			return &s.rows[i]
		}
	}
	return nil
}

func (s *simServer) remove(gone func(simRow) bool) { s.rows = slices.DeleteFunc(s.rows, gone) }

// name is the row that a write changes.
func (w *simWrite) name() rowName {
	if w.key != nil {
		return rowName{keys.KindKey, w.key.row.ID}
	}
	return rowName{keys.KindOrganization, w.owner.String()}
}

// written are the rows as Keyward wrote them, by the write that changed each last.
func (s *simServer) written() map[rowName]*simWrite {
	last := map[rowName]*simWrite{}
	for _, w := range s.history[1:] {
		last[w.name()] = w
	}
	return last
}

// set is the authenticated set hash.
func (s *simServer) set() keys.SetHash {
	revisions := map[rowName]int64{}
	for row, w := range s.written() {
		revisions[row] = w.revision
	}
	return setOf("k1", revisions)
}

// read returns the rows that a write after a revision changed last, as they lie in the tables: a
// row that was put back lies there at its earlier revision. proof tells which those are, as a
// snapshot does.
func (s *simServer) read(after int64, proof bool) (t simTables) {
	t.mark, t.set = s.mark(), s.set()
	last := s.written()
	for at := int64(1); at <= s.revision(); at++ { // in the order of the last writes
		w := s.history[at]
		row := w.name()
		if last[row] != w {
			continue
		}
		back, tampered := s.putBack[row]
		if tampered {
			w = s.history[back]
		}
		authentic := !tampered || !proof
		revision := w.revision
		if !authentic {
			revision = at
		}
		if revision <= after {
			continue
		}
		if w.key != nil {
			k := w.key.row
			k.State, k.Revision, k.Genuine = w.state, revision, authentic
			t.keys = append(t.keys, k)
			continue
		}
		t.orgs = append(t.orgs, keys.Organization{ID: w.owner.String(), Active: w.on && authentic, Registered: true, Genuine: authentic, Revision: revision})
	}
	return t
}

// simFate is what becomes of one statement.
type simFate struct {
	there, inside, back time.Duration // on the way to the server; between its snapshot and its effect; and back
	lost                bool          // it never arrives
	mute                bool          // its answer never arrives
	reset               bool          // and the client is told so, instead of hearing nothing
	first               bool          // what came while the process stood still is read before its own time-out is noticed
}

// The pools of connections that a node has: each fails by itself.
const (
	poolLease = iota
	poolReader
	poolWriter
	pools
)

var (
	errSimCut     = errors.New("the connection was reset")
	errSimCrashed = errors.New("the process is no more")
	errSimStopped = errors.New("the server does not answer")
)

type simAnswer[T any] struct {
	value T
	err   error
}

// simStatement carries one statement through the network and the server. It goes on at the server when its client has given up on it.
func simStatement[T any](ctx context.Context, p *simProcess, kind string, pool int, extra int64, work func(s *simServer, f simFate) (T, error)) (T, error) {
	s, none := p.node.sim, *new(T)
	p.node.stand(kind, extra)
	if p.ended() {
		return none, errSimCrashed
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout) // the store's own
	defer cancel()
	f := s.fate(p, kind, extra)
	server := s.connect(p, pool)
	answer := make(chan simAnswer[T], 1)
	fail := func(err error) {
		if f.reset {
			answer <- simAnswer[T]{err: err}
		}
	}
	go func() {
		cut := p.node.cutNow(pool)
		time.Sleep(f.there)
		if f.lost || cut == cutBoth {
			fail(errSimCut)
			return
		}
		if s.gone(server) {
			fail(errSimStopped)
			return
		}
		value, err := work(server, f)
		time.Sleep(f.back)
		if errors.Is(err, errSimStopped) || f.mute || cut != cutNone || p.node.cutNow(pool) != cutNone {
			fail(errSimCut)
			return
		}
		answer <- simAnswer[T]{value, err}
	}()
	var a simAnswer[T]
	select {
	case a = <-answer:
		p.node.stand(kind+" answered", extra)
	case <-ctx.Done():
		p.node.stand(kind+" given up", extra)
		a.err = ctx.Err()
		if f.first {
			select {
			case a = <-answer:
			default:
			}
		}
	}
	if p.ended() {
		a = simAnswer[T]{err: errSimCrashed}
	}
	if act, ok := ctx.Value(simActKey{}).(*simAct); ok {
		act.took(kind, time.Since(began))
	}
	if kind == "renew" && f.back > simLease {
		go func() { // the lease of an answer that came late
			time.Sleep(between(s.draw("late", p.node.index, extra), 10*time.Microsecond, simLease/20))
			s.probeNode(p.node)
		}()
	}
	s.event("node %d.%d %s(%d): %v", p.node.index, p.n, kind, extra, a.err)
	return a.value, a.err
}

// simAct is one Await or one verification: how long its statements took is noted for it.
type simAct struct {
	standing time.Duration // the longest
	others   time.Duration // in all
}

type simActKey struct{}

func (a *simAct) took(kind string, d time.Duration) {
	switch kind {
	case "standing":
		a.standing = max(a.standing, d)
	default:
		a.others += d
	}
}

// simFeed is the database as one process reaches it.
type simFeed struct{ p *simProcess }

// locked runs one step of a statement.
func (f simFeed) locked(server *simServer, step func() error) error {
	s := f.p.node.sim
	s.mu.Lock()
	defer s.mu.Unlock()
	if server.stopped || s.away {
		return errSimStopped
	}
	return step()
}

// simRead is a statement that reads in one step.
func simRead[T any](ctx context.Context, f simFeed, kind string, pool int, extra int64, read func(*simServer) (T, error)) (T, error) {
	return simStatement(ctx, f.p, kind, pool, extra, func(s *simServer, _ simFate) (v T, err error) {
		err = f.locked(s, func() (err error) { v, err = read(s); return err })
		return v, err
	})
}

// simCommit is a statement that writes in one step. A primary that was cut off does it, and gets no acknowledgement for it.
func simCommit[T any](ctx context.Context, f simFeed, kind string, pool int, extra int64, write func(*simServer) (T, error)) (T, error) {
	return simStatement(ctx, f.p, kind, pool, extra, func(s *simServer, _ simFate) (v T, err error) {
		err = f.locked(s, func() (err error) {
			if v, err = write(s); err == nil && s.cutOff {
				err = errSimStopped
			}
			return err
		})
		return v, err
	})
}

type simTables struct {
	mark keys.Mark
	set  keys.SetHash
	keys []keys.Key
	orgs []keys.Organization
}

func (t simTables) changes() keys.Changes {
	return keys.Changes{Mark: t.mark, Set: t.set, Keys: t.keys, Organizations: t.orgs}
}

func (f simFeed) Snapshot(ctx context.Context, v keys.Visitor) (keys.Mark, keys.SetHash, error) {
	t, err := simRead(ctx, f, "snapshot", poolReader, 0, func(s *simServer) (t simTables, _ error) {
		return s.read(0, true), nil
	})
	for i := 0; i < len(t.keys) && err == nil; i++ {
		err = v.Key(t.keys[i])
	}
	for i := 0; i < len(t.orgs) && err == nil; i++ {
		err = v.Organization(t.orgs[i])
	}
	return t.mark, t.set, err
}

func (f simFeed) Changes(ctx context.Context, after keys.Mark, _ int) (keys.Changes, error) {
	return simRead(ctx, f, "changes", poolReader, after.Revision, func(s *simServer) (c keys.Changes, _ error) {
		if !s.has(after) {
			return c, keys.ErrDiverged
		}
		return s.read(after.Revision, false).changes(), nil
	})
}

func (f simFeed) Register(ctx context.Context, n keys.Node) error {
	_, err := simCommit(ctx, f, "register", poolLease, 0, func(s *simServer) (none struct{}, _ error) {
		s.rows = append(s.rows, simRow{n.ID, -1, n.Lease})
		return none, nil
	})
	return err
}

// Renew is what PostgreSQL makes of the statement at READ COMMITTED: it compares the revision in its snapshot, waits for the
// row, and then looks at the row again but not at the revision.
func (f simFeed) Renew(ctx context.Context, id string, applied keys.Mark) (keys.Renewal, error) {
	f.p.node.setRenewing(true)
	defer f.p.node.setRenewing(false)
	return simStatement(ctx, f.p, "renew", poolLease, applied.Revision, func(s *simServer, fate simFate) (r keys.Renewal, err error) {
		matches := false
		if err := f.locked(s, func() error {
			row := s.row(id)
			matches = row != nil && row.applied <= applied.Revision && applied == s.mark()
			r.Timeline, r.Settled = s.timeline, s.settled == s.timeline
			return nil
		}); err != nil {
			return r, err
		}
		time.Sleep(fate.inside)
		err = f.locked(s, func() error {
			row := s.row(id)
			if matches && row != nil && row.applied <= applied.Revision {
				row.applied = applied.Revision
				f.p.node.sim.checkMemory(f.p, s, applied)
				r.Outcome, r.At = keys.Renewed, time.Now().Add(f.p.node.sim.databaseClock)
				if s.cutOff {
					return errSimStopped
				}
				return nil
			}
			// No row was written: a second statement says why.
			r.Timeline, r.Settled = s.timeline, s.settled == s.timeline
			r.Outcome = keys.Lagging
			if row == nil {
				r.Outcome = keys.Fenced
			}
			return nil
		})
		return r, err
	})
}

func (f simFeed) Standing(ctx context.Context, id string, c keys.Commit) (keys.Standing, error) {
	return simRead(ctx, f, "standing", poolLease, c.Revision, func(s *simServer) (st keys.Standing, _ error) {
		if !s.has(c.Mark) {
			return st, keys.ErrDiverged
		}
		st.Timeline, st.Settled = s.timeline, s.settled == s.timeline
		for _, row := range s.rows {
			if row.applied < c.Revision {
				st.Behind++
			}
			st.Longest = max(st.Longest, row.lease)
			st.Own = st.Own || row.id == id
		}
		return st, nil
	})
}

func (f simFeed) Fence(ctx context.Context, c keys.Commit) ([]string, error) {
	return simCommit(ctx, f, "fence", poolLease, c.Revision, func(s *simServer) (fenced []string, _ error) {
		if !s.has(c.Mark) {
			return nil, keys.ErrDiverged
		}
		s.remove(func(row simRow) bool {
			if row.applied >= c.Revision {
				return false
			}
			fenced = append(fenced, row.id)
			return true
		})
		return fenced, nil
	})
}

func (f simFeed) Settle(ctx context.Context, timeline int64) error {
	_, err := simCommit(ctx, f, "settle", poolLease, timeline, func(s *simServer) (none struct{}, _ error) {
		s.settled = timeline
		return none, nil
	})
	return err
}

func (f simFeed) Leave(ctx context.Context, id string) error {
	_, err := simCommit(ctx, f, "leave", poolLease, 0, func(s *simServer) (none struct{}, _ error) {
		s.remove(func(row simRow) bool { return row.id == id })
		return none, nil
	})
	return err
}

// announce reaches each listener by itself, late or never. The caller holds mu.
func (s *simServer) announce(sim *simulation, a keys.Announcement) {
	for _, l := range s.listeners {
		go sim.deliver(l, a)
	}
}

func (f simFeed) Announce(ctx context.Context, revision int64) error {
	_, err := simRead(ctx, f, "announce", poolLease, revision, func(s *simServer) (none struct{}, _ error) {
		s.announce(f.p.node.sim, keys.Announcement{Revision: revision})
		return none, nil
	})
	return err
}

func (f simFeed) Listen(ctx context.Context, heard func(keys.Announcement)) error {
	l := &simListener{f.p, heard, make(chan struct{})}
	server, err := simRead(ctx, f, "listen", poolLease, 0, func(s *simServer) (*simServer, error) {
		s.listeners = append(s.listeners, l)
		return s, nil
	})
	if err != nil {
		return err
	}
	select {
	case <-l.cut:
		err = errSimCut
	case <-ctx.Done():
		err = ctx.Err()
	}
	s := f.p.node.sim
	s.mu.Lock()
	server.listeners = slices.DeleteFunc(server.listeners, func(other *simListener) bool { return other == l })
	s.mu.Unlock()
	return err
}

func (simFeed) SetElement(keyID, kind, id string, revision int64) ([32]byte, error) {
	return element(keyID, kind, id, revision)
}

func (f simFeed) RecordUses(ctx context.Context, used []keys.Use) error {
	_, err := simRead(ctx, f, "uses", poolWriter, int64(len(used)), func(*simServer) (none struct{}, _ error) { return none, nil })
	return err
}

func (simFeed) EraseKeptAnswers(context.Context, time.Time) (int64, error) { return 0, nil }

// commit writes through a process's database, as the store does: an answer that does not come leaves the outcome unknown.
func (f simFeed) commit(ctx context.Context, w *simWrite) (keys.Commit, error) {
	return simCommit(ctx, f, "write", poolWriter, int64(w.number), func(s *simServer) (keys.Commit, error) {
		if w.key != nil && w.state == keys.StateRevoked {
			if !slices.ContainsFunc(s.history, func(h *simWrite) bool { return h.key == w.key }) {
				return keys.Commit{}, keys.ErrNotFound // its creation was lost
			}
			w.key.stray = w.key.stray || s.cutOff
		}
		w.revision = int64(len(s.history))
		s.history = append(s.history, w)
		before := s.putBack[w.name()]
		delete(s.putBack, w.name()) // the write replaces the row
		changes := s.read(w.revision-1, false).changes()
		a := keys.Announcement{Revision: w.revision, Timeline: s.timeline, Before: s.markAt(w.revision - 1), Changes: &changes}
		s.announce(f.p.node.sim, a)
		f.p.node.sim.tamper(s, w, before)
		return keys.Commit{Mark: s.mark(), Timeline: s.timeline}, nil
	})
}
