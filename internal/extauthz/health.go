package extauthz

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// lookEvery is how often somebody who watches is told of a change.
const lookEvery = 100 * time.Millisecond

// health is grpc.health.v1: a node serves while it decides from memory, as /readyz says (R5). It is open to everyone, as that is.
type health struct {
	healthv1.UnimplementedHealthServer
	verifier Verifier
	stopped  chan struct{} // closed when the listener stops
	stop     func()
	watching atomic.Int64
}

func newHealth(v Verifier) *health {
	h := &health{verifier: v, stopped: make(chan struct{})}
	h.stop = sync.OnceFunc(func() { close(h.stopped) })
	return h
}

// of returns the status of a service: of the whole listener when it has no name.
func (h *health) of(service string) healthv1.HealthCheckResponse_ServingStatus {
	if service != "" && service != authv3.Authorization_ServiceDesc.ServiceName {
		return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	}
	select {
	case <-h.stopped:
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
	}
	if h.verifier.Ready() != nil {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	return healthv1.HealthCheckResponse_SERVING
}

// Check implements grpc.health.v1.Health.
func (h *health) Check(_ context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	s := h.of(r.GetService())
	if s == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Error(codes.NotFound, "no such service")
	}
	return &healthv1.HealthCheckResponse{Status: s}, nil
}

// Watch implements grpc.health.v1.Health.
func (h *health) Watch(r *healthv1.HealthCheckRequest, stream grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	defer h.watching.Add(-1)
	if h.watching.Add(1) > maxWatchers {
		return status.Error(codes.ResourceExhausted, "too many watchers")
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for told := healthv1.HealthCheckResponse_UNKNOWN; ; {
		if now := h.of(r.GetService()); now != told {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-h.stopped:
			if told == healthv1.HealthCheckResponse_SERVING {
				_ = stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}) // the stream ends either way
			}
			return status.Error(codes.Unavailable, "the listener stops")
		}
	}
}
