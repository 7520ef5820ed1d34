package paymentsapi

import (
	"sync"

	"github.com/syncgram/keyward"
)

// owner is whose payments they are. Nothing crosses from one owner to another: this type as the
// only way to a ledger is what keeps test from live, organizations and connected accounts apart.
type owner struct{ organization, account, env string }

func ownerOf(caller keyward.Identity) owner {
	return owner{caller.OrganizationID, caller.ConnectedAccountID, caller.Env}
}

// ledgers holds every payment, in memory and bounded.
type ledgers struct {
	most int // of one owner; ten times as many in all

	mu    sync.Mutex // guards what follows
	of    map[owner]*ledger
	total int
}

// ledger is one owner's payments, oldest first.
type ledger struct {
	payments []Payment
	at       map[string]int // by id, the place in payments
}

func newLedgers(most int) *ledgers { return &ledgers{most: most, of: map[owner]*ledger{}} }

// add reports false when there is no room.
func (ls *ledgers) add(o owner, p Payment) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.of[o]
	if ls.total >= 10*ls.most || l != nil && len(l.payments) >= ls.most {
		return false
	}
	if l == nil {
		l = &ledger{at: map[string]int{}}
		ls.of[o] = l
	}
	l.at[p.ID] = len(l.payments)
	l.payments = append(l.payments, p)
	ls.total++
	return true
}

func (ls *ledgers) get(o owner, id string) (Payment, bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p := ls.find(o, id); p != nil {
		return *p, true
	}
	return Payment{}, false
}

// refund marks a payment as refunded. The first time stays.
func (ls *ledgers) refund(o owner, id, at string) (Payment, bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p := ls.find(o, id)
	if p == nil {
		return Payment{}, false
	}
	if p.RefundedAt == nil {
		p.Status, p.RefundedAt = "refunded", &at
	}
	return *p, true
}

// page returns up to limit payments, newest first, that are older than the one named after, and
// whether there are more. It reports false when after names none of the owner's payments.
func (ls *ledgers) page(o owner, after string, limit int) (page []Payment, more, ok bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	page = []Payment{}
	l := ls.of[o]
	if l == nil {
		return page, false, after == ""
	}
	end := len(l.payments)
	if after != "" {
		if end, ok = l.at[after]; !ok {
			return nil, false, false
		}
	}
	start := max(0, end-limit)
	for i := end - 1; i >= start; i-- {
		page = append(page, l.payments[i])
	}
	return page, start > 0, true
}

// find is called with mu held; so is whatever is done with its result.
func (ls *ledgers) find(o owner, id string) *Payment {
	l := ls.of[o]
	if l == nil {
		return nil
	}
	i, ok := l.at[id]
	if !ok {
		return nil
	}
	return &l.payments[i]
}
