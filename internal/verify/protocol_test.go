package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// interceptedFeed is a memoryFeed some of whose methods run through a function of the test. Set them
// before the feed is used.
type interceptedFeed struct {
	*memoryFeed
	renew    func(ctx context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error)
	changes  func(next func() (keys.Changes, error)) (keys.Changes, error)
	snapshot func() error // before the snapshot
	fence    func() error // before the fence
	erase    func(before time.Time)
}

func (f *interceptedFeed) Renew(ctx context.Context, id string, applied keys.Mark) (keys.Renewal, error) {
	next := func() (keys.Renewal, error) { return f.memoryFeed.Renew(ctx, id, applied) }
	if f.renew == nil {
		return next()
	}
	return f.renew(ctx, next)
}

func (f *interceptedFeed) Changes(ctx context.Context, after keys.Mark, limit int) (keys.Changes, error) {
	next := func() (keys.Changes, error) { return f.memoryFeed.Changes(ctx, after, limit) }
	if f.changes == nil {
		return next()
	}
	return f.changes(next)
}

func (f *interceptedFeed) Snapshot(ctx context.Context, v keys.Visitor) (keys.Mark, keys.SetHash, error) {
	if f.snapshot != nil {
		if err := f.snapshot(); err != nil {
			return keys.Mark{}, keys.SetHash{}, err
		}
	}
	return f.memoryFeed.Snapshot(ctx, v)
}

func (f *interceptedFeed) Fence(ctx context.Context, c keys.Commit) ([]string, error) {
	if f.fence != nil {
		if err := f.fence(); err != nil {
			return nil, err
		}
	}
	return f.memoryFeed.Fence(ctx, c)
}

func (f *interceptedFeed) EraseKeptAnswers(_ context.Context, before time.Time) (int64, error) {
	if f.erase != nil {
		f.erase(before)
	}
	return 0, nil
}

// idle returns a verifier that does not follow anything.
func idle(t *testing.T, feed keys.Feed) *Verifier {
	t.Helper()
	v, err := New(Config{Feed: feed, Format: format})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// indexOf fills an index.
func indexOf(all ...keys.Key) *index {
	ix := newIndex(element)
	for i := range all {
		ix.applyKey(&all[i], false)
	}
	return ix
}

// goodFor is a lease of v that ends after d.
func goodFor(v *Verifier, d time.Duration) lease {
	now := v.clock.now()
	return lease{instant{now.mono + d, now.wall + int64(d)}}
}

// interruptingClock does something whenever it is read, as another goroutine might.
type interruptingClock struct {
	systemClock
	interrupt func()
}

func (c *interruptingClock) now() instant {
	c.interrupt()
	return c.systemClock.now()
}

// C23, P1: a lease vouches for the index it was loaded with, and for no other. Between the look-up and the clock the view
// changes from one that has the key, under a lease that is over, to one that knows it is revoked, under a good lease. Whoever mixes
// the two accepts.
func TestC23TheLeaseIsTheOneLoadedFirst(t *testing.T) {
	feed := newMemoryFeed()
	secret, key := newKey(t, "org_a", keys.Live)
	revoked := key
	revoked.State = keys.StateRevoked
	feed.write(revoked)
	v := idle(t, feed)
	over := &view{index: indexOf(key)}
	good := &view{index: indexOf(revoked), lease: goodFor(v, time.Hour)}
	v.view.Store(over)
	v.clock = &interruptingClock{newSystemClock(), func() { v.view.Store(good) }}
	if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked || v.Stats().Waited != 1 {
		t.Errorf("%s under a lease that was over, waited %d times", got, v.Stats().Waited)
	}
}

// P1: either clock ends a lease: the wall clock runs on while a machine sleeps, the monotonic one is not
// set back.
func TestP1LeaseEndsByEitherClock(t *testing.T) {
	now := instant{mono: time.Hour, wall: time.Now().UnixNano()}
	for _, tt := range []struct {
		name            string
		monotonic, wall time.Duration // from now to the end
		left            time.Duration
	}{
		{"good", time.Second, time.Second, time.Second},
		{"the last nanosecond", 1, 1, 1},
		{"its very end", 0, 0, 0},
		{"slept: the wall clock is past the end", time.Second, -time.Hour, 0},
		{"slept to the very end", time.Second, 0, 0},
		{"set back: the monotonic clock is past the end", -time.Second, time.Hour, 0},
		{"set forward a little", 2 * time.Second, time.Second, time.Second},
		{"set back a little", time.Second, 2 * time.Second, time.Second},
	} {
		l := lease{instant{now.mono + tt.monotonic, now.wall + int64(tt.wall)}}
		if got := l.goodAt(now); got != (tt.left > 0) {
			t.Errorf("%s: good %v", tt.name, got)
		}
		if got := l.left(now); got != tt.left {
			t.Errorf("%s: %v left, want %v", tt.name, got, tt.left)
		}
	}
	if (lease{}).goodAt(now) {
		t.Error("no lease is a good one")
	}
}

// P1: a lease counts from the moment its renewal was sent, and there is none when it is over before
// the answer, by any of the clocks.
func TestP1LeaseCountsFromTheSending(t *testing.T) {
	const term = 10 * time.Second
	for _, tt := range []struct {
		name        string
		took, slept time.Duration // between sending and answer: by the clock of programs, and what the machine slept beside it
		want        bool
	}{
		{"at once", 0, 0, true},
		{"late", 9 * time.Second, 0, true},
		{"too late", term, 0, false},
		{"too late by one clock alone", term, -term, false},
		{"asleep", 0, time.Minute, false},
		{"asleep to the very end", time.Second, term - time.Second, false},
	} {
		c := newSystemClock()
		now := c.now()
		s := stopwatch{began: instant{now.mono - tt.took, now.wall - int64(tt.took)}, boot: bootTime() - int64(tt.took+tt.slept)}
		l, ok := s.leaseOf(c, term)
		if ok != tt.want {
			t.Errorf("%s: granted %v, want %v", tt.name, ok, tt.want)
		}
		if until := (instant{s.began.mono + term, s.began.wall + int64(term)}); ok && l.until != until {
			t.Errorf("%s: until %v, want %v", tt.name, l.until, until)
		}
	}

	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			renewal, err := next()
			time.Sleep(4 * time.Second) // the answer is on its way
			return renewal, err
		}
		v, _ := start(t, feed, nil)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if left := v.Stats().LeaseLeft; left != 6*time.Second {
			t.Errorf("%v left of a lease of 10 s whose answer took 4 s", left)
		}
	})
}

