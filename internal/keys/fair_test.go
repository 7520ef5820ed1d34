package keys_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// heldStore holds the first write until it is released, and notes whose writes come in which order.
type heldStore struct {
	keys.Store
	entered, release chan struct{}

	mu    sync.Mutex
	order []string // organizations; guarded by mu
	held  bool
}

func (h *heldStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	h.mu.Lock()
	h.order = append(h.order, first.OrganizationID)
	hold := !h.held
	h.held = true
	h.mu.Unlock()
	if hold {
		close(h.entered)
		<-h.release
	}
	return h.Store.Write(ctx, first, fn)
}

// C32: however many writes of one user wait, those of another do not wait behind them, and a
// revocation that changes something is next.
func TestC32WritesTakeTurns(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	used := f.create(t, user("flood", "org_flood")).Key.ID
	if _, err := f.Revoke(t.Context(), user("flood", "org_flood"), used, ""); err != nil {
		t.Fatal(err)
	}
	mine := f.create(t, user("b", "org_b")).Key.ID
	held := &heldStore{Store: f.store, entered: make(chan struct{}), release: make(chan struct{})}
	f.cfg.Store = held
	s := f.another(t)

	var running sync.WaitGroup
	act := func(do func(context.Context) error) {
		running.Go(func() {
			if err := do(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	revoke := func(c keys.Call, id string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := s.Revoke(ctx, c, id, ""); return err }
	}
	act(revoke(user("flood", "org_flood"), used))
	<-held.entered
	for range 100 {
		act(revoke(user("flood", "org_flood"), used))
	}
	waiting(t, s, 100)
	act(func(ctx context.Context) error {
		_, err := s.Create(ctx, user("c", "org_c"), keys.CreateRequest{Name: "n"})
		return err
	})
	waiting(t, s, 101)
	act(revoke(user("b", "org_b"), mine))
	waiting(t, s, 102)
	act(func(ctx context.Context) error {
		_, err := s.PutOrganization(ctx, keys.Operator{}, keys.OrganizationRequest{ID: "org_d"})
		return err
	})
	waiting(t, s, 103)
	close(held.release)
	running.Wait()
	if diff := cmp.Diff([]string{"org_flood", "org_b", "org_c", "org_d", "org_flood"}, held.order[:5]); diff != "" {
		t.Errorf("order of the first writes (-want +got):\n%s", diff)
	}
}

// C32: more of one user's writes than its queue holds are rejected; its revoke that changes
// something is not.
func TestC32AUsersWritesAreBounded(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	mine := f.create(t, user("u", "org_a")).Key.ID
	held := &heldStore{Store: f.store, entered: make(chan struct{}), release: make(chan struct{})}
	f.cfg.Store = held
	s := f.another(t)
	roll := func() error {
		_, err := s.Roll(context.Background(), user("u", "org_a"), keys.RollRequest{KeyID: "key_unknown"})
		return err
	}
	const n = 128
	var running sync.WaitGroup
	codes := make(chan api.Code, n+1)
	running.Go(func() { codes <- code(roll()) })
	<-held.entered
	for range n {
		running.Go(func() { codes <- code(roll()) })
	}
	waiting(t, s, n)
	err := roll()
	if code(err) != api.TooManyRequests || refusal(t, err).RetryAfter < time.Second {
		t.Errorf("one more than the queue holds: %v", err)
	}
	running.Go(func() {
		if _, err := s.Revoke(context.Background(), user("u", "org_a"), mine, ""); err != nil {
			t.Errorf("a revoke that changes something: %v", err)
		}
	})
	waiting(t, s, n+1)
	close(held.release)
	running.Wait()
	close(codes)
	for c := range codes {
		if c != api.KeyNotFound {
			t.Errorf("a write that waited: %v", c)
		}
	}
}

// waiting waits until n writes are queued.
func waiting(t *testing.T, s *keys.Service, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for s.WaitingWrites() != n {
		if time.Now().After(deadline) {
			t.Fatalf("%d writes wait, want %d", s.WaitingWrites(), n)
		}
		time.Sleep(time.Millisecond)
	}
}

// C22: a malformed, an unknown and another organization's id ask the same of the store.
func TestC22TheSameReads(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		theirs := f.create(t, user("b", "org_b")).Key.ID
		for _, act := range []struct {
			name string
			do   func(*keys.Service, string) error
		}{
			{"revoke", func(s *keys.Service, id string) error {
				_, err := s.Revoke(t.Context(), user("u", "org_a"), id, "")
				return err
			}},
			{"roll", func(s *keys.Service, id string) error {
				_, err := s.Roll(t.Context(), user("u", "org_a"), keys.RollRequest{KeyID: id})
				return err
			}},
			{"revoke beyond a budget", func(s *keys.Service, id string) error {
				_, err := s.RevokeChanges(t.Context(), user("u", "org_a"), id)
				return err
			}},
		} {
			var want []string
			for _, id := range []string{theirs, "key_01hm6q9zt0e5v8s3d7k2x4w1np", "x", "key_" + fmt.Sprint(len(theirs))} {
				counted := &countedStore{Store: f.store}
				f.cfg.Store = counted
				_ = act.do(f.another(t), id)
				if want == nil {
					want = counted.calls
				}
				if diff := cmp.Diff(want, counted.calls); diff != "" {
					t.Errorf("%s of %q (-another's +this):\n%s", act.name, id, diff)
				}
			}
		}
	})
}

// countedStore notes what is called, and which rows are named to a write.
type countedStore struct {
	keys.Store
	calls []string
}

func (c *countedStore) Key(ctx context.Context, id string) (keys.Key, error) {
	c.calls = append(c.calls, "Key")
	return c.Store.Key(ctx, id)
}

func (c *countedStore) Now(ctx context.Context) (time.Time, error) {
	c.calls = append(c.calls, "Now")
	return c.Store.Now(ctx)
}

func (c *countedStore) Record(ctx context.Context, e keys.AuditEntry) error {
	c.calls = append(c.calls, "Record")
	return c.Store.Record(ctx, e)
}

func (c *countedStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	c.calls = append(c.calls, fmt.Sprintf("Write organization %v key %v", first.OrganizationID != "", first.KeyID != ""))
	return c.Store.Write(ctx, first, func(ctx context.Context, tx keys.Tx) error { return fn(ctx, &countedTx{tx, c}) })
}

type countedTx struct {
	keys.Tx
	c *countedStore
}

func (t *countedTx) Key(ctx context.Context, id string) (keys.Key, error) {
	t.c.calls = append(t.c.calls, "Tx.Key")
	return t.Tx.Key(ctx, id)
}
