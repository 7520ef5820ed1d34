package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// copyTo writes a backup into a new file and returns its path.
func copyTo(t testing.TB, b *sqlstore.Backup) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := b.WriteTo(f)
	if err := errors.Join(err, b.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if n != b.Bytes() {
		t.Errorf("%d bytes written of %d", n, b.Bytes())
	}
	return path
}

// restored opens a copy as a server does.
func (f *fixture) restored(t testing.TB, path string) all {
	t.Helper()
	o := f.options
	o.URL = "sqlite:" + path
	r := &fixture{options: o}
	r.reopen(t)
	defer r.Close()
	a, err := r.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	audit, err := r.VerifyAudit(t.Context(), nil)
	if err != nil || len(audit.Findings) > 0 {
		t.Errorf("audit log of the copy: %v, %v", audit.Findings, err)
	}
	return a
}

// P7: a backup holds what the write-ahead log holds, which a copy of the file alone does not.
func TestBackupHoldsTheNewestRows(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	populate(t, f)
	live, err := f.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := copyTo(t, b)
	r, err := sqlstore.CheckBackup(t.Context(), path, f.options.Ring)
	if err != nil || len(r.Findings) > 0 || r.Revision != live.revision || r.Keys != int64(len(live.keys)) {
		t.Errorf("report %+v, %v; want revision %d and %d keys", r, err, live.revision, len(live.keys))
	}
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) != 1 {
		t.Errorf("the check left files beside the copy: %v, %v", files, err)
	}
	if diff := cmp.Diff(live, f.restored(t, path), cmp.AllowUnexported(all{})); diff != "" {
		t.Errorf("restored (-live +restored):\n%s", diff)
	}

	database := strings.TrimPrefix(f.options.URL, "sqlite:")
	content, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "alone.db")
	if err := os.WriteFile(alone, content, 0o600); err != nil {
		t.Fatal(err)
	}
	// Here the file alone lacks everything. After a checkpoint it would lack the writes since.
	if r, err := sqlstore.CheckBackup(t.Context(), alone, f.options.Ring); err == nil && r.Revision == live.revision {
		t.Error("a copy of the file alone held everything: docs/backup.md says it does not")
	}
}