// R5: verifications that wait have a renewal given up that may hang on a dead connection. A database
// that needs longer is given longer each time: under a constant stream of verifications a node gets
// its first lease all the same.
func TestR5SlowDatabaseUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		feed.renew = func(ctx context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			select {
			case <-time.After(3 * hurryAfter):
				return next()
			case <-ctx.Done():
				return keys.Renewal{}, ctx.Err()
			}
		}
		v, _ := start(t, feed, nil)
		for began := time.Now(); ; time.Sleep(time.Millisecond) {
			go func() { _, _ = v.Verify(t.Context(), Request{Secret: secret}) }()
			if v.Ready() == nil {
				break
			}
			if time.Since(began) > 5*time.Second {
				t.Fatal("no lease in 5 s from a database that answers in 0.3 s")
			}
		}
		synctest.Wait()
	})
}

// P1: only a renewal extends a lease, and only with everything applied. A node that is told it lags behind, or
// that reads changes, and then cannot go on decides nothing from memory once its lease is over.
func TestP1OnlyARenewalExtendsTheLease(t *testing.T) {
	for _, name := range []string{"lagging", "caught up", "never renewed"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
				feed.terse = true
				var mu sync.Mutex
				renewals, changes := name != "never renewed", name != "lagging"
				feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
					mu.Lock()
					defer mu.Unlock()
					if !renewals {
						return keys.Renewal{Outcome: keys.Renewed}, errAway // what comes beside an error means nothing
					}
					return next()
				}
				feed.changes = func(next func() (keys.Changes, error)) (keys.Changes, error) {
					mu.Lock()
					defer mu.Unlock()
					if !changes {
						return keys.Changes{}, errAway
					}
					renewals = false // the answer to these changes is the last for a while
					return next()
				}
				secret, key := newKey(t, "org_a", keys.Live)
				feed.write(key)
				v, _ := start(t, feed, nil)
				time.Sleep(time.Second)
				synctest.Wait()
				if ready := v.Ready() == nil; ready != (name != "never renewed") {
					t.Fatalf("ready %v", ready)
				}
				feed.setAway(true)
				time.Sleep(8 * time.Second) // most of the lease
				_, another := newKey(t, "org_a", keys.Live)
				feed.write(another)
				feed.setAway(false)
				time.Sleep(3 * time.Second)
				// Whoever waits for this node has waited long enough, and answers this write.
				key.State = keys.StateRevoked
				feed.write(key)
				if got := reasonOf(v, Request{Secret: secret}); got != "undecided" || v.Ready() == nil {
					t.Errorf("%s, ready %v, after the lease was over", got, v.Ready())
				}
			})
		})
	}
}

