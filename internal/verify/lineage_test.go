package verify

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// promote makes the database one of the next timeline, not yet settled.
func (f *memoryFeed) promote() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeline++
}

func (f *memoryFeed) isSettled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled == f.timeline
}

// awaited returns how long Await took.
func awaited(t *testing.T, v *Verifier, c keys.Commit) time.Duration {
	t.Helper()
	began := time.Now()
	if err := v.Await(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// wholeWait is 1.25 L + 50 ms for the default lease.
const wholeWait = 12550 * time.Millisecond

// C23: when a standby has taken over, the row of a node that holds a lease may be lost. Nothing is answered early until who has seen the
// new timeline for a whole wait says so, and then for everybody.
func TestC23NewTimelineIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.timeline, feed.settled = 1, 1
		v, _ := start(t, feed, nil)
		synctest.Wait()
		if took := awaited(t, v, feed.write()); took > 100*time.Millisecond {
			t.Errorf("answered after %v on a settled timeline", took)
		}
		feed.promote()
		if took := awaited(t, v, feed.write()); took < wholeWait {
			t.Errorf("answered after %v on a new timeline", took)
		}
		if took := awaited(t, v, feed.write()); took > 100*time.Millisecond {
			t.Errorf("the next write of the process that has waited took %v", took)
		}
		time.Sleep(2 * time.Second)
		if !feed.isSettled() {
			t.Error("not noted as settled, for other processes")
		}
		if took := awaited(t, v, feed.write()); took > 100*time.Millisecond {
			t.Errorf("the next write waited %v", took)
		}
		other, _ := start(t, feed, nil)
		time.Sleep(time.Second)
		if took := awaited(t, other, feed.write()); took > 100*time.Millisecond {
			t.Errorf("a process that was started later waited %v", took)
		}
	})
}

// C23: a node settles a timeline without any write, counted from when it first saw it, so that the first write need not wait.
func TestC23TimelineIsSettledUnattended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.timeline = 7 // this process has not seen any other, but the note is of an earlier one
		v, _ := start(t, feed, nil)
		time.Sleep(wholeWait - 100*time.Millisecond)
		if feed.isSettled() {
			t.Error("settled before a whole wait was over")
		}
		time.Sleep(2 * time.Second)
		if !feed.isSettled() {
			t.Error("not settled")
		}
		if took := awaited(t, v, feed.write()); took > 100*time.Millisecond {
			t.Errorf("a write waited %v", took)
		}
	})
}

// C23: a commit on the timeline before proves nothing about when the new one began: its writer waits and answers, but does not settle.
func TestC23EarlierCommitDoesNotSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.timeline, feed.settled = 1, 1
		v, _ := start(t, feed, nil)
		synctest.Wait()
		if err := feed.Register(t.Context(), keys.Node{ID: "silent"}); err != nil {
			t.Fatal(err)
		}
		commit := feed.write()
		time.AfterFunc(10*time.Second, feed.promote)
		if took := awaited(t, v, commit); took < wholeWait {
			t.Errorf("answered after %v", took)
		}
		if feed.isSettled() {
			t.Error("settled 3 s after it began")
		}
	})
}

// C23: the waits are as long as the longest lease of any node, not this one's.
func TestC23SettlingWaitsForTheLongestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.timeline = 1
		start(t, feed, func(c *Config) { c.Lease = 2 * time.Second })
		start(t, feed, func(c *Config) { c.Lease = 20 * time.Second })
		time.Sleep(25 * time.Second)
		if feed.isSettled() {
			t.Error("settled before the longest lease was over")
		}
		time.Sleep(2 * time.Second)
		if !feed.isSettled() {
			t.Error("not settled")
		}
	})
}

// C23: rows that say nobody is behind are not enough while this node's own row is not among them.
func TestC23OwnRowIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		var mu sync.Mutex
		renews := true
		feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
			mu.Lock()
			defer mu.Unlock()
			if !renews {
				return keys.Renewal{}, errAway // it does not find out
			}
			return next()
		}
		v, _ := start(t, feed, nil)
		synctest.Wait()
		mu.Lock()
		renews = false
		mu.Unlock()
		feed.mu.Lock()
		clear(feed.nodes)
		feed.mu.Unlock()
		if took := awaited(t, v, feed.write()); took < wholeWait {
			t.Errorf("answered after %v, while the rows were gone", took)
		}
	})
}

