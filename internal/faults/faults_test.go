// Package faults kills the real binary between two steps, fills its disk, takes its database
// away, and reads everything it left behind for secrets.
package faults

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	defer pgtest.ReapAll()
	return keywardtest.Main(m)
}

const keysPath = "/api/v1/auth/api-keys"

// engines gives a database URL for each; empty = SQLite in the process's own folder.
var engines = map[string]func(testing.TB) string{
	"sqlite":   func(testing.TB) string { return "" },
	"postgres": func(tb testing.TB) string { return pgtest.URL(tb) },
}

// answer is what came back of a request.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // the connection broke, before or within the answer
}

func (a answer) problem() (p api.Problem) {
	_ = json.Unmarshal(a.body, &p)
	return p
}

func (a answer) String() string {
	if a.err != nil {
		return "no answer: " + a.err.Error()
	}
	return fmt.Sprintf("%d %s", a.status, a.problem().Code)
}

// do sends one request on a connection of its own.
func do(tb testing.TB, method, url string, headers map[string]string, body any) answer {
	tb.Helper()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			tb.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(tb.Context(), method, url, r)
	if err != nil {
		tb.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b, err}
}

// merchant is a signed-in user of an organization on one process.
type merchant struct {
	p     *keywardtest.Process
	token string
}

func (m merchant) create(tb testing.TB, idempotencyKey string) answer {
	tb.Helper()
	body := map[string]any{"key_name": "Production key"}
	if idempotencyKey != "" {
		body["idempotency_key"] = idempotencyKey
	}
	return do(tb, "POST", m.p.Public+keysPath, m.bearer(), body)
}

func (m merchant) bearer() map[string]string {
	return map[string]string{"Authorization": "Bearer " + m.token}
}

func (m merchant) list(tb testing.TB) []api.ListedKey {
	tb.Helper()
	a := do(tb, "GET", m.p.Public+keysPath+"?env=all", m.bearer(), nil)
	var l api.KeyList
	if err := json.Unmarshal(a.body, &l); err != nil || a.status != 200 {
		tb.Fatalf("list: %v", a)
	}
	return l.Keys
}

func issued(tb testing.TB, a answer) (k api.IssuedKey) {
	tb.Helper()
	if err := json.Unmarshal(a.body, &k); a.status != http.StatusCreated || err != nil || k.Key == "" {
		tb.Fatalf("wanted a key: %v", a)
	}
	return k
}

// reason verifies a secret.
func reason(tb testing.TB, p *keywardtest.Process, secret string) string {
	tb.Helper()
	a := do(tb, "POST", p.Verification+"/v1/verify", nil, api.VerifyKey{Key: secret})
	if a.status != 200 {
		return a.String()
	}
	var v api.Verdict
	if err := json.Unmarshal(a.body, &v); err != nil {
		tb.Fatal(err)
	}
	return v.Reason
}

// steps are the places between two steps of a create, and whether the key exists after a kill there.
var steps = []struct {
	point  string
	exists bool
}{
	{"issue.begun", false},
	{"issue.numbered", false},
	{"issue.inserted", false},
	{"issue.kept", false},
	{"write.committed", true},
	{"issue.visible", true},
	{"answer.begun", true},
	{"answer.half", true},
}

