package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// The query parameters that filter keys (O3).
var keyFilter = []string{
	"organization_id", "created_by", "hint", "status", "env", "created_before", "limit", "cursor",
}

type keySearch struct {
	filter keys.KeyFilter
	page
}

func readKeySearch(x *exchange) (keySearch, error) {
	p, err := readPage(x)
	return keySearch{page: p, filter: keys.KeyFilter{
		OrganizationID: x.parameter("organization_id"), CreatedBy: x.parameter("created_by"),
		Hint: x.parameter("hint"), Status: x.parameter("status"), Environment: x.parameter("env"),
		CreatedBefore: x.parameter("created_before"),
	}}, err
}

func (s *Server) searchKeys(ctx context.Context, _ keys.Call, q keySearch) (answer, error) {
	found, err := s.cfg.Service.SearchKeys(ctx, q.filter, q.limit, q.after)
	if err != nil {
		return answer{}, err
	}
	list := api.OperatorKeyList{
		Keys: make([]api.OperatorKey, 0, len(found.Keys)), HasMore: found.NextCursor != "", LeftOut: found.LeftOut,
	}
	for i := range found.Keys {
		list.Keys = append(list.Keys, operatorKey(&found.Keys[i], found.Now))
	}
	if list.HasMore {
		list.NextCursor = &found.NextCursor
	}
	return answer{body: list}, nil
}

func operatorKey(k *keys.UsedKey, now time.Time) api.OperatorKey {
	return api.OperatorKey{ListedKey: listedKey(k, now), OrganizationID: k.OrganizationID}
}

func (s *Server) showKey(ctx context.Context, _ keys.Call, id string) (answer, error) {
	k, now, err := s.cfg.Service.AnyKey(ctx, id)
	if err != nil {
		return answer{}, err
	}
	return answer{body: operatorKey(&k, now)}, nil
}

// maxSecret bounds the secret that is looked up, in bytes.
const maxSecret = 255

// readSecret takes a secret from the body. It is not parsed: its digest finds its key or does not.
func readSecret(x *exchange) (token.Secret, error) {
	var key string
	if err := x.readJSON(false, field{"key", &key}); err != nil {
		return token.Secret{}, err
	}
	if key == "" || len(key) > maxSecret {
		return token.Secret{}, keys.Invalid("key", "key must be a secret.")
	}
	return token.NewSecret(key), nil
}

func (s *Server) lookUpKey(ctx context.Context, _ keys.Call, secret token.Secret) (answer, error) {
	k, now, err := s.cfg.Service.KeyOfSecret(ctx, secret)
	if err != nil {
		return answer{}, err
	}
	return answer{body: operatorKey(&k, now)}, nil
}

func (s *Server) revokeAny(ctx context.Context, c keys.Call, r revocation) (answer, error) {
	k, err := s.cfg.Service.RevokeAny(ctx, operator(c), r.keyID, r.reason)
	return answer{body: api.RevokedKey{Status: string(keys.StateRevoked), APIKeyID: k.ID}, revision: k.Revision}, err
}

func readRevokeMany(x *exchange) (keys.ManyRequest, error) {
	var f keys.KeyFilter
	filter := nested{fields: []field{
		{"organization_id", &f.OrganizationID}, {"created_by", &f.CreatedBy}, {"hint", &f.Hint},
		{"status", &f.Status}, {"env", &f.Environment}, {"created_before", &f.CreatedBefore},
	}}
	var ids texts
	var r keys.ManyRequest
	var dryRun *bool
	err := x.readJSON(false, field{"filter", &filter}, field{"ids", &ids}, field{"reason", &r.Reason},
		field{"dry_run", &dryRun})
	if filter.given {
		r.Filter = &f
	}
	r.IDs, r.DryRun = ids, dryRun != nil && *dryRun
	return r, err
}

// slowReader bounds how long one batch of lines may take to be read.
const slowReader = 30 * time.Second

// revokeMany answers with one JSON object a line (O4). The status is sent with the first, before
// anything is revoked; what goes wrong after that is said by the last line.
func (s *Server) revokeMany(x *exchange) error {
	r, err := readRevokeMany(x)
	if err != nil {
		return err
	}
	out := http.NewResponseController(x)
	gone := x.r.Context()
	write := func(lines ...api.RevokeLine) error {
		var b []byte
		for _, l := range lines {
			line, err := json.Marshal(l)
			if err != nil {
				return err
			}
			b = append(append(b, line...), '\n')
		}
		return errors.Join(gone.Err(), out.SetWriteDeadline(time.Now().Add(slowReader)), second(x.Write(b)), out.Flush())
	}
	total := 0
	started := func(n int) error {
		total = n
		x.Header()["Content-Type"] = ndjson
		x.WriteHeader(http.StatusOK)
		return write(api.RevokeLine{Status: api.RevokeStarted, Total: &n})
	}
	sum, err := s.cfg.Service.RevokeMany(x.ctx, operator(x.call), r, started, func(batch []keys.ManyOne) error {
		lines := make([]api.RevokeLine, len(batch))
		for i, k := range batch {
			total = max(total, k.Done) // keys that were created meanwhile
			lines[i] = api.RevokeLine{
				Status: k.Status, APIKeyID: k.KeyID, OrganizationID: k.OrganizationID, Done: &batch[i].Done, Total: &total,
			}
		}
		return write(lines...)
	})
	if x.status == 0 {
		return err
	}
	if errors.Is(err, keys.ErrStopped) {
		x.reason = "the client is gone"
		return nil
	}
	last := api.RevokeLine{Status: api.RevokeDone, Total: &total, Revoked: &sum.Revoked, AlreadyRevoked: &sum.Before,
		NotFound: &sum.NotFound, Undecided: &sum.Unknown, LeftOut: &sum.LeftOut, Revision: sum.Revision}
	if r.DryRun {
		last.Status = api.RevokeDryRun
	}
	if err != nil {
		p := door.ProblemOf(err, x.requestID)
		x.code, x.cause = p.Code, p.Cause
		last.Status, last.Error = api.RevokeFailed, &p.Problem
	}
	_ = write(last) // the client is gone; there is nobody left to tell
	return nil
}

var ndjson = []string{"application/x-ndjson"}

func second(_ int, err error) error { return err }
