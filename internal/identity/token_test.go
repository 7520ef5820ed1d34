package identity

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testSecret = []byte("a shared secret of 32 bytes, yes")

// TestC1EachAlgorithmOfAnIssuer: an issuer's own algorithms pass and every other one is refused, each
// token well signed: only the diagonal is accepted (ASVS 9.1.2).
func TestC1EachAlgorithmOfAnIssuer(t *testing.T) {
	rs, es, ed := rsaKey(t, "r"), ecKey(t, "e"), edKey(t, "d")
	hs := secretKey(testSecret)
	issuers := map[string]*Authenticator{
		"RS256": authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, rs.with(nil)))}),
		"ES256": authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, es.with(nil)))}),
		"EdDSA": authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, ed.with(nil)))}),
		"HS256": authenticator(t, Config{HS256Secret: testSecret}),
	}
	for name, a := range issuers {
		for _, k := range []signingKey{rs, es, ed, hs} {
			t.Run(name+" issuer, "+k.alg+" token", func(t *testing.T) {
				token := k.token(t, claims(nil))
				got, err := a.Authenticate(t.Context(), token)
				if name != k.alg {
					if !refused(t, token, err) {
						t.Fatalf("got %v, want a refusal", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(wantPrincipal, got); diff != "" {
					t.Errorf("principal (-want +got):\n%s", diff)
				}
			})
		}
	}

	all := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, rs.with(nil), es.with(nil), ed.with(nil)))})
	for _, k := range []signingKey{rs, es, ed} {
		if _, err := all.Authenticate(t.Context(), k.token(t, claims(nil))); err != nil {
			t.Errorf("%s: %v", k.alg, err)
		}
		// The same key under another algorithm's name.
		for _, alg := range []string{"RS256", "ES256", "EdDSA", "RS384", "PS256", "ES384", "HS256", "Ed25519", "rs256", ""} {
			if alg == k.alg {
				continue
			}
			token := k.raw(k.header(t, map[string]any{"alg": alg}), mustJSON(t, claims(nil)))
			if _, err := all.Authenticate(t.Context(), token); !refused(t, token, err) {
				t.Errorf("%s key as %q: got %v, want a refusal", k.alg, alg, err)
			}
		}
	}
}

