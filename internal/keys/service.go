package keys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/failpoint"
	"github.com/syncgram/keyward/internal/fairqueue"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/token"
)

// Config says how a Service works. Store, Ring, Format, Barrier and Render are required; the
// zero value of the rest is the default.
type Config struct {
	Store   Store
	Ring    *seal.Ring
	Format  token.Format
	Barrier Barrier

	// Render gives the body that answers an issued key. Its bytes are what a replay answers (C16).
	Render func(Issued) ([]byte, error)

	RequiredRoles     []string      // when set, a principal needs one of them (R3)
	RoleClaim         string        // where the roles come from; for the log
	RequireRegistered bool          // refuse organizations that were never put (C4)
	MaxExpiresInDays  int           // 0 = no maximum, and a key may never expire (C8)
	MaxOverlap        time.Duration // 0 = 24 h; negative = a roll allows no overlap (C24)
	RevokeBatch       int           // keys that RevokeMany revokes in one transaction; 0 = 200 (O4)

	// Manages, when set, says from memory that an organization certainly may manage keys. False says nothing: the store is asked.
	Manages func(organizationID string, registered bool) bool

	// Proven, when set, returns nil while anything may be answered from the database (V8); otherwise
	// it says why not, and every call is answered with 503.
	Proven func() error

	// HeldRevision, when set, returns the revision that verification holds a row at, 0 = none. A row
	// of the database that is older was put back by somebody else (V8).
	HeldRevision func(kind, id string) int64

	// Writes and Reads are how many writes, and how many reads for lists, run at the same time. Who
	// waits takes turns (C32). 0 = 1 write and 2 reads.
	Writes, Reads int

	// Logger receives what nobody is answered; nil = slog.Default().
	Logger *slog.Logger

	// Observe, when set, is told of each act that was decided, for metrics. The outcome is Done, an
	// error code or "error".
	Observe func(action Action, outcome string, took time.Duration)
}

// Limits of the contract.
const (
	rateWindow       = 60 * time.Second // C14, C24
	keptFor          = 24 * time.Hour   // C15
	maxText          = 255              // C7, C15, C21, in code points
	maxDays          = 36500            // C8
	day              = 24 * time.Hour
	defaultOverlap   = 24 * time.Hour
	maxPage          = 100 // C18
	inProgressRetry  = time.Second
	unavailableRetry = time.Second
)

// Service holds every rule of the contract and is the only way to the store's writes. It
// is safe for concurrent use.
type Service struct {
	cfg        Config // Store is store
	store      *fairStore
	reads      *fairqueue.Queue // before each page of a list
	rejections *rejections

	mu       sync.Mutex
	running  map[Handle]struct{}     // idempotent requests under way in this process (C16); guarded by mu
	lists    map[string]int          // lists under way, by user (C33); guarded by mu
	revoking map[revocation]struct{} // those that wait as urgent; guarded by mu
	revoked  recentIDs               // keys that are known to be revoked; guarded by mu
}

// NewService returns a Service.
func NewService(cfg Config) (*Service, error) {
	switch {
	case cfg.Store == nil, cfg.Ring == nil, cfg.Barrier == nil, cfg.Render == nil:
		return nil, errors.New("keys: the service needs a store, a key ring, a barrier and a renderer")
	case cfg.MaxExpiresInDays < 0 || cfg.MaxExpiresInDays > maxDays:
		return nil, fmt.Errorf("keys: the maximum lifetime must be 0 (none) to %d days", maxDays)
	}
	if cfg.MaxOverlap == 0 {
		cfg.MaxOverlap = defaultOverlap
	}
	cfg.MaxOverlap = max(cfg.MaxOverlap, 0)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Reads == 0 {
		cfg.Reads = 2
	}
	if cfg.RevokeBatch <= 0 {
		cfg.RevokeBatch = revokeBatch
	}
	store := &fairStore{Store: cfg.Store, queue: fairqueue.New(cfg.Writes, maxWaitingWrites), proven: cfg.Proven}
	cfg.Store = store
	return &Service{
		cfg: cfg, store: store, reads: fairqueue.New(cfg.Reads, 0), rejections: newRejections(),
		running: make(map[Handle]struct{}), lists: make(map[string]int), revoking: make(map[revocation]struct{}),
	}, nil
}

// Unavailable wraps the failure of something below the rules: the caller learns only that
// it was not decided (503), the log learns why.
type Unavailable struct{ Err error }

func (u *Unavailable) Error() string { return "unavailable: " + u.Err.Error() }

// Unwrap returns the cause.
func (u *Unavailable) Unwrap() error { return u.Err }

// undecided makes an error that is not a refusal an Unavailable.
func undecided(err error) error {
	var refusal *Error
	var already *Unavailable
	if err == nil || errors.As(err, &refusal) || errors.As(err, &already) {
		return err
	}
	return &Unavailable{err}
}

// organizations is where the gate reads: the store, or the transaction of a write.
type organizations interface {
	Organization(ctx context.Context, id string) (Organization, error)
}

