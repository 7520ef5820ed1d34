package main

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// A flag with the tag `setting` is also read from the environment: --jwt-issuer from
// KEYWARD_JWT_ISSUER. Flag beats environment beats default (R3). An empty variable counts as not
// set, but for `setting:"empty"`, whose flag can be empty on purpose.
const (
	settingTag        = "setting"
	mayBeEmpty        = "empty"
	environmentPrefix = "KEYWARD_"
)

// settingName returns the environment variable of a flag, "" when it has none.
func settingName(v *kong.Value) string {
	if v.Flag == nil || !v.Tag.Has(settingTag) {
		return ""
	}
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_"))
}

// environment resolves settings from env.
func environment(env []string) kong.Resolver {
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, f *kong.Flag) (any, error) {
		name := settingName(f.Value)
		if name == "" {
			return nil, nil
		}
		value, set := lookup(env, name)
		if !set || value == "" && f.Tag.Get(settingTag) != mayBeEmpty {
			return nil, nil
		}
		return value, nil
	})
}

// lookup finds a variable; of several with one name the last counts, as it does for os/exec.
func lookup(env []string, name string) (string, bool) {
	for _, entry := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// helpOf adds the default and the variable to a flag's help.
func helpOf(v *kong.Value) string {
	var notes []string
	if name := settingName(v); name != "" {
		notes = append(notes, name)
	}
	if v.HasDefault && v.Default != "" && v.Enum == "" {
		notes = append(notes, "default "+v.Default)
	}
	if len(notes) == 0 {
		return v.Help
	}
	return strings.TrimSuffix(v.Help, ".") + " (" + strings.Join(notes, ", ") + ")."
}

// serviceLinks are the variables that Kubernetes gives every pod beside a Service whose name
// begins with "keyward". They are not settings.
var serviceLinks = regexp.MustCompile(`^KEYWARD_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)$`)

// testPrefix begins the variables that the tests read.
const testPrefix = environmentPrefix + "TEST_"

// checkEnvironment refuses a KEYWARD_ variable that no command knows: most likely a setting with
// a typing error, which would silently not be in force.
func checkEnvironment(root *kong.Node, env []string) error {
	known := slices.Clone(otherVariables)
	collectSettings(root, &known)
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, environmentPrefix) || slices.Contains(known, name) ||
			strings.HasPrefix(name, testPrefix) || serviceLinks.MatchString(name) {
			continue
		}
		if now, replaced := replacedSettings[name]; replaced {
			return wrong("the environment variable %s is gone: %s", name, now)
		}
		if len(name) > 64 {
			name = name[:64] + "…"
		}
		return wrong("the environment variable %q is not a setting; `keyward serve --help` lists them", name)
	}
	return nil
}

// replacedSettings are settings of earlier versions, with what replaced them.
var replacedSettings = map[string]string{
	"KEYWARD_INTERNAL_LISTEN": "set KEYWARD_VERIFY_LISTEN for verification" +
		" and KEYWARD_ADMIN_LISTEN for administration",
	"KEYWARD_INTERNAL_TOKEN_FILE": "set KEYWARD_CREDENTIALS_FILE, a file of lines" +
		" `<name> <scope>[,<scope>] <token>`; for a command, KEYWARD_CREDENTIAL_FILE",
}

// checkFlags rejects the flags of settings that were replaced.
func checkFlags(args []string) error {
	for _, arg := range args {
		flag, _, _ := strings.Cut(arg, "=")
		name := environmentPrefix + strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(flag, "--"), "-", "_"))
		if now, replaced := replacedSettings[name]; replaced && strings.HasPrefix(flag, "--") {
			return wrong("%s (%s) is gone: %s", flag, name, now)
		}
	}
	return nil
}

func collectSettings(n *kong.Node, names *[]string) {
	for _, f := range n.Flags {
		if name := settingName(f.Value); name != "" {
			*names = append(*names, name)
		}
	}
	for _, child := range n.Children {
		collectSettings(child, names)
	}
}

var (
	flagAtFault = regexp.MustCompile(`^--([a-z0-9-]+)`)
	// What kong says of a value that it cannot read ends with the value, also of the environment.
	valueAtFault = regexp.MustCompile(`(?s),? but got ".*"$`)
	plainFlag    = regexp.MustCompile(`^--?[a-z0-9-]+$`)
)

// shortestSecret is the length, in bytes, from which an argument may be one.
const shortestSecret = 8

// describe makes one line of a command line's fault. It repeats no argument but flag names: a
// secret may stand anywhere by mistake.
func describe(err error, args []string) error {
	message := valueAtFault.ReplaceAllString(err.Error(), "")
	for _, arg := range args {
		if name, value, _ := strings.Cut(arg, "="); plainFlag.MatchString(name) {
			arg = value
		}
		if len(arg) >= shortestSecret {
			message = strings.ReplaceAll(message, arg, "…")
		}
	}
	var parse *kong.ParseError
	command := "keyward"
	if errors.As(err, &parse) && parse.Context != nil {
		if node := parse.Context.Selected(); node != nil {
			command = node.FullPath()
			for _, f := range node.Flags {
				if m := flagAtFault.FindStringSubmatch(message); m != nil && m[1] == f.Name && settingName(f.Value) != "" {
					message = strings.Replace(message, m[0], m[0]+" ("+settingName(f.Value)+")", 1)
					break
				}
			}
		}
	}
	return wrong("%s; see `%s --help`", message, command)
}

// duration is a length of time as Go writes it. Unlike time.Duration its error repeats no value.
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return errors.New("must be a length of time such as 500ms, 10s or 24h")
	}
	*d = duration(v)
	return nil
}

// listenAddress is host:port of a listener. The port may be 0 for any that is free.
type listenAddress string

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *listenAddress) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*a = ""
		return nil
	}
	_, port, err := net.SplitHostPort(string(text))
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return errors.New("must be host:port, such as 127.0.0.1:8080 or :8080")
	}
	*a = listenAddress(text)
	return nil
}

// advertiseAddress is host:port by which another machine is told to reach a listener.
type advertiseAddress string

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *advertiseAddress) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*a = ""
		return nil
	}
	host, port, err := net.SplitHostPort(string(text))
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	u, badURL := url.Parse("http://" + string(text))
	if err != nil || badURL != nil || host == "" || port == "0" || u.Host != string(text) || u.User != nil {
		return errors.New("must be host:port, such as keyward-1.internal:8081")
	}
	*a = advertiseAddress(text)
	return nil
}

// loopback reports whether only this machine reaches the address.
func (a listenAddress) loopback() bool {
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// takes reports whether nothing can listen on b once something listens on a.
func (a listenAddress) takes(b listenAddress) bool {
	hostA, portA, errA := net.SplitHostPort(string(a))
	hostB, portB, errB := net.SplitHostPort(string(b))
	if errA != nil || errB != nil {
		return false
	}
	numberA, errA := net.LookupPort("tcp", portA)
	numberB, errB := net.LookupPort("tcp", portB)
	if errA != nil || errB != nil || numberA != numberB || numberA == 0 {
		return false
	}
	return strings.EqualFold(hostA, hostB) || hostA == "" || hostB == ""
}

// secretLines returns the lines of a file without those that are empty or start with #.
func secretLines(data []byte) (lines []string) {
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			lines = append(lines, string(line))
		}
	}
	return lines
}

// withoutNewline cuts one final line break.
func withoutNewline(data []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
}
