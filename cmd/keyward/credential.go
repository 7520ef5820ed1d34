package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/syncgram/keyward/internal/access"
)

type credentialCmd struct {
	New credentialNewCmd `cmd:"" help:"Make a credential for the verification and the admin listener."`
}

type credentialNewCmd struct {
	Name  string   `required:"" help:"Name of the credential; it is the actor in the audit log, operator:NAME." placeholder:"NAME"`
	Scope []string `required:"" help:"What it may do: verify, read, operate, or several separated by commas." placeholder:"SCOPE"`
	format
}

// Help implements kong.HelpProvider.
func (credentialNewCmd) Help() string {
	return `It prints a line for the credentials file, which holds the token's SHA-256 alone, and the token, once. verify is for services and proxies, read for monitoring (GET on the admin listener), operate for all of the admin listener.

Example:

    keyward credential new --name checkout --scope verify`
}

// tokenBytes is how much randomness a token has.
const tokenBytes = 32

// newCredential is what credential new prints.
type newCredential struct {
	Line  string `json:"line"`
	Token string `json:"token"`
}

// Run makes a credential.
func (c *credentialNewCmd) Run(t *terminal) error {
	scopes, err := access.ParseScopes(c.Scope)
	if err != nil {
		return wrong("--scope: %w", err)
	}
	random := make([]byte, tokenBytes)
	rand.Read(random) // never fails: crypto/rand ends the program first
	made := newCredential{Token: "kwc_" + base64.RawURLEncoding.EncodeToString(random)}
	if made.Line, err = access.Line(c.Name, scopes, made.Token); err != nil {
		return wrong("--name: %w", err)
	}
	return c.show(t, made, func() error {
		_, err := fmt.Fprintf(t.out, "%s\n%s\n\n%s\n%s\n",
			"Line for the credentials file (KEYWARD_CREDENTIALS_FILE), which is read again when it changes:", made.Line,
			"Token for the caller, shown this once:", made.Token)
		return err
	})
}
