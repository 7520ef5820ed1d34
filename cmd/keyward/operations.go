package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
)

// operations is what operators ask of a running node: server.Operations.
type operations struct {
	db            *lateStore
	verifier      *verify.Verifier
	ring          *seal.Ring
	masterKeyFile string
	logger        *slog.Logger

	rotating sync.Mutex
}

// Audit implements server.Operations.
func (o *operations) Audit(ctx context.Context, q server.AuditQuery) ([]keys.AuditEntry, error) {
	return with(o.db, func(s *sqlstore.Store) ([]keys.AuditEntry, error) {
		return s.Audit(ctx, q.After, q.Limit, sqlstore.AuditFilter{
			OrganizationID: q.OrganizationID, TargetID: q.TargetID, Actor: q.Actor, Action: keys.Action(q.Action),
			Outcome: q.Outcome, Since: q.Since, Until: q.Until,
		})
	})
}

// VerifyAudit implements server.Operations.
func (o *operations) VerifyAudit(ctx context.Context) (keys.AuditReport, error) {
	return with(o.db, func(s *sqlstore.Store) (keys.AuditReport, error) {
		return s.VerifyAudit(ctx, o.log("checking the audit log"))
	})
}

// Rotate implements server.Operations.
func (o *operations) Rotate(ctx context.Context, op keys.Operator) (api.Reseal, error) {
	s, err := o.db.opened()
	if err != nil {
		return api.Reseal{}, err
	}
	if !o.rotating.TryLock() {
		return api.Reseal{}, &keys.Error{Code: api.Unavailable, Detail: "A rotation is running already; ask again when it is done."}
	}
	defer o.rotating.Unlock()
	if err := o.ring.Reload(o.masterKeyFile); err != nil {
		o.logger.Error("the master key file cannot be used; nothing was changed", "error", err)
		return api.Reseal{}, &keys.Error{Code: api.Unavailable, Detail: "The master key file cannot be used, and nothing was changed; the server's log says why."}
	}
	r, err := s.Reseal(ctx, o.log("sealing every row anew"))
	if err != nil {
		return api.Reseal{}, err
	}
	for _, what := range r.Refused {
		o.logger.Error("a row whose seal is bad was not sealed anew", "row", what)
	}
	answer := api.Reseal{MasterKeyID: o.ring.Current(), RowsResealed: r.Keys + r.Organizations, AuditResealed: r.AuditEntries}
	for _, kept := range r.KeptAnswers {
		answer.KeptAnswers += kept
	}
	for _, id := range o.ring.KeyIDs()[1:] {
		if r.Left == 0 && r.KeptAnswers[id] == 0 {
			answer.RetireableKeyIDs = append(answer.RetireableKeyIDs, id)
		}
	}
	slices.Sort(answer.RetireableKeyIDs)
	now, err := s.Now(ctx)
	if err != nil {
		return api.Reseal{}, err
	}
	err = s.Record(ctx, keys.AuditEntry{
		At: now, Actor: "operator", Action: keys.ActReseal, Outcome: keys.Done,
		Detail:        fmt.Sprintf("master_key=%s rows=%d audit_entries=%d left=%d", answer.MasterKeyID, answer.RowsResealed, answer.AuditResealed, r.Left),
		RemoteAddress: op.RemoteAddress, RequestID: op.RequestID,
	})
	return answer, err
}

// log reports progress, a line each tenth.
func (o *operations) log(what string) func(done, total int64) {
	var tenth int64
	return func(done, total int64) {
		if total > 0 && done*10/total > tenth {
			tenth = done * 10 / total
			o.logger.Info(what, "done", done, "of", total)
		}
	}
}

