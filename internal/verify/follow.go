package verify

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/syncgram/keyward/internal/keys"
)

// The protocol "lease, acknowledge, or wait". Each serving node has a row. One conditional
// statement acknowledges what the node has applied AND renews its lease, and succeeds only if nothing
// newer exists. A writer answers when every row has acknowledged its revision, or once it has waited
// so long that every lease granted before is over, and has deleted (fenced) the rows that stayed behind.
//
// Invariants, and what depends on them:
//   - a lease counts from a clock read before its renewal was sent (stopwatch);
//   - it is extended only by a Renewed answer, never by a read;
//   - the writer's wait starts after its commit returned (Await);
//   - a new registration has a new id, so a late packet acknowledges nothing;
//   - on a timeline that is not settled no write is answered early: the row of a node that holds a lease may be lost (lineage);
//   - an announcement is a hint: a node that hears none of them is late, never wrong;
//   - memory is acknowledged only when it equals the authenticated set hash at that point in
//     history (view.proven): rows that somebody kept from this node are missed there (V8).

// waitFactor and waitSlack make the writer's wait longer than any lease, also when two
// machines' clocks run at rates that differ by up to a quarter.
const (
	waitFactor = 1.25
	waitSlack  = 50 * time.Millisecond

	changesPerRead = 10_000
	callTimeout    = 5 * time.Second // of one statement; the lease bounds what matters
	mostQuiet      = time.Second     // between renewals while announcements arrive
	usesPerWrite   = 500
	eraseEvery     = time.Minute
	// hurryAfter is how long a try is left alone while verifications wait for the lease. Together
	// with a trip it is less than maxWait.
	hurryAfter = 100 * time.Millisecond
	keptFor    = 24 * time.Hour
)

// How often a writer looks at the nodes' rows. Before its own node has acknowledged, no look can find that all have. The others
// are not far then: it looks a few times without a pause, since a timer makes none shorter than a millisecond.
const (
	ownAnswer    = 4 * time.Millisecond // after so long it looks all the same
	looksAtOnce  = 4
	firstPause   = time.Millisecond
	longestPause = 20 * time.Millisecond
	usualAnswer  = 8 * time.Millisecond // from then on each pause is twice the last
)

// Run registers the node and keeps its memory current until ctx ends; then it writes the
// collected uses, gives the lease back and returns. A database that is away is waited for.
func (v *Verifier) Run(ctx context.Context) {
	var background sync.WaitGroup
	background.Go(func() { v.flushUses(ctx) })
	background.Go(func() { v.eraseKeptAnswers(ctx) })
	background.Go(func() { v.scrub(ctx) })
	background.Go(func() { v.listen(ctx) })
	background.Go(func() { v.revokeLost(ctx) })

	for ctx.Err() == nil {
		v.serve(ctx)
	}
	background.Wait()

	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	v.flush(leaving)
}

// serve registers this node and follows until it is fenced or ctx ends. The index outlives it: a
// node that comes back catches up from what it has.
func (v *Verifier) serve(ctx context.Context) {
	node := keys.Node{Version: v.cfg.Version, Lease: v.cfg.Lease}
	if v.cfg.Address != nil {
		node.Address = v.cfg.Address()
	}
	if !v.retry(ctx, "register this node", func(ctx context.Context) error {
		// A new id for each try: the row of one whose outcome is not known may be there, and nobody renews it.
		node.ID = rand.Text()
		return bounded(ctx, func(ctx context.Context) error { return v.cfg.Feed.Register(ctx, node) })
	}) {
		return
	}
	v.node.Store(&node.ID)
	defer v.leave(ctx, node.ID)
	if v.view.Load() == nil && !v.retry(ctx, "load the keys", v.load) {
		return
	}
	// A failed statement is tried again under the same row: the lease runs out by itself, and
	// a second row would make every writer wait for the first.
	for fenced := false; !fenced; {
		if !v.retry(ctx, "follow the database", func(ctx context.Context) (err error) {
			if fenced, err = v.follow(ctx, node.ID); err != nil {
				v.told.Store(0) // it may be another history when it is back, with the same numbers
			}
			return err
		}) {
			return
		}
	}
	v.closeView()
	v.counters.fenced.Add(1)
	v.cfg.Logger.Warn("this node was fenced: it did not acknowledge a write in time; registering again")
}

