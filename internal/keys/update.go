package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/syncgram/keyward/api"
)

// maxDescription is the length of a description in code points (C31).
const maxDescription = 1000

// UpdateRequest is what a PATCH of a key asks for, not yet checked. A nil field is left as it is.
type UpdateRequest struct {
	KeyID       string
	Name        *string
	Description *string // empty removes it
}

// Get returns a key of the caller's organization in either environment, and the moment its status
// is computed for (C29).
func (s *Service) Get(ctx context.Context, c Call, id string) (UsedKey, time.Time, error) {
	if _, err := s.gate(ctx, s.cfg.Store, c); err != nil {
		return UsedKey{}, time.Time{}, s.Refuse(ctx, c, ActGet, id, err)
	}
	if !validID(id) {
		return UsedKey{}, time.Time{}, s.Refuse(ctx, c, ActGet, id, notFound())
	}
	k, err := s.cfg.Store.UsedKey(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && k.OrganizationID != c.Principal.OrganizationID:
		return UsedKey{}, time.Time{}, s.Refuse(ctx, c, ActGet, id, notFound())
	case err == nil && !k.Genuine:
		err = fmt.Errorf("key %s: %w", id, ErrTampered)
	}
	if err != nil {
		return UsedKey{}, time.Time{}, undecided(err)
	}
	now, err := s.cfg.Store.Now(ctx)
	return k, now, undecided(err)
}

// Update changes the name and the description of a key that is accepted (C30). Like Revoke it
// always writes and always passes the barrier, so a repeat completes a change whose outcome was
// not known.
func (s *Service) Update(
	ctx context.Context, c Call, r UpdateRequest,
) (k UsedKey, now time.Time, err error) {
	defer func(began time.Time) { s.observe(ActUpdate, began, err) }(time.Now())
	if err := s.checkUpdate(&r); err != nil {
		return UsedKey{}, now, s.Refuse(ctx, c, ActUpdate, r.KeyID, err)
	}
	err = s.write(ctx, c, ActUpdate, r.KeyID, func(ctx context.Context, tx Tx, _ Organization) error {
		if k.Key, err = s.owned(ctx, tx, c, r.KeyID); err != nil {
			return err
		}
		now = tx.Now()
		if status := Status(k.Lifecycle(), now); !k.Genuine || status != StateActive && status != StateOverlapping {
			return &Error{Code: api.KeyNotActive, Detail: "A revoked or expired API key cannot be changed."}
		}
		var changed []string
		if r.Name != nil {
			k.Name, changed = *r.Name, append(changed, "key_name")
		}
		if r.Description != nil {
			k.Description, changed = *r.Description, append(changed, "description")
		}
		k.Revision = tx.Revision()
		return s.change(ctx, tx, c, k.Key, ActUpdate, strings.Join(changed, " "))
	})
	if err != nil {
		return UsedKey{}, now, err
	}
	used, err := s.cfg.Store.UsedKey(ctx, r.KeyID)
	if err != nil {
		return UsedKey{}, now, undecided(err)
	}
	k.LastUsedAt = used.LastUsedAt
	return k, now, nil
}

// checkUpdate applies C30, C7 and C31. The fields are trimmed.
func (s *Service) checkUpdate(r *UpdateRequest) error {
	if r.Name == nil && r.Description == nil {
		return Invalid("", "The body must have key_name, description or both.")
	}
	if r.Name != nil {
		name, err := s.checkName(*r.Name)
		if err != nil {
			return err
		}
		r.Name = &name
	}
	return s.checkDescription(&r.Description)
}

// checkDescription applies C31 and V7, trims, and makes every line break a line feed. A nil
// description is left as it is.
func (s *Service) checkDescription(description **string) error {
	if *description == nil {
		return nil
	}
	text := strings.TrimSpace(strings.ReplaceAll(**description, "\r\n", "\n"))
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' }
	if !utf8.ValidString(text) || utf8.RuneCountInString(text) > maxDescription || strings.ContainsFunc(text, bad) {
		return Invalid("description",
			"description must be at most 1000 characters without control characters but line breaks.")
	}
	*description = &text
	return s.checkHarmless("description", text)
}
