// Package keywardgrpc puts a Keyward verification in front of the methods of a gRPC server, by the rules of
// [keyward.Middleware]:
//
//	server := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(keywardgrpc.UnaryServerInterceptor(client)),
//		grpc.ChainStreamInterceptor(keywardgrpc.StreamServerInterceptor(client)),
//	)
//
// The handler finds whose key it was with [keyward.FromContext].
package keywardgrpc

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/internal/credential"
)

// Option changes what the interceptors do.
type Option func(*guard)

// WithEnv makes the interceptor refuse keys of the other environment. It panics when env is neither
// keyward.Live nor keyward.Test.
func WithEnv(env string) Option {
	if env != keyward.Live && env != keyward.Test {
		panic("keywardgrpc: WithEnv takes live or test")
	}
	return func(g *guard) { g.env = env }
}

// WithOpenMethods names methods that need no key, such as "/grpc.health.v1.Health/Check": full names, nothing
// else matches. It panics on what is not one. A call of an open method has no identity, and X-Keyward-* metadata is removed from it as
// from every other.
func WithOpenMethods(fullMethods ...string) Option {
	for _, m := range fullMethods {
		if service, method, ok := strings.Cut(strings.TrimPrefix(m, "/"), "/"); !ok || !strings.HasPrefix(m, "/") || service == "" || method == "" || strings.ContainsAny(method, "/*") {
			panic("keywardgrpc: WithOpenMethods takes full names as /package.Service/Method")
		}
	}
	return func(g *guard) {
		for _, m := range fullMethods {
			g.open[m] = true
		}
	}
}

// WithObserver replaces the default observer, which logs errors through slog.Default and nothing else. It is called once
// for each call that had one credential, with the verdict or with the error for which the call was answered
// Unavailable, before that answer.
func WithObserver(observe func(ctx context.Context, fullMethod string, v keyward.Verdict, err error)) Option {
	return func(g *guard) { g.observe = observe }
}

func logErrors(ctx context.Context, fullMethod string, _ keyward.Verdict, err error) {
	if err != nil && ctx.Err() == nil {
		slog.ErrorContext(ctx, "a call was refused because its API key could not be verified", "method", fullMethod, "error", err)
	}
}

// UnaryServerInterceptor lets a call through to its handler only with an API key that v says is valid, and with the
// key's identity in its context.
//
// The secret is taken from the metadata authorization, as "Bearer" or as the user name of "Basic" without a password, or
// from x-api-key. A call with two that differ or with several authorization values is refused (V2). The metadata
// x-connected-account-id narrows the call to a connected account of the key's organization (V3).
//
//	Unauthenticated   no valid key, the same status whatever the reason
//	PermissionDenied  the connected account is not one of the caller's
//	Unavailable       it could not be decided, with a RetryInfo: nothing is let through on a doubt
//
// Metadata whose name starts with x-keyward- is removed, because only Keyward may set it.
func UnaryServerInterceptor(v keyward.Verifier, opts ...Option) grpc.UnaryServerInterceptor {
	g := newGuard(v, opts)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// StreamServerInterceptor does for streams what [UnaryServerInterceptor] does for single calls. The key is verified
// when the stream begins: one that goes on for long outlives a revoke, unless the server ends it.
func StreamServerInterceptor(v keyward.Verifier, opts ...Option) grpc.StreamServerInterceptor {
	g := newGuard(v, opts)
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(srv, &identified{stream, ctx})
	}
}

// identified is a stream with another context.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *identified) Context() context.Context { return s.ctx }

type guard struct {
	verifier keyward.Verifier
	env      string
	open     map[string]bool // full names of the methods that need no key
	observe  func(context.Context, string, keyward.Verdict, error)
}

func newGuard(v keyward.Verifier, opts []Option) *guard {
	g := &guard{verifier: v, open: map[string]bool{}, observe: logErrors}
	for _, o := range opts {
		o(g)
	}
	return g
}

// admit returns the context for the handler, or the status that refuses the call.
func (g *guard) admit(ctx context.Context, fullMethod string) (context.Context, error) {
	incoming, _ := metadata.FromIncomingContext(ctx) // a copy; none is a call without a key
	ctx = withoutIdentity(ctx, incoming)
	if g.open[fullMethod] {
		return ctx, nil
	}
	secret, ok := credential.Secret(incoming["authorization"], incoming["x-api-key"])
	if !ok || credential.InURL(fullMethod) {
		return nil, unauthenticated
	}
	verdict, err := g.verifier.Verify(ctx, keyward.VerifyRequest{
		Secret: secret, ConnectedAccountID: credential.Account(incoming["x-connected-account-id"]), Env: g.env,
	})
	g.observe(ctx, fullMethod, verdict, err)
	switch {
	case err != nil:
		return nil, undecided
	case verdict.Valid:
		return keyward.NewContext(ctx, verdict.Identity), nil
	case verdict.Reason == keyward.ReasonConnectedAccountForbidden:
		return nil, forbidden
	default:
		return nil, unauthenticated
	}
}

// withoutIdentity returns ctx without X-Keyward-* metadata. incoming is ctx's, and is changed.
func withoutIdentity(ctx context.Context, incoming metadata.MD) context.Context {
	found := false
	for name := range incoming {
		if credential.IsIdentity(name) {
			delete(incoming, name)
			found = true
		}
	}
	if !found {
		return ctx
	}
	return metadata.NewIncomingContext(ctx, incoming)
}

// The three refusals. They are fixed, so that they tell a guesser nothing.
var (
	unauthenticated = status.Error(codes.Unauthenticated, "Send a valid API key as authorization: Bearer, as the user name of Basic or as x-api-key; one of them.")
	forbidden       = status.Error(codes.PermissionDenied, "x-connected-account-id must name one connected account of the key's organization.")
	undecided       = retryable("The API key could not be verified. Nothing was done; ask again in a moment.")
)

// retryable is Unavailable that says when to ask again.
func retryable(text string) error {
	s, err := status.New(codes.Unavailable, text).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	if err != nil {
		panic(err) // cannot be: a well-known message
	}
	return s.Err()
}
