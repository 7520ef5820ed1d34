// Package extauthz is the door for Envoy: envoy.service.auth.v3.Authorization over gRPC, with grpc.health.v1 beside it. It is the
// only room on the server's side that knows gRPC. What a request carries and what a verdict means is package door's, the same as
// for the doors over HTTP.
//
// request.go reads what Envoy sends, response.go writes what it takes, health.go says whether this node decides, bounds.go
// is what a client can make the listener hold.
//
// Everything that is not "let it pass" is a CheckResponse that denies, never an error of the call: an Envoy with failure_mode_allow
// lets a request pass when the call fails.
package extauthz

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// Config says what the door stands in front of. Verifier, Format, Metrics and Access are required.
type Config struct {
	Verifier Verifier
	Format   token.Format // keeps secrets out of what is echoed
	Metrics  Metrics

	Access  *access.Gate // decides who may ask; they need the scope Verify
	Clients door.Clients // finds out who that is (R8)

	MaxConnections int // 0 = 1,024

	TLS    *tls.Config  // nil = no TLS
	Logger *slog.Logger // nil = slog.Default()

	callTime, writeTime time.Duration // 0 = the constants in bounds.go; tests want less
}

// Verifier decides about secrets; an error means that it could not decide.
type Verifier interface {
	Verify(ctx context.Context, r verify.Request) (verify.Verdict, error)
	Ready() error
}

// Metrics counts what passes.
type Metrics interface {
	// Verification counts one verification through a door; err means that it was not decided.
	Verification(door string, v *verify.Verdict, err error)
	// Check counts one check by the HTTP status it told Envoy, 200 for one that passes.
	Check(status int, panicked bool, took time.Duration)
}

// name is the door in metrics and the log.
const name = "extauthz"

// Server is the listener. It is safe for concurrent use.
type Server struct {
	cfg        Config
	requestIDs door.RequestIDs
	grpc       *grpc.Server
	health     *health
	running    atomic.Int64 // checks

	// Of the log lines about checks that were not decided, and about routes whose rules are wrong.
	undecided, misconfigured door.Throttle
}

// New returns the door for cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Verifier == nil || cfg.Metrics == nil || cfg.Access == nil || cfg.Format == (token.Format{}) {
		return nil, errors.New("extauthz: a verifier, metrics, an access gate and a secret format are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = maxConnections
	}
	cfg.callTime = cmp.Or(cfg.callTime, callTime)
	cfg.writeTime = cmp.Or(cfg.writeTime, writeTime)
	s := &Server{cfg: cfg, requestIDs: door.NewRequestIDs(cfg.Format), health: newHealth(cfg.Verifier)}
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(lenient{}),
		grpc.WaitForHandlers(true),
	}
	options = append(options, s.bounds()...)
	if cfg.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(cfg.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	s.grpc.RegisterService(&authorization, s)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	return s, nil
}

// Serve answers on l until the server is shut down, which is no error.
func (s *Server) Serve(l net.Listener) error {
	return s.grpc.Serve(&guard{
		Listener: l, logger: s.cfg.Logger, most: s.cfg.MaxConnections, writeTime: s.cfg.writeTime,
	})
}

// Shutdown accepts no more, and returns when what runs is answered, or with an error when ctx ends before.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.stop() // who watches is told, and no longer counts as running
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends everything.
func (s *Server) Close() error {
	s.health.stop()
	s.grpc.Stop()
	return nil
}

// check is one question on its way to its answer.
type check struct {
	request   request
	requestID string
	status    int      // of the answer; 200 = it passes
	code      api.Code // of the problem answered
	cause     error    // of that problem; for the log alone
	panicked  bool
}

// Check implements envoy.service.auth.v3.Authorization. It never returns an error.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.answer(ctx, func(requestID string) (*authv3.CheckRequest, error) {
		return in, s.admit(ctx, requestID)
	}), nil
}

// answer answers what receive returns. An error of receive is a denial.
func (s *Server) answer(ctx context.Context, receive func(requestID string) (*authv3.CheckRequest, error)) (out *authv3.CheckResponse) {
	began := time.Now()
	c := &check{status: http.StatusOK}
	defer func() {
		if panicked := recover(); panicked != nil {
			out = s.survive(c, panicked)
		}
		took := time.Since(began)
		s.cfg.Metrics.Check(c.status, c.panicked, took)
		s.log(ctx, c, took)
	}()
	c.requestID = s.requestIDs.Of(nil)
	in, err := receive(c.requestID)
	if err != nil {
		if errors.Is(err, errTooLong) {
			out = c.deny(door.HeadersTooLarge())
			c.cause = err
			return out
		}
		return c.deny(err)
	}
	r := in.GetAttributes().GetRequest().GetHttp()
	c.request.read(r)
	c.requestID = s.requestIDs.Of(c.request.requestID)
	verdict, rules, err := s.authorize(ctx, c, in, r)
	if err != nil {
		return c.deny(err)
	}
	return allow(&verdict, &c.request, rules.strip)
}

