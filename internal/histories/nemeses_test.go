package histories

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// nemesis does count faults of one kind to a cluster in use. What it draws it draws from r, so that a seed repeats the schedule.
// It runs on the test's own goroutine and leaves the cluster healthy.
type nemesis struct {
	fault string
	run   func(w *crowd, count int, r *rand.Rand)
}

// nemeses in the numbering of the fault matrix.
var nemeses = []nemesis{
	{"F1 announcements lost", (*crowd).loseAnnouncements},
	{"F2 frozen node", (*crowd).freezeNodes},
	{"F3 killed node", (*crowd).killNodes},
	{"F4 starved node", (*crowd).starveNode},
	{"F5 killed database", (*crowd).killDatabase},
	{"F6 frozen database", (*crowd).freezeDatabase},
	{"F7 broken network", (*crowd).breakNetwork},
	{"F8 lost commits", (*crowd).loseCommits},
	{"F13 database's clock set", (*crowd).setClock},
	{"F17 concurrent revokes", (*crowd).revokeConcurrently},
	{"F21 rolling restart", (*crowd).rollNodes},
	{"F25 races", (*crowd).race},
	{"V8 database writer", (*crowd).editDatabase},
	{"F22 node far behind", (*crowd).fallBehind}, // last: the database is large afterwards
}

// slack is what a shared machine may add to a time that is checked.
const slack = time.Second

// between draws a length of time from least to most, each factor as likely as any other, so that short and long ones occur.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return time.Duration(float64(least) * math.Pow(float64(most)/float64(least), r.Float64()))
}

// after lets the time pass that a fault lasts.
func after(d time.Duration) { pause(context.Background(), d) }

// stock makes count keys, each of an organization of its own. They are written past the service, which would take a barrier for
// each; one act through it then shows them to every node.
func (w *crowd) stock(count int) []*key {
	stocked := make([]*key, count)
	call := w.history.now()
	w.bulk(count, func(i int, id, organizationID, secret string) {
		stocked[i] = &key{id: id, secret: secret, organization: &organization{id: organizationID}}
	})
	if w.create(context.Background(), w.newOrganization()) == nil {
		w.tb.Fatal("no key could be made")
	}
	ret := w.history.now()
	for _, k := range stocked {
		w.history.addKey(k, operation{act: created, call: call, ret: ret})
		k.organization.current.Store(k)
	}
	return stocked
}

// parallel does count things with some clients.
func (w *crowd) parallel(clients, count int, do func(ctx context.Context, i int)) {
	ctx, cancel := context.WithTimeout(context.Background(), phaseTime)
	defer cancel()
	var all sync.WaitGroup
	var next atomic.Int64
	for range clients {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(count); i = next.Add(1) - 1 {
				do(ctx, int(i))
			}
		})
	}
	all.Wait()
}

// phaseTime bounds what a nemesis waits for.
const phaseTime = 10 * time.Minute

// others is a node that is not the one given.
func (w *crowd) other(n *node, r *rand.Rand) *node {
	return w.nodes[(n.index+1+r.IntN(len(w.nodes)-1))%len(w.nodes)]
}

// within notes how long something took that may take most; see judgeTimes. What is called the same is to be alike: what is slow only of
// one kind does not show among others.
func (w *crowd) within(what string, took, most time.Duration) {
	w.mu.Lock()
	limit := w.limits[what]
	if limit == nil {
		limit = &timeLimit{most: most}
		w.limits[what] = limit
	}
	w.mu.Unlock()
	limit.took.add(took)
}

// timeLimit is how long something may take, and how long it took each time.
type timeLimit struct {
	most time.Duration
	took latencies
}

// judgeTimes fails the test for what usually took longer than it may. A machine that others use as well makes some of many late; a
// rule that is broken makes every second one late.
func (w *crowd) judgeTimes() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(w.limits)) {
		limit := w.limits[what]
		usual := limit.took.quantile(0.49) // of two the shorter
		w.tb.Logf("%s took %v, at the longest %v of %d; may take %v", what, usual.Round(100*time.Microsecond), limit.took.quantile(1).Round(100*time.Microsecond), limit.took.count(), limit.most)
		if usual > limit.most+slack {
			w.tb.Errorf("%s took %v, may take %v", what, usual.Round(time.Millisecond), limit.most)
		}
	}
}

