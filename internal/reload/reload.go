// Package reload reads files again when they change (R11).
//
// A Value is what some files held last. It looks at them when it is used, at most once a second,
// and at once when Files.All is called, which SIGHUP does. Content that cannot be used is logged,
// and the last good content stays. There is no goroutine and nothing to close.
package reload

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is the least time between two looks at the files of a value.
const lookEvery = time.Second

// Files are the values of one process. They are safe for concurrent use.
type Files struct {
	logger *slog.Logger

	mu  sync.Mutex
	all []func() // guarded by mu
}

// New returns no files yet; nil is slog.Default.
func New(logger *slog.Logger) *Files {
	if logger == nil {
		logger = slog.Default()
	}
	return &Files{logger: logger}
}

// All reads every value again, changed or not.
func (f *Files) All() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, again := range f.all {
		again()
	}
}

// Value is what load made of the files' last good content. It is safe for concurrent use.
type Value[T any] struct {
	what   string
	paths  []string
	load   func() (T, error)
	logger *slog.Logger

	began   time.Time
	next    atomic.Int64 // when to look again, in nanoseconds since began
	current atomic.Pointer[T]

	mu     sync.Mutex    // held while the files are looked at
	seen   []os.FileInfo // of the files when load read them; guarded by mu
	failed string        // what was logged about content that cannot be used; guarded by mu
}

// Watch reads a value for the first time; an error of load is returned as it is. what names the
// value in the log, such as "credentials". load must return a new T each time: those that were
// returned before may still be in use.
func Watch[T any](f *Files, what string, paths []string, load func() (T, error)) (*Value[T], error) {
	v := &Value[T]{what: what, paths: paths, load: load, logger: f.logger, began: time.Now()}
	v.next.Store(int64(lookEvery))
	v.seen, _ = stat(paths) // a file that is not there is load's to report
	first, err := load()
	if err != nil {
		return nil, err
	}
	v.current.Store(&first)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, v.Again)
	return v, nil
}

// Get returns the value. One caller a second looks at the files first; the others do not wait for it.
func (v *Value[T]) Get() T {
	if int64(time.Since(v.began)) >= v.next.Load() && v.mu.TryLock() {
		v.look(false)
		v.mu.Unlock()
	}
	return *v.current.Load()
}

// Again reads the files now, changed or not.
func (v *Value[T]) Again() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.look(true)
}

// look reads the files if they changed since they were read, or if it is forced to.
func (v *Value[T]) look(forced bool) {
	// Before the files are read: a change while they are is noticed by the next look.
	now, err := stat(v.paths)
	if err == nil && !forced && same(v.seen, now) {
		v.failed = ""
	} else {
		v.read(now, err)
	}
	v.next.Store(int64(time.Since(v.began) + lookEvery))
}

func (v *Value[T]) read(now []os.FileInfo, err error) {
	var loaded T
	if err == nil {
		loaded, err = v.load()
	}
	switch {
	case err == nil:
		v.current.Store(&loaded)
		v.seen, v.failed = now, ""
		v.logger.Info("files read again", "what", v.what)
	case err.Error() != v.failed: // each second otherwise
		v.failed = err.Error()
		v.logger.Error("changed files cannot be used; the former content stays", "what", v.what, "error", err)
	}
}

func stat(paths []string) ([]os.FileInfo, error) {
	infos := make([]os.FileInfo, len(paths))
	for i, path := range paths {
		var err error
		if infos[i], err = os.Stat(path); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// same reports whether nothing was written to the files, and none was replaced.
func same(a, b []os.FileInfo) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) ||
			a[i].Size() != b[i].Size() || a[i].Mode() != b[i].Mode() {
			return false
		}
	}
	return true
}
