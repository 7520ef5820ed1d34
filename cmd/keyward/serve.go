package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/secretfile"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// database is the settings of the database.
type database struct {
	DatabaseURL            string `setting:"" name:"database-url" default:"sqlite:keyward.db" help:"Database: sqlite:PATH, or postgres://… with one or several hosts." placeholder:"URL"`
	DatabaseAllowPlaintext bool   `setting:"" help:"Allow a PostgreSQL on another machine to be reached without TLS."`
}

func (d *database) options() sqlstore.Options {
	return sqlstore.Options{URL: d.DatabaseURL, AllowPlaintext: d.DatabaseAllowPlaintext}
}

func (d *database) check() error {
	if err := sqlstore.Check(d.options()); err != nil {
		return wrong("--database-url (KEYWARD_DATABASE_URL): %w", err)
	}
	return nil
}

// serveCmd is every setting of a server (R3). The names are those of the flags, with KEYWARD_
// before them in the environment.
type serveCmd struct {
	Listen         listenAddress `setting:"" default:"127.0.0.1:8080" group:"Listeners:" help:"Public listener: the management API, /openapi.json and /docs." placeholder:"HOST:PORT"`
	InternalListen listenAddress `setting:"" default:"127.0.0.1:8081" group:"Listeners:" help:"Internal listener: verification, organizations, audit, health and metrics." placeholder:"HOST:PORT"`
	ExtAuthzListen listenAddress `setting:"" name:"extauthz-listen" group:"Listeners:" help:"Listener for Envoy: ext_authz and health over gRPC. Off by default. Tokens and TLS as for the internal listener." placeholder:"HOST:PORT"`
	CORSOrigins    []string      `setting:"" name:"cors-origins" group:"Listeners:" help:"Exact origins, separated by commas, whose pages may call the management API. None by default." placeholder:"ORIGIN"`

	InternalTokenFile    string `setting:"" type:"path" group:"Listeners:" help:"Bearer tokens of the internal and the ext_authz listener, one a line, at least 16 characters each. Required unless they listen on loopback." placeholder:"FILE"`
	TLSCertFile          string `setting:"" name:"tls-cert-file" type:"path" group:"Listeners:" help:"Certificate chain (PEM) for all listeners; read again when it changes. Off by default." placeholder:"FILE"`
	TLSKeyFile           string `setting:"" name:"tls-key-file" type:"path" group:"Listeners:" help:"Key of the certificate (PEM)." placeholder:"FILE"`
	InternalClientCAFile string `setting:"" name:"internal-client-ca-file" type:"path" group:"Listeners:" help:"Serve the internal and the ext_authz listener only to clients with a certificate of these authorities (PEM)." placeholder:"FILE"`

	database         `group:"Data:"`
	MasterKeyFile    string   `setting:"" type:"path" group:"Data:" help:"Lines <id>:<base64 of 32 bytes>, the first wanted, the others retired; nobody beyond its owner and group may read it. This or a command is required." placeholder:"FILE"`
	MasterKeyCommand string   `setting:"" group:"Data:" help:"A command that prints such lines, run by /bin/sh at start, on SIGHUP, for a rotation and when a key is missing; it has 30 seconds." placeholder:"COMMAND"`
	Lease            duration `setting:"" default:"10s" group:"Data:" help:"How long verification rides out a database that is away, 1s to 5m. A write waits 1.25 times as long for a node that died." placeholder:"DURATION"`

	ProbeEvery  duration         `setting:"" default:"1m" group:"Many nodes:" help:"Time between two probes: one node in turn mints a key of its own, ends it, and asks every node about it before and after. At least 5s; 0s is off. With SQLite there is one node, and no prober." placeholder:"DURATION"`
	Advertise   advertiseAddress `setting:"" group:"Many nodes:" help:"Where the other nodes reach this node's internal listener. By default where it listens, under this machine's name if that is every address." placeholder:"HOST:PORT"`
	ProbeCAFile string           `setting:"" name:"probe-ca-file" type:"path" group:"Many nodes:" help:"Certificate authorities (PEM) of the nodes' internal listeners, besides the system's, for the prober." placeholder:"FILE"`

	JWTJWKS              string   `setting:"" name:"jwt-jwks" type:"string" group:"Users' tokens:" help:"The issuer's keys: an https URL, an http URL on loopback, or a file. Either this or an HS256 secret is required." placeholder:"URL|FILE"`
	JWTHS256SecretFile   string   `setting:"" name:"jwt-hs256-secret-file" type:"path" group:"Users' tokens:" help:"Shared HS256 secret: the file without a final newline, at least 32 bytes." placeholder:"FILE"`
	JWTIssuer            *string  `setting:"empty" name:"jwt-issuer" group:"Users' tokens:" help:"Required: what the claim iss must be. Set to nothing on purpose to leave it unchecked." placeholder:"ISSUER"`
	JWTAudience          *string  `setting:"empty" name:"jwt-audience" group:"Users' tokens:" help:"Required: what the claim aud must contain. Set to nothing on purpose to leave it unchecked." placeholder:"AUDIENCE"`
	JWTOrganizationClaim string   `setting:"" name:"jwt-organization-claim" default:"org_id" group:"Users' tokens:" help:"Claim that names the user's organization; the user is sub." placeholder:"CLAIM"`
	JWTRoleClaim         string   `setting:"" name:"jwt-role-claim" group:"Users' tokens:" help:"Claim that holds the user's roles. Roles are not read by default." placeholder:"CLAIM"`
	JWTRoles             []string `setting:"" name:"jwt-roles" group:"Users' tokens:" help:"Roles, separated by commas, of which a user needs one to manage keys. None is needed by default." placeholder:"ROLE"`

	SecretPrefix                   string   `setting:"" default:"sk" group:"Keys:" help:"The word before _live_ and _test_ in every secret." placeholder:"WORD"`
	RequireRegisteredOrganizations bool     `setting:"" group:"Keys:" help:"Refuse organizations that were never set. False by default: they can get test keys."`
	MaxExpiresInDays               int      `setting:"" group:"Keys:" help:"Longest life of a key in days, and then none lives for ever. 0 is no maximum." default:"0" placeholder:"DAYS"`
	MaxOverlap                     duration `setting:"" default:"24h" group:"Keys:" help:"Longest time a rolled key may go on working; 0s allows none." placeholder:"DURATION"`

	LogFormat string `setting:"" enum:"json,text" default:"json" group:"Log:" help:"Log format on the standard error; json by default." placeholder:"json|text"`
	LogLevel  string `setting:"" enum:"debug,info,warn,error" default:"info" group:"Log:" help:"Least level that is logged; info by default." placeholder:"debug|info|warn|error"`
}

