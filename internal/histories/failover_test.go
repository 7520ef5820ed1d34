package histories

import (
	"context"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// rounds is how many faults of one kind the column has.
func rounds(fault string) int {
	return max(1, int(float64(columns[*column].counts[fault])**scale+0.5))
}

// standby is the server that is not the primary.
func (c *cluster) standby() *pgtest.Server {
	return c.servers[1-slices.Index(c.servers, c.primary.Load())]
}

// takeOver promotes the standby.
func (c *cluster) takeOver() {
	standby := c.standby()
	standby.Promote(c.tb)
	c.primary.Store(standby)
}

// P7, C23, F9: the primary dies under load and its synchronous standby takes over. No answered write is lost, and no node accepts
// from before.
func TestF9FailoverToASynchronousStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.NewServer(t)
	standby := primary.NewStandby(t, true)
	w := newCrowd(newCluster(t, keywardtest.Options{}, 3, primary, standby))
	counts := map[string]int{healthy.fault: 50, "F9": rounds("F9")}
	w.play(rand.Uint64(), []nemesis{{"F9 failover", (*crowd).failOver}}, counts).judge()
}

// F9: the primary is killed and its standby promoted; the dead one comes back as the next standby.
func (w *crowd) failOver(count int, r *rand.Rand) {
	for i := range count {
		after(between(r, 200*time.Millisecond, time.Second))
		dead := w.primary.Load()
		dead.Kill(w.tb)
		w.takeOver()
		began := time.Now()
		w.heal()
		w.within("F9: service after the promotion", time.Since(began), 2*time.Second)
		for _, k := range w.stock(20) {
			w.revoke(context.Background(), nil, k)
		}
		if i+1 < count {
			dead.Follow(w.tb, w.primary.Load(), true)
		}
	}
}

// C23, F10: an asynchronous standby takes over that lacks the last revocations. Each node that knew of them finds out, goes on
// refusing those keys, and has them revoked again within five seconds after it serves again.
func TestF10FailoverToAnAsynchronousStandby(t *testing.T) {
	t.Parallel()
	for range rounds("F10") {
		primary := pgtest.NewServer(t)
		standby := primary.NewStandby(t, false)
		w := newCrowd(newCluster(t, keywardtest.Options{}, 3, primary, standby))
		w.loseRevocations("F10", func() {
			standby.WaitReplayed(t)
			standby.Withhold(t)
		}, func() {
			primary.Kill(t)
			w.takeOver()
		})
	}
}

// C23, F18: an older backup is put in the place of the database under running nodes. As with a standby that lacks the last writes.
func TestF18RestoreOfAnOlderBackup(t *testing.T) {
	t.Parallel()
	for range rounds("F18") {
		server := pgtest.NewServer(t)
		w := newCrowd(newCluster(t, keywardtest.Options{}, 3, server))
		var backup string
		w.loseRevocations("F18", func() { backup = server.Backup(t) }, func() {
			server.Kill(t)
			server.Restore(t, backup)
			server.Restart(t)
		})
	}
}

