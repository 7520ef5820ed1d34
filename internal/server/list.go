package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

func listed(page *keys.Page) []api.ListedKey {
	list := make([]api.ListedKey, 0, len(page.Keys))
	for i := range page.Keys {
		k := &page.Keys[i]
		status := keys.Status(k.Lifecycle(), page.Now)
		list = append(list, api.ListedKey{
			APIKeyID: k.ID, KeyName: k.Name,
			IsActive:  status == keys.StateActive || status == keys.StateOverlapping, // C19
			CreatedAt: timestamp(k.CreatedAt), LastUsedAt: optionalTime(k.LastUsedAt), ExpiresAt: optionalTime(k.ExpiresAt),
			Env: string(k.Environment), Hint: k.Hint, Status: string(status),
			RevokedAt: optionalTime(k.RevokedAt), CreatedBy: k.CreatedBy,
		})
	}
	return list
}

// list answers a page, or streams all keys page by page (C33). Only the request's own context ends
// it: a client that hangs up is not read for.
func (s *Server) list(x *exchange) error {
	request, err := readList(x)
	if err != nil {
		return s.refuse(x, err)
	}
	listing, err := s.cfg.Service.OpenList(x.ctx, x.call, request)
	if err != nil {
		return err
	}
	defer listing.Close()
	page, err := s.nextPage(x, listing)
	if err != nil && x.r.Context().Err() != nil {
		x.status, x.reason = statusClientGone, "the client hung up"
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		return err
	}
	if !page.Paged && page.HasMore && x.r.Method != http.MethodHead {
		s.stream(x, listing, page)
		return nil
	}
	body := api.KeyList{Keys: listed(&page)}
	if page.Paged {
		body.HasMore = &page.HasMore
		if page.HasMore {
			body.NextCursor = &page.NextCursor
		}
	}
	return x.answer(answer{body: body})
}

// statusClientGone is what the log and the metrics say of a request whose client did not wait for
// the answer, as nginx does.
const statusClientGone = 499

// nextPage reads a page, within the time of one call.
func (s *Server) nextPage(x *exchange, l *keys.Listing) (keys.Page, error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), s.cfg.Budget)
	defer cancel()
	return l.Next(ctx)
}

// stream writes api.KeyList page by page. What goes wrong once the answer has begun ends the
// connection, so that the client cannot take what it has for all.
func (s *Server) stream(x *exchange, l *keys.Listing, page keys.Page) {
	x.Header()["Content-Type"] = plainJSON
	control := http.NewResponseController(x.ResponseWriter)
	cut := func(reason string, err error) {
		x.reason, x.cause = reason, err
		panic(http.ErrAbortHandler)
	}
	text := []byte(`{"keys":[`)
	for first := true; ; first = false {
		for i, k := range listed(&page) {
			one, err := json.Marshal(k)
			if err != nil {
				cut("the list ended early", err)
			}
			if !first || i > 0 {
				text = append(text, ',')
			}
			text = append(text, one...)
		}
		if !page.HasMore {
			text = append(text, `]}`...)
		}
		if err := control.SetWriteDeadline(time.Now().Add(s.cfg.ListStall)); err != nil {
			cut("the list ended early", err)
		}
		if _, err := x.Write(text); err != nil {
			cut("the client stopped reading the list", err)
		}
		if !page.HasMore {
			return
		}
		text = text[:0]
		var err error
		if page, err = s.nextPage(x, l); err != nil {
			cut("the list ended early", err)
		}
	}
}
