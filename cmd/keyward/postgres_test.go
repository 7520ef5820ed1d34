package main

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// R13: two servers on one pgbouncer with its stock configuration get ready, and what one answers is in
// force on the other, also after the pgbouncer was killed and started again.
func TestR13Pgbouncer(t *testing.T) {
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pooler := pgtest.NewServer(t).NewPooler(t, mode)
			o := keywardtest.Options{
				Dir: t.TempDir(), DatabaseURL: pooler.URL(), Flags: []string{"--lease=3s", "--probe-every=0s"},
			}
			nodes := []*keywardtest.Process{keywardtest.Start(t, o), keywardtest.Start(t, o)}
			exchange := func(when string) {
				t.Helper()
				for i, p := range nodes {
					other := nodes[1-i]
					org := "org_" + when + string(rune('a'+i))
					k := create(t, p, "user_"+org, org)
					if v := verdict(t, other, k.Key); !v.Valid {
						t.Errorf("%s: created: %+v", when, v)
					}
					resp, body := request(t, "POST", p.Public+keysPath+"/"+k.APIKeyID+"/revoke", p.Token(t, "user_"+org, org), "")
					if resp.StatusCode != 200 {
						t.Fatalf("%s: revoke: %d %s", when, resp.StatusCode, body)
					}
					if v := verdict(t, other, k.Key); v.Valid {
						t.Errorf("%s: revoked: %+v", when, v)
					}
				}
			}
			exchange("at_first")
			pooler.Kill(t)
			for _, p := range nodes {
				p.WaitStatus(t, p.Verification+"/readyz", 503)
			}
			pooler.Restart(t)
			for _, p := range nodes {
				p.WaitReady(t)
			}
			exchange("after_a_restart")
			if log := pooler.Log(); strings.Contains(log, "when not linked") {
				t.Errorf("pgbouncer warns: %s", log)
			}
			for _, p := range nodes {
				if code := p.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
}

// R3, R13: a wrong setting of the database is said in one line, with exit code 2 and without its value.
func TestR13WrongDatabaseSettings(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	pooler := server.NewPooler(t, "transaction")
	for name, tt := range map[string]struct{ url, flag, want string }{
		"no database":         {strings.Replace(server.URL(), "/postgres?", "/hunter2?", 1), "", "does not exist"},
		"no user":             {strings.Replace(server.URL(), "postgres@", "hunter2@", 1), "", "user"},
		"unknown parameter":   {server.URL() + "&serch_path=hunter2", "", "serch_path"},
		"pooler's parameter":  {pooler.URL() + "&work_mem=1MB", "", "work_mem"},
		"no synchronous":      {server.URL() + "&synchronous_commit=off", "", "synchronous_commit"},
		"fsync off":           {server.URL(), "--no-database-allow-unsafe-fsync", "fsync=off"},
		"too few connections": {server.URL(), "--database-connections=5", "KEYWARD_DATABASE_CONNECTIONS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: tt.url, NotReady: true}
			o.Args = keywardtest.ServeArgs(t, o)
			switch {
			case strings.HasPrefix(tt.flag, "--no-"):
				for i, a := range o.Args {
					if a == "--"+strings.TrimPrefix(tt.flag, "--no-") {
						o.Args = append(o.Args[:i:i], o.Args[i+1:]...)
						break
					}
				}
			case tt.flag != "":
				o.Args = append(o.Args, tt.flag)
			}
			p := keywardtest.Run(t, keywardtest.Options{Dir: o.Dir, Args: o.Args})
			if code := p.Wait(t); code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			lines := strings.Split(strings.TrimSpace(p.Stderr()), "\n")
			last := lines[len(lines)-1]
			if !strings.HasPrefix(last, "keyward: --database-") || !strings.Contains(last, tt.want) || strings.Contains(last, "hunter2") {
				t.Errorf("last line %q, want %q in it", last, tt.want)
			}
		})
	}
}

// R7: a password file of libpq is judged like every other file that holds a secret.
func TestR7LibpqPasswordFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(file, []byte("*:*:*:*:hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := pgtest.NewServer(t)
	o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: server.URL() + "&passfile=" + file}
	if code := keywardtest.Start(t, o).Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	p := keywardtest.Run(t, keywardtest.Options{Dir: o.Dir, Args: keywardtest.ServeArgs(t, o)})
	if code := p.Wait(t); code != exitUsage || !strings.Contains(p.Stderr(), "PGPASSFILE") {
		t.Errorf("exit code %d: %s", code, p.Stderr())
	}
}

// R7: the password of the database comes from a file that only its owner and group can read.
func TestR7DatabasePasswordFile(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	file := filepath.Join(t.TempDir(), "password")
	write := func(content string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		content string
		mode    os.FileMode
		url     func(*url.URL)
		want    string // of the error; empty = it starts
	}{
		"a group's, as Kubernetes mounts it": {"secret word\n", 0o440, nil, ""},
		"everybody's":                        {"secret word\n", 0o644, nil, "everybody"},
		"empty":                              {"\n", 0o400, nil, "empty"},
		"beside one in the URL":              {"secret word\n", 0o400, func(u *url.URL) { u.User = url.UserPassword("postgres", "hunter2") }, "one place"},
	} {
		t.Run(name, func(t *testing.T) {
			write(tt.content, tt.mode)
			u, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			if tt.url != nil {
				tt.url(u)
			}
			o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: u.String(), Flags: []string{"--database-password-file=" + file}}
			if tt.want == "" {
				if code := keywardtest.Start(t, o).Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				return
			}
			p := keywardtest.Run(t, keywardtest.Options{Dir: o.Dir, Args: keywardtest.ServeArgs(t, o)})
			if code := p.Wait(t); code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			if out := p.Stderr(); !strings.Contains(out, "KEYWARD_DATABASE_PASSWORD_FILE") || !strings.Contains(out, tt.want) || strings.Contains(out, "hunter2") {
				t.Errorf("%q, want %q in it", out, tt.want)
			}
		})
	}
}
