package keys_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// C2: what is refused first when several things are wrong at once.
func TestC2OrderOfChecks(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.put(t, keys.OrganizationRequest{ID: "org_parent"})
		f.put(t, keys.OrganizationRequest{ID: "org_child", ParentID: ptr("org_parent")})
		f.put(t, keys.OrganizationRequest{ID: "org_off", Active: ptr(false)})
		good := keys.CreateRequest{Name: "n"}

		if err := f.Admit(t.Context(), user("u", "org_off"), keys.ActCreate, ""); code(err) != api.OrganizationInactive {
			t.Errorf("switched-off organization at the door: %v", err) // 403 before 400
		}
		if err := f.Admit(t.Context(), user("u", "org_child"), keys.ActCreate, ""); code(err) != api.ConnectedAccount {
			t.Errorf("connected account at the door: %v", err)
		}
		first, err := f.Create(t.Context(), user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "once"})
		if err != nil {
			t.Fatal(err)
		}
		// 400 body → replay → 400 active key → 429
		if _, err := f.Create(t.Context(), user("u", "org_a"), keys.CreateRequest{Name: " ", IdempotencyKey: "once"}); code(err) != api.InvalidRequest {
			t.Errorf("bad body with a known idempotency key: %v", err)
		}
		if again, err := f.Create(t.Context(), user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "once"}); err != nil || !again.Replayed {
			t.Errorf("a replay meets no active key and no rate: %v", err)
		}
		if _, err := f.Create(t.Context(), user("u", "org_a"), good); code(err) != api.ActiveKeyExists {
			t.Errorf("create, create: %v, want 400 before 429", err)
		}
		if _, err := f.Revoke(t.Context(), user("u", "org_a"), first.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Create(t.Context(), user("u", "org_a"), good); code(err) != api.RateLimited {
			t.Errorf("create, revoke, create within a minute: %v, want 429", err)
		}
	})
}

// C3, C4, R3: who may not manage keys, on every verb alike.
func TestC3Gate(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, func(c *keys.Config) { c.RequireRegistered, c.RequiredRoles = true, []string{"admin", "owner"} })
		f.put(t, keys.OrganizationRequest{ID: "org_parent"})
		f.put(t, keys.OrganizationRequest{ID: "org_child", ParentID: ptr("org_parent")})
		f.put(t, keys.OrganizationRequest{ID: "org_off", Active: ptr(false)})
		for _, tt := range []struct {
			name string
			call keys.Call
			want api.Code
		}{
			{"allowed", user("u", "org_parent"), ""},
			{"without a role", user("u", "org_parent"), api.Forbidden},
			{"header", user("u", "org_parent"), api.ConnectedAccount},
			{"child", user("u", "org_child"), api.ConnectedAccount},
			{"off", user("u", "org_off"), api.OrganizationInactive},
			{"unknown", user("u", "org_nobody"), api.OrganizationUnknown}, // C4
		} {
			tt.call.Principal.Roles = []string{"reader", "owner"}
			if tt.want == api.Forbidden {
				tt.call.Principal.Roles = []string{"reader"}
			}
			tt.call.ConnectedAccount = tt.name == "header"
			ctx := t.Context()
			errs := map[string]error{"admit": f.Admit(ctx, tt.call, keys.ActCreate, "")}
			_, errs["create"] = f.Create(ctx, tt.call, keys.CreateRequest{Name: "n"})
			_, errs["list"] = f.List(ctx, tt.call, keys.ListRequest{})
			if tt.want != "" {
				_, errs["revoke"] = f.Revoke(ctx, tt.call, "key_x", "")
				_, errs["roll"] = f.Roll(ctx, tt.call, keys.RollRequest{KeyID: "key_x"})
			}
			for verb, err := range errs {
				if code(err) != tt.want {
					t.Errorf("%s, %s: %v, want %q", tt.name, verb, err, tt.want)
				}
			}
		}
	})
}

// C4, C9: the environment a key gets.
func TestC9Environment(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	for i, tt := range []struct {
		organization *keys.OrganizationRequest // nil = never registered
		asked        *string
		want         keys.Environment
	}{
		{nil, nil, keys.Test},
		{nil, ptr("live"), keys.Test}, // C4: never an upgrade
		{&keys.OrganizationRequest{}, ptr("live"), keys.Test},
		{&keys.OrganizationRequest{CurrentEnvironment: ptr("live")}, nil, keys.Test},
		{&keys.OrganizationRequest{PaymentsEnabled: ptr(true)}, nil, keys.Live},
		{&keys.OrganizationRequest{PaymentsEnabled: ptr(true)}, ptr("test"), keys.Test},
		{&keys.OrganizationRequest{PaymentsEnabled: ptr(true), CurrentEnvironment: ptr("test")}, nil, keys.Test},
		{&keys.OrganizationRequest{PaymentsEnabled: ptr(true), CurrentEnvironment: ptr("test")}, ptr("live"), keys.Live},
	} {
		c := user(fmt.Sprint("u", i), fmt.Sprint("org_", i))
		if tt.organization != nil {
			tt.organization.ID = c.Principal.OrganizationID
			f.put(t, *tt.organization)
		}
		issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", Environment: tt.asked})
		if err != nil {
			t.Fatal(err)
		}
		secret := issued.Secret.Reveal()
		if issued.Key.Environment != tt.want || !strings.HasPrefix(secret, "sk_"+string(tt.want)+"_") {
			t.Errorf("case %d: %s, want %s", i, issued.Key.Environment, tt.want)
		}
	}
}

