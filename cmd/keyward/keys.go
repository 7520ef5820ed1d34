package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
)

type keysCmd struct {
	List   keysListCmd   `cmd:"" help:"List keys of any organization."`
	Show   keysShowCmd   `cmd:"" help:"Show a key, by its id or its secret."`
	Revoke keysRevokeCmd `cmd:"" help:"Revoke keys: one, those in a file, or all that a filter matches."`
}

// keyFilter is the flags that select keys (O3).
type keyFilter struct {
	Organization  string `aliases:"org" help:"Only keys of this organization." placeholder:"ID"`
	CreatedBy     string `help:"Only keys that this user created." placeholder:"USER"`
	Hint          string `help:"Only keys whose secret ends with these four characters." placeholder:"ABCD"`
	Status        string `enum:"any,active,overlapping,expired,revoked" default:"any" help:"Only keys in this state: active, overlapping, expired or revoked." placeholder:"STATUS"`
	Env           string `enum:"any,live,test" default:"any" help:"Only keys of this environment." placeholder:"live|test"`
	CreatedBefore string `help:"Only keys created before this day or time (UTC)." placeholder:"2026-01-31[T12:00:00Z]"`
}

// filter is what the flags ask for; nil when they ask for nothing.
func (f *keyFilter) filter() *api.KeyFilter {
	var k api.KeyFilter
	set := func(into **string, value string) {
		if value != "" && value != "any" {
			*into = &value
		}
	}
	set(&k.OrganizationID, f.Organization)
	set(&k.CreatedBy, f.CreatedBy)
	set(&k.Hint, f.Hint)
	set(&k.Status, f.Status)
	set(&k.Env, f.Env)
	set(&k.CreatedBefore, dayOrTime(f.CreatedBefore))
	if k == (api.KeyFilter{}) {
		return nil
	}
	return &k
}

// dayOrTime makes a time of a day, its midnight in UTC. The server judges what is neither.
func dayOrTime(text string) string {
	if _, err := time.Parse(time.DateOnly, text); err == nil {
		return text + "T00:00:00Z"
	}
	return text
}

// query is the filter as a query.
func (f *keyFilter) query() url.Values {
	q := url.Values{}
	k := f.filter()
	if k == nil {
		return q
	}
	for name, value := range map[string]*string{
		"organization_id": k.OrganizationID, "created_by": k.CreatedBy, "hint": k.Hint,
		"status": k.Status, "env": k.Env, "created_before": k.CreatedBefore,
	} {
		if value != nil {
			q.Set(name, *value)
		}
	}
	return q
}

type keysListCmd struct {
	connection
	format
	keyFilter
	Limit int `default:"100" help:"At most as many keys." placeholder:"N"`
}

// Help implements kong.HelpProvider.
func (keysListCmd) Help() string {
	return `Newest first. All conditions that are given must hold.

Example:

    keyward keys list --organization org_acme --status active`
}

// Run lists keys.
func (c *keysListCmd) Run(ctx context.Context, t *terminal) error {
	if c.Limit < 1 {
		return wrong("--limit: must be at least 1")
	}
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	found, leftOut, more := []api.OperatorKey{}, 0, false
	query := c.query()
	for cursor := ""; ; {
		query.Set("limit", strconv.Itoa(min(pageSize, c.Limit-len(found))))
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		page, err := get[api.OperatorKeyList](ctx, cl, "/v1/keys?"+query.Encode())
		if err != nil {
			return err
		}
		found, leftOut, more = append(found, page.Keys...), leftOut+page.LeftOut, page.HasMore
		if !more || page.NextCursor == nil || len(found) >= c.Limit {
			break
		}
		cursor = *page.NextCursor
	}
	defer func() { // also beside JSON
		if more {
			fmt.Fprintln(t.err, "keyward: there are more: raise --limit, or narrow the search")
		}
		if leftOut > 0 {
			fmt.Fprintf(t.err, "keyward: %d rows that Keyward did not write are left out; the server's log names them\n", leftOut)
		}
	}()
	return c.show(t, found, func() error {
		rows := make([][]cell, len(found))
		for i, k := range found {
			status := cell{k.Status, green}
			if !k.IsActive {
				status.style = faint
			}
			rows[i] = []cell{{text: k.APIKeyID}, {text: k.OrganizationID}, {text: k.KeyName}, status, {text: k.Env}, {text: k.Hint}, {text: k.CreatedAt}, {text: k.CreatedBy}}
		}
		return t.table([]string{"KEY", "ORGANIZATION", "NAME", "STATUS", "ENV", "HINT", "CREATED", "BY"}, rows)
	})
}

