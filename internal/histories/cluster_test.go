package histories

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// The times of the protocol as the nodes are started with them (DESIGN.md, "Lease, acknowledge, or wait").
const (
	lease = 2 * time.Second
	wait  = lease*5/4 + 50*time.Millisecond // of a writer, for a node that is silent
	poll  = 100 * time.Millisecond          // between two looks of a node that hears no announcements
)

// cluster is a PostgreSQL, or a primary with its standby, and several nodes over it. Between each node and each server there is a
// proxy of its own.
type cluster struct {
	tb      testing.TB
	servers []*pgtest.Server
	primary atomic.Pointer[pgtest.Server] // as things stand
	dir     string                        // with the master keys and the issuer, which is everybody's
	issuer  *identity.DevIssuer
	options keywardtest.Options
	nodes   []*node

	processes atomic.Int32 // started so far
}

// node is a place where one process after the other runs.
type node struct {
	index   int
	proxy   *faultproxy.Proxy   // before the first server
	proxies []*faultproxy.Proxy // before each
	args    []string
	current atomic.Pointer[process]
}

// process is one of them, which may have ended.
type process struct {
	*keywardtest.Process
	number int32
	client *http.Client
}

// newCluster starts count nodes over servers, of which the first is the primary. Environment, build tags and overlay of the options
// are for each node, and their Dir may hold master key files.
func newCluster(tb testing.TB, options keywardtest.Options, count int, servers ...*pgtest.Server) *cluster {
	tb.Helper()
	tb = repeatFailures(tb)
	c := &cluster{tb: tb, servers: servers, dir: cmp.Or(options.Dir, tb.TempDir()), options: options}
	c.primary.Store(servers[0])
	var err error
	if c.issuer, err = identity.OpenDevIssuer(c.dir); err != nil {
		tb.Fatal(err)
	}
	for range count {
		n := c.newNode()
		c.start(n)
		c.ready(n)
	}
	return c
}

// failures are what a test fails with. The logs of its many processes come after them and hide them, so they are said again.
type failures struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func repeatFailures(tb testing.TB) testing.TB {
	f := &failures{TB: tb}
	tb.Cleanup(func() { // after the processes' own, which are asked for later
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, what := range f.said {
			tb.Log("FAILED: " + what)
		}
	})
	return f
}

func (f *failures) keep(what string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, what)
	return what
}

// Error implements testing.TB.
func (f *failures) Error(args ...any) {
	f.TB.Helper()
	f.TB.Error(f.keep(strings.TrimSuffix(fmt.Sprintln(args...), "\n")))
}

// Errorf implements testing.TB.
func (f *failures) Errorf(format string, args ...any) {
	f.TB.Helper()
	f.TB.Error(f.keep(fmt.Sprintf(format, args...)))
}

// Fatal implements testing.TB.
func (f *failures) Fatal(args ...any) {
	f.TB.Helper()
	f.TB.Fatal(f.keep(strings.TrimSuffix(fmt.Sprintln(args...), "\n")))
}

// Fatalf implements testing.TB.
func (f *failures) Fatalf(format string, args ...any) {
	f.TB.Helper()
	f.TB.Fatal(f.keep(fmt.Sprintf(format, args...)))
}

// newNode adds a place for a node, where nothing runs yet.
func (c *cluster) newNode() *node {
	c.tb.Helper()
	n := &node{index: len(c.nodes)}
	var hosts []string
	for _, s := range c.servers {
		p := faultproxy.New(c.tb, s.Address())
		n.proxies = append(n.proxies, p)
		hosts = append(hosts, p.Address())
	}
	n.proxy = n.proxies[0]
	n.args = keywardtest.ServeArgs(c.tb, keywardtest.Options{
		Dir:         c.dir,
		DatabaseURL: "postgres://postgres@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable&target_session_attrs=read-write",
		Flags:       []string{"--lease=" + lease.String(), "--master-key-file=" + c.keyFile(n.index)},
	})
	c.copyMasterKey(n.index)
	c.nodes = append(c.nodes, n)
	return n
}