// follow renews and catches up until ctx ends, a statement fails, or the node's row is gone.
func (v *Verifier) follow(ctx context.Context, nodeID string) (fenced bool, err error) {
	behind := false
	for ctx.Err() == nil {
		if v.view.Load().distrusted {
			if err := v.loadAgain(ctx); err != nil {
				return false, err
			}
		}
		if behind || !v.view.Load().proven {
			if err := v.catchUp(ctx); err != nil {
				return false, err
			}
			if !v.view.Load().proven { // more is to be read, or to be loaded again
				continue
			}
		}
		renewal, err := v.renew(ctx, nodeID)
		if err != nil || renewal == keys.Fenced {
			return err == nil, err
		}
		if behind = renewal == keys.Lagging; behind {
			continue
		}
		next, stop := v.clock.timer(v.pollEvery())
		for waits := true; waits; {
			select {
			case <-v.hurry:
				held := v.view.Load()
				waits = ctx.Err() == nil && v.asked.Load() <= held.applied.Revision &&
					held.lease.goodAt(v.clock.now())
				continue
			case <-v.wake:
			case <-next:
			case <-ctx.Done():
			}
			waits = false
		}
		stop()
		v.awake()
		// A write has committed, or a verification asks for it, and it is not applied yet.
		behind = max(v.told.Load(), v.asked.Swap(0)) > v.view.Load().applied.Revision
	}
	return false, ctx.Err()
}

// pollEvery is how long to wait for an announcement. Polling alone keeps every promise; announcements make it rarer, for
// as long as they are known to arrive.
func (v *Verifier) pollEvery() time.Duration {
	if v.ear.hears(v.clock.now().mono) {
		return v.quiet
	}
	return v.cfg.Poll
}

// retry runs fn, a step of the follow loop, until it succeeds, with growing pauses that end early
// when somebody waits for the loop, and reports false when ctx ended first.
func (v *Verifier) retry(ctx context.Context, what string, fn func(context.Context) error) bool {
	return v.retryAfter(ctx, v.pause, what, fn)
}

// retryAfter is retry with another pause, for what is not a step of the follow loop.
func (v *Verifier) retryAfter(
	ctx context.Context, rest func(context.Context, time.Duration) bool,
	what string, fn func(context.Context) error,
) bool {
	pause := 50 * time.Millisecond
	for {
		began := v.clock.now().mono
		err := fn(ctx)
		v.outdated.Store(errors.Is(err, keys.ErrOutdated))
		if err == nil || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		if v.clock.now().mono-began > 5*time.Second { // it had worked for a while
			pause = 50 * time.Millisecond
		}
		if !errors.Is(err, keys.ErrUnknownKey) { // what reads the keys again has logged it, once
			v.cfg.Logger.Warn("the database does not answer; trying again", "to", what, "error", err, "in", pause.String())
		}
		if !rest(ctx, pause) {
			return false
		}
		pause = min(2*pause, time.Second)
	}
}

// pause waits before the next try, shorter when a write has committed, since the database is back
// then, or when verifications wait for the lease.
func (v *Verifier) pause(ctx context.Context, d time.Duration) bool {
	next, stop := v.clock.timer(d)
	defer stop()
	soon, stopSoon := v.clock.timer(min(d, hurryAfter))
	defer stopSoon()
	hurry := (chan struct{})(nil) // not before soon
	for {
		select {
		case <-soon:
			hurry = v.hurry
		case <-hurry:
		case <-v.wake:
			v.awake()
			return ctx.Err() == nil
		case <-next:
			return ctx.Err() == nil
		case <-ctx.Done():
			return false
		}
		if hurry != nil && v.waiting.Load() > 0 {
			v.awake()
			return ctx.Err() == nil
		}
	}
}

