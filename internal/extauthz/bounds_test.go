package extauthz

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/keys"
)

// rawClient speaks HTTP/2 by hand, so that it can stall where a gRPC client does not.
type rawClient struct {
	t    *testing.T
	conn net.Conn

	mu       sync.Mutex
	moved    sync.Cond // something below changed
	framer   *http2.Framer
	window   int64           // of the connection
	initial  int64           // window of a new stream
	streams  map[uint32]*raw // by id
	next     uint32
	closed   error // why the connection ended
	settings bool  // the server's have come
	goAway   bool
	headers  bytes.Buffer
	encoder  *hpack.Encoder
	maxCalls uint32 // SETTINGS_MAX_CONCURRENT_STREAMS
}

// raw is one stream.
type raw struct {
	window   int64
	response []byte
	ended    bool // the server ended it
	reset    bool // by RST_STREAM
	status   string
}

// dialRaw connects. window is the room that the server gets for each response.
func dialRaw(t *testing.T, address string, window uint32) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := &rawClient{
		t: t, conn: conn, framer: http2.NewFramer(conn, conn), window: 65535, initial: 65535,
		streams: map[uint32]*raw{}, next: 1,
	}
	c.moved.L = &c.mu
	c.encoder = hpack.NewEncoder(&c.headers)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	settings := http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}
	if err := c.framer.WriteSettings(settings); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); c.read() }()
	t.Cleanup(func() { conn.Close(); <-done })
	return c
}

// read takes in what the server sends until the connection ends.
func (c *rawClient) read() {
	for {
		f, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err != nil {
			c.closed = err
			c.moved.Broadcast()
			c.mu.Unlock()
			return
		}
		s := c.streams[f.Header().StreamID]
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.settings = true
				if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
					for _, s := range c.streams {
						s.window += int64(v) - c.initial
					}
					c.initial = int64(v)
				}
				if v, ok := f.Value(http2.SettingMaxConcurrentStreams); ok {
					c.maxCalls = v
				}
				_ = c.framer.WriteSettingsAck() // the next read says that the connection ended
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.framer.WritePing(true, f.Data) // as above
			}
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				c.window += int64(f.Increment)
			} else if s != nil {
				s.window += int64(f.Increment)
			}
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" && s != nil {
					s.status = h.Value
				}
			}
			if s != nil && f.StreamEnded() {
				s.ended = true
			}
		case *http2.DataFrame:
			if s != nil {
				s.response = append(s.response, f.Data()...)
			}
		case *http2.RSTStreamFrame:
			if s != nil {
				s.ended, s.reset = true, true
			}
		case *http2.GoAwayFrame:
			c.goAway = true
		}
		c.moved.Broadcast()
		c.mu.Unlock()
	}
}

// open starts a call without a message and returns its stream.
func (c *rawClient) open(method string, metadata ...string) (id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers.Reset()
	fields := append([]string{
		":method", "POST", ":scheme", "http", ":path", method, ":authority", "x",
		"content-type", "application/grpc", "te", "trailers",
	}, metadata...)
	for i := 0; i < len(fields); i += 2 {
		field := hpack.HeaderField{Name: fields[i], Value: fields[i+1]}
		if err := c.encoder.WriteField(field); err != nil {
			c.t.Error(err)
		}
	}
	id = c.next
	c.next += 2
	c.streams[id] = &raw{window: c.initial}
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{ // the reader notices an ended connection
		StreamID: id, BlockFragment: c.headers.Bytes(), EndHeaders: true,
	})
	return id
}

// send writes data to a stream as its window permits, until the server ends the stream or the
// connection. It waits for room.
func (c *rawClient) send(id uint32, data []byte) {
	for len(data) > 0 {
		c.mu.Lock()
		s := c.streams[id]
		for c.closed == nil && !s.ended && (s.window <= 0 || c.window <= 0) {
			c.moved.Wait()
		}
		if c.closed != nil || s.ended {
			c.mu.Unlock()
			return
		}
		n := min(int64(len(data)), s.window, c.window, 16<<10)
		s.window -= n
		c.window -= n
		err := c.framer.WriteData(id, false, data[:n])
		c.mu.Unlock()
		if err != nil {
			return
		}
		data = data[n:]
	}
}

