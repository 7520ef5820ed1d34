package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// R4: how far a revocation of many keys is, as a bar.
func TestR4Bar(t *testing.T) {
	got := []string{bar(0, 4), bar(1, 4), bar(4, 4), bar(5, 4), bar(1, 0)}
	want := []string{
		"[........................] 0 of 4", "[######..................] 1 of 4", "[########################] 4 of 4",
		"[########################] 5 of 4", "[########################] 1 of 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// O4, R4: an answer that breaks off, or ends with a failure, is an unknown outcome, and what was
// revoked before it is said. Ids in a file are sent a few hundred at a time.
func TestO4AnswersThatBreakOff(t *testing.T) {
	const started = `{"status":"started","total":2}` + "\n"
	const one = `{"status":"revoked","api_key_id":"key_a","organization_id":"org","done":1,"total":2}` + "\n"
	const done = `{"status":"done","total":2,"revoked":2}` + "\n"
	for _, tt := range []struct {
		name, answer string
		status, code int
		stderr       string
	}{
		{"done", started + one + done, 200, exitDone, ""},
		{"no last line", started + one, 200, exitUnknown, "the server's answer broke off"},
		{"half a line", started + one[:20], 200, exitUnknown, "did not answer as Keyward does"},
		{"failed", started + one + `{"status":"failed","revoked":1,"error":{"detail":"Ask again.","status":503}}` + "\n", 200, exitUnknown, "1 key revoked before it broke off"},
		{"rejected", `{"detail":"No.","status":400}`, 400, exitFailed, "keyward: No."},
		{"another server", "hello", 200, exitUnknown, "did not answer as Keyward does"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked int
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				if body, _ := io.ReadAll(r.Body); len(body) > 16<<10 {
					t.Errorf("a body of %d bytes", len(body))
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.answer)
			}))
			defer server.Close()
			var ids strings.Builder
			for i := range 401 {
				fmt.Fprintf(&ids, "key_%026d\n", i)
			}
			var out, stderr bytes.Buffer
			code := run(context.Background(), []string{"keys", "revoke", "--server", server.URL, "--from-file", "-", "--reason", strings.Repeat("\U0001F511", 255), "--yes"},
				nil, strings.NewReader(ids.String()), &out, &stderr)
			if code != tt.code || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, want %d: %s%s", code, tt.code, out.String(), stderr.String())
			}
			if want := map[bool]int{true: 2, false: 1}[tt.code == exitDone]; asked != want {
				t.Errorf("%d requests, want %d", asked, want)
			}
		})
	}
}
