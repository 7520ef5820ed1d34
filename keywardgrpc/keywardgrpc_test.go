package keywardgrpc_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/keywardgrpc"
)

func TestMain(m *testing.M) { os.Exit(keywardtest.Main(m)) }

// payments is the health service with a handler that tells what it was given: a gRPC service without generated code
// of our own.
type payments struct {
	*health.Server
	identity keyward.Identity
	known    bool
	incoming metadata.MD
	calls    int
}

func (p *payments) note(ctx context.Context) {
	p.identity, p.known = keyward.FromContext(ctx)
	p.incoming, _ = metadata.FromIncomingContext(ctx)
	p.calls++
}

func (p *payments) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	p.note(ctx)
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func (p *payments) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	p.note(stream.Context())
	return stream.Send(&grpc_health_v1.HealthCheckResponse{})
}

// start serves payments behind the interceptors. call makes one call with metadata and returns its error.
func start(t testing.TB, v keyward.Verifier, opts ...keywardgrpc.Option) (p *payments, calls map[string]func(pairs ...string) error) {
	t.Helper()
	p = &payments{Server: health.NewServer()}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(keywardgrpc.UnaryServerInterceptor(v, opts...)),
		grpc.ChainStreamInterceptor(keywardgrpc.StreamServerInterceptor(v, opts...)),
	)
	grpc_health_v1.RegisterHealthServer(server, p)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := grpc_health_v1.NewHealthClient(conn)
	return p, map[string]func(...string) error{
		"unary": func(pairs ...string) error {
			_, err := client.Check(metadata.AppendToOutgoingContext(t.Context(), pairs...), nil)
			return err
		},
		"stream": func(pairs ...string) error {
			stream, err := client.Watch(metadata.AppendToOutgoingContext(t.Context(), pairs...), nil)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	}
}

