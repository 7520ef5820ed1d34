//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/syncgram/keyward/api"
)

const (
	verifiers   = 4                    // connections that verify
	verifyEvery = 5 * time.Millisecond // each of them
	revokeEvery = 250 * time.Millisecond
	rssEvery    = 50 * time.Millisecond
	warmUp      = time.Second // of the attack, before anything is measured
)

// measureBeside starts a server, attacks it and measures.
func measureBeside(ctx context.Context, o options, binary, database, beside string) (m result, err error) {
	m = result{Database: database, Beside: beside, Verify: map[string]int{}, Revokes: map[string]int{}}
	s, err := startServer(ctx, o, binary, database)
	if err != nil {
		return m, err
	}
	defer s.stop()
	secret, _, err := s.createKey(ctx, "tenant", "org_tenant")
	if err != nil {
		return m, err
	}
	if beside != "quiet" {
		a, err := startAttack(ctx, s, o, beside)
		if err != nil {
			return m, err
		}
		defer func() { m.Attack = a.stop() }()
		time.Sleep(warmUp)
	}
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	var running sync.WaitGroup
	var mu sync.Mutex
	var times []time.Duration
	for range verifiers {
		running.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
			defer client.CloseIdleConnections()
			tick := time.NewTicker(verifyEvery)
			defer tick.Stop()
			for wait(ctx, tick.C) {
				began := time.Now()
				status := s.verifyOnce(client, secret)
				mu.Lock()
				times = append(times, time.Since(began))
				m.Verify[status]++
				mu.Unlock()
			}
		})
	}
	running.Go(func() {
		tick := time.NewTicker(revokeEvery)
		defer tick.Stop()
		for n := 0; wait(ctx, tick.C); n++ {
			took, status := s.createAndRevoke(context.WithoutCancel(ctx), n)
			m.Revoke = max(m.Revoke, float64(took.Microseconds())/1000)
			m.Revokes[status]++
		}
	})
	running.Go(func() {
		tick := time.NewTicker(rssEvery)
		defer tick.Stop()
		for wait(ctx, tick.C) {
			m.RSS = max(m.RSS, s.rss())
		}
	})
	running.Wait()
	if len(times) == 0 {
		return m, fmt.Errorf("nothing was verified")
	}
	slices.Sort(times)
	m.P50, m.P99 = micros(times[len(times)/2]), micros(times[len(times)*99/100])
	return m, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// wait waits for the next tick; false when the time is over.
func wait(ctx context.Context, tick <-chan time.Time) bool {
	select {
	case <-tick:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// verifyOnce returns the status, and whether the verdict was another than valid.
func (s *server) verifyOnce(client *http.Client, secret string) string {
	r, err := http.NewRequest(http.MethodPost, "http://"+s.verify+"/v1/verify", strings.NewReader(`{"key":"`+secret+`"}`))
	if err != nil {
		return err.Error()
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := client.Do(r)
	if err != nil {
		return "error"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK && !strings.HasPrefix(string(body), `{"valid":true`) {
		return "not valid"
	}
	return strconv.Itoa(resp.StatusCode)
}

// manage makes a management call as a user.
func (s *server) manage(ctx context.Context, user, organization, method, path, body string) (status int, answer []byte, err error) {
	token, err := s.issuer.Issue(user, organization, time.Hour)
	if err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+s.public+"/api/v1/auth/api-keys"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 60 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

func (s *server) createKey(ctx context.Context, user, organization string) (secret, id string, err error) {
	status, answer, err := s.manage(ctx, user, organization, http.MethodPost, "", `{"key_name":"k"}`)
	var k api.IssuedKey
	if err == nil && status == http.StatusCreated {
		err = json.Unmarshal(answer, &k)
	} else if err == nil {
		err = fmt.Errorf("create: %d %s", status, answer)
	}
	return k.Key, k.APIKeyID, err
}

// createAndRevoke times the revoke of a key of another tenant.
func (s *server) createAndRevoke(ctx context.Context, n int) (took time.Duration, status string) {
	user, organization := fmt.Sprint("other", n), fmt.Sprint("org_other", n)
	_, id, err := s.createKey(ctx, user, organization)
	if err != nil {
		return 0, "no key"
	}
	began := time.Now()
	code, _, err := s.manage(ctx, user, organization, http.MethodPost, "/"+id+"/revoke", "")
	if err != nil {
		return time.Since(began), "error"
	}
	return time.Since(began), strconv.Itoa(code)
}
