package verify

import (
	"testing"
	"testing/synctest"
	"time"
)

// R4: a node knows which row is its own, also after it was fenced and registered anew.
func TestR4NodeID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newMemoryFeed()
		if id := idle(t, feed).NodeID(); id != "" {
			t.Errorf("%q before it is registered", id)
		}
		v, _ := start(t, feed, nil)
		registered := func(id string) bool {
			feed.mu.Lock()
			defer feed.mu.Unlock()
			_, there := feed.nodes[id]
			return there && len(feed.nodes) == 1
		}
		synctest.Wait()
		first := v.NodeID()
		if !registered(first) {
			t.Errorf("%q is not registered", first)
		}
		feed.mu.Lock()
		clear(feed.nodes)
		feed.mu.Unlock()
		time.Sleep(time.Second)
		if second := v.NodeID(); second == first || !registered(second) {
			t.Errorf("%q after %q was fenced", second, first)
		}
	})
}
