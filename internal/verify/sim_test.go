package verify

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// The simulation runs the real code of several nodes over a simulated database, in the time of a synctest bubble. A seed decides
// everything that may go wrong: what becomes of each statement (simFate), of each machine (nemesis), and of the database (failover).
// Meanwhile writers write, verifications ask, and a checker holds every verdict against what it may be:
//
//   - C23, both directions: a verification invoked after a write was answered is decided from a state that has the write;
//   - I2: a process that refused a key for a revocation never accepts it again;
//   - a write is answered, or fails, within the wait and what its statements were delayed;
//   - a gap in the database that is shorter than a lease less one renewal leaves no verification undecided;
//   - whenever a node acknowledges, its memory's set hash, computed entry by entry, is the authenticated one (V8).
//
// What becomes of a statement is drawn from the seed, who sends it, what it is and when. So nothing depends on the order in
// which goroutines that are ready at the same moment run, and a seed replays (TestSimulationReplays).
var (
	simSeeds = flag.Int("verify.seeds", 300, "how many seeds TestSimulation runs")
	simSeed  = flag.Uint64("verify.seed", 0, "the one seed TestSimulation replays, with everything that happens in it")
)

const (
	simLease = time.Second // the shortest there is
	simLasts = 10 * time.Second
)

// simMode is what happens to the database.
type simMode string

const (
	simCalm         simMode = "calm"         // gaps that the lease rides out, and no other fault
	simFaults       simMode = "faults"       // everything that happens to nodes and networks
	simSynchronous  simMode = "synchronous"  // and a failover that loses nothing; the old primary lives on
	simAsynchronous simMode = "asynchronous" // and one that loses the last writes and node rows; the old primary is stopped
	simBackup       simMode = "backup"       // and a backup put back on the same timeline
	simTampered     simMode = "tampered"     // and somebody who writes to the database puts rows back while a write is in progress
)

// simOptions is one kind of simulation.
type simOptions struct {
	modes   []simMode // by the seed
	spread  float64   // the rates of clocks: between 1-spread and 1+spread
	extreme bool      // and of no rate in between
	trouble []trouble // what happens to nodes; nil = all of it
	nodes   int       // 0 = by the seed
	steady  bool      // the database is never away
	long    bool      // what stands still does so for longer than a write waits
	trace   bool
}

type simulation struct {
	t    testing.TB
	seed uint64
	opt  simOptions
	mode simMode
	poll time.Duration

	began, until time.Time
	nodes        []*simNode
	owners       []*simOwner
	work         sync.WaitGroup

	mu            sync.Mutex // never held across a wait
	primary, old  *simServer // old: cut off, and still talking to whoever reaches it
	retired       []*simServer
	away          bool // the database
	gaps          []simTrouble
	databaseClock time.Duration // how far it was set
	keys          []*simKey
	on            map[*simOwner]bool
	writes        int
	answered      []*simWrite
	healed        bool
	tampered      map[rowName]bool // rows that were put back at some time
	events        []simEvent
	faults        []string
	counts        simCounts
}

type simEvent struct {
	at   time.Duration
	text string
}

// simCounts say that a simulation was not about nothing.
type simCounts struct {
	Answered, Failed, Fenced, Lost          int
	Memory, Waited, Undecided, AfterTrouble int
	Regressions, RevokedAgain               int
	PutBack, Differences                    int
	Troubles                                int
	Stale                                   int // where that is a known limit
}

func (c *simCounts) add(other simCounts) {
	c.Answered += other.Answered
	c.Failed += other.Failed
	c.Fenced += other.Fenced
	c.Lost += other.Lost
	c.Memory += other.Memory
	c.Waited += other.Waited
	c.PutBack += other.PutBack
	c.Differences += other.Differences
	c.Undecided += other.Undecided
	c.AfterTrouble += other.AfterTrouble
	c.Regressions += other.Regressions
	c.RevokedAgain += other.RevokedAgain
	c.Troubles += other.Troubles
	c.Stale += other.Stale
}

// simResult is what came of one simulation.
type simResult struct {
	faults []string
	events []simEvent
	counts simCounts
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// draw is the randomness of one event: the same for the same seed, kind, node and moment.
func (s *simulation) draw(kind string, node int, extra int64) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(kind))
	a := mix(mix(s.seed^h.Sum64()) ^ uint64(node+1))
	return rand.New(rand.NewPCG(a, mix(mix(a^uint64(extra))^uint64(time.Since(s.began)))))
}

func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

func (s *simulation) event(format string, args ...any) {
	if !s.opt.trace {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, simEvent{time.Since(s.began), fmt.Sprintf(format, args...)})
}

// fault notes a broken promise. The caller holds mu.
func (s *simulation) fault(format string, args ...any) {
	text := fmt.Sprintf("%v: ", time.Since(s.began)) + fmt.Sprintf(format, args...)
	s.faults = append(s.faults, text)
	s.events = append(s.events, simEvent{time.Since(s.began), "BROKEN " + text})
}

