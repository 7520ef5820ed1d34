package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
)

type verifyCmd struct {
	verifyConnection
	format
	Env              string   `enum:"any,live,test" default:"any" help:"Refuse a key of the other environment." placeholder:"live|test"`
	ConnectedAccount string   `help:"Ask for a connected account of the key's organization." placeholder:"ID"`
	Extra            []string `arg:"" optional:"" hidden:""`
}

// Help implements kong.HelpProvider.
func (verifyCmd) Help() string {
	return `The secret is the first line of the standard input; on the command line other users of the machine could read it. The exit code is 0 when it is valid, 1 when it is not, 3 when it could not be decided.

Example:

    keyward verify < secret.txt`
}

// longestSecret bounds what is read of the standard input, in bytes.
const longestSecret = 4096

// Run asks and answers with the exit code.
func (c *verifyCmd) Run(ctx context.Context, t *terminal) error {
	if len(c.Extra) > 0 {
		return wrong("the secret is read from the standard input, never from the command line: keyward verify < secret.txt")
	}
	cl, err := c.verifyConnection.open(needVerify)
	if err != nil {
		return err
	}
	if f, ok := t.in.(*os.File); ok && isTerminal(f) {
		_, _ = io.WriteString(t.err, "Type or paste the secret, then Enter: ")
	}
	line, err := bufio.NewReader(io.LimitReader(t.in, longestSecret)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return &exitError{exitUnknown, err}
	}
	body := api.VerifyKey{Key: strings.TrimRight(line, "\r\n"), ConnectedAccountID: c.ConnectedAccount}
	if body.Key == "" {
		return wrong("the standard input is empty; the secret is its first line: keyward verify < secret.txt")
	}
	if c.Env != "any" {
		body.Env = c.Env
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var v api.Verdict
	if err := cl.call(ctx, http.MethodPost, "/v1/verify", body, &v); err != nil {
		return &exitError{exitUnknown, err}
	}
	if err := c.show(t, v, func() error { return printVerdict(t, &v) }); err != nil {
		return err
	}
	if !v.Valid {
		return &exitError{code: exitFailed}
	}
	return nil
}

func printVerdict(t *terminal, v *api.Verdict) error {
	word := cell{"valid", green}
	if !v.Valid {
		word = cell{"not valid: " + v.Reason, red}
	}
	rows := [][2]string{
		{"key", v.APIKeyID}, {"name", v.KeyName}, {"organization", v.OrganizationID},
		{"connected account", v.ConnectedAccountID}, {"environment", v.Env},
	}
	if v.APIKeyID != "" {
		expires := "never"
		if v.ExpiresAt != nil {
			expires = *v.ExpiresAt
		}
		rows = append(rows, [2]string{"expires", expires})
	}
	if v.PaymentsEnabled != nil && !*v.PaymentsEnabled {
		rows = append(rows, [2]string{"payments", "not enabled"})
	}
	return t.sheet(word, rows)
}
