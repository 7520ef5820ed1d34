package cluster
import ("testing";"time";"context";"sync";"fmt";"path/filepath";"log/slog"
"github.com/syncgram/keyward/internal/keys"
"github.com/syncgram/keyward/internal/keywardtest"
"github.com/syncgram/keyward/internal/pgtest"
"github.com/syncgram/keyward/internal/seal"
"github.com/syncgram/keyward/internal/sqlstore"
"github.com/syncgram/keyward/internal/verify"
"github.com/syncgram/keyward/token"
)
type timed struct { *sqlstore.Store; mu *sync.Mutex; m map[string][]time.Duration }
func (t timed) add(n string, d time.Duration) { t.mu.Lock(); t.m[n]=append(t.m[n],d); t.mu.Unlock() }
func (t timed) Changes(ctx context.Context, a keys.Mark, l int) (keys.Changes, error) { b:=time.Now(); defer func(){t.add("changes",time.Since(b))}(); return t.Store.Changes(ctx,a,l) }
func (t timed) Renew(ctx context.Context, id string, a keys.Mark) (keys.Renewal, error) { b:=time.Now(); defer func(){t.add("renew",time.Since(b))}(); return t.Store.Renew(ctx,id,a) }
func (t timed) Standing(ctx context.Context, id string, c keys.Commit) (keys.Standing, error) { b:=time.Now(); defer func(){t.add("standing",time.Since(b))}(); return t.Store.Standing(ctx,id,c) }
func (t timed) Announce(ctx context.Context, r int64) error { b:=time.Now(); defer func(){t.add("announce",time.Since(b))}(); return t.Store.Announce(ctx,r) }
func BenchmarkSplit(b *testing.B) {
	server := pgtest.NewServer(b, durable...)
	path := filepath.Join(b.TempDir(), "master.key")
	keywardtest.WriteMasterKey(b, path)
	ring, _ := seal.Load(path)
	format, _ := token.NewFormat("sk")
	m := &many{server: server, format: format}
	var mu sync.Mutex
	rec := map[string][]time.Duration{}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func(){stop(); wg.Wait()})
	for range 3 {
		s, err := sqlstore.Open(ctx, sqlstore.Options{URL: server.URL(), Ring: ring, Logger: slog.New(slog.DiscardHandler)})
		if err != nil { b.Fatal(err) }
		m.stores = append(m.stores, s)
		v, err := verify.New(verify.Config{Feed: timed{s,&mu,rec}, Format: format})
		if err != nil { b.Fatal(err) }
		m.nodes = append(m.nodes, v)
		wg.Go(func(){ v.Run(ctx) })
	}
	for _, v := range m.nodes { if err := keywardtest.Poll(func() bool { return v.Ready()==nil && v.Stats().Announced }, nil); err != nil { b.Fatal(err) } }
	mu.Lock(); clear(rec); mu.Unlock()
	for i := range b.N {
		s, _ := format.Generate(keys.Test)
		id := "key_x" + time.Now().Format("150405.000000000")
		t0 := time.Now()
		c, err := m.stores[i%3].Write(b.Context(), func(ctx context.Context, tx keys.Tx) error {
			if err := tx.InsertKey(ctx, keys.Key{ID: id, OrganizationID: "org_" + id, Environment: keys.Test, Digest: s.Digest(), Hint: s.Hint(), Name: "n", CreatedAt: tx.Now(), State: keys.StateActive}); err != nil { return err }
			return m.audit(ctx, tx, keys.ActCreate, id)
		})
		if err != nil { b.Fatal(err) }
		t1 := time.Now()
		if err := m.nodes[i%3].Await(b.Context(), c); err != nil { b.Fatal(err) }
		t2 := time.Now()
		mu.Lock(); rec["write"]=append(rec["write"], t1.Sub(t0)); rec["await"]=append(rec["await"], t2.Sub(t1)); mu.Unlock()
		time.Sleep(5*time.Millisecond)
	}
	mu.Lock(); defer mu.Unlock()
	for n, d := range rec { fmt.Printf("%-10s n=%5d p10 %v p50 %v p90 %v\n", n, len(d), quantile(d,.1), quantile(d,.5), quantile(d,.9)) }
}
