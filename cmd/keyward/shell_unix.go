//go:build !windows

package main

import (
	"os/exec"
	"syscall"
)

// shell runs the master key command.
var shell = [2]string{"/bin/sh", "-c"}

// endWithChildren makes the command a process group, which ends as a whole when its time is up.
func endWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
