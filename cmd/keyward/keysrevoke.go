package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/syncgram/keyward/api"
)

type keysRevokeCmd struct {
	connection
	format
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of the keys."`
	keyFilter
	FromFile    string `type:"path" help:"Revoke the keys in this file, an id or a secret a line; - is the standard input." placeholder:"FILE"`
	SecretStdin bool   `help:"Revoke the key of the secret in the first line of the standard input."`
	Reason      string `help:"Why, for the audit log. Needed." placeholder:"TEXT"`
	DryRun      bool   `help:"Only count the keys and name the first 20."`
	Yes         bool   `help:"Do not ask before keys in a file or of a filter are revoked."`
}

// Help implements kong.HelpProvider.
func (keysRevokeCmd) Help() string {
	return `A key that is shown as revoked is accepted by no server any more. When the command is cut short, run it again: keys that are revoked are passed over. The exit code is 0 when all is done, 1 when a key that was named is not there, 3 when the outcome is not known.

Examples:

    keyward keys revoke --secret-stdin --reason "in a public repository" < leaked.txt
    keyward keys revoke --organization org_acme --created-before 2026-01-31 --reason "left in a log" --dry-run`
}

// idsAtOnce is how many ids one request takes.
const idsAtOnce = 400

// Run revokes.
func (c *keysRevokeCmd) Run(ctx context.Context, t *terminal) error {
	filter := c.filter()
	sources := 0
	for _, given := range []bool{len(c.IDs) > 0, filter != nil, c.FromFile != "", c.SecretStdin} {
		if given {
			sources++
		}
	}
	switch {
	case sources == 0:
		return wrong("say which keys to revoke: ids, --secret-stdin, --from-file, or a filter such as --organization")
	case sources > 1:
		return wrong("say which keys in one way: ids, --secret-stdin, --from-file, or a filter")
	case c.Reason == "" && !c.DryRun:
		return wrong("--reason: say why, for the audit log")
	case slices.ContainsFunc(c.IDs, func(id string) bool { return !isKeyID(id) }):
		return notAnID()
	}
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	requests, err := c.requests(ctx, t, cl, filter)
	if err != nil {
		return err
	}
	if (filter != nil || c.FromFile != "") && !c.DryRun && !c.Yes {
		if err := c.confirm(ctx, t, cl, requests); err != nil {
			return err
		}
	}
	run := revocations{t: t, json: c.Output == "json", quiet: t.live && c.Output != "json", dryRun: c.DryRun}
	return run.all(ctx, cl, requests)
}

// requests is what to ask the server for, in order.
func (c *keysRevokeCmd) requests(
	ctx context.Context, t *terminal, cl *client, filter *api.KeyFilter,
) ([]api.RevokeKeys, error) {
	if filter != nil {
		return []api.RevokeKeys{{Filter: filter, Reason: c.Reason, DryRun: c.DryRun}}, nil
	}
	ids := c.IDs
	switch {
	case c.SecretStdin:
		k, err := lookUpStdin(ctx, t, cl)
		if err != nil {
			return nil, err
		}
		ids = []string{k.APIKeyID}
	case c.FromFile != "":
		var err error
		if ids, err = c.readFile(ctx, t, cl); err != nil {
			return nil, err
		}
	}
	var requests []api.RevokeKeys
	for some := range slices.Chunk(ids, idsAtOnce) {
		requests = append(requests, api.RevokeKeys{IDs: some, Reason: c.Reason, DryRun: c.DryRun})
	}
	return requests, nil
}

