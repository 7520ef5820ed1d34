package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
)

// operations is what operators ask of a running node: server.Operations.
type operations struct {
	db         *lateStore
	verifier   *verify.Verifier
	masterKeys *masterKeys
	logger     *slog.Logger

	rotating  sync.Mutex
	backingUp sync.Mutex
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

// How long a rotation waits for the nodes to have the new key: they look for it every two seconds.
const (
	rotateWait = 20 * time.Second
	rotateLook = 250 * time.Millisecond
)

// Rotate implements server.Operations. The first key of this node's source becomes the database's
// once every registered node has it.
func (o *operations) Rotate(ctx context.Context, op keys.Operator) (api.Reseal, error) {
	s, err := o.db.opened()
	if err != nil {
		return api.Reseal{}, err
	}
	if !o.rotating.TryLock() {
		return api.Reseal{}, &keys.Error{Code: api.Unavailable, Detail: "A rotation is running already; ask again when it is done."}
	}
	defer o.rotating.Unlock()
	if err := o.masterKeys.reload(ctx); err != nil {
		o.logger.Error(
			"the master keys cannot be used; nothing was changed",
			"source",
			o.masterKeys.source.String(),
			"error",
			err,
		)
		return api.Reseal{}, &keys.Error{
			Code:   api.Unavailable,
			Detail: "The master keys cannot be used, and nothing was changed; the server's log says why.",
		}
	}
	entry := keys.AuditEntry{
		Actor:         op.AuditActor(),
		Action:        keys.ActReseal,
		Outcome:       keys.Done,
		RemoteAddress: op.RemoteAddress,
		RequestID:     op.RequestID,
	}
	if err := o.switchKey(ctx, s, entry); err != nil {
		return api.Reseal{}, err
	}
	r, err := s.Reseal(ctx, o.log("authenticating every row again"))
	if err != nil {
		return api.Reseal{}, err
	}
	for _, what := range r.Refused {
		o.logger.Error("a row that is not authentic was left as it is", "row", what)
	}
	current, _, err := s.MasterKey(ctx)
	if err != nil {
		return api.Reseal{}, err
	}
	answer := api.Reseal{
		MasterKeyID:   current,
		RowsResealed:  r.Keys + r.Organizations,
		AuditResealed: r.AuditEntries,
	}
	for _, kept := range r.KeptAnswers {
		answer.KeptAnswers += kept
	}
	used, err := s.MasterKeysInUse(ctx)
	if err != nil {
		return api.Reseal{}, err
	}
	for _, id := range o.masterKeys.ring.KeyIDs() {
		if !slices.Contains(used, id) {
			answer.RetireableKeyIDs = append(answer.RetireableKeyIDs, id)
		}
	}
	slices.Sort(answer.RetireableKeyIDs)
	entry.Detail = fmt.Sprintf(
		"master_key=%s rows=%d audit_entries=%d left=%d",
		answer.MasterKeyID,
		answer.RowsResealed,
		answer.AuditResealed,
		r.Left,
	)
	return answer, o.record(ctx, s, entry)
}

func (o *operations) record(
	ctx context.Context,
	s *sqlstore.Store,
	entry keys.AuditEntry,
) (err error) {
	if entry.At, err = s.Now(ctx); err != nil {
		return err
	}
	return s.Record(ctx, entry)
}

// switchKey makes the wanted key the database's, or returns which nodes lack it.
func (o *operations) switchKey(
	ctx context.Context,
	s *sqlstore.Store,
	entry keys.AuditEntry,
) error {
	wanted := o.masterKeys.ring.Wanted()
	signing, _, err := s.MasterKey(ctx)
	if err != nil || signing == wanted {
		return err
	}
	// A write that is awaited fences the nodes that are gone. Those that stay serve, and are asked.
	commit, err := s.Write(ctx, keys.Reads{}, func(context.Context, keys.Tx) error { return nil })
	if err == nil {
		err = o.verifier.Await(ctx, commit)
	}
	if err == nil {
		err = s.AskForMasterKey(ctx, wanted)
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(rotateWait)
	for {
		lacking, err := s.NodesWithout(ctx, wanted)
		if err == nil && len(lacking) == 0 {
			commit, lacking, err = s.SwitchMasterKey(ctx, wanted, entry)
		}
		switch {
		case err != nil:
			return err
		case len(lacking) == 0:
			o.logger.Info("the master key was switched", "from", signing, "to", wanted)
			return o.verifier.Await(ctx, commit)
		case time.Now().After(deadline):
			detail := lackingDetail(wanted, o.masterKeys.ring.FingerprintOf(wanted), lacking)
			o.logger.Error("the master key was not switched; nothing was changed", "reason", detail)
			entry.Outcome, entry.Detail = string(
				api.MasterKeyMissing,
			), fmt.Sprintf(
				"master_key=%s nodes=%d",
				wanted,
				len(lacking),
			)
			if err := o.record(ctx, s, entry); err != nil {
				return err
			}
			return &keys.Error{Code: api.MasterKeyMissing, Detail: detail}
		}
		select {
		case <-time.After(rotateLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// maxNamed is how many nodes an answer names.
const maxNamed = 20

// lackingDetail says which nodes lack a master key, and why each counts as lacking it.
func lackingDetail(id, fingerprint string, lacking []keys.ServingNode) string {
	var b strings.Builder
	fmt.Fprintf(
		&b,
		"Nothing was changed: %d of the nodes lack the master key %s.",
		len(lacking),
		id,
	)
	for i := range lacking[:min(len(lacking), maxNamed)] {
		n := &lacking[i]
		why := "does not have it"
		_, other := n.HasMasterKey(id, fingerprint)
		switch {
		case n.Genuine && other:
			why = "has another key by that id"
		case !n.Genuine && len(n.MasterKeys) == 0:
			why = "runs an older version, which does not say"
		case !n.Genuine:
			why = "has a row that was not written by Keyward"
		}
		fmt.Fprintf(&b, " Node %s at %s %s.", n.ID, n.Address, why)
	}
	b.WriteString(
		" Give each node the key, after the first line of its source or before it, and rotate again.",
	)
	return b.String()
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
	file := o.checkMasterKeys(ctx)
	survives := api.Check{Name: "revocation durability", Status: checkOK, Detail: string(mode) + ": an answered revocation survives " + mode.Meaning()}
	if mode == sqlstore.Asynchronous {
		survives.Status = checkWarn
	}
	return append(checks, survives, o.checkAnnouncements(), o.checkState(ctx), o.checkRows(), file), nil
}

// checkMasterKeys checks the source that the next start would read, and whether its first key is
// the database's.
func (o *operations) checkMasterKeys(ctx context.Context) api.Check {
	c := api.Check{Name: "master keys", Status: checkFail}
	signing, err := with(
		o.db,
		func(s *sqlstore.Store) (string, error) { id, _, err := s.MasterKey(ctx); return id, err },
	)
	if err != nil {
		o.logger.ErrorContext(ctx, "the database's master key could not be read", "error", err)
		c.Detail = "could not be checked; the server's log says why"
		return c
	}
	ring := o.masterKeys.ring
	if o.masterKeys.source.command == "" { // a command is not run for a check
		if ring, err = o.masterKeys.source.read(ctx); err != nil {
			o.logger.ErrorContext(ctx, "the master key file cannot be used any more", "error", err)
			c.Detail = "the file cannot be used any more; the next start will fail, and the server's log says why"
			return c
		}
	}
	switch {
	case !ring.Has(signing):
		c.Detail = "lack the database's key " + signing + ": put its line back"
	case ring.Wanted() != signing:
		c.Status, c.Detail = checkWarn, "the first key "+ring.Wanted()+" is not the database's, "+signing+": run `keyward master-key rotate`"
	default:
		c.Status, c.Detail = checkOK, "the database's key is "+signing
	}
	return c
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
