//go:build unix

package pgtest

import "testing"

func TestPooler(t *testing.T) {
	s := NewServer(t)
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			p := s.NewPooler(t, mode)
			if got, err := query(t, p.URL(), `SELECT 'x'`); err != nil || got != "x" {
				t.Fatalf("started: %q, %v", got, err)
			}
			p.Kill(t)
			if _, err := query(t, p.URL(), `SELECT 'x'`); err == nil {
				t.Fatal("killed: it still answers")
			}
			p.Restart(t)
			if got, err := query(t, p.URL(), `SELECT 'x'`); err != nil || got != "x" {
				t.Fatalf("restarted: %q, %v", got, err)
			}
		})
	}
}
