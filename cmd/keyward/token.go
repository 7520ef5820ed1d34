package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/syncgram/keyward/internal/identity"
)

// devFolder is where dev keeps everything.
const devFolder = ".keyward"

type tokenCmd struct {
	User string   `required:"" help:"The user, the token's sub." placeholder:"ID"`
	Org  string   `required:"" help:"The user's organization." placeholder:"ID"`
	TTL  duration `name:"ttl" default:"1h" help:"How long the token is good."`
	Role []string `help:"A role of the user, in the claim roles; may be repeated." placeholder:"ROLE"`
	Dir  string   `default:"${dev_folder}" type:"path" help:"The folder of keyward dev." placeholder:"DIR"`
}

// Help implements kong.HelpProvider.
func (tokenCmd) Help() string {
	return `It is signed by the issuer that keyward dev made, and good for that server alone.

Example:

    curl http://127.0.0.1:8080/api/v1/auth/api-keys -H "Authorization: Bearer $(keyward token --user ann --org org_demo)"`
}

// Run prints a token.
func (c *tokenCmd) Run(t *terminal) error {
	if _, err := os.Stat(filepath.Join(c.Dir, identity.DevKeyFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no development issuer in %s: run `keyward dev` first, or name its folder with --dir", c.Dir)
	}
	issuer, err := identity.OpenDevIssuer(c.Dir)
	if err != nil {
		return err
	}
	token, err := issuer.Issue(c.User, c.Org, time.Duration(c.TTL), c.Role...)
	if err != nil {
		return wrong("%s", strings.Replace("--"+err.Error(), "--organization:", "--org:", 1))
	}
	_, err = fmt.Fprintln(t.out, token)
	return err
}
