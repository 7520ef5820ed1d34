package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"expvar"
	"fmt"
	htmltemplate "html/template"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
)

// leakFinder returns a function that names the form in which a text shows more of the
// secret than a hint, or returns nothing.
func leakFinder(secret string) func(out string) string {
	type needle struct{ form, text string }
	var needles []needle
	const window = HintLength + 1
	for i := 0; i+window <= len(secret); i++ {
		part := []byte(secret[i : i+window])
		each := func(verb, separator string) string {
			var all []string
			for _, c := range part {
				all = append(all, fmt.Sprintf(verb, c))
			}
			return strings.Join(all, separator)
		}
		needles = append(
			needles,
			needle{"text", string(part)},
			needle{"hexadecimal", each("%x", "")},
			needle{"HEXADECIMAL", each("%X", "")},
			needle{"spaced hexadecimal", each("%x", " ")},
			needle{"prefixed hexadecimal", each("0x%x", " ")},
			needle{"PREFIXED HEXADECIMAL", each("0X%X", " ")},
			needle{"Go syntax", each("0x%x", ", ")},
			needle{"decimal", each("%d", " ")},
			needle{"decimal with commas", each("%d", ",")},
			needle{"octal", each("%o", " ")},
			needle{"binary", each("%b", " ")},
			needle{"code points", each("U+%04X", " ")},
		)
	}
	// Base 64 and 32 show the same characters for a part only where their groups begin.
	for skip := range 5 {
		rest := []byte(secret[skip:])
		needles = append(
			needles,
			needle{"base64", base64.StdEncoding.EncodeToString(rest)[:8]},
			needle{"base64", base64.URLEncoding.EncodeToString(rest)[:8]},
			needle{"base32", base32.StdEncoding.EncodeToString(rest)[:8]},
		)
	}
	return func(out string) string {
		for _, n := range needles {
			if strings.Contains(out, n.text) {
				return n.form
			}
		}
		return ""
	}
}

// The shapes in which T may reach a sink. The second type parameter lets the leaky
// control type go through the same ones.
type (
	exportedField[T any]   struct{ S T }
	unexportedField[T any] struct{ s T }
	nested[T any]          struct {
		Name  string
		Inner struct{ Deeper exportedField[T] }
	}
	nestedUnexported[T any] struct {
		inner unexportedField[*unexportedField[T]]
	}
	box[T any]              struct{ Value T }
	embedsSecret            struct{ Secret }
	embedsSecretPointer     struct{ *Secret }
	secretAlias             = Secret
	embedsUnexported[T any] struct{ unexportedField[T] }
	tagged[T any]           struct {
		S T `json:"s" xml:"s,attr"`
	}
	chardata[T any] struct {
		XMLName xml.Name `xml:"key"`
		S       T        `xml:",chardata"`
	}
	holdingError[T any] struct{ s T }
	ownStringer[T any]  struct{ s T }
	withFunction[T any] struct {
		S T
		F func()
	}
)

func (holdingError[T]) Error() string   { return "failed" }
func (o ownStringer[T]) String() string { return fmt.Sprint("holding ", o.s) }

type shape struct {
	name  string
	value any
}

func shapesOf[T comparable](s T) []shape {
	var n nested[T]
	n.Name, n.Inner.Deeper.S = "nested", s
	pointer := &s
	var stored atomic.Pointer[T]
	stored.Store(&s)
	var kept atomic.Value
	kept.Store(s)
	return []shape{
		{"value", s},
		{"pointer", pointer},
		{"pointer to pointer", &pointer},
		{"exported field", exportedField[T]{s}},
		{"pointer to exported field", &exportedField[T]{s}},
		{"exported pointer field", exportedField[*T]{&s}},
		{"unexported field", unexportedField[T]{s}},
		{"pointer to unexported field", &unexportedField[T]{s}},
		{"unexported pointer field", unexportedField[*T]{&s}},
		{"nested", n},
		{"nested unexported", nestedUnexported[T]{unexportedField[*unexportedField[T]]{&unexportedField[T]{s}}}},
		{"slice", []T{s, s}},
		{"slice of pointers", []*T{&s}},
		{"slice in an unexported field", unexportedField[[]T]{[]T{s}}},
		{"map value", map[string]T{"k": s}},
		{"map pointer value", map[string]*T{"k": &s}},
		{"map key", map[T]string{s: "v"}},
		{"map in an unexported field", unexportedField[map[T]T]{map[T]T{s: s}}},
		{"array", [2]T{s, s}},
		{"array in an unexported field", unexportedField[[1]T]{[1]T{s}}},
		{"interface", exportedField[any]{s}},
		{"interface in an unexported field", unexportedField[any]{s}},
		{"slice of interfaces", []any{s, &s}},
		{"map of interfaces", map[any]any{s: s}},
		{"generic", box[box[T]]{box[T]{s}}},
		{"embedded unexported", embedsUnexported[T]{unexportedField[T]{s}}},
		{"tagged", tagged[T]{s}},
		{"character data", chardata[T]{S: s}},
		{"error that holds it", holdingError[T]{s}},
		{"stringer that prints it", ownStringer[T]{s}},
		{"beside a function", withFunction[T]{s, func() {}}},
		{"atomic pointer", &stored},
		{"atomic value", &kept},
		{"wrapped error", fmt.Errorf("outer: %w", holdingError[T]{s})},
		{"joined errors", errors.Join(holdingError[T]{s}, fmt.Errorf("%v", s))},
	}
}

