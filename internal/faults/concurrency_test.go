package faults

import (
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// atOnce sends n requests at the same time and counts the answers, by status and code, and the bodies of the 201s.
func atOnce(n int, send func(i int) answer) (counts map[string]int, bodies map[string]int) {
	var all sync.WaitGroup
	var mu sync.Mutex
	counts, bodies = map[string]int{}, map[string]int{}
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			a := send(i)
			mu.Lock()
			defer mu.Unlock()
			counts[a.String()]++
			if a.status == 201 {
				bodies[string(a.body)]++
			}
		})
	}
	close(begin)
	all.Wait()
	return counts, bodies
}

// C13, C14, C16: the races of create against the real binary, on both databases.
func TestC13RacesOverHTTP(t *testing.T) {
	for engine, database := range engines {
		t.Run(engine, func(t *testing.T) {
			p := keywardtest.Start(t, keywardtest.Options{DatabaseURL: database(t)})
			as := func(user, organization string) merchant { return merchant{p, p.Token(t, user, organization)} }

			users := make([]merchant, 100)
			for i := range users {
				users[i] = as(fmt.Sprint("user_", i), "org_one")
			}
			got, _ := atOnce(100, func(i int) answer { return users[i].create(t, "") })
			if diff := cmp.Diff(map[string]int{"201 ": 1, "400 active_key_exists": 99}, got); diff != "" {
				t.Errorf("100 creates of one organization (-want +got):\n%s", diff)
			}

			organizations := make([]merchant, 30)
			for i := range organizations {
				organizations[i] = as("one_user", fmt.Sprint("org_", i))
			}
			got, _ = atOnce(30, func(i int) answer { return organizations[i].create(t, "") })
			if diff := cmp.Diff(map[string]int{"201 ": 1, "429 rate_limited": 29}, got); diff != "" {
				t.Errorf("30 creates of one user (-want +got):\n%s", diff)
			}

			m := as("retrying", "org_retry")
			got, bodies := atOnce(24, func(int) answer { return m.create(t, "one-idempotency-key") })
			if len(bodies) != 1 || got["201 "]+got["409 idempotency_in_progress"] != 24 {
				t.Errorf("24 creates with one idempotency key: %v, %d different bodies", got, len(bodies))
			}
			if keys := m.list(t); len(keys) != 1 {
				t.Errorf("%d keys", len(keys))
			}
			again := m.create(t, "one-idempotency-key")
			for body := range maps.Keys(bodies) {
				if body != string(again.body) {
					t.Error("a later replay has other bytes")
				}
			}
		})
	}
}
