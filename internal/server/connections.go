package server

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// ConnectionLimits bounds the connections that a listener holds at the same time. At a bound the
// oldest connection without a request makes room; if all have one, the new connection is closed.
type ConnectionLimits struct {
	Total     int // 0 = no bound
	PerSource int // of one client address; 0 = no bound
}

// connections are those of one listener.
type connections struct {
	limits ConnectionLimits
	evicts bool // what is idle is known, by state
	logger *slog.Logger
	lines  *rate.Limiter // of the log

	mu      sync.Mutex
	total   int // guarded by mu, as all below
	idle    list.List
	sources map[string]*source
	turns   *rate.Limiter
	dropped int64 // since the last line of the log
}

// source is a client address.
type source struct {
	name  string
	total int
	idle  list.List
	turns *rate.Limiter // of connections that made room for others of this source; nil until the first
}

// How often connections make room: of one source, and of all. A client that opens others as fast
// as its own are closed would keep the processors busy with nothing else; beyond this new
// connections are closed as they come.
const (
	turnsOfSource = 50
	turnsOfAll    = 500
)

// heldConn is a connection that counts until it is closed. Without a request under way it is in
// both lists, which begin with what is idle for the longest time: a connection that was only
// opened, too.
type heldConn struct {
	net.Conn
	of             *connections
	source         *source
	idle, atSource *list.Element // nil while a request is under way; guarded by of.mu
	closed         bool          // guarded by of.mu
}

// newConnections returns nil, which bounds nothing, for no limits.
func newConnections(l ConnectionLimits, logger *slog.Logger) *connections {
	if l == (ConnectionLimits{}) {
		return nil
	}
	return &connections{
		limits: l, evicts: true, logger: logger, lines: rate.NewLimiter(rate.Every(10*time.Second), 1), sources: make(map[string]*source),
		turns: rate.NewLimiter(turnsOfAll, turnsOfAll),
	}
}

// LimitConnections bounds the connections that l accepts where nobody says which are idle: beyond a
// bound, new ones are closed.
func LimitConnections(l net.Listener, limits ConnectionLimits, logger *slog.Logger) net.Listener {
	held := newConnections(limits, logger)
	if held != nil {
		held.evicts = false
	}
	return held.limit(l)
}

// limit bounds the connections that l accepts.
func (c *connections) limit(l net.Listener) net.Listener {
	if c == nil {
		return l
	}
	return limitedListener{l, c}
}

type limitedListener struct {
	net.Listener
	held *connections
}

// Accept implements net.Listener.
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if held := l.held.hold(c); held != nil {
			return held, nil
		}
	}
}

// hold counts a new connection and closes one for which there is no room: the one that is idle for
// the longest time, of the same source if that has reached its bound, or else the new one. Then it
// returns nil.
func (c *connections) hold(conn net.Conn) net.Conn {
	name := sourceOf(conn)
	c.mu.Lock()
	s := c.sources[name]
	if s == nil {
		s = &source{name: name}
		c.sources[name] = s
	}
	victim := (*heldConn)(nil)
	room := true
	switch {
	case c.limits.PerSource > 0 && s.total >= c.limits.PerSource:
		if s.turns == nil {
			s.turns = rate.NewLimiter(turnsOfSource, turnsOfSource)
		}
		victim, room = oldest(&s.idle, s.turns)
	case c.limits.Total > 0 && c.total >= c.limits.Total:
		victim, room = oldest(&c.idle, c.turns)
	}
	if victim != nil {
		c.forget(victim)
		if c.sources[name] == nil { // the victim was all there was of it
			c.sources[name] = s
		}
	}
	var h *heldConn
	if room {
		h = &heldConn{Conn: conn, of: c, source: s}
		s.total++
		c.total++
		c.setIdle(h, c.evicts)
	} else if s.total == 0 {
		delete(c.sources, name)
	}
	var report int64
	if victim != nil || !room {
		if c.dropped++; c.lines.Allow() {
			report, c.dropped = c.dropped, 0
		}
	}
	c.mu.Unlock()
	if report > 0 {
		c.logger.LogAttrs(context.Background(), slog.LevelWarn, "connections closed to make room: the listener's limit is reached",
			slog.Int64("closed", report), slog.Int("max", c.limits.Total), slog.Int("max_per_source", c.limits.PerSource))
	}
	if victim != nil {
		_ = victim.Conn.Close() // its reader finds it closed
	}
	if h == nil {
		_ = conn.Close()
		return nil
	}
	return h
}

