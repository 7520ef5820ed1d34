package keys

import (
	"context"

	"github.com/syncgram/keyward/api"
)

// RecordDenied leaves an audit entry of a credential that was used without the scope for it (O5).
func (s *Service) RecordDenied(ctx context.Context, op Operator, detail string) error {
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return undecided(err)
	}
	err = s.cfg.Store.Record(ctx, AuditEntry{
		At: now, Actor: op.AuditActor(), Action: ActUseCredential, Outcome: string(api.Forbidden),
		Detail: detail, RemoteAddress: op.RemoteAddress, RequestID: op.RequestID,
	})
	if err != nil {
		return undecided(err)
	}
	return nil
}
