package server

import (
	"net/http"
	"net/url"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/credential"
)

// presented is what the caller of a route with bearer, forwarded or oauthClient shows.
func presented(kind auth, r *http.Request) access.Presented {
	var p access.Presented
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		p.Certificate = r.TLS.VerifiedChains[0][0]
	}
	authorization := r.Header["Authorization"]
	if kind == forwarded { // Authorization is the merchant's
		values := r.Header["X-Internal-Token"]
		p.Malformed = len(values) > 1
		if len(values) == 1 {
			p.Token = values[0] // empty when the proxy has no credential to send
		}
		return p
	}
	if p.Token = credential.Bearer(authorization); p.Token == "" && kind == oauthClient {
		p.Token, p.Decoded = clientSecret(authorization)
	}
	p.Malformed = p.Token == "" && len(authorization) > 0
	return p
}

// clientSecret is the secret of an OAuth client of any name that authenticates by
// client_secret_basic (RFC 6749 section 2.3.1). That has it form-encoded, but many clients send it
// as it is: either is the token.
func clientSecret(authorization []string) (token, decoded string) {
	if len(authorization) != 1 {
		return "", ""
	}
	_, token, ok := credential.Basic(authorization[0])
	if !ok {
		return "", ""
	}
	decoded, err := url.QueryUnescape(token)
	if err != nil {
		decoded = token
	}
	return token, decoded
}