// F1: the connections that wait for announcements are ended, all of a node's connections are, or a pooler between the nodes and
// the database delivers no announcement. A write takes longer by at most the time between two polls.
func (w *crowd) loseAnnouncements(count int, _ *rand.Rand) {
	stocked := w.stock(count)
	var severed atomic.Int64
	for _, way := range []struct {
		name    string
		share   float64 // of the revokes
		clients int
		most    time.Duration // a revoke takes
		once    bool          // at the beginning, not before each revoke
		lose    func()
	}{
		{"the listening connections are ended", 0.4, 4, poll + 50*time.Millisecond, false, func() {
			n, err := w.severListeners()
			if err != nil {
				w.tb.Error(err)
			}
			severed.Add(int64(n))
		}},
		{"a node's connections are cut", 0.2, 1, time.Second, false, func() { w.anyNode().proxy.Cut() }}, // it connects again, with pauses
		{"a pooler delivers none", 0.4, 4, poll + 50*time.Millisecond, true, func() {
			for _, n := range w.nodes {
				n.proxy.Set(faultproxy.Fault{DropNotifications: true})
				n.proxy.Cut() // so that no node trusts what it heard before
			}
		}},
	} {
		part := stocked[:min(len(stocked), int(way.share*float64(count)+0.5))]
		stocked = stocked[len(part):]
		if way.once {
			way.lose()
			for _, n := range w.nodes {
				w.ready(n)
			}
		}
		w.parallel(way.clients, len(part), func(ctx context.Context, j int) {
			if !way.once {
				way.lose()
			}
			if answered, took := w.revoke(ctx, nil, part[j]); answered {
				w.within("F1: "+way.name+": a revoke", took, way.most)
			}
		})
	}
	if severed.Load() == 0 {
		w.tb.Error("F1: no connection that listens was found")
	}
	w.heal()
}

// F2: nodes stand still and go on, two at a time, with questions waiting for them. A write waits for them once.
func (w *crowd) freezeNodes(count int, r *rand.Rand) {
	stocked := w.stock(2 * count)
	for len(stocked) > 0 {
		places := r.Perm(len(w.nodes))
		through := w.nodes[places[0]]
		var both sync.WaitGroup
		for _, place := range places[1:min(3, 1+len(stocked)/2)] {
			least := 100 * time.Millisecond
			if len(stocked)%10 == 0 {
				least = longFreeze
			}
			k, next, n, length := stocked[0], stocked[1], w.nodes[place], between(r, least, 3*wait)
			stocked = stocked[2:]
			both.Go(func() { w.freezeNode(n, through, length, k, next) })
		}
		both.Wait()
	}
	w.heal()
}

// besideFrozen is what a revoke may take beside a node that stands still, and longFreeze so long that it shows when the writer waits for
// that to go on.
const (
	besideFrozen = wait + 200*time.Millisecond
	longFreeze   = besideFrozen + slack + 250*time.Millisecond
)

// freezeNode lets a node stand still for some time, while a key is revoked through another, and another after that.
func (w *crowd) freezeNode(n, through *node, length time.Duration, k, next *key) {
	w.freeze(n)
	frozen := time.Now()
	revoked := make(chan time.Duration, 1)
	go func() {
		_, took := w.revoke(context.Background(), through, k)
		revoked <- took
	}()
	after(length - time.Since(frozen))
	for range 25 {
		w.probe(n, k)
	}
	w.thaw(n)
	for range 50 {
		w.probe(n, k)
	}
	// Now and then a node stands still within a write and holds the lock that puts writes in order, until the server ends that write.
	took := <-revoked
	if length >= longFreeze {
		w.within("F2: a revoke beside a frozen node", took, besideFrozen)
	}
	_, took = w.revoke(context.Background(), through, next)
	w.within("F2: the revoke after that", took, 200*time.Millisecond)
	for range 10 {
		w.probe(n, next)
	}
}

