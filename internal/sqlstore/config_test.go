package sqlstore

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// C23: a COMMIT that failed certainly left nothing behind only when the server said so; of everything else the
// outcome is not known.
func TestC23WhatIsKnownOfAFailedCommit(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"the server said ERROR", &pgconn.PgError{SeverityUnlocalized: "ERROR", Code: "40001"}, true},
		{"the same in another language", &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR"}, true},
		{"wrapped", fmt.Errorf("commit: %w", &pgconn.PgError{SeverityUnlocalized: "ERROR"}), true},
		{"the server answered ROLLBACK", pgx.ErrTxCommitRollback, true},
		{"FATAL: it was told to stop", &pgconn.PgError{SeverityUnlocalized: "FATAL", Code: "57P01"}, false},
		{"PANIC", &pgconn.PgError{SeverityUnlocalized: "PANIC"}, false},
		{"no severity", &pgconn.PgError{Code: "40001"}, false},
		{"the connection broke", io.ErrUnexpectedEOF, false},
		{"anything else", errors.New("who knows"), false},
	} {
		if got := postgresRolledBack(test.err); got != test.want {
			t.Errorf("%s: rolled back for certain %v, want %v", test.name, got, test.want)
		}
	}
}

func TestPlaintextToAnotherMachineIsRefused(t *testing.T) {
	for _, test := range []struct {
		url     string
		refused bool
	}{
		{"postgres://localhost/db?sslmode=disable", false},
		{"postgres://127.0.0.1/db", false},
		{"postgres://127.9.9.9/db?sslmode=disable", false},
		{"postgres://[::1]:5433/db?sslmode=disable", false},
		{"postgres:///db?host=/var/run/postgresql", false},
		{"postgres://127.0.0.1:1,localhost:2/db?sslmode=disable", false},
		{"postgres://db.example/db?sslmode=require", false},
		{"postgres://db.example/db?sslmode=verify-full", false},
		{"postgresql://db.example,db2.example/db?sslmode=verify-full", false},
		{"postgres://db.example/db", true}, // prefer falls back to plaintext
		{"postgres://db.example/db?sslmode=disable", true},
		{"postgres://db.example/db?sslmode=allow", true},
		{"postgres://db.example/db?sslmode=prefer", true},
		{"postgres://10.0.0.1/db?sslmode=disable", true},
		{"postgres://127.0.0.1,db.example/db?sslmode=disable", true},
		{"postgres://localhost.example/db?sslmode=disable", true},
		{"postgres://user:pass%20word@db.example/db?sslmode=disable", true},
	} {
		_, err := postgresConfig(Options{URL: test.url})
		if refused := err != nil; refused != test.refused {
			t.Errorf("%s: %v, want refused: %v", test.url, err, test.refused)
		}
		if err != nil && (strings.Contains(err.Error(), "pass") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: not one clear line without the password: %v", test.url, err)
		}
		if _, err := postgresConfig(Options{URL: test.url, AllowPlaintext: true}); err != nil {
			t.Errorf("%s: refused although plaintext is allowed: %v", test.url, err)
		}
	}
	_, err := postgresConfig(Options{URL: "postgres://user:hunter2@host:notaport/db"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a URL that cannot be read: %v", err)
	}
}

func TestAnOldSQLiteIsRefused(t *testing.T) {
	for version, want := range map[string]bool{
		"3.51.3": false, "3.51.4": false, "3.52.0": false, "4.0.0": false, "3.100.1": false,
		"3.51.2": true, "3.50.9": true, "2.99.99": true, "": true, "x.y.z": true, "3.51": true,
	} {
		if got := olderThan(version, oldestSQLite); got != want {
			t.Errorf("olderThan(%q) = %v", version, got)
		}
	}
}

func TestStateForm(t *testing.T) {
	st := state{revision: 7, weightKeyID: "m1", sequence: 9}
	st.weight[3], st.hash[5] = 1, 2
	got, ok := decodeState(st.encode())
	if !ok || got != st {
		t.Errorf("decodeState = %+v, %v", got, ok)
	}
	for n := range 81 {
		if _, ok := decodeState(st.encode()[:n]); ok {
			t.Errorf("a state of %d bytes was taken", n)
		}
	}
}
