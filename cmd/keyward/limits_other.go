//go:build !unix

package main

// descriptorLimit is a number that this system can hold.
func descriptorLimit() int { return 8192 }
