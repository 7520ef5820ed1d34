package keys

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
)

// rejections counts what is rejected again and again, so that the audit log has one entry a minute
// of it (C32). The first rejection of a user for a reason is written when it happens; those of the
// minutes after it are counted here and written by Run. A process that is killed loses the counts
// of at most a minute, never an act that changed something.
type rejections struct {
	mu   sync.Mutex
	open map[rejection]*repeats // guarded by mu
}

// rejection is who was rejected for what. The member at fault is not part of it: a caller can make
// up as many as it likes.
type rejection struct {
	user, organization string
	action             Action
	code               api.Code
}

// repeats are the rejections after the first.
type repeats struct {
	since                    time.Time // of the first, or of the last entry
	count                    int64
	remoteAddress, requestID string // of the latest
}

const (
	rejectionWindow = time.Minute
	// maxRejections bounds the memory. Beyond it each rejection is an entry of its own.
	maxRejections = 10_000
)

func newRejections() *rejections { return &rejections{open: make(map[rejection]*repeats)} }

func rejectionOf(c Call, action Action, e *Error) rejection {
	return rejection{c.Principal.User, c.Principal.OrganizationID, action, e.Code}
}

// first reports whether a rejection is to be written now. Otherwise it is counted. What is over a
// budget is only counted: no request that is rejected for that reaches the database.
func (r *rejections) first(c Call, action Action, e *Error) bool {
	k := rejectionOf(c, action, e)
	r.mu.Lock()
	defer r.mu.Unlock()
	of, repeated := r.open[k]
	if !repeated {
		counted := e.Code == api.TooManyRequests
		if len(r.open) >= maxRejections {
			return !counted
		}
		of = &repeats{since: time.Now()}
		r.open[k] = of
		if !counted {
			return true
		}
	}
	of.count++
	of.remoteAddress, of.requestID = c.RemoteAddress, c.RequestID
	return false
}

// forget undoes first for an entry that could not be written.
func (r *rejections) forget(c Call, action Action, e *Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := rejectionOf(c, action, e); r.open[k] != nil && r.open[k].count == 0 {
		delete(r.open, k)
	}
}

// due takes the counts whose minute is over, or all of them. A reason that did not come up again in
// its minute is forgotten, so that its next rejection is written when it happens.
func (r *rejections) due(now time.Time, all bool) map[rejection]repeats {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := make(map[rejection]repeats)
	for k, of := range r.open {
		if !all && now.Sub(of.since) < rejectionWindow {
			continue
		}
		if of.count == 0 {
			delete(r.open, k)
			continue
		}
		taken[k] = *of
		of.since, of.count = now, 0
	}
	return taken
}

// back returns counts that could not be written.
func (r *rejections) back(k rejection, of repeats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.open[k]; now != nil {
		now.count += of.count
	} else if len(r.open) < maxRejections {
		r.open[k] = &of
	}
}

// recordRejection writes one rejection into the audit log.
func (s *Service) recordRejection(ctx context.Context, c Call, action Action, targetID string, refusal *Error) error {
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return undecided(err)
	}
	e := s.entry(c, action, targetID, now)
	e.Outcome = string(refusal.Code)
	e.Detail = refusal.Param
	turn := normalTurn(c)
	turn.Continues = true
	if err := s.store.recordAs(ctx, turn, e); err != nil {
		return s.full(err)
	}
	return nil
}

// WriteRepeats writes the counts of repeated rejections whose minute is over, or all of them, one
// audit entry each.
func (s *Service) WriteRepeats(ctx context.Context, all bool) (failed error) {
	for k, of := range s.rejections.due(time.Now(), all) {
		if failed == nil {
			failed = s.writeRepeat(ctx, k, of)
		}
		if failed != nil {
			s.rejections.back(k, of)
		}
	}
	return failed
}

func (s *Service) writeRepeat(ctx context.Context, k rejection, of repeats) error {
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return err
	}
	return s.store.Record(ctx, AuditEntry{
		At: now, Actor: k.user, Action: k.action, OrganizationID: k.organization, Outcome: string(k.code),
		Detail: fmt.Sprintf("repeated %d times within a minute", of.count), RemoteAddress: of.remoteAddress, RequestID: of.requestID,
	})
}

// lastWrite bounds what Run writes when it ends.
const lastWrite = 5 * time.Second

// Run writes the counts of repeated rejections until ctx ends, and then those that are left.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			if err := s.WriteRepeats(ctx, false); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("repeated rejections could not be written to the audit log yet", "error", err)
			}
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
	defer cancel()
	if err := s.WriteRepeats(ctx, true); err != nil {
		s.cfg.Logger.Error("counts of repeated rejections are lost to the audit log", "error", err)
	}
}
