package keys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
)

// Revoke ends a key of the caller's organization in either environment, also an expired one.
// Repeating it is safe and keeps the first revoked_at; it always writes and always passes the
// barrier, so a repeat completes a revoke whose outcome was not known (C21–C23).
func (s *Service) Revoke(ctx context.Context, c Call, id, reason string) (k Key, err error) {
	defer func(began time.Time) { s.observe(ActRevoke, began, err) }(time.Now())
	if !printableText(reason, maxText) {
		return Key{}, s.Refuse(ctx, c, ActRevoke, id, Invalid("reason", "reason must be at most 255 printable characters."))
	}
	if err := s.checkHarmless("reason", reason); err != nil {
		return Key{}, s.Refuse(ctx, c, ActRevoke, id, err)
	}
	err = s.write(ctx, c, ActRevoke, id, func(ctx context.Context, tx Tx, _ Organization) error {
		if k, err = s.owned(ctx, tx, c, id); err != nil {
			return err
		}
		if k.State != StateRevoked {
			k.State, k.RevokedAt, k.RevokeReason = StateRevoked, tx.Now(), reason
		}
		if err := tx.EraseReplays(ctx, k.ID); err != nil {
			return err
		}
		k.Revision = tx.Revision()
		return s.change(ctx, tx, c, k, ActRevoke, reason)
	})
	if err != nil {
		return Key{}, err
	}
	s.noteRevoked(k.ID)
	return k, nil
}

// systemActor is how the audit log names what Keyward does by itself.
const systemActor = "keyward"

// RevokeAgain writes the revocation of a key anew that the database lost, because a backup was restored or a standby without the
// last writes took over: a node that knew it says so. A key that is revoked in the database or not in it is left as it is (C23). Nobody is
// answered, so it waits for no node: after such a loss that would be a whole wait for each key.
func (s *Service) RevokeAgain(ctx context.Context, id string) error {
	k, err := s.cfg.Store.Key(ctx, id)
	if errors.Is(err, ErrNotFound) || err == nil && k.State == StateRevoked {
		return nil
	}
	if err != nil {
		return err
	}
	const reason = "revoked before the database lost it"
	_, err = s.cfg.Store.Write(ctx, Reads{KeyID: id}, func(ctx context.Context, tx Tx) error {
		k, err := tx.Key(ctx, id)
		if err != nil {
			return err
		}
		if k.State != StateRevoked {
			k.State, k.RevokedAt, k.RevokeReason = StateRevoked, tx.Now(), reason
		}
		if err := tx.EraseReplays(ctx, k.ID); err != nil {
			return err
		}
		if err := tx.UpdateKey(ctx, k); err != nil {
			return err
		}
		return tx.Audit(ctx, AuditEntry{At: tx.Now(), Actor: systemActor, Action: ActRevoke, OrganizationID: k.OrganizationID, TargetID: k.ID,
			Outcome: Done, Detail: reason, Revision: tx.Revision()})
	})
	return err
}

// ListRequest selects what list shows.
type ListRequest struct {
	Environment *string // nil = the organization's current one; "live", "test" or "all" (C18)
	Limit       *int64  // nil = all
	Cursor      string  // from an earlier page
}

// Page is a list of keys. Now is the moment its statuses are computed for (C19).
type Page struct {
	Keys       []UsedKey
	Now        time.Time
	Paged      bool // the request had a limit
	HasMore    bool
	NextCursor string
}

// narrow applies the query parameters of C18.
func narrow(q *KeyQuery, r ListRequest) error {
	if r.Environment != nil {
		switch *r.Environment {
		case string(Live), string(Test):
			q.Environment = Environment(*r.Environment)
		case "all":
			q.Environment = ""
		default:
			return Invalid("env", `env must be "live", "test" or "all".`)
		}
	}
	if r.Limit != nil {
		if *r.Limit < 1 || *r.Limit > maxPage {
			return Invalid("limit", fmt.Sprintf("limit must be a whole number from 1 to %d.", maxPage))
		}
		q.Limit = int(*r.Limit)
	}
	if r.Cursor != "" {
		before, ok := readCursor(r.Cursor)
		switch {
		case r.Limit == nil:
			return Invalid("cursor", "cursor goes with limit.")
		case !ok:
			return Invalid("cursor", "cursor must be the next_cursor of an earlier page.")
		}
		q.Before = &before
	}
	return nil
}

