package keys_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// interceptedStore is a store whose reads pass through functions of the test, in and outside of transactions.
type interceptedStore struct {
	keys.Store
	key          func(*keys.Key)
	organization func(o *keys.Organization, inWrite bool)
	replay       func(r *keys.Replay, inWrite bool) error
	record       error
	blind        bool // writes see no key of an organization
}

func (s *interceptedStore) seeKey(k *keys.Key) {
	if s.key != nil {
		s.key(k)
	}
}

func (s *interceptedStore) Key(ctx context.Context, id string) (keys.Key, error) {
	k, err := s.Store.Key(ctx, id)
	s.seeKey(&k)
	return k, err
}

func (s *interceptedStore) KeyAsOf(ctx context.Context, id string) (keys.Key, keys.Commit, error) {
	k, c, err := s.Store.KeyAsOf(ctx, id)
	s.seeKey(&k)
	return k, c, err
}

func (s *interceptedStore) Organizations(ctx context.Context, after string, limit int) ([]keys.Organization, error) {
	all, err := s.Store.Organizations(ctx, after, limit)
	for i := range all {
		if s.organization != nil {
			s.organization(&all[i], false)
		}
	}
	return all, err
}

func (s *interceptedStore) Keys(ctx context.Context, q keys.KeyQuery) ([]keys.UsedKey, error) {
	all, err := s.Store.Keys(ctx, q)
	for i := range all {
		s.seeKey(&all[i].Key)
	}
	return all, err
}

func (s *interceptedStore) Organization(ctx context.Context, id string) (keys.Organization, error) {
	o, err := s.Store.Organization(ctx, id)
	if s.organization != nil {
		s.organization(&o, false)
	}
	return o, err
}

func (s *interceptedStore) Replay(ctx context.Context, handles []keys.Handle) (keys.Replay, error) {
	r, err := s.Store.Replay(ctx, handles)
	if s.replay != nil {
		err = cmp.Or(s.replay(&r, false), err)
	}
	return r, err
}

func (s *interceptedStore) Record(ctx context.Context, e keys.AuditEntry) error {
	if s.record != nil {
		return s.record
	}
	return s.Store.Record(ctx, e)
}

func (s *interceptedStore) Write(ctx context.Context, first keys.Reads, fn func(context.Context, keys.Tx) error) (keys.Commit, error) {
	return s.Store.Write(ctx, first, func(ctx context.Context, tx keys.Tx) error { return fn(ctx, interceptedTx{tx, s}) })
}

type interceptedTx struct {
	keys.Tx
	s *interceptedStore
}

func (t interceptedTx) Key(ctx context.Context, id string) (keys.Key, error) {
	k, err := t.Tx.Key(ctx, id)
	t.s.seeKey(&k)
	return k, err
}

func (t interceptedTx) KeysIn(ctx context.Context, organizationID string, states ...keys.State) ([]keys.Key, error) {
	if t.s.blind {
		return nil, nil
	}
	all, err := t.Tx.KeysIn(ctx, organizationID, states...)
	for i := range all {
		t.s.seeKey(&all[i])
	}
	return all, err
}

func (t interceptedTx) Organization(ctx context.Context, id string) (keys.Organization, error) {
	o, err := t.Tx.Organization(ctx, id)
	if t.s.organization != nil {
		t.s.organization(&o, true)
	}
	return o, err
}

func (t interceptedTx) Replay(ctx context.Context, handles []keys.Handle) (keys.Replay, error) {
	r, err := t.Tx.Replay(ctx, handles)
	if t.s.replay != nil {
		err = cmp.Or(t.s.replay(&r, true), err)
	}
	return r, err
}

