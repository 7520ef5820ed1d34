// Package histories holds contract line C23 against the world: real processes over a real PostgreSQL, clients that write and
// verify on all of them, faults of every kind meanwhile, and a check of all that anybody was answered.
//
// The per-change column of the faults are tests like any other. The nightly one, or a part of it:
//
//	go test ./internal/histories -histories.column=night -histories.scale=1 -timeout 12h -v
package histories

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

var (
	column = flag.String("histories.column", "change", "which counts of faults: change (minutes) or night (hours)")
	scale  = flag.Float64("histories.scale", 1, "part of the column's counts")
	seed   = flag.Uint64("histories.seed", 0, "of the schedule of faults; 0 = a new one")
	only   = flag.String("histories.only", "", "only the faults with one of these numbers, separated by commas, such as F2,F8")
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	defer pgtest.ReapAll()
	return keywardtest.Main(m)
}

// columns are how many faults of each kind there are.
var columns = map[string]struct {
	nodes  int
	rounds int // histories of their own, so that each is checked while it is fresh
	counts map[string]int
}{
	"change": {3, 1, map[string]int{"healthy": 300, "F1": 200, "F2": 30, "F3": 30, "F4": 60, "F5": 5, "F6": 5, "F7": 50, "F8": 50, "F9": 1, "F10": 1, "F11": 1, "F12": 5, "F13": 50, "F17": 5000, "F18": 1, "F21": 1, "F22": 20_000, "F25": 1000, "R10": 1, "V8": 4}},
	"night":  {5, 50, map[string]int{"healthy": 5000, "F1": 5000, "F2": 2000, "F3": 1000, "F4": 20 * 300, "F5": 200, "F6": 200, "F7": 3000, "F8": 2000, "F9": 100, "F10": 100, "F11": 50, "F12": 100, "F13": 1000, "F17": 500_000, "F18": 20, "F21": 100, "F22": 5_000_000, "F25": 100_000, "R10": 20, "V8": 500}},
}

// C12, C13, C21, C23, O1, V8; F1–F8, F13, F17, F21, F22, F25: whatever happens to nodes, database and network, when a write has been answered nothing that begins
// afterwards, on any node, sees the old state; no answered write is lost; and some order of all operations explains every answer.
func TestHistories(t *testing.T) {
	t.Parallel()
	plan, ok := columns[*column]
	if !ok {
		t.Fatalf("-histories.column: there is no column of that name; there are %v", slices.Sorted(maps.Keys(columns)))
	}
	rounds := max(1, int(float64(plan.rounds)**scale+0.5))
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	for round := range rounds {
		name := fmt.Sprintf("%s-%d-of-%d", *column, round+1, rounds)
		t.Run(name, func(t *testing.T) {
			counts := make(map[string]int)
			for fault, count := range plan.counts {
				part := float64(count) * *scale / float64(rounds)
				counts[fault] = int(part*float64(round+1)+0.5) - int(part*float64(round)+0.5) // none is lost by rounding
			}
			seed := s + uint64(round)
			order := slices.Clone(nemeses)
			last := len(order) - 1
			rand.New(rand.NewPCG(seed, 1)).Shuffle(last, func(i, j int) { order[i], order[j] = order[j], order[i] })
			w := newCrowd(newCluster(t, keywardtest.Options{}, plan.nodes, pgtest.NewServer(t)))
			p := w.play(seed, order, counts)
			p.judge()
			if w.figures.answered.Load() < 3000 && *column == "change" && *only == "" && *scale >= 1 {
				w.tb.Errorf("only %d writes were answered", w.figures.answered.Load())
			}
		})
	}
}

// played is one history and what the checks found in it.
type played struct {
	*crowd
	seed           uint64
	phases         []*phase
	end            *settled
	found          *findings
	took, checking time.Duration
	twoActive      []string
	looks          int // for organizations with two active keys
}

