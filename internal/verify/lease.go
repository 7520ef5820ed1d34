package verify

import (
	"sync"
	"time"
)

// clock is this machine's clocks. There is one but in tests, which run nodes whose clocks go wrong.
type clock interface {
	now() instant
	// boot is CLOCK_BOOTTIME in nanoseconds, which counts a suspended machine's sleep too; 0 where there is none.
	boot() int64
	// timer's channel receives after d by this clock, unless stop is called first.
	timer(d time.Duration) (c <-chan time.Time, stop func())
}

// instant is one moment, read off two clocks at once. The monotonic one does not follow a wall clock that is set, and
// stands still while the machine sleeps; the wall clock goes on.
type instant struct {
	mono time.Duration // since the clock was made
	wall int64         // nanoseconds since 1970
}

func (i instant) time() time.Time { return time.Unix(0, i.wall) }

type systemClock struct{ made time.Time }

func newSystemClock() systemClock { return systemClock{time.Now()} }

func (c systemClock) now() instant {
	t := time.Now()
	return instant{t.Sub(c.made), t.UnixNano()}
}

func (systemClock) boot() int64 { return bootTime() }

func (systemClock) timer(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// lease is the time until which an index may be answered from, held in both clocks: the earlier end counts. No clock is
// compared with another machine's.
type lease struct{ until instant }

func (l lease) goodAt(now instant) bool {
	return now.mono < l.until.mono && now.wall < l.until.wall
}

func (l lease) left(now instant) time.Duration {
	return max(0, min(l.until.mono-now.mono, time.Duration(l.until.wall-now.wall)))
}

// stopwatch starts before a renewal is sent.
type stopwatch struct {
	began instant
	boot  int64
}

func startStopwatch(c clock) stopwatch { return stopwatch{c.now(), c.boot()} }

// leaseOf returns the lease of a renewal that was sent when the stopwatch started, and false
// when it is over already. It counts from the sending, never from the answer.
func (s stopwatch) leaseOf(c clock, term time.Duration) (lease, bool) {
	if c.boot()-s.boot >= int64(term) {
		return lease{}, false
	}
	l := lease{instant{s.began.mono + term, s.began.wall + int64(term)}}
	return l, l.goodAt(c.now())
}

// lineage is what this process knows of the database's timelines: on one that began lately, rows of nodes that hold a lease
// may have been lost with the server before, so nothing that the rows say is enough to answer a write early.
type lineage struct {
	mu       sync.Mutex
	timeline int64         // the newest that was seen
	since    time.Duration // by the monotonic clock, read after the answer that first showed it
	settled  int64         // the newest on which every earlier lease is known to be over
	unsure   time.Duration // until then this process, whose own history turned out another than the database's, trusts no row
}

// note takes in what an answer showed. now was read after it came.
func (l *lineage) note(timeline int64, settled bool, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if timeline > l.timeline {
		l.timeline, l.since = timeline, now
	}
	if settled {
		l.settled = max(l.settled, timeline)
	}
}

// diverged begins a time in which no row is trusted.
func (l *lineage) diverged(until time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsure = max(l.unsure, until)
}

// trusts reports whether the rows of a timeline tell of every lease there is. wait is longer than any lease.
func (l *lineage) trusts(timeline int64, now, wait time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now >= l.unsure && (timeline <= l.settled || l.outlasted(timeline, now, wait))
}

// outlasted reports whether this process has seen the timeline for so long that every lease granted before it began is over.
func (l *lineage) outlasted(timeline int64, now, wait time.Duration) bool {
	return timeline == l.timeline && now-l.since >= wait
}

// settles reports whether the database is to be told that the timeline is settled.
func (l *lineage) settles(timeline int64, now, wait time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return timeline > l.settled && l.outlasted(timeline, now, wait)
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