// F3: kill -9 of an idle node, of one that verifies, and of one that waits in the barrier for another.
func (w *crowd) killNodes(count int, r *rand.Rand) {
	stocked := w.stock(count)
	var waiting sync.WaitGroup
	for i, k := range stocked {
		n := w.nodes[r.IntN(len(w.nodes))]
		switch i % 3 {
		case 0:
			after(between(r, time.Millisecond, 200*time.Millisecond)) // anywhere between two renewals
			waiting.Go(func() { w.revoke(context.Background(), nil, k) })
		case 1:
			for range 100 {
				w.probe(n, k)
			}
			waiting.Go(func() { w.revoke(context.Background(), nil, k) })
		case 2:
			silent := w.other(n, r)
			w.freeze(silent)
			waiting.Go(func() { w.revoke(context.Background(), n, k) })
			after(between(r, 10*time.Millisecond, 500*time.Millisecond))
			w.restart(n)
			w.thaw(silent)
		}
		if i%3 != 2 {
			w.restart(n)
		}
		began := time.Now()
		w.ready(n)
		w.within("F3: a node started anew that was "+[...]string{"idle", "verifying", "waiting for another"}[i%3], time.Since(began), 2*time.Second)
	}
	waiting.Wait()
	w.heal()
}

// F4: a node gets a twentieth of a processor and collects garbage all the time. count is seconds.
func (w *crowd) starveNode(count int, r *rand.Rand) {
	n := w.nodes[r.IntN(len(w.nodes))]
	w.restart(n, "GOGC=1")
	w.ready(n)
	ended := time.After(time.Duration(count) * time.Second)
	stop := make(chan struct{})
	var revoking sync.WaitGroup
	revoking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if k := w.create(context.Background(), w.newOrganization()); k != nil {
				w.revoke(context.Background(), nil, k)
			}
		}
	})
	for starved := true; starved; {
		w.freeze(n)
		after(95 * time.Millisecond)
		w.thaw(n)
		select {
		case <-ended:
			starved = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	close(stop)
	revoking.Wait()
	w.restart(n)
	w.heal()
}

// F5: kill -9 of the database. What was answered is there afterwards; see settle.
func (w *crowd) killDatabase(count int, r *rand.Rand) {
	for i := range count {
		after(between(r, 10*time.Millisecond, time.Second))
		w.primary.Load().Kill(w.tb)
		gone := time.Now()
		length := between(r, 50*time.Millisecond, lease*3/2)
		if i%2 == 0 {
			length = lease * 3 / 2
		}
		after(length)
		w.primary.Load().Restart(w.tb)
		began := time.Now()
		w.heal()
		w.within("F5: service after the database was back from "+outage(began.Sub(gone)), time.Since(began), 2*time.Second)
	}
}

// outage is the kind of one: beyond a lease every node has closed.
func outage(length time.Duration) string {
	if length > lease {
		return "more than a lease"
	}
	return "less than a lease"
}

// F6: the database stands still: after a lease every node is closed, and soon after the database goes on it is open.
func (w *crowd) freezeDatabase(count int, r *rand.Rand) {
	stocked := w.stock(1)
	for i := range count {
		length := between(r, lease/2, 3*lease)
		if i == 0 {
			length = 3 * lease / 2 // one at least sees the lease end
		}
		w.primary.Load().Freeze(w.tb)
		began := time.Now()
		if length > lease+300*time.Millisecond {
			after(lease + 10*time.Millisecond)
			for _, n := range w.nodes {
				w.closed("F6", n, began, stocked)
			}
		}
		after(length - time.Since(began))
		w.primary.Load().Thaw(w.tb)
		began = time.Now()
		w.heal()
		w.within("F6: service after the database stood still for "+outage(length), time.Since(began), 2*time.Second)
	}
	for _, k := range stocked {
		w.revoke(context.Background(), nil, k)
	}
}

// closed demands that a node decides nothing; it lost its database at the time given.
func (w *crowd) closed(fault string, n *node, since time.Time, about []*key) {
	var asking sync.WaitGroup
	for _, k := range about {
		for range 10 {
			asking.Go(func() {
				if decided, v := w.verify(context.Background(), n.current.Load(), k); decided {
					w.tb.Errorf("%s: node %d answered %s a lease and %v after it lost its database", fault, n.index, verdictNames[v], time.Since(since)-lease)
				}
			})
		}
	}
	asking.Wait()
}

// F7: latency, little bandwidth, resets, refusals, and loss one way and both, to each node at its own times.
func (w *crowd) breakNetwork(count int, r *rand.Rand) {
	stocked := w.stock(count + 1)
	alive := stocked[count:]
	var all sync.WaitGroup
	for i, n := range w.nodes {
		own := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		all.Go(func() { w.breakNetworkOf(n, stocked[count*i/len(w.nodes):count*(i+1)/len(w.nodes)], alive, own) })
	}
	all.Wait()
	w.heal()
	for _, k := range alive {
		w.revoke(context.Background(), nil, k)
	}
}

// breakNetworkOf does one fault for each of the keys, which is revoked meanwhile.
func (w *crowd) breakNetworkOf(n *node, doomed, alive []*key, r *rand.Rand) {
	var revoking sync.WaitGroup
	for i, k := range doomed {
		length, hole := between(r, 100*time.Millisecond, lease*5/4), false
		switch r.IntN(8) {
		case 0:
			n.proxy.Set(faultproxy.Fault{Latency: between(r, time.Millisecond, 2500*time.Millisecond)})
		case 1:
			n.proxy.Set(faultproxy.Fault{BytesPerSecond: 1000})
		case 2:
			n.proxy.Cut()
		case 3:
			n.proxy.Set(faultproxy.Fault{Refuse: true})
			n.proxy.Cut()
		case 4:
			n.proxy.Set(faultproxy.Fault{DropUp: true})
			hole = true
		case 5:
			n.proxy.Set(faultproxy.Fault{DropDown: true})
			hole = true
		default:
			n.proxy.Set(faultproxy.Fault{DropUp: true, DropDown: true})
			hole = true
		}
		began := time.Now()
		through := n
		if r.IntN(2) == 0 {
			through = w.other(n, r)
		}
		revoking.Go(func() { w.revoke(context.Background(), through, k) })
		if hole && i%3 == 0 {
			after(lease + 10*time.Millisecond)
			w.closed("F7", n, began, alive)
		} else {
			after(length - time.Since(began))
		}
		n.proxy.Set(faultproxy.Fault{})
	}
	revoking.Wait()
}

// F8: the answer to a COMMIT is lost. The writer does not know and says so; asking again completes it.
func (w *crowd) loseCommits(count int, _ *rand.Rand) {
	stocked := w.stock(2 * count)
	cut := 0
	for i, k := range stocked {
		n := w.nodes[i%len(w.nodes)]
		lost := n.proxy.CutAtCommit(1)
		w.revoke(context.Background(), n, k)
		select {
		case <-lost:
			cut++
		default: // a write of somebody else, which had not ended, is cut later or never
		}
		n.proxy.CutAtCommit(0)
		if cut == count {
			break
		}
	}
	if cut < count {
		w.tb.Errorf("F8: %d commits lost their answer, wanted %d", cut, count)
	}
	w.heal()
}

// F13: the database's wall clock is set forward and back, by a second up to ten years. No verdict changes, and no write takes longer:
// the lease, the wait and the expiry of a key are by clocks of the nodes.
func (w *crowd) setClock(count int, _ *rand.Rand) {
	const year = 365 * 24 * time.Hour
	shifts := []time.Duration{time.Second, -time.Second, time.Hour, -time.Hour, 10 * year, -10 * year}
	stocked := w.stock(2 * count)
	for i := range count {
		shift := shifts[i%len(shifts)]
		w.shiftClock(shift)
		if answered, took := w.revoke(context.Background(), nil, stocked[2*i]); answered {
			w.within(fmt.Sprintf("F13: a revoke after a shift by %v", shift), took, poll+50*time.Millisecond)
		}
		for _, n := range w.nodes {
			w.probe(n, stocked[2*i+1]) // still good, which the checks know
		}
	}
	w.shiftClock(0)
}

// shiftClock sets the one clock that every statement reads.
func (w *crowd) shiftClock(by time.Duration) {
	const view = `CREATE OR REPLACE VIEW clock AS SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) + %d AS now`
	if err := w.query(fmt.Sprintf(view, by.Microseconds()), func(pgx.Rows) error { return nil }); err != nil {
		w.tb.Errorf("the database's clock could not be set: %v", err)
	}
}

// F17: 64 clients revoke keys, each of them twice, while transactions take longer and shorter.
func (w *crowd) revokeConcurrently(count int, r *rand.Rand) {
	stocked := w.stock((count + 1) / 2)
	stop := make(chan struct{})
	var jitter sync.WaitGroup
	jitter.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			for _, n := range w.nodes { // now and then: writes wait for each other, so a slow one is everybody's
				n.proxy.Set(faultproxy.Fault{Latency: max(0, time.Duration(r.IntN(10_000)-9_000)*3*time.Microsecond)})
			}
		}
	})
	w.parallel(64, count, func(ctx context.Context, i int) { w.revoke(ctx, nil, stocked[i/2]) })
	close(stop)
	jitter.Wait()
	w.heal()
}