// C7, C8, C9, C15: each field's rule, with the field named.
func TestC7FieldRules(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	long := strings.Repeat("é", 255)
	for i, tt := range []struct {
		name  string
		r     keys.CreateRequest
		param string
	}{
		{"shortest name", keys.CreateRequest{Name: "x"}, ""},
		{"longest name", keys.CreateRequest{Name: long}, ""},
		{"trimmed to the longest", keys.CreateRequest{Name: "  " + long + "\n"}, ""},
		{"too long", keys.CreateRequest{Name: long + "e"}, "key_name"},
		{"empty", keys.CreateRequest{}, "key_name"},
		{"white space", keys.CreateRequest{Name: " \t\u2003 "}, "key_name"},
		{"NUL", keys.CreateRequest{Name: "a\x00b"}, "key_name"},
		{"newline inside", keys.CreateRequest{Name: "a\nb"}, "key_name"},
		{"delete", keys.CreateRequest{Name: "a\x7fb"}, "key_name"},
		{"C1 control", keys.CreateRequest{Name: "a\u0085b"}, "key_name"},
		{"line separator", keys.CreateRequest{Name: "a\u2028b"}, "key_name"},
		{"one day", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1)}, ""},
		{"most days", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](36500)}, ""},
		{"no days", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](0)}, "expires_in_days"},
		{"negative days", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](-1)}, "expires_in_days"},
		{"too many days", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](36501)}, "expires_in_days"},
		{"huge days", keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1 << 62)}, "expires_in_days"},
		{"no such environment", keys.CreateRequest{Name: "n", Environment: ptr("prod")}, "env"},
		{"upper case environment", keys.CreateRequest{Name: "n", Environment: ptr("LIVE")}, "env"},
		{"empty environment", keys.CreateRequest{Name: "n", Environment: ptr("")}, "env"},
		{"longest idempotency key", keys.CreateRequest{Name: "n", IdempotencyKey: strings.Repeat("k", 255)}, ""},
		{"idempotency key too long", keys.CreateRequest{Name: "n", IdempotencyKey: strings.Repeat("k", 256)}, "idempotency_key"},
		{"idempotency key with a control", keys.CreateRequest{Name: "n", IdempotencyKey: "a\x01"}, "idempotency_key"},
	} {
		_, err := f.Create(t.Context(), user(fmt.Sprint("u", i), fmt.Sprint("org_", i)), tt.r)
		if tt.param == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if r := refusal(t, err); r.Code != api.InvalidRequest || r.Param != tt.param {
			t.Errorf("%s: %v, want %s", tt.name, r, tt.param)
		}
	}
}

// C8: expiry is created_at + n × 24 h; a deployment's maximum makes a missing value a refusal.
func TestC8Expiry(t *testing.T) {
	f := open(t, sqlstore.SQLite, func(c *keys.Config) { c.MaxExpiresInDays = 90 })
	issued, err := f.Create(t.Context(), user("u", "org_a"), keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](90)})
	if err != nil {
		t.Fatal(err)
	}
	if got := issued.Key.ExpiresAt.Sub(issued.Key.CreatedAt); got != 90*24*time.Hour {
		t.Errorf("lives %v", got)
	}
	for _, days := range []*int64{nil, ptr[int64](91)} {
		_, err := f.Create(t.Context(), user("v", "org_b"), keys.CreateRequest{Name: "n", ExpiresInDays: days})
		if r := refusal(t, err); r.Param != "expires_in_days" {
			t.Errorf("over the maximum: %v", r)
		}
	}
}

// C12, C19: one active key over both environments; an expired one does not block and is marked in
// the same transaction.
func TestC12OneActiveKey(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.live(t, "org_a")
		c := user("u", "org_a")
		first, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1), Environment: ptr("test")})
		if err != nil {
			t.Fatal(err)
		}
		f.clock.advance(24*time.Hour - time.Microsecond)
		_, err = f.Create(t.Context(), c, keys.CreateRequest{Name: "n", Environment: ptr("live")})
		if r := refusal(t, err); r.Code != api.ActiveKeyExists || r.KeyID != first.Key.ID || r.Environment != keys.Test {
			t.Errorf("%+v", r)
		}
		f.clock.advance(time.Microsecond) // now == expires_at
		second := f.create(t, c)
		got := f.keysOf(t, c)
		if len(got) != 2 || got[0].ID != second.Key.ID || got[1].State != keys.StateExpired {
			t.Errorf("after the create: %+v", got)
		}
	})
}

// C13: 100 concurrent creates of one organization over two nodes: one is created.
func TestC13ConcurrentCreates(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		nodes := []*keys.Service{f.Service, f.another(t)}
		got := concurrently(100, func(i int) api.Code {
			_, err := nodes[i%2].Create(context.Background(), user(fmt.Sprint("u", i), "org_a"), keys.CreateRequest{Name: "n"})
			return code(err)
		})
		if diff := cmp.Diff(map[api.Code]int{"": 1, api.ActiveKeyExists: 99}, got); diff != "" {
			t.Error(diff)
		}
	})
}