type sink struct {
	name  string
	print func(v any) string
}

func sinks() []sink {
	var all []sink
	add := func(name string, print func(v any) string) { all = append(all, sink{name, print}) }

	for _, verb := range "vTtbcdoOqxXUeEfFgGspw!z" {
		for _, flags := range []string{"", "+", "#", " ", "-", "0", "+#", "80", ".3", "-80.60", "# "} {
			f := "%" + flags + string(verb)
			add(f, func(v any) string { return fmt.Sprintf(f, v) })
		}
	}
	noVerb := "no verb"
	add("too many arguments", func(v any) string { return fmt.Sprintf(noVerb, v) })
	add("Sprint", func(v any) string { return fmt.Sprint(v) })
	add("Sprintln", func(v any) string { return fmt.Sprintln(v) })
	add("Append", func(v any) string { return string(fmt.Append(nil, v)) })
	for _, f := range []string{"%v", "%+v", "%w", "%s", "%d", "%x"} {
		add("Errorf "+f, func(v any) string { return fmt.Errorf(f, v).Error() })
		add("wrapped Errorf "+f, func(v any) string { return fmt.Sprintf("%+v", errors.Join(fmt.Errorf("a: %w", fmt.Errorf(f, v)))) })
	}
	add("log", func(v any) string {
		var b bytes.Buffer
		l := log.New(&b, "", log.Lshortfile)
		l.Print(v)
		l.Printf("%+v %d %x", v, v, v)
		l.Println("v", v)
		return b.String()
	})

	handlers := map[string]func(io.Writer, *slog.HandlerOptions) slog.Handler{
		"text": func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, o) },
		"json": func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewJSONHandler(w, o) },
	}
	for name, handler := range handlers {
		add("slog "+name, func(v any) string {
			var b bytes.Buffer
			l := slog.New(handler(&b, &slog.HandlerOptions{AddSource: true, Level: slog.LevelDebug}))
			l.Info("m", "v", v)
			l.Info("m", v, "odd")
			l.Error("m", slog.Any("v", v), slog.Group("g", "v", v))
			l.With("v", v).WithGroup("g").Debug("m", slog.Any("v", []any{v}))
			l.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprint(v), slog.Any("v", slog.AnyValue(v)))
			return b.String()
		})
	}

	encoded := func(out []byte, err error) string { return fmt.Sprintf("%s %v %+v", out, err, err) }
	add("json", func(v any) string { return encoded(json.Marshal(v)) })
	add("json indented", func(v any) string { return encoded(json.MarshalIndent(v, "", " ")) })
	add("json in a map", func(v any) string { return encoded(json.Marshal(map[string]any{"v": v})) })
	add("xml", func(v any) string { return encoded(xml.Marshal(v)) })
	add("xml in an element", func(v any) string { return encoded(xml.Marshal(exportedField[any]{v})) })
	add("gob", func(v any) string {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(v)
		return encoded(b.Bytes(), err)
	})
	add("binary", func(v any) string {
		var b bytes.Buffer
		err := binary.Write(&b, binary.BigEndian, v)
		return encoded(b.Bytes(), err)
	})
	add("MarshalText", func(v any) string {
		if m, ok := v.(encoding.TextMarshaler); ok {
			return encoded(m.MarshalText())
		}
		return ""
	})
	add("SQL argument", func(v any) string {
		value, err := driver.DefaultParameterConverter.ConvertValue(v)
		return fmt.Sprintf("%v %v", value, err)
	})
	add("expvar", func(v any) string { return expvar.Func(func() any { return v }).String() })
	add("cmp.Diff", func(v any) string {
		return recovered(func() { panic(cmp.Diff(v, any("another"))) })
	})

	for name, text := range map[string]string{
		"plain": `{{.}}`, "printf": `{{printf "%v %+v %#v %s %q %x %d" . . . . . . .}}`, "print": `{{print .}} {{println .}}`,
		"html": `{{html .}}`, "js": `{{js .}}`, "urlquery": `{{urlquery .}}`, "len": `{{len .}}`, "index": `{{index . 0}}`, "field": `{{.NoSuchField}}`,
	} {
		t := template.Must(template.New("t").Parse(text))
		add("text template "+name, func(v any) string {
			var b bytes.Buffer
			err := t.Execute(&b, v)
			return encoded(b.Bytes(), err)
		})
	}
	for name, text := range map[string]string{
		"text": `<p>{{.}}</p>`, "attribute": `<a title="{{.}}" data-x={{.}}>`, "URL": `<a href="/x?k={{.}}">`, "script": `<script>let x = {{.}};</script>`,
		"JSON script": `<script type="application/json">{{.}}</script>`, "style": `<style>a { color: {{.}} }</style>`, "handler": `<a onclick="f({{.}})">`, "comment": `<!-- {{.}} -->`,
	} {
		t := htmltemplate.Must(htmltemplate.New("t").Parse(text))
		add("html template "+name, func(v any) string {
			var b bytes.Buffer
			err := t.Execute(&b, v)
			return encoded(b.Bytes(), err)
		})
	}

	add("panic", func(v any) string { return recovered(func() { panic(v) }) })
	add("panic with an error", func(v any) string { return recovered(func() { panic(fmt.Errorf("request: %v", v)) }) })
	add("failed type assertion", func(v any) string { return recovered(func() { _ = v.(interface{ noSuchMethod() }) }) })
	return all
}

