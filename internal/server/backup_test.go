package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// C33: a client that does not read its backup holds it for a bounded time.
func TestBackupReaderStalls(t *testing.T) {
	broken := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p := &patientWriter{w: w, control: http.NewResponseController(w), stall: 50 * time.Millisecond}
		page := make([]byte, 4096)
		for {
			if _, err := p.Write(page); err != nil {
				broken <- err
				return
			}
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewHTTPServer(h, Limits{Write: time.Hour}, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 0\r\n\r\n")
	if err := <-broken; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write ended with %v", err)
	}
	if err := errors.Join(conn.Close(), s.Close(), <-served); err != nil {
		t.Error(err)
	}
}
