package modelcheck

import "testing"

// rotationChecks are the size that a test can afford, a rule that is not needed, and every seeded
// error.
var rotationChecks = []check{
	{"2 nodes, 1 write", "-DN=2 -DW=1", holds},
	{"the switch takes no revision", "-DN=2 -DW=1 -DSWITCH_HAS_NO_REVISION", holds},

	{"a lease is given without the key", "-DN=2 -DW=1 -DLEASE_WITHOUT_THE_KEY", violated},
	{"a node signs under the first key of its file", "-DN=2 -DW=1 -DSIGNS_BY_THE_FILE", violated},
	{"the key is switched without a look at the nodes", "-DN=2 -DW=1 -DSWITCHES_AT_ONCE", violated},
	{
		"the nodes are listed before the transaction",
		"-DN=2 -DW=1 -DCHECKS_BEFORE_THE_LOCK",
		violated,
	},
	{
		"a node says what its file has, not its memory",
		"-DN=2 -DW=1 -DADVERTISES_THE_FILE",
		violated,
	},
	{"a key that is in use is dropped", "-DN=2 -DW=1 -DDROPS_A_KEY_IN_USE", violated},
	{
		"a key is dropped while the node's row claims it",
		"-DN=2 -DW=1 -DDROPS_WHAT_IT_CLAIMS",
		violated,
	},
	{"an unknown key is taken for a forgery", "-DN=2 -DW=1 -DUNKNOWN_IS_FORGED", violated},
}

// R10: no node that serves loses sight of the database in a rotation, and none calls forged what
// Keyward wrote.
func TestR10Rotation(t *testing.T) { runChecks(t, "rotation.pml") }