// TestC1Forgeries: none of the known attacks on JWT libraries gets a token accepted.
func TestC1Forgeries(t *testing.T) {
	rs, es, ed := rsaKey(t, "r"), ecKey(t, "e"), edKey(t, "d")
	bySet := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, rs.with(nil), es.with(nil), ed.with(nil)))})
	bySecret := authenticator(t, Config{HS256Secret: testSecret})
	good := mustJSON(t, claims(nil))

	type forgery struct{ name, token string }
	var list []forgery
	add := func(name, token string) { list = append(list, forgery{name, token}) }

	// CVE-2015-9235 and its spellings, with and without a signature.
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", " none", "none\u0000"} {
		head := b64([]byte(mustJSON(t, map[string]any{"alg": alg, "typ": "JWT", "kid": "r"})))
		add("alg "+alg+" unsigned", head+"."+b64([]byte(good))+".")
		add("alg "+alg+" without the last dot", head+"."+b64([]byte(good)))
		add("alg "+alg+" signed", rs.raw(rs.header(t, map[string]any{"alg": alg}), good))
	}
	for _, alg := range []any{nil, 7, true, []string{"RS256"}, map[string]any{}} {
		h := map[string]any{"typ": "JWT", "kid": "r", "alg": alg}
		add(fmt.Sprintf("alg %T", alg), rs.raw(mustJSON(t, h), good))
	}
	add("no alg", rs.raw(`{"typ":"JWT","kid":"r"}`, good))
	add("two algs", rs.raw(`{"alg":"none","alg":"RS256","kid":"r"}`, good))
	add("two kids", rs.raw(`{"alg":"RS256","kid":"x","kid":"r"}`, good))
	add("ALG", rs.raw(`{"ALG":"RS256","kid":"r"}`, good))

	// CVE-2016-10555: the public key as the HMAC secret, in every form it is handed out.
	public := &newRSAKey().PublicKey
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PublicKey(public)
	for name, secret := range map[string][]byte{
		"PKIX PEM":               pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}),
		"PKIX PEM, no newline":   []byte(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})))),
		"PKCS 1 PEM":             pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		"PKIX DER":               pkix,
		"PKCS 1 DER":             pkcs1,
		"JWK":                    []byte(mustJSON(t, rs.with(nil))),
		"JWK set":                []byte(keySetJSON(t, rs.with(nil))),
		"modulus":                public.N.Bytes(),
		"empty (CVE-2019-20933)": {},
		"32 zeros":               make([]byte, 32),
	} {
		k := secretKey(secret)
		for _, kid := range []string{"r", "e", ""} {
			k.kid = kid
			add("HS256 with "+name+" kid "+kid, k.token(t, claims(nil)))
		}
	}

	// CVE-2020-28042 and CVE-2022-21449: no signature, and one of zeros.
	for _, k := range []signingKey{rs, es, ed, secretKey(testSecret)} {
		token := k.token(t, claims(nil))
		body := token[:strings.LastIndexByte(token, '.')+1]
		add(k.alg+" null signature", body)
		add(k.alg+" signature of 64 zeros", body+b64(make([]byte, 64)))
		add(k.alg+" signature of 256 zeros", body+b64(make([]byte, 256)))
		add(k.alg+" DER signature of zeros", body+b64([]byte{0x30, 6, 2, 1, 0, 2, 1, 0}))
		add(k.alg+" signature with a line break", token[:len(token)-4]+"\n"+token[len(token)-4:])
		add(k.alg+" padded", token+"=")
		add(k.alg+" with a space in front", " "+token)
		add(k.alg+" with another payload", strings.Join([]string{
			strings.Split(token, ".")[0], b64([]byte(mustJSON(t, claims(map[string]any{"org_id": "org_2"})))), strings.Split(token, ".")[2],
		}, "."))
		add(k.alg+" payload b64:false", k.raw(k.header(t, map[string]any{"b64": false}), good))
		add(k.alg+" payload b64:false, critical", k.raw(k.header(t, map[string]any{"b64": false, "crit": []string{"b64"}}), good))
		for _, h := range []map[string]any{{"b64": false}, {"b64": false, "crit": []string{"b64"}}} {
			// Signed as RFC 7797 has it: over the payload as it is.
			head := b64([]byte(k.header(t, h)))
			sig := k.sign([]byte(head + "." + good))
			add(k.alg+" unencoded payload", head+"."+b64([]byte(good))+"."+b64(sig))
			add(k.alg+" unencoded payload, detached", head+".."+b64(sig))
		}
		for _, crit := range []any{[]string{"exp"}, []string{"x-unknown"}, []string{}, "alg", nil} {
			h := `{"alg":"` + k.alg + `","kid":"` + k.kid + `","crit":` + mustJSON(t, crit) + `}`
			add(k.alg+" crit "+mustJSON(t, crit), k.raw(h, good))
		}
		add(k.alg+" compressed", k.raw(k.header(t, map[string]any{"zip": "DEF"}), good))
		add(k.alg+" encrypted", k.raw(k.header(t, map[string]any{"enc": "A128GCM"}), good))
	}
	add("malleable s: n-s and r+n", func() string {
		token := es.token(t, claims(nil))
		i := strings.LastIndexByte(token, '.')
		sig, _ := decodeSegment(token[i+1:])
		n, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
		r := new(big.Int).Add(new(big.Int).SetBytes(sig[:32]), n)
		return token[:i+1] + b64(append(r.Bytes(), sig[32:]...))
	}())

	// CVE-2018-0114: a token that brings its own key.
	thief := ecKey(t, "thief")
	for _, kid := range []any{"thief", "e", nil} {
		add("embedded jwk", thief.raw(thief.header(t, map[string]any{"kid": kid, "jwk": thief.with(nil)}), good))
		add("embedded x5c", thief.raw(thief.header(t, map[string]any{"kid": kid, "x5c": []string{"MAA="}}), good))
	}
	add("embedded jwk beside a good signature", es.raw(es.header(t, map[string]any{"jwk": es.with(nil)}), good))

	// kid is a name to compare and nothing else.
	for _, kid := range []any{
		"../../dev/null", "/dev/null", "' OR 1=1 --", "r\x00", "r\u0000e", "\u0000", "R", " r", "r ", "*", "%", "r|e",
		"http://127.0.0.1/", "|/bin/true", strings.Repeat("k", 100_000), strings.Repeat("k", 4000), 0, true, []string{"r"}, map[string]any{"kid": "r"},
	} {
		add(fmt.Sprintf("kid %.20v", kid), rs.raw(rs.header(t, map[string]any{"kid": kid}), good))
	}
	add("kid of another key", rs.raw(rs.header(t, map[string]any{"kid": "e"}), good))

	for _, shape := range []string{
		"", ".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", "a.b.c.d.e", strings.Repeat(".", 1_000_000),
		strings.Repeat(".", maxTokenBytes), strings.Repeat("A", maxTokenBytes) + "..", "Bearer " + es.token(t, claims(nil)),
		`{"payload":"","signatures":[]}`, "\xff\xfe.\xff.\xff", b64([]byte("null")) + "." + b64([]byte("null")) + ".",
	} {
		add(fmt.Sprintf("shape %.12q", shape), shape)
	}
	// JSON serialisation of a good token (RFC 7515 §7.2.2).
	parts := strings.Split(es.token(t, claims(nil)), ".")
	add("JSON serialisation", mustJSON(t, map[string]any{"protected": parts[0], "payload": parts[1], "signature": parts[2]}))

	for _, f := range list {
		for name, a := range map[string]*Authenticator{"by set": bySet, "by secret": bySecret} {
			if _, err := a.Authenticate(t.Context(), f.token); !refused(t, f.token, err) {
				// A token of the shared secret itself appears only in forms that are refused too.
				t.Errorf("%s, %s: got %v, want a refusal", f.name, name, err)
			}
		}
	}
	t.Logf("%d forgeries", len(list))
}