// restartPause is how long after a node is ready the next one is stopped: longer than a client that was refused by the one takes to
// ask the other.
const restartPause = 500 * time.Millisecond

// F21: every node is stopped and started in turn under 20 revokes a second, with that pause between. A client that asks another node
// once more always gets an answer.
func (w *crowd) rollNodes(rounds int, _ *rand.Rand) {
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var asked, failed atomic.Int64
	var current atomic.Pointer[key]
	current.Store(w.stock(1)[0])
	clients.Go(func() {
		var revoking sync.WaitGroup
		defer revoking.Wait()
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			revoking.Go(func() {
				if k := w.create(context.Background(), w.newOrganization()); k != nil {
					w.revoke(context.Background(), nil, current.Swap(k))
				}
			})
		}
	})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				asked.Add(1)
				n, k := rand.IntN(len(w.nodes)), current.Load()
				for try := range 2 {
					if decided, _ := w.verify(context.Background(), w.nodes[(n+try)%len(w.nodes)].current.Load(), k); decided {
						break
					} else if try == 1 {
						failed.Add(1)
					}
				}
			}
		})
	}
	for range rounds {
		for _, n := range w.nodes {
			if code := n.current.Load().Stop(w.tb); code != 0 {
				w.tb.Errorf("F21: a node that was stopped ended with code %d", code)
			}
			w.start(n)
			w.ready(n)
			after(restartPause)
		}
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 || asked.Load() == 0 {
		w.tb.Errorf("F21: %d of %d verifications failed on two nodes", failed.Load(), asked.Load())
	}
	w.revoke(context.Background(), nil, current.Load())
}

