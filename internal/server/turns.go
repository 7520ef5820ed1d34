package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncgram/keyward/internal/keys"
)

// watchTurns shows who waits for a turn (C32) and which lists are under way (C33).
func (m *Metrics) watchTurns(s *keys.Service) {
	m.watchingTurns.Do(func() {
		m.Registry.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keyward_writes_waiting", Help: "Writes that wait for their turn before the database's lock.",
			}, func() float64 { return float64(s.WaitingWrites()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keyward_lists_running", Help: "Lists of keys that are being read or sent.",
			}, func() float64 { return float64(s.Lists()) }),
		)
	})
}
