//go:build !race

// The race detector makes sync.Pool drop states at random, so allocations are counted without it.

package seal

import "testing"

// A node that starts checks every row: a million of them must not be work for the collector.
func TestChecksAllocateNothing(t *testing.T) {
	r := ring(t, line(t, "now"))
	content := make([]byte, 300)
	s := signer(r).SealRow("key", content)
	if n := testing.AllocsPerRun(1000, func() {
		if r.CheckRow("key", content, s) != nil {
			t.Error("bad seal")
		}
	}); n >= 1 { // the pool may be emptied once by the collector
		t.Errorf("CheckRow allocates %v times", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Weight("now", "key", "key_00000000000000000000000000", 7); err != nil {
			t.Error(err)
		}
	}); n >= 1 {
		t.Errorf("Weight allocates %v times", n)
	}
}