// rest waits, and reports false when ctx ended first.
func (v *Verifier) rest(ctx context.Context, d time.Duration) bool {
	next, stop := v.clock.timer(d)
	defer stop()
	select {
	case <-next:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// awake takes what the loop was woken for: it looks at everything now.
func (v *Verifier) awake() {
	for _, woken := range []chan struct{}{v.wake, v.hurry} {
		select {
		case <-woken:
		default:
		}
	}
}

// giveUpSlow gives a statement up that has had no answer for long while verifications wait for the
// lease: its connection may be dead, and the database back. A database may also be that slow, so
// the next statement gets twice as long (patience), until one is answered. It returns when done is
// closed.
func (v *Verifier) giveUpSlow(done <-chan struct{}, patience time.Duration, giveUp func()) {
	soon, stop := v.clock.timer(patience)
	defer stop()
	select {
	case <-done:
		return
	case <-soon:
	}
	for v.waiting.Load() == 0 {
		select {
		case <-done:
			return
		case <-v.hurry:
		}
	}
	giveUp()
}

// leave gives the lease back: the view is closed first, so that nothing is answered from
// memory once the row is gone.
func (v *Verifier) leave(ctx context.Context, nodeID string) {
	if ctx.Err() == nil {
		return // fenced: the row is gone
	}
	v.closeView()
	_ = bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return v.cfg.Feed.Leave(ctx, nodeID) })
}

// closeView drops the lease, so that nothing more is answered from memory.
func (v *Verifier) closeView() { v.changeView(func(next *view) { next.lease = lease{} }) }

// distrust closes the view: what memory holds is not what the database's authenticated state
// says. The follow loop loads the keys again before it renews.
func (v *Verifier) distrust(why string, details ...any) {
	if held := v.view.Load(); held == nil || held.distrusted {
		return // it is said already
	}
	v.counters.differences.Add(1)
	v.cfg.Logger.Error("memory differs from the authenticated state of the database; closed until the keys are loaded again: "+why, details...)
	v.changeView(func(next *view) { next.distrusted = true })
	v.wakeUp()
}

// renew acknowledges what is applied and extends the lease if nothing newer exists.
func (v *Verifier) renew(ctx context.Context, nodeID string) (keys.Outcome, error) {
	held := v.view.Load()
	watch := startStopwatch(v.clock)
	var renewal keys.Renewal
	err := bounded(ctx, func(ctx context.Context) (err error) {
		// One that takes longer than a lease grants none: better to ask again.
		ctx, cancel := context.WithTimeout(ctx, v.cfg.Lease)
		defer cancel()
		done := make(chan struct{})
		defer close(done)
		gaveUp := make(chan struct{})
		go v.giveUpSlow(done, v.patience, func() { close(gaveUp); cancel() })
		renewal, err = v.cfg.Feed.Renew(ctx, nodeID, held.applied)
		select {
		case <-gaveUp:
			v.patience = min(2*v.patience, v.cfg.Lease)
		default:
			v.patience = hurryAfter
		}
		return err
	})
	if err != nil {
		return keys.Fenced, fmt.Errorf("renew the lease: %w", err)
	}
	if renewal.Outcome == keys.Renewed {
		if l, ok := watch.leaseOf(v.clock, v.cfg.Lease); ok {
			v.changeView(func(next *view) { next.lease = l }) // none if it is distrusted by now
			v.acked.announce()
			v.renewedOn = renewal.Timeline
		}
	}
	now := v.clock.now().mono
	v.lineage.note(renewal.Timeline, renewal.Settled, now)
	if v.lineage.settles(renewal.Timeline, now, waitFor(v.cfg.Lease)) {
		v.settleUnattended(ctx, nodeID, held.applied)
	}
	v.checkRate(renewal.At, now)
	return renewal.Outcome, nil
}

// settleUnattended settles a timeline without a write that waited for it, so that the next write need not.
func (v *Verifier) settleUnattended(ctx context.Context, nodeID string, applied keys.Mark) {
	// The next renewal must not wait for what callers may be queued for.
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Lease/4)
	defer cancel()
	st, err := v.cfg.Feed.Standing(ctx, nodeID, keys.Commit{Mark: applied})
	if err == nil && v.lineage.settles(st.Timeline, v.clock.now().mono, waitFor(max(v.cfg.Lease, st.Longest))) {
		v.settle(ctx, st.Timeline)
	}
}

