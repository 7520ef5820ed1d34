package keys_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// clock is the database's time in these tests, moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// barrier lets every write pass, or fails as it is told.
type barrier struct {
	mu    sync.Mutex
	fail  error
	last  int64
	calls int
}

func (b *barrier) Await(_ context.Context, c keys.Commit) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = max(b.last, c.Revision)
	b.calls++
	return b.fail
}

func (b *barrier) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// fixture is a service over a real database.
type fixture struct {
	*keys.Service
	cfg     keys.Config
	store   *sqlstore.Store
	clock   *clock
	barrier *barrier
	path    string // of the database, on SQLite
}

// open starts a service on an engine, with change applied to its configuration.
func open(t *testing.T, engine string, change func(*keys.Config)) *fixture {
	t.Helper()
	line, err := seal.NewLine("")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.Parse([]byte(line + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, barrier: &barrier{}}
	f.path = filepath.Join(t.TempDir(), "keyward.db")
	url := "sqlite:" + f.path
	if engine == sqlstore.Postgres {
		url = pgtest.URL(t)
	}
	f.store, err = sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Ring: ring, Now: f.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.store.Close(); err != nil {
			t.Error(err)
		}
	})
	format, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	f.cfg = keys.Config{Store: f.store, Ring: ring, Format: format, Barrier: f.barrier, Render: render}
	if change != nil {
		change(&f.cfg)
	}
	f.Service = f.another(t)
	return f
}

// another returns one more service over the same database, as another node would be.
func (f *fixture) another(t *testing.T) *keys.Service {
	t.Helper()
	s, err := keys.NewService(f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func render(i keys.Issued) ([]byte, error) {
	return json.Marshal(map[string]string{"id": i.Key.ID, "key": i.Secret.Reveal(), "name": i.Key.Name})
}

// eachEngine runs a test on SQLite and on PostgreSQL.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{sqlstore.SQLite, sqlstore.Postgres} {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// put registers an organization; the arguments are members of the request.
func (f *fixture) put(t *testing.T, r keys.OrganizationRequest) keys.Organization {
	t.Helper()
	o, err := f.PutOrganization(t.Context(), keys.Operator{RequestID: "put"}, r)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// live registers an organization that may have live keys.
func (f *fixture) live(t *testing.T, id string) {
	t.Helper()
	f.put(t, keys.OrganizationRequest{ID: id, PaymentsEnabled: ptr(true)})
}

func ptr[T any](v T) *T { return &v }

func user(name, organization string) keys.Call {
	return keys.Call{Principal: keys.Principal{User: name, OrganizationID: organization}, RequestID: "req-" + name, RemoteAddress: "192.0.2.1"}
}

// code gives an error's code, "" for none, "unavailable" for what was not decided.
func code(err error) api.Code {
	var refusal *keys.Error
	var undecided *keys.Unavailable
	switch {
	case err == nil:
		return ""
	case errors.As(err, &refusal):
		return refusal.Code
	case errors.As(err, &undecided):
		return api.Unavailable
	default:
		return api.Code("unexpected: " + err.Error())
	}
}

// refusal returns err as a refusal.
func refusal(t *testing.T, err error) *keys.Error {
	t.Helper()
	var r *keys.Error
	if !errors.As(err, &r) {
		t.Fatalf("%v is not a refusal", err)
	}
	return r
}

// create issues a key that must be issued.
func (f *fixture) create(t *testing.T, c keys.Call) keys.Issued {
	t.Helper()
	issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "Production key"})
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

// keysOf lists everything an organization has, newest first.
func (f *fixture) keysOf(t *testing.T, c keys.Call) []keys.UsedKey {
	t.Helper()
	page, err := f.List(t.Context(), c, keys.ListRequest{Environment: ptr("all")})
	if err != nil {
		t.Fatal(err)
	}
	return page.Keys
}
