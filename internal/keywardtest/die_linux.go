package keywardtest

import "syscall"

// DieWithParent makes the kernel send the child a signal when the thread that forked it ends.
func DieWithParent(s syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: s}
}
