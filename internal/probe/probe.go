// Package probe asks, from the outside, whether the promise holds: it mints a key, ends it, and asks every node about it
// by the way that services ask. A node that accepts the secret after its end was answered breaks the promise, whatever its own
// metrics say.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/token"
)

// Service mints and ends the probe key; *keys.Service does. Both return once every node has the write.
type Service interface {
	// MintProbe returns a secret, or how long it is until a probe is due.
	MintProbe(ctx context.Context, every time.Duration) (secret token.Secret, wait time.Duration, err error)
	EndProbe(ctx context.Context, secret token.Secret) error
}

// Config says how a Prober works. Service, Nodes, Signer and Every are required.
type Config struct {
	Service Service
	Nodes   func(ctx context.Context) ([]keys.ServingNode, error) // those registered now
	Every   time.Duration                                         // between two probes of the whole deployment

	// Signer returns the database's id and the signer of its master key, by which nodes know each
	// other.
	Signer func(ctx context.Context) (databaseID string, s seal.Signer, err error)

	TLS    *tls.Config   // of a client of the verification listeners; nil = they are asked in the clear
	Budget time.Duration // of each of the two writes; 0 = 30 s
	Logger *slog.Logger
}

// Bounds of the questions.
const (
	askTime     = 2 * time.Second  // for one answer
	askAtOnce   = 16               // nodes
	mostAnswer  = 64 << 10         // bytes
	idleTime    = 10 * time.Second // shorter than a node keeps a connection open for
	jitterOf    = 10               // a wait is at most a tenth longer
	usualBudget = 30 * time.Second
	probePath   = "/v1/probe"
)

// answer is what a node said of the secret.
type answer string

const (
	accepted    answer = "accepted"
	refused     answer = "refused"
	undecided   answer = "undecided"   // the node says that it cannot decide
	unreachable answer = "unreachable" // nothing in time, or nothing that the node itself said
)

// What had become of the secret when it was asked about.
const (
	actMint = "mint"
	actEnd  = "end"
)

// Prober takes this node's turns.
type Prober struct {
	cfg     Config
	client  *http.Client
	metrics metrics
}

// New returns a Prober that does nothing yet.
func New(cfg Config) (*Prober, error) {
	if cfg.Service == nil || cfg.Nodes == nil || cfg.Signer == nil || cfg.Every <= 0 {
		return nil, errors.New(
			"probe: a service, the nodes, a signer and a time between probes are required",
		)
	}
	if cfg.Budget == 0 {
		cfg.Budget = usualBudget
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Prober{cfg: cfg, metrics: newMetrics(), client: &http.Client{
		Timeout: askTime,
		// No proxy, and no redirect is followed: a question is for the address in the node's row
		// alone.
		Transport:     &http.Transport{TLSClientConfig: cfg.TLS, MaxIdleConnsPerHost: 1, IdleConnTimeout: idleTime},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Run probes until ctx ends. Which node's turn it is shows in the database: every node wakes when a probe is due, each a
// little later by chance, and the first one takes it. A probe that ctx cuts off leaves a secret behind that nobody knows.
func (p *Prober) Run(ctx context.Context) {
	defer p.client.CloseIdleConnections()
	for wait := p.cfg.Every; ; {
		select {
		case <-time.After(wait + jitter(p.cfg.Every/jitterOf)):
		case <-ctx.Done():
			return
		}
		var err error
		wait, err = p.turn(ctx)
		if err != nil && ctx.Err() == nil {
			p.metrics.failures.Inc()
			p.cfg.Logger.Warn("a probe could not be made or not be finished; there will be another", "error", err)
		}
	}
}

// jitter returns a time from 0 to most.
func jitter(most time.Duration) time.Duration {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(most)+1))
	if err != nil {
		return 0
	}
	return time.Duration(n.Int64())
}

// turn makes a probe if one is due, and returns how long to wait before the next look.
func (p *Prober) turn(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	secret, wait, err := p.mint(ctx)
	if err != nil {
		return p.cfg.Every, fmt.Errorf("mint: %w", err)
	}
	if wait > 0 {
		return wait, nil
	}
	p.metrics.barrier.WithLabelValues(actMint).Observe(time.Since(began).Seconds())
	return p.cfg.Every, p.probe(ctx, secret)
}

func (p *Prober) mint(ctx context.Context) (token.Secret, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Budget)
	defer cancel()
	return p.cfg.Service.MintProbe(ctx, p.cfg.Every)
}

func (p *Prober) end(ctx context.Context, secret token.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Budget)
	defer cancel()
	began := time.Now()
	if err := p.cfg.Service.EndProbe(ctx, secret); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	p.metrics.barrier.WithLabelValues(actEnd).Observe(time.Since(began).Seconds())
	return nil
}

