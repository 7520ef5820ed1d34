package server

import "github.com/syncgram/keyward/internal/keys"

// nullable is a string member where null says something else than absence: remove the value (C30).
type nullable struct {
	given bool
	null  bool
	text  string
}

// pointer is nil when the member is absent, and empty when it is null.
func (n *nullable) pointer() *string {
	if !n.given {
		return nil
	}
	return &n.text
}

func (p *parser) nullable(name string, into *nullable) error {
	into.given = true
	if into.null = p.word("null"); into.null {
		return nil
	}
	var err error
	into.text, err = p.text()
	return textFault(name, err)
}

// nested is a member that is an object itself and holds no further one.
type nested struct {
	given  bool
	fields []field
}

func (p *parser) nested(name string, into *nested) error {
	if p.i == len(p.b) || p.b[p.i] != '{' {
		return keys.Invalid(name, name+" must be an object.")
	}
	into.given = true
	return p.object(into.fields)
}

// texts is a member that is an array of strings; nil when it is absent.
type texts []string

func (p *parser) texts(name string, into *texts) error {
	if !p.take('[') {
		return keys.Invalid(name, name+" must be an array of strings.")
	}
	*into = texts{}
	p.space()
	for first := true; !p.take(']'); first = false {
		if !first {
			if !p.take(',') {
				return malformed()
			}
			p.space()
		}
		s, err := p.text()
		if err != nil {
			return keys.Invalid(name, name+" must be an array of strings.")
		}
		*into = append(*into, s)
		p.space()
	}
	return nil
}