// Help implements kong.HelpProvider.
func (serveCmd) Help() string {
	return `Every flag is also the environment variable beside it. A flag beats the variable, and the variable the default.

Example:

    keyward master-key new --file master.key
    keyward serve --master-key-file master.key --jwt-jwks https://login.example.com/jwks.json --jwt-issuer https://login.example.com --jwt-audience keyward`
}

// longestLease bounds --lease: a write may have to wait for as long.
const longestLease = 5 * time.Minute

// leastProbe bounds --probe-every: each probe is two writes that stay in the audit log.
const leastProbe = 5 * time.Second

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context, t *terminal) error {
	logger := c.logger(t.err)
	n, err := c.node(ctx, logger)
	if err != nil {
		return err
	}
	defer n.close()
	notifier := newNotifier(t.env)
	defer notifier.close()
	n.notify = notifier.send
	return n.run(ctx)
}

func (c *serveCmd) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		panic(err) // kong checked the word
	}
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// check finds what is wrong with the settings taken together, before any file is read.
func (c *serveCmd) check() error {
	if err := c.database.check(); err != nil {
		return err
	}
	switch {
	case c.Listen == "":
		return wrong("--listen (KEYWARD_LISTEN): must be host:port")
	case c.InternalListen == "":
		return wrong("--internal-listen (KEYWARD_INTERNAL_LISTEN): must be host:port")
	case c.Listen.takes(c.InternalListen):
		return wrong("--listen (KEYWARD_LISTEN) and --internal-listen (KEYWARD_INTERNAL_LISTEN): must not be the same address")
	case c.ExtAuthzListen != "" && (c.Listen.takes(c.ExtAuthzListen) || c.InternalListen.takes(c.ExtAuthzListen)):
		return wrong("--extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN): must not be the address of another listener")
	case c.MasterKeyFile == "" && c.MasterKeyCommand == "":
		return wrong(
			"--master-key-file (KEYWARD_MASTER_KEY_FILE) or --master-key-command (KEYWARD_MASTER_KEY_COMMAND) is required; make a file with `keyward master-key new --file master.key`",
		)
	case c.MasterKeyFile != "" && c.MasterKeyCommand != "":
		return wrong(
			"--master-key-file (KEYWARD_MASTER_KEY_FILE) and --master-key-command (KEYWARD_MASTER_KEY_COMMAND): only one can be set",
		)
	case (c.JWTJWKS == "") == (c.JWTHS256SecretFile == ""):
		return wrong("exactly one of --jwt-jwks (KEYWARD_JWT_JWKS) and --jwt-hs256-secret-file (KEYWARD_JWT_HS256_SECRET_FILE) is required")
	case c.JWTIssuer == nil:
		return wrong("--jwt-issuer (KEYWARD_JWT_ISSUER) is required; set it to nothing on purpose if no issuer is to be checked")
	case c.JWTAudience == nil:
		return wrong("--jwt-audience (KEYWARD_JWT_AUDIENCE) is required; set it to nothing on purpose if no audience is to be checked")
	case c.JWTOrganizationClaim == "":
		return wrong("--jwt-organization-claim (KEYWARD_JWT_ORGANIZATION_CLAIM): must not be empty")
	case (c.JWTRoleClaim == "") != (len(c.JWTRoles) == 0):
		return wrong("--jwt-role-claim (KEYWARD_JWT_ROLE_CLAIM) goes with --jwt-roles (KEYWARD_JWT_ROLES)")
	case slices.Contains(c.JWTRoles, ""):
		return wrong("--jwt-roles (KEYWARD_JWT_ROLES): a role must not be empty")
	case (c.TLSCertFile == "") != (c.TLSKeyFile == ""):
		return wrong("--tls-cert-file (KEYWARD_TLS_CERT_FILE) goes with --tls-key-file (KEYWARD_TLS_KEY_FILE)")
	case c.InternalClientCAFile != "" && c.TLSCertFile == "":
		return wrong("--internal-client-ca-file (KEYWARD_INTERNAL_CLIENT_CA_FILE) needs --tls-cert-file (KEYWARD_TLS_CERT_FILE)")
	case c.InternalTokenFile == "" && !c.InternalListen.loopback():
		return wrong("--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE) is required unless --internal-listen (KEYWARD_INTERNAL_LISTEN) is on loopback")
	case c.InternalTokenFile == "" && c.ExtAuthzListen != "" && !c.ExtAuthzListen.loopback():
		return wrong("--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE) is required unless --extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN) is on loopback")
	case c.MaxExpiresInDays < 0 || c.MaxExpiresInDays > 36500:
		return wrong("--max-expires-in-days (KEYWARD_MAX_EXPIRES_IN_DAYS): must be 0 (no maximum) to 36500")
	case time.Duration(c.Lease) < time.Second || time.Duration(c.Lease) > longestLease:
		return wrong("--lease (KEYWARD_LEASE): must be 1s to 5m")
	case c.ProbeEvery != 0 && time.Duration(c.ProbeEvery) < leastProbe:
		return wrong("--probe-every (KEYWARD_PROBE_EVERY): must be 0s (off) or at least 5s")
	case c.ProbeCAFile != "" && c.TLSCertFile == "":
		return wrong("--probe-ca-file (KEYWARD_PROBE_CA_FILE) needs --tls-cert-file (KEYWARD_TLS_CERT_FILE): without TLS there is no certificate to check")
	}
	return nil
}