// loseRevocations revokes keys between mark and lose, of which the latter takes the database back to where it was at the former.
func (w *crowd) loseRevocations(fault string, mark, lose func()) {
	w.tb.Helper()
	doomed, kept := w.stock(8), w.stock(2)
	mark()
	for _, k := range doomed {
		w.revoke(context.Background(), nil, k)
	}
	for _, n := range w.nodes { // each of them knows
		for _, k := range doomed {
			if decided, v := w.verify(context.Background(), n.current.Load(), k); !decided || v != keyRefused {
				w.tb.Fatalf("%s: node %d answers %s (decided: %t) of a revoked key", fault, n.index, verdictNames[v], decided)
			}
		}
	}

	stop := make(chan struct{})
	var watching sync.WaitGroup
	var refused atomic.Int64
	for _, n := range w.nodes {
		watching.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				if decided, v := w.verify(context.Background(), n.current.Load(), doomed[i%len(doomed)]); decided && v == keyRefused {
					refused.Add(1)
				}
				w.verify(context.Background(), n.current.Load(), kept[i%len(kept)])
			}
		})
	}
	lose()
	lost := len(doomed) - w.countRevoked(doomed)
	if lost == 0 {
		w.tb.Fatalf("%s: no revocation was lost", fault)
	}
	w.heal()
	began := time.Now()
	if err := keywardtest.Poll(func() bool { return w.countRevoked(doomed) == len(doomed) }, nil); err != nil {
		w.tb.Errorf("%s: %d of %d lost revocations are not in the database again: %v", fault, len(doomed)-w.countRevoked(doomed), lost, err)
	}
	took := time.Since(began)
	w.within(fault+": the lost revocations were in the database again", took, 5*time.Second)
	for _, n := range w.nodes {
		p := n.current.Load()
		if told := w.metric(p, "keyward_regressions_total"); told < 1 {
			w.tb.Errorf("%s: node %d says that its database lost nothing", fault, n.index)
		}
		p.WaitLog(w.tb, "the database lost writes that this node has seen")
	}

	// What goes on is the same service: it takes writes, and a process that never knew of the revocations refuses as well.
	for _, k := range w.stock(2) {
		w.revoke(context.Background(), nil, k)
	}
	fresh := w.newNode()
	w.probes = append(w.probes, make(chan struct{}, 1))
	w.start(fresh)
	w.ready(fresh)
	for _, k := range doomed {
		w.verify(context.Background(), fresh.current.Load(), k)
	}
	close(stop)
	watching.Wait()
	w.probing.Wait()
	w.noneWrong(fault)
	w.tb.Logf("%s: %d of %d revocations were lost, in the database again %v after the last node served; %d refusals meanwhile",
		fault, lost, len(doomed), took.Round(time.Millisecond), refused.Load())
}

// countRevoked returns how many of the keys are revoked in the database.
func (w *crowd) countRevoked(of []*key) (count int) {
	err := w.query(`SELECT id FROM keys WHERE state = 'revoked'`, func(r pgx.Rows) error {
		var id string
		err := r.Scan(&id)
		if slices.ContainsFunc(of, func(k *key) bool { return k.id == id }) {
			count++
		}
		return err
	})
	if err != nil {
		w.tb.Errorf("the database does not answer: %v", err)
	}
	return count
}

// metric returns the sum of a metric over its labels.
func (w *crowd) metric(p *process, name string) (sum float64) {
	a := w.send(context.Background(), p, http.MethodGet, p.Admin+"/metrics", "", "", nil)
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(string(a.body), -1) {
		value, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			w.tb.Errorf("the metric %s: %v", name, err)
		}
		sum += value
	}
	return sum
}

// C23, F11: the primary is cut off from its synchronous standby, which takes over, and lives on with two of the nodes. They are
// closed within a lease, and a revoke on the other side is answered only when they are.
func TestF11IsolatedPrimary(t *testing.T) {
	t.Parallel()
	for range rounds("F11") {
		primary := pgtest.NewServer(t)
		standby := primary.NewStandby(t, true)
		w := newCrowd(newCluster(t, keywardtest.Options{}, 3, primary, standby))
		stocked := w.stock(6)
		doomed, kept := stocked[:3], stocked[3:]
		old, other := w.nodes[:2], w.nodes[2]

		for _, n := range old {
			n.proxies[1].Set(faultproxy.Fault{Refuse: true})
		}
		standby.Withhold(t)
		isolated := time.Now() // nothing is committed on the old primary from now on
		other.proxies[0].Set(faultproxy.Fault{Refuse: true})
		other.proxies[0].Cut()
		w.takeOver()

		w.only.Store(other)
		var revoking sync.WaitGroup
		for _, k := range doomed {
			revoking.Go(func() { w.revoke(context.Background(), other, k) })
		}
		var watching sync.WaitGroup
		stop := make(chan struct{})
		for _, n := range old {
			watching.Go(func() { // the checks find an accept that is stale, wherever it falls
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond):
					}
					w.probe(n, stocked[i%len(stocked)])
				}
			})
		}
		after(lease + 10*time.Millisecond - time.Since(isolated))
		for _, n := range old {
			w.closed("F11", n, isolated, stocked)
		}
		w.ready(other)
		revoking.Wait()
		for _, n := range old {
			w.closed("F11", n, isolated, stocked)
		}
		close(stop)
		watching.Wait()

		primary.Kill(t)
		for _, n := range old {
			n.proxies[1].Set(faultproxy.Fault{})
		}
		for _, n := range w.nodes {
			w.ready(n)
		}
		w.only.Store(nil)
		for _, k := range kept {
			w.revoke(context.Background(), nil, k)
		}
		w.probing.Wait()
		w.noneWrong("F11")
	}
}

