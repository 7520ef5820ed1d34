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
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

const databaseID = "database-of-the-test"

// world is a deployment: what is true of the secret, and how each node answers about it.
type world struct {
	mu     sync.Mutex
	secret token.Secret
	active bool
	wait   time.Duration
	errors map[string]error // by "mint", "end", "nodes"
	nodes  []keys.ServingNode
	ring   *seal.Ring
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

// verify is the verdict of an honest node.
func (w *world) verify(_ context.Context, r verify.Request) (verify.Verdict, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.Secret != w.secret.Reveal():
		return verify.Verdict{Reason: keys.Unknown}, nil
	case w.active:
		return verify.Verdict{Reason: keys.Valid}, nil
	}
	return verify.Verdict{Reason: keys.Revoked}, nil
}

// node answers as the node n1, by what verify says.
func (w *world) node(
	t *testing.T,
	verify func(context.Context, verify.Request) (verify.Verdict, error),
) http.HandlerFunc {
	responder := Responder{
		Ring: w.ring, Verify: verify,
		NodeID: func() string { return "n1" }, DatabaseID: func() string { return databaseID },
	}
	return func(rw http.ResponseWriter, r *http.Request) {
		var asked api.ProbeQuestion
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil ||
			r.Method != http.MethodPost ||
			r.URL.Path != "/v1/probe" ||
			r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s, %v", r.Method, r.URL, err)
		}
		said, err := responder.Answer(r.Context(), asked)
		if err != nil {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(rw).Encode(said)
	}
}

func says(
	reason keys.Reason,
	err error,
) func(context.Context, verify.Request) (verify.Verdict, error) {
	return func(context.Context, verify.Request) (verify.Verdict, error) {
		return verify.Verdict{Reason: reason}, err
	}
}

