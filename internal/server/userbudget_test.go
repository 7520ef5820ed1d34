package server

import (
	"fmt"
	"testing"
	"time"
)

// C32: a bucket of as many requests as a minute has, refilled evenly.
func TestC32Bucket(t *testing.T) {
	now := time.Now()
	b := newUserBudgets(120)
	for i := range 120 {
		if _, ok := b.take("u", now); !ok {
			t.Fatalf("request %d of a burst of 120 is rejected", i+1)
		}
	}
	wait, ok := b.take("u", now)
	if ok || wait <= 0 || wait > 500*time.Millisecond {
		t.Errorf("request 121: ok %v, wait %v, want a wait of half a second", ok, wait)
	}
	if _, ok := b.take("v", now); !ok {
		t.Error("another user is rejected")
	}
	if _, ok := b.take("u", now.Add(wait)); !ok {
		t.Errorf("rejected after the %v that it was told to wait", wait)
	}
	if _, ok := b.take("u", now.Add(wait)); ok {
		t.Error("one more than was refilled")
	}
	if b := newUserBudgets(0); b != nil {
		t.Error("0 is not off")
	} else if _, ok := b.take("u", now); !ok {
		t.Error("without a budget a request is rejected")
	}
}

// C32: millions of users do not fill the memory. A user within the budget keeps its bucket.
func TestC32BucketsAreForgotten(t *testing.T) {
	now := time.Now()
	b := newUserBudgets(120)
	held := func() (n int) {
		for i := range b.parts {
			n += len(b.parts[i].buckets)
		}
		return n
	}
	for i := range 1_000_000 {
		now = now.Add(time.Millisecond) // 1,000 a second: each bucket is full again after half a second
		b.take(fmt.Sprint("user", i), now)
	}
	if n := held(); n > 10_000 {
		t.Errorf("%d buckets are remembered of 500 that are not full", n)
	}
	for i := range 300_000 { // and all at once
		b.take(fmt.Sprint("other", i), now)
	}
	if n := held(); n > len(b.parts)*maxBuckets {
		t.Errorf("%d buckets, want at most %d", n, len(b.parts)*maxBuckets)
	}
}
