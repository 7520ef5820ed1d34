//go:build unix

package main_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// R3: connections that do nothing on the public listener take no descriptors from verification.
func TestR3IdleConnectionsLeaveVerification(t *testing.T) {
	dir := t.TempDir()
	args := keywardtest.ServeArgs(t, keywardtest.Options{Dir: dir})
	binary := keywardtest.Build(t, "")
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -n 1024; exec "$@"`, "sh", binary}, args...)...)
	cmd.Dir = dir
	cmd.SysProcAttr = keywardtest.DieWithParent(syscall.SIGKILL)
	stderr := keywardtest.NewOutput()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(stderr.String())
		}
	}()
	address := func(listener string) (found string) {
		err := keywardtest.Poll(func() bool {
			for line := range strings.Lines(stderr.String()) {
				if strings.Contains(line, `"msg":"listening"`) && strings.Contains(line, `"listener":"`+listener+`"`) {
					_, rest, _ := strings.Cut(line, `"address":"`)
					found, _, _ = strings.Cut(rest, `"`)
				}
			}
			return found != ""
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	public, verification := address("public"), address("verification")
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	verifies := func() bool {
		resp, err := client.Post("http://"+verification+"/v1/verify", "application/json", strings.NewReader(`{"key":"x"}`))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	if err := keywardtest.Poll(verifies, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		conn, err := net.DialTimeout("tcp", public, time.Second)
		if err != nil {
			break // the backlog is full: nobody accepts any more
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		fmt.Fprint(conn, "GET /docs/style.css HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n")
		if i < 1000 {
			_, _ = bufio.NewReader(conn).ReadByte() // then it is idle, for as long as the server allows
		}
	}
	for range 5 {
		if !verifies() {
			t.Fatal("verification does not answer beside 1,500 idle connections")
		}
	}
}