// TestC1HeaderURLsAreNotFetched: jku and x5u are never followed, in a good token or a bad one.
func TestC1HeaderURLsAreNotFetched(t *testing.T) {
	var hits atomic.Int64
	thief := ecKey(t, "thief")
	canary := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = w.Write([]byte(keySetJSON(t, thief.with(nil))))
	}))
	defer canary.Close()
	k := ecKey(t, "e")
	a := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, k.with(nil)))})
	for _, member := range []string{"jku", "x5u"} {
		link := map[string]any{member: canary.URL + "/keys"}
		token := thief.raw(thief.header(t, link), mustJSON(t, claims(nil)))
		if _, err := a.Authenticate(t.Context(), token); !refused(t, token, err) {
			t.Errorf("%s of a thief: got %v, want a refusal", member, err)
		}
		if _, err := a.Authenticate(t.Context(), k.raw(k.header(t, link), mustJSON(t, claims(nil)))); err != nil {
			t.Errorf("%s beside a good signature: %v", member, err)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the address in the header was asked %d times", n)
	}
}

// TestC1MillionDots: counting comes before parsing (CVE-2025-27144, CVE-2025-30204).
func TestC1MillionDots(t *testing.T) {
	a := authenticator(t, Config{HS256Secret: testSecret})
	dots := strings.Repeat(".", 1_000_000)
	for _, token := range []string{dots, dots[:maxTokenBytes]} {
		const runs = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			if _, err := a.Authenticate(t.Context(), token); !refused(t, "", err) {
				t.Fatalf("got %v, want a refusal", err)
			}
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / runs; n > 4<<10 {
			t.Errorf("%d dots: %d bytes allocated", len(token), n)
		}
	}
}