// until waits until holds, which is asked with the lock held, or the connection ended.
func (c *rawClient) until(what string, holds func() bool) {
	c.t.Helper()
	tooLong := time.AfterFunc(60*time.Second, func() { c.conn.Close() })
	defer tooLong.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !holds() {
		if c.closed != nil {
			c.t.Fatalf("%s: the connection ended: %v", what, c.closed)
		}
		c.moved.Wait()
	}
}

// announced is the start of a message of n bytes.
func announced(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0}, n) }

// heap returns what is allocated and in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// C33's kind, for gRPC: what a caller can make the listener hold is bounded, before the caller is
// authenticated and after. Four connections announce messages of 16 MiB on every stream they may
// open, send what the server has room for, and stall.
func TestExtAuthzMemoryIsBounded(t *testing.T) {
	const token, most = "an-internal-token-of-it", 64 << 20
	with := []string{"authorization", "Bearer " + token}
	for _, tt := range []struct {
		name     string
		tokens   []string
		metadata []string
		announce uint32
		window   uint32 // of the client, for responses
	}{
		{"no credential", []string{token}, nil, 16<<20 - 1, 65535},
		{"no credential, and the client reads nothing", []string{token}, nil, 16<<20 - 1, 0},
		{"no credential is asked for", nil, nil, 16<<20 - 1, 65535},
		{"a credential", []string{token}, with, 16<<20 - 1, 65535},
		{"a credential, a message that may be sent", []string{token}, with, 60 << 10, 65535},
		{"a credential, and the client reads nothing", []string{token}, with, 60 << 10, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := newFixture(t, func(c *Config) { c.Access = gateFor(t, tt.tokens...) })
			piece := bytes.Repeat([]byte{0xff}, 16<<10)
			before := heap()
			var clients []*rawClient
			var sending sync.WaitGroup
			for range 4 {
				c := dialRaw(t, f.conn.Target(), tt.window)
				clients = append(clients, c)
				c.until("settings", func() bool { return c.settings })
				streams := min(c.maxCalls, 100)
				if streams == 0 { // no limit
					streams = 40
				}
				for range streams {
					id := c.open(checkPath, tt.metadata...)
					sending.Go(func() {
						c.send(id, announced(tt.announce))
						for range min(tt.announce-1, 4<<20) / uint32(len(piece)) {
							c.send(id, piece)
						}
					})
				}
			}
			stop := time.AfterFunc(20*time.Second, func() { // a stream without room waits
				for _, c := range clients {
					c.mu.Lock()
					for _, s := range c.streams {
						s.ended = true
					}
					c.moved.Broadcast()
					c.mu.Unlock()
				}
			})
			sending.Wait()
			stop.Stop()
			if after := heap(); after > before+most {
				t.Errorf("the heap grew by %d MiB, at most %d MiB is wanted", (after-before)>>20, most>>20)
			} else {
				t.Logf("the heap grew by %d KiB", int64(after-before)/1024)
			}
			// The listener still answers who has the credential.
			in := asEnvoy("GET", "/", false, []header{{"X-API-Key", f.live}})
			if got := f.check(withToken(t.Context(), token), in); got.status != 200 {
				t.Errorf("beside it: %d %s", got.status, got.body)
			}
		})
	}
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// checkPath is the method that Envoy calls.
const checkPath = authv3.Authorization_Check_FullMethodName