// through returns a service over the same database that reads through s.
func (f *fixture) through(t *testing.T, s *interceptedStore) *keys.Service {
	t.Helper()
	s.Store = f.store
	cfg := f.cfg
	cfg.Store = s
	service, err := keys.NewService(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// C3, C5: what counts is the organization as the write itself sees it, not as it was a moment before.
func TestC3GateStandsInTheWrite(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	issued := f.create(t, c)
	f.put(t, keys.OrganizationRequest{ID: "org_a", Active: ptr(false)})
	late := f.through(t, &interceptedStore{organization: func(o *keys.Organization, inWrite bool) {
		if !inWrite {
			*o = keys.Unregistered(o.ID)
		}
	}})
	ctx := t.Context()
	_, create := late.Create(ctx, user("v", "org_a"), keys.CreateRequest{Name: "n"})
	_, roll := late.Roll(ctx, c, keys.RollRequest{KeyID: issued.Key.ID})
	_, revoke := late.Revoke(ctx, c, issued.Key.ID, "")
	for verb, err := range map[string]error{"create": create, "roll": roll, "revoke": revoke} {
		if code(err) != api.OrganizationInactive {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

// C3, C16: a replay stands behind the gate too: a switched-off organization gets no secret again.
func TestC3GateStandsBeforeAReplay(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
	if _, err := f.Create(t.Context(), c, r); err != nil {
		t.Fatal(err)
	}
	header := c
	header.ConnectedAccount = true
	if again, err := f.Create(t.Context(), header, r); code(err) != api.ConnectedAccount || again.Body != nil {
		t.Errorf("with a connected account: %v", err)
	}
	f.put(t, keys.OrganizationRequest{ID: "org_a", Active: ptr(false)})
	if again, err := f.Create(t.Context(), c, r); code(err) != api.OrganizationInactive || again.Body != nil {
		t.Errorf("switched off: %v", err)
	}
}

// C16, P6: when kept answers cannot be read, nothing is issued a second time.
func TestC16KeptAnswersUnreadable(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	for _, inWrite := range []bool{false, true} {
		c := user(fmt.Sprint("u", inWrite), fmt.Sprint("org_", inWrite))
		broken := f.through(t, &interceptedStore{replay: func(_ *keys.Replay, in bool) error {
			if in == inWrite {
				return errors.New("no route to the database")
			}
			return nil
		}})
		if _, err := broken.Create(t.Context(), c, keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}); code(err) != api.Unavailable {
			t.Errorf("in the write %v: %v", inWrite, err)
		}
		if n := len(f.keysOf(t, c)); n != 0 {
			t.Errorf("in the write %v: %d keys created", inWrite, n)
		}
	}
}

// C7, C15, C21: what printable means, for each text a caller sends.
func TestC7Printable(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	issued := f.create(t, user("owner", "org_a"))
	for name, text := range map[string]string{
		"paragraph separator": "a\u2029b", "not UTF-8": "a\xffb", "half a code point": "a\xe2\x82", "a surrogate": "a\xed\xa0\x80b",
		"escape": "a\x1bb", "delete": "a\x7fb", "C1": "a\u009bb",
	} {
		ctx, c := t.Context(), user("u "+name, "org_b")
		_, created := f.Create(ctx, c, keys.CreateRequest{Name: text})
		_, idempotent := f.Create(ctx, c, keys.CreateRequest{Name: "n", IdempotencyKey: text})
		_, rolled := f.Roll(ctx, user("owner", "org_a"), keys.RollRequest{KeyID: issued.Key.ID, Name: &text})
		_, revoked := f.Revoke(ctx, user("owner", "org_a"), issued.Key.ID, text)
		_, put := f.PutOrganization(ctx, keys.Operator{}, keys.OrganizationRequest{ID: "org_c", Name: &text})
		for param, err := range map[string][]error{"key_name": {created, rolled}, "idempotency_key": {idempotent}, "reason": {revoked}, "name": {put}} {
			for _, err := range err {
				if r := refusal(t, err); r.Code != api.InvalidRequest || r.Param != param {
					t.Errorf("%s as %s: %v", name, param, r)
				}
			}
		}
	}
}

// C7: a name that nobody sees is none; invisible characters beside visible ones stay as they are.
func TestC7Invisible(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	issued := f.create(t, user("owner", "org_a"))
	for _, name := range []string{
		"\u200b", "\ufeff", "\u3164", "\u2060", "\u00ad", "\u115f", "\uffa0", "\ufe0f", "\u034f", "\u180e", "\u200d", "\u202e", "\u2800", "\U000e0041",
		" \u200b \u2003\ufeff\u00a0\u2060 ",
	} {
		_, created := f.Create(t.Context(), user("u", "org_b"), keys.CreateRequest{Name: name})
		_, rolled := f.Roll(t.Context(), user("owner", "org_a"), keys.RollRequest{KeyID: issued.Key.ID, Name: &name})
		for _, err := range []error{created, rolled} {
			if r := refusal(t, err); r.Code != api.InvalidRequest || r.Param != "key_name" {
				t.Errorf("%+q: %v", name, r)
			}
		}
	}
	for i, name := range []string{"👩\u200d💻", "❤\ufe0f", "نام\u200cه", "a\u200b", "\u202eb", "\u3164x", "한글", ".", "\ufffd"} {
		got, err := f.Create(t.Context(), user(fmt.Sprint("visible ", i), fmt.Sprint("org_visible_", i)), keys.CreateRequest{Name: name})
		if err != nil || got.Key.Name != name {
			t.Errorf("%+q: %+q, %v", name, got.Key.Name, err)
		}
	}
}

// V7, C7, C21, C24, O1: a secret is refused in every text that is kept, and neither the refusal nor the audit log repeats it. A text
// that is only like one is a text.
func TestV7NoSecretIsKept(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	owner := user("owner", "org_a")
	issued := f.create(t, owner)
	drawn, err := f.cfg.Format.Generate(keys.Test)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{issued.Secret.Reveal(), drawn.Reveal(), drawn.Reveal()[:40]} {
		for _, text := range []string{secret, "was " + secret + ", sorry", "x" + secret, secret + "x"} {
			_, created := f.Create(t.Context(), user("u", "org_b"), keys.CreateRequest{Name: text})
			_, rolled := f.Roll(t.Context(), owner, keys.RollRequest{KeyID: issued.Key.ID, Name: &text})
			_, revoked := f.Revoke(t.Context(), owner, issued.Key.ID, text)
			_, put := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: "org_c", Name: &text})
			refused := map[string][]error{"key_name": {created, rolled}, "reason": {revoked}, "name": {put}}
			if keys.ValidOrganizationID(text) {
				_, put := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: text})
				refused["id"] = []error{put}
			}
			for param, list := range refused {
				for _, err := range list {
					r := refusal(t, err)
					if r.Code != api.InvalidRequest || r.Param != param || strings.Contains(r.Detail, secret[8:]) {
						t.Errorf("as %s: %s %s", param, r.Code, r.Param)
					}
				}
			}
		}
	}
	entries, err := f.store.Audit(t.Context(), 0, 1000, sqlstore.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, issued.Secret.Reveal()[:40]) || strings.Contains(text, drawn.Reveal()[:40]) {
			t.Errorf("the audit entry %d holds a secret", e.Sequence)
		}
	}
	for i, text := range []string{"sk_live_production", "sk_test_ rotation", "sk_", "prefix sk_live_", drawn.Reveal()[:39], strings.ToUpper(drawn.Reveal()), drawn.Reveal()[3:]} {
		if _, err := f.Create(t.Context(), user(fmt.Sprint("like ", i), fmt.Sprint("org_like_", i)), keys.CreateRequest{Name: text}); err != nil {
			t.Errorf("text %d: %v", i, err)
		}
	}
}

// C8: numbers that do not fit 32 bits are out of range, they do not wrap around.
func TestC8NoWrapAround(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	for _, days := range []int64{1<<32 + 1, -1<<32 + 1, 1<<63 - 1, -1 << 63} {
		if _, err := f.Create(t.Context(), user("u", "org_a"), keys.CreateRequest{Name: "n", ExpiresInDays: &days}); refusal(t, err).Param != "expires_in_days" {
			t.Errorf("%d days: %v", days, err)
		}
	}
}

