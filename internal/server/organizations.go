package server

import (
	"cmp"
	"context"
	"fmt"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// operator is the caller of a route of the admin listener, for the audit log.
func operator(c keys.Call) keys.Operator {
	return keys.Operator{Actor: c.Operator, RequestID: c.RequestID, RemoteAddress: c.RemoteAddress}
}

func readOrganization(x *exchange) (keys.OrganizationRequest, error) {
	var b api.PutOrganization
	err := x.readJSON(false,
		field{"name", &b.Name}, field{"parent_organization_id", &b.ParentOrganizationID},
		field{"payments_enabled", &b.PaymentsEnabled}, field{"current_env", &b.CurrentEnv}, field{"is_active", &b.IsActive},
		field{"force", &b.Force})
	only, conditionErr := createOnly(x.r.Header)
	return keys.OrganizationRequest{
		Force: b.Force != nil && *b.Force, CreateOnly: only,
		ID: x.segment, Name: b.Name, ParentID: b.ParentOrganizationID,
		PaymentsEnabled: b.PaymentsEnabled, CurrentEnvironment: b.CurrentEnv, Active: b.IsActive,
	}, cmp.Or(err, conditionErr)
}

func (s *Server) putOrganization(ctx context.Context, c keys.Call, r keys.OrganizationRequest) (answer, error) {
	o, err := s.cfg.Service.PutOrganization(ctx, operator(c), r)
	return answer{body: organization(&o), revision: o.Revision}, err
}

func readOrganizationID(x *exchange) (string, error) { return x.segment, nil }

func (s *Server) getOrganization(ctx context.Context, _ keys.Call, id string) (answer, error) {
	o, err := s.cfg.Service.Organization(ctx, id)
	return answer{body: organization(&o)}, err
}

// page is a place in a list and how much to show.
type page struct {
	after string
	limit int
}

// defaultPage is the limit of a list on the admin listener when none is given.
const defaultPage = 100

// Most that a limit may be.
const (
	maxOrganizations = 100
	maxAudit         = 1000
)

func readPage(x *exchange) (page, error) {
	var p page
	var err error
	p.limit, err = x.limit(maxOrganizations)
	if cursor := x.parameter("cursor"); cursor != nil && err == nil {
		if *cursor == "" {
			err = keys.Invalid("cursor", "cursor must be the next_cursor of an earlier page.")
		}
		p.after = *cursor
	}
	return p, err
}

// limit returns the query's limit, or defaultPage.
func (x *exchange) limit(most int) (int, error) {
	n, err := x.number("limit")
	if err != nil {
		return 0, err
	}
	if n == nil {
		return defaultPage, nil
	}
	if *n < 1 || *n > int64(most) {
		return 0, keys.Invalid("limit", fmt.Sprintf("limit must be a whole number from 1 to %d.", most))
	}
	return int(*n), nil
}

func (s *Server) listOrganizations(ctx context.Context, _ keys.Call, p page) (answer, error) {
	rows, next, err := s.cfg.Service.Organizations(ctx, p.after, p.limit)
	if err != nil {
		return answer{}, err
	}
	list := api.OrganizationList{Organizations: make([]api.Organization, 0, len(rows)), HasMore: next != ""}
	for i := range rows {
		list.Organizations = append(list.Organizations, organization(&rows[i]))
	}
	if list.HasMore {
		list.NextCursor = &next
	}
	return answer{body: list}, nil
}

// organization is o on the wire (O1).
func organization(o *keys.Organization) api.Organization {
	out := api.Organization{
		OrganizationID: o.ID, Name: o.Name, PaymentsEnabled: o.PaymentsEnabled,
		CurrentEnv: string(o.EffectiveEnvironment()), IsActive: o.Active && o.Genuine,
		CreatedAt: timestamp(o.CreatedAt), UpdatedAt: timestamp(o.UpdatedAt),
	}
	if o.ParentID != "" {
		out.ParentOrganizationID = &o.ParentID
	}
	return out
}
