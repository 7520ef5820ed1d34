package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/examples/payments/paymentsapi"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
)

type devCmd struct {
	format
	Dir            string        `default:"${dev_folder}" type:"path" help:"Folder for the database, the master key and the issuer." placeholder:"DIR"`
	Listen         listenAddress `default:"127.0.0.1:8080" help:"Public listener." placeholder:"HOST:PORT"`
	VerifyListen   listenAddress `default:"127.0.0.1:8081" help:"Verification listener, on loopback." placeholder:"HOST:PORT"`
	AdminListen    listenAddress `default:"127.0.0.1:8082" help:"Admin listener, on loopback." placeholder:"HOST:PORT"`
	PaymentsListen listenAddress `default:"127.0.0.1:8083" help:"The example payments API." placeholder:"HOST:PORT"`
	LogLevel       string        `enum:"debug,info,warn,error" default:"warn" help:"Least level that is logged on the standard error; warn by default." placeholder:"debug|info|warn|error"`
}

// Help implements kong.HelpProvider.
func (devCmd) Help() string {
	return `One process with an embedded database, its own token issuer, three organizations and an example payments API. Started again it goes on with the same data; remove the folder to begin anew.

Example:

    keyward dev --listen 127.0.0.1:9080`
}

// The organizations of dev.
const (
	demoOrganization      = "org_demo"
	demoName              = "Demo Shop"
	sandboxOrganization   = "org_sandbox"
	connectedOrganization = "org_demo_connected"
)

// devTokenLife is how long the printed token is good.
const devTokenLife = 12 * time.Hour

// Run serves until ctx ends.
func (c *devCmd) Run(ctx context.Context, t *terminal) error {
	if !c.VerifyListen.loopback() {
		return wrong("--verify-listen: must be on loopback, because dev asks for no credential")
	}
	if !c.AdminListen.loopback() {
		return wrong("--admin-listen: must be on loopback, because dev asks for no credential")
	}
	addresses := []struct {
		flag    string
		address listenAddress
	}{
		{"--listen", c.Listen}, {"--verify-listen", c.VerifyListen},
		{"--admin-listen", c.AdminListen}, {"--payments-listen", c.PaymentsListen},
	}
	for i, a := range addresses {
		for _, b := range addresses[i+1:] {
			if a.address.takes(b.address) {
				return wrong("%s and %s: must not be the same address", a.flag, b.flag)
			}
		}
	}
	issuer, err := prepareFolder(c.Dir)
	if err != nil {
		return err
	}
	name, audience := identity.DevIssuerName, identity.DevAudience
	settings := serveCmd{
		outerListeners: outerListeners{Listen: c.Listen},
		innerListeners: innerListeners{VerifyListen: c.VerifyListen, AdminListen: c.AdminListen},
		database: database{
			DatabaseURL:         "sqlite:" + filepath.Join(c.Dir, "keyward.db"),
			DatabaseConnections: sqlstore.DefaultConnections,
		},
		MasterKeyFile: filepath.Join(c.Dir, "master.key"), Lease: duration(10 * time.Second),
		JWTJWKS: issuer.Config().JWKS, JWTIssuer: &name, JWTAudience: &audience, JWTOrganizationClaim: "org_id",
		UserRequestsPerMinute: 120,
		SecretPrefix:          "sk", MaxOverlap: duration(24 * time.Hour), LogFormat: "text", LogLevel: c.LogLevel,
	}
	log := t.detach()
	logger := settings.logger(log)
	n, err := settings.node(ctx, logger)
	if err != nil {
		return err
	}
	defer n.close()
	captureLogs(logger)
	n.metrics.WatchLog(log.Dropped)
	payments := new(http.ServeMux)
	n.addHTTP("payments", string(c.PaymentsListen), server.NewHTTPServer(payments, server.Limits{}, logger), nil)
	n.bound = func() error {
		client, err := keyward.New(keyward.Config{Addresses: []string{baseURL(n.address("verification"))}})
		if err != nil {
			return err
		}
		payments.Handle("/", paymentsapi.New(paymentsapi.Config{Client: client, Logger: logger}))
		return nil
	}
	n.ready = func(ctx context.Context) error { return c.welcome(ctx, t, n, issuer) }
	return n.run(ctx)
}

