// Package server is the doors over HTTP: it turns a request into a principal and a request
// value, hands them to the domain or to the verifier, and writes what comes back. Read routes.go first:
// the table of every route. adapt.go is what every request passes, errors.go the one map from
// codes to statuses, and each door has a file.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// Config says what the doors stand in front of. Service, Authenticator, Verifier, Operations, Format and Access
// are required; the zero value of the rest is the default.
type Config struct {
	Service       *keys.Service
	Authenticator Authenticator
	Verifier      Verifier
	Operations    Operations
	Format        token.Format // tells a secret from a user's token, and keeps secrets out of what is echoed

	// Access decides who may use the verification and the admin listener.
	Access *access.Gate

	// AdminHosts are names besides those of loopback and the address itself under which the admin
	// listener is reached: host, which allows every port, or host:port (R9).
	AdminHosts []string

	// Clients finds out who a request comes from (R8).
	Clients door.Clients

	// CORSOrigins are the exact origins, such as https://dashboard.example.com, whose pages may call
	// the management API.
	CORSOrigins []string

	Responder Responder // answers the probers of other nodes; nil = none is answered

	Metrics *Metrics     // nil = metrics of its own
	Logger  *slog.Logger // nil = slog.Default()
	Version string       // of the program, for GET /v1/status

	// UserRequestsPerMinute is a user's budget of management calls: as many at once, refilled
	// evenly (C32); 0 = no budget.
	UserRequestsPerMinute int

	// ListStall ends a list whose client takes longer than this for one page of it (C33); 0 = 10 s.
	ListStall time.Duration

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
	// Backup begins a consistent copy of the database, which the caller closes; ctx bounds it. op is
	// for the audit log.
	Backup(ctx context.Context, op keys.Operator) (Backup, error)
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

// AuditQuery selects audit entries (O6); an empty field selects all.
type AuditQuery struct {
	After                    int64
	Limit                    int
	OrganizationID, TargetID string
	Actor, Action, Outcome   string
	Since, Until             time.Time
}

// Server holds the handlers of the three listeners. It is safe for concurrent use.
type Server struct {
	cfg             Config
	undecided       door.Throttle // of the log line about verifications that were not decided
	users           *userBudgets  // nil = no budgets
	slowUsers       slowdown      // of rejections that are over a budget
	slowStrangers   slowdown      // of rejected tokens
	unauthenticated *sampler      // of the log lines about rejected callers that are not known
	requestIDs      door.RequestIDs

	public, verification, admin *listener
}

// New returns the doors for cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Service == nil || cfg.Authenticator == nil || cfg.Verifier == nil || cfg.Operations == nil || cfg.Access == nil || cfg.Format == (token.Format{}) {
		return nil, errors.New("server: a service, an authenticator, a verifier, operations, an access gate and a secret format are required")
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
	if cfg.ListStall == 0 {
		cfg.ListStall = 10 * time.Second
	}
	s := &Server{
		cfg: cfg, requestIDs: door.NewRequestIDs(cfg.Format),
		users: newUserBudgets(cfg.UserRequestsPerMinute), slowUsers: slowUsers(), slowStrangers: slowStrangers(),
		unauthenticated: newSampler(cfg.Logger),
	}
	s.public = newListener(public, s.routes(), cfg.Metrics)
	s.verification = newListener(verification, s.routes(), cfg.Metrics)
	s.admin = newListener(admin, s.routes(), cfg.Metrics)
	cfg.Metrics.watch(cfg.Verifier)
	cfg.Metrics.watchTurns(cfg.Service)
	return s, nil
}

// Public returns the handler of the public listener.
func (s *Server) Public() http.Handler { return s.handler(s.public) }

// Verification returns the handler of the verification listener.
func (s *Server) Verification() http.Handler { return s.handler(s.verification) }

// Admin returns the handler of the admin listener.
func (s *Server) Admin() http.Handler { return s.handler(s.admin) }

// exactOrigin reports whether o is an origin as a browser writes it (RFC 6454 section 6.2).
func exactOrigin(o string) bool {
	u, err := url.Parse(o)
	return err == nil && slices.Contains([]string{"http", "https"}, u.Scheme) && u.Host != "" && o == u.Scheme+"://"+u.Host
}
