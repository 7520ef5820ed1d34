// Package server is the doors over HTTP: it turns a request into a principal and a request
// value, hands them to the domain or to the verifier, and writes what comes back. Read routes.go first:
// the table of every route. adapt.go is what every request passes, errors.go the one map from
// codes to statuses, and each door has a file.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// Config says what the doors stand in front of. Service, Authenticator, Verifier, Operations and Format
// are required; the zero value of the rest is the default.
type Config struct {
	Service       *keys.Service
	Authenticator Authenticator
	Verifier      Verifier
	Operations    Operations
	Format        token.Format // tells a secret from a user's token, and keeps secrets out of what is echoed

	// InternalTokens are the bearer tokens of the internal listener, each at least 16 characters. None
	// means that everyone who reaches the listener may use it, so it must be on loopback (R3).
	InternalTokens []string

	// CORSOrigins are the exact origins, such as https://dashboard.example.com, whose pages may call
	// the management API.
	CORSOrigins []string

	Responder Responder // answers the probers of other nodes; nil = none is answered

	Metrics *Metrics     // nil = metrics of its own
	Logger  *slog.Logger // nil = slog.Default()
	Version string       // of the program, for GET /v1/status

	// Budget bounds a management or operations call from its token to its answer; 0 = 30 s. It must be
	// longer than a write may wait for a node that died (1.25 × lease).
	Budget time.Duration
}

// Authenticator turns a user's token into a principal. An *identity.InvalidTokenError means that the
// token was judged and refused, any other error that it could not be judged.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (keys.Principal, error)
}

// Verifier decides about secrets; an error means that it could not decide.
type Verifier interface {
	Verify(ctx context.Context, r verify.Request) (verify.Verdict, error)
	Ready() error
	Stats() verify.Stats
}

// Operations is what the people who run Keyward ask of the database and the key ring.
type Operations interface {
	// Audit returns up to q.Limit entries with a sequence greater than q.After, in order.
	Audit(ctx context.Context, q AuditQuery) ([]keys.AuditEntry, error)
	// VerifyAudit checks the whole audit log; it may take minutes.
	VerifyAudit(ctx context.Context) (keys.AuditReport, error)
	// Rotate reads the master key file again and seals everything anew under its current key; it may
	// take minutes, and repeating it is safe. op is for the audit log.
	Rotate(ctx context.Context, op keys.Operator) (api.Reseal, error)
	// Checks reports the settings that the promises rest on.
	Checks(ctx context.Context) ([]api.Check, error)
	// Nodes lists the serving nodes, this one among them.
	Nodes(ctx context.Context) (api.NodeList, error)
	// Engine names the database: sqlite or postgres.
	Engine() string
}

// Responder answers what other nodes' probers ask; *probe.Responder does. An error means that it
// was not a question to this node.
type Responder interface {
	Answer(ctx context.Context, asked api.ProbeQuestion) (api.ProbeAnswer, error)
}

// AuditQuery selects audit entries; an empty id selects all.
type AuditQuery struct {
	After                    int64
	Limit                    int
	OrganizationID, TargetID string
}

// Server holds both listeners' handlers. It is safe for concurrent use.
type Server struct {
	cfg              Config
	public, internal *listener
	tokens           door.InternalTokens
	undecided        door.Throttle // of the log line about verifications that were not decided
	requestIDs       door.RequestIDs
}

// New returns the doors for cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Service == nil || cfg.Authenticator == nil || cfg.Verifier == nil || cfg.Operations == nil || cfg.Format == (token.Format{}) {
		return nil, errors.New("server: a service, an authenticator, a verifier, operations and a secret format are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	if cfg.Budget == 0 {
		cfg.Budget = 30 * time.Second
	}
	for _, o := range cfg.CORSOrigins {
		if !exactOrigin(o) {
			return nil, errors.New("server: a CORS origin must be scheme://host with an optional port and nothing after it, such as https://dashboard.example.com")
		}
	}
	s := &Server{cfg: cfg, requestIDs: door.NewRequestIDs(cfg.Format)}
	var err error
	if s.tokens, err = door.NewInternalTokens(cfg.InternalTokens); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.public = newListener(public, s.routes(), cfg.Metrics)
	s.internal = newListener(internal, s.routes(), cfg.Metrics)
	cfg.Metrics.watch(cfg.Verifier)
	return s, nil
}

// Public returns the handler of the public listener.
func (s *Server) Public() http.Handler { return s.handler(s.public) }

// Internal returns the handler of the internal listener.
func (s *Server) Internal() http.Handler { return s.handler(s.internal) }

// exactOrigin reports whether o is an origin as a browser writes it (RFC 6454 section 6.2).
func exactOrigin(o string) bool {
	u, err := url.Parse(o)
	return err == nil && slices.Contains([]string{"http", "https"}, u.Scheme) && u.Host != "" && o == u.Scheme+"://"+u.Host
}
