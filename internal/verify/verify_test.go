package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// reasonOf verifies and gives the reason, or "undecided".
func reasonOf(v *Verifier, r Request) keys.Reason {
	verdict, err := v.Verify(context.Background(), r)
	if err != nil {
		return "undecided"
	}
	return verdict.Reason
}

// V1, V3, V5: each reason, and what narrows an otherwise valid key.
func TestV1Verdicts(t *testing.T) { synctest.Test(t, testVerdicts) }

// mistype returns the secret with another last character.
func mistype(secret string) string { return secret[:len(secret)-1] + string(secret[len(secret)-1]^1) }

func testVerdicts(t *testing.T) {
	feed := newMemoryFeed()
	parent := func(id, parent string, active bool) keys.Organization {
		return keys.Organization{ID: id, ParentID: parent, Active: active, Registered: true, Genuine: true, PaymentsEnabled: true}
	}
	live, liveKey := newKey(t, "org_a", keys.Live)
	test, testKey := newKey(t, "org_never_put", keys.Test)
	revoked, revokedKey := newKey(t, "org_a", keys.Live)
	revokedKey.State = keys.StateRevoked
	expired, expiredKey := newKey(t, "org_a", keys.Live)
	expiredKey.ExpiresAt = time.Now().Add(time.Hour)
	marked, markedKey := newKey(t, "org_a", keys.Live)
	markedKey.State = keys.StateExpired
	overlapping, overlappingKey := newKey(t, "org_a", keys.Live)
	overlappingKey.State, overlappingKey.ExpiresAt = keys.StateOverlapping, time.Now().Add(2*time.Hour)
	off, offKey := newKey(t, "org_off", keys.Test)
	forged, forgedKey := newKey(t, "org_a", keys.Live)
	forgedKey.Genuine = false
	unknown, _ := newKey(t, "org_a", keys.Live)
	disabled, disabledKey := newKey(t, "org_disabled", keys.Live)
	disabledOrganization := parent("org_disabled", "", true)
	disabledOrganization.PaymentsEnabled = false
	orphan, orphanKey := newKey(t, "org_forged", keys.Live)
	forgedOrganization, forgedChild := parent("org_forged", "", true), parent("org_child_forged", "org_a", true)
	forgedOrganization.Genuine, forgedChild.Genuine = false, false
	feed.write(liveKey, testKey, revokedKey, expiredKey, markedKey, overlappingKey, offKey, forgedKey, disabledKey, orphanKey, forgedOrganization, forgedChild,
		parent("org_a", "", true), parent("org_child", "org_a", true), parent("org_child_off", "org_a", false),
		parent("org_other", "org_b", true), parent("org_off", "", false), disabledOrganization)
	v, _ := start(t, feed, nil)
	time.Sleep(time.Hour) // the bubble's clock: expiredKey's time is up to the microsecond
	synctest.Wait()

	for _, tt := range []struct {
		name string
		r    Request
		want keys.Reason
	}{
		{"valid", Request{Secret: live}, keys.Valid},
		{"unregistered organization", Request{Secret: test}, keys.Valid}, // C4
		{"overlapping", Request{Secret: overlapping}, keys.Valid},        // C24
		{"payments disabled", Request{Secret: disabled}, keys.Valid},     // V5
		{"malformed", Request{Secret: live[:len(live)-1]}, keys.Malformed},
		{"empty", Request{}, keys.Malformed},
		{"mistyped", Request{Secret: mistype(live)}, keys.Malformed},
		{"mistyped, of another environment", Request{Secret: mistype(live), Environment: keys.Test}, keys.Malformed},
		{"a mistyped one that was revoked", Request{Secret: mistype(revoked)}, keys.Malformed},
		{"unknown", Request{Secret: unknown}, keys.Unknown},
		{"not genuine", Request{Secret: forged}, keys.Unknown},
		{"revoked", Request{Secret: revoked}, keys.Revoked},
		{"expired at its very moment", Request{Secret: expired}, keys.Expired}, // C19
		{"marked expired", Request{Secret: marked}, keys.Expired},
		{"organization off", Request{Secret: off}, keys.OrganizationInactive},
		{"organization not genuine", Request{Secret: orphan}, keys.OrganizationInactive},
		{"same environment", Request{Secret: live, Environment: keys.Live}, keys.Valid},
		{"other environment", Request{Secret: live, Environment: keys.Test}, keys.EnvironmentMismatch},
		{"own child", Request{Secret: live, ConnectedAccountID: "org_child"}, keys.Valid},
		{"child switched off", Request{Secret: live, ConnectedAccountID: "org_child_off"}, keys.ConnectedAccountForbidden},
		{"child not genuine", Request{Secret: live, ConnectedAccountID: "org_child_forged"}, keys.ConnectedAccountForbidden},
		{"foreign child", Request{Secret: live, ConnectedAccountID: "org_other"}, keys.ConnectedAccountForbidden},
		{"itself", Request{Secret: live, ConnectedAccountID: "org_a"}, keys.ConnectedAccountForbidden},
		{"nobody", Request{Secret: live, ConnectedAccountID: "org_nobody"}, keys.ConnectedAccountForbidden},
		{"revoked wins over narrowing", Request{Secret: revoked, ConnectedAccountID: "org_other", Environment: keys.Test}, keys.Revoked},
	} {
		if got := reasonOf(v, tt.r); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}

	got, err := v.Verify(t.Context(), Request{Secret: live, ConnectedAccountID: "org_child"})
	if err != nil {
		t.Fatal(err)
	}
	want := Verdict{Reason: keys.Valid, KeyID: liveKey.ID, OrganizationID: "org_a", KeyName: liveKey.Name, Environment: keys.Live,
		CreatedAt: liveKey.CreatedAt, ConnectedAccountID: "org_child", PaymentsEnabled: true, Path: Memory}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdict (-want +got):\n%s", diff)
	}
	for _, secret := range []string{disabled, orphan} {
		if got, _ := v.Verify(t.Context(), Request{Secret: secret}); got.KeyID == "" || got.PaymentsEnabled {
			t.Error("payments_enabled is true for an organization whose payments are disabled, or whose row is not genuine") // V5
		}
	}
	got, err = v.Verify(t.Context(), Request{Secret: expired})
	want = Verdict{Reason: keys.Expired, KeyID: expiredKey.ID, OrganizationID: "org_a", KeyName: expiredKey.Name, Environment: keys.Live,
		CreatedAt: expiredKey.CreatedAt, ExpiresAt: expiredKey.ExpiresAt.UTC().Truncate(time.Microsecond), PaymentsEnabled: true, Path: Memory}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("verdict about an expired key (-want +got):\n%s%v", diff, err)
	}
	if n := v.Stats().Waited; n != 0 {
		t.Errorf("%d verifications waited under a good lease", n) // P2
	}
}

