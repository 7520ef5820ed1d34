package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// longBudget bounds the operations that read or write the whole database.
const longBudget = time.Hour

// long gives an endpoint more time than the others have, also for writing its answer.
func (s *Server) long(e endpoint) endpoint {
	return func(x *exchange) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), longBudget)
		defer cancel()
		x.ctx = ctx
		if err := http.NewResponseController(x).SetWriteDeadline(time.Now().Add(longBudget)); err != nil {
			return fmt.Errorf("lift the write deadline: %w", err)
		}
		return e(x)
	}
}

// unavailable makes an error from below the doors one that is answered with 503.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return &keys.Unavailable{Err: err}
}

func readAudit(x *exchange) (AuditQuery, error) {
	var q AuditQuery
	var err error
	if q.Limit, err = x.limit(maxAudit); err != nil {
		return q, err
	}
	after, err := x.number("after")
	if err != nil {
		return q, err
	}
	if after != nil {
		if *after < 0 {
			return q, keys.Invalid("after", "after must be a sequence number, 0 or more.")
		}
		q.After = *after
	}
	for name, into := range map[string]*string{"organization_id": &q.OrganizationID, "target_id": &q.TargetID} {
		if v := x.parameter(name); v != nil {
			if !keys.ValidOrganizationID(*v) { // key ids have this form too
				return q, keys.Invalid(name, name+" must be an id.")
			}
			*into = *v
		}
	}
	return q, x.readAuditFilter(&q)
}

func (s *Server) listAudit(ctx context.Context, _ keys.Call, q AuditQuery) (answer, error) {
	limit := q.Limit
	q.Limit++ // one more tells whether there are more
	entries, err := s.cfg.Operations.Audit(ctx, q)
	if err != nil {
		return answer{}, unavailable(err)
	}
	list := api.AuditList{Entries: make([]api.AuditEntry, 0, len(entries)), HasMore: len(entries) > limit, NextSequence: q.After}
	for _, e := range entries[:min(limit, len(entries))] {
		list.NextSequence = e.Sequence
		list.Entries = append(list.Entries, api.AuditEntry{
			Sequence: e.Sequence, At: timestamp(e.At), Actor: e.Actor, Action: string(e.Action),
			OrganizationID: e.OrganizationID, TargetID: e.TargetID, Outcome: e.Outcome, Detail: e.Detail,
			RemoteAddress: e.RemoteAddress, RequestID: e.RequestID, Revision: e.Revision, Hash: hex.EncodeToString(e.Hash[:]),
		})
	}
	return answer{body: list}, nil
}

func (s *Server) verifyAudit(ctx context.Context, _ keys.Call, _ struct{}) (answer, error) {
	r, err := s.cfg.Operations.VerifyAudit(ctx)
	if err != nil {
		return answer{}, unavailable(err)
	}
	return answer{body: api.AuditVerification{
		Intact: len(r.Findings) == 0, Entries: r.Entries, Sequence: r.Sequence,
		Hash: hex.EncodeToString(r.Hash[:]), Findings: append([]string{}, r.Findings...),
	}}, nil
}

func (s *Server) rotate(ctx context.Context, c keys.Call, _ struct{}) (answer, error) {
	r, err := s.cfg.Operations.Rotate(ctx, operator(c))
	if r.RetireableKeyIDs == nil {
		r.RetireableKeyIDs = []string{}
	}
	return answer{body: r}, unavailable(err)
}

// Words of a check.
const (
	checkOK   = "ok"
	checkFail = "fail"
)

func (s *Server) status(ctx context.Context, _ keys.Call, _ struct{}) (answer, error) {
	stats := s.cfg.Verifier.Stats()
	verification := api.Check{Name: "verification", Status: checkOK, Detail: "decides from memory"}
	if err := s.cfg.Verifier.Ready(); err != nil {
		verification.Status, verification.Detail = checkFail, err.Error()
	}
	rows := api.Check{Name: "seals", Status: checkOK, Detail: "every row read so far bears its seal"}
	switch {
	case stats.Tampered > 0:
		rows.Status, rows.Detail = checkFail, "rows were changed by somebody else: see the log for which"
	case stats.Differences > 0:
		rows.Status = checkFail
		rows.Detail = "memory differed from the authenticated state of the database: see the log"
	}
	checks, err := s.cfg.Operations.Checks(ctx)
	if err != nil {
		s.cfg.Logger.ErrorContext(ctx, "the database's settings could not be read", "error", err)
		checks = []api.Check{{Name: "database", Status: checkFail, Detail: "not reachable"}}
	}
	return answer{body: api.Status{
		Version: s.cfg.Version, Database: s.cfg.Operations.Engine(), Revision: stats.Revision, Keys: int(stats.Keys),
		Checks: append([]api.Check{verification, rows}, checks...),
	}}, nil
}

func (s *Server) nodes(ctx context.Context, _ keys.Call, _ struct{}) (answer, error) {
	list, err := s.cfg.Operations.Nodes(ctx)
	if list.Nodes == nil {
		list.Nodes = []api.Node{}
	}
	return answer{body: list}, unavailable(err)
}

// alive answers /livez: the process serves.
func (s *Server) alive(x *exchange) error {
	x.Header()["Content-Type"] = plainText
	_, _ = x.Write(fine) // the client is gone; there is nobody left to tell
	return nil
}

// ready answers /readyz and /healthz: this node decides from memory (R5).
func (s *Server) ready(x *exchange) error {
	if err := s.cfg.Verifier.Ready(); err != nil {
		return &keys.Error{Code: api.Unavailable, Detail: "Not ready: " + err.Error() + "."}
	}
	return s.alive(x)
}

var (
	plainText = []string{"text/plain; charset=utf-8"}
	fine      = []byte("ok\n")
)

// metrics answers /metrics.
func (s *Server) metrics() endpoint {
	h := s.cfg.Metrics.handler()
	return func(x *exchange) error {
		h.ServeHTTP(x, x.r)
		return nil
	}
}
