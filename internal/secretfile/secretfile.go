// Package secretfile reads files that hold a secret, by one rule for all of them (R7): a regular
// file, or a link to one, that nobody beyond its owner and group can read and nobody but its owner
// can write. So 0400, 0440, 0600 and 0640 are accepted, whatever the owner: systemd's credentials
// and Kubernetes' mounted secrets belong to root.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// MaxSize bounds a file, so that a device or a wrong file is not read into memory.
const MaxSize = 64 << 10

// Read returns the content of the file. The caller may clear it. Errors name the file and what to
// do, and show nothing of the content.
func Read(path string) ([]byte, error) {
	// Asked before opening too, because opening a pipe waits for a writer.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if err := Check(path, info); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Of the open file, so that it cannot be exchanged between the check and the read.
	info, err := f.Stat()
	if err == nil {
		err = Check(path, info)
	}
	if err != nil {
		return nil, err
	}
	content := make([]byte, MaxSize+1) // not grown while reading, which would leave copies behind
	n, err := io.ReadFull(f, content)
	switch {
	case err == nil:
		err = fmt.Errorf("%s is larger than %d KiB", path, MaxSize>>10)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return content[:n], nil
	}
	clear(content)
	return nil, err
}

// Check applies the rule to what a stat of the file found.
func Check(path string, info os.FileInfo) error {
	mode := info.Mode()
	switch perm := mode.Perm(); {
	case !mode.IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case perm&0o007 != 0:
		return fmt.Errorf(
			"%s has mode %04o, so everybody on this machine can reach it: chmod 640 %s",
			path,
			perm,
			path,
		)
	case perm&0o020 != 0:
		return fmt.Errorf(
			"%s has mode %04o, so its group can change it: chmod 640 %s",
			path,
			perm,
			path,
		)
	}
	return nil
}
