//go:build unix

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// buildBinary returns the path of the program, which it builds unless one is named.
func buildBinary(ctx context.Context, path string) (_ string, remove func(), err error) {
	if path != "" {
		return path, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "keyward-isolation-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	path = filepath.Join(dir, "keyward")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/syncgram/keyward/cmd/keyward")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, remove, nil
}

// server is a running program with its database.
type server struct {
	cmd    *exec.Cmd
	dir    string
	issuer *identity.DevIssuer
	token  string // of the listeners that are not public
	scope  cleanup

	public, verify, extauthz string // addresses
	flooded                  string // a revoked key of organization org_flood
}

// cleanup stands in for a test where the helpers of tests want one.
type cleanup struct {
	testing.TB
	last []func()
}

func (c *cleanup) Helper()                   { /* no test to mark */ }
func (c *cleanup) Cleanup(f func())          { c.last = append(c.last, f) }
func (c *cleanup) Fatal(a ...any)            { panic(failure{errors.New(fmt.Sprint(a...))}) }
func (c *cleanup) Fatalf(s string, a ...any) { panic(failure{fmt.Errorf(s, a...)}) }

type failure struct{ error }

func (c *cleanup) run() {
	for len(c.last) > 0 {
		f := c.last[len(c.last)-1]
		c.last = c.last[:len(c.last)-1]
		f()
	}
}

const startPatience = 60 * time.Second

// startServer seeds a database and starts the program on it.
func startServer(ctx context.Context, o options, binary, database string) (s *server, err error) {
	s = new(server)
	defer func() {
		if f, ok := recover().(failure); ok {
			err = f.error
		}
		if err != nil {
			s.stop()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "keyward-isolation-"); err != nil {
		return s, err
	}
	s.scope.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	url := "sqlite:" + filepath.Join(s.dir, "keyward.db")
	if database == "postgres" {
		url = pgtest.URL(&s.scope)
	}
	masterKey, line := filepath.Join(s.dir, "master.key"), ""
	if line, err = seal.NewLine(""); err != nil {
		return s, err
	}
	s.token = rand.Text()
	if s.issuer, err = identity.OpenDevIssuer(s.dir); err != nil {
		return s, err
	}
	if err = os.WriteFile(masterKey, []byte(line+"\n"), 0o600); err != nil {
		return s, err
	}
	if err = s.seed(ctx, url, line, o.keys); err != nil {
		return s, err
	}
	args := []string{
		"serve", "--listen=127.0.0.1:0", "--extauthz-listen=127.0.0.1:0",
		"--database-url=" + url, "--database-allow-unsafe-fsync", "--master-key-file=" + masterKey,
		"--jwt-jwks=" + s.issuer.Config().JWKS, "--jwt-issuer=" + identity.DevIssuerName, "--jwt-audience=" + identity.DevAudience,
	}
	more, err := s.listenerArgs()
	if err != nil {
		return s, err
	}
	s.cmd = exec.CommandContext(ctx, binary, append(args, more...)...)
	s.cmd.Dir = s.dir
	log, err := s.cmd.StderrPipe()
	if err != nil {
		return s, err
	}
	if err = s.cmd.Start(); err != nil {
		return s, err
	}
	addresses := make(chan [2]string, 8)
	go func() {
		defer close(addresses)
		lines := bufio.NewScanner(log)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var l struct{ Msg, Listener, Address string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" {
				addresses <- [2]string{l.Listener, l.Address}
			}
		}
	}()
	return s, s.waitReady(addresses)
}

// listenerArgs are the settings of the other listeners.
func (s *server) listenerArgs() ([]string, error) {
	file := filepath.Join(s.dir, "credentials")
	args := []string{"--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--credentials-file=" + file}
	return args, os.WriteFile(file, []byte("bench verify,read,operate "+s.token+"\n"), 0o600)
}

// waitReady learns where the listeners are and waits until verification answers.
func (s *server) waitReady(addresses <-chan [2]string) error {
	deadline := time.After(startPatience)
	for s.public == "" || s.verify == "" || s.extauthz == "" {
		select {
		case a, ok := <-addresses:
			if !ok {
				return errors.New("the server ended before it listened")
			}
			switch a[0] {
			case "public":
				s.public = a[1]
			case "verification":
				s.verify = a[1]
			case "extauthz":
				s.extauthz = a[1]
			}
		case <-deadline:
			return errors.New("the server does not listen")
		}
	}
	go func() {
		for range addresses { // the log is read to its end
		}
	}()
	for {
		resp, err := http.Get("http://" + s.verify + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-deadline:
			return errors.New("the server is not ready")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// seed gives org_flood its keys, all revoked.
func (s *server) seed(ctx context.Context, url, line string, n int) (err error) {
	ring, err := seal.Parse([]byte(line))
	if err != nil {
		return err
	}
	store, err := sqlstore.Open(ctx, sqlstore.Options{URL: url, Ring: ring})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	const batch = 200
	for from := 0; from < n; from += batch {
		_, err := store.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			for i := from; i < min(n, from+batch); i++ {
				k := keys.Key{
					ID: fmt.Sprintf("key_%026d", i+1), OrganizationID: "org_flood", Environment: keys.Test, Hint: "hint",
					Name: "one of many " + strconv.Itoa(i), CreatedAt: tx.Now().Add(-time.Duration(i) * time.Second),
					CreatedBy: "flood", State: keys.StateRevoked, RevokedAt: tx.Now(),
				}
				rand.Read(k.Digest[:])
				if err := tx.InsertKey(ctx, k); err != nil {
					return err
				}
				err := tx.Audit(ctx, keys.AuditEntry{Action: keys.ActCreate, TargetID: k.ID, Actor: "flood", Outcome: keys.Done, Revision: tx.Revision()})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.flooded = fmt.Sprintf("key_%026d", 1)
	return nil
}

// stop ends the program and what was made for it.
func (s *server) stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGKILL)
		_ = s.cmd.Wait() // killed
	}
	s.scope.run()
}

// rss is the program's memory, in MB.
func (s *server) rss() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}
