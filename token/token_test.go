package token

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

func format(t testing.TB, word string) Format {
	t.Helper()
	f, err := NewFormat(word)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func generate(t testing.TB, f Format, env Environment) string {
	t.Helper()
	s, err := f.Generate(env)
	if err != nil {
		t.Fatal(err)
	}
	return s.Reveal()
}

// checksumByHand computes the checksum of what precedes it another way than the
// package does: math/big writes base 62 with the lower-case letters first.
func checksumByHand(covered string) string {
	digits := new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(covered)))).Text(62)
	swapped := strings.Map(func(r rune) rune {
		if unicode.IsLower(r) {
			return unicode.ToUpper(r)
		}
		return unicode.ToLower(r)
	}, digits)
	return strings.Repeat("0", checksumLength-len(swapped)) + swapped
}

func TestC11Shape(t *testing.T) {
	for _, word := range []string{"sk", "a", "keyward", "abcdefghijklmno9"} {
		for _, env := range []Environment{Live, Test} {
			t.Run(word+" "+string(env), func(t *testing.T) {
				f := format(t, word)
				shape := regexp.MustCompile(`^` + word + `_` + string(env) + `_[0-9A-Za-z]{38}$`)
				for range 100 {
					s := generate(t, f, env)
					if !shape.MatchString(s) {
						t.Fatalf("a secret of %d characters does not have the shape %s", len(s), shape)
					}
					if word == "sk" && len(s) != 46 {
						t.Errorf("%d characters, want 46", len(s))
					}
					if covered := s[:len(s)-6]; s != covered+checksumByHand(covered) {
						t.Error("wrong checksum")
					}
					got, digest, err := f.Parse(s)
					if err != nil || got != env || digest != sha256.Sum256([]byte(s)) {
						t.Errorf("Parse of a generated secret: %q, %v", got, err)
					}
					if !f.Resembles(s) {
						t.Error("a generated secret does not resemble one")
					}
				}
			})
		}
	}
}

func TestC11Words(t *testing.T) {
	for _, tt := range []struct {
		word string
		ok   bool
	}{
		{"sk", true}, {"a", true}, {"a1", true}, {"abcdefghijklmnop", true},
		{"", false}, {"1a", false}, {"abcdefghijklmnopq", false}, {"SK", false}, {"sK", false}, {"s_k", false}, {"sk_", false}, {"_sk", false},
		{"s-k", false}, {"s k", false}, {"sk\n", false}, {"sk\x00", false}, {"sé", false},
	} {
		f, err := NewFormat(tt.word)
		if (err == nil) != tt.ok {
			t.Errorf("NewFormat(%q): %v, want ok = %v", tt.word, err, tt.ok)
		}
		if err != nil && f != (Format{}) {
			t.Errorf("NewFormat(%q): an error and a format", tt.word)
		}
	}
}

func TestGenerateRefusesAnUnknownEnvironment(t *testing.T) {
	for _, env := range []Environment{"", "prod", "LIVE", "live_"} {
		if s, err := format(t, "sk").Generate(env); err == nil || s.Reveal() != "" {
			t.Errorf("Generate(%q) gave a secret", env)
		}
	}
}

func TestZeroFormatAcceptsNothing(t *testing.T) {
	var f Format
	if s, err := f.Generate(Live); err == nil || s.Reveal() != "" {
		t.Error("it generates")
	}
	covered := "_live_" + strings.Repeat("a", randomLength)
	for _, s := range []string{"", "_live_", covered + checksumByHand(covered), generate(t, format(t, "sk"), Live)} {
		if f.Resembles(s) {
			t.Errorf("a text of %d characters resembles a secret", len(s))
		}
		if _, _, err := f.Parse(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse of a text of %d characters: %v", len(s), err)
		}
		if _, _, err := f.Outline(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("Outline of a text of %d characters: %v", len(s), err)
		}
	}
}

