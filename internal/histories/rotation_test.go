package histories

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/defect"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
	"github.com/syncgram/keyward/internal/seal"
)

// R10: the master key is rotated under load, on nodes whose files have the old, the new and other
// keys in different orders. No good key is denied, no node closes, and no request fails. The test
// is not parallel: nothing else may load the machine while "no node closes" is asserted.
func TestHistoriesRotation(t *testing.T) {
	overlay := defect.Overlay(t, defect.Defect{
		Name: "a rotation waits for a node's key for a shorter time", File: "cmd/keyward/operations.go",
		Old: "rotateWait = 20 * time.Second", New: "rotateWait = 3 * time.Second",
	})
	dir := t.TempDir()
	rotations := rounds("R10")
	lines := masterKeyLines(t, rotations+1)
	writeKeys(t, filepath.Join(dir, "master.key"), lines[0])
	for i := range 3 {
		file := filepath.Join(dir, fmt.Sprintf("master-%d.key", i))
		writeKeys(t, file, filesBefore(t, lines, 0)[i]...)
	}
	options := keywardtest.Options{Dir: dir, Overlay: overlay}
	w := newCrowd(newCluster(t, options, 3, pgtest.NewServer(t)))
	w.once = true // an idempotency record needs the key it was made under, for a day
	rotation := nemesis{"R10 rotation", func(w *crowd, _ int, _ *rand.Rand) {
		for i := range rotations {
			w.rotate(lines, i)
		}
	}}
	counts := map[string]int{healthy.fault: 50, "R10": rotations}
	w.play(rand.Uint64(), []nemesis{rotation}, counts).judge()
	if n := w.figures.undecided.Load(); n > 0 {
		w.tb.Errorf("R10: %d verifications were not decided", n)
	}
	if n := w.figures.unknown.Load(); n > 0 {
		w.tb.Errorf("R10: %d writes were not answered", n)
	}
	for _, n := range w.nodes {
		for _, what := range []string{
			"not ready", "was fenced", "was refused", "not written by Keyward",
		} {
			if strings.Contains(n.current.Load().Stderr(), what) {
				w.tb.Errorf("R10: node %d logged %q", n.index, what)
			}
		}
	}
}

// masterKeyLines makes count master keys, k0 and so on.
func masterKeyLines(tb testing.TB, count int) (lines []string) {
	tb.Helper()
	for i := range count {
		line, err := seal.NewLine(fmt.Sprint("k", i))
		if err != nil {
			tb.Fatal(err)
		}
		lines = append(lines, line)
	}
	return lines
}

// writeKeys replaces a master key file in one step.
func writeKeys(tb testing.TB, path string, lines ...string) {
	tb.Helper()
	next := path + ".next"
	err := os.WriteFile(next, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// filesBefore are the three nodes' files before rotation i: the new key last, first, and missing.
func filesBefore(tb testing.TB, lines []string, i int) [][]string {
	tb.Helper()
	other, err := seal.NewLine("other")
	if err != nil {
		tb.Fatal(err)
	}
	return [][]string{{lines[i], lines[i+1]}, {lines[i+1], lines[i]}, {lines[i], other}}
}

// rotate replaces key i by the next, in the order that an operator is told of and in wrong ones.
func (w *crowd) rotate(lines []string, i int) {
	before, next := fmt.Sprint("k", i), fmt.Sprint("k", i+1)
	writeKeys(w.tb, filepath.Join(w.dir, "master.key"), lines[i], lines[i+1])
	if i > 0 {
		for index, file := range filesBefore(w.tb, lines, i) {
			writeKeys(w.tb, w.keyFile(index), file...)
		}
	}
	oldFirst, newFirst, lacking := w.nodes[0], w.nodes[1], w.nodes[2]

	early := w.askToRotate(newFirst)
	var problem api.Problem
	_ = json.Unmarshal(early.body, &problem)
	address := strings.TrimPrefix(lacking.current.Load().Verification, "http://")
	if early.status != http.StatusConflict || early.code() != api.MasterKeyMissing ||
		!strings.Contains(problem.Detail, address) ||
		strings.Count(problem.Detail, "does not have it") != 1 {
		w.tb.Errorf("R10: a rotation while one node lacks the key: %d %s", early.status, early.body)
	}
	w.rotated(oldFirst, before) // nothing was changed; this node's first key is the database's
	for range 20 {
		w.revoke(context.Background(), nil, w.create(context.Background(), w.newOrganization()))
	}

	writeKeys(w.tb, w.keyFile(lacking.index), lines[i], lines[i+1])
	r := w.rotated(newFirst, next)
	if !slices.Contains(r.RetireableKeyIDs, before) || r.RowsResealed == 0 {
		w.tb.Errorf("R10: %+v", r)
	}
	for _, n := range w.nodes {
		writeKeys(w.tb, w.keyFile(n.index), lines[i+1])
	}
	for _, n := range w.nodes {
		n.current.Load().WaitLog(w.tb, `the master keys were read again.*"keys":"`+next+`"`)
	}
	writeKeys(w.tb, filepath.Join(w.dir, "master.key"), lines[i+1])
	for _, k := range w.stock(20) {
		w.revoke(context.Background(), nil, k)
	}
}

func (w *crowd) askToRotate(n *node) answer {
	p := n.current.Load()
	url := p.Admin + "/v1/master-key/rotate"
	return w.send(context.Background(), p, http.MethodPost, url, "", "", nil)
}

// rotated asks a node to rotate, after which the database must be under the key wanted.
func (w *crowd) rotated(n *node, want string) (r api.Reseal) {
	a := w.askToRotate(n)
	if a.status != http.StatusOK || json.Unmarshal(a.body, &r) != nil || r.MasterKeyID != want {
		w.tb.Errorf("R10: rotate at node %d: %d %s, want %s", n.index, a.status, a.body, want)
	}
	return r
}