// concurrently runs fn n times at once and counts the results.
func concurrently(n int, fn func(i int) api.Code) map[api.Code]int {
	var all sync.WaitGroup
	var mu sync.Mutex
	counts := map[api.Code]int{}
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			c := fn(i)
			mu.Lock()
			defer mu.Unlock()
			counts[c]++
		})
	}
	close(begin)
	all.Wait()
	return counts
}

// C14: one created key a minute and user, whatever the organization or node.
func TestC14Rate(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		nodes := []*keys.Service{f.Service, f.another(t)}
		got := concurrently(30, func(i int) api.Code {
			_, err := nodes[i%2].Create(context.Background(), user("u", fmt.Sprint("org_", i)), keys.CreateRequest{Name: "n"})
			return code(err)
		})
		if diff := cmp.Diff(map[api.Code]int{"": 1, api.RateLimited: 29}, got); diff != "" {
			t.Error(diff)
		}
		f.clock.advance(59*time.Second + 500*time.Millisecond)
		_, err := f.Create(t.Context(), user("u", "org_late"), keys.CreateRequest{Name: "n"})
		if r := refusal(t, err); r.Code != api.RateLimited || keys.RetrySeconds(r.RetryAfter) != 1 {
			t.Errorf("half a second early: %v, Retry-After %d", r, keys.RetrySeconds(r.RetryAfter))
		}
		f.clock.advance(500 * time.Millisecond)
		f.create(t, user("u", "org_late"))
		f.create(t, user("other", "org_other")) // refusals above took nothing from anybody else
	})
}

// C14: Retry-After is whole seconds, rounded up, never 0.
func TestC14RetrySeconds(t *testing.T) {
	for d, want := range map[time.Duration]int{0: 1, time.Nanosecond: 1, time.Second: 1, time.Second + 1: 2, time.Minute: 60} {
		if got := keys.RetrySeconds(d); got != want {
			t.Errorf("%v: %d, want %d", d, got, want)
		}
	}
}

// C15, C16: a replay gives the same bytes on any node for 24 hours, and its own scope.
func TestC16Replay(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
		first, err := f.Create(t.Context(), c, r)
		if err != nil {
			t.Fatal(err)
		}
		r.Name = " n " // the same request after trimming
		for _, node := range []*keys.Service{f.Service, f.another(t)} {
			again, err := node.Create(t.Context(), c, r)
			if err != nil || !again.Replayed || !bytes.Equal(again.Body, first.Body) || again.Key.ID != first.Key.ID {
				t.Errorf("replay: %v %v", again.Replayed, err)
			}
		}
		changed := r
		changed.Name = "m"
		if _, err := f.Create(t.Context(), c, changed); code(err) != api.IdempotencyKeyReused {
			t.Errorf("another body: %v", err)
		}
		if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID, IdempotencyKey: r.IdempotencyKey}); err != nil {
			t.Errorf("the same key on another endpoint: %v", err) // C15: scope
		}
		if _, err := f.Create(t.Context(), user("v", "org_a"), r); code(err) != api.ActiveKeyExists {
			t.Errorf("the same key of another user: %v", err)
		}
		if _, err := f.Create(t.Context(), user("u", "org_b"), r); code(err) != api.RateLimited {
			t.Errorf("the same key in another organization: %v", err)
		}
	})
}

// C15, C16: the 24 hours end to the microsecond, and only successes are kept.
func TestC15Lifetime(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
		blocker := f.create(t, user("v", "org_a"))
		if _, err := f.Create(t.Context(), c, r); code(err) != api.ActiveKeyExists {
			t.Fatal(err)
		}
		if _, err := f.Revoke(t.Context(), c, blocker.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		first, err := f.Create(t.Context(), c, r)
		if err != nil || first.Replayed {
			t.Fatalf("a refusal was kept: %v", err)
		}
		f.clock.advance(24*time.Hour - time.Microsecond)
		if again, err := f.Create(t.Context(), c, r); err != nil || !again.Replayed {
			t.Errorf("a moment before 24 h: %v", err)
		}
		f.clock.advance(time.Microsecond)
		if _, err := f.Create(t.Context(), c, r); code(err) != api.ActiveKeyExists {
			t.Errorf("at 24 h: %v, want a new request", err)
		}
		if _, err := f.Revoke(t.Context(), c, first.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		if third, err := f.Create(t.Context(), c, r); err != nil || third.Replayed || third.Key.ID == first.Key.ID {
			t.Errorf("the idempotency key again after 24 h: %v", err)
		}
	})
}

