package server

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/syncgram/keyward/api"
)

// sampler keeps the log lines few about requests whose callers are not known, or are over their
// budget: anybody may cause them, as many as they like. Of each kind some pass, and the
// number of the others is logged. Metrics count all.
type sampler struct {
	logger *slog.Logger
	mu     sync.Mutex
	kinds  map[sampleKind]*sampleState // guarded by mu
}

// sampleKind has few values: nothing in it is the caller's own word.
type sampleKind struct {
	listener string
	status   int
	code     api.Code
}

type sampleState struct {
	limit   *rate.Limiter
	leftOut int64 // since the last line about it
}

// sampleBurst lines of a kind pass at once, then one a second.
const sampleBurst = 20

func newSampler(logger *slog.Logger) *sampler {
	return &sampler{logger: logger, kinds: make(map[sampleKind]*sampleState)}
}

// allow reports whether a line is written. The first that is not has the count logged a second
// later.
func (s *sampler) allow(k sampleKind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.kinds[k]
	if of == nil {
		of = &sampleState{limit: rate.NewLimiter(1, sampleBurst)}
		s.kinds[k] = of
	}
	if of.limit.Allow() {
		return true
	}
	if of.leftOut++; of.leftOut == 1 {
		time.AfterFunc(time.Second, func() { s.report(k) })
	}
	return false
}

func (s *sampler) report(k sampleKind) {
	s.mu.Lock()
	n := s.kinds[k].leftOut
	s.kinds[k].leftOut = 0
	s.mu.Unlock()
	s.logger.LogAttrs(context.Background(), slog.LevelInfo, "requests left out of the log",
		slog.String("listener", k.listener), slog.Int("status", k.status), slog.String("code", string(k.code)),
		slog.Int64("left_out", n))
}

// sampled reports whether the line of a request is written.
func (s *Server) sampled(l *listener, x *exchange, level slog.Level) bool {
	anybody := x.call.Principal.User == "" && (x.status >= http.StatusBadRequest || x.route.auth == open)
	// While the issuer's keys cannot be had, every token is 503, also a stranger's.
	undecided := anybody && x.route.auth == userToken && x.status == http.StatusServiceUnavailable
	if level != slog.LevelInfo && !undecided || !anybody && x.code != api.TooManyRequests {
		return true
	}
	return s.unauthenticated.allow(sampleKind{l.name, x.status, x.code})
}
