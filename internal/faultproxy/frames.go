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
	left    int             // bytes of the message that are still to come
	kept    []byte          // of a short message that can have to do with a COMMIT, nil for anything else
	commits map[string]bool // the names of the statements that were prepared as COMMIT
}

// Requests that come before the startup message and are answered before it (SSLRequest, GSSENCRequest).
const (
	sslRequest = 80877103
	gssRequest = 80877104
)

const longestCommit = 160 // bytes of a message that can be a COMMIT, or prepare or bind one

// commitIn takes the next bytes and reports whether a COMMIT ends in them: a simple Query, or the Bind of a statement prepared as one.
func (f *requests) commitIn(b []byte) (found bool) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			if f.kept != nil {
				f.kept = append(f.kept, b[:n]...)
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
		f.kind, f.left, f.kept = 0, max(0, int(binary.BigEndian.Uint32(head))-len(head)), nil
		return
	}
	f.kind, f.left, f.kept = head[0], max(0, int(binary.BigEndian.Uint32(head[1:]))-4), nil
	if bytes.IndexByte([]byte("QPB"), f.kind) >= 0 && f.left <= longestCommit {
		f.kept = make([]byte, 0, f.left)
	}
}

// ended reports whether the message that has just ended was a COMMIT.
func (f *requests) ended() bool {
	text := f.kept
	f.kept = nil
	if text == nil {
		return false
	}
	first, rest, _ := bytes.Cut(text, []byte{0})
	second, _, _ := bytes.Cut(rest, []byte{0})
	switch f.kind {
	case 'Q': // the query
		return isCommit(first)
	case 'P': // the statement's name, the query
		if f.commits == nil {
			f.commits = make(map[string]bool)
		}
		f.commits[string(first)] = isCommit(second)
		return false
	default: // Bind: the portal's name, the statement's name
		return f.commits[string(second)]
	}
}

func isCommit(query []byte) bool {
	return strings.EqualFold(strings.Trim(string(query), "; \n"), "commit")
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