// fate decides what becomes of a statement.
func (s *simulation) fate(p *simProcess, kind string, extra int64) simFate {
	r := s.draw("fate of "+kind, p.node.index, extra)
	f := simFate{
		there: between(r, 50*time.Microsecond, 1500*time.Microsecond), inside: between(r, time.Microsecond, 200*time.Microsecond),
		back: between(r, 50*time.Microsecond, 1500*time.Microsecond), reset: r.IntN(3) > 0, first: r.IntN(2) == 0,
	}
	s.mu.Lock()
	harmless := s.mode == simCalm || s.healed
	s.mu.Unlock()
	usual := map[string]int{"standing": 99, "renew": 91}[kind]
	if usual == 0 {
		usual = 80
	}
	if harmless || r.IntN(100) < usual {
		return f
	}
	switch n := r.IntN(100); {
	case n < 30:
		f.there += between(r, 0, 40*time.Millisecond)
		f.back += between(r, 0, 40*time.Millisecond)
	case n < 40:
		f.there += between(r, 0, 2*simLease)
	case n < 65:
		f.back += between(r, 0, 4*simLease)
	case n < 75:
		f.inside += between(r, 0, 3*simLease)
	case n < 80:
		f.there += between(r, 0, 9*time.Second) // also longer than anybody waits for it
	case n < 87:
		f.lost = true
	default:
		f.mute = true
	}
	return f
}

// connect chooses the server a statement reaches. A pool's connections stay with one for a while.
func (s *simulation) connect(p *simProcess, pool int) *simServer {
	s.mu.Lock()
	primary, old := s.primary, s.old
	s.mu.Unlock()
	if old == nil {
		return primary
	}
	while := uint64(time.Since(s.began) / (400 * time.Millisecond))
	if mix(mix(s.seed^while)^uint64(p.node.index*pools+pool))%2 == 0 {
		return old
	}
	return primary
}

func (s *simulation) gone(server *simServer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return server.stopped || s.away
}

// deliver carries one announcement to one listener, late or never.
func (s *simulation) deliver(l *simListener, a keys.Announcement) {
	r := s.draw("hears", l.p.node.index, a.Revision)
	if r.IntN(8) == 0 || l.p.node.cutNow(poolLease) != cutNone {
		return
	}
	late := between(r, 50*time.Microsecond, 2*time.Millisecond)
	if r.IntN(10) == 0 {
		late += between(r, 0, simLease)
	}
	time.Sleep(late)
	if r.IntN(4) == 0 {
		a.Changes = nil // they were too long
	}
	l.p.node.stand("heard", a.Revision)
	select {
	case <-l.cut:
	default:
		if !l.p.ended() {
			l.heard(a)
		}
	}
}

// cutListeners ends the connections that listen. The caller holds mu.
func cutListeners(server *simServer, of func(*simListener) bool) {
	server.listeners = slices.DeleteFunc(server.listeners, func(l *simListener) bool {
		if of(l) {
			close(l.cut)
			return true
		}
		return false
	})
}

// write sends one write through a process, waits until it may be answered, and then asks everybody.
func (s *simulation) write(ctx context.Context, p *simProcess, w *simWrite) error {
	act := &simAct{}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, simActKey{}, act), 12*time.Second)
	defer cancel()
	commit, err := p.feed.commit(ctx, w)
	if err != nil {
		s.mu.Lock()
		s.counts.Failed++
		s.mu.Unlock()
		return err
	}
	began := time.Now()
	act.standing, act.others = 0, 0 // of the wait alone
	err = p.v.Await(ctx, commit)
	took := time.Since(began)
	if p.ended() {
		err = errSimCrashed
	}
	s.event("%s awaited %s in %v: %v", p, w, took, err)
	s.mu.Lock()
	longest := time.Duration(0)
	for _, n := range s.nodes {
		longest = max(longest, n.lease)
	}
	whole := time.Duration(float64(waitFor(longest)) / p.node.clock.rate)
	most := whole + act.standing + act.others + p.node.troubledSince(began) + 5*time.Millisecond
	if took > most {
		s.fault("%s: waited %v for %s, more than %v", p, took, w, most)
	}
	if err != nil {
		s.counts.Failed++
		s.mu.Unlock()
		return err
	}
	s.counts.Answered++
	if took >= simLease {
		s.counts.Fenced++
	}
	if s.mode == simCalm && !s.healed && s.calmSince(began) && took > s.healthyWait() {
		s.fault("%s: waited %v for %s although nothing was wrong", p, took, w)
	}
	switch {
	case s.primary.contains(w):
		w.answered = true
		s.answered = append(s.answered, w)
	case s.mode == simAsynchronous || s.mode == simBackup:
		s.counts.Lost++
	default:
		s.fault("%s answered %s, which is lost", p, w)
	}
	s.mu.Unlock()
	s.probe(w, 2)
	return nil
}

// healthyWait is how long a write waits for healthy nodes at most: one renewal, and the statements.
func (s *simulation) healthyWait() time.Duration { return simLease/4*12/10 + 100*time.Millisecond }

// calmSince reports whether the database has been there since, and for a while before. The caller holds mu.
func (s *simulation) calmSince(from time.Time) bool {
	for _, g := range s.gaps {
		if g.to.IsZero() || g.to.Add(7*time.Second).After(from) {
			return false
		}
	}
	return true
}

