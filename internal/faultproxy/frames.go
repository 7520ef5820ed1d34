package faultproxy

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// frames follows the messages that a PostgreSQL client sends, wherever the reads happen to cut them (protocol 3.0, "Message
// Formats"): a type byte, then a length that counts itself but not the type. Those before and with the startup message have no type.
type frames struct {
	started bool   // the startup message has passed
	head    []byte // of the message that has begun, until it is known what it is
	kind    byte
	left    int    // bytes of the message that are still to come
	query   []byte // of a short simple Query, nil for anything else
}

// Requests that come before the startup message and are answered before it (SSLRequest, GSSENCRequest).
const (
	sslRequest = 80877103
	gssRequest = 80877104
)

const longestCommit = 64 // bytes of a Query that can be a COMMIT

// commitIn takes the next bytes and reports whether a simple Query COMMIT ends in them.
func (f *frames) commitIn(b []byte) (found bool) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			if f.query != nil {
				f.query = append(f.query, b[:n]...)
			}
			b, f.left = b[n:], f.left-n
			if f.left == 0 {
				found = f.ended() || found
			}
			continue
		}
		headLength := 5
		if !f.started {
			headLength = 8 // length and code
		}
		n := min(headLength-len(f.head), len(b))
		f.head, b = append(f.head, b[:n]...), b[n:]
		if len(f.head) < headLength {
			return found
		}
		f.begin()
	}
	return found
}

// begin reads a complete head.
func (f *frames) begin() {
	head := f.head
	f.head = nil
	if !f.started {
		code := binary.BigEndian.Uint32(head[4:])
		f.started = code != sslRequest && code != gssRequest
		f.kind, f.left, f.query = 0, max(0, int(binary.BigEndian.Uint32(head))-len(head)), nil
		return
	}
	f.kind, f.left, f.query = head[0], max(0, int(binary.BigEndian.Uint32(head[1:]))-4), nil
	if f.kind == 'Q' && f.left <= longestCommit {
		f.query = make([]byte, 0, f.left)
	}
}

// ended reports whether the message that has just ended was a COMMIT.
func (f *frames) ended() bool {
	text := string(bytes.TrimRight(f.query, "\x00; \n"))
	f.query = nil
	return strings.EqualFold(strings.TrimSpace(text), "commit")
}