// C23: a database that does not have the write says nothing about it.
func TestC23AwaitNeedsTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, nil)
		synctest.Wait()
		commit := feed.write()
		feed.mu.Lock()
		feed.marks[commit.Revision] = 9 // another history has that number
		feed.mu.Unlock()
		if err := v.Await(t.Context(), commit); !errors.Is(err, keys.ErrDiverged) {
			t.Errorf("%v, want ErrDiverged", err)
		}
	})
}

// C23: the version gate: a node that is told the database wants a newer protocol ends with its lease, says why, and comes back when the
// gate is lowered again.
func TestC23OutdatedNodeIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, _ := start(t, feed, nil)
		time.Sleep(time.Second)
		gate := func(protocol int) {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			feed.protocol = protocol
		}
		gate(keys.LeaseProtocol + 1)
		time.Sleep(11 * time.Second)
		if err := v.Ready(); !errors.Is(err, keys.ErrOutdated) {
			t.Errorf("ready: %v", err)
		}
		if _, err := v.Verify(t.Context(), Request{Secret: secret}); !errors.Is(err, ErrUndecided) || !errors.Is(err, keys.ErrOutdated) {
			t.Errorf("an outdated node: %v", err)
		}
		gate(keys.LeaseProtocol)
		time.Sleep(2 * time.Second)
		if err := v.Ready(); err != nil {
			t.Error(err)
		}
	})
}

// renewals counts them from now on.
func renewals(feed *interceptedFeed) func() int {
	var mu sync.Mutex
	n := 0
	feed.renew = func(_ context.Context, next func() (keys.Renewal, error)) (keys.Renewal, error) {
		mu.Lock()
		n++
		mu.Unlock()
		return next()
	}
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		defer func() { n = 0 }()
		return n
	}
}

// P1: announcements make polling rare, but only while some arrive: who listens and hears nothing polls as if there were none.
func TestP1AnnouncementsAreProvenBeforeTheyAreReliedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
		count := renewals(feed)
		v, _ := start(t, feed, nil)
		time.Sleep(5 * time.Second)
		count()
		time.Sleep(10 * time.Second)
		if n := count(); n > 12 || !v.Stats().Announced {
			t.Errorf("%d renewals in 10 s (announced: %t), want about one a second", n, v.Stats().Announced)
		}
		time.Sleep(5 * time.Minute) // nobody writes; it goes on hearing what it announces itself
		if !v.Stats().Announced {
			t.Error("in the silence the announcements are not known to arrive any more")
		}
		feed.mu.Lock()
		feed.deaf = true
		feed.listeners = nil // the connection stays, and nothing arrives on it
		feed.mu.Unlock()
		time.Sleep(hearingLasts + time.Second)
		count()
		time.Sleep(10 * time.Second)
		if n := count(); n < 90 || v.Stats().Announced {
			t.Errorf("%d renewals in 10 s (announced: %t), want one each 100 ms", n, v.Stats().Announced)
		}
		feed.mu.Lock()
		feed.deaf = false
		feed.mu.Unlock()
		time.Sleep(2 * deafAfter) // it tries another connection
		if !v.Stats().Announced {
			t.Error("announcements arrive again, and that is not noticed")
		}
	})
}

// P1, C23: a write that is announced with its changes is applied without reading them, but only right after the one before it, only on the timeline
// of the lease, and only from the connection it was heard on. Everything else is read.
func TestP1AnnouncedChanges(t *testing.T) {
	for name, test := range map[string]struct {
		disturb func(feed *memoryFeed)
		reads   int
	}{
		"as it comes": {func(*memoryFeed) {}, 0},
		"one before it was lost": {func(feed *memoryFeed) {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			feed.dropped = 1
		}, 1},
		"of another timeline": {func(feed *memoryFeed) {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			feed.announcedOn = 7
		}, 1},
		"twice": {func(feed *memoryFeed) {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			feed.twice = true
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				feed := &interceptedFeed{memoryFeed: newMemoryFeed()}
				var reads atomic.Int64
				feed.changes = func(next func() (keys.Changes, error)) (keys.Changes, error) {
					reads.Add(1)
					return next()
				}
				secret, key := newKey(t, "org_a", keys.Live)
				_, first := newKey(t, "org_b", keys.Live)
				feed.write(key)
				v, _ := start(t, feed, nil)
				time.Sleep(5 * time.Second)
				before := reads.Load()
				test.disturb(feed.memoryFeed)
				feed.write(first)
				key.State = keys.StateRevoked
				commit := feed.write(key)
				if took := awaited(t, v, commit); took > time.Second+50*time.Millisecond {
					t.Errorf("waited %v", took)
				}
				if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
					t.Errorf("%s after the revoke was answered", got)
				}
				if applied := v.view.Load().applied; applied != commit.Mark {
					t.Errorf("applied %+v, want %+v", applied, commit.Mark)
				}
				if n := int(reads.Load() - before); n < test.reads || n > 2*test.reads {
					t.Errorf("changes were read %d times, want %d", n, test.reads)
				}
			})
		})
	}
}

