package main

import (
	"bufio"
	"context"
	"database/sql"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

// newSecret draws a well-formed secret that no server issued.
func newSecret(t testing.TB) string {
	t.Helper()
	f, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Generate(token.Live)
	if err != nil {
		t.Fatal(err)
	}
	return s.Reveal()
}

// problem checks that an answer is the problem with that status and code.
func problem(t testing.TB, resp *http.Response, body string, status int, code api.Code) {
	t.Helper()
	if resp.StatusCode != status || decode[api.Problem](t, body).Code != code {
		t.Errorf("%s %s: %d %s, want %d %s", resp.Request.Method, resp.Request.URL.Path, resp.StatusCode, body, status, code)
	}
}

// unavailable checks that neither management nor verification decides anything.
func unavailable(t *testing.T, p *keywardtest.Process, secret string) {
	t.Helper()
	resp, body := request(t, "POST", p.Public+keysPath, p.Token(t, "ann", "org_a"), `{"key_name":"k"}`)
	problem(t, resp, body, 503, api.Unavailable)
	if resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Request-Id") == "" {
		t.Errorf("create: headers %v", resp.Header)
	}
	resp, body = request(t, "POST", p.Verification+"/v1/verify", "", `{"key":"`+secret+`"}`)
	problem(t, resp, body, 503, api.Unavailable)
	if resp, _ := request(t, "GET", p.Verification+"/livez", "", ""); resp.StatusCode != 200 {
		t.Errorf("livez: %d: the process is to be kept", resp.StatusCode)
	}
}

// R5: started with the database away a server waits for it, is not ready, says so, and
// decides nothing; then it begins by itself.
func TestR5DatabaseAwayAtStart(t *testing.T) {
	t.Parallel()
	db := pgtest.NewServer(t)
	db.Stop(t)
	p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: db.URL(), NotReady: true})
	p.WaitLog(t, "waiting for the database; not ready until it answers")
	p.WaitStatus(t, p.Verification+"/readyz", 503)
	unavailable(t, p, newSecret(t))

	db.Restart(t)
	p.WaitReady(t)
	if k := create(t, p, "ann", "org_a"); !verdict(t, p, k.Key).Valid {
		t.Error("a created key is not valid")
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// R5: stopped while it waits for the database a server ends at once, with 0.
func TestR5StopWhileWaiting(t *testing.T) {
	t.Parallel()
	db := pgtest.NewServer(t)
	db.Stop(t)
	p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: db.URL(), NotReady: true})
	p.WaitLog(t, "waiting for the database")
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// R5, P6: a database lost later, crashed or frozen, makes the server not ready and undecided once
// its lease is over; the process is kept and comes back by itself, with everything it answered.
func TestR5DatabaseLost(t *testing.T) {
	for name, fault := range map[string]struct {
		away, back func(*pgtest.Server, testing.TB)
	}{
		"crashed": {(*pgtest.Server).Kill, (*pgtest.Server).Restart},
		"frozen":  {(*pgtest.Server).Freeze, (*pgtest.Server).Thaw},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewServer(t)
			p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: db.URL(), Flags: []string{"--lease=3s"}})
			k := create(t, p, "ann", "org_a")

			fault.away(db, t)
			if v := verdict(t, p, k.Key); !v.Valid {
				t.Errorf("within the lease: %+v", v)
			}
			p.WaitStatus(t, p.Verification+"/readyz", 503)
			resp, body := request(t, "POST", p.Verification+"/v1/verify", "", `{"key":"`+k.Key+`"}`)
			problem(t, resp, body, 503, api.Unavailable)
			p.WaitLog(t, `"msg":"not ready"`)

			fault.back(db, t)
			p.WaitReady(t)
			if v := verdict(t, p, k.Key); !v.Valid {
				t.Errorf("when the database is back: %+v", v)
			}
			if v := verdict(t, p, newSecret(t)); v.Valid {
				t.Errorf("a secret nobody issued: %+v", v)
			}
			if code := p.Stop(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// R5: what a person has to mend is said in one line at once, rather than waited for.
func TestR5Refused(t *testing.T) {
	t.Parallel()
	used := keywardtest.Start(t, keywardtest.Options{})
	links := t.TempDir()
	symbolic, hard := filepath.Join(links, "symbolic.db"), filepath.Join(used.Dir, "hard.db")
	if err := errors.Join(os.Symlink(filepath.Join(used.Dir, "keyward.db"), symbolic), os.Link(filepath.Join(used.Dir, "keyward.db"), hard)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		options keywardtest.Options
		want    string
	}{
		"second process": {keywardtest.Options{DatabaseURL: "sqlite:" + filepath.Join(used.Dir, "keyward.db")}, "another process has this database open"},
		"symbolic link":  {keywardtest.Options{DatabaseURL: "sqlite:" + symbolic}, "another process has this database open"},
		"hard link":      {keywardtest.Options{DatabaseURL: "sqlite:" + hard}, "another process has this database open"},
		"no folder":      {keywardtest.Options{DatabaseURL: "sqlite:/proc/none/keyward.db"}, "/proc/none"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.options.NotReady = true
			tt.options.Dir = t.TempDir()
			p := keywardtest.Run(t, keywardtest.Options{Dir: tt.options.Dir, Args: keywardtest.ServeArgs(t, tt.options)})
			if code := p.Wait(t); code != 1 {
				t.Errorf("exit code %d", code)
			}
			lines := strings.Split(strings.TrimSpace(p.Stderr()), "\n")
			last := lines[len(lines)-1]
			if !strings.HasPrefix(last, "keyward: ") || !strings.Contains(last, tt.want) {
				t.Errorf("last line %q, want %q in it", last, tt.want)
			}
		})
	}
}

