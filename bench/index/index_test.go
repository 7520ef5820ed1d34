package index

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

var sizes = []int{1_000, 1_000_000}

// writesPerSecond go on beside the look-ups in half of the measurements: a busy day's creates and
// revokes.
const writesPerSecond = 20

// sampled is how many different digests are asked for: far more than a cache holds.
const sampled = 1 << 16

// filled returns a candidate with n entries, and digests in it.
func filled(empty func(int) table, n int) (table, []digest) {
	draw := rand.NewChaCha8([32]byte{1})
	t := empty(n)
	sample := make([]digest, 0, min(n, sampled))
	for i := range n {
		var d digest
		_, _ = draw.Read(d[:]) // never fails
		t.load(d, entryOf(i))
		if i%max(1, n/sampled) == 0 && len(sample) < cap(sample) {
			sample = append(sample, d)
		}
	}
	rand.New(draw).Shuffle(len(sample), func(i, j int) { sample[i], sample[j] = sample[j], sample[i] })
	return t, sample
}

func entryOf(i int) entry {
	return entry{id: uint64(i), revision: int64(i), slot: uint32(i), state: 1, live: i%2 == 0, createdAt: 1, owner: [16]byte{byte(i), 15: byte(i >> 8)}}
}

// Every candidate gives back what it was given, while another goroutine writes.
func TestCandidates(t *testing.T) {
	for _, c := range candidates {
		t.Run(c.name, func(t *testing.T) {
			const n = 500
			tab, sample := filled(c.empty, n)
			var writer sync.WaitGroup
			writer.Go(func() {
				for i := range 4 * n {
					e, ok := tab.get(sample[i%n])
					if !ok {
						t.Error("an entry is gone")
						return
					}
					e.revision++
					e.expiresAt = e.revision
					tab.put(sample[i%n], e)
				}
			})
			for i := range 4 * n {
				e, ok := tab.get(sample[i%n])
				if !ok || e.expiresAt != 0 && e.expiresAt != e.revision {
					t.Fatalf("half an entry, or none: %+v %v", e, ok)
				}
				e.expiresAt, e.revision = 0, int64(e.id)
				if d := cmp.Diff(entryOf(int(e.id)), e, cmp.AllowUnexported(entry{})); d != "" {
					t.Fatal(d)
				}
			}
			writer.Wait()
			if e, ok := tab.get(digest{}); ok {
				t.Errorf("found what was never put: %+v", e)
			}
		})
	}
}

// The words of a slot are the entry, and nothing of it is left out.
func TestEntrySize(t *testing.T) {
	if size := unsafe.Sizeof(entry{}); size != 9*8 {
		t.Fatalf("an entry has %d bytes", size)
	}
}

func BenchmarkGet(b *testing.B) {
	for _, n := range sizes {
		for _, c := range candidates {
			b.Run(fmt.Sprintf("keys=%d/%s", n, c.name), func(b *testing.B) {
				tab, sample := filled(c.empty, n)
				b.Run("read-only", func(b *testing.B) { get(b, tab, sample) })
				b.Run("20-writes", func(b *testing.B) {
					stop := make(chan struct{})
					var writer sync.WaitGroup
					writer.Go(func() {
						tick := time.NewTicker(time.Second / writesPerSecond)
						defer tick.Stop()
						for i := 0; ; i++ {
							select {
							case <-tick.C:
								tab.put(sample[i%len(sample)], entryOf(i))
							case <-stop:
								return
							}
						}
					})
					get(b, tab, sample)
					close(stop)
					writer.Wait()
				})
			})
		}
	}
}

func get(b *testing.B, tab table, sample []digest) {
	b.ReportAllocs()
	b.ResetTimer()
	used := processorTime()
	var goroutines atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		i := int(goroutines.Add(1)) * 7919
		for ; pb.Next(); i++ {
			if _, ok := tab.get(sample[i%len(sample)]); !ok {
				b.Error("an entry is gone")
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(processorTime()-used)/float64(b.N), "cpu-ns/op")
}

// processorTime is what this process has used, in nanoseconds. On a machine that has other things to do
// it tells more than the time by the clock.
func processorTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkPut is one change of an entry that is there.
func BenchmarkPut(b *testing.B) {
	for _, n := range sizes {
		for _, c := range candidates {
			b.Run(fmt.Sprintf("keys=%d/%s", n, c.name), func(b *testing.B) {
				tab, sample := filled(c.empty, n)
				b.Run("put", func(b *testing.B) {
					b.ReportAllocs()
					used := processorTime()
					for i := range b.N {
						tab.put(sample[i%len(sample)], entryOf(i))
					}
					b.ReportMetric(float64(processorTime()-used)/float64(b.N), "cpu-ns/op")
				})
			})
		}
	}
}

// BenchmarkCollect is a whole garbage collection with one full candidate alive: its wall time (ns/op), the
// processor time it took, and what a key costs in memory.
func BenchmarkCollect(b *testing.B) {
	const n = 1_000_000
	for _, c := range candidates {
		b.Run(c.name, func(b *testing.B) {
			runtime.GC()
			before := heapBytes()
			tab, _ := filled(c.empty, n)
			runtime.GC()
			perKey := float64(heapBytes()-before) / n
			b.Run("gc", func(b *testing.B) {
				used := collectorSeconds()
				for range b.N {
					runtime.GC()
				}
				b.ReportMetric((collectorSeconds()-used)*1e3/float64(b.N), "gc-cpu-ms/op")
				b.ReportMetric(perKey, "B/key")
			})
			runtime.KeepAlive(tab)
		})
	}
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// collectorSeconds is the processor time the garbage collector has used, without idle time it took.
func collectorSeconds() float64 {
	s := []metrics.Sample{
		{Name: "/cpu/classes/gc/mark/assist:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/dedicated:cpu-seconds"},
		{Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}, {Name: "/cpu/classes/gc/pause:cpu-seconds"},
	}
	metrics.Read(s)
	sum := 0.
	for _, m := range s {
		sum += m.Value.Float64()
	}
	return sum
}
