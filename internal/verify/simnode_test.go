package verify

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// simNode is a machine. What happens to it is all in one process of this test, so it happens at the seams: a process that stands
// still goes no further at its next statement, answer, timer or look at a clock. Between two of these it cannot be stopped; where that
// matters, in a verification and around a renewal, the code looks at a clock.
type simNode struct {
	sim   *simulation
	index int
	lease time.Duration
	clock simClock
	busy  chan struct{} // full while somebody troubles it

	// Guarded by simulation.mu.
	still    chan struct{} // closed when the machine goes on; nil while it does
	starved  bool          // looks at a clock take long
	cut      [pools]simCut
	process  *simProcess // nil while there is none
	starts   int
	troubles []simTrouble

	renewing   bool      // a renewal is under way
	staleUntil time.Time // a known limit: until then a verdict may be stale
}

// simTrouble is a time in which the machine stood still or was starved. Open while to is zero.
type simTrouble struct{ from, to time.Time }

type simCut int

const (
	cutNone simCut = iota
	cutAnswers
	cutBoth
)

func (n *simNode) cutNow(pool int) simCut {
	n.sim.mu.Lock()
	defer n.sim.mu.Unlock()
	return n.cut[pool]
}

func (n *simNode) setRenewing(renewing bool) {
	n.sim.mu.Lock()
	defer n.sim.mu.Unlock()
	n.renewing = renewing
}

// stand returns when the machine goes on. Whoever waited goes on in an order the seed chooses.
func (n *simNode) stand(kind string, extra int64) {
	for {
		n.sim.mu.Lock()
		still := n.still
		n.sim.mu.Unlock()
		if still == nil {
			return
		}
		<-still
		time.Sleep(time.Duration(n.sim.draw("stood "+kind, n.index, extra).Int64N(int64(3 * time.Millisecond))))
	}
}