// settle notes for every node that the leases of earlier timelines are over. One that cannot be written is tried again with
// the next renewal.
func (v *Verifier) settle(ctx context.Context, timeline int64) {
	err := bounded(ctx, func(ctx context.Context) error { return v.cfg.Feed.Settle(ctx, timeline) })
	if err != nil {
		v.cfg.Logger.Warn("the database's new timeline could not be noted as settled; trying again", "timeline", timeline, "error", err)
		return
	}
	v.lineage.note(timeline, true, v.clock.now().mono)
	v.cfg.Logger.Info("every lease from before this timeline is over; writes no longer wait for them", "timeline", timeline)
}

// Of the database's clock against this machine's.
const (
	rateWindow = time.Minute
	mostRate   = 0.1 // the wait stands a quarter
)

// checkRate says when the two clocks run at rates that differ by more than a clock ever should: the protocol's wait is
// longer than a lease by a quarter, and no more. A clock that is set shows here too.
func (v *Verifier) checkRate(at time.Time, now time.Duration) {
	if at.IsZero() {
		return
	}
	if v.rateAt.IsZero() || now < v.rateFrom {
		v.rateAt, v.rateFrom = at, now
		return
	}
	passed := now - v.rateFrom
	if passed < rateWindow {
		return
	}
	rate := float64(at.Sub(v.rateAt)) / float64(passed)
	v.rateAt, v.rateFrom = at, now
	v.rate.Store(math.Float64bits(rate))
	if math.Abs(rate-1) > mostRate {
		v.cfg.Logger.Error("this machine's clock and the database's run at different rates, or one was set: check NTP on both", "rate", rate)
	}
}

