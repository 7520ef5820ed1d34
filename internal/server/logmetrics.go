package server

import "github.com/prometheus/client_golang/prometheus"

// WatchLog counts the log lines that were dropped. It must be called at most once.
func (m *Metrics) WatchLog(dropped func() uint64) {
	m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "keyward_log_lines_dropped_total",
		Help: "Log lines lost because the log's reader was gone, slow or stuck.",
	}, func() float64 { return float64(dropped()) }))
}
