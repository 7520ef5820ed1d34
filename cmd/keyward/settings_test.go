package main

import (
	"context"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// settings is R3's table: each setting's environment variable with its default, and two values that
// differ from it and from each other.
var settings = []struct {
	env, def  string
	one, two  string
	undefined bool // no default
}{
	{env: "KEYWARD_LISTEN", def: "127.0.0.1:8080", one: "127.0.0.1:1", two: ":2"},
	{env: "KEYWARD_VERIFY_LISTEN", def: "127.0.0.1:8081", one: "127.0.0.1:1", two: "[::1]:2"},
	{env: "KEYWARD_ADMIN_LISTEN", def: "127.0.0.1:8082", one: "127.0.0.1:1", two: "[::1]:2"},
	{env: "KEYWARD_EXTAUTHZ_LISTEN", one: "127.0.0.1:1", two: "127.0.0.1:2"},
	{env: "KEYWARD_DATABASE_URL", def: "sqlite:keyward.db", one: "sqlite:a", two: "postgres://b"},
	{env: "KEYWARD_DATABASE_ALLOW_PLAINTEXT", def: "false", one: "true", two: "false"},
	{env: "KEYWARD_DATABASE_ALLOW_UNSAFE_FSYNC", def: "false", one: "true", two: "false"},
	{env: "KEYWARD_DATABASE_PASSWORD_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_DATABASE_CONNECTIONS", def: "10", one: "6", two: "50"},
	{env: "KEYWARD_MASTER_KEY_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_MASTER_KEY_COMMAND", one: "cat /a", two: "cat /b"},
	{env: "KEYWARD_JWT_JWKS", one: "https://a", two: "b.json"},
	{env: "KEYWARD_JWT_JWKS_MAX_AGE", def: "24h", one: "1m", two: "0s"},
	{env: "KEYWARD_JWT_HS256_SECRET_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_JWT_ISSUER", one: "a", two: "b", undefined: true},
	{env: "KEYWARD_JWT_AUDIENCE", one: "a", two: "b", undefined: true},
	{env: "KEYWARD_JWT_ORGANIZATION_CLAIM", def: "org_id", one: "a", two: "b"},
	{env: "KEYWARD_JWT_ROLE_CLAIM", one: "a", two: "b"},
	{env: "KEYWARD_JWT_ROLES", one: "a,b", two: "c"},
	{env: "KEYWARD_SECRET_PREFIX", def: "sk", one: "a", two: "b"},
	{env: "KEYWARD_CORS_ORIGINS", one: "https://a,https://b", two: "https://c"},
	{env: "KEYWARD_TLS_CERT_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_TLS_KEY_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_INTERNAL_CLIENT_CA_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS", def: "false", one: "true", two: "false"},
	{env: "KEYWARD_USER_REQUESTS_PER_MINUTE", def: "120", one: "1", two: "2"},
	{env: "KEYWARD_MAX_CONNECTIONS", def: "0", one: "8", two: "9"},
	{env: "KEYWARD_MAX_EXPIRES_IN_DAYS", def: "0", one: "1", two: "2"},
	{env: "KEYWARD_MAX_OVERLAP", def: "24h", one: "1h", two: "2h"},
	{env: "KEYWARD_CREDENTIALS_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_TRUSTED_PROXIES", one: "10.0.0.0/8,::1", two: "192.0.2.1"},
	{env: "KEYWARD_ADMIN_HOSTS", one: "a,b:1", two: "c"},
	{env: "KEYWARD_LEASE", def: "10s", one: "1s", two: "2s"},
	{env: "KEYWARD_PROBE_EVERY", def: "1m", one: "5s", two: "0s"},
	{env: "KEYWARD_ADVERTISE", one: "keyward-1.internal:8081", two: "[2001:db8::1]:8081"},
	{env: "KEYWARD_PROBE_CA_FILE", one: "/a", two: "/b"},
	{env: "KEYWARD_LOG_FORMAT", def: "json", one: "text", two: "json"},
	{env: "KEYWARD_LOG_LEVEL", def: "info", one: "debug", two: "warn"},
}

func flagOf(env string) string {
	return "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, "KEYWARD_"), "_", "-"))
}

// parseServe returns the settings of serve as text, by variable.
func parseServe(t *testing.T, args, env []string) map[string]string {
	t.Helper()
	term := newTerminal(env, strings.NewReader(""), io.Discard, io.Discard)
	parsed, err := parse(context.Background(), new(commands), append([]string{"serve"}, args...), term)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range parsed.Selected().Flags {
		name := settingName(f.Value)
		if name == "" {
			continue
		}
		got[name] = textOf(f.Target)
	}
	return got
}

// textOf writes a setting's value as a user would.
func textOf(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case *string:
		if x == nil {
			return "undefined"
		}
		return *x
	case []string:
		return strings.Join(x, ",")
	case duration:
		return short(time.Duration(x))
	default:
		return formatValue(v)
	}
}