// keyFile is the master key file of a node.
func (c *cluster) keyFile(index int) string {
	return filepath.Join(c.dir, fmt.Sprintf("master-%d.key", index))
}

// copyMasterKey gives a node that has no master key file a copy of the common one.
func (c *cluster) copyMasterKey(index int) {
	c.tb.Helper()
	common, err := os.ReadFile(filepath.Join(c.dir, "master.key"))
	if err != nil {
		c.tb.Fatal(err)
	}
	if _, err := os.Stat(c.keyFile(index)); errors.Is(err, fs.ErrNotExist) {
		writeKeys(c.tb, c.keyFile(index), string(common))
	}
}

// start starts a node's process, which is not ready yet. It is for the test's own goroutine.
func (c *cluster) start(n *node, environment ...string) {
	c.tb.Helper()
	o := c.options
	o.Dir, o.Args, o.NotReady = c.dir, n.args, true
	o.Env = slices.Concat(o.Env, environment)
	n.current.Store(&process{
		Process: keywardtest.Start(c.tb, o), number: c.processes.Add(1),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 300, IdleConnTimeout: 10 * time.Second}},
	})
}

func (c *cluster) ready(n *node) {
	c.tb.Helper()
	n.current.Load().WaitReady(c.tb)
}

// restart ends a node's process with SIGKILL and starts another in its place.
func (c *cluster) restart(n *node, environment ...string) {
	c.tb.Helper()
	n.current.Load().Kill()
	c.start(n, environment...)
}

// freeze stops a node's process where it is, and thaw lets it go on.
func (c *cluster) freeze(n *node) { n.current.Load().Signal(c.tb, syscall.SIGSTOP) }
func (c *cluster) thaw(n *node)   { n.current.Load().Signal(c.tb, syscall.SIGCONT) }

// heal ends every fault of the network and waits until all nodes are ready.
func (c *cluster) heal() {
	c.tb.Helper()
	for _, n := range c.nodes {
		for _, p := range n.proxies {
			p.CutAtCommit(0)
			p.Set(faultproxy.Fault{})
		}
	}
	for _, n := range c.nodes {
		c.ready(n)
	}
}

// query runs a statement on a connection of its own, past the proxies, and calls row for each row.
func (c *cluster) query(statement string, row func(pgx.Rows) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.primary.Load().URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// watchActive looks until ctx ends whether an organization has two active keys (C12, F25), and returns those it saw.
func (c *cluster) watchActive(ctx context.Context) (twice []string, looks int) {
	for pause(ctx, 100*time.Millisecond) {
		err := c.query(`SELECT organization_id FROM keys WHERE state = 'active' GROUP BY 1 HAVING count(*) > 1`, func(r pgx.Rows) error {
			values, err := r.Values()
			if err == nil {
				twice = append(twice, values[0].(string))
			}
			return err
		})
		if err == nil { // the database is one of the things that break
			looks++
		}
	}
	return twice, looks
}

// severListeners ends the database connections on which nodes wait for announcements, and returns how many.
func (c *cluster) severListeners() (count int, err error) {
	err = c.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query ILIKE 'listen%'`,
		func(pgx.Rows) error { count++; return nil })
	return count, err
}

// writeStandsStill reports whether a client has left a transaction where it is for a while.
func (c *cluster) writeStandsStill() (found bool) {
	err := c.query(`SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND state_change < clock_timestamp() - interval '200 ms'`,
		func(pgx.Rows) error { found = true; return nil })
	return found && err == nil
}

// pause waits and reports whether ctx is still going.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// latencies collects how long something took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

func (l *latencies) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// quantile returns the least time that a share of the samples did not exceed, 0 when there are none.
func (l *latencies) quantile(share float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l.all))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

// silent reports whether err means that nothing was answered, as opposed to a mistake of the test.
func silent(err error) bool {
	return err != nil && !errors.Is(err, http.ErrSchemeMismatch) && !strings.Contains(err.Error(), "unsupported protocol")
}
