// Package logsink writes log lines without waiting for their reader (R12). A reader that is
// gone, slow or stuck costs lines, which are counted; it never holds up the caller.
package logsink

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds what waits for the reader, in bytes.
	maxQueued = 1 << 20
	// reserved is the part of maxQueued that only lines of level warn and above may use.
	reserved = maxQueued / 4
	// lineCost is what a queued line takes beside its text. It bounds the number of lines too.
	lineCost = 64
	// reportEvery is the time between two reports of dropped lines to a reader that is always behind.
	reportEvery = 10 * time.Second
)

// Sink is a queue of lines in front of a writer. Its methods are safe for concurrent use.
type Sink struct {
	out     io.Writer // used by the sink's goroutine alone
	dropped atomic.Uint64

	mu     sync.Mutex
	queue  [][]byte                                // guarded by mu, as all below
	size   int                                     // of what is queued or being written, as cost counts it
	closed bool                                    // no more lines are taken
	report func(out io.Writer, lines uint64) error // nil = say nothing of dropped lines

	wake chan struct{} // holds one value when there is something to do
	done chan struct{} // closed when everything was written after Close
}

// New returns a sink in front of out. Close ends it.
func New(out io.Writer) *Sink {
	s := &Sink{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// Write queues b, which should be one or more whole lines, or drops it. It never fails.
func (s *Sink) Write(b []byte) (int, error) {
	s.enqueue(b, maxQueued)
	return len(b), nil
}

// Dropped returns how many lines were dropped so far.
func (s *Sink) Dropped() uint64 { return s.dropped.Load() }

// Close waits until everything queued was written, but no longer than patience, and reports whether
// it was. What is written later is dropped. A write that hangs keeps its goroutine.
func (s *Sink) Close(patience time.Duration) bool {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.signal()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.done:
		return true
	case <-timer.C:
		return false
	}
}

func cost(line []byte) int { return len(line) + lineCost }

// enqueue queues a copy of line unless more than limit would be queued then.
func (s *Sink) enqueue(line []byte, limit int) {
	s.mu.Lock()
	fits := !s.closed && s.size+cost(line) <= limit
	if fits {
		s.queue = append(s.queue, bytes.Clone(line))
		s.size += cost(line)
	}
	s.mu.Unlock()
	if !fits {
		s.dropped.Add(1)
		return
	}
	s.signal()
}

func (s *Sink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes what is queued. A write error costs its line: the reader may come back, as the one of
// a named pipe does, or a full disk may get room.
func (s *Sink) run() {
	defer close(s.done)
	var told uint64 // of the dropped lines
	toldAt := time.Now()
	torn := false // the last line was written in part
	for range s.wake {
		for {
			lines, closed := s.takeQueue()
			if len(lines) == 0 {
				if closed {
					return
				}
				break
			}
			written := false // the last line
			for _, line := range lines {
				text := line
				if torn {
					text = append([]byte{'\n'}, line...)
				}
				n, err := s.out.Write(text)
				if written = err == nil; written {
					torn = false
				} else {
					torn = torn || n > 0
					s.dropped.Add(1)
				}
				s.release(line)
			}
			// What was dropped came after what is still queued, so the report waits for that; a reader
			// that is always behind is told now and then.
			dropped := s.dropped.Load()
			due := s.caughtUp() || time.Since(toldAt) >= reportEvery
			if written && due && dropped > told && s.reportDropped(dropped-told) {
				told, toldAt = dropped, time.Now()
			}
		}
	}
}

func (s *Sink) takeQueue() (lines [][]byte, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, s.queue = s.queue, nil
	return lines, s.closed
}

func (s *Sink) caughtUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) == 0
}

// release makes room once line is written or lost.
func (s *Sink) release(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size -= cost(line)
}

// reportDropped writes the line that says how many lines are missing, and reports whether it could.
func (s *Sink) reportDropped(lines uint64) bool {
	s.mu.Lock()
	report := s.report
	s.mu.Unlock()
	return report == nil || report(s.out, lines) == nil
}
