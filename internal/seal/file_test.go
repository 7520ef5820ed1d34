package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// noKeyBytes fails when err shows six or more characters in a row of a line's key, as
// base64 or as hexadecimal digits.
func noKeyBytes(t *testing.T, err error, lines ...string) {
	t.Helper()
	if err == nil {
		return
	}
	for _, l := range lines {
		_, text, _ := strings.Cut(l, ":")
		raw, _ := base64.StdEncoding.DecodeString(text)
		for _, form := range []string{text, hex.EncodeToString(raw)} {
			for i := 0; i+6 <= len(form); i++ {
				if strings.Contains(err.Error(), form[i:i+6]) {
					t.Errorf("the error shows key bytes: %v", err)
					return
				}
			}
		}
	}
}

func TestParseForms(t *testing.T) {
	a, b := line(t, "2026-10-a"), line(t, "B_2.x")
	for _, tt := range []struct {
		name, file string
		want       []string
	}{
		{"one line", a, []string{"2026-10-a"}},
		{"final newline", a + "\n", []string{"2026-10-a"}},
		{"two, the first current", b + "\n" + a + "\n", []string{"B_2.x", "2026-10-a"}},
		{"blank lines and comments", "# current\n\n" + a + "\n  \n  # retired\n" + b, []string{"2026-10-a", "B_2.x"}},
		{"CRLF and spaces around", "  " + a + " \r\n\t" + b + "\r\n", []string{"2026-10-a", "B_2.x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse([]byte(tt.file))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, r.KeyIDs()); diff != "" {
				t.Errorf("KeyIDs (-want +got):\n%s", diff)
			}
			if r.Wanted() != tt.want[0] {
				t.Errorf("Current = %q", r.Wanted())
			}
		})
	}
}

func TestParseKeepsNothingOfItsArgument(t *testing.T) {
	file := []byte(line(t, "now"))
	r, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	s := signer(r).SealRow("key", []byte("row"))
	clear(file)
	if err := r.CheckRow("key", []byte("row"), s); err != nil || r.Wanted() != "now" {
		t.Errorf("the ring changed with the bytes it was parsed from: %v", err)
	}
}

