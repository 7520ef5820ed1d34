package keys

import (
	"context"
	"errors"
	"time"

	"github.com/syncgram/keyward/token"
)

// The probe key is one row that the nodes' probers mint and end again and again, to see that a write is everywhere when it
// is answered. Its organization is one that no token and no request can name, so nobody manages it and no list shows it.
const (
	ProbeOrganizationID = ".keyward"
	ProbeKeyID          = "key_00000000000000000000000000"
)

// probeDays ends a probe key by itself that nobody ended, should there be no next probe.
const probeDays = 1

// ErrProbeOvertaken is what EndProbe answers when the row has another secret by now: the probe took longer than the time
// between two, and nothing can be said about it any more.
var ErrProbeOvertaken = errors.New("keys: the next probe began before this one had ended")

// errNotDue undoes the transaction of a probe that was not this node's turn.
var errNotDue = errors.New("keys: no probe is due")

// MintProbe gives the probe key a new secret, at most once in every for the whole deployment: the row itself says when that was
// last. When no probe is due it writes nothing, and wait says how long until the next is.
func (s *Service) MintProbe(ctx context.Context, every time.Duration) (secret token.Secret, wait time.Duration, err error) {
	if err := s.proven(); err != nil {
		return token.Secret{}, 0, err
	}
	// Most of the time another node was first, which a read tells.
	if wait, err = s.untilProbe(ctx, every); err != nil || wait > 0 {
		return token.Secret{}, wait, undecided(err)
	}
	if secret, err = s.cfg.Format.Generate(Test); err != nil {
		return token.Secret{}, 0, err
	}
	commit, err := s.cfg.Store.Write(ctx, Reads{KeyID: ProbeKeyID}, func(ctx context.Context, tx Tx) error {
		k := Key{
			ID: ProbeKeyID, OrganizationID: ProbeOrganizationID, Environment: Test, Name: "probe", CreatedBy: systemActor,
			Digest: secret.Digest(), Hint: secret.Hint(), CreatedAt: tx.Now(), State: StateActive,
			ExpiresInDays: probeDays, ExpiresAt: tx.Now().Add(probeDays * day),
		}
		put := tx.UpdateKey
		before, err := tx.Key(ctx, ProbeKeyID)
		switch {
		case errors.Is(err, ErrNotFound):
			put = tx.InsertKey
		case err != nil:
			return err
		default:
			if wait = probeWait(&before, tx.Now(), every); wait > 0 {
				return errNotDue
			}
		}
		if err := put(ctx, k); err != nil {
			return err
		}
		return auditProbe(ctx, tx, ActProbeMint)
	})
	if errors.Is(err, errNotDue) {
		return token.Secret{}, wait, nil
	}
	if err == nil {
		err = s.cfg.Barrier.Await(ctx, commit)
	}
	if err != nil {
		return token.Secret{}, 0, undecided(err)
	}
	return secret, 0, nil
}

// EndProbe revokes the probe key that was minted with secret.
func (s *Service) EndProbe(ctx context.Context, secret token.Secret) error {
	commit, err := s.cfg.Store.Write(ctx, Reads{KeyID: ProbeKeyID}, func(ctx context.Context, tx Tx) error {
		k, err := tx.Key(ctx, ProbeKeyID)
		if err != nil {
			return err
		}
		if k.Digest != secret.Digest() {
			return ErrProbeOvertaken
		}
		k.State, k.RevokedAt = StateRevoked, tx.Now()
		if err := tx.UpdateKey(ctx, k); err != nil {
			return err
		}
		return auditProbe(ctx, tx, ActProbeEnd)
	})
	if errors.Is(err, ErrProbeOvertaken) {
		return err
	}
	if err == nil {
		err = s.cfg.Barrier.Await(ctx, commit)
	}
	return undecided(err)
}

// untilProbe reads how long it is until a probe is due.
func (s *Service) untilProbe(ctx context.Context, every time.Duration) (time.Duration, error) {
	k, err := s.cfg.Store.Key(ctx, ProbeKeyID)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	now, err := s.cfg.Store.Now(ctx)
	return probeWait(&k, now, every), err
}

// probeWait is how long after now a probe is due, given the row of the last. What a row says that is not genuine, or that is from a
// future which a clock that was set back has not reached again, puts no probe off.
func probeWait(last *Key, now time.Time, every time.Duration) time.Duration {
	since := now.Sub(last.CreatedAt)
	if !last.Genuine || since < 0 || since >= every {
		return 0
	}
	return every - since
}

func auditProbe(ctx context.Context, tx Tx, action Action) error {
	return tx.Audit(ctx, AuditEntry{At: tx.Now(), Actor: systemActor, Action: action, OrganizationID: ProbeOrganizationID,
		TargetID: ProbeKeyID, Outcome: Done, Revision: tx.Revision()})
}