func (s *simulation) revokeAgain(ctx context.Context, p *simProcess, id string) error {
	s.mu.Lock()
	i := slices.IndexFunc(s.keys, func(k *simKey) bool { return k.row.ID == id })
	w := s.newWrite(&simWrite{key: s.keys[i], state: keys.StateRevoked})
	s.mu.Unlock()
	err := s.write(ctx, p, w)
	if errors.Is(err, keys.ErrNotFound) {
		return nil
	}
	return err
}

// newWrite numbers a write. The caller holds mu.
func (s *simulation) newWrite(w *simWrite) *simWrite {
	s.writes++
	w.number = s.writes
	return w
}

// choose draws the next write.
func (s *simulation) choose(r *rand.Rand) *simWrite {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := r.IntN(100); {
	case n < 35 || len(s.keys) == 0:
		return s.newWrite(&simWrite{key: s.newKey(s.owners[r.IntN(len(s.owners))]), state: keys.StateActive})
	case n < 70:
		recent := s.keys[max(0, len(s.keys)-6):]
		return s.newWrite(&simWrite{key: recent[r.IntN(len(recent))], state: keys.StateRevoked})
	default:
		o := s.owners[1+r.IntN(len(s.owners)-1)] // the first stays on
		s.on[o] = !s.on[o]
		return s.newWrite(&simWrite{owner: o, on: s.on[o]})
	}
}

// newKey draws a key that no write has created yet. The caller holds mu.
func (s *simulation) newKey(o *simOwner) *simKey {
	k := &simKey{n: len(s.keys), owner: o}
	k.secret, k.row = newKey(s.t, o.String(), keys.Live)
	s.keys = append(s.keys, k)
	return k
}

// someProcess draws a process that is there, or nil.
func (s *simulation) someProcess(r *rand.Rand) *simProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[r.IntN(len(s.nodes))].process
}

func (s *simulation) going() bool { return time.Now().Before(s.until) }

func (s *simulation) writer(i int) {
	r := s.draw("writer", i, 0)
	for s.going() {
		time.Sleep(between(r, 20*time.Millisecond, 400*time.Millisecond))
		w, p := s.choose(r), s.someProcess(r)
		if p != nil {
			_ = s.write(p.ctx, p, w)
		}
	}
}

func (s *simulation) client(i int) {
	r := s.draw("client", i, 0)
	for s.going() {
		time.Sleep(between(r, time.Millisecond, 80*time.Millisecond))
		s.ask(s.someProcess(r), s.someKey(r))
	}
}

func (s *simulation) someKey(r *rand.Rand) *simKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return nil
	}
	recent := s.keys[max(0, len(s.keys)-10):]
	return recent[r.IntN(len(recent))]
}

// probe asks every process about what a write changed.
func (s *simulation) probe(w *simWrite, times int) {
	s.mu.Lock()
	k := w.key
	for i := len(s.keys) - 1; i >= 0 && k == nil; i-- {
		if s.keys[i].owner == w.owner {
			k = s.keys[i]
		}
	}
	var all []*simProcess
	for _, n := range s.nodes {
		all = append(all, n.process)
	}
	s.mu.Unlock()
	for range times {
		for _, p := range all {
			s.ask(p, k)
		}
	}
}

// probeNode asks one process about the keys written last.
func (s *simulation) probeNode(n *simNode) {
	s.mu.Lock()
	p, recent := n.process, slices.Clone(s.keys[max(0, len(s.keys)-5):])
	s.counts.AfterTrouble += len(recent)
	s.mu.Unlock()
	for _, k := range recent {
		s.ask(p, k)
	}
}

// ask invokes a verification.
func (s *simulation) ask(p *simProcess, k *simKey) {
	if p == nil || k == nil {
		return
	}
	s.mu.Lock()
	known, refused := len(s.answered), p.refused[k]
	s.mu.Unlock()
	s.event("%s is asked about %s", p, k)
	go func() {
		verdict, err := p.v.Verify(context.Background(), Request{Secret: k.secret})
		s.event("%s says of %s: %s %v", p, k, verdict.Reason, err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.judge(p, k, known, refused, verdict, err)
		if verdict.Reason == keys.Revoked && p.refused[k] == "" {
			p.refused[k] = time.Since(s.began).String()
		}
	}()
}

// judge holds a verdict against what it may be. The caller holds mu.
func (s *simulation) judge(p *simProcess, k *simKey, known int, refused string, verdict Verdict, err error) {
	got := verdict.Reason
	switch {
	case p.crashed:
		return
	case err != nil:
		s.counts.Undecided++
		if s.mode == simCalm {
			s.fault("%s cannot decide about %s, although the database was not away for as long as a lease", p, k)
		}
		return
	case verdict.Path == Waited:
		s.counts.Waited++
	default:
		s.counts.Memory++
	}
	if refused != "" && got == keys.Valid {
		s.fault("I2: %s accepted %s, which it had refused as revoked at %s", p, k, refused)
	}
	var last *simWrite
	for _, w := range s.answered[:known] {
		if !w.lost && (w.key == k || w.owner == k.owner) {
			last = w
		}
	}
	if s.may(k, known, got) {
		return
	}
	if time.Now().Before(p.node.staleUntil) {
		s.counts.Stale++
		return
	}
	s.fault("C23: %s said %q of %s; the last that was answered before it was asked: %s", p, got, k, last)
}

// may reports whether a verification that was invoked when so many writes had been answered may say so of a key. It is decided from a state
// of one history that has all of them; a key and its organization may be read at different revisions of it.
func (s *simulation) may(k *simKey, known int, got keys.Reason) bool {
	switch {
	case got == keys.Revoked && k.stray:
		return true
	// What a snapshot finds put back is refused until an authentic row comes, or the keys are loaded again.
	case got == keys.Unknown && s.tampered[rowName{keys.KindKey, k.row.ID}], got == keys.OrganizationInactive && s.tampered[rowName{keys.KindOrganization, k.owner.String()}]:
		return true
	}
	histories := append([]*simServer{s.primary}, s.retired...)
	if s.old != nil {
		histories = append(histories, s.old)
	}
next:
	for _, h := range histories {
		from := int64(0)
		for _, w := range s.answered[:known] {
			if w.lost {
				continue
			}
			if !h.contains(w) {
				continue next
			}
			from = max(from, w.revision)
		}
		state, on := keys.State(""), true
		var states []keys.State
		var ons []bool
		for at, w := range h.history {
			if w.key == k {
				state = w.state
			}
			if w.owner == k.owner {
				on = w.on
			}
			if int64(at) >= from {
				states, ons = append(states, state), append(ons, on)
			}
		}
		if slices.ContainsFunc(slices.Compact(states), func(st keys.State) bool {
			return slices.ContainsFunc(slices.Compact(ons), func(on bool) bool {
				return got == keys.Judge(keys.Lifecycle{State: st}, on, s.began)
			})
		}) {
			return true
		}
	}
	return false
}

// trouble is one kind of thing that happens to a node.
type trouble string

const (
	troublePause   trouble = "pause"   // the process stands still
	troubleSuspend trouble = "suspend" // the machine sleeps: the monotonic clock stands, wall clock and boot time go on
	troubleFreeze  trouble = "freeze"  // a guest stands still with all its clocks
	troubleJump    trouble = "jump"    // the wall clock is set
	troubleCut     trouble = "cut"     // the network
	troubleStarve  trouble = "starve"  // too little processor time
	troubleCrash   trouble = "crash"   // and a restart
	troubleLeave   trouble = "leave"   // and a restart
	troubleDeaf    trouble = "deaf"    // the connection that listens is cut
)

var everyTrouble = []trouble{
	troublePause, troublePause, troublePause, troubleCut, troubleCut, troubleCut, troubleCut,
	troubleSuspend, troubleJump, troubleStarve, troubleCrash, troubleLeave, troubleDeaf,
}

var jumps = []time.Duration{time.Second, -time.Second, time.Hour, -time.Hour, 10 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour}

// nemesis troubles one node. A machine whose wall clock was set back and which then sleeps has no clock left that tells: so it is one or
// the other for each (TestF15 has what that costs).
func (s *simulation) nemesis(n *simNode) {
	r := s.draw("nemesis", n.index, 0)
	kinds := s.opt.trouble
	if kinds == nil {
		kinds = everyTrouble
	}
	other := troubleJump
	if r.IntN(2) == 0 {
		other = troubleSuspend
	}
	for s.going() {
		time.Sleep(between(r, 200*time.Millisecond, 3*time.Second))
		kind := kinds[r.IntN(len(kinds))]
		if kind == other && s.opt.trouble == nil {
			continue
		}
		n.busy <- struct{}{}
		s.disturb(n, kind, r)
		s.probeNode(n)
		time.Sleep(between(r, time.Microsecond, time.Millisecond)) // who was asked at one moment is not troubled at the same one
		<-n.busy
		if s.opt.trouble == nil && r.IntN(3) == 0 {
			s.disturb(n, troubleStarve, r)
		}
	}
}

func (s *simulation) disturb(n *simNode, kind trouble, r *rand.Rand) {
	s.mu.Lock()
	s.counts.Troubles++
	s.mu.Unlock()
	d := between(r, 50*time.Millisecond, []time.Duration{simLease / 2, simLease, 3 * simLease}[r.IntN(3)])
	if s.opt.long {
		d += 3 * simLease / 2
	}
	s.event("node %d: %s for %v", n.index, kind, d)
	defer func() { s.event("node %d: end of %s", n.index, kind) }()
	set := func(fn func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fn()
	}
	switch kind {
	case troublePause, troubleSuspend, troubleFreeze:
		over := n.trouble()
		still := make(chan struct{})
		n.clock.change(func() {
			n.still = still
			n.clock.monoStands, n.clock.othersStand = kind != troublePause, kind == troubleFreeze
		})
		time.Sleep(d)
		n.clock.change(func() {
			n.still, n.clock.monoStands, n.clock.othersStand = nil, false, false
			if p := n.process; kind == troubleFreeze && p != nil {
				if held := p.v.view.Load(); held != nil {
					now, _ := n.clock.read()
					left := held.lease.left(now)
					if n.renewing { // the lease of one that was answered meanwhile counts from when it was sent, too
						left = n.lease
					}
					n.staleUntil = time.Now().Add(time.Duration(float64(left) / n.clock.rate))
				}
			}
			close(still)
		})
		over()
	case troubleJump:
		by := jumps[r.IntN(len(jumps))]
		n.clock.change(func() { n.clock.wall += by })
	case troubleCut:
		cut, which := cutBoth, r.IntN(5)
		if r.IntN(3) == 0 {
			cut = cutAnswers
		}
		set(func() {
			for pool := range n.cut {
				if which >= pools || which == pool {
					n.cut[pool] = cut
				}
			}
		})
		time.Sleep(d)
		set(func() { n.cut = [pools]simCut{} })
	case troubleStarve:
		over := n.trouble()
		set(func() { n.starved = true })
		for range 4 {
			s.probeNode(n)
			time.Sleep(d / 8)
		}
		set(func() { n.starved = false })
		over()
	case troubleCrash, troubleLeave:
		n.end(kind == troubleCrash)
		time.Sleep(d / 3)
		n.start()
	case troubleDeaf:
		set(func() { cutListeners(s.primary, func(l *simListener) bool { return l.p.node == n }) })
	}
}

// outages takes the whole database away for a while, now and then.
func (s *simulation) outages() {
	r := s.draw("outages", 0, 0)
	apart, longest := time.Second, 2*simLease
	if s.mode == simCalm {
		// A lease less one renewal, by clocks that differ; and far enough apart for a renewal that hangs to be given up between two.
		apart = callTimeout + 1500*time.Millisecond
		longest = time.Duration(float64(simLease)/(1+s.opt.spread)-float64(simLease/4)/(1-s.opt.spread)) - 20*time.Millisecond
	}
	for s.going() {
		time.Sleep(between(r, apart, apart+5*time.Second))
		s.outage(between(r, 10*time.Millisecond, longest))
	}
}

func (s *simulation) outage(d time.Duration) {
	s.event("the database is away for %v", d)
	s.mu.Lock()
	s.away = true
	s.gaps = append(s.gaps, simTrouble{from: time.Now()})
	i := len(s.gaps) - 1
	s.mu.Unlock()
	time.Sleep(d)
	s.mu.Lock()
	s.away = false
	s.gaps[i].to = time.Now()
	s.mu.Unlock()
}

// replace makes another server the primary. The caller holds mu.
func (s *simulation) replace(next *simServer) {
	before := s.primary
	for _, w := range before.history[1:] {
		if next.contains(w) {
			continue
		}
		if w.answered && !w.lost {
			w.lost = true
			s.counts.Lost++
		}
		if w.key != nil && w.state == keys.StateRevoked {
			w.key.stray = true
		}
	}
	s.primary = next
}

func (s *simulation) failover() {
	r := s.draw("failover", 0, 0)
	for n := 1 + r.IntN(2); n > 0 && s.going(); n-- {
		time.Sleep(between(r, simLasts/8, simLasts/3))
		switch s.mode {
		case simSynchronous:
			s.mu.Lock()
			old := s.primary
			next := old.clone()
			next.timeline++
			old.cutOff = true
			s.replace(next)
			s.old = old
			s.mu.Unlock()
			s.event("a standby is promoted: %s; the old primary is cut off", next)
			time.Sleep(between(r, 100*time.Millisecond, 4*simLease))
			s.retire(old)
			s.mu.Lock()
			s.old = nil
			s.retired = append(s.retired, old)
			s.mu.Unlock()
		case simAsynchronous:
			s.promoteBehind(r)
		case simBackup:
			s.putBack(r)
		}
	}
}

// tamper puts the row that a write changed back to the copy from before it, right after the
// commit, and cuts the connections that listen; later it puts the real row back. The caller holds
// mu. before is the revision the row had been put back to already.
func (s *simulation) tamper(server *simServer, w *simWrite, before int64) {
	row := w.name()
	if before == 0 {
		for _, earlier := range server.history[1 : len(server.history)-1] {
			if earlier.name() == row {
				before = earlier.revision
			}
		}
	}
	r := s.draw("tamper", 0, int64(w.number))
	if s.mode != simTampered || s.healed || before == 0 || r.IntN(2) == 0 {
		return
	}
	s.counts.PutBack++
	s.tampered[row] = true
	server.putBack[row] = before
	cutListeners(server, func(*simListener) bool { return true })
	lasts := []time.Duration{20 * time.Millisecond, simLease / 2, 4 * simLease}[r.IntN(3)]
	time.AfterFunc(lasts, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if server.putBack[row] == before {
			delete(server.putBack, row)
		}
	})
}

