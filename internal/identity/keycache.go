package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// After the n-th failed read in a row the next one waits firstRetry × 2ⁿ⁻¹, at most maxRetry.
	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second

	// A key that a read did not find is looked for again after firstMiss, and twice as long each
	// time, at most maxMiss. It is 401 until then.
	firstMiss = time.Second
	maxMiss   = 30 * time.Second
	// maxMisses bounds the keys that are known to be missing, 64 bytes each.
	maxMisses = 1024
)

// Why a token cannot be judged; for the log.
const (
	reasonNeverRead = "the issuer's key set was not read yet"
	reasonTooOld    = "the issuer's key set was not read for longer than its age limit"
	reasonHeldBack  = "the key is unknown and it is too early to read the issuer's key set again"
)

// keyCache holds the latest good key set of one source. A token whose key is in it is judged
// without waiting. For an unknown key the set is read again: one read serves all tokens that
// wait, and a bucket bounds how many there are, so that random kids cannot flood the issuer.
//
// A token is rejected for its unknown key (401) only by a read that began after the token came.
// Without such a read it is not judged (503). A read that fails changes nothing, until the key set
// is older than maxAge: then no token is judged.
type keyCache struct {
	source source
	now    func() time.Time
	log    *slog.Logger
	maxAge time.Duration // 0 = no limit
	began  time.Time
	loaded atomic.Pointer[loadedSet] // nil until the first good read

	life context.Context // ends the background work
	stop context.CancelFunc
	work sync.WaitGroup // the running read

	mu       sync.Mutex
	running  *keyRead // nil when none runs
	again    bool     // another read is to follow it at once
	number   uint64   // of the latest read, the running one included
	good     uint64   // number of the latest read that succeeded
	failures int      // reads that failed since then
	next     time.Time
	timer    *time.Timer // begins a read at next
	quick    bucket
	misses   map[keyName]miss

	// Owned by the running read.
	document []byte            // of the latest good read
	latest   [sha256.Size]byte // digest of the latest document, good or not
	content  error             // what is wrong with it
	failing  bool              // the latest read failed
	logged   logged            // the latest failure in the log
	tooOld   bool              // was logged
}

// loadedSet is a key set and when it was last found at its source.
type loadedSet struct {
	set *keySet
	at  time.Time
}

// keyRead is one read of the source. failed may be looked at once done is closed.
type keyRead struct {
	number uint64
	done   chan struct{}
	failed bool
}

// keyName is a digest of what a token says of its key: kid can have 6 KiB.
type keyName [sha256.Size]byte

func nameOf(alg jose.SignatureAlgorithm, kid string) keyName {
	return sha256.Sum256([]byte(string(alg) + "\x00" + kid))
}

// logged is a failure as it was logged. Another file is a new failure, though it may read like the
// one before; what a failing server answers is not.
type logged struct {
	failure string
	file    [sha256.Size]byte
}

// miss is a key that a read did not find.
type miss struct {
	until time.Time
	wait  time.Duration
}

// bucket allows a number of events at once and one more per interval.
type bucket struct {
	size, left int
	interval   time.Duration
	since      time.Time // when the interval began in which the next one is added
}

func newBucket(size int, interval time.Duration) bucket {
	return bucket{size: size, left: size, interval: interval}
}

// take takes one out, or returns how long to wait for it.
func (b *bucket) take(now time.Time) time.Duration {
	if added := int(now.Sub(b.since) / b.interval); added > 0 {
		b.left = min(b.left+added, b.size)
		b.since = b.since.Add(time.Duration(added) * b.interval)
	}
	if b.left == b.size || now.Before(b.since) {
		b.since = now
	}
	if b.left > 0 {
		b.left--
		return 0
	}
	return b.since.Add(b.interval).Sub(now)
}

