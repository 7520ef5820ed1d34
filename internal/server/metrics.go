package server

import (
	"database/sql"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// Metrics is what GET /metrics shows. No label holds text that a caller chose.
type Metrics struct {
	Registry *prometheus.Registry // for more collectors

	requests  lookedUp[requestLabels, prometheus.Counter]
	durations lookedUp[*route, prometheus.Observer]
	panics    *prometheus.CounterVec
	checks    lookedUp[int, prometheus.Counter]
	checking  prometheus.Histogram
	verdicts  lookedUp[verdictLabels, prometheus.Counter]
	acts      *prometheus.HistogramVec
	barriers  *prometheus.HistogramVec
	durable   *prometheus.GaugeVec

	watching, watchingTurns sync.Once
}

// What a request, and a verification, is counted under.
type (
	requestLabels struct {
		route  *route
		method string
		status int
	}
	verdictLabels struct {
		door, path string
		reason     keys.Reason
	}
)

// lookedUp remembers metrics by what they are counted under, because every verification counts several.
// There are no more of them than labels of the registry.
type lookedUp[K comparable, M any] struct {
	found sync.Map                    // K to *entry[K, M]
	last  atomic.Pointer[entry[K, M]] // most requests are answered as the one before
	find  func(K) M
}

type entry[K comparable, M any] struct {
	key    K
	metric M
}

func (l *lookedUp[K, M]) of(k K) M {
	if e := l.last.Load(); e != nil && e.key == k {
		return e.metric
	}
	found, ok := l.found.Load(k)
	if !ok {
		found, _ = l.found.LoadOrStore(k, &entry[K, M]{k, l.find(k)})
	}
	e := found.(*entry[K, M])
	l.last.Store(e)
	return e.metric
}

// NewMetrics returns metrics with a registry of their own.
func NewMetrics() *Metrics {
	buckets := []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyward_http_requests_total", Help: "Requests answered.",
	}, []string{"listener", "route", "method", "status"})
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "keyward_http_request_duration_seconds", Help: "Time from a request's headers to its answer.",
		Buckets: buckets,
	}, []string{"listener", "route"})
	checks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyward_extauthz_checks_total", Help: "Envoy's checks answered, by the HTTP status Envoy was told; 200 passes.",
	}, []string{"status"})
	verdicts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyward_verifications_total", Help: "Verifications by interface, path and verdict. Path: memory = answered at once, wait = " +
			"answered after a wait for this node's lease or for min_revision, closed = not decided (503).",
	}, []string{"door", "path", "reason"})
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyward_http_panics_total", Help: "Panics that were answered with an error, of the listener extauthz too.",
		}, []string{"listener"}),
		checking: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "keyward_extauthz_check_duration_seconds", Help: "Time from Envoy's check to its answer.", Buckets: buckets,
		}),
		acts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyward_act_duration_seconds", Help: "Time of management acts, from the rules to every node, by outcome: done, an error code, or error.",
			Buckets: prometheus.ExponentialBuckets(.0005, 2, 16),
		}, []string{"action", "outcome"}),
		barriers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyward_barrier_seconds", Help: "Time a committed write waited for the other nodes, by outcome: acknowledged, fenced (by the whole wait), failed.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30, 60},
		}, []string{"outcome"}),
		durable: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "keyward_revocation_durability", Help: "1 for what an answered revocation survives: synchronous (the loss of the primary), asynchronous (not that), single (PostgreSQL without a standby), local (SQLite).",
		}, []string{"mode"}),
	}
	m.requests.find = func(l requestLabels) prometheus.Counter {
		return requests.WithLabelValues(l.route.listener, l.route.pattern, l.method, strconv.Itoa(l.status))
	}
	m.durations.find = func(rt *route) prometheus.Observer { return durations.WithLabelValues(rt.listener, rt.pattern) }
	m.checks.find = func(status int) prometheus.Counter { return checks.WithLabelValues(strconv.Itoa(status)) }
	m.verdicts.find = func(l verdictLabels) prometheus.Counter {
		return verdicts.WithLabelValues(l.door, l.path, string(l.reason))
	}
	m.Registry.MustRegister(requests, durations, checks, m.checking, m.panics, verdicts, m.acts, m.barriers, m.durable,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Act counts a management act; it is what keys.Config.Observe wants.
func (m *Metrics) Act(action keys.Action, outcome string, took time.Duration) {
	m.acts.WithLabelValues(string(action), outcome).Observe(took.Seconds())
}

// Verification counts one verification through a door; err means that it was not decided.
func (m *Metrics) Verification(door string, v *verify.Verdict, err error) {
	labels := verdictLabels{door, v.Path.String(), v.Reason}
	if err != nil {
		labels.path, labels.reason = "closed", "undecided"
	}
	m.verdicts.of(labels).Inc()
}

// Check counts one of Envoy's checks by the HTTP status it told Envoy.
func (m *Metrics) Check(status int, panicked bool, took time.Duration) {
	m.checks.of(status).Inc()
	m.checking.Observe(took.Seconds())
	if panicked {
		m.panics.WithLabelValues("extauthz").Inc()
	}
}

// Barrier counts a write that waited to be everywhere; it is what verify.Config.OnBarrier wants.
func (m *Metrics) Barrier(outcome verify.BarrierOutcome, took time.Duration) {
	m.barriers.WithLabelValues(string(outcome)).Observe(took.Seconds())
}

// Durability shows what an answered revocation survives: synchronous, asynchronous, single or local.
func (m *Metrics) Durability(mode string) {
	for _, other := range [...]string{"synchronous", "asynchronous", "single", "local"} {
		if other != mode {
			m.durable.WithLabelValues(other).Set(0)
		}
	}
	m.durable.WithLabelValues(mode).Set(1)
}

// WatchPools shows the database's connection pools, by the name stats gives them.
func (m *Metrics) WatchPools(stats func() map[string]sql.DBStats) {
	m.Registry.MustRegister(pools(stats))
}

// watch shows the state of the verifier's memory.
func (m *Metrics) watch(v Verifier) {
	m.watching.Do(func() {
		gauge := func(name, help string, value func() float64) {
			m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
		}
		counter := func(name, help string, value func() float64) {
			m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
		}
		gauge("keyward_index_keys", "Keys in memory.", func() float64 { return float64(v.Stats().Keys) })
		gauge("keyward_index_organizations", "Organizations in memory.", func() float64 { return float64(v.Stats().Organizations) })
		gauge("keyward_revision", "Revision of the database that the memory has.", func() float64 { return float64(v.Stats().Revision) })
		gauge("keyward_lease_seconds", "Time this node may still decide from memory without reaching the database.", func() float64 { return v.Stats().LeaseLeft.Seconds() })
		gauge("keyward_ready", "1 while this node decides from memory.", func() float64 {
			if v.Ready() != nil {
				return 0
			}
			return 1
		})
		counter("keyward_tampered_rows_total", "Rows that somebody else changed; each is refused.", func() float64 { return float64(v.Stats().Tampered) })
		counter("keyward_memory_differences_total", "Times memory differed from the authenticated state "+
			"of the database, and was discarded and loaded again.",
			func() float64 { return float64(v.Stats().Differences) })
		counter("keyward_fenced_total", "Times this node lost its place for not answering in time.", func() float64 { return float64(v.Stats().Fenced) })
		gauge("keyward_announcements_heard", "1 while announcements of writes are known to arrive here; 0 = this node polls.", func() float64 {
			if v.Stats().Announced {
				return 1
			}
			return 0
		})
		gauge("keyward_clock_rate", "Rate of the database's clock against this machine's; the protocol holds from 0.8 to 1.25.", func() float64 { return v.Stats().ClockRate })
		counter("keyward_nodes_fenced_total", "Nodes whose place this node's writes took away, for not acknowledging in time.", func() float64 { return float64(v.Stats().FencedOthers) })
		counter("keyward_revoked_again_total", "Revocations that the database had lost and this node wrote again.", func() float64 { return float64(v.Stats().RevokedAgain) })
		counter("keyward_regressions_total", "Times the database had lost writes that this node has seen.", func() float64 { return float64(v.Stats().Regressions) })
	})
}

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
}

