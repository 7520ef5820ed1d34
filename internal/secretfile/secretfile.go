// Package secretfile reads the small files that hold a secret.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const maxSize = 64 << 10

// Read returns the content of a file. A file that anybody beyond its owner and group can read or
// change is rejected: systemd and Kubernetes deliver secrets as 0440.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read by everybody on this machine: chmod 640 the file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxSize:
		return nil, errors.New(path + " is too large for a file that holds a secret")
	}
	return data, nil
}