// checkMemory holds what a node has in memory, entry by entry, against the authenticated state
// that it acknowledges. The caller holds mu.
func (s *simulation) checkMemory(p *simProcess, server *simServer, applied keys.Mark) {
	held := p.v.view.Load()
	if applied != server.mark() || p.crashed {
		return
	}
	set := server.set()
	if got, err := held.index.setHash(set.KeyID); err != nil || got != set {
		s.fault("V8: %s acknowledged %d with a memory that differs from the authenticated state: %v", p, applied.Revision, err)
	}
}

// retire stops a server for good.
func (s *simulation) retire(server *simServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	server.stopped = true
	cutListeners(server, func(*simListener) bool { return true })
}

// lag returns what a standby has received, or a backup, of the primary. Of victim, when there is one, it has no row: the node starts right
// after, and whatever lease it is granted is known to the primary alone.
func (s *simulation) lag(victim *simNode) *simServer {
	if victim != nil {
		victim.busy <- struct{}{}
		victim.end(false)
	}
	s.mu.Lock()
	behind := s.primary.clone()
	s.mu.Unlock()
	if victim != nil {
		victim.start()
	}
	return behind
}

// promoteBehind promotes a standby that did not receive the last of it. Often a node has started since, and is out of reach when it happens.
func (s *simulation) promoteBehind(r *rand.Rand) {
	var victim *simNode
	if r.IntN(4) > 0 {
		victim = s.nodes[r.IntN(len(s.nodes))]
	}
	next := s.lag(victim)
	time.Sleep(between(r, 100*time.Millisecond, simLease))
	if victim != nil {
		s.mu.Lock()
		victim.cut = [pools]simCut{cutBoth, cutBoth, cutBoth}
		s.mu.Unlock()
	}
	old := s.primary
	s.retire(old)
	time.Sleep(between(r, 0, 200*time.Millisecond))
	s.mu.Lock()
	next.timeline++
	s.replace(next)
	s.retired = append(s.retired, old)
	s.mu.Unlock()
	s.event("a standby that was behind is promoted: %s in place of %s", next, old)
	if victim == nil {
		return
	}
	s.rush(victim)
	time.Sleep(between(r, simLease/2, 2*simLease))
	s.mu.Lock()
	victim.cut = [pools]simCut{}
	s.mu.Unlock()
	s.probeNode(victim)
	time.Sleep(between(r, time.Microsecond, time.Millisecond))
	<-victim.busy
}

