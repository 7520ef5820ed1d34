// Package modelcheck holds the protocol to its promise by exhaustive search: it runs Spin over the
// models in docs/model, for every small size and for every error a model can have built in. What
// each variant means is in docs/model/README.md, with the sizes too large for a test.
package modelcheck

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	folder   = "../../docs/model"
	howToGet = "Spin and a C compiler are needed: apt-get install spin gcc libc6-dev"

	patience = 5 * time.Minute // of one search; the largest here takes seconds on a free machine
)

// check is one search. flags are the model's, as in docs/model/README.md.
type check struct {
	name  string
	flags string
	want  outcome
}

type outcome bool

const (
	holds    outcome = false
	violated outcome = true
)

func (o outcome) String() string {
	if o == violated {
		return "violated"
	}
	return "holds"
}

// models are the files, each with what it is checked for.
var models = map[string][]check{"lease.pml": leaseChecks, "sethash.pml": setHashChecks, "rotation.pml": rotationChecks}

// setHashChecks are those of what memory is compared with (V8).
var setHashChecks = []check{
	{"2 rows, 2 writes", "-DK=2 -DR=2", holds},
	{"1 row, 3 writes", "-DK=1 -DR=3", holds},
	{"memory is not compared", "-DK=2 -DR=2 -DNO_COMPARISON", violated},
	{"a load believes what the table shows", "-DK=2 -DR=2 -DLOAD_BELIEVES", violated},
	{"a verification without a lease asks single rows", "-DK=2 -DR=2 -DASKS_ROWS", violated},
}

