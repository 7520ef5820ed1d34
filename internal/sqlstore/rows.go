package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
	"math"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// Why a row is not genuine, besides the errors of package seal.
var (
	errRolledBack = errors.New("the row is not of the latest revision that the audit log has for it")
	errRemoved    = errors.New("the row was removed; the audit log has it")
	errNoEntry    = errors.New("the audit log lost the entry of the row's revision")
	errMangled    = errors.New("a column does not have its form")
)

// anyRevision is the bound that leaves no audit entry out.
const anyRevision int64 = math.MaxInt64

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// keyRow is a key as it lies in the database.
type keyRow struct {
	keys.Key
	seal    seal.Seal
	mangled bool // a value that Key cannot hold
}

// digestColumn reads a digest in place, and notes when the column does not hold one.
type digestColumn struct{ r *keyRow }

func (d digestColumn) Scan(value any) error {
	b, ok := value.([]byte)
	d.r.mangled = !ok || len(b) != len(d.r.Digest)
	copy(d.r.Digest[:], b)
	return nil
}

// scanKey reads keyColumns, then more.
func scanKey(row scanner, more ...any) (r keyRow, err error) {
	var created, expires, revoked int64
	dest := []any{&r.ID, &r.OrganizationID, &r.Environment, digestColumn{&r}, &r.Hint, &r.Name, &created, &r.CreatedBy,
		&r.ExpiresInDays, &expires, &r.State, &revoked, &r.RevokeReason, &r.Replaces, &r.Revision, &r.seal.KeyID, &r.seal.MAC, &r.Description}
	if err := row.Scan(append(dest, more...)...); err != nil {
		return keyRow{}, err
	}
	r.CreatedAt, r.ExpiresAt, r.RevokedAt = keys.FromMicros(created), keys.FromMicros(expires), keys.FromMicros(revoked)
	return r, nil
}

// checkRow is the one rule of what a genuine row is: its columns are values Keyward writes, it is of the
// latest revision, and its seal matches.
func (s *Store) checkRow(kind string, content []byte, sealed seal.Seal, mangled, latest bool) error {
	switch {
	case mangled:
		return errMangled
	case !latest:
		return errRolledBack
	}
	return s.ring.CheckRow(kind, content, sealed)
}

// keyFromRow checks the row's MAC and sets Genuine. Whether it is of the latest revision is the
// caller's to say. An error wraps seal.ErrUnknownKey: whether the row is authentic cannot be
// decided (R10).
func (s *Store) keyFromRow(r *keyRow, latest bool) (keys.Key, error) {
	err := s.checkRow(keys.KindKey, r.Sealed(), r.seal, r.mangled, latest)
	if errors.Is(err, seal.ErrUnknownKey) {
		return keys.Key{}, fmt.Errorf("sqlstore: key %s: %w", r.ID, err)
	}
	r.Genuine = err == nil
	if err != nil {
		s.tampered("keys", r.ID, r.Revision, err)
	}
	return r.Key, nil
}

// organizationRow is an organization as it lies in the database.
type organizationRow struct {
	keys.Organization
	seal    seal.Seal
	mangled bool
}

// scanOrganization reads organizationColumns, then more.
func scanOrganization(row scanner, more ...any) (r organizationRow, err error) {
	var payments, active, created, updated, deleted int64
	dest := []any{&r.ID, &r.Name, &r.ParentID, &payments, &r.CurrentEnvironment, &active, &created, &updated,
		&r.Revision, &r.seal.KeyID, &r.seal.MAC, &deleted}
	if err := row.Scan(append(dest, more...)...); err != nil {
		return organizationRow{}, err
	}
	r.mangled = payments&^1 != 0 || active&^1 != 0 || deleted&^1 != 0
	r.PaymentsEnabled, r.Active = payments == 1, active == 1
	r.CreatedAt, r.UpdatedAt = keys.FromMicros(created), keys.FromMicros(updated)
	r.Deleted = deleted == 1
	r.Registered = !r.Deleted
	return r, nil
}

// organizationFromRow checks the row's MAC and sets Genuine. One that is not authentic is
// switched off. An error is as keyFromRow's.
func (s *Store) organizationFromRow(r *organizationRow, latest bool) (keys.Organization, error) {
	err := s.checkRow(keys.KindOrganization, r.Sealed(), r.seal, r.mangled, latest)
	if errors.Is(err, seal.ErrUnknownKey) {
		return keys.Organization{}, fmt.Errorf("sqlstore: organization %s: %w", r.ID, err)
	}
	r.Genuine = err == nil
	if err != nil {
		r.Active, r.Registered = false, true // a forged deletion is not taken for one
		s.tampered("organizations", r.ID, r.Revision, err)
	}
	return r.Organization, nil
}

// removedOrganization stands for a row that somebody took away: it is neither genuine nor active,
// so that removing the row of a switched-off organization does not switch it on.
func (s *Store) removedOrganization(id string, latest int64) keys.Organization {
	s.tampered("organizations", id, latest, errRemoved)
	return keys.Organization{ID: id, CurrentEnvironment: keys.Test, Registered: true, Revision: latest}
}

func keyArguments(k *keys.Key, sl seal.Seal) []any {
	return []any{k.ID, k.OrganizationID, string(k.Environment), k.Digest[:], k.Hint, k.Name, keys.Micros(k.CreatedAt),
		k.CreatedBy, int64(k.ExpiresInDays), keys.Micros(k.ExpiresAt), string(k.State), keys.Micros(k.RevokedAt),
		k.RevokeReason, k.Replaces, k.Revision, sl.KeyID, sl.MAC, k.Description}
}

func organizationArguments(o *keys.Organization, sl seal.Seal) []any {
	return []any{o.ID, o.Name, o.ParentID, number(o.PaymentsEnabled), string(o.CurrentEnvironment), number(o.Active),
		keys.Micros(o.CreatedAt), keys.Micros(o.UpdatedAt), o.Revision, sl.KeyID, sl.MAC, number(o.Deleted)}
}

func number(flag bool) int64 {
	if flag {
		return 1
	}
	return 0
}

// each scans every row of a result.
func each(rows *sql.Rows, err error, scan func(*sql.Rows) error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
