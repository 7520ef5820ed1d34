package secretfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// R7: every mode that its owner can read.
func TestR7Modes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode := range os.FileMode(0o1000) {
		if mode&0o400 == 0 {
			continue
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		content, err := Read(path)
		if taken := mode&0o007 == 0 && mode&0o020 == 0; taken != (err == nil) {
			t.Errorf("mode %04o: %v", mode, err)
		}
		if err == nil && string(content) != "content" {
			t.Errorf("mode %04o: read %q", mode, content)
		}
		if err != nil && (!strings.Contains(err.Error(), "chmod 640 "+path) || content != nil) {
			t.Errorf("mode %04o: %v, content %q", mode, err, content)
		}
	}
}

// R7: Kubernetes mounts a secret as a link to a file in a folder that is itself behind a link.
func TestR7Links(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(in("..2026_01_01"), 0o755), os.WriteFile(in("..2026_01_01/key"), []byte("one"), 0o440),
		os.Mkdir(in("..2026_01_02"), 0o755), os.WriteFile(in("..2026_01_02/key"), []byte("two"), 0o440),
		os.Symlink("..2026_01_01", in("..data")), os.Symlink("..data/key", in("key")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if content, err := Read(in("key")); string(content) != "one" || err != nil {
		t.Errorf("%q, %v", content, err)
	}
	if err := os.Symlink("..2026_01_02", in("..tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(in("..tmp"), in("..data")); err != nil {
		t.Fatal(err)
	}
	if content, err := Read(in("key")); string(content) != "two" || err != nil {
		t.Errorf("after the mount was updated: %q, %v", content, err)
	}
}

func TestRejections(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(in("largest"), bytes.Repeat([]byte("x"), MaxSize), 0o600), os.WriteFile(in("large"), bytes.Repeat([]byte("x"), MaxSize+1), 0o600),
		os.Mkdir(in("folder"), 0o700), syscall.Mkfifo(in("pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if content, err := Read(in("largest")); len(content) != MaxSize || err != nil {
		t.Errorf("%d bytes, %v", len(content), err)
	}
	for name, want := range map[string]string{
		"missing": "no such file", "folder": "not a regular file", "pipe": "not a regular file", "large": "larger than 64 KiB",
	} {
		if _, err := Read(in(name)); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), in(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