// P1: whoever may connect to the database may announce any number. It makes nodes look in vain, and no write slower.
func TestP1ForgedNumberAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.terse = true
		v, _ := start(t, feed, nil)
		other, _ := start(t, feed, nil)
		time.Sleep(5 * time.Second)
		if !other.Stats().Announced {
			t.Fatal("announcements do not arrive")
		}
		for _, far := range []int64{1 << 60, -5} {
			if err := feed.Announce(t.Context(), far); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			for range 3 {
				if took := awaited(t, v, feed.write()); took > 20*time.Millisecond {
					t.Errorf("waited %v after %d was announced", took, far)
				}
			}
		}
	})
}

// I2, P1: what was heard on one connection is forgotten with it, and with the history it belongs to.
func TestI2HeardWritesAreForgotten(t *testing.T) {
	var h heardWrites
	for r := range int64(5) {
		h.add(keys.Announcement{Revision: r + 1, Timeline: 1, Before: keys.Mark{Revision: r}, Changes: &keys.Changes{}})
	}
	if _, ok := h.take(keys.Mark{Revision: 2}, 1); !ok {
		t.Error("3 was not heard")
	}
	if _, ok := h.take(keys.Mark{Revision: 1}, 1); ok {
		t.Error("2 is still there after 3")
	}
	if _, ok := h.take(keys.Mark{Revision: 3}, 2); ok {
		t.Error("4 is taken on another timeline")
	}
	h.add(keys.Announcement{Revision: 4, Timeline: 1, Before: keys.Mark{Revision: 3, Hash: [32]byte{1}}, Changes: &keys.Changes{}})
	if _, ok := h.take(keys.Mark{Revision: 3}, 1); ok {
		t.Error("4 is taken at a point of another history")
	}
	h.forget()
	if _, ok := h.take(keys.Mark{Revision: 4}, 1); ok {
		t.Error("5 was not forgotten")
	}
	for r := range int64(mostHeard + 1) {
		h.add(keys.Announcement{Revision: r + 1, Timeline: 1, Changes: &keys.Changes{}})
	}
	if n := len(h.writes); n > mostHeard {
		t.Errorf("%d are kept, more than %d", n, mostHeard)
	}

	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, nil)
		time.Sleep(5 * time.Second)
		far := keys.Announcement{Revision: 50, Timeline: feed.timeline, Changes: &keys.Changes{}}
		hear := func() {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			for _, heard := range feed.listeners {
				(*heard)(far)
			}
		}
		kept := func() int {
			v.heard.mu.Lock()
			defer v.heard.mu.Unlock()
			return len(v.heard.writes)
		}
		hear()
		if kept() != 1 {
			t.Fatal("not kept")
		}
		if err := v.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if kept() != 0 {
			t.Error("kept after a load")
		}
		hear()
		feed.mu.Lock()
		feed.listeners = nil // nothing is heard any more, so another connection is tried
		feed.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if kept() != 0 {
			t.Error("kept for another connection")
		}
	})
}

// C2, P1: who may manage keys is answered from memory only while the lease is good, and then as it was answered last.
func TestManages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		organization := func(id, parent string, active bool) keys.Organization {
			return keys.Organization{ID: id, ParentID: parent, Active: active, Registered: true, Genuine: true}
		}
		_, key := newKey(t, "org_seen", keys.Live)
		feed.write(key, organization("org_on", "", true), organization("org_off", "", false), organization("org_child", "org_on", true))
		v, _ := start(t, feed, nil)
		if v.Manages("org_on", false) {
			t.Error("answered before anything was loaded")
		}
		synctest.Wait()
		type manages struct{ Either, Registered bool }
		want := map[string]manages{
			"org_on": {true, true}, "org_off": {}, "org_child": {}, "org_seen": {true, false}, "org_never_seen": {true, false},
		}
		check := func(when string) {
			t.Helper()
			got := map[string]manages{}
			for id := range want {
				got[id] = manages{v.Manages(id, false), v.Manages(id, true)}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		check("at first")
		if err := v.Await(t.Context(), feed.write(organization("org_on", "", false))); err != nil {
			t.Fatal(err)
		}
		want["org_on"] = manages{}
		check("switched off")
		feed.setAway(true)
		time.Sleep(11 * time.Second)
		clear(want)
		want["org_seen"], want["org_never_seen"] = manages{}, manages{}
		check("after the lease")
	})
}

