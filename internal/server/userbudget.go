package server

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/syncgram/keyward/internal/keys"
)

// userBudgets are token buckets, one a user (C32). A bucket that is full again is forgotten, so
// memory is that of the users who asked within the last minute.
type userBudgets struct {
	limit rate.Limit
	burst int
	seed  maphash.Seed
	parts [32]budgetPart // by the user's hash
}

type budgetPart struct {
	mu      sync.Mutex
	buckets map[uint64]*rate.Limiter // by the user's hash; guarded by mu
	sweepAt int                      // how many buckets there are when the full ones are dropped
}

// Bounds of one part. At maxBuckets any bucket is dropped for another, and its user begins again with
// a full one: 100,000 users would have to ask within a minute.
const (
	minSweep   = 64
	maxBuckets = 4096
)

// newUserBudgets returns nil, which is no budget, for 0.
func newUserBudgets(perMinute int) *userBudgets {
	if perMinute <= 0 {
		return nil
	}
	return &userBudgets{limit: rate.Limit(perMinute) / 60, burst: perMinute, seed: maphash.MakeSeed()}
}

// take takes one request out of the user's bucket. When that is empty it returns how long until there
// is one.
func (b *userBudgets) take(user string, now time.Time) (wait time.Duration, ok bool) {
	if b == nil {
		return 0, true
	}
	hash := maphash.String(b.seed, user)
	part := &b.parts[hash%uint64(len(b.parts))]
	part.mu.Lock()
	defer part.mu.Unlock()
	bucket := part.buckets[hash]
	if bucket == nil {
		part.makeRoom(now)
		bucket = rate.NewLimiter(b.limit, b.burst)
		part.buckets[hash] = bucket
	}
	if bucket.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - bucket.TokensAt(now)
	return time.Duration(missing / float64(b.limit) * float64(time.Second)), false
}

// makeRoom drops the buckets that are full, whenever there are twice as many as were left last time.
func (p *budgetPart) makeRoom(now time.Time) {
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
	for hash := range p.buckets { // some at once, so that not every new user costs a sweep
		if len(p.buckets) <= maxBuckets*3/4 {
			break
		}
		delete(p.buckets, hash)
	}
	p.sweepAt = min(max(minSweep, 2*len(p.buckets)), maxBuckets)
}

// spend takes a management call out of its user's budget, before any lock, body or database. A revoke
// passes an empty bucket while it would change something.
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