// C23, F12: the synchronous standby is gone, and somebody cancels the commits that wait for it. They are there, and could be lost, so no
// write is answered and no lease lives on them. Asked again once the standby is back, the write is completed.
func TestF12CancelledCommit(t *testing.T) {
	t.Parallel()
	primary := pgtest.NewServer(t)
	standby := primary.NewStandby(t, true)
	w := newCrowd(newCluster(t, keywardtest.Options{}, 3, primary, standby))
	count := rounds("F12")
	stocked := w.stock(count)
	cancelled := 0
	for i, k := range stocked {
		n := w.nodes[i%len(w.nodes)]
		token := w.token(k.organization)
		standby.Freeze(t)
		frozen := time.Now()
		answered := make(chan answer, 1)
		go func() {
			p := n.current.Load()
			ctx, cancel := context.WithTimeout(context.Background(), attemptTime)
			defer cancel()
			answered <- w.send(ctx, p, http.MethodPost, p.Public+keysPath+"/"+k.id+"/revoke", token, "", nil)
		}()
		var a answer
		for done := false; !done || time.Since(frozen) < lease+10*time.Millisecond; {
			err := w.query(`SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`, func(pgx.Rows) error { cancelled++; return nil })
			if err != nil {
				w.tb.Error(err)
			}
			select {
			case a = <-answered:
				done = true
			case <-time.After(10 * time.Millisecond):
			}
		}
		for _, n := range w.nodes {
			w.closed("F12", n, frozen, []*key{k})
		}
		standby.Thaw(t)
		if !a.unknown() {
			w.tb.Errorf("F12: a revoke whose commit was cancelled was answered %d %s", a.status, a.code())
		}
		w.history.addKey(k, operation{act: ended, call: a.call, ret: never})
		w.heal()
		w.revoke(context.Background(), nil, k)
	}
	w.probing.Wait()
	if cancelled == 0 {
		w.tb.Error("F12: no commit waited for the standby")
	}
	w.noneWrong("F12")
	t.Logf("F12: %d revokes, %d commits cancelled while they waited, 0 answered", count, cancelled)
}

// noneWrong fails the test for whatever the checks find in the history so far.
func (w *crowd) noneWrong(fault string) {
	w.tb.Helper()
	w.judgeTimes()
	found := w.history.check()
	report(w.tb, fault+": stale accepts", found.staleAccepts)
	report(w.tb, fault+": refused though answered", found.lostWrites)
	report(w.tb, fault+": refused once, accepted later by the same process", found.unstuck)
	report(w.tb, fault+": no legal order", slices.Concat(found.illegal, found.unproven))
	w.tb.Logf("%s: %d operations, %d stale accepts", fault, w.history.count, len(found.staleAccepts))
}

// R5, F16: a hot standby alone as the database is a mistake, and serve ends with a message that names it. Among several hosts
// it is one that may be promoted, and serve waits for that.
func TestF16HotStandbyAsDatabase(t *testing.T) {
	t.Parallel()
	primary := pgtest.NewServer(t)
	one, two := primary.NewStandby(t, false), primary.NewStandby(t, false)
	dir := t.TempDir()
	options := func(hosts ...string) keywardtest.Options {
		o := keywardtest.Options{Dir: dir}
		o.DatabaseURL = "postgres://postgres@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable&target_session_attrs=read-write"
		o.Args = keywardtest.ServeArgs(t, o)
		o.NotReady = true
		return o
	}
	p := keywardtest.Run(t, options(one.Address()))
	if code := p.Wait(t); code == 0 || !strings.Contains(p.Stderr(), "hot standby") {
		t.Errorf("serve on a hot standby ended with code %d and says:\n%s", code, p.Stderr())
	}

	standbys := keywardtest.Start(t, options(one.Address(), two.Address()))
	standbys.WaitLog(t, "waiting for the database")
	primary.Kill(t)
	failover := keywardtest.Start(t, options(primary.Address(), two.Address()))
	failover.WaitLog(t, "waiting for the database")
	two.Promote(t)
	standbys.WaitReady(t)
	failover.WaitReady(t)
}
