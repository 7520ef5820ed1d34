package histories

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// act is what a client did.
type act uint8

const (
	created     act = iota // by create, or as the successor of a roll
	ended                  // by revoke, or by a roll without overlap
	switchedOff            // the key's organization
	switchedOn
	verified
)

// verdict is what a verification answered. One that could not decide (503, no answer) is not recorded: it let nobody in.
type verdict uint8

const (
	accepted verdict = iota
	keyRefused
	organizationRefused
	strange // anything else, such as unknown: never right for a key that was handed out
)

var verdictNames = [...]string{"valid", "revoked", "organization_inactive", "something else"}

// verdictOf reads the word of /v1/verify. No key of these tests has an expiry.
func verdictOf(reason string) verdict {
	if i := slices.Index(verdictNames[:strange], reason); i >= 0 {
		return verdict(i)
	}
	return strange
}

// never is the return time of a write that was not answered: it may take effect at any later time, or not at all.
const never = math.MaxInt64 / 4

// operation is one answered request, or one write whose outcome is not known. Times are nanoseconds of one monotonic clock, taken
// before the request was sent and after the answer was read.
type operation struct {
	act       act
	verdict   verdict // of verified
	process   int32   // that answered; numbers are not used again when a node is started anew
	call, ret int64
}

// history is what all clients saw.
type history struct {
	began time.Time

	mu            sync.Mutex
	keys          map[*key][]operation
	organizations map[*organization][]operation
	count         int // operations
}

func newHistory() *history {
	return &history{began: time.Now(), keys: make(map[*key][]operation), organizations: make(map[*organization][]operation)}
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) addKey(k *key, o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[k] = append(h.keys[k], o)
	h.count++
}

func (h *history) addOrganization(o *organization, op operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.organizations[o] = append(h.organizations[o], op)
	h.count++
}

// findings is what the checks of one history found wrong, an example of each.
type findings struct {
	staleAccepts []string // accepted although a write that forbids it was answered before the question
	lostWrites   []string // refused although a write that allows it was answered before the question, and nothing forbids it
	unstuck      []string // accepted by a process that had refused the key as revoked before
	illegal      []string // no order of the operations explains the answers
	unproven     []string // the search for such an order took too long
}

// bad returns everything that was found, the shortest proofs first.
func (f *findings) bad() []string {
	return slices.Concat(f.staleAccepts, f.lostWrites, f.unstuck, f.illegal, f.unproven)
}

// check searches the whole history.
func (h *history) check() *findings {
	h.mu.Lock()
	defer h.mu.Unlock()
	var f findings
	var mu sync.Mutex
	work := make(chan *key)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for k := range work {
				own, switches := h.keys[k], h.organizations[k.organization]
				found := checkBarrier(k, own, switches)
				found.unstuck = checkSticky(k, own)
				patience := 30 * time.Second
				if len(found.staleAccepts)+len(found.lostWrites) > 0 {
					patience = time.Second // to find that nothing explains it can take for ever
				}
				switch porcupine.CheckOperationsTimeout(model, modelled(own, switches), patience) {
				case porcupine.Illegal:
					found.illegal = append(found.illegal, fmt.Sprintf("%v: no order of its %d operations is legal", k, len(own)+len(switches)))
				case porcupine.Unknown:
					found.unproven = append(found.unproven, fmt.Sprintf("%v: no order of its %d operations was found in time", k, len(own)+len(switches)))
				}
				mu.Lock()
				f.staleAccepts = append(f.staleAccepts, found.staleAccepts...)
				f.lostWrites = append(f.lostWrites, found.lostWrites...)
				f.unstuck = append(f.unstuck, found.unstuck...)
				f.illegal = append(f.illegal, found.illegal...)
				f.unproven = append(f.unproven, found.unproven...)
				mu.Unlock()
			}
		})
	}
	for k := range h.keys {
		work <- k
	}
	close(work)
	workers.Wait()
	return &f
}

// checkBarrier is contract line C23 said as it stands, once for each verification (I1 and I7): what was answered before it was
// invoked is what it must answer by, unless another write was in flight meanwhile.
func checkBarrier(k *key, own, switches []operation) (f findings) {
	begun, answered := int64(never), int64(never) // of the key's end: the first call and the first answer
	made := int64(never)
	for _, o := range own {
		switch o.act {
		case ended:
			begun, answered = min(begun, o.call), min(answered, o.ret)
		case created:
			made = min(made, o.ret)
		}
	}
	for _, v := range own {
		if v.act != verified {
			continue
		}
		on, settled := organizationAt(switches, v)
		dead := v.call > answered
		off := settled && !on
		alive := v.call > made && v.ret < begun
		switch {
		case v.verdict == accepted && dead:
			f.staleAccepts = append(f.staleAccepts, fmt.Sprintf("%v: process %d accepted it %v after its end was answered", k, v.process, time.Duration(v.call-answered)))
		case v.verdict == accepted && off:
			f.staleAccepts = append(f.staleAccepts, fmt.Sprintf("%v: process %d accepted it after the answer that its organization is off", k, v.process))
		case v.verdict == strange,
			v.verdict == keyRefused && alive,
			v.verdict == organizationRefused && settled && on:
			f.lostWrites = append(f.lostWrites, fmt.Sprintf("%v: process %d answered %s %v after it was created", k, v.process, verdictNames[v.verdict], time.Duration(v.call-made)))
		}
	}
	return f
}