func TestC11Malformed(t *testing.T) {
	f := format(t, "sk")
	good := generate(t, f, Live)
	body, sum := good[8:40], good[40:]
	withSum := func(covered string) string { return covered + checksumByHand(covered) }
	for _, tt := range []struct{ name, text string }{
		{"empty", ""},
		{"the specification's sample", "sk_live_a1b2c3d4e5f6g7h8i9j0"},
		{"no prefix", body + sum},
		{"one character short", good[:45]},
		{"one character more", good + "0"},
		{"first character missing", good[1:]},
		{"46 underscores", strings.Repeat("_", 46)},
		{"46 NULs", strings.Repeat("\x00", 46)},
		{"46 bytes of 0xff", strings.Repeat("\xff", 46)},
		{"a megabyte", strings.Repeat("a", 1<<20)},
		{"a megabyte behind a secret", good + strings.Repeat("a", 1<<20)},
		{"invalid UTF-8 with a right checksum", withSum("sk_live_" + body[:31] + "\xff")},
		{"control character with a right checksum", withSum("sk_live_" + body[:31] + "\x7f")},
		{"character below 0 with a right checksum", withSum("sk_live_" + body[:31] + "/")},
		{"character above 9 with a right checksum", withSum("sk_live_" + body[:31] + ":")},
		{"character below A with a right checksum", withSum("sk_live_" + body[:31] + "@")},
		{"character above Z with a right checksum", withSum("sk_live_" + body[:31] + "[")},
		{"character below a with a right checksum", withSum("sk_live_" + body[:31] + "`")},
		{"character above z with a right checksum", withSum("sk_live_" + body[:31] + "{")},
		{"third underscore with a right checksum", withSum("sk_live__" + body[:31])},
		{"word of another deployment", generate(t, format(t, "pk"), Live)},
		{"longer word of another deployment", generate(t, format(t, "skk"), Live)},
		{"JWT", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0."},
		{"SQL", "sk_live_' OR '1'='1' -- 0123456789abcdefghijkl"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env, digest, err := f.Parse(tt.text)
			if err != ErrMalformed { // the value itself: it cannot carry the text
				t.Errorf("error %v, want ErrMalformed", err)
			}
			if env != "" || digest != (Digest{}) {
				t.Error("a refusal with an environment or a digest")
			}
		})
	}
}

func TestResembles(t *testing.T) {
	f := format(t, "sk")
	for _, tt := range []struct {
		text string
		want bool
	}{
		{"sk_", true}, {"sk_live_", true}, {"sk_anything at all", true}, {"sk_live_a1b2c3d4e5f6g7h8i9j0", true},
		{"", false}, {"s", false}, {"sk", false}, {"skk_", false}, {"SK_", false}, {" sk_", false}, {"pk_live_", false}, {"eyJhbGciOi", false}, {"sk-live-", false},
	} {
		if got := f.Resembles(tt.text); got != tt.want {
			t.Errorf("Resembles(%q) = %v", tt.text, got)
		}
	}
}

// V7: a text holds a secret, or part of one, wherever it stands.
func TestV7Holds(t *testing.T) {
	f := format(t, "sk")
	live, test := generate(t, f, Live), generate(t, f, Test)
	for i, tt := range []struct {
		text         string
		secret, part bool
	}{
		{live, true, true}, {test, true, true}, {"x" + live, true, true}, {"sk_sk_live_" + live + "_", true, true}, {"é " + test + "é", true, true},
		{live[:45], true, true}, {live[:40], true, true}, {live[:39], false, true}, {live[:20] + " " + live[20:], false, true},
		{live[:17], false, true}, {live[:16], false, false}, {"sk_live_", false, false}, {"sk_live_ " + live[8:], false, false},
		{"sk_prod_" + live[8:], false, false}, {"SK" + live[2:], false, false}, {"sk" + live[3:], false, false}, {live[3:], false, false},
		{generate(t, format(t, "pk"), Live), false, false}, {generate(t, format(t, "mysk"), Live), true, true}, {"", false, false},
	} {
		if secret, part := f.HoldsSecret(tt.text), f.HoldsPart(tt.text); secret != tt.secret || part != tt.part {
			t.Errorf("text %d: HoldsSecret %t, HoldsPart %t", i, secret, part)
		}
	}
	if (Format{}).HoldsSecret(live) || (Format{}).HoldsPart(live[2:]) {
		t.Error("the zero Format finds something")
	}
}

