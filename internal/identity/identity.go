// Package identity turns the bearer token of a management call into a principal (C1).
//
// A token is a JWS in compact form whose payload is a JWT claims set (RFC 7519). Who may
// sign is fixed by the configuration and never by the token: either the asymmetric keys of
// one JWK set or one shared HMAC secret, never both. Everything a token says of keys
// (jku, x5u, jwk, x5c) is left unread or refused (RFC 8725 §3.10).
package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/syncgram/keyward/internal/keys"
)

// Config says whose tokens are accepted and what is read from them (R3, KEYWARD_JWT_*).
// Exactly one of JWKS, HS256Secret and HS256Read must be set.
type Config struct {
	// JWKS is where the issuer's public keys are: an https URL, an http URL on loopback, or the
	// path of a file. Tokens are then signed with RS256, ES256 or EdDSA.
	JWKS string

	// JWKSMaxAge is how long the last good key set may be used while it cannot be read again. 0 = for
	// as long as the process runs.
	JWKSMaxAge time.Duration

	// HS256Secret is the shared secret of an HS256 issuer, at least 32 bytes (RFC 7518 §3.2).
	HS256Secret []byte

	// HS256Read returns that secret instead, from where it is kept. It is called again every two
	// seconds and by Reload, never twice at once (R11). An error changes nothing.
	HS256Read func() ([]byte, error)

	// Issuer and Audience are what iss must be and aud must contain. Empty = not checked.
	Issuer, Audience string

	// OrganizationClaim names the claim that holds the organization. Empty = "org_id".
	OrganizationClaim string

	// RoleClaim names the claim that holds the roles: one string with spaces between them, or
	// an array of strings. Empty = roles are not read.
	RoleClaim string

	// Logger receives the outcome of key set reads. Nil = slog.Default().
	Logger *slog.Logger

	// Client fetches the key set. Its redirect policy is not used: redirects are refused.
	// Nil = a client of its own.
	Client *http.Client

	// Now is the clock. Nil = time.Now.
	Now func() time.Time
}

// ErrUnavailable means that a token could not be judged because the issuer's keys are not known,
// or not well enough. The caller answers 503 and lets nobody in.
var ErrUnavailable = errors.New("identity: the issuer's key set is not available")

// UnavailableError is an ErrUnavailable that says why and for how long. Reason is for the log and
// holds no part of the token.
type UnavailableError struct {
	Reason string
	Wait   time.Duration // until it makes sense to ask again
}

func (e *UnavailableError) Error() string { return "identity: token not judged: " + e.Reason }

// Is makes the error an ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// RetryAfter is how long the caller should wait.
func (e *UnavailableError) RetryAfter() time.Duration { return e.Wait }

// InvalidTokenError means that a token was judged and refused; the caller answers 401
// invalid_token. Reason is for the log alone and holds no part of the token.
type InvalidTokenError struct{ Reason string }

func (e *InvalidTokenError) Error() string { return "identity: token refused: " + e.Reason }

func refuse(reason string) error { return &InvalidTokenError{Reason: reason} }

// Authenticator judges tokens of one issuer. It is safe for concurrent use.
type Authenticator struct {
	// algorithms are the ones this issuer may use: all asymmetric, or HS256 alone. A set
	// with both would let a public key pass for a shared secret (RFC 8725 §3.1).
	algorithms []jose.SignatureAlgorithm
	// key returns the one key that may have signed a token with this header.
	key func(context.Context, jose.SignatureAlgorithm, string) (any, error)

	issuer, audience  string
	organizationClaim string
	roleClaim         string
	now               func() time.Time
	cache             *keyCache     // nil with a shared secret
	secret            *sharedSecret // nil unless it is read again
}

// New returns an Authenticator. A key set file is read before New returns, and any fault of it is
// an error; a key set URL is fetched in the background, and one that does not answer
// is no error: Authenticate says ErrUnavailable until it does. Cancelling ctx, or Close,
// ends the background work.
func New(ctx context.Context, c Config) (*Authenticator, error) {
	a := &Authenticator{
		issuer:            c.Issuer,
		audience:          c.Audience,
		organizationClaim: c.OrganizationClaim,
		roleClaim:         c.RoleClaim,
		now:               c.Now,
	}
	if a.organizationClaim == "" {
		a.organizationClaim = "org_id"
	}
	if a.now == nil {
		a.now = time.Now
	}
	logger := c.Logger
	if logger == nil {
		logger = slog.Default()
	}

	shared := c.HS256Secret != nil || c.HS256Read != nil
	switch {
	case c.JWKS != "" && shared:
		return nil, errors.New("identity: set a JWKS or an HS256 secret, not both: an issuer has one kind of algorithm")
	case c.HS256Secret != nil && c.HS256Read != nil:
		return nil, errors.New("identity: set an HS256 secret or how to read it, not both")
	case c.JWKS == "" && !shared:
		return nil, errors.New("identity: set a JWKS or an HS256 secret")
	}
	if shared {
		a.algorithms = []jose.SignatureAlgorithm{jose.HS256}
		if c.HS256Read == nil {
			if len(c.HS256Secret) < minSecretBytes {
				return nil, fmt.Errorf("identity: %w", errShortSecret)
			}
			secret := bytes.Clone(c.HS256Secret)
			a.key = func(context.Context, jose.SignatureAlgorithm, string) (any, error) {
				return secret, nil
			}
			return a, nil
		}
		var err error
		if a.secret, err = newSharedSecret(ctx, c.HS256Read, logger); err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		a.key = a.secret.find
		return a, nil
	}

	src, err := openSource(c.JWKS, c.Client, a.now)
	if err != nil {
		return nil, fmt.Errorf("identity: JWKS: %w", err)
	}
	a.algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA}
	a.cache, err = newKeyCache(ctx, src, c.JWKSMaxAge, a.now, logger)
	if err != nil {
		return nil, fmt.Errorf("identity: JWKS: %w", err)
	}
	a.key = a.cache.find
	return a, nil
}

// Authenticate returns the principal a token speaks for (C1). The error is an
// *InvalidTokenError when the token was judged and refused; any other error, ErrUnavailable
// among its causes, means that it could not be judged.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (keys.Principal, error) {
	payload, err := a.open(ctx, token)
	if err != nil {
		return keys.Principal{}, err
	}
	return a.principal(payload)
}

// Reload has the key set or the shared secret read again at once, and does not wait for it (R11).
func (a *Authenticator) Reload() {
	if a.cache != nil {
		a.cache.reload()
	}
	if a.secret != nil {
		a.secret.reload()
	}
}

// Close ends the background work and waits for it. Keys already read stay known.
func (a *Authenticator) Close() {
	if a.cache != nil {
		a.cache.close()
	}
	if a.secret != nil {
		a.secret.close()
	}
}
