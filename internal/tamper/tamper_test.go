// Package tamper tests, on the running binary, what somebody can do who has every right in the
// database and no master key: whatever is edited, no interface of any node accepts a secret that
// was revoked or whose organization was switched off (V8).
package tamper

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	_ "github.com/jackc/pgx/v5/stdlib"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "modernc.org/sqlite"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := keywardtest.Main(m)
	pgtest.ReapAll()
	os.Exit(code)
}

// edit is one thing that is done to the tables. $KEY is the id of the revoked key; org_off is the
// organization that was switched off. The tables old_… hold what there was before both.
type edit struct {
	name       string
	statements []string
	// whole: the whole database is put back to an earlier state of itself. A node that starts on it
	// cannot know (THREATS.md). One that ran keeps the revocations it knew; that an organization
	// was switched off it cannot, since that is no one-way change.
	whole bool
	// ends: a node that starts on it ends at once, and says why.
	ends bool
}

// olderRows puts the older authentic copies of both rows back.
var olderRows = []string{
	`DELETE FROM keys WHERE id = '$KEY'`, `INSERT INTO keys SELECT * FROM old_keys WHERE id = '$KEY'`,
	`DELETE FROM organizations WHERE id = 'org_off'`, `INSERT INTO organizations SELECT * FROM old_organizations WHERE id = 'org_off'`,
}

func and(statements ...string) []string {
	return append(append([]string{}, olderRows...), statements...)
}

var edits = []edit{
	{name: "older rows", statements: olderRows},
	{name: "older rows, the log's revisions edited", statements: and(
		`UPDATE audit SET revision = (SELECT k.revision FROM old_keys k WHERE k.id = '$KEY') WHERE target_id = '$KEY' AND action = 'key.revoke'`,
		`UPDATE audit SET revision = (SELECT o.revision FROM old_organizations o WHERE o.id = 'org_off')
			WHERE target_id = 'org_off' AND sequence > (SELECT max(sequence) FROM old_audit)`)},
	{name: "older rows, their entries removed", statements: and(
		`DELETE FROM audit WHERE target_id IN ('$KEY', 'org_off') AND sequence > (SELECT max(sequence) FROM old_audit)`)},
	{name: "older rows, the log cut", statements: and(`DELETE FROM audit WHERE sequence > (SELECT max(sequence) FROM old_audit)`)},
	{name: "older rows, the log and the revision put back", statements: and(
		`DELETE FROM audit WHERE sequence > (SELECT max(sequence) FROM old_audit)`, `UPDATE meta SET revision = (SELECT revision FROM old_meta)`)},
	{name: "older rows and the older state under the new revision", statements: and(
		`UPDATE meta SET (state_key_id, state_box) = (SELECT state_key_id, state_box FROM old_meta)`)},
	{name: "columns", statements: []string{
		`UPDATE keys SET state = 'active', revoked_at = 0, revoke_reason = '' WHERE id = '$KEY'`, `UPDATE organizations SET active = 1 WHERE id = 'org_off'`,
	}},
	{name: "columns with the MAC of the older row", statements: []string{
		`UPDATE keys SET state = 'active', revoked_at = 0, seal = (SELECT k.seal FROM old_keys k WHERE k.id = '$KEY') WHERE id = '$KEY'`,
		`UPDATE organizations SET active = 1, seal = (SELECT o.seal FROM old_organizations o WHERE o.id = 'org_off') WHERE id = 'org_off'`,
	}},
	{name: "rows removed", statements: []string{`DELETE FROM keys WHERE id = '$KEY'`, `DELETE FROM organizations WHERE id = 'org_off'`}},
	{name: "rows removed, with their entries", statements: []string{
		`DELETE FROM keys WHERE id = '$KEY'`, `DELETE FROM organizations WHERE id = 'org_off'`, `DELETE FROM audit WHERE target_id IN ('$KEY', 'org_off')`,
	}},
	{name: "older rows, no log at all", statements: and(`DELETE FROM audit`)},
	{name: "older rows, no state", ends: true, statements: and(`DELETE FROM meta`)},
	{name: "the whole database", whole: true, statements: and(
		`DELETE FROM audit WHERE sequence > (SELECT max(sequence) FROM old_audit)`,
		`UPDATE meta SET (revision, state_key_id, state_box) = (SELECT revision, state_key_id, state_box FROM old_meta)`)},
}

// node is a process with a client of each of its interfaces.
type node struct {
	*keywardtest.Process
	name  string
	check authv3.AuthorizationClient
}