// No edit of one character and no swap of neighbours passes, over 1,000 secrets and without
// exception: a CRC-32 sees every change confined to 32 bits in a row.
func TestC11ChecksumFindsEveryTypingError(t *testing.T) {
	f := format(t, "sk")
	for i := range 1000 {
		secret := generate(t, f, []Environment{Live, Test}[i%2])
		if _, _, err := f.Parse(secret); err != nil {
			t.Fatal("a generated secret does not parse")
		}
		b := []byte(secret)
		refused := func(what string, at int) {
			if _, _, err := f.Parse(string(b)); !errors.Is(err, ErrMalformed) {
				t.Errorf("passes with %s at position %d", what, at)
			}
		}
		for at, was := range []byte(secret) {
			for _, c := range []byte(alphabet) {
				if c != was {
					b[at] = c
					refused("another character", at)
				}
			}
			b[at] = was
			if at > 0 && b[at-1] != was {
				b[at-1], b[at] = b[at], b[at-1]
				refused("neighbours swapped", at)
				b[at-1], b[at] = b[at], b[at-1]
			}
		}
	}
}

func TestC11Generator(t *testing.T) {
	const n = 100_000
	f := format(t, "sk")
	seen := make(map[string]bool, n)
	var counts [randomLength][62]int
	for range n {
		body := generate(t, f, Test)[8 : 8+randomLength]
		if seen[body] {
			t.Fatal("drew the same secret twice")
		}
		seen[body] = true
		for at, c := range []byte(body) {
			counts[at][strings.IndexByte(alphabet, c)]++
		}
	}
	for at := range counts {
		if got := chiSquared(counts[at][:], n); got > chiSquaredBound {
			t.Errorf("position %d: chi-squared %.1f over %d secrets, more than %v", at, got, n, chiSquaredBound)
		}
	}

	// What a remainder without rejection would give is far beyond the bound.
	var biased [62]int
	for i := range n {
		biased[(i%256)%62]++
	}
	if got := chiSquared(biased[:], n); got < 2*chiSquaredBound {
		t.Errorf("the bound would not notice a generator without rejection: %.1f", got)
	}
}

// chiSquaredBound is passed by chance less than once in 10^9 runs of all 32 positions
// (61 degrees of freedom).
const chiSquaredBound = 170.0

func chiSquared(counts []int, n int) float64 {
	want := float64(n) / float64(len(counts))
	var sum float64
	for _, c := range counts {
		d := float64(c) - want
		sum += d * d / want
	}
	return sum
}

