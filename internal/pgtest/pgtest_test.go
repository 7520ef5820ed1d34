//go:build unix

package pgtest

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func query(t *testing.T, url, statement string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var answer string
	err = conn.QueryRow(ctx, statement).Scan(&answer)
	return answer, err
}

func TestEachTestHasAnEmptyDatabase(t *testing.T) {
	one, two := URL(t), URL(t)
	for _, url := range []string{one, two} {
		tables, err := query(t, url, `SELECT count(*)::text FROM pg_tables WHERE schemaname = 'public'`)
		if err != nil || tables != "0" {
			t.Errorf("tables = %s, %v; want none", tables, err)
		}
	}
	if one == two {
		t.Error("two tests share a database")
	}
}

func TestFaults(t *testing.T) {
	s := NewServer(t, "work_mem=1234kB")
	works := func(when string) {
		t.Helper()
		if got, err := query(t, s.URL(), `SELECT current_setting('work_mem')`); err != nil || got != "1234kB" {
			t.Fatalf("%s: work_mem = %q, %v", when, got, err)
		}
	}
	fails := func(when string) {
		t.Helper()
		if _, err := query(t, s.URL(), `SELECT 'x'`); err == nil {
			t.Fatalf("%s: the server still answers", when)
		}
	}
	works("started")
	s.Freeze(t)
	fails("frozen")
	s.Thaw(t)
	works("thawed")
	s.Kill(t)
	fails("killed")
	s.Restart(t)
	works("restarted")
	s.Stop(t)
	fails("stopped")
	s.Restart(t)
	works("started again")
}

// A frozen server stands still whole, also when it was just making processes for those that connect.
func TestFreezeWhileClientsConnect(t *testing.T) {
	s := NewServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if conn, err := pgx.Connect(ctx, s.URL()); err == nil {
					_ = conn.Close(ctx)
				}
			}
		})
	}
	for range 10 {
		s.Freeze(t)
		children, err := childrenOf(s.process.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range children {
			if stat := statOf(filepath.Join("/proc", strconv.Itoa(pid), "stat")); len(stat) > 0 && !strings.Contains("TtZX", stat[0]) {
				t.Errorf("a process of the frozen server is in state %s", stat[0])
			}
		}
		s.Thaw(t)
	}
	cancel()
	clients.Wait()
}

// TestNoServerOutlivesTheBinary runs this binary again, kills it with a server up, and waits until
// that server's folder is gone.
func TestNoServerOutlivesTheBinary(t *testing.T) {
	if os.Getenv("PGTEST_CHILD") != "" {
		s := NewServer(t)
		os.Stdout.WriteString("FOLDER " + s.folder + "\n")
		select {} // until it is killed
	}
	c := exec.Command(os.Args[0], "-test.run=^TestNoServerOutlivesTheBinary$")
	c.Env = append(os.Environ(), "PGTEST_CHILD=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var folder string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "FOLDER "); ok {
			folder = rest
			break
		}
	}
	if folder == "" {
		t.Fatal("the child started no server")
	}
	pidfile, err := os.ReadFile(folder + "/data/postmaster.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(string(pidfile), "\n")
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	deadline := time.After(20 * time.Second)
	for {
		_, folderErr := os.Stat(folder)
		processErr := exec.Command("kill", "-0", pid).Run()
		if errors.Is(folderErr, fs.ErrNotExist) && processErr != nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal("the server or its folder is still there")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
