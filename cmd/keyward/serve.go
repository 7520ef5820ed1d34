package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/logsink"
	"github.com/syncgram/keyward/internal/reload"
	"github.com/syncgram/keyward/internal/secretfile"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// database is the settings of the database.
type database struct {
	DatabaseURL              string `setting:"" name:"database-url" default:"sqlite:keyward.db" help:"Database: sqlite:PATH, or postgres://… with one or several hosts." placeholder:"URL"`
	DatabasePasswordFile     string `setting:"" type:"path" help:"File with the password of the PostgreSQL user, instead of one in the URL or in libpq's password file (PGPASSFILE); read for each new connection. Nobody beyond owner and group may read it." placeholder:"FILE"`
	DatabaseConnections      int    `setting:"" default:"10" help:"Connections to PostgreSQL that a node may have in all, 6 to 1000; 2 are kept for the lease and 1 for notifications. The role and the server need this many for each node." placeholder:"N"`
	DatabaseAllowPlaintext   bool   `setting:"" help:"Allow a PostgreSQL on another machine to be reached without TLS."`
	DatabaseAllowUnsafeFsync bool   `setting:"" help:"Allow a PostgreSQL with fsync=off, where a crash loses answered revocations or the whole database."`
}

func (d *database) options() sqlstore.Options {
	o := sqlstore.Options{
		URL: d.DatabaseURL, AllowPlaintext: d.DatabaseAllowPlaintext, RequireFsync: !d.DatabaseAllowUnsafeFsync,
		Connections: d.DatabaseConnections,
	}
	if path := d.DatabasePasswordFile; path != "" {
		o.Password = func() (string, error) {
			data, err := secretfile.Read(path)
			return string(withoutNewline(data)), err
		}
	}
	return o
}

func (d *database) check() error {
	if d.DatabaseConnections < sqlstore.MinConnections || d.DatabaseConnections > sqlstore.MaxConnections {
		return wrong("--database-connections (KEYWARD_DATABASE_CONNECTIONS): must be %d to %d", sqlstore.MinConnections, sqlstore.MaxConnections)
	}
	o := d.options()
	if err := sqlstore.Check(o); err != nil {
		return wrong("--database-url (KEYWARD_DATABASE_URL): %w", err)
	}
	if o.Password == nil {
		return d.checkPassfile()
	}
	const passwordFile = "--database-password-file (KEYWARD_DATABASE_PASSWORD_FILE)"
	if u, err := url.Parse(d.DatabaseURL); err != nil || u.Scheme == sqlstore.SQLite {
		return wrong("%s goes with a PostgreSQL", passwordFile)
	} else if _, set := u.User.Password(); set || u.Query().Has("password") {
		return wrong("%s: the database URL has a password too; give it in one place", passwordFile)
	}
	password, err := o.Password()
	switch {
	case err != nil:
		return wrong("%s: %w", passwordFile, err)
	case password == "":
		return wrong("%s: the file is empty", passwordFile)
	}
	return nil
}

// checkPassfile rejects a password file of libpq that everybody can read, as libpq itself does.
func (d *database) checkPassfile() error {
	u, err := url.Parse(d.DatabaseURL)
	if err != nil || u.Scheme == sqlstore.SQLite {
		return nil
	}
	if _, set := u.User.Password(); set || u.Query().Has("password") {
		return nil
	}
	path := u.Query().Get("passfile")
	if path == "" {
		path = os.Getenv("PGPASSFILE")
	}
	if home, err := os.UserHomeDir(); path == "" && err == nil {
		path = filepath.Join(home, ".pgpass")
	}
	if _, err := secretfile.Read(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrong("the password file of the database (PGPASSFILE): %w", err)
	}
	return nil
}

// unfit makes an error in the settings of one that only a person can fix by changing them.
func unfit(err error) error {
	if why := sqlstore.WrongSetting(err); why != "" {
		return wrong("--database-url (KEYWARD_DATABASE_URL): %s", why)
	}
	return err
}