// node makes a node that is not running yet. Everything that can be wrong with the settings and
// the files they name is an error here, with exit code 2.
func (c *serveCmd) node(ctx context.Context, logger *slog.Logger) (*node, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cfg := nodeConfig{
		listen: string(c.Listen), internalListen: string(c.InternalListen), extAuthzListen: string(c.ExtAuthzListen),
		database: c.database.options(), masterKeys: keySource{c.MasterKeyFile, c.MasterKeyCommand},
		requiredRoles: c.JWTRoles, requireRegistered: c.RequireRegisteredOrganizations,
		maxExpiresInDays: c.MaxExpiresInDays, maxOverlap: time.Duration(c.MaxOverlap), lease: time.Duration(c.Lease),
		advertise: string(c.Advertise), probeEvery: time.Duration(c.ProbeEvery),
		logger: logger,
	}
	cfg.tls.Cert, cfg.tls.Key, cfg.tls.ClientCA = c.TLSCertFile, c.TLSKeyFile, c.InternalClientCAFile
	if cfg.maxOverlap == 0 {
		cfg.maxOverlap = -1 // the domain takes 0 for its default
	}
	for _, o := range c.CORSOrigins {
		cfg.corsOrigins = append(cfg.corsOrigins, strings.TrimSpace(o))
	}
	var err error
	if cfg.probeRoots, err = rootsWith(c.ProbeCAFile); err != nil {
		return nil, wrong("--probe-ca-file (KEYWARD_PROBE_CA_FILE): %w", err)
	}
	if cfg.format, err = token.NewFormat(c.SecretPrefix); err != nil {
		return nil, wrong("--secret-prefix (KEYWARD_SECRET_PREFIX): %w", err)
	}
	if cfg.ring, err = cfg.masterKeys.read(ctx); err != nil {
		if c.MasterKeyCommand != "" {
			return nil, wrong("--master-key-command (KEYWARD_MASTER_KEY_COMMAND): %w", err)
		}
		return nil, wrong("--master-key-file (KEYWARD_MASTER_KEY_FILE): %w", err)
	}
	if cfg.internalTokens, err = c.internalTokens(logger); err != nil {
		return nil, wrong("--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE): %w", err)
	}
	if cfg.authenticator, err = c.authenticator(ctx, logger); err != nil {
		return nil, err
	}
	n, err := newNode(cfg)
	if err != nil {
		cfg.authenticator.Close()
		return nil, &exitError{exitUsage, err}
	}
	return n, nil
}

