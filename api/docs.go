package api

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed docs
var docsFiles embed.FS

// Docs returns the page at /docs: the OpenAPI document rendered as HTML. It refers to
// /docs/style.css and /docs/docs.js and holds no inline style or script, so that it works under a
// content security policy without exceptions.
func Docs() []byte { return bytes.Clone(renderedDocs()) }

// docsPolicy allows the page its own style, script and nothing else.
const docsPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// DocsHandler serves /docs, /docs/style.css, /docs/docs.js, /openapi.json and /openapi.yaml to GET and
// HEAD. Clients may keep them and ask whether they changed (ETag). Mount it on these five paths;
// to any other it answers 404 without a body.
func DocsHandler() http.Handler {
	type file struct {
		contentType string
		content     []byte
		etag        string
	}
	read := func(name string) []byte {
		b, err := docsFiles.ReadFile(name)
		if err != nil {
			panic("api: " + err.Error()) // embedded at build time
		}
		return b
	}
	files := make(map[string]file)
	for path, f := range map[string]file{
		"/docs":           {contentType: "text/html; charset=utf-8", content: renderedDocs()},
		"/docs/style.css": {contentType: "text/css; charset=utf-8", content: read("docs/style.css")},
		"/docs/docs.js":   {contentType: "text/javascript; charset=utf-8", content: read("docs/docs.js")},
		"/openapi.json":   {contentType: "application/json", content: openapiJSON},
		"/openapi.yaml":   {contentType: "application/yaml", content: openapiYAML},
	} {
		f.etag = etagOf(f.content)
		files[path] = f
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := files[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if address := serverAddress(r); address != "" && strings.HasPrefix(r.URL.Path, "/openapi.") {
			f.content = withServer(f.content, address)
			f.etag = etagOf(f.content)
		}
		h := w.Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", f.etag)
		h.Set("Content-Security-Policy", docsPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		if matches(r.Header.Get("If-None-Match"), f.etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", f.contentType)
		h.Set("Content-Length", strconv.Itoa(len(f.content)))
		if r.Method != http.MethodHead {
			w.Write(f.content) // an error means the client has gone
		}
	})
}

func etagOf(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + hex.EncodeToString(sum[:12]) + `"`
}

// matches is the weak comparison of If-None-Match (RFC 9110 section 13.1.2). Our tags hold no comma.
func matches(header, etag string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

// renderedDocs renders the page once. Its input is embedded, so a failure is a fault of the
// build, which a test finds.
var renderedDocs = sync.OnceValue(func() []byte {
	t, err := template.New("page.html").Funcs(template.FuncMap{
		"prose": prose, "inline": inline, "json": highlightJSON, "shell": highlightShell, "lower": strings.ToLower,
	}).ParseFS(docsFiles, "docs/page.html")
	if err != nil {
		panic("api: " + err.Error())
	}
	document, err := parseNode(openapiJSON)
	if err != nil {
		panic("api: openapi.json: " + err.Error())
	}
	var b bytes.Buffer
	if err := t.Execute(&b, newPage(document)); err != nil {
		panic("api: " + err.Error())
	}
	return b.Bytes()
})

// page is what the template shows.
type page struct {
	Title, Version, Summary, Description string
	Sections                             []section
	Listeners                            []listener
	Codes                                []problemCode
}

type section struct{ ID, Title, Description string }

type listener struct {
	Name   string
	Groups []group
}

// group is the operations of one tag.
type group struct {
	ID, Name, Description string
	Operations            []*operation
}

type operation struct {
	ID, Method, Path, Summary, Description string
	Security                               []string
	Parameters                             []field
	Body                                   *body
	Successes                              []response
	Failures                               []response
	Samples                                []sample
}

type body struct {
	Type, Description string
	Required          bool
	Fields            []field
}

type response struct {
	Status, Meaning, Description, Type string
	Headers, Fields                    []field
	Codes                              []string
	Example                            string
}

// field is a member, a parameter or a header. Limits are its constraints in words. What is usual goes
// unsaid: that a member of a request may be left out, and that one of an answer is there.
type field struct {
	Name, In, Type, Description string
	Presence                    string // "required" in a request, "optional" in an answer, or empty
	Limits                      []string
	Fields                      []field
}

type sample struct{ Label, Source string }

// problemCode is one stable code, with the statuses it comes with.
type problemCode struct {
	Name, Meaning string
	Statuses      []string
}

func newPage(document *node) page {
	info := document.at("info")
	p := page{
		Title: info.text("title"), Version: info.text("version"),
		Summary: info.text("summary"), Description: info.text("description"),
	}
	for _, c := range info.at("x-conventions").items() {
		p.Sections = append(p.Sections, section{ID: slug(c.text("title")), Title: c.text("title"), Description: c.text("description")})
	}
	p.Listeners = []listener{{Name: "public"}, {Name: "verification"}, {Name: "admin"}}
	for _, tag := range document.at("tags").items() {
		for i := range p.Listeners {
			if l := &p.Listeners[i]; l.Name == tag.text("x-listener") {
				l.Groups = append(l.Groups, group{ID: slug(tag.text("name")), Name: tag.text("name"), Description: tag.text("description")})
			}
		}
	}
	statuses := make(map[string][]string)
	operations := make(map[string]*operation)
	for path, item := range document.at("paths").members() {
		for method, o := range item.members() {
			if o.text("operationId") == "" {
				continue // the servers of the path
			}
			op := newOperation(document, method, path, o)
			for _, failure := range op.Failures {
				for _, code := range failure.Codes {
					if !slices.Contains(statuses[code], failure.Status) {
						statuses[code] = append(statuses[code], failure.Status)
					}
				}
			}
			operations[op.ID] = op
			if same := operations[o.text("x-same-as")]; same != nil {
				same.Method = "any"
				continue
			}
			p.add(o.at("tags").items()[0].scalar(), op)
		}
	}
	for status, r := range document.at("x-everywhere", "responses").members() {
		for _, code := range newResponse(status, r).Codes {
			statuses[code] = append(statuses[code], status)
		}
	}
	for code, meaning := range document.at("components", "schemas", "Problem", "properties", "code", "x-enumDescriptions").members() {
		p.Codes = append(p.Codes, problemCode{Name: code, Meaning: meaning.scalar(), Statuses: statuses[code]})
	}
	return p
}

func (p *page) add(tag string, o *operation) {
	for i := range p.Listeners {
		for j := range p.Listeners[i].Groups {
			if g := &p.Listeners[i].Groups[j]; g.Name == tag {
				g.Operations = append(g.Operations, o)
			}
		}
	}
}

func newOperation(document *node, method, path string, o *node) *operation {
	op := &operation{
		ID: o.text("operationId"), Method: method, Path: path,
		Summary: o.text("summary"), Description: o.text("description"),
	}
	security := o.at("security")
	if security == nil {
		security = document.at("security")
	}
	for _, alternative := range security.items() {
		for scheme := range alternative.members() {
			if d := document.at("components", "securitySchemes", scheme).text("description"); !slices.Contains(op.Security, d) {
				op.Security = append(op.Security, d)
			}
		}
	}
	for _, parameter := range o.at("parameters").items() {
		if parameter.text("name") == "X-Request-Id" {
			continue // every operation has it; the conventions tell of it
		}
		f := newField(parameter.text("name"), parameter.at("schema"), parameter.flag("required"), true)
		f.In, f.Description = parameter.text("in"), parameter.text("description")
		op.Parameters = append(op.Parameters, f)
	}
	if b := o.at("requestBody"); b != nil {
		mediaType, media := b.at("content").first()
		op.Body = &body{
			Type: mediaType, Description: b.text("description"),
			Required: b.flag("required"), Fields: fieldsOf(media.at("schema"), true),
		}
	}
	for status, r := range o.at("responses").members() {
		if answer := newResponse(status, r); status < "400" {
			op.Successes = append(op.Successes, answer)
		} else {
			op.Failures = append(op.Failures, answer)
		}
	}
	for _, s := range o.at("x-codeSamples").items() {
		op.Samples = append(op.Samples, sample{s.text("label"), s.text("source")})
	}
	return op
}

func newResponse(status string, r *node) response {
	number, _ := strconv.Atoi(status)
	answer := response{Status: status, Meaning: http.StatusText(number), Description: r.text("description")}
	for name, h := range r.at("headers").members() {
		if name == "X-Request-Id" || name == "Cache-Control" {
			continue // on every answer
		}
		f := newField(name, h.at("schema"), h.flag("required"), false)
		f.Description = h.text("description")
		answer.Headers = append(answer.Headers, f)
	}
	mediaType, media := r.at("content").first()
	if media == nil {
		return answer
	}
	answer.Type = mediaType
	if strings.HasSuffix(mediaType, "problem+json") {
		for _, part := range media.at("schema", "allOf").items() {
			if code := part.at("properties", "code"); code != nil {
				answer.Codes = code.choices()
			}
		}
		return answer
	}
	answer.Fields = fieldsOf(media.at("schema"), false)
	if example := media.at("example"); example != nil {
		answer.Example = example.indented()
	}
	return answer
}

// fieldsOf lists the members of an object schema, allOf parts put together.
func fieldsOf(schema *node, request bool) []field {
	required := schema.at("required").values()
	parts := schema.at("allOf").items()
	for _, part := range parts {
		required = append(required, part.at("required").values()...)
	}
	if len(parts) > 0 {
		schema = parts[0]
		required = append(required, schema.at("required").values()...)
	}
	var fields []field
	for name, s := range schema.at("properties").members() {
		f := newField(name, s, slices.Contains(required, name), request)
		if request {
			f.Type = strings.TrimSuffix(f.Type, " or null") // the same as left out
		}
		if items := s.at("items"); items != nil {
			f.Fields = fieldsOf(items, request)
		}
		fields = append(fields, f)
	}
	return fields
}

func newField(name string, s *node, required, request bool) field {
	f := field{Name: name, Description: s.text("description")}
	f.Type, f.Limits = describe(s)
	switch {
	case required && request:
		f.Presence = "required"
	case !required && !request:
		f.Presence = "optional"
	}
	return f
}

// describe puts a schema's type and its constraints in words.
func describe(s *node) (typ string, limits []string) {
	types := s.at("type").values()
	if one := s.at("type").scalar(); one != "" {
		types = []string{one}
	}
	if alternatives := s.at("oneOf").items(); len(alternatives) > 0 {
		typ, limits := describe(alternatives[0])
		return typ + " or null", limits
	}
	switch {
	case s.text("format") == "date-time":
		typ = "time"
	case slices.Contains(types, "array"):
		typ, _ = describe(s.at("items"))
		typ = "list of " + typ + "s"
	case len(types) > 0:
		typ = types[0]
	}
	if slices.Contains(types, "null") {
		typ += " or null"
	}
	limit := func(format string, args ...any) { limits = append(limits, fmt.Sprintf(format, args...)) }
	if values := slices.DeleteFunc(s.at("enum").values(), func(v string) bool { return v == "null" }); len(values) > 0 {
		limit("one of %s", "`"+strings.Join(values, "`, `")+"`")
	}
	if value := s.text("const"); value != "" {
		limit("always `%s`", value)
	}
	low, high := s.text("minimum"), s.text("maximum")
	short, long := s.text("minLength"), s.text("maxLength")
	switch words := s.text("x-constraints"); {
	case words != "":
		limit("%s", words)
	case low != "" && high != "":
		limit("%s–%s", low, high)
	case low != "":
		limit("at least %s", low)
	case short != "" && long != "":
		limit("%s–%s characters", short, long)
	case long != "":
		limit("at most %s characters", long)
	}
	if value := s.text("default"); value != "" {
		limit("default `%s`", value)
	}
	return typ, limits
}

func slug(s string) string { return strings.ReplaceAll(strings.ToLower(s), " ", "-") }

var inlineMark = regexp.MustCompile("`([^`]+)`|\\*\\*([^*]+)\\*\\*")

// inline renders the little Markdown that descriptions use: code and strong text. Everything
// is escaped first.
func inline(s string) template.HTML {
	s = inlineMark.ReplaceAllStringFunc(template.HTMLEscapeString(s), func(m string) string {
		if code, ok := strings.CutPrefix(m, "`"); ok {
			return "<code>" + strings.TrimSuffix(code, "`") + "</code>"
		}
		return "<strong>" + strings.Trim(m, "*") + "</strong>"
	})
	return template.HTML(s)
}

// prose renders paragraphs, which a blank line parts.
func prose(s string) template.HTML {
	var b strings.Builder
	for paragraph := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		if paragraph != "" {
			b.WriteString("<p>" + string(inline(strings.ReplaceAll(paragraph, "\n", " "))) + "</p>\n")
		}
	}
	return template.HTML(b.String())
}

// The marks work on escaped text, in which a quote is &#34; and an apostrophe &#39;.
var (
	jsonMark  = regexp.MustCompile(`(&#34;.*?&#34;)(:?)|\b(true|false|null|-?\d+(?:\.\d+)?)\b`)
	shellMark = regexp.MustCompile(`&#39;(?s:.*?)&#39;|(?m)^curl\b|--[a-z-]+|\b(?:GET|POST|PUT)\b|https?://\S+`)
)

func highlightJSON(s string) template.HTML {
	return template.HTML(jsonMark.ReplaceAllStringFunc(template.HTMLEscapeString(s), func(m string) string {
		switch {
		case strings.HasSuffix(m, ":"):
			return `<span class="name">` + strings.TrimSuffix(m, ":") + `</span>:`
		case strings.HasPrefix(m, "&#34;"):
			return `<span class="text">` + m + `</span>`
		default:
			return `<span class="value">` + m + `</span>`
		}
	}))
}

func highlightShell(s string) template.HTML {
	return template.HTML(shellMark.ReplaceAllStringFunc(template.HTMLEscapeString(strings.TrimSpace(s)), func(m string) string {
		class := "value"
		switch {
		case m == "curl":
			class = "command"
		case strings.HasPrefix(m, "--"):
			class = "name"
		case strings.HasPrefix(m, "&#39;"):
			class = "text"
		}
		return `<span class="` + class + `">` + m + `</span>`
	}))
}