// P2: nothing is allocated on the way.
func TestVerifyAllocatesNothing(t *testing.T) {
	feed := newMemoryFeed()
	secret, key := newKey(t, "org_a", keys.Live)
	unknown, _ := newKey(t, "org_a", keys.Live)
	child := keys.Organization{ID: "org_child", ParentID: "org_a", Active: true, Registered: true, Genuine: true}
	feed.write(key, child)
	v, _ := start(t, feed, nil)
	waitReady(t, v)
	ctx := context.Background()
	for _, r := range []Request{{Secret: secret}, {Secret: unknown}, {Secret: "x"}, {Secret: secret, ConnectedAccountID: "org_child"}} {
		if n := testing.AllocsPerRun(200, func() { _, _ = v.Verify(ctx, r) }); n != 0 {
			t.Errorf("%v allocations a verification", n)
		}
	}
}

func waitReady(tb testing.TB, v *Verifier) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); v.Ready() != nil; {
		if time.Now().After(deadline) {
			tb.Fatal(v.Ready())
		}
		acked := v.acked.next()
		select {
		case <-acked:
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// R5, P6: memory answers until the lease is over, then nothing is decided; it comes back by itself.
func TestR5DatabaseAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		unknown, _ := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, _ := start(t, feed, func(c *Config) { c.Lease = 10 * time.Second; c.Poll = time.Second })
		synctest.Wait()
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Fatalf("%s before the outage", got)
		}

		feed.setAway(true)
		time.Sleep(8900 * time.Millisecond) // the last renewal is at most one poll old
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Errorf("%s within the lease", got)
		}
		time.Sleep(1100 * time.Millisecond)
		if got := reasonOf(v, Request{Secret: secret}); got != "undecided" {
			t.Errorf("%s after the lease, want undecided", got)
		}
		if v.Ready() == nil {
			t.Error("ready without a lease")
		}
		if got := reasonOf(v, Request{Secret: unknown}); got != "undecided" {
			t.Errorf("%s for a secret that is not in memory: it may have been created meanwhile", got)
		}
		if got := reasonOf(v, Request{Secret: "sk_nonsense"}); got != keys.Malformed {
			t.Errorf("%s for a malformed secret: that needs no database", got)
		}

		feed.setAway(false)
		time.Sleep(2 * time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid || v.Ready() != nil {
			t.Errorf("%s, ready %v, after the database came back", got, v.Ready())
		}
		if feed.snapshots != 1 {
			t.Errorf("%d snapshots: a node that comes back catches up from what it has", feed.snapshots)
		}
	})
}