// R10: a server that lacks the master key of its database says so once, decides nothing, and serves
// once its file has the key.
func TestR10MissingMasterKeyAtStart(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(*testing.T, string) string{
		"sqlite":   func(_ *testing.T, dir string) string { return "sqlite:" + filepath.Join(dir, "keyward.db") },
		"postgres": func(t *testing.T, _ string) string { return pgtest.URL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := keywardtest.Options{Dir: dir, DatabaseURL: url(t, dir)}
			p := keywardtest.Start(t, o)
			k := create(t, p, "ann", "org_a")
			p.Stop(t)

			masterKey := filepath.Join(dir, "master.key")
			if err := os.Rename(masterKey, masterKey+".away"); err != nil {
				t.Fatal(err)
			}
			o.NotReady = true
			p = keywardtest.Start(t, o)
			p.WaitLog(t, "this node lacks a master key")
			if resp, _ := request(t, "POST", p.Verification+"/v1/verify", "", `{"key":"`+k.Key+`"}`); resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("without the key: %d", resp.StatusCode)
			}
			if err := os.Rename(masterKey+".away", masterKey); err != nil {
				t.Fatal(err)
			}
			p.WaitReady(t)
			if v := verdict(t, p, k.Key); !v.Valid {
				t.Errorf("with the right one again: %+v", v)
			}
			if n := strings.Count(p.Stderr(), "lacks a master key"); n != 1 ||
				strings.Contains(p.Stderr(), `"msg":"waiting for the database`) {
				t.Errorf("%d lines about the key:\n%s", n, p.Stderr())
			}
		})
	}
}

