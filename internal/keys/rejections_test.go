package keys

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
)

// C32: what is written when it happens, what is counted, and when the counts are due.
func TestC32RepeatsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRejections()
		call := Call{Principal: Principal{User: "u", OrganizationID: "o"}}
		bad, over := Invalid("a", ""), TooManyRequests(0)
		first := func(e *Error) bool { return r.first(call, ActCreate, e) }
		due := func(all bool) (counts []int64) {
			for _, of := range r.due(time.Now(), all) {
				counts = append(counts, of.count)
			}
			return counts
		}
		if !first(bad) || first(bad) || first(Invalid("b", "")) {
			t.Error("the first is written, the others are counted, whatever member is at fault")
		}
		if !r.first(Call{Principal: Principal{User: "v"}}, ActCreate, bad) || !r.first(call, ActRoll, bad) {
			t.Error("another user's, or another act's, is not the same")
		}
		if diff := cmp.Diff([]int64(nil), due(false)); diff != "" {
			t.Errorf("before the minute is over: %s", diff)
		}
		time.Sleep(rejectionWindow)
		if diff := cmp.Diff([]int64{2}, due(false)); diff != "" {
			t.Errorf("after a minute: %s", diff)
		}
		if first(bad) {
			t.Error("what goes on is counted on")
		}
		time.Sleep(rejectionWindow)
		if diff := cmp.Diff([]int64{1}, due(false)); diff != "" {
			t.Errorf("after another minute: %s", diff)
		}
		time.Sleep(rejectionWindow)
		if got := due(false); got != nil || len(r.open) != 0 {
			t.Errorf("a quiet minute: %v, %d remembered", got, len(r.open))
		}
		if !first(bad) {
			t.Error("after a quiet minute it is the first again")
		}
		if first(over) {
			t.Error("what is over a budget is never written when it happens")
		}
		if diff := cmp.Diff([]int64{1}, due(true)); diff != "" {
			t.Errorf("at the end: %s", diff)
		}
	})
}

// C32: the memory is bounded. Beyond it nothing is lost but what is over a budget.
func TestC32RepeatsAreBounded(t *testing.T) {
	r := newRejections()
	for i := range maxRejections + 10 {
		c := Call{Principal: Principal{User: fmt.Sprint(i)}}
		if !r.first(c, ActCreate, Invalid("", "")) {
			t.Fatalf("user %d: the first is not written", i)
		}
	}
	late := Call{Principal: Principal{User: "late"}}
	for range 2 {
		if !r.first(late, ActCreate, Invalid("", "")) {
			t.Error("without memory each is written")
		}
	}
	if r.first(late, ActCreate, &Error{Code: api.TooManyRequests}) {
		t.Error("over a budget, written without memory")
	}
	if len(r.open) > maxRejections {
		t.Errorf("%d are remembered", len(r.open))
	}
}

// The ids that are known to be revoked are bounded too.
func TestRecentIDs(t *testing.T) {
	var r recentIDs
	for i := range 2*maxRecentIDs + 5 {
		r.add(fmt.Sprint(i))
		r.add(fmt.Sprint(i))
	}
	if len(r.place) != maxRecentIDs || len(r.ids) != maxRecentIDs {
		t.Errorf("%d and %d remembered", len(r.place), len(r.ids))
	}
	if r.has(fmt.Sprint(maxRecentIDs+4)) || !r.has(fmt.Sprint(maxRecentIDs+5)) || !r.has(fmt.Sprint(2*maxRecentIDs+4)) {
		t.Error("not the last ones")
	}
}
