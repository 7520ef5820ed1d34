package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// memoryFeed is a database of one process that can be switched off, so that the lease can be
// watched under testing/synctest, where no real connection may exist.
type memoryFeed struct {
	mu            sync.Mutex
	revision      int64
	history       byte // which history new writes belong to: a restored backup begins another
	marks         map[int64]byte
	keys          map[string]keys.Key
	organizations map[string]keys.Organization
	written       map[rowName]int64 // the revision each row was last written at
	setKeyID      string            // the master key of the set hash
	unproven      bool              // Snapshot finds a database that cannot be proven
	nodes         map[string]int64
	leases        map[string]time.Duration
	uses          map[string]time.Time
	away          bool
	loseAnswers   int // of registrations that are carried out
	snapshots     int

	timeline, settled int64
	protocol          int
	listeners         []*func(keys.Announcement)
	dropped           int   // how many of the next announcements are lost
	twice             bool  // each comes twice
	announcedOn       int64 // the timeline they say; 0 = the true one
	terse             bool  // announcements say only which write it was
	deaf              bool  // announcements reach nobody, as behind a pooler
}

var errAway = errors.New("the database is away")

func newMemoryFeed() *memoryFeed {
	return &memoryFeed{
		keys: map[string]keys.Key{}, organizations: map[string]keys.Organization{}, written: map[rowName]int64{}, setKeyID: "k1",
		marks: map[int64]byte{}, nodes: map[string]int64{}, leases: map[string]time.Duration{}, uses: map[string]time.Time{},
	}
}

// write commits rows under a new revision.
func (f *memoryFeed) write(rows ...any) keys.Commit {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.mark()
	f.revision++
	f.marks[f.revision] = f.history
	changes := &keys.Changes{Mark: f.mark()}
	for _, row := range rows {
		switch r := row.(type) {
		case keys.Key:
			r.Revision = f.revision
			f.keys[r.ID], f.written[rowName{keys.KindKey, r.ID}] = r, r.Revision
			changes.Keys = append(changes.Keys, r)
		case keys.Organization:
			r.Revision = f.revision
			f.organizations[r.ID], f.written[rowName{keys.KindOrganization, r.ID}] = r, r.Revision
			changes.Organizations = append(changes.Organizations, r)
		}
	}
	changes.Set = f.set()
	a := keys.Announcement{Revision: f.revision, Changes: changes, Before: before, Timeline: f.timeline}
	if f.terse {
		a.Changes = nil
	}
	if f.announcedOn != 0 {
		a.Timeline = f.announcedOn
	}
	for _, heard := range f.listeners {
		if f.dropped == 0 {
			(*heard)(a)
		}
		if f.twice {
			(*heard)(a)
		}
	}
	f.dropped = max(0, f.dropped-1)
	return keys.Commit{Mark: f.mark(), Timeline: f.timeline}
}

func (f *memoryFeed) setAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// locked runs fn unless the database is away.
func (f *memoryFeed) locked(ctx context.Context, fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errAway
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fn()
}

func (f *memoryFeed) Snapshot(ctx context.Context, v keys.Visitor) (mark keys.Mark, set keys.SetHash, err error) {
	err = f.locked(ctx, func() error {
		f.snapshots++
		if f.unproven {
			return keys.ErrTampered
		}
		mark, set = f.mark(), f.set()
		for _, k := range f.keys {
			if err := v.Key(k); err != nil {
				return err
			}
		}
		for _, o := range f.organizations {
			if err := v.Organization(o); err != nil {
				return err
			}
		}
		return nil
	})
	return mark, set, err
}

// element stands for the key ring's.
func element(keyID, kind, id string, revision int64) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d", keyID, kind, id, revision)), nil
}

func (*memoryFeed) SetElement(keyID, kind, id string, revision int64) ([32]byte, error) {
	return element(keyID, kind, id, revision)
}

// setOf is the set hash of rows, by their revisions.
func setOf(keyID string, rows map[rowName]int64) keys.SetHash {
	set := newMemorySet(element)
	set.sum.KeyID = keyID
	for row, revision := range rows {
		set.move(row, 0, revision)
	}
	return set.sum
}

// restored makes the rows there are what Keyward wrote, as in a backup that was put back. The
// caller holds mu.
func (f *memoryFeed) restored() {
	clear(f.written)
	for id, k := range f.keys {
		f.written[rowName{keys.KindKey, id}] = k.Revision
	}
	for id, o := range f.organizations {
		f.written[rowName{keys.KindOrganization, id}] = o.Revision
	}
}

// set is the set hash of what Keyward wrote.
func (f *memoryFeed) set() keys.SetHash { return setOf(f.setKeyID, f.written) }

// mark is where the database is.
func (f *memoryFeed) mark() keys.Mark {
	return keys.Mark{Revision: f.revision, Sequence: f.revision, Hash: [32]byte{f.marks[f.revision]}}
}

func (f *memoryFeed) Changes(ctx context.Context, mark keys.Mark, _ int) (c keys.Changes, err error) {
	err = f.locked(ctx, func() error {
		after := mark.Revision
		if after > f.revision || mark.Hash[0] != f.marks[after] {
			return keys.ErrDiverged
		}
		c.Mark, c.Set = f.mark(), f.set()
		for _, k := range f.keys {
			if k.Revision > after {
				c.Keys = append(c.Keys, k)
			}
		}
		for _, o := range f.organizations {
			if o.Revision > after {
				c.Organizations = append(c.Organizations, o)
			}
		}
		return nil
	})
	return c, err
}

