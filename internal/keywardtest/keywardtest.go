// Package keywardtest starts the real binary for tests: built once a test run, on free
// ports, in a folder of its own, killed when the test ends. A test package that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(keywardtest.Main(m)) }
package keywardtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/seal"
)

// Patience is how long the helpers wait for what should take milliseconds.
const Patience = 30 * time.Second

var binaries struct {
	sync.Mutex
	folder string           // set by Main
	paths  map[build]string // of those that are made; guarded by the mutex
}

// build is what one binary differs from another in.
type build struct{ tags, overlay string }

// Main runs the tests of a package and removes what Build made.
func Main(m *testing.M) int {
	folder, err := os.MkdirTemp("", "keyward-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	binaries.folder, binaries.paths = folder, make(map[build]string)
	return m.Run()
}

// Build returns the path of the binary, built without cgo and with the given build tags
// (comma separated, usually empty).
func Build(tb testing.TB, tags string) string {
	tb.Helper()
	return makeBinary(tb, build{tags: tags})
}

func makeBinary(tb testing.TB, b build) string {
	tb.Helper()
	binaries.Lock()
	defer binaries.Unlock()
	if binaries.folder == "" {
		tb.Fatal("keywardtest: call keywardtest.Main from TestMain")
	}
	if path, ok := binaries.paths[b]; ok {
		return path
	}
	path := filepath.Join(binaries.folder, fmt.Sprintf("%d", len(binaries.paths)), "keyward")
	arguments := []string{"build", "-tags", b.tags, "-o", path}
	if b.overlay != "" {
		arguments = append(arguments, "-overlay", b.overlay)
	}
	cmd := exec.Command("go", append(arguments, "github.com/syncgram/keyward/cmd/keyward")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go build: %v\n%s", err, out)
	}
	binaries.paths[b] = path
	return path
}

// Options says how a process is started. The zero value is a server on an SQLite
// database in a new folder, with a development issuer.
type Options struct {
	// Args replace the whole command line. Nil = serve on free ports, with what the fields below
	// say and with Flags at its end.
	Args []string
	// Flags are added to the command line of serve, such as "--lease=2s".
	Flags []string
	// Env is added to an environment that has no KEYWARD_ variable.
	Env []string
	// Dir is the working directory, which holds the master key, the issuer and the SQLite
	// database. Empty = a new one.
	Dir string
	// DatabaseURL is the database; empty = sqlite:keyward.db in Dir.
	DatabaseURL string
	// Tags are the build tags, such as "failpoints".
	Tags string
	// Overlay is what the binary is built with, as defect.Overlay makes it; empty = the source as it stands.
	Overlay string
	// Stdout and Stderr are handed to the process, such as the write end of a pipe; nil = the
	// output is collected. With Stderr use Run: Start waits for what it collects.
	Stdout, Stderr *os.File
	// Stdin is what the process reads.
	Stdin io.Reader
	// User starts the process as another user; only root can.
	User *syscall.Credential
	// NotReady returns from Start once the listeners are there, without waiting for readiness.
	NotReady bool
}

// Process is a running binary.
type Process struct {
	Dir string

	// Base URLs of the listeners, no slash at their end.
	Public, Verification, Admin string

	options Options
	cmd     *exec.Cmd
	stdout  *Output
	stderr  *Output
	exited  chan struct{} // closed once the process is gone and all its output is read
}

// Start starts a server and waits until it is ready.
func Start(tb testing.TB, o Options) *Process {
	tb.Helper()
	if o.Dir == "" {
		o.Dir = tb.TempDir()
	}
	if o.Args == nil {
		o.Args = ServeArgs(tb, o)
	}
	p := Run(tb, o)
	p.Public = p.listening(tb, "public")
	p.Verification = p.listening(tb, "verification")
	p.Admin = p.listening(tb, "admin")
	if !o.NotReady {
		p.WaitReady(tb)
	}
	return p
}

// ServeArgs makes what is missing in o.Dir and returns the command line of serve.
func ServeArgs(tb testing.TB, o Options) []string {
	tb.Helper()
	masterKey := filepath.Join(o.Dir, "master.key")
	if _, err := os.Stat(masterKey); errors.Is(err, os.ErrNotExist) {
		WriteMasterKey(tb, masterKey)
	}
	issuer, err := identity.OpenDevIssuer(o.Dir)
	if err != nil {
		tb.Fatal(err)
	}
	if o.DatabaseURL == "" {
		o.DatabaseURL = "sqlite:" + filepath.Join(o.Dir, "keyward.db")
	}
	return append([]string{
		"serve",
		"--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0",
		"--database-url=" + o.DatabaseURL, "--master-key-file=" + masterKey,
		"--jwt-jwks=" + issuer.Config().JWKS, "--jwt-issuer=" + identity.DevIssuerName, "--jwt-audience=" + identity.DevAudience,
		"--log-format=json", "--database-allow-unsafe-fsync",
		"--user-requests-per-minute=0", // most tests ask as one user, as fast as they can
	}, o.Flags...)
}

// WriteMasterKey writes a master key file with one new key, which it puts before those that
// the file holds already.
func WriteMasterKey(tb testing.TB, path string) {
	tb.Helper()
	line, err := seal.NewLine("")
	if err != nil {
		tb.Fatal(err)
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte(line+"\n"), old...), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Run starts the binary with o.Args and waits for nothing.
func Run(tb testing.TB, o Options) *Process {
	tb.Helper()
	if o.Dir == "" {
		o.Dir = tb.TempDir()
	}
	p := &Process{Dir: o.Dir, options: o, stdout: NewOutput(), stderr: NewOutput(), exited: make(chan struct{})}
	p.cmd = exec.Command(makeBinary(tb, build{o.Tags, o.Overlay}), o.Args...)
	p.cmd.Dir = o.Dir
	p.cmd.Env = append(cleanEnv(), o.Env...)
	p.cmd.Stdin = o.Stdin
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	if o.Stdout != nil {
		p.cmd.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		p.cmd.Stderr = o.Stderr
	}
	p.cmd.SysProcAttr = DieWithParent(syscall.SIGKILL)
	if o.User != nil {
		if p.cmd.SysProcAttr == nil {
			p.cmd.SysProcAttr = new(syscall.SysProcAttr)
		}
		p.cmd.SysProcAttr.Credential = o.User
		if err := os.Chmod(binaries.folder, 0o711); err != nil { // that user has to get at the binary
			tb.Fatal(err)
		}
	}
	if err := p.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code is what counts; see ExitCode
		p.stdout.close()
		p.stderr.close()
		close(p.exited)
	}()
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("keyward %s\nstdout:\n%s\nstderr:\n%s", o.Args[0], tail(p.Stdout()), tail(p.Stderr()))
		}
	})
	return p
}

