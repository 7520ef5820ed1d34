package identity

import "testing"

// BenchmarkAuthenticate is a good token of each algorithm, its key known.
func BenchmarkAuthenticate(b *testing.B) {
	for _, k := range []signingKey{rsaKey(b, "k"), ecKey(b, "k"), edKey(b, "k"), secretKey(testSecret)} {
		c := Config{HS256Secret: testSecret}
		if k.jwk != nil {
			c = Config{JWKS: writeFile(b, keySetJSON(b, k.with(nil)))}
		}
		a := authenticator(b, c)
		token := k.token(b, claims(nil))
		b.Run(k.alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Authenticate(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuse is what a flood costs: tokens with an unknown kid, and with a bad signature.
func BenchmarkRefuse(b *testing.B) {
	k, thief := ecKey(b, "k"), ecKey(b, "thief")
	a := authenticator(b, Config{JWKS: writeFile(b, keySetJSON(b, k.with(nil)))})
	unknown := thief.token(b, claims(nil))
	thief.kid = "k"
	for name, token := range map[string]string{"unknown kid": unknown, "bad signature": thief.token(b, claims(nil))} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Authenticate(b.Context(), token); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}
