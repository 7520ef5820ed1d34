// Load measures verification over HTTP and Envoy's gRPC against a floor: bare net/http and gRPC servers that answer the same
// requests with the same bytes. Both serve in processes of their own, are loaded over loopback in short
// turns, and are compared turn by turn, so that whatever else the machine does hits both.
//
// main.go is the command line and the report, serve.go the two servers, seed.go the database,
// client.go the load, check.go what is gRPC of both.
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// options is what the command line says.
type options struct {
	keys        counts
	endpoints   names
	duration    time.Duration
	turn        time.Duration
	connections int
	output      string
	dir         string
	profile     string
}

// counts is a flag that may be given several times.
type counts []int

func (c *counts) String() string { return strings.Trim(fmt.Sprint([]int(*c)), "[]") }

func (c *counts) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 10_000_000 {
		return errors.New("must be a whole number from 1 to 10000000")
	}
	*c = append(*c, n)
	return nil
}

// names is a flag that may be given several times.
type names []string

func (n *names) String() string { return strings.Join(*n, " ") }

func (n *names) Set(s string) error {
	known := slices.ContainsFunc(endpoints(0), func(e endpoint) bool { return e.path == s })
	if !known {
		return errors.New("must be one of the endpoints of the table")
	}
	*n = append(*n, s)
	return nil
}

const usage = `Usage: load [flags]

Measures POST /v1/verify, GET /v1/authorize and POST /v1/introspect of the verification listener against a bare net/http
server that answers the same bytes, and Envoy's ext_authz against a bare gRPC server. Everything stays on the loopback interface.

Example:
  go run ./bench/load --keys 1000 --keys 1000000 --duration 10s --connections 64

Flags:
`

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.Var(&o.keys, "keys", "`number` of keys in the database; may be given several times (default 1000)")
	f.Var(&o.endpoints, "endpoint", "`name` of an endpoint to measure, as in the table; may be given several times (default all)")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "time under load of each server with each endpoint, at most 10m")
	f.DurationVar(&o.turn, "turn", 500*time.Millisecond, "time after which the other server has its turn, at least 10ms")
	f.IntVar(&o.connections, "connections", 64, "connections that are kept busy, 1 to 1024")
	f.StringVar(&o.output, "output", "table", "table or json")
	f.StringVar(&o.dir, "dir", "", "`folder` that keeps the databases for the next run; without it they are deleted")
	f.StringVar(&o.profile, "profile", "", "`folder` for CPU profiles of both servers; with several --keys, the last ones stay")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	fault := ""
	switch {
	case f.NArg() > 0:
		fault = "unexpected argument " + strconv.Quote(f.Arg(0))
	case o.duration <= 0 || o.duration > 10*time.Minute:
		fault = "--duration must be more than 0 and at most 10m"
	case o.turn < 10*time.Millisecond:
		fault = "--turn must be at least 10ms"
	case o.connections < 1 || o.connections > 1024:
		fault = "--connections must be 1 to 1024"
	case o.output != "table" && o.output != "json":
		fault = "--output must be table or json"
	}
	if fault != "" {
		fmt.Fprintln(stderr, "load: "+fault)
		return o, errors.New(fault)
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			fmt.Fprintln(stderr, "load: --profile:", err)
			return o, err
		}
	}
	if len(o.keys) == 0 {
		o.keys = counts{1000}
	}
	return o, nil
}

// run is main with its surroundings as parameters. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		if serve, ok := roles[args[0]]; ok {
			if err := serve(args[1:], stdin, stdout, stderr); err != nil {
				fmt.Fprintf(stderr, "load: %s: %v\n", args[0], err)
				return 1
			}
			return 0
		}
	}
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	r := report{Date: time.Now().UTC().Format(time.DateOnly), Go: runtime.Version(), CPUs: runtime.NumCPU(), Connections: o.connections}
	progress := &lines{w: stderr}
	for _, n := range o.keys {
		measured, err := measure(ctx, o, n, progress)
		if err != nil {
			fmt.Fprintln(stderr, "load:", err)
			return 1
		}
		r.Results = append(r.Results, measured...)
	}
	if err := r.write(stdout, o.output); err != nil {
		fmt.Fprintln(stderr, "load:", err)
		return 1
	}
	return 0
}

// lines lets this process and the servers write to one place.
type lines struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// report is what a run found.
type report struct {
	Date        string   `json:"date"`
	Go          string   `json:"go"`
	CPUs        int      `json:"cpus"`
	Connections int      `json:"connections"`
	Results     []result `json:"results"`
}

// result compares the two servers for one endpoint and one size of the database.
type result struct {
	Keys     int     `json:"keys"`
	Endpoint string  `json:"endpoint"`
	Floor    figures `json:"floor"`
	Keyward  figures `json:"keyward"`

	// Ratio is Keyward's throughput over the floor's: the median over the turns, and the turns a tenth of
	// the way from either end.
	Ratio     float64 `json:"ratio"`
	RatioLow  float64 `json:"ratio_p10"`
	RatioHigh float64 `json:"ratio_p90"`
	Turns     int     `json:"turns"`
}

// figures is what one server did.
type figures struct {
	Requests  int64   `json:"requests"`
	PerSecond float64 `json:"requests_per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	CPU       float64 `json:"server_cpu_us_per_request"`
}

func (r report) write(w io.Writer, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(w, "%s, %s, %d CPUs shared by client and server, %d connections\n\n", r.Date, r.Go, r.CPUs, r.Connections)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "keys\tendpoint\tserver\treq/s\tp50 µs\tp99 µs\tserver CPU µs/req\tratio (p10–p90)\t")
	for _, m := range r.Results {
		line := func(name string, f figures, ratio string) {
			fmt.Fprintf(t, "%d\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.1f\t%s\t\n", m.Keys, m.Endpoint, name, f.PerSecond, f.P50, f.P99, f.CPU, ratio)
		}
		line("floor", m.Floor, "1")
		line("keyward", m.Keyward, fmt.Sprintf("%.2f (%.2f–%.2f)", m.Ratio, m.RatioLow, m.RatioHigh))
	}
	return t.Flush()
}
