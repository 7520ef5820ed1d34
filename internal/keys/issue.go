package keys

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/failpoint"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/token"
)

// CreateRequest is what a create asks for, not yet checked.
type CreateRequest struct {
	Name           string
	Description    *string // nil or empty = none (C31)
	ExpiresInDays  *int64  // nil = never
	Environment    *string
	IdempotencyKey string // empty = none
}

// RollRequest is what a roll asks for, not yet checked.
type RollRequest struct {
	KeyID          string
	OverlapSeconds *int64  // nil = 0
	Name           *string // nil = the old key's
	Description    *string // nil = the old key's, empty = none (C31)
	ExpiresInDays  *int64  // nil = as many as the old key was given
	IdempotencyKey string
}

// Issued is an issued key with its secret, or the replay of one.
type Issued struct {
	Key      Key
	Secret   token.Secret // empty in a replay, whose secret is inside Body
	Body     []byte       // what Render gave when the key was issued
	Replayed bool
}

// errReplay ends a transaction that found a kept answer.
var errReplay = errors.New("keys: answered before")

// issuance is one create or roll, its values checked.
type issuance struct {
	action         Action
	targetID       string // the key that is rolled
	idempotencyKey string
	request        []byte // canonical form of what was asked, for the fingerprint (C16)

	// prepare refuses, or makes room for a new key in the transaction and returns its
	// name, environment and so on. It runs before the rate is looked at (C2).
	prepare func(ctx context.Context, tx Tx, o Organization) (Key, error)
	// makeRoom does the writes that must come before the new row, after the rate (C12, C24).
	makeRoom func(ctx context.Context, tx Tx) error
}

