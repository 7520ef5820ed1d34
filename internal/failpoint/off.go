//go:build !failpoints

// Package failpoint marks the places between two steps at which a test kills the
// process. A normal build compiles each mark to nothing; a build with the tag failpoints
// obeys KEYWARD_FAILPOINT.
package failpoint

// Hit does nothing in this build.
func Hit(string) {}
