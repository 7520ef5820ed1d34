//go:build !linux

package keywardtest

import "syscall"

// DieWithParent leaves it to the test's clean-up to end the child.
func DieWithParent(syscall.Signal) *syscall.SysProcAttr { return nil }