// Create issues a key for the caller's organization (C6–C17). Refusals are *Error; anything
// else is an *Unavailable, and asking again with the same idempotency key is safe.
func (s *Service) Create(ctx context.Context, c Call, r CreateRequest) (issued Issued, err error) {
	defer func(began time.Time) { s.observe(ActCreate, began, err) }(time.Now())
	name, days, err := s.checkCreate(&r)
	if err != nil {
		return Issued{}, s.Refuse(ctx, c, ActCreate, "", err)
	}
	request, err := json.Marshal(struct {
		Name        string
		Days        int
		Env         *string
		Description *string `json:",omitempty"`
	}{name, days, r.Environment, r.Description})
	if err != nil {
		return Issued{}, err
	}
	var expired []Key
	return s.issue(ctx, c, issuance{
		action: ActCreate, idempotencyKey: r.IdempotencyKey, request: request,
		prepare: func(ctx context.Context, tx Tx, o Organization) (Key, error) {
			holders, err := tx.KeysIn(ctx, o.ID, StateActive)
			if err != nil {
				return Key{}, err
			}
			for _, k := range holders {
				if !k.Genuine || Judge(k.Lifecycle(), true, tx.Now()) != Expired {
					return Key{}, &Error{Code: api.ActiveKeyExists, KeyID: k.ID, Environment: k.Environment,
						Detail: "Organization already has an active key. Revoke it before creating a new one."}
				}
			}
			expired = holders
			k := Key{Name: name, ExpiresInDays: days, Environment: environmentFor(&o, r.Environment)}
			if r.Description != nil {
				k.Description = *r.Description
			}
			return k, nil
		},
		makeRoom: func(ctx context.Context, tx Tx) error {
			for _, k := range expired {
				if err := s.end(ctx, tx, c, k, ActExpire, ""); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// environmentFor is C9: test until payments are enabled; then what was asked, or the current one.
func environmentFor(o *Organization, asked *string) Environment {
	if o.PaymentsEnabled && asked != nil {
		return Environment(*asked)
	}
	return o.EffectiveEnvironment()
}

// Roll ends an active key and issues its successor in one write (C24).
func (s *Service) Roll(ctx context.Context, c Call, r RollRequest) (issued Issued, err error) {
	defer func(began time.Time) { s.observe(ActRoll, began, err) }(time.Now())
	overlap, err := s.checkRoll(&r)
	if err != nil {
		return Issued{}, s.Refuse(ctx, c, ActRoll, r.KeyID, err)
	}
	request, err := json.Marshal(struct {
		KeyID   string
		Overlap time.Duration
		Name    *string
		Days    *int64

		Description *string `json:",omitempty"`
	}{r.KeyID, overlap, r.Name, r.ExpiresInDays, r.Description})
	if err != nil {
		return Issued{}, err
	}
	var old Key
	return s.issue(ctx, c, issuance{
		action: ActRoll, targetID: r.KeyID, idempotencyKey: r.IdempotencyKey, request: request,
		prepare: func(ctx context.Context, tx Tx, o Organization) (Key, error) {
			var err error
			if old, err = s.owned(ctx, tx, c, r.KeyID); err != nil {
				return Key{}, err
			}
			if !old.Genuine || Status(old.Lifecycle(), tx.Now()) != StateActive {
				return Key{}, &Error{Code: api.KeyNotActive, Detail: "Only an active API key can be rolled. Create a new key, or roll the organization's active one."}
			}
			next := Key{Name: old.Name, Description: old.Description, ExpiresInDays: old.ExpiresInDays, Environment: old.Environment, Replaces: old.ID}
			if r.Name != nil {
				next.Name = *r.Name
			}
			if r.Description != nil {
				next.Description = *r.Description
			}
			if r.ExpiresInDays != nil {
				next.ExpiresInDays = int(*r.ExpiresInDays)
			}
			return next, s.checkDays(next.ExpiresInDays)
		},
		makeRoom: func(ctx context.Context, tx Tx) error {
			if overlap == 0 {
				return s.end(ctx, tx, c, old, ActRoll, "rolled without overlap")
			}
			older, err := tx.KeysIn(ctx, old.OrganizationID, StateOverlapping)
			if err != nil {
				return err
			}
			for _, k := range older {
				if err := s.end(ctx, tx, c, k, ActRevoke, "ended by a later roll"); err != nil {
					return err
				}
			}
			until := tx.Now().Add(overlap)
			if old.ExpiresAt.IsZero() || until.Before(old.ExpiresAt) {
				old.ExpiresAt = until
			}
			old.State = StateOverlapping
			return s.change(ctx, tx, c, old, ActRoll, "")
		},
	})
}

// end takes a key out of its place for good: marked expired when its time is up, else revoked.
// Its kept answer goes with it (C17).
func (s *Service) end(ctx context.Context, tx Tx, c Call, k Key, action Action, reason string) error {
	if k.Genuine && Judge(k.Lifecycle(), true, tx.Now()) == Expired {
		k.State, action, reason = StateExpired, ActExpire, ""
	} else if k.State != StateRevoked {
		k.State, k.RevokedAt, k.RevokeReason = StateRevoked, tx.Now(), reason
	}
	if err := tx.EraseReplays(ctx, k.ID); err != nil {
		return err
	}
	return s.change(ctx, tx, c, k, action, reason)
}

// change writes a key's row and its audit entry.
func (s *Service) change(ctx context.Context, tx Tx, c Call, k Key, action Action, detail string) error {
	if err := tx.UpdateKey(ctx, k); err != nil {
		return err
	}
	e := s.entry(c, action, k.ID, tx.Now())
	e.Detail, e.Revision = detail, tx.Revision()
	return tx.Audit(ctx, e)
}

// owned returns the caller's key. Another organization's, an unknown and a malformed id are
// one refusal (C22), and cost the same reads.
func (s *Service) owned(ctx context.Context, tx Tx, c Call, id string) (Key, error) {
	k, err := tx.Key(ctx, knownID(id))
	if errors.Is(err, ErrNotFound) || err == nil && k.OrganizationID != c.Principal.OrganizationID {
		return Key{}, notFound()
	}
	if err == nil {
		err = s.notOlder(KindKey, k.ID, k.Revision)
	}
	return k, err
}

// scope is what an idempotency key is unique in, with the key (C15).
func (a *issuance) scope(c Call) []string {
	return []string{
		c.Principal.OrganizationID,
		c.Principal.User,
		string(a.action),
		a.idempotencyKey,
	}
}

// issue answers an issuance from its kept answer, or carries it out in one transaction: gate,
// replay, refusals, rate, new row, kept answer, audit (C2).
func (s *Service) issue(ctx context.Context, c Call, a issuance) (Issued, error) {
	var handles []Handle
	if a.idempotencyKey != "" {
		for _, h := range s.cfg.Ring.Handles(a.scope(c)...) {
			handles = append(handles, h)
		}
		if !s.begin(handles[0]) {
			return Issued{}, s.Refuse(ctx, c, a.action, a.targetID, &Error{Code: api.IdempotencyInProgress, RetryAfter: inProgressRetry,
				Detail: "The first request with this idempotency key is still running. Ask again in a second."})
		}
		defer s.finish(handles[0])
		kept, err := s.cfg.Store.Replay(ctx, handles)
		if err == nil {
			if issued, found, err := s.replay(ctx, c, a, kept); found || err != nil {
				return issued, err
			}
		} else if !errors.Is(err, ErrNotFound) {
			return Issued{}, undecided(err)
		}
	}
	failpoint.Hit("issue.begun")

	var issued Issued
	err := s.write(ctx, c, a.action, a.targetID, func(ctx context.Context, tx Tx, o Organization) (err error) {
		failpoint.Hit("issue.numbered")
		if len(handles) > 0 {
			kept, err := tx.Replay(ctx, handles)
			if err == nil && tx.Now().Before(kept.CreatedAt.Add(keptFor)) {
				return errReplay
			}
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		issued, err = s.carryOut(ctx, tx, c, a, o)
		return err
	})
	if errors.Is(err, errReplay) {
		kept, err := s.cfg.Store.Replay(ctx, handles)
		if err != nil {
			return Issued{}, undecided(err)
		}
		issued, found, err := s.replay(ctx, c, a, kept)
		if err == nil && !found {
			err = &Unavailable{errors.New("keys: a kept answer ran out while it was read")}
		}
		return issued, err
	}
	if err != nil {
		return Issued{}, err
	}
	failpoint.Hit("issue.visible")
	return issued, nil
}

// carryOut is the body of an issuing transaction.
func (s *Service) carryOut(
	ctx context.Context,
	tx Tx,
	c Call,
	a issuance,
	o Organization,
) (Issued, error) {
	k, err := a.prepare(ctx, tx, o)
	if err != nil {
		return Issued{}, err
	}
	if err := s.take(ctx, tx, c, a.action); err != nil {
		return Issued{}, err
	}
	if err := a.makeRoom(ctx, tx); err != nil {
		return Issued{}, err
	}
	secret, err := s.cfg.Format.Generate(k.Environment)
	if err != nil {
		return Issued{}, err
	}
	k.ID, k.OrganizationID, k.CreatedBy = newID(tx.Now()), o.ID, c.Principal.User
	k.Digest, k.Hint = secret.Digest(), secret.Hint()
	k.CreatedAt, k.State = tx.Now(), StateActive
	k.Revision, k.Genuine = tx.Revision(), true
	if k.ExpiresInDays > 0 {
		k.ExpiresAt = k.CreatedAt.Add(time.Duration(k.ExpiresInDays) * day)
	}
	if err := tx.InsertKey(ctx, k); err != nil {
		return Issued{}, fmt.Errorf("insert the new key: %w", err)
	}
	failpoint.Hit("issue.inserted")
	issued := Issued{Key: k, Secret: secret}
	if issued.Body, err = s.cfg.Render(issued); err != nil {
		return Issued{}, err
	}
	if a.idempotencyKey != "" {
		if err := s.keep(ctx, tx, c, a, issued); err != nil {
			return Issued{}, err
		}
	}
	e := s.entry(c, ActCreate, k.ID, tx.Now())
	e.Revision = tx.Revision()
	if k.Replaces != "" {
		e.Detail = "replaces " + k.Replaces
	}
	if err := tx.Audit(ctx, e); err != nil {
		return Issued{}, err
	}
	failpoint.Hit("issue.kept")
	return issued, nil
}

// take counts one act against the user's rate, or refuses it (C14, C24).
func (s *Service) take(ctx context.Context, tx Tx, c Call, rate Action) error {
	last, err := tx.LastTake(ctx, rate, c.Principal.User)
	if err != nil {
		return err
	}
	if left := rateWindow - tx.Now().Sub(last); !last.IsZero() && left > 0 {
		detail := "Rate limit exceeded. Wait 1 minute before creating another key."
		if rate == ActRoll {
			detail = "Rate limit exceeded. Wait 1 minute before rolling another key."
		}
		return &Error{Code: api.RateLimited, RetryAfter: min(left, rateWindow), Detail: detail}
	}
	return tx.Take(ctx, rate, c.Principal.User, tx.Now())
}

// begin marks an idempotent request as running; false when it already is.
func (s *Service) begin(h Handle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, busy := s.running[h]; busy {
		return false
	}
	s.running[h] = struct{}{}
	return true
}

func (s *Service) finish(h Handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, h)
}

// keep encrypts the answer under the database's master key and the client's own key (C17). The
// lookup hash is under the same key, which every node has, whatever the order of the keys in its
// file.
func (s *Service) keep(ctx context.Context, tx Tx, c Call, a issuance, issued Issued) error {
	signer := tx.Signer()
	r := Replay{
		Handle:      signer.Handle(a.scope(c)...),
		KeyID:       issued.Key.ID,
		CreatedAt:   tx.Now(),
		MasterKeyID: signer.KeyID(),
	}
	var err error
	if r.Fingerprint, err = s.cfg.Ring.Fingerprint(r.MasterKeyID, a.request); err != nil {
		return err
	}
	sealed := signer.SealAnswer(a.idempotencyKey, issued.Body, bound(&r))
	r.Salt, r.Sealed = sealed.Salt, sealed.Sealed
	return tx.KeepReplay(ctx, r)
}

// bound is what a kept answer is sealed to, so that it opens in its own row alone.
func bound(r *Replay) []byte {
	b := bytes.Join([][]byte{r.Handle[:], r.Fingerprint[:], []byte(r.KeyID)}, nil)
	return binary.BigEndian.AppendUint64(b, uint64(Micros(r.CreatedAt)))
}

// replay answers from a kept answer (C16). found is false when its 24 hours are over.
func (s *Service) replay(ctx context.Context, c Call, a issuance, kept Replay) (issued Issued, found bool, err error) {
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return Issued{}, false, undecided(err)
	}
	if !now.Before(kept.CreatedAt.Add(keptFor)) {
		return Issued{}, false, nil
	}
	if _, err := s.gate(ctx, s.cfg.Store, c); err != nil {
		return Issued{}, false, s.Refuse(ctx, c, a.action, a.targetID, err)
	}
	fingerprint, err := s.cfg.Ring.Fingerprint(kept.MasterKeyID, a.request)
	if err != nil {
		return Issued{}, false, undecided(err)
	}
	if fingerprint != kept.Fingerprint {
		return Issued{}, false, s.Refuse(ctx, c, a.action, a.targetID, &Error{Code: api.IdempotencyKeyReused, Param: "idempotency_key",
			Detail: "This idempotency key was used for a different request. Use a new one for each request."})
	}
	gone := &Error{Code: api.IdempotencyResultGone, KeyID: kept.KeyID,
		Detail: "The key this request created has been revoked or has expired, and its secret is no longer kept. Send the request again with a new idempotency key."}
	k, commit, err := s.cfg.Store.KeyAsOf(ctx, kept.KeyID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Issued{}, false, undecided(err)
	}
	if err != nil || !k.Genuine || kept.Sealed == nil || Judge(k.Lifecycle(), true, now) != Valid {
		return Issued{}, false, s.Refuse(ctx, c, a.action, kept.KeyID, gone)
	}
	body, err := s.cfg.Ring.OpenAnswer(a.idempotencyKey, seal.Answer{KeyID: kept.MasterKeyID, Salt: kept.Salt, Sealed: kept.Sealed}, bound(&kept))
	if err != nil {
		return Issued{}, false, undecided(fmt.Errorf("open a kept answer: %w", err))
	}
	// The first request may still be waiting for its barrier, or have died in it: the secret
	// is handed out only once it is accepted everywhere (C23).
	if err := s.cfg.Barrier.Await(ctx, commit); err != nil {
		return Issued{}, false, undecided(err)
	}
	e := s.entry(c, ActReplay, k.ID, now)
	if err := s.store.recordAs(ctx, normalTurn(c), e); err != nil {
		return Issued{}, false, s.full(err)
	}
	return Issued{Key: k, Body: body, Replayed: true}, true, nil
}

// checkCreate applies C7–C9 and C15 and returns the trimmed name and the days (0 = never).
func (s *Service) checkCreate(r *CreateRequest) (name string, days int, err error) {
	if name, err = s.checkName(r.Name); err != nil {
		return "", 0, err
	}
	if days, err = daysOf(r.ExpiresInDays); err != nil {
		return "", 0, err
	}
	if err := s.checkDays(days); err != nil {
		return "", 0, err
	}
	if err := s.checkDescription(&r.Description); err != nil {
		return "", 0, err
	}
	if r.Description != nil && *r.Description == "" {
		r.Description = nil // the same request as without it (C16)
	}
	if r.Environment != nil && *r.Environment != string(Live) && *r.Environment != string(Test) {
		return "", 0, Invalid("env", `env must be "live" or "test".`)
	}
	return name, days, checkIdempotencyKey(r.IdempotencyKey)
}

// checkRoll applies C24, C7, C8 and C15 and returns the overlap; r.Name is trimmed.
func (s *Service) checkRoll(r *RollRequest) (overlap time.Duration, err error) {
	if r.OverlapSeconds != nil {
		most := int64(s.cfg.MaxOverlap / time.Second)
		if *r.OverlapSeconds < 0 || *r.OverlapSeconds > most {
			return 0, Invalid("overlap_seconds", fmt.Sprintf("overlap_seconds must be a whole number from 0 to %d.", most))
		}
		overlap = time.Duration(*r.OverlapSeconds) * time.Second
	}
	if r.Name != nil {
		name, err := s.checkName(*r.Name)
		if err != nil {
			return 0, err
		}
		r.Name = &name
	}
	if err := s.checkDescription(&r.Description); err != nil {
		return 0, err
	}
	if r.ExpiresInDays != nil {
		days, err := daysOf(r.ExpiresInDays)
		if err == nil {
			err = s.checkDays(days)
		}
		if err != nil {
			return 0, err
		}
	}
	return overlap, checkIdempotencyKey(r.IdempotencyKey)
}

// checkName applies C7 and V7, and trims.
func (s *Service) checkName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if !printableText(name, maxText) {
		return "", Invalid("key_name", "key_name must be 1 to 255 characters without control characters.")
	}
	if !strings.ContainsFunc(name, visible) {
		return "", Invalid("key_name", "key_name is required: 1 to 255 characters, not only white space or invisible ones.")
	}
	return name, s.checkHarmless("key_name", name)
}

// visible reports whether a reader sees r: it is no space, no format character, and nothing that is
// shown as nothing (Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties) or, like the empty Braille
// cell, as a gap.
func visible(r rune) bool {
	const emptyBraille = '\u2800'
	return r != emptyBraille && !unicode.IsSpace(r) &&
		!unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// checkHarmless refuses a text that holds a secret: what is stored is listed, logged and answered again (V7).
func (s *Service) checkHarmless(param, text string) error {
	if s.cfg.Format.HoldsSecret(text) {
		return Invalid(param, param+" must not hold an API key's secret. Roll the key it belongs to if others may have seen it.")
	}
	return nil
}

// daysOf applies the range of C8; nil is 0, never.
func daysOf(days *int64) (int, error) {
	if days == nil {
		return 0, nil
	}
	if *days < 1 || *days > maxDays {
		return 0, Invalid("expires_in_days", fmt.Sprintf("expires_in_days must be a whole number from 1 to %d; leave it out for a key that does not expire.", maxDays))
	}
	return int(*days), nil
}

// checkDays applies the deployment's maximum lifetime (C8).
func (s *Service) checkDays(days int) error {
	most := s.cfg.MaxExpiresInDays
	if most > 0 && (days == 0 || days > most) {
		return Invalid("expires_in_days", fmt.Sprintf("This deployment requires expires_in_days, at most %d.", most))
	}
	return nil
}

// checkIdempotencyKey applies C15; an empty one was not sent.
func checkIdempotencyKey(key string) error {
	if !printableText(key, maxText) {
		return Invalid("idempotency_key", "idempotency_key must be 1 to 255 printable characters.")
	}
	return nil
}

// RetrySeconds is a Retry-After: whole seconds, rounded up, never 0 (C14).
func RetrySeconds(d time.Duration) int {
	return max(1, int(math.Ceil(d.Seconds())))
}
