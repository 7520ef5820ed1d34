package keys

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/syncgram/keyward/internal/failpoint"
)

// Limits of a revocation of many keys (O4).
const (
	revokeBatch = 200 // keys in one write transaction, which other writers wait for
	maxIDs      = 400 // that one request may name
	maxNamed    = 20  // keys that a dry run names
)

// ManyRequest is a revocation of many keys, not yet checked. One of Filter and IDs is set.
type ManyRequest struct {
	Filter *KeyFilter
	IDs    []string
	Reason string
	DryRun bool
}

// What became of a key.
const (
	ManyRevoked  = "revoked"         // now
	ManyBefore   = "already_revoked" // it was named and is revoked since before
	ManyNotFound = "not_found"       // it was named and there is none
	ManyUnknown  = "undecided"       // it was named, the audit log has it and its row is gone
	ManyWould    = "would_revoke"    // in a dry run
)

// ManyOne is what became of one key. Done counts the keys up to this one.
type ManyOne struct {
	KeyID, OrganizationID string
	Status                string
	Done                  int
}

// ManyReport is how a revocation of many keys went.
type ManyReport struct {
	Total    int // keys that were to be revoked when it began
	Revoked  int // keys this request revoked; in a dry run, would have
	Before   int // named keys that were revoked before
	NotFound int // named keys that there are none of
	Unknown  int // named keys whose rows were removed: memory may accept them until the next scrub
	LeftOut  int // rows that match but whose MAC or revision is wrong: accepted nowhere, left alone
	Revision int64
}

// ErrStopped is what RevokeMany returns when report asked it to stop.
var ErrStopped = errors.New("keys: the caller stopped the revocation of many keys")

// RevokeMany revokes keys in batches, each one write transaction and one wait for the barrier:
// when report is given a key, that key is accepted nowhere any more (C23). A key that is revoked
// already is not written again, so a run that was cut short is simply run again. When it returns
// nil no key that the filter matches was left at Revision, those included that were created
// meanwhile, and every earlier revocation of such a key is in force too.
//
// started is called once with the total, before anything is written. After an error of report no
// further batch begins.
func (s *Service) RevokeMany(
	ctx context.Context, op Operator, r ManyRequest, started func(total int) error, report func([]ManyOne) error,
) (sum ManyReport, err error) {
	defer func(began time.Time) { s.observe(ActRevokeMany, began, err) }(time.Now())
	if err := s.checkMany(ctx, &r); err != nil {
		return sum, s.rejectOperator(ctx, op, ActRevokeMany, "", err)
	}
	m := many{s: s, op: op, r: r, report: report}
	if r.DryRun {
		named, err := m.tally(ctx)
		m.sum.Revoked = m.sum.Total
		if err == nil && started(m.sum.Total) != nil || err == nil && report(named) != nil {
			err = ErrStopped
		}
		return m.sum, undecided(err)
	}
	if r.Filter == nil {
		m.sum.Total = len(r.IDs)
	} else if _, err := m.tally(ctx); err != nil {
		return m.sum, undecided(err)
	}
	if started(m.sum.Total) != nil {
		return m.sum, ErrStopped
	}
	if r.Filter == nil {
		err = m.named(ctx)
	} else {
		err = m.filtered(ctx)
	}
	return m.sum, err
}

// checkMany checks the request; the ids become unique.
func (s *Service) checkMany(ctx context.Context, r *ManyRequest) error {
	if err := s.checkReason(r.Reason); err != nil {
		return err
	}
	switch {
	case r.Reason == "" && !r.DryRun:
		return Invalid("reason", "reason is required: it is in the audit log for every key.")
	case r.Filter != nil && r.IDs != nil:
		return Invalid("filter", "Send filter or ids, not both.")
	case r.Filter == nil && len(r.IDs) == 0:
		return Invalid("filter", "Send filter, with at least one member, or ids.")
	case r.Filter != nil && r.Filter.Status != nil && *r.Filter.Status == string(StateRevoked):
		return Invalid("status", "status must be active, overlapping or expired: a revoked key cannot be revoked again.")
	case r.Filter != nil && r.Filter.empty():
		return Invalid("filter", "filter must have at least one member: an empty one would revoke every key.")
	case len(r.IDs) > maxIDs:
		return Invalid("ids", fmt.Sprintf("ids must be at most %d. Send the others in another request.", maxIDs))
	case r.Filter != nil:
		now, err := s.cfg.Store.Now(ctx)
		if err == nil {
			_, err = s.search(r.Filter, now)
		}
		return err
	}
	seen := make(map[string]bool, len(r.IDs))
	var unique []string
	for _, id := range r.IDs {
		if !validID(id) {
			return Invalid("ids", "ids must be ids of API keys.")
		}
		if !seen[id] {
			unique = append(unique, id)
		}
		seen[id] = true
	}
	r.IDs = unique
	return nil
}

