package logsink

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gate is a reader that takes a line for each value it is sent: an error to fail with, or nil.
type gate struct {
	answers chan error
	text    strings.Builder
}

func newGate() *gate { return &gate{answers: make(chan error)} }

func (g *gate) Write(b []byte) (int, error) {
	if err := <-g.answers; err != nil {
		return 0, err
	}
	return g.text.Write(b)
}

// textLines is the text format without times.
func textLines(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
}

// R12: lines come out in order, and Close waits for the last.
func TestR12Order(t *testing.T) {
	var out bytes.Buffer
	s := New(&out)
	log := slog.New(s.Handler(textLines)).With("n", 1).WithGroup("g")
	log.Info("first", "a", 2)
	log.Error("second", "a", 3)
	if _, err := io.WriteString(s, "third\n"); err != nil {
		t.Fatal(err)
	}
	if !s.Close(time.Minute) {
		t.Error("not everything was written")
	}
	want := "level=INFO msg=first n=1 g.a=2\nlevel=ERROR msg=second n=1 g.a=3\nthird\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	if _, _ = io.WriteString(s, "late\n"); s.Dropped() != 1 {
		t.Errorf("%d lines dropped after Close, want 1", s.Dropped())
	}
}

// R12: a reader that is stuck holds up no line's writer; what finds no room is dropped and counted,
// and the reader is told once it is back. Errors find room when ordinary lines no longer do.
func TestR12StuckReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGate()
		s := New(out)
		log := slog.New(s.Handler(textLines))
		long := strings.Repeat("x", 10_000)
		for range 200 {
			log.Info(long)
		}
		ordinary := s.Dropped()
		if ordinary == 0 || ordinary == 200 {
			t.Fatalf("%d of 200 lines dropped", ordinary)
		}
		log.Error("the last line")
		if s.Dropped() != ordinary {
			t.Error("an error found no room")
		}
		for range 200 {
			log.Error(long)
		}
		dropped := s.Dropped()
		if dropped == ordinary {
			t.Error("the queue has no bound")
		}
		if s.Close(2 * time.Second) {
			t.Error("everything is said to be written")
		}
		go func() {
			for {
				select {
				case out.answers <- nil:
				case <-s.done:
					return
				}
			}
		}()
		<-s.done
		text := out.text.String()
		if !strings.Contains(text, "the last line") {
			t.Error("the error was not written")
		}
		if want := "level=WARN msg=\"log lines were dropped\" lines=" + strconv.FormatUint(dropped, 10) + "\n"; !strings.HasSuffix(text, want) {
			t.Errorf("the log ends with %q, want %q", text[len(text)-100:], want)
		}
	})
}

// R12: a write error costs its line and ends nothing: the reader of a named pipe may come back.
func TestR12ReaderComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGate()
		s := New(out)
		log := slog.New(s.Handler(textLines))
		log.Info("lost")
		out.answers <- syscall.EPIPE
		log.Info("arrives")
		out.answers <- nil
		out.answers <- errors.New("the report fails")
		log.Info("arrives too")
		out.answers <- nil
		out.answers <- nil
		if !s.Close(time.Second) {
			t.Error("not everything was written")
		}
		want := "level=INFO msg=arrives\nlevel=INFO msg=\"arrives too\"\n" +
			"level=WARN msg=\"log lines were dropped\" lines=1\n"
		if diff := cmp.Diff(want, out.text.String()); diff != "" {
			t.Error(diff)
		}
	})
}

// tearing writes the first bytes of a line and fails, once.
type tearing struct {
	bytes.Buffer
	torn bool
}

func (w *tearing) Write(b []byte) (int, error) {
	if !w.torn {
		w.torn = true
		n, _ := w.Buffer.Write(b[:3])
		return n, syscall.ENOSPC
	}
	return w.Buffer.Write(b)
}

// R12: a line that was written in part takes no other line with it.
func TestR12TornLine(t *testing.T) {
	var out tearing
	s := New(&out)
	_, _ = io.WriteString(s, "first\n")
	_, _ = io.WriteString(s, "second\n")
	if !s.Close(time.Minute) {
		t.Error("not everything was written")
	}
	if diff := cmp.Diff("fir\nsecond\n", out.String()); diff != "" {
		t.Error(diff)
	}
}
