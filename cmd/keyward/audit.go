package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/syncgram/keyward/api"
)

type auditCmd struct {
	List   auditListCmd   `cmd:"" help:"Show entries of the audit log."`
	Verify auditVerifyCmd `cmd:"" help:"Check the whole audit log: nothing changed, nothing missing."`
	Export auditExportCmd `cmd:"" help:"Write the audit log to the standard output, one JSON object a line."`
}

// selection is which entries a command is about.
type selection struct {
	After  int64  `default:"0" help:"Only entries with a greater sequence number." placeholder:"N"`
	Org    string `help:"Only entries of this organization." placeholder:"ID"`
	Target string `aliases:"key" help:"Only entries about this key or organization." placeholder:"ID"`

	Actor   string `help:"Only acts of this user or operator." placeholder:"WHO"`
	Action  string `help:"Only this action, such as key.revoke." placeholder:"ACTION"`
	Outcome string `help:"Only acts with this outcome: done, or the code of a rejection." placeholder:"CODE"`
	Since   string `help:"Only entries of this day or time (UTC) or later." placeholder:"2026-01-31[T12:00:00Z]"`
	Until   string `help:"Only entries before this day or time (UTC)." placeholder:"2026-01-31[T12:00:00Z]"`
}

// entries reads the log page by page, oldest first.
func (s *selection) entries(ctx context.Context, cl *client) iter.Seq2[api.AuditEntry, error] {
	return func(yield func(api.AuditEntry, error) bool) {
		for after := s.After; ; {
			query := url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {strconv.Itoa(pageSize)}}
			if s.Org != "" {
				query.Set("organization_id", s.Org)
			}
			if s.Target != "" {
				query.Set("target_id", s.Target)
			}
			for name, value := range map[string]string{
				"actor": s.Actor, "action": s.Action, "outcome": s.Outcome, "since": dayOrTime(s.Since), "until": dayOrTime(s.Until),
			} {
				if value != "" {
					query.Set(name, value)
				}
			}
			page, err := get[api.AuditList](ctx, cl, "/v1/audit?"+query.Encode())
			if err != nil {
				yield(api.AuditEntry{}, err)
				return
			}
			for _, e := range page.Entries {
				if !yield(e, nil) {
					return
				}
			}
			if !page.HasMore || page.NextSequence <= after {
				return
			}
			after = page.NextSequence
		}
	}
}

type auditListCmd struct {
	connection
	format
	selection
	Limit int `default:"100" help:"At most as many entries." placeholder:"N"`
}

// Help implements kong.HelpProvider.
func (auditListCmd) Help() string {
	return `Oldest first; the table ends with the number to continue --after.

Example:

    keyward audit list --org org_demo --action key.revoke --since 2026-01-31`
}

// Run lists entries.
func (c *auditListCmd) Run(ctx context.Context, t *terminal) error {
	if c.Limit < 1 {
		return wrong("--limit: must be at least 1")
	}
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	list := []api.AuditEntry{}
	more := false
	for e, err := range c.entries(ctx, cl) {
		if err != nil {
			return err
		}
		if more = len(list) == c.Limit; more {
			break
		}
		list = append(list, e)
	}
	return c.show(t, list, func() error {
		rows := make([][]cell, len(list))
		for i, e := range list {
			outcome := cell{e.Outcome, green}
			if e.Outcome != "done" {
				outcome.style = yellow
			}
			rows[i] = []cell{{text: strconv.FormatInt(e.Sequence, 10)}, {text: e.At}, {text: e.Actor}, {text: e.Action}, {text: e.OrganizationID}, {text: e.TargetID}, outcome, {text: e.Detail}}
		}
		if err := t.table([]string{"#", "AT", "ACTOR", "ACTION", "ORGANIZATION", "TARGET", "OUTCOME", "DETAIL"}, rows); err != nil || !more {
			return err
		}
		_, err := fmt.Fprintln(t.out, t.paint(faint, fmt.Sprintf("There are more: --after %d", list[len(list)-1].Sequence)))
		return err
	})
}

type auditVerifyCmd struct {
	connection
	format
}

// Help implements kong.HelpProvider.
func (auditVerifyCmd) Help() string {
	return `The exit code is 0 when the log is intact, 1 when it is not, 3 when it could not be checked.

Example:

    keyward audit verify`
}

// Run has the server check the log.
func (c *auditVerifyCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	p := t.progress("Checking the audit log")
	var v api.AuditVerification
	err = cl.call(ctx, http.MethodPost, "/v1/audit/verify", nil, &v)
	p.done()
	if err != nil {
		return &exitError{exitUnknown, err}
	}
	if err := c.show(t, v, func() error {
		title := cell{"intact", green}
		if !v.Intact {
			title = cell{"not intact", red}
		}
		rows := [][2]string{{"entries", strconv.FormatInt(v.Entries, 10)}, {"last", strconv.FormatInt(v.Sequence, 10)}, {"hash", v.Hash}}
		for _, f := range v.Findings {
			rows = append(rows, [2]string{"finding", f})
		}
		return t.sheet(title, rows)
	}); err != nil {
		return err
	}
	if !v.Intact {
		return &exitError{code: exitFailed}
	}
	return nil
}

type auditExportCmd struct {
	connection
	selection
}

// Help implements kong.HelpProvider.
func (auditExportCmd) Help() string {
	return `Example:

    keyward audit export > audit.ndjson`
}

// Run writes the entries. When it fails in the middle what was written ends with a whole line.
func (c *auditExportCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	p := t.progress("Exporting the audit log")
	defer p.done()
	out := bufio.NewWriter(t.out)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	count := 0
	for e, err := range c.entries(ctx, cl) {
		if err == nil {
			err = encoder.Encode(e)
		}
		if err != nil {
			_ = out.Flush() // the first error is the one to tell
			return err
		}
		if count++; count%pageSize == 0 {
			p.set(fmt.Sprintf("%d entries", count))
		}
	}
	return out.Flush()
}
