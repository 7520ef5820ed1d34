// Package verify is the hot path: it decides about a secret from memory, under a lease that says
// the memory is current. Memory is proven before it gets one: it equals what Keyward wrote to the
// database (V8). Read verify.go for what a verification does, follow.go for how the memory is kept
// current and when a write may be answered, index.go for the memory itself.
package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// Config says how a Verifier works. Feed and Format are required.
type Config struct {
	Feed    keys.Feed
	Format  token.Format
	Address func() string // of this node's verification listener, for the other nodes; asked at each registration
	Version string
	Logger  *slog.Logger

	// RevokeAgain writes a revocation anew that the database lost; nil = it is not given back.
	RevokeAgain func(ctx context.Context, keyID string) error
	// OnBarrier, when set, is told of each write's wait for the nodes, for metrics.
	OnBarrier func(outcome BarrierOutcome, took time.Duration)

	Lease      time.Duration // L: the database outage that verification rides out; 0 = 10 s
	Poll       time.Duration // between renewals while announcements are not known to arrive; 0 = 100 ms
	FlushEvery time.Duration // between writes of last_used_at; 0 = 10 s
	ScrubEvery time.Duration // between checks of every row against its seal; 0 = 15 min

	// Now is the clock that expiry is judged by; nil = time.Now. The lease never uses it.
	Now func() time.Time
}

// BarrierOutcome is how a write's wait for the nodes ended.
type BarrierOutcome string

// The outcomes.
const (
	BarrierAcknowledged BarrierOutcome = "acknowledged" // by every node
	BarrierFenced       BarrierOutcome = "fenced"       // by the whole wait, after which no lease from before it is left
	BarrierFailed       BarrierOutcome = "failed"       // it is not known: the write is answered with 503
)

// maxWait bounds how long a verification waits for memory that it may be answered from.
const maxWait = 200 * time.Millisecond

// ErrUndecided says that no verdict could be reached: the caller answers 503 and lets nobody in
// (P6). The error that wraps it says why.
var ErrUndecided = errors.New("verify: cannot decide")

// Why memory cannot be answered from, besides keys.ErrOutdated.
var (
	errNotLoaded = errors.New("the keys are not loaded from the database yet")
	errNotProven = errors.New("memory does not equal the authenticated state of the database: loading again")
	errNoLease   = errors.New("the lease has expired: the database has not been reached")
	errBehind    = errors.New("memory has not reached MinRevision")
)

// Request is one question. Secret may be any text.
type Request struct {
	Secret             string
	ConnectedAccountID string           // empty = the key's own organization (V3)
	Environment        keys.Environment // empty = either

	// MinRevision is the least revision the verdict may rest on, as the answer to a write carried it; 0 = any. The
	// verdict then reflects that write whatever the clocks say.
	MinRevision int64
}

// Path is where a verdict came from.
type Path uint8

// The paths. Both end in this node's index under its lease, or in the secret's form alone.
const (
	Memory Path = iota // at once
	Waited             // after a wait for the lease, or for MinRevision
)

// String returns the path's name in metrics.
func (p Path) String() string {
	if p == Waited {
		return "wait"
	}
	return "memory"
}

// Verdict is the answer. Everything after Reason is set whenever the key is known, ConnectedAccountID
// only when it was granted. Its texts are views into the index, valid for ever.
type Verdict struct {
	Reason                         keys.Reason
	KeyID, OrganizationID, KeyName string
	Environment                    keys.Environment
	CreatedAt, ExpiresAt           time.Time // ExpiresAt zero = never
	ConnectedAccountID             string
	PaymentsEnabled                bool
	Path                           Path
}

// Valid reports whether the secret is accepted.
func (v Verdict) Valid() bool { return v.Reason == keys.Valid }

// narrow applies what the request asked for beyond the key itself. child tells whether the
// account asked for is an active child of the key's organization (V3).
func (v *Verdict) narrow(r *Request, child bool) {
	switch {
	case v.Reason != keys.Valid:
	case r.Environment != "" && r.Environment != v.Environment:
		v.Reason = keys.EnvironmentMismatch
	case r.ConnectedAccountID != "" && !child:
		v.Reason = keys.ConnectedAccountForbidden
	default:
		v.ConnectedAccountID = r.ConnectedAccountID
	}
}

