package keywardtest

import "syscall"

// dieWithParent makes the kernel end the child when the thread that forked it does.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
