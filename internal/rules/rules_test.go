// Package rules holds what no single package can test: which way the rooms may look, that
// no secret stands in the tree, and that every line of the contract has a test that names it.
package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/syncgram/keyward"

// root is the module's folder.
const root = "../.."

// mayImport says which rooms of this module each room may import. A room that is not listed
// may import none. Data flows one way: doors, verification, domain, store.
var mayImport = map[string][]string{
	"api":                           {},
	"token":                         {},
	"internal/credential":           {},
	"":                              {"api", "internal/credential"},
	"keywardgrpc":                   {"", "internal/credential"},
	"internal/failpoint":            {},
	"internal/logsink":              {},
	"internal/faultproxy":           {},
	"internal/secretfile":           {},
	"internal/seal":                 {"internal/secretfile"},
	"internal/fairqueue":            {},
	"internal/keys":                 {"api", "token", "internal/seal", "internal/failpoint", "internal/fairqueue"},
	"internal/verify":               {"token", "internal/keys"},
	"internal/sqlstore":             {"token", "internal/keys", "internal/seal", "internal/sqlstore/migrations"},
	"internal/identity":             {"internal/keys"},
	"internal/probe":                {"api", "token", "internal/keys", "internal/seal", "internal/verify"},
	"internal/door":                 {"api", "token", "internal/credential", "internal/keys", "internal/verify"},
	"internal/reload":               {},
	"internal/access":               {"api", "internal/keys"},
	"internal/extauthz":             {"api", "token", "internal/access", "internal/credential", "internal/keys", "internal/verify", "internal/door"},
	"internal/server":               {"api", "token", "internal/credential", "internal/access", "internal/door", "internal/keys", "internal/reload", "internal/verify", "internal/identity", "internal/failpoint", "internal/sqlstore"},
	"cmd/keyward":                   {"", "api", "token", "internal/keys", "internal/verify", "internal/identity", "internal/seal", "internal/secretfile", "internal/sqlstore", "internal/probe", "internal/server", "internal/extauthz", "internal/access", "internal/door", "internal/reload", "internal/logsink", "examples/payments/paymentsapi"},
	"examples/payments":             {"", "examples/payments/paymentsapi"},
	"examples/payments/paymentsapi": {""},
	"bench":                         {"api", "token", "internal/keys", "internal/seal", "internal/sqlstore", "internal/verify", "internal/access", "internal/server", "internal/extauthz", "internal/identity", "internal/pgtest"},
}

// testRooms are imported by tests alone.
var testRooms = []string{"internal/apitest", "internal/defect", "internal/pgtest", "internal/keywardtest", "internal/keys/keystest"}

// standardOnly are the rooms that clients import: they bring no library along.
var standardOnly = []string{"", "api", "token", "internal/credential"}

// goFile is one parsed source file.
type goFile struct {
	path, room string // relative to root, with slashes
	test       bool
	ast        *ast.File
	set        *token.FileSet
}

func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	walk(t, func(p string) {
		if !strings.HasSuffix(p, ".go") || strings.HasPrefix(p, "tools/") {
			return
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, filepath.Join(root, p), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		room := path.Dir(p)
		if room == "." {
			room = ""
		}
		files = append(files, goFile{p, room, strings.HasSuffix(p, "_test.go"), parsed, set})
	})
	if len(files) < 30 {
		t.Fatalf("only %d Go files found: the walk is broken", len(files))
	}
	return files
}

// walk visits every file of the tree but git's own and what a run leaves behind.
func walk(t *testing.T, visit func(p string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == ".keyward" || d.Name() == "node_modules" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.Type().IsRegular() {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			visit(filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The arrows of DESIGN.md.
func TestImportDirections(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test || slices.ContainsFunc(testRooms, func(r string) bool { return f.room == r || strings.HasPrefix(f.room, r+"/") }) {
			continue
		}
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			inModule := imported == module || strings.HasPrefix(imported, module+"/")
			room := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
			allowed, listed := mayImport[roomOf(f.room)]
			switch {
			case !listed:
				t.Errorf("%s: the room %q is not in the picture: add it to mayImport and DESIGN.md", f.path, f.room)
			case inModule && !slices.Contains(allowed, room):
				t.Errorf("%s imports %s: the arrows do not point that way", f.path, imported)
			case !inModule && strings.Contains(imported, ".") && slices.Contains(standardOnly, f.room):
				t.Errorf("%s imports %s: a leaf imports the standard library alone", f.path, imported)
			}
		}
	}
}

// roomOf folds the programs under bench into one room.
func roomOf(dir string) string {
	if strings.HasPrefix(dir, "bench/") {
		return "bench"
	}
	return dir
}

// V7: the plaintext leaves its wrapper in few, named places.
func TestRevealIsCalledInNamedPlaces(t *testing.T) {
	named := []string{
		"token/secret.go",
		"internal/server/management.go", // answers it once
		"internal/probe/probe.go",       // asks the nodes about it
	}
	seen := map[string]bool{}
	for _, f := range goFiles(t) {
		if f.test || slices.Contains(testRooms, f.room) || roomOf(f.room) == "bench" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Reveal" {
					seen[f.path] = true
					if !slices.Contains(named, f.path) {
						t.Errorf("%s calls Reveal", f.set.Position(n.Pos()))
					}
				}
			}
			return true
		})
	}
	for _, p := range named {
		if !seen[p] {
			t.Errorf("%s no longer calls Reveal: take it off the list", p)
		}
	}
}

