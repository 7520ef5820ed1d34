package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/syncgram/keyward/api"
)

func environment(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestServesUntilTold(t *testing.T) {
	internal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer first-token" {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(api.Verdict{Valid: true, Reason: "valid", APIKeyID: "key_1", OrganizationID: "org_1", Env: "test"})
	}))
	t.Cleanup(internal.Close)
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("first-token\nsecond-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	reader, writer := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"-listen", "127.0.0.1:0"}, environment(map[string]string{
			"PAYMENTS_LISTEN": "192.0.2.1:1", // the flag comes first
			"KEYWARD_ADDRESS": internal.URL, "KEYWARD_CREDENTIAL_FILE": tokens,
		}), writer)
		writer.Close()
	}()
	lines := bufio.NewScanner(reader)
	if !lines.Scan() {
		t.Fatalf("nothing was logged; exit code %d", <-code)
	}
	var started struct{ Address string }
	if err := json.Unmarshal(lines.Bytes(), &started); err != nil || started.Address == "" {
		t.Fatalf("first line %q: %v", lines.Text(), err)
	}
	go func() { // the pipe blocks whoever logs
		for lines.Scan() {
		}
	}()
	req, err := http.NewRequest("GET", "http://"+started.Address+"/v1/payments", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("some-key", "")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || string(body) != `{"payments":[],"has_more":false}`+"\n" {
		t.Errorf("%d %s %v", resp.StatusCode, body, err)
	}
	http.DefaultClient.CloseIdleConnections()
	stop()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d after a clean end", got)
	}
}

func TestWrongSettings(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		env  map[string]string
		code int
		says string
	}{
		{"unknown flag", []string{"-lisen", "x"}, nil, 2, "lisen"},
		{"argument", []string{"x"}, nil, 2, "arguments"},
		{"address", nil, map[string]string{"KEYWARD_ADDRESS": "127.0.0.1:8081"}, 2, "Addresses[0]"},
		{"token file away", []string{"-keyward-token-file", empty + ".not"}, nil, 2, "no such file"},
		{"token file empty", []string{"-keyward-token-file", empty}, nil, 2, "empty"},
		{"cannot listen", []string{"-listen", "127.0.0.1:99999"}, nil, 1, "listen"},
		{"help", []string{"-help"}, nil, 0, "PAYMENTS_LISTEN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stderr strings.Builder
			if got := run(t.Context(), tc.args, environment(tc.env), &stderr); got != tc.code {
				t.Errorf("exit code %d, want %d", got, tc.code)
			}
			if !strings.Contains(stderr.String(), tc.says) {
				t.Errorf("stderr %q does not say %q", stderr.String(), tc.says)
			}
		})
	}
}
