package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

type (
	verifyRequest = verify.Request
	verifyVerdict = verify.Verdict
)

// heldBarrier holds writes back while it is on.
type heldBarrier struct {
	keys.Barrier
	on               atomic.Bool
	entered, release chan struct{}
}

func (b *heldBarrier) Await(ctx context.Context, c keys.Commit) error {
	if b.on.Load() {
		close(b.entered)
		<-b.release
	}
	return b.Barrier.Await(ctx, c)
}

// failingBarrier does not know while it is on.
type failingBarrier struct {
	keys.Barrier
	on bool
}

func (b *failingBarrier) Await(ctx context.Context, c keys.Commit) error {
	if b.on {
		return errors.New("no acknowledgement")
	}
	return b.Barrier.Await(ctx, c)
}

// malformedBodies are texts that are no JSON object, or not one alone.
func malformedBodies() []string {
	list := []string{
		" ", "\n", "null", "true", "1", `"x"`, "[]", "[{}]", `{}{}`, `{} {}`, `{},`, `{}x`, `{}}`, `{}]`, "{}\x00", "\ufeff{}", "\x00{}",
		"{", "}", `{"`, `{"key_name`, `{"key_name"`, `{"key_name":`, `{"key_name":"`, `{"key_name":"k`, `{"key_name":"k"`, `{"key_name":"k",`, `{"key_name":"k",}`, `{,}`, `{,"key_name":"k"}`,
		`{"key_name" "k"}`, `{"key_name"="k"}`, `{"key_name":"k";"env":"live"}`, `{"key_name":"k" "env":"live"}`, `{"key_name"::"k"}`, `{"key_name":,}`, `{"key_name":}`,
		`{key_name:"k"}`, `{'key_name':'k'}`, `{"key_name":'k'}`, `{1:"k"}`, `{null:"k"}`, `{["x"]:"k"}`, `{"a":"b"}/**/`, `/**/{}`, `{}//x`, `{"key_name":"k"/*x*/}`, `#{}`,
		`{"key_name":nul}`, `{"key_name":nullx}`, `{"key_name":NULL}`, `{"key_name":undefined}`, `{"expires_in_days":1 2}`, `{"expires_in_days":--1}`, `{"expires_in_days":1e}`, `{"expires_in_days":.5}`, `{"expires_in_days":1.}`, `{"expires_in_days":Infinity}`, `{"expires_in_days":0e1}`, `{"expires_in_days":1_000}`, "{\"expires_in_days\":\uff11}",
		`{"key_name":"\x41"}`, `{"key_name":"\a"}`, `{"key_name":"\u12"}`, `{"key_name":"\u12G4"}`, `{"key_name":"\U0041"}`, `{"key_name":"\ud83d\u"}`, `{"key_name":"\ud83d\udd1"}`, `{"key_name":"\"}`, `{"key_name":"\\"`, `{"key_name":"\`, `{"key_name":"\u`,
		"{\"key_name\":\"a\nb\"}", "{\"key_name\":\"a\tb\"}", "{\"key_name\":\"a\x00b\"}", "{\"key_name\":\"a\x1fb\"}", "{\"key_\nname\":\"k\"}", "{\"\xff\":1}", "{\"\\ud800\":1}",
		"{\v}", "{\f}", "{\u00a0}", "{\u2028}", "\u00a0{}", "{\"key_name\"\u00a0:\"k\"}", `<key_name>k</key_name>`, `key_name=k&env=live`, "\xff\xfe{\x00}\x00", "\x1f\x8b\x08\x00", `{"key_name":"k"}` + "\x1e", `a{"key_name":"k"}`, `({"key_name":"k"})`, `)]}'{"key_name":"k"}`,
	}
	for _, n := range []int{100, 2500} {
		list = append(list, strings.Repeat("[", n), strings.Repeat(`{"key_name":`, n/2), strings.Repeat(`{"`, n), strings.Repeat("{", n), strings.Repeat(`"`, n), strings.Repeat(",", n), strings.Repeat(`\`, n))
	}
	return list
}

// quote writes s as a JSON string, byte by byte, valid or not.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ':
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// percent encodes every byte of s for a URL.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, unicode.IsControl) || !utf8.ValidString(s)
}

// naughtyStrings are texts that have broken programs before.
func naughtyStrings() []string {
	return []string{
		"", " ", "\t", "null", "undefined", "true", "NaN", "0", "-1", "1e309", "0x0", "\\", `\\`, `"`, "'", "`", `\"`, "<script>alert(1)</script>", "<!--", "]]>", "&lt;", "&#0;",
		"' OR 1=1--", "1;DROP TABLE keys", "$1", "?", "%s%n%d", "%00", "\x00", "a\x00b", "../../etc/passwd", "..\\..\\x", "/dev/null", "C:\\con", "file:///etc/passwd", "http://169.254.169.254/",
		"${jndi:ldap://x}", "{{7*7}}", "$(id)", "`id`", "; ls", "| ls", "\r\nX-Injected: 1", "a\nb", "a\rb", "\x1b[31mred", "\x07", "\x7f", "\u0085", "\u00a0", "\u200b", "\u202ertl", "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff", "\U0010ffff",
		"Ω≈ç√∫", "田中さん", "🔑", "👩‍👩‍👧‍👦", "e\u0301", "Z̤͔ͧ̑̓a̴l̥ͯ̾g", "ﷺ", "İıſK", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80", strings.Repeat("é", 128), strings.Repeat("x", 256), strings.Repeat("🔑", 300), strings.Repeat("\\", 512),
		"key_", "key_00000000000000000000000000", "sk_", "sk_live_", "sk_test_x", "Bearer ", "Basic Og==", "eyJhbGciOiJub25lIn0.e30.", "a,b", "a;b=c", "=", "&", "#", "*", "application/json;charset=utf-8;charset=utf-16", `"unclosed`, `"a";p=1`,
	}
}