func TestParseRefusals(t *testing.T) {
	a, b := line(t, "a"), line(t, "b")
	_, text, _ := strings.Cut(a, ":")
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	std := base64.StdEncoding.EncodeToString
	for _, tt := range []struct {
		name, file string
		want       []string // each stands in the error
	}{
		{"empty", "", []string{"holds no key", "master-key new"}},
		{"comments only", "# one\n\n# two\n", []string{"holds no key"}},
		{"no colon", a + "\n" + text, []string{"line 2", "no colon"}},
		{"id missing", ":" + text, []string{"line 1", "wrong id"}},
		{"key and id exchanged", text + ":a", []string{"line 1", "wrong id"}},
		{"unpadded key where the id belongs", strings.TrimRight(text, "=") + ":" + text, []string{"line 1", "wrong id"}},
		{"hexadecimal key where the id belongs", hex.EncodeToString(raw) + ":a", []string{"line 1", "wrong id"}},
		{"space in the id", "a b:" + text, []string{"line 1", "wrong id"}},
		{"id too long", strings.Repeat("a", 25) + ":" + text, []string{"line 1", "wrong id"}},
		{"control character in the id", "a\x00:" + text, []string{"line 1", "wrong id"}},
		{"not base64", "a:" + strings.Replace(text, text[5:6], "*", 1), []string{"line 1", "not standard base64"}},
		{"without padding", "# c\na:" + strings.TrimRight(text, "="), []string{"line 2", "not standard base64"}},
		{"URL alphabet", "a:" + "-_" + text[2:], []string{"line 1", "not standard base64"}},
		{"space after the colon", "a: " + text, []string{"line 1", "not standard base64"}},
		{"unused bits set", "a:" + strings.Repeat("A", 42) + "B=", []string{"line 1", "not standard base64"}},
		{"a comment behind the key", a + " # current", []string{"line 1", "not standard base64"}},
		{"no key", "a:", []string{"line 1", "0 bytes instead of 32"}},
		{"31 bytes", "a:" + std(raw[:31]), []string{"line 1", "31 bytes instead of 32"}},
		{"33 bytes", "a:" + std(append(bytes.Clone(raw), 1)), []string{"line 1", "33 bytes instead of 32"}},
		{"hexadecimal", "a:" + hex.EncodeToString(raw), []string{"line 1", "48 bytes instead of 32"}},
		{"all zeros", "a:" + std(make([]byte, 32)), []string{"line 1", "all zeros"}},
		{"repeated id", a + "\n" + b + "\n" + line(t, "b"), []string{"line 3", `the id "b"`, "earlier line"}},
		{"repeated key", a + "\n\n" + "other:" + text, []string{"line 3", `"other" is the same as "a"`}},
		{"the same line twice", a + "\n" + a, []string{"line 2", `the id "a"`}},
		{"a good key before a bad one", a + "\nb:zz", []string{"line 2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse([]byte(tt.file))
			if err == nil || r != nil {
				t.Fatalf("accepted: %v", r.KeyIDs())
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			noKeyBytes(t, err, a, b, "x:"+hex.EncodeToString(raw))
		})
	}
}

// R7: 0440 and 0640 as systemd and Kubernetes deliver them are taken, what anybody can read is not.
func TestR7LoadRejectsWhatEverybodyCanReach(t *testing.T) {
	l := line(t, "now")
	for mode := range os.FileMode(0o1000) {
		if mode&0o400 == 0 {
			continue // not readable by its owner
		}
		path := keyFile(t, l)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if mode&0o027 == 0 {
			if err != nil {
				t.Errorf("mode %04o: %v", mode, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "chmod 640 "+path) {
			t.Errorf("mode %04o: %v, want an error that says chmod 640", mode, err)
		}
		noKeyBytes(t, err, l)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadRefusals(t *testing.T) {
	dir := t.TempDir()
	l := line(t, "now")
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("large", l+"\n"+strings.Repeat("# comment\n", 7000))
	write("broken", l+"\nsecond:AAAA\n")
	write("open", l)
	if err := errors.Join(os.Chmod(in("open"), 0o644), os.Symlink("open", in("link")), syscall.Mkfifo(in("pipe"), 0o600), os.Mkdir(in("folder"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, want string }{
		{"missing", "no such file"},
		{"folder", "not a regular file"},
		{"pipe", "not a regular file"},
		{"link", "chmod 640"}, // the permissions that count are the file's
		{"large", "larger than 64 KiB"},
		{"broken", "broken, line 2: the key has 3 bytes instead of 32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(in(tt.name))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), in(tt.name)) {
				t.Errorf("error %v, want one with the path and %q", err, tt.want)
			}
			noKeyBytes(t, err, l)
		})
	}
}

func TestLoadFollowsALink(t *testing.T) {
	path := keyFile(t, line(t, "now"))
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(link); err != nil {
		t.Error(err)
	}
}

func TestNewLine(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		l := line(t, "")
		if _, err := Parse([]byte(l)); err != nil {
			t.Fatalf("its own line is refused: %v", err)
		}
		id, text, _ := strings.Cut(l, ":")
		if seen[id] || seen[text] {
			t.Error("drew an id or a key twice")
		}
		seen[id], seen[text] = true, true
	}
	if id, _, _ := strings.Cut(line(t, "mine"), ":"); id != "mine" {
		t.Errorf("id %q", id)
	}
	for _, id := range []string{"a:b", "a b", "-a", "#a", "ä", strings.Repeat("a", 25), "a\n"} {
		if l, err := NewLine(id); err == nil || l != "" {
			t.Errorf("the id %q was taken", id)
		}
	}
}

func FuzzParse(f *testing.F) {
	a, err := NewLine("a")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(a))
	f.Add([]byte("# c\r\n" + a + "\nb:AAAA"))
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := Parse(file)
		if err != nil {
			return
		}
		if len(r.KeyIDs()) == 0 || r.Wanted() != r.KeyIDs()[0] {
			t.Error("a ring without a current key")
		}
		if err := r.CheckRow("key", file, signer(r).SealRow("key", file)); err != nil {
			t.Error(err)
		}
	})
}
