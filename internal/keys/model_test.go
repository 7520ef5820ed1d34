package keys_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// model is the contract in plain maps: what a create, a roll, a revoke or a change of an
// organization must answer, and what every secret ever issued is worth afterwards.
type model struct {
	now           time.Time
	organizations map[string]*modelOrganization
	keys          []*modelKey
	taken         map[string]time.Time // rate + user
	kept          map[string]modelAnswer
}

type modelOrganization struct {
	payments, active bool
	current          keys.Environment
	parent           string
}

type modelKey struct {
	id, organization, secret string
	name                     string
	env                      keys.Environment
	days                     int
	created, expires         time.Time
	state                    keys.State
}

type modelAnswer struct {
	request string
	key     *modelKey
	at      time.Time
}

func (m *model) organization(id string) modelOrganization {
	if o := m.organizations[id]; o != nil {
		return *o
	}
	return modelOrganization{active: true, current: keys.Test}
}

// refused gives the gate's answer (C3, C4).
func (m *model) refused(organization string) api.Code {
	switch o := m.organization(organization); {
	case !o.active:
		return api.OrganizationInactive
	case o.parent != "":
		return api.ConnectedAccount
	}
	return ""
}

func (k *modelKey) expired(now time.Time) bool { return !k.expires.IsZero() && !now.Before(k.expires) }

// worth is what verification says of a key (V1).
func (m *model) worth(k *modelKey) keys.Reason {
	switch {
	case k.state == keys.StateRevoked:
		return keys.Revoked
	case k.expired(m.now):
		return keys.Expired
	case !m.organization(k.organization).active:
		return keys.OrganizationInactive
	}
	return keys.Valid
}

// replay answers from a kept answer; done is false when there is none (C15, C16).
func (m *model) replay(scope, request string) (code api.Code, key *modelKey, done bool) {
	a, ok := m.kept[scope]
	switch {
	case !ok || !m.now.Before(a.at.Add(24*time.Hour)):
		return "", nil, false
	case a.request != request:
		return api.IdempotencyKeyReused, nil, true
	case a.key.state == keys.StateRevoked || a.key.expired(m.now):
		return api.IdempotencyResultGone, nil, true
	}
	return "", a.key, true
}

func (m *model) limited(rate, user string) bool {
	at, ok := m.taken[rate+user]
	return ok && m.now.Sub(at) < time.Minute
}

// find returns the organization's key in a state whose time is not up.
func (m *model) find(organization string, s keys.State) *modelKey {
	for _, k := range m.keys {
		if k.organization == organization && k.state == s && !k.expired(m.now) {
			return k
		}
	}
	return nil
}

func (m *model) issue(rate, user, scope, request string, k *modelKey) *modelKey {
	k.created, k.state = m.now, keys.StateActive
	if k.name == "" {
		k.name = "n"
	}
	if k.days > 0 {
		k.expires = m.now.Add(time.Duration(k.days) * 24 * time.Hour)
	}
	m.keys = append(m.keys, k)
	m.taken[rate+user] = m.now
	if scope != "" {
		m.kept[scope] = modelAnswer{request, k, m.now}
	}
	return k
}

func (m *model) create(user, organization, idempotency string, days int, asked string) (api.Code, *modelKey, bool) {
	if c := m.refused(organization); c != "" {
		return c, nil, false
	}
	scope, request := "", fmt.Sprint(days, asked)
	if idempotency != "" {
		scope = "create/" + organization + "/" + user + "/" + idempotency
		if c, k, done := m.replay(scope, request); done {
			return c, k, true
		}
	}
	if m.find(organization, keys.StateActive) != nil {
		return api.ActiveKeyExists, nil, false
	}
	if m.limited("create", user) {
		return api.RateLimited, nil, false
	}
	o := m.organization(organization)
	env := keys.Test
	if o.payments {
		if env = o.current; asked != "" {
			env = keys.Environment(asked)
		}
	}
	return "", m.issue("create", user, scope, request, &modelKey{organization: organization, env: env, days: days}), false
}

func (m *model) roll(user, organization string, target *modelKey, idempotency string, overlap int64) (api.Code, *modelKey, bool) {
	if c := m.refused(organization); c != "" {
		return c, nil, false
	}
	scope, request := "", fmt.Sprint(target.id, overlap)
	if idempotency != "" {
		scope = "roll/" + organization + "/" + user + "/" + idempotency
		if c, k, done := m.replay(scope, request); done {
			return c, k, true
		}
	}
	switch {
	case target.organization != organization:
		return api.KeyNotFound, nil, false
	case target.state != keys.StateActive || target.expired(m.now):
		return api.KeyNotActive, nil, false
	case m.limited("roll", user):
		return api.RateLimited, nil, false
	}
	if overlap == 0 {
		target.state = keys.StateRevoked
	} else {
		if older := m.find(organization, keys.StateOverlapping); older != nil {
			older.state = keys.StateRevoked
		}
		target.state = keys.StateOverlapping
		if until := m.now.Add(time.Duration(overlap) * time.Second); target.expires.IsZero() || until.Before(target.expires) {
			target.expires = until
		}
	}
	return "", m.issue("roll", user, scope, request, &modelKey{organization: organization, env: target.env, days: target.days, name: target.name}), false
}

func (m *model) revoke(organization string, target *modelKey) api.Code {
	if c := m.refused(organization); c != "" {
		return c
	}
	if target.organization != organization {
		return api.KeyNotFound
	}
	target.state = keys.StateRevoked
	return ""
}

// accepted reports whether an organization has a key that may be accepted (O2).
func (m *model) accepted(id string) bool {
	return m.find(id, keys.StateActive) != nil || m.find(id, keys.StateOverlapping) != nil
}

func (m *model) children(id string) bool {
	for _, o := range m.organizations {
		if o.parent == id {
			return true
		}
	}
	return false
}

func (m *model) put(id string, o modelOrganization, force bool) api.Code {
	if o.parent == "" {
		m.organizations[id] = &o
		return ""
	}
	parent := m.organizations[o.parent]
	if o.parent == id || parent == nil || parent.parent != "" {
		return api.InvalidRequest
	}
	if m.children(id) {
		return api.InvalidRequest
	}
	if m.organization(id).parent != o.parent && m.accepted(id) && !force {
		return api.OrganizationHasKeys
	}
	m.organizations[id] = &o
	return ""
}

// update changes what change changes and nothing else (O2).
func (m *model) update(id string, force bool, change func(*modelOrganization)) api.Code {
	if m.organizations[id] == nil {
		return api.OrganizationNotFound
	}
	o := *m.organizations[id]
	change(&o)
	return m.put(id, o, force)
}

// remove is the deletion of an organization (O2).
func (m *model) remove(id string, deleted bool) api.Code {
	switch {
	case m.organizations[id] == nil && !deleted:
		return api.OrganizationNotFound
	case m.children(id):
		return api.OrganizationHasAccounts
	case m.accepted(id) && !(deleted && m.organizations[id] == nil):
		return api.OrganizationHasKeys
	}
	delete(m.organizations, id)
	return ""
}

// rename is a PATCH of a key's name (C30).
func (m *model) rename(organization string, target *modelKey, name string) api.Code {
	if c := m.refused(organization); c != "" {
		return c
	}
	if target.organization != organization {
		return api.KeyNotFound
	}
	if target.expired(m.now) || target.state != keys.StateActive && target.state != keys.StateOverlapping {
		return api.KeyNotActive
	}
	target.name = name
	return ""
}