// Verifier answers verifications and keeps their memory current. Run must be running.
type Verifier struct {
	cfg Config

	// view is the index together with the lease it is held under. A verification loads it once,
	// first of all, and holds the lease it loaded against the clock last.
	view atomic.Pointer[view]

	wake     chan struct{} // there is something to read
	hurry    chan struct{} // a verification has begun to wait for the lease or for a revision
	waiting  atomic.Int64  // verifications that do
	patience time.Duration // of giveUpSlow, for the next renewal; the follow loop's
	heard    heardWrites
	asked    atomic.Int64 // the MinRevision of a verification that waits; 0 = none
	told     atomic.Int64 // the revision the loop was woken for last; to spare it waking, so that a lost update does no harm
	acked    *broadcast   // this node renewed its lease

	clock    clock
	quiet    time.Duration          // between renewals while announcements arrive
	node     atomic.Pointer[string] // the id of this node's row; nil before the first
	outdated atomic.Bool            // the database asks for a newer program
	lineage  lineage
	ear      ear
	lost     lostRevocations

	// The follow loop's: the timeline its lease is from, the last reading of the two clocks, and the rate between them as float bits.
	renewedOn int64
	rateAt    time.Time
	rateFrom  time.Duration
	rate      atomic.Uint64

	writing sync.Mutex // held while the index or the view changes

	counters counters
}

type counters struct {
	waited, undecided, tampered, fenced, regressions atomic.Int64
	fencedOthers, revokedAgain, differences          atomic.Int64
}

// view is immutable.
type view struct {
	index   *index
	applied keys.Mark
	// proven: at applied, the index equals the authenticated set hash (V8). A view that is not
	// acknowledges nothing.
	proven bool
	// distrusted: memory was found to differ from the authenticated state of the database. There
	// is no lease until the keys are loaded again.
	distrusted bool
	lease      lease
}

// changeView publishes the view that change makes of the current one, if there is one.
func (v *Verifier) changeView(change func(*view)) {
	v.writing.Lock()
	defer v.writing.Unlock()
	held := v.view.Load()
	if held == nil {
		return
	}
	next := *held
	change(&next)
	if next.distrusted {
		next.lease = lease{}
	}
	v.view.Store(&next)
}

// New returns a Verifier that knows nothing yet.
func New(cfg Config) (*Verifier, error) {
	if cfg.Feed == nil {
		return nil, errors.New("verify: a feed is required")
	}
	if cfg.Lease == 0 {
		cfg.Lease = 10 * time.Second
	}
	if cfg.Poll == 0 {
		cfg.Poll = 100 * time.Millisecond
	}
	if cfg.Lease < time.Second || cfg.Poll > cfg.Lease/4 {
		return nil, fmt.Errorf("verify: the lease must be at least 1s and four times the poll of %v", cfg.Poll)
	}
	if cfg.FlushEvery == 0 {
		cfg.FlushEvery = 10 * time.Second
	}
	if cfg.ScrubEvery == 0 {
		cfg.ScrubEvery = 15 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	v := &Verifier{
		cfg: cfg, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), acked: newBroadcast(),
		clock: newSystemClock(), quiet: min(mostQuiet, cfg.Lease/4), patience: hurryAfter,
		lost: lostRevocations{arrived: make(chan struct{}, 1)},
	}
	v.ear.forget()
	v.rate.Store(math.Float64bits(1))
	return v, nil
}

// Verify decides about a secret. While the lease is good it touches neither disk nor network
// and allocates nothing (P2); a miss is an answer too, because every create was everywhere before
// it was answered. A verification that finds no lease, or a memory behind r.MinRevision, waits for
// them, bounded: it is never answered from rows that memory was not compared with (V8). An error
// is always ErrUndecided.
func (v *Verifier) Verify(ctx context.Context, r Request) (Verdict, error) {
	env, digest, err := v.cfg.Format.Outline(r.Secret)
	if err != nil {
		return Verdict{Reason: keys.Malformed}, nil
	}
	for path := Memory; ; path = Waited {
		leased := false
		// The order is the proof: the lease first, then the look-up, then the clock against the lease
		// loaded first. A node frozen between any two of these finds its lease over.
		if held := v.view.Load(); held != nil && held.applied.Revision >= r.MinRevision {
			f, known := held.index.find(digest, env, r.ConnectedAccountID)
			read := v.clock.now()
			leased = held.lease.goodAt(read)
			if leased && known {
				now := read.time()
				if v.cfg.Now != nil {
					now = v.cfg.Now()
				}
				verdict := held.index.verdict(&f, env, &r, now)
				if verdict.Valid() {
					held.index.uses.mark(f.key.slot, now)
				}
				verdict.Path = path
				return verdict, nil
			}
		}
		// A secret that is known is well-formed; whether any other is, is looked at now.
		if !v.cfg.Format.Intact(r.Secret) {
			return Verdict{Reason: keys.Malformed}, nil
		}
		if leased {
			return Verdict{Reason: keys.Unknown, Path: path}, nil
		}
		if path == Waited {
			v.counters.undecided.Add(1)
			return Verdict{}, v.undecided(r.MinRevision)
		}
		v.counters.waited.Add(1)
		v.waitForMemory(ctx, r.MinRevision)
	}
}

