package histories

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each kind of wrong history is found, and by which check; what is legal is not taken for wrong.
func TestChecksTellHistoriesApart(t *testing.T) {
	make0 := operation{act: created, call: 0, ret: 10}
	at := func(call int64, v verdict, process int32) operation {
		return operation{act: verified, verdict: v, process: process, call: call, ret: call + 5}
	}
	end := operation{act: ended, call: 100, ret: 200}
	turnOff, turnOn := operation{act: switchedOff, call: 300, ret: 400}, operation{act: switchedOn, call: 500, ret: 600}
	for _, test := range []struct {
		name          string
		own, switches []operation
		want          []string // the checks that find something
	}{
		{"used, then revoked", []operation{make0, at(20, accepted, 1), end, at(210, keyRefused, 1)}, nil, nil},
		{"either answer while the revoke is in flight, one node before the other",
			[]operation{make0, end, at(110, keyRefused, 1), at(120, accepted, 2), at(130, keyRefused, 1), at(140, accepted, 2)}, nil, nil},
		{"a question that began before the answer", []operation{make0, end, {act: verified, call: 199, ret: 900}}, nil, nil},
		{"accepted after the answer", []operation{make0, end, at(201, accepted, 2)}, nil, []string{"stale", "illegal"}},
		{"refused before the revoke began", []operation{make0, at(20, keyRefused, 1), end}, nil, []string{"lost", "illegal"}},
		{"not known after create was answered", []operation{make0, at(11, strange, 1)}, nil, []string{"lost", "illegal"}},
		{"a process takes its refusal back", []operation{make0, end, at(110, keyRefused, 1), at(120, accepted, 1)}, nil, []string{"unstuck"}},
		{"a process that was started anew", []operation{make0, end, at(110, keyRefused, 1), at(120, accepted, 9)}, nil, nil},
		{"the outcome of the revoke is not known", []operation{make0, {act: ended, call: 100, ret: never},
			at(300, accepted, 1), at(400, keyRefused, 1), at(500, accepted, 2)}, nil, nil},
		{"refused although no revoke was ever asked for", []operation{make0, at(300, accepted, 1), at(400, keyRefused, 1)}, nil, []string{"lost", "illegal"}},
		{"revoked twice, accepted after the first answer", []operation{make0, end, {act: ended, call: 150, ret: 900}, at(300, accepted, 1)}, nil, []string{"stale", "illegal"}},
		{"switched off and on", []operation{make0, at(310, accepted, 1), at(320, organizationRefused, 2), at(410, organizationRefused, 1),
			at(550, organizationRefused, 1), at(560, accepted, 2), at(610, accepted, 1)}, []operation{turnOff, turnOn}, nil},
		{"accepted while off", []operation{make0, at(410, accepted, 1)}, []operation{turnOff, turnOn}, []string{"stale", "illegal"}},
		{"refused when on again", []operation{make0, at(610, organizationRefused, 1)}, []operation{turnOff, turnOn}, []string{"lost", "illegal"}},
		{"a revoked key of an organization that is off", []operation{make0, end, at(410, keyRefused, 1)}, []operation{turnOff}, nil},
		{"a switch whose outcome is not known", []operation{make0, at(410, accepted, 1), at(420, organizationRefused, 1)},
			[]operation{{act: switchedOff, call: 300, ret: never}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHistory()
			o := &organization{id: "org_a"}
			h.keys[&key{id: "key_a", organization: o}] = test.own
			h.organizations[o] = test.switches
			f := h.check()
			var got []string
			for _, found := range []struct {
				name string
				list []string
			}{{"stale", f.staleAccepts}, {"lost", f.lostWrites}, {"unstuck", f.unstuck}, {"illegal", f.illegal}, {"unproven", f.unproven}} {
				if len(found.list) > 0 {
					got = append(got, found.name)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s\n%v", diff, f.bad())
			}
		})
	}
}

// What is left out has been shown by what is kept: it lasted at least as long, with the same verdict.
func TestTellingVerifications(t *testing.T) {
	at := func(call, ret int64, v verdict) operation {
		return operation{act: verified, verdict: v, call: call, ret: ret}
	}
	made, end := operation{act: created, call: 0, ret: 90}, operation{act: ended, call: 10, ret: 20}
	got := telling([]operation{made, at(10, 90, accepted), at(20, 80, accepted), at(20, 80, keyRefused), at(30, 85, accepted), at(5, 81, keyRefused), end, at(20, 80, accepted)})
	want := []operation{end, at(20, 80, accepted), at(20, 80, keyRefused), at(30, 85, accepted), made}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(operation{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