// serveCmd is every setting of a server (R3). The names are those of the flags, with KEYWARD_
// before them in the environment.
type serveCmd struct {
	outerListeners
	innerListeners
	callers
	CORSOrigins []string `setting:"" name:"cors-origins" group:"Listeners:" help:"Exact origins, separated by commas, whose pages may call the management API. None by default." placeholder:"ORIGIN"`

	database         `group:"Data:"`
	MasterKeyFile    string   `setting:"" type:"path" group:"Data:" help:"Lines <id>:<base64 of 32 bytes>, the first wanted, the others retired; nobody beyond its owner and group may read it. This or a command is required." placeholder:"FILE"`
	MasterKeyCommand string   `setting:"" group:"Data:" help:"A command that prints such lines, run by /bin/sh at start, on SIGHUP, for a rotation and when a key is missing; it has 30 seconds." placeholder:"COMMAND"`
	Lease            duration `setting:"" default:"10s" group:"Data:" help:"How long verification rides out a database that is away, 1s to 5m. A write waits 1.25 times as long for a node that died." placeholder:"DURATION"`

	ProbeEvery  duration         `setting:"" default:"1m" group:"Many nodes:" help:"Time between two probes: one node in turn mints a key of its own, ends it, and asks every node about it before and after. At least 5s; 0s is off. With SQLite there is one node, and no prober." placeholder:"DURATION"`
	Advertise   advertiseAddress `setting:"" group:"Many nodes:" help:"Where the other nodes reach this node's verification listener. By default where it listens, under this machine's name if that is every address." placeholder:"HOST:PORT"`
	ProbeCAFile string           `setting:"" name:"probe-ca-file" type:"path" group:"Many nodes:" help:"Certificate authorities (PEM) of the nodes' verification listeners, besides the system's, for the prober." placeholder:"FILE"`

	JWTJWKS              string   `setting:"" name:"jwt-jwks" type:"string" group:"Users' tokens:" help:"The issuer's keys: an https URL, an http URL on loopback, or a file, which is read again when it changes. Either this or an HS256 secret is required." placeholder:"URL|FILE"`
	JWTJWKSMaxAge        duration `setting:"" name:"jwt-jwks-max-age" default:"24h" group:"Users' tokens:" help:"How long the issuer's keys stay in use while they cannot be read again, at least 1m. After that tokens are answered 503. 0s is no limit." placeholder:"DURATION"`
	JWTHS256SecretFile   string   `setting:"" name:"jwt-hs256-secret-file" type:"path" group:"Users' tokens:" help:"Shared HS256 secret: the file without a final newline, at least 32 bytes; read again when it changes." placeholder:"FILE"`
	JWTIssuer            *string  `setting:"empty" name:"jwt-issuer" group:"Users' tokens:" help:"Required: what the claim iss must be. Set to nothing on purpose to leave it unchecked." placeholder:"ISSUER"`
	JWTAudience          *string  `setting:"empty" name:"jwt-audience" group:"Users' tokens:" help:"Required: what the claim aud must contain. Set to nothing on purpose to leave it unchecked." placeholder:"AUDIENCE"`
	JWTOrganizationClaim string   `setting:"" name:"jwt-organization-claim" default:"org_id" group:"Users' tokens:" help:"Claim that names the user's organization: its name, or a path such as app_metadata.org_id, in which * is the only member of an object or array. The user is sub." placeholder:"CLAIM"`
	JWTRoleClaim         string   `setting:"" name:"jwt-role-claim" group:"Users' tokens:" help:"Claim that holds the user's roles, by its name or a path such as realm_access.roles. Roles are not read by default." placeholder:"CLAIM"`
	JWTRoles             []string `setting:"" name:"jwt-roles" group:"Users' tokens:" help:"Roles, separated by commas, of which a user needs one to manage keys. None is needed by default." placeholder:"ROLE"`

	UserRequestsPerMinute int `setting:"" default:"120" group:"Limits:" help:"Management requests a user may make a minute, as many at once; more are answered 429. A revoke that changes something always passes. 0 is no limit." placeholder:"NUMBER"`
	MaxConnections        int `setting:"" default:"0" group:"Limits:" help:"Connections each listener holds at the same time. At the limit idle ones are closed first. 0 divides what the limit of open files allows, with a share for the database." placeholder:"NUMBER"`

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

// minJWKSMaxAge leaves time for several attempts to read the key set.
const minJWKSMaxAge = time.Minute

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context, t *terminal) error {
	log := t.detach()
	logger := c.logger(log)
	n, err := c.node(ctx, logger)
	if err != nil {
		return err
	}
	defer n.close()
	captureLogs(logger)
	n.metrics.WatchLog(log.Dropped)
	n.reloads.add(func(context.Context) { n.cfg.files.All() })
	n.reloads.add(func(context.Context) { n.cfg.authenticator.Reload() })
	n.reloads.add(func(context.Context) { n.keys.readAgain() })
	go n.reloads.run(ctx, t.hangups, logger)
	notifier := newNotifier(t.env)
	defer notifier.close()
	n.notify = notifier.send
	return n.run(ctx)
}

// logger returns a logger that never waits for the log's reader (R12).
func (c *serveCmd) logger(log *logsink.Sink) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		panic(err) // kong checked the word
	}
	o := &slog.HandlerOptions{Level: level}
	return slog.New(log.Handler(func(w io.Writer) slog.Handler {
		if c.LogFormat == "text" {
			return slog.NewTextHandler(w, o)
		}
		return slog.NewJSONHandler(w, o)
	}))
}