// readFile reads ids, and looks up the key of each secret. A secret that no key has is told by its
// line, never by its text.
func (c *keysRevokeCmd) readFile(
	ctx context.Context, t *terminal, cl *client,
) (ids []string, err error) {
	in := t.in
	if c.FromFile != "-" {
		f, err := os.Open(c.FromFile)
		if err != nil {
			return nil, wrong("--from-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !isKeyID(line) {
			k, err := lookUp(ctx, cl, line)
			var answer *answerError
			if errors.As(err, &answer) && answer.Code == api.KeyNotFound {
				fmt.Fprintf(t.err, "keyward: line %d: no key has this secret\n", n)
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			line = k.APIKeyID
		}
		ids = append(ids, line)
	}
	if err := lines.Err(); err != nil {
		return nil, wrong("--from-file: %w", err)
	}
	if len(ids) == 0 {
		return nil, wrong("--from-file: it names no key")
	}
	return ids, nil
}

// confirm shows what would be revoked and asks. Where nobody can be asked, --yes is needed.
func (c *keysRevokeCmd) confirm(
	ctx context.Context, t *terminal, cl *client, requests []api.RevokeKeys,
) error {
	f, ok := t.in.(*os.File)
	if !ok || !isTerminal(f) || c.FromFile == "-" {
		return wrong("--yes: say that you mean it, or see with --dry-run what would be revoked")
	}
	dry := slices.Clone(requests)
	for i := range dry {
		dry[i].DryRun = true
	}
	run := revocations{t: &terminal{in: t.in, out: t.err, err: t.err, env: t.env}, dryRun: true}
	if err := run.all(ctx, cl, dry); err != nil || run.revoked == 0 {
		return err
	}
	fmt.Fprintf(t.err, "Revoke %s? That cannot be undone. Type yes: ", keyCount(run.revoked))
	answer, err := bufio.NewReader(io.LimitReader(t.in, 64)).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "yes" {
		return &exitError{exitFailed, errors.New("nothing was revoked")}
	}
	return nil
}

// revocations shows the answers to one or several requests as one.
type revocations struct {
	t      *terminal
	json   bool // the server's lines as they are
	quiet  bool // a bar instead of a line a key
	dryRun bool

	revoked, before, notFound, undecided, leftOut int
}

// all sends the requests one after the other.
func (r *revocations) all(ctx context.Context, cl *client, requests []api.RevokeKeys) error {
	p := (*progress)(nil)
	if r.quiet {
		p = r.t.progress("Revoking")
	}
	var err error
	for i := 0; i < len(requests) && err == nil; i++ {
		err = r.one(ctx, cl, requests[i], p)
	}
	if p != nil {
		p.done()
	}
	if err != nil {
		if r.revoked > 0 && !r.dryRun {
			fmt.Fprintf(r.t.err, "keyward: %s revoked before it broke off; run the command again for the others\n", keyCount(r.revoked))
		}
		return err
	}
	if r.json {
		return r.missing()
	}
	what := "revoked"
	if r.dryRun {
		what = "would be revoked"
	}
	summary := fmt.Sprintf("%d %s", r.revoked, what)
	for _, other := range []struct {
		n    int
		what string
	}{{r.before, "revoked before"}, {r.notFound, "not found"}, {r.undecided, "undecided: removed from the database, see the server's log"}, {r.leftOut, "left out: not written by Keyward, see the server's log"}} {
		if other.n > 0 {
			summary += fmt.Sprintf(", %d %s", other.n, other.what)
		}
	}
	if _, err := fmt.Fprintln(r.t.out, r.t.paint(bold, summary)); err != nil {
		return err
	}
	return r.missing()
}

// missing is the exit code when a key that was named is not there.
func (r *revocations) missing() error {
	if r.undecided > 0 {
		return &exitError{code: exitUnknown}
	}
	if r.notFound > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

// one sends a request and reads its lines. An answer without a last line, whatever the cause, leaves
// the outcome open.
func (r *revocations) one(
	ctx context.Context, cl *client, request api.RevokeKeys, p *progress,
) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := cl.do(ctx, http.MethodPost, "/v1/keys/revoke", bytes.NewReader(body))
	if err != nil {
		return &exitError{exitUnknown, err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		e := &answerError{status: resp.StatusCode}
		_ = json.Unmarshal(data, &e.Problem) // not a problem document: the status has to do
		return e
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var l api.RevokeLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return &exitError{exitUnknown, fmt.Errorf("%s did not answer as Keyward does", cl.base)}
		}
		if r.json {
			if _, err := fmt.Fprintln(r.t.out, lines.Text()); err != nil {
				return err
			}
		}
		switch l.Status {
		case api.RevokeStarted:
		case api.RevokeDone, api.RevokeDryRun:
			r.add(&l)
			return nil
		case api.RevokeFailed:
			r.add(&l)
			e := &answerError{status: http.StatusServiceUnavailable}
			if l.Error != nil {
				e.Problem, e.status = *l.Error, l.Error.Status
			}
			return &exitError{exitUnknown, e}
		default:
			if err := r.key(&l, p); err != nil {
				return err
			}
		}
	}
	return &exitError{exitUnknown, fmt.Errorf("the server's answer broke off: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))}
}

func (r *revocations) add(l *api.RevokeLine) {
	for into, n := range map[*int]*int{&r.revoked: l.Revoked, &r.before: l.AlreadyRevoked, &r.notFound: l.NotFound, &r.undecided: l.Undecided, &r.leftOut: l.LeftOut} {
		if n != nil {
			*into += *n
		}
	}
}

// key shows one key's line.
func (r *revocations) key(l *api.RevokeLine, p *progress) error {
	if p != nil && l.Done != nil && l.Total != nil {
		p.set(bar(*l.Done, *l.Total))
		return nil
	}
	if r.json {
		return nil
	}
	style := green
	if l.Status == "not_found" || l.Status == "undecided" {
		style = yellow
	}
	line := strings.TrimSpace(r.t.paint(style, strings.ReplaceAll(l.Status, "_", " ")) + "  " + l.APIKeyID + "  " + l.OrganizationID)
	_, err := fmt.Fprintln(r.t.out, line)
	return err
}

// keyCount names a number of keys.
func keyCount(n int) string {
	if n == 1 {
		return "1 key"
	}
	return fmt.Sprintf("%d keys", n)
}

// bar draws how far it is.
func bar(done, total int) string {
	const width = 24
	filled := width
	if total > 0 {
		filled = min(width, width*done/total)
	}
	return fmt.Sprintf("[%s%s] %d of %d", strings.Repeat("#", filled), strings.Repeat(".", width-filled), done, total)
}