// organizationAt says whether the organization was on during v, and whether that is certain: no switch was in flight meanwhile.
func organizationAt(switches []operation, v operation) (on, settled bool) {
	on = true
	last := int64(-1)
	for _, s := range switches {
		switch {
		case s.ret < v.call:
			if s.ret > last {
				on, last = s.act == switchedOn, s.ret
			}
		case s.call <= v.ret:
			return on, false
		}
	}
	return on, true
}

// checkSticky finds processes that accepted a key they had refused as revoked (I2).
func checkSticky(k *key, own []operation) (unstuck []string) {
	refused := make(map[int32]int64) // when a process first had refused it
	for _, v := range own {
		if v.act == verified && v.verdict == keyRefused {
			if at, ok := refused[v.process]; !ok || v.ret < at {
				refused[v.process] = v.ret
			}
		}
	}
	for _, v := range own {
		if at, ok := refused[v.process]; ok && v.act == verified && v.verdict == accepted && v.call > at {
			unstuck = append(unstuck, fmt.Sprintf("%v: process %d accepted it %v after it refused it", k, v.process, time.Duration(v.call-at)))
		}
	}
	return unstuck
}

// state is a key with its organization, as the model has them. While a write is in flight both answers are legal, in any
// order: a key dies on one node sooner than on another. So each write but create is two steps with the same call and return.
type state struct {
	key          uint8 // absent, alive, ending, gone
	organization uint8 // on, turningOff, off, turningOn
}

const (
	absent = iota
	alive
	ending
	gone
)

const (
	on = iota
	turningOff
	off
	turningOn
)

// step is an operation's part in the model.
type step struct {
	act act
	end bool // the second step of a write
}

var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(before, input, output any) (bool, any) {
		s, in := before.(state), input.(step)
		switch in {
		case step{act: created}:
			legal := s.key == absent
			s.key = alive
			return legal, s
		case step{act: ended}:
			legal := s.key != absent
			s.key = max(s.key, ending)
			return legal, s
		case step{act: ended, end: true}:
			legal := s.key >= ending
			s.key = gone
			return legal, s
		case step{act: switchedOff}:
			legal := s.organization == on
			s.organization = turningOff
			return legal, s
		case step{act: switchedOff, end: true}:
			legal := s.organization == turningOff
			s.organization = off
			return legal, s
		case step{act: switchedOn}:
			legal := s.organization == off
			s.organization = turningOn
			return legal, s
		case step{act: switchedOn, end: true}:
			legal := s.organization == turningOn
			s.organization = on
			return legal, s
		}
		switch output.(verdict) {
		case accepted:
			return (s.key == alive || s.key == ending) && s.organization != off, s
		case keyRefused:
			return s.key >= ending, s
		case organizationRefused:
			return (s.key == alive || s.key == ending) && s.organization != on, s
		}
		return false, s
	},
}

// telling leaves out verifications that prove nothing more: a verification that lasted while another with the same verdict came and went
// fits in wherever that one does. Many that waited together for a node that stood still would make the search for an order endless.
func telling(own []operation) (kept []operation) {
	byEnd := slices.SortedFunc(slices.Values(own), func(a, b operation) int {
		return cmp.Or(cmp.Compare(a.ret, b.ret), cmp.Compare(b.call, a.call))
	})
	latest := make(map[verdict]int64) // call of the verifications kept so far
	for _, o := range byEnd {
		if o.act == verified {
			if call, some := latest[o.verdict]; some && call >= o.call {
				continue
			}
			latest[o.verdict] = o.call
		}
		kept = append(kept, o)
	}
	return kept
}

// modelled makes the model's operations of a key's and its organization's.
func modelled(own, switches []operation) []porcupine.Operation {
	all := slices.Concat(telling(own), switches)
	slices.SortFunc(all, func(a, b operation) int { return cmp.Compare(a.call, b.call) })
	var ops []porcupine.Operation
	for _, o := range all {
		add := func(s step) {
			ops = append(ops, porcupine.Operation{Input: s, Output: o.verdict, Call: o.call, Return: o.ret})
		}
		add(step{act: o.act})
		if o.act != created && o.act != verified {
			add(step{o.act, true})
		}
	}
	return ops
}
