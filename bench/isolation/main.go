//go:build unix

// Isolation measures what one caller can do to the others. It starts the real server on SQLite
// and on PostgreSQL, and measures verification, another tenant's revoke and the server's memory:
// first with nothing beside them, then beside each attack. The attacks run in another process.
//
// main.go is the command line and the report, server.go the server and its database, measure.go
// what is measured, attacks.go what runs beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == attackRole {
		os.Exit(runAttack(ctx, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options is what the command line says.
type options struct {
	databases   []string
	attacks     []string
	duration    time.Duration
	keys        int
	connections int
	idle        int
	binary      string
	output      string
}

const usage = `Usage: isolation [flags]

Measures verification, another tenant's revoke and memory beside one caller who does what it likes. Needs PostgreSQL's
binaries, or KEYWARD_TEST_POSTGRES_URL, for that database. Everything stays on the loopback interface.

Example:
  go run ./bench/isolation --duration 10s --connections 8000

Flags:
`

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("isolation", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	databases := f.String("database", "sqlite,postgres", "databases, separated by commas")
	attacks := f.String("attack", strings.Join(attackNames, ","), "attacks, separated by commas; none runs quiet alone")
	f.DurationVar(&o.duration, "duration", 5*time.Second, "time of each measurement, 1s to 10m")
	f.IntVar(&o.keys, "keys", 10_000, "keys of the organization whose user lists them, 1 to 1000000")
	f.IntVar(&o.connections, "connections", 1000, "connections that repeat a revoke, 1 to 15000")
	f.IntVar(&o.idle, "idle", 10_000, "idle public connections, 1 to 15000")
	f.StringVar(&o.binary, "binary", "", "`file` of the keyward program; without it, it is built")
	f.StringVar(&o.output, "output", "table", "table or json")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.databases, o.attacks = strings.Split(*databases, ","), strings.Split(*attacks, ",")
	unknown := func(list, known []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return !slices.Contains(known, s) })
	}
	if *attacks == "none" {
		o.attacks = nil
	}
	fault := ""
	switch {
	case f.NArg() > 0:
		fault = "takes flags alone"
	case unknown(o.databases, []string{"sqlite", "postgres"}):
		fault = "--database must be sqlite, postgres or both"
	case unknown(o.attacks, attackNames):
		fault = "--attack must be of " + strings.Join(attackNames, ", ")
	case o.duration < time.Second || o.duration > 10*time.Minute:
		fault = "--duration must be 1s to 10m"
	case o.keys < 1 || o.keys > 1_000_000:
		fault = "--keys must be 1 to 1000000"
	case min(o.connections, o.idle) < 1 || max(o.connections, o.idle) > 15_000:
		fault = "--connections and --idle must be 1 to 15000"
	case o.output != "table" && o.output != "json":
		fault = "--output must be table or json"
	}
	if fault != "" {
		fmt.Fprintln(stderr, "isolation: "+fault)
		return o, errors.New(fault)
	}
	return o, nil
}

// run is main with its surroundings as parameters. It returns the exit code: 1 when an aim is
// missed.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	r := report{
		Date: time.Now().UTC().Format(time.DateOnly), Go: runtime.Version(), CPUs: runtime.NumCPU(),
		Seconds: o.duration.Seconds(), Connections: o.connections, Idle: o.idle, Keys: o.keys,
	}
	if err := r.measure(ctx, o, stderr); err != nil {
		fmt.Fprintln(stderr, "isolation:", err)
		return 1
	}
	if err := r.write(stdout, o.output); err != nil {
		fmt.Fprintln(stderr, "isolation:", err)
		return 1
	}
	for _, m := range r.Results {
		if len(m.Missed) > 0 {
			return 1
		}
	}
	return 0
}

// report is what a run found.
type report struct {
	Date        string   `json:"date"`
	Go          string   `json:"go"`
	CPUs        int      `json:"cpus"`
	Seconds     float64  `json:"seconds"`
	Connections int      `json:"revoke_connections"`
	Idle        int      `json:"idle_connections"`
	Keys        int      `json:"listed_keys"`
	Results     []result `json:"results"`
}

// result is one measurement.
type result struct {
	Database string         `json:"database"`
	Beside   string         `json:"beside"`
	P50      float64        `json:"verify_p50_us"`
	P99      float64        `json:"verify_p99_us"`
	Verify   map[string]int `json:"verify_statuses"`
	Revoke   float64        `json:"revoke_max_ms"`
	Revokes  map[string]int `json:"revoke_statuses"`
	RSS      float64        `json:"rss_max_mb"`
	Attack   map[string]int `json:"attack_statuses"`
	Missed   []string       `json:"missed"`
}

// The aims.
const (
	maxSlower = 3
	maxRevoke = 1000 // ms
	maxRSS    = 300  // MB
)

// judge says which aims a result misses, against the quiet one of its database.
func (m *result) judge(quiet *result) {
	if len(m.Verify) != 1 || m.Verify["200"] == 0 {
		m.Missed = append(m.Missed, "verification is not 200")
	}
	if m.P99 > maxSlower*quiet.P99 {
		m.Missed = append(m.Missed, "p99")
	}
	if m.Revoke > maxRevoke || len(m.Revokes) != 1 || m.Revokes["200"] == 0 {
		m.Missed = append(m.Missed, "revoke")
	}
	if m.RSS > maxRSS {
		m.Missed = append(m.Missed, "memory")
	}
}

func (r *report) measure(ctx context.Context, o options, progress io.Writer) (err error) {
	binary, remove, err := buildBinary(ctx, o.binary)
	if err != nil {
		return err
	}
	defer remove()
	for _, database := range o.databases {
		var quiet *result
		for _, beside := range append([]string{"quiet"}, o.attacks...) {
			fmt.Fprintf(progress, "%s, %s\n", database, beside)
			m, err := measureBeside(ctx, o, binary, database, beside)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", database, beside, err)
			}
			if quiet == nil {
				quiet = &m
			}
			m.judge(quiet)
			r.Results = append(r.Results, m)
		}
	}
	return nil
}

func (r *report) write(w io.Writer, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(w, "%s, %s, %d CPUs shared by all, %.0f s each, %d connections revoke, %d idle, %d keys listed\n\n",
		r.Date, r.Go, r.CPUs, r.Seconds, r.Connections, r.Idle, r.Keys)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "database\tbeside\tverify p50 µs\tp99 µs\tstatuses\trevoke max ms\tRSS MB\tattack's statuses\tmissed\t")
	for _, m := range r.Results {
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%s\t%.0f\t%.0f\t%s\t%s\t\n", m.Database, m.Beside, m.P50, m.P99,
			counts(m.Verify), m.Revoke, m.RSS, counts(m.Attack), strings.Join(m.Missed, ", "))
	}
	return t.Flush()
}

// counts writes statuses in order.
func counts(m map[string]int) string {
	var list []string
	for status, n := range m {
		list = append(list, fmt.Sprintf("%s×%d", status, n))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
