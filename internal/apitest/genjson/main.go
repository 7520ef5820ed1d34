// Command genjson writes api/openapi.json from api/openapi.yaml. `go generate ./api` runs it; a
// test holds the two files together.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"gopkg.in/yaml.v3"
)

func main() {
	if err := run("openapi.yaml", "openapi.json"); err != nil {
		fmt.Fprintln(os.Stderr, "genjson:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	source, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	converted, err := convert(source)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return os.WriteFile(to, converted, 0o644)
}

// convert turns a YAML document into indented JSON whose members keep the order they
// are written in. Anchors, merge keys and tags that JSON has no form for are errors.
func convert(source []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(source, &document); err != nil {
		return nil, err
	}
	if document.Kind != yaml.DocumentNode {
		return nil, fmt.Errorf("no document")
	}
	var compact, indented bytes.Buffer
	if err := write(&compact, document.Content[0]); err != nil {
		return nil, err
	}
	if err := json.Indent(&indented, compact.Bytes(), "", " "); err != nil {
		return nil, err
	}
	indented.WriteByte('\n')
	return indented.Bytes(), nil
}

func write(w *bytes.Buffer, n *yaml.Node) error {
	if n.Anchor != "" {
		return fmt.Errorf("line %d: an anchor; use a $ref", n.Line)
	}
	switch n.Kind {
	case yaml.MappingNode:
		w.WriteByte('{')
		seen := make(map[string]bool)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" || seen[key.Value] {
				return fmt.Errorf("line %d: not a plain, unique member name", key.Line)
			}
			seen[key.Value] = true
			if i > 0 {
				w.WriteByte(',')
			}
			if err := writeValue(w, key.Value); err != nil {
				return err
			}
			w.WriteByte(':')
			if err := write(w, n.Content[i+1]); err != nil {
				return err
			}
		}
		w.WriteByte('}')
		return nil
	case yaml.SequenceNode:
		w.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				w.WriteByte(',')
			}
			if err := write(w, item); err != nil {
				return err
			}
		}
		w.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!str", "!!int", "!!float", "!!bool", "!!null":
			var v any
			if err := n.Decode(&v); err != nil {
				return err
			}
			return writeValue(w, v)
		}
		return fmt.Errorf("line %d: a value of tag %s; quote it", n.Line, n.Tag)
	default:
		return fmt.Errorf("line %d: an alias; use a $ref", n.Line)
	}
}

// writeValue encodes v without HTML escapes, which would only make the document hard to read.
func writeValue(w *bytes.Buffer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
