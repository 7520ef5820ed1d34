package reload

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// watched is a value whose file holds a word; "bad" cannot be used.
func watched(t *testing.T, log *bytes.Buffer) (files *Files, v *Value[string], write func(word string)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	write = func(word string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(word), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	files = New(slog.New(slog.NewTextHandler(log, nil)))
	v, err := Watch(files, "word", []string{path}, func() (string, error) {
		b, err := os.ReadFile(path)
		if string(b) == "bad" {
			return "", errors.New("not a word")
		}
		return string(b), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, v, write
}

// R11: a file is read again when it changes, within a second.
func TestR11ReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		_, v, write := watched(t, &log)
		write("two")
		if got := v.Get(); got != "one" {
			t.Errorf("within the second: %q", got)
		}
		time.Sleep(lookEvery)
		if got := v.Get(); got != "two" {
			t.Errorf("after a second: %q", got)
		}
		time.Sleep(lookEvery)
		v.Get()
		if n := strings.Count(log.String(), "files read again"); n != 1 {
			t.Errorf("read %d times:\n%s", n, log.String())
		}
	})
}

// R11: content that cannot be used keeps the last good one, and is logged once.
func TestR11KeepsTheLastGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		_, v, write := watched(t, &log)
		write("bad")
		for range 3 {
			time.Sleep(lookEvery)
			if got := v.Get(); got != "one" {
				t.Errorf("got %q", got)
			}
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
		write("three")
		time.Sleep(lookEvery)
		if got := v.Get(); got != "three" {
			t.Errorf("got %q", got)
		}
	})
}

// R11: All, which is what SIGHUP does, reads at once and though nothing changed.
func TestR11All(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		files, v, write := watched(t, &log)
		write("two")
		files.All()
		if got := v.Get(); got != "two" {
			t.Errorf("got %q", got)
		}
		files.All()
		if n := strings.Count(log.String(), "files read again"); n != 2 {
			t.Errorf("read %d times:\n%s", n, log.String())
		}
	})
}

// What cannot be used at the start is the caller's error.
func TestWatchFails(t *testing.T) {
	want := errors.New("no")
	_, err := Watch(New(nil), "word", []string{"missing"}, func() (int, error) { return 0, want })
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}