// R5: a database that is away at the start is waited for.
func TestR5DatabaseAwayAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		feed.setAway(true)
		v, _ := start(t, feed, nil)
		time.Sleep(time.Minute)
		if got := reasonOf(v, Request{Secret: secret}); got != "undecided" || v.Ready() == nil {
			t.Errorf("%s, ready %v, before the database was ever there", got, v.Ready())
		}
		feed.setAway(false)
		time.Sleep(2 * time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Errorf("%s once the database is there", got)
		}
	})
}

// C23, P1: when Await has returned, the verifier shows the write; also for a new key, whose
// absence was an answer before.
func TestC23AwaitShowsTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		nodes := []*Verifier{}
		for range 3 {
			v, _ := start(t, feed, nil)
			nodes = append(nodes, v)
		}
		synctest.Wait()
		secret, key := newKey(t, "org_a", keys.Live)
		organization := keys.Organization{ID: "org_a", Active: true, Registered: true, Genuine: true}
		for _, step := range []struct {
			state  keys.State
			active bool // the organization
			want   keys.Reason
		}{
			{keys.StateActive, true, keys.Valid},
			{keys.StateActive, false, keys.OrganizationInactive}, // O1, V5
			{keys.StateActive, true, keys.Valid},
			{keys.StateRevoked, true, keys.Revoked},
		} {
			key.State, organization.Active = step.state, step.active
			revision := feed.write(key, organization)
			if err := nodes[0].Await(t.Context(), revision); err != nil {
				t.Fatal(err)
			}
			for i, v := range nodes {
				if got := reasonOf(v, Request{Secret: secret}); got != step.want {
					t.Errorf("node %d says %s right after the write was answered, want %s", i, got, step.want)
				}
			}
		}
	})
}

// C23: a node that does not answer is waited for once and then fenced; its own lease is over by then.
func TestC23SilentNodeIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, nil)
		synctest.Wait()
		if err := feed.Register(t.Context(), keys.Node{ID: "silent"}); err != nil {
			t.Fatal(err)
		}
		_, key := newKey(t, "org_a", keys.Live)
		began := time.Now()
		if err := v.Await(t.Context(), feed.write(key)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 12550*time.Millisecond || took > 12600*time.Millisecond {
			t.Errorf("waited %v, want 1.25 L + 50 ms", took)
		}
		began = time.Now()
		if err := v.Await(t.Context(), feed.write(key)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("the next write waited %v: the silent node was to be fenced", took)
		}
	})
}

