package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// C23, V7: an address in a node's row may be somebody else's by now. Another server there is told
// nothing that can be used: no credential of this deployment and no secret, also none that is dead.
func TestV7ProberTellsAnImpostorNothing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var captured []string // guarded by mu: everything that was received
	impostor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all strings.Builder
		_ = r.Header.Write(&all)
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		captured = append(captured, r.Method+" "+r.URL.String()+"\n"+all.String()+string(body))
		_, _ = io.WriteString(w, `{"valid":true,"verdict":"valid","mac":"AAAA"}`)
	}))
	defer impostor.Close()
	received := func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(captured, "\n")
	}

	dir := t.TempDir()
	bearer := strings.ReplaceAll("a token of the internal listener", " ", "-")
	o := keywardtest.Options{Dir: dir, DatabaseURL: pgtest.URL(t), NotReady: true, Flags: []string{
		"--probe-every=5s", "--credentials-file=" + writeFile(t, dir, "credentials", "service verify,operate "+bearer+"\n")}}
	p := keywardtest.Start(t, o)
	o.Flags = append(
		o.Flags,
		"--probe-every=0s",
		"--advertise="+strings.TrimPrefix(impostor.URL, "http://"),
	)
	moved := keywardtest.Start(t, o)
	if err := keywardtest.Poll(func() bool { return strings.Count(received(), "POST ") >= 2 }, p.Exited()); err != nil {
		t.Fatalf("the prober asked nothing: %v", err)
	}
	for what, text := range map[string]string{"the internal token": bearer, "a bearer credential": "Bearer", "a secret": "sk_test_"} {
		if strings.Contains(received(), text) {
			t.Errorf("%s was sent to an address from the table", what)
		}
	}
	p.WaitLog(t, `no verdict about a probe`) // what it answered counts for nothing
	if strings.Contains(p.Stderr(), "STALE ACCEPT") {
		t.Error("an impostor's answer was believed")
	}
	moved.Stop(t)
	p.Stop(t)
}