// prepareFolder makes what is missing in the folder: everything in it is for its owner alone.
func prepareFolder(folder string) (*identity.DevIssuer, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, err
	}
	masterKey := filepath.Join(folder, "master.key")
	if _, err := os.Stat(masterKey); errors.Is(err, fs.ErrNotExist) {
		line, err := seal.NewLine("")
		if err != nil {
			return nil, err
		}
		if err := writePrivate(masterKey, []byte(line+"\n")); err != nil {
			return nil, err
		}
	}
	return identity.OpenDevIssuer(folder)
}

// welcome sets the organizations that are missing and prints what there is to try.
func (c *devCmd) welcome(ctx context.Context, t *terminal, n *node, issuer *identity.DevIssuer) error {
	if err := seed(ctx, n.service); err != nil {
		return err
	}
	// A user of its own for each start, because a user creates at most one key a minute (C14).
	user := "dev_" + strings.ToLower(rand.Text()[:6])
	userToken, err := issuer.Issue(user, demoOrganization, devTokenLife)
	if err != nil {
		return err
	}
	g := greeting{
		Folder: c.Dir, Public: baseURL(n.address("public")), Verification: baseURL(n.address("verification")), Admin: baseURL(n.address("admin")), Payments: baseURL(n.address("payments")),
		User: user, Token: userToken,
	}
	all := "all"
	page, err := n.service.List(ctx, keys.Call{Principal: keys.Principal{User: user, OrganizationID: demoOrganization}}, keys.ListRequest{Environment: &all})
	var refusal *keys.Error
	if errors.As(err, &refusal) && (refusal.Code == api.OrganizationInactive || refusal.Code == api.ConnectedAccount) {
		g.Trouble = g.trouble(refusal.Code)
	} else if err != nil {
		return err
	}
	for _, k := range page.Keys {
		if k.State == keys.StateActive && keys.Judge(k.Lifecycle(), true, page.Now) == keys.Valid {
			g.ActiveKeyID = k.ID
		}
	}
	g.Steps = g.steps()
	return c.show(t, g, func() error { return g.print(t) })
}

