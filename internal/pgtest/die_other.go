//go:build unix && !linux

package pgtest

import "syscall"

// dieWithParent leaves the child to the watchdog.
func dieWithParent(*syscall.SysProcAttr) {}
