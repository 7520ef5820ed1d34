package doors

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// setup is what the tests in test/ are told; see test/setup.ts.
type setup struct {
	Internal string              `json:"internal"`
	Token    string              `json:"token"`
	Open     string              `json:"open"`
	Public   string              `json:"public"`
	Frozen   string              `json:"frozen"`
	Secrets  keywardtest.Secrets `json:"secrets"`
	OpenLive string              `json:"open_live"`
	Doomed   []doomed            `json:"doomed"`
}

type doomed struct {
	Key      string `json:"key"`
	APIKeyID string `json:"api_key_id"`
	JWT      string `json:"jwt"`
}

// V4: the client, the middleware for each framework and an independent OAuth client, on Node against the real server. The types are
// those that the OpenAPI document gives.
func TestV4TypeScript(t *testing.T) {
	dir := installed(t)
	if err := npm(dir, "run", "generate"); err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadFile(typescript + "src/openapi.ts")
	if err != nil {
		t.Fatal(err)
	}
	generated, err := os.ReadFile(filepath.Join(dir, "src/openapi.ts"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(generated), string(committed)); diff != "" {
		t.Fatalf("src/openapi.ts is not what api/openapi.yaml gives; npm run generate, in clients/typescript (-want +got):\n%s", diff)
	}
	writeDocumented(t, dir)
	if err := npm(dir, "run", "build"); err != nil {
		t.Fatal(err)
	}

	const token = "a+token/of%the-internal:listener" // what form encoding changes
	tokens := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(tokens, []byte("other verify another-token-of-the-test\nservices verify,operate "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--credentials-file=" + tokens, "--lease=60s"}})
	open := keywardtest.Start(t, keywardtest.Options{Flags: []string{"--lease=60s"}}) // a machine that stands still for a while is no outage here
	s := setup{
		Internal: server.Verification, Token: token, Open: open.Verification, Public: server.Public, Frozen: frozen(t),
		Secrets: server.Issue(t, token), OpenLive: open.Issue(t, "").Live,
	}
	for _, organization := range []string{"org_doomed_1", "org_doomed_2", "org_doomed_3", "org_doomed_4"} {
		k := server.Create(t, organization)
		s.Doomed = append(s.Doomed, doomed{k.Key, k.APIKeyID, server.Token(t, "user_"+organization, organization)})
	}
	env, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	tests, err := filepath.Glob(filepath.Join(dir, "dist/test/*.test.js"))
	if err != nil || len(tests) != 3 {
		t.Fatalf("test files %q: %v", tests, err)
	}
	cmd := exec.Command("node", append([]string{"--test", "--test-reporter=spec"}, tests...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "KEYWARD_TEST="+string(env))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("node --test: %v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte(" skipped 0\n")) || bytes.Contains(out, []byte(" pass 0\n")) {
		t.Errorf("tests were skipped, or none ran:\n%s", out)
	}
}

// typescript is where the client is.
const typescript = "../../clients/typescript/"

// installed returns a folder with the client, as git has it, beside the OpenAPI document, with what it is developed with, and built. It
// is made once, and TestMain takes it away. The tree stays as it is.
func installed(t *testing.T) string {
	t.Helper()
	dir, err := install()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// installRoot is where install has put things, if it has.
var installRoot string

var install = sync.OnceValues(func() (dir string, err error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%w: these tests need Node 18 or newer with npm: sudo apt-get install nodejs npm", err)
		}
	}
	if installRoot, err = os.MkdirTemp("", "keyward-typescript-"); err != nil {
		return "", err
	}
	dir = filepath.Join(installRoot, "clients", "typescript")
	err = filepath.WalkDir(typescript, func(p string, d fs.DirEntry, err error) error {
		to := filepath.Join(dir, strings.TrimPrefix(p, typescript))
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == "dist"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		default:
			return copyFile(p, to)
		}
	})
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(installRoot, "api"), 0o755); err != nil {
		return "", err
	}
	if err := copyFile("../../api/openapi.yaml", filepath.Join(installRoot, "api/openapi.yaml")); err != nil {
		return "", err
	}
	if err := npm(dir, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"); err != nil {
		return "", err
	}
	return dir, npm(dir, "run", "build")
})

// express is where two payments APIs in Express are, behind the client's middleware: one for every key, one for live keys alone.
type express struct{ checked, live string }

// startExpress runs test/door.ts until the test ends. It asks the nodes at addresses.
func startExpress(p *platform, addresses []string) (x express) {
	p.t.Helper()
	p.expressOutput = keywardtest.NewOutput()
	config, err := json.Marshal(map[string]any{"addresses": addresses, "token": p.token})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("node", "dist/test/door.js")
	cmd.Dir = installed(p.t)
	cmd.Env = append(os.Environ(), "KEYWARD_DOOR="+string(config))
	cmd.SysProcAttr = keywardtest.DieWithParent(syscall.SIGKILL)
	cmd.Stderr = p.expressOutput
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	tooLong := time.AfterFunc(keywardtest.Patience, func() { _ = cmd.Process.Kill() })
	defer tooLong.Stop()
	if _, err := fmt.Fscanln(out, &x.checked, &x.live); err != nil {
		_ = cmd.Wait() // so that all it said is there
		p.t.Fatalf("test/door.ts: %v\n%s", err, p.expressOutput)
	}
	return x
}

func (p *platform) askExpress(r request, _ int) (answer, error) {
	base := p.express.checked
	if r.env != "" {
		base = p.express.live
	}
	return p.post(base+"/v1/payments"+r.query, r)
}

// writeDocumented puts the code blocks of the client's page beside the tests, for the compiler to judge.
func writeDocumented(t *testing.T, dir string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/doors/typescript.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```ts\n(.*?)```").FindAllSubmatch(page, -1)
	if len(blocks) != 4 {
		t.Fatalf("%d code blocks in the page, want one for the client and one for each framework", len(blocks))
	}
	for i, b := range blocks {
		if err := os.WriteFile(filepath.Join(dir, "test", fmt.Sprintf("documented_%d.ts", i)), b[1], 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

func npm(dir string, args ...string) error {
	cmd := exec.Command("npm", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// frozen is an address that takes connections and answers nothing, as a process that stands still does.
func frozen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

// A lock file that names where packages were found would send everybody there.
func TestLockFileNamesNoRegistry(t *testing.T) {
	lock, err := os.ReadFile(typescript + "package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(lock, []byte(`"resolved"`)) || !bytes.Contains(lock, []byte(`"integrity"`)) {
		t.Error("package-lock.json must have integrity and no resolved; .npmrc says so, npm install again")
	}
}
