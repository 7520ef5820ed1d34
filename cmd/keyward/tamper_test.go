package main

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// edit changes a running server's database behind its back.
func edit(t *testing.T, p *keywardtest.Process, statement string, arguments ...any) {
	t.Helper()
	name := url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(p.Dir, "keyward.db")}
	db, err := sql.Open("sqlite", name.String()+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	result, err := db.ExecContext(t.Context(), statement, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("%d rows changed, %v", n, err)
	}
}

// checkNamed returns one of the server's checks.
func checkNamed(t *testing.T, p *keywardtest.Process, name string) api.Check {
	t.Helper()
	_, body := request(t, "GET", p.Admin+"/v1/status", "", "")
	for _, c := range decode[api.Status](t, body).Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %s", name, body)
	return api.Check{}
}

// doctor runs that command against the server.
func doctor(t *testing.T, p *keywardtest.Process) (code int, out string) {
	t.Helper()
	code, out, _ = command(t, []string{"doctor"}, []string{"KEYWARD_SERVER=" + p.Admin, "KEYWARD_VERIFY_SERVER=" + p.Verification}, "")
	return code, out
}

// P5: a key or an organization changed by somebody else is refused by verification from the first read
// that finds it, whoever's read that is; doctor says so.
func TestP5ChangedRowIsRefusedOnceRead(t *testing.T) {
	for name, test := range map[string]struct {
		statement string
		read      string // on the admin listener; empty = the user's list of keys
	}{
		"key":          {`UPDATE keys SET expires_at = 0, name = 'x' WHERE organization_id = 'org_a'`, ""},
		"organization": {`UPDATE organizations SET name = 'x' WHERE id = 'org_a'`, "/v1/organizations/org_a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := keywardtest.Start(t, keywardtest.Options{})
			if resp, body := request(t, "PUT", p.Admin+"/v1/organizations/org_a", "", `{"payments_enabled":true}`); resp.StatusCode/100 != 2 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			k := create(t, p, "ann", "org_a")
			if v := verdict(t, p, k.Key); !v.Valid {
				t.Fatalf("before: %+v", v)
			}
			if c := checkNamed(t, p, "tampered rows"); c.Status != checkOK || c.Detail != "0" {
				t.Errorf("before: %+v", c)
			}
			if code, out := doctor(t, p); code != 0 {
				t.Errorf("doctor before: exit code %d\n%s", code, out)
			}

			edit(t, p, test.statement)
			if test.read != "" {
				request(t, "GET", p.Admin+test.read, "", "")
			} else {
				request(t, "GET", p.Public+keysPath, p.Token(t, "ann", "org_a"), "")
			}
			if v := verdict(t, p, k.Key); v.Valid {
				t.Error("the secret is still accepted")
			}
			if c := checkNamed(t, p, "tampered rows"); c.Status != checkFail || !strings.HasPrefix(c.Detail, "1 refused") {
				t.Errorf("%+v", c)
			}
			if code, out := doctor(t, p); code != 1 || !strings.Contains(out, "tampered rows") {
				t.Errorf("doctor: exit code %d\n%s", code, out)
			}
			p.WaitLog(t, `"level":"ERROR".*was not written by Keyward`)
			p.Stop(t)
		})
	}
}

// P5, P8: doctor fails once the sealed state, or the end of the audit log, does not hold.
func TestP8DoctorChecksTheState(t *testing.T) {
	for name, statement := range map[string]string{
		"state":     `UPDATE meta SET state_box = zeroblob(length(state_box))`,
		"audit log": `DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := keywardtest.Start(t, keywardtest.Options{})
			create(t, p, "ann", "org_a")
			if c := checkNamed(t, p, "sealed state"); c.Status != checkOK {
				t.Errorf("before: %+v", c)
			}
			edit(t, p, statement)
			if c := checkNamed(t, p, "sealed state"); c.Status != checkFail || !strings.Contains(c.Detail, "changed by somebody else") {
				t.Errorf("%+v", c)
			}
			if code, out := doctor(t, p); code != 1 || !strings.Contains(out, "sealed state") {
				t.Errorf("doctor: exit code %d\n%s", code, out)
			}
			p.Stop(t)
		})
	}
}