// newKeyCache begins the first read. A local source's read has ended when newKeyCache returns, and
// must have found a usable key.
func newKeyCache(
	ctx context.Context, src source, maxAge time.Duration, now func() time.Time, log *slog.Logger,
) (*keyCache, error) {
	if maxAge > 0 {
		src.period = min(src.period, maxAge/4)
	}
	c := &keyCache{
		source: src, now: now, log: log, maxAge: maxAge, began: now(),
		quick: src.quick, misses: make(map[keyName]miss),
	}
	c.life, c.stop = context.WithCancel(ctx)
	if src.local {
		err := c.load()
		if err == nil && len(c.loaded.Load().set.keys) == 0 {
			err = errors.New("holds no public key for RS256, ES256 or EdDSA")
		}
		if err != nil {
			c.stop()
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = now().Add(src.period)
	c.timer = time.AfterFunc(src.period, c.refresh)
	if !src.local {
		c.start()
	}
	return c, nil
}

func (c *keyCache) close() {
	// Under the lock, so that no read starts once the wait has begun.
	c.mu.Lock()
	c.stop()
	c.timer.Stop()
	c.mu.Unlock()
	c.work.Wait()
}

// age is how long ago the key set was last read, or the cache made if it never was.
func (c *keyCache) age() time.Duration {
	at := c.began
	if l := c.loaded.Load(); l != nil {
		at = l.at
	}
	return max(c.now().Sub(at), 0)
}

// known returns the one key that may have signed a token, as far as the key set at hand says.
func (c *keyCache) known(alg jose.SignatureAlgorithm, kid string) (any, error) {
	l := c.loaded.Load()
	switch {
	case l == nil:
		return nil, &UnavailableError{Reason: reasonNeverRead}
	case c.maxAge > 0 && c.now().Sub(l.at) > c.maxAge:
		return nil, &UnavailableError{Reason: reasonTooOld}
	}
	return l.set.find(alg, kid)
}

// find returns the one key that may have signed a token. The error is a rejection, or wraps
// ErrUnavailable.
func (c *keyCache) find(ctx context.Context, alg jose.SignatureAlgorithm, kid string) (any, error) {
	key, why := c.known(alg, kid)
	if !undecided(why) {
		return key, why
	}
	name := nameOf(alg, kid)
	c.mu.Lock()
	before := c.number
	c.mu.Unlock()
	for {
		r, err := c.readFor(alg, kid, name, before)
		if err != nil {
			return nil, err
		}
		if r != nil {
			select {
			case <-r.done:
			case <-ctx.Done():
				return nil, errors.Join(&UnavailableError{Reason: reasonHeldBack}, ctx.Err())
			}
		}
		if key, why = c.known(alg, kid); !undecided(why) {
			return key, why
		}
		if errors.Is(why, errUnknownKey) && (r == nil || r.number > before && !r.failed) {
			c.remember(name)
			return nil, why
		}
	}
}

// undecided reports whether another read of the key set can change what known said.
func undecided(err error) bool {
	return errors.Is(err, errUnknownKey) || errors.Is(err, ErrUnavailable)
}

// readFor returns the read that a token has to wait for. It is nil when what known says is final:
// another read has ended meanwhile. before is the number of the latest read when the token came. The
// error says that there is nothing to wait for.
func (c *keyCache) readFor(
	alg jose.SignatureAlgorithm, kid string, name keyName, before uint64,
) (*keyRead, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		return c.running, nil
	}
	_, why := c.known(alg, kid) // no read runs: it stays so while the lock is held
	if !undecided(why) || (errors.Is(why, errUnknownKey) && c.good > before) {
		return nil, nil
	}
	now := c.now()
	wait := max(c.next.Sub(now), 0)
	var none *UnavailableError
	if errors.As(why, &none) { // the timer begins the reads without which nothing can be judged
		return nil, &UnavailableError{Reason: none.Reason, Wait: wait}
	}
	if m, found := c.misses[name]; found && now.Before(m.until) {
		return nil, errUnknownKey
	}
	if c.failures > 0 && wait > 0 {
		return nil, &UnavailableError{Reason: reasonHeldBack, Wait: wait}
	}
	if again := c.quick.take(now); again > 0 {
		return nil, &UnavailableError{Reason: reasonHeldBack, Wait: min(again, wait)}
	}
	if r := c.start(); r != nil {
		return r, nil
	}
	return nil, &UnavailableError{Reason: reasonHeldBack, Wait: wait} // closed
}

// remember notes that a read did not find a key.
func (c *keyCache) remember(name keyName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, found := c.misses[name]
	if !found && len(c.misses) >= maxMisses {
		for any := range c.misses {
			delete(c.misses, any)
			break
		}
	}
	now := c.now()
	if found && now.Before(m.until) {
		return // another token of the same read was faster
	}
	m.wait = min(max(2*m.wait, firstMiss), maxMiss)
	m.until = now.Add(m.wait)
	c.misses[name] = m
}

// refresh begins a read unless one runs.
func (c *keyCache) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		c.start()
	}
}

