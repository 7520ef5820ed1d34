package server

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// maxBody is how many bytes a body may have (C6).
const maxBody = 16 << 10

// field is a member that a body may have and where its value goes: a *string, which stays empty when
// the member is absent or null, or a **string, **int64 or **bool, which then stay nil; see also
// nullable, nested and texts.
type field struct {
	name string
	into any
}

// bodies are buffers for bodies, one byte longer than a body may be. They are cleared after use,
// because a body may hold a secret.
var bodies = sync.Pool{New: func() any { return new([maxBody + 1]byte) }}

// readJSON reads the body into the fields (C6). With optional, no body at all is fine.
func (x *exchange) readJSON(optional bool, fields ...field) error {
	if optional && x.r.ContentLength == 0 {
		return nil
	}
	typeErr := jsonType(x.r.Header)
	if typeErr != nil && !optional {
		return typeErr
	}
	buf := bodies.Get().(*[maxBody + 1]byte)
	n, err := readBody(x.r, buf)
	defer func() {
		clear(buf[:n])
		bodies.Put(buf)
	}()
	switch {
	case optional && n == 0 && err == nil: // chunked, and empty
		return nil
	case typeErr != nil:
		return typeErr
	case err != nil:
		return err
	}
	return parseObject(buf[:n], fields)
}

// readBody fills buf from the body and returns its length.
func readBody(r *http.Request, buf *[maxBody + 1]byte) (n int, err error) {
	if r.ContentLength > maxBody {
		return 0, tooLarge()
	}
	for n <= maxBody {
		m, err := r.Body.Read(buf[n:])
		n += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, keys.Invalid("", "The body did not arrive whole.")
		}
	}
	if n > maxBody {
		return n, tooLarge()
	}
	return n, nil
}

func tooLarge() error {
	return &keys.Error{Code: api.BodyTooLarge, Detail: "The body must be at most 16 KiB."}
}

// jsonType refuses a body that does not say it is JSON in UTF-8.
func jsonType(h http.Header) error {
	return contentType(h, "application/json", "Send the body as Content-Type: application/json.")
}

func contentType(h http.Header, want, detail string) error {
	values, encoded := h["Content-Type"], len(h["Content-Encoding"]) > 0
	if len(values) == 1 && values[0] == want && !encoded {
		return nil
	}
	refusal := &keys.Error{Code: api.UnsupportedMediaType, Param: "Content-Type", Detail: detail}
	if len(values) != 1 || encoded {
		return refusal
	}
	got, params, err := mime.ParseMediaType(values[0])
	if err != nil || got != want {
		return refusal
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return refusal
		}
	}
	return nil
}

// parseObject reads one flat JSON object (RFC 8259) into the fields, in a single pass and more
// strictly than encoding/json does, which matches names in any case, lets the last duplicate win and repairs
// broken Unicode. Every body of the contract is flat, but for one member of one (see nested), so any other nested
// value is a wrong type and is never entered: depth costs nothing. The first fault is the one reported.
func parseObject(b []byte, fields []field) error {
	p := parser{b: b}
	p.space()
	if err := p.object(fields); err != nil {
		return err
	}
	p.space()
	if p.i != len(p.b) {
		return keys.Invalid("", "Something follows the JSON object in the body.")
	}
	return nil
}

// object reads an object into the fields.
func (p *parser) object(fields []field) error {
	if !p.take('{') {
		return malformed()
	}
	p.space()
	var seen uint64 // bit i: fields[i] was there
	for first := true; !p.take('}'); first = false {
		if !first {
			if !p.take(',') {
				return malformed()
			}
			p.space()
		}
		name, err := p.bytes()
		if err != nil {
			return malformed()
		}
		p.space()
		if !p.take(':') {
			return malformed()
		}
		p.space()
		i := 0
		for i < len(fields) && fields[i].name != string(name) {
			i++
		}
		if i == len(fields) {
			return unknownMember(string(name), fields)
		}
		if seen&(1<<i) != 0 {
			return keys.Invalid(fields[i].name, fields[i].name+" is there twice.")
		}
		seen |= 1 << i
		if err := p.value(fields[i]); err != nil {
			return err
		}
		p.space()
	}
	return nil
}

func malformed() error { return keys.Invalid("", "The body must be one JSON object in UTF-8.") }

func unknownMember(name string, fields []field) error {
	for _, f := range fields {
		if strings.EqualFold(f.name, name) {
			return keys.Invalid(plainName(name), "The body has a member with the wrong letter case: it is "+f.name+".")
		}
	}
	return keys.Invalid(plainName(name), "The body has a member that is not known here.")
}

