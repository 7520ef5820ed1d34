//go:build defects

package defect

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/pgtest"
)

const (
	// mostTime is how long a test may take to find its error.
	mostTime = 60 * time.Second
	// buildTime bounds what nobody waits for in vain.
	buildTime = 5 * time.Minute

	simulation = "TestSimulation"
	seeds      = 300 // of it, at most
)

// Each error is found by its test, and by nothing but the error: without any, the same tests pass. What it prints is the table of
// docs/defects.md.
func TestEveryDefectIsFound(t *testing.T) {
	rooms := map[string][]string{} // the tests of a room
	for _, s := range list {
		if !slices.Contains(rooms[s.room], s.test) {
			rooms[s.room] = append(rooms[s.room], s.test)
		}
		if s.simulated && !slices.Contains(rooms[s.room], simulation) {
			rooms[s.room] = append(rooms[s.room], simulation)
		}
	}
	database := pgtest.NewServer(t).URL()       // for the tests that need no server of their own: its start is not their time
	took := make([][2]time.Duration, len(list)) // of the test, and of the simulation
	t.Run("run", func(t *testing.T) {
		for room, tests := range rooms {
			t.Run("none in "+room, func(t *testing.T) {
				t.Parallel()
				out, _, failed := runTests(t, database, room, "", buildTime, tests...)
				if failed != nil {
					t.Fatalf("without any error they fail: %v\n%s", failed, out)
				}
				for _, test := range tests {
					if !strings.Contains(out, "--- PASS: "+test) {
						t.Errorf("%s was not run\n%s", test, out)
					}
				}
			})
		}
		for i, s := range list {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				out, d, failed := runTests(t, database, s.room, Overlay(t, s.named()...), mostTime, s.test)
				if failed == nil || !strings.Contains(out, "--- FAIL: "+s.test) {
					t.Errorf("%s did not find it in %v: %v\n%s", s.test, d.Round(time.Second), failed, out)
					return
				}
				took[i][0] = d
				t.Log(firstLines(out))
				if !s.simulated {
					return
				}
				out, d, failed = runTests(t, database, s.room, Overlay(t, s.named()...), mostTime, simulation)
				if failed == nil || !strings.Contains(out, "--- FAIL: "+simulation) {
					t.Errorf("%s did not find it in %v: %v\n%s", simulation, d.Round(time.Second), failed, out)
					return
				}
				took[i][1] = d
				t.Log(firstLines(out))
			})
		}
	})
	var table strings.Builder
	table.WriteString("| defect | caught by | in | time to catch | the simulation |\n|---|---|---|---:|---:|\n")
	seconds := func(d time.Duration, none string) string {
		if d == 0 {
			return none
		}
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	for i, s := range list {
		test, part, _ := strings.Cut(s.test, "/")
		if part != "" {
			part = ", " + strings.ReplaceAll(part, "_", " ")
		}
		fmt.Fprintf(&table, "| %s | `%s`%s | %s | %s | %s |\n", s.name, test, part, s.room, seconds(took[i][0], "**not caught**"), seconds(took[i][1], "–"))
	}
	fmt.Println(table.String())
}

// runTests runs tests of a room, built with an overlay, and returns what they printed, how long they took apart from being built,
// and how they failed. What cannot be built is an error of the substitution, and ends the test.
func runTests(t *testing.T, database, room, overlay string, most time.Duration, tests ...string) (out string, took time.Duration, failed error) {
	t.Helper()
	root, err := moduleFolder()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "tests")
	building, cancel := context.WithTimeout(t.Context(), buildTime)
	defer cancel()
	build := exec.CommandContext(building, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary, "./"+room)
	build.Dir = root
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("it does not build: %v\n%s", err, b)
	}

	var patterns []string
	for _, test := range tests {
		patterns = append(patterns, "^"+strings.Replace(test+"/", "/", "$/", 1))
	}
	running, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	arguments := []string{"-test.v", "-test.run", strings.Join(patterns, "|")}
	if room == verification {
		arguments = append(arguments, fmt.Sprint("-verify.seeds=", seeds))
	}
	run := exec.CommandContext(running, binary, arguments...)
	run.Dir = filepath.Join(root, filepath.FromSlash(room))
	run.Env = append(os.Environ(), pgtest.Environment+"="+database)
	began := time.Now()
	b, failed := run.CombinedOutput()
	took = time.Since(began)
	if running.Err() != nil {
		failed = running.Err()
	}
	if strings.Contains(string(b), "pgtest: ") {
		t.Fatalf("there was no database to test on:\n%s", b)
	}
	return string(b), took, failed
}

// firstLines is what a failed test said first.
func firstLines(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- PASS") {
			said = append(said, line)
		}
	}
	return strings.Join(said[:min(4, len(said))], "\n")
}