// P2: a node that catches up continues to answer from memory under the lease it has.
func TestP2CatchingUpWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			time.Sleep(time.Second) // the statement is on its way
			return next()
		}
		v, _ := start(t, feed, nil)
		time.Sleep(2 * time.Second)
		for range 50 {
			_, another := newKey(t, "org_a", keys.Live)
			feed.write(another)
			time.Sleep(100 * time.Millisecond)
			if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid || v.Ready() != nil {
				t.Fatalf("%s, ready %v", got, v.Ready())
			}
		}
		if n := v.Stats().Waited; n != 0 {
			t.Errorf("%d verifications waited", n)
		}
	})
}

// P2, C23: a write of this process is acknowledged and answered at once, not at the next poll.
func TestC23OwnWriteWaitsForNoPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, func(c *Config) { c.Poll = 2 * time.Second })
		time.Sleep(3 * time.Second) // in the middle between two polls
		_, key := newKey(t, "org_a", keys.Live)
		began := time.Now()
		if err := v.Await(t.Context(), feed.write(key)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took >= time.Millisecond {
			t.Errorf("waited %v", took)
		}
	})
}

// C23: whatever ends the wait early is an error, never an answer, and only nodes that stayed behind are fenced.
func TestC23AwaitDoesNotGuess(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fence   error
		patient time.Duration // of the caller
		want    error
	}{
		{"the caller gives up", nil, 5 * time.Second, context.DeadlineExceeded},
		{"the fence fails", errAway, time.Minute, errAway},
		{"fenced", nil, time.Minute, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				feed := &interceptedFeed{memoryFeed: newMemoryFeed(), fence: func() error { return tt.fence }}
				v, _ := start(t, feed, nil)
				synctest.Wait()
				if err := feed.Register(t.Context(), keys.Node{ID: "silent"}); err != nil {
					t.Fatal(err)
				}
				// The silent node had acknowledged everything before this write.
				feed.mu.Lock()
				feed.nodes["silent"] = feed.revision
				feed.mu.Unlock()
				_, key := newKey(t, "org_a", keys.Live)
				ctx, cancel := context.WithTimeout(t.Context(), tt.patient)
				defer cancel()
				if err := v.Await(ctx, feed.write(key)); !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
				time.Sleep(time.Second)
				if n := v.Stats().Fenced; n != 0 {
					t.Errorf("the node that acknowledged was fenced %d times", n)
				}
				if n, want := feed.nodeCount(), map[bool]int{true: 1, false: 2}[tt.want == nil]; n != want {
					t.Errorf("%d nodes, want %d", n, want)
				}
			})
		})
	}
}

// C23: a node registers under a new id each time, so that a late packet of its past acknowledges nothing.
func TestC23EachRegistrationHasItsOwnID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		start(t, feed, nil)
		ids := map[string]bool{}
		for range 3 {
			time.Sleep(time.Second)
			synctest.Wait()
			feed.mu.Lock()
			for id := range feed.nodes {
				ids[id] = true
			}
			clear(feed.nodes)
			feed.mu.Unlock()
		}
		if len(ids) != 3 {
			t.Errorf("%d ids in 3 registrations", len(ids))
		}
	})
}

// C23: a node that learns it was fenced answers nothing from memory until it is registered again, whatever is left of its
// lease.
func TestC23FencedNodeAnswersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			renewal, err := next()
			if renewal.Outcome == keys.Fenced {
				feed.setAway(true)
			}
			return renewal, err
		}
		v, _ := start(t, feed, nil)
		synctest.Wait()
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Fatal(got)
		}
		feed.mu.Lock()
		clear(feed.nodes)
		feed.mu.Unlock()
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != "undecided" || v.Ready() == nil {
			t.Errorf("%s, ready %v, from a node that was fenced", got, v.Ready())
		}
	})
}

