//go:build unix

package sqlstore_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// A disk that takes no more: writes fail, nothing is half done, and the same store goes on when there is
// room again. The limit on the size of files holds for a whole process, so the test runs in one
// of its own.
func TestSQLiteOnADiskThatIsFull(t *testing.T) {
	if os.Getenv("SQLSTORE_CHILD") == "" {
		c := exec.Command(os.Args[0], "-test.run=^TestSQLiteOnADiskThatIsFull$", "-test.v")
		c.Env = append(os.Environ(), "SQLSTORE_CHILD=1")
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestSQLiteOnADiskThatIsFull") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}

	f := open(t, sqlstore.SQLite)
	stored := map[string]bool{}
	insert := func() (string, error) {
		k := keystest.NewKey("org", keys.StateRevoked)
		k.Name = strings.Repeat("x", 4000)
		_, err := f.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error { return keystest.Insert(ctx, tx, k) })
		return k.ID, err
	}
	for range 5 {
		id, err := insert()
		if err != nil {
			t.Fatal(err)
		}
		stored[id] = true
	}
	signal.Ignore(syscall.SIGXFSZ)
	var room syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &room); err != nil {
		t.Fatal(err)
	}
	full := room
	full.Cur = 400_000
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	failed, unknown := 0, map[string]bool{}
	for range 200 {
		id, err := insert()
		switch {
		case err == nil:
			stored[id] = true
		case errors.Is(err, keys.ErrOutcomeUnknown):
			unknown[id] = true
			failed++
		default:
			failed++
		}
	}
	if failed < 50 {
		t.Fatalf("only %d writes failed: the disk was not full", failed)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &room); err != nil {
		t.Fatal(err)
	}
	id, err := insert()
	if err != nil {
		t.Fatalf("with room again: %v", err)
	}
	stored[id] = true
	f.reopen(t)
	a, err := f.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range stored {
		if k, ok := a.keys[id]; !ok || !k.Genuine {
			t.Errorf("a key whose write succeeded is gone")
		}
		delete(a.keys, id)
	}
	for id := range a.keys {
		if !unknown[id] {
			t.Errorf("a key whose write failed is there")
		}
	}
	intact(t, f)
}
