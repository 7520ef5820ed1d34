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
		for i := range b.buckets.parts {
			n += len(b.buckets.parts[i].buckets)
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
	if n := held(); n > len(b.buckets.parts)*maxBuckets {
		t.Errorf("%d buckets, want at most %d", n, len(b.buckets.parts)*maxBuckets)
	}
}

// Who is rejected often waits for it, up to a bound, and nobody else does.
func TestManyRejectionsAreSlow(t *testing.T) {
	now := time.Now()
	d := newSlowdown(10, 20, 5*time.Second)
	for i := range 20 {
		if wait := d.delay("u", now); wait != 0 {
			t.Fatalf("rejection %d waits %v", i+1, wait)
		}
	}
	if wait := d.delay("u", now); wait <= 0 || wait > 100*time.Millisecond {
		t.Errorf("rejection 21 waits %v, want a tenth of a second", wait)
	}
	for range 1000 {
		if wait := d.delay("u", now); wait > 5*time.Second {
			t.Fatalf("waits %v, want at most 5s", wait)
		}
	}
	var tenths [10]int // of the time between half and all of the bound
	for range 1000 {
		wait := d.delay("u", now)
		if wait < 5*time.Second/2 {
			t.Fatalf("one of many waits %v, want at least half of 5s", wait)
		}
		tenths[min(9, (wait-5*time.Second/2)/(time.Second/4))]++
	}
	for i, n := range tenths {
		if n < 50 || n > 150 {
			t.Errorf("%d of 1,000 wait for tenth %d: they come back together", n, i)
		}
	}
	if wait := d.delay("v", now); wait != 0 {
		t.Errorf("another waits %v", wait)
	}
	if wait := d.delay("u", now.Add(10*time.Second)); wait != 0 {
		t.Errorf("after a quiet time: %v", wait)
	}
}