// P7, C15, C16: kill -9 between any two steps of a create: exactly one key or none; a retry with the
// idempotency key gets one key and the same bytes each time, a retry without gets a defined answer.
func TestC16KillBetweenSteps(t *testing.T) {
	for engine, database := range engines {
		for _, step := range steps {
			for _, idempotencyKey := range []string{"retry-after-the-crash", ""} {
				t.Run(fmt.Sprintf("%s/%s/idempotent=%t", engine, step.point, idempotencyKey != ""), func(t *testing.T) {
					t.Parallel() // mostly waiting
					o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: database(t), Tags: "failpoints", Flags: []string{"--lease=1s"}}
					armed := o
					armed.Env = []string{"KEYWARD_FAILPOINT=" + step.point}
					p := keywardtest.Start(t, armed)
					token := p.Token(t, "u", "org_a")
					if a := (merchant{p, token}).create(t, idempotencyKey); a.err == nil {
						t.Fatalf("answered %v although the process was to be killed", a)
					}
					p.Wait(t)

					m := merchant{keywardtest.Start(t, o), token}
					before := m.list(t)
					if got := len(before); got > 1 || (got == 1) != step.exists {
						t.Fatalf("%d keys after the crash, want exists=%t", got, step.exists)
					}
					a := m.create(t, idempotencyKey)
					if idempotencyKey == "" && step.exists {
						if a.status != 400 || a.problem().Code != api.ActiveKeyExists || a.problem().ActiveAPIKeyID != before[0].APIKeyID {
							t.Errorf("retry without an idempotency key: %v", a)
						}
						return
					}
					k := issued(t, a)
					if replayed := a.header.Get("Idempotent-Replayed") == "true"; replayed != step.exists {
						t.Errorf("replayed %t, want %t", replayed, step.exists)
					}
					if idempotencyKey != "" {
						if again := m.create(t, idempotencyKey); !bytes.Equal(again.body, a.body) || again.header.Get("Idempotent-Replayed") != "true" {
							t.Errorf("a second retry: %v, or other bytes", again)
						}
					}
					if got := m.list(t); len(got) != 1 || got[0].APIKeyID != k.APIKeyID {
						t.Errorf("%d keys at the end", len(got))
					}
					if got := reason(t, m.p, k.Key); got != "valid" {
						t.Errorf("the key is %s", got)
					}
				})
			}
		}
	}
}

// C23, P7: kill -9 after a revoke committed and before it was answered: asking again completes it, and
// the secret is dead.
func TestC23KillInRevoke(t *testing.T) {
	for engine, database := range engines {
		t.Run(engine, func(t *testing.T) {
			o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: database(t), Tags: "failpoints", Flags: []string{"--lease=1s"}}
			p := keywardtest.Start(t, o)
			m := merchant{p, p.Token(t, "u", "org_a")}
			k := issued(t, m.create(t, ""))
			p.Kill()

			armed := o
			armed.Env = []string{"KEYWARD_FAILPOINT=write.committed"}
			m.p = keywardtest.Start(t, armed)
			revoke := func() answer {
				return do(t, "POST", m.p.Public+keysPath+"/"+k.APIKeyID+"/revoke", m.bearer(), nil)
			}
			if a := revoke(); a.err == nil {
				t.Fatalf("answered %v", a)
			}
			m.p.Wait(t)
			m.p = keywardtest.Start(t, o)
			if got := reason(t, m.p, k.Key); got != "revoked" {
				t.Errorf("after the crash the secret is %s", got)
			}
			if a := revoke(); a.status != 200 {
				t.Errorf("asked again: %v", a)
			}
		})
	}
}

// C5, C23, P6: a full disk is a 503 with nothing half done; verification goes on, and so do
// writes once there is room again, without a restart.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("keyward-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("this test mounts a file system of 4 MiB: run it as root (%v)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := keywardtest.Start(t, keywardtest.Options{Dir: t.TempDir(), DatabaseURL: "sqlite:" + filepath.Join(dir, "keyward.db"), Flags: []string{"--lease=2s"}})
	ballast := filepath.Join(dir, "ballast")
	outOfUse(t, p, "valid", func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
	}, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	})
}