// C23: an outcome that is not known is an error, never an answer.
func TestC23AwaitFailsWhenTheDatabaseDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, nil)
		synctest.Wait()
		_, key := newKey(t, "org_a", keys.Live)
		revision := feed.write(key)
		feed.setAway(true)
		if err := v.Await(t.Context(), revision); !errors.Is(err, errAway) {
			t.Errorf("Await: %v", err)
		}
		feed.setAway(false)
		if err := v.Await(t.Context(), revision); err != nil { // asking again completes it
			t.Error(err)
		}
	})
}

// A fenced node registers anew, catches up, and serves.
func TestFencedNodeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, _ := start(t, feed, nil)
		synctest.Wait()
		feed.mu.Lock()
		clear(feed.nodes)
		feed.mu.Unlock()
		key.State = keys.StateRevoked
		feed.write(key)
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked || v.Ready() != nil {
			t.Errorf("%s, ready %v", got, v.Ready())
		}
		if n := v.Stats().Fenced; n != 1 {
			t.Errorf("fenced %d times, want 1", n)
		}
		if feed.snapshots != 1 {
			t.Errorf("%d snapshots: a node that comes back catches up from what it has", feed.snapshots)
		}
	})
}

// A registration whose answer was lost is made again under a new id; the row it left is fenced by the
// first write that finds it.
func TestRegistrationWithALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		feed.loseAnswers = 2
		v, _ := start(t, feed, nil)
		time.Sleep(time.Second)
		if err := v.Ready(); err != nil {
			t.Fatal(err)
		}
		if err := v.Await(t.Context(), feed.write()); err != nil {
			t.Fatal(err)
		}
		if n := feed.nodeCount(); n != 1 {
			t.Errorf("%d node rows, want this node's alone", n)
		}
	})
}

// R5: a clean stop gives the lease back, so that no later write waits for this node.
func TestR5StopGivesTheLeaseBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		feed.write(key)
		v, stop := start(t, feed, nil)
		synctest.Wait()
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Fatal(got)
		}
		stop()
		if n := feed.nodeCount(); n != 0 {
			t.Errorf("%d node rows after a clean stop", n)
		}
		if v.Ready() == nil {
			t.Error("still ready after the lease was given back")
		}
		if feed.recorded()[key.ID].IsZero() { // C20: survives a clean stop
			t.Error("the last use was not written")
		}
	})
}

// C20, V6: null until the first accepted verification, at most 60 s behind, never back, and an
// outage loses none.
func TestC20LastUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		refused, refusedKey := newKey(t, "org_a", keys.Test)
		refusedKey.State = keys.StateRevoked
		feed.write(key, refusedKey)
		v, _ := start(t, feed, nil)
		synctest.Wait()
		reasonOf(v, Request{Secret: refused})
		reasonOf(v, Request{Secret: secret, Environment: keys.Test})
		reasonOf(v, Request{Secret: secret, ConnectedAccountID: "org_foreign"})
		time.Sleep(time.Minute)
		if diff := cmp.Diff(map[string]time.Time{}, feed.recorded()); diff != "" {
			t.Fatalf("uses recorded for refused verifications:\n%s", diff)
		}

		used := time.Now().Truncate(time.Second).UTC()
		reasonOf(v, Request{Secret: secret})
		time.Sleep(59 * time.Second)
		if got := feed.recorded()[key.ID]; !got.Equal(used) {
			t.Errorf("last use %v a minute later, want %v", got, used)
		}

		feed.setAway(true)
		again := time.Now().Truncate(time.Second).UTC()
		reasonOf(v, Request{Secret: secret})
		time.Sleep(5 * time.Minute)
		feed.setAway(false)
		time.Sleep(30 * time.Second)
		if got := feed.recorded()[key.ID]; !got.Equal(again) {
			t.Errorf("last use %v after an outage, want %v", got, again)
		}
	})
}

