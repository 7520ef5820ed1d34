package faultproxy

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// requests follows the messages that a PostgreSQL client sends, wherever the reads happen to cut them (protocol 3.0, "Message
// Formats"): a type byte, then a length that counts itself but not the type. Those before and with the startup message have no type.
type requests struct {
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
func (f *requests) commitIn(b []byte) (found bool) {
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
func (f *requests) begin() {
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
func (f *requests) ended() bool {
	text := string(bytes.TrimRight(f.query, "\x00; \n"))
	f.query = nil
	return strings.EqualFold(strings.TrimSpace(text), "commit")
}

const notificationResponse = 'A'

// answers follows the messages that a PostgreSQL server sends, wherever the reads happen to cut them. They all have a type: a client
// that asks for no encryption gets no answer without one.
type answers struct {
	head    []byte // of the message that has begun, until it is complete
	left    int    // bytes of the message that are still to come
	dropped bool   // the message that has begun
}

// pass takes the next bytes, which it may change, and returns those to pass on: all but the notifications that begin in them when
// they are to be dropped.
func (a *answers) pass(b []byte, drop bool) (pass []byte) {
	pass = b[:0] // in place: it never gets ahead of what is read
	for len(b) > 0 {
		if a.left > 0 {
			n := min(a.left, len(b))
			if !a.dropped {
				pass = append(pass, b[:n]...)
			}
			b, a.left = b[n:], a.left-n
			continue
		}
		if len(a.head) == 0 {
			a.dropped = drop && b[0] == notificationResponse
		}
		n := min(5-len(a.head), len(b))
		a.head = append(a.head, b[:n]...)
		if !a.dropped {
			pass = append(pass, b[:n]...)
		}
		b = b[n:]
		if len(a.head) == 5 {
			a.left = max(0, int(binary.BigEndian.Uint32(a.head[1:]))-4)
			a.head = nil
		}
	}
	return pass
}
