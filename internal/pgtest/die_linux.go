package pgtest

import "syscall"

// dieWithParent makes the kernel end the child when the thread that forked it does.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGQUIT }
