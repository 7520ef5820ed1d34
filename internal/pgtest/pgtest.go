//go:build unix

// Package pgtest gives tests a real PostgreSQL: the server KEYWARD_TEST_POSTGRES_URL names, or
// one of its own, started from the installed binaries on a loopback port in a temporary folder.
// A test that cannot have one fails; it is never skipped. No server outlives the test
// binary, however that ends.
package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Environment is the variable that names a server to use, as postgres://…; its account must be
// allowed to create databases.
const Environment = "KEYWARD_TEST_POSTGRES_URL"

const howToGet = "pgtest: no PostgreSQL found: apt-get install postgresql, or set " + Environment

// startTimeout bounds how long a server may take to answer, crash recovery included.
const startTimeout = 60 * time.Second

// shared is the one server of this test binary.
var shared struct {
	once   sync.Once
	server *Server
	admin  string // URL of a database from which others can be created
	err    error
}

// URL creates an empty database on the shared server and returns its URL. It is dropped when
// the test ends.
func URL(tb testing.TB) string {
	tb.Helper()
	shared.once.Do(func() {
		if shared.admin = os.Getenv(Environment); shared.admin != "" {
			return
		}
		if shared.server, shared.err = start(nil); shared.err == nil {
			shared.admin = shared.server.URL()
		}
	})
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return createDatabase(tb, shared.admin)
}

// ReapAll stops the shared server now. A test binary that does not call it leaves that to the
// watchdog, which does it as soon as the binary is gone.
func ReapAll() {
	if shared.server != nil {
		_ = shared.server.remove()
	}
}

func createDatabase(tb testing.TB, admin string) string {
	tb.Helper()
	name := "keyward_" + strings.ToLower(rand.Text())
	execute(tb, admin, "CREATE DATABASE "+name)
	tb.Cleanup(func() { execute(tb, admin, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	u, err := url.Parse(admin)
	if err != nil {
		tb.Fatalf("pgtest: %s cannot be read", Environment)
	}
	u.Path = "/" + name
	return u.String()
}

func execute(tb testing.TB, target, statement string) {
	tb.Helper()
	err := connected(target, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, statement)
		return err
	})
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// connected calls do with a new connection; again when a standby ended it because it was in the way of what is replayed there.
func connected(target string, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, target)
		if err == nil {
			err = do(ctx, conn)
			_ = conn.Close(ctx)
		}
		var conflict *pgconn.PgError
		if err == nil || ctx.Err() != nil || !errors.As(err, &conflict) || conflict.Code != "40001" {
			return err
		}
	}
}

// Server is a PostgreSQL of one test, for faults that would hurt the others.
type Server struct {
	bin, folder string
	port        int
	settings    []string
	account     *syscall.Credential // nil = this process's
	source      *Server             // whose standby it was made as; nil = nobody's

	process  *exec.Cmd     // the postmaster; nil while it is not running
	gone     chan struct{} // closed when process has ended
	watchdog io.Closer     // closing it lets the watchdog remove what is left
}

// NewServer starts a server of the test's own, with settings such as "fsync=on" on top of
// ones that make tests fast. It is stopped when the test ends.
func NewServer(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := start(settings)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.remove(); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	return s
}

// Address returns host:port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL returns the URL of the server's first database, postgres.
func (s *Server) URL() string {
	return "postgres://postgres@" + s.Address() + "/postgres?sslmode=disable"
}

// NewDatabase creates an empty database and returns its URL. It is dropped when the test ends.
func (s *Server) NewDatabase(tb testing.TB) string {
	tb.Helper()
	return createDatabase(tb, s.URL())
}

// Folder returns the data folder.
func (s *Server) Folder() string { return filepath.Join(s.folder, "data") }

