package api

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type schema struct {
	Required   []string
	Properties map[string]struct {
		Enum         []any
		Descriptions map[string]string `json:"x-enumDescriptions"`
	}
}

func schemas(t *testing.T) map[string]schema {
	t.Helper()
	var doc struct {
		Components struct{ Schemas map[string]schema }
	}
	if err := json.Unmarshal(JSON(), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Components.Schemas
}

// C28: each body has the same members in Go and in the document, and a member that Go always
// sends is required there.
func TestC28StructsMatchSchemas(t *testing.T) {
	tests := []struct {
		body    any
		request bool
	}{
		{CreateKey{}, true}, {RollKey{}, true}, {RevokeKey{}, true}, {VerifyKey{}, true}, {PutOrganization{}, true},
		{UpdateKey{}, true}, {UpdateOrganization{}, true}, {LookUpKey{}, true}, {KeyFilter{}, true}, {RevokeKeys{}, true},
		{DeletedOrganization{}, false}, {OperatorKey{}, false}, {OperatorKeyList{}, false}, {RevokeLine{}, false},
		{IssuedKey{}, false}, {KeyList{}, false}, {ListedKey{}, false}, {RevokedKey{}, false}, {Problem{}, false},
		{Verdict{}, false}, {Introspection{}, false}, {Organization{}, false}, {OrganizationList{}, false},
		{AuditEntry{}, false}, {AuditList{}, false}, {AuditVerification{}, false}, {Reseal{}, false},
		{Check{}, false}, {Status{}, false},
	}
	documented := schemas(t)
	for _, tt := range tests {
		typ := reflect.TypeOf(tt.body)
		t.Run(typ.Name(), func(t *testing.T) {
			var members, required []string
			for _, f := range reflect.VisibleFields(typ) {
				if f.Anonymous {
					continue
				}
				name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
				members = append(members, name)
				if options != "omitempty" {
					required = append(required, name)
				}
			}
			s := documented[typ.Name()]
			if diff := cmp.Diff(sorted(members), sortedKeys(s.Properties)); diff != "" {
				t.Errorf("members (-Go +document):\n%s", diff)
			}
			if diff := cmp.Diff(sorted(required), sorted(s.Required)); diff != "" {
				t.Errorf("required (-Go +document):\n%s", diff)
			}
		})
	}
}

// C25: the document lists and explains every code there is.
func TestC25CodesAreDocumented(t *testing.T) {
	code := schemas(t)["Problem"].Properties["code"]
	var documented []string
	for _, c := range code.Enum {
		documented = append(documented, c.(string))
	}
	want := sorted(declaredCodes(t))
	if diff := cmp.Diff(want, sorted(documented)); diff != "" {
		t.Errorf("codes (-Go +document):\n%s", diff)
	}
	if diff := cmp.Diff(want, sortedKeys(code.Descriptions)); diff != "" {
		t.Errorf("explained codes (-Go +document):\n%s", diff)
	}
	var outcomes []string
	for _, c := range schemas(t)["AuditEntry"].Properties["outcome"].Enum {
		outcomes = append(outcomes, c.(string))
	}
	if diff := cmp.Diff(sorted(append(slices.Clone(want), "done")), sorted(outcomes)); diff != "" {
		t.Errorf("audit outcomes (-Go +document):\n%s", diff)
	}
}

// declaredCodes reads the constants of codes.go.
func declaredCodes(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			for _, v := range spec.Values {
				code, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				codes = append(codes, code)
			}
		}
		return true
	})
	return codes
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return sorted(keys)
}
