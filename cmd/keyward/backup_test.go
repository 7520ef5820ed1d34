package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// backUp runs the backup command and returns what it says.
func backUp(t *testing.T, args ...string) (code int, s backupSummary, stderr string) {
	t.Helper()
	code, out, stderr := command(t, append([]string{"backup", "--output=json"}, args...), nil, "")
	if out != "" {
		s = decode[backupSummary](t, out)
	}
	return code, s, stderr
}

// restore starts a server on a copy of the database of p, with p's master key and issuer.
func restore(t *testing.T, p *keywardtest.Process, copied string) *keywardtest.Process {
	t.Helper()
	dir := t.TempDir()
	files, err := os.ReadDir(p.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "keyward.db") || f.IsDir() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(p.Dir, f.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f.Name()), content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(copied)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "keyward.db"), content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keywardtest.Start(t, keywardtest.Options{Dir: dir})
}

// intact has the server check its audit log.
func intact(t *testing.T, p *keywardtest.Process) {
	t.Helper()
	code, out, stderr := command(t, []string{"audit", "verify", "--server=" + p.Admin}, nil, "")
	if code != exitDone {
		t.Errorf("audit verify: %d %s%s", code, out, stderr)
	}
}

func revokeKey(t testing.TB, p *keywardtest.Process, k api.IssuedKey, user, organization string) {
	t.Helper()
	url := p.Public + keysPath + "/" + k.APIKeyID + "/revoke"
	if resp, body := request(t, "POST", url, p.Token(t, user, organization), ""); resp.StatusCode != http.StatusOK {
		t.Fatalf("revoke: %d %s", resp.StatusCode, body)
	}
}

// P7: a backup under write load has every write that was answered before it began. A server on the
// copy accepts what was created and rejects what was revoked.
func TestBackupUnderLoad(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{})
	gone := create(t, p, "gone", "org_gone")
	revokeKey(t, p, gone, "gone", "org_gone")

	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var created []api.IssuedKey // guarded by mu
	progress := make(chan struct{}, 1)
	var creating sync.WaitGroup
	defer stop()
	for w := range 2 {
		creating.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("u_%d_%d", w, i)
				k := create(t, p, name, "org_"+name)
				mu.Lock()
				created = append(created, k)
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		creating.Wait()
		close(finished)
	}()
	var want []api.IssuedKey
	for len(want) < 30 {
		select {
		case <-progress:
		case <-finished:
			t.Fatal("no more keys are created")
		}
		mu.Lock()
		want = created[:len(created):len(created)]
		mu.Unlock()
	}
	to := filepath.Join(t.TempDir(), "copy.db")
	masterKey := filepath.Join(p.Dir, "master.key")
	code, s, stderr := backUp(t, "--to="+to, "--server="+p.Admin, "--master-key-file="+masterKey)
	if code != exitDone || !s.RowsProven || len(s.Findings) > 0 || s.Keys < int64(len(want)) {
		t.Fatalf("backup: %d %+v %s", code, s, stderr)
	}
	stop()
	<-finished
	if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 || info.Size() != s.Bytes {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(to), ".keyward-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if code, _, stderr := backUp(t, "--to="+to, "--server="+p.Admin); code != exitUsage || !strings.Contains(stderr, "exists already") {
		t.Errorf("over an older copy: %d %s", code, stderr)
	}
	_, out, _ := command(t, []string{"audit", "list", "--output=json", "--limit=10000", "--server=" + p.Admin}, nil, "")
	if !strings.Contains(out, `"database.backup"`) {
		t.Error("the audit log does not have the backup")
	}

	r := restore(t, p, to)
	for _, k := range want {
		if v := verdict(t, r, k.Key); !v.Valid {
			t.Errorf("%s, created before the backup: %+v", k.APIKeyID, v)
		}
	}
	if v := verdict(t, r, gone.Key); v.Valid {
		t.Errorf("revoked before the backup: %+v", v)
	}
	intact(t, r)
	create(t, r, "after", "org_after")
}