// rush has every other node write at once.
func (s *simulation) rush(but *simNode) {
	for _, n := range s.nodes {
		if n == but && len(s.nodes) > 1 {
			continue
		}
		s.work.Go(func() {
			r := s.draw("rush", n.index, 0)
			for range 2 {
				time.Sleep(between(r, time.Millisecond, simLease/5))
				s.mu.Lock()
				p := n.process
				s.mu.Unlock()
				if p != nil {
					_ = s.write(p.ctx, p, s.choose(r))
				}
			}
		})
	}
}

// putBack puts a backup back on the same timeline. With more than one node the database is away for a whole wait, as docs/model says it must.
func (s *simulation) putBack(r *rand.Rand) {
	alone := len(s.nodes) == 1
	var victim *simNode
	if alone && r.IntN(4) > 0 {
		victim = s.nodes[0]
	}
	next := s.lag(victim)
	time.Sleep(between(r, 100*time.Millisecond, 3*simLease))
	old := s.primary
	s.retire(old)
	if alone {
		time.Sleep(between(r, 0, 200*time.Millisecond))
	} else {
		time.Sleep(waitFor(simLease) + between(r, 0, simLease))
	}
	s.mu.Lock()
	s.replace(next)
	s.retired = append(s.retired, old)
	s.mu.Unlock()
	s.event("a backup is put back: %s in place of %s", next, old)
	if victim != nil {
		s.rush(nil)
		time.Sleep(simLease)
		<-victim.busy
	}
}

// heal ends every fault, waits until all nodes serve, and then holds them to what a healthy deployment does.
func (s *simulation) heal() {
	time.Sleep(simLease) // who was asked is decided
	s.mu.Lock()
	s.healed, s.away = true, false
	clear(s.primary.putBack)
	s.mu.Unlock()
	for _, n := range s.nodes {
		s.mu.Lock()
		p := n.process
		s.mu.Unlock()
		if p == nil {
			n.start()
		}
	}
	s.event("everything is healed")
	ready := func() bool {
		for _, n := range s.nodes {
			if n.process.v.Ready() != nil {
				return false
			}
		}
		return true
	}
	for began := time.Now(); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 15*time.Second { // longer than the longest statement and the longest pause between two
			s.mu.Lock()
			s.fault("15s after everything was healed not all nodes serve")
			s.mu.Unlock()
			return
		}
	}
	time.Sleep(callTimeout + 2*simLease) // what hangs is given up, lost revocations are given back, and a new timeline is settled
	host := s.nodes[0].process
	last := func(most time.Duration) {
		s.mu.Lock()
		w := s.newWrite(&simWrite{key: s.newKey(s.owners[0]), state: keys.StateActive})
		s.mu.Unlock()
		began := time.Now()
		err := s.write(host.ctx, host, w)
		if took := time.Since(began); err != nil || took > most {
			s.mu.Lock()
			s.fault("healed, a write took %v, more than %v: %v", took, most, err)
			s.mu.Unlock()
		}
	}
	whole := 2*waitFor(s.longest()) + time.Second
	last(whole)
	for _, n := range s.nodes {
		for _, k := range s.keys {
			s.ask(n.process, k)
		}
	}
	time.Sleep(simLease)
	if len(s.nodes) > 1 {
		s.nodes[1].end(true)
		last(whole)
		last(time.Duration(float64(s.healthyWait()) * float64(s.longest()) / float64(simLease))) // nobody waits for the dead one again
	}
	time.Sleep(simLease)
	for _, n := range s.nodes {
		if n.process == nil {
			continue
		}
		st := n.process.v.Stats()
		s.mu.Lock()
		s.counts.Regressions += int(st.Regressions)
		s.counts.RevokedAgain += int(st.RevokedAgain)
		s.counts.Differences += int(st.Differences)
		if st.Tampered+st.Differences != 0 && s.mode != simTampered {
			s.fault("%s took %d rows for forged, and found %d differences", n.process, st.Tampered, st.Differences)
		}
		s.mu.Unlock()
	}
}

