package main

import (
	"os"
	"testing"
)

// R4: a command whose standard input is the null device has nobody to ask.
func TestR4NullIsNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) {
		t.Errorf("%s counts as a terminal", os.DevNull)
	}
	given := os.NewFile(null.Fd(), "/dev/stdin") // as os.Stdin is named, whatever it is
	if isTerminal(given) {
		t.Error("the null device as standard input counts as a terminal")
	}
}
