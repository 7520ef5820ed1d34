// Package clients measures what the Go client, the middleware and the gRPC interceptor cost, each beside its floor.
package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/keywardgrpc"
	"github.com/syncgram/keyward/token"
)

const (
	callers = 16
	turn    = 200 * time.Millisecond
)

// pair is one thing to do by way of Keyward's package, and its floor: the same exchange by hand, with nothing decided.
type pair struct {
	name           string
	keyward, floor func(context.Context) error
}

// pairs are:
//
//   - verify: Client.Verify; floor: a net/http client that encodes the same question, posts it and decodes the answer.
//   - middleware: a request to a handler behind Middleware; floor: a request to a handler that does verify's floor.
//   - grpc: a call to a handler behind the interceptor; floor: a call to a handler that does verify's floor.
//
// The server that is asked is the same for both: net/http and a handler that writes a ready verdict. What Keyward's own server costs is
// measured in bench/load.
func pairs(tb testing.TB) []pair {
	format, err := token.NewFormat("sk")
	if err != nil {
		tb.Fatal(err)
	}
	drawn, err := format.Generate(token.Live)
	if err != nil {
		tb.Fatal(err)
	}
	secret := drawn.Reveal()
	enabled, expiry := true, "2031-02-03T04:05:06Z"
	verdict, err := json.Marshal(api.Verdict{
		Valid: true, Reason: "valid", APIKeyID: "key_01hm6q9zt0e5v8s3d7k2x4w1np", OrganizationID: "org_demo", Env: "live",
		KeyName: "Production key", ExpiresAt: &expiry, PaymentsEnabled: &enabled,
	})
	if err != nil {
		tb.Fatal(err)
	}
	asked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(verdict) // a client that is gone shows in its own count
	}))
	tb.Cleanup(asked.Close)

	client, err := keyward.New(keyward.Config{Addresses: []string{asked.URL}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	byHand := newClient(tb)
	exchange := func(ctx context.Context) error {
		question, err := json.Marshal(api.VerifyKey{Key: secret})
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, asked.URL+"/v1/verify", bytes.NewReader(question))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		var v api.Verdict
		return exchanged(byHand, req, func(body []byte) error { return json.Unmarshal(body, &v) })
	}
	return []pair{
		{"verify", func(ctx context.Context) error {
			v, err := client.Verify(ctx, keyward.VerifyRequest{Secret: secret})
			if err == nil && !v.Valid {
				err = errors.New("refused")
			}
			return err
		}, exchange},
		{"middleware", overHTTP(tb, secret, keyward.Middleware(client)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := keyward.FromContext(r.Context()); !ok {
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))), overHTTP(tb, secret, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if exchange(r.Context()) != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))},
		{"grpc", overGRPC(tb, secret, func(ctx context.Context) error {
			if _, ok := keyward.FromContext(ctx); !ok {
				return errors.New("no identity")
			}
			return nil
		}, grpc.UnaryInterceptor(keywardgrpc.UnaryServerInterceptor(client))), overGRPC(tb, secret, exchange)},
	}
}

// newClient is a net/http client that keeps its connections.
func newClient(tb testing.TB) *http.Client {
	t := &http.Transport{MaxIdleConnsPerHost: 2 * callers}
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func exchanged(c *http.Client, req *http.Request, read func([]byte) error) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return read(body)
}

// overHTTP serves a handler and returns a request to it.
func overHTTP(tb testing.TB, secret string, h http.Handler) func(context.Context) error {
	server := httptest.NewServer(h)
	tb.Cleanup(server.Close)
	client := newClient(tb)
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/payments", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		return exchanged(client, req, func([]byte) error { return nil })
	}
}

// checked is a gRPC service of one method.
type checked struct {
	*health.Server
	check func(context.Context) error
}

func (c checked) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return &grpc_health_v1.HealthCheckResponse{}, c.check(ctx)
}

// overGRPC serves a handler and returns a call of it.
func overGRPC(tb testing.TB, secret string, check func(context.Context) error, opts ...grpc.ServerOption) func(context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	grpc_health_v1.RegisterHealthServer(server, checked{health.NewServer(), check})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	tb.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	client := grpc_health_v1.NewHealthClient(conn)
	return func(ctx context.Context) error {
		_, err := client.Check(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+secret), &grpc_health_v1.HealthCheckRequest{})
		return err
	}
}

func TestPairsWork(t *testing.T) {
	for _, p := range pairs(t) {
		for name, do := range map[string]func(context.Context) error{"keyward": p.keyward, "floor": p.floor} {
			if err := do(t.Context()); err != nil {
				t.Errorf("%s, %s: %v", p.name, name, err)
			}
		}
	}
}

// BenchmarkClients does b.N turns of each, by turns, and neither is always the first. ratio is the median, over the turns, of Keyward's throughput
// over the floor's; cpu-ratio the floor's processor time for a request over Keyward's, which other programs disturb less.
func BenchmarkClients(b *testing.B) {
	for _, p := range pairs(b) {
		b.Run(p.name, func(b *testing.B) {
			var both [2][]figures // of Keyward, of the floor
			for i := range b.N {
				for _, who := range [2]int{i % 2, 1 - i%2} {
					both[who] = append(both[who], measure(b, [2]func(context.Context) error{p.keyward, p.floor}[who]))
				}
			}
			var ratios, cpu []float64
			var rate, used [2]float64
			for i := range b.N {
				k, f := both[0][i], both[1][i]
				ratios, cpu = append(ratios, k.perSecond/f.perSecond), append(cpu, f.cpu/k.cpu)
				for who, x := range [2]figures{k, f} {
					rate[who] += x.perSecond / float64(b.N)
					used[who] += x.cpu / float64(b.N)
				}
			}
			slices.Sort(ratios)
			slices.Sort(cpu)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			b.ReportMetric(ratios[len(ratios)/10], "ratio-p10")
			b.ReportMetric(ratios[len(ratios)*9/10], "ratio-p90")
			b.ReportMetric(cpu[len(cpu)/2], "cpu-ratio")
			b.ReportMetric(rate[0], "req/s")
			b.ReportMetric(rate[1], "floor-req/s")
			b.ReportMetric(used[0], "cpu-µs/req")
			b.ReportMetric(used[1], "floor-cpu-µs/req")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// figures are those of one turn.
type figures struct{ perSecond, cpu float64 }

// measure keeps callers busy for a turn.
func measure(b *testing.B, do func(context.Context) error) figures {
	var count atomic.Int64
	var group sync.WaitGroup
	began, used := time.Now(), processorTime(b)
	for range callers {
		group.Go(func() {
			for time.Since(began) < turn {
				if err := do(b.Context()); err != nil {
					b.Error(err)
					return
				}
				count.Add(1)
			}
		})
	}
	group.Wait()
	n := float64(count.Load())
	return figures{n / time.Since(began).Seconds(), float64((processorTime(b) - used).Microseconds()) / n}
}

// processorTime is what this process, both ends of every connection, has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