// deschedule is stand, and now and then a wait for a processor.
func (n *simNode) deschedule(kind string) {
	n.stand(kind, 0)
	n.sim.mu.Lock()
	starved := n.starved
	n.sim.mu.Unlock()
	if !starved {
		return
	}
	if r := n.sim.draw("starved "+kind, n.index, 0); r.IntN(3) == 0 {
		time.Sleep(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		n.stand(kind, 1)
	}
}

// trouble notes a time in which the machine is slow through no fault of the program, and returns what ends it.
func (n *simNode) trouble() (end func()) {
	n.sim.mu.Lock()
	defer n.sim.mu.Unlock()
	i := len(n.troubles)
	n.troubles = append(n.troubles, simTrouble{from: time.Now()})
	return func() {
		n.sim.mu.Lock()
		defer n.sim.mu.Unlock()
		n.troubles[i].to = time.Now()
	}
}

// troubledSince is how much of the time since from the machine was in trouble. The caller holds simulation.mu.
func (n *simNode) troubledSince(from time.Time) (d time.Duration) {
	now := time.Now()
	for _, t := range n.troubles {
		to := t.to
		if to.IsZero() {
			to = now
		}
		to = to.Add(500 * time.Millisecond) // a wait for a processor that began in it
		if to.After(now) {
			to = now
		}
		begun := t.from
		if from.After(begun) {
			begun = from
		}
		d += max(0, to.Sub(begun))
	}
	return d
}

// simClock is a machine's clocks, which run at a rate of their own, are set, and stand still.
type simClock struct {
	node *simNode
	rate float64

	// Guarded by simulation.mu: what each showed at a moment, and whether it has gone on since.
	at               time.Time
	mono, wall, boot time.Duration
	monoStands       bool
	othersStand      bool
}

// read returns the readings now. The caller holds simulation.mu.
func (c *simClock) read() (instant, time.Duration) {
	now := time.Now()
	passed := time.Duration(float64(now.Sub(c.at)) * c.rate)
	mono, wall, boot := c.mono, c.wall, c.boot
	if !c.monoStands {
		mono += passed
	}
	if !c.othersStand {
		wall, boot = wall+passed, boot+passed
	}
	return instant{mono, int64(wall)}, boot
}

// change changes what the clocks do from now on.
func (c *simClock) change(fn func()) {
	c.node.sim.mu.Lock()
	defer c.node.sim.mu.Unlock()
	i, boot := c.read()
	c.at, c.mono, c.wall, c.boot = time.Now(), i.mono, time.Duration(i.wall), boot
	fn()
}

func (c *simClock) reading() (instant, time.Duration) {
	c.node.sim.mu.Lock()
	defer c.node.sim.mu.Unlock()
	return c.read()
}

// now is where a process may be stopped for any length, before and after the reading.
func (c *simClock) now() instant {
	c.node.deschedule("clock")
	i, _ := c.reading()
	c.node.deschedule("clock read")
	return i
}

func (c *simClock) boot64() int64 {
	c.node.deschedule("boot clock")
	_, boot := c.reading()
	return int64(boot)
}

// timer runs by the monotonic clock.
func (c *simClock) timer(d time.Duration) (<-chan time.Time, func()) {
	i, _ := c.reading()
	until := i.mono + d
	fired := make(chan time.Time, 1)
	var stopped atomic.Bool
	byRate := func(d time.Duration) time.Duration { return time.Duration(float64(d)/c.rate) + 1 }
	t := time.AfterFunc(byRate(d), func() {
		for !stopped.Load() {
			c.node.stand("timer", int64(until))
			now, _ := c.reading()
			if now.mono >= until {
				fired <- time.Now()
				return
			}
			time.Sleep(byRate(until - now.mono))
		}
	})
	return fired, func() { stopped.Store(true); t.Stop() }
}

// simClockOf adapts a simClock to the clock of a Verifier.
type simClockOf struct{ *simClock }

func (c simClockOf) boot() int64 { return c.boot64() }

// simProcess is one serving process.
type simProcess struct {
	node   *simNode
	n      int
	v      *Verifier
	feed   simFeed
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	// Guarded by simulation.mu.
	crashed bool
	refused map[*simKey]string // for a revocation, and when: it never accepts such a key again
}

func (p *simProcess) String() string { return fmt.Sprintf("node %d.%d", p.node.index, p.n) }

func (p *simProcess) ended() bool {
	p.node.sim.mu.Lock()
	defer p.node.sim.mu.Unlock()
	return p.crashed
}

// start runs a new process on the machine.
func (n *simNode) start() {
	p := &simProcess{node: n, n: n.starts, done: make(chan struct{}), refused: map[*simKey]string{}}
	p.feed = simFeed{p}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	v, err := New(Config{
		Feed: p.feed, Format: format, Lease: n.lease, Poll: n.sim.poll, ScrubEvery: time.Hour, FlushEvery: 3 * time.Second,
		RevokeAgain: func(ctx context.Context, id string) error { return n.sim.revokeAgain(ctx, p, id) },
	})
	if err != nil {
		n.sim.t.Fatal(err)
	}
	v.clock = simClockOf{&n.clock}
	p.v = v
	n.sim.mu.Lock()
	n.starts++
	n.process = p
	n.sim.mu.Unlock()
	n.sim.event("%s starts", p)
	go func() { defer close(p.done); v.Run(p.ctx) }()
}

// end stops the process: cleanly, or so that nothing of it goes on but what it has sent.
func (n *simNode) end(crash bool) {
	n.sim.mu.Lock()
	p := n.process
	p.crashed = crash
	p.cancel() // in one step: no goroutine of it sees one without the other
	if crash {
		n.process = nil
	}
	n.sim.mu.Unlock()
	n.sim.event("%s ends, crash %v", p, crash)
	<-p.done // and until then it is asked
	n.sim.mu.Lock()
	n.process = nil
	n.sim.mu.Unlock()
}

var _ keys.Feed = simFeed{}
