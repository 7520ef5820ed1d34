package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signalContext returns a context that ends with SIGINT and SIGTERM; the second of them ends the
// process at once. SIGHUP arrives on hangups, also before a command has decided what it means. It
// is nil where SIGHUP is ignored, as under nohup; see reload.
func signalContext() (ctx context.Context, hangups chan os.Signal) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if !signal.Ignored(syscall.SIGHUP) {
		hangups = make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
	}
	return ctx, hangups
}

// endOnHangup is SIGHUP for every command but serve: the terminal was closed, so ctx ends.
func endOnHangup(ctx context.Context, hangups <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if hangups != nil {
		go func() {
			select {
			case <-hangups:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}

// reloads are what a server does on SIGHUP (R11).
type reloads struct {
	mu    sync.Mutex
	hooks []func(context.Context) // guarded by mu
}

// add registers a function that re-reads something. It logs its own failure and keeps what it has.
func (r *reloads) add(hook func(context.Context)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks = append(r.hooks, hook)
}

// run calls the hooks in order after each SIGHUP, until ctx ends. SIGHUP never ends a server, not
// even under nohup, which makes hangups nil.
func (r *reloads) run(ctx context.Context, hangups chan os.Signal, logger *slog.Logger) {
	if hangups == nil {
		hangups = make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
	}
	for {
		select {
		case <-hangups:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		hooks := r.hooks[:len(r.hooks):len(r.hooks)]
		r.mu.Unlock()
		logger.Info("SIGHUP received", "hooks", len(hooks))
		for _, hook := range hooks {
			hook(ctx)
		}
	}
}
