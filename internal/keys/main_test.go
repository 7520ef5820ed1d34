package keys_test

import (
	"os"
	"testing"

	"github.com/syncgram/keyward/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	defer pgtest.ReapAll()
	return m.Run()
}
