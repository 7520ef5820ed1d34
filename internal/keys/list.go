package keys

import "context"

// maxLists is how many lists of one user run at the same time (C33).
const maxLists = 4

// Listing is a list under way. It reads page by page and holds nothing of the database between two
// pages, so a slow reader keeps no connection and no transaction. Keys are never removed and newer
// ones come before the first page, so each key that was there at the start is shown once. A key's
// status is that of the moment its page was read.
type Listing struct {
	service *Service
	call    Call
	query   KeyQuery
	paged   bool // the request had a limit
}

// OpenList begins a list of the organization's keys (C18–C20, C33). It is ended by Close.
func (s *Service) OpenList(ctx context.Context, c Call, r ListRequest) (_ *Listing, err error) {
	if !s.beginList(c.Principal.User) {
		return nil, s.Refuse(ctx, c, ActList, "", TooManyRequests(0))
	}
	l := &Listing{service: s, call: c, paged: r.Limit != nil}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	o, err := s.gate(ctx, s.cfg.Store, c)
	if err != nil {
		return nil, s.Refuse(ctx, c, ActList, "", err)
	}
	l.query = KeyQuery{OrganizationID: o.ID, Environment: o.EffectiveEnvironment(), Limit: maxPage}
	if err := narrow(&l.query, r); err != nil {
		return nil, s.Refuse(ctx, c, ActList, "", err)
	}
	return l, nil
}

// Next reads the next page, the first one even if it is empty. It is not called again after a page
// without HasMore, nor after an error. A row that is not authentic is left out: it was reported when
// it was read, and is nobody's key.
func (l *Listing) Next(ctx context.Context) (Page, error) {
	s := l.service
	release, err := s.reads.Acquire(ctx, normalTurn(l.call))
	if err != nil {
		return Page{}, undecided(err)
	}
	defer release()
	page, limit := Page{Paged: l.paged}, l.query.Limit
	query := l.query
	query.Limit++ // one more row tells whether there is another page
	rows, err := s.cfg.Store.Keys(ctx, query)
	if err != nil {
		return Page{}, undecided(err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		last := rows[limit-1].Key
		page.HasMore, page.NextCursor = true, cursorAfter(last)
		l.query.Before = &Position{CreatedAt: last.CreatedAt, ID: last.ID}
	}
	for _, k := range rows {
		if k.Genuine {
			page.Keys = append(page.Keys, k)
		}
	}
	if page.Now, err = s.cfg.Store.Now(ctx); err != nil {
		return Page{}, undecided(err)
	}
	return page, nil
}

// Close ends the list. It is called once.
func (l *Listing) Close() {
	s, user := l.service, l.call.Principal.User
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lists[user]--; s.lists[user] == 0 {
		delete(s.lists, user)
	}
}

func (s *Service) beginList(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lists[user] >= maxLists {
		return false
	}
	s.lists[user]++
	return true
}

// List returns the whole list, or the page that r asks for, in memory.
func (s *Service) List(ctx context.Context, c Call, r ListRequest) (all Page, err error) {
	l, err := s.OpenList(ctx, c, r)
	if err != nil {
		return Page{}, err
	}
	defer l.Close()
	for {
		page, err := l.Next(ctx)
		if err != nil {
			return Page{}, err
		}
		page.Keys = append(all.Keys, page.Keys...)
		if all = page; l.paged || !page.HasMore {
			return all, nil
		}
	}
}

// Lists returns how many lists are under way.
func (s *Service) Lists() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.lists {
		n += of
	}
	return n
}