func (f *memoryFeed) RecordUses(ctx context.Context, used []keys.Use) error {
	return f.locked(ctx, func() error {
		for _, u := range used {
			if u.At.After(f.uses[u.KeyID]) {
				f.uses[u.KeyID] = u.At
			}
		}
		return nil
	})
}

func (f *memoryFeed) Register(ctx context.Context, n keys.Node) error {
	return f.locked(ctx, func() error {
		if f.protocol > keys.LeaseProtocol {
			return keys.ErrOutdated
		}
		if _, taken := f.nodes[n.ID]; taken {
			return errors.New("this node is registered already")
		}
		f.nodes[n.ID], f.leases[n.ID] = -1, n.Lease
		if f.loseAnswers > 0 {
			f.loseAnswers--
			return errors.New("the connection was cut after the commit")
		}
		return nil
	})
}

func (f *memoryFeed) Renew(ctx context.Context, id string, applied keys.Mark) (r keys.Renewal, err error) {
	err = f.locked(ctx, func() error {
		r.Timeline, r.Settled = f.timeline, f.settled == f.timeline
		switch _, there := f.nodes[id]; {
		case f.protocol > keys.LeaseProtocol:
			return keys.ErrOutdated
		case !there:
			r.Outcome = keys.Fenced
		case applied != f.mark():
			r.Outcome = keys.Lagging
		default:
			f.nodes[id] = applied.Revision
			r.At = time.Now()
		}
		return nil
	})
	return r, err
}

// has reports whether a mark is in the history.
func (f *memoryFeed) has(m keys.Mark) bool {
	return m.Revision <= f.revision && (m.Sequence == 0 || m.Hash[0] == f.marks[m.Revision])
}

func (f *memoryFeed) Standing(ctx context.Context, id string, c keys.Commit) (st keys.Standing, err error) {
	err = f.locked(ctx, func() error {
		if !f.has(c.Mark) {
			return keys.ErrDiverged
		}
		st.Timeline, st.Settled = f.timeline, f.settled == f.timeline
		for other, applied := range f.nodes {
			if applied < c.Revision {
				st.Behind++
			}
			st.Longest = max(st.Longest, f.leases[other])
			st.Own = st.Own || other == id
		}
		return nil
	})
	return st, err
}

func (f *memoryFeed) Fence(ctx context.Context, c keys.Commit) (fenced []string, err error) {
	err = f.locked(ctx, func() error {
		if !f.has(c.Mark) {
			return keys.ErrDiverged
		}
		for _, id := range slices.Collect(maps.Keys(f.nodes)) {
			if f.nodes[id] < c.Revision {
				delete(f.nodes, id)
				fenced = append(fenced, id)
			}
		}
		return nil
	})
	return fenced, err
}

func (f *memoryFeed) Settle(ctx context.Context, timeline int64) error {
	return f.locked(ctx, func() error { f.settled = timeline; return nil })
}

func (f *memoryFeed) Announce(ctx context.Context, revision int64) error {
	return f.locked(ctx, func() error {
		for _, heard := range f.listeners {
			(*heard)(keys.Announcement{Revision: revision})
		}
		return nil
	})
}

func (f *memoryFeed) Listen(ctx context.Context, heard func(keys.Announcement)) error {
	if err := f.locked(ctx, func() error {
		if !f.deaf {
			f.listeners = append(f.listeners, &heard)
		}
		return nil
	}); err != nil {
		return err
	}
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listeners = slices.DeleteFunc(f.listeners, func(l *func(keys.Announcement)) bool { return l == &heard })
	return ctx.Err()
}

func (f *memoryFeed) Leave(ctx context.Context, id string) error {
	return f.locked(ctx, func() error { delete(f.nodes, id); return nil })
}

func (f *memoryFeed) EraseKeptAnswers(context.Context, time.Time) (int64, error) { return 0, nil }

// nodeCount returns how many nodes are registered.
func (f *memoryFeed) nodeCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.nodes)
}

// recorded returns a copy of the uses written so far.
func (f *memoryFeed) recorded() map[string]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.uses)
}

var format = func() token.Format {
	f, err := token.NewFormat("sk")
	if err != nil {
		panic(err)
	}
	return f
}()

// newKey draws a secret and returns it with the row of its key.
func newKey(tb testing.TB, organization string, env keys.Environment) (string, keys.Key) {
	tb.Helper()
	s, err := format.Generate(env)
	if err != nil {
		tb.Fatal(err)
	}
	d := s.Digest()
	return s.Reveal(), keys.Key{
		ID: "key_" + hex.EncodeToString(d[:13]), OrganizationID: organization, Environment: env, Digest: d, Hint: s.Hint(),
		Name: "Production key", CreatedAt: time.Now().UTC().Truncate(time.Microsecond), State: keys.StateActive, Genuine: true,
	}
}

// start runs a verifier until the test ends.
func start(tb testing.TB, feed keys.Feed, change func(*Config)) (*Verifier, context.CancelFunc) {
	tb.Helper()
	cfg := Config{Feed: feed, Format: format}
	if change != nil {
		change(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); v.Run(ctx) }()
	stop := func() { cancel(); <-done }
	tb.Cleanup(stop)
	return v, stop
}