// undecided says why memory cannot be answered from.
func (v *Verifier) undecided(minRevision int64) error {
	why := v.Ready()
	if why == nil {
		why = errNoLease // it came too late, or it ended
	}
	if held := v.view.Load(); held != nil && held.applied.Revision < minRevision {
		why = errBehind
	}
	return fmt.Errorf("%w: %w", ErrUndecided, why)
}

// waitForMemory returns once memory that has minRevision is under a lease, or after maxWait. It
// asks the follow loop to renew now: a node that was frozen, or whose clock was set, has its
// lease again one trip later.
func (v *Verifier) waitForMemory(ctx context.Context, minRevision int64) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	renewed := v.acked.next()
	if held := v.view.Load(); held != nil && held.applied.Revision < minRevision {
		v.asked.Store(minRevision)
	}
	v.waiting.Add(1)
	defer v.waiting.Add(-1)
	select {
	case v.hurry <- struct{}{}: // not wake: an away database is not asked more often
	default:
	}
	for {
		held := v.view.Load()
		if held != nil && held.applied.Revision >= minRevision && held.lease.goodAt(v.clock.now()) {
			return
		}
		select {
		case <-renewed:
			renewed = v.acked.next()
		case <-ctx.Done():
			return
		}
	}
}

// Manages reports whether an organization, by the memory under a good lease, is active and no connected account, and registered
// if that is asked for. False means no or not known. It is keys.Config.Manages.
func (v *Verifier) Manages(organizationID string, registered bool) bool {
	held := v.view.Load()
	if held == nil {
		return false
	}
	state := ownerActive // one that is not known was never registered (C4)
	if o, known := held.index.organizations.places.get(handleOf(organizationID)); known {
		state = held.index.organizations.state(o)
	}
	if !held.lease.goodAt(v.clock.now()) { // after the look-up, as in Verify
		return false
	}
	return state.has(ownerActive) && state>>parentShift == 0 && (state.has(ownerRegistered) || !registered)
}

func (v *Verifier) now() time.Time {
	if v.cfg.Now != nil {
		return v.cfg.Now()
	}
	return v.clock.now().time()
}

// Ready returns nil while this node decides from memory, and otherwise why it cannot.
func (v *Verifier) Ready() error {
	held := v.view.Load()
	switch {
	case held != nil && held.lease.goodAt(v.clock.now()):
		return nil
	case v.Proven() != nil:
		return v.Proven()
	}
	return errNoLease
}

// Proven returns nil while the database is proven (V8): it was loaded in full, with its audit log
// and its set hash verified, nothing found since contradicts it, and it takes this program's
// version of the protocol. Otherwise it says why not, and nothing may be answered from the
// database. It does not ask for a lease.
func (v *Verifier) Proven() error {
	held := v.view.Load()
	switch {
	case v.outdated.Load():
		return keys.ErrOutdated
	case held == nil:
		return errNotLoaded
	case held.distrusted:
		return errNotProven
	}
	return nil
}

// HeldRevision is keys.Config.HeldRevision.
func (v *Verifier) HeldRevision(kind, id string) int64 {
	v.writing.Lock()
	defer v.writing.Unlock()
	held := v.view.Load()
	switch {
	case held == nil:
		return 0
	case kind == keys.KindOrganization:
		return held.index.organizations.revision(id)
	}
	_, e, _ := held.index.entryOf(idHandleOf(id))
	return e.revision
}

// NodeID returns the id this node last registered under, empty before the first time.
func (v *Verifier) NodeID() string {
	if id := v.node.Load(); id != nil {
		return *id
	}
	return ""
}

// Stats is the state of the memory, for metrics.
type Stats struct {
	Keys, Organizations int64
	Revision            int64
	LeaseLeft           time.Duration // 0 when over

	Waited, Undecided             int64 // verifications that memory could not answer at once
	Tampered, Fenced, Regressions int64
	Differences                   int64 // times memory differed from the authenticated state
	FencedOthers                  int64 // rows of silent nodes that this node's writes took away
	RevokedAgain                  int64 // revocations the database had lost

	Announced bool    // announcements are known to arrive
	ClockRate float64 // of the database's clock against this machine's
}

// Stats returns the current figures.
func (v *Verifier) Stats() Stats {
	c := &v.counters
	s := Stats{
		Waited: c.waited.Load(), Differences: c.differences.Load(), Undecided: c.undecided.Load(),
		Tampered: c.tampered.Load(), Fenced: c.fenced.Load(), Regressions: c.regressions.Load(),
		FencedOthers: c.fencedOthers.Load(), RevokedAgain: c.revokedAgain.Load(),
		Announced: v.ear.hears(v.clock.now().mono), ClockRate: math.Float64frombits(v.rate.Load()),
	}
	if held := v.view.Load(); held != nil {
		s.Keys, s.Organizations = held.index.keyCount.Load(), held.index.organizationCount.Load()
		s.Revision, s.LeaseLeft = held.applied.Revision, held.lease.left(v.clock.now())
	}
	return s
}
