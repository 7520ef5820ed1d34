// Package cluster measures what a write costs when several nodes have to show it before it is answered. See bench/README.md.
package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
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

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/faultproxy"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	defer pgtest.ReapAll()
	return keywardtest.Main(m)
}

// durable is a PostgreSQL that waits for its disk, as a real one does.
var durable = []string{"fsync=on", "full_page_writes=on", "max_connections=500", "shared_buffers=128MB"}

// quantile returns the least value that a share of the samples does not exceed.
func quantile(samples []time.Duration, share float64) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// cluster is nodes in processes of their own.
type cluster struct {
	server *pgtest.Server
	nodes  []*keywardtest.Process
	dir    string
	client http.Client
}

// newCluster starts nodes. When announced is false no announcement reaches any of them.
func newCluster(b *testing.B, nodes int, announced bool, lease time.Duration) *cluster {
	c := &cluster{server: pgtest.NewServer(b, durable...), dir: b.TempDir()}
	proxy := faultproxy.New(b, c.server.Address())
	proxy.Set(faultproxy.Fault{DropNotifications: !announced})
	url := c.server.URL()
	if !announced {
		url = strings.Replace(url, c.server.Address(), proxy.Address(), 1)
	}
	for range nodes {
		c.nodes = append(c.nodes, keywardtest.Start(b, keywardtest.Options{
			Dir: c.dir, DatabaseURL: url, Flags: []string{"--lease=" + lease.String()},
		}))
	}
	if announced { // until they rely on it
		for _, n := range c.nodes {
			if err := keywardtest.Poll(func() bool { return c.metric(b, n, "keyward_announcements_heard") == "1" }, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	return c
}

// metric returns the value of a metric without labels.
func (c *cluster) metric(b *testing.B, n *keywardtest.Process, name string) string {
	resp, err := c.client.Get(n.Admin + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// post sends a management request and returns the answer.
func (c *cluster) post(b *testing.B, n *keywardtest.Process, path, userToken, body string) (answer api.IssuedKey) {
	b.Helper()
	req, err := http.NewRequest(http.MethodPost, n.Public+"/api/v1/auth/api-keys"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+userToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		b.Fatalf("%s: %s", resp.Status, text)
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		b.Fatal(err)
	}
	return answer
}

// stocked is a key and the token of the user who may revoke it.
type stocked struct{ id, userToken string }

// stock makes keys, each of an organization of its own.
func (c *cluster) stock(b *testing.B, count int) (made []stocked) {
	for i := range count {
		organization := fmt.Sprintf("org_%s_%d", rand.Text()[:8], i)
		n := c.nodes[i%len(c.nodes)]
		s := stocked{userToken: n.Token(b, "user_"+organization, organization)}
		s.id = c.post(b, n, "", s.userToken, `{"key_name":"n"}`).APIKeyID
		made = append(made, s)
	}
	return made
}

func (c *cluster) revoke(b *testing.B, n *keywardtest.Process, key stocked) time.Duration {
	began := time.Now()
	c.post(b, n, "/"+key.id+"/revoke", key.userToken, "")
	return time.Since(began)
}

// A revoke over HTTP, from its request to its answer: when every node refuses the key. The floor beside it is the least that any
// revoke on this database costs, one commit of one row.
func BenchmarkRevoke(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		for _, announced := range []bool{true, false} {
			b.Run(fmt.Sprintf("nodes=%d/announced=%t", nodes, announced), func(b *testing.B) {
				c := newCluster(b, nodes, announced, 10*time.Second)
				conn, err := pgx.Connect(b.Context(), c.server.URL())
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close(context.Background())
				if _, err := conn.Exec(b.Context(), "CREATE TABLE floor (n bigint); INSERT INTO floor VALUES (0)"); err != nil {
					b.Fatal(err)
				}
				made := c.stock(b, b.N)
				var took, floor []time.Duration
				b.ResetTimer()
				for i := range made {
					began := time.Now()
					if _, err := conn.Exec(b.Context(), "UPDATE floor SET n = n + 1"); err != nil {
						b.Fatal(err)
					}
					floor = append(floor, time.Since(began))
					took = append(took, c.revoke(b, c.nodes[i%nodes], made[i]))
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(milliseconds(quantile(took, 0.5)), "p50-ms")
				b.ReportMetric(milliseconds(quantile(took, 0.99)), "p99-ms")
				b.ReportMetric(milliseconds(quantile(floor, 0.5)), "commit-p50-ms")
				b.ReportMetric(milliseconds(quantile(floor, 0.99)), "commit-p99-ms")
			})
		}
	}
}

// A node that stands still: the write that meets it waits once, the next does not.
func BenchmarkFrozenNode(b *testing.B) {
	const lease = 2 * time.Second
	c := newCluster(b, 3, true, lease)
	made := c.stock(b, 2*b.N)
	var first, next []time.Duration
	b.ResetTimer()
	for i := range b.N {
		c.nodes[2].Signal(b, syscall.SIGSTOP)
		first = append(first, c.revoke(b, c.nodes[0], made[2*i]))
		next = append(next, c.revoke(b, c.nodes[1], made[2*i+1]))
		c.nodes[2].Signal(b, syscall.SIGCONT)
		c.nodes[2].WaitReady(b)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(lease), "lease-ms")
	b.ReportMetric(milliseconds(slices.Max(first)), "first-max-ms")
	b.ReportMetric(milliseconds(quantile(next, 0.5)), "next-p50-ms")
	b.ReportMetric(milliseconds(slices.Max(next)), "next-max-ms")
}

// many is nodes in this process over one PostgreSQL.
type many struct {
	server *pgtest.Server
	stores []*sqlstore.Store
	nodes  []*verify.Verifier
	format token.Format
}

const nodesPerStore = 10 // they share its connections, as those of one process would

func newMany(b *testing.B, nodes int) *many {
	m := &many{server: pgtest.NewServer(b, durable...)}
	path := filepath.Join(b.TempDir(), "master.key")
	keywardtest.WriteMasterKey(b, path)
	ring, err := seal.Load(path)
	if err != nil {
		b.Fatal(err)
	}
	if m.format, err = token.NewFormat("sk"); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var following sync.WaitGroup
	b.Cleanup(func() {
		stop()
		following.Wait()
		for _, s := range m.stores {
			s.Close()
		}
	})
	for i := range nodes {
		if i%nodesPerStore == 0 {
			s, err := sqlstore.Open(ctx, sqlstore.Options{URL: m.server.URL(), Ring: ring, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			m.stores = append(m.stores, s)
		}
		v, err := verify.New(verify.Config{Feed: m.stores[len(m.stores)-1], Format: m.format})
		if err != nil {
			b.Fatal(err)
		}
		m.nodes = append(m.nodes, v)
		following.Go(func() { v.Run(ctx) })
	}
	for _, v := range m.nodes {
		if err := keywardtest.Poll(func() bool { return v.Ready() == nil && v.Stats().Announced }, nil); err != nil {
			b.Fatal(err)
		}
	}
	return m
}

// create writes a key and waits until every node shows it.
func (m *many) create(b *testing.B, i int) (secret string, id string) {
	s, err := m.format.Generate(keys.Test)
	if err != nil {
		b.Fatal(err)
	}
	id = "key_" + rand.Text()
	commit, err := m.stores[i%len(m.stores)].Write(b.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
		if err := tx.InsertKey(ctx, keys.Key{
			ID: id, OrganizationID: "org_" + id, Environment: keys.Test, Digest: s.Digest(), Hint: s.Hint(), Name: "n", CreatedAt: tx.Now(), State: keys.StateActive,
		}); err != nil {
			return err
		}
		return m.audit(ctx, tx, keys.ActCreate, id)
	})
	if err == nil {
		err = m.nodes[i%len(m.nodes)].Await(b.Context(), commit)
	}
	if err != nil {
		b.Fatal(err)
	}
	return s.Reveal(), id
}

func (m *many) audit(ctx context.Context, tx keys.Tx, action keys.Action, id string) error {
	return tx.Audit(ctx, keys.AuditEntry{Actor: "bench", Action: action, TargetID: id, Outcome: keys.Done, Revision: tx.Revision()})
}

// renewalsIn counts the renewals of all nodes in a while.
func (m *many) renewalsIn(b *testing.B, d time.Duration) (perSecond float64) {
	conn, err := pgx.Connect(b.Context(), m.server.URL())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	count := func() (n int64) {
		// A backend tells of what it did within a second.
		if err := conn.QueryRow(b.Context(), "SELECT pg_sleep(1.2), n_tup_upd FROM pg_stat_user_tables WHERE relname = 'serving_nodes'").Scan(nil, &n); err != nil {
			b.Fatal(err)
		}
		return n
	}
	before, began := count(), time.Now()
	<-time.After(d)
	return float64(count()-before) / time.Since(began).Seconds()
}

// mostRenewals is how many renewals a second the database can do, with eight at a time.
func (m *many) mostRenewals(b *testing.B, d time.Duration) float64 {
	var done atomic.Int64
	var all sync.WaitGroup
	deadline := time.Now().Add(d)
	for i := range 8 {
		s := m.stores[i%len(m.stores)]
		id := rand.Text()
		if err := s.Register(b.Context(), keys.Node{ID: id, Lease: time.Second}); err != nil {
			b.Fatal(err)
		}
		mark, _, err := s.Snapshot(b.Context(), keys.Visitor{Key: func(keys.Key) error { return nil }, Organization: func(keys.Organization) error { return nil }})
		if err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			for time.Now().Before(deadline) {
				if r, err := s.Renew(context.Background(), id, mark); err != nil || r.Outcome != keys.Renewed {
					b.Errorf("%+v, %v", r, err)
					return
				}
				done.Add(1)
			}
			_ = s.Leave(context.Background(), id)
		})
	}
	all.Wait()
	return float64(done.Load()) / d.Seconds()
}

// What a write costs as nodes grow, and what their renewals cost the database while nobody writes.
func BenchmarkNodes(b *testing.B) {
	for _, nodes := range []int{1, 3, 10, 30, 100} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			m := newMany(b, nodes)
			idle, most := m.renewalsIn(b, 10*time.Second), m.mostRenewals(b, 3*time.Second)
			var took []time.Duration
			b.ResetTimer()
			for i := range b.N {
				began := time.Now()
				m.create(b, i)
				took = append(took, time.Since(began))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(milliseconds(quantile(took, 0.5)), "write-p50-ms")
			b.ReportMetric(milliseconds(quantile(took, 0.99)), "write-p99-ms")
			b.ReportMetric(idle, "renewals/s")
			b.ReportMetric(most, "most-renewals/s")
			b.ReportMetric(100*idle/most, "share-%")
		})
	}
}

// Verifications in process on one of three nodes, in turns with and without 20 revokes a second beside them.
func BenchmarkVerifyBesideRevokes(b *testing.B) {
	m := newMany(b, 3)
	secret, _ := m.create(b, 0)
	type turn struct{ p50, p99 time.Duration }
	const length = 500 * time.Millisecond
	measure := func() turn {
		took := make([]time.Duration, 0, 1<<20)
		for until := time.Now().Add(length); ; {
			began := time.Now()
			verdict, err := m.nodes[0].Verify(b.Context(), verify.Request{Secret: secret})
			ended := time.Now()
			if err != nil || !verdict.Valid() {
				b.Fatalf("%s, %v", verdict.Reason, err)
			}
			took = append(took, ended.Sub(began))
			if ended.After(until) {
				return turn{quantile(took, 0.5), quantile(took, 0.99)}
			}
		}
	}
	var ids []string
	for i := range b.N * 20 {
		_, id := m.create(b, i)
		ids = append(ids, id)
	}
	b.ResetTimer()
	var quiet, busy []turn
	for range b.N {
		quiet = append(quiet, measure())
		stop := make(chan struct{})
		var revoking sync.WaitGroup
		revoking.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if len(ids) == 0 {
					continue
				}
				id := ids[0]
				ids = ids[1:]
				commit, err := m.stores[0].Write(b.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
					k, err := tx.Key(ctx, id)
					if err != nil {
						return err
					}
					k.State, k.RevokedAt = keys.StateRevoked, tx.Now()
					if err := tx.UpdateKey(ctx, k); err != nil {
						return err
					}
					return m.audit(ctx, tx, keys.ActRevoke, id)
				})
				if err == nil {
					err = m.nodes[1].Await(b.Context(), commit)
				}
				if err != nil {
					b.Error(err)
				}
			}
		})
		busy = append(busy, measure())
		close(stop)
		revoking.Wait()
	}
	middle := func(of []turn, part func(turn) time.Duration) float64 {
		var all []time.Duration
		for _, t := range of {
			all = append(all, part(t))
		}
		return float64(quantile(all, 0.5))
	}
	p50, p99 := func(t turn) time.Duration { return t.p50 }, func(t turn) time.Duration { return t.p99 }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(quiet, p50), "quiet-p50-ns")
	b.ReportMetric(middle(busy, p50), "busy-p50-ns")
	b.ReportMetric(middle(quiet, p99), "quiet-p99-ns")
	b.ReportMetric(middle(busy, p99), "busy-p99-ns")
	b.ReportMetric(middle(busy, p99)/middle(quiet, p99), "p99-ratio")
}