// Stop shuts the server down as an operator would: clients are disconnected, nothing is lost.
func (s *Server) Stop(tb testing.TB) {
	tb.Helper()
	if err := s.end(syscall.SIGINT); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// Kill ends every process of the server with SIGKILL at once, as a crash of the machine would
// but for what the operating system still writes.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	if err := s.end(syscall.SIGKILL); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// Restart starts a server that was stopped or killed, on the same port, and waits for it.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	if err := s.run(); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// Freeze stops every process of the server where it is (SIGSTOP): it neither answers nor
// closes a connection.
func (s *Server) Freeze(tb testing.TB) {
	tb.Helper()
	if err := s.signal(syscall.SIGSTOP); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// Thaw lets a frozen server go on.
func (s *Server) Thaw(tb testing.TB) {
	tb.Helper()
	if err := s.signal(syscall.SIGCONT); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// start makes a new server and waits until it answers.
func start(settings []string) (*Server, error) {
	s, err := newFolder(settings)
	if err != nil {
		return nil, err
	}
	err = s.initialize("--locale-provider=icu", "--icu-locale=en-US")
	if err != nil {
		err = s.initialize() // built without ICU
	}
	if err == nil {
		err = s.runFirst()
	}
	if err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// newFolder returns a server that has a folder of its own and a watchdog, but no data yet.
func newFolder(settings []string) (_ *Server, err error) {
	s := &Server{settings: settings}
	if s.bin, err = findBinaries(); err != nil {
		return nil, err
	}
	if s.account, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.folder, err = os.MkdirTemp("", "pgtest-"); err != nil {
		return nil, err
	}
	if s.watchdog, err = watch(s.folder); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.folder))
	}
	if s.account != nil {
		if err := os.Chown(s.folder, int(s.account.Uid), int(s.account.Gid)); err != nil {
			return nil, errors.Join(err, s.remove())
		}
	}
	return s, nil
}

// runFirst runs a server for the first time, on a port it finds.
func (s *Server) runFirst() (err error) {
	for range 3 { // somebody else may take the port first, but not three times
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.run(); err == nil {
			return nil
		}
	}
	return err
}

// initialize makes the data folder. A locale that does not sort by bytes shows an order that
// wrongly depends on it.
func (s *Server) initialize(locale ...string) error {
	arguments := append([]string{"-D", s.Folder(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"}, locale...)
	if out, err := s.command("initdb", arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("pgtest: initdb: %w\n%s", err, out)
	}
	return nil
}

// command prepares one of PostgreSQL's programs, which refuse to run as root.
func (s *Server) command(program string, arguments ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.bin, program), arguments...)
	c.Dir = s.folder
	c.Env = []string{"PATH=" + s.bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + s.folder}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.account, Setpgid: true}
	return c
}

// run starts the postmaster and waits until it answers.
func (s *Server) run() error {
	arguments := []string{"-D", s.Folder()}
	for _, setting := range slices.Concat([]string{
		"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(s.port), "unix_socket_directories=" + s.folder,
		"fsync=off", "full_page_writes=off", "max_connections=300", "shared_buffers=32MB", "log_min_messages=warning",
		"log_statement=none",
	}, s.settings) {
		arguments = append(arguments, "-c", setting)
	}
	c := s.command("postgres", arguments...)
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
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
	s.process, s.gone = c, gone

	deadline, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(deadline, s.URL())
		if err == nil {
			return conn.Close(deadline)
		}
		select {
		case <-gone:
			s.process = nil
			return fmt.Errorf("pgtest: the server ended at its start:\n%s", log.Bytes())
		case <-deadline.Done():
			_ = s.end(syscall.SIGKILL)
			return fmt.Errorf("pgtest: the server does not answer: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end signals the server and waits until it is gone. SIGKILL reaches every process of
// it, any other signal the postmaster, which ends the others.
func (s *Server) end(sig syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	var err error
	if sig == syscall.SIGKILL {
		err = s.signal(sig)
	} else {
		err = s.process.Process.Signal(sig)
	}
	if err != nil {
		return err
	}
	select {
	case <-s.gone:
		s.process = nil
		return nil
	case <-time.After(startTimeout):
		return errors.New("the server does not end")
	}
}

// signal signals the postmaster and then its children, all of them: one that was just being forked would go on.
func (s *Server) signal(sig syscall.Signal) error {
	if s.process == nil {
		return errors.New("the server is not running")
	}
	parent := s.process.Process
	if sig != syscall.SIGCONT { // one that stands still makes no more children
		if err := parent.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if err := waitStopped(parent.Pid); err != nil {
			return err
		}
	}
	// Before the postmaster is killed: its children would no longer be known as such.
	children, err := childrenOf(parent.Pid)
	if err != nil {
		return err
	}
	if err := parent.Signal(sig); err != nil {
		return err
	}
	for _, pid := range children {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for _, pid := range children {
		if sig == syscall.SIGSTOP {
			if err := waitStopped(pid); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitStopped waits until a process that was sent SIGSTOP stands still or is gone. Where there is no /proc it waits for nothing.
func waitStopped(pid int) error {
	deadline := time.Now().Add(startTimeout)
	for {
		fields := statOf(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if len(fields) == 0 || strings.Contains("TtZX", fields[0]) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the process %d does not stop", pid)
		}
		runtime.Gosched()
	}
}

// statOf returns what Linux tells of a process after its name: state, parent, …; nothing when it has ended.
func statOf(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	// pid (name) state ppid …, where the name may hold anything.
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

func (s *Server) remove() error {
	_ = s.process != nil && s.signal(syscall.SIGCONT) == nil // in case it is frozen
	err := s.end(syscall.SIGQUIT)
	return errors.Join(err, s.watchdog.Close(), os.RemoveAll(s.folder))
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) (children []int, err error) {
	if stats, _ := filepath.Glob("/proc/[0-9]*/stat"); len(stats) > 0 {
		for _, path := range stats {
			if fields := statOf(path); len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
				child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err != nil {
					return nil, err
				}
				children = append(children, child)
			}
		}
		return children, nil
	}
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil {
		return nil, fmt.Errorf("pgrep: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		child, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// findBinaries returns the folder with initdb and postgres, of the newest version there is.
func findBinaries() (string, error) {
	var folders []string
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			folders = append(folders, filepath.Dir(path))
		}
	}
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(debian, func(a, b string) int { return versionIn(b) - versionIn(a) })
	brew, _ := filepath.Glob("/opt/homebrew/opt/postgresql@*/bin")
	for _, folder := range slices.Concat(folders, debian, brew) {
		_, err1 := os.Stat(filepath.Join(folder, "initdb"))
		_, err2 := os.Stat(filepath.Join(folder, "postgres"))
		if err1 == nil && err2 == nil {
			return folder, nil
		}
	}
	return "", errors.New(howToGet)
}

func versionIn(folder string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder)))
	return n
}

// unprivileged returns the account to run PostgreSQL under, which refuses to run as root; nil when
// this process is not root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("pgtest: PostgreSQL does not run as root, and there is neither an account postgres nor nobody")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// watch starts a process that waits until this one is gone, by whatever way: the pipe between them
// closes then. It ends the server whose data lies in folder and removes the folder.
func watch(folder string) (io.Closer, error) {
	const script = `read -r _
pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -CONT "$pid"; kill -QUIT "$pid"
	n=0; while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done
	kill -KILL "$pid"
fi 2>/dev/null
rm -rf "$0"`
	c := exec.Command("/bin/sh", "-c", script, folder)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C in the terminal is not for it
	pipe, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	go func() { _ = c.Wait() }()
	return pipe, nil
}
