package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// line draws a master key's line.
func line(t testing.TB, id string) string {
	t.Helper()
	l, err := NewLine(id)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ring parses lines, the first current.
func ring(t testing.TB, lines ...string) *Ring {
	t.Helper()
	r, err := Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// signer is that of the ring's first key.
func signer(r *Ring) Signer {
	s, err := r.Signer(r.Wanted())
	if err != nil {
		panic(err)
	}
	return s
}

// keyFile writes lines to a file only its owner can read.
func keyFile(t testing.TB, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	writeKeys(t, path, lines...)
	return path
}

func writeKeys(t testing.TB, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eachFlip calls try with every copy of b that has one bit changed.
func eachFlip(b []byte, try func(bit int, changed []byte)) {
	for bit := range 8 * len(b) {
		changed := bytes.Clone(b)
		changed[bit/8] ^= 1 << (bit % 8)
		try(bit, changed)
	}
}

// The values were computed with another implementation (Python's hmac, and the
// "cryptography" package for AES-GCM) from the master key 0x01…0x20. A change of them
// makes every stored row and kept answer unreadable.
func TestDerivationsNeverChange(t *testing.T) {
	master := make([]byte, keySize)
	for i := range master {
		master[i] = byte(i + 1)
	}
	r := ring(t, "fixed:"+base64.StdEncoding.EncodeToString(master))
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	weight, err := r.Weight("fixed", "key", "key_1", 7)
	if err != nil {
		t.Fatal(err)
	}
	request, err := r.Fingerprint("fixed", []byte(`{"key_name":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	handle := r.Handles("org", "", "user")[0]
	link := [32]byte(bytes.Repeat([]byte{0xab}, 32))
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"row", signer(r).SealRow("key", []byte("content")).MAC, "9d7e4f9ed1fbb294f7039502f24e3d3a54023029dad0e35ea584531025e0e20f"},
		{"weight", weight[:], "6ac3e6b7f21fa60e4dfe55083a6b3e13360ceff1df6d4f52a0d8ea982fb8a218"},
		{"handle", handle[:], "1d971e75aef9531f314a5001d5ee200d96f924cc069d65623612b21f849ab1a2"},
		{"request", request[:], "648e20113a58d7673195553eea672214bae3c0f42a3c25ec71e7744c2b167970"},
		{"audit", signer(r).SealAudit(9, link).MAC, "291f25fbb3e93fd469f1d7272471f3f586ddd370c1aa8b474c2529176c86bf9a"},
	} {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s = %s, want %s", tt.name, got, tt.want)
		}
	}

	salt := bytes.Repeat([]byte{0x11}, saltSize)
	box := append(bytes.Clone(salt), unhex(strings.Repeat("22", 12)+"13ab4e540e0d877d8ac637c43980880e4d9d13d0ecf574ba69")...)
	if plain, err := r.OpenState("fixed", box, []byte("revision 3")); err != nil || string(plain) != "the state" {
		t.Errorf("OpenState = %q, %v", plain, err)
	}
	answer := Answer{KeyID: "fixed", Salt: salt, Sealed: unhex(strings.Repeat("22", 12) + "0855ade36413e5d8dcf6f3eb068d0cd674b81f21931c0456aff1")}
	if plain, err := r.OpenAnswer("idem-1", answer, []byte("handle")); err != nil || string(plain) != "the answer" {
		t.Errorf("OpenAnswer = %q, %v", plain, err)
	}
}

func TestRowSeal(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	content := []byte("id, organization, test, digest, expiry, state, revision")
	s := signer(r).SealRow("key", content)
	if s.KeyID != "now" || len(s.MAC) != 32 {
		t.Fatalf("sealed under %q with %d bytes", s.KeyID, len(s.MAC))
	}
	if err := r.CheckRow("key", content, s); err != nil {
		t.Fatal(err)
	}
	eachFlip(content, func(bit int, changed []byte) {
		if err := r.CheckRow("key", changed, s); !errors.Is(err, ErrBadSeal) {
			t.Errorf("content with bit %d flipped: %v", bit, err)
		}
	})
	eachFlip(s.MAC, func(bit int, changed []byte) {
		if err := r.CheckRow("key", content, Seal{s.KeyID, changed}); !errors.Is(err, ErrBadSeal) {
			t.Errorf("MAC with bit %d flipped: %v", bit, err)
		}
	})
	for _, tt := range []struct {
		name    string
		kind    string
		content []byte
		seal    Seal
		want    error
	}{
		{"another table", "organization", content, s, ErrBadSeal},
		{"border between kind and content moved", "ke", append([]byte("y"), content...), s, ErrBadSeal},
		{"shorter content", "key", content[:len(content)-1], s, ErrBadSeal},
		{"longer content", "key", append(bytes.Clone(content), 0), s, ErrBadSeal},
		{"no MAC", "key", content, Seal{KeyID: "now"}, ErrBadSeal},
		{"cut MAC", "key", content, Seal{"now", s.MAC[:16]}, ErrBadSeal},
		{"longer MAC", "key", content, Seal{"now", append(bytes.Clone(s.MAC), 0)}, ErrBadSeal},
		{"the other key's id", "key", content, Seal{"old", s.MAC}, ErrBadSeal},
		{"unknown key", "key", content, Seal{"lost", s.MAC}, ErrUnknownKey},
		{"no key", "key", content, Seal{"", s.MAC}, ErrUnknownKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := r.CheckRow(tt.kind, tt.content, tt.seal); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestUnknownKeyErrorNamesTheKey(t *testing.T) {
	r := ring(t, line(t, "now"))
	err := r.CheckRow("key", nil, Seal{KeyID: "2026-lost"})
	if err == nil || !strings.Contains(err.Error(), `"2026-lost"`) {
		t.Errorf("the error does not say which key to bring back: %v", err)
	}
	// An id of the wrong form was not written by this package: it does not reach a log.
	err = r.CheckRow("key", nil, Seal{KeyID: "x\n" + strings.Repeat("y", 1000)})
	if !errors.Is(err, ErrUnknownKey) || strings.Contains(err.Error(), "y") && len(err.Error()) > 100 {
		t.Errorf("the error repeats a foreign id: %v", err)
	}
}

func TestAuditSeal(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	hash := [32]byte(bytes.Repeat([]byte{0x5a}, 32))
	s := signer(r).SealAudit(41, hash)
	if err := r.CheckAudit(41, hash, s); err != nil {
		t.Fatal(err)
	}
	for bit := range 64 {
		if err := r.CheckAudit(41^(1<<bit), hash, s); !errors.Is(err, ErrBadSeal) {
			t.Errorf("sequence with bit %d flipped: %v", bit, err)
		}
	}
	eachFlip(hash[:], func(bit int, changed []byte) {
		if err := r.CheckAudit(41, [32]byte(changed), s); !errors.Is(err, ErrBadSeal) {
			t.Errorf("hash with bit %d flipped: %v", bit, err)
		}
	})
	eachFlip(s.MAC, func(bit int, changed []byte) {
		if err := r.CheckAudit(41, hash, Seal{s.KeyID, changed}); !errors.Is(err, ErrBadSeal) {
			t.Errorf("MAC with bit %d flipped: %v", bit, err)
		}
	})
	if err := r.CheckAudit(41, hash, Seal{"old", s.MAC}); !errors.Is(err, ErrBadSeal) {
		t.Errorf("the other key's id: %v", err)
	}
	if err := r.CheckAudit(41, hash, Seal{"lost", s.MAC}); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestState(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	additional := []byte("revision 12")
	for _, state := range [][]byte{nil, []byte("s"), bytes.Repeat([]byte("state"), 500)} {
		id, box := signer(r).SealState(state, additional)
		got, err := r.OpenState(id, box, additional)
		if id != "now" || err != nil || !bytes.Equal(got, state) {
			t.Fatalf("opened %d bytes under %q: %v", len(got), id, err)
		}
		if len(state) > 1 && bytes.Contains(box, state[:5]) {
			t.Error("the box shows the state")
		}
	}

	state := []byte("the database's state")
	id, box := signer(r).SealState(state, additional)
	eachFlip(box, func(bit int, changed []byte) { // salt, nonce, ciphertext and tag
		if _, err := r.OpenState(id, changed, additional); !errors.Is(err, ErrBadSeal) {
			t.Errorf("box with bit %d flipped: %v", bit, err)
		}
	})
	eachFlip(additional, func(bit int, changed []byte) {
		if _, err := r.OpenState(id, box, changed); !errors.Is(err, ErrBadSeal) {
			t.Errorf("additional data with bit %d flipped: %v", bit, err)
		}
	})
	for n := range box {
		if _, err := r.OpenState(id, box[:n], additional); !errors.Is(err, ErrBadSeal) {
			t.Errorf("box cut to %d bytes: %v", n, err)
		}
	}
	if _, err := r.OpenState("old", box, additional); !errors.Is(err, ErrBadSeal) {
		t.Errorf("the other key: %v", err)
	}
	if _, err := r.OpenState("lost", box, additional); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestBoxesOfOneContentDiffer(t *testing.T) {
	r := ring(t, line(t, "now"))
	salts, nonces := map[string]bool{}, map[string]bool{}
	const n = 1000
	for range n {
		_, box := signer(r).SealState([]byte("same"), nil)
		salts[string(box[:saltSize])] = true
		nonces[string(box[saltSize:saltSize+12])] = true
		a := signer(r).SealAnswer("same", []byte("same"), nil)
		salts[string(a.Salt)] = true
		nonces[string(a.Sealed[:12])] = true
	}
	if len(salts) != 2*n || len(nonces) != 2*n {
		t.Errorf("%d salts and %d nonces in %d boxes", len(salts), len(nonces), 2*n)
	}
}

func TestC17AnswerNeedsBothKeys(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	const idempotencyKey = "8e03978e-40d5-43dd-bc93-6894a57f9324"
	plain := []byte(`{"key":"the only copy"}`)
	additional := []byte("handle, fingerprint, key id")
	a := signer(r).SealAnswer(idempotencyKey, plain, additional)
	if a.KeyID != "now" || len(a.Salt) != saltSize || bytes.Contains(a.Sealed, []byte("only")) {
		t.Fatalf("sealed under %q with a salt of %d bytes", a.KeyID, len(a.Salt))
	}
	got, err := r.OpenAnswer(idempotencyKey, a, additional)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("opened %q, %v", got, err)
	}

	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrBadSeal) {
			t.Errorf("%s: %v, want ErrBadSeal", what, err)
		}
	}
	// The server's keys without the client's.
	eachFlip([]byte(idempotencyKey), func(bit int, changed []byte) {
		_, err := r.OpenAnswer(string(changed), a, additional)
		refused(fmt.Sprintf("idempotency key with bit %d flipped", bit), err)
	})
	for _, other := range []string{"", idempotencyKey[1:], idempotencyKey + " ", idempotencyKey + "\x00", strings.ToUpper(idempotencyKey)} {
		_, err := r.OpenAnswer(other, a, additional)
		refused(fmt.Sprintf("idempotency key %q", other), err)
	}
	// The client's key without the server's.
	_, err = ring(t, line(t, "now")).OpenAnswer(idempotencyKey, a, additional)
	refused("another master key by the same id", err)
	_, err = r.OpenAnswer(idempotencyKey, Answer{"old", a.Salt, a.Sealed}, additional)
	refused("another master key of the ring", err)
	// Every part of the row.
	eachFlip(a.Salt, func(bit int, changed []byte) {
		_, err := r.OpenAnswer(idempotencyKey, Answer{a.KeyID, changed, a.Sealed}, additional)
		refused(fmt.Sprintf("salt with bit %d flipped", bit), err)
	})
	eachFlip(a.Sealed, func(bit int, changed []byte) {
		_, err := r.OpenAnswer(idempotencyKey, Answer{a.KeyID, a.Salt, changed}, additional)
		refused(fmt.Sprintf("sealed with bit %d flipped", bit), err)
	})
	eachFlip(additional, func(bit int, changed []byte) {
		_, err := r.OpenAnswer(idempotencyKey, a, changed)
		refused(fmt.Sprintf("additional with bit %d flipped", bit), err)
	})
	for _, salt := range [][]byte{nil, a.Salt[:31], append(bytes.Clone(a.Salt), 0)} {
		_, err := r.OpenAnswer(idempotencyKey, Answer{a.KeyID, salt, a.Sealed}, additional)
		refused(fmt.Sprintf("salt of %d bytes", len(salt)), err)
	}
	for n := range a.Sealed { // an erased answer is one of them
		_, err := r.OpenAnswer(idempotencyKey, Answer{a.KeyID, a.Salt, a.Sealed[:n]}, additional)
		refused(fmt.Sprintf("sealed cut to %d bytes", n), err)
	}
	if _, err := r.OpenAnswer(idempotencyKey, Answer{"lost", a.Salt, a.Sealed}, additional); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
	// Neither opening nor failing to open has spoiled the child key.
	if _, err := r.OpenAnswer(idempotencyKey, a, additional); err != nil {
		t.Errorf("no longer opens: %v", err)
	}
}

func TestC17AnswerWithoutIdempotencyKeyIsNeverSealed(t *testing.T) {
	r := ring(t, line(t, "now"))
	defer func() {
		if recover() == nil {
			t.Error("sealed under the server's key alone")
		}
	}()
	signer(r).SealAnswer("", []byte("plain"), nil)
}

func TestC15HandlesTellPartsApart(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	seen := map[[32]byte]string{}
	for _, parts := range [][]string{
		{}, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab"}, {"ab", ""}, {"b", "a"},
		{"org", "user", "create", "k"}, {"org", "user", "roll", "k"}, {"orgu", "ser", "create", "k"},
		{"a\x00\x00\x00\x00\x00\x00\x00\x01b"}, {"a", "b", ""},
	} {
		handles := r.Handles(parts...)
		if len(handles) != 2 {
			t.Fatalf("%d handles for 2 master keys", len(handles))
		}
		for _, h := range handles {
			if before, taken := seen[h]; taken {
				t.Errorf("%q has the handle of %s", parts, before)
			}
			seen[h] = fmt.Sprintf("%q", parts)
		}
		if diff := cmp.Diff(handles, r.Handles(parts...)); diff != "" {
			t.Errorf("%q: handles differ between calls: %s", parts, diff)
		}
	}
}

func TestC16FingerprintTellsRequestsApart(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	request := []byte(`{"key_name":"Production key"}`)
	want, err := r.Fingerprint("now", request)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Fingerprint("now", bytes.Clone(request)); err != nil || again != want {
		t.Errorf("the same request has another fingerprint: %v", err)
	}
	if other, err := r.Fingerprint("old", request); err != nil || other == want {
		t.Errorf("two master keys give one fingerprint: %v", err)
	}
	eachFlip(request, func(bit int, changed []byte) {
		if got, err := r.Fingerprint("now", changed); err != nil || got == want {
			t.Errorf("request with bit %d flipped has the same fingerprint: %v", bit, err)
		}
	})
	if _, err := r.Fingerprint("lost", request); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestWeightTellsRowsApart(t *testing.T) {
	r := ring(t, line(t, "now"), line(t, "old"))
	seen := map[[32]byte]string{}
	for _, tt := range []struct {
		keyID, kind, id string
		revision        int64
	}{
		{"now", "key", "key_1", 1}, {"now", "key", "key_1", 2}, {"now", "key", "key_1", -1}, {"now", "key", "key_2", 1},
		{"now", "organization", "key_1", 1}, {"now", "keyk", "ey_1", 1}, {"old", "key", "key_1", 1}, {"now", "", "", 0},
		{"now", "key", "key_1", 1 << 62},
	} {
		got, err := r.Weight(tt.keyID, tt.kind, tt.id, tt.revision)
		if err != nil {
			t.Fatal(err)
		}
		if before, taken := seen[got]; taken {
			t.Errorf("%v has the weight of %s", tt, before)
		}
		seen[got] = fmt.Sprint(tt)
		if again, err := r.Weight(tt.keyID, tt.kind, tt.id, tt.revision); err != nil || again != got {
			t.Errorf("%v: the weight differs between calls: %v", tt, err)
		}
	}
	if _, err := r.Weight("lost", "key", "key_1", 1); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

// One use's output never stands for another's, though their inputs are the same bytes.
func TestUsesAreSeparate(t *testing.T) {
	r := ring(t, line(t, "now"))
	k := r.keys.Load().wanted()
	sums := map[[32]byte]string{}
	for name, m := range map[string]*mac{"rows": k.rows, "weights": k.weights, "handles": k.handles, "requests": k.requests, "audit": k.audit} {
		sum := m.begin().finish([]byte("same"))
		if other, taken := sums[sum]; taken {
			t.Errorf("%s and %s share a key", name, other)
		}
		sums[sum] = name
	}
	if k.state == k.answers || k.state == k.identity || k.answers == k.identity {
		t.Error("two children are the same")
	}
	salt := newSalt()
	if derive(k.state[:], salt, stateBoxInfo) == derive(k.state[:], salt, answerBoxInfo) {
		t.Error("two kinds of box share a key")
	}
}

func TestRetiredKeysOpenButNeverSeal(t *testing.T) {
	first, second := line(t, "first"), line(t, "second")
	before := ring(t, first)
	content := []byte("row")
	row := signer(before).SealRow("key", content)
	audit := signer(before).SealAudit(1, [32]byte{1})
	stateID, box := signer(before).SealState([]byte("state"), nil)
	answer := signer(before).SealAnswer("idem", []byte("answer"), nil)
	handle := before.Handles("org", "user", "idem")[0]

	after := ring(t, second, first)
	if err := after.CheckRow("key", content, row); err != nil {
		t.Errorf("row: %v", err)
	}
	if err := after.CheckAudit(1, [32]byte{1}, audit); err != nil {
		t.Errorf("audit: %v", err)
	}
	if _, err := after.OpenState(stateID, box, nil); err != nil {
		t.Errorf("state: %v", err)
	}
	if _, err := after.OpenAnswer("idem", answer, nil); err != nil {
		t.Errorf("answer: %v", err)
	}
	if handles := after.Handles("org", "user", "idem"); handles[1] != handle || handles[0] == handle {
		t.Error("the retired key's handle is not the second")
	}

	id, _ := signer(after).SealState(nil, nil)
	for use, got := range map[string]string{
		"row": signer(after).SealRow("key", content).KeyID, "audit": signer(after).SealAudit(1, [32]byte{}).KeyID,
		"state": id, "answer": signer(after).SealAnswer("idem", nil, nil).KeyID, "Wanted": after.Wanted(),
	} {
		if got != "second" {
			t.Errorf("%s is sealed under %q", use, got)
		}
	}
	if diff := cmp.Diff([]string{"second", "first"}, after.KeyIDs()); diff != "" {
		t.Errorf("KeyIDs (-want +got):\n%s", diff)
	}
}

// R10: a signer stays with the key that the database names, wherever the source has it.
func TestSignerIsOfTheKeyThatIsNamed(t *testing.T) {
	r := ring(t, line(t, "wanted"), line(t, "signing"))
	s, err := r.Signer("signing")
	if err != nil {
		t.Fatal(err)
	}
	stateID, _ := s.SealState(nil, nil)
	for use, got := range map[string]string{
		"row": s.SealRow("key", nil).KeyID, "audit": s.SealAudit(1, [32]byte{}).KeyID, "state": stateID,
		"answer": s.SealAnswer("idem", nil, nil).KeyID, "KeyID": s.KeyID(),
	} {
		if got != "signing" {
			t.Errorf("%s is authenticated under %q", use, got)
		}
	}
	if s.Handle("a", "b") != r.Handles("a", "b")[1] {
		t.Error("the signer's lookup hash is not its key's")
	}
	if _, err := r.Signer("gone"); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a signer of a key that is not there: %v", err)
	}
}

// R10: the observer hears of each key that is missing, but not of what anybody may send.
func TestUnknownKeysAreTold(t *testing.T) {
	r := ring(t, line(t, "here"))
	var told []string
	r.OnUnknownKey(func(id string) { told = append(told, id) })
	_ = r.CheckRow("key", nil, Seal{KeyID: "row"})
	_ = r.CheckAudit(1, [32]byte{}, Seal{KeyID: "audit"})
	_, _ = r.OpenState("state", nil, nil)
	_, _ = r.Weight("weight", "key", "k", 1)
	_, _ = r.OpenProbe("probe", nil, nil)
	if diff := cmp.Diff([]string{"row", "audit", "state", "weight"}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A fingerprint is the same for the same key alone, and is no part of anything that authenticates.
func TestFingerprints(t *testing.T) {
	one, two := line(t, "one"), line(t, "two")
	r, other := ring(t, one, two), ring(t, line(t, "one"), two)
	if a, b := r.FingerprintOf("two"), other.FingerprintOf("two"); a != b ||
		len(a) != 2*fingerprintSize {
		t.Errorf("one key has the fingerprints %q and %q", a, b)
	}
	if r.FingerprintOf("one") == other.FingerprintOf("one") {
		t.Error("two keys have one fingerprint")
	}
	if r.FingerprintOf("three") != "" {
		t.Error("a key that is not there has a fingerprint")
	}
	want := []KeyFingerprint{{"one", r.FingerprintOf("one")}, {"two", r.FingerprintOf("two")}}
	if diff := cmp.Diff(want, r.Fingerprints()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestProbe(t *testing.T) {
	shared := line(t, "now")
	asker, node, stranger := signer(
		ring(t, shared),
	), ring(
		t,
		line(t, "next"),
		shared,
	), ring(
		t,
		line(t, "now"),
	)
	box := asker.SealProbe([]byte("question"), []byte("node 1"))
	if plain, err := node.OpenProbe("now", box, []byte("node 1")); err != nil ||
		string(plain) != "question" {
		t.Errorf("%q, %v", plain, err)
	}
	for name, err := range map[string]error{
		"another node": second(node.OpenProbe("now", box, []byte("node 2"))),
		"another key":  second(stranger.OpenProbe("now", box, []byte("node 1"))),
		"a short box":  second(node.OpenProbe("now", box[:10], []byte("node 1"))),
		"as a state":   second(node.OpenState("now", box, []byte("node 1"))),
	} {
		if !errors.Is(err, ErrBadSeal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mac, err := node.SealVerdict("now", []byte("nonce"), "valid")
	if err != nil || !asker.CheckVerdict([]byte("nonce"), "valid", mac) {
		t.Errorf("the node's answer is rejected: %v", err)
	}
	forged, err := stranger.SealVerdict("now", []byte("nonce"), "valid")
	if err != nil {
		t.Fatal(err)
	}
	if asker.CheckVerdict([]byte("nonce"), "valid", forged) ||
		asker.CheckVerdict([]byte("nonce"), "revoked", mac) ||
		asker.CheckVerdict([]byte("other"), "valid", mac) {
		t.Error("an answer that is another's is accepted")
	}
}

func second[T any](_ T, err error) error { return err }

func TestReplace(t *testing.T) {
	one, two := line(t, "one"), line(t, "two")
	for _, tt := range []struct {
		name    string
		lines   []string
		needed  []string
		changed bool
		want    string // of the error
	}{
		{"another first key", []string{line(t, "three"), one, two}, []string{"one"}, true, ""},
		{"the same keys", []string{one, two}, []string{"one"}, false, ""},
		{"another order", []string{two, one}, []string{"one"}, true, ""},
		{"without a retired key", []string{one}, []string{"one"}, true, ""},
		{"without the database's key", []string{two, line(t, "three")}, []string{"one"}, false, `missing: "one"`},
		{"without a key that rows need", []string{one}, []string{"one", "two"}, false, `missing: "two"`},
		{"another key under the first id", []string{line(t, "one"), two}, nil, false, `"one" is not the key this server knows`},
		{"another key under a retired id", []string{one, line(t, "two")}, nil, false, `"two" is not the key this server knows`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := ring(t, one, two)
			row := signer(r).SealRow("key", []byte("row"))
			changed, err := r.Replace(ring(t, tt.lines...), tt.needed...)
			if changed != tt.changed || (err == nil) != (tt.want == "") ||
				err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("changed %v, error %v", changed, err)
			}
			noKeyBytes(t, err, append(tt.lines, one, two)...)
			if err != nil {
				if diff := cmp.Diff([]string{"one", "two"}, r.KeyIDs()); diff != "" {
					t.Errorf("the ring changed (-want +got):\n%s", diff)
				}
			}
			if err := r.CheckRow("key", []byte("row"), row); err != nil {
				t.Errorf("a row no longer checks: %v", err)
			}
		})
	}
	if missing := ring(t, one, two).Missing(ring(t, two)); !cmp.Equal(missing, []string{"one"}) {
		t.Errorf("missing %v", missing)
	}
}

// Sealing, checking and reloading at once: the race detector watches, and every
// seal checks whichever key it was made under.
func TestConcurrentUse(t *testing.T) {
	first, second := line(t, "first"), line(t, "second")
	sources := []*Ring{ring(t, first, second), ring(t, second, first)}
	r := ring(t, first, second)
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := range 200 {
				content := fmt.Appendf(nil, "%d/%d", worker, i)
				if err := r.CheckRow("key", content, signer(r).SealRow("key", content)); err != nil {
					t.Error(err)
				}
				id, box := signer(r).SealState(content, nil)
				if got, err := r.OpenState(id, box, nil); err != nil || !bytes.Equal(got, content) {
					t.Errorf("state: %q, %v", got, err)
				}
				if got, err := r.OpenAnswer("idem", signer(r).SealAnswer("idem", content, nil), nil); err != nil ||
					!bytes.Equal(got, content) {
					t.Errorf("answer: %q, %v", got, err)
				}
				if len(r.Handles(string(content))) != 2 {
					t.Error("a half-loaded ring")
				}
			}
		})
	}
	for i := range 100 {
		if _, err := r.Replace(sources[i%2]); err != nil {
			t.Error(err)
		}
	}
	workers.Wait()
}

func TestRingShowsNoKey(t *testing.T) {
	l := line(t, "now")
	r := ring(t, l)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		noKeyBytes(t, fmt.Errorf(verb, r), l)
		k := r.keys.Load().wanted()
		for _, child := range [][keySize]byte{k.identity, k.state, k.answers} {
			out := fmt.Sprintf(verb, r)
			if strings.Contains(out, hex.EncodeToString(child[:4])) || strings.Contains(out, fmt.Sprint(child[:4])[1:10]) {
				t.Errorf("%s shows a derived key", verb)
			}
		}
	}
}

func BenchmarkCheckRow(b *testing.B) {
	r := ring(b, line(b, "now"))
	content := make([]byte, 300) // about what a key's row has
	s := signer(r).SealRow("key", content)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if r.CheckRow("key", content, s) != nil {
				b.Error("bad seal")
			}
		}
	})
}

func BenchmarkWeight(b *testing.B) {
	r := ring(b, line(b, "now"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Weight("now", "key", "key_00000000000000000000000000", 7); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealState(b *testing.B) {
	r := ring(b, line(b, "now"))
	state := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		signer(r).SealState(state, nil)
	}
}

func BenchmarkSealAnswer(b *testing.B) {
	r := ring(b, line(b, "now"))
	plain := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		signer(r).SealAnswer("8e03978e-40d5-43dd-bc93-6894a57f9324", plain, nil)
	}
}