// cursorAfter names the place after k. It holds nothing that the list did not show.
func cursorAfter(k Key) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(Micros(k.CreatedAt), 10) + "." + k.ID))
}

func readCursor(s string) (Position, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return Position{}, false
	}
	at, id, _ := strings.Cut(string(b), ".")
	n, err := strconv.ParseInt(at, 10, 64)
	if err != nil || n <= 0 || !validID(id) {
		return Position{}, false
	}
	return Position{CreatedAt: FromMicros(n), ID: id}, true
}

// OrganizationRequest is the whole state an organization is to have (O1). A nil field takes its
// default: no name, no parent, payments not enabled, active, and live as the current environment
// when payments are enabled, else test.
type OrganizationRequest struct {
	ID                 string
	Name               *string
	ParentID           *string
	PaymentsEnabled    *bool
	CurrentEnvironment *string
	Active             *bool

	Force      bool // give a parent even to an organization that has keys (O2)
	CreateOnly bool // reject the request when the organization is registered
}

// PutOrganization creates or replaces an organization; the change is in force on every node
// when it returns (O1, C23).
func (s *Service) PutOrganization(ctx context.Context, op Operator, r OrganizationRequest) (o Organization, err error) {
	defer func(began time.Time) { s.observe(ActPutOrganization, began, err) }(time.Now())
	o, err = s.checkOrganization(r)
	if err != nil {
		return Organization{}, s.refuseOperator(ctx, op, r.ID, err)
	}
	commit, err := s.cfg.Store.Write(ctx, Reads{OrganizationID: o.ID}, func(ctx context.Context, tx Tx) error {
		if err := checkParent(ctx, tx, o); err != nil {
			return err
		}
		before, err := tx.Organization(ctx, o.ID)
		if err != nil {
			return err
		}
		if r.CreateOnly && before.Registered {
			return &Error{Code: api.OrganizationExists, Detail: "This organization exists. Change it with PATCH, or replace it with PUT."}
		}
		if err := checkAdoption(ctx, tx, before, o, r.Force); err != nil {
			return err
		}
		o.UpdatedAt, o.CreatedAt = tx.Now(), tx.Now()
		if before.Registered && before.Genuine {
			o.CreatedAt = before.CreatedAt
		}
		o.Revision = tx.Revision()
		if err := tx.PutOrganization(ctx, o); err != nil {
			return err
		}
		return tx.Audit(ctx, AuditEntry{
			At: tx.Now(), Actor: op.AuditActor(), Action: ActPutOrganization, OrganizationID: o.ID, TargetID: o.ID, Outcome: Done,
			Detail:        fmt.Sprintf("active=%t payments_enabled=%t current_env=%s parent=%q", o.Active, o.PaymentsEnabled, o.CurrentEnvironment, o.ParentID),
			RemoteAddress: op.RemoteAddress, RequestID: op.RequestID, Revision: tx.Revision(),
		})
	})
	if err != nil {
		return Organization{}, s.refuseOperator(ctx, op, o.ID, err)
	}
	if err := s.cfg.Barrier.Await(ctx, commit); err != nil {
		return Organization{}, undecided(err)
	}
	return o, nil
}

// refuseOperator records the refusal of an organization change.
func (s *Service) refuseOperator(ctx context.Context, op Operator, id string, cause error) error {
	var refusal *Error
	if !errors.As(cause, &refusal) {
		return undecided(cause)
	}
	if !ValidOrganizationID(id) || s.cfg.Format.HoldsSecret(id) {
		id = "" // whatever stood in the path is not worth keeping
	}
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return undecided(err)
	}
	e := AuditEntry{At: now, Actor: op.AuditActor(), Action: ActPutOrganization, OrganizationID: id, TargetID: id,
		Outcome: string(refusal.Code), Detail: refusal.Param, RemoteAddress: op.RemoteAddress, RequestID: op.RequestID}
	if err := s.cfg.Store.Record(ctx, e); err != nil {
		return undecided(err)
	}
	return refusal
}

