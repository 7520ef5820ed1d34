package server

import (
	"context"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// listedKey is a key as list, get and PATCH show it (C18, C29).
func listedKey(k *keys.UsedKey, now time.Time) api.ListedKey {
	status := keys.Status(k.Lifecycle(), now)
	return api.ListedKey{
		APIKeyID: k.ID, KeyName: k.Name, Description: optionalText(k.Description),
		IsActive:  status == keys.StateActive || status == keys.StateOverlapping, // C19
		CreatedAt: timestamp(k.CreatedAt), LastUsedAt: optionalTime(k.LastUsedAt), ExpiresAt: optionalTime(k.ExpiresAt),
		Env: string(k.Environment), Hint: k.Hint, Status: string(status),
		RevokedAt: optionalTime(k.RevokedAt), CreatedBy: k.CreatedBy,
	}
}

func optionalText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func readKeyID(x *exchange) (string, error) { return x.segment, nil }

// getKey answers C29.
func (s *Server) getKey(ctx context.Context, c keys.Call, id string) (answer, error) {
	k, now, err := s.cfg.Service.Get(ctx, c, id)
	if err != nil {
		return answer{}, err
	}
	return answer{body: listedKey(&k, now)}, nil
}

func readUpdate(x *exchange) (keys.UpdateRequest, error) {
	var name, description nullable
	err := x.readJSON(false, field{"key_name", &name}, field{"description", &description})
	if err == nil && name.null {
		err = keys.Invalid("key_name", "key_name cannot be removed.")
	}
	return keys.UpdateRequest{KeyID: x.segment, Name: name.pointer(), Description: description.pointer()}, err
}

// updateKey answers C30.
func (s *Server) updateKey(ctx context.Context, c keys.Call, r keys.UpdateRequest) (answer, error) {
	k, now, err := s.cfg.Service.Update(ctx, c, r)
	if err != nil {
		return answer{}, err
	}
	return answer{body: listedKey(&k, now), revision: k.Revision}, nil
}
