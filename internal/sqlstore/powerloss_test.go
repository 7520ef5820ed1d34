//go:build unix

package sqlstore_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/keys/keystest"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// disk stands between SQLite and its files, and has what would be left of them after a power loss that nothing survives but what
// SQLite had the system sync; only that a file was made or deleted is taken as done at once. C functions in their Go form have no environment, so it is global.
var disk struct {
	mu      sync.Mutex
	below   uintptr              // SQLite's own way to files
	methods map[uintptr]uintptr  // by the address of SQLite's own, the ones in their place
	open    map[uintptr]openFile // by its address
	synced  map[string][]byte    // by path, the content when it was synced last
}

type openFile struct {
	path    string
	methods uintptr // SQLite's own
}

// Some of SQLite's functions.
type (
	openFunction   = func(_ *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32
	deleteFunction = func(_ *libc.TLS, vfs, name uintptr, flags int32) int32
	syncFunction   = func(_ *libc.TLS, file uintptr, flags int32) int32
)

// at is the value at an address of SQLite's memory.
func at[T any](address uintptr) *T { return *(**T)(unsafe.Pointer(&address)) }

// copied copies a value into memory of SQLite's kind, where it stays: nothing that SQLite follows may point to Go's.
func copied[T any](tls *libc.TLS, v *T) uintptr {
	address := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*v)))
	*at[T](address) = *v
	return address
}

// watchSyncs has SQLite open files through the disk until the test ends.
func watchSyncs(t *testing.T) {
	t.Helper()
	tls := libc.NewTLS()
	t.Cleanup(tls.Close)
	disk.below = sqlite3.Xsqlite3_vfs_find(tls, 0)
	disk.methods, disk.open, disk.synced = map[uintptr]uintptr{}, map[uintptr]openFile{}, map[string][]byte{}
	self := copied(tls, at[sqlite3.Tsqlite3_vfs](disk.below))
	vfs := at[sqlite3.Tsqlite3_vfs](self)
	vfs.FzName = copied(tls, &[...]byte{'w', 'a', 't', 'c', 'h', 'e', 'd', 0})
	*(*openFunction)(unsafe.Pointer(&vfs.FxOpen)) = openWatched
	*(*deleteFunction)(unsafe.Pointer(&vfs.FxDelete)) = deleteWatched
	if rc := sqlite3.Xsqlite3_vfs_register(tls, self, 1); rc != sqlite3.SQLITE_OK {
		t.Fatalf("sqlite3_vfs_register: %d", rc)
	}
	t.Cleanup(func() {
		sqlite3.Xsqlite3_vfs_register(tls, disk.below, 1)
		sqlite3.Xsqlite3_vfs_unregister(tls, self)
	})
}

func openWatched(tls *libc.TLS, _, name, file uintptr, flags int32, out uintptr) int32 {
	open := *(*openFunction)(unsafe.Pointer(&at[sqlite3.Tsqlite3_vfs](disk.below).FxOpen))
	rc := open(tls, disk.below, name, file, flags, out)
	if rc != sqlite3.SQLITE_OK || name == 0 {
		return rc
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	methods := &at[sqlite3.Tsqlite3_file](file).FpMethods
	disk.open[file] = openFile{libc.GoString(name), *methods}
	watched, ok := disk.methods[*methods]
	if !ok {
		watched = copied(tls, at[sqlite3.Tsqlite3_io_methods](*methods))
		*(*syncFunction)(unsafe.Pointer(&at[sqlite3.Tsqlite3_io_methods](watched).FxSync)) = syncWatched
		disk.methods[*methods] = watched
	}
	*methods = watched
	return rc
}

func deleteWatched(tls *libc.TLS, _, name uintptr, flags int32) int32 {
	disk.mu.Lock()
	defer disk.mu.Unlock()
	delete(disk.synced, libc.GoString(name))
	remove := *(*deleteFunction)(unsafe.Pointer(&at[sqlite3.Tsqlite3_vfs](disk.below).FxDelete))
	return remove(tls, disk.below, name, flags)
}

func syncWatched(tls *libc.TLS, file uintptr, flags int32) int32 {
	disk.mu.Lock()
	defer disk.mu.Unlock()
	f := disk.open[file]
	sync := *(*syncFunction)(unsafe.Pointer(&at[sqlite3.Tsqlite3_io_methods](f.methods).FxSync))
	rc := sync(tls, file, flags)
	if rc != sqlite3.SQLITE_OK {
		return rc
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		return sqlite3.SQLITE_IOERR_FSYNC
	}
	disk.synced[f.path] = b
	return rc
}

// afterPowerLoss writes what was synced of a database into a new folder and returns the path there.
func afterPowerLoss(t *testing.T, path string) string {
	t.Helper()
	disk.mu.Lock()
	defer disk.mu.Unlock()
	folder := t.TempDir()
	for name, content := range disk.synced {
		if suffix, ok := strings.CutPrefix(name, path); ok {
			if err := os.WriteFile(filepath.Join(folder, "keyward.db"+suffix), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return filepath.Join(folder, "keyward.db")
}

// P7: what was answered is on the disk, not on its way there: of a machine that loses its power right after an answer, the database
// has the write, with everything before it, and is whole.
func TestP7PowerLoss(t *testing.T) {
	watchSyncs(t)
	f := open(t, sqlstore.SQLite)
	path, err := filepath.EvalSymlinks(strings.TrimPrefix(f.options.URL, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	var answered []keys.Key
	const pairs = 100 // of writes; the log is written back into the database on the way
	for n := range pairs {
		k := keystest.NewKey("org", keys.StateActive)
		keystest.MustInsert(t, f, k)
		k.State = keys.StateRevoked
		keystest.MustWrite(t, f, func(ctx context.Context, tx keys.Tx) error { return keystest.Update(ctx, tx, k) })
		answered = append(answered, k)
		if n%20 > 0 && n < pairs-1 {
			continue
		}
		after := &fixture{options: f.options}
		after.options.URL = "sqlite:" + afterPowerLoss(t, path)
		if after.Store, err = sqlstore.Open(t.Context(), after.options); err != nil {
			t.Fatalf("after %d keys: %v", n+1, err)
		}
		a, err := after.snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(a.keys) != len(answered) {
			t.Errorf("after %d keys: %d are there", len(answered), len(a.keys))
		}
		for _, k := range answered {
			if got := a.keys[k.ID]; got.State != keys.StateRevoked || !got.Genuine {
				t.Fatalf("after %d keys: one whose revoke was answered is %q, genuine %t", len(answered), got.State, got.Genuine)
			}
		}
		intact(t, after)
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
