// Command keyward issues, lists, rolls, revokes and verifies payment API keys. Start with
//
//	keyward dev
//
// and see `keyward --help` for the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

func main() {
	ctx, hangups := signalContext()
	os.Exit(runWith(ctx, hangups, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes. verify and audit verify have meanings of their own for 1 and 3; see their help.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitUnknown = 3
)

// commands is the command line: one field a command, each in a file of its own.
type commands struct {
	Dev         devCmd         `cmd:"" help:"Start everything on this machine, with test data and curl lines to paste."`
	Serve       serveCmd       `cmd:"" help:"Run a server."`
	Migrate     migrateCmd     `cmd:"" help:"Bring a database's schema up to date."`
	MasterKey   masterKeyCmd   `cmd:"" help:"Draw a master key, or move a running server to a new one."`
	Credential  credentialCmd  `cmd:"" help:"Make credentials for the verification and the admin listener."`
	Org         orgCmd         `cmd:"" help:"Set, change, get and list organizations."`
	Keys        keysCmd        `cmd:"" help:"Find and revoke keys of any organization."`
	Verify      verifyCmd      `cmd:"" help:"Ask whether the secret on the standard input is valid."`
	Audit       auditCmd       `cmd:"" help:"List, check and export the audit log."`
	Backup      backupCmd      `cmd:"" help:"Copy the database of a server, consistent while it serves."`
	Nodes       nodesCmd       `cmd:"" help:"List the nodes that serve, and how far each is."`
	Doctor      doctorCmd      `cmd:"" help:"Check a running server and its settings."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask whether a server is ready; the exit code answers."`
	Token       tokenCmd       `cmd:"" help:"Issue a user's token with the development issuer."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// run is runWith where no signal is of interest.
func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return runWith(ctx, nil, args, env, stdin, stdout, stderr)
}

// runWith is the program without the process around it. env has the form of os.Environ.
func runWith(ctx context.Context, hangups chan os.Signal, args, env []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	t := newTerminal(env, stdin, stdout, stderr)
	t.hangups = hangups
	defer t.flush() // after the line of the error
	defer func() {
		if thrown := recover(); thrown != nil {
			exit, ok := thrown.(parserExit)
			if !ok {
				panic(thrown)
			}
			code = int(exit)
		}
	}()
	parsed, err := parse(ctx, new(commands), args, t)
	if err != nil {
		return t.fail(err)
	}
	if parsed.Command() != "serve" {
		ending, cancel := endOnHangup(ctx, hangups)
		defer cancel()
		parsed.BindTo(ending, (*context.Context)(nil))
	}
	return t.fail(parsed.Run())
}

// parse reads the command line and the environment into c. For --help it prints and throws a
// parserExit.
func parse(ctx context.Context, c *commands, args []string, t *terminal) (*kong.Context, error) {
	parser, err := kong.New(c,
		kong.Name("keyward"),
		kong.Description("Keyward issues, lists, rolls, revokes and verifies payment API keys."),
		kong.Writers(t.out, t.err),
		kong.Vars{"dev_folder": devFolder},
		kong.Exit(func(code int) { panic(parserExit(code)) }),
		kong.Resolvers(environment(t.env)),
		kong.ValueFormatter(helpOf),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(t),
	)
	if err != nil {
		panic(err) // the grammar above is wrong
	}
	if err := checkEnvironment(parser.Model.Node, t.env); err != nil {
		return nil, err
	}
	if err := checkFlags(args); err != nil {
		return nil, err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return nil, describe(err, args)
	}
	return parsed, nil
}

// parserExit is how kong ends the program after --help.
type parserExit int

// exitError is an error that has its own exit code.
type exitError struct {
	code int
	err  error // nil = everything has been said
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit " + fmt.Sprint(e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// wrong is an error in what the user asked for: a flag, a setting or a file it names.
func wrong(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// fail prints err, if it is one, as a single line and returns the exit code.
func (t *terminal) fail(err error) int {
	if err == nil {
		return exitDone
	}
	code := exitFailed
	var e *exitError
	if errors.As(err, &e) {
		if code = e.code; e.err == nil {
			return code
		}
	}
	line := strings.Join(strings.Fields(err.Error()), " ")
	fmt.Fprintln(t.err, "keyward: "+packageNames.ReplaceAllString(line, "$1"))
	return code
}

// packageNames stand before errors for a programmer; whoever runs a command has no use for them.
var packageNames = regexp.MustCompile(`(^| )(?:sqlstore|seal|identity|token|keys|server|verify): `)