// plainName is name when it may be said back: letters and underscores only, so that it is nobody's
// secret or token; else nothing.
func plainName(name string) string {
	if len(name) > 32 {
		return ""
	}
	for _, c := range []byte(name) {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return ""
		}
	}
	return name
}

// parser is a place in a JSON text.
type parser struct {
	b []byte
	i int
}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

func (p *parser) take(c byte) bool {
	if p.i < len(p.b) && p.b[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) word(w string) bool {
	if !bytes.HasPrefix(p.b[p.i:], []byte(w)) {
		return false
	}
	p.i += len(w)
	return true
}

// value reads the value of f.
func (p *parser) value(f field) error {
	if into, ok := f.into.(*nullable); ok {
		return p.nullable(f.name, into)
	}
	if p.word("null") {
		return nil
	}
	switch into := f.into.(type) {
	case *string:
		s, err := p.text()
		*into = s
		return textFault(f.name, err)
	case **string:
		s, err := p.text()
		*into = &s
		return textFault(f.name, err)
	case **int64:
		from := p.i
		for p.i < len(p.b) && strings.IndexByte("+-.0123456789Ee", p.b[p.i]) >= 0 {
			p.i++
		}
		n, ok := wholeNumber(p.b[from:p.i])
		if !ok {
			return keys.Invalid(f.name, f.name+" must be a whole number.")
		}
		*into = &n
	case **bool:
		v := p.word("true")
		if !v && !p.word("false") {
			return keys.Invalid(f.name, f.name+" must be true or false.")
		}
		*into = &v
	case *nested:
		return p.nested(f.name, into)
	case *texts:
		return p.texts(f.name, into)
	}
	return nil
}

// wholeNumber reads an integer as JSON writes it, without fraction, exponent or minus zero.
func wholeNumber(b []byte) (int64, bool) {
	digits := bytes.TrimPrefix(b, []byte("-"))
	if len(digits) == 0 || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}

// Faults of a string.
var (
	errNotText = errors.New("not a string")
	errUnicode = errors.New("not valid Unicode")
)

func textFault(name string, err error) error {
	switch {
	case errors.Is(err, errUnicode):
		return keys.Invalid(name, name+" must be valid Unicode.")
	case err != nil:
		return keys.Invalid(name, name+" must be a string.")
	}
	return nil
}

// text reads a string. It refuses what encoding/json would silently replace: invalid UTF-8 and half
// of a surrogate pair.
func (p *parser) text() (string, error) {
	b, err := p.bytes()
	return string(b), err
}

// bytes is text as a part of the body, where nothing in it is escaped.
func (p *parser) bytes() ([]byte, error) {
	if !p.take('"') {
		return nil, errNotText
	}
	rest := p.b[p.i:]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return nil, errNotText
	}
	if plain := rest[:end]; bytes.IndexByte(plain, '\\') < 0 {
		if err := checkText(plain); err != nil {
			return nil, err
		}
		p.i += end + 1
		return plain, nil
	}
	return p.escaped()
}

// checkText accepts what may stand in a string as it is.
func checkText(b []byte) error {
	ascii := true
	for _, c := range b {
		if c < ' ' {
			return errNotText
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if !ascii && !utf8.Valid(b) {
		return errUnicode
	}
	return nil
}

// escaped is text for strings that have escapes.
func (p *parser) escaped() ([]byte, error) {
	var out []byte
	for p.i < len(p.b) {
		run := p.b[p.i:]
		if n := bytes.IndexAny(run, `"\`); n >= 0 {
			run = run[:n]
		}
		if err := checkText(run); err != nil {
			return nil, err
		}
		out = append(out, run...)
		p.i += len(run)
		if p.take('"') {
			return out, nil
		}
		if !p.take('\\') || p.i == len(p.b) {
			return nil, errNotText
		}
		c := p.b[p.i]
		p.i++
		if c == 'u' {
			r, err := p.codePoint()
			if err != nil {
				return nil, err
			}
			out = utf8.AppendRune(out, r)
			continue
		}
		at := strings.IndexByte(`"\/bfnrt`, c)
		if at < 0 {
			return nil, errNotText
		}
		out = append(out, "\"\\/\b\f\n\r\t"[at])
	}
	return nil, errNotText
}

// codePoint reads what follows \u, and the second half of a pair.
func (p *parser) codePoint() (rune, error) {
	r, ok := p.hex()
	if !ok {
		return 0, errNotText
	}
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	if !p.word(`\u`) {
		return 0, errUnicode
	}
	low, ok := p.hex()
	if !ok {
		return 0, errNotText
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, errUnicode
	}
	return r, nil
}

func (p *parser) hex() (rune, bool) {
	if len(p.b)-p.i < 4 {
		return 0, false
	}
	var r rune
	for _, c := range p.b[p.i : p.i+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	p.i += 4
	return r, true
}
