//go:build unix

package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// rows returns how many rows the table numbers has.
func rows(t *testing.T, s *Server) (n int) {
	t.Helper()
	s.ask(t, &n, `SELECT count(*) FROM numbers`)
	return n
}

// insert adds a row and reports whether the commit was acknowledged within d.
func insert(t *testing.T, s *Server, d time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, `INSERT INTO numbers DEFAULT VALUES`)
	return err == nil
}

func TestSynchronousStandby(t *testing.T) {
	primary := NewServer(t)
	execute(t, primary.URL(), `CREATE TABLE numbers (n int)`)
	standby := primary.NewStandby(t, true)
	if !insert(t, primary, startTimeout) {
		t.Fatal("a commit is not acknowledged")
	}
	standby.WaitReplayed(t)
	if got := rows(t, standby); got != 1 {
		t.Errorf("%d rows on the standby", got)
	}
	standby.Withhold(t)
	if insert(t, primary, 300*time.Millisecond) {
		t.Error("a commit was acknowledged although the standby did not get it")
	}
	primary.Kill(t)
	standby.Promote(t)
	if got := rows(t, standby); got != 1 {
		t.Errorf("%d rows after the failover", got)
	}
	if !insert(t, standby, startTimeout) {
		t.Error("the new primary takes no writes")
	}

	// The roles change again, on the same ports.
	primary.Follow(t, standby, true)
	if !insert(t, standby, startTimeout) {
		t.Error("a commit is not acknowledged after the roles changed")
	}
	primary.WaitReplayed(t)
	if got := rows(t, primary); got != 3 {
		t.Errorf("%d rows on the new standby", got)
	}
	primary.Withhold(t)
	if insert(t, standby, 300*time.Millisecond) {
		t.Error("after the roles changed a commit was acknowledged although the standby did not get it")
	}
}

func TestAsynchronousStandby(t *testing.T) {
	primary := NewServer(t)
	execute(t, primary.URL(), `CREATE TABLE numbers (n int)`)
	standby := primary.NewStandby(t, false)
	insert(t, primary, startTimeout)
	standby.WaitReplayed(t)
	standby.Withhold(t)
	if !insert(t, primary, startTimeout) {
		t.Error("a commit waits for an asynchronous standby")
	}
	primary.Stop(t) // a clean stop sends the rest to those that still listen
	standby.Promote(t)
	if got := rows(t, standby); got != 1 {
		t.Errorf("%d rows after the failover, want the first alone", got)
	}
}

func TestRestore(t *testing.T) {
	s := NewServer(t)
	execute(t, s.URL(), `CREATE TABLE numbers (n int)`)
	insert(t, s, startTimeout)
	backup := s.Backup(t)
	for range 2 { // the backup survives its use
		insert(t, s, startTimeout)
		if got := rows(t, s); got != 2 {
			t.Errorf("%d rows before", got)
		}
		s.Kill(t)
		s.Restore(t, backup)
		s.Restart(t)
		if got := rows(t, s); got != 1 {
			t.Errorf("%d rows after the backup was put back, want those it had", got)
		}
	}
}