// R5: a statement that is never answered is given up, and tried again.
func TestR5StatementWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		first := true
		feed.renew = func(ctx context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			if first {
				first = false
				<-ctx.Done()
				return keys.Renewal{Outcome: keys.Fenced}, ctx.Err()
			}
			return next()
		}
		v, stop := start(t, feed, nil)
		time.Sleep(6 * time.Second)
		if err := v.Ready(); err != nil {
			t.Error(err)
		}
		stop()
	})
}

// P6: while the database is away a verification waits 200 ms, is undecided, and says why.
func TestP6WaitingForMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret, key := newKey(t, "org_a", keys.Live)
		v := idle(t, newMemoryFeed())
		var all sync.WaitGroup
		for range 300 {
			all.Go(func() {
				began := time.Now()
				_, err := v.Verify(t.Context(), Request{Secret: secret})
				if !errors.Is(err, ErrUndecided) || !errors.Is(err, errNotLoaded) {
					t.Errorf("%v before anything is loaded", err)
				}
				if took := time.Since(began); took != maxWait {
					t.Errorf("held for %v", took)
				}
			})
		}
		all.Wait()
		if s := v.Stats(); s.Undecided != 300 || s.Waited != 300 {
			t.Errorf("counted %d undecided, %d waited", s.Undecided, s.Waited)
		}
		v.view.Store(&view{index: indexOf(key)})
		if _, err := v.Verify(t.Context(), Request{Secret: secret}); !errors.Is(err, errNoLease) {
			t.Errorf("%v without a lease", err)
		}
		v.view.Store(&view{index: indexOf(key), distrusted: true})
		if _, err := v.Verify(t.Context(), Request{Secret: secret}); !errors.Is(err, errNotProven) {
			t.Errorf("%v when memory is not proven", err)
		}
		v.view.Store(&view{index: indexOf(key), lease: goodFor(v, time.Hour)})
		if _, err := v.Verify(t.Context(), Request{Secret: secret, MinRevision: 1}); !errors.Is(err, errBehind) {
			t.Errorf("%v behind MinRevision", err)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Errorf("%s under a lease", got)
		}
	})
}

// P6, R5: a verification is answered from memory when the lease comes while it waits, as on a node
// that has just started; only under a lease, and by what memory has then.
func TestR5LeaseThatComesWhileItIsWaitedFor(t *testing.T) {
	secret, key := newKey(t, "org_a", keys.Live)
	revoked := key
	revoked.State = keys.StateRevoked
	unheard, _ := newKey(t, "org_a", keys.Live)
	for _, tt := range []struct {
		name   string
		comes  func(v *Verifier) *view
		secret string
		least  int64
		want   keys.Reason
	}{
		{"a lease", func(v *Verifier) *view { return &view{index: indexOf(key), lease: goodFor(v, time.Hour)} }, secret, 0, keys.Valid},
		{"of a key that was revoked", func(v *Verifier) *view { return &view{index: indexOf(revoked), lease: goodFor(v, time.Hour)} }, secret, 0, keys.Revoked},
		{"of a key that is not there", func(v *Verifier) *view { return &view{index: indexOf(key), lease: goodFor(v, time.Hour)} }, unheard, 0, keys.Unknown},
		{"without the revision asked for", func(v *Verifier) *view {
			return &view{index: indexOf(key), applied: keys.Mark{Revision: 4}, lease: goodFor(v, time.Hour)}
		}, secret, 5, "undecided"},
		{"one that has expired", func(v *Verifier) *view { return &view{index: indexOf(key), lease: goodFor(v, -time.Hour)} }, secret, 0, "undecided"},
		{"none", func(*Verifier) *view { return &view{index: indexOf(key)} }, secret, 0, "undecided"},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := idle(t, newMemoryFeed())
			go func() {
				time.Sleep(maxWait / 2)
				v.view.Store(tt.comes(v))
				v.acked.announce()
			}()
			undecided := int64(0)
			if tt.want == "undecided" {
				undecided = 1
			}
			began := time.Now()
			got := reasonOf(v, Request{Secret: tt.secret, MinRevision: tt.least})
			if s := v.Stats(); got != tt.want || s.Undecided != undecided || s.Waited != 1 {
				t.Errorf("%s: %s, want %s; counted %d undecided, %d waited", tt.name, got, tt.want, s.Undecided, s.Waited)
			}
			if took := time.Since(began); took != maxWait/2*time.Duration(1+undecided) {
				t.Errorf("%s: waited %v", tt.name, took)
			}
			time.Sleep(maxWait) // the goroutine ends
		})
	}
}