// P5: a row changed behind the service's back is refused by the next scrub, and counted.
func TestScrubRefusesRowsThatAreNotGenuine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		other, otherKey := newKey(t, "org_b", keys.Live)
		feed.write(key, otherKey, keys.Organization{ID: "org_b", Active: true, Registered: true, Genuine: true})
		v, _ := start(t, feed, nil)
		synctest.Wait()
		feed.mu.Lock()
		key.Genuine, key.Revision = false, 1
		feed.keys[key.ID] = key
		feed.organizations["org_b"] = keys.Organization{ID: "org_b", Active: true, Registered: true, Revision: 1}
		feed.mu.Unlock()
		if err := v.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Unknown {
			t.Errorf("%s for a key whose row is not genuine", got)
		}
		if got := reasonOf(v, Request{Secret: other}); got != keys.OrganizationInactive {
			t.Errorf("%s for a key whose organization's row is not genuine", got)
		}
		if n := v.Stats().Tampered; n != 2 {
			t.Errorf("counted %d, want 2", n)
		}
	})
}

// I2: a database that lost a revocation does not bring the key back on a node that knew.
func TestRestoredBackupRevokesNothingLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		before := feed.write(key)
		v, _ := start(t, feed, nil)
		key.State = keys.StateRevoked
		feed.write(key)
		feed.write()
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Fatal(got)
		}
		feed.mu.Lock()
		key.State, key.Revision = keys.StateActive, before.Revision
		feed.keys[key.ID], feed.revision = key, before.Revision
		feed.restored()
		feed.mu.Unlock()
		time.Sleep(time.Second)
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Errorf("%s after an older backup was restored", got)
		}
		if n := v.Stats().Regressions; n != 1 {
			t.Errorf("%d regressions counted, want 1", n)
		}
	})
}

// C23, I2: a database that lost writes and counted on to the same revision with other ones, while this node could not
// reach it: what those say is in force once they are answered, and what was lost is not.
func TestC23LostWritesAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		lost, lostKey := newKey(t, "org_b", keys.Live)
		backup := feed.write(key)
		v, _ := start(t, feed, nil)
		synctest.Wait()
		if err := v.Await(t.Context(), feed.write(lostKey)); err != nil {
			t.Fatal(err)
		}
		feed.mu.Lock()
		feed.away, feed.revision, feed.history = true, backup.Revision, 1
		delete(feed.keys, lostKey.ID)
		feed.restored()
		for id := range feed.nodes {
			feed.nodes[id] = backup.Revision // the nodes' rows went back with everything else
		}
		feed.mu.Unlock()
		time.Sleep(3 * time.Second) // the follow loop is in its longest pause
		feed.setAway(false)
		key.State = keys.StateRevoked
		began := time.Now()
		answered := make(chan error, 1)
		go func() { answered <- v.Await(t.Context(), feed.write(key)) }()
		time.Sleep(500 * time.Millisecond)
		if n := v.Stats().Regressions; n != 1 {
			t.Errorf("%d regressions counted: a write wakes the loop out of its pause", n)
		}
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		// The rows of other nodes may be among what was lost, so the process that finds this out waits the whole wait.
		if took := time.Since(began); took < 12550*time.Millisecond || took > 12600*time.Millisecond {
			t.Errorf("answered after %v, want 1.25 L + 50 ms", took)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Errorf("%s right after the revoke was answered", got)
		}
		if got := reasonOf(v, Request{Secret: lost}); got != keys.Unknown {
			t.Errorf("%s for a key the database lost", got)
		}
		if n := v.Stats().Regressions; n != 1 {
			t.Errorf("%d regressions counted, want 1", n)
		}
	})
}