// cleanEnv is the environment without the settings of whoever runs the tests.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "KEYWARD_") || strings.HasPrefix(s, "NOTIFY_SOCKET=")
	})
}

func tail(s string) string {
	const most = 8 << 10
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

// Address returns host:port of a listener by its name, such as "extauthz".
func (p *Process) Address(tb testing.TB, name string) string {
	tb.Helper()
	_, address, _ := strings.Cut(p.listening(tb, name), "://")
	return address
}

// listening returns the base URL of a listener, from what it logged.
func (p *Process) listening(tb testing.TB, name string) (url string) {
	tb.Helper()
	p.waitFor(tb, name+" listener", func() bool {
		for _, l := range p.Log("listening") {
			if l["listener"] != name {
				continue
			}
			url = fmt.Sprint("http://", l["address"])
			if l["tls"] == true {
				url = fmt.Sprint("https://", l["address"])
			}
		}
		return url != ""
	})
	return url
}

// waitFor waits until a condition on the output holds. It fails the test when the process
// ends first or Patience does.
func (p *Process) waitFor(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	for {
		out, err := p.stdout.next(), p.stderr.next()
		if holds() {
			return
		}
		select {
		case <-out:
		case <-err:
		case <-p.exited:
			if holds() {
				return
			}
			tb.Fatalf("keyward ended with code %d before: %s", p.ExitCode(), what)
		case <-deadline.C:
			tb.Fatalf("keyward did not get to this in %v: %s", Patience, what)
		}
	}
}

// WaitOutput waits until the standard output has a match of pattern and returns its groups.
func (p *Process) WaitOutput(tb testing.TB, pattern string) []string {
	tb.Helper()
	return p.waitMatch(tb, p.stdout, pattern)
}

// WaitLog waits until the standard error has a match of pattern and returns its groups.
func (p *Process) WaitLog(tb testing.TB, pattern string) []string {
	tb.Helper()
	return p.waitMatch(tb, p.stderr, pattern)
}

func (p *Process) waitMatch(tb testing.TB, out *Output, pattern string) (groups []string) {
	tb.Helper()
	re := regexp.MustCompile(pattern)
	p.waitFor(tb, "output of "+pattern, func() bool {
		groups = re.FindStringSubmatch(out.String())
		return groups != nil
	})
	return groups
}

// WaitReady waits until /readyz answers 200.
func (p *Process) WaitReady(tb testing.TB) {
	tb.Helper()
	p.WaitStatus(tb, p.Verification+"/readyz", http.StatusOK)
}

// WaitStatus waits until a GET of url answers with the status.
func (p *Process) WaitStatus(tb testing.TB, url string, status int) {
	tb.Helper()
	last := "no answer"
	err := Poll(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			tb.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			last = err.Error()
			return false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		last = resp.Status
		return resp.StatusCode == status
	}, p.exited)
	if err != nil {
		tb.Fatalf("GET %s: wanted %d, last %s: %v", url, status, last, err)
	}
}