// C20: every use is written, of more keys than one statement or one block of them holds, and once.
func TestC20ManyUses(t *testing.T) {
	feed := newMemoryFeed()
	v := idle(t, feed)
	ix := newIndex(element)
	want := map[string]time.Time{}
	now := time.Now().Truncate(time.Second).UTC()
	for i := range usesPerBlock + usesPerWrite + 1 {
		_, key := newKey(t, "org_a", keys.Live)
		ix.applyKey(&key, false)
		ix.uses.mark(uint32(i), now)
		ix.uses.mark(uint32(i), now.Add(-time.Minute)) // another processor was late: never back
		want[key.ID] = now
	}
	v.view.Store(&view{index: ix})
	v.flush(t.Context())
	if diff := cmp.Diff(want, feed.recorded()); diff != "" {
		t.Errorf("recorded (-want +got):\n%.2000s", diff)
	}
	if again := ix.uses.take(); len(again) != 0 {
		t.Errorf("%d uses would be written again", len(again))
	}
}

// I2, P5, P6: a database that went back is not answered from until it is loaded again; what was
// revoked or refused stays so, also a key the older database does not have.
func TestI2RestoredBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		var mu sync.Mutex
		loads := true
		feed.snapshot = func() error {
			mu.Lock()
			defer mu.Unlock()
			if !loads {
				return errAway
			}
			return nil
		}
		kept, keptKey := newKey(t, "org_a", keys.Live)
		forged, forgedKey := newKey(t, "org_a", keys.Live)
		backup := feed.write(keptKey, forgedKey)
		keptKey.Revision, forgedKey.Revision = backup.Revision, backup.Revision
		v, _ := start(t, feed, nil)
		synctest.Wait()
		lost, lostKey := newKey(t, "org_b", keys.Test)
		feed.write(lostKey, keys.Organization{ID: "org_b", Active: true, PaymentsEnabled: true, Registered: true, Genuine: true})
		time.Sleep(time.Second)
		reasonOf(v, Request{Secret: lost})
		lostKey.State = keys.StateRevoked
		forgedLater := forgedKey
		forgedLater.Genuine = false
		feed.write(lostKey, forgedLater)
		time.Sleep(time.Second)

		_, strangeKey := newKey(t, "org_c", keys.Live) // of a history this node has not seen
		strangeKey.Revision = backup.Revision
		mu.Lock()
		loads = false
		mu.Unlock()
		feed.mu.Lock()
		feed.revision = backup.Revision
		feed.keys = map[string]keys.Key{keptKey.ID: keptKey, forgedKey.ID: forgedKey, strangeKey.ID: strangeKey}
		feed.organizations = map[string]keys.Organization{}
		feed.restored()
		feed.mu.Unlock()
		time.Sleep(2 * time.Second) // longer than the loop pauses while it hears announcements
		if v.Ready() == nil {
			t.Error("ready with an index that is ahead of the database")
		}
		mu.Lock()
		loads = true
		mu.Unlock()
		time.Sleep(2 * time.Second)

		for _, tt := range []struct {
			name, secret string
			want         keys.Reason
		}{{"kept", kept, keys.Valid}, {"lost", lost, keys.Revoked}, {"forged", forged, keys.Unknown}} {
			if got := reasonOf(v, Request{Secret: tt.secret}); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
		got, err := v.Verify(t.Context(), Request{Secret: lost})
		want := Verdict{Reason: keys.Revoked, KeyID: lostKey.ID, OrganizationID: "org_b", KeyName: lostKey.Name, Environment: keys.Test, CreatedAt: lostKey.CreatedAt}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("verdict about a key the older database does not have (-want +got):\n%s%v", diff, err)
		}
		if s := v.Stats(); s.Keys != 4 {
			t.Errorf("%d keys, want 4", s.Keys)
		}

		// The key's id still leads to its entry: the row that comes back under another digest changes nothing.
		_, other := newKey(t, "org_b", keys.Test)
		other.ID = lostKey.ID
		feed.write(other)
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: lost}); got != keys.Revoked {
			t.Errorf("%s after its id was taken by another digest", got)
		}
		if n := v.Stats().Tampered; n != 2 {
			t.Errorf("%d rows reported, want 2: the forged one, and the id that was taken", n)
		}
	})
}