// many is one run of RevokeMany.
type many struct {
	s      *Service
	op     Operator
	r      ManyRequest
	report func([]ManyOne) error
	sum    ManyReport
	done   int
	after  *Position // where the next batch continues
	found  int       // authentic keys since the last time from the beginning
}

// batch is what one transaction did.
type batch struct {
	lines   []ManyOne
	revoked int
	before  int
	missing int
}

// tally counts the keys that are to be revoked and returns the first of them.
func (m *many) tally(ctx context.Context) (named []ManyOne, err error) {
	now, err := m.s.cfg.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	note := func(k *Key) {
		m.sum.Total++
		if len(named) < maxNamed {
			named = append(named, ManyOne{k.ID, k.OrganizationID, ManyWould, m.sum.Total})
		}
	}
	if m.r.Filter == nil {
		for _, id := range m.r.IDs {
			k, err := m.s.cfg.Store.Key(ctx, id)
			switch {
			case errors.Is(err, ErrNotFound) || id == ProbeKeyID:
				m.sum.NotFound++
			case err != nil:
				return nil, err
			case k.State == StateRevoked:
				m.sum.Before++
			default:
				note(&k)
			}
		}
		return named, nil
	}
	q, err := m.query(now)
	for more := true; more && err == nil; {
		var rows []UsedKey
		if rows, err = m.s.cfg.Store.SearchKeys(ctx, q); err != nil {
			break
		}
		for i := range rows {
			k := &rows[i].Key
			switch {
			case k.ID == ProbeKeyID || k.Genuine && k.State == StateRevoked:
			case !k.Genuine:
				m.sum.LeftOut++
			default:
				note(k)
			}
		}
		if more = len(rows) == q.Limit; more {
			q.After = positionOf(&rows[len(rows)-1].Key)
		}
	}
	return named, err
}

func positionOf(k *Key) *Position { return &Position{CreatedAt: k.CreatedAt, ID: k.ID} }

// query selects the keys that match the filter and are not revoked.
func (m *many) query(now time.Time) (KeySearch, error) {
	q, err := m.s.search(m.r.Filter, now)
	q.Limit = m.s.cfg.RevokeBatch
	if len(q.States) == 0 {
		q.States = []State{StateActive, StateOverlapping, StateExpired}
	}
	return q, err
}

// write runs one batch and waits for the barrier.
func (m *many) write(
	ctx context.Context, fn func(context.Context, Tx, *batch) error,
) (b batch, err error) {
	commit, err := m.s.cfg.Store.Write(ctx, Reads{}, func(ctx context.Context, tx Tx) error {
		b = batch{}
		return fn(ctx, tx, &b)
	})
	if err != nil {
		return b, undecided(err)
	}
	failpoint.Hit("revokemany.committed")
	if err := m.s.cfg.Barrier.Await(ctx, commit); err != nil {
		return b, undecided(err)
	}
	m.sum.Revision = commit.Revision
	m.sum.Revoked += b.revoked
	m.sum.Before += b.before
	m.sum.NotFound += b.missing
	for i := range b.lines {
		m.done++
		b.lines[i].Done = m.done
	}
	failpoint.Hit("revokemany.visible")
	return b, nil
}

