package probe

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what probes found.
type metrics struct {
	barrier      *prometheus.HistogramVec
	answers      *prometheus.CounterVec
	staleAccepts prometheus.Counter
	failures     prometheus.Counter
}

func newMetrics() metrics {
	m := metrics{
		barrier: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyward_probe_barrier_seconds", Help: "Time from the start of a probe's write until every node has it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30},
		}, []string{"act"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyward_probe_answers_total",
			Help: "Answers of nodes about a probe's secret, after it was minted and after it was ended. After a mint any refused, and after an end any accepted, breaks the promise.",
		}, []string{"act", "answer"}),
		staleAccepts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyward_stale_accepts_total", Help: "Times a node accepted a probe's secret after its revocation had been answered. Must stay 0.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyward_probe_failures_total", Help: "Probes that could not be made or not be finished.",
		}),
	}
	for _, act := range []string{actMint, actEnd} {
		m.barrier.WithLabelValues(act)
		for _, a := range []answer{accepted, refused, undecided, unreachable} {
			m.answers.WithLabelValues(act, string(a))
		}
	}
	return m
}

// Collectors returns the metrics of the prober, for a registry.
func (p *Prober) Collectors() []prometheus.Collector {
	m := p.metrics
	return []prometheus.Collector{m.barrier, m.answers, m.staleAccepts, m.failures}
}