// reload begins a read now, or once the one that runs has ended: that one may have seen what was
// there before.
func (c *keyCache) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		c.start()
	} else {
		c.again = true
	}
}

// start begins a read. It returns nil when the cache is closed. The caller holds the lock, and no
// read runs.
func (c *keyCache) start() *keyRead {
	if c.life.Err() != nil {
		return nil
	}
	c.number++
	r := &keyRead{number: c.number, done: make(chan struct{})}
	c.running = r
	// The read belongs to all who wait for it, so it does not end with one caller's request.
	c.work.Go(func() {
		err := c.load()
		c.report(err)
		c.mu.Lock()
		defer c.mu.Unlock()
		wait := c.source.period
		if err == nil {
			c.good, c.failures = r.number, 0
		} else {
			r.failed = true
			wait = min(wait, firstRetry<<min(c.failures, 16), maxRetry)
			c.failures++
		}
		if c.again {
			c.again, wait = false, 0
		}
		c.next = c.now().Add(wait)
		c.running = nil
		if c.life.Err() == nil {
			c.timer.Reset(wait)
		}
		close(r.done)
	})
	return r
}

// load reads the source once. A well-formed key set replaces the one before even when nothing in it
// is usable: the issuer has withdrawn those keys. In a file, a weak key is a mistake of its owner
// and the whole file is rejected.
func (c *keyCache) load() error {
	data, err := c.source.read(c.life)
	switch {
	case errors.Is(err, errUnchanged):
	case err != nil:
		return err
	default:
		c.latest = sha256.Sum256(data)
		c.content = nil
		if c.document == nil || !bytes.Equal(data, c.document) {
			c.content = c.replace(data)
		}
	}
	if c.content == nil {
		c.loaded.Store(&loadedSet{set: c.loaded.Load().set, at: c.now()})
	}
	return c.content
}

// replace takes a new document.
func (c *keyCache) replace(data []byte) error {
	set, left, err := parseKeySet(data)
	if err != nil {
		return err
	}
	weak := errors.Join(left...)
	if c.source.local && errors.Is(weak, errWeakKey) {
		return weak
	}
	c.document = data
	c.loaded.Store(&loadedSet{set: set, at: c.now()})
	c.log.Info("token key set loaded", "keys", len(set.keys), "left_out", len(left))
	for _, err := range left {
		c.log.Warn("token key left out", "reason", err.Error())
	}
	return nil
}

// report logs a failing source once per kind of failure, its recovery, and once that the key set
// has become too old.
func (c *keyCache) report(err error) {
	if c.life.Err() != nil {
		return
	}
	if err == nil {
		if c.failing {
			c.log.Info("token key set is readable again")
		}
		c.failing, c.logged, c.tooOld = false, logged{}, false
		return
	}
	c.failing = true
	l := c.loaded.Load()
	about := logged{failure: err.Error()}
	if c.source.local {
		about.file = c.latest
	}
	if about != c.logged {
		c.logged = about
		c.log.Warn("token key set not read; the last good one is kept",
			"error", about.failure, "have_keys", l != nil)
	}
	if l != nil && c.maxAge > 0 && c.age() > c.maxAge && !c.tooOld {
		c.tooOld = true
		c.log.Error("token key set is too old: no token is accepted until it can be read",
			"age_seconds", int(c.age().Seconds()), "limit_seconds", int(c.maxAge.Seconds()))
	}
}
