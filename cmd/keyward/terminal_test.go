package main

import (
	"os"
	"path/filepath"
	"testing"
)

// R4: a command whose standard input is the null device, which os.Stdin names otherwise, has nobody
// to ask.
func TestR4NullIsNoTerminal(t *testing.T) {
	other := filepath.Join(t.TempDir(), "stdin")
	if err := os.Symlink(os.DevNull, other); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{os.DevNull, other} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if isTerminal(f) {
			t.Errorf("%s counts as a terminal", name)
		}
		f.Close()
	}
}
