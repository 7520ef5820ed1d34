package histories

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/api"
)

const keysPath = "/api/v1/auth/api-keys"

// key is one that was handed out.
type key struct {
	id, secret   string
	organization *organization

	// Its row was edited by somebody else: a revoke that finds the older row has a time of its own.
	edited bool
	// Until the row is back and written again, a node may deny the key as unknown.
	withheld atomic.Bool
}

func (k *key) String() string { return k.id + " of " + k.organization.id }

// organization has at most one active key (C12).
type organization struct {
	id string

	mu      sync.Mutex // held by the one client that writes to it
	off     bool
	retired bool // a switch of it had an unknown outcome: it could still take effect, so nothing is to be told from later ones
	current atomic.Pointer[key]
}

// answer is what came back of a request.
type answer struct {
	status    int // 0 = none came
	body      []byte
	call, ret int64
}

func (a answer) code() api.Code {
	var p api.Problem
	_ = json.Unmarshal(a.body, &p)
	return p.Code
}

// unknown reports whether the request may have been carried out, now or later.
func (a answer) unknown() bool { return a.status == 0 || a.status >= 500 }

// figures count what happened.
type figures struct {
	answered, unknown, refused        atomic.Int64 // writes; unknown counts attempts
	accepted, keyRefused, other       atomic.Int64 // verifications
	undecided, unasked                atomic.Int64 // verifications: 503 or no answer; not sent because too many were waiting
	creates, revokes, rolls, switches atomic.Int64
	unresolved                        atomic.Int64 // writes that were given up without an answer
	requests                          atomic.Uint64
}

// crowd is the clients of a cluster and what they saw.
type crowd struct {
	*cluster
	history *history
	figures figures
	phase   atomic.Pointer[phase]
	only    atomic.Pointer[node] // that writes go to; nil = any
	once    bool                 // requests have no idempotency key: nothing is retried

	probes  []chan struct{} // by node: places for verifications that nobody waits for
	probing sync.WaitGroup

	mu            sync.Mutex // guards the rest
	organizations []*organization
	recent        []*key // the last keys that were created or ended, a ring
	next          int
	made          int               // organizations so far
	committed     map[string]string // request id of each answered revoke to its key
	limits        map[string]*timeLimit
}

// phase is a stretch of time with one kind of fault.
type phase struct {
	fault   string
	revokes latencies
}

func newCrowd(c *cluster) *crowd {
	w := &crowd{cluster: c, history: newHistory(), recent: make([]*key, 128), committed: make(map[string]string), limits: make(map[string]*timeLimit)}
	for range c.nodes {
		w.probes = append(w.probes, make(chan struct{}, 200)) // a frozen node must not take those of the others
	}
	w.phase.Store(&phase{fault: "start"})
	return w
}

// send sends one request and waits for the whole answer.
func (w *crowd) send(ctx context.Context, p *process, method, url, token, id string, body any) (a answer) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			w.tb.Error(err)
			return a
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		w.tb.Error(err)
		return a
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if id != "" {
		req.Header.Set("X-Request-Id", id)
	}
	a.call = w.history.now()
	resp, err := p.client.Do(req)
	if err == nil {
		a.body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	a.ret = w.history.now()
	if err == nil {
		a.status = resp.StatusCode
	} else if !silent(err) {
		w.tb.Error(err)
	}
	return a
}

// verify asks one process about a key and records the answer.
func (w *crowd) verify(ctx context.Context, p *process, k *key) (decided bool, v verdict) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	a := w.send(ctx, p, http.MethodPost, p.Verification+"/v1/verify", "", "", api.VerifyKey{Key: k.secret})
	var answered api.Verdict
	switch {
	case a.unknown():
		w.figures.undecided.Add(1)
		return false, strange
	case a.status != http.StatusOK || json.Unmarshal(a.body, &answered) != nil:
		w.tb.Errorf("verify answered %d %s", a.status, a.code())
		return false, strange
	}
	v = verdictOf(answered.Reason)
	if v == strange && answered.Reason == "unknown" && k.withheld.Load() {
		v = keyRefused
	}
	if answered.Valid != (v == accepted) {
		w.tb.Errorf("verify answered valid=%t with reason %s", answered.Valid, answered.Reason)
	}
	switch v {
	case accepted:
		w.figures.accepted.Add(1)
	case keyRefused:
		w.figures.keyRefused.Add(1)
	default:
		w.figures.other.Add(1)
	}
	w.history.addKey(k, operation{act: verified, verdict: v, process: p.number, call: a.call, ret: a.ret})
	return true, v
}

// probe asks a node about a key and waits for nothing.
func (w *crowd) probe(n *node, k *key) {
	p, places := n.current.Load(), w.probes[n.index]
	select {
	case places <- struct{}{}:
		w.probing.Go(func() {
			w.verify(context.Background(), p, k)
			<-places
		})
	default:
		w.figures.unasked.Add(1)
	}
}

