package server

import (
	"errors"
	"net"
	"sync"
	"time"
)

// lazyListener has connections whose deadlines cost next to nothing to put off. net/http sets eight for each
// request, nearly always later than the timer that runs, and each would move that timer of the runtime (docs/benchmarks.md). Here a timer
// that would run out too early is left alone; when it has, it is set to what is wanted by then. Deadlines mean what net.Conn says, but for
// one of this very moment, which takes as long as a timer to be noticed.
type lazyListener struct{ net.Listener }

// Accept implements net.Listener.
func (l lazyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newLazyConn(c), nil
}

// lazyConn is a connection of lazyListener.
type lazyConn struct {
	net.Conn
	read, write deadline
}

func newLazyConn(c net.Conn) *lazyConn {
	began := time.Now()
	return &lazyConn{Conn: c, read: deadline{pass: c.SetReadDeadline, began: began}, write: deadline{pass: c.SetWriteDeadline, began: began}}
}

// SetReadDeadline implements net.Conn.
func (c *lazyConn) SetReadDeadline(t time.Time) error { return c.read.set(t) }

// SetWriteDeadline implements net.Conn.
func (c *lazyConn) SetWriteDeadline(t time.Time) error { return c.write.set(t) }

// SetDeadline implements net.Conn.
func (c *lazyConn) SetDeadline(t time.Time) error { return errors.Join(c.read.set(t), c.write.set(t)) }

// NetConn returns the connection underneath, as that of tls.Conn does.
func (c *lazyConn) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *lazyConn) Close() error {
	c.read.stop()
	c.write.stop()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer to a request it has not read whole, so that the client gets to see it.
func (c *lazyConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// deadline is when reads, or writes, of a connection give up.
type deadline struct {
	pass  func(time.Time) error // sets the connection's own
	began time.Time             // whatever is before it has passed

	mu     sync.Mutex
	wanted time.Time   // zero is never. Guarded by mu, as all that follows
	timer  *time.Timer // nil until the first
	runs   time.Time   // when the timer runs out, not later than wanted; zero while it is not running
	passed bool        // the connection's own deadline is over
	closed bool
}

func (d *deadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = t
	switch {
	case d.closed:
		return net.ErrClosed
	case !t.IsZero() && t.Before(d.began):
		d.passed = true
		return d.pass(t)
	case !t.IsZero() && (d.runs.IsZero() || t.Before(d.runs)):
		d.run()
	}
	if !d.passed {
		return nil
	}
	d.passed = false
	return d.pass(time.Time{})
}

// run sets the timer to what is wanted.
func (d *deadline) run() {
	d.runs = d.wanted
	if d.timer == nil {
		d.timer = time.AfterFunc(time.Until(d.wanted), d.ranOut)
	} else {
		d.timer.Reset(time.Until(d.wanted))
	}
}

func (d *deadline) ranOut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.runs = time.Time{}
	switch {
	case d.closed, d.wanted.IsZero():
	case time.Now().Before(d.wanted):
		d.run()
	default:
		d.passed = true
		_ = d.pass(d.wanted) // the connection is closed; there is nobody left to wake
	}
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
}