// recovered runs f and returns what a recovery handler would print of its panic.
func recovered(f func()) (out string) {
	defer func() {
		if r := recover(); r != nil {
			out = fmt.Sprintf("%v %+v %#v %s", r, r, r, r)
		}
	}()
	f()
	return ""
}

func TestV7SecretCannotPrint(t *testing.T) {
	plain := generate(t, format(t, "sk"), Live)
	secret := NewSecret(plain)
	leak := leakFinder(plain)
	shapes := append(shapesOf(secret),
		shape{"embedded", embedsSecret{secret}},
		shape{"embedded pointer", embedsSecretPointer{&secret}},
		shape{"pointer to embedded", &embedsSecret{secret}},
		shape{"embedded in a field", exportedField[embedsSecret]{embedsSecret{secret}}},
		shape{"embedded in an unexported field", unexportedField[embedsSecret]{embedsSecret{secret}}},
		shape{"alias", []secretAlias{secret}},
		shape{"zero", Secret{}},
	)
	for _, to := range sinks() {
		t.Run(to.name, func(t *testing.T) {
			for _, s := range shapes {
				if form := leak(to.print(s.value)); form != "" {
					t.Errorf("%s shows the secret as %s", s.name, form)
				}
			}
		})
	}
	if secret.Reveal() != plain {
		t.Error("the secret changed while it was printed")
	}
}

// leaky is what a secret must not be: it hides itself by methods alone.
type leaky string

func (leaky) String() string               { return redacted }
func (leaky) GoString() string             { return redacted }
func (leaky) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// showsNothing names the sinks in which even a plain string, in any shape, does not appear.
func showsNothing(sink string) bool {
	switch sink {
	case "MarshalText", "failed type assertion", "binary", "text template len", "text template field",
		"html template comment":
		return true
	}
	verb, isVerb := strings.CutPrefix(sink, "%")
	return isVerb && (strings.HasSuffix(verb, "T") || strings.HasPrefix(verb, ".3"))
}

