//go:build unix

package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const howToGetPooler = "pgtest: no pgbouncer found: apt-get install pgbouncer"

// Pooler is a pgbouncer before a server of the test's own. What NewPooler is not told is as
// pgbouncer has it.
type Pooler struct {
	server   *Server
	binary   string
	folder   string
	port     int
	settings []string

	process *exec.Cmd     // nil while it is not running
	gone    chan struct{} // closed when process has ended
	log     *lockedBuffer
}

// lockedBuffer is what a process writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// NewPooler starts a pgbouncer before s, in the mode session or transaction, with settings such as
// "max_client_conn = 50". The user is postgres. It is stopped when the test ends.
func (s *Server) NewPooler(tb testing.TB, mode string, settings ...string) *Pooler {
	tb.Helper()
	p := &Pooler{server: s, settings: append([]string{"pool_mode = " + mode}, settings...)}
	for _, path := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if found, err := exec.LookPath(path); err == nil {
			p.binary = found
			break
		}
	}
	if p.binary == "" {
		tb.Fatal(howToGetPooler)
	}
	var err error
	if p.folder, err = os.MkdirTemp(s.folder, "pgbouncer-"); err != nil {
		tb.Fatal(err)
	}
	for range 3 { // somebody else may take the port first, but not three times
		if p.port, err = freePort(); err != nil {
			tb.Fatal(err)
		}
		if err = p.run(); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.end(); err != nil {
			tb.Errorf("pgtest: pgbouncer: %v", err)
		}
	})
	return p
}

// Address returns host:port.
func (p *Pooler) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// URL returns the URL of the server's first database through the pooler.
func (p *Pooler) URL() string {
	return "postgres://postgres@" + p.Address() + "/postgres?sslmode=disable"
}

// NewDatabase creates an empty database on the server and returns its URL through the pooler. It is
// dropped when the test ends.
func (p *Pooler) NewDatabase(tb testing.TB) string {
	tb.Helper()
	return strings.Replace(createDatabase(tb, p.server.URL()), p.server.Address(), p.Address(), 1)
}

// Log returns what it has logged since it was started last.
func (p *Pooler) Log() string { return p.log.String() }

// Kill ends it with SIGKILL.
func (p *Pooler) Kill(tb testing.TB) {
	tb.Helper()
	if err := p.end(); err != nil {
		tb.Fatalf("pgtest: pgbouncer: %v", err)
	}
}

// Restart starts one that was killed, on the same port, and waits for it.
func (p *Pooler) Restart(tb testing.TB) {
	tb.Helper()
	if err := p.run(); err != nil {
		tb.Fatal(err)
	}
}

func (p *Pooler) run() error {
	users, file := filepath.Join(p.folder, "userlist.txt"), filepath.Join(p.folder, "pgbouncer.ini")
	lines := append([]string{
		"[databases]", fmt.Sprintf("* = host=127.0.0.1 port=%d", p.server.port), "[pgbouncer]",
		"listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(p.port), "unix_socket_dir =",
		"auth_type = trust", "auth_file = " + users,
	}, p.settings...)
	err := errors.Join(os.WriteFile(users, []byte("\"postgres\" \"\"\n"), 0o644),
		os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644), os.Chmod(p.folder, 0o755))
	if err != nil {
		return err
	}
	c := exec.Command(p.binary, file)
	c.Dir = p.folder
	c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + p.folder}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: p.server.account, Setpgid: true}
	p.log = new(lockedBuffer)
	c.Stdout, c.Stderr = p.log, p.log
	dieWithParent(c.SysProcAttr)
	started, gone := make(chan error), make(chan struct{})
	go func() {
		// The kernel ties the child to the thread that forked it, not to the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			_ = c.Wait()
		}
		close(gone)
	}()
	if err := <-started; err != nil {
		return err
	}
	p.process, p.gone = c, gone
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.URL())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-gone:
			p.process = nil
			return fmt.Errorf("pgtest: pgbouncer ended at its start:\n%s", p.log)
		case <-ctx.Done():
			_ = p.end()
			return fmt.Errorf("pgtest: pgbouncer does not answer: %w\n%s", err, p.log)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *Pooler) end() error {
	if p.process == nil {
		return nil
	}
	if err := p.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.gone:
		p.process = nil
		return nil
	case <-time.After(startTimeout):
		return errors.New("it does not end")
	}
}