// C8, C24: the deployment's maximum holds for a successor too, also for one that takes over the days of a key from before
// there was a maximum; and a body is looked at before the key it is about.
func TestC8MaximumOfASuccessor(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	forever := f.create(t, c)
	f.cfg.MaxExpiresInDays = 90
	service := f.another(t)
	for _, tt := range []struct {
		name string
		r    keys.RollRequest
		want string // the field at fault
	}{
		{"as long as the old one", keys.RollRequest{KeyID: forever.Key.ID}, "expires_in_days"},
		{"too long", keys.RollRequest{KeyID: forever.Key.ID, ExpiresInDays: ptr[int64](91)}, "expires_in_days"},
		{"no days", keys.RollRequest{KeyID: forever.Key.ID, ExpiresInDays: ptr[int64](0)}, "expires_in_days"},
		{"too long, of nobody's key", keys.RollRequest{KeyID: "key_x", ExpiresInDays: ptr[int64](91)}, "expires_in_days"},
		{"no name", keys.RollRequest{KeyID: forever.Key.ID, Name: ptr(" ")}, "key_name"},
		{"an idempotency key too long", keys.RollRequest{KeyID: forever.Key.ID, IdempotencyKey: strings.Repeat("k", 256)}, "idempotency_key"},
	} {
		if _, err := service.Roll(t.Context(), c, tt.r); refusal(t, err).Param != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	rolled, err := service.Roll(t.Context(), c, keys.RollRequest{KeyID: forever.Key.ID, ExpiresInDays: ptr[int64](90), Name: ptr("  trimmed\n")})
	if err != nil || rolled.Key.Name != "trimmed" || rolled.Key.ExpiresInDays != 90 {
		t.Errorf("%+v, %v", rolled.Key, err)
	}
}

// C10, C11: what a new key's record says, and that its id is a UUIDv7 of its moment.
func TestC10NewKey(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	for i := range 8 {
		issued := f.create(t, user(fmt.Sprint("u", i), fmt.Sprint("org_", i)))
		k := issued.Key
		want := keys.Key{
			ID: k.ID, OrganizationID: fmt.Sprint("org_", i), Environment: keys.Test, Digest: issued.Secret.Digest(), Hint: issued.Secret.Hint(), Name: "Production key",
			CreatedAt: f.clock.Now(), CreatedBy: fmt.Sprint("u", i), State: keys.StateActive, Revision: f.barrier.last, Genuine: true,
		}
		if diff := gocmp.Diff(want, k); diff != "" {
			t.Errorf("new key (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff(want, f.keysOf(t, user("u", want.OrganizationID))[0].Key); diff != "" {
			t.Errorf("its row (-want +got):\n%s", diff)
		}
		text, ok := strings.CutPrefix(k.ID, "key_")
		if !ok || len(text) != 26 {
			t.Fatal(k.ID)
		}
		var hi, lo uint64
		for _, c := range []byte(text) {
			v := strings.IndexByte(alphabet, c)
			if v < 0 {
				t.Fatal(k.ID)
			}
			hi, lo = hi<<5|lo>>59, lo<<5|uint64(v)
		}
		if ms, version, variant := int64(hi>>16), hi>>12&0xf, lo>>62; ms != f.clock.Now().UnixMilli() || version != 7 || variant != 2 {
			t.Errorf("%s: %d ms, version %d, variant %b", k.ID, ms, version, variant)
		}
		f.clock.advance(time.Minute + time.Millisecond)
	}
}

// C14: a clock that was set back makes nobody wait longer than the window.
func TestC14ClockSetBack(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	issued := f.create(t, c)
	if _, err := f.Revoke(t.Context(), c, issued.Key.ID, ""); err != nil {
		t.Fatal(err)
	}
	f.clock.advance(-time.Hour)
	_, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n"})
	if r := refusal(t, err); r.Code != api.RateLimited || r.RetryAfter != time.Minute {
		t.Errorf("%v, again in %v", r, r.RetryAfter)
	}
}

// C14, C24: create and roll have a limit each, and neither uses up the other's.
func TestC14TwoLimits(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	issued := f.create(t, c)
	rolled, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID})
	if err != nil {
		t.Fatalf("a roll right after a create: %v", err)
	}
	f.clock.advance(30 * time.Second)
	_, err = f.Roll(t.Context(), c, keys.RollRequest{KeyID: rolled.Key.ID})
	if r := refusal(t, err); r.Code != api.RateLimited || r.RetryAfter != 30*time.Second {
		t.Errorf("a second roll: %v, again in %v", r, r.RetryAfter)
	}
	f.clock.advance(30 * time.Second)
	if _, err = f.Roll(t.Context(), c, keys.RollRequest{KeyID: rolled.Key.ID}); err != nil {
		t.Errorf("a roll a minute later: %v", err)
	}
}

