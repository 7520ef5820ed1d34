package server

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// A connection with lazy deadlines is a net.Conn in every respect that the suite of x/net looks at.
func TestLazyConnIsAConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		if c1, err = net.Dial("tcp", l.Addr().String()); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = (lazyListener{l}).Accept(); err != nil {
			return nil, nil, nil, errors.Join(err, c1.Close())
		}
		return newLazyConn(c1), c2, func() { _, _ = c1.Close(), c2.Close() }, nil
	})
}

// never is no deadline.
const never = -1

// lazyPipe returns a lazy connection, how often its own read deadline was set, and its other end.
func lazyPipe(t *testing.T) (c *lazyConn, passed *int, peer net.Conn) {
	t.Helper()
	near, peer := net.Pipe()
	counted := &countedConn{Conn: near}
	c = newLazyConn(counted)
	t.Cleanup(func() { _, _ = c.Close(), peer.Close() })
	return c, &counted.passed, peer
}

type countedConn struct {
	net.Conn
	passed int
}

func (c *countedConn) SetReadDeadline(t time.Time) error {
	c.passed++
	return c.Conn.SetReadDeadline(t)
}

// A deadline that is only ever put off never reaches the connection, and then ends a read exactly when it was last told to.
func TestDeadlineThatIsPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, passed, peer := lazyPipe(t)
		b := make([]byte, 1)
		began := time.Now()
		for range 1000 {
			for _, d := range []time.Duration{75 * time.Second, 0, 5 * time.Second, 15 * time.Second} { // as net/http does
				deadline := time.Time{}
				if d > 0 {
					deadline = time.Now().Add(d)
				}
				if err := c.SetReadDeadline(deadline); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(50 * time.Millisecond) // the bubble's clock
			go func() { _, _ = peer.Write(b) }()
			if _, err := c.Read(b); err != nil {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if *passed != 0 {
			t.Errorf("the connection's own deadline was set %d times", *passed)
		}
		for range 10 { // net/http wakes a read so, and goes on
			if err := errors.Join(c.SetReadDeadline(time.Unix(1, 0)), c.SetReadDeadline(time.Time{}), c.SetReadDeadline(time.Time{})); err != nil {
				t.Fatal(err)
			}
		}
		if *passed != 20 {
			t.Errorf("the connection's own deadline was set %d times to wake ten reads", *passed)
		}
		began = time.Now()
		if err := c.SetReadDeadline(began.Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(b)
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took != 10*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// What is set while an operation is under way holds for it: earlier, later, none at all, and none after it was over.
func TestDeadlineOfAnOperationUnderWay(t *testing.T) {
	read := func(c *lazyConn) error { _, err := c.Read(make([]byte, 1)); return err }
	write := func(c *lazyConn) error { _, err := c.Write(make([]byte, 1)); return err }
	for name, tc := range map[string]struct {
		before, meanwhile, ends time.Duration // from the beginning; meanwhile is set after 1 s
	}{
		"earlier":        {10 * time.Second, 3 * time.Second, 3 * time.Second},
		"at once":        {10 * time.Second, time.Second, time.Second},
		"a moment ago":   {10 * time.Second, time.Second / 2, time.Second},
		"long ago":       {10 * time.Second, -time.Hour, time.Second},
		"later":          {2 * time.Second, 20 * time.Second, 20 * time.Second},
		"later, earlier": {30 * time.Second, 20 * time.Second, 20 * time.Second},
		"first":          {never, 5 * time.Second, 5 * time.Second},
		"lifted":         {2 * time.Second, never, never},
	} {
		for _, way := range []struct {
			name      string
			set       func(*lazyConn, time.Time) error
			operation func(*lazyConn) error
		}{
			{"read", (*lazyConn).SetReadDeadline, read}, {"write", (*lazyConn).SetWriteDeadline, write},
			{"both, reading", (*lazyConn).SetDeadline, read}, {"both, writing", (*lazyConn).SetDeadline, write},
		} {
			t.Run(name+"/"+way.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, _, peer := lazyPipe(t)
					began := time.Now()
					set := func(d time.Duration) {
						t.Helper()
						at := time.Time{}
						if d != never {
							at = began.Add(d)
						}
						if err := way.set(c, at); err != nil {
							t.Fatal(err)
						}
					}
					set(tc.before)
					ended := make(chan error, 1)
					go func() { ended <- way.operation(c) }()
					time.Sleep(time.Second)
					set(tc.meanwhile)
					if tc.ends == never {
						time.Sleep(time.Hour)
					} else {
						err := <-ended
						if took := time.Since(began); took != tc.ends || !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("after %v: %v, want a deadline at %v", took, err, tc.ends)
						}
						if err := way.operation(c); !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("after the deadline: %v", err)
						}
						set(tc.ends + 5*time.Second)
						err = way.operation(c)
						if took := time.Since(began); took != tc.ends+5*time.Second || !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("after %v: %v, want the next deadline at %v", took, err, tc.ends+5*time.Second)
						}
						set(never)
						go func() { ended <- way.operation(c) }()
						time.Sleep(time.Hour)
					}
					_ = peer.Close()
					if err := <-ended; errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("with no deadline, after %v: %v", time.Since(began), err)
					}
				})
			})
		}
	}
}

// net/http ends an answer so, and goes on reading.
func TestLazyConnClosesForWriting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c, err := (lazyListener{l}).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the peer read %v", err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("read %d bytes: %v", n, err)
	}
}

// A closed connection leaves no timer behind.
func TestDeadlineOfAClosedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _ := lazyPipe(t)
		if err := errors.Join(c.SetDeadline(time.Now().Add(time.Minute)), c.Close()); err != nil {
			t.Fatal(err)
		}
		if c.read.timer.Stop() || c.write.timer.Stop() {
			t.Error("a timer was still running")
		}
		if err := c.SetDeadline(time.Now().Add(time.Minute)); !errors.Is(err, net.ErrClosed) || c.read.timer.Stop() {
			t.Errorf("a deadline of a closed connection: %v", err)
		}
	})
}
