//go:build failpoints

package main

// otherVariables are read elsewhere than in a flag. This build has failpoints.
var otherVariables = []string{"KEYWARD_ADDRESS", "KEYWARD_FAILPOINT"}