// C16: a dead secret is not handed out, however it died.
func TestC16ResultGone(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for name, kill := range map[string]func(*testing.T, *fixture, keys.Call, keys.Key){
			"revoked": func(t *testing.T, f *fixture, c keys.Call, k keys.Key) {
				if _, err := f.Revoke(t.Context(), c, k.ID, ""); err != nil {
					t.Fatal(err)
				}
			},
			"rolled": func(t *testing.T, f *fixture, c keys.Call, k keys.Key) {
				if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: k.ID}); err != nil {
					t.Fatal(err)
				}
			},
			"rolled with an overlap that is over": func(t *testing.T, f *fixture, c keys.Call, k keys.Key) {
				if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: k.ID, OverlapSeconds: ptr[int64](60)}); err != nil {
					t.Fatal(err)
				}
				f.clock.advance(time.Minute)
			},
		} {
			f := open(t, engine, nil)
			c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
			first, err := f.Create(t.Context(), c, r)
			if err != nil {
				t.Fatal(err)
			}
			kill(t, f, c, first.Key)
			again, err := f.Create(t.Context(), c, r)
			if got := refusal(t, err); got.Code != api.IdempotencyResultGone || got.KeyID != first.Key.ID || again.Body != nil {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}

// C16: 24 concurrent creates with one idempotency key over two nodes: one key, one set of bytes, and
// every other answer is the replay or "in progress".
func TestC16ConcurrentReplays(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		nodes := []*keys.Service{f.Service, f.another(t)}
		var mu sync.Mutex
		bodies := map[string]int{}
		created := 0
		got := concurrently(24, func(i int) api.Code {
			issued, err := nodes[i%2].Create(context.Background(), user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				bodies[string(issued.Body)]++
				if !issued.Replayed {
					created++
				}
			}
			return code(err)
		})
		if created != 1 || len(bodies) != 1 || got[""]+got[api.IdempotencyInProgress] != 24 {
			t.Errorf("%d created, %d bodies, %v", created, len(bodies), got)
		}
		if n := len(f.keysOf(t, user("u", "org_a"))); n != 1 {
			t.Errorf("%d keys", n)
		}
	})
}

// slowRender holds a create open until it is released.
func slowRender(entered chan<- struct{}, release <-chan struct{}) func(keys.Issued) ([]byte, error) {
	return func(i keys.Issued) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return render(i)
	}
}

// signalStore tells when the time of an audit entry is asked for, right before a rejection is
// recorded.
type signalStore struct {
	keys.Store
	recording chan<- struct{}
}

func (s signalStore) Now(ctx context.Context) (time.Time, error) {
	s.recording <- struct{}{}
	return s.Store.Now(ctx)
}

// C16: while the first request runs, a second one is told so.
func TestC16InProgress(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	f := open(t, sqlstore.SQLite, nil)
	reached := make(chan struct{})
	slow := f.cfg
	slow.Render = slowRender(entered, release)
	slow.Store = signalStore{f.store, reached}
	node, err := keys.NewService(slow)
	if err != nil {
		t.Fatal(err)
	}
	r := keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
	first := make(chan error)
	go func() {
		_, err := node.Create(context.Background(), user("u", "org_a"), r)
		first <- err
	}()
	<-entered
	second := make(chan error)
	go func() {
		_, err := node.Create(context.Background(), user("u", "org_a"), r)
		second <- err
	}()
	<-reached // the second was refused; its entry waits for the one writer, which the first holds
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if got := <-second; code(got) != api.IdempotencyInProgress || refusal(t, got).RetryAfter != time.Second {
		t.Errorf("%v", got)
	}
}

// C17: the kept answer opens neither with the database and the configuration, nor with the
// idempotency key alone; it is erased at revoke.
func TestC17KeptAnswer(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "only the client knows this"}
		issued, err := f.Create(t.Context(), c, r)
		if err != nil {
			t.Fatal(err)
		}
		handles := func() []keys.Handle {
			var out []keys.Handle
			for _, h := range f.cfg.Ring.Handles("org_a", "u", string(keys.ActCreate), r.IdempotencyKey) {
				out = append(out, h)
			}
			return out
		}()
		kept, err := f.store.Replay(t.Context(), handles)
		if err != nil {
			t.Fatal(err)
		}
		if all, _ := json.Marshal(kept); bytes.Contains(all, []byte(issued.Secret.Reveal())) || bytes.Contains(all, []byte(r.IdempotencyKey)) || len(kept.Sealed) == 0 {
			t.Error("the row holds a plaintext, or nothing")
		}
		if _, err := f.Revoke(t.Context(), c, issued.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		if kept, err = f.store.Replay(t.Context(), handles); err != nil || kept.Sealed != nil {
			t.Errorf("after revoke: %d sealed bytes, %v", len(kept.Sealed), err)
		}
	})
}