func newRing(t *testing.T) *seal.Ring {
	t.Helper()
	line, err := seal.NewLine("m1")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func (w *world) signer(context.Context) (string, seal.Signer, error) {
	s, err := w.ring.Signer("m1")
	return databaseID, s, err
}

// add starts a node.
func (w *world) add(t *testing.T, id string, genuine bool, answer http.HandlerFunc) {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	w.nodes = append(
		w.nodes,
		keys.ServingNode{
			Node: keys.Node{
				ID:         id,
				Address:    strings.TrimPrefix(s.URL, "http://"),
				MasterKeys: []seal.KeyFingerprint{{ID: "m1"}},
			},
			Genuine: genuine,
		},
	)
}

func newWorld(t *testing.T) (*world, *Prober) {
	t.Helper()
	format, err := token.NewFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{errors: map[string]error{}, ring: newRing(t)}
	if w.secret, err = format.Generate(keys.Test); err != nil {
		t.Fatal(err)
	}
	p, err := New(
		Config{
			Service: w,
			Nodes:   w.serving,
			Every:   time.Minute,
			Signer:  w.signer,
			Logger:  slog.New(slog.NewJSONHandler(&w.log, nil)),
		},
	)
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

// C23, V7: what each kind of node is counted as, before and after the end. No log has the secret.
func TestC23Probe(t *testing.T) {
	healthy := map[string]float64{"stale_accepts_total": 0, "probe_barrier_seconds mint": 1, "probe_barrier_seconds end": 1}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	for name, tt := range map[string]struct {
		node func(w *world, t *testing.T)
		want map[string]float64
		log  string
	}{
		"honest": {func(w *world, t *testing.T) { w.add(t, "n1", true, w.node(t, w.verify)) },
			map[string]float64{"probe_answers_total mint accepted": 1, "probe_answers_total end refused": 1}, ""},
		"accepts after the end": {func(w *world, t *testing.T) { w.add(t, "n1", true, w.node(t, says(keys.Valid, nil))) },
			map[string]float64{"probe_answers_total mint accepted": 1, "probe_answers_total end accepted": 1, "stale_accepts_total": 1}, "STALE ACCEPT"},
		"never accepts": {func(w *world, t *testing.T) { w.add(t, "n1", true, w.node(t, says(keys.Unknown, nil))) },
			map[string]float64{"probe_answers_total mint refused": 1, "probe_answers_total end refused": 1}, "refused a secret after its creation"},
		"cannot decide": {func(w *world, t *testing.T) { w.add(t, "n1", true, w.node(t, says("", errors.New("no lease")))) },
			map[string]float64{"probe_answers_total mint undecided": 1, "probe_answers_total end undecided": 1}, "it could not decide"},
		"another machine by now": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				for _, what := range []string{w.secret.Reveal(), "Bearer", "sk_test_"} {
					if bytes.Contains(body, []byte(what)) || strings.Contains(fmt.Sprint(r.Header), what) {
						t.Errorf("%s was sent to it", what)
					}
				}
				_, _ = io.WriteString(rw, `{"valid":true,"verdict":"valid","mac":"`+strings.Repeat("AAAA", 11)+`="}`)
			})
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "another machine's"},
		"of another deployment": {func(w *world, t *testing.T) {
			other := &world{secret: w.secret, ring: newRing(t), active: true}
			w.add(t, "n1", true, other.node(t, other.verify))
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "it answered 400"},
		"another node's address": {func(w *world, t *testing.T) { w.add(t, "n2", true, w.node(t, w.verify)) },
			map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "it answered 400"},
		"answers 503": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) {
				rw.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.Copy(rw, r.Body) // even one that repeats the question
			})
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "it answered 503"},
		"says something else": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "hello") })
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "as Keyward does"},
		"sends elsewhere": {func(w *world, t *testing.T) {
			w.add(t, "n1", true, func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, elsewhere.URL, http.StatusTemporaryRedirect)
			})
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "it answered 307"},
		"gone": {func(w *world, t *testing.T) {
			s := httptest.NewServer(nil)
			s.Close()
			w.nodes = append(w.nodes, keys.ServingNode{Node: keys.Node{ID: "n1", Address: strings.TrimPrefix(s.URL, "http://")}, Genuine: true})
		}, map[string]float64{"probe_answers_total mint unreachable": 1, "probe_answers_total end unreachable": 1}, "unreachable"},
		"row not genuine": {func(w *world, t *testing.T) {
			w.add(t, "n1", false, func(http.ResponseWriter, *http.Request) { t.Error("a node whose row is not genuine was asked") })
		}, nil, "was not written by Keyward"},
		"of an older version": {func(w *world, t *testing.T) {
			w.add(t, "n1", false, func(http.ResponseWriter, *http.Request) { t.Error("a node of an older version was asked") })
			w.nodes[0].MasterKeys = nil
		}, nil, "runs an older version"},
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
			if !strings.Contains(log, tt.log) || tt.log == "" && log != "" ||
				tt.log != "" && !strings.Contains(log, `"node":"n`) {
				t.Errorf("log: %s", log)
			}
			if strings.Contains(log, w.secret.Reveal()) {
				t.Error("the log has the secret")
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
			w.add(t, "n1", true, w.node(t, w.verify))
			w.add(t, "n1", true, w.node(t, says(keys.Unknown, nil)))
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

// A question is good for one node, one database and a few minutes; nothing else opens, and none of
// it takes long.
func TestResponderRejects(t *testing.T) {
	ring := newRing(t)
	signer, err := ring.Signer("m1")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	ask := func(database, node string, at time.Time) api.ProbeQuestion {
		t.Helper()
		body, _, err := newQuestion(signer, database, node, "sk_test_x", at)
		if err != nil {
			t.Fatal(err)
		}
		var asked api.ProbeQuestion
		if err := json.Unmarshal(body, &asked); err != nil {
			t.Fatal(err)
		}
		return asked
	}
	good := ask(databaseID, "n1", now)
	for name, tt := range map[string]struct {
		asked api.ProbeQuestion
		node  string
		taken bool
	}{
		"good":                   {good, "n1", true},
		"four minutes old":       {ask(databaseID, "n1", now.Add(-4*time.Minute)), "n1", true},
		"of a clock that is off": {ask(databaseID, "n1", now.Add(4*time.Minute)), "n1", true},
		"six minutes old":        {ask(databaseID, "n1", now.Add(-6*time.Minute)), "n1", false},
		"from the future":        {ask(databaseID, "n1", now.Add(6*time.Minute)), "n1", false},
		"to another node":        {ask(databaseID, "n2", now), "n1", false},
		"of another database":    {ask("other", "n1", now), "n1", false},
		"before registration":    {good, "", false},
		"of an unknown key":      {api.ProbeQuestion{MasterKeyID: "m2", Box: good.Box}, "n1", false},
		"no base64":              {api.ProbeQuestion{MasterKeyID: "m1", Box: "???"}, "n1", false},
		"empty":                  {api.ProbeQuestion{}, "n1", false},
		"too long":               {api.ProbeQuestion{MasterKeyID: "m1", Box: strings.Repeat("AAAA", maxBox)}, "n1", false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := false
			r := Responder{
				Ring: ring, NodeID: func() string { return tt.node }, DatabaseID: func() string { return databaseID }, Now: func() time.Time { return now },
				Verify: func(context.Context, verify.Request) (verify.Verdict, error) {
					asked = true
					return verify.Verdict{}, nil
				},
			}
			_, err := r.Answer(t.Context(), tt.asked)
			if (err == nil) != tt.taken || asked != tt.taken ||
				err != nil && !errors.Is(err, ErrNotAsked) {
				t.Errorf("asked %v, error %v", asked, err)
			}
		})
	}
}
