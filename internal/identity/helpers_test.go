package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/syncgram/keyward/internal/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests sign with the standard library alone, so that what verifies is not what signed.

type signingKey struct {
	alg, kid string
	sign     func(input []byte) []byte
	jwk      map[string]any // public
}

var b64 = base64.RawURLEncoding.EncodeToString

var newRSAKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func rsaKey(t testing.TB, kid string) signingKey {
	t.Helper()
	key := newRSAKey()
	return signingKey{
		alg: "RS256", kid: kid,
		sign: func(input []byte) []byte {
			sum := sha256.Sum256(input)
			sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
			if err != nil {
				t.Fatal(err)
			}
			return sig
		},
		jwk: map[string]any{"kty": "RSA", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())},
	}
}

func ecKey(t testing.TB, kid string) signingKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	return signingKey{
		alg: "ES256", kid: kid,
		sign: func(input []byte) []byte {
			sum := sha256.Sum256(input)
			r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
			if err != nil {
				t.Fatal(err)
			}
			sig := make([]byte, 64)
			r.FillBytes(sig[:32])
			s.FillBytes(sig[32:])
			return sig
		},
		jwk: map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])},
	}
}

func edKey(t testing.TB, kid string) signingKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signingKey{
		alg: "EdDSA", kid: kid,
		sign: func(input []byte) []byte { return ed25519.Sign(private, input) },
		jwk:  map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(public)},
	}
}

func secretKey(secret []byte) signingKey {
	return signingKey{alg: "HS256", sign: func(input []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(input)
		return mac.Sum(nil)
	}}
}

// with returns the key's JWK with members set, or removed where the value is nil.
func (k signingKey) with(members map[string]any) map[string]any {
	jwk := maps.Clone(k.jwk)
	if k.kid != "" {
		jwk["kid"] = k.kid
	}
	for name, v := range members {
		if v == nil {
			delete(jwk, name)
		} else {
			jwk[name] = v
		}
	}
	return jwk
}

// raw signs a header and a payload written out by the test.
func (k signingKey) raw(header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(k.sign([]byte(input)))
}

// token signs claims under the ordinary header.
func (k signingKey) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	return k.raw(k.header(t, nil), mustJSON(t, claims))
}

// header is the ordinary header with members set, or removed where the value is nil.
func (k signingKey) header(t testing.TB, members map[string]any) string {
	t.Helper()
	h := map[string]any{"alg": k.alg, "typ": "JWT"}
	if k.kid != "" {
		h["kid"] = k.kid
	}
	for name, v := range members {
		if v == nil {
			delete(h, name)
		} else {
			h[name] = v
		}
	}
	return mustJSON(t, h)
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func keySetJSON(t testing.TB, jwks ...any) string {
	t.Helper()
	if jwks == nil {
		jwks = []any{}
	}
	return mustJSON(t, map[string]any{"keys": jwks})
}

func writeFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	testIssuer   = "https://login.example"
	testAudience = "keyward"
)

var testNow = time.Date(2031, 4, 5, 6, 7, 8, 0, time.UTC)

// claims is a good claims set with members set, or removed where the value is nil.
func claims(members map[string]any) map[string]any {
	c := map[string]any{
		"iss": testIssuer, "aud": testAudience, "sub": "user_1", "org_id": "org_1",
		"iat": testNow.Unix(), "exp": testNow.Add(5 * time.Minute).Unix(),
	}
	for name, v := range members {
		if v == nil {
			delete(c, name)
		} else {
			c[name] = v
		}
	}
	return c
}

var wantPrincipal = keys.Principal{User: "user_1", OrganizationID: "org_1"}

// authenticator fills in what a test leaves out: the clock, a silent log, issuer and audience.
func authenticator(t testing.TB, c Config) *Authenticator {
	t.Helper()
	if c.Now == nil {
		c.Now = func() time.Time { return testNow }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Issuer == "" {
		c.Issuer = testIssuer
	}
	if c.Audience == "" {
		c.Audience = testAudience
	}
	a, err := New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// refused reports whether err is a refusal of the token, and fails the test when its text repeats
// a part of the token.
func refused(t testing.TB, token string, err error) bool {
	t.Helper()
	var invalid *InvalidTokenError
	if !errors.As(err, &invalid) {
		return false
	}
	if invalid.Reason == "" {
		t.Error("a refusal without a reason")
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) >= 8 && strings.Contains(err.Error(), part) {
			t.Errorf("error %q repeats a part of the token", err)
		}
	}
	return true
}

// issuerServer stands in for an issuer's key set URL, without a network.
type issuerServer struct {
	hits atomic.Int64
	mu   sync.Mutex
	body string
	fail error         // answered instead
	code int           // 0 = 200
	hang bool          // until the request is given up
	hold chan struct{} // when set, an answer waits for it to be closed
}

func (s *issuerServer) set(change func(*issuerServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *issuerServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.hits.Add(1)
	s.mu.Lock()
	body, fail, code, hang, hold := s.body, s.fail, s.code, s.hang, s.hold
	s.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	if code == 0 {
		code = http.StatusOK
	}
	return &http.Response{
		StatusCode: code, Status: fmt.Sprint(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

func (s *issuerServer) client() *http.Client { return &http.Client{Transport: s} }

// logBuffer collects a log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