// C18, C19: order, environments, pages.
func TestC18List(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.live(t, "org_a")
		c := user("u", "org_a")
		var ids []string
		for i := range 7 {
			env := "live"
			if i%3 == 0 {
				env = "test"
			}
			issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: fmt.Sprint(i), Environment: &env})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, issued.Key.ID)
			if _, err := f.Revoke(t.Context(), c, issued.Key.ID, ""); err != nil {
				t.Fatal(err)
			}
			f.clock.advance(time.Minute)
		}
		slices.Reverse(ids)
		list := func(r keys.ListRequest) (got []string, page keys.Page) {
			page, err := f.List(t.Context(), c, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range page.Keys {
				got = append(got, k.ID)
			}
			return got, page
		}
		all, _ := list(keys.ListRequest{Environment: ptr("all")})
		if diff := cmp.Diff(ids, all); diff != "" {
			t.Errorf("all:\n%s", diff)
		}
		current, _ := list(keys.ListRequest{})
		if len(current) != 4 {
			t.Errorf("%d keys in the current environment, want the 4 live ones", len(current))
		}
		if test, _ := list(keys.ListRequest{Environment: ptr("test")}); len(test) != 3 {
			t.Errorf("%d test keys, want 3", len(test))
		}
		var paged []string
		r := keys.ListRequest{Environment: ptr("all"), Limit: ptr[int64](3)}
		for pages := 1; ; pages++ {
			part, page := list(r)
			paged = append(paged, part...)
			if !page.Paged || page.HasMore != (pages < 3) {
				t.Fatalf("page %d: %+v", pages, page)
			}
			if !page.HasMore {
				break
			}
			r.Cursor = page.NextCursor
		}
		if diff := cmp.Diff(ids, paged); diff != "" {
			t.Errorf("paged:\n%s", diff)
		}
		for _, bad := range []struct {
			r     keys.ListRequest
			param string
		}{
			{keys.ListRequest{Environment: ptr("both")}, "env"},
			{keys.ListRequest{Environment: ptr("")}, "env"},
			{keys.ListRequest{Limit: ptr[int64](0)}, "limit"},
			{keys.ListRequest{Limit: ptr[int64](101)}, "limit"},
			{keys.ListRequest{Limit: ptr[int64](5), Cursor: "!"}, "cursor"},
			{keys.ListRequest{Limit: ptr[int64](5), Cursor: "MS5rZXk"}, "cursor"},
			{keys.ListRequest{Cursor: r.Cursor}, "cursor"},
		} {
			if _, err := f.List(t.Context(), c, bad.r); refusal(t, err).Param != bad.param {
				t.Errorf("%+v: %v, want %s", bad.r, err, bad.param)
			}
		}
		if other, err := f.List(t.Context(), user("u", "org_b"), keys.ListRequest{Environment: ptr("all")}); err != nil || len(other.Keys) != 0 {
			t.Errorf("another organization sees %d keys, %v", len(other.Keys), err)
		}
	})
}

// C19: how each state shows, to the moment.
func TestC19Status(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		k      keys.Lifecycle
		status keys.State
		reason keys.Reason
	}{
		{keys.Lifecycle{State: keys.StateActive}, keys.StateActive, keys.Valid},
		{keys.Lifecycle{State: keys.StateActive, ExpiresAt: now.Add(time.Microsecond)}, keys.StateActive, keys.Valid},
		{keys.Lifecycle{State: keys.StateActive, ExpiresAt: now}, keys.StateExpired, keys.Expired},
		{keys.Lifecycle{State: keys.StateOverlapping, ExpiresAt: now.Add(1)}, keys.StateOverlapping, keys.Valid},
		{keys.Lifecycle{State: keys.StateOverlapping, ExpiresAt: now}, keys.StateExpired, keys.Expired},
		{keys.Lifecycle{State: keys.StateExpired}, keys.StateExpired, keys.Expired},
		{keys.Lifecycle{State: keys.StateRevoked, ExpiresAt: now}, keys.StateRevoked, keys.Revoked},
		{keys.Lifecycle{State: "of the future"}, keys.StateRevoked, keys.Unknown},
	} {
		if got := keys.Status(tt.k, now); got != tt.status {
			t.Errorf("%+v shows %s, want %s", tt.k, got, tt.status)
		}
		if got := keys.Judge(tt.k, true, now); got != tt.reason {
			t.Errorf("%+v is %s, want %s", tt.k, got, tt.reason)
		}
		if got := keys.Judge(tt.k, false, now); got == keys.Valid {
			t.Errorf("%+v is valid in a switched-off organization", tt.k)
		}
	}
}

// C21: revoke repeats safely, works on either environment and on expired keys, and always writes.
func TestC21Revoke(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.live(t, "org_a")
		c := user("u", "org_a")
		issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1), Environment: ptr("test")})
		if err != nil {
			t.Fatal(err)
		}
		f.clock.advance(48 * time.Hour)
		first, err := f.Revoke(t.Context(), c, issued.Key.ID, "left the company")
		if err != nil {
			t.Fatal(err)
		}
		before := f.barrier.last
		f.clock.advance(time.Hour)
		second, err := f.Revoke(t.Context(), c, issued.Key.ID, "")
		if err != nil || !second.RevokedAt.Equal(first.RevokedAt) || second.RevokeReason != "left the company" {
			t.Errorf("again: %+v, %v", second, err)
		}
		if f.barrier.last <= before {
			t.Error("a repeated revoke did not write: it could not complete a barrier")
		}
		if _, err := f.Revoke(t.Context(), c, issued.Key.ID, strings.Repeat("x", 256)); refusal(t, err).Param != "reason" {
			t.Error(err)
		}
	})
}

// C22: every id that is not the caller's is one refusal.
func TestC22NotFound(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		foreign := f.create(t, user("u", "org_a"))
		var want *keys.Error
		for _, id := range []string{foreign.Key.ID, foreign.Key.ID[:len(foreign.Key.ID)-1] + "0", "key_", "", "KEY_" + foreign.Key.ID[4:], "../x", strings.Repeat("k", 10_000), "key_\x00"} {
			_, revoke := f.Revoke(t.Context(), user("v", "org_b"), id, "")
			_, roll := f.Roll(t.Context(), user("v", "org_b"), keys.RollRequest{KeyID: id})
			for _, err := range []error{revoke, roll} {
				got := refusal(t, err)
				if want == nil {
					want = got
				}
				if diff := cmp.Diff(want, got); diff != "" || got.Code != api.KeyNotFound {
					t.Errorf("%.40q:\n%s", id, diff)
				}
			}
		}
	})
}

