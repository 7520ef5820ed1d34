//go:build !failpoints

package main

// otherVariables are read elsewhere than in a flag: the payments example has its own settings.
var otherVariables = []string{"KEYWARD_ADDRESS"}