// short is 24h instead of 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	s, _ = strings.CutSuffix(s, "m0s")
	if s != d.String() {
		if s, ok := strings.CutSuffix(s, "h0"); ok {
			return s + "h"
		}
		return s + "m"
	}
	return s
}

func formatValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return "true"
		}
		return "false"
	case reflect.Int:
		return strconv.FormatInt(v.Int(), 10)
	default:
		return v.String()
	}
}

// R3: serve has exactly these settings, each with its default.
func TestR3Defaults(t *testing.T) {
	want := map[string]string{}
	for _, s := range settings {
		want[s.env] = s.def
		if s.undefined {
			want[s.env] = "undefined"
		}
	}
	if diff := cmp.Diff(want, parseServe(t, nil, nil)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// R3: flag > environment > default, for each setting; --help lists it with its default.
func TestR3Precedence(t *testing.T) {
	_, help, _ := command(t, []string{"serve", "--help"}, nil, "")
	words := strings.Join(strings.Fields(help), " ")
	for _, s := range settings {
		t.Run(s.env, func(t *testing.T) {
			flag := flagOf(s.env)
			if got := parseServe(t, nil, []string{s.env + "=" + s.one})[s.env]; got != s.one {
				t.Errorf("environment: got %q, want %q", got, s.one)
			}
			if got := parseServe(t, []string{flag + "=" + s.two}, nil)[s.env]; got != s.two {
				t.Errorf("flag: got %q, want %q", got, s.two)
			}
			if got := parseServe(t, []string{flag + "=" + s.two}, []string{s.env + "=" + s.one})[s.env]; got != s.two {
				t.Errorf("flag over environment: got %q, want %q", got, s.two)
			}
			if got := parseServe(t, nil, []string{s.env + "=" + s.one, s.env + "=" + s.two})[s.env]; got != s.two {
				t.Errorf("a variable given twice: got %q, want the last, %q", got, s.two)
			}
			empty := parseServe(t, nil, []string{s.env + "="})[s.env]
			if want := s.def; empty != want {
				t.Errorf("empty variable: got %q, want %q", empty, want)
			}
			if !strings.Contains(words, " "+flag) || !strings.Contains(words, "("+s.env) {
				t.Errorf("--help does not list %s and %s", flag, s.env)
			}
			if s.def != "" && s.def != "false" && !slices.Contains([]string{"json", "info"}, s.def) && !strings.Contains(words, "("+s.env+", default "+s.def+")") {
				t.Errorf("--help does not say the default %s of %s", s.def, s.env)
			}
		})
	}
}

// R3: a wrong or unknown setting is one clear line and exit code 2, and never shows a secret.
func TestR3Wrong(t *testing.T) {
	dir := t.TempDir()
	masterKey := filepath.Join(dir, "master.key")
	keywardtest.WriteMasterKey(t, masterKey)
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hs256 := write("hs256", strings.Repeat("q", 32)+"\n", 0o600)
	good := []string{"--master-key-file=" + masterKey, "--jwt-hs256-secret-file=" + hs256, "--jwt-issuer=i", "--jwt-audience=a"}
	with := func(args ...string) []string { return append(slices.Clone(good), args...) }
	hidden := "hunter2" + strings.Repeat("x", 20)

	for name, tt := range map[string]struct {
		args []string
		env  []string
		want string
	}{
		"unknown flag":           {with("--lisen=x"), nil, "unknown flag --lisen"},
		"unknown variable":       {with(), []string{"KEYWARD_LISEN=" + hidden}, `"KEYWARD_LISEN" is not a setting`},
		"level in environment":   {with(), []string{"KEYWARD_LOG_LEVEL=" + hidden}, "--log-level (KEYWARD_LOG_LEVEL) must be one of"},
		"number in environment":  {with(), []string{"KEYWARD_DATABASE_CONNECTIONS=" + hidden}, "--database-connections (KEYWARD_DATABASE_CONNECTIONS): expected a valid 64 bit int;"},
		"bool in environment":    {with(), []string{"KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS=" + hidden}, "--require-registered-organizations (KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS): bool value must be"},
		"short word":             {with("--log-level=abc"), nil, "--log-level (KEYWARD_LOG_LEVEL) must be one of \"debug\",\"info\",\"warn\",\"error\";"},
		"unexpected argument":    {with(hidden), nil, "unexpected argument …"},
		"listen":                 {with("--listen=8080"), nil, "--listen (KEYWARD_LISTEN): must be host:port"},
		"listen port":            {with("--listen=127.0.0.1:99999"), nil, "--listen (KEYWARD_LISTEN): must be host:port"},
		"no listen":              {with("--listen="), nil, "--listen (KEYWARD_LISTEN): must be host:port"},
		"one address twice":      {with("--listen=127.0.0.1:9", "--verify-listen=127.0.0.1:9"), nil, "--listen (KEYWARD_LISTEN) and --verify-listen (KEYWARD_VERIFY_LISTEN): must not be the same address"},
		"one port twice":         {with("--listen=:discard", "--admin-listen=localhost:9"), nil, "--listen (KEYWARD_LISTEN) and --admin-listen (KEYWARD_ADMIN_LISTEN): must not be the same address"},
		"verify and admin":       {with("--verify-listen=:9", "--admin-listen=[::1]:9"), nil, "--verify-listen (KEYWARD_VERIFY_LISTEN) and --admin-listen (KEYWARD_ADMIN_LISTEN): must not be the same address"},
		"verify listen":          {with(), []string{"KEYWARD_VERIFY_LISTEN=x"}, "--verify-listen (KEYWARD_VERIFY_LISTEN): must be host:port"},
		"admin listen":           {with("--admin-listen="), nil, "--admin-listen (KEYWARD_ADMIN_LISTEN): must be host:port"},
		"internal listen":        {with(), []string{"KEYWARD_INTERNAL_LISTEN=127.0.0.1:8081"}, "the environment variable KEYWARD_INTERNAL_LISTEN is gone: set KEYWARD_VERIFY_LISTEN"},
		"internal listen, flag":  {with("--internal-listen=:1"), nil, "--internal-listen (KEYWARD_INTERNAL_LISTEN) is gone: set KEYWARD_VERIFY_LISTEN"},
		"extauthz":               {with("--extauthz-listen=9"), nil, "--extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN): must be host:port"},
		"extauthz where another": {with("--verify-listen=127.0.0.1:9", "--extauthz-listen=:9"), nil, "--extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN): must not be the address of another listener"},
		"extauthz open":          {with("--extauthz-listen=:0"), nil, "--credentials-file (KEYWARD_CREDENTIALS_FILE) is required unless --extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN) is on loopback"},
		"database scheme":        {with("--database-url=mysql://u:" + hidden + "@h/d"), nil, "--database-url (KEYWARD_DATABASE_URL): the database URL must start with"},
		"database in memory":     {with("--database-url=sqlite::memory:"), nil, "--database-url (KEYWARD_DATABASE_URL): "},
		"database URL malformed": {with("--database-url=postgres://u:" + hidden + "@h:x/d"), nil, "--database-url (KEYWARD_DATABASE_URL): the database URL cannot be read"},
		"database in the clear":  {with("--database-url=postgres://u:" + hidden + "@db.example.com/d?sslmode=disable"), nil, "would not be encrypted"},
		"no master key":          {good[1:], nil, "--master-key-file (KEYWARD_MASTER_KEY_FILE) or --master-key-command (KEYWARD_MASTER_KEY_COMMAND) is required"},
		"two sources of keys":    {with("--master-key-command=cat x"), nil, "only one can be set"},
		"master key not there":   {with("--master-key-file=" + filepath.Join(dir, "none")), nil, "--master-key-file (KEYWARD_MASTER_KEY_FILE): "},
		"master key readable":    {with("--master-key-file=" + write("open.key", "a:"+hidden, 0o644)), nil, "chmod 640"},
		"master key malformed":   {with("--master-key-file=" + write("bad.key", "a:"+hidden+"\n", 0o600)), nil, "line 1: "},
		"master key too short":   {with("--master-key-file=" + write("short.key", "a:"+base64.StdEncoding.EncodeToString([]byte(hidden))+"\n", 0o600)), nil, "27 bytes instead of 32"},
		"two kinds of issuer":    {with("--jwt-jwks=https://a"), nil, "exactly one of --jwt-jwks (KEYWARD_JWT_JWKS)"},
		"no kind of issuer":      {slices.Delete(with(), 1, 2), nil, "exactly one of --jwt-jwks (KEYWARD_JWT_JWKS)"},
		"JWKS in the clear":      {[]string{good[0], good[2], good[3], "--jwt-jwks=http://login.example.com/"}, nil, "--jwt-jwks (KEYWARD_JWT_JWKS): "},
		"JWKS file not there":    {[]string{good[0], good[2], good[3], "--jwt-jwks=" + filepath.Join(dir, "none")}, nil, "--jwt-jwks (KEYWARD_JWT_JWKS): "},
		"HS256 secret too short": {with("--jwt-hs256-secret-file=" + write("short", strings.Repeat("q", 31)+"\n", 0o600)), nil, "--jwt-hs256-secret-file (KEYWARD_JWT_HS256_SECRET_FILE): "},
		"no issuer":              {slices.Delete(with(), 2, 3), nil, "--jwt-issuer (KEYWARD_JWT_ISSUER) is required"},
		"no audience":            {good[:3], nil, "--jwt-audience (KEYWARD_JWT_AUDIENCE) is required"},
		"no organization claim":  {with("--jwt-organization-claim="), nil, "--jwt-organization-claim (KEYWARD_JWT_ORGANIZATION_CLAIM): "},
		"JWKS age too short":     {with("--jwt-jwks-max-age=59s"), nil, "--jwt-jwks-max-age (KEYWARD_JWT_JWKS_MAX_AGE): must be 0s (no limit) or at least 1m"},
		"JWKS age no time":       {with(), []string{"KEYWARD_JWT_JWKS_MAX_AGE=soon"}, "--jwt-jwks-max-age (KEYWARD_JWT_JWKS_MAX_AGE): must be a length of time"},
		"role claim alone":       {with("--jwt-role-claim=r"), nil, "goes with --jwt-roles (KEYWARD_JWT_ROLES)"},
		"roles alone":            {with(), []string{"KEYWARD_JWT_ROLES=admin"}, "goes with --jwt-roles (KEYWARD_JWT_ROLES)"},
		"empty role":             {with("--jwt-role-claim=r", "--jwt-roles=a,,b"), nil, "a role must not be empty"},
		"secret prefix":          {with("--secret-prefix=S_K"), nil, "--secret-prefix (KEYWARD_SECRET_PREFIX): "},
		"CORS origin":            {with("--cors-origins=https://a/"), nil, "--cors-origins (KEYWARD_CORS_ORIGINS): "},
		"TLS without key":        {with("--tls-cert-file=x"), nil, "goes with --tls-key-file (KEYWARD_TLS_KEY_FILE)"},
		"TLS files not there":    {with("--tls-cert-file="+filepath.Join(dir, "c"), "--tls-key-file="+filepath.Join(dir, "k")), nil, "TLS"},
		"client CA without TLS":  {with("--internal-client-ca-file=x"), nil, "--internal-client-ca-file (KEYWARD_INTERNAL_CLIENT_CA_FILE) needs"},
		"open to the network":    {with("--verify-listen=0.0.0.0:0"), nil, "--credentials-file (KEYWARD_CREDENTIALS_FILE) is required unless"},
		"open to every network":  {with("--admin-listen=:0"), nil, "--credentials-file (KEYWARD_CREDENTIALS_FILE) is required unless"},
		"internal token file":    {with(), []string{"KEYWARD_INTERNAL_TOKEN_FILE=/x"}, "the environment variable KEYWARD_INTERNAL_TOKEN_FILE is gone: set KEYWARD_CREDENTIALS_FILE"},
		"internal token, flag":   {with("--internal-token-file", "/x"), nil, "--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE) is gone: set KEYWARD_CREDENTIALS_FILE"},
		"credential of old":      {with("--credentials-file=" + write("t0", hidden+"\n", 0o600)), nil, "line 1: must be `<name> <scope>[,<scope>] <token>`"},
		"credential short":       {with("--credentials-file=" + write("t1", "a verify hunter2\n", 0o600)), nil, "line 1: a token has at least 16"},
		"no credential":          {with("--credentials-file=" + write("t2", "# none\n\n", 0o600)), nil, "holds no credential"},
		"credential scope":       {with("--credentials-file=" + write("t3", "a verfy "+hidden+"\n", 0o600)), nil, "line 1: a scope is verify, read or operate"},
		"credentials not there":  {with("--credentials-file=" + filepath.Join(dir, "none")), nil, "--credentials-file (KEYWARD_CREDENTIALS_FILE): "},
		"trusted proxy":          {with("--trusted-proxies=10.0.0.0/8," + hidden), nil, "--trusted-proxies (KEYWARD_TRUSTED_PROXIES): network 2 must be a CIDR"},
		"admin host":             {with("--admin-hosts=https://a"), nil, "--admin-hosts (KEYWARD_ADMIN_HOSTS): name 1 must be host or host:port"},
		"max expiry":             {with("--max-expires-in-days=36501"), nil, "--max-expires-in-days (KEYWARD_MAX_EXPIRES_IN_DAYS): "},
		"max expiry no number":   {with("--max-expires-in-days=x"), nil, "--max-expires-in-days (KEYWARD_MAX_EXPIRES_IN_DAYS): "},
		"max expiry negative":    {with("--max-expires-in-days=-1"), nil, "--max-expires-in-days (KEYWARD_MAX_EXPIRES_IN_DAYS): "},
		"max overlap":            {with("--max-overlap=-1h"), nil, "--max-overlap (KEYWARD_MAX_OVERLAP): must be a length of time"},
		"lease too short":        {with("--lease=999ms"), nil, "--lease (KEYWARD_LEASE): must be 1s to 5m"},
		"lease too long":         {with("--lease=6m"), nil, "--lease (KEYWARD_LEASE): must be 1s to 5m"},
		"lease no time":          {with(), []string{"KEYWARD_LEASE=soon"}, "--lease (KEYWARD_LEASE): must be a length of time"},
		"user requests":          {with("--user-requests-per-minute=-1"), nil, "--user-requests-per-minute (KEYWARD_USER_REQUESTS_PER_MINUTE): must be 0"},
		"max connections":        {with("--max-connections=7"), nil, "--max-connections (KEYWARD_MAX_CONNECTIONS): must be 0"},
		"more than open files":   {with("--max-connections=1000000"), nil, "--max-connections (KEYWARD_MAX_CONNECTIONS): 3 listeners"},
		"probes too often":       {with("--probe-every=4s"), nil, "--probe-every (KEYWARD_PROBE_EVERY): must be 0s (off) or at least 5s"},
		"probe CA without TLS":   {with("--probe-ca-file=x"), nil, "--probe-ca-file (KEYWARD_PROBE_CA_FILE) needs --tls-cert-file"},
		"advertise no port":      {with("--advertise=" + hidden), nil, "--advertise (KEYWARD_ADVERTISE): must be host:port"},
		"advertise no host":      {with("--advertise=:8081"), nil, "--advertise (KEYWARD_ADVERTISE): must be host:port"},
		"advertise any port":     {with("--advertise=h:0"), nil, "--advertise (KEYWARD_ADVERTISE): must be host:port"},
		"advertise a path":       {with("--advertise=h/" + hidden + ":8081"), nil, "--advertise (KEYWARD_ADVERTISE): must be host:port"},
		"advertise a user":       {with("--advertise=u@h:8081"), nil, "--advertise (KEYWARD_ADVERTISE): must be host:port"},
		"registered":             {with(), []string{"KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS=maybe"}, "--require-registered-organizations (KEYWARD_REQUIRE_REGISTERED_ORGANIZATIONS)"},
		"log format":             {with("--log-format=xml"), nil, "--log-format (KEYWARD_LOG_FORMAT) must be one of"},
		"log level":              {with("--log-level=loud"), nil, "--log-level (KEYWARD_LOG_LEVEL) must be one of"},
	} {
		t.Run(name, func(t *testing.T) {
			// A database that would be made if the settings were taken shows up in the folder.
			t.Chdir(dir)
			code, stdout, stderr := command(t, append([]string{"serve"}, tt.args...), tt.env, "")
			if code != 2 || stdout != "" {
				t.Errorf("exit code %d, stdout %q", code, stdout)
			}
			if !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("got %q, want one line with %q", stderr, tt.want)
			}
			for _, secret := range []string{hidden, "hunter2", "qqqq"} {
				if strings.Contains(stderr, secret) {
					t.Errorf("%q shows a secret", stderr)
				}
			}
			if _, err := os.Stat("keyward.db"); err == nil {
				t.Error("a database was made")
			}
		})
	}
}

// R3: what of two listeners' addresses is refused, and what is not.
func TestR3ListenersApart(t *testing.T) {
	for _, tt := range []struct {
		a, b listenAddress
		want bool
	}{
		{"127.0.0.1:9", "127.0.0.1:9", true}, {"LOCALHOST:9", "localhost:9", true}, {":9", "127.0.0.1:9", true},
		{"127.0.0.1:9", ":9", true}, {"127.0.0.1:9", "127.0.0.1:discard", true},
		{"127.0.0.1:9", "127.0.0.1:10", false}, {"127.0.0.1:9", "127.0.0.2:9", false}, {"127.0.0.1:0", "127.0.0.1:0", false}, {":0", ":0", false},
	} {
		if got := tt.a.takes(tt.b); got != tt.want {
			t.Errorf("%s and %s: %t, want %t", tt.a, tt.b, got, tt.want)
		}
	}
}

// R3: a Kubernetes Service beside the pod does not look like a setting, nor do the tests' variables.
func TestR3ForeignVariables(t *testing.T) {
	for _, name := range []string{
		"KEYWARD_SERVICE_HOST", "KEYWARD_SERVICE_PORT", "KEYWARD_SERVICE_PORT_HTTP", "KEYWARD_PORT", "KEYWARD_PORT_8080_TCP",
		"KEYWARD_PORT_8080_TCP_ADDR", "KEYWARD_INTERNAL_SERVICE_HOST", "KEYWARD_INTERNAL_PORT_8081_TCP_PROTO", "KEYWARD_TEST_POSTGRES_URL", "HOME",
	} {
		if code, _, stderr := command(t, []string{"version"}, []string{name + "=x"}, ""); code != 0 {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
	}
	for _, name := range []string{"KEYWARD_PORTS", "KEYWARD_", "KEYWARD_SERVICE", "KEYWARD_FAILPOINT"} {
		if code, _, _ := command(t, []string{"version"}, []string{name + "=x"}, ""); code != 2 {
			t.Errorf("%s: exit code %d, want 2", name, code)
		}
	}
}

// R3: each setting's flag has the name of its variable.
func TestR3SameName(t *testing.T) {
	parser, err := kong.New(new(commands), kong.Vars{"dev_folder": devFolder})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	collectSettings(parser.Model.Node, &names)
	for _, s := range settings {
		if !slices.Contains(names, s.env) {
			t.Errorf("%s is no setting", s.env)
		}
	}
}