// C2, C4, C9, C12, C14, C15, C16, C19, C21, C22, C23, C24, O1, V1, V5: random sequences of every operation
// against the model, on both databases, with verification from memory beside it.
func TestModel(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		v, err := verify.New(verify.Config{Feed: f.store, Format: f.cfg.Format, Now: f.clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		stopped := make(chan struct{})
		go func() { defer close(stopped); v.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-stopped })
		f.cfg.Barrier = v
		service := f.another(t)

		run := 0
		rapid.Check(t, func(rt *rapid.T) {
			run++ // each run has organizations and users of its own in the one database
			deleted := map[string]bool{}
			m := &model{now: f.clock.Now(), organizations: map[string]*modelOrganization{}, taken: map[string]time.Time{}, kept: map[string]modelAnswer{}}
			organizations := []string{fmt.Sprintf("org_%d_a", run), fmt.Sprintf("org_%d_b", run), fmt.Sprintf("org_%d_c", run)}
			users := []string{fmt.Sprintf("u_%d_a", run), fmt.Sprintf("u_%d_b", run)}
			draw := struct{ organization, user, idempotency *rapid.Generator[string] }{
				rapid.SampledFrom(organizations), rapid.SampledFrom(users), rapid.SampledFrom([]string{"", "", "k1", "k2"}),
			}
			bodies := map[string]string{}
			check := func(op string, err error, want api.Code) bool {
				if got := code(err); got != want {
					rt.Fatalf("%s: %q (%v), want %q", op, got, err, want)
				}
				return err == nil
			}
			issued := func(op string, got keys.Issued, err error, want api.Code, k *modelKey, replay bool) {
				if !check(op, err, want) {
					return
				}
				if got.Replayed != replay {
					rt.Fatalf("%s: replayed %v, want %v", op, got.Replayed, replay)
				}
				if !replay {
					k.id, k.secret = got.Key.ID, got.Secret.Reveal()
					bodies[k.id] = string(got.Body)
				}
				if got.Key.ID != k.id || string(got.Body) != bodies[k.id] {
					rt.Fatalf("%s: another key or other bytes than at first", op)
				}
			}
			rt.Repeat(map[string]func(*rapid.T){
				"create": func(rt *rapid.T) {
					o, u, i := draw.organization.Draw(rt, "organization"), draw.user.Draw(rt, "user"), draw.idempotency.Draw(rt, "idempotency")
					days, asked := rapid.SampledFrom([]int{0, 1, 3}).Draw(rt, "days"), rapid.SampledFrom([]string{"", "live", "test"}).Draw(rt, "env")
					want, k, replay := m.create(u, o, i, days, asked)
					r := keys.CreateRequest{Name: "n", IdempotencyKey: i}
					if days > 0 {
						r.ExpiresInDays = ptr(int64(days))
					}
					if asked != "" {
						r.Environment = &asked
					}
					got, err := service.Create(ctx, user(u, o), r)
					issued("create", got, err, want, k, replay)
				},
				"roll": func(rt *rapid.T) {
					if len(m.keys) == 0 {
						return // nothing to act on yet
					}
					o, u, i := draw.organization.Draw(rt, "organization"), draw.user.Draw(rt, "user"), draw.idempotency.Draw(rt, "idempotency")
					target := rapid.SampledFrom(m.keys).Draw(rt, "key")
					overlap := rapid.SampledFrom([]int64{0, 3600, 86400}).Draw(rt, "overlap")
					want, k, replay := m.roll(u, o, target, i, overlap)
					got, err := service.Roll(ctx, user(u, o), keys.RollRequest{KeyID: target.id, OverlapSeconds: &overlap, IdempotencyKey: i})
					issued("roll", got, err, want, k, replay)
				},
				"revoke": func(rt *rapid.T) {
					if len(m.keys) == 0 {
						return // nothing to act on yet
					}
					o, target := draw.organization.Draw(rt, "organization"), rapid.SampledFrom(m.keys).Draw(rt, "key")
					want := m.revoke(o, target)
					_, err := service.Revoke(ctx, user(users[0], o), target.id, "")
					check("revoke", err, want)
				},
				"put": func(rt *rapid.T) {
					id := draw.organization.Draw(rt, "organization")
					o := modelOrganization{payments: rapid.Bool().Draw(rt, "payments"), active: rapid.IntRange(0, 3).Draw(rt, "active") > 0,
						current: rapid.SampledFrom([]keys.Environment{keys.Live, keys.Test}).Draw(rt, "current"),
						parent:  rapid.SampledFrom([]string{"", "", "", organizations[0], organizations[1]}).Draw(rt, "parent")}
					force := rapid.Bool().Draw(rt, "force")
					want := m.put(id, o, force)
					r := keys.OrganizationRequest{Force: force, ID: id, PaymentsEnabled: &o.payments, Active: &o.active, CurrentEnvironment: ptr(string(o.current))}
					if o.parent != "" {
						r.ParentID = &o.parent
					}
					_, err := service.PutOrganization(ctx, keys.Operator{}, r)
					check("put", err, want)
				},
				"update": func(rt *rapid.T) {
					id, force := draw.organization.Draw(rt, "organization"), rapid.Bool().Draw(rt, "force")
					u := keys.OrganizationUpdate{ID: id, Force: force}
					var change func(o *modelOrganization)
					switch rapid.IntRange(0, 2).Draw(rt, "member") {
					case 0:
						active := rapid.Bool().Draw(rt, "active")
						u.Active, change = &active, func(o *modelOrganization) { o.active = active }
					case 1:
						payments := rapid.Bool().Draw(rt, "payments")
						u.PaymentsEnabled, change = &payments, func(o *modelOrganization) { o.payments = payments }
					default:
						parent := rapid.SampledFrom([]string{"", organizations[0]}).Draw(rt, "parent")
						u.ParentID, change = &parent, func(o *modelOrganization) { o.parent = parent }
					}
					want := m.update(id, force, change)
					if u.ParentID != nil && *u.ParentID == id {
						want = api.InvalidRequest // before it is looked for
					}
					_, err := service.UpdateOrganization(ctx, keys.Operator{}, u)
					check("update", err, want)
				},
				"delete": func(rt *rapid.T) {
					id := draw.organization.Draw(rt, "organization")
					want := m.remove(id, deleted[id])
					_, err := service.DeleteOrganization(ctx, keys.Operator{}, id)
					if check("delete", err, want) {
						deleted[id] = true
					}
				},
				"rename": func(rt *rapid.T) {
					if len(m.keys) == 0 {
						return // nothing to act on yet
					}
					o, target := draw.organization.Draw(rt, "organization"), rapid.SampledFrom(m.keys).Draw(rt, "key")
					name := rapid.SampledFrom([]string{"one", "another", "n"}).Draw(rt, "name")
					want := m.rename(o, target, name)
					_, _, err := service.Update(ctx, user(users[0], o), keys.UpdateRequest{KeyID: target.id, Name: &name})
					check("rename", err, want)
				},
				"revoke many": func(rt *rapid.T) {
					o := draw.organization.Draw(rt, "organization")
					want := 0
					for _, k := range m.keys {
						if k.organization == o && k.state != keys.StateRevoked {
							k.state = keys.StateRevoked
							want++
						}
					}
					sum, err := service.RevokeMany(ctx, keys.Operator{}, keys.ManyRequest{Filter: &keys.KeyFilter{OrganizationID: &o}, Reason: "all"},
						func(int) error { return nil }, func([]keys.ManyOne) error { return nil })
					if check("revoke many", err, "") && (sum.Revoked != want || sum.Total != want) {
						rt.Fatalf("revoke many: %+v, want %d", sum, want)
					}
				},
				"wait": func(rt *rapid.T) {
					d := rapid.SampledFrom([]time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour}).Draw(rt, "time")
					f.clock.advance(d)
					m.now = m.now.Add(d)
				},
				"": func(rt *rapid.T) {
					for _, k := range m.keys {
						verdict, err := v.Verify(ctx, verify.Request{Secret: k.secret})
						if want := m.worth(k); err != nil || verdict.Reason != want {
							rt.Fatalf("key %s: %s (%v), want %s", k.id, verdict.Reason, err, want)
						}
						if verdict.KeyName != k.name {
							rt.Fatalf("key %s: named %q, want %q", k.id, verdict.KeyName, k.name)
						}
					}
					for _, o := range organizations {
						if v.Manages(o, true) && (m.organizations[o] == nil || m.refused(o) != "") {
							rt.Fatalf("%s may manage keys by memory, and may not", o)
						}
						if m.refused(o) != "" {
							continue
						}
						page, err := service.List(ctx, user(users[0], o), keys.ListRequest{Environment: ptr("all")})
						if err != nil {
							rt.Fatal(err)
						}
						got, want := map[string]string{}, map[string]string{}
						for _, k := range page.Keys {
							got[k.ID] = fmt.Sprint(keys.Status(k.Lifecycle(), page.Now), k.Environment, k.ExpiresAt.UnixMicro())
						}
						for _, k := range m.keys {
							if k.organization == o {
								status := k.state
								if k.state != keys.StateRevoked && k.expired(m.now) {
									status = keys.StateExpired
								}
								want[k.id] = fmt.Sprint(status, k.env, k.expires.UnixMicro())
							}
						}
						if diff := cmp.Diff(want, got); diff != "" {
							rt.Fatalf("list of %s (-want +got):\n%s", o, diff)
						}
					}
				},
			})
		})
	})
}
