package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// tests are the package's, run so that what they build is removed.
type tests struct{ *testing.M }

func (t tests) Run() int { return keywardtest.Main(t.M) }

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"keyward": main})
}

// exits runs a command and expects an exit code: `exits 2 keyward serve`.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("%s exited with %d, not %d", strings.Join(args[1:], " "), code, want)
	}
}

// R3, R4: the commands that need no server.
func TestR4Scripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// command runs the program in this process.
func command(t *testing.T, args, env []string, stdin string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(context.Background(), args, env, strings.NewReader(stdin), &out, &err)
	return code, out.String(), err.String()
}

// R4: every command explains itself with an example.
func TestR4Help(t *testing.T) {
	_, all, _ := command(t, []string{"--help"}, nil, "")
	for _, name := range []string{
		"dev", "serve", "migrate", "master-key new", "master-key rotate", "credential new",
		"org set", "org update", "org disable", "org enable", "org delete", "org get", "org list",
		"keys list", "keys show", "keys revoke", "verify",
		"audit list", "audit verify", "audit export", "backup", "nodes", "doctor", "healthcheck", "token", "version",
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(all, "  "+name+" ") {
				t.Errorf("keyward --help does not list it:\n%s", all)
			}
			code, out, stderr := command(t, append(strings.Fields(name), "--help"), nil, "")
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
			_, example, found := strings.Cut(out, "Example")
			if !found || !strings.Contains(example, "keyward "+name) && !strings.Contains(example, `"`+name+`"`) &&
				!strings.Contains(strings.ReplaceAll(example, `", "`, " "), "keyward "+name) {
				t.Errorf("no example of itself in:\n%s", out)
			}
		})
	}
}
