package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// R11: SIGHUP never ends a server, whatever it does, before it is ready and afterwards.
func TestR11HangupOfServe(t *testing.T) {
	t.Parallel()
	p := keywardtest.Start(t, keywardtest.Options{NotReady: true})
	for range 3 {
		p.Signal(t, syscall.SIGHUP)
		p.WaitReady(t)
	}
	p.WaitLog(t, "SIGHUP received")
	if k := create(t, p, "ann", "org_a"); !verdict(t, p, k.Key).Valid {
		t.Error("a created key is not valid")
	}
	if code := p.Stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// R1: a closed terminal ends dev, in order.
func TestR1HangupOfDev(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	p := keywardtest.Run(t, keywardtest.Options{Args: []string{
		"dev", "--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=" + port, "--payments-listen=127.0.0.1:0",
	}})
	p.WaitStatus(t, "http://"+port+"/readyz", http.StatusOK)
	p.Signal(t, syscall.SIGHUP)
	if code := p.Wait(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// R11: each hook is called after a SIGHUP, in the order they were added.
func TestR11Hooks(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hangups := make(chan os.Signal, 1)
	called := make(chan string)
	var r reloads
	r.add(func(context.Context) { called <- "first" })
	r.add(func(context.Context) { called <- "second" })
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx, hangups, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	for range 2 {
		hangups <- syscall.SIGHUP
		if diff := cmp.Diff([]string{"first", "second"}, []string{<-called, <-called}); diff != "" {
			t.Error(diff)
		}
	}
	cancel()
	<-done
}
