package keys_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// mint takes a turn that must be due.
func (f *fixture) mint(t *testing.T, s *keys.Service) token.Secret {
	t.Helper()
	secret, wait, err := s.MintProbe(t.Context(), time.Minute)
	if err != nil || wait != 0 {
		t.Fatalf("mint: wait %v, %v", wait, err)
	}
	return secret
}

func (f *fixture) probeKey(t *testing.T) keys.Key {
	t.Helper()
	k, err := f.store.Key(t.Context(), keys.ProbeKeyID)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// C23, P8: a probe is minted and ended in one row, each passes the barrier and leaves its audit entry, and of all nodes
// one has a turn.
func TestProbe(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		f := open(t, engine, nil)
		other := f.another(t)
		first := f.mint(t, f.Service)
		k := f.probeKey(t)
		if k.State != keys.StateActive || k.Digest != first.Digest() || !k.Genuine || k.Environment != keys.Test || k.ExpiresAt.IsZero() {
			t.Errorf("minted %+v", k)
		}
		f.clock.advance(20 * time.Second)
		for _, s := range []*keys.Service{f.Service, other} {
			before := f.barrier.last
			if _, wait, err := s.MintProbe(t.Context(), time.Minute); wait != 40*time.Second || err != nil {
				t.Errorf("a turn too early: wait %v, %v", wait, err)
			}
			if f.barrier.last != before || f.probeKey(t).Revision != k.Revision {
				t.Error("a turn too early wrote something")
			}
		}
		if err := f.EndProbe(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if k := f.probeKey(t); k.State != keys.StateRevoked || k.RevokedAt.IsZero() {
			t.Errorf("ended %+v", k)
		}
		f.clock.advance(40 * time.Second)
		second := f.mint(t, other)
		if k := f.probeKey(t); k.State != keys.StateActive || k.Digest != second.Digest() || !k.RevokedAt.IsZero() {
			t.Errorf("minted again: %+v", k)
		}
		if err := f.EndProbe(t.Context(), first); !errors.Is(err, keys.ErrProbeOvertaken) {
			t.Errorf("the end of a probe that another overtook: %v", err)
		}
		if k := f.probeKey(t); k.State != keys.StateActive {
			t.Error("the end of an earlier probe ended this one")
		}
		if f.barrier.calls != 3 {
			t.Errorf("the barrier was awaited %d times, want 3", f.barrier.calls)
		}
		entries, err := f.store.Audit(t.Context(), 0, 100, sqlstore.AuditFilter{TargetID: keys.ProbeKeyID})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Actor+" "+string(e.Action)+" "+e.OrganizationID+" "+e.Outcome)
		}
		want := []string{"keyward probe.mint .keyward done", "keyward probe.end .keyward done", "keyward probe.mint .keyward done"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
		report, err := f.store.VerifyAudit(t.Context(), nil)
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("the log: %v, %v", report.Findings, err)
		}
	})
}

// A clock that was set back does not put the next probe off until it is where it was.
func TestProbeAfterTheClockWasSetBack(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.clock.advance(365 * 24 * time.Hour)
	f.mint(t, f.Service)
	f.clock.advance(-365 * 24 * time.Hour)
	f.mint(t, f.Service)
}

// C23: a probe whose write is not known to be everywhere has no secret, and an end that is not is an error.
func TestProbeBarrierFails(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.barrier.set(errors.New("a node is away"))
	if secret, _, err := f.MintProbe(t.Context(), time.Minute); code(err) != api.Unavailable || secret.Reveal() != "" {
		t.Errorf("mint: %v", err)
	}
	f.barrier.set(nil)
	f.clock.advance(time.Minute)
	secret := f.mint(t, f.Service)
	f.barrier.set(errors.New("a node is away"))
	if err := f.EndProbe(t.Context(), secret); code(err) != api.Unavailable {
		t.Errorf("end: %v", err)
	}
}

// C22, O1: nobody can name the probe's organization, and another's call does not find its key.
func TestProbeIsNobodys(t *testing.T) {
	f := open(t, sqlstore.SQLite, nil)
	f.mint(t, f.Service)
	if keys.ValidOrganizationID(keys.ProbeOrganizationID) {
		t.Fatal("a token may name the probe's organization")
	}
	_, err := f.PutOrganization(t.Context(), keys.Operator{}, keys.OrganizationRequest{ID: keys.ProbeOrganizationID})
	if code(err) != api.InvalidRequest {
		t.Errorf("put: %v", err)
	}
	if _, err := f.Revoke(t.Context(), user("ann", "org_a"), keys.ProbeKeyID, ""); code(err) != api.KeyNotFound {
		t.Errorf("revoke: %v", err)
	}
	if k := f.probeKey(t); k.State != keys.StateActive {
		t.Errorf("the probe key is %s", k.State)
	}
}
