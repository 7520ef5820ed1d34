package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// startWithPipe starts a server whose standard error is a pipe and reads the pipe until both
// listeners are known. The rest of the pipe is the caller's to read, to close or to leave.
func startWithPipe(t *testing.T, flags ...string) (*keywardtest.Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	o := keywardtest.Options{Dir: t.TempDir(), Flags: flags, Stderr: w}
	o.Args = keywardtest.ServeArgs(t, o)
	p := keywardtest.Run(t, o)
	w.Close()
	for lines := bufio.NewReaderSize(r, 16); p.Public == "" || p.Verification == "" || p.Admin == ""; {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var l struct{ Msg, Listener, Address string }
		if json.Unmarshal(text, &l) != nil || l.Msg != "listening" {
			continue
		}
		switch l.Listener {
		case "public":
			p.Public = "http://" + l.Address
		case "verification":
			p.Verification = "http://" + l.Address
		case "admin":
			p.Admin = "http://" + l.Address
		}
	}
	return p, r
}

// logMuch sends requests until the server has logged far more than a pipe and its own buffer hold.
func logMuch(t *testing.T, p *keywardtest.Process) {
	t.Helper()
	var sending sync.WaitGroup
	for range 4 {
		sending.Go(func() {
			client := http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			for range 3000 {
				resp, err := client.Get(p.Admin + "/livez")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	sending.Wait()
}

var droppedLines = regexp.MustCompile(`(?m)^keyward_log_lines_dropped_total ([0-9]+)`)

// lost returns how many log lines the server says are lost.
func lost(t *testing.T, p *keywardtest.Process) int {
	t.Helper()
	_, metrics := request(t, "GET", p.Admin+"/metrics", "", "")
	m := droppedLines.FindStringSubmatch(metrics)
	if m == nil {
		t.Fatal("no metric of dropped log lines")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// serves checks what a log reader must not take away.
func serves(t *testing.T, p *keywardtest.Process, organization string) {
	t.Helper()
	p.WaitReady(t)
	k := create(t, p, "ann_"+organization, organization)
	if v := verdict(t, p, k.Key); !v.Valid {
		t.Errorf("a created key: %+v", v)
	}
	resp, body := request(t, "POST", p.Public+keysPath+"/"+k.APIKeyID+"/revoke", p.Token(t, "ann_"+organization, organization), "")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("revoke: %d %s", resp.StatusCode, body)
	}
	if v := verdict(t, p, k.Key); v.Valid {
		t.Errorf("a revoked key: %+v", v)
	}
	p.WaitStatus(t, p.Admin+"/readyz", http.StatusOK)
}

// R12: a log reader that is gone or stuck costs log lines, and nothing else.
func TestR12LogReader(t *testing.T) {
	for name, breakIt := range map[string]func(*testing.T, *keywardtest.Process, *os.File){
		"gone":  func(_ *testing.T, _ *keywardtest.Process, r *os.File) { r.Close() },
		"stuck": func(t *testing.T, p *keywardtest.Process, _ *os.File) { logMuch(t, p) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, r := startWithPipe(t, "--log-level=debug")
			serves(t, p, "org_before")
			breakIt(t, p, r)
			serves(t, p, "org_after")
			if lost(t, p) == 0 {
				t.Error("no log line counts as dropped")
			}
			began := time.Now()
			if code := p.Stop(t); code != exitDone {
				t.Errorf("exit code %d", code)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("stopped after %v", took)
			}
		})
	}
}

// R12: a reader that comes back is told how many lines it did not get, and gets the last line.
func TestR12LogReaderComesBack(t *testing.T) {
	t.Parallel()
	p, r := startWithPipe(t, "--log-level=debug")
	p.WaitReady(t)
	logMuch(t, p)
	if lost(t, p) == 0 {
		t.Fatal("no log line counts as dropped")
	}
	var text strings.Builder
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(&text, r)
		read <- err
	}()
	if err := keywardtest.Poll(func() bool { // lines get through again
		before := lost(t, p)
		return lost(t, p) == before
	}, p.Exited()); err != nil {
		t.Fatal(err)
	}
	if code := p.Stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	told, stopped := 0, false
	for _, line := range lines {
		var l struct {
			Msg   string
			Lines int
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v in line %q", err, line)
		}
		switch l.Msg {
		case "log lines were dropped":
			told += l.Lines
		case "stopped":
			stopped = true
		}
	}
	if told == 0 {
		t.Error("the log does not say that lines are missing")
	}
	if !stopped {
		t.Errorf("no line says that the server stopped; last line %s", lines[len(lines)-1])
	}
}

// R12: the line that says why a server does not start is written, and waits for nobody for long.
func TestR12LastLine(t *testing.T) {
	t.Parallel()
	for name, gone := range map[string]bool{"gone": true, "stuck": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if gone {
				r.Close()
			} else {
				fill(t, w)
			}
			dir := t.TempDir()
			o := keywardtest.Options{Dir: dir, Stderr: w, DatabaseURL: "sqlite:" + filepath.Join(dir, "master.key")}
			o.Args = keywardtest.ServeArgs(t, o)
			p := keywardtest.Run(t, o)
			w.Close()
			if code := p.Wait(t); code != exitFailed {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// fill writes to a pipe until it takes no more.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := fmt.Fprintln(w, "full"); os.IsTimeout(err) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// freePort returns a loopback address that nothing listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// R1, R12: dev goes on when the reader of its greeting and its log has gone.
func TestR12DevOutput(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	port := freePort(t)
	p := keywardtest.Run(t, keywardtest.Options{Stdout: w, Stderr: w, Args: []string{
		"dev", "--log-level=debug", "--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=" + port, "--payments-listen=127.0.0.1:0",
	}})
	w.Close()
	p.Admin = "http://" + port
	p.WaitStatus(t, p.Admin+"/readyz", http.StatusOK)
	for range 100 { // each is logged
		p.WaitStatus(t, p.Admin+"/readyz", http.StatusOK)
	}
	if code := p.Stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}
