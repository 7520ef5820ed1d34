package extauthz

import (
	"context"
	"io"
	"log/slog"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// BenchmarkCheck is a check beside what a bare server does with the same messages: decode the request, encode the answer. Neither has
// a network, and the verifier costs nothing.
func BenchmarkCheck(b *testing.B) {
	format, err := token.NewFormat("sk")
	if err != nil {
		b.Fatal(err)
	}
	secret, err := format.Generate(keys.Live)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{Verifier: constant{}, Format: format, Metrics: server.NewMetrics(), Access: access.Open(), Logger: slog.New(slog.NewJSONHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	for _, raw := range []bool{false, true} {
		in := asEnvoy("POST", "/v1/payments", raw, []header{
			{"Authorization", "Bearer " + secret.Reveal()}, {"Accept", "*/*"}, {"User-Agent", "curl/8.5.0"}, {"Content-Type", "application/json"}, {"Content-Length", "42"},
			{"X-Forwarded-Proto", "https"}, {"X-Forwarded-For", "192.0.2.7"}, {"X-Request-Id", "7d9f1d1c-2c0e-4f6e-9a53-0d6d3c1f9e1b"},
		})
		sent, err := codec.Marshal(in)
		if err != nil {
			b.Fatal(err)
		}
		same, err := s.Check(b.Context(), in)
		if err != nil || same.GetOkResponse() == nil {
			b.Fatal(same, err)
		}
		for name, check := range map[string]func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error){
			"keyward": s.Check,
			"bare":    func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return same, nil },
		} {
			b.Run(map[bool]string{false: "map/", true: "raw/"}[raw]+name, func(b *testing.B) {
				b.ReportAllocs()
				ctx := b.Context()
				for b.Loop() {
					in := new(authv3.CheckRequest)
					if err := (lenient{}).Unmarshal(sent, in); err != nil {
						b.Fatal(err)
					}
					out, err := check(ctx, in)
					if err != nil {
						b.Fatal(err)
					}
					data, err := codec.Marshal(out)
					if err != nil {
						b.Fatal(err)
					}
					data.Free()
				}
			})
		}
	}
}

type constant struct{}

func (constant) Verify(context.Context, verify.Request) (verify.Verdict, error) {
	return verify.Verdict{Reason: keys.Valid, KeyID: "key_01hm6q9zt0e5v8s3d7k2x4w1np", OrganizationID: "org_demo", KeyName: "Production key", Environment: keys.Live, PaymentsEnabled: true}, nil
}
func (constant) Ready() error { return nil }
