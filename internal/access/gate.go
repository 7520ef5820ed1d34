package access

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// Caller is who uses a listener.
type Caller struct {
	Scopes Scope

	name string            // of the credential
	cert *x509.Certificate // or the client certificate
}

// Actor is the caller in the audit log (O5).
func (c Caller) Actor() string {
	switch {
	case c.cert != nil:
		return subjectOf(c.cert)
	case c.name != "":
		return keys.OperatorActor + ":" + c.name
	}
	return keys.OperatorActor
}

// Presented is what a caller shows. A token that is there decides alone, good or bad: an operator
// whose certificate may only verify can show a credential with more.
type Presented struct {
	Token       string            // empty = none was sent
	Decoded     string            // another reading of the token; either may be the one. Empty = none
	Malformed   bool              // one was sent in a form that is not taken
	Certificate *x509.Certificate // of the connection, verified; nil = none
}

// Attempt is one use of a route.
type Attempt struct {
	Presented
	Need      Scope
	Route     string // for the audit entry; never what the caller chose
	RequestID string
	Client    Client
}

// Client is the other end of a connection. Its address is asked for an audit entry alone.
type Client interface{ ClientAddress() string }

// Gate decides about every use of the verification, the ext_authz and the admin listener. It is
// safe for concurrent use.
type Gate struct {
	current func() Credentials
	record  func(context.Context, keys.Operator, string) error

	mu     sync.Mutex
	denied map[denial]*count // guarded by mu
}

// Open is the gate of a deployment without credentials and without client certificates, which it
// may be on loopback alone: everybody may do everything.
func Open() *Gate { return new(Gate) }

// NewGate returns a gate for what current returns, which is asked at each use. record leaves an
// audit entry; *keys.Service.RecordDenied does.
func NewGate(current func() Credentials, record func(ctx context.Context, op keys.Operator, detail string) error) *Gate {
	return &Gate{current: current, record: record, denied: make(map[denial]*count)}
}

// Admit returns the caller, or the error to answer with: 401 for one that is not known, 403 for
// one without the scope, of which there is an audit entry then (O5). That one is returned too.
func (g *Gate) Admit(ctx context.Context, a Attempt) (Caller, error) {
	caller, known := g.identify(a.Presented)
	if !known {
		return Caller{}, &keys.Error{Code: api.InternalTokenRequired, Detail: "This listener is for the deployment's own services. Send one of its credentials."}
	}
	if caller.Scopes.Allows(a.Need) {
		return caller, nil
	}
	if err := g.recordDenial(ctx, caller, a); err != nil {
		return caller, err
	}
	return caller, &keys.Error{Code: api.Forbidden, Detail: "This credential does not have the scope " + a.Need.String() + ", which the route needs."}
}

// Allows reports whether what is presented has a scope. It leaves no audit entry: Admit decides.
func (g *Gate) Allows(p Presented, need Scope) bool {
	caller, known := g.identify(p)
	return known && caller.Scopes.Allows(need)
}

func (g *Gate) identify(p Presented) (Caller, bool) {
	switch {
	case g.current == nil:
		return Caller{Scopes: All}, true
	case p.Malformed:
		return Caller{}, false
	case p.Token != "":
		all := g.current()
		if p.Decoded != "" && p.Decoded != p.Token {
			if caller, known := all.token(p.Decoded); known {
				return caller, true
			}
		}
		return all.token(p.Token)
	case p.Certificate != nil:
		return g.current().certificate(p.Certificate), true
	}
	return Caller{}, false
}

// A caller that is denied again and again leaves one entry a minute for each route, with a count.
const denialEvery = time.Minute

// maxDenials bounds what is remembered of denials. There is one for each credential and route.
const maxDenials = 4096

// recordTime bounds the writing of an audit entry.
const recordTime = 10 * time.Second

type denial struct{ actor, route string }

type count struct {
	recorded time.Time
	since    int // denials after that
}

func (g *Gate) recordDenial(ctx context.Context, caller Caller, a Attempt) error {
	key := denial{caller.Actor(), a.Route}
	unrecorded, due := g.countDenial(key, time.Now())
	if !due {
		return nil
	}
	detail := fmt.Sprintf("%s needs %s", a.Route, a.Need)
	if unrecorded > 0 {
		detail += fmt.Sprintf("; %d more since the last entry", unrecorded)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	err := g.record(ctx, keys.Operator{Actor: key.actor, RequestID: a.RequestID, RemoteAddress: a.Client.ClientAddress()}, detail)
	if err != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.denied, key) // the next one tries again
		return &keys.Unavailable{Err: err}
	}
	return nil
}

// countDenial counts one, and reports whether it gets an entry and how many before it had none.
func (g *Gate) countDenial(key denial, now time.Time) (unrecorded int, due bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.denied[key]
	if c != nil && now.Sub(c.recorded) < denialEvery {
		c.since++
		return 0, false
	}
	if c == nil {
		if len(g.denied) >= maxDenials {
			clear(g.denied)
		}
		c = new(count)
		g.denied[key] = c
	}
	unrecorded = c.since
	c.recorded, c.since = now, 0
	return unrecorded, true
}
