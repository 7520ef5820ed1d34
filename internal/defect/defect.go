// Package defect puts errors into the program on purpose, so that a test is seen to find them. A defect is a piece of the source
// with another in its place. The go command builds with it by -overlay; the tree itself is never touched.
package defect

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Defect is one piece of the source and what stands in its place. An error that needs several pieces is several of them.
type Defect struct {
	Name string // what is wrong, in words
	File string // within the module, with slashes
	Old  string // must occur in File exactly once, so that a defect whose source has moved on is told, not lost
	New  string
}

// Overlay writes the file that -overlay of go build, go test and go vet takes, and returns its path. Both it and the changed sources
// are gone when the test ends.
func Overlay(tb testing.TB, defects ...Defect) string {
	tb.Helper()
	root, err := moduleFolder()
	if err != nil {
		tb.Fatal(err)
	}
	path, err := write(root, tb.TempDir(), defects)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// moduleFolder is the folder of the module that the test at work belongs to: a test runs in the folder of its package.
func moduleFolder() (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return folder, nil
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			return "", errors.New("defect: there is no go.mod above the working directory")
		}
		folder = parent
	}
}

// write puts the changed sources and the overlay into folder.
func write(root, folder string, defects []Defect) (string, error) {
	if len(defects) == 0 {
		return "", errors.New("defect: no defect is given")
	}
	sources := make(map[string]string) // by File, with the defects so far
	for _, d := range defects {
		source, begun := sources[d.File]
		if !begun {
			b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(d.File)))
			if err != nil {
				return "", fmt.Errorf("defect %q: %w", d.Name, err)
			}
			source = string(b)
		}
		if d.Old == "" || d.Old == d.New {
			return "", fmt.Errorf("defect %q: it changes nothing in %s", d.Name, d.File)
		}
		if n := strings.Count(source, d.Old); n != 1 {
			return "", fmt.Errorf("defect %q: its old text occurs %d times in %s, must occur once", d.Name, n, d.File)
		}
		sources[d.File] = strings.Replace(source, d.Old, d.New, 1)
	}
	replace := make(map[string]string)
	for file, source := range sources {
		// The name stays, since it can say for which systems a file is.
		changed := filepath.Join(folder, strconv.Itoa(len(replace)), filepath.Base(filepath.FromSlash(file)))
		if err := os.Mkdir(filepath.Dir(changed), 0o700); err != nil {
			return "", err
		}
		if err := os.WriteFile(changed, []byte(source), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, filepath.FromSlash(file))] = changed
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}