func (s *simulation) longest() (d time.Duration) {
	for _, n := range s.nodes {
		d = max(d, n.lease)
	}
	return d
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64, opt simOptions) (result simResult) {
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, seed: seed, opt: opt, began: time.Now(), on: map[*simOwner]bool{}, tampered: map[rowName]bool{}}
		s.until = s.began.Add(simLasts)
		r := s.draw("plan", 0, 0)
		s.mode = opt.modes[r.IntN(len(opt.modes))]
		s.poll = between(r, 50*time.Millisecond, simLease/4)
		s.primary = &simServer{timeline: 1, settled: 1, history: []*simWrite{{}}, putBack: map[rowName]int64{}}
		for i := range 3 {
			s.owners = append(s.owners, &simOwner{i})
			s.on[s.owners[i]] = true
		}
		count := opt.nodes
		if count == 0 {
			count = 2 + r.IntN(3)
			switch {
			case s.mode == simBackup && r.IntN(3) == 0:
				count = 1
			case s.mode == simAsynchronous && r.IntN(2) == 0:
				count = 2
			}
		}
		for i := range count {
			n := &simNode{sim: s, index: i, lease: simLease, busy: make(chan struct{}, 1)}
			// Leases of different length only where no node row is ever lost.
			if r.IntN(4) == 0 && (s.mode == simFaults || s.mode == simSynchronous) {
				n.lease = between(r, simLease, 2*simLease)
			}
			rate := 1 + opt.spread*(2*r.Float64()-1)
			if opt.extreme {
				rate = 1 + opt.spread*float64(r.IntN(3)-1)
			}
			n.clock = simClock{node: n, rate: rate, at: s.began, mono: between(r, 0, time.Hour), wall: time.Duration(s.began.UnixNano()), boot: between(r, time.Hour, 2*time.Hour)}
			s.nodes = append(s.nodes, n)
		}
		s.event("%s, %d nodes", s.mode, count)
		for _, n := range s.nodes {
			n.start()
		}
		time.Sleep(simLease) // and the poll, at most
		for i := range 3 {
			s.work.Go(func() { s.writer(i) })
			s.work.Go(func() { s.client(i) })
		}
		if s.mode != simCalm || opt.trouble != nil {
			for _, n := range s.nodes {
				s.work.Go(func() { s.nemesis(n) })
			}
		}
		if !opt.steady {
			s.work.Go(s.outages)
		}
		s.work.Go(s.failover)
		s.work.Wait()
		s.heal()
		for _, n := range s.nodes {
			if n.process != nil {
				n.end(false)
			}
		}
		time.Sleep(time.Minute) // what is still on its way arrives
		s.mu.Lock()
		defer s.mu.Unlock()
		slices.SortStableFunc(s.events, func(a, b simEvent) int {
			if a.at != b.at {
				return int(a.at - b.at)
			}
			return strings.Compare(a.text, b.text)
		})
		result = simResult{s.faults, s.events, s.counts}
	})
	return result
}

// simulateMany runs seeds from first on and calls each with what came of them, in order of their ending, until it returns false.
func simulateMany(t *testing.T, first uint64, count int, opt simOptions, each func(seed uint64, r simResult) bool) {
	t.Helper()
	var next atomic.Uint64
	var stop atomic.Bool
	var mu sync.Mutex
	t.Run("seeds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker", i), func(t *testing.T) {
				t.Parallel()
				for !stop.Load() {
					n := next.Add(1) - 1
					if n >= uint64(count) {
						return
					}
					r := simulate(t, first+n, opt)
					mu.Lock()
					if !each(first+n, r) {
						stop.Store(true)
					}
					mu.Unlock()
				}
			})
		}
	})
}

var everyMode = simOptions{modes: []simMode{simCalm, simFaults, simFaults, simSynchronous, simAsynchronous, simAsynchronous, simBackup, simTampered, simTampered}, spread: 0.1}