// notARequest is the answer to a message that is no check request about an HTTP request.
func notARequest() error {
	return keys.Invalid("", "The check request describes no HTTP request, or is not one.")
}

// authorize is nil when the request may pass.
func (s *Server) authorize(ctx context.Context, c *check, in *authv3.CheckRequest, r *authv3.AttributeContext_HttpRequest) (v verify.Verdict, rules rules, err error) {
	switch {
	case r == nil:
		return v, rules, notARequest()
	case c.request.size > door.MaxHeader:
		return v, rules, door.HeadersTooLarge()
	case c.request.secretInURL(s.cfg.Format, r):
		return v, rules, door.SecretInURL()
	}
	if rules, err = readRules(in.GetAttributes().GetContextExtensions()); err != nil {
		return v, rules, &keys.Unavailable{Err: err}
	}
	v, err = door.Authorize(c.request.asked, rules.Rules, func(r verify.Request) (verify.Verdict, error) {
		verdict, err := s.cfg.Verifier.Verify(ctx, r)
		s.cfg.Metrics.Verification(name, &verdict, err)
		if err != nil {
			return verdict, &keys.Unavailable{Err: err}
		}
		return verdict, nil
	})
	return v, rules, err
}

// admit lets Envoy itself in, or not (O5).
func (s *Server) admit(ctx context.Context, requestID string) error {
	_, err := s.cfg.Access.Admit(ctx, access.Attempt{
		Presented: presented(ctx), Need: access.Verify, Route: authv3.Authorization_Check_FullMethodName,
		RequestID: requestID, Client: caller{s, ctx},
	})
	return err
}

// presented is what a call shows: its metadata's token, its connection's certificate.
func presented(ctx context.Context) access.Presented {
	authorization := metadata.ValueFromIncomingContext(ctx, "authorization")
	p := access.Presented{Token: credential.Bearer(authorization)}
	p.Malformed = p.Token == "" && len(authorization) > 0
	if from, ok := peer.FromContext(ctx); ok {
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			p.Certificate = info.State.VerifiedChains[0][0]
		}
	}
	return p
}

// caller is Envoy, or what Envoy's own proxy says of it (R8).
type caller struct {
	s   *Server
	ctx context.Context
}

// ClientAddress implements access.Client.
func (c caller) ClientAddress() string {
	from, ok := peer.FromContext(c.ctx)
	if !ok {
		return ""
	}
	return c.s.cfg.Clients.Address(from.Addr.String(), metadata.ValueFromIncomingContext(c.ctx, "x-forwarded-for"))
}

// survive reports a panic and denies.
func (s *Server) survive(c *check, panicked any) *authv3.CheckResponse {
	c.panicked = true
	if c.requestID == "" {
		c.requestID = s.requestIDs.Of(nil)
	}
	s.cfg.Logger.LogAttrs(context.Background(), slog.LevelError, "panic",
		slog.String("request_id", c.requestID), slog.String("route", authv3.Authorization_Check_FullMethodName),
		slog.String("panic", door.PanicText(panicked)), slog.String("stack", string(debug.Stack())))
	return c.deny(&keys.Unavailable{Err: errPanicked})
}

var errPanicked = errors.New("panic")

// log writes the check's line, as the doors over HTTP do (V7: nothing of it but what is named here).
func (s *Server) log(ctx context.Context, c *check, took time.Duration) {
	level := slog.LevelDebug // metrics count them
	switch {
	case c.status != http.StatusServiceUnavailable:
	case c.panicked:
		level = slog.LevelError
	case isRuleError(c.cause):
		if s.misconfigured.Allow(time.Now()) {
			level = slog.LevelError
		}
	case s.undecided.Allow(time.Now()):
		level = slog.LevelWarn
	}
	if !s.cfg.Logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs,
		slog.String("listener", name), slog.String("method", door.Method(c.request.method)), slog.String("route", authv3.Authorization_Check_FullMethodName),
		slog.Int("status", c.status), slog.Float64("duration_ms", float64(took)/float64(time.Millisecond)), slog.String("request_id", c.requestID))
	if address := (caller{s, ctx}).ClientAddress(); address != "" {
		attrs = append(attrs, slog.String("remote", address))
	}
	if c.code != "" {
		attrs = append(attrs, slog.String("code", string(c.code)))
	}
	if c.cause != nil {
		attrs = append(attrs, slog.String("cause", c.cause.Error()))
	}
	s.cfg.Logger.LogAttrs(ctx, level, "request", attrs...)
}