// The matrix would notice: a string, and a string with redacting methods, leak in it.
func TestV7MatrixNoticesALeak(t *testing.T) {
	plain := generate(t, format(t, "sk"), Live)
	leak := leakFinder(plain)
	shapes := append(shapesOf(plain), shapesOf([1]string{plain})...)
	for _, to := range sinks() {
		var shown bool
		for _, s := range shapes {
			shown = shown || leak(to.print(s.value)) != ""
		}
		if shown == showsNothing(to.name) {
			t.Errorf("%s: shows a plain string = %v", to.name, shown)
		}
	}

	var found []string
	for _, to := range sinks() {
		for _, s := range shapesOf(leaky(plain)) {
			if leak(to.print(s.value)) != "" {
				found = append(found, to.name+" of "+s.name)
			}
		}
	}
	if len(found) < 50 {
		t.Errorf("only %d leaks of a string type with redacting methods were noticed", len(found))
	}

	for form, out := range map[string]string{
		"text": "x" + plain[20:25] + "y", "hexadecimal": fmt.Sprintf("%x", plain), "HEXADECIMAL": fmt.Sprintf("%X", plain),
		"spaced hexadecimal": fmt.Sprintf("% x", plain), "prefixed hexadecimal": fmt.Sprintf("%# x", plain), "PREFIXED HEXADECIMAL": fmt.Sprintf("%# X", plain), "Go syntax": fmt.Sprintf("%#v", []byte(plain)),
		"decimal": fmt.Sprint([]byte(plain)), "octal": fmt.Sprintf("%o", []byte(plain)), "binary": fmt.Sprintf("%b", []byte(plain)),
		"code points": fmt.Sprintf("%U", []rune(plain)), "base64": base64.StdEncoding.EncodeToString([]byte("ab" + plain)),
		"base32": base32.StdEncoding.EncodeToString([]byte(plain)), "decimal with commas": strings.ReplaceAll(fmt.Sprint([]byte(plain)), " ", ","),
	} {
		if got := leak(out); got != form {
			t.Errorf("%s was found as %q", form, got)
		}
	}
	if got := leak(plain[len(plain)-HintLength:]); got != "" {
		t.Errorf("the hint counts as a leak: %s", got)
	}
}

// crashVariable tells the test binary, started again, to die of a panic with a secret it reads.
const crashVariable = "KEYWARD_TOKEN_TEST_CRASH"

func TestMain(m *testing.M) {
	if name := os.Getenv(crashVariable); name != "" {
		plain, err := io.ReadAll(os.Stdin)
		if err != nil {
			os.Exit(3)
		}
		crash(name, string(plain))
	}
	os.Exit(m.Run())
}

func crash(name, plain string) {
	s := NewSecret(plain)
	switch name {
	case "value":
		panic(s)
	case "pointer":
		panic(&s)
	case "struct":
		panic(unexportedField[Secret]{s})
	case "error":
		panic(fmt.Errorf("request of %v failed: %w", s, holdingError[Secret]{s}))
	case "control":
		panic(plain)
	}
}

// What the runtime itself prints when a program dies of a panic.
func TestV7CrashShowsNoSecret(t *testing.T) {
	plain := generate(t, format(t, "sk"), Live)
	leak := leakFinder(plain)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"value", "pointer", "struct", "error", "control"} {
		t.Run(name, func(t *testing.T) {
			c := exec.Command(self)
			c.Env = append(os.Environ(), crashVariable+"="+name, "GOTRACEBACK=all")
			c.Stdin = strings.NewReader(plain)
			out, err := c.CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("panic:")) {
				t.Fatalf("it did not die of a panic: %v", err)
			}
			if form := leak(string(out)); (form != "") != (name == "control") {
				t.Errorf("the secret is shown as %q", form)
			}
		})
	}
}

func TestSecret(t *testing.T) {
	plain := generate(t, format(t, "sk"), Live)
	for _, tt := range []struct {
		name   string
		secret Secret
		reveal string
		hint   string
	}{
		{"generated", NewSecret(plain), plain, plain[42:]},
		{"zero", Secret{}, "", ""},
		{"empty", NewSecret(""), "", ""},
		{"too short for a hint", NewSecret(plain[:35]), plain[:35], ""},
		{"the specification's sample", NewSecret("sk_live_a1b2c3d4e5f6g7h8i9j0"), "sk_live_a1b2c3d4e5f6g7h8i9j0", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.secret.Reveal(); got != tt.reveal {
				t.Error("Reveal gave another text")
			}
			if got := tt.secret.Hint(); got != tt.hint { // C18
				t.Errorf("Hint has %d characters, want %d", len(got), len(tt.hint))
			}
			if tt.secret.Digest() != sha256.Sum256([]byte(tt.reveal)) {
				t.Error("Digest is not the SHA-256 of the text")
			}
			for _, got := range []string{tt.secret.String(), tt.secret.GoString(), fmt.Sprint(tt.secret), tt.secret.LogValue().String()} {
				if got != redacted {
					t.Errorf("shown as %q", got)
				}
			}
		})
	}
}

// A secret does not come back from what it was encoded to: the encoded form holds none of it.
func TestEncodedSecretHoldsNothing(t *testing.T) {
	secret := NewSecret(generate(t, format(t, "sk"), Test))
	out, err := json.Marshal(struct {
		Key  Secret            `json:"key"`
		Keys map[Secret]Secret `json:"keys"`
	}{secret, map[Secret]Secret{secret: secret}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`{"key":"[secret]","keys":{"[secret]":"[secret]"}}`, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
