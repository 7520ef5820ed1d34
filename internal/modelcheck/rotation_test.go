package modelcheck

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const rotationModel = "../../docs/model/rotation.pml"

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
func TestR10Rotation(t *testing.T) {
	text, err := os.ReadFile(rotationModel)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatal(howToGet)
		}
	}
	for _, c := range rotationChecks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, report := search(t, text, c)
			if got != c.want {
				t.Fatalf("%s: %v, want %v\n%s", c.flags, got, c.want, report)
			}
		})
	}
	var given []string
	for _, c := range rotationChecks {
		given = append(given, c.flags)
	}
	for _, m := range regexp.MustCompile(`(?m)^#ifn?def ([A-Z_]{2,})$|defined\(([A-Z_]+)\)`).FindAllStringSubmatch(string(text), -1) {
		if name := m[1] + m[2]; !strings.Contains(strings.Join(given, " ")+" ", "-D"+name+" ") {
			t.Errorf("no check sets %s", name)
		}
	}
}
