package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/syncgram/keyward/internal/secretfile"
)

// idPattern is the form of a master key id. It is shorter than any encoding of a key, so that
// a key pasted where the id belongs is refused and never shown as an id.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,23}$`)

const idForm = "an id is 1–24 letters, digits, '.', '_' or '-' and starts with a letter or digit"

// Load reads a master key file: lines `<id>:<base64 of 32 bytes>`, the first wanted, the others
// retired; blank lines and lines that start with # are skipped. It rejects a file that anybody
// beyond its owner and group can read (R7), an id or key of the wrong form, a repeated id, a
// repeated key, and a file without a key;
// each error says which line and what to do, and shows no key bytes.
func Load(path string) (*Ring, error) {
	file, err := secretfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("seal: master key file: %w", err)
	}
	defer clear(file)
	return parseRing(path, file)
}

// Parse is Load for bytes already read. It does not keep file.
func Parse(file []byte) (*Ring, error) { return parseRing("master key file", file) }

// ParseNamed is Parse for lines that errors say are from name.
func ParseNamed(name string, file []byte) (*Ring, error) { return parseRing(name, file) }

func parseRing(name string, file []byte) (*Ring, error) {
	keys, err := parse(name, file)
	if err != nil {
		return nil, err
	}
	ring := new(Ring)
	ring.keys.Store(keys)
	return ring, nil
}

// ErrKeyInUse is what Replace answers to keys that lack one which is still needed.
var ErrKeyInUse = errors.New("seal: a master key that is in use is missing")

// Missing returns the ids of the ring's keys that next lacks.
func (r *Ring) Missing(next *Ring) (ids []string) {
	with := next.keys.Load().byID
	for _, k := range r.keys.Load().inOrder {
		if with[k.id] == nil {
			ids = append(ids, k.id)
		}
	}
	return ids
}

// Replace takes the keys of next, for a rotation without a restart. It rejects keys that lack one
// of needed, with ErrKeyInUse, and a key that is not the one the ring has under its id. After an
// error the ring is as it was. changed is false when the keys are the same as before.
func (r *Ring) Replace(next *Ring, needed ...string) (changed bool, err error) {
	r.reload.Lock()
	defer r.reload.Unlock()
	now, set := r.keys.Load(), next.keys.Load()
	for _, id := range needed {
		if set.byID[id] == nil {
			return false, fmt.Errorf(
				"%w: %q; put its line back, below the new one",
				ErrKeyInUse,
				id,
			)
		}
	}
	changed = len(now.inOrder) != len(set.inOrder)
	for i, k := range set.inOrder {
		if known := now.byID[k.id]; known != nil && !known.same(k) {
			return false, fmt.Errorf(
				"seal: the master key %q is not the key this server knows by that id; give a new key a new id",
				k.id,
			)
		}
		changed = changed || now.inOrder[i].id != k.id
	}
	if changed {
		r.keys.Store(set)
	}
	return changed, nil
}

// ValidID reports whether id has the form of a master key's id.
func ValidID(id string) bool { return idPattern.MatchString(id) }

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
