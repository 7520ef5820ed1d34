package main

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
)

// startDev starts dev on free ports in a folder and waits for its last printed line.
func startDev(t *testing.T, dir string, flags ...string) *keywardtest.Process {
	t.Helper()
	p := keywardtest.Run(t, keywardtest.Options{Dir: dir, Args: append([]string{
		"dev", "--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--payments-listen=127.0.0.1:0",
	}, flags...)})
	return p
}

// shellLines returns what dev printed for a shell: each title with the lines below it.
func shellLines(t *testing.T, printed string) (titles []string, lines map[string][]string) {
	t.Helper()
	_, block, found := strings.Cut(printed, "Paste into another shell, in order:\n")
	if !found {
		t.Fatalf("no lines to paste in:\n%s", printed)
	}
	lines = map[string][]string{}
	for line := range strings.Lines(block) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "# "):
			titles = append(titles, strings.TrimPrefix(line, "# "))
		case strings.HasPrefix(line, "The data is in"):
			return titles, lines
		case line != "":
			last := titles[len(titles)-1]
			lines[last] = append(lines[last], line)
		}
	}
	t.Fatal("the printed block has no end")
	return nil, nil
}

// paste runs the printed block in one shell, as it is, and returns the output below each title.
func paste(t *testing.T, printed string) (titles []string, output map[string]string) {
	t.Helper()
	titles, lines := shellLines(t, printed)
	var script strings.Builder
	for _, title := range titles {
		script.WriteString("echo '== " + title + "'\n")
		script.WriteString("# " + title + "\n") // as pasted
		script.WriteString(strings.Join(lines[title], "\n") + "\n")
	}
	cmd := exec.Command("sh")
	cmd.Stdin = strings.NewReader(script.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sh: %v\n%s", err, out)
	}
	output = map[string]string{}
	for part := range strings.SplitSeq(string(out), "== ") {
		if title, text, ok := strings.Cut(part, "\n"); ok {
			output[title] = strings.TrimSpace(text)
		}
	}
	return titles, output
}

