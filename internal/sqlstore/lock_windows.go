package sqlstore

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// lock takes the exclusive lock that keeps a second process off the database file, or says
// so at once. The system releases it when the process ends, however it ends. unlock closes f; after an
// error f is the caller's.
func lock(f *os.File) (unlock func() error, err error) {
	// A lock keeps others from reading what it covers: this one covers a byte that no database reaches.
	place := windows.Overlapped{OffsetHigh: 1 << 30}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &place)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		err = fmt.Errorf("sqlstore: another process has this database open (%s is locked); stop it first, or use PostgreSQL for several nodes", f.Name())
	}
	return f.Close, err
}