func TestParseAllocatesNothing(t *testing.T) {
	f := format(t, "sk")
	good := generate(t, f, Live)
	bad := good[:45] + "-"
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, err := f.Parse(good); err != nil {
			t.Error(err)
		}
		if _, _, err := f.Parse(bad); err == nil {
			t.Error("accepted")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

//go:embed vectors.json
var vectorsFile []byte

type vectors struct {
	About string
	Valid []struct{ Word, Env, Random, Checksum, SHA256 string }

	Malformed []struct {
		Reason, Word string
		Parts        []string
	}
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	var v vectors
	d := json.NewDecoder(bytes.NewReader(vectorsFile))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestC11Vectors(t *testing.T) {
	v := readVectors(t)
	if len(v.Valid) < 15 || len(v.Malformed) < 40 {
		t.Fatalf("only %d valid and %d malformed vectors", len(v.Valid), len(v.Malformed))
	}
	if loc := regexp.MustCompile(`_(live|test)_[0-9A-Za-z]{20}`).FindIndex(vectorsFile); loc != nil {
		t.Errorf("vectors.json holds a text with a secret's shape at byte %d", loc[0])
	}
	for i, tt := range v.Valid {
		t.Run(fmt.Sprintf("valid %d", i), func(t *testing.T) {
			secret := tt.Word + "_" + tt.Env + "_" + tt.Random + tt.Checksum
			env, digest, err := format(t, tt.Word).Parse(secret)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tt.Env, tt.SHA256}, []string{string(env), hex.EncodeToString(digest[:])}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got := checksumByHand(secret[:len(secret)-checksumLength]); got != tt.Checksum {
				t.Errorf("checksum by hand %s, in the file %s", got, tt.Checksum)
			}
		})
	}
	for _, tt := range v.Malformed {
		t.Run(tt.Reason, func(t *testing.T) {
			if _, _, err := format(t, tt.Word).Parse(strings.Join(tt.Parts, "")); !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v, want ErrMalformed", err)
			}
		})
	}
}

// FuzzParse holds Parse against the format's definition, for the text as it is and for
// the text with its checksum put right, which the fuzzer would never guess.
func FuzzParse(f *testing.F) {
	sk := format(f, "sk")
	shape := regexp.MustCompile(`^sk_(live|test)_[0-9A-Za-z]{38}$`)
	for range 3 {
		f.Add(generate(f, sk, Live))
		f.Add(generate(f, sk, Test))
	}
	for _, tt := range readVectors(f).Malformed {
		f.Add(strings.Join(tt.Parts, ""))
	}
	f.Fuzz(func(t *testing.T, text string) {
		texts := []string{text}
		if len(text) >= checksumLength {
			covered := text[:len(text)-checksumLength]
			texts = append(texts, covered+checksumByHand(covered))
		}
		for _, s := range texts {
			m := shape.FindStringSubmatch(s)
			wellFormed := m != nil && s[40:] == checksumByHand(s[:40])
			env, digest, err := sk.Parse(s)
			switch {
			case (err == nil) != wellFormed:
				t.Errorf("Parse: %v, but well-formed = %v", err, wellFormed)
			case err == nil && (string(env) != m[1] || digest != sha256.Sum256([]byte(s))):
				t.Error("wrong environment or digest")
			case err != nil && (err != ErrMalformed || env != "" || digest != (Digest{})):
				t.Error("a refusal that is not ErrMalformed alone")
			}
			outlineEnv, outlineDigest, outlineErr := sk.Outline(s)
			outlined := len(s) == 46 && (strings.HasPrefix(s, "sk_live_") || strings.HasPrefix(s, "sk_test_"))
			switch {
			case (outlineErr == nil) != outlined || outlineErr != nil && outlineErr != ErrMalformed:
				t.Errorf("Outline: %v, but has the outline of one = %v", outlineErr, outlined)
			case outlineErr == nil && sk.Intact(s) != (err == nil):
				t.Errorf("Intact: %t, but Parse: %v", sk.Intact(s), err)
			case err == nil && (outlineEnv != env || outlineDigest != digest):
				t.Error("Outline says another environment or digest than Parse")
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	f := format(b, "sk")
	s := generate(b, f, Live)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := f.Parse(s); err != nil {
			b.Fatal(err)
		}
	}
}

// A flood of texts that are no secrets is refused before anything is hashed.
func BenchmarkParseMalformed(b *testing.B) {
	f := format(b, "sk")
	s := generate(b, f, Live)
	s = s[:45] + string(alphabet[(strings.IndexByte(alphabet, s[45])+1)%62])
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := f.Parse(s); err == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkGenerate(b *testing.B) {
	f := format(b, "sk")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Generate(Live); err != nil {
			b.Fatal(err)
		}
	}
}