func start(t *testing.T, name string, o keywardtest.Options) *node {
	t.Helper()
	o.Flags = append(o.Flags, "--lease=1s", "--extauthz-listen=127.0.0.1:0")
	p := keywardtest.Start(t, o)
	conn, err := grpc.NewClient(p.Address(t, "extauthz"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &node{p, name, authv3.NewAuthorizationClient(conn)}
}

// post sends a request and returns the status and the body.
func post(t *testing.T, method, address, token, contentType, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// accepts returns the interfaces of a node that accept a secret.
func (n *node) accepts(t *testing.T, secret string) (by []string) {
	t.Helper()
	if _, body := post(t, "POST", n.Verification+"/v1/verify", "", "application/json", `{"key":"`+secret+`"}`); strings.Contains(body, `"valid":true`) {
		by = append(by, "verify")
	}
	if status, _ := post(t, "GET", n.Verification+"/v1/authorize", secret, "", ""); status == http.StatusOK {
		by = append(by, "authorize")
	}
	form := url.Values{"token": {secret}}.Encode()
	if _, body := post(t, "POST", n.Verification+"/v1/introspect", "", "application/x-www-form-urlencoded", form); strings.Contains(body, `"active":true`) {
		by = append(by, "introspect")
	}
	out, err := n.check.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{
			Method: "POST", Path: "/v1/payments", Host: "pay.example", Scheme: "https", Protocol: "HTTP/2",
			Headers: map[string]string{":method": "POST", ":path": "/v1/payments", ":authority": "pay.example", "authorization": "Bearer " + secret},
		},
	}}})
	if err != nil || out.GetOkResponse() != nil {
		by = append(by, fmt.Sprint("ext_authz ", err))
	}
	return by
}

// world is a database with a revoked key and a key of an organization that was switched off.
type world struct {
	db                    *sql.DB
	revokedID             string
	revoked, off, another string // secrets; another is good
}

func (w *world) run(t *testing.T, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := w.db.ExecContext(t.Context(), strings.ReplaceAll(s, "$KEY", w.revokedID)); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func create(t *testing.T, n *node, user, organization string) api.IssuedKey {
	t.Helper()
	status, body := post(t, "POST", n.Public+"/api/v1/auth/api-keys", n.Token(t, user, organization), "application/json", `{"key_name":"k"}`)
	var k api.IssuedKey
	if err := json.Unmarshal([]byte(body), &k); err != nil || status != http.StatusCreated {
		t.Fatalf("create: %d %s", status, body)
	}
	return k
}

func put(t *testing.T, n *node, organization, body string) {
	t.Helper()
	if status, answer := post(t, "PUT", n.Admin+"/v1/organizations/"+organization, "", "application/json", body); status/100 != 2 {
		t.Fatalf("put: %d %s", status, answer)
	}
}

// populate makes the world through a node.
func populate(t *testing.T, n *node, db *sql.DB) *world {
	t.Helper()
	w := &world{db: db}
	put(t, n, "org_off", `{}`)
	key, off, another := create(t, n, "ann", "org_a"), create(t, n, "bob", "org_off"), create(t, n, "cy", "org_c")
	w.revokedID, w.revoked, w.off, w.another = key.APIKeyID, key.Key, off.Key, another.Key
	for _, secret := range []string{w.revoked, w.off, w.another} {
		if by := n.accepts(t, secret); len(by) != 4 {
			t.Fatalf("before: accepted by %v", by)
		}
	}
	for _, table := range []string{"keys", "organizations", "audit", "meta"} {
		w.run(t, `CREATE TABLE old_`+table+` AS SELECT * FROM `+table)
	}
	if status, body := post(t, "POST", n.Public+"/api/v1/auth/api-keys/"+w.revokedID+"/revoke", n.Token(t, "ann", "org_a"), "", ""); status != http.StatusOK {
		t.Fatalf("revoke: %d %s", status, body)
	}
	put(t, n, "org_off", `{"is_active":false}`)
	return w
}

// never wants a node to accept neither secret, by any interface, for a while.
func (w *world) never(t *testing.T, n *node, when string) {
	t.Helper()
	for until := time.Now().Add(500 * time.Millisecond); time.Now().Before(until) && !t.Failed(); {
		for what, secret := range map[string]string{"the revoked key": w.revoked, "the key of the organization that is off": w.off} {
			if by := n.accepts(t, secret); len(by) > 0 {
				t.Errorf("%s, %s: %s is accepted by %v", n.name, when, what, by)
			}
		}
	}
}

// endsAtOnce starts a node, which has to end by itself.
func endsAtOnce(t *testing.T, o keywardtest.Options) {
	t.Helper()
	o.Args = keywardtest.ServeArgs(t, o)
	p := keywardtest.Run(t, o)
	if code := p.Wait(t); code == 0 || !strings.Contains(p.Stderr(), "changed by somebody else") {
		t.Errorf("exit code %d\n%s", code, p.Stderr())
	}
}

// V8, P5: on PostgreSQL, on a warm node, on one that joins after the edit, and on both once their
// leases were taken away by editing the version of the protocol.
func TestV8NothingEditedIsAcceptedOnPostgres(t *testing.T) {
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			address := pgtest.URL(t)
			db, err := sql.Open("pgx", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			dir := t.TempDir()
			warm := start(t, "the warm node", keywardtest.Options{Dir: dir, DatabaseURL: address, Flags: []string{"--probe-every=0s"}})
			w := populate(t, warm, db)
			w.run(t, e.statements...)
			if e.whole {
				w.off = w.revoked
			}
			w.never(t, warm, "right after the edit")
			nodes := []*node{warm}
			if e.ends {
				endsAtOnce(t, keywardtest.Options{Dir: dir, DatabaseURL: address})
			} else if !e.whole {
				joined := start(t, "the node that joined", keywardtest.Options{Dir: dir, DatabaseURL: address, Flags: []string{"--probe-every=0s"}, NotReady: true})
				w.never(t, joined, "after its start")
				nodes = append(nodes, joined)
			}
			w.run(t, `UPDATE lineage SET protocol = 1000`)
			for _, n := range nodes {
				n.WaitStatus(t, n.Verification+"/readyz", http.StatusServiceUnavailable)
				w.never(t, n, "without a lease")
				if by := n.accepts(t, w.another); len(by) > 0 {
					t.Errorf("%s, without a lease: a good key is accepted by %v", n.name, by)
				}
			}
		})
	}
}

