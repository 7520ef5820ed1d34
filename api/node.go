package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
)

// node is a JSON value whose members keep their order. A nil node is a value that is not there, and
// every method works on it.
type node struct {
	root  *node
	names []string         // of an object, in order
	of    map[string]*node // an object's members
	list  []*node          // an array's items
	value string           // a scalar, as text
	kind  byte             // '{', '[', '"' for a string, 'v' for another scalar
}

// parseNode reads one JSON document.
func parseNode(document []byte) (*node, error) {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	root := &node{}
	root.root = root
	return root, root.read(d)
}

func (n *node) read(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case json.Delim:
		n.kind, n.of = byte(t), make(map[string]*node)
		for d.More() {
			child := &node{root: n.root}
			if n.kind == '{' {
				name, err := d.Token()
				if err != nil {
					return err
				}
				n.names = append(n.names, name.(string))
				n.of[name.(string)] = child
			} else {
				n.list = append(n.list, child)
			}
			if err := child.read(d); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	case string:
		n.kind, n.value = '"', t
	case nil:
		n.kind, n.value = 'v', "null"
	default:
		n.kind, n.value = 'v', fmt.Sprint(t)
	}
	return nil
}

// at follows names, and references on the way. What stands beside a $ref goes before what it refers
// to, as in JSON Schema 2020-12.
func (n *node) at(names ...string) *node {
	for _, name := range names {
		if n == nil {
			return nil
		}
		child, target := n.of[name], n.target()
		if child == nil && target != nil {
			child = target.at(name)
		}
		n = child
	}
	return n
}

// target is what the node's $ref points to, nil when it has none.
func (n *node) target() *node {
	if n == nil || n.of["$ref"] == nil {
		return nil
	}
	target := n.root
	for name := range strings.SplitSeq(strings.TrimPrefix(n.of["$ref"].value, "#/"), "/") {
		target = target.of[name]
	}
	return target
}

// members yields an object's members in order.
func (n *node) members() iter.Seq2[string, *node] {
	return func(yield func(string, *node) bool) {
		if target := n.target(); target != nil {
			n = target
		}
		if n == nil {
			return
		}
		for _, name := range n.names {
			if !yield(name, n.of[name]) {
				return
			}
		}
	}
}

// first is an object's first member.
func (n *node) first() (string, *node) {
	for name, child := range n.members() {
		return name, child
	}
	return "", nil
}

func (n *node) items() []*node {
	if n == nil {
		return nil
	}
	return n.list
}

// values are an array's items as text.
func (n *node) values() []string {
	var values []string
	for _, item := range n.items() {
		values = append(values, item.value)
	}
	return values
}

// choices are the values a schema allows by const or enum.
func (n *node) choices() []string {
	if one := n.text("const"); one != "" {
		return []string{one}
	}
	return n.at("enum").values()
}

func (n *node) scalar() string {
	if n == nil {
		return ""
	}
	return n.value
}

func (n *node) text(name string) string { return n.at(name).scalar() }

func (n *node) flag(name string) bool { return n.text(name) == "true" }

// indented is the value as JSON, two spaces a level.
func (n *node) indented() string {
	var b strings.Builder
	n.write(&b, "\n")
	return b.String()
}

func (n *node) write(b *strings.Builder, newline string) {
	inner := newline + "  "
	switch n.kind {
	case '{':
		for i, name := range n.names {
			b.WriteString([]string{"{", ","}[min(i, 1)] + inner + quote(name) + ": ")
			n.of[name].write(b, inner)
		}
		b.WriteString(newline + "}")
	case '[':
		if len(n.list) == 0 {
			b.WriteString("[]")
			return
		}
		for i, item := range n.list {
			b.WriteString([]string{"[", ","}[min(i, 1)] + inner)
			item.write(b, inner)
		}
		b.WriteString(newline + "]")
	case '"':
		b.WriteString(quote(n.value))
	default:
		b.WriteString(n.value)
	}
}

func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic("api: " + err.Error()) // a string always encodes
	}
	return strings.TrimSpace(b.String())
}
