package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// endpoint is a request with a hole for the secret. Secrets are all of one length.
type endpoint struct {
	path          string
	before, after string // of the request, around the secret
	accepted      string // how the body of an acceptance begins
}

// endpoints are asked as a payments API and a proxy would ask.
func endpoints(secretLength int) []endpoint {
	const body, end, form = `{"key":"`, `"}`, "token="
	return []endpoint{
		{
			path: "/v1/verify",
			before: "POST /v1/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nContent-Type: application/json\r\nContent-Length: " +
				strconv.Itoa(len(body)+secretLength+len(end)) + "\r\n\r\n" + body,
			after: end, accepted: `{"valid":true`,
		},
		{
			path: "/v1/authorize",
			before: "GET /v1/authorize HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nAccept: */*\r\n" +
				"X-Forwarded-Method: POST\r\nX-Forwarded-Uri: /payments\r\nX-Forwarded-For: 192.0.2.7\r\nAuthorization: Bearer ",
			after: "\r\n\r\n",
		},
		{
			path: "/v1/introspect",
			before: "POST /v1/introspect HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: " +
				strconv.Itoa(len(form)+secretLength) + "\r\n\r\n" + form,
			accepted: `{"active":true`,
		},
		{path: checkEndpoint},
	}
}

// measure compares the servers for every endpoint with n keys.
func measure(ctx context.Context, o options, n int, progress io.Writer) (results []result, err error) {
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "keyward-load-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	keyward, err := start(ctx, "serve-keyward", []string{"--keys", strconv.Itoa(n), "--dir", dir, "--profile", o.profileOf("keyward")}, nil, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, keyward.stop()) }()

	asked := endpoints(len(keyward.Sample[0]))
	answers := map[string]sameAnswer{}
	for _, e := range asked {
		if answers[e.path], err = e.capture(ctx, keyward); err != nil {
			return nil, err
		}
	}
	floor, err := start(ctx, "serve-floor", []string{"--profile", o.profileOf("floor")}, answers, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()

	for _, e := range asked {
		if len(o.endpoints) > 0 && !slices.Contains(o.endpoints, e.path) {
			continue
		}
		r, err := e.compare(ctx, o, floor, keyward)
		if err != nil {
			return nil, err
		}
		r.Keys = n
		fmt.Fprintf(progress, "%d keys, %s: ratio %.2f\n", n, e.path, r.Ratio)
		results = append(results, r)
	}
	return results, nil
}

// profileOf is where a server's profile goes, if anywhere.
func (o *options) profileOf(server string) string {
	if o.profile == "" {
		return ""
	}
	return filepath.Join(o.profile, server+".pprof")
}

// capture asks once and returns the answer, for the floor to repeat.
func (e endpoint) capture(ctx context.Context, s *child) (a sameAnswer, err error) {
	if e.path == checkEndpoint {
		return captureCheck(ctx, s)
	}
	c, err := dial(ctx, s.Address)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, e.before+s.Sample[0]+e.after); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if a.Body, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(a.Body), e.accepted) {
		return a, fmt.Errorf("%s did not accept a key: %s", e.path, resp.Status)
	}
	a.Header = resp.Header
	for _, byItself := range []string{"Date", "Content-Length"} {
		a.Header.Del(byItself) // net/http writes them
	}
	return a, nil
}

// compare loads both servers in turns.
func (e endpoint) compare(ctx context.Context, o options, floor, keyward *child) (r result, err error) {
	turns := max(1, int((o.duration+o.turn-1)/o.turn))
	turn := o.duration / time.Duration(turns)
	var loads [2]*load
	for i, s := range []*child{floor, keyward} {
		if loads[i], err = e.connect(ctx, s, keyward.Sample, o.connections); err != nil {
			return r, err
		}
		defer loads[i].close()
		if err := loads[i].run(min(turn, 200*time.Millisecond)); err != nil { // a warm-up
			return r, err
		}
		loads[i].reset()
	}
	ratios := make([]float64, 0, turns)
	for n := range turns {
		var rate [2]float64
		for i := range 2 {
			i = (i + n) % 2 // neither is always the first
			if err := ctx.Err(); err != nil {
				return r, err
			}
			before := loads[i].figures().Requests
			began := time.Now()
			if err := loads[i].run(turn); err != nil {
				return r, err
			}
			rate[i] = float64(loads[i].figures().Requests-before) / time.Since(began).Seconds()
		}
		ratios = append(ratios, rate[1]/rate[0])
	}
	slices.Sort(ratios)
	at := func(part float64) float64 { return ratios[int(part*float64(len(ratios)-1)+.5)] }
	return result{
		Endpoint: e.path, Floor: loads[0].figures(), Keyward: loads[1].figures(),
		Ratio: at(.5), RatioLow: at(.1), RatioHigh: at(.9), Turns: turns,
	}, nil
}

// load is a number of connections to one server, each of which asks, waits for the answer and
// asks again.
type load struct {
	server *child
	conns  []connection
	shared []func() error // closes what connections share
	spent  time.Duration
	cpu    int64 // nanoseconds of the server's processor time
}

