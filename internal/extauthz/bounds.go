package extauthz

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
)

// What a client can make the listener hold. A stranger is a connection on which no call was
// authenticated yet, by a token or by a client certificate. docs/doors/envoy.md lists the bounds.
const (
	// streamWindow is how much of a message gRPC buffers before anybody reads it: the least that
	// HTTP/2 lets a server say. It does not grow with what the client sends.
	streamWindow = 65_535
	connWindow   = 1 << 20

	// maxMessage is the longest check request that is read. It fits the window, so that reading
	// one never gives the client more room. A longer one is denied, not read.
	maxMessage = streamWindow - messagePrefix

	maxStreams    = 100     // at the same time on a connection; Envoy opens another beyond
	maxHeaderList = 8 << 10 // of a call's own headers; the client's request is in the message
	maxChecks     = 2_048   // at the same time, over all connections
	maxWatchers   = 256     // of health, over all connections

	maxConnections = 1_024
	maxStrangers   = 256
	// strangerBytes and strangerRate, a second, are what a stranger may send: thousands of health
	// checks. Its first call with a token comes before.
	strangerBytes = 128 << 10
	strangerRate  = 512

	callTime       = 5 * time.Second // from a call's headers to its answer; not for Watch
	writeTime      = 10 * time.Second
	handshakeTime  = 5 * time.Second
	connectionIdle = 10 * time.Minute
	connectionAge  = 30 * time.Minute // then it is ended in order, by GOAWAY
	connectionEnd  = 10 * time.Second // for what runs then
	pingEvery      = 100 * time.Millisecond
)

// bounds are gRPC's part of it.
func (s *Server) bounds() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InTapHandle(s.beforeCall),
		grpc.MaxRecvMsgSize(maxMessage), // of the health service; receive has its own limit
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(16 << 10),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: pingEvery, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionIdle: connectionIdle,
			MaxConnectionAge:  connectionAge, MaxConnectionAgeGrace: connectionEnd,
		}),
	}
}

// beforeCall sees a call's headers, before gRPC makes a stream of it and reads a message. It never
// returns an error, which would be an error of the call: serveCheck denies.
func (s *Server) beforeCall(ctx context.Context, info *tap.Info) (context.Context, error) {
	if c := connectionOf(ctx); c != nil && c.stranger() && s.cfg.Access.Allows(presented(ctx), access.Verify) {
		c.know()
	}
	if info.FullMethodName == healthv1.Health_Watch_FullMethodName {
		return ctx, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.callTime)
	_ = cancel // gRPC cancels the parent when the call ends
	return ctx, nil
}

// authorization is the service with Check as a stream, which is the same on the wire: the handler
// runs when the headers are there, and decides whether the message is read.
var authorization = grpc.ServiceDesc{
	ServiceName: authv3.Authorization_ServiceDesc.ServiceName,
	HandlerType: authv3.Authorization_ServiceDesc.HandlerType,
	Metadata:    authv3.Authorization_ServiceDesc.Metadata,
	Streams: []grpc.StreamDesc{{
		StreamName: "Check",
		Handler:    func(s any, stream grpc.ServerStream) error { return s.(*Server).serveCheck(stream) },
	}},
}

// serveCheck answers one call.
func (s *Server) serveCheck(stream grpc.ServerStream) error {
	ctx := stream.Context()
	defer s.running.Add(-1)
	running := s.running.Add(1)
	out := s.answer(ctx, func(requestID string) (*authv3.CheckRequest, error) {
		if err := s.admit(ctx, requestID); err != nil {
			return nil, err
		}
		if running > maxChecks {
			return nil, &keys.Unavailable{Err: errBusy}
		}
		return receive(stream)
	})
	return stream.SendMsg(out)
}

var (
	errBusy    = errors.New("too many checks at the same time")
	errSlow    = errors.New("the check request did not arrive in time")
	errTooLong = errors.New("the check request is longer than 64 KB")
)

// messagePrefix is the length of what gRPC puts before a message: a flag and the length.
const messagePrefix = 5