// Poll tries a condition every few milliseconds until it holds. It gives up when stop is
// closed (nil = never) or Patience is over.
func Poll(holds func() bool, stop <-chan struct{}) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-stop:
			return errors.New("the process ended")
		case <-deadline.C:
			return fmt.Errorf("not within %v", Patience)
		}
	}
	return nil
}

// Token issues a token for a user of an organization, good for an hour.
func (p *Process) Token(tb testing.TB, user, organization string) string {
	tb.Helper()
	issuer, err := identity.OpenDevIssuer(p.Dir)
	if err != nil {
		tb.Fatal(err)
	}
	token, err := issuer.Issue(user, organization, time.Hour)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

// Restart starts the same command line again in the same folder, and for a server waits as Start
// did. The process must have ended. flags are added to the command line.
func (p *Process) Restart(tb testing.TB, flags ...string) *Process {
	tb.Helper()
	select {
	case <-p.exited:
	default:
		tb.Fatal("keywardtest: restart of a running process")
	}
	o := p.options
	o.Args = slices.Concat(o.Args, flags)
	if p.Public == "" {
		return Run(tb, o)
	}
	return Start(tb, o)
}

// Signal sends a signal; to a process that has ended, nothing.
func (p *Process) Signal(tb testing.TB, s syscall.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Fatal(err)
	}
}

// Kill ends the process with SIGKILL, if it runs, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.exited
}

// Stop sends SIGTERM and returns the exit code.
func (p *Process) Stop(tb testing.TB) int {
	tb.Helper()
	p.Signal(tb, syscall.SIGTERM)
	return p.Wait(tb)
}

// Wait waits for the process to end and returns its exit code, -1 after a signal.
func (p *Process) Wait(tb testing.TB) int {
	tb.Helper()
	select {
	case <-p.exited:
	case <-time.After(Patience):
		tb.Fatalf("keyward did not end in %v", Patience)
	}
	return p.ExitCode()
}

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode is the code of a process that has ended, -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stdout returns what was written to the standard output so far.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr returns what was written to the standard error so far: for serve, the log.
func (p *Process) Stderr() string { return p.stderr.String() }

// Log returns the log's JSON lines with that message.
func (p *Process) Log(message string) (found []map[string]any) {
	lines := bufio.NewScanner(strings.NewReader(p.Stderr()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l map[string]any
		if json.Unmarshal(lines.Bytes(), &l) == nil && l["msg"] == message {
			found = append(found, l)
		}
	}
	return found
}

// Output collects what a process writes.
type Output struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed by the next write; guarded by mu
}

// NewOutput returns an empty one.
func NewOutput() *Output { return &Output{more: make(chan struct{})} }

// Write implements io.Writer.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	close(o.more)
	o.more = make(chan struct{})
	return len(b), nil
}

// String returns all of it.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *Output) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.more
}

func (o *Output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
}