// C23: every act that is done says the revision it waited for; a replay that of the key's row, and a repeated revoke its own.
func TestC23RevisionOfEachAct(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
		var last int64
		waitedFor := func(act string, revision int64, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", act, err)
			}
			if revision != f.barrier.last || revision <= last {
				t.Errorf("%s says revision %d and waited for %d, after %d", act, revision, f.barrier.last, last)
			}
			last = f.barrier.last
		}
		o, err := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: "org_a"})
		waitedFor("put", o.Revision, err)
		issued, err := f.Create(t.Context(), c, r)
		waitedFor("create", issued.Key.Revision, err)
		o, err = f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: "org_a"})
		waitedFor("put again", o.Revision, err)

		calls := f.barrier.calls
		replayed, err := f.Create(t.Context(), c, r)
		if err != nil || !replayed.Replayed || replayed.Key.Revision != issued.Key.Revision || f.barrier.calls != calls+1 {
			t.Errorf("the replay says revision %d, want %d; %v", replayed.Key.Revision, issued.Key.Revision, err)
		}
		rolled, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID})
		waitedFor("roll", rolled.Key.Revision, err)
		k, err := f.Revoke(t.Context(), c, rolled.Key.ID, "")
		waitedFor("revoke", k.Revision, err)
		k, err = f.Revoke(t.Context(), c, rolled.Key.ID, "")
		waitedFor("revoke again", k.Revision, err)
	})
}

// C23, C5, P6: what is not known to be everywhere is not answered; asking again completes it.
func TestC23BarrierFails(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
		f.barrier.set(errors.New("a node does not answer"))
		if _, err := f.Create(t.Context(), c, r); code(err) != api.Unavailable {
			t.Fatalf("create: %v", err)
		}
		if _, err := f.Create(t.Context(), c, r); code(err) != api.Unavailable {
			t.Errorf("replay: %v; its secret is not accepted everywhere yet", err)
		}
		f.barrier.set(nil)
		again, err := f.Create(t.Context(), c, r)
		if err != nil || !again.Replayed {
			t.Fatalf("asked again: %v", err)
		}
		f.barrier.set(errors.New("a node does not answer"))
		if _, err := f.Revoke(t.Context(), c, again.Key.ID, ""); code(err) != api.Unavailable {
			t.Errorf("revoke: %v", err)
		}
		if _, err := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: "org_a"}); code(err) != api.Unavailable {
			t.Errorf("organization: %v", err)
		}
		f.barrier.set(nil)
		if k, err := f.Revoke(t.Context(), c, again.Key.ID, ""); err != nil || k.State != keys.StateRevoked {
			t.Errorf("asked again: %v", err)
		}
	})
}

// brokenStore fails to read organizations.
type brokenStore struct{ keys.Store }

func (brokenStore) Organization(context.Context, string) (keys.Organization, error) {
	return keys.Organization{}, errors.New("no route to the database")
}

func (b brokenStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	return b.Store.Write(ctx, first, func(ctx context.Context, tx keys.Tx) error { return fn(ctx, brokenTx{tx}) })
}

type brokenTx struct{ keys.Tx }

func (brokenTx) Organization(context.Context, string) (keys.Organization, error) {
	return keys.Organization{}, errors.New("no route to the database")
}

