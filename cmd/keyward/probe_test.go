package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"

	"github.com/syncgram/keyward/internal/keywardtest"
	"github.com/syncgram/keyward/internal/pgtest"
)

// C23: two nodes of one PostgreSQL probe each other, with a token and with certificates on both sides.
func TestC23NodesProbeEachOther(t *testing.T) {
	t.Parallel()
	for name, secured := range map[string]bool{"token": false, "certificates": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := keywardtest.Options{Dir: dir, DatabaseURL: pgtest.URL(t), NotReady: true, Flags: []string{"--probe-every=5s"}}
			client := http.DefaultClient
			const bearer = "a-token-of-every-node"
			o.Flags = append(o.Flags, "--credentials-file="+writeFile(t, dir, "credentials", "nodes verify,read "+bearer+"\n"))
			if secured {
				a := newAuthority(t)
				cert, key := a.issue(t, 7)
				certFile, keyFile, caFile := writeFile(t, dir, "tls.crt", cert), writeFile(t, dir, "tls.key", key), writeFile(t, dir, "ca.pem", a.pem)
				o.Flags = append(o.Flags, "--tls-cert-file="+certFile, "--tls-key-file="+keyFile, "--internal-client-ca-file="+caFile, "--probe-ca-file="+caFile)
				pair, err := tls.LoadX509KeyPair(certFile, keyFile)
				if err != nil {
					t.Fatal(err)
				}
				roots := x509.NewCertPool()
				roots.AddCert(a.cert)
				transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
				defer transport.CloseIdleConnections()
				client = &http.Client{Transport: transport}
			}
			nodes := []*keywardtest.Process{keywardtest.Start(t, o), keywardtest.Start(t, o)}

			// figure adds one line of the metrics up over both nodes.
			figure := func(line string) (sum float64) {
				t.Helper()
				for _, p := range nodes {
					r, err := http.NewRequest(http.MethodGet, p.Admin+"/metrics", nil)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Authorization", "Bearer "+bearer)
					resp, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					text, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + ` (.*)$`).FindSubmatch(text)
					if err != nil || m == nil {
						t.Fatalf("no %s, %v", line, err)
					}
					v, err := strconv.ParseFloat(string(m[1]), 64)
					if err != nil {
						t.Fatal(err)
					}
					sum += v
				}
				return sum
			}
			if err := keywardtest.Poll(func() bool {
				return figure(`keyward_probe_answers_total{act="mint",answer="accepted"}`) >= 2 && figure(`keyward_probe_answers_total{act="end",answer="refused"}`) >= 2
			}, nodes[0].Exited()); err != nil {
				t.Errorf("no probe that asked both nodes: %v", err)
			}
			for line, want := range map[string]bool{
				`keyward_probe_barrier_seconds_count{act="mint"}`:              true,
				`keyward_probe_barrier_seconds_count{act="end"}`:               true,
				`keyward_stale_accepts_total`:                                  false,
				`keyward_probe_failures_total`:                                 false,
				`keyward_probe_answers_total{act="mint",answer="refused"}`:     false,
				`keyward_probe_answers_total{act="mint",answer="unreachable"}`: false,
				`keyward_probe_answers_total{act="mint",answer="undecided"}`:   false,
				`keyward_probe_answers_total{act="end",answer="undecided"}`:    false,
				`keyward_probe_answers_total{act="end",answer="unreachable"}`:  false,
			} {
				if got := figure(line); got > 0 != want {
					t.Errorf("%s %v", line, got)
				}
			}
			for _, p := range nodes {
				if code := p.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
}