func (c *serveCmd) internalTokens(logger *slog.Logger) ([]string, error) {
	if c.InternalTokenFile == "" {
		return nil, nil
	}
	data, exposed, err := readSecretFile(c.InternalTokenFile)
	if err != nil {
		return nil, err
	}
	tokens := secretLines(data)
	if len(tokens) == 0 {
		return nil, errors.New("the file holds no token")
	}
	for i, t := range tokens {
		if strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) || len(t) < 16 {
			return nil, fmt.Errorf("token %d must be at least 16 printable characters without spaces", i+1)
		}
	}
	if exposed {
		logger.Warn("every user of this machine can read the internal tokens: chmod 640 the file", "file", c.InternalTokenFile)
	}
	return tokens, nil
}

func (c *serveCmd) authenticator(ctx context.Context, logger *slog.Logger) (authenticator, error) {
	cfg := identity.Config{
		JWKS: c.JWTJWKS, Issuer: *c.JWTIssuer, Audience: *c.JWTAudience,
		OrganizationClaim: c.JWTOrganizationClaim, RoleClaim: c.JWTRoleClaim, Logger: logger,
	}
	// The authenticator outlives ctx: requests that run when the first signal comes are still
	// judged.
	ctx = context.WithoutCancel(ctx)
	var a authenticator
	var err error
	at := "--jwt-jwks (KEYWARD_JWT_JWKS)"
	switch {
	case c.JWTHS256SecretFile != "":
		at = "--jwt-hs256-secret-file (KEYWARD_JWT_HS256_SECRET_FILE)"
		a, err = newFileAuthenticator(
			c.JWTHS256SecretFile,
			logger,
			func() (*identity.Authenticator, error) {
				data, err := secretfile.Read(c.JWTHS256SecretFile)
				if err != nil {
					return nil, err
				}
				defer clear(data)
				cfg := cfg
				cfg.HS256Secret = withoutNewline(data)
				return identity.New(ctx, cfg)
			},
		)
	default: // it reads a key set that is a file again itself
		a, err = identity.New(ctx, cfg)
	}
	if err != nil {
		return nil, wrong("%s: %w", at, err)
	}
	return a, nil
}
