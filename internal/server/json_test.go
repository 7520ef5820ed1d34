package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keys"
)

// sample has a field of every kind.
type sample struct {
	Text  string  `json:"text"`
	Maybe *string `json:"maybe"`
	N     *int64  `json:"n"`
	Flag  *bool   `json:"flag"`
}

func (s *sample) fields() []field {
	return []field{{"text", &s.Text}, {"maybe", &s.Maybe}, {"n", &s.N}, {"flag", &s.Flag}}
}

// C6: what is accepted is what encoding/json reads, to the letter.
func TestC6ParseObject(t *testing.T) {
	one, neg, most, least := int64(1), int64(-7), int64(9223372036854775807), int64(-9223372036854775808)
	yes, no, empty := true, false, ""
	zero := int64(0)
	for _, tt := range []struct {
		in   string
		want sample
	}{
		{`{}`, sample{}},
		{" \t\r\n{ \t\r\n} \t\r\n", sample{}},
		{`{"text":"a","maybe":"","n":1,"flag":true}`, sample{"a", &empty, &one, &yes}},
		{`{"flag":false,"n":-7,"maybe":null,"text":null}`, sample{"", nil, &neg, &no}},
		{`{"n":0}`, sample{N: &zero}},
		{`{"n":9223372036854775807}`, sample{N: &most}},
		{`{"n":-9223372036854775808}`, sample{N: &least}},
		{`{"text":"\"\\\/\b\f\n\r\t\u0000\u00e9\uD83D\uDD11\ufffd"}`, sample{Text: "\"\\/\b\f\n\r\t\x00é🔑\ufffd"}},
		{`{"text":"é🔑` + "\u2028\x7f" + `"}`, sample{Text: "é🔑\u2028\x7f"}},
		{`{"te\u0078t":"a"}`, sample{Text: "a"}},
		{`{"text":"\\\\\""}`, sample{Text: `\\"`}},
	} {
		var got, reference sample
		if err := parseObject([]byte(tt.in), got.fields()); err != nil {
			t.Errorf("%s: %v", tt.in, err)
		}
		if err := json.Unmarshal([]byte(tt.in), &reference); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.in, diff)
		}
		if diff := cmp.Diff(reference, got); diff != "" {
			t.Errorf("%s, against encoding/json: %s", tt.in, diff)
		}
	}
}

// C6: depth costs nothing, wherever it is.
func TestC6Depth(t *testing.T) {
	for _, in := range []string{
		strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
		`{"text":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`,
		`{"other":` + strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000) + `}`,
		strings.Repeat(`{"text":`, 10_000),
	} {
		var s sample
		if parseObject([]byte(in), s.fields()) == nil {
			t.Errorf("accepted %.20s…", in)
		}
	}
}

// FuzzC6ParseObject: nothing is accepted that encoding/json would not read, every accepted text means the
// same to both, and refusals never hold a value.
func FuzzC6ParseObject(f *testing.F) {
	for _, s := range malformedBodies() {
		f.Add([]byte(strings.ReplaceAll(s, "key_name", "text")))
	}
	for _, s := range naughtyStrings() {
		f.Add([]byte(`{"text":` + quote(s) + `,"n":12,"flag":true}`))
	}
	f.Add([]byte(`{"maybe":"\ud83d\udd11","n":-0,"n":1e3}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		var got, want sample
		err := parseObject(in, got.fields())
		if !bytes.Equal(before, in) {
			t.Fatal("the body was changed")
		}
		d := json.NewDecoder(bytes.NewReader(in))
		d.DisallowUnknownFields()
		reference := d.Decode(&want)
		if err == nil {
			if reference != nil || !utf8.Valid(in) {
				t.Fatalf("accepted what encoding/json refuses: %v", reference)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
			return
		}
		var refusal *keys.Error
		if !errors.As(err, &refusal) {
			t.Fatalf("not a refusal: %v", err)
		}
		if refusal.Param != "" && plainName(refusal.Param) == "" {
			t.Fatalf("param %q may not be said", refusal.Param)
		}
		// What is refused and encoding/json reads is refused for one of the stricter rules.
		if reference == nil && json.Valid(in) && utf8.Valid(in) && !stricter(in) {
			t.Fatalf("refused without a reason: %v", err)
		}
	})
}

// stricter reports whether a valid JSON text breaks a rule that encoding/json does not have: an
// object at the top, names in their own case and once, no half surrogate, plain integers.
func stricter(in []byte) bool {
	d := json.NewDecoder(bytes.NewReader(in))
	d.UseNumber()
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return true
	}
	seen := map[string]bool{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return true
		}
		n, _ := name.(string)
		if seen[n] || n != strings.ToLower(n) || strings.Contains(n, "\ufffd") {
			return true
		}
		for _, known := range []string{"text", "maybe", "n", "flag"} {
			if strings.EqualFold(known, n) && known != n {
				return true
			}
		}
		seen[n] = true
		value, err := d.Token()
		if err != nil {
			return true
		}
		switch v := value.(type) {
		case json.Delim:
			return true
		case string:
			if strings.Contains(v, "\ufffd") {
				return true // a half surrogate, or the character itself
			}
		case json.Number:
			if _, ok := wholeNumber([]byte(v)); !ok {
				return true
			}
		}
	}
	return false
}

// V1: the verdict that is written by hand is the one encoding/json would write.
func TestV1AppendVerdict(t *testing.T) {
	for _, name := range append(naughtyStrings(), "plain", "<&>") {
		if !utf8.ValidString(name) {
			continue
		}
		v := verifyVerdict{Reason: keys.Valid, KeyID: "key_x", OrganizationID: "org", KeyName: name, Environment: keys.Live, ConnectedAccountID: "acct", PaymentsEnabled: true}
		var got map[string]any
		if err := json.Unmarshal(appendVerdict(nil, &v), &got); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		want := map[string]any{"valid": true, "reason": "valid", "api_key_id": "key_x", "organization_id": "org", "env": "live", "key_name": name, "connected_account_id": "acct", "payments_enabled": true}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
	}
}

// A form is read as url.ParseQuery reads it, but for a parameter that is given twice, and for more parameters than that takes (V4).
func FuzzParseForm(f *testing.F) {
	for _, seed := range []string{"", "a=1", "a=1&b=2", "a=1&a=2", "a", "a=", "=1", "&&a=1&", "a=%31%zz", "%61=+%2B+", "a=1;b=2", "a=b=c", "c=1&c=2&a=%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Count(text, "&") >= 10_000 {
			return
		}
		var a, b *string
		err := parseForm(text, []field{{"a", &a}, {"b", &b}})
		values, malformed := url.ParseQuery(text)
		if twice := len(values["a"]) > 1 || len(values["b"]) > 1; (err != nil) != (malformed != nil || twice) {
			t.Fatalf("%q: %v, url.ParseQuery: %v %v", text, err, values, malformed)
		}
		if err != nil {
			return
		}
		for name, got := range map[string]*string{"a": a, "b": b} {
			if diff := cmp.Diff(parameter(values, name), got); diff != "" {
				t.Errorf("%q: %s (-url.ParseQuery +parseForm):\n%s", text, name, diff)
			}
		}
	})
}
