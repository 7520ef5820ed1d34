package defect

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seeded is an error of the protocol and the one test that is to find it.
type seeded struct {
	name   string
	pieces []Defect // without a name of their own
	room   string   // of the test
	test   string   // what -test.run is given: a test, or one of its parts by a path

	simulated bool // TestSimulation is to find it too, which looks for nothing in particular
}

// named returns the pieces with the error's name.
func (s *seeded) named() (pieces []Defect) {
	for _, p := range s.pieces {
		p.Name = s.name
		pieces = append(pieces, p)
	}
	return pieces
}

const (
	verification = "internal/verify"
	domain       = "internal/keys"
	store        = "internal/sqlstore"

	followFile      = "internal/verify/follow.go"
	verifyFile      = "internal/verify/verify.go"
	leaseFile       = "internal/verify/lease.go"
	listenFile      = "internal/verify/listen.go"
	manageFile      = "internal/keys/manage.go"
	issueFile       = "internal/keys/issue.go"
	feedFile        = "internal/sqlstore/feed.go"
	snapshotFile    = "internal/sqlstore/snapshot.go"
	indexFile       = "internal/verify/index.go"
	writeFile       = "internal/sqlstore/write.go"
	transactionFile = "internal/sqlstore/transaction.go"
	sqlFile         = "internal/sqlstore/sql.go"
	rowsFile        = "internal/sqlstore/rows.go"
	masterKeysFile  = "internal/sqlstore/masterkeys.go"
	sqliteFile      = "internal/sqlstore/sqlite.go"
	connectorFile   = "internal/sqlstore/connector.go"
)