// receive reads the check request. gRPC's own RecvMsg ends the call with an error when a message is
// too long, so the stream below it is read.
func receive(stream grpc.ServerStream) (*authv3.CheckRequest, error) {
	in := new(authv3.CheckRequest)
	below, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(interface {
		ReadMessageHeader([]byte) error
		Read(int) (mem.BufferSlice, error)
	})
	if !ok { // another gRPC: the same but for the kind of answer
		return in, stream.RecvMsg(in)
	}
	var prefix [messagePrefix]byte
	if err := below.ReadMessageHeader(prefix[:]); err != nil {
		return nil, notReceived(stream.Context())
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	switch {
	case n > maxMessage:
		return nil, errTooLong
	case prefix[0] != 0: // compressed, which nobody offered
		return nil, notReceived(stream.Context())
	}
	data, err := below.Read(int(n))
	if err != nil {
		data.Free()
		return nil, notReceived(stream.Context())
	}
	defer data.Free()
	return in, lenient{}.Unmarshal(data, in)
}

// notReceived is the answer to a message that did not come.
func notReceived(ctx context.Context) error {
	if ctx.Err() != nil {
		return &keys.Unavailable{Err: errSlow}
	}
	return notARequest()
}

// guard is the listener's side of the bounds: how many connections there are, and what a stranger
// may send.
type guard struct {
	net.Listener
	logger *slog.Logger
	most   int // connections

	writeTime time.Duration
	full      door.Throttle

	mu        sync.Mutex
	open      int
	strangers list.List // of *connection, the oldest first
}

// Accept makes room by closing the oldest stranger. With none left, it closes the new connection.
func (g *guard) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: conn, guard: g, since: time.Now()}
		c.remote = &address{conn.RemoteAddr(), c}
		var oldest *connection
		g.mu.Lock()
		if g.open >= g.most || g.strangers.Len() >= min(maxStrangers, g.most) {
			if front := g.strangers.Front(); front != nil {
				oldest = front.Value.(*connection)
			}
		}
		accepted := g.open < g.most || oldest != nil
		if accepted {
			g.open++
			c.element = g.strangers.PushBack(c)
		}
		g.mu.Unlock()
		if (oldest != nil || !accepted) && g.full.Allow(time.Now()) {
			g.logger.LogAttrs(context.Background(), slog.LevelWarn, "too many connections",
				slog.String("listener", name), slog.Bool("accepted", accepted))
		}
		if oldest != nil {
			_ = oldest.Close() // it may have ended by itself
		}
		if accepted {
			return c, nil
		}
		_ = conn.Close() // nobody has it yet
	}
}

// connection is one of a guard's.
type connection struct {
	net.Conn
	guard  *guard
	remote *address
	since  time.Time
	read   int64 // bytes, while it is a stranger; of the one goroutine that reads
	known  atomic.Bool

	// Under the guard's lock.
	element *list.Element // in strangers; nil when it is none
	closed  bool
}

// address is a connection's, by which a call finds its connection.
type address struct {
	net.Addr
	connection *connection
}

// connectionOf returns the connection of a call.
func connectionOf(ctx context.Context) *connection {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(*address); ok {
			return a.connection
		}
	}
	return nil
}

func (c *connection) RemoteAddr() net.Addr { return c.remote }

func (c *connection) stranger() bool { return !c.known.Load() }

// know lifts what holds for strangers.
func (c *connection) know() {
	c.known.Store(true)
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	c.leaveStrangers()
}

func (c *connection) leaveStrangers() {
	if c.element != nil {
		c.guard.strangers.Remove(c.element)
		c.element = nil
	}
}

var errStranger = errors.New("extauthz: too much from a connection without a credential")

// Read ends a stranger's connection when it has sent what it may.
func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.stranger() {
		c.read += int64(n)
		if c.read > strangerBytes+strangerRate*int64(time.Since(c.since)/time.Second) {
			return 0, errStranger
		}
	}
	return n, err
}

// Write gives a client that does not read a bounded time. Then it closes the connection: gRPC's
// writer only ends, and its reader would wait for it.
func (c *connection) Write(b []byte) (int, error) {
	err := c.SetWriteDeadline(time.Now().Add(c.guard.writeTime))
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close() // the error of the write is the one to report
	}
	return n, err
}

// Close gives the place back, once.
func (c *connection) Close() error {
	c.guard.mu.Lock()
	if !c.closed {
		c.closed = true
		c.guard.open--
		c.leaveStrangers()
	}
	c.guard.mu.Unlock()
	return c.Conn.Close()
}
