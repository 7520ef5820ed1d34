//go:build failpoints

// Package failpoint marks the places between two steps at which a test kills the
// process. A normal build compiles each mark to nothing; a build with the tag failpoints
// obeys KEYWARD_FAILPOINT.
package failpoint

import (
	"os"
	"syscall"
)

var armed = os.Getenv("KEYWARD_FAILPOINT")

// Hit kills the process without any clean-up when KEYWARD_FAILPOINT is name.
func Hit(name string) {
	if name == armed {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; nothing after this point may run
	}
}