// R5, C20: SIGTERM lets what runs finish, accepts no more, writes last_used_at, gives the lease back
// and ends with 0, on both databases.
func TestR5Stop(t *testing.T) {
	sqlite := func(*testing.T) string { return "" }
	for name, url := range map[string]func(*testing.T) string{
		"sqlite":   sqlite,
		"postgres": func(t *testing.T) string { return pgtest.URL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := keywardtest.Options{DatabaseURL: url(t), Flags: []string{"--lease=60s"}}
			p := keywardtest.Start(t, o)
			k := create(t, p, "ann", "org_a")
			before := time.Now().Truncate(time.Second)
			if v := verdict(t, p, k.Key); !v.Valid {
				t.Fatalf("verdict %+v", v)
			}

			// A create whose body comes only after the signal.
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.Public, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			body := `{"key_name":"late"}`
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: k\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
				keysPath, p.Token(t, "bob", "org_b"), len(body))
			answer := bufio.NewReader(conn)
			if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
				t.Fatalf("%q, %v", line, err)
			}
			p.Signal(t, syscall.SIGTERM)
			p.WaitLog(t, `"msg":"stopping"`)
			if err := keywardtest.Poll(func() bool {
				c, err := net.Dial("tcp", strings.TrimPrefix(p.Public, "http://"))
				if err == nil {
					c.Close()
				}
				return err != nil
			}, p.Exited()); err != nil {
				t.Fatalf("still accepts connections: %v", err)
			}
			if _, err := io.WriteString(conn, body); err != nil {
				t.Fatal(err)
			}
			if _, err := answer.ReadString('\n'); err != nil { // the empty line after 100 Continue
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(answer, nil)
			if err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatalf("the request that ran: %v, %v", resp, err)
			}
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			late := decode[api.IssuedKey](t, string(text))
			conn.Close()
			if code := p.Wait(t); code != 0 {
				t.Fatalf("exit code %d", code)
			}
			if o.DatabaseURL != "" {
				if n := count(t, o.DatabaseURL, "SELECT count(*) FROM serving_nodes"); n != 0 {
					t.Errorf("%d nodes still hold a lease", n)
				}
			}

			// With a lease that was not given back the first write would now wait for 75 s.
			p = p.Restart(t)
			began := time.Now()
			if v := verdict(t, p, late.Key); !v.Valid {
				t.Errorf("the key created while stopping: %+v", v)
			}
			create(t, p, "cem", "org_c")
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("a create after the restart took %v", took)
			}
			_, list := request(t, "GET", p.Public+keysPath, p.Token(t, "ann", "org_a"), "")
			used := decode[api.KeyList](t, list).Keys[0].LastUsedAt
			if used == nil {
				t.Fatal("last_used_at was lost")
			}
			if at, err := time.Parse(time.RFC3339, *used); err != nil || at.Before(before) || at.After(began) {
				t.Errorf("last_used_at is %s, verified at %v", *used, before)
			}
			p.Stop(t)
		})
	}
}

func count(t *testing.T, url, query string) (n int) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// R5: a second signal ends the process at once, whatever still runs.
func TestR5SecondSignal(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.Public, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: k\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", keysPath, p.Token(t, "bob", "org_b"))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	p.Signal(t, syscall.SIGTERM)
	p.WaitLog(t, `"msg":"stopping"`)
	began := time.Now()
	// The first signal's handler gives the second its default effect a moment after "stopping" at the latest.
	err = keywardtest.Poll(func() bool {
		select {
		case <-p.Exited():
			return true
		default:
			p.Signal(t, syscall.SIGTERM)
			return false
		}
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.ExitCode() != -1 || time.Since(began) > drainTime/2 {
		t.Errorf("exit code %d after %v, want an end by the signal", p.ExitCode(), time.Since(began))
	}
}

// R5: systemd is told when the server is ready and when it stops.
func TestR5Notify(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	next := func() string {
		if err := conn.SetReadDeadline(time.Now().Add(keywardtest.Patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1024)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	p := keywardtest.Start(t, keywardtest.Options{Env: []string{"NOTIFY_SOCKET=" + socket}})
	if s := next(); s != "READY=1\nSTATUS=ready" {
		t.Errorf("first %q", s)
	}
	p.Stop(t)
	if s := next(); s != "STOPPING=1" {
		t.Errorf("then %q", s)
	}
}

func newRing(t *testing.T) *seal.Ring {
	t.Helper()
	line, err := seal.NewLine("")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// R6: one static binary, and ready in under a second on an empty database. The bound is wide
// because the machine may be busy with other tests; the figure is logged.
func TestR6(t *testing.T) {
	binary := keywardtest.Build(t, "") // before the watch starts
	began := time.Now()
	p := keywardtest.Start(t, keywardtest.Options{})
	took := time.Since(began)
	t.Logf("ready %v after the start", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("ready after %v", took)
	}
	p.Stop(t)

	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic loader")
		}
	}
	if len(libraries) > 0 {
		t.Errorf("the binary needs %v", libraries)
	}
}

// R5: a database that is away is told from one that a person has to mend.
func TestR5Away(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	db := pgtest.NewServer(t)
	db.Stop(t)
	l := &lateStore{}
	l.options.URL = db.URL()
	l.options.Ring = newRing(t)
	tries := 0
	err := l.open(ctx, func(err error, _ time.Duration) {
		if tries++; tries == 2 {
			cancel()
		}
		if !sqlstore.Away(err) {
			t.Errorf("waiting for %v", err)
		}
	})
	if err != context.Canceled || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	if _, err := l.Now(t.Context()); err != errAway {
		t.Errorf("Now: %v", err)
	}
}