// leaseChecks are every size, every seeded error and, last, every limit that a test can afford.
var leaseChecks = []check{
	{"1 node, 2 writes", "-DN=1 -DR=2", holds},
	{"1 node, 3 writes", "-DN=1 -DR=3 -DONE_STEP", holds},
	{"2 nodes, 1 write", "-DN=2 -DR=1 -DONE_STEP", holds},
	{"no packet is late, nobody leaves", "-DN=2 -DR=1 -DNO_LATE_PACKET -DNO_LEAVE", holds},
	{"a kept answer waits again", "-DN=1 -DR=3 -DREPLAY -DONE_STEP", holds},
	{"a leave is late", "-DN=1 -DR=2 -DLATE_LEAVE", holds},
	{"a node keeps its row id", "-DN=1 -DR=2 -DSAME_ID", holds},
	{"failover, synchronous", "-DN=1 -DR=2 -DFAILOVER -DONE_STEP", holds},
	{"failover, a commit on the old primary is cancelled", "-DN=1 -DR=2 -DFAILOVER -DCANCELLED_COMMIT -DONE_STEP", holds},
	{"failover, the same in steps", "-DN=1 -DR=1 -DFAILOVER -DCANCELLED_COMMIT", holds},
	{"failover, asynchronous, the old primary stopped", "-DN=1 -DR=1 -DFAILOVER -DOLD_STOPPED", holds},
	{"failover, the old primary stopped, a kept answer waits again", "-DN=1 -DR=2 -DFAILOVER -DOLD_STOPPED -DREPLAY -DONE_STEP", holds},
	{"failover, the old primary stopped, tombstones", "-DN=1 -DR=2 -DFAILOVER -DOLD_STOPPED -DTOMBSTONES -DONE_STEP", holds},
	{"a copy put back, one process", "-DN=1 -DR=2 -DFAILOVER -DRESTORED -DONE_STEP", holds},
	{"a revision token under a clock that lies", "-DN=1 -DR=2 -DTOKEN -DCLOCK_LIES", holds},
	{"a revision token under a clock that lies, failover", "-DN=1 -DR=2 -DFAILOVER -DTOKEN -DCLOCK_LIES -DONE_STEP", holds},
	{"the keys are loaded before the node registers", "-DN=1 -DR=2 -DLOAD_FIRST", holds},

	{"the lease is loaded after the look-up", "-DN=1 -DR=2 -DCHECK_AFTER", violated},
	{"the lease counts from the answer", "-DN=1 -DR=2 -DFROM_RECEIPT", violated},
	{"renewed by a read, acknowledged apart", "-DN=1 -DR=2 -DRENEW_BY_READ", violated},
	{"extended although newer changes were read", "-DN=1 -DR=2 -DEXTEND_WHILE_BEHIND", violated},
	{"nodes are listed before the commit", "-DN=1 -DR=2 -DLIST_BEFORE_COMMIT", violated},
	{"the wait is counted from before the commit", "-DN=1 -DR=2 -DCLOCK_BEFORE_COMMIT", violated},
	{"a background loop says healthy", "-DN=1 -DR=2 -DHEALTHY_FLAG", violated},
	{"the wait is too short", "-DN=1 -DR=2 -DWAIT_SHORT", violated},
	{"fenced without a wait", "-DN=1 -DR=2 -DFENCE_AT_ONCE", violated},
	{"answered without waiting", "-DN=1 -DR=2 -DANSWER_AT_ONCE", violated},
	{"a kept answer does not wait", "-DN=1 -DR=2 -DREPLAY -DREPLAY_AT_ONCE", violated},
	{"the row goes before the view is closed", "-DN=1 -DR=2 -DLEAVE_ROW_FIRST", violated},
	{"catching up grants a lease", "-DN=1 -DR=2 -DCATCH_UP_GRANTS", violated},
	{"a late renewal lowers the row", "-DN=1 -DR=2 -DACK_GOES_BACK", violated},
	{"a late leave meets the same row id", "-DN=1 -DR=2 -DSAME_ID -DLATE_LEAVE", violated},
	{"renewals do not wait for the disk", "-DN=1 -DR=2 -DLAZY_RENEWALS -DONE_STEP", violated},

	{"failover, a writer lists the nodes of the old primary", "-DN=1 -DR=2 -DFAILOVER -DBEHIND_READS_OLD -DONE_STEP", violated},
	{"failover, histories are told apart by number alone", "-DN=1 -DR=2 -DFAILOVER -DCANCELLED_COMMIT -DBY_NUMBER -DONE_STEP", violated},
	{"failover, answered early on a new timeline", "-DN=1 -DR=1 -DFAILOVER -DOLD_STOPPED -DEARLY_ON_NEW_TIMELINE -DONE_STEP", violated},
	{"failover, settled by a write of the old timeline", "-DN=1 -DR=2 -DFAILOVER -DOLD_STOPPED -DSETTLED_BY_EARLIER_WRITE -DONE_STEP", violated},
	{"failover, settled by a clock read before the question", "-DN=1 -DR=1 -DFAILOVER -DOLD_STOPPED -DSEEN_FROM_SENDING -DONE_STEP", violated},
	{"failover, a fence of the old timeline acts on the new", "-DN=1 -DR=2 -DFAILOVER -DOLD_STOPPED -DFENCE_ACROSS -DONE_STEP", violated},
	{"failover, a tombstone is dropped", "-DN=1 -DR=1 -DFAILOVER -DOLD_STOPPED -DTOMBSTONES -DTOMBSTONE_DROPPED -DONE_STEP", violated},
	{"a copy put back, the writer's own row is not asked for", "-DN=1 -DR=1 -DFAILOVER -DRESTORED -DOWN_ROW_MAY_LACK -DONE_STEP", violated},
	{"a clock that lies, without a token", "-DN=1 -DR=2 -DCLOCK_LIES", violated},

	{"failover, asynchronous, the old primary alive", "-DN=1 -DR=1 -DFAILOVER -DASYNCHRONOUS -DONE_STEP", violated},
	{"a copy put back, another process writes", "-DN=2 -DR=1 -DFAILOVER -DRESTORED -DONE_STEP -DNO_LATE_PACKET -DNO_LEAVE", violated},
	{"a token is a number, a clock that lies, and a lost write", "-DN=1 -DR=2 -DFAILOVER -DCANCELLED_COMMIT -DTOKEN -DCLOCK_LIES -DONE_STEP", violated},
}

