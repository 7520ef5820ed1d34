package doors

import (
	"context"
	"net"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/keywardgrpc"
)

// calls is the health service, which needs no generated code of our own, with a handler that keeps whose key it was given.
type calls struct {
	*health.Server
	last atomic.Pointer[identity]
}

// Check implements grpc_health_v1.HealthServer.
func (c *calls) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	id, _ := keyward.FromContext(ctx)
	c.last.Store(&identity{id.OrganizationID, id.Env, id.APIKeyID, id.ConnectedAccountID, id.PaymentsEnabled})
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// interceptors returns the door that a gRPC service has, for keys of either environment and for live ones.
func (p *platform) interceptors(client *keyward.Client) func(request, int) (answer, error) {
	p.t.Helper()
	services := map[string]*calls{}
	clients := map[string]grpc_health_v1.HealthClient{}
	for env, options := range map[string][]keywardgrpc.Option{"": nil, keyward.Live: {keywardgrpc.WithEnv(keyward.Live)}} {
		services[env] = &calls{Server: health.NewServer()}
		server := grpc.NewServer(grpc.ChainUnaryInterceptor(keywardgrpc.UnaryServerInterceptor(client, options...)))
		grpc_health_v1.RegisterHealthServer(server, services[env])
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			p.t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(l) // ended by Stop
		}()
		p.t.Cleanup(func() { server.Stop(); <-done })
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { conn.Close() })
		clients[env] = grpc_health_v1.NewHealthClient(conn)
	}
	return func(r request, _ int) (answer, error) {
		if r.query != "" {
			return answer{word: none}, nil // a call has no query
		}
		ctx := p.t.Context()
		for name, values := range r.header {
			if strings.ContainsAny(name, "!~|") { // no gRPC client sends these
				continue
			}
			for _, v := range values {
				ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(name), v)
			}
		}
		services[r.env].last.Store(nil)
		_, err := clients[r.env].Check(ctx, nil)
		a := answer{word: status.Code(err).String(), accepted: err == nil}
		if last := services[r.env].last.Load(); last != nil {
			a.identity = *last
		}
		return a, nil
	}
}