// list is every error, those a protocol of this kind is likely to have first, then those that rules of this one keep out.
var list = []seeded{
	{"the lease counts from the answer", []Defect{{File: leaseFile,
		Old: `	l := lease{instant{s.began.mono + term, s.began.wall + int64(term)}}
	return l, l.goodAt(c.now())`,
		New: `	now := c.now()
	return lease{instant{now.mono + term, now.wall + int64(term)}}, true`,
	}}, verification, "TestP1LeaseCountsFromTheSending", false},

	{"the lease is loaded after the look-up", []Defect{{File: verifyFile,
		Old: `leased = held.lease.goodAt(read)`,
		New: `leased = v.view.Load().lease.goodAt(read)`,
	}}, verification, "TestC23TheLeaseIsTheOneLoadedFirst", true},

	{"a background loop says healthy, and no clock is asked", []Defect{{File: verifyFile,
		Old: `leased = held.lease.goodAt(read)`,
		New: `leased = v.healthy.Load()`,
	}, {File: verifyFile,
		Old: `	lineage  lineage
`,
		New: `	lineage  lineage
	healthy  atomic.Bool
`,
	}, {File: followFile,
		Old: `	background.Go(func() { v.listen(ctx) })
`,
		New: `	background.Go(func() { v.listen(ctx) })
	background.Go(func() {
		for v.sleep(ctx, 10*time.Millisecond) {
			v.healthy.Store(v.Ready() == nil)
		}
		v.healthy.Store(false)
	})
`,
	}}, verification, "TestC23StoppedProcess", true},

	{"a node that lags behind extends its lease", []Defect{{File: followFile,
		Old: `	if renewal.Outcome == keys.Renewed {
		if l, ok`,
		New: `	if renewal.Outcome != keys.Fenced {
		if l, ok`,
	}}, verification, "TestP1OnlyARenewalExtendsTheLease", true},

	{"renewed by a read, acknowledged apart", []Defect{{File: sqlFile,
		Old: `	renewNode = ` + "`" + `UPDATE serving_nodes SET applied = $1, renewed_at = (SELECT now FROM clock)
		WHERE node_id = $2 AND applied <= $1 AND`,
		New: `	acknowledge = ` + "`" + `UPDATE serving_nodes SET applied = $1, renewed_at = (SELECT now FROM clock)
		WHERE node_id = $2 AND applied <= $1` + "`" + `
	renewNode = ` + "`" + `SELECT (SELECT now FROM clock), (SELECT now FROM timeline), (SELECT settled FROM lineage) FROM serving_nodes
		WHERE node_id = $2 AND applied <= $1 AND`,
	}, {File: sqlFile,
		Old: `
		RETURNING renewed_at, (SELECT now FROM timeline), (SELECT settled FROM lineage)`,
		New: ``,
	}, {File: feedFile,
		Old: `	if !renewed {
`,
		New: `	if renewed {
		_, err = s.write(ctx, s.lease, acknowledge, applied.Revision, nodeID)
		return keys.Renewal{Outcome: keys.Renewed, Timeline: r.Timeline, Settled: settled == r.Timeline, At: keys.FromMicros(at)}, err
	}
	if !renewed {
`,
	}}, store, "TestC23ALateRenewalLowersNothing", false},

	{"the nodes are listed before the commit", []Defect{{File: writeFile,
		Old: `		if err := fn(ctx, t); err != nil {
			return err
		}
		commit = keys.Commit{`,
		New: `		serve, _, err := s.Nodes(ctx)
		if err != nil {
			return err
		}
		listed.Store(t.state.revision, serve)
		if err := fn(ctx, t); err != nil {
			return err
		}
		commit = keys.Commit{`,
	}, {File: writeFile,
		Old: `// Record implements keys.Store.`,
		New: `// listed are the nodes a write waits for, by its revision.
var listed sync.Map

// Record implements keys.Store.`,
	}, {File: writeFile,
		Old: `	"fmt"
`,
		New: `	"fmt"
	"sync"
`,
	}, {File: feedFile,
		Old: `	if err == nil && !has {
`,
		New: `	if before, ok := listed.Load(c.Revision); ok {
		serve, _, err := s.Nodes(ctx)
		if err != nil {
			return st, err
		}
		st.Behind = 0
		for _, n := range serve {
			known := slices.ContainsFunc(before.([]keys.ServingNode), func(b keys.ServingNode) bool { return b.ID == n.ID })
			if known && n.Applied < c.Revision {
				st.Behind++
			}
		}
	}
	if err == nil && !has {
`,
	}}, store, "TestC23NodeThatRegistersMeanwhile", false},

	{"the wait is too short", []Defect{{File: followFile,
		Old: `	waitFactor = 1.25
`,
		New: `	waitFactor = 0.95
`,
	}}, verification, "TestC23SilentNodeIsFenced", true},

	{"the wait is measured by the wall clock", []Defect{{File: followFile,
		Old: `	began := v.clock.now().mono
	outcome := BarrierFailed
`,
		New: `	began := time.Duration(v.clock.now().wall)
	outcome := BarrierFailed
`,
	}, {File: followFile,
		Old: `	v.lineage.note(c.Timeline, false, began)
`,
		New: `	v.lineage.note(c.Timeline, false, v.clock.now().mono)
`,
	}, {File: followFile,
		Old: `		if now-began >= wait {
`,
		New: `		now = time.Duration(v.clock.now().wall)
		if now-began >= wait {
`,
	}, {File: followFile,
		Old: `v.lineage.settles(st.Timeline, now, wait) {
				v.settle(ctx, st.Timeline)`,
		New: `v.lineage.settles(st.Timeline, v.clock.now().mono, wait) {
				v.settle(ctx, st.Timeline)`,
	}}, verification, "TestC23TheWaitFollowsNoWallClock", true},

	{"nobody is fenced", []Defect{{File: followFile,
		Old: `	fenced, err := v.cfg.Feed.Fence(ctx, c)
`,
		New: `	fenced, err := []string(nil), error(nil)
`,
	}}, verification, "TestC23SilentNodeIsFenced", true},

	{"revisions are drawn from a sequence", []Defect{{File: "internal/sqlstore/migrations/postgres/00002_lineage.sql",
		Old: `CREATE TABLE lineage (`,
		New: `CREATE SEQUENCE revisions;
CREATE TABLE lineage (`,
	}, {File: writeFile,
		Old: `	err = s.locked(ctx, s.transact, bumpMeta, first, func(ctx context.Context, t *writeTx) error {
`,
		New: `	var drawn int64
	if err := s.writer.QueryRowContext(ctx, "SELECT nextval('revisions')").Scan(&drawn); err != nil {
		return keys.Commit{}, err
	}
	err = s.locked(ctx, s.transact, lockMeta, first, func(ctx context.Context, t *writeTx) error {
		t.before, t.state.revision = t.state.revision, drawn
`,
	}, {File: writeFile,
		Old: `	keyID, box := t.signer.SealState(`,
		New: `	t.state.revision = max(t.state.revision, t.before)
	if _, err := t.q.ExecContext(context.Background(), "UPDATE meta SET revision = $1 WHERE one = 1", t.state.revision); err != nil {
		return err
	}
	keyID, box := t.signer.SealState(`,
	}, {File: writeFile,
		Old: `	state state // as finish will seal it
`,
		New: `	state state // as finish will seal it
	before int64 // the highest revision so far
`,
	}}, store, "TestStoreSuite/postgres/Feed/Changes_and_writers", false},

	{"a repeated revoke writes nothing", []Defect{{File: manageFile,
		Old: `	err = s.write(ctx, c, ActRevoke, id, func(`,
		New: `	if k, err := s.cfg.Store.Key(ctx, id); err == nil && k.OrganizationID == c.Principal.OrganizationID && k.State == StateRevoked {
		return k, nil
	}
	err = s.write(ctx, c, ActRevoke, id, func(`,
	}}, domain, "TestC21Revoke/sqlite", false},

	{"a reload clears the table that answers", []Defect{{File: followFile,
		Old: `	v.closeView()
	v.flush(ctx) // the uses go with the index they are noted in
`,
		New: `	held := v.view.Load()
	v.flush(ctx) // the uses go with the index they are noted in
	v.view.Store(&view{index: newIndex(v.cfg.Feed.SetElement), applied: held.applied, proven: true, lease: held.lease})
`,
	}}, verification, "TestI2RestoredBackup", true},

	{"changes are read when announced, and not polled for", []Defect{{File: followFile,
		Old: `			case <-next:
			case <-ctx.Done():
			}
			waits = false`,
		New: `			case <-ctx.Done():
			}
			_ = next
			waits = false`,
	}}, verification, "TestP1LostAnnouncementCostsAPoll", true},

	{"reads go to a standby", []Defect{{File: connectorFile,
		Old: `	case string(row[1]) != "0":
`,
		New: `	case s.gucs[len(s.gucs)-1].value == "30s":
	case string(row[1]) != "0":
`,
	}}, store, "TestC23NothingIsReadFromAStandby", false},

	{"SQLite's synchronous is NORMAL", []Defect{{File: sqliteFile,
		Old: `"_pragma=synchronous(full)"`,
		New: `"_pragma=synchronous(normal)"`,
	}}, store, "TestP7PowerLoss", false},

	{"a kept answer is given out after the revoke", []Defect{{File: manageFile,
		Old: `		if err := tx.EraseReplays(ctx, k.ID); err != nil {
			return err
		}
		k.Revision = tx.Revision()`,
		New: `		k.Revision = tx.Revision()`,
	}, {File: issueFile,
		Old: ` || kept.Sealed == nil || Judge(k.Lifecycle(), true, now) != Valid {`,
		New: ` || kept.Sealed == nil {`,
	}}, domain, "TestC16ResultGone/sqlite", false},

	{"a reload drops the tombstones", []Defect{{File: followFile,
		Old: `if kept, lost := ix.keepRevoked(held.index); kept > 0 {`,
		New: `if kept, lost := 0, []string(nil); kept > 0 {`,
	}}, verification, "TestI2RestoredBackup", true},

	{"WARNING 01000 is taken for success", []Defect{{File: transactionFile,
		Old: `	case committed && warned(tx.conn):
		return errWarned
`,
		New: ``,
	}}, store, "TestC23ACancelledSynchronousCommit", false},

	{"a write is answered early on a timeline that is not settled", []Defect{{File: followFile,
		Old: `st.Behind == 0 && st.Own && v.lineage.trusts(st.Timeline, now, wait) {`,
		New: `st.Behind == 0 && st.Own {`,
	}}, verification, "TestC23NewTimelineIsWaitedFor", true},

	{"the writer's own row is not asked for", []Defect{{File: followFile,
		Old: `st.Behind == 0 && st.Own && v`,
		New: `st.Behind == 0 && v`,
	}}, verification, "TestC23OwnRowIsAskedFor", false},

	{"memory is acknowledged without being compared", []Defect{{File: indexFile,
		Old: `	return ix.set.sum == authentic, nil`,
		New: `	return true, nil`,
	}}, verification, "TestV8RowKeptFromANode", true},

	{"a memory that differs is answered from", []Defect{{File: followFile,
		Old: `func(next *view) { next.distrusted = true })`,
		New: `func(*view) {})`,
	}}, verification, "TestV8RowKeptFromANode", true},

	{"a scrub does not look at what memory holds", []Defect{{File: followFile,
		Old: `	case row != rowName{}:
`,
		New: `	case false:
`,
	}}, verification, "TestV8ScrubComparesMemory", false},

	{"a database is loaded whose audit log is broken", []Defect{{File: snapshotFile,
		Old: `		if err := s.checkChain(ctx, tx, st); err != nil {
			return err
		}
`,
		New: ``,
	}}, store, "TestV8NothingIsLoadedOverABrokenLog", false},

	{"an organization is written whose entry was removed", []Defect{{File: writeFile,
		Old: `	if r.Revision <= logged || r.mangled ||
`,
		New: `	if r.Revision != 0 || r.mangled ||
`,
	}}, store, "TestV8WriteOfARowWhoseEntryWasRemoved", false},

	{"a fence asks for no history", []Defect{{File: feedFile,
		Old: `		if !has {
			return keys.ErrDiverged
		}
`,
		New: ``,
	}}, store, "TestC23AWriteThatIsNotHere", false},

	{"the nodes are counted in a history without the write", []Defect{{File: feedFile,
		Old: `	if err == nil && !has {
`,
		New: `	if false {
`,
	}}, store, "TestC23AWriteThatIsNotHere", false},

	{"a late renewal lowers the row", []Defect{{File: sqlFile,
		Old: `WHERE node_id = $2 AND applied <= $1 AND $1 =`,
		New: `WHERE node_id = $2 AND $1 =`,
	}}, store, "TestC23ALateRenewalLowersNothing", false},

	{"the version gate is ignored", []Defect{{File: sqlFile,
		Old: `			AND $5 >= (SELECT protocol FROM lineage)
`,
		New: `			AND $5 >= CAST(0 AS BIGINT)
`,
	}}, store, "TestC23VersionGate", false},

	{"who listens is taken to hear", []Defect{{File: listenFile,
		Old: `return e.silence(now) < hearingLasts }`,
		New: `return true }`,
	}}, verification, "TestP1AnnouncementsAreProvenBeforeTheyAreReliedOn", false},

	{"memory answers for a revision it does not have", []Defect{{File: verifyFile,
		Old: `held != nil && held.applied.Revision >= r.MinRevision {`,
		New: `held != nil {`,
	}}, verification, "TestC23RevisionToken", false},

	{"nobody reads what a verification waits for", []Defect{{File: verifyFile,
		Old: `		v.asked.Store(minRevision)
`,
		New: ``,
	}}, verification, "TestC23RevisionToken", false},

	{"a node registers again under its old id", []Defect{{File: followFile,
		Old: `		node.ID = rand.Text()
`,
		New: `		node.ID = rand.Text()
		if id := v.node.Load(); id != nil {
			node.ID = *id
		}
`,
	}}, verification, "TestC23EachRegistrationHasItsOwnID", false},

	{"a node that leaves gives its row back before it stops answering", []Defect{{File: followFile,
		Old: `	v.closeView()
	_ = bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return v.cfg.Feed.Leave(ctx, nodeID) })
`,
		New: `	_ = bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return v.cfg.Feed.Leave(ctx, nodeID) })
	v.closeView()
`,
	}}, verification, "TestR5LeaveClosesTheViewFirst", false},

	{"a node signs under the first key of its file", []Defect{{File: writeFile,
		Old: `t.s.ring.Signer(t.meta.keyID)`,
		New: `t.s.ring.Signer(t.s.ring.Wanted())`,
	}}, store, "TestR10TheDatabaseNamesTheKey", false},

	{"the master key is switched without a look at the nodes", []Defect{{File: masterKeysFile,
		Old: `		if len(lacking) > 0 {
`,
		New: `		if false {
`,
	}}, store, "TestR10SwitchWaitsForEveryNode", false},

	{"a missing master key is taken for a forgery", []Defect{{File: rowsFile,
		Old: `	if errors.Is(err, seal.ErrUnknownKey) {
		return keys.Key{}, fmt.Errorf("sqlstore: key %s: %w", r.ID, err)
	}
`,
		New: `	_ = fmt.Errorf
`,
	}}, store, "TestR10UnknownKeyIsNeverForged", false},

	{"a lease is renewed without the master key", []Defect{{File: sqlFile,
		Old: `
			AND position(' ' || (SELECT state_key_id FROM meta WHERE one = 1) || ':' IN master_keys) > 0`,
		New: ``,
	}}, store, "TestR10NoLeaseWithoutTheKey", false},
}

// Every error still fits the source, the changed source is Go, and the test that is to find it is there. Whether it does
// find it takes minutes: the build tag defects.
func TestEveryDefectFits(t *testing.T) {
	root, err := moduleFolder()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]map[string]bool{}
	names := map[string]bool{}
	for _, s := range list {
		if names[s.name] {
			t.Errorf("two are called %q", s.name)
		}
		names[s.name] = true
		folder := t.TempDir()
		if _, err := write(root, folder, s.named()); err != nil {
			t.Error(err)
			continue
		}
		changed, err := filepath.Glob(filepath.Join(folder, "*", "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range changed {
			if _, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		if tests[s.room] == nil {
			tests[s.room] = testsIn(t, filepath.Join(root, filepath.FromSlash(s.room)))
		}
		if test, _, _ := strings.Cut(s.test, "/"); !tests[s.room][test] {
			t.Errorf("%s: there is no %s in %s", s.name, test, s.room)
		}
	}
}

// testsIn returns the names of the functions in a folder's test files.
func testsIn(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, path := range files {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				names[f.Name.Name] = true
			}
		}
	}
	return names
}