// gate is the one place that says who may manage keys (C2–C5, R3), and returns the caller's
// organization as the transaction sees it.
func (s *Service) gate(ctx context.Context, from organizations, c Call) (Organization, error) {
	if err := s.entitled(c); err != nil {
		return Organization{}, err
	}
	if err := s.proven(); err != nil {
		return Organization{}, err
	}
	o, err := from.Organization(ctx, c.Principal.OrganizationID)
	if err == nil {
		err = s.notOlder(KindOrganization, o.ID, o.Revision)
	}
	switch {
	case err != nil:
		return o, undecided(err)
	case !o.Registered && s.cfg.RequireRegistered:
		return o, &Error{Code: api.OrganizationUnknown, Detail: "This organization is not registered here. Register it before managing its API keys."}
	case !o.Genuine || !o.Active:
		return o, &Error{Code: api.OrganizationInactive, Detail: "This organization is switched off. Its API keys can be managed again once it is active."}
	case o.ParentID != "":
		return o, &Error{Code: api.ConnectedAccount, Detail: "Connected accounts cannot manage API keys. Use the platform's organization and name the connected account in each payment request."}
	}
	return o, nil
}

// proven returns an Unavailable while nothing may be answered from the database (V8).
func (s *Service) proven() error {
	if s.cfg.Proven == nil {
		return nil
	}
	return undecided(s.cfg.Proven())
}

// notOlder returns ErrTampered for a row that is older than the one verification holds (V8).
func (s *Service) notOlder(kind, id string, revision int64) error {
	if s.cfg.HeldRevision == nil || revision >= s.cfg.HeldRevision(kind, id) {
		return nil
	}
	return fmt.Errorf("%w: %s %s is older than the row that verification holds", ErrTampered, kind, id)
}

// entitled is the gate's part that asks of the caller alone.
func (s *Service) entitled(c Call) error {
	if len(s.cfg.RequiredRoles) > 0 && !slices.ContainsFunc(c.Principal.Roles, func(r string) bool {
		return slices.Contains(s.cfg.RequiredRoles, r)
	}) {
		return &Error{
			Code: api.Forbidden, Reason: s.roleReason(c.Principal.Roles),
			Detail: "Your account has no role that may manage API keys. Ask an administrator of your organization for one.",
		}
	}
	if c.ConnectedAccount {
		return &Error{Code: api.ConnectedAccount, Param: "X-Connected-Account-ID", Detail: "Keys are managed by the platform's own organization. Send the request without X-Connected-Account-ID."}
	}
	return nil
}

// Admit answers whether the caller may manage keys at all, so that a door can refuse before it
// reads a body (C2). The refusal is in the audit log when Admit returns. What is done then passes the gate once more, in its transaction.
func (s *Service) Admit(ctx context.Context, c Call, action Action, targetID string) error {
	if s.cfg.Manages != nil && s.entitled(c) == nil && s.cfg.Manages(c.Principal.OrganizationID, s.cfg.RequireRegistered) {
		return nil
	}
	if _, err := s.gate(ctx, s.cfg.Store, c); err != nil {
		return s.Refuse(ctx, c, action, targetID, err)
	}
	return nil
}

// Refuse writes a refusal into the audit log and returns it, or an Unavailable when it could
// not be written. Doors call it for what they refuse themselves, such as a malformed body.
func (s *Service) Refuse(ctx context.Context, c Call, action Action, targetID string, cause error) error {
	var refusal *Error
	if !errors.As(cause, &refusal) {
		return undecided(cause)
	}
	if !validID(targetID) {
		targetID = "" // whatever stood in the path is not worth keeping
	}
	if !s.rejections.first(c, action, refusal) {
		return refusal // it is counted
	}
	if err := s.recordRejection(ctx, c, action, targetID, refusal); err != nil {
		s.rejections.forget(c, action, refusal)
		return err
	}
	return refusal
}

// entry starts an audit entry of the caller.
func (s *Service) entry(c Call, action Action, targetID string, now time.Time) AuditEntry {
	return AuditEntry{
		At: now, Actor: c.Principal.User, Action: action, OrganizationID: c.Principal.OrganizationID,
		TargetID: targetID, Outcome: Done, RemoteAddress: c.RemoteAddress, RequestID: c.RequestID,
	}
}

// write runs fn in a transaction behind the gate and waits for the barrier. A refusal from fn
// undoes everything and is recorded instead.
func (s *Service) write(ctx context.Context, c Call, action Action, targetID string, fn func(context.Context, Tx, Organization) error) error {
	first := Reads{OrganizationID: c.Principal.OrganizationID}
	if action != ActCreate {
		first.KeyID = knownID(targetID)
	}
	release, err := s.waitToWrite(ctx, c, action, targetID)
	if err != nil {
		return s.Refuse(ctx, c, action, targetID, s.full(err))
	}
	commit, err := s.store.writeHeld(ctx, release, first, func(ctx context.Context, tx Tx) error {
		o, err := s.gate(ctx, tx, c)
		if err != nil {
			return err
		}
		return fn(ctx, tx, o)
	})
	if err != nil {
		if errors.Is(err, errReplay) {
			return err
		}
		return s.Refuse(ctx, c, action, targetID, err)
	}
	failpoint.Hit("write.committed")
	return undecided(s.cfg.Barrier.Await(ctx, commit))
}

// observe reports an act that ended with err.
func (s *Service) observe(action Action, began time.Time, err error) {
	if s.cfg.Observe == nil {
		return
	}
	outcome := Done
	var refusal *Error
	if errors.As(err, &refusal) {
		outcome = string(refusal.Code)
	} else if err != nil {
		outcome = "error"
	}
	s.cfg.Observe(action, outcome, time.Since(began))
}

func notFound() *Error {
	return &Error{Code: api.KeyNotFound, Detail: "Your organization has no API key with this id. List the keys to see their ids."}
}