// connection asks, waits for the answer and asks again.
type connection interface {
	askUntil(until time.Time) error
	counted() *histogram
	Close() error
}

func (e endpoint) connect(ctx context.Context, s *child, sample []string, n int) (*load, error) {
	l := &load{server: s}
	if e.path == checkEndpoint {
		var err error
		if l.conns, l.shared, err = connectChecks(s.Check, sample, n); err != nil {
			return nil, errors.Join(err, l.close())
		}
		return l, nil
	}
	for i := range n {
		c, err := dial(ctx, s.Address)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.conns = append(l.conns, &asker{
			Conn: c, in: bufio.NewReaderSize(c, 4<<10), accepted: []byte(e.accepted),
			request: []byte(e.before + sample[0] + e.after), hole: len(e.before),
			sample: sample, next: i * len(sample) / n,
		})
	}
	return l, nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// run keeps every connection busy for the time given.
func (l *load) run(d time.Duration) error {
	before, err := l.server.processorTime()
	if err != nil {
		return err
	}
	began := time.Now()
	until := began.Add(d)
	errs := make([]error, len(l.conns))
	var all sync.WaitGroup
	for i, c := range l.conns {
		all.Go(func() { errs[i] = c.askUntil(until) })
	}
	all.Wait()
	l.spent += time.Since(began)
	after, err := l.server.processorTime()
	l.cpu += after - before
	return errors.Join(append(errs, err)...)
}

func (l *load) reset() {
	l.spent, l.cpu = 0, 0
	for _, c := range l.conns {
		*c.counted() = histogram{}
	}
}

func (l *load) figures() figures {
	var all histogram
	for _, c := range l.conns {
		all.add(c.counted())
	}
	return figures{
		Requests: all.total, PerSecond: float64(all.total) / l.spent.Seconds(),
		P50: float64(all.quantile(.5)) / 1e3, P99: float64(all.quantile(.99)) / 1e3,
		CPU: float64(l.cpu) / 1e3 / float64(max(1, all.total)),
	}
}

func (l *load) close() error {
	var errs []error
	for _, c := range l.conns {
		errs = append(errs, c.Close())
	}
	for _, c := range l.shared {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// asker is one connection. It writes a request it has ready, changing the secret alone, and reads of
// an answer only what tells that it is the right one and where it ends: so that the client takes as little of
// the machine as it can.
type asker struct {
	net.Conn
	in       *bufio.Reader
	request  []byte
	hole     int // where the secret is
	accepted []byte
	sample   []string
	next     int
	times    histogram
}

func (a *asker) counted() *histogram { return &a.times }

// patience is how long an answer may take before the run is given up.
const patience = 10 * time.Second

func (a *asker) askUntil(until time.Time) error {
	if err := a.SetDeadline(until.Add(patience)); err != nil {
		return err
	}
	for now := time.Now(); now.Before(until); {
		copy(a.request[a.hole:], a.sample[a.next])
		if a.next++; a.next == len(a.sample) {
			a.next = 0
		}
		if _, err := a.Write(a.request); err != nil {
			return err
		}
		if err := a.readAnswer(); err != nil {
			return err
		}
		answered := time.Now()
		a.times.note(answered.Sub(now))
		now = answered
	}
	return nil
}

var (
	statusOK      = []byte("HTTP/1.1 200 ")
	contentLength = []byte("Content-Length: ")
)

func (a *asker) readAnswer() error {
	line, err := a.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, statusOK) {
		return fmt.Errorf("answered %q instead of 200", bytes.TrimSpace(line))
	}
	length := -1
	for {
		if line, err = a.in.ReadSlice('\n'); err != nil {
			return err
		}
		if len(line) == len("\r\n") {
			break
		}
		if rest, ok := bytes.CutPrefix(line, contentLength); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(rest))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without Content-Length")
	}
	body, err := a.in.Peek(length)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(body, a.accepted) {
		return errors.New("a key was not accepted")
	}
	_, err = a.in.Discard(length)
	return err
}

// histogram counts durations in steps of at most 1/64 of their value.
type histogram struct {
	counts [64 * 34]int64 // up to 2^39 ns, nine minutes
	total  int64
}

func (h *histogram) note(d time.Duration) {
	h.counts[min(step(uint64(d)), len(h.counts)-1)]++
	h.total++
}

// step is the place of n: its highest seven bits and how many there are below them.
func step(n uint64) int {
	below := max(0, bits.Len64(n)-7)
	return below*64 + int(n>>below)
}

// value is the middle of the numbers that share a step.
func value(step int) uint64 {
	below := max(0, step/64-1)
	low := uint64(step-below*64) << below
	return low + 1<<below/2
}

func (h *histogram) add(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// quantile is the nanoseconds within which the given part of the durations is.
func (h *histogram) quantile(part float64) uint64 {
	left := int64(part * float64(h.total))
	for i, n := range h.counts {
		if left -= n; left < 0 {
			return value(i)
		}
	}
	return value(len(h.counts) - 1)
}