func TestC1TokenSize(t *testing.T) {
	k := secretKey(testSecret)
	a := authenticator(t, Config{HS256Secret: testSecret})
	accepted := 0
	for n := 5700; n < 6000; n++ {
		token := k.token(t, claims(map[string]any{"filler": strings.Repeat("x", n)}))
		_, err := a.Authenticate(t.Context(), token)
		if want := len(token) <= maxTokenBytes; (err == nil) != want {
			t.Errorf("%d bytes: %v", len(token), err)
		} else if want {
			accepted++
		}
	}
	if accepted == 0 {
		t.Error("no token below the limit was tried")
	}
}

// RFC 7515 §4.1.9, RFC 9068 §2.1.
func TestC1Type(t *testing.T) {
	k := secretKey(testSecret)
	a := authenticator(t, Config{HS256Secret: testSecret})
	for _, tt := range []struct {
		typ  any // nil = absent
		want bool
	}{
		{nil, true},
		{"JWT", true},
		{"jwt", true},
		{"Jwt", true},
		{"at+jwt", true},
		{"AT+JWT", true},
		{"application/jwt", true},
		{"application/at+jwt", true},
		{"Application/At+Jwt", true},
		{"", false},
		{" JWT", false},
		{"JOSE", false},
		{"id_token", false},
		{"logout+jwt", false},
		{"token-introspection+jwt", false},
		{"secevent+jwt", false},
		{"dpop+jwt", false},
		{"application/", false},
		{"application/application/jwt", false},
		{"text/jwt", false},
		{[]string{"JWT"}, false},
		{1, false},
	} {
		token := k.raw(k.header(t, map[string]any{"typ": tt.typ}), mustJSON(t, claims(nil)))
		_, err := a.Authenticate(t.Context(), token)
		if (err == nil) != tt.want || (err != nil && !refused(t, token, err)) {
			t.Errorf("typ %v: got %v, want accepted = %v", tt.typ, err, tt.want)
		}
	}
	token := k.raw(`{"alg":"HS256","typ":null}`, mustJSON(t, claims(nil)))
	if _, err := a.Authenticate(t.Context(), token); !refused(t, token, err) {
		t.Errorf("typ null: got %v, want a refusal", err)
	}
}

// TestC1KeyChoice: a token names its key, or leaves no choice.
func TestC1KeyChoice(t *testing.T) {
	one, two, nameless := ecKey(t, "one"), ecKey(t, "two"), ecKey(t, "")
	rs, twin := rsaKey(t, "one"), ecKey(t, "one")
	for _, tt := range []struct {
		name string
		set  []any
		key  signingKey
		kid  any
		want bool
	}{
		{"kid of the key", []any{one.with(nil), two.with(nil)}, two, "two", true},
		{"kid of the other key", []any{one.with(nil), two.with(nil)}, two, "one", false},
		{"no kid, one key", []any{one.with(nil)}, one, nil, true},
		{"empty kid, one key", []any{one.with(nil)}, one, "", true},
		{"no kid, one key of the algorithm", []any{one.with(nil), rs.with(nil)}, one, nil, true},
		{"no kid, two keys", []any{one.with(nil), two.with(nil)}, one, nil, false},
		{"no kid, two keys, one for encryption", []any{one.with(nil), two.with(map[string]any{"use": "enc"})}, one, nil, true},
		{"no kid in the set, none in the token", []any{nameless.with(nil)}, nameless, nil, true},
		{"no kid in the set, one in the token", []any{nameless.with(nil)}, nameless, "any", false},
		{"one kid, two algorithms", []any{one.with(nil), rs.with(nil)}, one, "one", true},
		{"one kid, two algorithms, the other", []any{one.with(nil), rs.with(nil)}, rs, "one", true},
		{"one kid, two keys", []any{one.with(nil), twin.with(nil)}, one, "one", false},
		{"one kid, one key twice", []any{one.with(nil), one.with(nil)}, one, "one", false},
	} {
		a := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, tt.set...))})
		token := tt.key.raw(tt.key.header(t, map[string]any{"kid": tt.kid}), mustJSON(t, claims(nil)))
		_, err := a.Authenticate(t.Context(), token)
		if (err == nil) != tt.want || (err != nil && !refused(t, token, err)) {
			t.Errorf("%s: got %v, want accepted = %v", tt.name, err, tt.want)
		}
	}
}

