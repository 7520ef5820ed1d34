package histories

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/syncgram/keyward/api"
)

// settled is what the database has at the end.
type settled struct {
	keys  int
	lost  []string // writes that were answered and are not in it
	other []string // whatever else does not fit
}

// settle compares, once everything has come to rest, what was answered with what the database has, and what the database has
// with what each node answers (F17). No client runs meanwhile.
func (w *crowd) settle() *settled {
	type keyWithEnds struct {
		*key
		ends      int
		certainly bool // one of them was answered
	}
	byOrganization := make(map[*organization][]keyWithEnds)
	for k, own := range w.history.keys { // before verify adds to them
		ends, certainly := endsOf(own)
		byOrganization[k.organization] = append(byOrganization[k.organization], keyWithEnds{k, ends, certainly})
	}
	var s settled
	var mu sync.Mutex
	lost := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		s.lost = append(s.lost, fmt.Sprintf(format, args...))
	}
	other := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		s.other = append(s.other, fmt.Sprintf(format, args...))
	}
	revokedAt := make(map[string]string)
	var organizations []*organization
	for o := range byOrganization {
		organizations = append(organizations, o)
	}
	w.parallel(8, len(organizations), func(ctx context.Context, i int) {
		o := organizations[i]
		isOff := w.isOff(ctx, o)
		if wanted, known := lastSwitch(w.history.organizations[o]); known && wanted != isOff {
			lost("%s: off=%t was answered, the database says off=%t", o.id, wanted, isOff)
		}
		var listed map[string]api.ListedKey
		if !isOff { // nothing is listed of one that is off (C3)
			listed = w.list(ctx, o)
		}
		active := 0
		for _, k := range byOrganization[o] {
			row, found := listed[k.id]
			want := verdict(strange)
			switch {
			case isOff && k.certainly:
				want = keyRefused
			case isOff && k.ends == 0:
				want = organizationRefused
			case isOff:
			case !found:
				lost("%v: created, and not listed", k)
			case k.certainly && (row.Status != "revoked" || row.RevokedAt == nil):
				lost("%v: its end was answered, and it is %s", k, row.Status)
			case k.ends == 0 && row.Status != "active":
				other("%v: nobody ended it, and it is %s", k, row.Status)
			case row.Status == "active":
				want = accepted
			default:
				want = keyRefused
				if !k.edited {
					mu.Lock()
					revokedAt[k.id] = *row.RevokedAt
					mu.Unlock()
				}
			}
			for _, n := range w.nodes {
				decided, got := w.verify(ctx, n.current.Load(), k.key)
				if !decided || want != strange && got != want {
					other("%v: node %d answers %s (decided: %t), the database says %s", k, n.index, verdictNames[got], decided, verdictNames[want])
				}
			}
		}
		for _, row := range listed {
			if row.Status == "active" {
				active++
			}
		}
		if active > 1 {
			other("%s has %d active keys", o.id, active)
		}
		mu.Lock()
		defer mu.Unlock()
		s.keys += len(byOrganization[o])
	})
	w.audit(revokedAt, lost, other)
	return &s
}

// lastSwitch returns whether the last switch turned the organization off; known is false when there was none or its outcome is not.
func lastSwitch(switches []operation) (turnedOff, known bool) {
	if len(switches) == 0 {
		return false, false
	}
	last := switches[len(switches)-1]
	return last.act == switchedOff, last.ret != never
}

// endsOf counts a key's revokes and rolls, and tells whether one was answered.
func endsOf(own []operation) (count int, certainly bool) {
	for _, o := range own {
		if o.act == ended {
			count++
			certainly = certainly || o.ret != never
		}
	}
	return count, certainly
}

func (w *crowd) isOff(ctx context.Context, o *organization) bool {
	p := w.anyNode().current.Load()
	a := w.send(ctx, p, http.MethodGet, p.Admin+"/v1/organizations/"+o.id, "", "", nil)
	var row api.Organization
	switch {
	case a.status == http.StatusNotFound:
		return false
	case a.status != http.StatusOK || json.Unmarshal(a.body, &row) != nil:
		w.tb.Errorf("the organization %s: %d %s", o.id, a.status, a.code())
	}
	return !row.IsActive
}

func (w *crowd) list(ctx context.Context, o *organization) map[string]api.ListedKey {
	p := w.anyNode().current.Load()
	a := w.send(ctx, p, http.MethodGet, p.Public+keysPath+"?env=all", w.token(o), "", nil)
	var list api.KeyList
	if a.status != http.StatusOK || json.Unmarshal(a.body, &list) != nil {
		w.tb.Errorf("the keys of %s: %d %s", o.id, a.status, a.code())
	}
	rows := make(map[string]api.ListedKey)
	for _, k := range list.Keys {
		rows[k.APIKeyID] = k
	}
	return rows
}

// audit reads the whole log. Each revoke that was answered is in it, no request twice, and the first of a key's ends has the time
// that the list shows: a repeated revoke changes nothing (C21, F8).
func (w *crowd) audit(revokedAt map[string]string, lost, other func(string, ...any)) {
	p := w.anyNode().current.Load()
	byRequest := make(map[string]string) // request id of a revoke to its key
	first := make(map[string]string)     // key to the time of its end
	for after, more := int64(0), true; more; {
		a := w.send(context.Background(), p, http.MethodGet, fmt.Sprintf("%s/v1/audit?limit=1000&after=%d", p.Admin, after), "", "", nil)
		var page api.AuditList
		if a.status != http.StatusOK || json.Unmarshal(a.body, &page) != nil {
			w.tb.Errorf("the audit log: %d %s", a.status, a.code())
			return
		}
		for _, e := range page.Entries {
			if e.Outcome != "done" || e.Action != "key.revoke" && e.Action != "key.roll" {
				continue
			}
			if _, ended := first[e.TargetID]; !ended {
				first[e.TargetID] = e.At
			}
			if e.Action != "key.revoke" {
				continue
			}
			if _, again := byRequest[e.RequestID]; again {
				other("the request %s is in the audit log twice", e.RequestID)
			}
			byRequest[e.RequestID] = e.TargetID
		}
		after, more = page.NextSequence, page.HasMore
	}
	for request, id := range w.committed {
		if byRequest[request] != id {
			lost("the revoke %s of %s was answered and is not in the audit log", request, id)
		}
	}
	for id, at := range revokedAt {
		if first[id] != at {
			other("%s was revoked at %s, and its first end in the audit log is at %s", id, at, first[id])
		}
	}
	a := w.send(context.Background(), p, http.MethodPost, p.Admin+"/v1/audit/verify", "", "", nil)
	var v api.AuditVerification
	if a.status != http.StatusOK || json.Unmarshal(a.body, &v) != nil || !v.Intact {
		other("the audit log does not hold together: %d %v", a.status, v.Findings)
	}
}