// C16: every member of a request tells it from another under the same idempotency key.
func TestC16AnotherBody(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.live(t, "org_a")
	c := user("u", "org_a")
	created := keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1), Environment: ptr("test"), IdempotencyKey: "retry-1"}
	first, err := f.Create(t.Context(), c, created)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*keys.CreateRequest){
		"name":        func(r *keys.CreateRequest) { r.Name = "m" },
		"days":        func(r *keys.CreateRequest) { r.ExpiresInDays = ptr[int64](2) },
		"no days":     func(r *keys.CreateRequest) { r.ExpiresInDays = nil },
		"environment": func(r *keys.CreateRequest) { r.Environment = ptr("live") },
		"no environment, though it comes to the same": func(r *keys.CreateRequest) { r.Environment = nil },
	} {
		r := created
		change(&r)
		if _, err := f.Create(t.Context(), c, r); code(err) != api.IdempotencyKeyReused || refusal(t, err).Param != "idempotency_key" {
			t.Errorf("create with another %s: %v", name, err)
		}
	}
	rolled := keys.RollRequest{KeyID: first.Key.ID, OverlapSeconds: ptr[int64](60), Name: ptr("n"), ExpiresInDays: ptr[int64](1), IdempotencyKey: "retry-1"}
	second, err := f.Roll(t.Context(), c, rolled)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Roll(t.Context(), c, rolled); err != nil || !again.Replayed || again.Key.ID != second.Key.ID {
		t.Errorf("the same roll again: %v", err)
	}
	for name, change := range map[string]func(*keys.RollRequest){
		"key":     func(r *keys.RollRequest) { r.KeyID = second.Key.ID },
		"overlap": func(r *keys.RollRequest) { r.OverlapSeconds = nil },
		"name":    func(r *keys.RollRequest) { r.Name = ptr("m") },
		"no name": func(r *keys.RollRequest) { r.Name = nil },
		"days":    func(r *keys.RollRequest) { r.ExpiresInDays = ptr[int64](2) },
	} {
		r := rolled
		change(&r)
		if _, err := f.Roll(t.Context(), c, r); code(err) != api.IdempotencyKeyReused {
			t.Errorf("roll with another %s: %v", name, err)
		}
	}
}

// kept returns the answer that is kept for a create.
func (f *fixture) kept(t *testing.T, c keys.Call, idempotencyKey string) keys.Replay {
	t.Helper()
	var handles []keys.Handle
	for _, h := range f.cfg.Ring.Handles(c.Principal.OrganizationID, c.Principal.User, string(keys.ActCreate), idempotencyKey) {
		handles = append(handles, h)
	}
	r, err := f.store.Replay(t.Context(), handles)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// C17: a kept answer opens in its own row alone: whoever changes a column of it gets no secret out, and no life beyond
// its 24 hours.
func TestC17KeptAnswerIsBoundToItsRow(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	mine, theirs := user("u", "org_a"), user("v", "org_b")
	r := keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
	another := keys.CreateRequest{Name: "m", IdempotencyKey: "retry-1"}
	first, err := f.Create(t.Context(), mine, r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := f.Create(t.Context(), theirs, another)
	if err != nil {
		t.Fatal(err)
	}
	other := f.kept(t, theirs, "retry-1")
	for _, tt := range []struct {
		name   string
		change func(*keys.Replay)
		ask    keys.CreateRequest
		want   api.Code
	}{
		{"nothing", func(*keys.Replay) {}, r, ""},
		{"handle", func(k *keys.Replay) { k.Handle[31] ^= 1 }, r, api.Unavailable},
		{"fingerprint", func(k *keys.Replay) { k.Fingerprint = other.Fingerprint }, another, api.Unavailable},
		{"key", func(k *keys.Replay) { k.KeyID = second.Key.ID }, r, api.Unavailable},
		{"time", func(k *keys.Replay) { k.CreatedAt = k.CreatedAt.Add(time.Hour) }, r, api.Unavailable},
		{"salt", func(k *keys.Replay) { k.Salt = other.Salt }, r, api.Unavailable},
		{"sealed bytes", func(k *keys.Replay) { k.Sealed = other.Sealed }, r, api.Unavailable},
		{"all of another's", func(k *keys.Replay) { h := k.Handle; *k = other; k.Handle = h }, another, api.Unavailable},
		{"erased", func(k *keys.Replay) { k.Sealed = nil }, r, api.IdempotencyResultGone},
	} {
		s := f.through(t, &interceptedStore{replay: func(k *keys.Replay, _ bool) error { tt.change(k); return nil }})
		got, err := s.Create(t.Context(), mine, tt.ask)
		if code(err) != tt.want || (got.Body != nil) != (tt.want == "") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if k := f.kept(t, mine, "retry-1"); strings.Contains(string(k.Salt)+string(k.Sealed), first.Secret.Reveal()) {
		t.Error("the row holds the secret")
	}
}

// C17: the kept answer is erased however its key ends.
func TestC17ErasedWithItsKey(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for name, end := range map[string]func(f *fixture, c keys.Call, id string) error{
			"revoked": func(f *fixture, c keys.Call, id string) error {
				_, err := f.Revoke(t.Context(), c, id, "")
				return err
			},
			"rolled": func(f *fixture, c keys.Call, id string) error {
				_, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: id})
				return err
			},
			"gave way when it had expired": func(f *fixture, c keys.Call, _ string) error {
				f.clock.advance(24 * time.Hour)
				_, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "next"})
				return err
			},
		} {
			f := open(t, engine, nil)
			c := user("u", "org_a")
			issued, err := f.Create(t.Context(), c, keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1), IdempotencyKey: "retry-1"})
			if err != nil {
				t.Fatal(err)
			}
			if len(f.kept(t, c, "retry-1").Sealed) == 0 {
				t.Fatal("nothing is kept")
			}
			if err := end(f, c, issued.Key.ID); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if n := len(f.kept(t, c, "retry-1").Sealed); n != 0 {
				t.Errorf("%s: %d sealed bytes are left", name, n)
			}
		}
	})
}

