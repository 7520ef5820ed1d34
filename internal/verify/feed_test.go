package verify

import (
	"context"
	"encoding/hex"
	"errors"
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
	nodes         map[string]int64
	leases        map[string]time.Duration
	uses          map[string]time.Time
	away          bool
	loseAnswers   int // of registrations that are carried out
	lookUps       int
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
		keys: map[string]keys.Key{}, organizations: map[string]keys.Organization{},
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
			f.keys[r.ID] = r
			changes.Keys = append(changes.Keys, r)
		case keys.Organization:
			r.Revision = f.revision
			f.organizations[r.ID] = r
			changes.Organizations = append(changes.Organizations, r)
		}
	}
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

func (f *memoryFeed) Snapshot(ctx context.Context, v keys.Visitor) (mark keys.Mark, err error) {
	err = f.locked(ctx, func() error {
		f.snapshots++
		mark = f.mark()
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
	return mark, err
}

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
		c.Mark = f.mark()
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

func (f *memoryFeed) LookUp(ctx context.Context, d token.Digest, connected string) (found keys.Found, err error) {
	err = f.locked(ctx, func() error {
		f.lookUps++
		found.Revision = f.revision
		for _, k := range f.keys {
			if k.Digest == d {
				found.Key, found.Owner = k, f.organization(k.OrganizationID)
				if connected != "" {
					found.Connected = f.organization(connected)
				}
				return nil
			}
		}
		return nil
	})
	return found, err
}

func (f *memoryFeed) organization(id string) keys.Organization {
	if o, ok := f.organizations[id]; ok {
		return o
	}
	return keys.Unregistered(id)
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
