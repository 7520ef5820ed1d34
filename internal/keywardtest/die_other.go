//go:build !linux

package keywardtest

import "syscall"

// dieWithParent leaves it to the test's clean-up to end the child.
func dieWithParent() *syscall.SysProcAttr { return nil }