// C18: the bounds of a page, cursors that this service never gave, and the current environment of an organization whose payments
// are not enabled.
func TestC18Bounds(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.put(t, keys.OrganizationRequest{ID: "org_a", CurrentEnvironment: ptr("live")})
	c := user("u", "org_a")
	issued := f.create(t, c)
	page, err := f.List(t.Context(), c, keys.ListRequest{})
	if err != nil || len(page.Keys) != 1 || page.Paged || page.HasMore || page.NextCursor != "" || !page.Now.Equal(f.clock.Now()) {
		t.Errorf("%+v, %v", page, err)
	}
	for _, limit := range []int64{1, 100} {
		page, err := f.List(t.Context(), c, keys.ListRequest{Limit: &limit})
		if err != nil || len(page.Keys) != 1 || !page.Paged || page.HasMore || page.NextCursor != "" {
			t.Errorf("a page of %d of the one key: %+v, %v", limit, page, err)
		}
	}
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := encode("1700000000000000." + issued.Key.ID)
	loose := []byte(good)
	loose[len(loose)-1]++ // the bits after the last byte
	for name, tt := range map[string]struct {
		cursor string
		ok     bool
	}{
		"of this service":   {good, true},
		"of time zero":      {encode("0." + issued.Key.ID), false},
		"before 1970":       {encode("-5." + issued.Key.ID), false},
		"no time":           {encode("." + issued.Key.ID), false},
		"no id":             {encode("1700000000000000"), false},
		"an id of nothing":  {encode("1700000000000000.key_x"), false},
		"an id out of form": {encode("1700000000000000." + strings.ToUpper(issued.Key.ID)), false},
		"padded":            {good + "=", false},
		"loose bits":        {string(loose), false},
	} {
		_, err := f.List(t.Context(), c, keys.ListRequest{Limit: ptr[int64](5), Cursor: tt.cursor})
		if tt.ok && err != nil || !tt.ok && refusal(t, err).Param != "cursor" {
			t.Errorf("a cursor %s: %v", name, err)
		}
	}
}

// C21: what a revoke says about itself.
func TestC21Record(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	issued := f.create(t, c)
	f.clock.advance(time.Hour)
	revoked, err := f.Revoke(t.Context(), c, issued.Key.ID, strings.Repeat("é", 255))
	if err != nil {
		t.Fatal(err)
	}
	row := f.keysOf(t, c)[0]
	for _, k := range []keys.Key{revoked, row.Key} {
		if k.State != keys.StateRevoked || !k.RevokedAt.Equal(f.clock.Now()) || k.RevokeReason != strings.Repeat("é", 255) {
			t.Errorf("%+v", k)
		}
	}
}

// C23: each write waits for its own revision, and a replay for the last there is when the key it gives out again is read.
func TestC23AwaitedRevision(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
	first, err := f.Create(t.Context(), c, r)
	if err != nil || f.barrier.last != first.Key.Revision {
		t.Errorf("create: awaited %d of %d, %v", f.barrier.last, first.Key.Revision, err)
	}
	o := f.put(t, keys.OrganizationRequest{ID: "org_b"})
	if f.barrier.last != o.Revision {
		t.Errorf("organization: awaited %d of %d", f.barrier.last, o.Revision)
	}
	fresh := &barrier{}
	f.cfg.Barrier = fresh
	if _, err := f.another(t).Create(t.Context(), c, r); err != nil || fresh.last != o.Revision {
		t.Errorf("replay: awaited %d of %d, %v", fresh.last, o.Revision, err)
	}
	second, err := f.another(t).Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID})
	if err != nil || fresh.last != second.Key.Revision {
		t.Errorf("roll: awaited %d of %d, %v", fresh.last, second.Key.Revision, err)
	}
	if _, err := f.another(t).Revoke(t.Context(), c, second.Key.ID, ""); err != nil || fresh.last != second.Key.Revision+1 {
		t.Errorf("revoke: awaited %d of %d, %v", fresh.last, second.Key.Revision+1, err)
	}
}

// C24: the longest overlap, by default and when a deployment allows none.
func TestC24MaximumOverlap(t *testing.T) {
	for _, tt := range []struct {
		setting time.Duration
		most    int64
	}{{0, 86_400}, {-1, 0}, {time.Second, 1}} {
		f := open(t, sqlstore.SQLite, func(c *keys.Config) { c.MaxOverlap = tt.setting })
		c := user("u", "org_a")
		issued := f.create(t, c)
		if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID, OverlapSeconds: ptr(tt.most + 1)}); refusal(t, err).Param != "overlap_seconds" {
			t.Errorf("setting %v, %d seconds: %v", tt.setting, tt.most+1, err)
		}
		if _, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID, OverlapSeconds: ptr(tt.most)}); err != nil {
			t.Errorf("setting %v, %d seconds: %v", tt.setting, tt.most, err)
		}
	}
}

// P5: a key whose row Keyward did not write is listed nowhere, rolled by nobody, answers no retry, and keeps its
// place; to revoke it is the one act it allows.
func TestP5ForgedKey(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	r := keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1), IdempotencyKey: "retry-1"}
	issued, err := f.Create(t.Context(), c, r)
	if err != nil {
		t.Fatal(err)
	}
	s := f.through(t, &interceptedStore{key: func(k *keys.Key) { k.Genuine = k.ID != issued.Key.ID }})
	ctx := t.Context()
	if page, err := s.List(ctx, c, keys.ListRequest{}); err != nil || len(page.Keys) != 0 {
		t.Errorf("list: %d keys, %v", len(page.Keys), err)
	}
	if again, err := s.Create(ctx, c, r); code(err) != api.IdempotencyResultGone || again.Body != nil {
		t.Errorf("replay: %v", err)
	}
	if _, err := s.Roll(ctx, c, keys.RollRequest{KeyID: issued.Key.ID}); code(err) != api.KeyNotActive {
		t.Errorf("roll: %v", err)
	}
	f.clock.advance(48 * time.Hour) // whatever its row says of its expiry
	if _, err := s.Create(ctx, c, keys.CreateRequest{Name: "n"}); code(err) != api.ActiveKeyExists {
		t.Errorf("create: %v", err)
	}
	if k, err := s.Revoke(ctx, c, issued.Key.ID, ""); err != nil || k.State != keys.StateRevoked {
		t.Errorf("revoke: %v", err)
	}
	if _, err := s.Create(ctx, c, keys.CreateRequest{Name: "n"}); err != nil {
		t.Errorf("create after the revoke: %v", err)
	}
}

