package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// BenchmarkDoors is a request through each verification door beside a bare handler that reads the same body
// and writes an answer of the same size, both without a network and with a verifier that costs nothing.
func BenchmarkDoors(b *testing.B) {
	format, err := token.NewFormat("sk")
	if err != nil {
		b.Fatal(err)
	}
	secret, err := format.Generate(keys.Live)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{
		Service: new(keys.Service), Authenticator: noKeySet{}, Verifier: constant{}, Operations: brokenOperations{}, Format: format, Access: access.Open(),
		Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	body := `{"key":"` + secret.Reveal() + `"}`
	verdict, _ := constant{}.Verify(b.Context(), verify.Request{})
	answer := appendVerdict(nil, &verdict)
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
	for _, bb := range []struct {
		name, method, path, body string
		h                        http.Handler
	}{
		{"bare", "POST", "/v1/verify", body, bare},
		{"verify", "POST", "/v1/verify", body, s.Verification()},
		{"authorize", "GET", "/v1/authorize", "", s.Verification()},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			reader := strings.NewReader(bb.body)
			r := httptest.NewRequest(bb.method, bb.path, reader)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Api-Key", secret.Reveal())
			w := &sink{h: http.Header{}}
			for b.Loop() {
				reader.Reset(bb.body)
				clear(w.h)
				bb.h.ServeHTTP(w, r)
			}
			if w.status >= 300 {
				b.Fatalf("status %d", w.status)
			}
		})
	}
}

type sink struct {
	h      http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

type constant struct{}

func (constant) Verify(context.Context, verify.Request) (verify.Verdict, error) {
	return verify.Verdict{Reason: keys.Valid, KeyID: "key_01hm6q9zt0e5v8s3d7k2x4w1np", OrganizationID: "org_demo", KeyName: "Production key", Environment: keys.Live, PaymentsEnabled: true}, nil
}
func (constant) Ready() error        { return nil }
func (constant) Stats() verify.Stats { return verify.Stats{} }