// R1: dev starts everything; each printed line, pasted in order, does what it says; Ctrl-C stops
// it; started again it goes on with the same data.
func TestR1Dev(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, devFolder)
	p := startDev(t, dir)
	p.WaitOutput(t, `Ctrl-C stops\.`)

	t.Run("only the owner can read the data", func(t *testing.T) {
		err := filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			want := fs.FileMode(0o600)
			if e.IsDir() {
				want = 0o700
			}
			if info.Mode().Perm() != want {
				t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})

	titles, output := paste(t, p.Stdout())
	want := []string{"Sign in", "Create a key", "List the keys", "Verify it", "Pay with it", "Revoke it", "Pay again"}
	var got []string
	for i, title := range titles {
		if i < len(want) && strings.HasPrefix(title, want[i]) {
			title = want[i]
		}
		got = append(got, title)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("steps (-want +got):\n%s", diff)
	}
	text := func(step string) string {
		for _, title := range titles {
			if strings.HasPrefix(title, step) {
				return output[title]
			}
		}
		t.Fatalf("no step %s", step)
		return ""
	}

	key := decode[api.IssuedKey](t, text("Create a key"))
	if key.Env != "live" || !strings.HasPrefix(key.Key, "sk_live_") {
		t.Errorf("created a key of environment %s", key.Env)
	}
	if list := decode[api.KeyList](t, text("List the keys")); len(list.Keys) != 1 || list.Keys[0].APIKeyID != key.APIKeyID || !list.Keys[0].IsActive {
		t.Errorf("listed %+v, want the one key", list)
	}
	if v := decode[api.Verdict](t, text("Verify it")); !v.Valid || v.APIKeyID != key.APIKeyID || v.OrganizationID != demoOrganization {
		t.Errorf("verdict %+v", v)
	}
	payment := text("Pay with it")
	for _, member := range []string{`"status":"succeeded"`, `"env":"live"`, `"organization_id":"org_demo"`, `"amount":4200`} {
		if !strings.Contains(payment, member) {
			t.Errorf("the payment has no %s: %s", member, payment)
		}
	}
	if r := decode[api.RevokedKey](t, text("Revoke it")); r.Status != "revoked" || r.APIKeyID != key.APIKeyID {
		t.Errorf("revoked %+v", r)
	}
	var refused api.Problem
	if err := json.Unmarshal([]byte(text("Pay again")), &refused); err != nil || refused.Status != 401 {
		t.Errorf("paying again: %s", text("Pay again"))
	}

	t.Run("addresses", func(t *testing.T) {
		for _, pattern := range []string{`Management +(\S+)`, `Docs +(\S+)`} {
			url := regexp.MustCompile(pattern).FindStringSubmatch(p.Stdout())[1]
			if strings.HasPrefix(pattern, "Management") {
				url += "/openapi.json"
			}
			if resp, _ := request(t, "GET", url, "", ""); resp.StatusCode != 200 {
				t.Errorf("GET %s: %d", url, resp.StatusCode)
			}
		}
	})

	t.Run("organizations", func(t *testing.T) {
		admin := regexp.MustCompile(`Admin +(\S+)`).FindStringSubmatch(p.Stdout())[1]
		_, body := request(t, "GET", admin+"/v1/organizations", "", "")
		got := map[string]string{}
		for _, o := range decode[api.OrganizationList](t, body).Organizations {
			got[o.OrganizationID] = o.CurrentEnv
			if o.ParentOrganizationID != nil {
				got[o.OrganizationID] = "of " + *o.ParentOrganizationID
			}
		}
		want := map[string]string{demoOrganization: "live", sandboxOrganization: "test", connectedOrganization: "of " + demoOrganization}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("organizations (-want +got):\n%s", diff)
		}
	})

	p.Signal(t, syscall.SIGINT)
	if code := p.Wait(t); code != 0 {
		t.Fatalf("Ctrl-C: exit code %d", code)
	}
	if p.Stderr() != "" {
		t.Errorf("dev wrote to the standard error:\n%s", p.Stderr())
	}

	second := startDev(t, dir)
	second.WaitOutput(t, `Ctrl-C stops\.`)
	titles, output = paste(t, second.Stdout()) // at once: the minute between two keys of a user is no obstacle
	fresh := decode[api.IssuedKey](t, text("Create a key"))
	ids := map[string]bool{}
	for _, k := range decode[api.KeyList](t, text("List the keys")).Keys {
		ids[k.APIKeyID] = true
	}
	if !ids[key.APIKeyID] || !ids[fresh.APIKeyID] {
		t.Errorf("after a new start the list has %v, want the old key %s and the new one %s", ids, key.APIKeyID, fresh.APIKeyID)
	}
	second.Stop(t)
}

// R1: an active key of an earlier run is revoked by the first printed line after the sign-in, so
// that the others work.
func TestR1DevActiveKey(t *testing.T) {
	dir := t.TempDir()
	for run, steps := range []string{"Sign in|Create a key", "Sign in|Revoke the key of an earlier run|Create a key"} {
		p := startDev(t, dir)
		p.WaitOutput(t, `Ctrl-C stops\.`)
		// Paste everything up to the creation, and stop there.
		head, _, _ := strings.Cut(p.Stdout(), "\n# List the keys")
		titles, output := paste(t, head+"\nThe data is in")
		if !regexp.MustCompile("^" + strings.ReplaceAll(steps, "|", "[^|]*\\|") + "[^|]*$").MatchString(strings.Join(titles, "|")) {
			t.Fatalf("run %d: steps %q, want %s", run, titles, steps)
		}
		for title, text := range output {
			if strings.HasPrefix(title, "Create a key") {
				if k := decode[api.IssuedKey](t, text); k.Env != "live" {
					t.Errorf("run %d: created %+v", run, k.Env)
				}
			}
		}
		if code := p.Stop(t); code != 0 {
			t.Fatalf("run %d: exit code %d", run, code)
		}
	}
}

