package identity

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/google/go-cmp/cmp"
)

type vectorFile struct {
	NumberOfTests int
	TestGroups    []struct {
		Public, Private json.RawMessage
		Tests           []struct {
			TcID    int `json:"tcId"`
			Comment string
			JWS     string
			JWE     json.RawMessage
			Result  string
		}
	}
}

func vectors(t *testing.T, name string) vectorFile {
	t.Helper()
	data, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var f vectorFile
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// groupAuthenticators returns every way to configure a group's keys: its public keys as a JWK set, its
// private ones as a JWK set (a mistake an issuer could make), and a symmetric key as the shared secret.
// A configuration that New refuses is left out: it accepts nothing.
func groupAuthenticators(t *testing.T, public, private json.RawMessage) []*Authenticator {
	t.Helper()
	var list []*Authenticator
	add := func(c Config) {
		c.Logger = slog.New(slog.DiscardHandler)
		if a, err := New(context.Background(), c); err == nil {
			t.Cleanup(a.Close)
			list = append(list, a)
		}
	}
	for _, raw := range []json.RawMessage{public, private} {
		if raw == nil {
			continue
		}
		var set struct{ Keys []json.RawMessage }
		if err := json.Unmarshal(raw, &set); err != nil {
			t.Fatal(err)
		}
		if set.Keys == nil {
			set.Keys = []json.RawMessage{raw}
		}
		add(Config{JWKS: writeFile(t, mustJSON(t, map[string]any{"keys": set.Keys}))})
		for _, k := range set.Keys {
			var jwk struct{ Kty, K, Alg string }
			if err := json.Unmarshal(k, &jwk); err != nil {
				t.Fatal(err)
			}
			if jwk.Kty != "oct" || jwk.Alg != "HS256" {
				continue // a configured secret is for HS256 alone
			}
			if secret, ok := decodeSegment(jwk.K); ok {
				add(Config{HS256Secret: secret})
			}
		}
	}
	return list
}

// TestC1WycheproofSignatures: exactly the vectors below are accepted. Every other one
// marked valid is refused for a reason:
//
//	264–271, 272–275, 287–288, 320–323, 325–328  RS384, RS512, PS256, PS384, PS512 are not among the algorithms
//	346, 347, 350, 351  likewise; besides, their keys name another algorithm (PS256, "ES521") than the tokens
//	372, 373            hold a "?", which is no base64url
//
// and two that are marked invalid are accepted:
//
//	367, 370            are the very string of 357, which is marked valid
func TestC1WycheproofSignatures(t *testing.T) {
	want := []int{1, 18, 33, 259, 260, 261, 262, 263, 345, 348, 349, 352, 357, 358, 359, 367, 370, 376, 377, 378}
	f := vectors(t, "json_web_signature_test.json")
	byID := make(map[int]string)
	var got []int
	tests := 0
	for _, g := range f.TestGroups {
		list := groupAuthenticators(t, g.Public, g.Private)
		for _, tt := range g.Tests {
			tests++
			byID[tt.TcID] = tt.JWS
			accepted := false
			for _, a := range list {
				_, err := a.open(t.Context(), tt.JWS)
				if err != nil && !refused(t, tt.JWS, err) {
					t.Errorf("%d %s: %v", tt.TcID, tt.Comment, err)
				}
				accepted = accepted || err == nil
			}
			if accepted {
				got = append(got, tt.TcID)
			}
		}
	}
	if tests != 401 || f.NumberOfTests != 401 {
		t.Errorf("%d vectors, want 401", tests)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("accepted vectors (-want +got):\n%s", diff)
	}
	for _, id := range []int{367, 370} {
		if byID[id] != byID[357] {
			t.Errorf("%d is no longer the same string as 357: it must be refused", id)
		}
	}
}

// TestC1WycheproofKeySets: of the valid vectors, 2 and 13 are accepted with the secret configured as one,
// never from a key set (1 and 4 show why), and 14 and 15 are HS384 and HS512. 3 holds
// the keys of 2 with another signature.
func TestC1WycheproofKeySets(t *testing.T) {
	fromSet := []int{5}
	f := vectors(t, "json_web_key_test.json")
	var got []int
	tests := 0
	for _, g := range f.TestGroups {
		for _, a := range groupAuthenticators(t, g.Public, g.Private) {
			if a.cache == nil {
				continue
			}
			for _, tt := range g.Tests {
				_, err := a.open(t.Context(), tt.JWS)
				if err == nil {
					got = append(got, tt.TcID)
				} else if !refused(t, tt.JWS, err) {
					t.Errorf("%d %s: %v", tt.TcID, tt.Comment, err)
				}
			}
		}
		tests += len(g.Tests)
	}
	if tests != 26 {
		t.Errorf("%d vectors, want 26", tests)
	}
	if diff := cmp.Diff(fromSet, got); diff != "" {
		t.Errorf("accepted from a key set (-want +got):\n%s", diff)
	}

	withSecret := []int{2, 13}
	got = nil
	for _, g := range f.TestGroups {
		var set struct {
			Keys []struct{ Alg, K, Kid string }
		}
		if err := json.Unmarshal(g.Private, &set); err != nil {
			t.Fatal(err)
		}
		if len(set.Keys) == 0 || set.Keys[0].Alg != "HS256" {
			continue
		}
		secret, ok := decodeSegment(set.Keys[0].K)
		if !ok {
			t.Fatal("a secret of the vectors is no base64url")
		}
		a, err := New(t.Context(), Config{HS256Secret: secret})
		if err != nil {
			if len(secret) >= 32 {
				t.Error(err)
			}
			continue // 10 and 16: too short
		}
		for _, tt := range g.Tests {
			switch tt.TcID {
			case 1, 4:
				// Their point is the ambiguous set, which one configured secret cannot be.
				continue
			}
			if _, err := a.open(t.Context(), tt.JWS); err == nil {
				got = append(got, tt.TcID)
			}
		}
	}
	if diff := cmp.Diff(withSecret, got); diff != "" {
		t.Errorf("accepted with a secret (-want +got):\n%s", diff)
	}
}

// TestC1WycheproofEncryption: nothing encrypted is accepted, by whatever keys.
func TestC1WycheproofEncryption(t *testing.T) {
	f := vectors(t, "json_web_encryption_test.json")
	rsa, secret := rsaKey(t, "r"), secretKey([]byte("0123456789abcdef0123456789abcdef"))
	bySet := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, rsa.with(nil)))})
	bySecret := authenticator(t, Config{HS256Secret: []byte("0123456789abcdef0123456789abcdef")})
	if _, err := bySecret.Authenticate(t.Context(), secret.token(t, claims(nil))); err != nil {
		t.Fatal(err)
	}
	tests := 0
	for _, g := range f.TestGroups {
		list := append(groupAuthenticators(t, g.Public, g.Private), bySet, bySecret)
		for _, tt := range g.Tests {
			tests++
			jwe := string(tt.JWE)
			if compact, ok := text(tt.JWE); ok {
				jwe = compact
			}
			for _, a := range list {
				_, err := a.Authenticate(t.Context(), jwe)
				var invalid *InvalidTokenError
				if !errors.As(err, &invalid) {
					t.Errorf("%d %s: got %v, want a refusal", tt.TcID, tt.Comment, err)
				}
			}
		}
	}
	if tests != 139 {
		t.Errorf("%d vectors, want 139", tests)
	}
}