// revoke revokes one key of a batch.
func (m *many) revoke(ctx context.Context, tx Tx, b *batch, k Key) error {
	k, err := m.s.revokeByOperator(ctx, tx, m.op, k, m.r.Reason)
	if err != nil {
		return err
	}
	b.revoked++
	b.lines = append(b.lines, ManyOne{KeyID: k.ID, OrganizationID: k.OrganizationID, Status: ManyRevoked})
	return nil
}

// summarize writes the entry of the whole run, in its last transaction.
func (m *many) summarize(ctx context.Context, tx Tx, revoked int, what string) error {
	e := operatorEntry(m.op, ActRevokeMany, "", tx.Now())
	e.Detail = fmt.Sprintf("%s revoked=%d", what, revoked)
	if f := m.r.Filter; f != nil && f.OrganizationID != nil {
		e.OrganizationID = *f.OrganizationID
	}
	return tx.Audit(ctx, e)
}

// named revokes the keys that were named, in one transaction.
func (m *many) named(ctx context.Context) error {
	b, err := m.write(ctx, func(ctx context.Context, tx Tx, b *batch) error {
		rows, err := tx.KeysByID(ctx, m.r.IDs)
		if err != nil {
			return err
		}
		byID := make(map[string]Key, len(rows))
		for _, k := range rows {
			byID[k.ID] = k
		}
		delete(byID, ProbeKeyID)
		for _, id := range m.r.IDs {
			k, there := byID[id]
			switch {
			case !there:
				b.missing++
				b.lines = append(b.lines, ManyOne{KeyID: id, Status: ManyNotFound})
			case k.State == StateRevoked && k.Genuine:
				b.before++
				b.lines = append(b.lines, ManyOne{KeyID: id, OrganizationID: k.OrganizationID, Status: ManyBefore})
			default: // also a row whose MAC is wrong: ending a key is always safe
				if err := m.revoke(ctx, tx, b, k); err != nil {
					return err
				}
			}
		}
		return m.summarize(ctx, tx, b.revoked, fmt.Sprintf("ids=%d", len(m.r.IDs)))
	})
	if err != nil {
		return err
	}
	for i := range b.lines {
		if b.lines[i].Status != ManyNotFound || b.lines[i].KeyID == ProbeKeyID {
			continue
		}
		// That a row is not there is no answer when somebody removed it.
		if _, err := m.s.cfg.Store.Key(ctx, b.lines[i].KeyID); !errors.Is(err, ErrNotFound) {
			b.lines[i].Status = ManyUnknown
			m.sum.NotFound--
			m.sum.Unknown++
		}
	}
	if m.report(b.lines) != nil {
		return ErrStopped
	}
	return nil
}

// filtered revokes what the filter matches, newest first, from the beginning again and again until
// a whole pass finds nothing: then no key matches, in that transaction. Keys that others created
// meanwhile are newer than where the pass is, so the next one finds them.
func (m *many) filtered(ctx context.Context) error {
	leftOut := 0
	for {
		last := false
		b, err := m.write(ctx, func(ctx context.Context, tx Tx, b *batch) error {
			q, err := m.query(tx.Now())
			if err != nil {
				return err
			}
			q.After = m.after
			rows, err := tx.SearchKeys(ctx, q)
			if err != nil {
				return err
			}
			pass := m.found
			if m.after == nil {
				pass, leftOut = 0, 0
			}
			for _, k := range rows {
				switch {
				case k.ID == ProbeKeyID:
				case !k.Genuine:
					leftOut++
				case k.State == StateRevoked:
				default:
					if err := m.revoke(ctx, tx, b, k); err != nil {
						return err
					}
				}
			}
			m.found = pass + b.revoked
			if len(rows) == q.Limit {
				m.after = positionOf(&rows[len(rows)-1])
				return nil
			}
			m.after = nil
			if last = m.found == 0; last {
				return m.summarize(ctx, tx, m.sum.Revoked, "filter="+m.r.Filter.names())
			}
			return nil
		})
		if err != nil {
			return err
		}
		m.sum.LeftOut = leftOut
		if len(b.lines) > 0 && m.report(b.lines) != nil {
			return ErrStopped
		}
		if last {
			return nil
		}
	}
}
