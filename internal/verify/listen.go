package verify

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// Announcements go out with each commit. That a connection listens proves nothing: behind a pooler that
// hands connections out by the transaction none ever arrives. So a node relies on them only while it hears some, and
// when there was nothing to hear for a while it announces something itself.
const (
	hearingLasts = 20 * time.Second // after the last announcement that arrived
	askAfter     = 15 * time.Second // of silence
	deafAfter    = 30 * time.Second // of silence, although it asked: another connection is tried
)

// ear is what was heard.
type ear struct{ last atomic.Int64 } // monotonic nanoseconds; math.MinInt64 = nothing on this connection

func (e *ear) heard(now time.Duration) { e.last.Store(int64(now)) }

func (e *ear) forget() { e.last.Store(math.MinInt64) }

// silence is for how long nothing was heard.
func (e *ear) silence(now time.Duration) time.Duration {
	last := e.last.Load()
	if last == math.MinInt64 {
		return math.MaxInt64
	}
	return now - time.Duration(last)
}

func (e *ear) hears(now time.Duration) bool { return e.silence(now) < hearingLasts }

// heardWrites are writes that were announced together with what they changed, by revision, until they are applied.
type heardWrites struct {
	mu     sync.Mutex
	writes map[int64]keys.Announcement // guarded by mu
}

// mostHeard bounds what waits for a write before it; beyond it all are read from the database instead.
const mostHeard = 100

func (h *heardWrites) add(a keys.Announcement) {
	if a.Changes == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writes == nil || len(h.writes) >= mostHeard {
		h.writes = make(map[int64]keys.Announcement)
	}
	h.writes[a.Revision] = a
}

// take returns what the write right after a point in history changed, if it was heard, followed that very point, and was committed on
// that timeline. It and all before it are forgotten.
func (h *heardWrites) take(after keys.Mark, timeline int64) (*keys.Changes, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	revision := after.Revision + 1
	a, ok := h.writes[revision]
	for r := range h.writes {
		if r <= revision {
			delete(h.writes, r)
		}
	}
	return a.Changes, ok && a.Timeline == timeline && a.Before == after
}

func (h *heardWrites) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.writes)
}

// listen hears announcements until ctx ends.
func (v *Verifier) listen(ctx context.Context) {
	for ctx.Err() == nil {
		v.ear.forget()
		v.heard.forget() // the next connection may be to another server
		hearing, stop := context.WithCancel(ctx)
		var proving sync.WaitGroup
		proving.Go(func() { v.prove(hearing); stop() })
		err := v.cfg.Feed.Listen(hearing, func(a keys.Announcement) {
			v.ear.heard(v.clock.now().mono)
			v.heard.add(a)
			held := v.view.Load()
			if a.Revision > 0 && a.Revision != v.told.Load() && (held == nil || a.Revision > held.applied.Revision) {
				v.told.Store(a.Revision) // not the greatest: who may connect may announce any number
				v.wakeUp()
			}
		})
		stop()
		proving.Wait()
		v.ear.forget()
		if ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			v.cfg.Logger.Warn("announcements of writes are not heard; polling until they are", "error", err, "every", v.cfg.Poll.String())
		}
		v.sleep(ctx, time.Second)
	}
}

// wakeUp has the follow loop look for changes at once.
func (v *Verifier) wakeUp() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// announce announces something. Nobody waits long for a hint to be sent.
func (v *Verifier) announce(ctx context.Context, revision int64) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := v.cfg.Feed.Announce(ctx, revision); err != nil {
		v.cfg.Logger.Debug("an announcement could not be sent", "revision", revision, "error", err)
	}
}

// prove announces something whenever nothing was heard, and returns when that is not heard either.
func (v *Verifier) prove(ctx context.Context) {
	began := v.clock.now().mono
	pause := 50 * time.Millisecond
	for v.sleep(ctx, pause) {
		now := v.clock.now().mono
		silence := min(v.ear.silence(now), now-began)
		switch {
		case v.ear.hears(now) && silence < askAfter:
			pause = time.Second
		case silence >= deafAfter:
			return
		default:
			v.announce(ctx, 0)
			pause = min(2*pause, 5*time.Second)
		}
	}
}

// sleep waits by this node's clock and reports whether ctx is still going.
func (v *Verifier) sleep(ctx context.Context, d time.Duration) bool {
	next, stop := v.clock.timer(d)
	defer stop()
	select {
	case <-next:
		return true
	case <-ctx.Done():
		return false
	}
}

// lostRevocations are ids of keys that this node knows to be revoked and a database that lost writes does not.
type lostRevocations struct {
	mu      sync.Mutex
	ids     []string // guarded by mu
	arrived chan struct{}
}

func (l *lostRevocations) add(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, ids...)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
}

func (l *lostRevocations) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := l.ids
	l.ids = nil
	return ids
}

// revokeLost gives the database back the revocations it lost. Each is a write like any other; until it is done this node
// refuses the key by what it remembers, and others that knew it as well.
func (v *Verifier) revokeLost(ctx context.Context) {
	for {
		select {
		case <-v.lost.arrived:
		case <-ctx.Done():
			return
		}
		if v.cfg.RevokeAgain == nil {
			continue
		}
		for _, id := range v.lost.take() {
			again := func(ctx context.Context) error { return v.cfg.RevokeAgain(ctx, id) }
			if !v.retryAfter(ctx, v.rest, "revoke a key again", again) {
				return
			}
			v.counters.revokedAgain.Add(1)
			v.cfg.Logger.Warn("a revocation that the database had lost is in it again", "key", id)
		}
	}
}
