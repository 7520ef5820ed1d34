//go:build unix

package pgtest

import (
	"bytes"
	"io"
	"testing"
)

// Run runs one of PostgreSQL's programs, such as pg_dump, of the server's version, and returns what
// it writes to its standard output.
func (s *Server) Run(tb testing.TB, stdin io.Reader, program string, arguments ...string) []byte {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	c := s.command(program, arguments...)
	c.Stdin, c.Stdout, c.Stderr = stdin, &stdout, &stderr
	if err := c.Run(); err != nil {
		tb.Fatalf("pgtest: %s: %v\n%s", program, err, &stderr)
	}
	return stdout.Bytes()
}
