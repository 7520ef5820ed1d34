package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

const (
	tokenA = "token-a-of-the-test"
	tokenB = "token-b-of-the-test"
)

// O5: the form of a credentials file.
func TestO5Parse(t *testing.T) {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(tokenB)))
	all, err := Parse([]byte("# services\n\n  checkout   verify\t" + tokenA + "\r\n" +
		"ann@ops read,operate sha256:" + strings.ToUpper(digest) + "\nann@ops verify another-token-of-ann\n" +
		"proxy verify,read cert:CN=envoy proxy,O=Acme\n"))
	if err != nil {
		t.Fatal(err)
	}
	type found struct {
		Actor  string
		Scopes string
	}
	for token, want := range map[string]found{
		tokenA: {"operator:checkout", "verify"}, tokenB: {"operator:ann@ops", "read,operate"}, "another-token-of-ann": {"operator:ann@ops", "verify"},
		"": {"operator", ""}, tokenA + "x": {"operator", ""}, "sha256:" + digest: {"operator", ""}, digest: {"operator", ""}, "CN=envoy proxy,O=Acme": {"operator", ""},
	} {
		caller, known := all.token(token)
		if diff := cmp.Diff(want, found{caller.Actor(), caller.Scopes.String()}); diff != "" || known != (want.Scopes != "") {
			t.Errorf("token %q: %s", token, diff)
		}
	}
	if got := all.Plain(Verify); got != tokenA {
		t.Errorf("the plain token that may verify: %q", got)
	}
	if got := all.Plain(Operate); got != "" {
		t.Errorf("a plain token that may operate: %q", got)
	}
}

// O5: what is wrong with a file is told by its line, and nothing of it is repeated.
func TestO5ParseRejects(t *testing.T) {
	const hidden = "hunter2-hunter2-hunter2"
	for name, tt := range map[string]struct{ file, want string }{
		"nothing":            {"", "the file holds no credential"},
		"comments":           {"# a\n\n", "the file holds no credential"},
		"a token alone":      {hidden, "line 1: must be `<name>"},
		"no scope":           {"a " + hidden, "line 1: must be `<name>"},
		"an unknown scope":   {"# x\na verify,admin " + hidden, "line 2: a scope is"},
		"an empty scope":     {"a verify, " + hidden, "line 1: a scope is"},
		"a scope in capital": {"a Verify " + hidden, "line 1: a scope is"},
		"a name":             {"a:b verify " + hidden, "line 1: a name is"},
		"a long name":        {strings.Repeat("a", 65) + " verify " + hidden, "line 1: a name is"},
		"a short token":      {"a verify hunter2", "line 1: a token has"},
		"two tokens":         {"a verify " + hidden + " " + hidden, "line 1: a token has"},
		"not ASCII":          {"a verify " + hidden + "é", "line 1: a token has"},
		"a short digest":     {"a verify sha256:" + strings.Repeat("ab", 31), "line 1: sha256:"},
		"no digest":          {"a verify sha256:" + hidden, "line 1: sha256:"},
		"no subject":         {"a verify cert:", "line 1: cert:"},
		"a token twice":      {"a verify " + hidden + "\nb read " + hidden, "line 2: its token or subject is on"},
		"a subject twice":    {"a verify cert:x\nb read cert:x", "line 2: its token or subject is on"},
	} {
		_, err := Parse([]byte(tt.file))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q repeats the token", name, err)
		}
	}
}

// O5: operate is all of the admin listener, and not verification.
func TestO5ScopeAllows(t *testing.T) {
	for scopes, want := range map[Scope][3]bool{
		0: {}, Verify: {true, false, false}, Read: {false, true, false}, Operate: {false, true, true}, Verify | Read: {true, true, false}, All: {true, true, true},
	} {
		if got := [3]bool{scopes.Allows(Verify), scopes.Allows(Read), scopes.Allows(Operate)}; got != want {
			t.Errorf("%q: %v, want %v", scopes, got, want)
		}
		if scopes.Allows(0) {
			t.Errorf("%q allows a route whose scope was forgotten", scopes)
		}
	}
}

// O5: the printed line is of the form that is read.
func TestO5Line(t *testing.T) {
	line, err := Line("checkout", Verify|Operate, tokenA)
	if err != nil || strings.Contains(line, tokenA) {
		t.Fatalf("%q, %v", line, err)
	}
	all, err := Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if caller, known := all.token(tokenA); !known || caller.Scopes != Verify|Operate {
		t.Errorf("%+v, %t", caller, known)
	}
}

type from string

func (f from) ClientAddress() string { return string(f) }

// O5, C32: denials of one caller at one route are one audit entry a minute, with a count. What
// cannot be recorded is not answered with 403, but cannot be decided.
func TestO5DenialsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, err := Parse([]byte("checkout verify " + tokenA))
		if err != nil {
			t.Fatal(err)
		}
		var recorded []string
		var away error
		g := NewGate(func() Credentials { return all }, func(_ context.Context, op keys.Operator, detail string) error {
			if away == nil {
				recorded = append(recorded, op.AuditActor()+" "+op.RequestID+" "+op.RemoteAddress+": "+detail)
			}
			return away
		})
		use := func(route, id string) error {
			_, err := g.Admit(t.Context(), Attempt{Presented: Presented{Token: tokenA}, Need: Operate, Route: route, RequestID: id, Client: from("192.0.2.1")})
			return err
		}
		var rejected *keys.Error
		for i := range 5 {
			if err := use("PUT /x", fmt.Sprint(i)); !errors.As(err, &rejected) || rejected.Code != api.Forbidden {
				t.Errorf("use %d: %v", i, err)
			}
		}
		_ = use("PUT /y", "5")
		time.Sleep(denialEvery)
		_ = use("PUT /x", "6")
		away = errors.New("the database is away")
		time.Sleep(denialEvery)
		var undecided *keys.Unavailable
		if err := use("PUT /x", "7"); !errors.As(err, &undecided) {
			t.Errorf("without the database: %v", err)
		}
		away = nil
		_ = use("PUT /x", "8")
		want := []string{
			"operator:checkout 0 192.0.2.1: PUT /x needs operate", "operator:checkout 5 192.0.2.1: PUT /y needs operate",
			"operator:checkout 6 192.0.2.1: PUT /x needs operate; 4 more since the last entry", "operator:checkout 8 192.0.2.1: PUT /x needs operate",
		}
		if diff := cmp.Diff(want, recorded); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// R3: without credentials everybody may do everything, as the operator without a name.
func TestOpen(t *testing.T) {
	for _, p := range []Presented{{}, {Token: "anything"}, {Malformed: true}} {
		caller, err := Open().Admit(t.Context(), Attempt{Presented: p, Need: Operate})
		if err != nil || caller.Actor() != keys.OperatorActor {
			t.Errorf("%+v: %v, %v", p, caller, err)
		}
	}
}