// C23, in both directions: no verification that begins after a write was answered is decided from before it.
func TestC23LeaseProtocol(t *testing.T) { runChecks(t, "lease.pml") }

// V8, C23: the same under somebody who puts authentic copies of rows back at any moment.
func TestV8SetHashProtocol(t *testing.T) { runChecks(t, "sethash.pml") }

func runChecks(t *testing.T, model string) {
	text := source(t, model)
	for _, program := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatal(howToGet)
		}
	}
	for _, c := range models[model] {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, report := search(t, text, c)
			if got != c.want {
				t.Fatalf("%s: %v, want %v\n%s", c.flags, got, c.want, report)
			}
		})
	}
}

// An error that no check builds in would be there for show, and a model that no check runs too.
func TestEveryVariantIsChecked(t *testing.T) {
	sizes := []string{"N", "R", "L", "K"}
	condition := regexp.MustCompile(`(?m)^#(?:ifdef|ifndef) ([A-Z_]+)|defined\(([A-Z_]+)\)`)
	for model, checks := range models {
		given := map[string]bool{}
		for _, c := range checks {
			for flag := range strings.FieldsSeq(c.flags) {
				name, _, _ := strings.Cut(strings.TrimPrefix(flag, "-D"), "=")
				given[name] = true
			}
		}
		inModel := map[string]bool{}
		for _, m := range condition.FindAllStringSubmatch(string(source(t, model)), -1) {
			name := m[1] + m[2]
			inModel[name] = true
			if !given[name] && !slices.Contains(sizes, name) {
				t.Errorf("no check of %s sets %s", model, name)
			}
		}
		for name := range given {
			if !inModel[name] {
				t.Errorf("%s does not know %s", model, name)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.pml"))
	if err != nil || len(files) != len(models) {
		t.Errorf("%v, %v; checks run %d models", files, err, len(models))
	}
}

func source(t *testing.T, model string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, model))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	errorsFound = regexp.MustCompile(`errors: (\d+)`)
	statesFound = regexp.MustCompile(`(\d+(?:\.\d+)?(?:e\+\d+)?) states, stored`)
)

// search runs Spin over the model. A search that was cut short fails the test: it says nothing.
func search(t *testing.T, text []byte, c check) (outcome, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.pml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	began := time.Now()
	run("spin", append(append([]string{"-a"}, strings.Fields(c.flags)...), "model.pml")...)
	optimize := "-O1"
	if c.want == violated {
		optimize = "-O0" // such a search ends early, and compiling is most of it
	}
	run("gcc", optimize, "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=2000", "-o", "pan", "pan.c")
	report := run(filepath.Join(dir, "pan"), "-E", "-m100000", "-w22")

	found, states := errorsFound.FindStringSubmatch(report), statesFound.FindStringSubmatch(report)
	if found == nil || states == nil {
		t.Fatalf("%s: the search gave no result\n%s", c.flags, report)
	}
	for _, short := range []string{"max search depth too small", "out of memory", "memory exhausted", "hash table full"} {
		if strings.Contains(report, short) {
			t.Fatalf("%s: the search was cut short: %s", c.flags, short)
		}
	}
	t.Logf("%s states, errors: %s, %v", states[1], found[1], time.Since(began).Round(10*time.Millisecond))
	if found[1] == "0" {
		if strings.Contains(report, "Search not completed") {
			t.Fatalf("%s: the search was not completed\n%s", c.flags, report)
		}
		return holds, report
	}
	if !strings.Contains(report, "assertion violated") {
		t.Fatalf("%s: something else than the promise failed\n%s", c.flags, report)
	}
	if c.want == violated {
		return violated, report
	}
	// The run that was found, in the model's own lines. It ends in the failed assertion, so its error says nothing new.
	cmd := exec.CommandContext(ctx, "spin", append(append([]string{"-t", "-p", "-g"}, strings.Fields(c.flags)...), "model.pml")...)
	cmd.Dir = dir
	steps, _ := cmd.CombinedOutput()
	return violated, string(steps)
}