// TestC1RFC8037 verifies the example of RFC 8037 appendix A.4.
func TestC1RFC8037(t *testing.T) {
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
	jws := "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc." +
		"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
	a := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, jwk))})
	payload, err := a.open(t.Context(), jws)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("Example of Ed25519 signing", string(payload)); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
}

// TestC1EveryByteCounts: changing any one character of a token makes it another, refused one.
func TestC1EveryByteCounts(t *testing.T) {
	for _, k := range []signingKey{ecKey(t, "e"), edKey(t, "d"), rsaKey(t, "r")} {
		a := authenticator(t, Config{JWKS: writeFile(t, keySetJSON(t, k.with(nil)))})
		token := k.token(t, claims(nil))
		for i := range token {
			for _, c := range []byte{'A', 'B', '_', '.', '\n'} {
				if token[i] == c {
					continue
				}
				changed := token[:i] + string(c) + token[i+1:]
				if _, err := a.open(t.Context(), changed); err == nil {
					t.Fatalf("%s: accepted with character %d changed to %q", k.alg, i, c)
				}
			}
		}
	}
}

func TestC1ROCA(t *testing.T) {
	// A modulus of the faulty generator: both primes are a power of 65537 modulo the product of the
	// first primes, so their product is one too.
	m := big.NewInt(1)
	for _, p := range []int64{2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167} {
		m.Mul(m, big.NewInt(p))
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	n.Add(n, new(big.Int).Lsh(m, 1900))
	if !hasROCA(n) {
		t.Error("a modulus with the structure was not recognised")
	}
	if hasROCA(n.Add(n, big.NewInt(2))) {
		t.Error("a modulus without the structure was taken for one")
	}
	if hasROCA(newRSAKey().N) {
		t.Error("an ordinary key was taken for one with the structure")
	}
}

// TestR3SecretIssuer: the settings of a shared secret.
func TestR3SecretIssuer(t *testing.T) {
	long, err := hex.DecodeString(strings.Repeat("0123456789abcdef", 8))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{long[:32], long} {
		a := authenticator(t, Config{HS256Secret: secret})
		if _, err := a.Authenticate(t.Context(), secretKey(secret).token(t, claims(nil))); err != nil {
			t.Errorf("%d bytes: %v", len(secret), err)
		}
		other := secretKey(append([]byte("x"), secret...)).token(t, claims(nil))
		if _, err := a.Authenticate(t.Context(), other); !refused(t, other, err) {
			t.Errorf("another secret: got %v, want a refusal", err)
		}
	}
	// The caller's slice is not kept: clearing it changes nothing.
	mine := append([]byte(nil), long...)
	a := authenticator(t, Config{HS256Secret: mine})
	clear(mine)
	if _, err := a.Authenticate(t.Context(), secretKey(long).token(t, claims(nil))); err != nil {
		t.Error(err)
	}
}

// TestC1CancelledWait: a caller who gives up while the key set is being fetched gets an error that is
// no refusal, and the fetch goes on for the others.
func TestC1CancelledWait(t *testing.T) {
	k := ecKey(t, "e")
	srv := &issuerServer{body: keySetJSON(t, k.with(nil)), hold: make(chan struct{})}
	a := authenticator(t, Config{JWKS: "https://login.example/keys", Client: srv.client(), Now: func() time.Time { return testNow }})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	token := k.token(t, claims(nil))
	_, err := a.Authenticate(ctx, token)
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want ErrUnavailable with the cause", err)
	}
	close(srv.hold)
	if _, err := a.Authenticate(t.Context(), token); err != nil {
		t.Error(err)
	}
	if n := srv.hits.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}