// V8, P5: on SQLite, on the node that runs and on one that starts on the edited file.
func TestV8NothingEditedIsAcceptedOnSQLite(t *testing.T) {
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			warm := start(t, "the warm node", keywardtest.Options{Dir: dir})
			name := url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(dir, "keyward.db")}
			db, err := sql.Open("sqlite", name.String()+"?_pragma=busy_timeout(10000)")
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			w := populate(t, warm, db)
			w.run(t, e.statements...)
			if e.whole {
				w.off = w.revoked
			}
			w.never(t, warm, "right after the edit")
			warm.Stop(t)
			db.Close()
			if e.ends {
				endsAtOnce(t, keywardtest.Options{Dir: dir})
			}
			if e.ends || e.whole {
				return
			}
			cold := start(t, "the cold node", keywardtest.Options{Dir: dir, NotReady: true})
			w.never(t, cold, "after its start")
		})
	}
}

// keepRow puts the older authentic copy of a row back in the very transaction that revokes it, and
// cuts the connections that listen, so that no node is notified of the real one.
var keepRow = []string{
	`CREATE TABLE real_keys AS SELECT * FROM keys WHERE false`,
	`CREATE FUNCTION keep_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.id = '$KEY' AND NEW.state = 'revoked' THEN
			INSERT INTO real_keys SELECT NEW.*;
			PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN keyward' AND datname = current_database();
			RETURN OLD;
		END IF;
		RETURN NEW;
	END $$`,
	`CREATE TRIGGER keep_row BEFORE UPDATE ON keys FOR EACH ROW EXECUTE FUNCTION keep_row()`,
}

// V8, C23: a writer to the database keeps the revoked row from the nodes while the revoke is in
// progress. When a node has answered it, no node accepts the secret; nor once the real row is back.
func TestV8DatabaseWriterDuringARevoke(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t)
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	options := keywardtest.Options{Dir: t.TempDir(), DatabaseURL: address, Flags: []string{"--probe-every=0s"}}
	a, b := start(t, "the node that is asked to revoke", options), start(t, "the other node", options)
	key := create(t, a, "ann", "org_a")
	w := &world{db: db, revokedID: key.APIKeyID, revoked: key.Key, off: key.Key}
	w.run(t, keepRow...)
	status := 0
	for try := 0; try < 10 && status != http.StatusOK; try++ { // the node may be closed while it loads again
		status, _ = post(t, "POST", a.Public+"/api/v1/auth/api-keys/"+w.revokedID+"/revoke", a.Token(t, "ann", "org_a"), "", "")
	}
	if status != http.StatusOK {
		t.Errorf("the revoke was never answered: %d", status)
	}
	w.never(t, a, "after the revoke was answered")
	w.never(t, b, "after the revoke was answered")
	w.run(t, `DROP TRIGGER keep_row ON keys`, `DELETE FROM keys WHERE id = '$KEY'`,
		`INSERT INTO keys SELECT * FROM real_keys ORDER BY revision DESC LIMIT 1`)
	w.never(t, a, "once the real row is back")
	w.never(t, b, "once the real row is back")
}