// denial waits until a stream has ended and returns what its one message denies with.
func (c *rawClient) denial(id uint32) (status int, body string) {
	c.t.Helper()
	s := c.streams[id]
	c.until("an answer", func() bool { return s.ended })
	out := new(authv3.CheckResponse)
	if s.status != "0" || len(s.response) < messagePrefix {
		c.t.Fatalf("an error of the call: status %q, %d bytes", s.status, len(s.response))
	}
	if err := proto.Unmarshal(s.response[messagePrefix:], out); err != nil {
		c.t.Fatal(err)
	}
	denied := out.GetDeniedResponse()
	return int(denied.GetStatus().GetCode()), denied.GetBody()
}

// A call is denied by its headers, before it has sent anything of a message. What is no message
// that can be read is denied too, and is no error of the call.
func TestR3ExtAuthzDeniesBeforeTheMessage(t *testing.T) {
	const token = "an-internal-token-of-it"
	f, _ := newFixture(t, func(c *Config) {
		c.Access, c.callTime = gateFor(t, token), 300*time.Millisecond
	})
	with := []string{"authorization", "Bearer " + token}
	c := dialRaw(t, f.conn.Target(), 65535)
	c.until("settings", func() bool { return c.settings })
	if c.maxCalls != maxStreams {
		t.Errorf("%d streams at the same time, want %d", c.maxCalls, maxStreams)
	}
	for _, tt := range []struct {
		name     string
		metadata []string
		sent     []byte
		status   int
		code     api.Code
	}{
		{"no token", nil, nil, 401, api.InternalTokenRequired},
		{"no token, part of a message", nil, announced(1 << 20), 401, api.InternalTokenRequired},
		{"no token, compressed", nil, []byte{1, 0, 0, 0, 1, 0}, 401, api.InternalTokenRequired},
		{"too long by its announcement", with, announced(maxMessage + 1), 431, api.HeadersTooLarge},
		{"too long to count", with, announced(1<<32 - 1), 431, api.HeadersTooLarge},
		{"compressed", with, []byte{1, 0, 0, 0, 1, 0}, 400, api.InvalidRequest},
		{"never sent", with, nil, 503, api.Unavailable},
		{"sent in part", with, append(announced(100), 1, 2, 3), 503, api.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := c.open(checkPath, tt.metadata...)
			c.send(id, tt.sent)
			got, body := c.denial(id)
			if got != tt.status || !strings.Contains(body, `"`+string(tt.code)+`"`) {
				t.Errorf("%d %s, want %d %s", got, body, tt.status, tt.code)
			}
		})
	}

	// Over all connections.
	f.server.running.Add(maxChecks)
	in := asEnvoy("GET", "/", false, []header{{"X-API-Key", f.live}})
	if got := f.check(withToken(t.Context(), token), in); got.status != 503 {
		t.Errorf("too many at the same time: %d", got.status)
	}
	f.server.running.Add(-maxChecks)
	if got := f.check(withToken(t.Context(), token), in); got.status != 200 {
		t.Errorf("after them: %d", got.status)
	}
}

// A connection on which no call was authenticated may send little, and gives its place to a new
// one. One with a credential keeps its place.
func TestExtAuthzStrangers(t *testing.T) {
	const token = "an-internal-token-of-it"
	f, _ := newFixture(t, func(c *Config) { c.Access, c.MaxConnections = gateFor(t, token), 3 })
	ended := func(c *rawClient) {
		t.Helper()
		tooLong := time.AfterFunc(30*time.Second, func() {
			t.Error("a connection is not ended")
			c.conn.Close()
		})
		defer tooLong.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		for c.closed == nil {
			c.moved.Wait()
		}
	}
	settled := func(c *rawClient) *rawClient {
		t.Helper()
		c.until("settings", func() bool { return c.settings })
		return c
	}
	known := func(c *rawClient) *rawClient {
		t.Helper()
		id := c.open(checkPath, "authorization", "Bearer "+token)
		c.send(id, announced(0))
		if status, _ := c.denial(id); status != 400 {
			t.Fatalf("an empty message: %d", status)
		}
		return c
	}
	first := settled(dialRaw(t, f.conn.Target(), 65535))
	second := settled(dialRaw(t, f.conn.Target(), 65535))
	third := settled(dialRaw(t, f.conn.Target(), 65535))
	known(first)
	fourth := known(settled(dialRaw(t, f.conn.Target(), 65535)))
	ended(second) // the oldest without a credential
	known(third)
	if conn, err := net.Dial("tcp", f.conn.Target()); err == nil { // three with one: no room
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection too many is served: %d bytes, %v", n, err)
		}
		conn.Close()
	}

	// With a credential a connection may send on; without one it is ended.
	much := bytes.Repeat([]byte{0}, strangerBytes)
	id := fourth.open(checkPath)
	for range 4 {
		fourth.send(id, much[:16<<10]) // on a stream that has ended: it counts all the same
	}
	known(fourth)
	third.conn.Close()
	stranger := settled(dialUntil(t, f))
	flood(stranger)
	ended(stranger)
	known(fourth)
}