// probeAll asks every node about a key that was just written.
func (w *crowd) probeAll(k *key) {
	if k == nil {
		return
	}
	w.mu.Lock()
	w.recent[w.next%len(w.recent)] = k
	w.next++
	w.mu.Unlock()
	for _, n := range w.nodes {
		w.probe(n, k)
	}
}

// attemptTime bounds one attempt of a write. It is longer than a node takes to say that it does not know.
const attemptTime = 35 * time.Second

// persist sends a write to one node after the other, first the one given (nil = any), until one says for certain
// what became of it, or ctx ends. The answer's call is that of the first attempt. tried counts attempts with an unknown outcome.
func (w *crowd) persist(ctx context.Context, first *node, send func(ctx context.Context, p *process, request string) answer) (a answer, request string, tried int) {
	n := first
	if n == nil {
		n = w.anyNode()
	}
	began := w.history.now()
	var attempts []string
	defer func() {
		if took := time.Duration(w.history.now() - began); took > 15*time.Second {
			w.tb.Logf("a write took %v, attempts: %s", took.Round(time.Millisecond), strings.Join(attempts, ", "))
		}
	}()
	for {
		request = fmt.Sprint("histories-", w.figures.requests.Add(1))
		attempt, cancel := context.WithTimeout(ctx, attemptTime)
		a = send(attempt, n.current.Load(), request)
		cancel()
		attempts = append(attempts, fmt.Sprintf("process %d: %d %s in %v", n.current.Load().number, a.status, a.code(), time.Duration(a.ret-a.call).Round(time.Millisecond)))
		a.call = began
		switch {
		case a.unknown():
			tried++
			w.figures.unknown.Add(1)
		case a.status == http.StatusConflict && a.code() == api.IdempotencyInProgress:
		default:
			if a.status < 300 {
				w.figures.answered.Add(1)
			} else {
				w.figures.refused.Add(1)
			}
			return a, request, tried
		}
		n = w.anyNode()
		if !pause(ctx, time.Duration(20+rand.IntN(80))*time.Millisecond) {
			w.figures.unresolved.Add(1)
			a.status, a.ret = 0, never
			return a, request, tried
		}
	}
}

func (w *crowd) anyNode() *node {
	if n := w.only.Load(); n != nil {
		return n
	}
	return w.nodes[rand.IntN(len(w.nodes))]
}

// token signs one for a user of its own, so that no rate is in the way (C14).
func (w *crowd) token(o *organization) string {
	token, err := w.issuer.Issue(fmt.Sprint("user_", w.figures.requests.Add(1)), o.id, time.Hour)
	if err != nil {
		w.tb.Error(err)
	}
	return token
}

func (w *crowd) idempotencyKey(prefix string) *string {
	if w.once {
		return nil
	}
	return new(fmt.Sprint(prefix, w.figures.requests.Add(1)))
}

// create makes a key through any node. It returns nil when that was refused or is not known.
func (w *crowd) create(ctx context.Context, o *organization) *key {
	token, idempotencyKey := w.token(o), w.idempotencyKey("create-")
	a, _, _ := w.persist(ctx, nil, func(ctx context.Context, p *process, request string) answer {
		return w.send(ctx, p, http.MethodPost, p.Public+keysPath, token, request, api.CreateKey{KeyName: "Production key", IdempotencyKey: idempotencyKey})
	})
	if a.status != http.StatusCreated {
		return nil
	}
	w.figures.creates.Add(1)
	return w.issued(o, a)
}

// issued records the key of an answer.
func (w *crowd) issued(o *organization, a answer) *key {
	var issued api.IssuedKey
	if err := json.Unmarshal(a.body, &issued); err != nil || issued.Key == "" {
		w.tb.Errorf("an answer without a key: %v", err)
		return nil
	}
	k := &key{id: issued.APIKeyID, secret: issued.Key, organization: o}
	w.history.addKey(k, operation{act: created, call: a.call, ret: a.ret})
	o.current.Store(k)
	w.probeAll(k)
	return k
}

// revoke ends a key through a node (nil = any) and asks again until it is done. It returns how long the answered attempt
// and those before it took.
func (w *crowd) revoke(ctx context.Context, n *node, k *key) (answered bool, took time.Duration) {
	token := w.token(k.organization)
	began := time.Now()
	a, request, _ := w.persist(ctx, n, func(ctx context.Context, p *process, request string) answer {
		return w.send(ctx, p, http.MethodPost, p.Public+keysPath+"/"+k.id+"/revoke", token, request, nil)
	})
	took = time.Since(began)
	w.history.addKey(k, operation{act: ended, call: a.call, ret: a.ret})
	switch a.status {
	case http.StatusOK:
		w.mu.Lock()
		w.committed[request] = k.id
		w.mu.Unlock()
		w.figures.revokes.Add(1)
		w.phase.Load().revokes.add(took)
		k.organization.current.CompareAndSwap(k, nil)
		w.probeAll(k)
		return true, took
	case 0:
	default:
		w.tb.Errorf("revoke of %v answered %d %s", k, a.status, a.code())
	}
	return false, took
}