// load fills a new index from a snapshot and publishes it without a lease.
func (v *Verifier) load(ctx context.Context) error {
	ix := newIndex(v.cfg.Feed.SetElement)
	began := time.Now()
	report := func(kind, id string, c conflict) {
		if c != noConflict {
			v.report(kind, id, c)
		}
	}
	mark, set, err := v.cfg.Feed.Snapshot(ctx, keys.Visitor{
		Key: func(k keys.Key) error {
			report(keys.KindKey, k.ID, ix.applyKey(&k, false))
			return nil
		},
		Organization: func(o keys.Organization) error {
			report(keys.KindOrganization, o.ID, ix.applyOrganization(&o, false))
			return nil
		},
	})
	if err != nil {
		return err
	}
	if equal, err := ix.equals(set); err != nil || !equal {
		return cmp.Or(err, errNotProven)
	}
	v.writing.Lock()
	defer v.writing.Unlock()
	if held := v.view.Load(); held != nil {
		if kept, lost := ix.keepRevoked(held.index); kept > 0 {
			v.cfg.Logger.Error("the database lost revocations this node knows; they stay in force here", "keys", kept, "to_revoke_again", len(lost))
			v.lost.add(lost)
		}
	}
	v.view.Store(&view{index: ix, applied: mark, proven: true})
	v.heard.forget() // it may be of the history that was left
	v.told.Store(mark.Revision)
	v.cfg.Logger.Info("keys loaded", "keys", ix.keyCount.Load(), "organizations", ix.organizationCount.Load(), "revision", mark.Revision, "took", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// loadAgain replaces an index that cannot be trusted.
func (v *Verifier) loadAgain(ctx context.Context) error {
	v.closeView()
	v.flush(ctx) // the uses go with the index they are noted in
	return v.load(ctx)
}

// catchUp applies what was written since: what was announced together with its changes, or else what the database has. It extends
// nothing: only a renewal does.
func (v *Verifier) catchUp(ctx context.Context) error {
	if done, err := v.applyHeard(); done || err != nil {
		return err
	}
	held := v.view.Load()
	var changes keys.Changes
	err := bounded(ctx, func(ctx context.Context) (err error) {
		changes, err = v.cfg.Feed.Changes(ctx, held.applied, changesPerRead)
		return err
	})
	if errors.Is(err, keys.ErrTampered) {
		v.distrust("the database cannot be proven", "error", err)
	}
	if errors.Is(err, keys.ErrDiverged) {
		v.counters.regressions.Add(1)
		v.cfg.Logger.Error("the database lost writes that this node has seen: a backup was restored, or a standby without the last writes took over; loading it anew", "applied", held.applied.Revision)
		err := v.loadAgain(ctx)
		// Rows of other nodes may be among what was lost. Counted from after the load, when this node knows.
		v.lineage.diverged(v.clock.now().mono + waitFor(v.cfg.Lease))
		return err
	}
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	return v.apply(&changes)
}

// applyHeard applies announced writes, each only at the point in history that it followed, since a database put back counts the same
// numbers again, and only of the timeline that the lease is from. It reports whether it applied all that this node was told of. That
// a write is the database's own, the renewal finds: it compares the mark.
func (v *Verifier) applyHeard() (done bool, err error) {
	applied := false
	for {
		changes, ok := v.heard.take(v.view.Load().applied, v.renewedOn)
		if !ok {
			return applied && v.view.Load().applied.Revision >= v.told.Load(), nil
		}
		if err := v.apply(changes); err != nil {
			return false, err
		}
		applied = true
	}
}

// apply brings changes into the index, and their mark with them. What the index then holds must
// be what the database's authenticated state says (V8).
func (v *Verifier) apply(changes *keys.Changes) error {
	proven, err := v.applyRows(changes)
	if err != nil {
		return fmt.Errorf("compare memory with the database: %w", err)
	}
	if !proven && changes.Set.KeyID != "" {
		v.distrust("rows were changed by somebody else while a write was in progress", "revision", changes.Revision)
	}
	return nil
}

// applyRows reports whether memory equals the authenticated set hash, where that is known.
func (v *Verifier) applyRows(changes *keys.Changes) (proven bool, err error) {
	v.writing.Lock()
	defer v.writing.Unlock()
	held := v.view.Load()
	for i := range changes.Organizations {
		if c := held.index.applyOrganization(&changes.Organizations[i], true); c != noConflict {
			v.report(keys.KindOrganization, changes.Organizations[i].ID, c)
		}
	}
	for i := range changes.Keys {
		if c := held.index.applyKey(&changes.Keys[i], true); c != noConflict {
			v.report(keys.KindKey, changes.Keys[i].ID, c)
		}
	}
	if changes.Set.KeyID != "" {
		proven, err = held.index.equals(changes.Set)
	}
	v.view.Store(&view{index: held.index, applied: changes.Mark, proven: proven, distrusted: held.distrusted, lease: held.lease})
	return proven, err
}

// RefuseRow ends what the index has of a row that a read found not to be authentic, until an
// authentic row of it comes. It is what the store's observer calls, with the store's name of the
// table, so that a forged row is rejected when it is first seen.
func (v *Verifier) RefuseRow(table, id string) {
	v.writing.Lock()
	defer v.writing.Unlock()
	held := v.view.Load()
	if held == nil {
		return // the load that is to come sees it itself
	}
	switch table {
	case "keys":
		held.index.refuseKey(id, true)
		v.report(keys.KindKey, id, notGenuine)
	case "organizations":
		held.index.refuseOrganization(id)
		v.report(keys.KindOrganization, id, notGenuine)
	}
}

func (v *Verifier) report(kind, id string, c conflict) {
	v.counters.tampered.Add(1)
	v.cfg.Logger.Error("a row was refused: it was not written by Keyward", "kind", kind, "id", id, "found", string(c))
}

// waitFor is how long a writer waits until every lease of that term that was granted before is over.
func waitFor(term time.Duration) time.Duration {
	return time.Duration(float64(term)*waitFactor) + waitSlack
}

// Await implements keys.Barrier: it returns nil once no node can answer from a state older than
// the commit, which has returned to the caller. It waits for acknowledgements, and after 1.25 L + 50 ms by this
// node's own clock fences whoever has not given one.
func (v *Verifier) Await(ctx context.Context, c keys.Commit) (err error) {
	began := v.clock.now().mono
	outcome := BarrierFailed
	defer func() {
		if v.cfg.OnBarrier != nil {
			v.cfg.OnBarrier(outcome, v.clock.now().mono-began)
		}
	}()
	v.lineage.note(c.Timeline, false, began)
	longest := v.cfg.Lease
	pause, looks, ownAcked := ownAnswer, 0, false
	acked := v.acked.next()
	if v.told.Swap(c.Revision) != c.Revision { // its announcement has not arrived here
		v.wakeUp()
	}
	for {
		if looks == 0 {
			next, stop := v.clock.timer(min(pause, waitFor(longest)-(v.clock.now().mono-began)))
			select {
			case <-acked:
				if !ownAcked {
					pause, looks, ownAcked = firstPause, looksAtOnce, true
				}
			case <-next:
				if v.clock.now().mono-began > usualAnswer {
					pause = min(2*pause, longestPause)
				}
			case <-ctx.Done():
				stop()
				return ctx.Err()
			}
			stop()
		}
		looks = max(0, looks-1)
		acked = v.acked.next()
		st, err := v.cfg.Feed.Standing(ctx, v.NodeID(), c)
		if err != nil {
			return fmt.Errorf("read the nodes: %w", err)
		}
		now := v.clock.now().mono
		v.lineage.note(st.Timeline, st.Settled, now)
		longest = max(longest, st.Longest)
		wait := waitFor(longest)
		// This node's own row must be there: a database put back on the same timeline may have lost other rows, and this
		// node finds that out about its own history before it renews.
		if st.Behind == 0 && st.Own && v.lineage.trusts(st.Timeline, now, wait) {
			outcome = BarrierAcknowledged
			return nil
		}
		if now-began >= wait {
			if err := v.fence(ctx, c); err != nil {
				return err
			}
			// A whole wait after a commit on this very timeline. A commit on the one before proves nothing about when this one began.
			if c.Timeline == st.Timeline && v.lineage.settles(st.Timeline, now, wait) {
				v.settle(ctx, st.Timeline)
			}
			outcome = BarrierFenced
			return nil
		}
	}
}

// fence takes the rows of the nodes away whose leases have ended without an acknowledgement.
func (v *Verifier) fence(ctx context.Context, c keys.Commit) error {
	fenced, err := v.cfg.Feed.Fence(ctx, c)
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if len(fenced) > 0 {
		v.counters.fencedOthers.Add(int64(len(fenced)))
		v.cfg.Logger.Warn("nodes did not acknowledge a write and were fenced; they come back by themselves", "nodes", fenced, "revision", c.Revision)
	}
	return nil
}

// flushUses writes last_used_at in batches, well within the 60 s of C20.
func (v *Verifier) flushUses(ctx context.Context) {
	for v.sleep(ctx, v.cfg.FlushEvery) {
		v.flush(ctx)
	}
}

func (v *Verifier) flush(ctx context.Context) {
	held := v.view.Load()
	if held == nil {
		return
	}
	index := held.index
	pending := index.uses.take()
	for len(pending) > 0 {
		var batch []keys.Use
		for _, slot := range pending[:min(usesPerWrite, len(pending))] {
			batch = append(batch, index.uses.use(slot, &index.texts))
		}
		if err := bounded(ctx, func(ctx context.Context) error { return v.cfg.Feed.RecordUses(ctx, batch) }); err != nil {
			index.uses.giveBack(pending)
			v.cfg.Logger.Warn("last_used_at could not be written; trying again", "keys", len(pending), "error", err)
			return
		}
		pending = pending[len(batch):]
	}
}

// eraseKeptAnswers removes sealed answers after their 24 hours (C17).
func (v *Verifier) eraseKeptAnswers(ctx context.Context) {
	for v.sleep(ctx, eraseEvery) {
		err := bounded(ctx, func(ctx context.Context) error {
			_, err := v.cfg.Feed.EraseKeptAnswers(ctx, v.now().Add(-keptFor))
			return err
		})
		if err != nil && ctx.Err() == nil {
			v.cfg.Logger.Warn("kept answers could not be erased; trying again", "error", err)
		}
	}
}

// scrub proves the whole database and compares memory with it from time to time, so that a change
// behind the service's back is found while it runs, not at the next start.
func (v *Verifier) scrub(ctx context.Context) {
	for v.sleep(ctx, v.cfg.ScrubEvery) {
		if err := v.Scrub(ctx); err != nil && ctx.Err() == nil {
			v.cfg.Logger.Error("the database could not be compared with memory", "error", err)
		}
	}
}

// Scrub proves the database as a load does and compares it with memory in both directions: every
// row of the database must be in memory with the same content, and memory must hold no other. A
// row that is not authentic is rejected from then on. Any other difference, or a database that
// cannot be proven, closes this node until the keys are loaded again.
func (v *Verifier) Scrub(ctx context.Context) error {
	if v.view.Load() == nil {
		return nil
	}
	var suspects comparison
	mark, _, err := v.cfg.Feed.Snapshot(ctx, keys.Visitor{
		Key: func(k keys.Key) error {
			v.compareKey(&suspects, &k)
			return nil
		},
		Organization: func(o keys.Organization) error {
			v.compareOrganization(&suspects, &o)
			return nil
		},
	})
	if errors.Is(err, keys.ErrTampered) {
		v.distrust("the database cannot be proven", "error", err)
	}
	if err != nil {
		return err
	}
	if err := v.reach(ctx, mark.Revision); err != nil {
		return err
	}
	return v.judge(&suspects, mark)
}

// reach waits until memory has a revision that the database had.
func (v *Verifier) reach(ctx context.Context, revision int64) error {
	for waited := time.Duration(0); v.view.Load().applied.Revision < revision; waited += v.cfg.Poll {
		if waited > 2*callTimeout {
			return errors.New("memory has not reached the revision that was read")
		}
		if !v.sleep(ctx, v.cfg.Poll) {
			return ctx.Err()
		}
	}
	return nil
}

// comparison is what a scrub found that memory does not hold, to be looked at again once memory
// has everything the snapshot had.
type comparison struct {
	keys          []keys.Key
	organizations []keys.Organization
}

func (v *Verifier) compareKey(c *comparison, k *keys.Key) {
	v.writing.Lock()
	defer v.writing.Unlock()
	if !v.view.Load().index.holds(k) {
		c.keys = append(c.keys, *k)
	}
}

func (v *Verifier) compareOrganization(c *comparison, o *keys.Organization) {
	v.writing.Lock()
	defer v.writing.Unlock()
	if !v.view.Load().index.organizations.holds(o) {
		c.organizations = append(c.organizations, *o)
	}
}

// judge decides about what a scrub found.
func (v *Verifier) judge(c *comparison, mark keys.Mark) error {
	row, sum, err := v.difference(c)
	if err != nil {
		return err
	}
	switch {
	case row != rowName{}:
		v.distrust("a row differs", "kind", row.kind, "id", row.id, "revision", mark.Revision)
	case !sum:
		v.distrust("the set hash of what memory holds differs", "revision", mark.Revision)
	}
	return nil
}

// difference rejects the rows that are not authentic and returns another one that memory does not
// hold, if there is one, and whether memory's own hash is that of its entries.
func (v *Verifier) difference(c *comparison) (row rowName, sum bool, err error) {
	v.writing.Lock()
	defer v.writing.Unlock()
	ix := v.view.Load().index
	for i := range c.keys {
		k := &c.keys[i]
		switch {
		case ix.holds(k) || ix.newerThan(k):
		case k.Genuine:
			row = rowName{keys.KindKey, k.ID}
		default:
			v.report(keys.KindKey, k.ID, ix.applyKey(k, true))
		}
	}
	for i := range c.organizations {
		o := &c.organizations[i]
		switch {
		case ix.organizations.holds(o) || ix.organizations.newerThan(o):
		case o.Genuine:
			row = rowName{keys.KindOrganization, o.ID}
		default:
			v.report(keys.KindOrganization, o.ID, ix.applyOrganization(o, true))
		}
	}
	counted := ix.set.sum
	if counted.KeyID == "" {
		return row, true, nil
	}
	computed, err := ix.setHash(counted.KeyID)
	return row, computed == counted, err
}

// bounded runs one statement with a limit.
func bounded(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return fn(ctx)
}
