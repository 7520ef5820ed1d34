package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"testing"
)

// discard is a ResponseWriter that keeps the header alone.
type discard struct {
	header http.Header
	status int
	body   int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { d.body += len(b); return len(b), nil }

// rewound is a body that is read anew by each request.
type rewound struct{ bytes.Reader }

func (*rewound) Close() error { return nil }

// BenchmarkHandler is what the handlers add to net/http, without net/http: Keyward's and the floor's.
func BenchmarkHandler(b *testing.B) {
	d, err := openSeeded(b.Context(), b.TempDir(), 1000, io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	defer d.store.Close()
	keyward, _, stop, err := d.verification(context.Background(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer stop()
	answers := map[string]sameAnswer{}
	for _, h := range []struct {
		name    string
		handler http.Handler
	}{{"keyward", keyward}, {"floor", floor(answers)}} {
		for _, path := range []string{"/v1/verify", "/v1/authorize"} {
			b.Run(h.name+path, func(b *testing.B) {
				requests := make([]*http.Request, len(d.sample))
				for i, secret := range d.sample {
					requests[i] = newRequest(b, path, secret)
				}
				b.ReportAllocs()
				b.ResetTimer()
				w, used := &discard{}, processorTime()
				for i := range b.N {
					r := requests[i%len(requests)]
					if body, ok := r.Body.(*rewound); ok {
						_, _ = body.Seek(0, io.SeekStart) // never fails
					}
					*w = discard{header: make(http.Header)}
					h.handler.ServeHTTP(w, r)
					if w.status != http.StatusOK {
						b.Fatalf("status %d", w.status)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(processorTime()-used)/float64(b.N), "cpu-ns/op") // the clock's time is everybody's
				answers[path] = sameAnswer{Header: w.header, Body: make([]byte, w.body)}
			})
		}
	}
}

func newRequest(b *testing.B, path, secret string) *http.Request {
	b.Helper()
	if path == "/v1/authorize" {
		r, err := http.NewRequest(http.MethodGet, path, http.NoBody)
		if err != nil {
			b.Fatal(err)
		}
		r.RemoteAddr = "127.0.0.1:1000"
		r.Header = http.Header{
			"User-Agent": {"load"}, "Accept": {"*/*"}, "Authorization": {"Bearer " + secret},
			"X-Forwarded-Method": {"POST"}, "X-Forwarded-Uri": {"/payments"}, "X-Forwarded-For": {"192.0.2.7"},
		}
		return r
	}
	text := `{"key":` + strconv.Quote(secret) + `}`
	r, err := http.NewRequest(http.MethodPost, path, nil)
	if err != nil {
		b.Fatal(err)
	}
	body := &rewound{}
	body.Reset([]byte(text))
	r.Body, r.ContentLength, r.RemoteAddr = body, int64(len(text)), "127.0.0.1:1000"
	r.Header = http.Header{"User-Agent": {"load"}, "Content-Type": {"application/json"}}
	return r
}