// probe asks every node about a secret that was minted, ends it, and asks again. The nodes are listed before the end, so that one
// which the end fences, because it stands still, is asked too.
func (p *Prober) probe(ctx context.Context, secret token.Secret) error {
	nodes, err := p.nodes(ctx)
	var by asker
	if err == nil {
		by.databaseID, by.signer, err = p.cfg.Signer(ctx)
	}
	if err != nil {
		return errors.Join(err, p.end(ctx, secret))
	}
	by.secret = secret.Reveal()
	minted := p.askAll(ctx, nodes, by)
	if err := p.end(ctx, secret); err != nil {
		// Whether the secret was in force all the while is not known, so that it was refused says nothing.
		p.count(actMint, slices.DeleteFunc(minted, func(r reply) bool { return r.answer == refused }))
		return err
	}
	p.count(actMint, minted)
	p.count(actEnd, p.askAll(ctx, nodes, by))
	return nil
}

// asker is what the questions of one probe have in common.
type asker struct {
	databaseID, secret string
	signer             seal.Signer
}

// nodes returns those whose row is authentic. What else is in the table was written by somebody
// else.
func (p *Prober) nodes(ctx context.Context) ([]keys.ServingNode, error) {
	all, err := p.cfg.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	return slices.DeleteFunc(all, func(n keys.ServingNode) bool {
		switch {
		case n.Undecided:
			p.cfg.Logger.Warn(
				"a node's row is authenticated under a master key that this node lacks; it is not asked",
				"node",
				n.ID,
			)
		case !n.Genuine && n.MasterKeys == nil:
			p.cfg.Logger.Warn(
				"a node runs an older version, which cannot be probed; it is not asked",
				"node",
				n.ID,
			)
		case !n.Genuine:
			p.cfg.Logger.Error("a node's row was not written by Keyward; it is not asked", "node", n.ID)
		}
		return !n.Genuine
	}), nil
}

// reply is what one node said.
type reply struct {
	node   keys.ServingNode
	answer answer
	why    error // there was no verdict
}

// askAll asks every node.
func (p *Prober) askAll(ctx context.Context, nodes []keys.ServingNode, by asker) []reply {
	replies := make([]reply, len(nodes))
	places := make(chan struct{}, askAtOnce)
	var asking sync.WaitGroup
	for i, n := range nodes {
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			a, err := p.ask(ctx, &n.Node, by)
			replies[i] = reply{n, a, err}
		})
	}
	asking.Wait()
	return replies
}

// ask asks one node. The error says why there was no verdict; it holds nothing of what the node sent.
func (p *Prober) ask(ctx context.Context, n *keys.Node, by asker) (answer, error) {
	body, bound, err := newQuestion(by.signer, by.databaseID, n.ID, by.secret, time.Now())
	if err != nil {
		return unreachable, err
	}
	u := url.URL{Scheme: "http", Host: n.Address, Path: probePath}
	if p.cfg.TLS != nil {
		u.Scheme = "https"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return unreachable, errors.New("the address cannot be read")
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := p.client.Do(r)
	if err != nil {
		return unreachable, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return unreachable, fmt.Errorf("it answered %d", resp.StatusCode)
	}
	var said api.ProbeAnswer
	err = json.NewDecoder(io.LimitReader(resp.Body, mostAnswer)).Decode(&said)
	switch {
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return unreachable, errors.New("its answer was not complete in time")
	case err != nil:
		return unreachable, errors.New("it did not answer as Keyward does")
	}
	return read(by.signer, bound, said)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// count takes the replies into the metrics, and logs those that are not as they should be.
func (p *Prober) count(act string, replies []reply) {
	for _, r := range replies {
		p.metrics.answers.WithLabelValues(act, string(r.answer)).Inc()
		log := p.cfg.Logger.With("node", r.node.ID, "address", r.node.Address)
		switch {
		case act == actEnd && r.answer == accepted:
			p.metrics.staleAccepts.Inc()
			log.Error("STALE ACCEPT: a node accepted a secret after its revocation had been answered; take it out of service")
		case act == actMint && r.answer == refused:
			log.Error("a node refused a secret after its creation had been answered")
		case r.why != nil:
			log.Warn("a node gave no verdict about a probe", "after", act, "answer", string(r.answer), "error", r.why)
		}
	}
}
