package histories

import (
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/defect"
	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// C23: these histories can fail. A program that does not hold its lease against the clock is found to accept what was revoked, by the
// nodes that stood still (F2), within a minute.
func TestHistoriesFindTheMissingLeaseCheck(t *testing.T) {
	t.Parallel()
	overlay := defect.Overlay(t, defect.Defect{
		Name: "the lease is not compared with the clock", File: "internal/verify/verify.go",
		Old: "leased = held.lease.goodAt(read)", New: "leased = true",
	})
	w := newCrowd(newCluster(t, keywardtest.Options{Overlay: overlay}, 3, pgtest.NewServer(t)))
	began := time.Now()
	const seed = 90 // of six times a node stands still, at least four are longer than a writer waits
	p := w.play(seed, []nemesis{{"F2 frozen node", (*crowd).freezeNodes}}, map[string]int{"F2": 6})
	took := time.Since(began)
	if len(p.found.staleAccepts) == 0 || took > time.Minute {
		w.tb.Errorf("%d stale accepts were found in %v, want some within a minute", len(p.found.staleAccepts), took)
	}
	t.Logf("without the lease check: %d stale accepts in %v, such as %v", len(p.found.staleAccepts), took.Round(time.Millisecond), p.found.staleAccepts[:min(1, len(p.found.staleAccepts))])
}
