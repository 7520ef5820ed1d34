package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/failpoint"
	"github.com/syncgram/keyward/token"
)

// What operators do with the keys of any organization (O3, O4). The probe key is no organization's
// and is shown and ended by none of it.

// KeyFilter is which keys an operator asks for, not yet checked. A nil field selects all.
type KeyFilter struct {
	OrganizationID *string
	CreatedBy      *string
	Hint           *string
	Status         *string
	Environment    *string
	CreatedBefore  *string // RFC 3339
}

// empty reports whether the filter selects every key.
func (f *KeyFilter) empty() bool { return *f == KeyFilter{} }

// names lists the members that are set, for the audit log.
func (f *KeyFilter) names() string {
	var set []string
	for _, m := range f.members() {
		if m.value != nil {
			set = append(set, m.name)
		}
	}
	return strings.Join(set, " ")
}

type filterMember struct {
	name  string
	value *string
}

func (f *KeyFilter) members() []filterMember {
	return []filterMember{
		{"organization_id", f.OrganizationID}, {"created_by", f.CreatedBy}, {"hint", f.Hint},
		{"status", f.Status}, {"env", f.Environment}, {"created_before", f.CreatedBefore},
	}
}

// KeyPage is a page of the keys of all organizations.
type KeyPage struct {
	Keys       []UsedKey
	Now        time.Time // the moment the statuses are computed for
	NextCursor string    // empty when there are no more
	LeftOut    int       // rows of this page whose MAC or revision is wrong
}

// SearchKeys returns a page of up to limit keys, newest first (O3).
func (s *Service) SearchKeys(
	ctx context.Context, f KeyFilter, limit int, cursor string,
) (KeyPage, error) {
	if limit < 1 || limit > maxPage {
		return KeyPage{}, Invalid("limit", fmt.Sprintf("limit must be a whole number from 1 to %d.", maxPage))
	}
	if err := s.proven(); err != nil {
		return KeyPage{}, err
	}
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return KeyPage{}, undecided(err)
	}
	q, err := s.search(&f, now)
	if err != nil {
		return KeyPage{}, err
	}
	if cursor != "" {
		after, ok := readCursor(cursor)
		if !ok {
			return KeyPage{}, Invalid("cursor", "cursor must be the next_cursor of an earlier page.")
		}
		q.After = &after
	}
	q.Limit = limit + 1 // one more row tells whether there is another page
	rows, err := s.cfg.Store.SearchKeys(ctx, q)
	if err != nil {
		return KeyPage{}, undecided(err)
	}
	page := KeyPage{Now: now}
	if len(rows) > limit {
		rows = rows[:limit]
		page.NextCursor = cursorAfter(rows[limit-1].Key)
	}
	for _, k := range rows {
		switch {
		case k.ID == ProbeKeyID:
		case !k.Genuine:
			page.LeftOut++
		default:
			page.Keys = append(page.Keys, k)
		}
	}
	return page, nil
}

// search checks a filter and returns the search that finds its keys as of now.
func (s *Service) search(f *KeyFilter, now time.Time) (q KeySearch, err error) {
	if v := f.OrganizationID; v != nil {
		if !ValidOrganizationID(*v) {
			return q, Invalid("organization_id", "organization_id must be an organization's id.")
		}
		q.OrganizationID = *v
	}
	if v := f.CreatedBy; v != nil {
		if *v == "" || !printableText(*v, maxCreator) {
			return q, Invalid("created_by", "created_by must be a user, the sub of a token.")
		}
		q.CreatedBy = *v
	}
	if v := f.Hint; v != nil {
		if len(*v) != token.HintLength || strings.ContainsFunc(*v, notBase62) {
			return q, Invalid("hint", "hint must be the last four characters of a secret.")
		}
		q.Hint = *v
	}
	if v := f.Environment; v != nil {
		if *v != string(Live) && *v != string(Test) {
			return q, Invalid("env", `env must be "live" or "test".`)
		}
		q.Environment = Environment(*v)
	}
	if v := f.CreatedBefore; v != nil {
		if q.CreatedBefore, err = time.Parse(time.RFC3339, *v); err != nil || q.CreatedBefore.Unix() <= 0 {
			return q, Invalid("created_before", "created_before must be a time such as 2026-01-31T12:00:00Z.")
		}
	}
	if v := f.Status; v != nil {
		switch State(*v) {
		case StateActive, StateOverlapping:
			q.States, q.NotExpiredAt = []State{State(*v)}, now
		case StateExpired:
			q.States, q.ExpiredAt = []State{StateActive, StateOverlapping, StateExpired}, now
		case StateRevoked:
			q.States = []State{StateRevoked}
		default:
			return q, Invalid("status", "status must be active, overlapping, expired or revoked.")
		}
	}
	return q, nil
}

// maxCreator bounds the user that a filter names, in code points.
const maxCreator = 1024