// captureLogs sends what libraries log to the process's standard error through logger.
func captureLogs(logger *slog.Logger) {
	slog.SetDefault(logger) // package log too
	errors := slog.NewLogLogger(logger.Handler(), slog.LevelError).Writer()
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, errors))
}

// check finds what is wrong with the settings taken together, before any file is read.
func (c *serveCmd) check() error {
	if err := c.database.check(); err != nil {
		return err
	}
	if err := c.innerListeners.check(&c.outerListeners); err != nil {
		return err
	}
	switch {
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
	case c.JWTJWKSMaxAge != 0 && time.Duration(c.JWTJWKSMaxAge) < minJWKSMaxAge:
		return wrong("--jwt-jwks-max-age (KEYWARD_JWT_JWKS_MAX_AGE): " +
			"must be 0s (no limit) or at least 1m")
	case c.JWTOrganizationClaim == "":
		return wrong("--jwt-organization-claim (KEYWARD_JWT_ORGANIZATION_CLAIM): must not be empty")
	case (c.JWTRoleClaim == "") != (len(c.JWTRoles) == 0):
		return wrong("--jwt-role-claim (KEYWARD_JWT_ROLE_CLAIM) goes with --jwt-roles (KEYWARD_JWT_ROLES)")
	case slices.Contains(c.JWTRoles, ""):
		return wrong("--jwt-roles (KEYWARD_JWT_ROLES): a role must not be empty")
	case c.UserRequestsPerMinute < 0 || c.UserRequestsPerMinute > 1_000_000:
		return wrong("--user-requests-per-minute (KEYWARD_USER_REQUESTS_PER_MINUTE): must be 0 (no limit) to 1000000")
	case c.MaxConnections != 0 && (c.MaxConnections < 8 || c.MaxConnections > 1_000_000):
		return wrong("--max-connections (KEYWARD_MAX_CONNECTIONS): must be 0 (from the limit of open files) or 8 to 1000000")
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
		listen: string(c.Listen), verifyListen: string(c.VerifyListen), adminListen: string(c.AdminListen), extAuthzListen: string(c.ExtAuthzListen),
		database: c.database.options(), masterKeys: keySource{c.MasterKeyFile, c.MasterKeyCommand},
		requiredRoles: c.JWTRoles, requireRegistered: c.RequireRegisteredOrganizations,
		maxExpiresInDays: c.MaxExpiresInDays, maxOverlap: time.Duration(c.MaxOverlap), lease: time.Duration(c.Lease),
		advertise: string(c.Advertise), probeEvery: time.Duration(c.ProbeEvery),
		files: reload.New(logger), logger: logger,
		userRequestsPerMinute: c.UserRequestsPerMinute, maxConnections: c.MaxConnections,
	}
	cfg.roleClaim = c.JWTRoleClaim
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
	if err := c.setAccess(&cfg); err != nil {
		return nil, err
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

// setAccess sets who may use the listeners, and how it is found out who that is.
func (c *serveCmd) setAccess(cfg *nodeConfig) (err error) {
	if cfg.clients, err = c.callers.clients(); err != nil {
		return err
	}
	if cfg.adminHosts, err = c.callers.hosts(); err != nil {
		return err
	}
	if cfg.credentials, err = c.watchCredentials(cfg.files); err != nil || cfg.credentials == nil {
		return err
	}
	if !cfg.credentials().Any(access.Operate) {
		cfg.logger.Warn("no credential has the scope operate: nothing can be administered", "file", c.CredentialsFile)
	}
	return nil
}

func (c *serveCmd) authenticator(ctx context.Context, logger *slog.Logger) (*identity.Authenticator, error) {
	cfg := identity.Config{
		JWKS: c.JWTJWKS, JWKSMaxAge: time.Duration(c.JWTJWKSMaxAge),
		Issuer: *c.JWTIssuer, Audience: *c.JWTAudience,
		OrganizationClaim: c.JWTOrganizationClaim, RoleClaim: c.JWTRoleClaim, Logger: logger,
	}
	at := "--jwt-jwks (KEYWARD_JWT_JWKS)"
	if c.JWTHS256SecretFile != "" {
		at = "--jwt-hs256-secret-file (KEYWARD_JWT_HS256_SECRET_FILE)"
		cfg.HS256Read = func() ([]byte, error) {
			data, err := secretfile.Read(c.JWTHS256SecretFile)
			return withoutNewline(data), err
		}
	}
	// The authenticator outlives ctx: requests that run when the first signal comes are still judged.
	a, err := identity.New(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return nil, wrong("%s: %w", at, err)
	}
	return a, nil
}
