// Package faultproxy is a TCP proxy for tests, which stands between a program and its PostgreSQL and does to the connections
// what networks and poolers do: delay, starve, hold back one way or both, reset, refuse, lose the answer to a COMMIT, and lose
// announcements. For the last two it reads what passes, so the connections must be without TLS.
package faultproxy

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// Fault is what is wrong with the network. The zero Fault is a healthy one.
type Fault struct {
	// Latency is added to each direction, so a round trip takes twice as long.
	Latency time.Duration
	// DropUp loses what clients send and DropDown what the server answers; both are a black hole. Connections stay open, and
	// what was lost arrives once the fault ends, since TCP sends it again. The end of a connection is lost like its bytes.
	DropUp, DropDown bool
	// Refuse resets new connections. Those that are there stay.
	Refuse bool
	// BytesPerSecond bounds each direction of each connection; 0 = no bound.
	BytesPerSecond int
	// DropNotifications loses what the server announces to those that listen, for good, and nothing else. To a client it is a pooler
	// in transaction mode: LISTEN succeeds, and nothing ever comes.
	DropNotifications bool
}

// Proxy passes connections on to a server.
type Proxy struct {
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex // guards all below
	target  string
	fault   Fault
	changed chan struct{} // closed by the next change of fault
	links   map[*link]bool
	commits int  // how many of the next COMMITs are lost
	before  bool // before the server has them; else their answer is
	cut     chan struct{}
}

// New listens on a free loopback port and passes connections on to target, a host:port. It ends with the test.
func New(tb testing.TB, target string) *Proxy {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{listener: listener, target: target, changed: make(chan struct{}), links: make(map[*link]bool)}
	p.running.Go(p.accept)
	tb.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		p.fault.Refuse = true // one that was being accepted
		p.mu.Unlock()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Address returns host:port of the proxy.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// SetTarget sends new connections to another server.
func (p *Proxy) SetTarget(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = address
}

// Set changes the fault, for new and existing connections at once.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut resets every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// CutAtCommit passes the next n COMMITs on to the server, drops what it answers, and resets the connection then. The channel
// gets one element for each. A later call takes the place of this one; n = 0 ends it.
func (p *Proxy) CutAtCommit(n int) <-chan struct{} { return p.cutCommits(n, false) }

// CutBeforeCommit is CutAtCommit, but the server gets none of the n.
func (p *Proxy) CutBeforeCommit(n int) <-chan struct{} { return p.cutCommits(n, true) }

func (p *Proxy) cutCommits(n int, before bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commits, p.before, p.cut = n, before, make(chan struct{}, n)
	return p.cut
}

// takeCommit returns where to tell that a COMMIT's connection was cut, nil when this one is left alone.
func (p *Proxy) takeCommit() (cut chan<- struct{}, before bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.commits == 0 {
		return nil, false
	}
	p.commits--
	return p.cut, p.before
}

func (p *Proxy) now() (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a connection that was reset before it was accepted
		}
		p.running.Go(func() { p.pass(client.(*net.TCPConn)) })
	}
}

// pass serves one connection until it is over in both directions.
func (p *Proxy) pass(client *net.TCPConn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, 10*time.Second)
	if err != nil {
		_ = client.SetLinger(0) // what is not there refuses
		return
	}
	defer server.Close()
	l := &link{proxy: p, client: client, server: server.(*net.TCPConn), over: make(chan struct{})}

	p.mu.Lock()
	refused := p.fault.Refuse
	if !refused {
		p.links[l] = true
	}
	p.mu.Unlock()
	if refused {
		l.reset()
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()

	up := &direction{link: l, from: l.client, to: l.server, lost: func(f Fault) bool { return f.DropUp }, see: l.seeUp}
	down := &direction{link: l, from: l.server, to: l.client, lost: func(f Fault) bool { return f.DropDown }, see: l.seeDown}
	var both sync.WaitGroup
	for _, d := range []*direction{up, down} {
		queue := make(chan chunk, 64)
		both.Go(func() { d.read(queue) })
		both.Go(func() { d.write(queue) })
	}
	both.Wait()
	if answer := l.commitSent(); answer != nil { // the server went before it answered
		answer <- struct{}{}
	}
}