// P1, C23: a write whose announcement is lost is acknowledged with the next poll.
func TestP1LostAnnouncementCostsAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, nil)
		other, _ := start(t, feed, nil)
		time.Sleep(5 * time.Second)
		if !v.Stats().Announced || !other.Stats().Announced {
			t.Fatal("announcements do not arrive")
		}
		if took := awaited(t, v, feed.write()); took > 10*time.Millisecond {
			t.Errorf("waited %v for a node that was told", took)
		}
		feed.mu.Lock()
		feed.listeners = nil
		feed.mu.Unlock()
		if took := awaited(t, v, feed.write()); took < 10*time.Millisecond || took > time.Second+20*time.Millisecond {
			t.Errorf("waited %v for a node that was not told, want a poll", took)
		}
	})
}

// C23, I2: the revocations that a database lost are given back to it by who knows them, each until it is done.
func TestC23LostRevocationsAreWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		_, lost := newKey(t, "org_a", keys.Live)
		_, kept := newKey(t, "org_b", keys.Live)
		_, lostAltogether := newKey(t, "org_c", keys.Live)
		kept.State = keys.StateRevoked
		backup := feed.write(lost, kept)
		lost.Revision = backup.Revision
		var mu sync.Mutex
		var again []string
		fail := 2
		v, _ := start(t, feed, func(c *Config) {
			c.RevokeAgain = func(_ context.Context, id string) error {
				mu.Lock()
				defer mu.Unlock()
				again = append(again, id)
				if fail--; fail >= 0 {
					return errAway
				}
				return nil
			}
		})
		time.Sleep(time.Second)
		ended := lost
		ended.State, lostAltogether.State = keys.StateRevoked, keys.StateRevoked
		feed.write(ended, lostAltogether)
		time.Sleep(2 * time.Second)
		feed.mu.Lock()
		feed.revision = backup.Revision
		feed.keys[lost.ID] = lost
		delete(feed.keys, lostAltogether.ID)
		feed.restored()
		feed.mu.Unlock()
		time.Sleep(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(again, []string{lost.ID, lost.ID, lost.ID}) || v.Stats().RevokedAgain != 1 {
			t.Errorf("%v, done %d; want the one lost revocation of a key that is there, until it succeeded", again, v.Stats().RevokedAgain)
		}
	})
}

// C23: a machine whose clock runs at another rate than the database's says so.
func TestClockRateIsWatched(t *testing.T) {
	v := idle(t, newMemoryFeed())
	at := time.Now()
	v.checkRate(at, 0)
	v.checkRate(at.Add(time.Second), time.Second) // too soon to tell
	if rate := v.Stats().ClockRate; rate != 1 {
		t.Errorf("rate %v after a second", rate)
	}
	v.checkRate(at.Add(90*time.Second), time.Minute)
	if rate := v.Stats().ClockRate; rate < 1.49 || rate > 1.51 {
		t.Errorf("rate %v, want 1.5", rate)
	}
}

// P1: how each wait ended is told, for metrics.
func TestBarrierOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		var got []BarrierOutcome
		v, _ := start(t, feed, func(c *Config) {
			c.OnBarrier = func(o BarrierOutcome, took time.Duration) {
				got = append(got, o)
				if fenced := took >= wholeWait; fenced != (o == BarrierFenced) {
					t.Errorf("%s after %v", o, took)
				}
			}
		})
		time.Sleep(time.Second)
		awaited(t, v, feed.write())
		if err := feed.Register(t.Context(), keys.Node{ID: "silent"}); err != nil {
			t.Fatal(err)
		}
		awaited(t, v, feed.write())
		commit := feed.write()
		feed.setAway(true)
		if err := v.Await(t.Context(), commit); err == nil {
			t.Error("answered without the database")
		}
		if want := []BarrierOutcome{BarrierAcknowledged, BarrierFenced, BarrierFailed}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if n := v.Stats().FencedOthers; n != 1 {
			t.Errorf("%d nodes fenced, want 1", n)
		}
	})
}