// seed puts the organizations of dev that are not there.
func seed(ctx context.Context, s *keys.Service) error {
	text := func(s string) *string { return &s }
	yes := true
	for _, o := range []keys.OrganizationRequest{
		{ID: demoOrganization, Name: text(demoName), PaymentsEnabled: &yes},
		{ID: sandboxOrganization, Name: text("Sandbox Shop")},
		{ID: connectedOrganization, Name: text("Connected Shop"), ParentID: text(demoOrganization), PaymentsEnabled: &yes, Force: true},
	} {
		_, err := s.Organization(ctx, o.ID)
		var refusal *keys.Error
		if errors.As(err, &refusal) && refusal.Code == api.OrganizationNotFound {
			_, err = s.PutOrganization(ctx, keys.Operator{RequestID: "keyward-dev", RemoteAddress: "127.0.0.1"}, o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// baseURL is where this machine reaches a listener.
func baseURL(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // net.Listener.Addr has this form
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// greeting is what dev prints.
type greeting struct {
	Folder       string `json:"folder"`
	Public       string `json:"public"`
	Verification string `json:"verification"`
	Admin        string `json:"admin"`
	Payments     string `json:"payments"`
	User         string `json:"user"`
	Token        string `json:"token"`
	ActiveKeyID  string `json:"active_api_key_id,omitempty"` // of org_demo, from an earlier run
	Trouble      string `json:"trouble,omitempty"`           // why the steps fail, and the command that changes it
	Steps        []step `json:"steps"`
}

// step is lines for a shell (POSIX sh, bash, zsh) and what they do. Pasted in order they work as
// printed, and need nothing but curl and sed.
type step struct {
	Title string   `json:"title"`
	Lines []string `json:"lines"`
}

// trouble tells why org_demo may manage no keys.
func (g *greeting) trouble(code api.Code) string {
	why, undo := "is switched off", "org enable "+demoOrganization
	if code != api.OrganizationInactive {
		why, undo = "is a connected account and manages no keys", "org update "+demoOrganization+" --no-parent"
	}
	return demoOrganization + " " + why + "; undo that with: keyward " + undo + " --server " + g.Admin
}

func (g *greeting) steps() []step {
	const (
		asUser = ` -H "Authorization: Bearer $TOKEN"`
		isJSON = ` -H 'Content-Type: application/json'`
		end    = `; echo`
	)
	keysURL := g.Public + "/api/v1/auth/api-keys"
	member := func(name string) string {
		return `$(echo "$ANSWER" | sed -n 's/.*"` + name + `": *"\([^"]*\)".*/\1/p')`
	}
	payment := step{"Pay with it", []string{
		`curl -sS ` + g.Payments + `/v1/payments -H "Authorization: Bearer $KEY"` + isJSON + ` -d '{"amount": 4200, "currency": "eur"}'` + end,
	}}
	steps := []step{{"Sign in: " + g.User + " of " + demoOrganization + ", for 12 hours", []string{`TOKEN=` + g.Token}}}
	if g.ActiveKeyID != "" {
		steps = append(steps, step{"Revoke the key of an earlier run: an organization has one active key at a time", []string{
			`curl -sS -X POST ` + keysURL + `/` + g.ActiveKeyID + `/revoke` + asUser + end,
		}})
	}
	steps = append(steps,
		step{"Create a key: its secret is shown this once", []string{
			`ANSWER=$(curl -sS ` + keysURL + asUser + isJSON + ` -d '{"key_name": "First key"}'); echo "$ANSWER"`,
			`KEY=` + member("key") + ` ID=` + member("api_key_id"),
		}},
		step{"List the keys", []string{`curl -sS ` + keysURL + asUser + end}},
		step{"Verify it, as your services do", []string{
			`curl -sS ` + g.Verification + `/v1/verify` + isJSON + ` -d '{"key": "'$KEY'"}'` + end,
		}},
		payment,
		step{"Revoke it", []string{`curl -sS -X POST ` + keysURL + `/$ID/revoke` + asUser + end}},
		step{"Pay again: refused from now on", payment.Lines},
	)
	return steps
}

func (g *greeting) print(t *terminal) error {
	var b strings.Builder
	folder := g.Folder
	if here, err := os.Getwd(); err == nil {
		if relative, err := filepath.Rel(here, folder); err == nil && !strings.HasPrefix(relative, "..") {
			folder = relative
		}
	}
	fmt.Fprintf(&b, "\n%s\n\n", t.paint(bold, "Keyward is running."))
	for _, row := range [][3]string{
		{"Management", g.Public, "for your users' tokens"},
		{"Docs", g.Public + "/docs", "every route, with examples"},
		{"Verification", g.Verification, "for your services"},
		{"Admin", g.Admin, "for operators: organizations, audit, metrics"},
		{"Payments", g.Payments, "an example API that accepts the keys"},
	} {
		fmt.Fprintf(&b, "  %s  %s  %s\n", fmt.Sprintf("%-12s", row[0]), t.paint(cyan, fmt.Sprintf("%-*s", len(g.Public)+len("/docs"), row[1])), t.paint(faint, row[2]))
	}
	if g.Trouble != "" {
		fmt.Fprintf(&b, "\n%s\n", t.paint(yellow, g.Trouble))
	}
	fmt.Fprintf(&b, "\n%s\n", t.paint(bold, "Paste into another shell, in order:"))
	for _, s := range g.Steps {
		fmt.Fprintf(&b, "\n%s\n", t.paint(faint, "# "+s.Title))
		for _, line := range s.Lines {
			b.WriteString(line + "\n")
		}
	}
	b.WriteByte('\n')
	for _, line := range []string{
		"The data is in " + folder + " and stays there.",
		"Also there: " + sandboxOrganization + ", with test keys only, and " + connectedOrganization + ", a connected account.",
		"Sign in to any with: keyward token --user ann --org " + sandboxOrganization,
		"Ctrl-C stops.",
	} {
		fmt.Fprintln(&b, t.paint(faint, line))
	}
	b.WriteByte('\n')
	_, err := t.out.Write([]byte(b.String()))
	return err
}