// C23, I2, P1, P2: the promise and what it rests on, under everything that may happen to nodes, networks and the database.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		opt := everyMode
		opt.trace = true
		r := simulate(t, *simSeed, opt)
		for _, e := range r.events {
			t.Logf("%12v  %s", e.at, e.text)
		}
		for _, f := range r.faults {
			t.Error(f)
		}
		return
	}
	var all simCounts
	simulateMany(t, 1, *simSeeds, everyMode, func(seed uint64, r simResult) bool {
		all.add(r.counts)
		for _, f := range r.faults {
			t.Errorf("seed %d: %s", seed, f)
		}
		if len(r.faults) > 0 {
			t.Errorf("replay it with: go test ./internal/verify -run '^TestSimulation$' -verify.seed=%d", seed)
		}
		return !t.Failed()
	})
	t.Logf("%d seeds: %+v", *simSeeds, all)
}

// A seed replays: everything that happens happens again, at the same nanosecond. Left out are the verifications of a process from the
// nanosecond on in which it begins to end: one asked in that very nanosecond may find the view open or closed.
func TestSimulationReplays(t *testing.T) {
	opt := everyMode
	opt.trace = true
	ends := regexp.MustCompile(`^(node \S+) ends,`)
	verification := regexp.MustCompile(`^(node \S+) (?:is asked about|says of)`)
	texts := func(r simResult) (lines []string) {
		ended := map[string]time.Duration{}
		for _, e := range r.events {
			if m := ends.FindStringSubmatch(e.text); m != nil {
				ended[m[1]] = e.at
			}
		}
		for _, e := range r.events {
			if m := verification.FindStringSubmatch(e.text); m != nil {
				if at, gone := ended[m[1]]; gone && e.at >= at {
					continue
				}
			}
			lines = append(lines, fmt.Sprintf("%v %s", e.at, e.text))
		}
		return lines
	}
	for seed := range uint64(10) {
		if diff := cmp.Diff(texts(simulate(t, seed+1, opt)), texts(simulate(t, seed+1, opt))); diff != "" {
			t.Errorf("seed %d went another way (-first +second):\n%.3000s", seed+1, diff)
		}
	}
}

// C23 (F14): clocks that run at rates up to a tenth off change nothing. Where they are off by three tenths a lease can outlast the wait,
// and the checker says so: it can fail.
func TestC23SimulationClockRates(t *testing.T) {
	opt := simOptions{modes: []simMode{simFaults}, spread: 0.1, extreme: true}
	simulateMany(t, 1, 100, opt, func(seed uint64, r simResult) bool {
		for _, f := range r.faults {
			t.Errorf("rates a tenth off, seed %d: %s", seed, f)
		}
		return !t.Failed()
	})
	opt.spread = 0.3
	stale := 0
	simulateMany(t, 1, 100, opt, func(_ uint64, r simResult) bool {
		stale += countStale(r)
		return stale == 0
	})
	if stale == 0 {
		t.Error("rates three tenths off: 100 seeds, and nothing stale was found")
	}
}

func countStale(r simResult) (n int) {
	for _, f := range r.faults {
		if strings.Contains(f, "C23:") {
			n++
		}
	}
	return n
}

// C23, P1 (F13): a wall clock that is set, by a second, an hour or ten years, on a node or on the database, changes no verdict and leaves
// none undecided. A node whose clock was set forward takes its lease for expired, and renews it at once.
func TestF13WallClockIsSet(t *testing.T) {
	opt := simOptions{modes: []simMode{simCalm}, spread: 0.1, steady: true, trouble: []trouble{troubleJump}}
	var all simCounts
	simulateMany(t, 1, 25, opt, func(seed uint64, r simResult) bool {
		all.add(r.counts)
		for _, f := range r.faults {
			t.Errorf("seed %d: %s", seed, f)
		}
		return true
	})
	if all.Troubles < 50 || all.Undecided > 0 || all.Waited > all.Memory/4 {
		t.Errorf("%+v", all)
	}
	t.Logf("%+v", all)
}

// C23, P1 (F15): a machine that sleeps, its monotonic clock standing still while the wall clock goes on, says nothing stale when it goes on.
func TestF15SuspendedMachine(t *testing.T) {
	opt := simOptions{modes: []simMode{simFaults}, spread: 0.1, steady: true, long: true, trouble: []trouble{troubleSuspend}}
	var all simCounts
	simulateMany(t, 1, 25, opt, func(seed uint64, r simResult) bool {
		all.add(r.counts)
		for _, f := range r.faults {
			t.Errorf("seed %d: %s", seed, f)
		}
		return true
	})
	if all.Troubles < 100 {
		t.Errorf("%+v", all)
	}
	t.Logf("%+v", all)
}

// C23 (F15): of a guest that stands still with all its clocks no clock tells. What it says may be stale for as long as was left of its lease
// when it stood still, and no longer. Each such verdict is counted; there are some, or the limit would be none.
func TestF15FrozenGuest(t *testing.T) {
	opt := simOptions{modes: []simMode{simFaults}, spread: 0.1, steady: true, long: true, trouble: []trouble{troubleFreeze}}
	var all simCounts
	simulateMany(t, 1, 25, opt, func(seed uint64, r simResult) bool {
		all.add(r.counts)
		for _, f := range r.faults {
			t.Errorf("seed %d: %s", seed, f)
		}
		return true
	})
	if all.Troubles < 100 || all.Stale == 0 {
		t.Errorf("%+v", all)
	}
	t.Logf("%+v", all)
}
