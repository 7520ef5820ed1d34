package server

import (
	"context"
	"errors"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// limiters are token buckets by name. A bucket that is full again is forgotten, so memory is that
// of the names that were used lately.
type limiters struct {
	limit rate.Limit
	burst int
	seed  maphash.Seed
	parts [32]limiterPart // by the name's hash
}

type limiterPart struct {
	mu      sync.Mutex
	buckets map[uint64]*rate.Limiter // by the name's hash; guarded by mu
	sweepAt int                      // how many buckets there are when the full ones are dropped
}

// Bounds of one part. At maxBuckets some buckets are dropped for others, and their names begin
// again with full ones: for that 100,000 users would have to ask within a minute.
const (
	minSweep   = 64
	maxBuckets = 4096
)

func newLimiters(limit rate.Limit, burst int) *limiters {
	return &limiters{limit: limit, burst: burst, seed: maphash.MakeSeed()}
}

// of returns the bucket of a name.
func (l *limiters) of(name string, now time.Time) *rate.Limiter {
	hash := maphash.String(l.seed, name)
	part := &l.parts[hash%uint64(len(l.parts))]
	part.mu.Lock()
	defer part.mu.Unlock()
	bucket := part.buckets[hash]
	if bucket == nil {
		part.makeRoom(now)
		bucket = rate.NewLimiter(l.limit, l.burst)
		part.buckets[hash] = bucket
	}
	return bucket
}

// makeRoom drops the buckets that are full, whenever there are twice as many as were left last
// time.
func (p *limiterPart) makeRoom(now time.Time) {
	if p.buckets == nil {
		p.buckets, p.sweepAt = make(map[uint64]*rate.Limiter), minSweep
	}
	if len(p.buckets) < p.sweepAt {
		return
	}
	for hash, bucket := range p.buckets {
		if bucket.TokensAt(now) >= float64(bucket.Burst()) {
			delete(p.buckets, hash)
		}
	}
	for hash := range p.buckets { // some at once, so that not every new name costs a sweep
		if len(p.buckets) <= maxBuckets*3/4 {
			break
		}
		delete(p.buckets, hash)
	}
	p.sweepAt = min(max(minSweep, 2*len(p.buckets)), maxBuckets)
}

// userBudgets are what users may ask for (C32).
type userBudgets struct{ buckets *limiters }

// newUserBudgets returns nil, which is no budget, for 0.
func newUserBudgets(perMinute int) *userBudgets {
	if perMinute <= 0 {
		return nil
	}
	return &userBudgets{newLimiters(rate.Limit(perMinute)/60, perMinute)}
}

// take takes one request out of the user's budget. When that is used up it returns how long until
// there is one.
func (b *userBudgets) take(user string, now time.Time) (wait time.Duration, ok bool) {
	if b == nil {
		return 0, true
	}
	bucket := b.buckets.of(user, now)
	if bucket.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - bucket.TokensAt(now)
	return max(0, time.Duration(missing/float64(b.buckets.limit)*float64(time.Second))), false
}

// spend takes a management call out of its user's budget, before any lock, body or database. A
// revoke passes an empty budget while it would change something.
func (s *Server) spend(x *exchange) error {
	wait, ok := s.users.take(x.call.Principal.User, time.Now())
	if ok {
		return nil
	}
	if x.route.action == keys.ActRevoke {
		changes, err := s.cfg.Service.RevokeChanges(x.ctx, x.call, x.segment)
		if changes || err != nil {
			return err
		}
	}
	return s.refuse(x, keys.TooManyRequests(wait))
}

// slowdown makes a caller wait for its rejections when there are many of them. Rejecting is work
// too: a thousand connections that only ever get rejections would keep the processors from the
// others.
type slowdown struct {
	buckets *limiters
	most    time.Duration
	count   *atomic.Uint32
}

func newSlowdown(limit rate.Limit, burst int, most time.Duration) slowdown {
	return slowdown{newLimiters(limit, burst), most, new(atomic.Uint32)}
}

// Rejections that are answered without delay: of a user over its budget, and of strangers from one
// address, which may be that of a proxy.
var (
	slowUsers     = func() slowdown { return newSlowdown(10, 20, 5*time.Second) }
	slowStrangers = func() slowdown { return newSlowdown(100, 200, time.Second) }
)

// delay is how long a rejection of name waits.
func (d slowdown) delay(name string, now time.Time) time.Duration {
	r := d.buckets.of(name, now).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > d.most {
		r.CancelAt(now) // the debt does not grow
		return d.most/2 + time.Duration(float64(d.most/2)*d.spread())
	}
	return wait
}

// spread is a number from 0 to 1, each far from the ones before: those who came together do not
// come back together.
func (d slowdown) spread() float64 {
	_, part := math.Modf(float64(d.count.Add(1)) * math.Phi)
	return part
}

// slowDown delays the answer to a management call that was rejected before anything was read of
// it, until its client hangs up.
func (s *Server) slowDown(x *exchange, rejected error) {
	var e *keys.Error
	if x.route.auth != userToken || !errors.As(rejected, &e) {
		return
	}
	var wait time.Duration
	switch e.Code {
	case api.TooManyRequests:
		wait = s.slowUsers.delay(x.call.Principal.User, time.Now())
	case api.InvalidToken, api.UserTokenRequired:
		wait = s.slowStrangers.delay(x.ClientAddress(), time.Now())
	}
	if wait <= 0 {
		return
	}
	if h, ok := x.r.Context().Value(heldKey{}).(*heldConn); ok && x.r.ProtoMajor == 1 {
		h.mayGo(true) // who only waits to be rejected keeps no other connection away
		defer h.mayGo(false)
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), wait)
	defer cancel()
	<-ctx.Done()
}
