package verify

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// shiftedClock is the machine's clock with a shift, of which its timers know nothing: what a process sees that was stopped for a
// while, or whose wall clock was set.
type shiftedClock struct {
	systemClock
	mono, wall atomic.Int64
}

func (c *shiftedClock) now() instant {
	i := c.systemClock.now()
	return instant{i.mono + time.Duration(c.mono.Load()), i.wall + c.wall.Load()}
}

// startOn is start with a clock.
func startOn(t *testing.T, feed keys.Feed) (*Verifier, *shiftedClock) {
	t.Helper()
	v := idle(t, feed)
	c := &shiftedClock{systemClock: newSystemClock()}
	v.clock = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return v, c
}

// C23, P1: a process that was stopped past its lease, and of which nothing has run since but the verification, decides
// nothing from memory.
func TestC23StoppedProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, c := startOn(t, feed)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid || v.Ready() != nil {
			t.Fatalf("%s, ready %v", got, v.Ready())
		}
		key.State = keys.StateRevoked
		feed.write(key)
		c.mono.Add(int64(time.Minute))
		c.wall.Add(int64(time.Minute))
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked || v.Stats().Waited != 1 {
			t.Errorf("%s after a minute in which the process stood still, waited %d times", got, v.Stats().Waited)
		}
	})
}

// C23: a wall clock that is set while a write waits for a silent node changes nothing about the wait.
func TestC23TheWaitFollowsNoWallClock(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				feed := newMemoryFeed()
				v, c := startOn(t, feed)
				synctest.Wait()
				if err := feed.Register(t.Context(), keys.Node{ID: "silent"}); err != nil {
					t.Fatal(err)
				}
				commit := feed.write()
				began := time.Now()
				answered := make(chan error, 1)
				go func() { answered <- v.Await(context.Background(), commit) }()
				time.Sleep(time.Second)
				c.wall.Add(int64(by))
				if err := <-answered; err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < 12550*time.Millisecond || took > 12600*time.Millisecond {
					t.Errorf("waited %v, want 1.25 L + 50 ms", took)
				}
			})
		})
	}
}

// leftFeed tells when a node takes its row away.
type leftFeed struct {
	*memoryFeed
	left func()
}

func (f *leftFeed) Leave(ctx context.Context, id string) error {
	err := f.memoryFeed.Leave(ctx, id)
	f.left()
	return err
}

// R5, C23: a node that stops answers nothing once its row is gone: no writer waits for it any more.
func TestR5LeaveClosesTheViewFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &leftFeed{memoryFeed: newMemoryFeed()}
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, stop := start(t, feed, nil)
		time.Sleep(time.Second)
		got := keys.Reason("not asked")
		feed.left = func() {
			key.State = keys.StateRevoked
			feed.write(key)
			got = reasonOf(v, Request{Secret: secret})
		}
		stop()
		if got != "undecided" {
			t.Errorf("%s once the row is gone", got)
		}
	})
}
