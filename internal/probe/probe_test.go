package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

const internalToken = "internal-token-of-the-test"

// world is a deployment: what is true of the secret, and how each node answers about it.
type world struct {
	mu     sync.Mutex
	secret token.Secret
	active bool
	wait   time.Duration
	errors map[string]error // by "mint", "end", "nodes"
	nodes  []keys.ServingNode
	log    bytes.Buffer
}

func (w *world) MintProbe(context.Context, time.Duration) (token.Secret, time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.errors["mint"] != nil || w.wait > 0 {
		return token.Secret{}, w.wait, w.errors["mint"]
	}
	w.active = true
	return w.secret, 0, nil
}

func (w *world) EndProbe(_ context.Context, secret token.Secret) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if secret.Digest() != w.secret.Digest() {
		return errors.New("not this secret")
	}
	w.active = false
	return w.errors["end"]
}

func (w *world) serving(context.Context) ([]keys.ServingNode, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]keys.ServingNode(nil), w.nodes...), w.errors["nodes"]
}

// honest answers as it is, to who shows the token and asks as it must be asked.
func (w *world) honest(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var asked api.VerifyKey
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Key != w.secret.Reveal() ||
		r.Method != http.MethodPost || r.URL.Path != "/v1/verify" || r.Header.Get("Authorization") != "Bearer "+internalToken {
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(rw, `{"valid":%t}`, w.active)
}

// add starts a node.
func (w *world) add(t *testing.T, id string, genuine bool, answer http.HandlerFunc) {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	w.nodes = append(w.nodes, keys.ServingNode{Node: keys.Node{ID: id, Address: strings.TrimPrefix(s.URL, "http://")}, Genuine: genuine})
}

func newWorld(t *testing.T) (*world, *Prober) {
	t.Helper()
	format, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{errors: map[string]error{}}
	if w.secret, err = format.Generate(keys.Test); err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Service: w, Nodes: w.serving, Every: time.Minute, Token: internalToken, Logger: slog.New(slog.NewJSONHandler(&w.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.client.CloseIdleConnections)
	return w, p
}

// figures are the counters that are not 0, and the counts of the histogram.
func figures(t *testing.T, p *Prober) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(p.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "keyward_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if v := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()); v != 0 || name == "stale_accepts_total" {
				got[name] = v
			}
		}
	}
	return got
}

func valid(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, `{"valid":true}`) }

// C23, V7: what each kind of node is counted as, before and after the end. No log has the secret or the token.
func TestC23Probe(t *testing.T) {
	healthy := map[string]float64{"stale_accepts_total": 0, "probe_barrier_seconds mint": 1, "probe_barrier_seconds end": 1}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	for name, tt := range map[string]struct {
		node func(w *world, t *testing.T)
		want map[string]float64
		log  string
	}{
		"honest": {func(w *world, t *testing.T) { w.add(t, "n1", true, w.honest) },
			map[string]float64{"probe_answers_total mint accepted": 1, "probe_answers_total end refused": 1}, ""},
		"accepts after the end": {func(w *world, t *testing.T) { w.add(t, "n1", true, valid) },
			map[string]float64{"probe_answers_total mint accepted": 1, "probe_answers_total end accepted": 1, "stale_accepts_total": 1}, "STALE ACCEPT"},
		"never accepts": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, `{"valid":false}`) })
		}, map[string]float64{"probe_answers_total mint refused": 1, "probe_answers_total end refused": 1}, "refused a secret after its creation"},
		"cannot decide": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) {
				rw.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.Copy(rw, r.Body) // even one that repeats the question
			})
		}, map[string]float64{"probe_answers_total mint undecided": 1, "probe_answers_total end undecided": 1}, "it answered 503"},
		"says something else": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.Copy(rw, r.Body) })
		}, map[string]float64{"probe_answers_total mint undecided": 1, "probe_answers_total end undecided": 1}, "as Keyward does"},
		"sends elsewhere": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, elsewhere.URL, http.StatusTemporaryRedirect)
			})
		}, map[string]float64{"probe_answers_total mint undecided": 1, "probe_answers_total end undecided": 1}, "it answered 307"},
		"gone": {func(w *world, t *testing.T) {
			s := httptest.NewServer(nil)
			s.Close()
			w.nodes = append(w.nodes, keys.ServingNode{Node: keys.Node{ID: "n1", Address: strings.TrimPrefix(s.URL, "http://")}, Genuine: true})
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "unreachable"},
		"row not genuine": {func(w *world, t *testing.T) {
			w.add(t, "n1", false, func(http.ResponseWriter, *http.Request) { t.Error("a node whose row is not genuine was asked") })
		}, nil, "was not written by Keyward"},
	} {
		t.Run(name, func(t *testing.T) {
			w, p := newWorld(t)
			tt.node(w, t)
			if wait, err := p.turn(t.Context()); wait != time.Minute || err != nil {
				t.Errorf("wait %v, %v", wait, err)
			}
			want := map[string]float64{}
			for _, m := range []map[string]float64{healthy, tt.want} {
				for k, v := range m {
					want[k] = v
				}
			}
			if diff := cmp.Diff(want, figures(t, p)); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
			log := w.log.String()
			if !strings.Contains(log, tt.log) || tt.log == "" && log != "" || tt.log != "" && !strings.Contains(log, `"node":"n1"`) {
				t.Errorf("log: %s", log)
			}
			if strings.Contains(log, w.secret.Reveal()) || strings.Contains(log, internalToken) {
				t.Error("the log has the secret or the token")
			}
		})
	}
}

// Nodes are asked side by side, and one that hangs holds a probe up for no longer than the time an answer may take.
func TestProbeOfANodeThatHangs(t *testing.T) {
	w, p := newWorld(t)
	p.client.Timeout = 50 * time.Millisecond
	hang := make(chan struct{})
	defer close(hang)
	for i := range askAtOnce + 1 {
		w.add(t, fmt.Sprint("hanging", i), true, func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
			<-hang
		})
	}
	if _, err := p.turn(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := figures(t, p)
	if n := float64(askAtOnce + 1); got["probe_answers_total mint unreachable"] != n || got["probe_answers_total end unreachable"] != n {
		t.Errorf("metrics %v", got)
	}
}

// What keeps a probe from being made or finished; a refusal counts for nothing when the secret may not have been in force.
func TestProbeThatFails(t *testing.T) {
	away := errors.New("the database is away")
	for name, tt := range map[string]struct {
		at    string
		ended bool
		want  map[string]float64
	}{
		"mint":  {"mint", false, map[string]float64{"stale_accepts_total": 0}},
		"nodes": {"nodes", true, map[string]float64{"stale_accepts_total": 0, "probe_barrier_seconds mint": 1, "probe_barrier_seconds end": 1}},
		"end":   {"end", true, map[string]float64{"stale_accepts_total": 0, "probe_barrier_seconds mint": 1, "probe_answers_total mint accepted": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			w, p := newWorld(t)
			w.add(t, "n1", true, w.honest)
			w.add(t, "n2", true, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, `{"valid":false}`) })
			w.errors[tt.at] = away
			if _, err := p.turn(t.Context()); !errors.Is(err, away) {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, figures(t, p)); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
			if w.active {
				t.Error("the secret was not ended")
			}
		})
	}
}

// Not this node's turn: nothing is asked, and the wait is as long as it was told.
func TestProbeOfAnotherNode(t *testing.T) {
	w, p := newWorld(t)
	w.wait = 7 * time.Second
	w.add(t, "n1", true, func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	if wait, err := p.turn(t.Context()); wait != 7*time.Second || err != nil {
		t.Errorf("wait %v, %v", wait, err)
	}
}
