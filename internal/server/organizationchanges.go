package server

import (
	"context"
	"net/http"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// createOnly reads If-None-Match: * as PUT takes it: only when there is none yet (RFC 9110
// section 13.1.2). Organizations have no entity tags, so it takes nothing else.
func createOnly(h http.Header) (bool, error) {
	values := h["If-None-Match"]
	if len(values) == 0 {
		return false, nil
	}
	if len(values) > 1 || values[0] != "*" {
		return false, keys.Invalid("If-None-Match", "The header If-None-Match must be * or left out.")
	}
	return true, nil
}

func readOrganizationUpdate(x *exchange) (keys.OrganizationUpdate, error) {
	var name, parent, env nullable
	var payments, active, force *bool
	err := x.readJSON(false,
		field{"name", &name}, field{"parent_organization_id", &parent}, field{"payments_enabled", &payments},
		field{"current_env", &env}, field{"is_active", &active}, field{"force", &force})
	switch {
	case err != nil:
	case env.null:
		err = keys.Invalid("current_env", "current_env cannot be removed.")
	case parent.given && !parent.null && parent.text == "":
		err = keys.Invalid("parent_organization_id", "parent_organization_id must be an id, or null to remove it.")
	}
	return keys.OrganizationUpdate{
		ID: x.segment, Name: name.pointer(), ParentID: parent.pointer(), PaymentsEnabled: payments,
		CurrentEnvironment: env.pointer(), Active: active, Force: force != nil && *force,
	}, err
}

func (s *Server) updateOrganization(
	ctx context.Context, c keys.Call, u keys.OrganizationUpdate,
) (answer, error) {
	o, err := s.cfg.Service.UpdateOrganization(ctx, operator(c), u)
	return answer{body: organization(&o), revision: o.Revision}, err
}

func (s *Server) deleteOrganization(ctx context.Context, c keys.Call, id string) (answer, error) {
	o, err := s.cfg.Service.DeleteOrganization(ctx, operator(c), id)
	return answer{body: api.DeletedOrganization{Status: "deleted", OrganizationID: o.ID}, revision: o.Revision}, err
}
