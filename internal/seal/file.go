package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"
)

// maxFileSize bounds a master key file: hundreds of keys, but not a device or a wrong file.
const maxFileSize = 64 << 10

// idPattern is the form of a master key id. It is shorter than any encoding of a key, so that
// a key pasted where the id belongs is refused and never shown as an id.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,23}$`)

const idForm = "an id is 1–24 letters, digits, '.', '_' or '-' and starts with a letter or digit"

// Load reads a master key file: lines `<id>:<base64 of 32 bytes>`, the first current, the others
// retired; blank lines and lines that start with # are skipped. It refuses a file that its group or
// others can read, an id or key of the wrong form, a repeated id, a repeated key, and a file without a key;
// each error says which line and what to do, and shows no key bytes.
func Load(path string) (*Ring, error) {
	file, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	defer clear(file)
	return parseRing(path, file)
}

// Parse is Load for bytes already read. It does not keep file.
func Parse(file []byte) (*Ring, error) { return parseRing("master key file", file) }

func parseRing(name string, file []byte) (*Ring, error) {
	keys, err := parse(name, file)
	if err != nil {
		return nil, err
	}
	ring := new(Ring)
	ring.keys.Store(keys)
	return ring, nil
}

// Reload replaces the ring's keys with those of the file, for a rotation without a restart.
// It refuses a file that lacks the ring's current key, under which rows were just sealed, and a file
// that gives an id the ring knows to another key. After an error the ring is as it was.
func (r *Ring) Reload(path string) error {
	file, err := readPrivate(path)
	if err != nil {
		return err
	}
	defer clear(file)
	next, err := parse(path, file)
	if err != nil {
		return err
	}
	r.reload.Lock()
	defer r.reload.Unlock()
	now := r.keys.Load()
	if next.byID[now.current().id] == nil {
		return fmt.Errorf("seal: %s: the key %q is in use and missing from the file; put its line back, below the new one", path, now.current().id)
	}
	for _, k := range next.inOrder {
		if known := now.byID[k.id]; known != nil && !known.same(k) {
			return fmt.Errorf("seal: %s: the key %q is not the key this server knows by that id; give a new key a new id", path, k.id)
		}
	}
	r.keys.Store(next)
	return nil
}

// NewLine draws a master key and returns its line for the file, without a line break. An empty id
// takes one made from the date and random characters.
func NewLine(id string) (string, error) {
	if id == "" {
		id = time.Now().UTC().Format(time.DateOnly) + "-" + rand.Text()[:6]
	}
	if !idPattern.MatchString(id) {
		return "", errors.New("seal: wrong master key id: " + idForm)
	}
	var key [keySize]byte
	rand.Read(key[:]) // never fails: crypto/rand ends the program first
	return id + ":" + base64.StdEncoding.EncodeToString(key[:]), nil
}

// readPrivate reads a regular file that only its owner can reach.
func readPrivate(path string) ([]byte, error) {
	// Asked before opening too, because opening a pipe waits for a writer.
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("seal: master key file: %w", err)
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("seal: master key file %s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("seal: master key file: %w", err)
	}
	defer f.Close()
	// Of the open file, so that it cannot be exchanged between the look and the read.
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("seal: master key file: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("seal: master key file %s is not a regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("seal: master key file %s has mode %04o, so others than its owner can reach it: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	file := make([]byte, maxFileSize+1) // not grown while reading, which would leave copies behind
	n, err := io.ReadFull(f, file)
	switch {
	case err == nil:
		clear(file)
		return nil, fmt.Errorf("seal: %s is larger than %d KiB, so it is not a master key file", path, maxFileSize>>10)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		clear(file)
		return nil, fmt.Errorf("seal: master key file: %w", err)
	}
	return file[:n], nil
}

// parse reads the lines of a master key file that errors call name. An error shows an id only when the whole
// line was well formed, because a malformed line may hold key bytes anywhere.
func parse(name string, file []byte) (*keySet, error) {
	set := &keySet{byID: make(map[string]*masterKey)}
	number := 0
	for line := range bytes.Lines(file) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		refuse := func(format string, args ...any) error {
			return fmt.Errorf("seal: %s, line %d: %s", name, number, fmt.Sprintf(format, args...))
		}
		id, text, found := bytes.Cut(line, []byte(":"))
		if !found {
			return nil, refuse("no colon; a line is <id>:<base64 of 32 bytes>, as `keyward master-key new` prints it")
		}
		if !idPattern.Match(id) {
			return nil, refuse("wrong id; %s", idForm)
		}
		secret := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Strict().Decode(secret, text)
		if err != nil {
			return nil, refuse("the key is not standard base64 with padding; draw one with `keyward master-key new`")
		}
		if n != keySize {
			return nil, refuse("the key has %d bytes instead of 32; draw one with `keyward master-key new`", n)
		}
		secret = secret[:n]
		if bytes.Equal(secret, make([]byte, keySize)) {
			return nil, refuse("the key is all zeros; draw one with `keyward master-key new`")
		}
		key := newMasterKey(string(id), secret)
		clear(secret)
		for _, other := range set.inOrder {
			if other.id == key.id {
				return nil, refuse("the id %q stands on an earlier line too; give each key its own", key.id)
			}
			if other.same(key) {
				return nil, refuse("the key %q is the same as %q; draw another with `keyward master-key new`", key.id, other.id)
			}
		}
		set.inOrder = append(set.inOrder, key)
		set.byID[key.id] = key
	}
	if len(set.inOrder) == 0 {
		return nil, fmt.Errorf("seal: %s holds no key; draw one with `keyward master-key new`", name)
	}
	return set, nil
}
