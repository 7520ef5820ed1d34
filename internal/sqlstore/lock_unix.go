//go:build unix

package sqlstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// lock takes the exclusive lock that keeps a second process off the database file, or says
// so at once. The system releases it when the process ends, however it ends. unlock closes f; after an
// error f is the caller's.
func lock(f *os.File) (unlock func() error, err error) {
	if runtime.GOOS == "linux" {
		return f.Close, flock(f, f.Name())
	}
	// Elsewhere flock and the POSIX locks that SQLite takes keep each other out, in one process
	// too: the lock is on a file beside the database, and another name of the database finds it only
	// when it is a symbolic link.
	path, err := filepath.EvalSymlinks(f.Name())
	if err != nil {
		return nil, err
	}
	beside, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(beside, f.Name()); err != nil {
		return nil, errors.Join(err, beside.Close())
	}
	return func() error { return errors.Join(f.Close(), beside.Close()) }, nil
}

func flock(f *os.File, database string) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("sqlstore: another process has this database open (%s is locked); stop it first, or use PostgreSQL for several nodes", database)
	}
	return err
}
