//go:build !windows

package main

import (
	"os"
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

// keepOwner gives f the mode and the owner of the file that it is to replace.
func keepOwner(f *os.File, old os.FileInfo) error {
	if s, ok := old.Sys().(*syscall.Stat_t); ok &&
		(int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
		if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
			return err
		}
	}
	return f.Chmod(old.Mode().Perm())
}
