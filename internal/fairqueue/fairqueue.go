// Package fairqueue decides who goes next where only a few may go at a time, such as before a
// database's write lock. Organizations take turns, and so do the users of an organization: the
// wait of one does not grow with the requests of another.
package fairqueue

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// Class says which turns come first. Urgent turns go before all others. System and Normal turns
// alternate, so that neither starves.
type Class int

// The classes.
const (
	Normal Class = iota // users' requests. A user has one slot at a time
	System              // operators, and what Keyward does without being asked
	Urgent              // revocations that change something. Their number is bounded by the caller
)

// Turn is who asks for a slot.
type Turn struct {
	Class        Class
	Organization string
	User         string

	// Continues is set for the rest of a request that had a turn already: it goes before the user's
	// others, and the bound of who waits does not hold for it.
	Continues bool
}

// ErrFull means that too many Normal turns of the same user wait already.
var ErrFull = errors.New("fairqueue: too many requests of one user are waiting")

// Queue hands out slots. It is safe for concurrent use. Its memory is that of who waits or holds a
// slot.
type Queue struct {
	maxWaiting int // Normal turns of one user that may wait; 0 = no bound

	mu         sync.Mutex
	free       int // slots; guarded by mu, as all below
	waiting    int
	classes    [3]flows
	systemNext bool // which of System and Normal is next
}

// New returns a queue with the number of slots. maxWaiting bounds how many Normal turns of one user
// wait; 0 is no bound.
func New(slots, maxWaiting int) *Queue {
	q := &Queue{maxWaiting: maxWaiting, free: max(1, slots)}
	for c := range q.classes {
		q.classes[c] = flows{groups: make(map[string]*group), exclusive: Class(c) == Normal}
	}
	return q
}

// Acquire waits for a slot. release gives it back and is called once.
func (q *Queue) Acquire(ctx context.Context, t Turn) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	f := &q.classes[t.Class]
	u := f.user(t)
	if q.maxWaiting > 0 && t.Class == Normal && !t.Continues && u.waiting.Len() >= q.maxWaiting {
		f.tidy(u)
		q.mu.Unlock()
		return nil, ErrFull
	}
	w := &waiter{user: u, ready: make(chan struct{})}
	if t.Continues {
		w.place = u.waiting.PushFront(w)
	} else {
		w.place = u.waiting.PushBack(w)
	}
	q.waiting++
	f.queue(u)
	q.dispatch()
	q.mu.Unlock()

	release = func() { q.release(f, w) }
	select {
	case <-w.ready:
		return release, nil
	default:
	}
	select {
	case <-w.ready:
		return release, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	granted := w.place == nil
	if !granted {
		u.waiting.Remove(w.place)
		q.waiting--
		f.tidy(u)
	}
	q.mu.Unlock()
	if granted {
		release()
	}
	return nil, ctx.Err()
}

// Waiting returns how many turns wait.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

// TryAcquire takes a slot only if that needs no waiting.
func (q *Queue) TryAcquire(t Turn) (release func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := &q.classes[t.Class]
	u := f.user(t)
	if q.free == 0 || f.exclusive && u.running > 0 {
		f.tidy(u)
		return nil, false
	}
	q.free--
	u.running++
	w := &waiter{user: u}
	return func() { q.release(f, w) }, true
}

func (q *Queue) release(f *flows, w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free++
	w.user.running--
	f.queue(w.user)
	f.tidy(w.user)
	q.dispatch()
}

// dispatch gives free slots to those whose turn it is.
func (q *Queue) dispatch() {
	for q.free > 0 {
		w := q.next()
		if w == nil {
			return
		}
		q.free--
		q.waiting--
		w.user.running++
		close(w.ready)
	}
}

func (q *Queue) next() *waiter {
	if w := q.classes[Urgent].pop(); w != nil {
		return w
	}
	first, second := Normal, System
	if q.systemNext {
		first, second = System, Normal
	}
	for _, c := range [...]Class{first, second} {
		if w := q.classes[c].pop(); w != nil {
			q.systemNext = c == Normal
			return w
		}
	}
	return nil
}

// flows are the waiting turns of one class.
type flows struct {
	exclusive bool // a user has one slot at a time
	groups    map[string]*group
	ring      list.List // of *group with a user in its ring, in the order of their turns
}

// group is an organization.
type group struct {
	name   string
	users  map[string]*user
	ring   list.List // of *user with a turn that may be given now
	queued bool      // in flows.ring
}

type user struct {
	name    string
	group   *group
	waiting list.List // of *waiter, oldest first
	running int
	queued  bool // in group.ring
}

type waiter struct {
	user  *user
	place *list.Element // in user.waiting; nil once the slot is given
	ready chan struct{}
}

func (f *flows) user(t Turn) *user {
	g := f.groups[t.Organization]
	if g == nil {
		g = &group{name: t.Organization, users: make(map[string]*user)}
		f.groups[t.Organization] = g
	}
	u := g.users[t.User]
	if u == nil {
		u = &user{name: t.User, group: g}
		g.users[t.User] = u
	}
	return u
}

// queue puts a user into the rings if it has a turn that may be given now.
func (f *flows) queue(u *user) {
	if u.queued || u.waiting.Len() == 0 || f.exclusive && u.running > 0 {
		return
	}
	u.queued = true
	u.group.ring.PushBack(u)
	if !u.group.queued {
		u.group.queued = true
		f.ring.PushBack(u.group)
	}
}

// tidy forgets a user, and its group, of which nothing is left.
func (f *flows) tidy(u *user) {
	g := u.group
	if u.waiting.Len() == 0 && u.running == 0 && !u.queued {
		delete(g.users, u.name)
	}
	if len(g.users) == 0 && !g.queued {
		delete(f.groups, g.name)
	}
}

// pop takes the next waiter. Its user, and then its group, go to the end of their rings. A user
// whose waiters all gave up is dropped here.
func (f *flows) pop() *waiter {
	for e := f.ring.Front(); e != nil; e = f.ring.Front() {
		g := f.ring.Remove(e).(*group)
		g.queued = false
		var taken *waiter
		var last *user
		for e := g.ring.Front(); e != nil && taken == nil; e = g.ring.Front() {
			last = g.ring.Remove(e).(*user)
			last.queued = false
			if first := last.waiting.Front(); first != nil {
				taken = last.waiting.Remove(first).(*waiter)
				taken.place = nil
			} else {
				f.tidy(last)
			}
		}
		if g.ring.Len() > 0 {
			g.queued = true
			f.ring.PushBack(g)
		}
		if taken != nil {
			if !f.exclusive {
				f.queue(last)
			}
			return taken
		}
		f.tidy(last)
	}
	return nil
}