// C23: nodes may have different leases: a writer waits for the longest of those that are silent.
func TestC23LongestLeaseIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		v, _ := start(t, feed, func(c *Config) { c.Lease = 2 * time.Second })
		synctest.Wait()
		if err := feed.Register(t.Context(), keys.Node{ID: "silent", Lease: 20 * time.Second}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := v.Await(t.Context(), feed.write()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 25050*time.Millisecond || took > 25100*time.Millisecond {
			t.Errorf("waited %v, want 1.25 times the longest lease and 50 ms", took)
		}
	})
}

// P5: a row that a read found not to be genuine is refused at once, and repaired by a genuine one.
func TestP5RefuseRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		secret, key := newKey(t, "org_a", keys.Live)
		other, otherKey := newKey(t, "org_b", keys.Live)
		feed.write(key, otherKey)
		idle(t, feed).RefuseRow("keys", key.ID) // nothing is loaded
		v, _ := start(t, feed, nil)
		synctest.Wait()
		v.RefuseRow("keys", key.ID)
		v.RefuseRow("organizations", "org_b")
		v.RefuseRow("meta", "")
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Unknown {
			t.Errorf("%s for the key", got)
		}
		if got := reasonOf(v, Request{Secret: other}); got != keys.OrganizationInactive {
			t.Errorf("%s for the organization's key", got)
		}
		if n := v.Stats().Tampered; n != 2 {
			t.Errorf("counted %d, want 2", n)
		}
		key.State = keys.StateRevoked
		revision := feed.write(key, keys.Organization{ID: "org_b", Active: true, Registered: true, Genuine: true})
		if err := v.Await(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Errorf("%s for the key once it was revoked", got)
		}
		if got := reasonOf(v, Request{Secret: other}); got != keys.Valid {
			t.Errorf("%s for the organization's key once it was put again", got)
		}
	})
}

// The index against a plain map, over random changes: the newest genuine row wins, a revoked or
// forged one never comes back, and a row that claims another digest ends the one it had.
func TestIndexAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type row struct {
			state    keys.State // "" = refused
			revision int64
		}
		ix, model := newIndex(element), map[token.Digest]row{}
		owner := map[string]token.Digest{}
		digests := make([]token.Digest, 6)
		for i := range digests {
			s, err := format.Generate(keys.Live)
			if err != nil {
				rt.Fatal(err)
			}
			digests[i] = s.Digest()
		}
		all := []keys.State{keys.StateActive, keys.StateOverlapping, keys.StateExpired, keys.StateRevoked}
		for revision := int64(1); revision <= 40; revision++ {
			i := rapid.IntRange(0, len(digests)-1).Draw(rt, "key")
			k := keys.Key{ID: fmt.Sprint("key_", i), OrganizationID: "org_a", Environment: keys.Live, Digest: digests[i],
				State:    rapid.SampledFrom(all).Draw(rt, "state"),
				Revision: rapid.Int64Range(max(1, revision-3), revision).Draw(rt, "revision"),
				Genuine:  rapid.IntRange(0, 9).Draw(rt, "genuine") > 0}
			ix.applyKey(&k, rapid.Bool().Draw(rt, "published"))

			known, had := model[k.Digest]
			switch {
			case !k.Genuine && had && known.state != keys.StateRevoked:
				model[k.Digest] = row{"", known.revision}
			case !k.Genuine:
			case had && known.state == "" && k.State != keys.StateRevoked, had && k.Revision < known.revision,
				had && known.state == keys.StateRevoked && k.State != keys.StateRevoked:
			default:
				model[k.Digest] = row{k.State, k.Revision}
				owner[k.ID] = k.Digest
			}
		}
		for _, d := range digests {
			want := keys.Unknown
			if r, ok := model[d]; ok && r.state != "" {
				want = keys.Judge(keys.Lifecycle{State: r.state}, true, time.Now())
			}
			got := keys.Unknown
			if f, ok := ix.find(d, keys.Live, ""); ok {
				got = ix.verdict(&f, keys.Live, &Request{}, time.Now()).Reason
			}
			if got != want {
				rt.Fatalf("digest %x: %s, want %s", d[:4], got, want)
			}
		}
	})
}