// C2: what memory knows lets a caller pass the door without the database; what it does not know, and what is asked of the caller alone, is
// decided as ever.
func TestC2ManagesFromMemory(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	cfg := f.cfg
	cfg.Store, cfg.RequiredRoles, cfg.RequireRegistered = brokenStore{f.store}, []string{"admin"}, true
	cfg.Manages = func(id string, registered bool) bool { return id == "org_known" && registered }
	s, err := keys.NewService(cfg)
	if err != nil {
		t.Fatal(err)
	}
	admin := func(organization string) keys.Call {
		c := user("u", organization)
		c.Principal.Roles = []string{"admin"}
		return c
	}
	forAccount := admin("org_known")
	forAccount.ConnectedAccount = true
	for name, test := range map[string]struct {
		call keys.Call
		want api.Code
	}{
		"known":                 {admin("org_known"), ""},
		"not known":             {admin("org_other"), api.Unavailable},
		"known, without a role": {user("u", "org_known"), api.Forbidden},
		"for a connected one":   {forAccount, api.ConnectedAccount},
	} {
		if err := s.Admit(t.Context(), test.call, keys.ActRevoke, ""); code(err) != test.want {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := s.Create(t.Context(), admin("org_known"), keys.CreateRequest{Name: "n"}); code(err) != api.Unavailable {
		t.Errorf("create: %v, want what the transaction's own gate says", err)
	}
}

// C5: an organization whose status cannot be read: not decided, nothing created.
func TestC5StatusUnreadable(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	cfg := f.cfg
	cfg.Store = brokenStore{f.store}
	broken, err := keys.NewService(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := user("u", "org_a")
	if err := broken.Admit(t.Context(), c, keys.ActCreate, ""); code(err) != api.Unavailable {
		t.Errorf("admit: %v", err)
	}
	if _, err := broken.Create(t.Context(), c, keys.CreateRequest{Name: "n", Environment: ptr("live")}); code(err) != api.Unavailable {
		t.Errorf("create: %v", err)
	}
	if n := len(f.keysOf(t, c)); n != 0 {
		t.Errorf("%d keys created", n)
	}
}

// C24: what a roll does to both keys.
func TestC24Roll(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.live(t, "org_a")
		c := user("u", "org_a")
		first, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "first", ExpiresInDays: ptr[int64](30), Environment: ptr("test")})
		if err != nil {
			t.Fatal(err)
		}
		f.clock.advance(time.Second) // the list's order is by time
		second, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID, OverlapSeconds: ptr[int64](3600)})
		if err != nil {
			t.Fatal(err)
		}
		k := second.Key
		if k.Replaces != first.Key.ID || k.Name != "first" || k.ExpiresInDays != 30 || k.Environment != keys.Test || !k.ExpiresAt.Equal(k.CreatedAt.Add(30*24*time.Hour)) {
			t.Errorf("successor %+v", k)
		}
		old := f.keysOf(t, c)[1]
		if old.State != keys.StateOverlapping || !old.ExpiresAt.Equal(f.clock.Now().Add(time.Hour)) {
			t.Errorf("the old key: %+v", old)
		}
		_, err = f.Roll(t.Context(), c, keys.RollRequest{KeyID: k.ID})
		if code(err) != api.RateLimited {
			t.Errorf("a second roll within the minute: %v", err)
		}
		if _, err = f.Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID}); code(err) != api.KeyNotActive {
			t.Errorf("a roll of an overlapping key: %v", err)
		}
		f.clock.advance(time.Minute)
		third, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: k.ID, OverlapSeconds: ptr[int64](86400), Name: ptr("third"), ExpiresInDays: ptr[int64](1)})
		if err != nil {
			t.Fatal(err)
		}
		all := f.keysOf(t, c)
		if all[2].State != keys.StateRevoked || all[1].State != keys.StateOverlapping || third.Key.Name != "third" || third.Key.ExpiresInDays != 1 {
			t.Errorf("after the second roll: %+v", all)
		}
		// Revoking the successor leaves the overlapping key its time; revoking that ends it too.
		if _, err := f.Revoke(t.Context(), c, third.Key.ID, ""); err != nil {
			t.Fatal(err)
		}
		if all = f.keysOf(t, c); all[1].State != keys.StateOverlapping {
			t.Errorf("revoking the successor ended the overlapping key")
		}
		if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: third.Key.ID}); code(err) != api.KeyNotActive {
			t.Errorf("a roll of a revoked key: %v", err)
		}
		if _, err := f.Revoke(t.Context(), c, k.ID, ""); err != nil {
			t.Fatal(err)
		}
		if all = f.keysOf(t, c); all[1].State != keys.StateRevoked {
			t.Error("the overlapping key outlived its revoke")
		}
	})
}

// C24: an overlap never outlives the key's own expiry, an expired key is not rolled, and the
// deployment's maximum is the bound.
func TestC24Overlap(t *testing.T) {
	f := open(t, sqlstore.SQLite, func(c *keys.Config) { c.MaxOverlap = 2 * time.Hour })
	c := user("u", "org_a")
	issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, seconds := range []int64{-1, 7201, 1 << 62} {
		_, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID, OverlapSeconds: &seconds})
		if r := refusal(t, err); r.Code != api.InvalidRequest || r.Param != "overlap_seconds" {
			t.Errorf("%d seconds: %v", seconds, r)
		}
	}
	f.clock.advance(23*time.Hour + 30*time.Minute)
	if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID, OverlapSeconds: ptr[int64](7200)}); err != nil {
		t.Fatal(err)
	}
	all := f.keysOf(t, c)
	if !all[1].ExpiresAt.Equal(issued.Key.ExpiresAt) {
		t.Errorf("the overlap ends %v, the key itself %v", all[1].ExpiresAt, issued.Key.ExpiresAt)
	}
	f.clock.advance(25 * time.Hour)
	if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: all[0].ID}); code(err) != api.KeyNotActive {
		t.Errorf("a roll of an expired key: %v", err)
	}
}

// C24: races of roll, revoke and create leave at most one active and one overlapping key.
func TestC24Races(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		first := f.create(t, user("u", "org_a"))
		concurrently(60, func(i int) api.Code {
			c := user(fmt.Sprint("u", i), "org_a")
			var err error
			switch i % 3 {
			case 0:
				_, err = f.Roll(context.Background(), c, keys.RollRequest{KeyID: first.Key.ID, OverlapSeconds: ptr[int64](60)})
			case 1:
				_, err = f.Create(context.Background(), c, keys.CreateRequest{Name: "n"})
			case 2:
				_, err = f.Revoke(context.Background(), c, first.Key.ID, "")
			}
			if c := code(err); c != "" && c != api.KeyNotActive && c != api.ActiveKeyExists {
				t.Error(err)
			}
			return code(err)
		})
		states := map[keys.State]int{}
		for _, k := range f.keysOf(t, user("u", "org_a")) {
			states[k.State]++
		}
		if states[keys.StateActive] > 1 || states[keys.StateOverlapping] > 1 {
			t.Errorf("%v", states)
		}
	})
}