// roll ends a key and makes its successor, without overlap. It returns false when that was refused or is not known.
func (w *crowd) roll(ctx context.Context, k *key) bool {
	token, idempotencyKey := w.token(k.organization), w.idempotencyKey("roll-")
	a, _, tried := w.persist(ctx, nil, func(ctx context.Context, p *process, request string) answer {
		return w.send(ctx, p, http.MethodPost, p.Public+keysPath+"/"+k.id+"/roll", token, request, api.RollKey{IdempotencyKey: idempotencyKey})
	})
	if a.status != http.StatusCreated {
		if tried > 0 { // an earlier attempt may have ended it
			w.history.addKey(k, operation{act: ended, call: a.call, ret: never})
		}
		return false
	}
	w.figures.rolls.Add(1)
	w.history.addKey(k, operation{act: ended, call: a.call, ret: a.ret})
	w.probeAll(k)
	w.issued(k.organization, a)
	return true
}

// turn switches an organization off or on.
func (w *crowd) turn(ctx context.Context, o *organization, off bool) {
	active := !off
	a, _, tried := w.persist(ctx, nil, func(ctx context.Context, p *process, request string) answer {
		return w.send(ctx, p, http.MethodPut, p.Admin+"/v1/organizations/"+o.id, "", request, api.PutOrganization{IsActive: &active})
	})
	op := operation{act: switchedOn, call: a.call, ret: a.ret}
	if off {
		op.act = switchedOff
	}
	w.history.addOrganization(o, op)
	o.retired = o.retired || tried > 0
	switch a.status {
	case http.StatusOK:
		o.off = off
		w.figures.switches.Add(1)
		w.probeAll(o.current.Load())
	case 0:
	default:
		w.tb.Errorf("the switch of %s answered %d %s", o.id, a.status, a.code())
	}
}

// newOrganization is one that nobody has seen.
func (w *crowd) newOrganization() *organization {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made++
	return &organization{id: fmt.Sprintf("org_%06d", w.made)}
}

// take returns an organization of the crowd that no other client writes to, locked. In place of a retired one it puts a new one.
func (w *crowd) take() *organization {
	for {
		w.mu.Lock()
		i := rand.IntN(len(w.organizations))
		o := w.organizations[i]
		w.mu.Unlock()
		if !o.mu.TryLock() {
			continue
		}
		if !o.retired {
			return o
		}
		fresh := w.newOrganization()
		fresh.mu.Lock()
		w.mu.Lock()
		w.organizations[i] = fresh
		w.mu.Unlock()
		return fresh // the old one stays locked: it is left as it is
	}
}

// write does one act that the organization's state allows.
func (w *crowd) write(ctx context.Context, o *organization) {
	k := o.current.Load()
	dice := rand.IntN(100)
	switch {
	case o.off:
		w.turn(ctx, o, false)
	case k == nil:
		w.create(ctx, o)
	case dice < 45:
		w.revoke(ctx, nil, k)
		if dice < 10 { // once more, of a revoked key (C21)
			w.revoke(ctx, nil, k)
		}
	case dice < 55: // twice at once, on whichever nodes
		var twice sync.WaitGroup
		for range 2 {
			twice.Go(func() { w.revoke(ctx, nil, k) })
		}
		twice.Wait()
	case dice < 80:
		if !w.roll(ctx, k) && ctx.Err() == nil {
			w.tb.Errorf("the roll of %v was refused", k)
		}
	default:
		w.turn(ctx, o, true)
	}
}

// writer writes until stop is closed; what it has begun it ends, at the latest when ctx does.
func (w *crowd) writer(ctx context.Context, stop <-chan struct{}, between time.Duration) {
	tick := time.NewTicker(between)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		o := w.take()
		w.write(ctx, o)
		o.mu.Unlock()
	}
}

// verifier asks the nodes in turn about current and recent keys until stop is closed.
func (w *crowd) verifier(stop <-chan struct{}, n *node, between time.Duration) {
	tick := time.NewTicker(between)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if k := w.anyKey(); k != nil {
			w.probe(n, k)
		}
	}
}

// anyKey is a current key of an organization or one of the last that were written.
func (w *crowd) anyKey() *key {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rand.IntN(2) == 0 {
		if k := w.organizations[rand.IntN(len(w.organizations))].current.Load(); k != nil {
			return k
		}
	}
	return w.recent[rand.IntN(len(w.recent))]
}