// P7: the database of a server that was killed is copied with what only its write-ahead log holds.
// A server that runs is not copied around.
func TestBackupOffline(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{})
	k := create(t, p, "ann", "org_a")
	to := filepath.Join(t.TempDir(), "copy.db")
	args := []string{"--to=" + to, "--offline", "--database-url=sqlite:" + filepath.Join(p.Dir, "keyward.db")}
	if code, _, stderr := backUp(t, args...); code != exitFailed || !strings.Contains(stderr, "another process has this database open") {
		t.Errorf("while it runs: %d %s", code, stderr)
	}
	p.Kill()
	if code, _, stderr := backUp(t, "--to="+to, "--server="+p.Admin); code != exitFailed || !strings.Contains(stderr, "--offline") {
		t.Errorf("without a server: %d %s", code, stderr)
	}
	code, s, stderr := backUp(t, append(args, "--master-key-file="+filepath.Join(p.Dir, "master.key"))...)
	if code != exitDone || s.Keys != 1 || len(s.Findings) > 0 {
		t.Fatalf("backup: %d %+v %s", code, s, stderr)
	}
	if v := verdict(t, restore(t, p, to), k.Key); !v.Valid {
		t.Errorf("verdict %+v", v)
	}

	wrongKey := filepath.Join(t.TempDir(), "other.key")
	keywardtest.WriteMasterKey(t, wrongKey)
	if code, _, stderr := backUp(t, append(args, "--to="+to+".2", "--master-key-file="+wrongKey)...); code == exitDone {
		t.Errorf("checked under another master key: %d %s", code, stderr)
	}
}

// PostgreSQL is backed up by its own tools, and the command says which. What pg_dump makes serves in
// another cluster at once: no row of a node that is gone delays a write.
func TestBackupPostgres(t *testing.T) {
	t.Parallel()
	from, to := pgtest.NewServer(t), pgtest.NewServer(t)
	p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: from.URL(), Flags: []string{"--lease=60s"}})
	k, gone := create(t, p, "ann", "org_a"), create(t, p, "bob", "org_b")
	revokeKey(t, p, gone, "bob", "org_b")
	path := filepath.Join(t.TempDir(), "copy.db")
	for name, args := range map[string][]string{
		"running": {"--server=" + p.Admin},
		"offline": {"--offline", "--database-url=" + from.URL()},
	} {
		code, _, stderr := backUp(t, append(args, "--to="+path)...)
		if code == exitDone || !strings.Contains(stderr, "pg_dump --format=custom --exclude-table-data=serving_nodes") {
			t.Errorf("%s: %d %s", name, code, stderr)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was made")
	}
	dump := from.Run(t, nil, "pg_dump", "--format=custom", "--exclude-table-data=serving_nodes", "--dbname="+from.URL())
	p.Kill() // its row stays in the old cluster
	to.Run(t, bytes.NewReader(dump), "pg_restore", "--exit-on-error", "--dbname="+to.URL())

	r := keywardtest.Start(t, keywardtest.Options{Dir: p.Dir, DatabaseURL: to.URL(), Flags: []string{"--lease=60s"}})
	if v := verdict(t, r, k.Key); !v.Valid {
		t.Errorf("created before the backup: %+v", v)
	}
	if v := verdict(t, r, gone.Key); v.Valid {
		t.Errorf("revoked before the backup: %+v", v)
	}
	began := time.Now()
	create(t, r, "eve", "org_e")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the first write took %v: it waited for a node of the old cluster", took)
	}
	intact(t, r)
}

// A copy that breaks off leaves no file, nor does an answer that is none of Keyward's.
func TestBackupBrokenOff(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"too short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "8192")
			_, _ = w.Write(make([]byte, 4096))
		},
		"length unknown": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, 4096))
			_ = http.NewResponseController(w).Flush()
		},
		"no database": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 4096)) },
		"rejected":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(answer)
			defer server.Close()
			folder := t.TempDir()
			code, _, stderr := backUp(t, "--to="+filepath.Join(folder, "copy.db"), "--server="+server.URL)
			if code != exitFailed || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%d %s", code, stderr)
			}
			if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
