package verify

import (
	"sync"
	"time"
)

// lease is the time until which an index may be answered from. It is held in two clocks, and
// the earlier end counts: the monotonic one does not follow a wall clock that is set back, the wall
// clock goes on while the machine sleeps. No clock is compared with another machine's.
type lease struct {
	until time.Time // with a monotonic reading
	wall  int64     // the same moment by the wall clock, nanoseconds since 1970
}

func (l lease) goodAt(now time.Time) bool {
	return now.Before(l.until) && now.UnixNano() < l.wall
}

func (l lease) left(now time.Time) time.Duration {
	return max(0, min(l.until.Sub(now), time.Duration(l.wall-now.UnixNano())))
}

// stopwatch starts before a renewal is sent.
type stopwatch struct {
	began time.Time
	boot  int64 // CLOCK_BOOTTIME, which counts a suspended machine's sleep too
}

func startStopwatch() stopwatch { return stopwatch{time.Now(), bootTime()} }

// leaseOf returns the lease of a renewal that was sent when the stopwatch started, and false
// when it is over already. It counts from the sending, never from the answer.
func (s stopwatch) leaseOf(term time.Duration) (lease, bool) {
	if bootTime()-s.boot >= int64(term) {
		return lease{}, false
	}
	until := s.began.Add(term)
	l := lease{until: until, wall: until.UnixNano()}
	return l, l.goodAt(time.Now())
}

// broadcast wakes everyone who waits, once per announcement.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // closed by the next announcement; guarded by mu
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// next returns a channel that is closed by the next announcement.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) announce() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
