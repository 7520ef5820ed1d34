package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// C28: no schema that an answer is made of is closed, so clients ignore what they do not know, and
// every one that a request is made of is.
func TestC28ResponseSchemasAreOpen(t *testing.T) {
	var document map[string]any
	if err := json.Unmarshal(JSON(), &document); err != nil {
		t.Fatal(err)
	}
	answers := walker{document: document, seen: map[string]bool{}, visit: func(where string, schema map[string]any) {
		for _, keyword := range []string{"additionalProperties", "unevaluatedProperties"} {
			if closed, ok := schema[keyword].(bool); ok && !closed {
				t.Errorf("%s says %s: false", where, keyword)
			}
		}
	}}
	requests := walker{document: document, seen: map[string]bool{}, visit: func(where string, schema map[string]any) {
		if schema["properties"] != nil && schema["additionalProperties"] != false {
			t.Errorf("%s lets any member through", where)
		}
	}}
	for path, item := range document["paths"].(map[string]any) {
		for method, raw := range item.(map[string]any) {
			operation, ok := raw.(map[string]any)
			if !ok {
				continue // the servers of the path
			}
			where := strings.ToUpper(method) + " " + path
			answers.walk(where+" responses", operation["responses"])
			if path != "/v1/introspect" { // RFC 6749 section 3.1: unknown parameters are ignored
				requests.walk(where+" requestBody", operation["requestBody"])
			}
		}
	}
	answers.walk("x-everywhere", document["x-everywhere"])
	if len(answers.seen) < 20 || len(requests.seen) < 8 {
		t.Errorf("%d and %d references were followed", len(answers.seen), len(requests.seen))
	}
}

// walker visits every object of a part of the document, through references, examples left out.
type walker struct {
	document map[string]any
	seen     map[string]bool
	visit    func(where string, object map[string]any)
}

func (w *walker) walk(where string, value any) {
	switch v := value.(type) {
	case []any:
		for i, item := range v {
			w.walk(fmt.Sprint(where, "/", i), item)
		}
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok && !w.seen[ref] {
			w.seen[ref] = true
			w.walk(ref, w.resolve(ref))
		}
		w.visit(where, v)
		for name, member := range v {
			if name != "example" && name != "examples" {
				w.walk(where+"/"+name, member)
			}
		}
	}
}

func (w *walker) resolve(ref string) any {
	var at any = w.document
	for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		at = at.(map[string]any)[step]
	}
	return at
}