// O1: the tree of organizations is two levels deep, whichever way it is built.
func TestO1Organizations(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.put(t, keys.OrganizationRequest{ID: "org_parent", Name: ptr("Parent")})
		f.put(t, keys.OrganizationRequest{ID: "org_child", ParentID: ptr("org_parent")})
		f.put(t, keys.OrganizationRequest{ID: "org_single"})
		for _, tt := range []struct {
			r     keys.OrganizationRequest
			param string
		}{
			{keys.OrganizationRequest{ID: ""}, "id"},
			{keys.OrganizationRequest{ID: "a b"}, "id"},
			{keys.OrganizationRequest{ID: "org_x", ParentID: ptr("org_x")}, "parent_organization_id"},
			{keys.OrganizationRequest{ID: "org_x", ParentID: ptr("org_nobody")}, "parent_organization_id"},
			{keys.OrganizationRequest{ID: "org_x", ParentID: ptr("org_child")}, "parent_organization_id"},
			{keys.OrganizationRequest{ID: "org_x", ParentID: ptr("")}, "parent_organization_id"},
			{keys.OrganizationRequest{ID: "org_parent", ParentID: ptr("org_single")}, "parent_organization_id"},
			{keys.OrganizationRequest{ID: "org_x", CurrentEnvironment: ptr("prod")}, "current_env"},
			{keys.OrganizationRequest{ID: "org_x", Name: ptr("a\x00")}, "name"},
		} {
			_, err := f.PutOrganization(t.Context(), keys.Operator{}, tt.r)
			if r := refusal(t, err); r.Code != api.InvalidRequest || r.Param != tt.param {
				t.Errorf("%+v: %v, want %s", tt.r, r, tt.param)
			}
		}
		created := f.put(t, keys.OrganizationRequest{ID: "org_parent", Name: ptr("Parent")}).CreatedAt
		f.clock.advance(time.Hour)
		again := f.put(t, keys.OrganizationRequest{ID: "org_parent"})
		if !again.CreatedAt.Equal(created) || again.Name != "" || !again.UpdatedAt.Equal(f.clock.Now()) {
			t.Errorf("replaced: %+v", again)
		}
		if _, err := f.Organization(t.Context(), "org_nobody"); code(err) != api.OrganizationNotFound {
			t.Error(err)
		}
		first, next, err := f.Organizations(t.Context(), "", 2)
		if err != nil || next != "org_parent" || len(first) != 2 || first[0].ID != "org_child" {
			t.Errorf("%+v %v %v", first, next, err)
		}
		rest, next, err := f.Organizations(t.Context(), next, 2)
		if err != nil || next != "" || len(rest) != 1 || rest[0].ID != "org_single" {
			t.Errorf("%+v %v %v", rest, next, err)
		}
	})
}

// P8: every act, also a refused one, is in the audit log with who, what, where and the outcome.
func TestAuditOfEveryAct(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c := user("u", "org_a")
		first, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.Create(t.Context(), c, keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"})
		_, _ = f.Create(t.Context(), c, keys.CreateRequest{Name: ""})
		_, _ = f.Create(t.Context(), c, keys.CreateRequest{Name: "n"})
		second, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.Revoke(t.Context(), c, second.Key.ID, "tidy")
		_, _ = f.Revoke(t.Context(), user("v", "org_b"), second.Key.ID, "")
		_, _ = f.PutOrganization(t.Context(), keys.Operator{RequestID: "op"}, keys.OrganizationRequest{ID: "org_c", ParentID: ptr("org_nobody")})
		f.put(t, keys.OrganizationRequest{ID: "org_c"})

		entries, err := f.store.Audit(t.Context(), 0, 100, sqlstore.AuditFilter{})
		if err != nil {
			t.Fatal(err)
		}
		type line struct{ Actor, Action, Target, Outcome, Request string }
		var got []line
		for i, e := range entries {
			got = append(got, line{e.Actor, string(e.Action), e.TargetID, e.Outcome, e.RequestID})
			if e.Sequence != int64(i+1) || e.At.IsZero() {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
		want := []line{
			{"u", "key.create", first.Key.ID, "done", "req-u"},
			{"u", "key.replay", first.Key.ID, "done", "req-u"},
			{"u", "key.create", "", "invalid_request", "req-u"},
			{"u", "key.create", "", "active_key_exists", "req-u"},
			{"u", "key.roll", first.Key.ID, "done", "req-u"},
			{"u", "key.create", second.Key.ID, "done", "req-u"},
			{"u", "key.revoke", second.Key.ID, "done", "req-u"},
			{"v", "key.revoke", second.Key.ID, "api_key_not_found", "req-v"},
			{"operator", "organization.put", "org_c", "invalid_request", "op"},
			{"operator", "organization.put", "org_c", "done", "put"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
		report, err := f.store.VerifyAudit(t.Context(), nil)
		if err != nil || len(report.Findings) != 0 || report.Entries != int64(len(want)) {
			t.Errorf("%+v %v", report, err)
		}
	})
}
