package doors

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// V4: the package as npm packs it is right for CommonJS, ES modules and bundlers: publint and
// arethetypeswrong accept every entry point, and programs of each kind compile and run.
func TestV4TypeScriptPackage(t *testing.T) {
	dir := installed(t)
	dist := t.TempDir()
	if err := npm(dir, "pack", "--pack-destination", dist); err != nil {
		t.Fatal(err)
	}
	packed, err := filepath.Glob(filepath.Join(dist, "*.tgz"))
	if err != nil || len(packed) != 1 {
		t.Fatalf("packed %q: %v", packed, err)
	}
	bin := func(name string) string { return filepath.Join(dir, "node_modules/.bin", name) }
	t.Run("publint", func(t *testing.T) { run(t, dir, bin("publint"), "--strict", packed[0]) })
	t.Run("attw", func(t *testing.T) {
		run(t, dir, bin("attw"), "--profile", "strict", "--format", "ascii", packed[0])
	})

	// A project beside the client, with the package as it is installed from the registry.
	project := t.TempDir()
	client := filepath.Join(project, "node_modules/@keyward/client")
	if err := os.MkdirAll(client, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, project, "tar", "-xzf", packed[0], "-C", client, "--strip-components=1")
	for _, name := range []string{"@types", "fastify", "hono"} {
		from := filepath.Join(dir, "node_modules", name)
		if err := os.Symlink(from, filepath.Join(project, "node_modules", name)); err != nil {
			t.Fatal(err)
		}
	}
	app, err := os.ReadFile(filepath.Join(dir, "consumers/app.ts"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files              []string
		module, resolution string
		runs               bool // what the compiler writes is for Node
	}{
		"Node":                    {[]string{"app.cts", "app.mts"}, "Node16", "Node16", true},
		"CommonJS as jest has it": {[]string{"app.ts"}, "CommonJS", "Node10", true},
		"a bundler":               {[]string{"app.ts"}, "ESNext", "Bundler", false},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := os.MkdirTemp(project, "app-")
			if err != nil {
				t.Fatal(err)
			}
			config, err := json.Marshal(map[string]any{
				"compilerOptions": map[string]any{
					"module": c.module, "moduleResolution": c.resolution, "target": "ES2022",
					"lib": []string{"ES2022", "DOM"}, "types": []string{"node"},
					"strict": true, "esModuleInterop": true, "skipLibCheck": true, "outDir": "out",
				},
				"files": c.files,
			})
			if err != nil {
				t.Fatal(err)
			}
			written := map[string][]byte{"tsconfig.json": config, "package.json": []byte(`{}`)}
			for _, f := range c.files {
				written[f] = app
			}
			for file, text := range written {
				if err := os.WriteFile(filepath.Join(at, file), text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			run(t, at, bin("tsc"), "--project", ".")
			if !c.runs {
				return
			}
			for _, f := range c.files {
				script := filepath.Join("out", strings.Replace(f, "ts", "js", 1))
				if out := run(t, at, "node", script); !strings.Contains(out, "used every entry point") {
					t.Errorf("%s: %s", f, out)
				}
			}
		})
	}
	t.Run("both at once", func(t *testing.T) {
		both := filepath.Join(project, "both.mjs")
		if err := copyFile(filepath.Join(dir, "consumers/both.mjs"), both); err != nil {
			t.Fatal(err)
		}
		if out := run(t, project, "node", "both.mjs"); !strings.Contains(out, "used both") {
			t.Errorf("%s", out)
		}
	})
}

// run runs a program and returns what it said. It fails the test when the program does.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}