func notBase62(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

// AnyKey returns a key of any organization, and the moment its status is computed for (O3).
func (s *Service) AnyKey(ctx context.Context, id string) (UsedKey, time.Time, error) {
	if !validID(id) || id == ProbeKeyID {
		return UsedKey{}, time.Time{}, noSuchKey()
	}
	return s.shown(ctx, func() (UsedKey, error) { return s.cfg.Store.UsedKey(ctx, id) })
}

// KeyOfSecret returns the key that a secret belongs to (O3). Whatever has no key is not found, also
// a text that is no secret of this deployment: an earlier prefix is no reason not to find a key.
// It counts as no use of the key.
func (s *Service) KeyOfSecret(
	ctx context.Context, secret token.Secret,
) (UsedKey, time.Time, error) {
	return s.shown(ctx, func() (UsedKey, error) { return s.cfg.Store.KeyOfDigest(ctx, secret.Digest()) })
}

// shown is what an operator may see of the key that read finds.
func (s *Service) shown(
	ctx context.Context, read func() (UsedKey, error),
) (UsedKey, time.Time, error) {
	if err := s.proven(); err != nil {
		return UsedKey{}, time.Time{}, err
	}
	k, err := read()
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && k.ID == ProbeKeyID:
		return UsedKey{}, time.Time{}, noSuchKey()
	case err == nil && !k.Genuine:
		err = fmt.Errorf("key %s: %w", k.ID, ErrTampered)
	}
	if err != nil {
		return UsedKey{}, time.Time{}, undecided(err)
	}
	now, err := s.cfg.Store.Now(ctx)
	return k, now, undecided(err)
}

func noSuchKey() *Error {
	return &Error{Code: api.KeyNotFound, Detail: "There is no such API key. Search the keys to find its id."}
}

// RevokeAny ends a key of any organization, as Revoke does for its owner (O4, C21, C23).
func (s *Service) RevokeAny(
	ctx context.Context, op Operator, id, reason string,
) (k Key, err error) {
	defer func(began time.Time) { s.observe(ActRevoke, began, err) }(time.Now())
	if err := s.checkReason(reason); err != nil {
		return Key{}, s.rejectOperator(ctx, op, ActRevoke, id, err)
	}
	if !validID(id) || id == ProbeKeyID {
		return Key{}, s.rejectOperator(ctx, op, ActRevoke, "", noSuchKey())
	}
	commit, err := s.cfg.Store.Write(ctx, Reads{KeyID: id}, func(ctx context.Context, tx Tx) error {
		if k, err = tx.Key(ctx, id); errors.Is(err, ErrNotFound) {
			return noSuchKey()
		}
		if err == nil {
			k, err = s.revokeByOperator(ctx, tx, op, k, reason)
		}
		return err
	})
	if err != nil {
		return Key{}, s.rejectOperator(ctx, op, ActRevoke, id, err)
	}
	failpoint.Hit("write.committed")
	if err := s.cfg.Barrier.Await(ctx, commit); err != nil {
		return Key{}, undecided(err)
	}
	return k, nil
}

// revokeByOperator writes the revocation of a key with its audit entry.
func (s *Service) revokeByOperator(
	ctx context.Context, tx Tx, op Operator, k Key, reason string,
) (Key, error) {
	if k.State != StateRevoked {
		k.State, k.RevokedAt, k.RevokeReason = StateRevoked, tx.Now(), reason
	}
	k.Revision = tx.Revision()
	if err := tx.EraseReplays(ctx, k.ID); err != nil {
		return k, err
	}
	if err := tx.UpdateKey(ctx, k); err != nil {
		return k, err
	}
	e := operatorEntry(op, ActRevoke, k.ID, tx.Now())
	e.OrganizationID, e.Detail, e.Revision = k.OrganizationID, reason, tx.Revision()
	return k, tx.Audit(ctx, e)
}

func (s *Service) checkReason(reason string) error {
	if !printableText(reason, maxText) {
		return Invalid("reason", "reason must be at most 255 printable characters.")
	}
	return s.checkHarmless("reason", reason)
}

// operatorEntry starts the audit entry of an operator's act.
func operatorEntry(op Operator, action Action, targetID string, now time.Time) AuditEntry {
	return AuditEntry{At: now, Actor: op.AuditActor(), Action: action, TargetID: targetID, Outcome: Done,
		RemoteAddress: op.RemoteAddress, RequestID: op.RequestID}
}

// rejectOperator records that an operator's act on a key was rejected, and returns why.
func (s *Service) rejectOperator(
	ctx context.Context, op Operator, action Action, keyID string, cause error,
) error {
	var rejection *Error
	if !errors.As(cause, &rejection) {
		return undecided(cause)
	}
	if !validID(keyID) {
		keyID = ""
	}
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return undecided(err)
	}
	e := operatorEntry(op, action, keyID, now)
	e.Outcome, e.Detail = string(rejection.Code), rejection.Param
	if err := s.cfg.Store.Record(ctx, e); err != nil {
		return undecided(err)
	}
	return rejection
}