// play lets clients write and verify, does the faults in that order meanwhile, as many of each as counts says for its number, and
// checks everything that anybody was answered.
func (w *crowd) play(seed uint64, order []nemesis, counts map[string]int) *played {
	began := time.Now()
	p := &played{crowd: w, seed: seed}
	for range 40 {
		w.organizations = append(w.organizations, w.newOrganization())
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := make(chan struct{})
	var clients, watching sync.WaitGroup
	for range 4 {
		clients.Go(func() { w.writer(ctx, stop, 100*time.Millisecond) })
	}
	for _, n := range w.nodes {
		clients.Go(func() { w.verifier(stop, n, 20*time.Millisecond) })
	}
	watching.Go(func() { p.twoActive, p.looks = w.watchActive(ctx) })

	r := rand.New(rand.NewPCG(seed, 0))
	for _, n := range append([]nemesis{healthy}, order...) {
		number, _, _ := strings.Cut(n.fault, " ")
		count := counts[number]
		if count == 0 || *only != "" && n.fault != healthy.fault && !slices.Contains(strings.Split(*only, ","), number) {
			continue
		}
		now := &phase{fault: n.fault}
		w.phase.Store(now)
		p.phases = append(p.phases, now)
		phaseBegan := time.Now()
		n.run(w, count, r)
		w.tb.Logf("%6.1fs  %s ×%d in %v: %d writes answered so far, %d verifications; longest revoke %v", time.Since(began).Seconds(), n.fault, count,
			time.Since(phaseBegan).Round(time.Millisecond), w.figures.answered.Load(), w.figures.accepted.Load()+w.figures.keyRefused.Load()+w.figures.other.Load(), now.revokes.quantile(1).Round(time.Millisecond))
	}
	w.heal()
	close(stop)
	ending := time.AfterFunc(time.Minute, cancel) // writes that are on their way may end
	clients.Wait()
	ending.Stop()
	cancel()
	watching.Wait()
	w.probing.Wait()

	p.end = w.settle()
	p.took = time.Since(began)
	checking := time.Now()
	p.found = w.history.check()
	p.checking = time.Since(checking)
	return p
}

// judge fails the test for whatever was found wrong, and says in figures what the history proves.
func (p *played) judge() {
	t := p.tb
	t.Helper()
	if len(p.twoActive) > 0 || p.looks == 0 {
		t.Errorf("C12: organizations with two active keys, in %d looks: %v", p.looks, p.twoActive)
	}
	report(t, "answered writes are not in the database", p.end.lost)
	report(t, "the database and what was answered differ", p.end.other)
	report(t, "C23: stale accepts", p.found.staleAccepts)
	report(t, "C23: refused though answered", p.found.lostWrites)
	report(t, "refused once, accepted later by the same process", p.found.unstuck)
	report(t, "no legal order", p.found.illegal)
	report(t, "no proof of a legal order", p.found.unproven)

	f := &p.figures
	t.Logf("seed %d, %d nodes, lease %v: %v; writes: %d answered (%d creates, %d revokes, %d rolls, %d switches), %d refused, %d attempts unknown, %d never resolved",
		p.seed, len(p.nodes), lease, p.took.Round(time.Second), f.answered.Load(), f.creates.Load(), f.revokes.Load(), f.rolls.Load(), f.switches.Load(), f.refused.Load(), f.unknown.Load(), f.unresolved.Load())
	t.Logf("verifications: %d accepted, %d refused as revoked, %d otherwise, %d undecided, %d not sent", f.accepted.Load(), f.keyRefused.Load(), f.other.Load(), f.undecided.Load(), f.unasked.Load())
	legal := "legal"
	if len(p.found.illegal)+len(p.found.unproven) > 0 {
		legal = "NOT legal"
	}
	t.Logf("stale accepts: %d; lost answers: %d; porcupine: %s (%d operations on %d keys, checked in %v)",
		len(p.found.staleAccepts), len(p.end.lost), legal, p.history.count, p.end.keys, p.checking.Round(time.Millisecond))
	for _, phase := range p.phases {
		all := &phase.revokes
		t.Logf("  revokes, %-24s p50 %8v  p99 %8v  longest %8v  of %d", phase.fault+":", all.quantile(0.5).Round(100*time.Microsecond), all.quantile(0.99).Round(100*time.Microsecond), all.quantile(1).Round(100*time.Microsecond), len(all.all))
	}
	p.judgeTimes()
	if f.answered.Load() == 0 || f.accepted.Load() == 0 || f.keyRefused.Load() == 0 {
		t.Error("hardly anything was written or verified: this proves nothing")
	}
	if t.Failed() {
		t.Logf("run it again with -histories.seed=%d", p.seed)
	}
}

// healthy is no fault: one revoke after the other beside the usual clients.
var healthy = nemesis{"healthy", func(w *crowd, count int, _ *rand.Rand) {
	for _, k := range w.stock(count) {
		w.revoke(context.Background(), nil, k)
	}
}}

// report fails the test with the first few of what was found.
func report(tb testing.TB, what string, found []string) {
	tb.Helper()
	if len(found) > 0 {
		tb.Errorf("%s: %d\n\t%s", what, len(found), strings.Join(found[:min(8, len(found))], "\n\t"))
	}
}
