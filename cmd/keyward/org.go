package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/syncgram/keyward/api"
)

type orgCmd struct {
	Set     orgSetCmd     `cmd:"" help:"Create an organization, or replace it."`
	Update  orgUpdateCmd  `cmd:"" help:"Change what is said of an organization."`
	Disable orgDisableCmd `cmd:"" help:"Switch an organization off: its keys are rejected."`
	Enable  orgEnableCmd  `cmd:"" help:"Switch an organization on."`
	Delete  orgDeleteCmd  `cmd:"" help:"Delete an organization that has no keys."`
	Get     orgGetCmd     `cmd:"" help:"Show an organization."`
	List    orgListCmd    `cmd:"" help:"List the organizations."`
}

type orgSetCmd struct {
	connection
	format
	ID       string `arg:"" help:"The organization's id."`
	Name     string `help:"A name for people." placeholder:"NAME"`
	Parent   string `help:"The organization it is a connected account of." placeholder:"ID"`
	Payments bool   `help:"Payments are enabled: it can have live keys."`
	Env      string `enum:"default,live,test" default:"default" help:"Its current environment; live by default when payments are enabled, else test." placeholder:"live|test"`
	Inactive bool   `help:"Create it switched off: its keys are rejected until org enable."`
	Replace  bool   `help:"Replace the organization if it exists: what is not said takes its default."`
	Force    bool   `help:"Give it a parent even if it has a key that is accepted: the parent's key acts for it from then on."`
}

// Help implements kong.HelpProvider.
func (orgSetCmd) Help() string {
	return `It creates an organization. One that exists is replaced only with --replace, and then as a whole: what is not said takes its default, so that it may be switched on or lose its live mode. To change single things use org update, org disable and org enable. The change is in force on every server when the command returns.

Example:

    keyward org set org_acme --name "Acme Inc." --payments`
}

// Run puts the organization.
func (c *orgSetCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	active := !c.Inactive
	body := api.PutOrganization{PaymentsEnabled: &c.Payments, IsActive: &active}
	if c.Name != "" {
		body.Name = &c.Name
	}
	if c.Parent != "" {
		body.ParentOrganizationID = &c.Parent
	}
	if c.Env != "default" {
		body.CurrentEnv = &c.Env
	}
	if c.Force {
		body.Force = &c.Force
	}
	if !c.Replace {
		cl.header = http.Header{"If-None-Match": {"*"}}
	}
	err = showOrganization(ctx, t, cl, c.format, http.MethodPut, c.ID, body)
	var answer *answerError
	if errors.As(err, &answer) && answer.Code == api.OrganizationExists {
		return fmt.Errorf("%s exists, and nothing was changed: change it with org update, org disable or org enable, or replace all of it with org set --replace", c.ID)
	}
	return err
}

type orgGetCmd struct {
	connection
	format
	ID string `arg:"" help:"The organization's id."`
}

// Help implements kong.HelpProvider.
func (orgGetCmd) Help() string {
	return `Example:

    keyward org get org_acme`
}

// Run shows the organization.
func (c *orgGetCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	return showOrganization(ctx, t, cl, c.format, http.MethodGet, c.ID, nil)
}

func showOrganization(ctx context.Context, t *terminal, cl *client, f format, method, id string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	var o api.Organization
	if err := cl.call(ctx, method, "/v1/organizations/"+url.PathEscape(id), body, &o); err != nil {
		return err
	}
	return f.show(t, o, func() error {
		rows := [][2]string{{"name", o.Name}, {"active", yesNo(o.IsActive)}, {"payments enabled", yesNo(o.PaymentsEnabled)}, {"environment", o.CurrentEnv}}
		if o.ParentOrganizationID != nil {
			rows = append(rows, [2]string{"connected account of", *o.ParentOrganizationID})
		}
		rows = append(rows, [2]string{"created", o.CreatedAt}, [2]string{"updated", o.UpdatedAt})
		return t.sheet(cell{o.OrganizationID, bold}, rows)
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type orgListCmd struct {
	connection
	format
}

// Help implements kong.HelpProvider.
func (orgListCmd) Help() string {
	return `Example:

    keyward org list --output json`
}

// pageSize is the most entries the server gives at once.
const pageSize = 100

// Run lists all organizations.
func (c *orgListCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	all := []api.Organization{}
	for cursor := ""; ; {
		query := url.Values{"limit": {strconv.Itoa(pageSize)}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		page, err := get[api.OrganizationList](ctx, cl, "/v1/organizations?"+query.Encode())
		if err != nil {
			return err
		}
		all = append(all, page.Organizations...)
		if !page.HasMore || page.NextCursor == nil {
			break
		}
		cursor = *page.NextCursor
	}
	return c.show(t, all, func() error {
		rows := make([][]cell, len(all))
		for i, o := range all {
			parent := ""
			if o.ParentOrganizationID != nil {
				parent = *o.ParentOrganizationID
			}
			active := cell{"yes", green}
			if !o.IsActive {
				active = cell{"no", red}
			}
			rows[i] = []cell{{text: o.OrganizationID}, {text: o.Name}, active, {text: yesNo(o.PaymentsEnabled)}, {text: o.CurrentEnv}, {text: parent}}
		}
		return t.table([]string{"ORGANIZATION", "NAME", "ACTIVE", "PAYMENTS", "ENV", "PARENT"}, rows)
	})
}

// get reads one JSON answer.
func get[T any](ctx context.Context, cl *client, path string) (answer T, err error) {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	err = cl.call(ctx, http.MethodGet, path, nil, &answer)
	return answer, err
}