// P5, C24: a forged row that says its overlap is over is revoked by the next roll all the same.
func TestP5ForgedOverlap(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c := user("u", "org_a")
	first := f.create(t, c)
	second, err := f.Roll(t.Context(), c, keys.RollRequest{KeyID: first.Key.ID, OverlapSeconds: ptr[int64](60)})
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(time.Hour)
	s := f.through(t, &interceptedStore{key: func(k *keys.Key) { k.Genuine = k.ID != first.Key.ID }})
	if _, err := s.Roll(t.Context(), c, keys.RollRequest{KeyID: second.Key.ID, OverlapSeconds: ptr[int64](60)}); err != nil {
		t.Fatal(err)
	}
	k, err := f.store.Key(t.Context(), first.Key.ID)
	if err != nil || k.State != keys.StateRevoked {
		t.Errorf("%s, %v", k.State, err)
	}
}

// P5, O1: an organization whose row Keyward did not write is switched off, is nobody's parent, and is new when it is
// put again.
func TestP5ForgedOrganization(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.put(t, keys.OrganizationRequest{ID: "org_a"})
	f.put(t, keys.OrganizationRequest{ID: "org_c"})
	f.clock.advance(time.Hour)
	s := f.through(t, &interceptedStore{organization: func(o *keys.Organization, _ bool) { o.Genuine = o.ID != "org_a" }})
	ctx := t.Context()
	if err := s.Admit(ctx, user("u", "org_a"), keys.ActList, ""); code(err) != api.OrganizationInactive {
		t.Errorf("admit: %v", err)
	}
	if _, err := s.Create(ctx, user("u", "org_a"), keys.CreateRequest{Name: "n"}); code(err) != api.OrganizationInactive {
		t.Errorf("create: %v", err)
	}
	if _, err := s.PutOrganization(ctx, keys.Operator{}, keys.OrganizationRequest{ID: "org_b", ParentID: ptr("org_a")}); refusal(t, err).Param != "parent_organization_id" {
		t.Errorf("as a parent: %v", err)
	}
	if o, err := s.Organization(ctx, "org_a"); code(err) != api.Unavailable {
		t.Errorf("get: %+v, %v", o, err)
	}
	f.put(t, keys.OrganizationRequest{ID: "org_0"})
	for _, limit := range []int{1, 100} { // a page that ends with the forged row goes on after it
		var got []string
		for after := ""; ; {
			page, next, err := s.Organizations(ctx, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page {
				got = append(got, o.ID)
			}
			if after = next; after == "" {
				break
			}
		}
		if diff := gocmp.Diff([]string{"org_0", "org_c"}, got); diff != "" {
			t.Errorf("listed by %d (-want +got):\n%s", limit, diff)
		}
	}
	if o, err := s.PutOrganization(ctx, keys.Operator{}, keys.OrganizationRequest{ID: "org_a"}); err != nil || !o.CreatedAt.Equal(f.clock.Now()) {
		t.Errorf("put again: %+v, %v", o, err)
	}
}

// P8: who, what, where from and why: the whole of an audit entry, of acts and of refusals; nothing a caller made up is
// kept in place of an id.
func TestP8WholeEntries(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	ctx, c := t.Context(), user("u", "org_a")
	f.put(t, keys.OrganizationRequest{ID: "org_p"})
	if _, err := f.PutOrganization(ctx, keys.Operator{RequestID: "op-1", RemoteAddress: "198.51.100.7"}, keys.OrganizationRequest{ID: "org_a", PaymentsEnabled: ptr(true), CurrentEnvironment: ptr("test")}); err != nil {
		t.Fatal(err)
	}
	first, err := f.Create(ctx, c, keys.CreateRequest{Name: "n", ExpiresInDays: ptr[int64](1)})
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(24 * time.Hour)
	second := f.create(t, c) // the first gives way
	third, err := f.Roll(ctx, c, keys.RollRequest{KeyID: second.Key.ID, OverlapSeconds: ptr[int64](60)})
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(time.Minute - time.Second)
	fourth, err := f.Roll(ctx, user("w", "org_a"), keys.RollRequest{KeyID: third.Key.ID, OverlapSeconds: ptr[int64](60)})
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(time.Minute) // the third one's overlap is over
	fifth, err := f.Roll(ctx, c, keys.RollRequest{KeyID: fourth.Key.ID, OverlapSeconds: ptr[int64](60)})
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"left the company", "to be sure"} {
		if _, err := f.Revoke(ctx, c, fifth.Key.ID, reason); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = f.Revoke(ctx, c, "../made up", "")
	_, _ = f.List(ctx, c, keys.ListRequest{Limit: ptr[int64](0)})
	_ = f.Refuse(ctx, c, keys.ActCreate, "", &keys.Error{Code: api.InvalidRequest, Param: "key_name", Detail: "…"})
	_, _ = f.PutOrganization(ctx, keys.Operator{RequestID: "op-2", RemoteAddress: "198.51.100.7"}, keys.OrganizationRequest{ID: "../made up"})
	f.put(t, keys.OrganizationRequest{ID: "org_a", Active: ptr(false)})
	_ = f.Admit(ctx, c, keys.ActRoll, fourth.Key.ID)
	_, _ = f.List(ctx, c, keys.ListRequest{})

	entries, err := f.store.Audit(ctx, 0, 100, sqlstore.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	type line struct{ Actor, Action, Organization, Target, Outcome, Detail, Address, Request string }
	var got []line
	for _, e := range entries {
		got = append(got, line{e.Actor, string(e.Action), e.OrganizationID, e.TargetID, e.Outcome, e.Detail, e.RemoteAddress, e.RequestID})
		if (e.Revision > 0) != (e.Outcome == keys.Done) {
			t.Errorf("entry %d has revision %d: %+v", e.Sequence, e.Revision, e)
		}
	}
	const here, there = "192.0.2.1", "198.51.100.7"
	want := []line{
		{"operator", "organization.put", "org_p", "org_p", "done", `active=true payments_enabled=false current_env=test parent=""`, "", "put"},
		{"operator", "organization.put", "org_a", "org_a", "done", `active=true payments_enabled=true current_env=test parent=""`, there, "op-1"},
		{"u", "key.create", "org_a", first.Key.ID, "done", "", here, "req-u"},
		{"u", "key.expire", "org_a", first.Key.ID, "done", "", here, "req-u"},
		{"u", "key.create", "org_a", second.Key.ID, "done", "", here, "req-u"},
		{"u", "key.roll", "org_a", second.Key.ID, "done", "", here, "req-u"},
		{"u", "key.create", "org_a", third.Key.ID, "done", "replaces " + second.Key.ID, here, "req-u"},
		{"w", "key.revoke", "org_a", second.Key.ID, "done", "ended by a later roll", here, "req-w"},
		{"w", "key.roll", "org_a", third.Key.ID, "done", "", here, "req-w"},
		{"w", "key.create", "org_a", fourth.Key.ID, "done", "replaces " + third.Key.ID, here, "req-w"},
		{"u", "key.expire", "org_a", third.Key.ID, "done", "", here, "req-u"},
		{"u", "key.roll", "org_a", fourth.Key.ID, "done", "", here, "req-u"},
		{"u", "key.create", "org_a", fifth.Key.ID, "done", "replaces " + fourth.Key.ID, here, "req-u"},
		{"u", "key.revoke", "org_a", fifth.Key.ID, "done", "left the company", here, "req-u"},
		{"u", "key.revoke", "org_a", fifth.Key.ID, "done", "to be sure", here, "req-u"}, // C21: again
		{"u", "key.revoke", "org_a", "", "api_key_not_found", "", here, "req-u"},
		{"u", "key.list", "org_a", "", "invalid_request", "limit", here, "req-u"},
		{"u", "key.create", "org_a", "", "invalid_request", "key_name", here, "req-u"},
		{"operator", "organization.put", "", "", "invalid_request", "id", there, "op-2"},
		{"operator", "organization.put", "org_a", "org_a", "done", `active=false payments_enabled=false current_env=test parent=""`, "", "put"},
		{"u", "key.roll", "org_a", fourth.Key.ID, "organization_inactive", "", here, "req-u"},
		{"u", "key.list", "org_a", "", "organization_inactive", "", here, "req-u"},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

// P5, P8: a seal covers every field, also one that is added later, and knows where each ends.
func TestP5SealsCoverEveryField(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name   string
		empty  func() (row any, sealed func() []byte)
		except []string // set by the store: what a seal tells, or is made of
	}{
		{"key", func() (any, func() []byte) { k := new(keys.Key); return k, k.Sealed }, []string{"Genuine"}},
		{"organization", func() (any, func() []byte) { o := new(keys.Organization); return o, o.Sealed }, []string{"Genuine", "Registered"}},
		{"audit entry", func() (any, func() []byte) { e := new(keys.AuditEntry); return e, e.Sealed }, []string{"Hash"}},
	} {
		seen := map[string]string{}
		row, sealed := tt.empty()
		seen[string(sealed())] = "nothing"
		for field := range reflect.ValueOf(row).Elem().Type().Fields() {
			if slices.Contains(tt.except, field.Name) {
				continue
			}
			row, sealed := tt.empty()
			switch v := reflect.ValueOf(row).Elem().FieldByIndex(field.Index); v.Interface().(type) {
			case time.Time:
				v.Set(reflect.ValueOf(now))
			case int, int64:
				v.SetInt(1)
			case bool:
				v.SetBool(true)
			default:
				if v.Kind() == reflect.Array {
					v.Index(31).SetUint(1)
				} else {
					v.SetString("x")
				}
			}
			if same, taken := seen[string(sealed())]; taken {
				t.Errorf("%s: with %s alone it has the same bytes as with %s", tt.name, field.Name, same)
			}
			seen[string(sealed())] = field.Name
		}
	}
}

// P8, P6: what cannot be recorded is not answered, neither a refusal nor a replay.
func TestP8NothingUnrecordedIsAnswered(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
	if _, err := f.Create(t.Context(), c, r); err != nil {
		t.Fatal(err)
	}
	s := f.through(t, &interceptedStore{record: errors.New("the disk is full")})
	again, replay := s.Create(t.Context(), c, r)
	if again.Body != nil {
		t.Error("a replay was answered without an entry")
	}
	_, refused := s.Create(t.Context(), c, keys.CreateRequest{})
	_, unknown := s.Revoke(t.Context(), c, "key_x", "")
	_, put := s.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: "a b"})
	for what, err := range map[string]error{"replay": replay, "refused create": refused, "unknown key": unknown, "organization": put} {
		if code(err) != api.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// O1: what an organization is when little is said of it, and the names it may have.
func TestO1Defaults(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	at := f.clock.Now()
	base := keys.Organization{ID: "org_a", Active: true, CurrentEnvironment: keys.Test, CreatedAt: at, UpdatedAt: at, Registered: true, Genuine: true}
	for _, tt := range []struct {
		name   string
		r      keys.OrganizationRequest
		change func(*keys.Organization)
	}{
		{"nothing", keys.OrganizationRequest{}, func(*keys.Organization) {}},
		{"payments", keys.OrganizationRequest{PaymentsEnabled: ptr(true)}, func(o *keys.Organization) { o.PaymentsEnabled, o.CurrentEnvironment = true, keys.Live }},
		{"no payments", keys.OrganizationRequest{PaymentsEnabled: ptr(false)}, func(*keys.Organization) {}},
		{"payments, test", keys.OrganizationRequest{PaymentsEnabled: ptr(true), CurrentEnvironment: ptr("test")}, func(o *keys.Organization) { o.PaymentsEnabled = true }},
		{"off", keys.OrganizationRequest{Active: ptr(false)}, func(o *keys.Organization) { o.Active = false }},
		{"a name in white space", keys.OrganizationRequest{Name: ptr(" A \n")}, func(o *keys.Organization) { o.Name = "A" }},
	} {
		tt.r.ID = "org_a"
		want := base
		tt.change(&want)
		got := f.put(t, tt.r)
		want.Revision = got.Revision
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if stored, err := f.Organization(t.Context(), "org_a"); err != nil || stored != got {
			t.Errorf("%s: stored %+v, %v", tt.name, stored, err)
		}
	}
	f.put(t, keys.OrganizationRequest{ID: "org_child", ParentID: ptr("org_a")})
	for _, tt := range []struct {
		r     keys.OrganizationRequest
		param string
	}{
		{keys.OrganizationRequest{ID: "o"}, ""},
		{keys.OrganizationRequest{ID: strings.Repeat("o", 128)}, ""},
		{keys.OrganizationRequest{ID: "9_.:-"}, ""},
		{keys.OrganizationRequest{ID: strings.Repeat("o", 129)}, "id"},
		{keys.OrganizationRequest{ID: ".o"}, "id"},
		{keys.OrganizationRequest{ID: "o/o"}, "id"},
		{keys.OrganizationRequest{ID: "o\n"}, "id"},
		{keys.OrganizationRequest{ID: "ö"}, "id"},
		{keys.OrganizationRequest{ID: "o", ParentID: ptr("o")}, "parent_organization_id"}, // it exists by now
		{keys.OrganizationRequest{ID: "o", ParentID: ptr("a b")}, "parent_organization_id"},
	} {
		_, err := f.PutOrganization(t.Context(), keys.Operator{}, tt.r)
		if tt.param == "" && err != nil || tt.param != "" && refusal(t, err).Param != tt.param {
			t.Errorf("%q under %v: %v, want %q", tt.r.ID, tt.r.ParentID, err, tt.param)
		}
	}
	for _, tt := range []struct {
		after string
		limit int
		param string
	}{{"", 0, "limit"}, {"", 101, "limit"}, {"", 100, ""}, {"", 1, ""}, {"a b", 1, "cursor"}} {
		_, _, err := f.Organizations(t.Context(), tt.after, tt.limit)
		if tt.param == "" && err != nil || tt.param != "" && refusal(t, err).Param != tt.param {
			t.Errorf("list after %q, %d: %v, want %q", tt.after, tt.limit, err, tt.param)
		}
	}
}

// Metrics are told of each act and how it ended.
func TestObserve(t *testing.T) {
	var got []string
	f := open(t, sqlstore.SQLite, func(c *keys.Config) {
		c.Observe = func(a keys.Action, outcome string, took time.Duration) {
			if took < 0 {
				t.Errorf("%s took %v", a, took)
			}
			got = append(got, string(a)+" "+outcome)
		}
	})
	c := user("u", "org_a")
	issued := f.create(t, c)
	_, _ = f.Create(t.Context(), c, keys.CreateRequest{})
	rolled, _ := f.Roll(t.Context(), c, keys.RollRequest{KeyID: issued.Key.ID})
	f.barrier.set(errors.New("a node does not answer"))
	_, _ = f.Revoke(t.Context(), c, rolled.Key.ID, "")
	f.barrier.set(nil)
	f.put(t, keys.OrganizationRequest{ID: "org_b"})
	want := []string{"key.create done", "key.create invalid_request", "key.roll done", "key.revoke error", "organization.put done"}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

// C13, P3: the one active place is the database's to give: a create that sees it empty does not get it when it is not.
func TestP3PlaceIsTheDatabases(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		f.create(t, user("u", "org_a"))
		blind := f.through(t, &interceptedStore{blind: true})
		if _, err := blind.Create(t.Context(), user("v", "org_a"), keys.CreateRequest{Name: "n"}); code(err) != api.Unavailable {
			t.Errorf("%v", err)
		}
		if n := len(f.keysOf(t, user("u", "org_a"))); n != 1 {
			t.Errorf("%d keys", n)
		}
	})
}

// C23: a revocation that the database lost is written into it again by a node that knows it: the key is ended, its kept answer is gone, and the log
// says who did it. It waits for no node. What is revoked, or not there, is left alone.
func TestC23RevokeAgain(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		c, r := user("u", "org_a"), keys.CreateRequest{Name: "n", IdempotencyKey: "retry-1"}
		issued, err := f.Create(t.Context(), c, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.RevokeAgain(t.Context(), issued.Key.ID); err != nil {
			t.Fatal(err)
		}
		k, err := f.store.Key(t.Context(), issued.Key.ID)
		if err != nil || k.State != keys.StateRevoked || !k.RevokedAt.Equal(f.clock.Now()) || f.barrier.last >= k.Revision {
			t.Errorf("%+v, %v, awaited %d", k, err, f.barrier.last)
		}
		if _, err := f.Create(t.Context(), c, r); code(err) != api.IdempotencyResultGone {
			t.Errorf("replay: %v", err)
		}
		entries, err := f.store.Audit(t.Context(), 0, 100, sqlstore.AuditFilter{TargetID: issued.Key.ID, Action: keys.ActRevoke})
		if err != nil || len(entries) != 1 || entries[0].Actor != "keyward" || entries[0].OrganizationID != "org_a" || entries[0].Outcome != keys.Done {
			t.Errorf("%+v, %v", entries, err)
		}
		for _, id := range []string{issued.Key.ID, "key_none"} {
			if err := f.RevokeAgain(t.Context(), id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if again, err := f.store.Key(t.Context(), issued.Key.ID); err != nil || again.Revision != k.Revision {
			t.Errorf("a revoked key was written again: %d, %v", again.Revision, err)
		}
	})
}