func oldest(l *list.List, turns *rate.Limiter) (*heldConn, bool) {
	if e := l.Front(); e != nil && turns.Allow() {
		return e.Value.(*heldConn), true
	}
	return nil, false
}

// sourceOf is the client's address: one address of IPv4, or a /64 of IPv6, which one client can
// have whole.
func sourceOf(conn net.Conn) string {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	addr := a.AddrPort().Addr().Unmap()
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			addr = p.Addr()
		}
	}
	return addr.String()
}

// forget counts a connection no longer. The caller holds c.mu.
func (c *connections) forget(h *heldConn) {
	if h.closed {
		return
	}
	c.setIdle(h, false)
	h.closed = true
	c.total--
	if h.source.total--; h.source.total == 0 {
		delete(c.sources, h.source.name)
	}
}

// setIdle puts a connection at the end of the idle ones, or takes it out. The caller holds c.mu.
func (c *connections) setIdle(h *heldConn, idle bool) {
	if h.closed || idle == (h.idle != nil) {
		return
	}
	if idle {
		h.idle, h.atSource = c.idle.PushBack(h), h.source.idle.PushBack(h)
		return
	}
	c.idle.Remove(h.idle)
	h.source.idle.Remove(h.atSource)
	h.idle, h.atSource = nil, nil
}

// state follows what net/http does with a connection.
func (c *connections) state(conn net.Conn, state http.ConnState) {
	if c == nil || state != http.StateActive && state != http.StateIdle {
		return
	}
	if h := heldOf(conn); h != nil {
		h.mayGo(state == http.StateIdle)
	}
}

// heldOf returns the heldConn under a connection, or nil.
func heldOf(conn net.Conn) *heldConn {
	for {
		switch on := conn.(type) {
		case *heldConn:
			return on
		case interface{ NetConn() net.Conn }:
			conn = on.NetConn()
		default:
			return nil
		}
	}
}

// mayGo says whether the connection may be closed to make room for another.
func (h *heldConn) mayGo(may bool) {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.of.setIdle(h, may)
}

// heldKey is where a request's context has its heldConn.
type heldKey struct{}

func withHeld(ctx context.Context, conn net.Conn) context.Context {
	if h := heldOf(conn); h != nil {
		return context.WithValue(ctx, heldKey{}, h)
	}
	return ctx
}

// Close implements net.Conn.
func (h *heldConn) Close() error {
	h.of.mu.Lock()
	h.of.forget(h)
	h.of.mu.Unlock()
	return h.Conn.Close()
}

// CloseWrite is as lazyConn's.
func (h *heldConn) CloseWrite() error {
	if half, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// The descriptors that are kept for the database, the lease, files and outgoing connections: a
// quarter of what there is, within bounds.
const (
	minReserved = 64
	maxReserved = 512
)

// ConnectionShares divides the descriptors that a process may have among its listeners, by name, so
// that no listener can take what another needs. Verification has as much as the public listener,
// which anybody reaches. perListener, unless 0, is each listener's bound instead. ok is false when
// there are not enough descriptors for that.
func ConnectionShares(descriptors, perListener int, listeners []string) (limits map[string]ConnectionLimits, ok bool) {
	left := descriptors - min(max(descriptors/4, minReserved), maxReserved)
	if perListener > 0 && perListener*len(listeners) > left {
		return nil, false
	}
	parts := 0
	for _, name := range listeners {
		parts += shareOf(name).parts
	}
	limits = make(map[string]ConnectionLimits)
	for _, name := range listeners {
		share := shareOf(name)
		total := perListener
		if total == 0 {
			total = max(1, min(left*share.parts/parts, share.most))
		}
		l := ConnectionLimits{Total: total}
		if name == public {
			l.PerSource = max(1, total/2)
		}
		limits[name] = l
	}
	return limits, true
}

// connectionShare is a listener's part of the descriptors, and the most it takes by itself: each
// idle connection costs about 10 KiB of memory.
type connectionShare struct{ parts, most int }

func shareOf(listener string) connectionShare {
	switch listener {
	case public:
		return connectionShare{4, 4096}
	case admin, "extauthz", "payments":
		return connectionShare{1, 1024}
	default: // verification
		return connectionShare{4, 16384}
	}
}
