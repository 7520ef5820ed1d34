package keys

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
)

// OrganizationUpdate is a change of single members of an organization (O2). A nil field is left as
// it is.
type OrganizationUpdate struct {
	ID                 string
	Name               *string // empty removes it
	ParentID           *string // empty removes it
	PaymentsEnabled    *bool
	CurrentEnvironment *string
	Active             *bool
	Force              bool // give a parent even to an organization that has keys
}

// UpdateOrganization changes the members given and no other; the change is in force on every node
// when it returns (O2, C23).
func (s *Service) UpdateOrganization(
	ctx context.Context, op Operator, u OrganizationUpdate,
) (o Organization, err error) {
	defer func(began time.Time) { s.observe(ActPutOrganization, began, err) }(time.Now())
	if err := s.checkOrganizationUpdate(&u); err != nil {
		return Organization{}, s.refuseOperator(ctx, op, u.ID, err)
	}
	commit, err := s.cfg.Store.Write(ctx, Reads{OrganizationID: u.ID}, func(ctx context.Context, tx Tx) error {
		before, err := registered(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		o = before
		changed := u.apply(&o)
		if u.ParentID != nil {
			if err := checkParent(ctx, tx, o); err != nil {
				return err
			}
			if err := checkAdoption(ctx, tx, before, o, u.Force); err != nil {
				return err
			}
		}
		o.UpdatedAt, o.Revision = tx.Now(), tx.Revision()
		return s.putOrganization(ctx, tx, op, o, "changed "+strings.Join(changed, " "))
	})
	if err != nil {
		return Organization{}, s.refuseOperator(ctx, op, u.ID, err)
	}
	return o, undecided(s.cfg.Barrier.Await(ctx, commit))
}

// apply sets the members given and returns them as name=value.
func (u *OrganizationUpdate) apply(o *Organization) (changed []string) {
	if u.Name != nil {
		o.Name = *u.Name
		changed = append(changed, "name")
	}
	if u.ParentID != nil {
		o.ParentID = *u.ParentID
		changed = append(changed, fmt.Sprintf("parent=%q", o.ParentID))
	}
	if u.PaymentsEnabled != nil {
		o.PaymentsEnabled = *u.PaymentsEnabled
		changed = append(changed, fmt.Sprintf("payments_enabled=%t", o.PaymentsEnabled))
	}
	if u.CurrentEnvironment != nil {
		o.CurrentEnvironment = Environment(*u.CurrentEnvironment)
		changed = append(changed, "current_env="+*u.CurrentEnvironment)
	}
	if u.Active != nil {
		o.Active = *u.Active
		changed = append(changed, fmt.Sprintf("active=%t", o.Active))
	}
	if u.Force {
		changed = append(changed, "force=true")
	}
	return changed
}

// checkOrganizationUpdate applies the rules of O1 to the members given. The name is trimmed.
func (s *Service) checkOrganizationUpdate(u *OrganizationUpdate) error {
	if u.Name == nil && u.ParentID == nil && u.PaymentsEnabled == nil && u.CurrentEnvironment == nil && u.Active == nil {
		return Invalid("", "The body must have at least one member to change.")
	}
	parent := u.ParentID
	if parent != nil && *parent == "" {
		parent = nil
	}
	o, err := s.checkOrganization(OrganizationRequest{
		ID: u.ID, Name: u.Name, ParentID: parent, CurrentEnvironment: u.CurrentEnvironment,
	})
	if err == nil && u.Name != nil {
		u.Name = &o.Name
	}
	return err
}

// DeleteOrganization makes a registered organization one that was never put, once no key of it is
// accepted any more and it has no connected accounts (O2). Its row stays and says so; putting the
// organization again brings it back. Repeating it is safe.
func (s *Service) DeleteOrganization(
	ctx context.Context, op Operator, id string,
) (o Organization, err error) {
	defer func(began time.Time) { s.observe(ActPutOrganization, began, err) }(time.Now())
	if !ValidOrganizationID(id) {
		return Organization{}, s.refuseOperator(ctx, op, id, organizationNotFound())
	}
	commit, err := s.cfg.Store.Write(ctx, Reads{OrganizationID: id}, func(ctx context.Context, tx Tx) error {
		before, err := tx.Organization(ctx, id)
		if err == nil && !before.Deleted {
			before, err = registered(ctx, tx, id)
		}
		if err != nil {
			return err
		}
		children, err := tx.HasChildren(ctx, id)
		if err != nil {
			return err
		}
		if children {
			return &Error{Code: api.OrganizationHasAccounts,
				Detail: "This organization has connected accounts. Delete them, or give them no parent, first."}
		}
		has, err := hasKeys(ctx, tx, id)
		if err != nil {
			return err
		}
		if has && !before.Deleted { // a user may have created one since it was deleted
			return &Error{Code: api.OrganizationHasKeys,
				Detail: "This organization has an API key that is accepted. Revoke it first."}
		}
		o = Unregistered(id)
		o.Deleted = true
		o.CreatedAt, o.UpdatedAt, o.Revision = before.CreatedAt, tx.Now(), tx.Revision()
		return s.putOrganization(ctx, tx, op, o, "deleted")
	})
	if err != nil {
		return Organization{}, s.refuseOperator(ctx, op, id, err)
	}
	return o, undecided(s.cfg.Barrier.Await(ctx, commit))
}

// putOrganization writes an organization's row and its audit entry. The one action of every change
// of an organization is what ties the log to the row (see ActPutOrganization).
func (s *Service) putOrganization(
	ctx context.Context, tx Tx, op Operator, o Organization, detail string,
) error {
	if err := tx.PutOrganization(ctx, o); err != nil {
		return err
	}
	e := operatorEntry(op, ActPutOrganization, o.ID, tx.Now())
	e.OrganizationID, e.Detail, e.Revision = o.ID, detail, tx.Revision()
	return tx.Audit(ctx, e)
}

// registered reads an organization that must be there and authentic.
func registered(ctx context.Context, tx Tx, id string) (Organization, error) {
	o, err := tx.Organization(ctx, id)
	switch {
	case err != nil:
		return o, err
	case !o.Registered:
		return o, organizationNotFound()
	case !o.Genuine:
		return o, fmt.Errorf("organization %s: %w: put it again", id, ErrTampered)
	}
	return o, nil
}

func organizationNotFound() *Error {
	return &Error{Code: api.OrganizationNotFound, Detail: "No organization with this id is registered."}
}

// checkAdoption holds a change of parent against the keys an organization has: the parent's key
// acts for it from then on (O2).
func checkAdoption(ctx context.Context, tx Tx, before, after Organization, force bool) error {
	if force || after.ParentID == "" || before.Genuine && before.Registered && after.ParentID == before.ParentID {
		return nil
	}
	has, err := hasKeys(ctx, tx, after.ID)
	if err == nil && has {
		err = &Error{Code: api.OrganizationHasKeys, Param: "parent_organization_id",
			Detail: "This organization has an API key, so it works for itself. Revoke the key first, or send force: " +
				"the parent's key acts for it from then on."}
	}
	return err
}

// hasKeys reports whether any key of an organization may be accepted.
func hasKeys(ctx context.Context, tx Tx, organizationID string) (bool, error) {
	found, err := tx.KeysIn(ctx, organizationID, StateActive, StateOverlapping)
	for _, k := range found {
		if !k.Genuine || Judge(k.Lifecycle(), true, tx.Now()) != Expired {
			return true, err
		}
	}
	return false, err
}