// C5, C23, P6: the same for a PostgreSQL that takes no writes. No lease can be renewed on it, and what can only
// be read may be a standby that is behind: once the lease is over nothing is decided.
func TestReadOnlyDatabase(t *testing.T) {
	server := pgtest.NewServer(t)
	p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: server.URL(), Flags: []string{"--lease=2s"}})
	db, err := sql.Open("pgx", server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	readOnly := func(value string) {
		for _, statement := range []string{
			"ALTER SYSTEM SET default_transaction_read_only = " + value,
			"SELECT pg_reload_conf()",
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
		} {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	outOfUse(t, p, "503 unavailable", func() { readOnly("on") }, func() { readOnly("off") })
}

// outOfUse takes the database's writes away from a running process and gives them back. Verification goes on
// within the lease of two seconds, and says afterLease once that is over.
func outOfUse(t *testing.T, p *keywardtest.Process, afterLease string, begin, end func()) {
	t.Helper()
	key := issued(t, merchant{p, p.Token(t, "u", "org_a")}.create(t, ""))
	m := merchant{p, p.Token(t, "v", "org_b")}
	// Another organization's key: refused, and the refusal is recorded, which needs a write.
	refuse := func() int {
		return do(t, "POST", p.Public+keysPath+"/"+key.APIKeyID+"/revoke", m.bearer(), nil).status
	}
	begin()
	if err := keywardtest.Poll(func() bool { // a little room may be left: the refusals fill it
		status := refuse()
		if status != 404 && status != 503 {
			t.Fatalf("status %d", status)
		}
		return status == 503
	}, p.Exited()); err != nil {
		t.Fatalf("the database was not out of use: %v", err)
	}
	if a := m.create(t, "retry"); a.status != 503 || a.header.Get("Retry-After") == "" || a.problem().Code != api.Unavailable {
		t.Errorf("create answers %v, want 503", a)
	}
	if got := reason(t, p, key.Key); got != "valid" {
		t.Errorf("verification says %s within the lease", got)
	}
	<-time.After(2 * time.Second) // the lease
	if got := reason(t, p, key.Key); got != afterLease {
		t.Errorf("verification says %s after the lease, want %s", got, afterLease)
	}
	end()
	var created answer
	if err := keywardtest.Poll(func() bool { created = m.create(t, "retry"); return created.status == 201 }, p.Exited()); err != nil {
		t.Errorf("the fault is over, but create does not come back: %v: %v", err, created)
	}
	if got := m.list(t); len(got) != 1 {
		t.Errorf("%d keys, want 1", len(got))
	}
	if got := reason(t, p, issued(t, created).Key); got != "valid" {
		t.Errorf("the new key is %s", got)
	}
	if a := do(t, "POST", p.Admin+"/v1/audit/verify", nil, nil); a.status != 200 || !bytes.Contains(a.body, []byte(`"intact":true`)) {
		t.Errorf("the audit log: %v %s", a, a.body)
	}
}

// O4, C23, P7: kill -9 in the middle of a revocation of many keys, before and after the wait for the
// nodes: run again it revokes the rest, and every key has one revocation in the audit log.
func TestO4KillInRevokeMany(t *testing.T) {
	for engine, database := range engines {
		for _, point := range []string{"revokemany.committed", "revokemany.visible"} {
			t.Run(engine+"/"+point, func(t *testing.T) {
				t.Parallel() // mostly waiting
				o := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: database(t), Tags: "failpoints", Flags: []string{"--lease=1s"}}
				p := keywardtest.Start(t, o)
				var secrets []string
				for i := range 5 {
					organization := fmt.Sprint("org_", i)
					m := merchant{p, p.Token(t, "u"+organization, organization)}
					secrets = append(secrets, issued(t, m.create(t, "")).Key)
				}
				p.Kill()

				armed := o
				armed.Env = []string{"KEYWARD_FAILPOINT=" + point}
				p = keywardtest.Start(t, armed)
				env := "test"
				request := api.RevokeKeys{Filter: &api.KeyFilter{Env: &env}, Reason: "leaked"}
				if a := do(t, "POST", p.Admin+"/v1/keys/revoke", nil, request); bytes.Contains(a.body, []byte(`"revoked"`)) {
					t.Fatalf("answered %s", a.body)
				}
				p.Wait(t)

				p = keywardtest.Start(t, o)
				a := do(t, "POST", p.Admin+"/v1/keys/revoke", nil, request)
				if a.status != 200 || !bytes.Contains(a.body, []byte(`{"status":"done"`)) {
					t.Errorf("run again: %v %s", a, a.body)
				}
				for _, secret := range secrets {
					if got := reason(t, p, secret); got != "revoked" {
						t.Errorf("a secret is %s", got)
					}
				}
				var audited api.AuditList
				entries := do(t, "GET", p.Admin+"/v1/audit?action=key.revoke&outcome=done", nil, nil)
				if err := json.Unmarshal(entries.body, &audited); err != nil || len(audited.Entries) != len(secrets) {
					t.Errorf("%d revocations in the audit log: %v", len(audited.Entries), entries)
				}
			})
		}
	}
}
