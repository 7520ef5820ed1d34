package fairqueue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// line is a queue whose one slot is held until all have taken their places in it.
type line struct {
	t       *testing.T
	q       *Queue
	release func()
	done    sync.WaitGroup

	mu    sync.Mutex
	order []string
}

func newLine(t *testing.T, maxWaiting int) *line {
	l := &line{t: t, q: New(1, maxWaiting)}
	var err error
	if l.release, err = l.q.Acquire(t.Context(), Turn{Organization: "holder", User: "holder"}); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *line) wait(name string, turn Turn) {
	l.done.Go(func() {
		release, err := l.q.Acquire(l.t.Context(), turn)
		if err != nil {
			l.t.Error(err)
			return
		}
		l.mu.Lock()
		l.order = append(l.order, name)
		l.mu.Unlock()
		release()
	})
	synctest.Wait()
}

func (l *line) run() []string {
	l.release()
	l.done.Wait()
	return l.order
}

// C32: the wait of one user or organization does not grow with the requests of another.
func TestC32TurnsAreTaken(t *testing.T) {
	type ask struct {
		name string
		turn Turn
	}
	of := func(n int, name string, turn Turn) (list []ask) {
		for i := range n {
			list = append(list, ask{fmt.Sprint(name, i), turn})
		}
		return list
	}
	user := func(organization, name string) Turn { return Turn{Organization: organization, User: name} }
	for _, tt := range []struct {
		name string
		asks [][]ask
		want []string
	}{
		{"users take turns", [][]ask{of(3, "a", user("o", "a")), of(1, "b", user("o", "b"))},
			[]string{"a0", "b0", "a1", "a2"}},
		{"organizations take turns, however many users one has", [][]ask{
			of(1, "a", user("o", "a")), of(1, "b", user("o", "b")), of(1, "c", user("o", "c")), of(1, "x", user("p", "x")),
		}, []string{"a0", "x0", "b0", "c0"}},
		{"what is urgent goes first, by turns", [][]ask{
			of(2, "n", user("o", "n")), of(2, "u", Turn{Class: Urgent, Organization: "o", User: "u"}), of(1, "v", Turn{Class: Urgent, Organization: "p", User: "v"}),
		}, []string{"u0", "v0", "u1", "n0", "n1"}},
		{"the system's turns and users' alternate", [][]ask{
			of(1, "a", user("o", "a")), of(1, "b", user("p", "b")), of(3, "s", Turn{Class: System}),
		}, []string{"s0", "a0", "s1", "b0", "s2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, 0)
				for _, group := range tt.asks {
					for _, a := range group {
						l.wait(a.name, a.turn)
					}
				}
				if diff := cmp.Diff(tt.want, l.run()); diff != "" {
					t.Errorf("order (-want +got):\n%s", diff)
				}
				if left := len(l.q.classes[Normal].groups) + len(l.q.classes[System].groups) + len(l.q.classes[Urgent].groups); left != 0 {
					t.Errorf("%d groups are still remembered", left)
				}
			})
		})
	}
}

// C32: what waits of one user is bounded; a revocation that changes something is not counted.
func TestC32AUsersQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, 2)
		turn := Turn{Organization: "o", User: "u"}
		l.wait("first", turn)
		l.wait("second", turn)
		if _, err := l.q.Acquire(t.Context(), turn); !errors.Is(err, ErrFull) {
			t.Errorf("the third waits: %v", err)
		}
		l.wait("rest", Turn{Organization: "o", User: "u", Continues: true})
		l.wait("revoke", Turn{Class: Urgent, Organization: "o", User: "u"})
		l.wait("other", Turn{Organization: "o", User: "v"})
		if diff := cmp.Diff([]string{"revoke", "rest", "other", "first", "second"}, l.run()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// C32: one user has one slot at a time, whatever is free. Who gives up leaves nothing behind.
func TestC32OneSlotAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(4, 0)
		turn := Turn{Organization: "o", User: "u"}
		release, err := q.Acquire(t.Context(), turn)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := q.TryAcquire(turn); ok {
			t.Error("a second slot for the same user")
		}
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error)
		go func() { _, err := q.Acquire(ctx, turn); gaveUp <- err }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		other, ok := q.TryAcquire(Turn{Organization: "o", User: "v"})
		if !ok {
			t.Fatal("no slot for another user")
		}
		other()
		release()
		if q.free != 4 || len(q.classes[Normal].groups) != 0 {
			t.Errorf("%d slots free, %d groups remembered", q.free, len(q.classes[Normal].groups))
		}
	})
}

// No slot is lost, and none is given twice, whatever comes together.
func TestConcurrentUse(t *testing.T) {
	q := New(3, 0)
	var held sync.Map
	var group sync.WaitGroup
	for i := range 60 {
		group.Go(func() {
			turn := Turn{Class: Class(i % 3), Organization: fmt.Sprint(i % 4), User: fmt.Sprint(i % 7)}
			for n := range 100 {
				ctx, cancel := context.WithCancel(context.Background())
				if n%3 == 0 {
					go cancel()
				}
				release, err := q.Acquire(ctx, turn)
				if err == nil {
					if _, twice := held.LoadOrStore(turn, i); twice && turn.Class == Normal {
						t.Error("two slots for one user")
					}
					held.Delete(turn)
					release()
				}
				cancel()
			}
		})
	}
	group.Wait()
	if q.free != 3 {
		t.Errorf("%d slots are free, want 3", q.free)
	}
	for c := range q.classes {
		if n := len(q.classes[c].groups); n != 0 {
			t.Errorf("class %d remembers %d groups", c, n)
		}
	}
}