// link is one connection of a client and the one to the server that belongs to it.
type link struct {
	proxy          *Proxy
	client, server *net.TCPConn

	once sync.Once
	over chan struct{} // closed by reset

	requests requests // what the client sends; the up direction's own
	answers  answers  // what the server answers; the down direction's own

	mu     sync.Mutex
	commit chan<- struct{} // set once the COMMIT whose answer is to be lost is on its way; guarded by mu
}

// reset ends both connections at once.
func (l *link) reset() {
	l.once.Do(func() {
		close(l.over)
		for _, c := range []*net.TCPConn{l.client, l.server} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
}

// seeUp is called with what a client sent, and returns what of it is passed on.
func (l *link) seeUp(b []byte) (pass []byte, ok bool) {
	if !l.requests.commitIn(b) {
		return b, true
	}
	cut, before := l.proxy.takeCommit()
	switch {
	case cut != nil && before:
		l.reset()
		cut <- struct{}{}
		return nil, false
	case cut != nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.commit = cut
	}
	return b, true
}

// seeDown is called with what the server answered, and returns what of it is passed on. Clients wait for one answer before they
// send the next message, so what comes after a COMMIT is the answer to it.
func (l *link) seeDown(b []byte) (pass []byte, ok bool) {
	if cut := l.commitSent(); cut != nil {
		l.reset()
		cut <- struct{}{}
		return nil, false
	}
	fault, _ := l.proxy.now()
	return l.answers.pass(b, fault.DropNotifications), true
}

// commitSent returns where to tell of the lost answer, once.
func (l *link) commitSent() chan<- struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	cut := l.commit
	l.commit = nil
	return cut
}

// direction is one way through a link.
type direction struct {
	link     *link
	from, to *net.TCPConn
	lost     func(Fault) bool
	see      func([]byte) (pass []byte, ok bool) // not ok: the link is over
}

// chunk is bytes with the moment they came.
type chunk struct {
	bytes []byte
	came  time.Time
}

func (d *direction) read(queue chan<- chunk) {
	defer close(queue)
	b := make([]byte, 16<<10)
	for {
		n, err := d.from.Read(b)
		if n > 0 {
			pass, ok := d.see(bytes.Clone(b[:n]))
			if !ok {
				return
			}
			select {
			case queue <- chunk{pass, time.Now()}:
			case <-d.link.over:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (d *direction) write(queue <-chan chunk) {
	for c := range queue {
		for len(c.bytes) > 0 {
			n := d.mayPass(c)
			if n == 0 {
				return
			}
			if _, err := d.to.Write(c.bytes[:n]); err != nil {
				d.link.reset()
				return
			}
			c.bytes = c.bytes[n:]
		}
	}
	// The end is held back as bytes are.
	if d.mayPass(chunk{make([]byte, 1), time.Now()}) > 0 {
		_ = d.to.CloseWrite()
	}
}

// portions is into how many parts a second is cut when the bandwidth is bounded.
const portions = 20

// mayPass waits until the network lets some of c pass and returns how many bytes, 0 when the link is over.
func (d *direction) mayPass(c chunk) int {
	var paced time.Time // when a slice may pass; zero until the bandwidth is found bounded
	for {
		fault, changed := d.link.proxy.now()
		wait, n := time.Until(c.came.Add(fault.Latency)), len(c.bytes)
		if fault.BytesPerSecond > 0 {
			n = min(n, max(1, fault.BytesPerSecond/portions))
			if paced.IsZero() {
				paced = time.Now().Add(time.Duration(n) * time.Second / time.Duration(fault.BytesPerSecond))
			}
			wait = max(wait, time.Until(paced))
		}
		lost := d.lost(fault)
		if !lost && wait <= 0 {
			return n
		}
		var due <-chan time.Time
		if !lost {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-changed:
		case <-d.link.over:
			return 0
		}
	}
}
