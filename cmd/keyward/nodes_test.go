package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/apitest"
	"github.com/syncgram/keyward/internal/keys"
)

// R4: what the database has of each node, and which of them was asked.
func TestR4NodeList(t *testing.T) {
	got := nodeList([]keys.ServingNode{
		{Node: keys.Node{ID: "A", Address: "10.0.0.1:8081", Version: "v1.0.0", Lease: 2500 * time.Millisecond}, Protocol: 2, Applied: 15, RenewedAgo: 80 * time.Millisecond},
		{Node: keys.Node{ID: "B", Lease: time.Second}, Applied: -1, RenewedAgo: -time.Second},
		{Node: keys.Node{ID: "C"}, Applied: 19},
	}, 18, "B")
	want := api.NodeList{Revision: 18, Nodes: []api.Node{
		{NodeID: "A", Address: "10.0.0.1:8081", Version: "v1.0.0", Protocol: 2, Revision: 15, Lag: 3, LeaseSeconds: 2.5, RenewedSecondsAgo: .08},
		{NodeID: "B", Revision: -1, Lag: 19, LeaseSeconds: 1, Self: true},
		{NodeID: "C", Revision: 19},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// R4: one row a node, with what is out of order in it.
func TestR4Nodes(t *testing.T) {
	const answer = `{"revision":18,"nodes":[` +
		`{"node_id":"A","address":"10.0.0.1:8081","version":"v1.0.0","protocol":1,"revision":18,"lag":0,"lease_seconds":10,"renewed_seconds_ago":0.0834,"self":true},` +
		`{"node_id":"B","address":"10.0.0.2:8081","version":"v1.0.1","protocol":1,"revision":15,"lag":3,"lease_seconds":2.5,"renewed_seconds_ago":61,"self":false},` +
		`{"node_id":"C","address":"","version":"\u001b[2J","protocol":1,"revision":-1,"lag":19,"lease_seconds":10,"renewed_seconds_ago":0,"self":false}]}`
	s := httptest.NewServer(apitest.Handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Request-Id"], w.Header()["Cache-Control"], w.Header()["Content-Type"] = []string{"req-1"}, []string{"no-store"}, []string{"application/json"}
		fmt.Fprint(w, answer)
	})))
	defer s.Close()
	code, out, stderr := command(t, []string{"nodes", "--server", s.URL}, nil, "")
	want := `NODE       ADDRESS        VERSION  REVISION  LAG  LEASE  RENEWED
A (asked)  10.0.0.1:8081  v1.0.0   18        0    10s    80ms ago
B          10.0.0.2:8081  v1.0.1   15        3    2.5s   1m1s ago
C                         �[2J     none      19   10s    0s ago
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q, output (-want +got):\n%s", code, stderr, diff)
	}
}