// C17, P5: the collected work of a running verifier: kept answers older than 24 h are erased every minute,
// and the rows are checked against their seals every hour.
func TestC17BackgroundWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		var mu sync.Mutex
		var erased []time.Duration
		feed.erase = func(before time.Time) {
			mu.Lock()
			defer mu.Unlock()
			erased = append(erased, time.Since(before))
		}
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, _ := start(t, feed, nil)
		time.Sleep(2*time.Minute + time.Second)
		mu.Lock()
		if diff := cmp.Diff([]time.Duration{24 * time.Hour, 24 * time.Hour}, erased); diff != "" {
			t.Errorf("age of what was erased in two minutes (-want +got):\n%s", diff)
		}
		mu.Unlock()

		key.Genuine, key.Revision = false, 1
		feed.mu.Lock()
		feed.keys[key.ID] = key
		feed.mu.Unlock()
		time.Sleep(time.Hour)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Unknown {
			t.Errorf("%s an hour after the row was changed", got)
		}
	})
}

// P5, P6: a row that is not genuine, of any kind, gives nothing away; one that was revoked keeps its reason.
func TestP5ChangedRows(t *testing.T) {
	secret, key := newKey(t, "org_a", keys.Live)
	key.Revision = 5
	for _, tt := range []struct {
		name   string
		before keys.State
		change func(*keys.Key)
		report conflict
		want   keys.Reason
	}{
		{"forged", keys.StateActive, func(k *keys.Key) { k.Genuine = false }, notGenuine, keys.Unknown},
		{"forged after a revoke", keys.StateRevoked, func(k *keys.Key) { k.Genuine = false }, notGenuine, keys.Revoked},
		{"of an older revision", keys.StateActive, func(k *keys.Key) { k.Revision, k.State = 4, keys.StateExpired }, wentBack, keys.Valid},
		{"no longer revoked", keys.StateRevoked, func(k *keys.Key) { k.Revision = 6 }, unrevoked, keys.Revoked},
		{"of a state of the future", keys.StateActive, func(k *keys.Key) { k.Revision, k.State = 6, "paused" }, stateUnknown, keys.Unknown},
		{"shorter", keys.StateActive, func(k *keys.Key) { k.Revision, k.State, k.ExpiresAt = 6, keys.StateOverlapping, time.Now() }, noConflict, keys.Expired}, // C24
	} {
		k := key
		k.State = tt.before
		ix := indexOf(k)
		k.State = keys.StateActive
		tt.change(&k)
		if got := ix.applyKey(&k, true); got != tt.report {
			t.Errorf("%s: reported %q, want %q", tt.name, got, tt.report)
		}
		v := idle(t, newMemoryFeed())
		v.view.Store(&view{index: ix, lease: goodFor(v, time.Hour)})
		if got := reasonOf(v, Request{Secret: secret}); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// P5: a row whose digest was changed to another secret's opens nothing, unless Keyward itself wrote it.
func TestP5TakenDigest(t *testing.T) {
	for _, genuine := range []bool{false, true} {
		_, key := newKey(t, "org_a", keys.Live)
		other, otherKey := newKey(t, "org_a", keys.Live)
		ix := indexOf(key)
		key.Digest, key.Genuine = otherKey.Digest, genuine
		ix.applyKey(&key, true)
		v := idle(t, newMemoryFeed())
		v.view.Store(&view{index: ix, lease: goodFor(v, time.Hour)})
		want := map[bool]keys.Reason{false: keys.Unknown, true: keys.Valid}[genuine]
		if got := reasonOf(v, Request{Secret: other}); got != want {
			t.Errorf("genuine %v: %s, want %s", genuine, got, want)
		}
	}
}

// P5, O1: an organization's row of an older revision, or one that is not genuine, changes nothing for the better; and a
// forged one does not keep out the genuine one that repairs it, whatever revision it claimed.
func TestP5ChangedOrganizations(t *testing.T) {
	good := keys.Organization{ID: "org_b", ParentID: "org_a", Active: true, PaymentsEnabled: true, Registered: true, Genuine: true, Revision: 5}
	secret, key := newKey(t, "org_b", keys.Live)
	parentSecret, parentKey := newKey(t, "org_a", keys.Live)
	for _, tt := range []struct {
		name     string
		change   func(*keys.Organization)
		report   conflict
		want     keys.Reason // for a key of org_b
		payments bool
		child    bool // whether org_b is a connected account of org_a
	}{
		{"the same again", func(*keys.Organization) {}, noConflict, keys.Valid, true, true},
		{"newer", func(o *keys.Organization) { o.Revision, o.Active = 6, false }, noConflict, keys.OrganizationInactive, true, false},
		{"newer, without payments", func(o *keys.Organization) { o.Revision, o.PaymentsEnabled = 6, false }, noConflict, keys.Valid, false, true},
		{"newer, without a parent", func(o *keys.Organization) { o.Revision, o.ParentID = 6, "" }, noConflict, keys.Valid, true, false},
		{"newer, of another parent", func(o *keys.Organization) { o.Revision, o.ParentID = 6, "org_c" }, noConflict, keys.Valid, true, false},
		{"older", func(o *keys.Organization) { o.Revision, o.Active = 4, false }, wentBack, keys.Valid, true, true},
		{"forged", func(o *keys.Organization) { o.Genuine = false }, notGenuine, keys.OrganizationInactive, false, false},
		{"forged of an older revision", func(o *keys.Organization) { o.Genuine, o.Revision = false, 1 }, notGenuine, keys.OrganizationInactive, false, false},
		{"forged of a revision to come", func(o *keys.Organization) { o.Genuine, o.Revision = false, 1<<62 }, notGenuine, keys.OrganizationInactive, false, false},
	} {
		ix := indexOf(key, parentKey)
		before := good
		ix.applyOrganization(&before, false)
		o := good
		tt.change(&o)
		if got := ix.applyOrganization(&o, true); got != tt.report {
			t.Errorf("%s: reported %q, want %q", tt.name, got, tt.report)
		}
		v := idle(t, newMemoryFeed())
		v.view.Store(&view{index: ix, lease: goodFor(v, time.Hour)})
		got, err := v.Verify(t.Context(), Request{Secret: secret})
		if err != nil || got.Reason != tt.want || got.PaymentsEnabled != tt.payments {
			t.Errorf("%s: %s, payments enabled %v, %v", tt.name, got.Reason, got.PaymentsEnabled, err)
		}
		if got := reasonOf(v, Request{Secret: parentSecret, ConnectedAccountID: "org_b"}); (got == keys.Valid) != tt.child {
			t.Errorf("%s: %s as a connected account", tt.name, got)
		}
		if got := reasonOf(v, Request{Secret: parentSecret, ConnectedAccountID: "org_nobody"}); got != keys.ConnectedAccountForbidden {
			t.Errorf("%s: %s for a connected account nobody knows", tt.name, got)
		}
		if n := v.Stats().Organizations; n != 1 {
			t.Errorf("%s: %d organizations, want the one that is registered", tt.name, n)
		}
		repaired := good
		repaired.Revision = 7
		if c := ix.applyOrganization(&repaired, true); c != noConflict {
			t.Errorf("%s: its repair was refused: %s", tt.name, c)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Errorf("%s: %s after the repair", tt.name, got)
		}
	}
}

// O1, V3: more organizations than one block of the index holds, met as owners, as parents and for themselves,
// keep apart.
func TestO1ManyOrganizations(t *testing.T) {
	ix := newIndex(element)
	const n = ownersPerBlock + 10
	secrets := make([]string, n)
	for i := range n {
		var key keys.Key
		secrets[i], key = newKey(t, fmt.Sprint("org_", i), keys.Live)
		ix.applyKey(&key, i%2 == 0)
	}
	for i := range n {
		o := keys.Organization{ID: fmt.Sprint("org_", i), Active: i%3 != 0, PaymentsEnabled: i%5 == 0, Registered: true, Genuine: true, Revision: int64(i)}
		ix.applyOrganization(&o, i%2 == 0)
		child := keys.Organization{ID: fmt.Sprint("child_", i), ParentID: o.ID, Active: true, Registered: true, Genuine: true, Revision: int64(i)}
		ix.applyOrganization(&child, i%2 == 0)
	}
	v := idle(t, newMemoryFeed())
	v.view.Store(&view{index: ix, lease: goodFor(v, time.Hour)})
	for i := range n {
		got, err := v.Verify(t.Context(), Request{Secret: secrets[i], ConnectedAccountID: fmt.Sprint("child_", i)})
		want := keys.Valid
		if i%3 == 0 {
			want = keys.OrganizationInactive
		}
		if err != nil || got.Reason != want || got.PaymentsEnabled != (i%5 == 0) || got.OrganizationID != fmt.Sprint("org_", i) {
			t.Fatalf("organization %d: %+v, %v, want %s", i, got, err, want)
		}
		if i%3 == 0 {
			continue
		}
		if got := reasonOf(v, Request{Secret: secrets[i], ConnectedAccountID: fmt.Sprint("child_", (i+1)%n)}); got != keys.ConnectedAccountForbidden {
			t.Fatalf("organization %d: %s with its neighbour's connected account", i, got)
		}
	}
}

// V3: readers who ask for a connected account meet the writer who makes its place, under the race detector.
func TestV3ConnectedAccountsWhileTheyAreMade(t *testing.T) {
	secret, key := newKey(t, "org_a", keys.Live)
	ix := indexOf(key)
	v := idle(t, newMemoryFeed())
	v.view.Store(&view{index: ix, lease: goodFor(v, time.Hour)})
	var readers sync.WaitGroup
	const n = 200
	for range 2 {
		readers.Go(func() {
			deadline := time.Now().Add(30 * time.Second)
			for i := range n {
				r := Request{Secret: secret, ConnectedAccountID: fmt.Sprint("child_", i)}
				for reasonOf(v, r) != keys.Valid {
					if time.Now().After(deadline) {
						t.Errorf("%s is not seen", r.ConnectedAccountID)
						return
					}
				}
			}
		})
	}
	for i := range n {
		o := keys.Organization{ID: fmt.Sprint("child_", i), ParentID: "org_a", Active: true, Registered: true, Genuine: true, Revision: 1}
		if c := ix.applyOrganization(&o, true); c != noConflict {
			t.Error(c)
		}
	}
	readers.Wait()
}

// Keys that share a part of the index leave each other alone, and a reader who holds the part from before
// is not disturbed.
func TestKeysOfOneShard(t *testing.T) {
	var m sharded[token.Digest, int]
	digest := func(i int) (d token.Digest) {
		d[0], d[1], d[31] = 7, 0x10, byte(i) // the first twelve bits choose the part
		return d
	}
	for i := range 100 {
		before := m.shard(digest(i)).Load()
		m.replace(digest(i), i)
		if before != nil && len(*before) != i {
			t.Fatalf("a part that was published has %d keys after a change, want %d", len(*before), i)
		}
	}
	for i := range 100 {
		if got, ok := m.get(digest(i)); !ok || got != i {
			t.Errorf("key %d: %d %v", i, got, ok)
		}
	}
	used := map[any]bool{}
	for i := range 1 << shardBits {
		var d token.Digest
		d[0], d[1] = byte(i>>4), byte(i<<4)
		used[m.shard(d)] = true
	}
	if len(used) != 1<<shardBits {
		t.Errorf("%d parts are used of %d", len(used), 1<<shardBits)
	}
}

// P5, P6: a snapshot that does not hold together is not served from.
func TestP6TamperedSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		feed.unproven = true
		_, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, _ := start(t, feed, nil)
		time.Sleep(time.Minute)
		if v.Ready() == nil || v.Stats().Keys != 0 {
			t.Errorf("ready with %d keys of a snapshot that was refused", v.Stats().Keys)
		}
	})
}

// R3: a lease so short that polls cannot keep it is refused.
func TestR3LeaseAndPoll(t *testing.T) {
	for _, tt := range []struct {
		lease, poll time.Duration
		ok          bool
	}{
		{0, 0, true},
		{time.Second, 0, true},
		{time.Second, 250 * time.Millisecond, true},
		{time.Second - 1, 0, false},
		{time.Second, 250*time.Millisecond + 1, false},
		{-time.Second, 0, false},
	} {
		_, err := New(Config{Feed: newMemoryFeed(), Format: format, Lease: tt.lease, Poll: tt.poll})
		if (err == nil) != tt.ok {
			t.Errorf("lease %v, poll %v: %v", tt.lease, tt.poll, err)
		}
	}
	if _, err := New(Config{Format: format}); err == nil {
		t.Error(fmt.Sprint("no feed: ", err))
	}
}
