package sqlstore_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// listening returns what a store hears, once it does.
func listening(t *testing.T, s *sqlstore.Store) <-chan keys.Announcement {
	t.Helper()
	heard := make(chan keys.Announcement, 100)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Listen(ctx, func(a keys.Announcement) { heard <- a }) }()
	t.Cleanup(func() { stop(); <-ended })
	for begun := false; !begun; {
		if err := s.Announce(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
			begun = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	return heard
}

// next returns the next announcement of a write.
func next(t *testing.T, heard <-chan keys.Announcement) keys.Announcement {
	t.Helper()
	for {
		select {
		case a := <-heard:
			if a.Revision > 0 {
				return a
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is heard")
		}
	}
}

// P1: what is sent along with an announcement is what a read of the changes gives, and the timeline is the commit's. What is too long to be
// sent is not.
func TestP1AnnouncementsHoldTheChanges(t *testing.T) {
	f := open(t, sqlstore.Postgres)
	heard := listening(t, f.Store)
	key := keystest.NewKey("org_a", keys.StateActive)
	key.Name = "ключ <&> \u2028"
	key.Description = "line\nключ <&>"
	successor := keystest.NewKey("org_a", keys.StateActive)
	long := keystest.NewKey("org_long", keys.StateActive)
	long.Name = strings.Repeat("\U0001F511", 2000)
	for _, test := range []struct {
		name  string
		write func(ctx context.Context, tx keys.Tx) error
		bare  bool
	}{
		{name: "create", write: func(ctx context.Context, tx keys.Tx) error { return keystest.Insert(ctx, tx, key) }},
		{name: "roll", write: func(ctx context.Context, tx keys.Tx) error {
			old, err := tx.Key(ctx, key.ID)
			if err != nil {
				return err
			}
			old.State = keys.StateRevoked
			if err := keystest.Update(ctx, tx, old); err != nil {
				return err
			}
			return keystest.Insert(ctx, tx, successor)
		}},
		{name: "organization", write: func(ctx context.Context, tx keys.Tx) error {
			return keystest.Put(ctx, tx, keys.Organization{ID: "org_a", Name: "A", Active: true, CurrentEnvironment: keys.Test})
		}},
		{name: "deleted organization", write: func(ctx context.Context, tx keys.Tx) error {
			return keystest.Put(ctx, tx, keys.Organization{ID: "org_a", Active: true, CurrentEnvironment: keys.Test, Deleted: true})
		}},
		{name: "nothing", write: func(context.Context, keys.Tx) error { return nil }},
		{name: "too long", bare: true, write: func(ctx context.Context, tx keys.Tx) error { return keystest.Insert(ctx, tx, long) }},
		{name: "too many", bare: true, write: func(ctx context.Context, tx keys.Tx) error { return insertMany(ctx, tx, 5) }},
		{name: "the usual", write: func(ctx context.Context, tx keys.Tx) error { return insertMany(ctx, tx, 1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			before, err := f.Changes(t.Context(), keys.Mark{}, 1000)
			if err != nil {
				t.Fatal(err)
			}
			commit, err := f.Write(t.Context(), keys.Reads{}, test.write)
			if err != nil {
				t.Fatal(err)
			}
			a := next(t, heard)
			if a.Revision != commit.Revision || (a.Changes == nil) != test.bare {
				t.Fatalf("heard of %d, with changes: %t", a.Revision, a.Changes != nil)
			}
			if test.bare {
				return
			}
			want, err := f.Changes(t.Context(), before.Mark, 1000)
			if err != nil {
				t.Fatal(err)
			}
			byRevision := cmpopts.SortSlices(func(a, b keys.Key) bool { return a.ID < b.ID })
			if diff := cmp.Diff(&want, a.Changes, byRevision); diff != "" {
				t.Errorf("announced (-read +heard):\n%s", diff)
			}
			if a.Before != before.Mark {
				t.Errorf("it says it followed %+v, want %+v", a.Before, before.Mark)
			}
			if a.Timeline != commit.Timeline || a.Changes.Mark != commit.Mark {
				t.Errorf("%+v, want the commit's, %+v", a, commit)
			}
		})
	}
	if len(f.seen()) > 0 {
		t.Errorf("taken for tampered with: %v", f.seen())
	}
}

func insertMany(ctx context.Context, tx keys.Tx, n int) error {
	for i := range n {
		if err := keystest.Insert(ctx, tx, keystest.NewKey(fmt.Sprint("org_of_", n, "_", i), keys.StateActive)); err != nil {
			return err
		}
	}
	return nil
}

// P5, P4: whoever may connect to the database may announce and listen. What somebody else made, or moved to another number, or brought from
// another database, is an announcement without changes; and nothing of a row can be read from one.
func TestP5ForgedAnnouncements(t *testing.T) {
	f := open(t, sqlstore.Postgres)
	o := f.options
	o.URL = newDatabase(t, sqlstore.Postgres)
	other, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	heard := listening(t, f.Store)
	payloads := rawListen(t, f.options.URL)
	key := keystest.NewKey("org_secretive", keys.StateActive)
	keystest.MustInsert(t, f.Store, key)
	if a := next(t, heard); a.Changes == nil {
		t.Fatal("the genuine one has no changes")
	}
	genuine := <-payloads
	if strings.Contains(genuine, key.ID) || strings.Contains(genuine, "org_secretive") {
		t.Error("the announcement shows a row")
	}
	elsewhere := rawListen(t, o.URL)
	keystest.MustInsert(t, other, keystest.NewKey("org", keys.StateActive))
	number, sealed, _ := strings.Cut(genuine, " ")
	for name, payload := range map[string]string{
		"another number":   "7" + number + " " + sealed,
		"another database": <-elsewhere,
		"a letter changed": genuine[:len(genuine)/2] + swapped(genuine[len(genuine)/2]) + genuine[len(genuine)/2+1:],
		"cut":              genuine[:len(genuine)/2],
		"no box":           number + " m1",
		"another key":      number + " nobody " + sealed,
		"bare":             number,
	} {
		if _, err := f.raw.ExecContext(t.Context(), `SELECT pg_notify('keyward', $1)`, payload); err != nil {
			t.Fatal(err)
		}
		if a := next(t, heard); a.Changes != nil {
			t.Errorf("%s: taken for genuine", name)
		}
		<-payloads
	}
	if len(f.seen()) > 0 {
		t.Errorf("reported as tampered rows: %v", f.seen())
	}
}

func swapped(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// rawListen returns the payloads that anybody hears who may connect to the database.
func rawListen(t *testing.T, target string) <-chan string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `LISTEN keyward`); err != nil {
		t.Fatal(err)
	}
	payloads := make(chan string, 100)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close(context.Background())
		for {
			n, err := conn.WaitForNotification(ctx)
			if err != nil {
				return
			}
			if n.Payload != "0" {
				payloads <- n.Payload
			}
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return payloads
}