// A revoke of a row whose digest somebody changed still ends the secret the key really had.
func TestChangedDigestEndsTheOldSecret(t *testing.T) {
	ix := newIndex(element)
	_, key := newKey(t, "org_a", keys.Live)
	_, other := newKey(t, "org_a", keys.Live)
	key.Revision = 1
	ix.applyKey(&key, true)
	genuine := key.Digest
	key.Digest, key.State, key.Revision = other.Digest, keys.StateRevoked, 2
	if c := ix.applyKey(&key, true); c != otherDigest {
		t.Errorf("conflict %q", c)
	}
	if _, ok := ix.find(genuine, keys.Live, ""); ok {
		t.Error("the secret the key really had is still found")
	}
}

// Texts survive as they were, whatever is added after them.
func TestArena(t *testing.T) {
	var a arena
	var refs []text
	var want []string
	for i := range 5000 {
		s := strings.Repeat(string(rune('a'+i%26)), i%1021)
		refs, want = append(refs, a.add(s)), append(want, s)
	}
	for i, r := range refs {
		if a.get(r) != want[i] {
			t.Fatalf("text %d changed", i)
		}
	}
}

// Readers and the writer meet under the race detector; a revocation is seen once it was applied.
func TestConcurrentVerification(t *testing.T) {
	feed := newMemoryFeed()
	v, _ := start(t, feed, nil)
	waitReady(t, v)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	secrets := make(chan string, 1)
	secret, key := newKey(t, "org_a", keys.Live)
	secrets <- secret
	for range 4 {
		s := secret // the variable changes below
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s = <-secrets:
				default:
					if _, err := v.Verify(context.Background(), Request{Secret: s}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 50 {
		key.State = keys.StateActive
		if err := v.Await(t.Context(), feed.write(key)); err != nil {
			t.Fatal(err)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Valid {
			t.Fatalf("%s after create", got)
		}
		key.State = keys.StateRevoked
		if err := v.Await(t.Context(), feed.write(key)); err != nil {
			t.Fatal(err)
		}
		if got := reasonOf(v, Request{Secret: secret}); got != keys.Revoked {
			t.Fatalf("%s after revoke", got)
		}
		secret, key = newKey(t, "org_a", keys.Live)
		secrets <- secret
	}
	close(stop)
	readers.Wait()
}

func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			feed := newMemoryFeed()
			var sample []string
			rows := make([]any, n)
			for i := range rows {
				secret, k := newKey(b, fmt.Sprint("org_", i), keys.Live)
				rows[i] = k
				if i%(max(1, n/20_000)) == 0 { // far more than a cache holds
					sample = append(sample, secret)
				}
			}
			feed.write(rows...)
			v, _ := start(b, feed, nil)
			for deadline := time.Now().Add(time.Minute); v.Ready() != nil && time.Now().Before(deadline); {
				<-time.After(10 * time.Millisecond)
			}
			absent := make([]string, len(sample))
			for i := range absent {
				absent[i], _ = newKey(b, "org", keys.Live)
			}
			mistyped := make([]string, len(sample))
			for i, secret := range sample {
				mistyped[i] = mistype(secret)
			}
			ask := func(name string, secrets []string, account string, want keys.Reason) {
				b.Run(name, func(b *testing.B) { benchmarkReason(b, v, secrets, account, want) })
			}
			ask("valid", sample, "", keys.Valid)
			ask("connected-account", sample, "org_0", keys.ConnectedAccountForbidden)
			ask("unknown", absent, "", keys.Unknown)
			ask("malformed", mistyped, "", keys.Malformed)
		})
	}
}

func benchmarkReason(b *testing.B, v *Verifier, secrets []string, account string, want keys.Reason) {
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			verdict, err := v.Verify(ctx, Request{Secret: secrets[i%len(secrets)], ConnectedAccountID: account})
			if err != nil || verdict.Reason != want {
				b.Error(verdict.Reason, err)
				return
			}
		}
	})
}
