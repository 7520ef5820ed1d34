package defect

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// module makes one with a program that prints a sum and a file it embeds, and works in it until the test ends.
func module(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.com/sum\n\ngo 1.26\n",
		"sum/sum.go": "package sum\n\nimport _ \"embed\"\n\n//go:embed name.sql\nvar Name string\n\n" +
			"func Sum(a, b int) int { return a + b }\n\nfunc Twice(a int) int { return 2 * a }\n",
		"sum/name.sql":    "the sum",
		"sum/sum_test.go": "package sum\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif Sum(1, 2) != 3 {\n\t\tt.Error(Sum(1, 2))\n\t}\n}\n",
		"main.go":         "package main\n\nimport \"example.com/sum/sum\"\n\nfunc main() { print(sum.Name, \" \", sum.Sum(1, 2), \" \", sum.Twice(2)) }\n",
	} {
		path := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(folder, "sum")) // as a test of that package
	return folder
}

// The program and the tests are built with the defects, several in one file too, and the tree stays as it was.
func TestOverlay(t *testing.T) {
	folder := module(t)
	command := func(arguments ...string) (string, error) {
		c := exec.Command("go", arguments...)
		c.Dir = folder
		out, err := c.CombinedOutput()
		return string(out), err
	}
	const program = "bin/program"
	printed := func(arguments ...string) string {
		t.Helper()
		if out, err := command(append([]string{"build", "-o", program}, append(arguments, ".")...)...); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		out, err := exec.Command(filepath.Join(folder, program)).CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	overlay := Overlay(t,
		Defect{"adds wrongly", "sum/sum.go", "return a + b", "return a - b"},
		Defect{"doubles wrongly", "sum/sum.go", "2 * a", "3 * a"},
		Defect{"says it wrongly", "sum/name.sql", "sum", "difference"},
	)
	if got, want := printed("-overlay", overlay), "the difference -1 6"; got != want {
		t.Errorf("with the defects the program prints %q, want %q", got, want)
	}
	if out, err := command("test", "-overlay", overlay, "./sum"); err == nil || !strings.Contains(out, "--- FAIL: TestSum") {
		t.Errorf("go test with the defects: %v\n%s", err, out)
	}
	if got, want := printed(), "the sum 3 4"; got != want {
		t.Errorf("without them the program prints %q, want %q", got, want)
	}
	if out, err := command("test", "./sum"); err != nil {
		t.Errorf("go test without them: %v\n%s", err, out)
	}
}

// A defect that does not fit the source is an error, not a program without a defect.
func TestDefectsThatDoNotFit(t *testing.T) {
	root := module(t)
	for _, test := range []struct {
		name    string
		defects []Defect
		want    string
	}{
		{"none", nil, "no defect is given"},
		{"no such file", []Defect{{"d", "sum/product.go", "a", "b"}}, "product.go"},
		{"not there", []Defect{{"d", "sum/sum.go", "return a * b", "return 0"}}, "occurs 0 times"},
		{"there twice", []Defect{{"d", "sum/sum.go", "return", "panic"}}, "occurs 2 times"},
		{"taken away by another", []Defect{{"d", "sum/sum.go", "a + b", "a - b"}, {"e", "sum/sum.go", "a + b", "a"}}, `"e": its old text occurs 0 times`},
		{"the same text", []Defect{{"d", "sum/sum.go", "a + b", "a + b"}}, "changes nothing"},
		{"no text", []Defect{{"d", "sum/sum.go", "", "x"}}, "changes nothing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := write(root, t.TempDir(), test.defects); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q in it", err, test.want)
			}
		})
	}
}
