package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
)

// R4: the nodes as operations name them.
func TestNodes(t *testing.T) {
	f := newFixture(t)
	f.put("org_a", `{}`)
	f.put("org_b", `{}`)
	got := decode[api.NodeList](t, f.do(ask{method: "GET", url: f.admin + "/v1/nodes"}).body)
	want := api.NodeList{Revision: 2, Nodes: []api.Node{
		{NodeID: "A", Address: "10.0.0.1:8081", Version: "1.0.0", Protocol: 1, Revision: 1, Lag: 1, LeaseSeconds: 10, RenewedSecondsAgo: .25, Self: true},
		{NodeID: "B", Revision: -1, Lag: 3},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := f.do(ask{method: "GET", url: f.public + "/v1/nodes"}); got.status != 404 {
		t.Errorf("on the public listener: %d", got.status)
	}
}
