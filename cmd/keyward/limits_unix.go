//go:build unix

package main

import "syscall"

// maxDescriptors is taken where there is no limit.
const maxDescriptors = 1 << 20

// descriptorLimit raises the limit of open files to what this process may have, and returns it.
func descriptorLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	if l.Cur < l.Max {
		raised := syscall.Rlimit{Cur: l.Max, Max: l.Max}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			l = raised
		}
	}
	if uint64(l.Cur) > maxDescriptors {
		return maxDescriptors
	}
	return int(l.Cur)
}