// checkOrganization applies O1's rules for each member, and V7.
func (s *Service) checkOrganization(r OrganizationRequest) (Organization, error) {
	o := Organization{ID: r.ID, Active: true, Registered: true, Genuine: true, CurrentEnvironment: Test}
	const idRule = "must be 1 to 128 letters, digits or _ . : - and start with a letter or digit."
	if !ValidOrganizationID(r.ID) {
		return o, Invalid("id", "id "+idRule)
	}
	if err := s.checkHarmless("id", r.ID); err != nil {
		return o, err
	}
	if r.Name != nil {
		o.Name = strings.TrimSpace(*r.Name)
		if !printableText(o.Name, maxText) {
			return o, Invalid("name", "name must be at most 255 characters without control characters.")
		}
		if err := s.checkHarmless("name", o.Name); err != nil {
			return o, err
		}
	}
	if r.PaymentsEnabled != nil && *r.PaymentsEnabled {
		o.PaymentsEnabled, o.CurrentEnvironment = true, Live
	}
	if r.CurrentEnvironment != nil {
		o.CurrentEnvironment = Environment(*r.CurrentEnvironment)
		if o.CurrentEnvironment != Live && o.CurrentEnvironment != Test {
			return o, Invalid("current_env", `current_env must be "live" or "test".`)
		}
	}
	if r.Active != nil {
		o.Active = *r.Active
	}
	if r.ParentID != nil {
		o.ParentID = *r.ParentID
		switch {
		case !ValidOrganizationID(o.ParentID):
			return o, Invalid("parent_organization_id", "parent_organization_id "+idRule)
		case o.ParentID == o.ID:
			return o, Invalid("parent_organization_id", "An organization cannot be its own parent.")
		}
	}
	return o, nil
}

// checkParent holds the tree two levels deep (O1).
func checkParent(ctx context.Context, tx Tx, o Organization) error {
	if o.ParentID == "" {
		return nil
	}
	parent, err := tx.Organization(ctx, o.ParentID)
	if err != nil {
		return err
	}
	if !parent.Registered || !parent.Genuine {
		return Invalid("parent_organization_id", "The parent organization does not exist. Put it first.")
	}
	if parent.ParentID != "" {
		return Invalid("parent_organization_id", "The parent organization is itself a connected account.")
	}
	children, err := tx.HasChildren(ctx, o.ID)
	if err != nil {
		return err
	}
	if children {
		return Invalid("parent_organization_id", "This organization has connected accounts of its own, so it cannot become one.")
	}
	return nil
}

// Organization returns a registered organization. What a row that is not genuine says is not answered.
func (s *Service) Organization(ctx context.Context, id string) (Organization, error) {
	notFound := &Error{Code: api.OrganizationNotFound, Detail: "No organization with this id is registered."}
	if !ValidOrganizationID(id) {
		return Organization{}, notFound
	}
	if err := s.proven(); err != nil {
		return Organization{}, err
	}
	o, err := s.cfg.Store.Organization(ctx, id)
	if err != nil {
		return Organization{}, undecided(err)
	}
	if !o.Registered {
		return Organization{}, notFound
	}
	if !o.Genuine {
		return Organization{}, undecided(fmt.Errorf("organization %s: %w: put it again", id, ErrTampered))
	}
	return o, nil
}

// Organizations returns up to limit organizations with an id after the one given, by id, and the id to go on
// after; empty when there are no more. Rows that are not genuine are left out, as in List.
func (s *Service) Organizations(ctx context.Context, after string, limit int) (found []Organization, next string, err error) {
	if limit < 1 || limit > maxPage {
		return nil, "", Invalid("limit", fmt.Sprintf("limit must be a whole number from 1 to %d.", maxPage))
	}
	if after != "" && !ValidOrganizationID(after) {
		return nil, "", Invalid("cursor", "cursor must be the next_cursor of an earlier page.")
	}
	if err := s.proven(); err != nil {
		return nil, "", err
	}
	list, err := s.cfg.Store.Organizations(ctx, after, limit+1)
	if err != nil {
		return nil, "", undecided(err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	for _, o := range list {
		if o.Genuine && o.Registered {
			found = append(found, o)
		}
	}
	return found, next, nil
}
