package keywardgrpc_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/keywardgrpc"
)

// till stands in for a service of yours.
type till struct{ *health.Server }

func (till) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	identity, ok := keyward.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no key")
	}
	fmt.Println("hello", identity.OrganizationID, "in", identity.Env)
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func ExampleUnaryServerInterceptor() {
	// In a program this is keyward.New(keyward.Config{Addresses: …}).
	client := verifier(func(_ context.Context, r keyward.VerifyRequest) (keyward.Verdict, error) {
		if r.Secret != "good" {
			return keyward.Verdict{Reason: keyward.ReasonUnknown}, nil
		}
		return keyward.Verdict{Valid: true, Reason: keyward.ReasonValid, Identity: keyward.Identity{OrganizationID: "org_demo", Env: keyward.Live}}, nil
	})
	open := keywardgrpc.WithOpenMethods("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(keywardgrpc.UnaryServerInterceptor(client, open)),
		grpc.ChainStreamInterceptor(keywardgrpc.StreamServerInterceptor(client, open)),
	)
	grpc_health_v1.RegisterHealthServer(server, till{health.NewServer()})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(listener)
	defer server.Stop()

	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for _, secret := range []string{"good", "bad"} {
		ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+secret)
		_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, nil)
		fmt.Println(status.Code(err))
	}
	// Output:
	// hello org_demo in live
	// OK
	// Unauthenticated
}