// P7: a backup under writes holds every write that was answered before it began, and nothing of one
// that was not whole.
func TestBackupUnderWrites(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	var mu sync.Mutex
	var answered []string // guarded by mu
	progress := make(chan struct{}, 1)
	for w := range 4 {
		writing.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				k := keystest.NewKey(fmt.Sprintf("org_%d_%d", w, i), keys.StateActive)
				_, err := f.Write(t.Context(), keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
					return keystest.Insert(ctx, tx, k)
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				answered = append(answered, k.ID)
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	for round := range 5 {
		var want []string
		for len(want) < 20*(round+1) {
			<-progress
			mu.Lock()
			want = answered[:len(answered):len(answered)]
			mu.Unlock()
		}
		b, err := f.Backup(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		path := copyTo(t, b)
		if r, err := sqlstore.CheckBackup(t.Context(), path, f.options.Ring); err != nil || len(r.Findings) > 0 {
			t.Fatalf("report %+v, %v", r, err)
		}
		restored := f.restored(t, path)
		for _, id := range want {
			if _, there := restored.keys[id]; !there {
				t.Errorf("round %d: the copy lacks %s", round, id)
			}
		}
	}
}

// pausing is a reader of a backup that stands still after the first bytes.
type pausing struct{ begun, resume chan struct{} }

func (p *pausing) Write(b []byte) (int, error) {
	if p.begun != nil {
		close(p.begun)
		p.begun = nil
		<-p.resume
	}
	return len(b), nil
}

// P2: while the reader of a backup stands still, writes and reads go through.
func TestBackupBlocksNobody(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	populate(t, f)
	b, err := f.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &pausing{make(chan struct{}), make(chan struct{})}
	begun := w.begun
	done := make(chan error, 1)
	go func() {
		_, err := b.WriteTo(w)
		done <- err
	}()
	<-begun
	k := keystest.NewKey("org_meanwhile", keys.StateActive)
	keystest.MustInsert(t, f.Store, k)
	if a, err := f.snapshot(t.Context()); err != nil || a.keys[k.ID].ID == "" {
		t.Errorf("a read meanwhile: %v", err)
	}
	close(w.resume)
	if err := errors.Join(<-done, b.Close()); err != nil {
		t.Fatal(err)
	}
}

// P7: a stopped server's database is copied with what only its write-ahead log holds, and no other
// process gets at it meanwhile. What is not there is not made.
func TestBackupOfAStoppedServer(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	populate(t, f)
	live, err := f.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.OpenBackup(t.Context(), f.options.URL); err == nil {
		t.Fatal("copied around the process that has the database open")
	}
	// What a kill -9 leaves: the file and its log, without a checkpoint.
	from, to := strings.TrimPrefix(f.options.URL, "sqlite:"), filepath.Join(t.TempDir(), "killed.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(from + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := sqlstore.OpenBackup(t.Context(), "sqlite:"+to)
	if err != nil {
		t.Fatal(err)
	}
	o := f.options
	o.URL = "sqlite:" + to
	if s, err := sqlstore.Open(t.Context(), o); err == nil {
		s.Close()
		t.Error("a server started on a database that is being copied")
	}
	path := copyTo(t, b)
	if diff := cmp.Diff(live, f.restored(t, path), cmp.AllowUnexported(all{})); diff != "" {
		t.Errorf("restored (-live +restored):\n%s", diff)
	}

	none := filepath.Join(t.TempDir(), "none.db")
	if _, err := sqlstore.OpenBackup(t.Context(), "sqlite:"+none); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("the database was made")
	}
}

// V8: the check of a copy finds what somebody without the master key changed, and what is damaged.
func TestCheckBackupFinds(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, string){
		"edited row": func(t *testing.T, path string) { change(t, path, `UPDATE keys SET expires_at = 0`) },
		"removed row": func(t *testing.T, path string) {
			change(t, path, `DELETE FROM keys WHERE id = (SELECT min(id) FROM keys)`)
		},
		"removed entry": func(t *testing.T, path string) {
			change(t, path, `DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)`)
		},
		"zeroed page": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				_, err = f.WriteAt(make([]byte, 4096), 3*4096)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		},
		"cut off": func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, info.Size()/2)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"no database": func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t, sqlstore.SQLite)
			w := populate(t, f)
			revoke(t, f, w.a)
			b, err := f.Backup(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			path := copyTo(t, b)
			damage(t, path)
			r, err := sqlstore.CheckBackup(t.Context(), path, f.options.Ring)
			if err == nil && len(r.Findings) == 0 {
				t.Error("nothing found")
			}
		})
	}
}

// revoke revokes a key as the domain does.
func revoke(t testing.TB, f *fixture, k keys.Key) {
	t.Helper()
	k.State, k.RevokedAt = keys.StateRevoked, k.CreatedAt
	keystest.MustWrite(t, f.Store, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, k) })
}

// change edits a copy that nobody has open.
func change(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// PostgreSQL has tools of its own.
func TestBackupIsNotForPostgres(t *testing.T) {
	f := open(t, sqlstore.Postgres)
	if _, err := f.Backup(t.Context()); !errors.Is(err, sqlstore.ErrNoBackup) {
		t.Errorf("open database: %v", err)
	}
	if _, err := sqlstore.OpenBackup(t.Context(), pgtest.URL(t)); !errors.Is(err, sqlstore.ErrNoBackup) {
		t.Errorf("stopped server: %v", err)
	}
}

// A copy that its reader breaks off says so.
func TestBackupBrokenOff(t *testing.T) {
	f := open(t, sqlstore.SQLite)
	populate(t, f)
	b, err := f.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, w := io.Pipe()
	r.CloseWithError(os.ErrDeadlineExceeded)
	if _, err := b.WriteTo(w); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}