// F25: creates, rolls and revokes of few organizations at once through all nodes; see watchActive.
func (w *crowd) race(count int, _ *rand.Rand) {
	organizations := make([]*organization, 8)
	for i := range organizations {
		organizations[i] = w.newOrganization()
	}
	w.parallel(64, count, func(ctx context.Context, _ int) {
		o := organizations[rand.IntN(len(organizations))]
		k := o.current.Load()
		switch dice := rand.IntN(3); {
		case dice == 0 || k == nil:
			w.create(ctx, o)
		case dice == 1:
			w.roll(ctx, k)
		default:
			w.revoke(ctx, nil, k)
		}
	})
	for _, o := range organizations {
		if k := o.current.Load(); k != nil {
			w.revoke(context.Background(), nil, k)
		}
	}
}

// F22: while a node stands still, count keys are written past all barriers, many to a transaction. When it goes on it is not to
// decide from what it has: each of its answers about the new keys is from the database, until it has caught up.
func (w *crowd) fallBehind(count int, r *rand.Rand) {
	n := w.nodes[r.IntN(len(w.nodes))]
	w.freezeBetweenWrites(n)
	frozen := time.Now()
	var written []string // a sample
	revision := w.bulk(count, func(i int, _, _, secret string) {
		if i%max(1, count/200) == 0 {
			written = append(written, secret)
		}
	})
	after(lease + 10*time.Millisecond - time.Since(frozen))
	w.thaw(n)
	began := time.Now()
	p := n.current.Load()
	for ready := false; !ready; {
		w.demandValid(p, written[rand.IntN(len(written))])
		ready = w.send(context.Background(), p, http.MethodGet, p.Verification+"/readyz", "", "", nil).status == http.StatusOK
		if time.Since(began) > phaseTime {
			w.tb.Fatal("F22: the node does not catch up")
		}
	}
	took := time.Since(began)
	var s api.Status
	a := w.send(context.Background(), p, http.MethodGet, p.Admin+"/v1/status", "", "", nil)
	if err := json.Unmarshal(a.body, &s); err != nil || s.Revision < revision {
		w.tb.Errorf("F22: ready at revision %d (%v), behind %d", s.Revision, err, revision)
	}
	for _, secret := range written {
		w.demandValid(p, secret)
	}
	w.tb.Logf("F22: %d changes behind, caught up in %v", count, took.Round(time.Millisecond))
	w.within("F22: catching up", took, 10*time.Second)
	w.heal()
}