// C11: secrets and ids come from the operating system's generator.
func TestNoPredictableRandomness(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, spec := range f.ast.Imports {
			if !f.test && strings.HasPrefix(spec.Path.Value, `"math/rand`) && !slices.Contains(testRooms, f.room) && roomOf(f.room) != "bench" {
				t.Errorf("%s imports %s", f.path, spec.Path.Value)
			}
		}
	}
}

// SQL is constants: no text is built into a statement.
func TestNoSQLIsBuilt(t *testing.T) {
	verbs := regexp.MustCompile(`(?i)^\s*(select|insert|update|delete|create|alter|drop)\s`)
	for _, f := range goFiles(t) {
		if f.test || f.room != "internal/sqlstore" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !strings.HasPrefix(s.Sel.Name, "Sprint") && !strings.HasPrefix(s.Sel.Name, "Append") {
				return true
			}
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && verbs.MatchString(text) {
					t.Errorf("%s builds a statement", f.set.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// Secrets are drawn in tests, never written down; the specification's sample is the one exception.
func TestNoSecretInTheTree(t *testing.T) {
	secret := regexp.MustCompile(`\b[a-z][a-z0-9]{0,15}_(live|test)_[0-9A-Za-z]{20,}`)
	const sample = "sk_live_a1b2c3d4e5f6g7h8i9j0"
	privateKey := regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}`)
	walk(t, func(p string) {
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range secret.FindAllString(string(b), -1) {
			if found != sample {
				t.Errorf("%s holds what a scanner takes for a secret: %.12s…", p, found)
			}
		}
		if privateKey.Match(b) {
			t.Errorf("%s holds a private key", p)
		}
	})
}

// contract is how many lines each part of the contract has.
var contract = map[string]int{"C": 28, "V": 7, "O": 1, "R": 6}

// Every line of the contract has a test that names it.
func TestEveryContractLineIsNamed(t *testing.T) {
	named := map[string]bool{}
	word := regexp.MustCompile(`\b(?:Test)?([CVOR])(\d{1,2})(?:–[CVOR]?(\d{1,2}))?`)
	walk(t, func(p string) {
		if !strings.HasSuffix(p, "_test.go") && !strings.HasSuffix(p, ".txtar") && !strings.HasPrefix(p, "internal/keys/keystest/") {
			return
		}
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			comment := strings.Contains(line, "//") || strings.HasPrefix(line, "#")
			if !strings.HasPrefix(line, "func Test") && (!comment || strings.HasPrefix(p, "internal/rules/")) {
				continue
			}
			for _, m := range word.FindAllStringSubmatch(line, -1) {
				from, _ := strconv.Atoi(m[2])
				to := from
				if m[3] != "" {
					to, _ = strconv.Atoi(m[3])
				}
				for n := from; n <= to; n++ {
					named[fmt.Sprint(m[1], n)] = true
				}
			}
		}
	})
	for part, lines := range contract {
		for n := 1; n <= lines; n++ {
			if line := fmt.Sprint(part, n); !named[line] {
				t.Errorf("no test names %s", line)
			}
		}
	}
}

// What DESIGN.md and THREATS.md say a test holds is held by a test of that name.
func TestDocumentsNameRealTests(t *testing.T) {
	defined := map[string]bool{}
	for _, f := range goFiles(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test {
				defined[fn.Name.Name] = true
			}
		}
	}
	name := regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	doors, err := filepath.Glob(filepath.Join(root, "docs/doors/*.md"))
	if err != nil || len(doors) == 0 {
		t.Fatal("no page of a door found: ", err)
	}
	docs := []string{"DESIGN.md", "THREATS.md", "README.md", "docs/operations.md", "docs/defects.md", "docs/nodes.md", "docs/histories.md", "docs/security.md"}
	for _, door := range doors {
		docs = append(docs, strings.TrimPrefix(filepath.ToSlash(door), root+"/"))
	}
	for _, doc := range docs {
		b, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(b), -1) {
			if !defined[m[1]] {
				t.Errorf("%s names %s, which does not exist", doc, m[1])
			}
		}
	}
}

// R2: the README's test command is what CI runs, and no test is skipped in silence.
func TestR2OneTestCommand(t *testing.T) {
	read := func(p string) string {
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if !strings.Contains(read("README.md"), "\n    ./test.sh\n") {
		t.Error("the README does not give the test command")
	}
	if !strings.HasSuffix(read(".ci/run"), "\nexec ./test.sh\n") {
		t.Error(".ci/run does not run the README's test command")
	}
	for _, f := range goFiles(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !strings.HasPrefix(s.Sel.Name, "Skip") {
				return true
			}
			t.Errorf("%s skips a test", f.set.Position(n.Pos()))
			return true
		})
	}
}
