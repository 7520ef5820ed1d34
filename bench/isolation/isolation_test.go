//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMain is the attacker too, which is started as this program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == attackRole {
		os.Exit(runAttack(context.Background(), os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args, fault string
	}{
		{"", ""},
		{"--database sqlite --attack lists,grpc --duration 10s", ""},
		{"--attack none", ""},
		{"x", "takes flags alone"},
		{"--database mysql", "--database"},
		{"--attack ddos", "--attack"},
		{"--duration 1ms", "--duration"},
		{"--keys 0", "--keys"},
		{"--connections 99999", "--connections"},
		{"--output xml", "--output"},
	} {
		var stderr bytes.Buffer
		_, err := parse(strings.Fields(tt.args), &stderr)
		if (err != nil) != (tt.fault != "") || !strings.Contains(stderr.String(), tt.fault) {
			t.Errorf("%q: %v, %s", tt.args, err, stderr.String())
		}
	}
}

func TestJudge(t *testing.T) {
	ok := map[string]int{"200": 9}
	quiet := result{P99: 100, Verify: ok, Revokes: ok, Revoke: 10, RSS: 50}
	for _, tt := range []struct {
		name string
		m    result
		want []string
	}{
		{"quiet", quiet, nil},
		{"all missed", result{P99: 301, Verify: map[string]int{"200": 8, "503": 1}, Revokes: ok, Revoke: 1001, RSS: 301},
			[]string{"verification is not 200", "p99", "revoke", "memory"}},
		{"a revoke fails", result{P99: 100, Verify: ok, Revokes: map[string]int{"503": 1}, Revoke: 10}, []string{"revoke"}},
		{"nothing is verified", result{P99: 100, Revokes: ok}, []string{"verification is not 200"}},
	} {
		tt.m.judge(&quiet)
		if diff := cmp.Diff(tt.want, tt.m.Missed); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// The program works: what it measures decides about no test.
func TestRun(t *testing.T) {
	var stdout, stderr bytes.Buffer
	run(t.Context(), strings.Fields("--database sqlite --attack lists --duration 1s --keys 300"), &stdout, &stderr)
	for _, want := range []string{"quiet", "lists", "200×"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("the table has no %q:\n%s%s", want, stdout.String(), stderr.String())
		}
	}
}