// Checks implements server.Operations.
func (o *operations) Checks(ctx context.Context) ([]api.Check, error) {
	found, err := with(o.db, func(s *sqlstore.Store) ([]sqlstore.Finding, error) { return s.Durability(ctx) })
	if err != nil {
		return nil, err
	}
	mode, err := with(o.db, func(s *sqlstore.Store) (sqlstore.Mode, error) { return s.Mode(ctx) })
	if err != nil {
		return nil, err
	}
	checks := make([]api.Check, 0, len(found)+6)
	for _, f := range found {
		c := api.Check{Name: f.Name, Status: checkOK, Detail: f.Value}
		if !f.OK {
			c.Status, c.Detail = checkWarn, f.Value+": "+f.Advice
			if f.Value == "" {
				c.Detail = f.Advice
			}
		}
		checks = append(checks, c)
	}
	file := api.Check{Name: "master key file", Status: checkOK, Detail: "current key " + o.ring.Current()}
	switch ring, err := seal.Load(o.masterKeyFile); {
	case err != nil:
		o.logger.ErrorContext(ctx, "the master key file cannot be used any more", "error", err)
		file.Status, file.Detail = checkFail, "cannot be used any more; the next start will fail, and the server's log says why"
	case ring.Current() != o.ring.Current():
		file.Status, file.Detail = checkWarn, "has a new first key "+ring.Current()+": run `keyward master-key rotate`"
	}
	survives := api.Check{Name: "revocation durability", Status: checkOK, Detail: string(mode) + ": an answered revocation survives " + mode.Meaning()}
	if mode == sqlstore.Asynchronous {
		survives.Status = checkWarn
	}
	return append(checks, survives, o.checkAnnouncements(), o.checkState(ctx), o.checkRows(), file), nil
}

// checkState checks what the database says of itself as a whole.
func (o *operations) checkState(ctx context.Context) api.Check {
	c := api.Check{Name: "sealed state", Status: checkOK, Detail: "agrees with the revision and the last audit entry"}
	_, err := with(o.db, func(s *sqlstore.Store) (struct{}, error) { return struct{}{}, s.CheckState(ctx) })
	switch {
	case errors.Is(err, keys.ErrTampered):
		o.logger.ErrorContext(ctx, "the database's sealed state does not hold", "error", err)
		c.Status, c.Detail = checkFail, "the database was changed by somebody else: see the log, and run `keyward audit verify`"
	case err != nil:
		o.logger.ErrorContext(ctx, "the database's sealed state could not be checked", "error", err)
		c.Status, c.Detail = checkFail, "could not be checked; the server's log says why"
	}
	return c
}

// checkAnnouncements checks whether this node hears of writes at once.
func (o *operations) checkAnnouncements() api.Check {
	if o.verifier.Stats().Announced {
		return api.Check{Name: "announcements", Status: checkOK, Detail: "writes of other nodes are heard of at once"}
	}
	return api.Check{Name: "announcements", Status: checkWarn, Detail: "none arrive, so this node polls: is there a pooler in transaction mode between it and the database?"}
}

// checkRows checks what the memory has refused since the start.
func (o *operations) checkRows() api.Check {
	n := o.verifier.Stats().Tampered
	if n == 0 {
		return api.Check{Name: "tampered rows", Status: checkOK, Detail: "0"}
	}
	return api.Check{Name: "tampered rows", Status: checkFail, Detail: fmt.Sprintf("%d refused since the start: the log says which, and then run `keyward audit verify`", n)}
}

// Nodes implements server.Operations.
func (o *operations) Nodes(ctx context.Context) (api.NodeList, error) {
	return with(o.db, func(s *sqlstore.Store) (api.NodeList, error) {
		nodes, revision, err := s.Nodes(ctx)
		return nodeList(nodes, revision, o.verifier.NodeID()), err
	})
}

// nodeList is the nodes on the wire. A clock that was set back makes a renewal seem to be still to come.
func nodeList(nodes []keys.ServingNode, revision int64, self string) api.NodeList {
	list := api.NodeList{Revision: revision}
	for _, n := range nodes {
		list.Nodes = append(list.Nodes, api.Node{
			NodeID: n.ID, Address: n.Address, Version: n.Version, Protocol: n.Protocol,
			Revision: n.Applied, Lag: max(0, revision-n.Applied),
			LeaseSeconds: n.Lease.Seconds(), RenewedSecondsAgo: max(0, n.RenewedAgo.Seconds()), Self: n.ID == self,
		})
	}
	return list
}

// Engine implements server.Operations.
func (o *operations) Engine() string { return o.db.engine() }