type keysShowCmd struct {
	connection
	format
	ID          string `arg:"" optional:"" help:"The key's id."`
	SecretStdin bool   `help:"Find the key of the secret in the first line of the standard input."`
}

// Help implements kong.HelpProvider.
func (keysShowCmd) Help() string {
	return `A secret is read from the standard input; on the command line other users of the machine could read it. Looking it up counts as no use of the key.

Example:

    keyward keys show --secret-stdin < leaked.txt`
}

// Run shows a key.
func (c *keysShowCmd) Run(ctx context.Context, t *terminal) error {
	if (c.ID == "") == !c.SecretStdin {
		return wrong("name the key by its id or with --secret-stdin")
	}
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	var k api.OperatorKey
	if c.SecretStdin {
		k, err = lookUpStdin(ctx, t, cl)
	} else if !isKeyID(c.ID) {
		return notAnID()
	} else {
		k, err = get[api.OperatorKey](ctx, cl, "/v1/keys/"+url.PathEscape(c.ID))
	}
	if err != nil {
		return err
	}
	return c.show(t, k, func() error {
		orNever := func(at *string) string {
			if at == nil {
				return "never"
			}
			return *at
		}
		rows := [][2]string{
			{"organization", k.OrganizationID}, {"name", k.KeyName}, {"status", k.Status}, {"environment", k.Env}, {"hint", k.Hint},
			{"created", k.CreatedAt}, {"created by", k.CreatedBy}, {"last used", orNever(k.LastUsedAt)}, {"expires", orNever(k.ExpiresAt)},
		}
		if k.RevokedAt != nil {
			rows = append(rows, [2]string{"revoked", *k.RevokedAt})
		}
		if k.Description != nil {
			rows = append(rows, [2]string{"description", strings.ReplaceAll(*k.Description, "\n", " / ")})
		}
		return t.sheet(cell{k.APIKeyID, bold}, rows)
	})
}

// isKeyID keeps what is not the id of a key, which may be its secret, out of a URL.
func isKeyID(s string) bool { return strings.HasPrefix(s, "key_") }

func notAnID() error {
	return wrong("a key's id begins with key_; a secret is read from the standard input, never from the command line: --secret-stdin < secret.txt")
}

// lookUpStdin finds the key of the secret on the standard input.
func lookUpStdin(ctx context.Context, t *terminal, cl *client) (api.OperatorKey, error) {
	if f, ok := t.in.(*os.File); ok && isTerminal(f) {
		_, _ = io.WriteString(t.err, "Type or paste the secret, then Enter: ")
	}
	line, err := bufio.NewReader(io.LimitReader(t.in, longestSecret)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return api.OperatorKey{}, err
	}
	secret := strings.TrimSpace(line)
	if secret == "" {
		return api.OperatorKey{}, wrong("the standard input is empty; the secret is its first line: --secret-stdin < secret.txt")
	}
	return lookUp(ctx, cl, secret)
}

func lookUp(ctx context.Context, cl *client, secret string) (k api.OperatorKey, err error) {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	err = cl.call(ctx, http.MethodPost, "/v1/keys/lookup", api.LookUpKey{Key: secret}, &k)
	return k, err
}