func newClient(t testing.TB, cfg keyward.Config) *keyward.Client {
	t.Helper()
	c, err := keyward.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// V1, V2, V3, V4: every verdict of the real server, through calls and streams.
func TestV4Verdicts(t *testing.T) {
	server := keywardtest.Start(t, keywardtest.Options{})
	s := server.Issue(t, "")
	client := newClient(t, keyward.Config{Addresses: []string{server.Verification}, Timeout: keywardtest.Patience})
	const account = "x-connected-account-id"
	for _, tc := range []struct {
		name    string
		opts    []keywardgrpc.Option
		pairs   []string
		code    codes.Code
		account string
	}{
		{"valid", nil, []string{"authorization", "Bearer " + s.Live}, codes.OK, ""},
		{"valid, basic", nil, []string{"authorization", basic(s.Live, "")}, codes.OK, ""},
		{"valid, api key", nil, []string{"x-api-key", s.Live}, codes.OK, ""},
		{"valid, the same twice", nil, []string{"x-api-key", s.Live, "authorization", "bearer " + s.Live}, codes.OK, ""},
		{"valid, live wanted", []keywardgrpc.Option{keywardgrpc.WithEnv("live")}, []string{"x-api-key", s.Live}, codes.OK, ""},
		{"own child", nil, []string{"x-api-key", s.Live, account, s.Account}, codes.OK, s.Account},

		{"foreign child", nil, []string{"x-api-key", s.Live, account, s.ForeignAccount}, codes.PermissionDenied, ""},
		{"no child", nil, []string{"x-api-key", s.Live, account, s.Organization}, codes.PermissionDenied, ""},
		{"child, empty", nil, []string{"x-api-key", s.Live, account, ""}, codes.PermissionDenied, ""},
		{"child, twice", nil, []string{"x-api-key", s.Live, account, s.Account, account, s.Account}, codes.PermissionDenied, ""},

		{"other environment", []keywardgrpc.Option{keywardgrpc.WithEnv("test")}, []string{"x-api-key", s.Live}, codes.Unauthenticated, ""},
		{"revoked", nil, []string{"x-api-key", s.Revoked}, codes.Unauthenticated, ""},
		{"expired", nil, []string{"x-api-key", s.Expired}, codes.Unauthenticated, ""},
		{"unknown", nil, []string{"x-api-key", s.Unknown}, codes.Unauthenticated, ""},
		{"unknown with a child", nil, []string{"x-api-key", s.Unknown, account, ""}, codes.Unauthenticated, ""},
		{"malformed", nil, []string{"x-api-key", s.Malformed}, codes.Unauthenticated, ""},
		{"inactive organization", nil, []string{"x-api-key", s.Inactive}, codes.Unauthenticated, ""},
		{"none", nil, nil, codes.Unauthenticated, ""},
		{"two that differ", nil, []string{"x-api-key", s.Live, "authorization", "Bearer " + s.Test}, codes.Unauthenticated, ""},
		{"two authorizations", nil, []string{"authorization", "Bearer " + s.Live, "authorization", "Bearer " + s.Live}, codes.Unauthenticated, ""},
		{"another scheme", nil, []string{"x-api-key", s.Live, "authorization", "Digest x"}, codes.Unauthenticated, ""},
		{"basic with a password", nil, []string{"authorization", basic(s.Live, "x")}, codes.Unauthenticated, ""},
	} {
		p, calls := start(t, client, tc.opts...)
		for kind, call := range calls {
			t.Run(tc.name+"/"+kind, func(t *testing.T) {
				*p = payments{Server: p.Server}
				err := call(append(tc.pairs, "x-keyward-organization-id", "org_victim", "X-Keyward_Key-Id", "key_victim", "x.keyward.key.id", "key_victim", "other", "kept")...)
				if status.Code(err) != tc.code {
					t.Fatalf("err = %v, want %v", err, tc.code)
				}
				if tc.code != codes.OK {
					if want := map[codes.Code]string{codes.Unauthenticated: "Send a valid API key", codes.PermissionDenied: "x-connected-account-id must"}[tc.code]; !strings.HasPrefix(status.Convert(err).Message(), want) {
						t.Errorf("err = %v", err)
					}
					if p.calls != 0 {
						t.Error("the handler was reached")
					}
					return
				}
				want := keyward.Identity{
					APIKeyID: s.LiveID, OrganizationID: s.Organization, Env: "live", KeyName: "Till",
					ExpiresAt: p.identity.ExpiresAt, ConnectedAccountID: tc.account, PaymentsEnabled: true,
				}
				if diff := cmp.Diff(want, p.identity); diff != "" || !p.known || p.identity.ExpiresAt.IsZero() {
					t.Errorf("identity (-want +got):\n%s", diff)
				}
				checkNotSpoofed(t, p.incoming)
			})
		}
	}
}

// V2: what a client says about itself does not reach the handler; everything else does.
func checkNotSpoofed(t *testing.T, incoming metadata.MD) {
	t.Helper()
	for name := range incoming {
		if strings.Contains(strings.ReplaceAll(name, "_", "-"), "keyward") {
			t.Errorf("the handler saw %s", name)
		}
	}
	if diff := cmp.Diff([]string{"kept"}, incoming["other"]); diff != "" {
		t.Errorf("other metadata (-want +got):\n%s", diff)
	}
}

// V1, P6: a server that stands still or is gone decides nothing, and nothing is let through.
func TestV1Undecided(t *testing.T) {
	server := keywardtest.Start(t, keywardtest.Options{})
	s := server.Issue(t, "")
	var seen []string
	client := newClient(t, keyward.Config{Addresses: []string{server.Verification}, Timeout: 300 * time.Millisecond})
	p, calls := start(t, client,
		keywardgrpc.WithObserver(func(_ context.Context, method string, v keyward.Verdict, err error) {
			seen = append(seen, fmt.Sprint(method, " ", v.Valid, " ", errors.Is(err, keyward.ErrUndecided)))
			if err != nil && strings.Contains(err.Error(), s.Live) {
				t.Error("V7: the error holds the secret")
			}
		}))
	refused := func() {
		t.Helper()
		for kind, call := range calls {
			err := call("x-api-key", s.Live)
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v, want Unavailable", kind, err)
			}
			details := status.Convert(err).Details()
			if len(details) != 1 {
				t.Fatalf("%s: %d details", kind, len(details))
			}
			if retry, ok := details[0].(*errdetails.RetryInfo); !ok || retry.RetryDelay.AsDuration() != time.Second {
				t.Errorf("%s: details %v", kind, details)
			}
		}
	}
	server.Signal(t, syscall.SIGSTOP)
	if err := keywardtest.Poll(func() bool { // the signal takes a moment to be felt
		_, err := client.Verify(t.Context(), keyward.VerifyRequest{Secret: s.Live})
		return err != nil
	}, server.Exited()); err != nil {
		t.Fatal(err)
	}
	refused()
	server.Kill()
	refused()
	if p.calls != 0 {
		t.Errorf("the handler was reached %d times", p.calls)
	}
	slices.Sort(seen) // map order decides who is first
	want := []string{
		"/grpc.health.v1.Health/Check false true", "/grpc.health.v1.Health/Check false true",
		"/grpc.health.v1.Health/Watch false true", "/grpc.health.v1.Health/Watch false true",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

// verifier makes a Verifier of a function.
type verifier func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error)

func (f verifier) Verify(ctx context.Context, r keyward.VerifyRequest) (keyward.Verdict, error) {
	return f(ctx, r)
}

// P6: an error beside a verdict that says valid is an error.
func TestErrorBesideAVerdict(t *testing.T) {
	p, calls := start(t, verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) {
		return keyward.Verdict{Valid: true, Reason: keyward.ReasonValid}, errors.New("in doubt")
	}), keywardgrpc.WithObserver(func(context.Context, string, keyward.Verdict, error) {}))
	for kind, call := range calls {
		if err := call("x-api-key", "s"); status.Code(err) != codes.Unavailable || p.calls != 0 {
			t.Errorf("%s: %v, %d calls", kind, err, p.calls)
		}
	}
}

// An open method needs no key, gets no identity, and is not to be spoofed either; every other method stays closed.
func TestOpenMethods(t *testing.T) {
	p, calls := start(t, verifier(func(context.Context, keyward.VerifyRequest) (keyward.Verdict, error) {
		t.Error("asked about an open method")
		return keyward.Verdict{}, keyward.ErrUndecided
	}), keywardgrpc.WithOpenMethods("/grpc.health.v1.Health/Check"))
	if err := calls["unary"]("x-keyward-key-id", "key_victim", "other", "kept", "x-api-key", "s"); err != nil || p.known {
		t.Fatalf("err = %v, identity = %v", err, p.known)
	}
	checkNotSpoofed(t, p.incoming)
	if err := calls["stream"](); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a method that is not open: %v", err)
	}
}

func TestOptionsPanicOnWhatTheyDoNotTake(t *testing.T) {
	for name, option := range map[string]func(){
		"environment": func() { keywardgrpc.WithEnv("prod") },
		"empty":       func() { keywardgrpc.WithOpenMethods("") },
		"no slash":    func() { keywardgrpc.WithOpenMethods("a.B/C") },
		"no method":   func() { keywardgrpc.WithOpenMethods("/a.B/") },
		"wildcard":    func() { keywardgrpc.WithOpenMethods("/a.B/*") },
		"path":        func() { keywardgrpc.WithOpenMethods("/a/B/C") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			option()
		}()
	}
}
