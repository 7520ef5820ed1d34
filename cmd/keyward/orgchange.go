package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/syncgram/keyward/api"
)

type orgUpdateCmd struct {
	connection
	format
	ID       string  `arg:"" help:"The organization's id."`
	Name     *string `help:"A name for people." placeholder:"NAME"`
	Parent   string  `help:"The organization it is a connected account of." placeholder:"ID"`
	NoParent bool    `help:"Take its parent away."`
	Payments string  `enum:"keep,on,off" default:"keep" help:"Whether payments are enabled, so that it can have live keys: on or off." placeholder:"on|off"`
	Env      string  `enum:"keep,live,test" default:"keep" help:"Its current environment." placeholder:"live|test"`
	Force    bool    `help:"Give it a parent even if it has a key that is accepted: the parent's key acts for it from then on."`
}

// Help implements kong.HelpProvider.
func (orgUpdateCmd) Help() string {
	return `It changes what is said and nothing else. To switch an organization off or on, see org disable and org enable. The change is in force on every server when the command returns.

Example:

    keyward org update org_acme --payments on --env live`
}

// Run changes the organization.
func (c *orgUpdateCmd) Run(ctx context.Context, t *terminal) error {
	body := map[string]any{} // a null parent is a member that api.UpdateOrganization would leave out
	if c.Name != nil {
		body["name"] = *c.Name
	}
	switch {
	case c.Parent != "" && c.NoParent:
		return wrong("--parent and --no-parent exclude each other")
	case c.Parent != "":
		body["parent_organization_id"] = c.Parent
	case c.NoParent:
		body["parent_organization_id"] = nil
	}
	if c.Payments != "keep" {
		body["payments_enabled"] = c.Payments == "on"
	}
	if c.Env != "keep" {
		body["current_env"] = c.Env
	}
	if len(body) == 0 {
		return wrong("say what to change, such as --name")
	}
	if c.Force {
		body["force"] = true
	}
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	return showOrganization(ctx, t, cl, c.format, http.MethodPatch, c.ID, body)
}

type orgDisableCmd struct {
	connection
	format
	ID string `arg:"" help:"The organization's id."`
}

// Help implements kong.HelpProvider.
func (orgDisableCmd) Help() string {
	return `Its keys are accepted by no server any more when the command returns, until org enable. Nothing else of it changes.

Example:

    keyward org disable org_acme`
}

// Run switches the organization off.
func (c *orgDisableCmd) Run(ctx context.Context, t *terminal) error {
	return switchOrganization(ctx, t, &c.connection, c.format, c.ID, false)
}

type orgEnableCmd struct {
	connection
	format
	ID string `arg:"" help:"The organization's id."`
}

// Help implements kong.HelpProvider.
func (orgEnableCmd) Help() string {
	return `Its keys that are neither revoked nor expired are accepted again when the command returns.

Example:

    keyward org enable org_acme`
}

// Run switches the organization on.
func (c *orgEnableCmd) Run(ctx context.Context, t *terminal) error {
	return switchOrganization(ctx, t, &c.connection, c.format, c.ID, true)
}

func switchOrganization(
	ctx context.Context, t *terminal, c *connection, f format, id string, on bool,
) error {
	cl, err := c.open()
	if err != nil {
		return err
	}
	return showOrganization(ctx, t, cl, f, http.MethodPatch, id, api.UpdateOrganization{IsActive: &on})
}

type orgDeleteCmd struct {
	connection
	format
	ID string `arg:"" help:"The organization's id."`
}

// Help implements kong.HelpProvider.
func (orgDeleteCmd) Help() string {
	return `It must have no key that is accepted and no connected accounts. It then counts as one that was never set: its users can create test keys again where organizations need not be registered. To keep them from that, use org disable.

Example:

    keyward org delete org_acme`
}

// Run deletes the organization.
func (c *orgDeleteCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	var d api.DeletedOrganization
	if err := cl.call(ctx, http.MethodDelete, "/v1/organizations/"+url.PathEscape(c.ID), nil, &d); err != nil {
		return err
	}
	return c.show(t, d, func() error {
		_, err := fmt.Fprintln(t.out, d.OrganizationID+" is deleted")
		return err
	})
}