// R1: an org_demo that may manage no keys is no reason not to start: one line says what is the matter,
// and its command undoes it.
func TestR1DevOrganizationChanged(t *testing.T) {
	dir := t.TempDir()
	keyward := func(server string, args ...string) {
		t.Helper()
		p := keywardtest.Run(t, keywardtest.Options{Dir: dir, Args: args, Env: []string{"KEYWARD_SERVER=" + server}})
		if code := p.Wait(t); code != 0 {
			t.Fatalf("%v: exit code %d, %s", args, code, p.Stderr())
		}
	}
	start := func() (*keywardtest.Process, greeting) {
		t.Helper()
		p := startDev(t, dir, "--output=json")
		p.WaitOutput(t, `(?s)"steps":.*\n}`)
		return p, decode[greeting](t, p.Stdout())
	}
	for _, test := range []struct {
		name    string
		changes [][]string
		want    string
	}{
		{"switched off", [][]string{{"org", "disable", demoOrganization}}, "org_demo is switched off; "},
		{"a connected account", [][]string{
			{"org", "update", connectedOrganization, "--no-parent"},
			{"org", "update", demoOrganization, "--parent", connectedOrganization},
		}, "org_demo is a connected account and manages no keys; "},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, g := start()
			if g.Trouble != "" {
				t.Errorf("before: %s", g.Trouble)
			}
			for _, change := range test.changes {
				keyward(g.Admin, change...)
			}
			p.Stop(t)

			p, g = start()
			why, command, _ := strings.Cut(g.Trouble, "undo that with: keyward ")
			if why != test.want {
				t.Fatalf("trouble %q, want %q before the command", g.Trouble, test.want)
			}
			var plain strings.Builder
			if err := g.print(newTerminal(nil, strings.NewReader(""), &plain, io.Discard)); err != nil || strings.Count(plain.String(), "\n"+g.Trouble+"\n") != 1 {
				t.Errorf("%v, not a line of\n%s", err, plain.String())
			}
			keyward("http://127.0.0.1:1", strings.Fields(command)...)
			_, body := request(t, "GET", g.Admin+"/v1/organizations/"+demoOrganization, "", "")
			o := decode[api.Organization](t, body)
			if !o.IsActive || o.ParentOrganizationID != nil || !o.PaymentsEnabled || o.Name != demoName {
				t.Errorf("after the command: %+v", o)
			}
			p.Stop(t)
		})
	}
}

// R1: a busy port, and a second start in the same folder, get one clear line each.
func TestR1DevBusy(t *testing.T) {
	dir := t.TempDir()
	first := startDev(t, dir, "--output=json")
	first.WaitOutput(t, `(?s)"steps":.*\n}`)
	var g greeting
	if err := json.Unmarshal([]byte(first.Stdout()), &g); err != nil {
		t.Fatal(err)
	}
	busy := strings.TrimPrefix(g.Payments, "http://")
	p := keywardtest.Run(t, keywardtest.Options{Args: []string{"dev", "--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--payments-listen=" + busy}})
	if code := p.Wait(t); code != 1 || !regexp.MustCompile(`^keyward: \S+ is in use by another program: .*--payments-listen\n$`).MatchString(p.Stderr()) {
		t.Errorf("busy port: exit code %d, %q", code, p.Stderr())
	}
	p = startDev(t, dir)
	if code := p.Wait(t); code != 1 || !strings.Contains(p.Stderr(), "another process has this database open") || strings.Count(p.Stderr(), "\n") != 1 {
		t.Errorf("same folder: exit code %d, %q", code, p.Stderr())
	}
	p = keywardtest.Run(t, keywardtest.Options{Args: []string{"dev", "--admin-listen=0.0.0.0:0"}})
	if code := p.Wait(t); code != 2 || !strings.Contains(p.Stderr(), "must be on loopback") {
		t.Errorf("open admin listener: exit code %d, %q", code, p.Stderr())
	}
	if _, err := os.Stat(filepath.Join(p.Dir, devFolder)); err == nil {
		t.Error("a folder was made for settings that are refused")
	}
	p = keywardtest.Run(t, keywardtest.Options{Args: []string{"dev", "--listen=127.0.0.1:9", "--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--payments-listen=127.0.0.1:9"}})
	if code := p.Wait(t); code != 2 || p.Stderr() != "keyward: --listen and --payments-listen: must not be the same address\n" {
		t.Errorf("one address twice: exit code %d, %q", code, p.Stderr())
	}
	first.Stop(t)
}