// freezeBetweenWrites lets a node stand still where it does not keep all others from writing.
func (w *crowd) freezeBetweenWrites(n *node) {
	for {
		w.freeze(n)
		after(500 * time.Millisecond) // those of its writes that wait for their turn have had it
		if !w.writeStandsStill() {
			return
		}
		w.thaw(n)
		after(100 * time.Millisecond)
	}
}

// demandValid fails the test when a process decides about a secret and refuses it.
func (w *crowd) demandValid(p *process, secret string) {
	a := w.send(context.Background(), p, http.MethodPost, p.Verification+"/v1/verify", "", "", api.VerifyKey{Key: secret})
	var v api.Verdict
	if a.status == http.StatusOK && (json.Unmarshal(a.body, &v) != nil || !v.Valid) {
		w.tb.Errorf("F22: a key written before the node went on is %q", v.Reason)
	}
}

// bulk writes count keys as the service would, only many to a transaction, tells of each, and returns the last revision.
func (w *crowd) bulk(count int, made func(i int, id, organizationID, secret string)) (revision int64) {
	ctx, cancel := context.WithTimeout(context.Background(), phaseTime)
	defer cancel()
	ring, err := seal.Load(filepath.Join(w.dir, "master.key"))
	if err != nil {
		w.tb.Fatal(err)
	}
	store, err := sqlstore.Open(ctx, sqlstore.Options{URL: w.primary.Load().URL(), Ring: ring, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.tb.Fatal(err)
	}
	defer store.Close()
	format, err := token.NewFormat("sk")
	if err != nil {
		w.tb.Fatal(err)
	}
	w.mu.Lock()
	w.made++
	batch := w.made
	w.mu.Unlock()
	const perWrite = 500 // a larger one keeps the clients waiting
	for from := 0; from < count; from += perWrite {
		commit, err := store.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			for i := from; i < min(count, from+perWrite); i++ {
				secret, err := format.Generate(keys.Test)
				if err != nil {
					return err
				}
				k := keys.Key{
					ID: fmt.Sprintf("key_%010d%016d", batch, i), OrganizationID: fmt.Sprintf("org_bulk_%d_%d", batch, i), Environment: keys.Test,
					Digest: secret.Digest(), Hint: secret.Hint(), Name: "One of many", CreatedAt: tx.Now(), CreatedBy: "histories", State: keys.StateActive,
				}
				made(i, k.ID, k.OrganizationID, secret.Reveal())
				if err := tx.InsertKey(ctx, k); err != nil {
					return err
				}
				if err := tx.Audit(ctx, keys.AuditEntry{
					At: tx.Now(), Actor: "histories", Action: keys.ActCreate, OrganizationID: k.OrganizationID, TargetID: k.ID, Outcome: keys.Done,
					RemoteAddress: "127.0.0.1", RequestID: "bulk", Revision: tx.Revision(),
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			w.tb.Fatal(err)
		}
		revision = commit.Revision
	}
	return revision
}
