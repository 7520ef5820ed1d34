package keys

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/fairqueue"
)

// maxWaitingWrites is how many writes of one user wait behind each other. It is more than a user's
// budget holds (C32), so that what is within the budget is not rejected here.
const maxWaitingWrites = 128

// fairStore puts a fair queue before the database's write lock, and writes nothing to a database
// that is not proven (V8). Write and Record of a plain call are
// Keyward's own or an operator's and take the system's turns; what a user asks for goes through
// Service.waitToWrite and recordAs.
type fairStore struct {
	Store
	queue  *fairqueue.Queue
	proven func() error // Config.Proven; nil = it always is
}

var systemTurn = fairqueue.Turn{Class: fairqueue.System}

// normalTurn is the turn of a caller's write.
func normalTurn(c Call) fairqueue.Turn {
	return fairqueue.Turn{Organization: c.Principal.OrganizationID, User: c.Principal.User}
}

// Write implements Store.
func (f *fairStore) Write(ctx context.Context, first Reads, fn func(context.Context, Tx) error) (Commit, error) {
	release, err := f.queue.Acquire(ctx, systemTurn)
	if err != nil {
		return Commit{}, err
	}
	return f.writeHeld(ctx, release, first, fn)
}

// Record implements Store.
func (f *fairStore) Record(ctx context.Context, e AuditEntry) error {
	return f.recordAs(ctx, systemTurn, e)
}

// writeHeld is Write for who has a slot, which it gives back.
func (f *fairStore) writeHeld(
	ctx context.Context, release func(), first Reads, fn func(context.Context, Tx) error,
) (Commit, error) {
	defer release()
	if f.proven != nil {
		if err := f.proven(); err != nil {
			return Commit{}, err
		}
	}
	return f.Store.Write(ctx, first, fn)
}

func (f *fairStore) recordAs(ctx context.Context, turn fairqueue.Turn, e AuditEntry) error {
	release, err := f.queue.Acquire(ctx, turn)
	if err != nil {
		return err
	}
	defer release()
	return f.Store.Record(ctx, e)
}

// TooManyRequests rejects a request that is over a budget of C32 or C33.
func TooManyRequests(retryAfter time.Duration) *Error {
	return &Error{Code: api.TooManyRequests, RetryAfter: max(retryAfter, time.Second),
		Detail: "Too many requests of this user. Wait as long as Retry-After says."}
}

// full makes a rejection of a user's queue that is full, and an Unavailable of any other failure.
func (s *Service) full(err error) error {
	if errors.Is(err, fairqueue.ErrFull) {
		return TooManyRequests(time.Second)
	}
	return undecided(err)
}

// waitToWrite waits for a caller's slot. The first revocation of a key that is not revoked is
// urgent; the key is read only if the write has to wait.
func (s *Service) waitToWrite(ctx context.Context, c Call, action Action, targetID string) (release func(), err error) {
	turn := normalTurn(c)
	if release, ok := s.store.queue.TryAcquire(turn); ok {
		return release, nil
	}
	revocation := revocation{c.Principal.OrganizationID, targetID}
	if action != ActRevoke || !s.beginRevocation(revocation) {
		return s.store.queue.Acquire(ctx, turn)
	}
	changes, err := s.RevokeChanges(ctx, c, targetID)
	if err != nil || !changes {
		s.endRevocation(revocation)
		return s.store.queue.Acquire(ctx, turn) // after an error the write fails too, and says why
	}
	turn.Class = fairqueue.Urgent
	free, err := s.store.queue.Acquire(ctx, turn)
	if err != nil {
		s.endRevocation(revocation)
		return nil, err
	}
	return func() { free(); s.endRevocation(revocation) }, nil
}

// revocation is what an organization asks for. Another's request for the same id is not the same:
// it changes nothing.
type revocation struct{ organization, keyID string }

// beginRevocation notes that a key's revocation waits as urgent; false when one does already. So
// there are at most as many urgent turns as there are keys to revoke.
func (s *Service) beginRevocation(id revocation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, waits := s.revoking[id]; waits {
		return false
	}
	s.revoking[id] = struct{}{}
	return true
}

func (s *Service) endRevocation(id revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.revoking, id)
}

// RevokeChanges reports whether a revoke of id by c would change something: the key is the
// caller's organization's and not revoked. It costs one read, for which users take turns, or none
// when this process knows that the key is revoked. A revoke is not rejected for a budget while
// this is true (C32).
func (s *Service) RevokeChanges(ctx context.Context, c Call, id string) (bool, error) {
	if s.knownRevoked(id) {
		return false, nil
	}
	release, err := s.reads.Acquire(ctx, normalTurn(c))
	if err != nil {
		return false, undecided(err)
	}
	defer release()
	if s.knownRevoked(id) { // by now
		return false, nil
	}
	k, err := s.cfg.Store.Key(ctx, knownID(id))
	switch {
	case errors.Is(err, ErrNotFound), err == nil && k.OrganizationID != c.Principal.OrganizationID:
		return false, nil
	case err != nil:
		return false, undecided(err)
	case k.State == StateRevoked && k.Genuine:
		s.noteRevoked(id)
		return false, nil
	}
	return true, nil
}

func (s *Service) knownRevoked(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked.has(id)
}

// noteRevoked remembers a key that is revoked, which it stays.
func (s *Service) noteRevoked(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked.add(id)
}

// recentIDs remembers the last of the ids it was given.
type recentIDs struct {
	place map[string]int
	ids   []string
	next  int
}

const maxRecentIDs = 10_000

func (r *recentIDs) has(id string) bool {
	_, ok := r.place[id]
	return ok
}

func (r *recentIDs) add(id string) {
	if r.has(id) {
		return
	}
	if r.place == nil {
		r.place = make(map[string]int)
	}
	id = strings.Clone(id) // it may be part of a long URL
	if len(r.ids) < maxRecentIDs {
		r.ids = append(r.ids, "")
	}
	delete(r.place, r.ids[r.next])
	r.ids[r.next] = id
	r.place[id] = r.next
	r.next = (r.next + 1) % maxRecentIDs
}

// WaitingWrites returns how many writes wait for their turn.
func (s *Service) WaitingWrites() int { return s.store.queue.Waiting() }