// dialUntil connects as soon as there is a place.
func dialUntil(t *testing.T, f *fixture) (c *rawClient) {
	f.eventually("a place", func() bool {
		c = dialRaw(t, f.conn.Target(), 65535)
		c.mu.Lock()
		defer c.mu.Unlock()
		for !c.settings && c.closed == nil {
			c.moved.Wait()
		}
		return c.settings
	})
	return c
}

// flood calls, and sends, until the connection ends or it has sent 4 MiB.
func flood(c *rawClient) {
	for range 4 << 20 / (16 << 10) {
		id := c.open(checkPath)
		c.mu.Lock()
		err := c.framer.WriteData(id, false, make([]byte, 16<<10))
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// The connection of a client that calls and reads no answer is ended.
func TestExtAuthzEndsWhatDoesNotRead(t *testing.T) {
	f, _ := newFixture(t, func(c *Config) { c.writeTime = 200 * time.Millisecond })
	conn, err := net.Dial("tcp", f.conn.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	_ = conn.(*net.TCPConn).SetReadBuffer(4096) // so that it is full sooner
	framer := http2.NewFramer(conn, conn)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteWindowUpdate(0, 1<<30); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for id := uint32(1); err == nil; id += 2 {
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", checkPath}, {":authority", "x"},
			{"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			_ = encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}) // a buffer takes it
		}
		err = framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true,
		})
		if err == nil {
			err = framer.WriteData(id, true, announced(0))
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the listener waits for a client that does not read")
	}
}

// Health is open, and bounded.
func TestR5ExtAuthzWatchersAreBounded(t *testing.T) {
	f, _ := newFixture(t)
	watching := &f.server.health.watching
	watching.Add(maxWatchers)
	client, all := healthv1.NewHealthClient(f.conn), &healthv1.HealthCheckRequest{}
	stream, err := client.Watch(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a watcher too many: %v", err)
	}
	f.eventually("its place back", func() bool { return watching.Load() == maxWatchers })
	watching.Add(-maxWatchers)
	if stream, err = client.Watch(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
}

// A verified client certificate is a credential of the connection.
func TestExtAuthzCertificateIsKnown(t *testing.T) {
	verified := tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
	for name, tt := range map[string]struct {
		auth credentials.AuthInfo
		want bool
	}{
		"no TLS":         {nil, false},
		"no certificate": {credentials.TLSInfo{}, false},
		"a certificate":  {credentials.TLSInfo{State: verified}, true},
	} {
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: tt.auth})
		if got := presented(ctx).Certificate != nil; got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// gateFor is a gate for credentials with these tokens; without any, everybody may ask.
func gateFor(t *testing.T, tokens ...string) *access.Gate {
	t.Helper()
	if len(tokens) == 0 {
		return access.Open()
	}
	var file strings.Builder
	for i, token := range tokens {
		fmt.Fprintf(&file, "client-%d verify %s\n", i, token)
	}
	all, err := access.Parse([]byte(file.String()))
	if err != nil {
		t.Fatal(err)
	}
	return access.NewGate(func() access.Credentials { return all }, func(context.Context, keys.Operator, string) error { return nil })
}
