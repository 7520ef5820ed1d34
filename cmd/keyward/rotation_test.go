package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
)

// deployment is nodes of one database, each with a master key file of its own.
type deployment struct {
	options keywardtest.Options
	nodes   []*keywardtest.Process
}

func newMasterKeyLine(t *testing.T, id string) string {
	t.Helper()
	line, err := seal.NewLine(id)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// file is a node's master key file.
func (d *deployment) file(node int) string {
	return filepath.Join(d.options.Dir, fmt.Sprintf("master-%d.key", node))
}

// give replaces a node's master key file in one step.
func (d *deployment) give(t *testing.T, node int, lines ...string) {
	t.Helper()
	if err := writePrivate(d.file(node), []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		t.Fatal(err)
	}
}

// start starts a node with the file it has.
func (d *deployment) start(t *testing.T, node int) *keywardtest.Process {
	t.Helper()
	o := d.options
	o.Flags = append(slices.Clone(o.Flags), "--master-key-file="+d.file(node))
	return keywardtest.Start(t, o)
}

// rotate asks a node for a rotation.
func rotate(t *testing.T, p *keywardtest.Process) (status int, body string) {
	t.Helper()
	resp, body := request(t, "POST", p.Admin+"/v1/master-key/rotate", "", "")
	return resp.StatusCode, body
}

// watch asks nodes about a good key until stop is called, which reports every answer that was not
// "valid".
func watch(t *testing.T, secret string, nodes ...*keywardtest.Process) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	wrong := map[string]int{}
	asked := 0
	var asking sync.WaitGroup
	for i, p := range nodes {
		asking.Go(func() {
			for ctx.Err() == nil {
				said := "no answer"
				r, _ := http.NewRequestWithContext(ctx, "POST", p.Verification+"/v1/verify", strings.NewReader(`{"key":"`+secret+`"}`))
				r.Header.Set("Content-Type", "application/json")
				if resp, err := http.DefaultClient.Do(r); err == nil {
					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					said = fmt.Sprintf("%d %.60s", resp.StatusCode, body)
				}
				mu.Lock()
				if asked++; !strings.HasPrefix(said, `200 {"valid":true`) && ctx.Err() == nil {
					wrong[fmt.Sprintf("node %d: %s", i, said)]++
				}
				mu.Unlock()
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	return func() {
		t.Helper()
		cancel()
		asking.Wait()
		if len(wrong) > 0 || asked == 0 {
			t.Errorf("a good key was not accepted: %v in %d answers", wrong, asked)
		}
	}
}

// R10: three nodes, whose files get the new key in the order documented and in wrong orders. No
// good key is ever rejected, no node closes, and a rotation that cannot be says which nodes lack
// the key.
func TestR10RotationOnManyNodes(t *testing.T) {
	t.Parallel()
	first, second, third := newMasterKeyLine(
		t,
		"k1",
	), newMasterKeyLine(
		t,
		"k2",
	), newMasterKeyLine(
		t,
		"k3",
	)
	d := &deployment{
		options: keywardtest.Options{
			Dir:         t.TempDir(),
			DatabaseURL: pgtest.URL(t),
			Flags:       []string{"--probe-every=0s"},
		},
	}
	for i := range 3 {
		d.give(t, i, first)
		d.nodes = append(d.nodes, d.start(t, i))
	}
	key := create(t, d.nodes[0], "ann", "org_a")
	stop := watch(t, key.Key, d.nodes...)

	// Too early: only the first node has the new key. Nothing is changed, and the answer names the
	// others.
	d.give(t, 0, second, first)
	status, body := rotate(t, d.nodes[0])
	if status != http.StatusConflict || !strings.Contains(body, `"master_key_missing"`) ||
		strings.Count(body, " does not have it.") != 2 {
		t.Errorf("a rotation too early: %d %s", status, body)
	}
	for _, p := range d.nodes[1:] {
		if address := strings.TrimPrefix(p.Verification, "http://"); !strings.Contains(body, address) {
			t.Errorf("%s is not named in %s", address, body)
		}
	}
	// The node that was given the new key first signs under the old one, which all have.
	for i, p := range d.nodes {
		if k := create(t, p, fmt.Sprint("bob", i), fmt.Sprint("org_b", i)); !verdict(
			t,
			d.nodes[(i+1)%3],
			k.Key,
		).Valid {
			t.Error("a key made beside a node with a new file is rejected")
		}
	}

	// The second gets the key behind the old one, the third at the front; neither is restarted.
	d.give(t, 1, first, second)
	d.give(t, 2, second, first)
	if status, body = rotate(t, d.nodes[1]); status != http.StatusOK ||
		!strings.Contains(body, `"master_key_id":"k1"`) {
		t.Errorf("a rotation by a node whose first key is the database's: %d %s", status, body)
	}
	status, body = rotate(t, d.nodes[0])
	if status != http.StatusOK {
		t.Fatalf("rotate: %d %s", status, body)
	}
	if r := decode[api.Reseal](t, body); r.MasterKeyID != "k2" ||
		!slices.Equal(r.RetireableKeyIDs, []string{"k1"}) ||
		r.RowsResealed == 0 {
		t.Errorf("%+v", r)
	}
	for i, p := range d.nodes {
		if k := create(t, p, fmt.Sprint("cid", i), fmt.Sprint("org_c", i)); !verdict(
			t,
			d.nodes[(i+1)%3],
			k.Key,
		).Valid {
			t.Error("a key made after the rotation is rejected")
		}
	}

	// The old key leaves the files, and then a file that lacks the new one is left alone by a
	// running node.
	for i := range d.nodes {
		d.give(t, i, second)
	}
	d.nodes[1].WaitLog(t, `the master keys were read again.*"keys":"k2"`)
	d.give(t, 1, first)
	d.nodes[1].WaitLog(
		t,
		`could not be read again; those in memory stay.*"k2\\"; put its line back`,
	)
	stop()
	for i, p := range d.nodes {
		for _, what := range []string{"not ready", "was not written by Keyward", "row was refused"} {
			if strings.Contains(p.Stderr(), what) {
				t.Errorf("node %d logged %q", i, what)
			}
		}
	}

	// A node that is restarted without the key waits, says so in one line, and serves as soon as it
	// has the key.
	stop = watch(t, key.Key, d.nodes[0], d.nodes[2])
	d.nodes[1].Stop(t)
	d.options.NotReady = true
	late := d.start(t, 1)
	late.WaitLog(t, `this node lacks a master key.*"master_key":"k2"`)
	if resp, _ := request(t, "POST", late.Verification+"/v1/verify", "", `{"key":"`+key.Key+`"}`); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without the key it answered %d", resp.StatusCode)
	}
	d.give(t, 1, third, second)
	late.WaitReady(t)
	if !verdict(t, late, key.Key).Valid {
		t.Error("a good key is rejected")
	}
	if n := strings.Count(late.Stderr(), "lacks a master key"); n != 1 ||
		strings.Contains(late.Stderr(), "not written by Keyward") {
		t.Errorf("%d lines about the missing key:\n%s", n, late.Stderr())
	}

	// Another key under an id that this deployment knows ends the process, in one line.
	for name, lines := range map[string][]string{
		"the database's":     {newMasterKeyLine(t, "k2")},
		"that of a new key":  {newMasterKeyLine(t, "k3"), second},
		"that of an old one": {second, newMasterKeyLine(t, "k1")},
	} {
		d.give(t, 3, lines...)
		o := d.options
		o.Args = append(keywardtest.ServeArgs(t, o), "--master-key-file="+d.file(3))
		p := keywardtest.Run(t, o)
		if code := p.Wait(t); code == 0 {
			t.Errorf("%s: exit code %d", name, code)
		}
		if n := strings.Count(p.Stderr(), "another master key under the same id"); n == 0 ||
			strings.Contains(p.Stderr(), "not written by Keyward") {
			t.Errorf("%s:\n%s", name, p.Stderr())
		}
	}
	stop()
	for _, p := range []*keywardtest.Process{d.nodes[0], late, d.nodes[2]} {
		if code := p.Stop(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// R7, R11: a master key command at start, for a rotation, and when it fails.
func TestR7MasterKeyCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	line := newMasterKeyLine(t, "k1")
	source := writeFile(t, dir, "source", line+"\n")
	o := keywardtest.Options{Dir: dir}
	args := slices.DeleteFunc(
		keywardtest.ServeArgs(t, o),
		func(a string) bool { return strings.HasPrefix(a, "--master-key-file=") },
	)
	serve := func(command string) *keywardtest.Process {
		o := o
		o.Args = append(slices.Clone(args), "--master-key-command="+command)
		return keywardtest.Start(t, o)
	}
	p := serve("cat source | cat")
	k := create(t, p, "ann", "org_a")
	next := newMasterKeyLine(t, "k2")
	if err := os.WriteFile(source, []byte(next+"\n"+line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, body := rotate(t, p); status != http.StatusOK ||
		!strings.Contains(body, `"master_key_id":"k2"`) {
		t.Errorf("rotate: %d %s", status, body)
	}
	if !verdict(t, p, k.Key).Valid {
		t.Error("the key is rejected after the rotation")
	}
	if code := p.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for name, tt := range map[string]struct{ command, want string }{
		"fails":         {"cat source; echo no such secret >&2; exit 3", "exit status 3: no such secret"},
		"prints nonsen": {"cat source; echo nonsense", "the master key command, line 3: no colon"},
		"prints a lot":  {"cat source; yes", "more than 64 KiB"},
		"is not there":  {"no-such-program-at-all", "exit status 127"},
	} {
		o := o
		o.Args = append(slices.Clone(args), "--master-key-command="+tt.command)
		p := keywardtest.Run(t, o)
		if code := p.Wait(t); code != exitUsage || !strings.Contains(p.Stderr(), tt.want) {
			t.Errorf("%s: exit code %d\n%s", name, code, p.Stderr())
		}
		for _, l := range []string{line, next} {
			if _, secret, _ := strings.Cut(l, ":"); strings.Contains(
				p.Stderr()+p.Stdout(),
				secret,
			) {
				t.Errorf("%s: a key is in the output", name)
			}
		}
	}
}