// listenerMetrics is what a listener counts.
type listenerMetrics struct {
	m      *Metrics
	panics prometheus.Counter
}

func (m *Metrics) listener(name string) *listenerMetrics {
	return &listenerMetrics{m: m, panics: m.panics.WithLabelValues(name)}
}

func (l *listenerMetrics) observe(rt *route, method string, status int, took time.Duration) {
	l.m.requests.of(requestLabels{rt, method, status}).Inc()
	l.m.durations.of(rt).Observe(took.Seconds())
}

// pools is the collector of WatchPools.
type pools func() map[string]sql.DBStats

var (
	poolOpen  = prometheus.NewDesc("keyward_database_connections", "Open connections by pool and state.", []string{"pool", "state"}, nil)
	poolLimit = prometheus.NewDesc("keyward_database_connections_limit", "Connections a pool may open.", []string{"pool"}, nil)
	poolWaits = prometheus.NewDesc("keyward_database_waits_total", "Times a connection had to be waited for.", []string{"pool"}, nil)
	poolWait  = prometheus.NewDesc("keyward_database_wait_seconds_total", "Time spent waiting for a connection.", []string{"pool"}, nil)
)

// Describe implements prometheus.Collector.
func (p pools) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{poolOpen, poolLimit, poolWaits, poolWait} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p pools) Collect(ch chan<- prometheus.Metric) {
	for pool, s := range p() {
		ch <- prometheus.MustNewConstMetric(poolOpen, prometheus.GaugeValue, float64(s.InUse), pool, "in_use")
		ch <- prometheus.MustNewConstMetric(poolOpen, prometheus.GaugeValue, float64(s.Idle), pool, "idle")
		ch <- prometheus.MustNewConstMetric(poolLimit, prometheus.GaugeValue, float64(s.MaxOpenConnections), pool)
		ch <- prometheus.MustNewConstMetric(poolWaits, prometheus.CounterValue, float64(s.WaitCount), pool)
		ch <- prometheus.MustNewConstMetric(poolWait, prometheus.CounterValue, s.WaitDuration.Seconds(), pool)
	}
}
