package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the servers, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestRatiosArePrinted(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--keys", "3", "--keys", "8", "--duration", "60ms", "--turn", "20ms", "--connections", "4", "--dir", dir}
	for range 2 { // the second time on the databases of the first
		var out, progress bytes.Buffer
		if code := run(t.Context(), append(args, "--output", "json"), nil, &out, &progress); code != 0 {
			t.Fatalf("exit code %d\n%s", code, &progress)
		}
		var r report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Results) != 8 {
			t.Fatalf("%d results, want four endpoints for each of two sizes", len(r.Results))
		}
		for _, m := range r.Results {
			if m.Ratio <= 0 || m.RatioLow > m.Ratio || m.Ratio > m.RatioHigh || m.Turns != 3 {
				t.Errorf("%s with %d keys: ratio %v (%v–%v) of %d turns", m.Endpoint, m.Keys, m.Ratio, m.RatioLow, m.RatioHigh, m.Turns)
			}
			for _, f := range []figures{m.Floor, m.Keyward} {
				if f.Requests == 0 || f.PerSecond <= 0 || f.P50 <= 0 || f.P99 < f.P50 {
					t.Errorf("%s with %d keys: %+v", m.Endpoint, m.Keys, f)
				}
			}
		}
	}
}

func TestOneEndpoint(t *testing.T) {
	var out, progress bytes.Buffer
	args := []string{"--keys", "3", "--endpoint", "/v1/verify", "--duration", "20ms", "--turn", "20ms", "--connections", "2", "--output", "json"}
	if code := run(t.Context(), args, nil, &out, &progress); code != 0 {
		t.Fatalf("exit code %d\n%s", code, &progress)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != 1 || r.Results[0].Endpoint != "/v1/verify" {
		t.Errorf("measured %+v", r.Results)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	r := report{Connections: 4, Results: []result{{Keys: 1000, Endpoint: "/v1/verify", Ratio: .9, RatioLow: .85, RatioHigh: .95}}}
	if err := r.write(&out, "table"); err != nil {
		t.Fatal(err)
	}
	if want := "0.90 (0.85–0.95)"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in\n%s", want, &out)
	}
}

func TestWrongFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--keys", "0"}, {"--keys", "many"}, {"--duration", "0s"}, {"--duration", "11m"}, {"--turn", "1ms"},
		{"--connections", "0"}, {"--connections", "1025"}, {"--output", "xml"}, {"--endpoint", "/v1/nothing"}, {"--unknown"}, {"argument"},
	} {
		var out, complaint bytes.Buffer
		if code := run(t.Context(), args, nil, &out, &complaint); code != 2 || complaint.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, &out, &complaint)
		}
	}
}

func TestHelpHasAnExample(t *testing.T) {
	var out, help bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, &out, &help); code != 0 || !strings.Contains(help.String(), "go run ./bench/load --keys") {
		t.Errorf("exit code %d:\n%s", code, &help)
	}
}

// A step of the histogram is at most 1/64 of what it counts.
func TestHistogram(t *testing.T) {
	for n := uint64(1); n < 1<<38; n += n/7 + 1 {
		got := float64(value(step(n)))
		if d := got/float64(n) - 1; d < -1./64 || d > 1./64 {
			t.Errorf("%d is counted as %.0f", n, got)
		}
	}
	var h histogram
	for i := range 1000 {
		h.note(time.Duration(i+1) * time.Microsecond)
	}
	h.note(time.Hour) // more than there are steps for
	if p50, p99 := h.quantile(.5)/1000, h.quantile(.99)/1000; p50 < 492 || p50 > 508 || p99 < 975 || p99 > 1005 {
		t.Errorf("p50 %d, p99 %d of 1..1000", p50, p99)
	}
}
